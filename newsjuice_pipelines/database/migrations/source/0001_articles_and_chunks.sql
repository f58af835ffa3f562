CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE articles (
    id serial PRIMARY KEY,
    article_id varchar NOT NULL UNIQUE,
    author text,
    title text,
    summary text,
    content text,
    source_link text,
    source_type text,
    fetched_at timestamp,
    published_at timestamp,
    vflag integer NOT NULL DEFAULT 0,
    created_at timestamp NOT NULL DEFAULT now()
);

CREATE TABLE chunks_vector (
    id serial PRIMARY KEY,
    article_id varchar NOT NULL,
    author text,
    title text,
    summary text,
    content text,
    source_link text,
    source_type text,
    fetched_at timestamp,
    published_at timestamp,
    chunk text,
    chunk_index integer,
    embedding vector(768),
    created_at timestamp NOT NULL DEFAULT now()
);

CREATE INDEX chunks_vector_article_id ON chunks_vector (article_id, chunk_index);
CREATE INDEX chunks_vector_fetched_at ON chunks_vector (fetched_at);
