"""Chaos on the API: whatever the operator meets on its way to the API server, it comes to rest in the right state."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.conftest import running_emulator

from agenthive.settings import HiveScope
from agenthive.store import schema_name
from agenthive_operator import main
from agenthive_operator.backends import kube as kube_module
from agenthive_operator.backends.kube import Kube
from agenthive_operator.reconcile.context import Options
from agenthive_operator.reconcile.controller import Controller

from .chaos import Answer, Asked, Broken, Chaos, Cut, Fault, Late, Rule, Silent, Swallowed, Tampered
from .conftest import TESTS, Cluster, running_operator
from .fleet import Fleet
from .replicas import free_port, write_kubeconfig
from .test_process import healthz, process


@pytest.fixture
async def chaos(
    cluster: Cluster, api_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Chaos]:
    """The proxy, which the operators of the test go through; the test itself does not."""
    async with Chaos(api_server).serve() as proxy:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", proxy.url, "t")))
        yield proxy


@pytest.fixture
def fleet(cluster: Cluster, chaos: Chaos) -> Fleet:
    return Fleet(cluster, chaos)


def of_everything(fault: Fault) -> Rule:
    return lambda asked: fault


def of_watches(fault: Fault) -> Rule:
    return lambda asked: fault if asked.watches else None


def of_lists(fault: Fault, *kinds: str) -> Rule:
    return lambda asked: fault if asked.lists and (not kinds or asked.kind in kinds) else None


def in_turn(of: Callable[[Asked], bool], *faults: Fault) -> Rule:
    """Requests of a kind meet one fault after the other; each keeps the one that it met."""
    met: dict[int, Fault] = {}
    following = itertools.cycle(faults)

    def rule(asked: Asked) -> Fault | None:
        if not of(asked):
            return None
        if id(asked) not in met:
            met[id(asked)] = next(following)
        return met[id(asked)]

    return rule


REFUSALS = (
    Answer(500, "InternalError"),
    Answer(503, html=True),
    Answer(404, html=True),  # of a load balancer
    Answer(404, "NotFound"),  # of a server that does not serve the kinds yet
    Answer(200, html=True),
)
REQUESTS: dict[str, Rule] = {
    "refusals": in_turn(lambda asked: True, *REFUSALS),
    "conflicts": in_turn(lambda asked: asked.writes, Answer(409, "Conflict")),
    "connections": in_turn(lambda asked: True, Cut("before"), Cut("middle"), Cut("after"), Late(0.3)),
    "lost answers": in_turn(lambda asked: asked.writes, Cut("after")),
}


async def test_requests_that_fail(
    cluster: Cluster, chaos: Chaos, fleet: Fleet, options: Options, redis_url: str, postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with running_operator(options):
        await fleet.start(redis_url, postgres_url, agents=12)
        await fleet.converged("the start")
        for what, rule in REQUESTS.items():
            with chaos.faulty(rule):
                await fleet.churn()
                await asyncio.sleep(0.5)
            await fleet.converged(what)
    ours = [record for record in caplog.records if record.name.startswith("agenthive")]
    assert not [record.getMessage() for record in ours if record.exc_info], "no traceback"


WATCHES: dict[str, Rule] = {
    "missed deletions": of_watches(Swallowed(("DELETED",))),
    "errors": in_turn(
        lambda asked: asked.watches, Broken(500), Answer(410, "Expired"), Cut("middle"), Answer(200, html=True)
    ),
    "ends": in_turn(lambda asked: asked.watches, Cut("end"), Cut("before")),
    "silence": of_watches(Silent()),
}


async def test_watches_that_fail(
    cluster: Cluster, chaos: Chaos, fleet: Fleet, options: Options, redis_url: str, postgres_url: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(main, "WATCH_SILENCE_SECONDS", 6.0)  # as long as no bookmark comes; really over a minute
    monkeypatch.setattr(kube_module, "WATCH_SILENCE_SECONDS", 6.0)
    async with running_operator(options):
        await fleet.start(redis_url, postgres_url, agents=6)
        await fleet.converged("the start")
        for what, rule in WATCHES.items():
            seen = len(chaos.asked)
            with chaos.faulty(rule):
                await fleet.churn()
                await asyncio.sleep(1.0)
            if what == "missed deletions":
                with chaos.faulty(of_watches(Broken(410))):
                    await asyncio.sleep(0.2)
            await fleet.converged(what)
            reads = len([asked for asked in chaos.asked[seen:] if asked.lists or asked.watches])
            assert reads < 150, f"{what}: {reads} lists and watches"
    ours = [record for record in caplog.records if record.name.startswith("agenthive")]
    assert not [record.getMessage() for record in ours if record.exc_info], "no traceback"


def left_out(share: float) -> Tampered:
    """A list lacks the last part of what there is."""

    def change(listed: dict[str, Any]) -> None:
        items = listed["items"] or []
        listed["items"] = items[: int(len(items) * (1 - share))]

    return Tampered(change)


async def test_lists_that_leave_out_what_is_there(
    cluster: Cluster, chaos: Chaos, fleet: Fleet, options: Options, redis_url: str, postgres_url: str,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(kube_module, "PAGE", 2)
    often = Options(namespaces=options.namespaces, resync_seconds=1.0)
    expired = [0]

    def pages(asked: Asked) -> Fault | None:
        if "continue" in asked.query:
            expired[0] += 1
            return Answer(410, "Expired")
        return None

    rules: dict[str, Rule] = {
        "empty lists": of_lists(left_out(1)),
        "half of the agents": of_lists(left_out(0.5), "agents"),
        "pages that expire": pages,
    }
    async with running_operator(often):
        await fleet.start(redis_url, postgres_url, agents=6)
        await fleet.converged("the start")
        labels = (await cluster.need("Deployment", "a0"))["spec"]["template"]["metadata"]["labels"]
        pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "agent", "image": "x"}]}}
        await cluster.create("Pod", "there", **pod)
        for what, rule in rules.items():
            with chaos.faulty(rule):
                began = time.monotonic()
                await asyncio.sleep(1.5)
                assert not chaos.writes(began), f"{what}: nothing changed, and something was written"
                await fleet.churn()
                await fleet.converged(f"{what}, while it lasts")
            await fleet.converged(what)
    assert expired[0], "there were pages"
    asked_for = {asked.kind for asked in chaos.asked if asked.method == "GET" and asked.name}
    assert {"agenthives", "agents", "deployments", "secrets", "pods"} <= asked_for, "nothing was given up unasked"
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told
    assert len(told) <= 20, "few words"


async def test_an_operator_that_begins_with_empty_lists_cleans_nothing_up(
    cluster: Cluster, chaos: Chaos, options: Options, redis_url: str, postgres_url: str
) -> None:
    """The hive is being deleted, and the lists say that none of its agents is there: they are drained all the same."""
    fleet = Fleet(cluster, chaos)
    async with running_operator(options):
        await fleet.start(redis_url, postgres_url, agents=2, deletionPolicy="Delete")
        await fleet.converged("the start")
    for name in fleet.wanted:
        await cluster.pods_ready(name)
    hive = await cluster.need("AgentHive", "demo")
    schema = schema_name(HiveScope(instance=hive["status"]["instanceId"], namespace=cluster.namespace, hive="demo"))
    await cluster.delete("AgentHive", "demo")
    connection = await asyncpg.connect(postgres_url)
    found = "SELECT count(*) FROM information_schema.schemata WHERE schema_name = $1"
    patient = Options(namespaces=options.namespaces, cleanup_seconds=60)
    try:
        with chaos.faulty(of_lists(left_out(1), "agents")):
            async with running_operator(patient):

                async def drained() -> bool:
                    scaled = [await cluster.need("Deployment", name) for name in fleet.wanted]
                    return all(deployment["spec"]["replicas"] == 0 for deployment in scaled)

                await cluster.until("the agents are scaled to zero", drained)
                await asyncio.sleep(1.0)
                assert await connection.fetchval(found, schema) == 1, "pods still run"
                assert await cluster.get("AgentHive", "demo")
                for name in fleet.wanted:
                    await cluster.pods_ready(name)  # the Deployment reports zero pods
                await cluster.gone("AgentHive", "demo")
                assert await connection.fetchval(found, schema) == 0
    finally:
        await connection.close()


async def test_retry_after_is_waited_for_and_no_illness_of_ours(
    cluster: Cluster, chaos: Chaos, fleet: Fleet, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    """As a process, for its log and its probe; 429 on everything for a while."""
    log, port = tmp_path / "log", free_port()
    arguments = ("--namespace", cluster.namespace, "--probe-address", f"127.0.0.1:{port}")
    async with process(*arguments, log=log):
        await fleet.start(redis_url, postgres_url, agents=10)
        await fleet.converged("the start")
        lines = len(log.read_text().splitlines())
        with chaos.faulty(of_everything(Answer(429, "TooManyRequests", retry_after=3))):
            began = time.monotonic()
            while time.monotonic() - began < 7:
                await fleet.churn()
                chaos.hang_up()
                await asyncio.sleep(0.5)
                assert await healthz(port), log.read_text()
        refused: dict[str, float] = {}
        for asked in chaos.writes(began):
            if asked.status == 429:
                assert asked.at - refused.get(asked.path, 0.0) >= 2.9, f"{asked.path} was asked for too soon"
                refused[asked.path] = asked.at
        assert refused
        try:
            await fleet.converged("429")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text()}") from None
        said = log.read_text().splitlines()[lines:]
        failures = [line for line in said if json.loads(line)["level"] not in {"INFO", "info"}]
        assert len(failures) <= 30, "\n".join(failures)
        assert "Traceback" not in log.read_text()


async def test_a_token_that_rotates(
    cluster: Cluster, chaos: Chaos, fleet: Fleet, options: Options, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    chaos.accepted = {"first"}
    config = json.loads((tmp_path / "config").read_text())
    config["users"][0]["user"] = {"tokenFile": str(token)}
    (tmp_path / "config").write_text(json.dumps(config))
    async with running_operator(options):
        await fleet.start(redis_url, postgres_url, agents=4)
        await fleet.converged("the start")
        token.write_text("second")
        chaos.accepted = {"second"}
        chaos.hang_up()
        await fleet.churn()
        await fleet.converged("the rotation")
        chaos.accepted = {"third"}  # for a while nobody has it
        chaos.hang_up()
        seen = len(chaos.asked)
        await fleet.churn()
        await asyncio.sleep(3.0)
        assert len(chaos.asked) - seen < 200, "no storm of refused requests"
        token.write_text("third")
        await fleet.converged("a token that came late")


async def test_a_change_that_only_the_answer_to_our_own_write_tells(
    cluster: Cluster, chaos: Chaos, options: Options, redis_url: str, postgres_url: str
) -> None:
    fleet = Fleet(cluster, chaos)

    def deaf(asked: Asked) -> Fault | None:
        return Swallowed(("MODIFIED",)) if asked.watches and asked.kind == "agents" else None

    async with running_operator(options):
        await fleet.start(redis_url, postgres_url, agents=1)
        await fleet.converged("the start")
        with chaos.faulty(deaf):
            await cluster.patch("Agent", "a0", spec={"replicas": 3})
            fleet.wanted["a0"] = 3
            await cluster.pods_ready("a0")  # has the status written
            await fleet.converged("a change that no watch told")


async def test_clocks_that_jump_end_no_clean_up_and_hold_none_up(
    cluster: Cluster, chaos: Chaos, options: Options, redis_url: str, postgres_url: str
) -> None:
    """A day forward does not end it at once, nor does a day back hold it up: it takes its seconds."""
    for number, jump in enumerate((timedelta(days=1), timedelta(days=-1))):
        hive = f"demo{number}"
        frequent = Options(namespaces=options.namespaces, cleanup_seconds=3.0, resync_seconds=1.0)
        controller = Controller(cluster.kube, frequent)
        controller.context.clock = lambda jump=jump: datetime.now(UTC) + jump  # type: ignore[misc]
        running = asyncio.create_task(controller.run())
        try:
            await cluster.external_hive(hive, redis_url, postgres_url)
            await cluster.agent(f"greeter{number}", hive, drainSeconds=1)
            await cluster.exists("Deployment", f"greeter{number}")
            await cluster.pods_ready(f"greeter{number}")  # they never stop
            began = time.monotonic()
            await cluster.delete("AgentHive", hive)
            await cluster.gone("AgentHive", hive, 20)
            assert time.monotonic() - began >= 3.0, "its agents had time to drain"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_an_api_server_that_goes_and_comes_back(
    tmp_path: Path, unique: str, monkeypatch: pytest.MonkeyPatch, redis_url: str, postgres_url: str
) -> None:
    """The emulator keeps its state in a folder: what comes back is the same, and nothing is written to it."""
    folder, flags = tmp_path / "server", ("--port", str(free_port()))
    folder.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(contextlib.ExitStack())
        api = server.enter_context(running_emulator(folder, *flags))
        api.apply_crds()
        namespace: dict[str, object] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": unique}}
        api.call("POST", "/api/v1/namespaces", namespace)
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        cluster = Cluster(await stack.enter_async_context(await Kube.connect(user_agent=TESTS)), unique, api.kubectl)
        proxy = await stack.enter_async_context(Chaos(api).serve())
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", proxy.url, "t")))
        fleet = Fleet(cluster, proxy)
        await stack.enter_async_context(running_operator(Options(namespaces=(unique,))))
        await fleet.start(redis_url, postgres_url, agents=6)
        await fleet.converged("the start")
        gone = time.monotonic()
        server.close()
        await asyncio.sleep(1.0)
        server.enter_context(running_emulator(folder, *flags))
        back = time.monotonic()

        async def watched() -> bool:
            again = {asked.kind for asked in proxy.asked if asked.watches and asked.status == 200 and asked.at > back}
            return again >= {"agents", "agenthives", "deployments", "secrets"}

        await cluster.until("the watches are back", watched)
        await asyncio.sleep(1.0)
        assert not proxy.writes(gone), "nothing had changed"
        assert len(proxy.lists(gone)) <= 30, "no storm of lists"
        await fleet.churn()
        await fleet.converged("its return")
