"""A bus, consumers and messages for the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agenthive.bus import Bus, Consumer, Delivery
from agenthive.protocol import AgentMessage
from agenthive.settings import HiveScope, Messaging


def make(number: int = 0, *, to: str = "worker", **fields: Any) -> AgentMessage:
    """A numbered message."""
    return AgentMessage(**{"from_agent": "tester", "to_agent": to, "message_type": "t", "body": {"n": number}, **fields})


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 10.0) -> Any:
    """Poll ``condition`` until it is true; fail after ``seconds``."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (value := await condition()):
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {condition}")
        await asyncio.sleep(0.01)
    return value


async def claim_all(consumer: Consumer, count: int, seconds: float = 10.0) -> list[Delivery]:
    """Exactly ``count`` deliveries, however many claims it takes."""
    deliveries: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(deliveries) < count:
            deliveries += await consumer.claim(count - len(deliveries))
    return deliveries


Connect = Callable[..., Awaitable[Bus]]
Consume = Callable[..., Awaitable[Consumer]]


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

    async def consume(agent: str = "worker", *, pod: str = "", on: Bus | None = None) -> Consumer:
        consumer = (on or bus).consumer(agent, pod=pod or f"pod-{len(started)}")
        await consumer.start()
        started.append(consumer)
        return consumer

    yield consume
    for consumer in started:
        await consumer.aclose()
