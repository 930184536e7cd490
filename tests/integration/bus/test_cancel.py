"""Cancelling a message that waits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agenthive.bus import RequestFailed
from agenthive.protocol import MessageDeliveryStatus

FAILED = MessageDeliveryStatus.FAILED


async def test_cancelling_what_waits(bus, consume, make) -> None:
    consumer = await consume()
    later = datetime.now(UTC) + timedelta(hours=1)
    waiting = await bus.send(make(1, to="worker"))
    (delivery,) = await consumer.claim(1)
    delayed = await bus.send(make(2, delivery_options={"not_before": later}))
    assert await bus.cancel("worker", waiting) == "running"
    await consumer.fail(delivery, "broke", retry_after=600)
    assert await bus.cancel("worker", waiting, "not needed") == "cancelled"
    assert await bus.cancel("worker", delayed) == "cancelled"
    fresh = await bus.send(make(3))
    assert await bus.cancel("worker", fresh) == "cancelled"
    assert await bus.cancel("worker", fresh) == "finished"
    assert await bus.cancel("worker", "nothing") == "unknown"
    statuses = await bus.statuses("worker", [waiting, delayed, fresh])
    found = [(status.status, status.attempts, status.error) for status in statuses.values()]
    assert found == [(FAILED, 1, "cancelled: not needed"), (FAILED, 0, "cancelled"), (FAILED, 0, "cancelled")]
    assert all(status.accepted_at and status.finished_at for status in statuses.values())
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight, stats.delayed, stats.dead_letters) == (0, 0, 0, 0)
    await bus.send(make(4))
    (delivery,) = await consumer.claim(1)
    assert delivery.message.body == {"n": 4}


async def test_cancelling_a_message_that_was_handed_back_or_has_no_reader(bus, consume, make) -> None:
    unread = await bus.send(make(to="nobody"))
    assert await bus.cancel("nobody", unread) == "cancelled"
    assert (await bus.queue("nobody")).backlog == 0
    consumer = await consume()
    message_id = await bus.send(make())
    (delivery,) = await consumer.claim(1)
    await consumer.release([delivery])
    assert await bus.cancel("worker", message_id) == "cancelled"
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.oldest) == (0, None)


@pytest.mark.parametrize("delay", [0, 3600])
async def test_whoever_asked_hears_of_the_cancellation_at_once(bus, make, until, delay) -> None:
    not_before = datetime.now(UTC) + timedelta(seconds=delay) if delay else None
    message = make(delivery_options={"not_before": not_before})
    asking = asyncio.create_task(bus.request(message, timeout=60))
    await until(lambda: bus.find("worker", message.message_id))
    assert await bus.cancel("worker", message.message_id, "wrong house") == "cancelled"
    with pytest.raises(RequestFailed, match=r"^cancelled: wrong house$"):
        await asyncio.wait_for(asking, 10)
