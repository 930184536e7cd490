"""The cache's own Redis, PostgreSQL's direct URL, and a server that has too few connections for its hive."""

from __future__ import annotations

import base64
from typing import Any

import asyncpg
import pytest

from agenthive_operator.backends.connections import HiveLookupError, hive_settings
from agenthive_operator.backends.logins import Login, with_login

from .conftest import Cluster


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def cache_of(cluster: Cluster, agent: str) -> tuple[str | None, str | None]:
    """What an agent's pods are told of the cache: its URL in the Secret, and the policy in the environment."""
    deployment, secret = await cluster.exists("Deployment", agent), await cluster.need("Secret", f"{agent}-agenthive")
    variables = {entry["name"]: entry for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    url = secret["data"].get("AGENTHIVE_CACHE_URL") if "AGENTHIVE_CACHE_URL" in variables else None
    return (base64.b64decode(url).decode() if url else None), variables.get("AGENTHIVE_CACHE", {}).get("value")


OFF = '{"enabled":false}'


@pytest.mark.usefixtures("operator")
async def test_a_bad_cache_url_is_told_and_never_reaches_pods(
    cluster: Cluster, redis_url: str, postgres_url: str, own_valkey: Any
) -> None:
    cache = {"urlSecretRef": {"name": "cache"}}
    external = {"external": {"urlSecretRef": {"name": "demo-urls", "key": "redis"}}}
    await cluster.external_hive("demo", redis_url, postgres_url, redis={**external, "cache": cache})
    await cluster.agent("greeter", "demo")

    async def told(reason: str, *words: str) -> None:
        async def check() -> bool:
            found = await cluster.condition("AgentHive", "demo", "RedisReady", "True", reason)
            assert "cache-word" not in found["message"]
            return all(word in found["message"] for word in words)

        await cluster.until(f"{reason} with {words}", check)

    async def agent_has(url: str | None, policy: str | None) -> None:
        async def check() -> bool:
            return await cache_of(cluster, "greeter") == (url, policy)

        await cluster.until(f"the agent's cache: {url} {policy}", check)

    await told("CacheNotReady", "'cache' of spec.redis.cache.urlSecretRef does not exist")
    await agent_has(None, OFF)
    with pytest.raises(HiveLookupError, match="'cache'"):
        await hive_settings("demo", cluster.namespace)
    await cluster.create("Secret", "cache", stringData={"url": "redis://:cache-word@127.0.0.1:1/0"})
    await told("CacheNotReady", "127.0.0.1:1", "Unreachable")
    await agent_has(None, OFF)
    await cluster.patch("Secret", "cache", data={"url": encoded(own_valkey.url)})
    await told("Reachable")
    await agent_has(own_valkey.url, None)
    settings = await hive_settings("demo", cluster.namespace)
    assert settings.cache_url is not None
    assert settings.cache_url.get_secret_value() == own_valkey.url
    await cluster.patch("Secret", "cache", data={"url": encoded("redis://:cache-word@127.0.0.1:2/0")})
    await told("CacheNotReady", "127.0.0.1:2")
    await agent_has(own_valkey.url, None)

    async def warned() -> bool:
        return {e["type"] for e in await cluster.list("Event") if e["reason"] == "CacheNotReady"} == {"Warning"}

    await cluster.until("an Event warns", warned)
    await cluster.patch("AgentHive", "demo", spec={"redis": {"cache": {"urlSecretRef": None, "maxBytes": 2**20}}})
    await told("Reachable")
    await agent_has(None, '{"maxBytes":1048576}')


@pytest.mark.usefixtures("operator")
async def test_a_hive_near_its_servers_limit_is_told_with_numbers(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo", replicas=2)
    await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "Reachable")
    before = await cluster.exists("Deployment", "greeter")
    await cluster.patch("Agent", "greeter", spec={"replicas": 20})
    told = await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "NearConnectionLimit")
    # 300 connections, 3 of them for superusers; 20 replicas and 5 more while they are rolled, of 10 connections each
    for words in ("252 connections", "25 pods", "297", "raise max_connections"):
        assert words in told["message"]

    async def warned() -> bool:
        events = [e for e in await cluster.list("Event") if e["reason"] == "NearConnectionLimit"]
        return [(e["type"], e["message"]) for e in events] == [("Warning", told["message"])]

    await cluster.until("one Event says the same", warned)
    await cluster.patch("AgentHive", "demo", spec={"postgres": {"pool": {"maxSize": 5}}})
    await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "Reachable")
    await cluster.patch("AgentHive", "demo", spec={"postgres": {"pool": {"maxSize": 10}}})
    await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "NearConnectionLimit")
    await cluster.patch("Agent", "greeter", spec={"replicas": 2})
    await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "Reachable")
    assert before["spec"]["replicas"] == 2


@pytest.mark.usefixtures("operator")
async def test_migrations_go_by_the_direct_url_and_agents_by_the_other(
    cluster: Cluster, redis_url: str, postgres_url: str, unique: str
) -> None:
    root = await asyncpg.connect(postgres_url)
    try:
        await root.execute(f"CREATE ROLE {unique} LOGIN PASSWORD 'plain'")
        url = with_login(postgres_url, Login(unique, "plain"))
        data = {"redis": redis_url, "app": url, "direct": "postgresql://u:direct-word@127.0.0.1:1/x"}
        await cluster.create("Secret", "urls", stringData=data)
        pointers = {
            f"{field}SecretRef": {"name": "urls", "key": key}
            for field, key in (("url", "app"), ("directUrl", "direct"))
        }
        redis = {"external": {"urlSecretRef": {"name": "urls", "key": "redis"}}}
        await cluster.create("AgentHive", "demo", spec={"redis": redis, "postgres": {"external": pointers}})
        await cluster.agent("greeter", "demo", replicas=100)
        told = await cluster.condition("AgentHive", "demo", "SchemaReady", "False", "Unreachable")
        assert "spec.postgres.external.directUrlSecretRef" in told["message"]
        assert "direct-word" not in told["message"]
        await cluster.patch("Secret", "urls", data={"direct": encoded(postgres_url)})
        await cluster.condition("AgentHive", "demo", "SchemaReady", "True")
        # A hundred pods share what PgBouncer opens: how many that is, PgBouncer decides.
        await cluster.condition("AgentHive", "demo", "PostgresReady", "True", "Reachable")
        await cluster.exists("Deployment", "greeter")
        secret = await cluster.need("Secret", "greeter-agenthive")
        assert base64.b64decode(secret["data"]["AGENTHIVE_POSTGRES_URL"]).decode() == url
        owner = await root.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'agent_state'")
        assert owner == "postgres", "made by the direct URL"
    finally:
        await root.close()
