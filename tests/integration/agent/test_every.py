"""Schedules of running agents: one firing per slot in the fleet."""

from __future__ import annotations

import asyncio
import collections
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from agenthive import Agent, Context
from agenthive.bus import Bus
from agenthive.loader import ConfigurationError
from agenthive.protocol import AgentMessage


async def test_replicas_fire_each_slot_once_and_a_death_costs_none(hive: Any) -> None:
    agent = Agent("worker")
    seen: list[tuple[str, str]] = []

    @agent.every(0.2)
    async def tick(message: AgentMessage, ctx: Context) -> None:
        assert message.from_agent == message.to_agent == "worker"
        seen.append((message.message_id, message.timestamp.isoformat()))

    runners = [await hive.start(agent, pod=f"pod-{n}") for n in range(3)]
    await hive.until(lambda: len(seen) >= 5, "five firings")
    await hive.stop(runners[0])
    had = len(seen)
    await hive.until(lambda: len(seen) >= had + 5, "five more")
    for runner in runners[1:]:
        await hive.stop(runner)
    assert max(collections.Counter(seen).values()) == 1
    moments = sorted(moment for _, moment in seen)
    assert len(set(moments)) == len(moments)
    fired = sum(runner.telemetry.firings["tick", "fired"] for runner in runners)
    assert fired == len(seen)
    assert b'agenthive_schedule_slots_total{agent="worker"' in runners[1].telemetry.exposition()


async def test_a_fleet_that_was_away_makes_up_for_nothing_or_for_the_last_slot(
    hive: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.firing.MOST_LATE_SECONDS", 0.0)
    agent = Agent("worker")
    seen: list[str] = []
    # Once a year: the last slot is long ago, and no other one comes while the test runs.
    yearly = "0 0 1 1 *" if (await hive.bus.clock("worker") // 1000) % 31_557_600 > 86_400 else "0 0 1 7 *"
    for name, catch_up in (("lost", False), ("made-up", True)):
        agent.every(yearly, message_type="t", name=name, catch_up=catch_up)

    @agent.on("t")
    async def handle(message: AgentMessage) -> None:
        seen.append(message.message_id)

    with caplog.at_level(logging.WARNING, "agenthive.firing"):
        first = await hive.start(agent)
        slot = next(iter(agent.schedules.values())).slots.latest(await hive.bus.clock("worker"))
        # A new schedule has missed nothing.
        await _dealt_with(hive, slot)
        await hive.stop(first)
        assert (seen, caplog.messages) == ([], [])
        # As if it had been fired a year before.
        for name in agent.schedules:
            await _forget(hive, name)
        second = await hive.start(agent)
        await _dealt_with(hive, slot)
        await hive.until(lambda: len(seen) == 1, "the slot made up for")
        await hive.stop(second)
    assert seen[0].startswith("every:made-up:")
    assert [text for text in caplog.messages if "nobody ran" in text] == [
        "schedule lost: nobody ran at its last slot, which is not made up for"
    ]
    assert second.telemetry.firings == {("lost", "late"): 1, ("made-up", "fired"): 1}


def _key(hive: Any, schedule: str) -> str:
    return f"{hive.settings.scope.key_prefix('worker')}every:{schedule}"


async def _forget(hive: Any, schedule: str) -> None:
    await hive.bus._connections.execute([("SET", _key(hive, schedule), "1 old")])


async def _dealt_with(hive: Any, slot: int) -> None:
    """Until both schedules know the slot."""
    for schedule in ("lost", "made-up"):
        async with asyncio.timeout(20):
            while True:
                (value,) = await hive.bus._connections.execute([("GET", _key(hive, schedule))])
                if value is not None and value.startswith(b"%d " % slot):
                    break
                await asyncio.sleep(0.01)


async def test_firings_are_retried_and_do_not_overlap_when_told_so(hive: Any) -> None:
    agent = Agent("worker")
    attempts: list[tuple[str, int]] = []
    release = asyncio.Event()

    @agent.every(0.2, overlap=False)
    async def slow(message: AgentMessage, ctx: Context) -> None:
        attempts.append((message.message_id, ctx.attempt))
        if len(attempts) == 1:
            raise ValueError("the first attempt")
        await release.wait()

    runner = await hive.start(agent)
    await hive.until(lambda: runner.telemetry.firings["slow", "overlap"] >= 2, "two skipped slots")
    assert attempts == [(attempts[0][0], 1), (attempts[0][0], 2)]
    release.set()
    await hive.until(lambda: len(attempts) >= 4, "the next firings")


async def test_a_schedule_rides_out_an_outage_of_redis(own_valkey: Any, unique: str) -> None:
    from .conftest import hive_on

    agent = Agent("worker")
    seen: list[str] = []

    @agent.every(0.1)
    async def tick(message: AgentMessage) -> None:
        seen.append(message.message_id)

    pool = {"circuit_breaker": {"reset_seconds": 0.1}}
    async with hive_on(own_valkey.url, unique, redis_pool=pool) as hive:
        runner = await hive.start(agent)
        await hive.until(lambda: len(seen) >= 2, "two firings")
        own_valkey.kill()
        await hive.until(lambda: runner.telemetry.bus_errors["schedule"] > 0, "a firing that failed")
        own_valkey.start()
        had = len(seen)
        await hive.until(lambda: len(seen) >= had + 3, "firings after the outage")
    assert max(collections.Counter(seen).values()) == 1


TICKER = """
import pathlib
from agenthive import Agent

agent = Agent("ticker")


@agent.every(0.2)
async def tick(message, ctx):
    with pathlib.Path("ticks").open("a") as file:
        file.write(f"{message.message_id} {ctx.attempt}\\n")
"""


def test_a_killed_replica_neither_stops_nor_doubles_the_slots(process: Any, tmp_path: Path) -> None:
    (tmp_path / "ticker.py").write_text(TICKER)
    ticks = tmp_path / "ticks"
    ticks.touch()

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 30
        while len(ticks.read_text().splitlines()) < count:
            assert time.monotonic() < deadline, ticks.read_text()
            time.sleep(0.02)

    replicas = [process(f"pod-{n}", AGENTHIVE_MESSAGING='{"leaseSeconds": 2}') for n in range(2)]
    for replica in replicas:
        replica.start("ticker:agent")
    for replica in replicas:
        replica.wait_for("serving ticker")
    wait_for(len(ticks.read_text().splitlines()) + 3)
    replicas[0].kill()
    wait_for(len(ticks.read_text().splitlines()) + 5)
    first_attempts = [line for line in ticks.read_text().splitlines() if line.endswith(" 1")]
    assert len(set(first_attempts)) == len(first_attempts)


@pytest.mark.parametrize("skew", [-5000, 5000])
async def test_a_replica_whose_clock_is_off_fires_by_the_servers(
    hive: Any, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    told = Bus.clock

    async def clock(bus: Bus, agent: str) -> int:
        return await told(bus, agent) + skew

    agent = Agent("worker")
    seen: list[AgentMessage] = []

    @agent.every(0.2)
    async def tick(message: AgentMessage) -> None:
        seen.append(message)

    with monkeypatch.context() as patch:
        patch.setattr(Bus, "clock", clock)
        await hive.start(agent)
        await hive.until(lambda: len(seen) >= 4, "four firings")
    for message in seen:
        status = await hive.bus.status("worker", message.message_id)
        assert status.accepted_at >= message.timestamp, "no slot is fired before its time"
    assert len({message.message_id for message in seen}) == len(seen)


async def test_a_schedule_without_a_handler_does_not_start(hive: Any) -> None:
    agent = Agent("worker")
    agent.on("x")(lambda message: None)
    agent.every(30, message_type="y")
    with pytest.raises(ConfigurationError, match="schedule y sends 'y', which nothing handles"):
        await hive.start(agent)
