"""The process's connections: how many, in which order, under which name, with which commands."""

from __future__ import annotations

import asyncio
import re
from importlib import resources
from pathlib import Path

import pytest
import redis.asyncio

import agenthive.bus
from agenthive.bus import Bus, BusUnavailable
from agenthive.bus.connections import RESERVED_CONNECTIONS, Connections
from agenthive.bus.endpoint import Endpoint
from agenthive.settings import CircuitBreaker, RedisPool


@pytest.fixture
async def pool(redis_url: str, unique: str):
    """A pool of three connections beside the lanes."""
    endpoint = Endpoint.parse(redis_url, client_name=f"agenthive:{unique}")
    connections = Connections(endpoint, RedisPool(max_connections=RESERVED_CONNECTIONS + 3))
    yield connections
    await connections.aclose()


async def named(raw: redis.asyncio.Redis, name: str) -> list[dict[str, str]]:
    return [entry for entry in await raw.client_list() if entry["name"] == name]


async def test_the_pool_is_bounded_and_serves_in_the_order_of_asking(pool, raw, unique, until) -> None:
    started: list[int] = []

    async def wait(n: int) -> None:
        await pool.execute([("RPUSH", f"{unique}:order", n), ("BLPOP", f"{unique}:{n}", "10")])
        started.append(n)

    waiting = [asyncio.create_task(wait(n)) for n in range(9)]

    async def order() -> list[int]:
        return [int(n) for n in await raw.lrange(f"{unique}:order", 0, -1)]

    for n in range(9):

        async def under_way(n: int = n) -> bool:
            return len(await order()) == min(9, n + 3)

        await until(under_way)
        assert len(await named(raw, f"agenthive:{unique}")) == 3
        await raw.rpush(f"{unique}:{n}", "x")
        async with asyncio.timeout(10):
            await waiting[n]
    assert sorted((await order())[:3]) == [0, 1, 2]
    assert (await order())[3:] == list(range(3, 9)), "who asked first was served first"
    await raw.delete(f"{unique}:order")


async def test_what_only_reads_is_tried_again_and_what_writes_is_not(pool, raw, unique) -> None:
    await pool.execute([("SADD", f"{unique}:s", "a")])

    async def cut() -> None:
        """The server ends the pool's idle connection, and we have not seen it yet."""
        for entry in await named(raw, f"agenthive:{unique}"):
            await raw.client_kill(entry["addr"])

    async def exchange(command) -> list:
        # The connection is borrowed in the same turn of the loop in which its end would be read.
        (_, connection) = pool._idle[-1]
        connection._transport.pause_reading()
        await cut()
        asyncio.get_running_loop().call_later(0.05, connection._transport.resume_reading)
        return await pool.execute([command])

    assert await exchange(("SMEMBERS", f"{unique}:s")) == [[b"a"]]
    with pytest.raises(BusUnavailable, match="cannot be reached"):
        await exchange(("SADD", f"{unique}:s", "b"))
    await raw.delete(f"{unique}:s")


async def test_connections_carry_the_name_of_their_process(redis_url, scope, raw, make) -> None:
    bus = await Bus.connect(redis_url, scope, client_name="agenthive:greeter-7")
    try:
        consumer = bus.consumer("worker", pod="greeter-7")
        await consumer.start()
        await bus.send(make())
        (delivery,) = await consumer.claim(1)
        await consumer.ack(delivery)
        assert len(await named(raw, "agenthive:greeter-7")) >= 3
        await consumer.aclose()
    finally:
        await bus.aclose()
    assert await named(raw, "agenthive:greeter-7") == []


async def test_a_half_open_circuit_lets_one_of_many_callers_through(own_valkey, scope, until) -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_seconds=0.2)
    bus = await Bus.connect(own_valkey.url, scope, pool=RedisPool(circuit_breaker=breaker))
    try:
        own_valkey.kill()
        with pytest.raises(BusUnavailable):
            await bus.agents()
        await asyncio.sleep(0.25)
        told = await asyncio.gather(*(bus.agents() for _ in range(20)), return_exceptions=True)
        assert sum("cannot be reached" in str(error) for error in told) == 1, "one probe"
        assert sum("is down" in str(error) for error in told) == 19
    finally:
        await bus.aclose()


def used_commands() -> set[str]:
    """Names of the commands in the sources of the bus: those of the functions, and those in tuples that start so."""
    folder = Path(agenthive.bus.__file__).parent
    lua = "".join(file.read_text() for file in resources.files("agenthive.bus").joinpath("lua").iterdir())
    python = "".join(file.read_text() for file in folder.glob("*.py"))
    called = set(re.findall(r"redis\.p?call\('(\w+)'", lua))
    return called | set(re.findall(r"\(\s*\"([A-Z]{3,})\",", python))


async def test_every_command_is_as_old_as_redis_7_0(pool) -> None:
    commands = sorted(used_commands() - {"SENTINEL"})  # which only a sentinel knows
    assert {"XADD", "XREADGROUP", "FCALL", "BLPOP", "WAIT"} <= set(commands)
    for name, (answer,) in zip(
        commands, [await pool.execute([("COMMAND", "DOCS", name)]) for name in commands], strict=True
    ):
        assert answer, f"{name} is no command"
        facts = dict(zip(answer[1][::2], answer[1][1::2], strict=True))
        since = tuple(int(part) for part in facts[b"since"].decode().split("."))
        assert since <= (7, 0, 0), f"{name} is of {since}"
