-- Exactly-once effects: the inbox says whose effects are committed, the outbox holds what they send.
-- Expand only: pods of the previous version know neither table.

-- A message that an agent's transaction has handled. A redelivery finds its mark and runs nothing again.
CREATE TABLE inbox (
    agent      text        COLLATE "C" NOT NULL,
    message_id text        COLLATE "C" NOT NULL,
    handled_at timestamptz NOT NULL DEFAULT now(),
    -- Behind the last moment at which the message may still be redelivered or redriven.
    keep_until timestamptz NOT NULL,
    PRIMARY KEY (agent, message_id)
) PARTITION BY HASH (agent, message_id);
CREATE INDEX idx_inbox_keep_until ON inbox (keep_until);
DO $$
BEGIN
    FOR part IN 0..7 LOOP
        EXECUTE format('CREATE TABLE inbox_p%s PARTITION OF inbox FOR VALUES WITH (MODULUS 8, REMAINDER %s)', part, part);
    END LOOP;
END $$;

-- What a committed transaction sends; a row stays until its message has a final status, so that a Redis that loses
-- its last second is given it again.
CREATE TABLE outbox (
    id         uuid        PRIMARY KEY,
    agent      text        COLLATE "C" NOT NULL,
    -- The message whose handling sends it; null outside of a handling.
    cause      text        COLLATE "C",
    kind       text        NOT NULL CONSTRAINT outbox_kind CHECK (kind IN ('message', 'topic', 'reply')),
    message_id text        NOT NULL,
    -- An agent or a topic; of a reply whoever asked.
    recipient  text        NOT NULL,
    document   text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- When a sweep may look after it, should its process not have done so.
    due_at     timestamptz NOT NULL,
    tries      integer     NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
CREATE INDEX idx_outbox_due ON outbox (agent, due_at);
CREATE INDEX idx_outbox_cause ON outbox (agent, cause) WHERE cause IS NOT NULL;
