"""Messages of one ordering key, on a real server."""

from __future__ import annotations

import asyncio

import pytest

from agenthive.bus import PendingState, QueueFull
from agenthive.protocol import MessageDeliveryStatus

KEYS = ["order 17", "ключ\n\t%", "日" * 256]


def of(key: str, **more) -> dict:
    return {"ordering_key": key, **more}


def numbers(deliveries) -> list[int]:
    return [delivery.message.body["n"] for delivery in deliveries]


@pytest.fixture
async def ordered(connect, consume):
    """A bus whose retries come at once and are few, and two consumers."""
    bus = await connect(retry_delay_seconds=0, max_retries=1)
    return bus, await consume(on=bus), await consume(on=bus)


@pytest.mark.parametrize("key", KEYS)
async def test_one_of_a_key_at_a_time_in_order_of_acceptance(ordered, make, key) -> None:
    bus, first, second = ordered
    for n in range(4):
        await bus.send(make(n, delivery_options=of(key)))
    await bus.send(make(9, delivery_options=of(key[1:])))
    (one, other) = await first.claim(10)
    assert numbers([one, other]) == [0, 9], "another key does not wait"
    assert one.message.delivery_options.ordering_key == key
    for n in range(1, 4):
        waiting = asyncio.create_task(second.claim(10))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await first.ack(one)
        async with asyncio.timeout(5):
            (one,) = await waiting
        assert numbers([one]) == [n]
        first, second = second, first
    await first.ack(one)


async def test_a_blocked_message_counts_and_says_so(connect, consume, make, raw, scope) -> None:
    bus = await connect(queue={"max_length": 3})
    consumer = await consume(on=bus)
    messages = [make(n, priority=3 if n else 2, delivery_options=of("k")) for n in range(3)]
    for message in messages:
        await bus.send(message)
    with pytest.raises(QueueFull):
        await bus.send(make(3), wait=0)
    figures = await bus.queue("worker")
    assert (figures.backlog, figures.blocked, figures.in_flight, figures.delayed) == (3, 2, 0, 0)
    assert figures.backlog_by_priority == {1: 0, 2: 1, 3: 2, 4: 0}
    assert figures.bytes == sum(len(message.to_json()) for message in messages)
    statuses = await bus.statuses("worker", [message.message_id for message in messages])
    assert [one.detail for one in statuses.values()] == [
        PendingState.WAITING,
        PendingState.BLOCKED,
        PendingState.BLOCKED,
    ]
    accepted = [one.accepted_at for one in statuses.values()]
    assert accepted == sorted(accepted)
    for n, message in enumerate(messages):
        (delivery,) = await consumer.claim(10)
        assert numbers([delivery]) == [n]
        assert (await bus.queue("worker")).blocked == 2 - n
        await consumer.ack(delivery)
        final = await bus.status("worker", message.message_id)
        assert final.status is MessageDeliveryStatus.DELIVERED
        assert final.accepted_at == accepted[n], "from when it was sent, not from when it was its turn"
    prefix = scope.key_prefix("worker")
    keys = {key.decode().removeprefix(prefix) async for key in raw.scan_iter(f"{prefix}*")}
    assert keys <= {"q:1", "q:2", "q:3", "q:4", "consumers", "st:1", "sg", "wake", "alarm"}


async def test_retries_and_hand_backs_keep_the_order(ordered, make) -> None:
    bus, first, second = ordered
    for n in range(2):
        await bus.send(make(n, delivery_options=of("k", retry_delay=0.2)))
    (delivery,) = await first.claim(10)
    await first.fail(delivery, "once more", retry_after=0.2)
    assert (await bus.queue("worker")).blocked == 1
    (delivery,) = await second.claim(10)
    assert (numbers([delivery]), delivery.attempt) == ([0], 2)
    await second.release([delivery])
    (delivery,) = await first.claim(10)
    assert (numbers([delivery]), delivery.attempt) == ([0], 2)
    await first.ack(delivery)
    (delivery,) = await second.claim(10)
    assert numbers([delivery]) == [1]


@pytest.mark.parametrize("end", ["failed", "rejected", "expired", "cancelled"])
async def test_the_next_follows_whatever_ends_the_one_before(ordered, make, until, end) -> None:
    bus, consumer, _ = ordered
    head = make(0, ttl=0.05 if end == "expired" else 60, delivery_options=of("k"))
    await bus.send(head)
    for n in (1, 2):
        await bus.send(make(n, delivery_options=of("k"), message_id=f"later-{n}"))
    assert (await bus.cancel("worker", "later-1")) == "cancelled"
    assert (await bus.queue("worker")).blocked == 1
    if end == "cancelled":
        assert (await bus.cancel("worker", head.message_id)) == "cancelled"
    elif end == "expired":
        await asyncio.sleep(0.06)
    else:
        (delivery,) = await consumer.claim(1)
        if end == "failed":
            await consumer.fail(delivery, "no")
            (delivery,) = await consumer.claim(1)
            await consumer.fail(delivery, "no")
        else:
            await consumer.reject(delivery, "no")
    async with asyncio.timeout(5):
        (delivery,) = await consumer.claim(10)
    assert numbers([delivery]) == [2]
    await consumer.ack(delivery)
    assert await bus.halted("worker") == []


async def halt(bus, consumer, make, key: str = "k", later: int = 3) -> str:
    """A key halted by message 0; returns the id of the dead letter."""
    await bus.send(make(0, delivery_options=of(key, on_fail="halt")))
    for n in range(1, later):
        await bus.send(make(n, delivery_options=of(key, on_fail="halt")))
    (delivery,) = await consumer.claim(1)
    await consumer.reject(delivery, "no")
    (letter,) = [one for one in await bus.dead_letters("worker") if one.message_id == delivery.message.message_id]
    return letter.id


async def test_halt_keeps_the_key_back_until_its_dead_letter_is_redriven_and_runs_first(ordered, make) -> None:
    bus, consumer, other = ordered
    letter = await halt(bus, consumer, make)
    await bus.send(make(3, delivery_options=of("k")))
    await bus.send(make(8, delivery_options=of("free")))
    (delivery,) = await consumer.claim(10)
    assert numbers([delivery]) == [8]
    await consumer.ack(delivery)
    figures = await bus.queue("worker")
    assert (figures.halted, figures.blocked, figures.backlog) == (1, 3, 3)
    (halted,) = await bus.halted("worker")
    assert (halted.key, halted.letter, halted.waiting) == ("k", letter, 3)
    waiting = asyncio.create_task(other.claim(1))
    assert (await bus.redrive("worker", [letter])).done == 1
    for n in range(4):
        async with asyncio.timeout(5):
            (delivery,) = await waiting
        assert numbers([delivery]) == [n]
        waiting = asyncio.create_task(other.claim(1))
        await asyncio.sleep(0)
        await other.ack(delivery)
    waiting.cancel()
    figures = await bus.queue("worker")
    assert (figures.halted, figures.backlog) == (0, 0)


@pytest.mark.parametrize("how", ["purge", "resume", "to another agent"])
async def test_a_halted_key_goes_on_without_its_dead_letter(ordered, make, how) -> None:
    bus, consumer, _ = ordered
    letter = await halt(bus, consumer, make, "ключ 1")
    await halt(bus, consumer, make, "stays", 1)
    assert [one.key for one in await bus.halted("worker")] == ["stays", "ключ 1"]
    if how == "purge":
        assert (await bus.purge("worker", [letter])).done == 1
    elif how == "resume":
        assert await bus.resume("worker", "ключ 1")
        assert not await bus.resume("worker", "ключ 1")
        assert not await bus.resume("worker", "unknown")
    else:
        assert (await bus.redrive("worker", [letter], to="other")).done == 1
        assert (await bus.queue("other")).backlog == 1
    async with asyncio.timeout(5):
        (delivery,) = await consumer.claim(10)
    assert numbers([delivery]) == [1]
    await consumer.ack(delivery)
    assert [one.key for one in await bus.halted("worker")] == ["stays"]
    if how == "resume":
        assert (await bus.redrive("worker", [letter])).done == 1, "a redrive then takes its place at the end"
        (delivery,) = await consumer.claim(10)
        assert numbers([delivery]) == [2]
        await consumer.ack(delivery)
        (delivery,) = await consumer.claim(10)
        assert numbers([delivery]) == [0]


async def test_a_key_whose_message_was_deleted_by_hand_can_be_resumed(ordered, make, raw, scope) -> None:
    bus, consumer, _ = ordered
    for n in range(2):
        await bus.send(make(n, delivery_options=of("k")))
    assert not await bus.resume("worker", "k"), "its message is in the queue"
    stream = scope.key_prefix("worker") + "q:2"
    ((entry, _),) = await raw.xrange(stream)
    await raw.xdel(stream, entry)
    assert await bus.resume("worker", "k")
    (delivery,) = await consumer.claim(10)
    assert numbers([delivery]) == [1]


async def test_a_blocked_message_whose_time_ends_expires_when_its_turn_comes(ordered, make) -> None:
    bus, consumer, _ = ordered
    await bus.send(make(0, delivery_options=of("k")))
    late = make(1, ttl=0.05, delivery_options=of("k", on_fail="halt"))
    await bus.send(late)
    await bus.send(make(2, delivery_options=of("k")))
    (delivery,) = await consumer.claim(10)
    await asyncio.sleep(0.06)
    waiting = asyncio.create_task(consumer.claim(1))
    await asyncio.sleep(0)
    await consumer.ack(delivery)
    assert (await bus.status("worker", late.message_id)).status is MessageDeliveryStatus.EXPIRED
    assert (await bus.queue("worker")).halted == 1, "an expired message is given up, too"
    await bus.resume("worker", "k")
    async with asyncio.timeout(5):
        (delivery,) = await waiting
    assert numbers([delivery]) == [2]


@pytest.mark.parametrize("alone", [True, False])
async def test_a_long_line_of_expired_messages_is_passed_without_a_pause(ordered, make, no_fallback, alone) -> None:
    bus, consumer, other = ordered
    await bus.send(make(0, delivery_options=of("k")))
    late = [make(n, ttl=0.05, priority=1 + n % 4, delivery_options=of("k")) for n in range(1, 1200)]
    await asyncio.gather(*(bus.send(message) for message in late))
    await bus.send(make(2000, priority=4, delivery_options=of("k")))
    (delivery,) = await consumer.claim(10)
    waiting = None if alone else asyncio.create_task(other.claim(1))
    await asyncio.sleep(0.06)
    await consumer.ack(delivery)
    async with asyncio.timeout(10):
        (delivery,) = await (waiting or consumer.claim(1))
    assert numbers([delivery]) == [2000]
    assert (await bus.queue("worker")).dead_letters == len(late)


async def test_an_answer_that_was_lost_lets_no_second_message_of_a_key_out(ordered, make) -> None:
    from agenthive.bus.wire import ConnectionLost

    bus, consumer, other = ordered
    for n in range(4):
        await bus.send(make(n, delivery_options=of("k")))
    (delivery,) = await consumer.claim(10)
    lane = consumer._lane
    execute = lane.execute

    async def lose_the_answer(commands, **more):
        answers = await execute(commands, **more)
        if lane.execute is lose_the_answer:
            lane.execute = execute
            raise ConnectionLost("cut by the test")
        return answers

    lane.execute = lose_the_answer
    await consumer.ack(delivery)
    figures = await bus.queue("worker")
    assert (figures.backlog + figures.in_flight, figures.blocked) == (3, 2)
    (delivery,) = await other.claim(10)
    assert numbers([delivery]) == [1]
