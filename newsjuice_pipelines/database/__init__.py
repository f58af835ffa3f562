"""The article database: the embedded PostgreSQL, its schema, and loading articles into it. The pipelines only read it."""
