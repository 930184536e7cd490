"""Where messages stand: every state by id, several at once, and watching one."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from agenthive.bus import BusUnavailable, PendingState
from agenthive.protocol import MessageDeliveryStatus

PENDING, DELIVERED = MessageDeliveryStatus.PENDING, MessageDeliveryStatus.DELIVERED


def _near(moment: datetime | None, seconds: float) -> bool:
    """Whether it is in about ``seconds`` from now, give or take a slow machine."""
    assert moment is not None
    return abs((moment - datetime.now(UTC)).total_seconds() - seconds) < 8


async def test_a_pending_message_says_what_it_is_doing(bus, consume, make) -> None:
    consumer = await consume()
    later = datetime.now(UTC) + timedelta(hours=1)
    delayed = await bus.send(make(delivery_options={"not_before": later}))
    waiting = await bus.send(make(to="nobody"))
    message_id = await bus.send(make())
    status = await bus.status("worker", delayed)
    assert (status.detail, status.attempts) == (PendingState.DELAYED, 0)
    assert abs(status.due_at - later) < timedelta(milliseconds=2)
    status = await bus.status("nobody", waiting)
    assert (status.status, status.detail, status.due_at) == (PENDING, PendingState.WAITING, None)

    (delivery,) = await consumer.claim(1)
    status = await bus.status("worker", message_id)
    assert (status.detail, status.attempts, status.final) == (PendingState.IN_FLIGHT, 1, False)
    assert _near(status.claimed_at, 0)
    await consumer.fail(delivery, "once", retry_after=600)
    status = await bus.status("worker", message_id)
    assert (status.detail, status.attempts) == (PendingState.RETRYING, 1)
    assert _near(status.claimed_at, 0)
    assert _near(status.due_at, 600)


async def test_a_message_handed_back_waits_again(bus, consume, make) -> None:
    consumer = await consume()
    message_id = await bus.send(make())
    (delivery,) = await consumer.claim(1)
    await consumer.release([delivery])
    status = await bus.status("worker", message_id)
    assert (status.detail, status.attempts, status.claimed_at) == (PendingState.WAITING, 0, None)


async def test_the_first_and_the_last_claim_are_kept(bus, consume, make) -> None:
    consumer = await consume()
    good, bad = await bus.send(make(1)), await bus.send(make(2))
    deliveries = await consumer.claim(2)
    for delivery in deliveries:
        await consumer.fail(delivery, "once", retry_after=0.05)
    begun = {one: await bus.status("worker", one) for one in (good, bad)}
    for _ in deliveries:
        (delivery,) = await consumer.claim(1)
        if delivery.message.message_id == good:
            running = await bus.status("worker", good)
            await consumer.ack(delivery)
        else:
            await consumer.reject(delivery, "no")
    for one in (good, bad):
        first, last = begun[one], await bus.status("worker", one)
        assert first.first_claimed_at == first.claimed_at == last.first_claimed_at
        assert last.accepted_at <= last.first_claimed_at < last.claimed_at <= last.finished_at
    assert running.claimed_at > running.first_claimed_at == begun[good].first_claimed_at
    crashed = await bus.send(make(3))
    await consumer.claim(1)
    await consumer.aclose()  # gives up what it holds
    status = await bus.status("worker", crashed)
    assert (status.detail, status.attempts) == (PendingState.WAITING, 1)
    assert _near(status.first_claimed_at, 0)


async def test_many_statuses_at_once(bus, consume, make, claim_all) -> None:
    consumer = await consume()
    ids = await asyncio.gather(*(bus.send(make(n)) for n in range(1200)))
    for delivery in await claim_all(consumer, 3):
        await consumer.ack(delivery)
    found = await bus.statuses("worker", [*ids, "unknown", ids[0]])
    assert list(found) == [*ids, "unknown"]
    assert [found[one].status for one in ids[:3]] == [DELIVERED] * 3
    assert {found[one].detail for one in ids[3:]} == {PendingState.WAITING}
    assert found["unknown"] is None
    assert await bus.statuses("worker", []) == {}


async def test_a_watch_sees_each_change_to_the_end(bus, consume, make) -> None:
    consumer = await consume()
    message_id = await bus.send(make())
    seen = []
    async with asyncio.timeout(20), contextlib.aclosing(bus.watch("worker", message_id)) as watch:
        async for status in watch:
            seen.append((status.status, status.detail, status.attempts))
            if len(seen) in {1, 4}:
                (delivery,) = await consumer.claim(1)
            elif len(seen) == 2:
                await consumer.fail(delivery, "no", retry_after=2.0)
            elif len(seen) == 5:
                await consumer.ack(delivery)
    assert (
        seen
        == [
            (PENDING, PendingState.WAITING, 0),
            (PENDING, PendingState.IN_FLIGHT, 1),
            (PENDING, PendingState.RETRYING, 1),
            (PENDING, PendingState.WAITING, 1),
            (PENDING, PendingState.IN_FLIGHT, 2),
            (DELIVERED, None, 2),
        ][: len(seen)]
        or len(seen) == 5
    )
    assert seen[-1] == (DELIVERED, None, 2)


async def test_a_watch_of_a_finished_message_says_so_once(bus, consume, make) -> None:
    consumer = await consume()
    message_id = await bus.send(make())
    (delivery,) = await consumer.claim(1)
    await consumer.reject(delivery, "never")
    seen = [status async for status in bus.watch("worker", message_id, timeout=20)]
    assert [(status.status, status.error) for status in seen] == [("failed", "rejected: never")]


async def test_watches_of_a_process_share_their_looks(bus, make, consume, claim_all, monkeypatch) -> None:
    consumer = await consume()
    ids = await asyncio.gather(*(bus.send(make(n)) for n in range(300)))
    looks = 0
    statuses = bus._watches._statuses

    async def counted(wanted):
        nonlocal looks
        looks += 1
        return await statuses(wanted)

    monkeypatch.setattr(bus._watches, "_statuses", counted)

    async def last(message_id: str):
        return [status async for status in bus.watch("worker", message_id, timeout=30)][-1]

    watching = [asyncio.create_task(last(message_id)) for message_id in ids]
    for delivery in await claim_all(consumer, 300):
        consumer.ack(delivery)
    assert {status.status for status in await asyncio.gather(*watching)} == {DELIVERED}
    assert looks < 100, "each watch looks by itself"
    assert bus._watches._task is None or bus._watches._task.done() or not bus._watches._watches


async def test_how_a_watch_ends_without_a_final_status(bus, connect, make) -> None:
    with pytest.raises(LookupError, match="agent worker has no message nothing"):
        await anext(bus.watch("worker", "nothing"))
    with pytest.raises(ValueError, match="is no name of an agent"):
        bus.watch("no{body}", "nothing")
    message_id = await bus.send(make())
    with pytest.raises(TimeoutError, match=r"not final after 0\.2 s: it is waiting after 0 attempts"):
        [status async for status in bus.watch("worker", message_id, timeout=0.2)]
    other = await connect()
    watch = other.watch("worker", message_id)
    await anext(watch)
    await other.aclose()
    with pytest.raises(BusUnavailable, match="closed"):
        await anext(watch)


async def test_a_watch_outlasts_an_outage(own_valkey, connect, consume, make) -> None:
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus)
    message_id = await bus.send(make())
    watch = bus.watch("worker", message_id, timeout=60)
    assert (await anext(watch)).detail is PendingState.WAITING
    own_valkey.stop()
    waiting = asyncio.create_task(anext(watch))
    while not bus._watches._down:
        assert not waiting.done()
        await asyncio.sleep(0.01)
    own_valkey.start()
    (delivery,) = await consumer.claim(1)
    assert (await waiting).detail is PendingState.IN_FLIGHT
    await consumer.ack(delivery)
    assert (await anext(watch)).status is DELIVERED
