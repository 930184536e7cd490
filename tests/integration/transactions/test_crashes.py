"""Processes are killed at each line that matters, servers under load: every effect, message and reply is there once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from tests.conftest import UNMEASURED
from tests.integration.agent.conftest import Process, eventually

from agenthive.bus import Bus, BusUnavailable
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope, Messaging
from agenthive.store import Store, schema_name, upgrade

MESSAGES = 1080
KILLS = MESSAGES // 90
PATIENCE = 90.0
MESSAGING = Messaging(lease_seconds=2, retry_delay_seconds=0.05, max_retries=100)


class Scene:
    """One hive: its servers, its processes, and what they have left in PostgreSQL."""

    def __init__(self, folder: Path, redis_url: str, postgres_url: str, scope: HiveScope) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.postgres_url = postgres_url
        self.scope = scope
        self.processes: dict[str, tuple[Process, str]] = {}
        self.kills = 0

    def start(self, pod: str, agent: str, **environment: str) -> Process:
        process = Process(
            self.folder,
            pod,
            {
                "AGENTHIVE_REDIS_URL": self.redis_url,
                "AGENTHIVE_POSTGRES_URL": self.postgres_url,
                "AGENTHIVE_HIVE": self.scope.hive,
                "AGENTHIVE_MESSAGING": MESSAGING.to_env(),
                "CRASH_FOLDER": str(self.folder),
                "PYTHONPATH": str(Path(__file__).parent),
                **UNMEASURED,
                **environment,
            },
        )
        self.processes[pod] = (process, f"crash_agents:{agent}")
        process.start(f"crash_agents:{agent}")
        return process

    async def keep_running(self) -> None:
        """Start again whatever was killed, as a kubelet does."""
        while True:
            for process, entrypoint in self.processes.values():
                assert process.popen is not None
                if process.popen.poll() is not None:
                    assert process.popen.returncode == -signal.SIGKILL, process.log.read_text()[-4000:]
                    self.kills += 1
                    process.start(entrypoint)
            await asyncio.sleep(0.02)

    async def query(self, query: str) -> list[Any]:
        connection = await asyncpg.connect(self.postgres_url)
        try:
            return [row[0] for row in await connection.fetch(query)]
        finally:
            await connection.close()

    async def prepare(self) -> None:
        await upgrade(self.postgres_url, schema_name(self.scope))
        await self.query("CREATE TABLE public.effects (n integer)")
        await self.query("CREATE TABLE public.records (n integer)")

    async def effects(self) -> list[int]:
        return await self.query("SELECT n FROM public.effects")

    async def records(self) -> list[int]:
        return await self.query("SELECT n FROM public.records")

    async def outbox(self) -> list[Any]:
        return await self.query(f'SELECT kind FROM "{schema_name(self.scope)}".outbox')

    async def settled(self, numbers: Iterable[int]) -> None:
        """Until everything is at its end; then each number has one effect and was recorded once downstream."""
        wanted = sorted(numbers)
        await until(self.records, lambda found: len(found) >= len(wanted), "all records")
        await until(self.outbox, lambda rows: not rows, "empty outbox")
        for what, found in (("effects", await self.effects()), ("records", await self.records())):
            counts = Counter(found)
            assert sorted(counts) == wanted, f"{what}: lost {sorted(set(wanted) - set(counts))[:10]}"
            assert max(counts.values()) == 1, f"{what}: twice {[n for n, count in counts.items() if count > 1][:10]}"

    def close(self) -> None:
        for process, _ in self.processes.values():
            if process.popen is not None and process.popen.poll() is None:
                process.signal(signal.SIGCONT)
            process.kill()


async def until(look: Callable[[], Any], good: Callable[[Any], bool], what: str) -> None:
    """As ``eventually``, with more patience."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not good(seen := await look()):
        assert asyncio.get_running_loop().time() < deadline, f"not within {PATIENCE:.0f} s: {what}: {len(seen)}"
        await asyncio.sleep(0.1)


async def noted_by(process: Process) -> list[str]:
    """The notes of what this process has begun; see ``crash_agents.note``."""
    assert process.popen is not None
    pid = process.popen.pid
    return await asyncio.to_thread(
        lambda: [path.name for path in process.folder.iterdir() if path.name.endswith(f" {pid}")]
    )


@contextlib.asynccontextmanager
async def scene_on(folder: Path, redis_url: str, postgres_url: str, hive: str) -> AsyncIterator[tuple[Scene, Bus]]:
    scene = Scene(folder, redis_url, postgres_url, HiveScope(hive=hive))
    await scene.prepare()
    bus = await Bus.connect(redis_url, scene.scope, messaging=MESSAGING)
    try:
        yield scene, bus
    finally:
        scene.close()
        await bus.aclose()


def message(n: int, kind: str = "work", **body: Any) -> AgentMessage:
    return AgentMessage(
        from_agent="tester", to_agent="worker", message_type=kind, message_id=f"m{n}", body={"n": n, **body}
    )


async def asked(bus: Bus, numbers: Iterable[int]) -> dict[int, Any]:
    """The replies to requests of these numbers, 40 at a time."""
    turns, replies = asyncio.Semaphore(40), {}

    async def ask(n: int) -> None:
        async with turns:
            replies[n] = (await bus.request(message(n), PATIENCE)).body["result"]

    async with asyncio.TaskGroup() as group:
        for n in numbers:
            group.create_task(ask(n))
    return replies


@contextlib.asynccontextmanager
async def restarting(scene: Scene) -> AsyncIterator[None]:
    """Meanwhile what is killed comes back."""
    keeping = asyncio.create_task(scene.keep_running())
    try:
        yield
    finally:
        if keeping.done():
            await keeping
        keeping.cancel()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "line",
    ["before the commit", "after the commit", "before the acknowledgement", "after the acknowledgement"],
)
async def test_killed_at_a_line(
    line: str, redis_url: str, postgres_url: str, unique: str, tmp_path: Path, record_property: Any
) -> None:
    async with scene_on(tmp_path, redis_url, postgres_url, unique) as (scene, bus), restarting(scene):
        scene.start("downstream-1", "downstream")
        scene.start("worker-1", "worker", CRASH=line)
        replies = await asked(bus, range(1, MESSAGES + 1))
        await scene.settled(range(1, MESSAGES + 1))
        assert {n: reply["n"] for n, reply in replies.items()} == {n: n for n in range(1, MESSAGES + 1)}
        assert scene.kills == KILLS
        statuses = await bus.statuses("worker", [f"m{n}" for n in range(1, MESSAGES + 1)])
        assert {status and status.status for status in statuses.values()} == {"delivered"}
        for agent in ("worker", "downstream"):
            assert await bus.dead_letters(agent) == []
        async with await Store.connect(postgres_url, scene.scope, agent="worker") as store:
            assert sum(entry.value for entry in await store.state.list()) == MESSAGES
        record_property(f"killed {line}", f"{MESSAGES} messages, {scene.kills} kills: each effect once")


@pytest.mark.timeout(240)
async def test_postgresql_is_killed_under_load(redis_url: str, own_postgres: Any, unique: str, tmp_path: Path) -> None:
    async with scene_on(tmp_path, redis_url, own_postgres.url(), unique) as (scene, bus):
        scene.start("downstream-1", "downstream")
        scene.start("worker-1", "worker")
        asking = asyncio.create_task(asked(bus, range(1, 1001)))
        for share in (100, 300, 500):
            await until(scene.effects, lambda found, share=share: len(found) >= share, f"{share} effects")
            own_postgres.kill()
            await asyncio.to_thread(own_postgres.start)
        replies = await asking
        assert {n: reply["n"] for n, reply in replies.items()} == {n: n for n in range(1, 1001)}
        await scene.settled(range(1, 1001))
        assert await bus.dead_letters("worker") == []


@pytest.mark.timeout(180)
async def test_two_processes_have_one_message(redis_url: str, postgres_url: str, unique: str, tmp_path: Path) -> None:
    """One is frozen beyond its lease: before its transactions, inside them, after them; another one takes over."""
    phases = dict(enumerate(("before", "inside", "after") * 3, 1))
    async with scene_on(tmp_path, redis_url, postgres_url, unique) as (scene, bus):
        scene.start("downstream-1", "downstream")
        frozen = scene.start("worker-1", "worker")
        for n, phase in phases.items():
            await bus.send(message(n, "slow", phase=phase, seconds=3))
        await until(lambda: noted_by(frozen), lambda names: len(names) == len(phases), "all of them wait")
        frozen.signal(signal.SIGSTOP)
        survivor = scene.start("worker-2", "worker")

        async def taken_over() -> list[str]:
            # What was before it runs again, what was inside it waits for the frozen one, of the rest the mark is found.
            waiting = await scene.query("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            return [*await noted_by(survivor), *map(str, waiting)]

        await until(taken_over, lambda found: len(found) >= 6, "the survivor has them")
        frozen.signal(signal.SIGCONT)
        await scene.settled(phases)
        for process in (frozen, survivor):
            assert process.popen is not None
            assert process.popen.poll() is None
        for n in phases:
            status = await eventually(lambda n=n: bus.status("worker", f"m{n}"), lambda found: found.final, "the end")
            assert status.status == "delivered"
        assert survivor.log.read_text().count("its effects were committed before") >= 3


@pytest.mark.timeout(180)
@pytest.mark.parametrize("policy", ["no", "everysec"])
async def test_redis_is_killed_when_the_relay_has_sent(
    policy: str, own_valkey: Any, postgres_url: str, unique: str, tmp_path: Path
) -> None:
    numbers = range(1, 301)
    async with redis.asyncio.Redis.from_url(own_valkey.url) as raw:
        await raw.config_set("appendfsync", policy)
    async with scene_on(tmp_path, own_valkey.url, postgres_url, unique) as (scene, bus):
        scene.start("worker-1", "worker")
        await asked(bus, numbers)
        await until(lambda: asyncio.gather(bus.queue("downstream")), lambda found: found[0].backlog == 300, "all sent")
        own_valkey.kill()
        await asyncio.to_thread(own_valkey.start)
        scene.start("downstream-1", "downstream")
        await scene.settled(numbers)


@pytest.mark.timeout(120)
async def test_what_a_killed_process_committed_goes_out_when_it_is_back(
    own_valkey: Any, postgres_url: str, unique: str, tmp_path: Path
) -> None:
    """It was killed while Redis was away: nobody but PostgreSQL knows of the messages."""
    async with scene_on(tmp_path, own_valkey.url, postgres_url, unique) as (scene, bus):
        process = scene.start("worker-1", "worker")
        await asked(bus, [1])
        for n in range(2, 8):
            await bus.send(message(n, "slow", phase="inside", seconds=1.5))
        await until(lambda: noted_by(process), lambda names: len(names) == 6, "all of them are inside")
        own_valkey.kill()
        await until(scene.effects, lambda found: len(found) == 7, "committed")
        process.kill()
        await asyncio.to_thread(own_valkey.start)
        with contextlib.suppress(BusUnavailable):
            assert (await bus.queue("downstream")).backlog <= 1
        process.start("crash_agents:worker")
        scene.start("downstream-1", "downstream")
        loop = asyncio.get_running_loop()
        started = loop.time()
        await scene.settled(range(1, 8))
        assert loop.time() - started < 40, "long before the rows are due"
