-- One row for each answer that a teacher gave, so that a crash or a second run never pays for it again.
CREATE TABLE IF NOT EXISTS newsjuice.teacher_ledger (
    key text PRIMARY KEY,             -- SHA-256 of model, prompt version, settings and article text
    model text NOT NULL,
    prompt_version text NOT NULL,
    reply jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
