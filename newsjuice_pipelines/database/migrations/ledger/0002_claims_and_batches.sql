-- A row without a reply is a claim: somebody is asking for it until the lease ends. So a key has one row whatever happens,
-- and the row's lock decides between two runs that want it at once.
ALTER TABLE newsjuice.teacher_ledger ALTER COLUMN reply DROP NOT NULL;
ALTER TABLE newsjuice.teacher_ledger
    ADD COLUMN claimed_by text,           -- the run that asks or asked, or batch/NAME
    ADD COLUMN leased_until timestamptz,
    ADD COLUMN answered_at timestamptz;

UPDATE newsjuice.teacher_ledger SET
    answered_at = created_at,
    reply = CASE reply ->> 'status'
        WHEN 'blocked' THEN jsonb_set(reply, '{status}', CASE
            WHEN reply ->> 'finish_reason' LIKE 'PROMPT\_%' THEN '"blocked_prompt"'::jsonb ELSE '"blocked_output"'::jsonb
        END)
        ELSE reply
    END;

ALTER TABLE newsjuice.teacher_ledger ADD CONSTRAINT teacher_ledger_answered_or_claimed CHECK (
    (reply IS NOT NULL AND answered_at IS NOT NULL) OR (claimed_by IS NOT NULL AND leased_until IS NOT NULL)
);
CREATE INDEX teacher_ledger_claims ON newsjuice.teacher_ledger (claimed_by) WHERE reply IS NULL;

-- Batch jobs whose replies were not all collected yet; the rows they answer are those that `batch/NAME` claims.
CREATE TABLE newsjuice.teacher_batches (
    name text PRIMARY KEY,
    model text NOT NULL,
    prompt_version text NOT NULL,
    folder text NOT NULL,                 -- where its requests and replies are
    made_by text NOT NULL,                -- the run that makes or made it
    job text,                             -- the service's name of the job; NULL until it is known
    created_at timestamptz NOT NULL DEFAULT now()
);

-- For people: what was answered and paid, by day and model.
CREATE VIEW newsjuice.teacher_spend AS
SELECT
    (answered_at AT TIME ZONE 'UTC')::date AS day,
    model,
    prompt_version,
    reply ->> 'status' AS status,
    coalesce(reply ->> 'mode', 'online') AS mode,
    count(*) AS replies,
    sum((reply ->> 'input_tokens')::bigint) AS input_tokens,
    sum((reply ->> 'output_tokens')::bigint) AS output_tokens,
    sum((reply ->> 'thought_tokens')::bigint) AS thought_tokens,
    sum((reply ->> 'cost_usd')::numeric) AS cost_usd,
    count(*) FILTER (WHERE reply ->> 'cost_usd' IS NULL) AS replies_without_cost
FROM newsjuice.teacher_ledger
WHERE reply IS NOT NULL
GROUP BY 1, 2, 3, 4, 5;
