"""A bus, consumers and messages for the tests of this folder."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from agenthive.bus import Bus, Consumer, Delivery
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope, Messaging


def _make(number: int = 0, *, to: str = "worker", **fields: Any) -> AgentMessage:
    return AgentMessage(
        **{"from_agent": "tester", "to_agent": to, "message_type": "t", "body": {"n": number}, **fields}
    )


async def _until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {inspect.getsource(condition).strip()}")
        await asyncio.sleep(0.01)


async def _claim_all(consumer: Consumer, count: int, seconds: float = 10.0) -> list[Delivery]:
    deliveries: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(deliveries) < count:
            deliveries += await consumer.claim(count - len(deliveries))
    return deliveries


@pytest.fixture
def make() -> Callable[..., AgentMessage]:
    """Makes a numbered message to the agent ``worker``."""
    return _make


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    """Polls a condition (plain or async) until it is true and returns its value; fails after a deadline."""
    return _until


@pytest.fixture
def claim_all() -> Callable[..., Awaitable[list[Delivery]]]:
    """Exactly so many deliveries, however many claims it takes."""
    return _claim_all


@pytest.fixture
async def raw(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A plain client of the session's server, to look behind the bus's back."""
    async with redis.asyncio.Redis.from_url(redis_url, protocol=2) as client:
        yield client


Connect = Callable[..., Awaitable[Bus]]
Consume = Callable[..., Awaitable[Consumer]]


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parked consumer looks at the queue when it is woken or its alarm rings, and never just because time passed.

    What a test then gets within its patience came by a wake-up, however slow the machine is.
    """
    monkeypatch.setattr("agenthive.bus.parking.FALLBACK_SECONDS", 600.0)


@pytest.fixture
def scope(unique: str) -> HiveScope:
    return HiveScope(namespace=unique, hive="demo")


@pytest.fixture
async def connect(redis_url: str, scope: HiveScope) -> AsyncIterator[Connect]:
    """Makes buses, closed after the test."""
    opened: list[Bus] = []

    async def connect(url: str = redis_url, **messaging: Any) -> Bus:
        bus = await Bus.connect(url, scope, messaging=Messaging(**messaging))
        opened.append(bus)
        return bus

    yield connect
    for bus in opened:
        await bus.aclose()


@pytest.fixture
async def bus(connect: Connect) -> Bus:
    return await connect()


@pytest.fixture
async def consume(bus: Bus) -> AsyncIterator[Consume]:
    """Makes started consumers, closed after the test."""
    started: list[Consumer] = []

    async def consume(agent: str = "worker", *, pod: str = "", on: Bus | None = None, **options: Any) -> Consumer:
        consumer = (on or bus).consumer(agent, pod=pod or f"pod-{len(started)}", **options)
        await consumer.start()
        started.append(consumer)
        return consumer

    yield consume
    for consumer in started:
        await consumer.aclose()
