"""AgentHive runtime: a message bus over Redis Streams and a PostgreSQL store for agents."""
