"""Redis passwords that are replaced: two are valid through restarts; turns at rotating and at rolling go together."""

from __future__ import annotations

import base64
import signal
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from agenthive.bus import Bus
from agenthive.bus.access import user_name
from agenthive.settings import HiveScope
from agenthive.store.roles import agent_role
from agenthive_operator.plan.rolling import SLOTS
from agenthive_operator.reconcile.context import Options

from . import test_logins, test_users
from .conftest import Cluster, Object, running_operator
from .replicas import free_port
from .test_rotation import MARK, PATIENCE, add_pod, ask, secret_of, settled, told
from .test_users import RESTORED_SECONDS, Servers, lets_in, message, restored, scope_in, url_of

PREVIOUS = "PREVIOUS_AGENTHIVE_REDIS_URL"

servers = test_users.servers
database = test_logins.database


async def switched(cluster: Cluster, agent: str) -> str:
    """Wait until the Secret holds a new password and the former one; returns the new URL."""

    async def check() -> bool:
        return PREVIOUS in (await secret_of(cluster, agent))["data"]

    await cluster.until(f"{agent}'s Secret holds two passwords", check, PATIENCE)
    return await url_of(cluster, agent)


async def finished(cluster: Cluster, agent: str) -> Object:
    """Wait until the Secret holds new credentials and no former ones."""

    async def check() -> Object | None:
        secret = await secret_of(cluster, agent)
        is_marked = MARK in (secret["metadata"].get("annotations") or {})
        return secret if is_marked and not any(name.startswith("PREVIOUS_") for name in secret["data"]) else None

    found: Object = await cluster.until(f"{agent}'s credentials were replaced", check, PATIENCE)
    return found


async def passwords(servers: Servers, scope: HiveScope, agent: str) -> int:
    """How many passwords are valid for an agent's user."""
    async with servers.root() as root:
        answer = await root.execute_command("ACL", "GETUSER", user_name(scope, agent))
    return len(dict(zip(answer[::2], answer[1::2], strict=True))[b"passwords"])


async def cut(servers: Servers, user: str) -> int:
    """Close the connections of a user; how many there were."""
    async with servers.root() as root:
        return int(await root.execute_command("CLIENT", "KILL", "USER", user))


async def test_both_passwords_stand_through_restarts_until_the_last_pod_is_gone(
    cluster: Cluster, options: Options, servers: Servers
) -> None:
    async with running_operator(options):
        await servers.make_hive(cluster)
        await cluster.agent("anna", "demo")
        await settled(cluster, "anna")
        await add_pod(cluster, "anna", "former")
        scope, first = await scope_in(cluster), await url_of(cluster, "anna")
        bus = await Bus.connect(first, scope)
        try:
            await ask(cluster, "Agent", "anna", "1")
            second = await switched(cluster, "anna")
            assert [await lets_in(url) for url in (first, second)] == [True, True]
            assert await cut(servers, user_name(scope, "anna"))
            await bus.send(message("anna", 1))  # a pod of before comes in again

            async def both() -> bool:
                return await lets_in(first) and await lets_in(second)

            assert await restored(servers, both) < RESTORED_SECONDS
            await bus.send(message("anna", 2))
        finally:
            await bus.aclose()
    servers.server.kill()
    servers.server.start()
    await servers.make_users()
    async with running_operator(options):  # the one that knew both passwords is gone, and so is the server that did
        await cluster.until("both are valid again", both, PATIENCE)
        await add_pod(cluster, "anna", "following")
        await cluster.pods_ready("anna")
        assert await told(cluster, "CredentialsRotated") == []
        async with redis.asyncio.Redis.from_url(first, protocol=2) as left:
            assert await left.ping()
            await cluster.delete("Pod", "former")
            secret = await finished(cluster, "anna")
            assert await left.ping(), "Redis asks for a password at the door only, as docs/rotation.md says"
            assert await cut(servers, user_name(scope, "anna"))
            with pytest.raises(redis.exceptions.RedisError):
                await left.ping()
        assert [await lets_in(url) for url in (first, second)] == [False, True]
        assert await passwords(servers, scope, "anna") == 1
        assert base64.b64decode(secret["data"]["AGENTHIVE_POSTGRES_URL"]).decode() == servers.postgres
        (event,) = await told(cluster, "CredentialsRotated")
        assert (event["involvedObject"]["name"], event["count"]) == ("anna", 1)


@pytest.mark.usefixtures("operator")
async def test_a_rotation_and_other_rolls_wait_for_each_other_and_end(cluster: Cluster, servers: Servers) -> None:
    await servers.make_hive(cluster)
    busy = [f"busy-{number}" for number in range(SLOTS)]
    for name in (*busy, "anna", "bert"):
        await cluster.agent(name, "demo")
    await settled(cluster, *busy, "anna", "bert")
    scope, first = await scope_in(cluster), {name: await url_of(cluster, name) for name in ("anna", "bert")}
    # Bert is in mid-roll for his new credentials when others take every turn at rolling.
    await add_pod(cluster, "bert", "bert-drains")
    await ask(cluster, "Agent", "bert", "1")
    await switched(cluster, "bert")

    async def applied() -> bool:
        template = (await cluster.need("Deployment", "bert"))["spec"]["template"]
        return MARK in template["metadata"]["labels"]

    await cluster.until("his new pods are asked for", applied)
    await settled(cluster, "bert")
    for name in busy:
        await cluster.patch("Agent", name, spec={"image": "other:1"})
        await cluster.condition("Agent", name, "Progressing", "True", "RollingOut")
    await ask(cluster, "Agent", "anna", "1")
    await cluster.condition("Agent", "anna", "Progressing", "True", "RollQueued", PATIENCE)
    assert await passwords(servers, scope, "anna") == 2
    assert PREVIOUS not in (await secret_of(cluster, "anna"))["data"]
    assert await url_of(cluster, "anna") == first["anna"], "the next password waits where pods do not see it"
    # Bert's own next roll has to wait, which keeps what he began from nothing.
    await cluster.patch("Agent", "bert", spec={"image": "other:1"})
    await cluster.condition("Agent", "bert", "Progressing", "True", "RollQueued")
    await cluster.delete("Pod", "bert-drains")
    await finished(cluster, "bert")
    await cluster.condition("Agent", "bert", "Progressing", "True", "RollQueued")
    (event,) = await told(cluster, "CredentialsRotated")
    assert (event["involvedObject"]["name"], event["count"]) == ("bert", 1)
    assert not await lets_in(first["bert"])
    # All others are to have new ones, too, while no turn is free: more than may rotate at a time.
    await ask(cluster, "AgentHive", "demo", "all")
    await cluster.condition("Agent", "busy-0", "Progressing", "True", "RollingOut")
    assert await lets_in(first["anna"])

    done: set[str] = set()
    marks = {name: await mark_of(cluster, name) for name in (*busy, "anna", "bert")}

    async def turn() -> bool:
        """As a cluster does: every pod that may start becomes ready."""
        for name, mark in marks.items():
            await cluster.pods_ready(name)
            secret = await secret_of(cluster, name)
            answered = secret["metadata"].get("annotations", {}).get("agenthive.dev/rotate-hive") == "all"
            if answered and await mark_of(cluster, name) != mark and PREVIOUS not in secret["data"]:
                done.add(name)
        return done == set(marks)

    await cluster.until("everybody has new credentials", turn, PATIENCE)
    assert {event["involvedObject"]["name"] for event in await told(cluster, "CredentialsRotated")} == done


async def mark_of(cluster: Cluster, agent: str) -> str | None:
    annotations: dict[str, Any] = (await secret_of(cluster, agent))["metadata"].get("annotations") or {}
    return annotations.get(MARK)


async def make_minting_hive(cluster: Cluster, servers: Servers, database: test_logins.Servers) -> None:
    """A hive where both servers have credentials of each agent's own."""
    urls = {"app": servers.url, "admin": servers.admin, "pg": database.url, "pg-admin": database.admin}

    def refs(**keys: str) -> dict[str, Any]:
        return {"external": {f"{name}SecretRef": {"name": "urls", "key": key} for name, key in keys.items()}}

    await cluster.create("Secret", "urls", stringData=urls)
    redis_refs, postgres_refs = refs(url="app", adminUrl="admin"), refs(url="pg", adminUrl="pg-admin")
    await cluster.create("AgentHive", "demo", spec={"redis": redis_refs, "postgres": postgres_refs})


async def looks_at_agents(port: int) -> float:
    """How often the operator has looked at an Agent."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        for family in text_string_to_metric_families(await answer.text()):
            for sample in family.samples:
                if sample.name.endswith("reconcile_seconds_count") and sample.labels.get("kind") == "Agent":
                    return float(sample.value)
    return 0.0


async def test_one_server_is_waited_for_in_peace_when_the_other_is_ready(
    cluster: Cluster, options: Options, servers: Servers, database: test_logins.Servers
) -> None:
    port = free_port()
    async with running_operator(options, probe_address=f"127.0.0.1:{port}"):
        await make_minting_hive(cluster, servers, database)
        await cluster.agent("anna", "demo")
        await settled(cluster, "anna")
        _, schema = await test_logins.schema_of(cluster)
        first, before = await url_of(cluster, "anna"), await looks_at_agents(port)
        assert servers.server.process is not None
        servers.server.process.send_signal(signal.SIGSTOP)  # it says nothing, and may yet answer
        try:
            await ask(cluster, "Agent", "anna", "1")

            async def made() -> bool:
                return agent_role(schema, "anna", 1) in await database.roles(schema)

            await cluster.until("the next login is made", made, PATIENCE)
            await cluster.condition("AgentHive", "demo", "RedisReady", "False", "Unreachable", PATIENCE)
            assert await looks_at_agents(port) - before < 50
        finally:
            servers.server.process.send_signal(signal.SIGCONT)
        await switched(cluster, "anna")
        await cluster.pods_ready("anna")
        await finished(cluster, "anna")
        assert [await lets_in(url) for url in (first, await url_of(cluster, "anna"))] == [False, True]


async def test_a_server_that_makes_no_credentials_any_more_holds_nothing_up(
    cluster: Cluster, options: Options, servers: Servers, database: test_logins.Servers
) -> None:
    async with running_operator(options):
        await make_minting_hive(cluster, servers, database)
        await cluster.agent("anna", "demo")
        await settled(cluster, "anna")
        await add_pod(cluster, "anna", "former")
        first = await url_of(cluster, "anna")
        await ask(cluster, "Agent", "anna", "1")
        await switched(cluster, "anna")
        held = (await secret_of(cluster, "anna"))["data"]
        assert {name for name in held if name.startswith("PREVIOUS_")} == {
            PREVIOUS,
            "PREVIOUS_AGENTHIVE_POSTGRES_URL",
        }
    external = {"adminUrlSecretRef": None}
    await cluster.patch("AgentHive", "demo", spec={"postgres": {"external": external}})
    async with running_operator(options):

        async def own() -> bool:
            url = base64.b64decode((await secret_of(cluster, "anna"))["data"]["AGENTHIVE_POSTGRES_URL"]).decode()
            await cluster.pods_ready("anna")
            return url == database.url

        await cluster.until("the hive's own login is used", own, PATIENCE)
        assert await lets_in(first)
        await cluster.pods_ready("anna")
        await cluster.delete("Pod", "former")
        await finished(cluster, "anna")
        assert [await lets_in(url) for url in (first, await url_of(cluster, "anna"))] == [False, True]
