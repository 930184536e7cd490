"""Retries, dead letters, expiry, and entries that are no messages."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agenthive.bus import LeaseLost
from agenthive.protocol import MessageDeliveryStatus, MessagePriority


async def test_a_failed_message_is_tried_again_and_then_given_up(connect, consume, make) -> None:
    bus = await connect(max_retries=2, retry_delay_seconds=0.02)
    consumer = await consume(on=bus)
    message = make(1, priority=MessagePriority.HIGH)
    await bus.send(message)
    for attempt in (1, 2, 3):
        (delivery,) = await consumer.claim(1)
        assert delivery.attempt == attempt
        assert delivery.message == message, "priority, ttl and all are kept"
        await consumer.fail(delivery, f"broke at {attempt}")
    status = await bus.status("worker", message.message_id)
    assert status.status is MessageDeliveryStatus.FAILED
    assert (status.attempts, status.error) == (3, "failed: broke at 3")
    (letter,) = await bus.dead_letters("worker")
    assert (letter.message, letter.reason, letter.error, letter.attempts) == (message, "failed", "broke at 3", 3)
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight, stats.delayed, stats.dead_letters) == (0, 0, 0, 1)
    assert (stats.arrived, stats.finished, stats.given_up) == (1, 1, 1), "tries do not count"
    await bus.send(make(2))
    stats = await bus.queue("worker")
    assert (stats.arrived, stats.finished, stats.given_up) == (2, 1, 1)


async def test_the_messages_own_number_of_retries_counts(bus, consume, make) -> None:
    consumer = await consume()
    await bus.send(make(delivery_options={"max_retries": 0}))
    (delivery,) = await consumer.claim(1)
    await consumer.fail(delivery, "no")
    assert [letter.reason for letter in await bus.dead_letters("worker")] == ["failed"]


@pytest.mark.usefixtures("no_fallback")
async def test_a_retry_waits_for_its_time(bus, consume, make) -> None:
    consumer = await consume()
    await bus.send(make())
    (delivery,) = await consumer.claim(1)
    before = datetime.now(UTC)
    await consumer.fail(delivery, "later, please", retry_after=0.3)
    stats = await bus.queue("worker")
    assert (stats.delayed, stats.backlog, stats.in_flight) == (1, 0, 0)
    async with asyncio.timeout(10):  # its alarm wakes it
        (delivery,) = await consumer.claim(1)
    assert datetime.now(UTC) - before >= timedelta(seconds=0.29)
    assert delivery.attempt == 2
    await consumer.ack(delivery)


@pytest.mark.usefixtures("no_fallback")
async def test_one_retry_after_the_other_comes_in_time(bus, consume, make, until) -> None:
    # Each retry finds the parked consumer's alarm of the one before: it has rung and must not count.
    consumer = await consume()
    await bus.send(make(delivery_options={"max_retries": 10}))
    (delivery,) = await consumer.claim(1)
    for _ in range(6):
        waiting = asyncio.create_task(consumer.claim(1))
        await until(lambda: consumer._parking.parked)
        await consumer.fail(delivery, "again", retry_after=0.02)
        async with asyncio.timeout(10):
            (delivery,) = await waiting
    assert delivery.attempt == 7


@pytest.mark.usefixtures("no_fallback")
async def test_another_idle_consumer_takes_the_retry(bus, consume, make, until) -> None:
    failing, idle = await consume(), await consume()
    await bus.send(make())
    (delivery,) = await failing.claim(1)
    waiting = asyncio.create_task(idle.claim(1))
    await until(lambda: idle._parking.parked)
    await failing.fail(delivery, "not me", retry_after=0.2)
    async with asyncio.timeout(10):
        (again,) = await waiting
    assert again.attempt == 2
    await idle.ack(again)


async def test_a_rejected_message_is_not_tried_again(bus, consume, make) -> None:
    consumer = await consume()
    message = make()
    await bus.send(message)
    (delivery,) = await consumer.claim(1)
    await consumer.reject(delivery, "no handler for t")
    (letter,) = await bus.dead_letters("worker")
    assert (letter.reason, letter.error, letter.message) == ("rejected", "no handler for t", message)
    assert (await bus.status("worker", message.message_id)).status is MessageDeliveryStatus.FAILED


async def test_an_endless_error_text_is_cut(bus, consume, make) -> None:
    consumer = await consume()
    await bus.send(make())
    (delivery,) = await consumer.claim(1)
    await consumer.reject(delivery, "x" * 100_000)
    (letter,) = await bus.dead_letters("worker")
    assert len(letter.error) == 2000


async def test_a_message_is_completed_once(bus, consume, make) -> None:
    consumer = await consume()
    await bus.send(make())
    (delivery,) = await consumer.claim(1)
    first, second = consumer.ack(delivery), consumer.fail(delivery, "changed my mind")
    await first
    with pytest.raises(LeaseLost):
        await second
    with pytest.raises(LeaseLost):
        await consumer.ack(delivery)
    assert await bus.dead_letters("worker") == []


async def test_an_expired_message_is_not_handed_out(bus, consume, make, until) -> None:
    late, fresh = make(1, ttl=0.05), make(2)
    await bus.send(late)
    await asyncio.sleep(0.1)
    await bus.send(fresh)
    consumer = await consume()
    (delivery,) = await consumer.claim(5)
    assert delivery.message == fresh
    await consumer.ack(delivery)
    status = await bus.status("worker", late.message_id)
    assert (status.status, status.attempts) == (MessageDeliveryStatus.EXPIRED, 0)
    (letter,) = await bus.dead_letters("worker")
    assert (letter.reason, letter.message) == ("expired", late)


async def test_the_hives_ttl_holds_for_messages_that_name_none(connect, consume, make) -> None:
    bus = await connect(ttl_seconds=1)
    message = make()
    await bus.send(message)
    consumer = await consume(on=bus)
    (delivery,) = await consumer.claim(1)
    assert delivery.message.ttl == 1


async def test_a_message_that_would_expire_before_its_retry_is_given_up(bus, consume, make) -> None:
    consumer = await consume()
    message = make(ttl=5)
    await bus.send(message)
    (delivery,) = await consumer.claim(1)
    await consumer.fail(delivery, "broke", retry_after=60)
    (letter,) = await bus.dead_letters("worker")
    assert letter.reason == "expired"
    assert letter.error == "its time to live ends before the next retry; broke"
    assert (await bus.status("worker", message.message_id)).status is MessageDeliveryStatus.EXPIRED


async def test_the_time_of_handling_is_not_part_of_the_ttl(bus, consume, make) -> None:
    consumer = await consume()
    await bus.send(make(ttl=0.2))
    (delivery,) = await consumer.claim(1)
    await asyncio.sleep(0.3)
    await consumer.ack(delivery)
    assert await bus.dead_letters("worker") == []


async def test_a_flood_of_expired_messages_does_not_hold_up_the_next(bus, consume, make, claim_all) -> None:
    await asyncio.gather(*(bus.send(make(n, ttl=0.001)) for n in range(2500)))
    await bus.send(make(-1))
    consumer = await consume()
    (delivery,) = await claim_all(consumer, 1)
    assert delivery.message.body == {"n": -1}
    assert (await bus.queue("worker")).dead_letters == 2500


LATER = "04000000000000"  # an expiry


def _text(identifier: str, document: bytes | str, head: str = LATER) -> bytes:
    return f"{head}\n{identifier}\n".encode() + (document.encode() if isinstance(document, str) else document)


GARBAGE = [
    ({"hello": "world"}, "has not the one field"),
    ({"i": "x", "m": _text("second", "{}")}, "has not the one field"),
    ({"m": _text("first", "{}"), "z": "more"}, "has not the one field"),
    ({"m": "{}"}, "has not the one field"),
    ({"m": ""}, "has not the one field"),
    ({"m": _text("", "{}")}, "has not the one field"),
    ({"m": _text("long" * 1000, "{}")}, "has not the one field"),
    ({"m": f"{LATER}\nno document"}, "has not the one field"),
    ({"m": _text("when", "{}", "soon")}, "has not the one field"),
    ({"m": _text("no json", "not json")}, "Invalid JSON"),
    ({"m": _text("nothing", "")}, "Invalid JSON"),
    ({"m": _text("bytes", b"\xff\xfe\x00")}, "Invalid JSON"),
    ({"m": _text("empty", "{}")}, "from_agent: Field required"),
    ({"m": _text("bomb", '{"body":' * 9000)}, "Invalid JSON"),
    ({"m": _text("huge", "x" * 1_200_000)}, "the limit is"),
    ({"m": _text("options", "[]", LATER + " \x00 nonsense r")}, "object"),
]


async def test_garbage_goes_to_the_dead_letters_and_the_worker_goes_on(bus, consume, make, scope, raw, until) -> None:
    consumer = await consume()
    for fields, _ in GARBAGE:
        await raw.xadd(f"{scope.key_prefix('worker')}q:2", fields)
    await bus.send(make(1))
    async with asyncio.timeout(10):
        (delivery,) = await consumer.claim(3)
    assert delivery.message.body == {"n": 1}
    await consumer.ack(delivery)
    await until(lambda: _dead(bus, len(GARBAGE)))
    letters = await bus.dead_letters("worker")
    assert {letter.reason for letter in letters} == {"malformed"}
    texts = sorted(letter.error for letter in letters)
    for _, says in GARBAGE:
        assert any(says in text for text in texts), (says, texts)
    assert all(letter.message is None for letter in letters)
    stats = await bus.queue("worker")
    assert (stats.backlog, stats.in_flight) == (0, 0)


async def _dead(bus, count: int) -> bool:
    return (await bus.queue("worker")).dead_letters == count


async def test_a_well_formed_entry_of_another_writer_is_handled(bus, consume, make, scope, raw) -> None:
    consumer = await consume()
    message = make(5)
    await raw.xadd(f"{scope.key_prefix('worker')}q:2", {"m": _text(message.message_id, message.to_json())})
    (delivery,) = await consumer.claim(1)
    assert (delivery.message, delivery.attempt) == (message, 1)
    await consumer.ack(delivery)
    assert (await bus.status("worker", message.message_id)).status is MessageDeliveryStatus.DELIVERED


async def test_pages_of_dead_letters(bus, consume, make, claim_all) -> None:
    consumer = await consume()
    for n in range(5):
        await bus.send(make(n))
    for delivery in await claim_all(consumer, 5):
        await consumer.reject(delivery, "no")
    first = await bus.dead_letters("worker", limit=3)
    rest = await bus.dead_letters("worker", limit=3, after=first[-1].id)
    assert [letter.message.body["n"] for letter in first + rest] == [0, 1, 2, 3, 4]


async def test_final_statuses_end_and_are_bounded(connect, consume, make, until, scope, raw) -> None:
    bus = await connect(status_seconds=1)
    consumer = await consume(on=bus)
    message = make()
    await bus.send(message)
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    assert (await bus.find("worker", message.message_id)).status is MessageDeliveryStatus.DELIVERED

    async def forgotten() -> bool:
        return await bus.find("worker", message.message_id) is None

    await until(forgotten, 5)
    for n in range(8):  # many generations later only a few hashes exist
        await raw.set(f"{scope.key_prefix('worker')}sg", f"{n + 5} 1")
        await bus.send(make(n))
        (delivery,) = await consumer.claim(1)
        await consumer.ack(delivery)
    keys = [key async for key in raw.scan_iter(f"{scope.key_prefix('worker')}st:*")]
    assert len(keys) <= 5
