"""The managed Redis of a hive: append-only file on, password, nothing evicted, users of agents from a file."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from agenthive_operator.api.hive import AgentHive, ManagedRedis
from agenthive_operator.plan import names, pods
from agenthive_operator.plan.inputs import ObservedServer
from agenthive_operator.plan.quantity import value
from agenthive_operator.plan.servers import (
    SECRET_PATH,
    ServerParts,
    encoded,
    password_of,
    server_objects,
    service_host,
)

PORT = 6379
CONFIG_PATH = "/etc/agenthive"
USERS_FILE = "users.acl"
DEFAULT_RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}}
# Redis forks to rewrite its file: what it may hold is less than what the container may use.
MEMORY_SHARE = 3, 4
GRACE_SECONDS = 30


def plan_redis(hive: AgentHive, spec: ManagedRedis, observed: ObservedServer) -> list[dict[str, Any]]:
    """Secret, ConfigMap, Service and StatefulSet of the managed Redis; the Secret of its users, once it has some.

    Raises:
        MissingPasswordError: ``observed`` holds no password.
    """
    password = password_of(observed, hive, "redis")
    parts = ServerParts(
        container=_container(spec),
        data_path="/data",
        scratch={"tmp": "/tmp"},  # noqa: S108 - a mount
        secret={
            "password": password,
            "url": redis_url(hive, password),
            "auth.conf": f"requirepass {_quoted(password)}\n",
        },
        config={"redis.conf": _config(spec)},
        config_path=CONFIG_PATH,
        grace=GRACE_SECONDS,
        beside=names.users_name(hive.metadata.name),
    )
    objects = server_objects(hive, "redis", spec, observed, parts)
    return [*objects, _users(hive, observed.users)] if observed.users else objects


def _users(hive: AgentHive, text: str) -> dict[str, Any]:
    secret = names.hive_child("v1", "Secret", hive, "redis", type="Opaque", data=encoded({USERS_FILE: text}))
    secret["metadata"]["name"] = names.users_name(hive.metadata.name)
    return secret


def redis_url(hive: AgentHive, password: str) -> str:
    """URL of the managed Redis."""
    return f"redis://:{quote(password, safe='')}@{service_host(hive, 'redis')}:{PORT}/0"


def _config(spec: ManagedRedis) -> str:
    lines = [
        f"include {SECRET_PATH}/auth.conf",
        # A pattern: where no agent has a user yet there is no such file.
        f"include {SECRET_PATH}/*.acl",
        f"port {PORT}",
        # Every interface, IPv6 where there is one: in a pod's own network the password is what protects.
        "bind * -::*",
        "protected-mode no",
        "dir /data",
        # Messages survive a restart; at most the last second is lost with the machine.
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        # A full Redis refuses new messages; it never drops one that waits.
        "maxmemory-policy noeviction",
    ]
    limit = spec.resources.limits.get("memory") if spec.resources is not None else None
    if limit is not None:
        share, of = MEMORY_SHARE
        lines.append(f"maxmemory {int(value(limit) * share / of)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """``text`` as one argument of a Redis configuration line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _program(image: str) -> str:
    """Images of Redis hold redis-server, those of Valkey valkey-server."""
    repository = image.rsplit("@", 1)[0].rsplit("/", 1)[-1]
    return "redis-server" if "redis" in repository else "valkey-server"


def _container(spec: ManagedRedis) -> dict[str, Any]:
    answers = {"tcpSocket": {"port": "redis"}}
    return {
        "name": "redis",
        "image": spec.image,
        "command": [_program(spec.image)],
        "args": [f"{CONFIG_PATH}/redis.conf"],
        "ports": [{"name": "redis", "containerPort": PORT, "protocol": "TCP"}],
        "resources": pods.resources(spec.resources, DEFAULT_RESOURCES),
        # Reading a large append-only file takes a while: five minutes before the kubelet gives up.
        "startupProbe": pods.probe(answers, period=1, failures=300),
        "livenessProbe": pods.probe(answers, period=10, failures=6, timeout=5),
        "readinessProbe": pods.probe(answers, period=2, failures=3, timeout=2),
    }
