-- Agent state, agent metrics, message log.
-- Runs with the hive's schema as search_path. Expand only: pods of the previous version still run against the result.

-- One JSON document per agent and key; the agent '' is the hive, shared by its agents. json, not jsonb: what comes
-- back is what was written (floats stay floats, any string is kept), and no agent pays for taking documents apart.
CREATE TABLE agent_state (
    agent      text        COLLATE "C" NOT NULL,
    key        text        COLLATE "C" NOT NULL,
    value      json        NOT NULL,
    -- Grows with every write and starts at the server's clock in microseconds, so that a key which was deleted and
    -- made again never repeats a version: a compare-and-set from before the deletion fails.
    version    bigint      NOT NULL,
    expires_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent, key)
);
CREATE INDEX idx_agent_state_expires_at ON agent_state (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE agent_metrics (
    id          uuid             NOT NULL DEFAULT gen_random_uuid(),
    agent_name  text             NOT NULL,
    metric_type text             NOT NULL,
    value       double precision NOT NULL
        CONSTRAINT agent_metrics_value_finite
        CHECK (value > '-Infinity'::double precision AND value < 'Infinity'::double precision),
    timestamp   timestamptz      NOT NULL DEFAULT now(),
    metadata    jsonb            NOT NULL DEFAULT '{}',
    PRIMARY KEY (id, timestamp)
) PARTITION BY RANGE (timestamp);
CREATE INDEX idx_agent_metrics_timestamp ON agent_metrics (timestamp);
CREATE INDEX idx_agent_metrics_agent ON agent_metrics (agent_name, metric_type, timestamp);

-- What became of messages: a row for each outcome that the hive's policy asks to keep.
CREATE TABLE message_log (
    id           uuid        NOT NULL DEFAULT gen_random_uuid(),
    agent        text        NOT NULL,
    message_id   text        NOT NULL,
    from_agent   text        NOT NULL,
    to_agent     text        NOT NULL,
    message_type text        NOT NULL,
    status       text        NOT NULL,
    attempts     integer     NOT NULL,
    error        text,
    created_at   timestamptz NOT NULL,
    logged_at    timestamptz NOT NULL DEFAULT now(),
    body         json,
    PRIMARY KEY (id, logged_at)
) PARTITION BY RANGE (logged_at);
CREATE INDEX idx_message_log_logged_at ON message_log (logged_at);
CREATE INDEX idx_message_log_agent ON message_log (agent, logged_at);
CREATE INDEX idx_message_log_message_id ON message_log (message_id);
