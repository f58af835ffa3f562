"""Which article passages are used: one reproducible sample of a PostgreSQL table, filtered and counted."""
