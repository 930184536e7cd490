"""Access to what the operator works on: the Kubernetes API, Redis, PostgreSQL."""
