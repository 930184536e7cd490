-- The audit trail: rows that nobody changes, each chained by its hash to the one before; one chain per process.
-- Expand only: pods of the previous version do not know it.
CREATE TABLE audit_log (
    chain    text        COLLATE "C" NOT NULL,
    seq      bigint      NOT NULL CONSTRAINT audit_log_seq CHECK (seq > 0),
    at       timestamptz NOT NULL,
    -- The agent whose process wrote the row; '' is a tool of the hive's operators.
    agent    text        COLLATE "C" NOT NULL,
    actor    text        NOT NULL,
    action   text        NOT NULL,
    subject  text        NOT NULL,
    details  text        NOT NULL,
    previous bytea       NOT NULL,
    hash     bytea       NOT NULL,
    PRIMARY KEY (chain, seq, at)
) PARTITION BY RANGE (at);
CREATE INDEX idx_audit_log_at ON audit_log (at);
CREATE INDEX idx_audit_log_subject ON audit_log (subject, at);

-- The last row of a chain that retention has removed: where verification of the rest begins.
CREATE TABLE audit_anchors (
    chain      text        COLLATE "C" NOT NULL PRIMARY KEY,
    seq        bigint      NOT NULL,
    at         timestamptz NOT NULL,
    hash       bytea       NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT now()
);
