"""Credentials that are replaced: on demand and by age, through restarts, stuck rollouts and many at once."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from agenthive.store.roles import agent_role, ensure_agent
from agenthive_operator.plan.rotation import MOST_AT_ONCE
from agenthive_operator.reconcile.context import Options

from . import test_logins
from .conftest import Cluster, Object, running_operator
from .test_logins import Servers, schema_of, url_of

ROTATE = "agenthive.dev/rotate"
MARK = "agenthive.dev/credentials"
PREVIOUS = "PREVIOUS_AGENTHIVE_POSTGRES_URL"
#: A look at PostgreSQL comes at least every 18 seconds, whatever was missed.
PATIENCE = 40.0

database = test_logins.database


async def secret_of(cluster: Cluster, agent: str) -> Object:
    return await cluster.exists("Secret", f"{agent}-agenthive")


async def ask(cluster: Cluster, kind: str, name: str, value: str | None) -> None:
    await cluster.patch(kind, name, metadata={"annotations": {ROTATE: value}})


async def works(url: str) -> bool:
    try:
        await (await asyncpg.connect(url)).close()
    except asyncpg.PostgresError:
        return False
    return True


async def add_pod(cluster: Cluster, agent: str, name: str) -> None:
    """A pod of the Deployment's template as it is now."""
    labels = (await cluster.exists("Deployment", agent))["spec"]["template"]["metadata"]["labels"]
    container = {"name": "agent", "image": "x"}
    await cluster.create("Pod", name, metadata={"labels": labels}, spec={"containers": [container]})


async def switched(cluster: Cluster, agent: str) -> Object:
    """Wait until the Secret holds new credentials and the former ones."""

    async def check() -> Object | None:
        secret = await secret_of(cluster, agent)
        return secret if PREVIOUS in secret["data"] else None

    found: Object = await cluster.until(f"{agent}'s Secret holds two logins", check, PATIENCE)
    return found


async def finished(cluster: Cluster, agent: str, since: str | None = None) -> Object:
    """Wait until the former credentials are revoked; ``since``: not those that were in use by then."""

    async def check() -> Object | None:
        secret = await secret_of(cluster, agent)
        mark = (secret["metadata"].get("annotations") or {}).get(MARK)
        return secret if mark not in {None, since} and PREVIOUS not in secret["data"] else None

    found: Object = await cluster.until(f"{agent}'s credentials were replaced", check, PATIENCE)
    return found


async def told(cluster: Cluster, reason: str) -> list[Object]:
    return [event for event in await cluster.list("Event") if event["reason"] == reason]


async def settled(cluster: Cluster, *agents: str) -> None:
    for agent in agents:
        await cluster.pods_ready(agent)
        await cluster.condition("Agent", agent, "Progressing", "False", "UpToDate")


async def test_both_logins_stand_until_the_last_pod_is_gone_whoever_operates(
    cluster: Cluster, options: Options, database: Servers
) -> None:
    async with running_operator(options):
        await database.make_hive(cluster)
        await cluster.agent("anna", "demo")
        await settled(cluster, "anna")
        await add_pod(cluster, "anna", "former")
        _, schema = await schema_of(cluster)
        first = await url_of(cluster, "anna")
        await ask(cluster, "Agent", "anna", "1")
        await switched(cluster, "anna")
        second = await url_of(cluster, "anna")
    assert agent_role(schema, "anna") in first
    assert agent_role(schema, "anna", 1) in second
    assert [await works(url) for url in (first, second)] == [True, True]
    await database.root.execute(f"DROP OWNED BY {agent_role(schema, 'anna')}")
    await database.root.execute(f"DROP ROLE {agent_role(schema, 'anna')}")
    async with running_operator(options):
        await cluster.until("what a pod still uses is restored", lambda: works(first), PATIENCE)
        await add_pod(cluster, "anna", "following")

        async def waits() -> bool:
            entry = await cluster.condition("Agent", "anna", "Progressing", "True", "RollingOut")
            return "former credentials stay valid" in entry["message"]

        await cluster.until("it says what it waits for", waits)
        await cluster.pods_ready("anna")
        assert await works(first), "the Deployment is through, and a pod drains"
        assert await told(cluster, "CredentialsRotated") == []
        await cluster.delete("Pod", "former")
        secret = await finished(cluster, "anna")
        assert [await works(url) for url in (first, second)] == [False, True]
        assert secret["metadata"]["annotations"][ROTATE] == "1"
        (event,) = await told(cluster, "CredentialsRotated")
        assert (event["type"], event["involvedObject"]["name"]) == ("Normal", "anna")
        entry = await cluster.condition("Agent", "anna", "Progressing", "False", "UpToDate")
        assert "credentials" not in entry["message"]
        await ask(cluster, "Agent", "anna", None)  # taking it away asks for nothing
        await ask(cluster, "Agent", "anna", "1")  # and neither does the value that was answered
        await cluster.agent("bert", "demo", replicas=0)
        await cluster.exists("Deployment", "bert")
    before = await cluster.versions()
    async with running_operator(options):
        await cluster.agent("carl", "demo", replicas=0)
        await cluster.exists("Deployment", "carl")
    now = await cluster.versions()
    for ref in (("Secret", "anna-agenthive"), ("Deployment", "anna")):
        assert now[ref] == before[ref], "a restart writes nothing and begins nothing"


@pytest.mark.usefixtures("operator")
async def test_credentials_that_are_too_old_are_replaced_even_of_a_suspended_hive(
    cluster: Cluster, database: Servers
) -> None:
    await database.make_hive(cluster, suspend=True, credentials={"rotateDays": 30})
    await cluster.agent("anna", "demo")
    await cluster.condition("AgentHive", "demo", "SchemaReady", "True")
    await settled(cluster, "anna")
    first = await url_of(cluster, "anna")
    assert PREVIOUS not in (await secret_of(cluster, "anna"))["data"]
    await cluster.patch("Secret", "anna-agenthive", metadata={"annotations": {MARK: "20200101T000000Z"}})
    await cluster.until("the template follows", lambda: carries(cluster, "20200101T000000Z"))
    await cluster.pods_ready("anna")
    await finished(cluster, "anna", since="20200101T000000Z")
    assert await url_of(cluster, "anna") != first
    assert [await works(url) for url in (first, await url_of(cluster, "anna"))] == [False, True]


async def carries(cluster: Cluster, mark: str) -> bool:
    template = (await cluster.need("Deployment", "anna"))["spec"]["template"]
    return bool(template["metadata"]["labels"].get(MARK) == mark)


@pytest.mark.usefixtures("operator")
async def test_a_few_at_once_and_then_the_others_without_waiting_for_a_resync(
    cluster: Cluster, database: Servers
) -> None:
    await database.make_hive(cluster)
    names = [f"agent-{number}" for number in range(MOST_AT_ONCE + 2)]
    for name in names:
        await cluster.agent(name, "demo", replicas=0)
        await settled(cluster, name)
        await add_pod(cluster, name, f"{name}-drains")

    async def rolling() -> list[str]:
        return [name for name in names if PREVIOUS in (await secret_of(cluster, name))["data"]]

    async def full() -> list[str] | None:
        found = await rolling()
        assert len(found) <= MOST_AT_ONCE
        return found if len(found) == MOST_AT_ONCE else None

    await ask(cluster, "AgentHive", "demo", "all")
    done: set[str] = set()
    for _ in range(2):
        (first, *_) = await cluster.until("as many as may", full, PATIENCE)
        await cluster.delete("Pod", f"{first}-drains")
        await finished(cluster, first)
        done.add(first)
    for name in await cluster.until("as many as may, once more", full, PATIENCE):
        await cluster.delete("Pod", f"{name}-drains")
        await finished(cluster, name)
        done.add(name)
    assert done == set(names)
    assert len(await told(cluster, "CredentialsRotated")) == len(names)
    # One that is made later has answered what was asked before.
    await cluster.agent("late", "demo", replicas=0)
    assert (await secret_of(cluster, "late"))["metadata"]["annotations"]["agenthive.dev/rotate-hive"] == "all"


@pytest.mark.usefixtures("brisk", "operator")
async def test_what_waits_is_told_and_both_logins_stay(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster)
    await cluster.agent("anna", "demo")
    await settled(cluster, "anna")
    await add_pod(cluster, "anna", "former")
    _, schema = await schema_of(cluster)
    next_role = agent_role(schema, "anna", 1)
    # Somebody else's role of the name that the next login needs.
    await database.root.execute(f"CREATE ROLE {next_role} SUPERUSER")
    first = await url_of(cluster, "anna")
    await ask(cluster, "Agent", "anna", "1")

    async def waits(words: str) -> bool:
        return any(words in event["message"] for event in await told(cluster, "RotationWaits"))

    await cluster.until("why it waits is told", lambda: waits("row-level security"), PATIENCE)
    await cluster.condition("AgentHive", "demo", "SchemaReady", "True")
    assert await url_of(cluster, "anna") == first
    await database.root.execute(f"DROP ROLE {next_role}")

    async def made() -> bool:
        return next_role in await database.roles(schema)

    await cluster.until("the next login is made", made, PATIENCE)
    await switched(cluster, "anna")
    # The new pods cannot be started: both logins stay.
    stalled = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "too late"}
    await cluster.patch_status("Deployment", "anna", conditions=[stalled])
    await cluster.until("the stuck rollout is told", lambda: waits("former credentials stay valid"), PATIENCE)
    assert await works(first)
    await cluster.delete("Pod", "former")
    await finished(cluster, "anna")
    # Asked for while a rollout is under way, and withdrawn.
    await ask(cluster, "Agent", "anna", "2")
    await cluster.until("it waits", lambda: progressing(cluster, "waits for the rollout"))
    await ask(cluster, "Agent", "anna", None)
    await cluster.until("nothing waits", lambda: progressing(cluster, "rotation", there=False))


async def test_what_a_rotation_that_was_given_up_left_is_dropped(
    cluster: Cluster, options: Options, database: Servers
) -> None:
    async with running_operator(options):
        await database.make_hive(cluster)
        await cluster.agent("anna", "demo")
        await settled(cluster, "anna")
        _, schema = await schema_of(cluster)
    # The operator ended between the making of a login and the switch to it, and nobody wants it any more.
    admin = await asyncpg.connect(database.admin)
    await ensure_agent(admin, schema, "anna", "left", generation=1)
    await admin.close()
    await add_pod(cluster, "anna", "running")
    async with running_operator(options):

        async def gone() -> bool:
            return agent_role(schema, "anna", 1) not in await database.roles(schema)

        await cluster.until("it is dropped", gone, PATIENCE)
    assert await works(await url_of(cluster, "anna"))
    assert await told(cluster, "CredentialsRotated") == []


async def progressing(cluster: Cluster, words: str, *, there: bool = True) -> bool:
    conditions = (await cluster.need("Agent", "anna"))["status"]["conditions"]
    return any(words in entry["message"] for entry in conditions if entry["type"] == "Progressing") is there


@pytest.mark.usefixtures("operator")
async def test_where_the_operator_makes_no_logins_it_says_so_once(cluster: Cluster, database: Servers) -> None:
    await database.make_hive(cluster, admin=False)
    await cluster.agent("anna", "demo", replicas=0)
    await cluster.exists("Deployment", "anna")
    await ask(cluster, "Agent", "anna", "1")

    async def noted() -> bool:
        annotations: dict[str, Any] = (await secret_of(cluster, "anna"))["metadata"].get("annotations") or {}
        return annotations.get(ROTATE) == "1"

    await cluster.until("the request is noted", noted)
    (event,) = await told(cluster, "RotationImpossible")
    assert event["count"] == 1
    assert await url_of(cluster, "anna") == database.url
