"""Stores that move, fail, lie or are the operator's own; and what that means for agents that run."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import free_port

from agenthive.bus import Bus
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope
from agenthive_operator.backends import connections
from agenthive_operator.backends.connections import HiveLookupError, hive_settings
from agenthive_operator.backends.kube import Kube
from agenthive_operator.backends.resolve import NoEndpointError, Resolver
from agenthive_operator.local import servers
from agenthive_operator.reconcile.context import Options

from .conftest import Cluster, running_operator


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("server", "change", "condition", "reason", "words"),
    [
        ("redis", lambda url: "redis://:pw@127.0.0.1:1/0", "RedisReady", "Unreachable", "127.0.0.1:1"),
        ("redis", lambda url: url.replace(url.split("@")[0], "redis://:wrong"), "RedisReady", "AuthenticationFailed",
         "refuses the login"),
        ("redis", lambda url: "http://nonsense", "RedisReady", "InvalidURL", "redis://"),
        ("postgres", lambda url: "postgresql://u:p@127.0.0.1:1/x", "PostgresReady", "Unreachable", "127.0.0.1:1"),
        ("postgres", lambda url: url.replace(url.split("@")[0], "postgresql://postgres:wrong"), "PostgresReady",
         "AuthenticationFailed", "refused the login"),
        ("postgres", lambda url: url.rsplit("/", 1)[0] + "/nowhere", "PostgresReady", "DatabaseMissing", "nowhere"),
        ("postgres", lambda url: "mysql://x", "PostgresReady", "InvalidURL", "postgresql://"),
    ],
)  # fmt: skip
async def test_a_bad_url_is_told_and_never_reaches_pods(
    cluster: Cluster,
    redis_url: str,
    postgres_url: str,
    server: str,
    change: Callable[[str], str],
    condition: str,
    reason: str,
    words: str,
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    before = await cluster.exists("Deployment", "greeter")
    bad = change(redis_url if server == "redis" else postgres_url)
    await cluster.patch("Secret", "demo-urls", data={server: encoded(bad)})
    told = await cluster.condition("AgentHive", "demo", condition, "True", "NewServerRefused")
    assert f"it is not used ({reason})" in told["message"]
    assert words in told["message"]
    for secret in ("wrong", ":pw@", ":p@"):
        assert secret not in told["message"]
    await cluster.condition("AgentHive", "demo", "Ready", "False", "ServerChangePending")
    await cluster.condition("Agent", "greeter", "HiveReady", "True")
    now = await cluster.need("Deployment", "greeter")
    assert now["spec"] == before["spec"], "a running agent is left running on what it has"
    await cluster.patch("Secret", "demo-urls", data={"redis": encoded(redis_url), "postgres": encoded(postgres_url)})
    await cluster.condition("AgentHive", "demo", condition, "True", "Reachable")


@pytest.mark.usefixtures("operator")
async def test_a_missing_secret_and_a_missing_key_say_what_to_do(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.create("Secret", "pg", stringData={"uri": postgres_url})
    spec = {
        "redis": {"external": {"urlSecretRef": {"name": "not-there"}}},
        "postgres": {"external": {"urlSecretRef": {"name": "pg"}}},
    }
    await cluster.create("AgentHive", "demo", spec=spec)
    told = await cluster.condition("AgentHive", "demo", "RedisReady", "False", "SecretMissing")
    assert "'not-there'" in told["message"]
    told = await cluster.condition("AgentHive", "demo", "PostgresReady", "False", "SecretMissing")
    assert "has no key 'url'; its keys: uri" in told["message"]
    await cluster.create("Secret", "not-there", stringData={"url": redis_url})
    await cluster.patch("AgentHive", "demo", spec={"postgres": {"external": {"urlSecretRef": {"key": "uri"}}}})
    await cluster.condition("AgentHive", "demo", "Ready", "True")


@pytest.mark.usefixtures("operator")
async def test_a_redis_that_dies_and_comes_back_is_seen(cluster: Cluster, own_valkey: Any, postgres_url: str) -> None:
    await cluster.external_hive("demo", own_valkey.url, postgres_url)
    await cluster.agent("greeter", "demo")
    await cluster.condition("AgentHive", "demo", "RedisReady", "True")
    deployment = await cluster.exists("Deployment", "greeter")
    own_valkey.kill()
    await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Unreachable", seconds=40)
    assert (await cluster.need("Deployment", "greeter"))["spec"] == deployment["spec"]
    own_valkey.start()
    await cluster.condition("AgentHive", "demo", "RedisReady", "True", seconds=40)


@pytest.fixture
async def metrics_port(options: Options) -> AsyncIterator[int]:
    """Where an operator that runs during the test serves its metrics."""
    port = free_port()
    async with running_operator(options, probe_address=f"127.0.0.1:{port}"):
        yield port


async def test_queue_figures_reach_the_status_and_the_metrics(
    cluster: Cluster, redis_url: str, postgres_url: str, metrics_port: int
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url)
    await cluster.agent("greeter", "demo")
    await cluster.condition("AgentHive", "demo", "RedisReady", "True")
    instance = (await cluster.need("AgentHive", "demo"))["status"]["instanceId"]
    scope = HiveScope(instance=instance, namespace=cluster.namespace, hive="demo")
    bus = await Bus.connect(redis_url, scope)
    try:
        for number in range(3):
            await bus.send(
                AgentMessage(from_agent="test", to_agent="greeter", message_type="greet", body={"number": number})
            )
    finally:
        await bus.aclose()

    async def told() -> bool:
        agent, hive = await cluster.need("Agent", "greeter"), await cluster.need("AgentHive", "demo")
        return [obj.get("status", {}).get("backlog") for obj in (agent, hive)] == [3, 3]

    await cluster.until("backlog 3 in both statuses", told, seconds=45)
    status = (await cluster.need("Agent", "greeter"))["status"]
    assert status["inFlight"] == 0
    oldest = datetime.strptime(status["oldestMessageTime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs(oldest.timestamp() - time.time()) < 120
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
        scraped = {
            sample.name.removeprefix("agenthive_operator_agent_"): sample.value
            for family in text_string_to_metric_families(await answer.text())
            for sample in family.samples
            if sample.labels == {"namespace": cluster.namespace, "hive": "demo", "agent": "greeter"}
        }
    moment = scraped.pop("oldest_message_at_seconds")
    assert int(moment) == oldest.timestamp()
    assert scraped == {"backlog": 3, "in_flight": 0, "dead_letters": 0}

    bus = await Bus.connect(redis_url, scope)
    try:
        consumer = bus.consumer("greeter", pod="greeter-0")
        await consumer.start()
        left = 3
        while left:
            for delivery in await consumer.claim(left):
                await consumer.ack(delivery)
                left -= 1
        await consumer.stop()
        await consumer.aclose()
    finally:
        await bus.aclose()

    async def empty() -> bool:
        agent, hive = await cluster.need("Agent", "greeter"), await cluster.need("AgentHive", "demo")
        return bool(agent["status"].get("backlog") == 0 and hive["status"].get("backlog") == 0)

    await cluster.until("an empty queue is told without waiting for the next figures", empty, seconds=12)


# ---- managed


@pytest.mark.usefixtures("operator")
async def test_a_managed_hive_gets_servers_with_a_password_that_stays(cluster: Cluster) -> None:
    await cluster.create("AgentHive", "demo")
    for kind in ("StatefulSet", "Service", "Secret"):
        for server in ("redis", "postgres"):
            await cluster.exists(kind, f"demo-{server}")
    await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Starting")
    await cluster.condition("AgentHive", "demo", "PostgresReady", "False", "Starting")
    before = await cluster.need("Secret", "demo-redis")
    assert len(base64.b64decode(before["data"]["password"])) >= 24
    await cluster.patch("AgentHive", "demo", spec={"messaging": {"maxRetries": 7}})
    await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Starting")
    assert (await cluster.need("Secret", "demo-redis"))["data"] == before["data"]


@pytest.mark.usefixtures("operator")
async def test_moving_to_an_external_server_prunes_the_managed_one(
    cluster: Cluster, redis_url: str, postgres_url: str
) -> None:
    await cluster.create("AgentHive", "demo", spec={"deletionPolicy": "Delete"})
    await cluster.exists("StatefulSet", "demo-postgres")
    await cluster.create("Secret", "urls", stringData={"url": redis_url})
    await cluster.patch("AgentHive", "demo", spec={"redis": {"external": {"urlSecretRef": {"name": "urls"}}}})
    for kind in ("StatefulSet", "Service", "ConfigMap", "Secret"):
        await cluster.gone(kind, "demo-redis")
    assert await cluster.get("StatefulSet", "demo-postgres") is not None


@pytest.mark.usefixtures("operator")
async def test_a_managed_server_that_can_not_start_says_why(cluster: Cluster) -> None:
    await cluster.create("AgentHive", "demo")
    stateful_set = await cluster.exists("StatefulSet", "demo-redis")
    template = stateful_set["spec"]["template"]
    spec = {
        **template["spec"],
        "volumes": [
            *(entry for entry in template["spec"]["volumes"] if entry["name"] != "data"),
            {"name": "data", "emptyDir": {}},
        ],
    }
    await cluster.kube.create(
        cluster.body("Pod", "demo-redis-0", metadata={"labels": template["metadata"]["labels"]}, spec=spec)
    )
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    container = {
        "name": "redis", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": {"waiting": waiting},
    }  # fmt: skip
    await cluster.patch_status("Pod", "demo-redis-0", phase="Pending", containerStatuses=[container])

    async def told() -> bool:
        entry = await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Starting")
        return "no such image" in entry["message"]

    await cluster.until("the pod's reason is in RedisReady", told)


@pytest.mark.usefixtures("operator")
async def test_a_managed_server_is_starting_until_its_pod_had_time_to_be_found(cluster: Cluster) -> None:
    await cluster.create("AgentHive", "demo")
    template = (await cluster.exists("StatefulSet", "demo-redis"))["spec"]["template"]
    containers = [{"name": "redis", "image": "valkey"}]
    await cluster.kube.create(
        cluster.body(
            "Pod", "demo-redis-0", metadata={"labels": template["metadata"]["labels"]}, spec={"containers": containers}
        )
    )

    async def ready_since(seconds_ago: float) -> None:
        moment = datetime.fromtimestamp(time.time() - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": moment}
        await cluster.patch_status("Pod", "demo-redis-0", phase="Running", conditions=[ready])

    async def unreachable_events() -> list[Any]:
        return [event for event in await cluster.list("Event") if event["reason"] == "Unreachable"]

    await ready_since(0)

    async def about_to_be() -> bool:
        entry = await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Starting")
        return "about to be reachable" in entry["message"]

    await cluster.until("the ready pod is given time", about_to_be)
    assert await unreachable_events() == []
    await ready_since(3600)
    await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Unreachable")
    await cluster.until("then it is told", unreachable_events)


@asynccontextmanager
async def kubelet_runs_redis(cluster: Cluster, folder: Path) -> AsyncIterator[str]:
    """What controllers and kubelet do, played: the server at an address of its own, and its ready pod. The address."""
    password = base64.b64decode((await cluster.exists("Secret", "demo-redis"))["data"]["password"]).decode()
    template = (await cluster.exists("StatefulSet", "demo-redis"))["spec"]["template"]
    address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.{secrets.randbelow(250) + 2}"
    process = await asyncio.create_subprocess_exec(
        str(servers.valkey_server()), "--bind", address, "--port", "6379", "--requirepass", password,
        "--dir", str(folder), "--save", "", stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        body = cluster.body(
            "Pod",
            "demo-redis-0",
            metadata={"labels": template["metadata"]["labels"]},
            spec={"containers": [{"name": "redis", "image": "valkey"}]},
        )
        await cluster.kube.create(body)
        await cluster.patch_status(
            "Pod", "demo-redis-0", phase="Running", conditions=[{"type": "Ready", "status": "True"}],
            podIP=address, podIPs=[{"ip": address}],
        )  # fmt: skip
        yield address
    finally:
        process.terminate()
        await process.wait()


async def test_a_managed_server_is_reached_by_the_address_behind_its_service(
    cluster: Cluster, options: Options, tmp_path: Path
) -> None:
    await cluster.create("AgentHive", "demo")
    async with running_operator(replace(options, resolve_services=True)), kubelet_runs_redis(cluster, tmp_path) as ip:
        await cluster.condition("AgentHive", "demo", "RedisReady", "True")
        url = await Resolver(cluster.kube, enabled=True).resolve(f"redis://demo-redis.{cluster.namespace}.svc:6379/0")
        assert url == f"redis://{ip}:6379/0"
        several = f"redis+cluster://:p%40@demo-redis.{cluster.namespace}.svc:6379,elsewhere:7000"
        resolved = await Resolver(cluster.kube, enabled=True).resolve(several)
        assert resolved == f"redis+cluster://:p%40@{ip}:6379,elsewhere:7000"
    status = (await cluster.need("AgentHive", "demo"))["status"]
    assert status["redis"]["endpoint"] == f"demo-redis.{cluster.namespace}.svc:6379"


async def test_resolving_needs_a_ready_endpoint(cluster: Cluster) -> None:
    resolver = Resolver(cluster.kube, enabled=True)
    with pytest.raises(NoEndpointError, match="no ready endpoint"):
        await resolver.resolve(f"redis://x.{cluster.namespace}.svc:6379")
    assert await resolver.resolve("redis://elsewhere:6379") == "redis://elsewhere:6379"
    assert await Resolver(cluster.kube, enabled=False).resolve("redis://x.y.svc:1") == "redis://x.y.svc:1"


# ---- the command line's way in


async def test_hive_settings_of_an_external_hive(
    cluster: Cluster, options: Options, redis_url: str, postgres_url: str
) -> None:
    await cluster.external_hive("demo", redis_url, postgres_url, messaging={"maxRetries": 9})
    with pytest.raises(HiveLookupError, match="not looked at by an operator"):
        await hive_settings("demo", cluster.namespace)
    async with running_operator(options):
        await cluster.condition("AgentHive", "demo", "Ready", "True")
    settings = await hive_settings("demo", cluster.namespace)
    assert settings.redis_url.get_secret_value() == redis_url
    assert settings.postgres_url is not None
    assert settings.postgres_url.get_secret_value() == postgres_url
    assert (settings.hive, settings.namespace, settings.messaging.max_retries) == ("demo", cluster.namespace, 9)
    assert settings.instance == (await cluster.need("AgentHive", "demo"))["status"]["instanceId"]
    await cluster.delete("Secret", "demo-urls")
    assert await hive_settings("demo", cluster.namespace) == settings, "what is in use counts"


async def test_hive_settings_of_what_is_not_there(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HiveLookupError, match="no AgentHive 'nope'"):
        await hive_settings("nope", cluster.namespace)
    assert connections.context_namespace() == "default"
    with pytest.raises(HiveLookupError, match="no AgentHive 'nope' in namespace 'default'"):
        await hive_settings("nope")
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert connections.context_namespace() == "default"
    with pytest.raises(HiveLookupError, match="Set KUBECONFIG"):
        await hive_settings("nope")


async def test_a_kube_connection_needs_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    with pytest.raises(connections.config.ConfigException):
        await Kube.connect()


@pytest.mark.usefixtures("operator")
async def test_a_larger_volume_grows_by_its_claim(cluster: Cluster, api_server: Any) -> None:
    await cluster.create("AgentHive", "demo", spec={"redis": {"managed": {"storage": {"size": "1Gi"}}}})
    stateful_set = await cluster.exists("StatefulSet", "demo-redis")
    (template,) = stateful_set["spec"]["volumeClaimTemplates"]
    claim = {"accessModes": template["spec"]["accessModes"], "resources": template["spec"]["resources"]}
    await cluster.create("PersistentVolumeClaim", "data-demo-redis-0", spec=claim)
    await cluster.patch("AgentHive", "demo", spec={"redis": {"managed": {"storage": {"size": "2Gi"}}}})
    if api_server.real:  # refuses to resize a claim that no volume is bound to
        told = await cluster.condition("AgentHive", "demo", "Ready", "False", "ApplyRejected")
        assert "data-demo-redis-0" in told["message"]
        return

    async def grown() -> bool:
        found = await cluster.need("PersistentVolumeClaim", "data-demo-redis-0")
        return bool(found["spec"]["resources"]["requests"]["storage"] == "2Gi")

    await cluster.until("the claim asks for 2Gi", grown)
    assert (await cluster.need("StatefulSet", "demo-redis"))["metadata"]["generation"] == 1


async def test_an_operator_that_starts_while_redis_is_down_leaves_agents_as_they_are(
    cluster: Cluster, options: Options, own_valkey: Any, postgres_url: str
) -> None:
    async with running_operator(options):
        await cluster.external_hive("demo", own_valkey.url, postgres_url)
        await cluster.agent("greeter", "demo")
        before = await cluster.exists("Deployment", "greeter")
        secret = await cluster.need("Secret", "greeter-agenthive")
    own_valkey.kill()
    async with running_operator(options):
        await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Unreachable")
        await cluster.condition("Agent", "greeter", "HiveReady", "False", "HiveNotReady")
        assert (await cluster.need("Deployment", "greeter"))["spec"] == before["spec"]
        assert (await cluster.need("Secret", "greeter-agenthive"))["data"] == secret["data"]
        await cluster.agent("second", "demo")
        await cluster.condition("Agent", "second", "Ready", "False", "HiveNotReady")
        assert await cluster.get("Deployment", "second") is None, "a first start waits for the hive"
        await cluster.patch("Agent", "greeter", spec={"replicas": 3})

        async def scaled() -> bool:
            return bool((await cluster.need("Deployment", "greeter"))["spec"]["replicas"] == 3)

        await cluster.until("a running agent still follows its spec", scaled)
