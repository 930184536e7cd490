-- Which login of the database is which agent: what row-level security asks. Who has no row here and does not own the
-- tables sees nothing once row-level security is on (store/roles.py turns it on where roles are made).
-- Expand only: pods of the previous version do not know it.
CREATE TABLE database_roles (
    role       text        COLLATE "C" PRIMARY KEY,
    agent      text        COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idx_database_roles_agent ON database_roles (agent);
