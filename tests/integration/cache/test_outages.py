"""Redis is killed, frozen, restarted, flushed: reads and writes go on, and nothing stays old for long."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import Any

import pytest
import redis.asyncio
from tests.conftest import ValkeyServer

from agenthive import cache_link
from agenthive.cache_entries import STATE_SECONDS, Loaded, state_name
from agenthive.settings import HiveScope

from .conftest import Join, Member, until


@pytest.fixture(autouse=True)
def quick_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_link, "RETRY_SECONDS", 0.05)


async def test_reads_and_writes_go_on_while_redis_is_away(
    join: Join, own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, other = await join(url=own_valkey.url), await join(url=own_valkey.url)
    await one.store.state.set("k", 0)
    for member in (one, other):
        assert await member.store.state.get("k") == 0
    own_valkey.kill()
    for n in range(1, 20):
        await one.store.state.set("k", n)
        for member in (one, other):
            assert await member.store.state.get("k") == n
    assert not one.cache.available
    assert other.cache.figures.requests["state", "bypass"] == 19
    assert one.cache.figures.errors.total() >= 1
    await asyncio.to_thread(own_valkey.start)
    await until(lambda: one.cache.available and other.cache.available, "recovery")
    # The entry of before the outage came back with the append-only file, and the writer has removed it.
    assert await other.store.state.get("k") == 19
    assert await one.store.state.get("k") == 19
    assert other.cache.figures.requests["state", "miss"] + one.cache.figures.requests["state", "miss"] == 2
    about = [record.getMessage() for record in caplog.records if "the Redis of the cache" in record.getMessage()]
    assert len(about) == 4, "each process says it once, and once that it is over"


@pytest.mark.usefixtures("impatient")
async def test_a_redis_that_hangs_costs_little_patience(join: Join, own_valkey: ValkeyServer) -> None:
    member = await join(url=own_valkey.url)
    await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    assert own_valkey.process is not None
    own_valkey.process.send_signal(signal.SIGSTOP)
    try:
        assert await asyncio.gather(*(member.store.state.get("k") for _ in range(100))) == [1] * 100
        assert not member.cache.available
        await asyncio.gather(*(member.store.state.set(f"k{n}", 2) for n in range(100)))
        assert await member.store.state.get("k0") == 2
    finally:
        own_valkey.process.send_signal(signal.SIGCONT)
    assert member.cache.figures.errors["read"] == 1, "whoever comes later does not wait again"
    await until(lambda: member.cache.available, "recovery")
    assert await member.store.state.get("k1") == 2


async def test_a_restart_between_two_calls_is_no_outage(join: Join, own_valkey: ValkeyServer) -> None:
    member = await join(url=own_valkey.url)
    await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    await member.settled()
    own_valkey.kill()
    await asyncio.to_thread(own_valkey.start)
    assert await member.store.state.get("k") == 1
    await member.store.state.set("k", 2)
    assert await member.store.state.get("k") == 2
    assert (member.loads, member.cache.available, member.cache.figures.errors) == (1, True, {})


@pytest.mark.usefixtures("impatient")
async def test_a_busy_event_loop_is_no_outage(join: Join) -> None:
    member = await join()
    await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    await member.settled()
    for _ in range(3):
        reading = asyncio.create_task(member.store.state.get("k"))
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(2 * cache_link.PATIENCE_SECONDS)  # noqa: ASYNC251 - as a handler that computes
        assert await reading == 1
    assert (member.cache.available, member.cache.figures.errors) == (True, {})


async def read_old(member: Member, key: str, seconds: float) -> Any:
    """``get``, whose entry may live ``seconds``."""
    lanes = member.store._lanes
    name = state_name("librarian", key)
    text = await member.cache.read("state", name, lambda: lanes._loads.submit(("librarian", key)), seconds=seconds)
    return text and text.decode() if isinstance(text, bytes) else text


async def test_what_a_writer_without_redis_changed_is_seen_when_the_entry_ends(
    join: Join, own_valkey: ValkeyServer
) -> None:
    reader, writer = await join(), await join(url=own_valkey.url)
    await writer.store.state.set("k", 1)
    own_valkey.kill()  # that of the writer: it cannot reach the one that the reader uses
    begun = time.monotonic()
    assert await read_old(reader, "k", 1.0) == "1"
    await writer.store.state.set("k", 2)
    written = time.monotonic()
    while await read_old(reader, "k", 1.0) == "1":
        assert time.monotonic() < begun + 1.5, "an entry outlived its time"
        await asyncio.sleep(0.005)
    assert time.monotonic() - written < 1.5
    assert STATE_SECONDS < 30


async def test_no_entry_of_state_lives_longer_than_promised(
    join: Join, raw: redis.asyncio.Redis, scope: HiveScope
) -> None:
    member = await join()
    await asyncio.gather(*(member.store.state.set(f"k{n}", n) for n in range(100)))
    await asyncio.gather(*(member.store.state.get(f"k{n}") for n in range(200)))
    await member.settled()
    lives = [await raw.pttl(key) for key in await raw.keys(f"{scope.hive_prefix}c:*")]
    assert len(lives) == 200
    assert max(lives) <= STATE_SECONDS * 1000
    assert 0.7 * STATE_SECONDS * 1000 < min(lives) < max(lives) - 1000, "they do not end together"


async def test_more_is_owed_than_can_be_remembered(
    join: Join, own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_link, "MAX_OWED", 10)
    monkeypatch.setattr(cache_link, "STATE_SECONDS", 0.5)
    member = await join(url=own_valkey.url)
    await member.store.state.set("k", 1)
    assert await read_old(member, "k", 0.5) == "1"
    own_valkey.kill()
    await member.store.state.set("k", 2)
    for n in range(11):
        await member.store.state.set(f"k{n}", 2)
    await asyncio.to_thread(own_valkey.start)
    await until(lambda: member.cache.available, "recovery")
    while not member.cache._link.trusted:
        assert await member.store.state.get("k") == 2
        await asyncio.sleep(0.005)
    assert await member.store.state.get("k") == 2


@pytest.mark.usefixtures("impatient")
async def test_what_is_owed_is_paid_before_closing(
    join: Join, own_valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_link, "RETRY_SECONDS", 1000.0)
    one, other = await join(url=own_valkey.url), await join(url=own_valkey.url)
    await one.store.state.set("k", 1)
    assert await other.store.state.get("k") == 1
    assert own_valkey.process is not None
    own_valkey.process.send_signal(signal.SIGSTOP)
    await one.store.state.set("k", 2)
    own_valkey.process.send_signal(signal.SIGCONT)
    assert not one.cache.available
    await one.store.aclose()
    await one.cache.aclose()
    assert await other.store.state.get("k") == 2
    await one.cache.forget(["x"])  # nothing to tell any more, and no error
    assert await one.cache.read("call", "x", loaded) == "1"


async def loaded() -> Loaded:
    return Loaded("1")


async def test_a_password_that_is_wrong_is_said_and_harms_nobody(
    join: Join, own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    member = await join(url=own_valkey.url.replace("://:", "://:wrong"))
    await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    assert "refuses the user name or password" in caplog.text
    assert own_valkey.password not in caplog.text


async def test_a_user_who_may_not_call_functions_reads_from_postgresql(
    join: Join, own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as client:
        await client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+ping", "+client")
    member = await join(url=own_valkey.url.replace(f":{own_valkey.password}@", "reader:pw@"))
    await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    assert "NOPERM" in caplog.text


async def test_a_full_redis_takes_nothing_and_harms_nobody(join: Join, own_valkey: ValkeyServer) -> None:
    member = await join(url=own_valkey.url)
    await member.store.state.set("k", 1)
    assert await member.store.state.get("k") == 1
    await member.settled()
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as client:
        await client.config_set("maxmemory", 1)
        assert await member.store.state.get("other") is None
        await member.store.state.set("k", 2)
        assert await member.store.state.get("k") == 2
        assert member.cache.available
        assert member.loads == 2
        await client.config_set("maxmemory", 0)
