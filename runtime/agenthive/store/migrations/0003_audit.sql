-- The audit trail: rows that nobody changes, each chained by its hash to the one before; one chain per process.
-- Expand only: pods of the previous version do not know it.

-- The hash covers every column (store/chain.py), so details are text: what was hashed is what is there.
CREATE TABLE audit_log (
    -- <agent>/<pod>/<boot>: who may only write rows of one agent can thus not write into the chain of another.
    chain    text        COLLATE "C" NOT NULL,
    seq      bigint      NOT NULL CONSTRAINT audit_log_seq CHECK (seq > 0),
    -- Never before that of the row before: retention takes the beginning of a chain, and nothing else.
    at       timestamptz NOT NULL,
    -- The agent whose process wrote the row; '' is a tool of the hive's operators.
    agent    text        COLLATE "C" NOT NULL,
    actor    text        NOT NULL,
    action   text        NOT NULL,
    subject  text        NOT NULL,
    details  text        NOT NULL,
    previous bytea       NOT NULL CONSTRAINT audit_log_previous CHECK (octet_length(previous) = 32),
    hash     bytea       NOT NULL CONSTRAINT audit_log_hash CHECK (octet_length(hash) = 32),
    PRIMARY KEY (chain, seq, at),
    CONSTRAINT audit_log_chain CHECK (split_part(chain, '/', 1) = agent)
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
