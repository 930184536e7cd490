"""The Lease and the fence against an API server, with a clock that the test sets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agenthive_operator.backends.configuration import load_configuration
from agenthive_operator.backends.kube import LEASE, SECRET, ApiError, Kube, NotLeadingError
from agenthive_operator.backends.lease import Election, LeaseLostError, LeaseName, steady_clock
from agenthive_operator.main import operate
from agenthive_operator.reconcile.context import Options

from .conftest import TESTS, Cluster, running_operator
from .replicas import Recorder, write_kubeconfig

NAME = "chosen"


@dataclass
class Campaign:
    """One replica's election and the fenced client that goes with it, behind a recorder."""

    election: Election
    kube: Kube
    recorder: Recorder
    task: asyncio.Task[None]
    ahead: list[float] = field(default_factory=lambda: [0.0])

    async def won(self) -> None:
        await asyncio.wait_for(self.election.acquired.wait(), 15)

    async def lost(self) -> str:
        with pytest.raises(LeaseLostError) as caught:
            await asyncio.wait_for(self.task, 15)
        return str(caught.value)


@contextlib.asynccontextmanager
async def campaign(
    cluster: Cluster,
    api: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    identity: str,
    namespace: str | None = None,
) -> AsyncIterator[Campaign]:
    ahead = [0.0]
    async with Recorder(api).serve() as recorder:
        config = write_kubeconfig(folder / f"{identity}.config", recorder.url, api.token)
        with monkeypatch.context() as patch:
            patch.setenv("KUBECONFIG", str(config))
            own, shared = await load_configuration(), await load_configuration()
        async with Kube(own, user_agent=TESTS) as unfenced:
            lease = LeaseName(namespace or cluster.namespace, NAME, identity)
            election = Election(unfenced, lease, clock=lambda: steady_clock() + ahead[0])
            async with Kube(shared, guard=election.check, user_agent=TESTS) as kube:
                task = asyncio.create_task(election.run())
                try:
                    yield Campaign(election, kube, recorder, task, ahead)
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def join(cluster: Cluster, api_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def enter(identity: str, **more: Any) -> Any:
        return campaign(cluster, api_server, tmp_path, monkeypatch, identity, **more)

    return enter


async def test_nothing_leaves_before_the_lease_is_held_nor_once_it_was_not_renewed(join: Any, cluster: Cluster) -> None:
    secret = cluster.body("Secret", "s", stringData={"k": "v"})
    async with join("a") as a:
        with pytest.raises(NotLeadingError, match="not held"):
            await a.kube.create(secret)
        await a.won()
        made = await a.kube.create(secret)
        a.recorder.refusing = True
        a.ahead[0] = 5.0
        assert a.election.check() <= 5.0
        with pytest.raises(ApiError, match="503"):
            await a.kube.apply(secret)
        a.ahead[0] = 6.0
        sent = len(a.recorder.writes())
        writes = [
            a.kube.create(secret), a.kube.apply(secret), a.kube.merge_patch(made, {}), a.kube.patch_status(made, {}),
            a.kube.delete(SECRET, cluster.namespace, "s", uid=made["metadata"]["uid"]),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(NotLeadingError):
                await write
        with pytest.raises(NotLeadingError):
            a.kube.check()
        assert await a.kube.get(SECRET, cluster.namespace, "s")
        assert len(a.recorder.writes()) == sent
        assert "could not be renewed" in await a.lost()


async def test_a_write_that_waits_for_its_connection_is_looked_at_again(
    api_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look passes; by the time the connection stands the lease is over."""
    answers: list[float] = []

    def guard() -> float:
        if not answers:
            raise NotLeadingError("over")
        return answers.pop()

    async with Recorder(api_server).serve() as recorder:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "config", recorder.url, api_server.token)))
        async with Kube(await load_configuration(), guard=guard, user_agent=TESTS) as kube:
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}}
            for passed in range(3):  # before the connection, once it stands, when the bytes leave
                answers[:] = [10.0] * passed
                with pytest.raises(NotLeadingError):
                    await kube.create(secret)
            assert recorder.sent == []
            answers[:] = [0.3] * 3
            recorder.swallowing.set()
            began = asyncio.get_running_loop().time()
            with pytest.raises(ApiError, match="Timeout"):
                await kube.create(secret)
            assert asyncio.get_running_loop().time() - began < 5, "it has what is left of the lease to be answered"


async def test_of_several_one_wins_and_the_next_follows_at_once_when_it_resigns(join: Any, cluster: Cluster) -> None:
    async with join("a") as a, join("b") as b, join("c") as c:
        await asyncio.wait({asyncio.create_task(one.won()) for one in (a, b, c)}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.5)
        winners = [one for one in (a, b, c) if one.election.acquired.is_set()]
        assert len(winners) == 1
        others = [one for one in (a, b, c) if one not in winners]
        winners[0].task.cancel()
        await asyncio.gather(winners[0].task, return_exceptions=True)
        began = asyncio.get_running_loop().time()
        await winners[0].election.resign()
        with pytest.raises(NotLeadingError):
            winners[0].election.check()
        waiting = [asyncio.create_task(one.won()) for one in others]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert asyncio.get_running_loop().time() - began < 1.5
        await asyncio.sleep(0.5)
        assert sum(one.election.acquired.is_set() for one in others) == 1
        for task in waiting:
            task.cancel()
    lease = await cluster.need("Lease", NAME)
    assert lease["spec"]["leaseTransitions"] == 1


async def test_a_lease_edited_by_hand_is_given_up_and_one_deleted_is_made_again(join: Any, cluster: Cluster) -> None:
    async with contextlib.AsyncExitStack() as stack:
        a = await stack.enter_async_context(join("a"))
        await a.won()
        b = await stack.enter_async_context(join("b"))
        await cluster.until("b knows the Lease", lambda: looked(b))
        await cluster.delete("Lease", NAME)

        async def again() -> bool:
            found = await cluster.get("Lease", NAME)
            return found is not None and found["spec"]["holderIdentity"] == "a"

        await cluster.until("its holder makes it again", again)
        assert not b.election.acquired.is_set()
        await cluster.patch("Lease", NAME, metadata={"labels": {"somebody": "wrote"}})
        await asyncio.sleep(2.5)
        assert a.election.check() > 6
        await cluster.patch("Lease", NAME, spec={"holderIdentity": "somebody"})
        assert (
            await asyncio.wait_for(a.lost(), 1.5)
            == f"the Lease {cluster.namespace}/{NAME} is lost: somebody holds it now"
        )


async def test_what_keeps_it_from_the_lease_is_said_once_and_resigning_never_raises(
    join: Any, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with join("a", namespace=f"{cluster.namespace}-none") as a:
        await cluster.until("it tried several times", lambda: tried(a, 3))
        told = [record for record in caplog.records if record.levelname == "WARNING" and "Lease" in record.getMessage()]
        assert len(told) == 1
        assert "not found" in told[0].getMessage()
        assert not a.election.acquired.is_set()
        await a.election.resign()
    async with join("b") as b:
        await b.won()
        b.recorder.refusing = True
        b.task.cancel()
        await b.election.resign()
        assert "is not released, and free in 10 s" in caplog.text
        known = await b.kube.get(LEASE, cluster.namespace, NAME)
        assert known is not None
        assert known["spec"]["holderIdentity"] == "b"


async def looked(one: Campaign) -> bool:
    """Whether it has had an answer, and watches."""
    return sum("/leases" in sent.path for sent in one.recorder.sent) >= 2


async def tried(a: Campaign, times: int) -> bool:
    return len(a.recorder.claims()) >= times


async def test_a_new_leader_sets_right_what_its_predecessor_said_last(cluster: Cluster, options: Options) -> None:
    missing = {"external": {"urlSecretRef": {"name": "none", "key": "url"}}}
    await cluster.create("AgentHive", "demo", spec={"redis": missing, "postgres": missing})

    async def agents() -> Any:
        return ((await cluster.need("AgentHive", "demo")).get("status") or {}).get("agents")

    async def right() -> bool:
        return await agents() == {"total": 0, "ready": 0}

    async with running_operator(options, lease=LeaseName(cluster.namespace, NAME, "a")):
        await cluster.until("it writes the status", right)
        await cluster.patch_status("AgentHive", "demo", agents={"total": 7, "ready": 7})  # a write that was on its way
        await cluster.until("it is right again", right)
    lease = await cluster.need("Lease", NAME)
    assert lease["spec"]["holderIdentity"] == "", "a context that ends lets go"


async def test_an_operator_that_loses_its_lease_ends_and_says_so(cluster: Cluster, options: Options) -> None:
    async def held() -> bool:
        return ((await cluster.get("Lease", NAME)) or {"spec": {}})["spec"].get("holderIdentity") == "a"

    lease, stop = LeaseName(cluster.namespace, NAME, "a"), asyncio.Event()
    running = asyncio.create_task(operate(options, probe_address=None, stop=stop, lease=lease))
    await cluster.until("it leads", held)
    await cluster.patch("Lease", NAME, spec={"holderIdentity": "b"})
    with pytest.raises(LeaseLostError, match="b holds it now"):
        await asyncio.wait_for(running, 15)
    assert (await cluster.need("Lease", NAME))["spec"]["holderIdentity"] == "b", "what is another's is not released"
