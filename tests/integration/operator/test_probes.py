"""What real servers are like, and what a hive says of it: rights, eviction, persistence, replicas."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import asyncpg
import pytest
import redis as redis_py
from tests.conftest import ValkeyServer, server_folder

from agenthive_operator.backends.logins import Login, with_login

from .conftest import Cluster

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def replica(own_valkey: ValkeyServer) -> Iterator[ValkeyServer]:
    """A replica of ``own_valkey``, whose password it has."""
    master = ("--replicaof", f"127.0.0.1 {own_valkey.port}", "--primaryauth", own_valkey.password)
    with server_folder("valkey") as folder:
        server = ValkeyServer(folder, extra=master, password=own_valkey.password)
        server.start()
        yield server
        server.stop()


async def told(cluster: Cluster, condition: str, status: str, reason: str, *words: str) -> None:
    async def check() -> bool:
        found = await cluster.condition("AgentHive", "demo", condition, status, reason)
        return all(word in found["message"] for word in words)

    await cluster.until(f"{condition} {status} {reason} with {words}", check)


async def look_again(cluster: Cluster) -> None:
    """A good server is looked at now and then: another URL of the same one asks at once."""
    secret = await cluster.need("Secret", "demo-urls")
    await cluster.patch("Secret", "demo-urls", data={"redis": swapped(secret["data"]["redis"])})


def swapped(data: str) -> str:
    url = base64.b64decode(data).decode()
    host, other = ("localhost", "127.0.0.1") if "@localhost" in url else ("127.0.0.1", "localhost")
    return base64.b64encode(url.replace(f"@{host}", f"@{other}").encode()).decode()


async def test_a_redis_that_may_lose_messages_is_told_until_it_is_mended(
    cluster: Cluster, own_valkey: ValkeyServer, postgres_url: str
) -> None:
    with redis_py.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        await cluster.external_hive("demo", own_valkey.url, postgres_url, messaging={"durability": "replicated"})
        await told(
            cluster, "RedisReady", "True", "MayEvict", "allkeys-lru", "loses every message", "no replica is connected"
        )

        async def warned() -> bool:
            return {e["type"] for e in await cluster.list("Event") if e["reason"] == "MayEvict"} == {"Warning"}

        await cluster.until("an Event warns", warned)
        client.config_set("maxmemory-policy", "noeviction")
        await look_again(cluster)
        await told(cluster, "RedisReady", "True", "MayLoseMessages")
        client.config_set("appendonly", "yes")
        await look_again(cluster)
        await told(cluster, "RedisReady", "True", "NoReplicas")
        await cluster.patch("AgentHive", "demo", spec={"messaging": {"durability": "default"}})
        await told(cluster, "RedisReady", "True", "Reachable")


async def test_a_user_without_the_rights_of_the_bus_is_told_which(
    cluster: Cluster, own_valkey: ValkeyServer, postgres_url: str
) -> None:
    with redis_py.Redis.from_url(own_valkey.url) as client:
        rules = "on >pw ~ah:* &ah:* +@read +@write +@connection +info +scan -xadd -function"
        client.execute_command("ACL", "SETUSER", "app", *rules.split())
        await cluster.external_hive("demo", f"redis://app:pw@127.0.0.1:{own_valkey.port}/0", postgres_url)
        await cluster.agent("greeter", "demo")
        needed = "+fcall +xadd +function|list +function|load"
        await told(cluster, "RedisReady", "False", "PrivilegesMissing", f"grant {needed}")
        assert client.dbsize() == 0, "a look leaves nothing behind"
        assert await cluster.get("Deployment", "greeter") is None
        client.execute_command("ACL", "SETUSER", "app", *needed.split())
        await told(cluster, "RedisReady", "True", "Reachable")  # what CONFIG says is not for this user to know
        await cluster.exists("Deployment", "greeter")


async def test_replicas_and_standbys_are_no_servers_for_a_hive(
    cluster: Cluster, replica: ValkeyServer, own_valkey: ValkeyServer, postgres_url: str
) -> None:
    database = postgres_url.rpartition("/")[2]
    root = await asyncpg.connect(postgres_url)
    try:
        await root.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        await cluster.external_hive("demo", replica.url, postgres_url)
        await told(cluster, "RedisReady", "False", "ReadOnly", f"replica of 127.0.0.1:{own_valkey.port}")
        await told(cluster, "PostgresReady", "False", "ReadOnly", "default_transaction_read_only")
        await root.execute("SET default_transaction_read_only = off")
        await root.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
        await told(cluster, "PostgresReady", "True", "Reachable")
    finally:
        await root.close()


async def test_a_login_that_may_not_make_the_schema_is_told_the_grant(
    cluster: Cluster, redis_url: str, postgres_url: str, unique: str
) -> None:
    database = postgres_url.rpartition("/")[2]
    root = await asyncpg.connect(postgres_url)
    try:
        await root.execute(f"CREATE ROLE {unique} LOGIN PASSWORD 'plain'")
        await cluster.external_hive("demo", redis_url, with_login(postgres_url, Login(unique, "plain")))
        grant = f'GRANT CREATE ON DATABASE "{database}" TO "{unique}"'
        await told(cluster, "PostgresReady", "False", "PrivilegesMissing", grant)
        await root.execute(grant)
        await told(cluster, "PostgresReady", "True", "Reachable")
        await told(cluster, "SchemaReady", "True", "Migrated")
        await root.execute(f"REVOKE CREATE ON DATABASE {database} FROM {unique}")
        await root.execute(f"DROP OWNED BY {unique}")
    finally:
        await root.execute(f"DROP ROLE {unique}")
        await root.close()
