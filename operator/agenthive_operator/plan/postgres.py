"""The managed PostgreSQL of a hive: scram for every connection, password in a Secret."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from agenthive_operator.api.hive import AgentHive, ManagedPostgres
from agenthive_operator.plan import pods
from agenthive_operator.plan.inputs import ObservedServer
from agenthive_operator.plan.servers import (
    SECRET_PATH,
    ServerParts,
    password_of,
    server_objects,
    service_host,
)

PORT = 5432
USER = "agenthive"
DATABASE = "agenthive"
DATA_PATH = "/var/lib/postgresql/data"
# Below the mount: the volume's own folder belongs to root and may hold lost+found.
PGDATA = f"{DATA_PATH}/pgdata"
MAX_CONNECTIONS = 300
DEFAULT_RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}}
GRACE_SECONDS = 60


def plan_postgres(hive: AgentHive, spec: ManagedPostgres, observed: ObservedServer) -> list[dict[str, Any]]:
    """Secret, Service and StatefulSet of the managed PostgreSQL.

    Raises:
        MissingPasswordError: ``observed`` holds no password.
    """
    password = password_of(observed, hive, "postgres")
    parts = ServerParts(
        container=_container(spec),
        data_path=DATA_PATH,
        scratch={"tmp": "/tmp", "run": "/var/run/postgresql"},  # noqa: S108 - mounts
        secret={"password": password, "url": postgres_url(hive, password)},
        config={},
        config_path="",
        grace=GRACE_SECONDS,
    )
    return server_objects(hive, "postgres", spec, observed, parts)


def postgres_url(hive: AgentHive, password: str) -> str:
    """URL of the managed PostgreSQL."""
    host = service_host(hive, "postgres")
    return f"postgresql://{USER}:{quote(password, safe='')}@{host}:{PORT}/{DATABASE}"


def _container(spec: ManagedPostgres) -> dict[str, Any]:
    answers = {"exec": {"command": ["pg_isready", "-U", USER, "-d", DATABASE]}}
    return {
        "name": "postgres",
        "image": spec.image,
        "args": ["-c", f"max_connections={MAX_CONNECTIONS}"],
        "env": [
            pods.env("POSTGRES_USER", USER),
            pods.env("POSTGRES_DB", DATABASE),
            pods.env("POSTGRES_PASSWORD_FILE", f"{SECRET_PATH}/password"),
            pods.env("POSTGRES_INITDB_ARGS", "--auth-host=scram-sha-256 --auth-local=scram-sha-256"),
            pods.env("PGDATA", PGDATA),
            # For pg_isready: while the image sets up a new data folder, a passing server answers on the socket.
            pods.env("PGHOST", "localhost"),
        ],
        "ports": [{"name": "postgres", "containerPort": PORT, "protocol": "TCP"}],
        "resources": pods.resources(spec.resources, DEFAULT_RESOURCES),
        # Recovery after a crash can take minutes, and a kill in the middle starts it over.
        "startupProbe": pods.probe(answers, period=2, failures=300, timeout=5),
        "livenessProbe": pods.probe(answers, period=10, failures=18, timeout=5),
        "readinessProbe": pods.probe(answers, period=5, failures=3, timeout=5),
    }
