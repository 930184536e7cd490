"""An external Redis behind sentinels, and one that is a Cluster: probed, handed on, cleaned."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from tests.integration.bus.servers import RedisCluster, SentinelSetUp, ask, running_cluster, running_sentinels

from agenthive.bus import Bus
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope
from agenthive_operator.backends.redis import probe, remove_hive

from .conftest import Cluster


@pytest.fixture(scope="module")
def redis_cluster() -> Iterator[RedisCluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelSetUp]:
    with running_sentinels() as setup:
        yield setup


@pytest.mark.usefixtures("operator")
async def test_such_urls_are_probed_and_handed_on_to_pods(
    cluster: Cluster, redis_cluster: RedisCluster, sentinels: SentinelSetUp, postgres_url: str
) -> None:
    await cluster.external_hive("demo", sentinels.url, postgres_url)
    await cluster.agent("greeter", "demo")
    told = await cluster.condition("AgentHive", "demo", "RedisReady", "True")
    assert sentinels.password not in told["message"]
    assert sentinels.sentinel_password not in told["message"]
    await cluster.exists("Deployment", "greeter")

    async def handed_on() -> str:
        secret = await cluster.need("Secret", "greeter-agenthive")
        return base64.b64decode(secret["data"]["AGENTHIVE_REDIS_URL"]).decode()

    assert await handed_on() == sentinels.url
    wrong = sentinels.url.replace("sentinel_password=", "sentinel_password=wrong")
    await cluster.patch("Secret", "demo-urls", data={"redis": base64.b64encode(wrong.encode()).decode()})
    told = await cluster.condition("AgentHive", "demo", "RedisReady", "True", "NewServerRefused")
    assert "(AuthenticationFailed)" in told["message"]
    assert sentinels.sentinel_password not in told["message"]
    await cluster.patch("Secret", "demo-urls", data={"redis": base64.b64encode(redis_cluster.url.encode()).decode()})
    await cluster.condition("AgentHive", "demo", "RedisReady", "True")


async def test_probes_say_which_form_is_wrong(redis_cluster: RedisCluster, sentinels: SentinelSetUp) -> None:
    node = redis_cluster.nodes[0]
    report = await probe(redis_cluster.url)
    assert (report.ok, report.reason) == (True, "Reachable")
    report = await probe(node.url)
    assert report.reason == "InvalidURL"
    assert "write redis+cluster://" in report.message
    report = await probe(sentinels.servers[0].url.replace("redis://", "redis+cluster://"))
    assert "is no node of a Cluster; write redis://" in report.message
    report = await probe(sentinels.url.replace(sentinels.SERVICE, "nobody"))
    assert "no sentinel knows the master" in report.message


async def test_the_end_of_a_hive_cleans_every_master(redis_cluster: RedisCluster, unique: str) -> None:
    scope, other = HiveScope(namespace=unique, hive="gone"), HiveScope(namespace=unique, hive="stays")
    for hive in (scope, other):
        bus = await Bus.connect(redis_cluster.url, hive)
        for n in range(20):
            await bus.send(AgentMessage(from_agent="t", to_agent=f"agent-{n}", message_type="t", body={}))
        await bus.aclose()
    assert await remove_hive(redis_cluster.url, scope, timeout=10) >= 20
    left = [key.decode() for node in redis_cluster.masters for key in ask(node, "KEYS", "*")]
    assert left
    assert all("/stays/" in key for key in left)
