"""Managed servers as StatefulSets: Valkey and PostgreSQL from the wheels, killed and found again with their data."""

from __future__ import annotations

import base64
import os
import signal

import asyncpg
import psutil
import redis.asyncio as redis

from agenthive_operator.local.objects import is_ready
from agenthive_operator.local.resources import CLAIMS, PODS, STATEFUL_SETS

PASSWORD = "s3cret word"


def secret(**data: str) -> dict:
    encoded = {key.replace("_", "."): base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "creds"}, "data": encoded}


def stateful_set(name: str, container: dict, volumes: list[dict]) -> dict:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 10},
            },
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
                }
            ],
        },
    }


def valkey() -> list[dict]:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "conf"},
        "data": {
            "redis.conf": "bind * -::*\ndir /data\nappendonly yes\nappendfsync always\ninclude /etc/secret/auth.conf\n"
        },
    }
    probe = {"tcpSocket": {"port": "redis"}, "periodSeconds": 1, "failureThreshold": 30}
    container = {
        "name": "redis",
        "image": "valkey/valkey:8.1",
        "args": ["valkey-server", "/etc/redis/redis.conf"],
        "ports": [{"name": "redis", "containerPort": 6379}],
        "startupProbe": probe,
        "readinessProbe": probe,
        "volumeMounts": [
            {"name": "conf", "mountPath": "/etc/redis"},
            {"name": "creds", "mountPath": "/etc/secret"},
            {"name": "data", "mountPath": "/data"},
        ],
    }
    volumes = [
        {"name": "conf", "configMap": {"name": "conf"}},
        {"name": "creds", "secret": {"secretName": "creds"}},
    ]
    return [secret(auth_conf=f'requirepass "{PASSWORD}"\n'), config, stateful_set("redis", container, volumes)]


def postgres() -> list[dict]:
    check = ["pg_isready", "-U", "app", "-d", "app"]
    container = {
        "name": "postgres",
        "image": "postgres:18",
        "args": ["-c", "listen_addresses=*", "-c", "max_connections=20"],
        "env": [
            {"name": "POSTGRES_USER", "value": "app"},
            {"name": "POSTGRES_DB", "value": "app"},
            {"name": "POSTGRES_PASSWORD_FILE", "value": "/etc/secret/password"},
            {"name": "POSTGRES_INITDB_ARGS", "value": "--auth-host=scram-sha-256 --auth-local=scram-sha-256"},
            {"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"},
        ],
        "ports": [{"name": "postgres", "containerPort": 5432}],
        "startupProbe": {"exec": {"command": check}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {"exec": {"command": check}, "periodSeconds": 1, "timeoutSeconds": 5},
        "volumeMounts": [
            {"name": "creds", "mountPath": "/etc/secret"},
            {"name": "data", "mountPath": "/var/lib/postgresql/data"},
        ],
    }
    volumes = [{"name": "creds", "secret": {"secretName": "creds"}}]
    return [secret(password=PASSWORD), stateful_set("postgres", container, volumes)]


def main_process(pod: dict) -> psutil.Process:
    """The process that listens on the pod's address."""
    address = pod["status"]["podIP"]
    found = [c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.ip == address and c.pid]
    return psutil.Process(found[0])


async def until_restarted(node, name: str) -> dict:
    return await node.until_pod(
        name, lambda p: is_ready(p) and p["status"]["containerStatuses"][0]["restartCount"] == 1, "ready again"
    )


async def test_valkey_keeps_its_data_and_its_address(node) -> None:
    node.apply(*valkey())
    pod = await node.until_ready("redis-0")
    address = pod["status"]["podIP"]
    async with redis.Redis(host=address, password=PASSWORD) as client:
        await client.set("k", "v")
    main_process(pod).kill()
    await until_restarted(node, "redis-0")
    async with redis.Redis(host=address, password=PASSWORD) as client:
        assert await client.get("k") == b"v"

    # A new template deletes the pod and makes it again, with the same claim and address.
    changed = valkey()[2]
    changed["spec"]["template"]["metadata"]["annotations"] = {"checksum": "2"}
    node.apply(changed)
    again = await node.until_pod(
        "redis-0", lambda p: is_ready(p) and p["metadata"]["uid"] != pod["metadata"]["uid"], "updated"
    )
    assert again["status"]["podIP"] == address
    async with redis.Redis(host=address, password=PASSWORD) as client:
        assert await client.get("k") == b"v"

    async def updated() -> bool:
        status = (await node.get(STATEFUL_SETS, "redis"))["status"]
        return status["currentRevision"] == status["updateRevision"] and status["updatedReplicas"] == 1

    await node.until(updated, "the update is complete")

    # The claim outlives the set; its data goes with the claim, not before its last pod.
    claim = await node.get(CLAIMS, "data-redis-0")
    assert claim["status"]["phase"] == "Bound"
    folder = node.folder / "volumes" / "claims" / f"{node.namespace}_data-redis-0_{claim['metadata']['uid']}"
    assert folder.is_dir()
    await node.kubectl("delete", "pvc", "data-redis-0", "--wait=false")
    await node.kubectl("delete", "statefulset", "redis", "--cascade=orphan")
    assert folder.is_dir(), "a pod still uses it"
    await node.kubectl("delete", "pod", "redis-0")
    await node.until_gone(CLAIMS, "data-redis-0")
    assert not folder.exists()


async def test_postgres_keeps_its_rows_over_a_sigkill(node) -> None:
    node.apply(*postgres())
    pod = await node.until_ready("postgres-0")
    address = pod["status"]["podIP"]
    connection = await asyncpg.connect(user="app", password=PASSWORD, database="app", host=address)
    await connection.execute("CREATE TABLE kept (n int)")
    await connection.execute("INSERT INTO kept VALUES (42)")
    process = main_process(pod)
    assert os.geteuid() != 0 or process.uids().real != 0, "PostgreSQL must not run as root"
    process.send_signal(signal.SIGKILL)
    connection.terminate()
    await until_restarted(node, "postgres-0")
    connection = await asyncpg.connect(user="app", password=PASSWORD, database="app", host=address)
    assert await connection.fetchval("SELECT n FROM kept") == 42
    assert await connection.fetchval("SHOW max_connections") == "20"

    # Fast shutdown: a connection that stays open does not hold it up.
    await node.kubectl("delete", "statefulset", "postgres")
    await node.until_gone(PODS, "postgres-0")
    connection.terminate()
