"""A queue at its bound, and callers that go away."""

from __future__ import annotations

import asyncio

import pytest

from agenthive.bus import QueueFull
from agenthive.bus.sender import BATCH_MESSAGES

BOUND = {"queue": {"max_length": 10}}


async def test_a_full_queue_is_an_error_after_the_senders_deadline(connect, make) -> None:
    bus = await connect(**BOUND)
    for n in range(10):
        await bus.send(make(n))
    with pytest.raises(QueueFull, match="its 10 messages"):
        await bus.send(make(11), wait=0.1)
    assert (await bus.queue("worker")).backlog == 10
    await bus.send(make(0, to="other"), wait=0.1)  # another agent's queue is not full


async def test_senders_wait_for_room_in_the_order_they_came(connect, consume, make, until) -> None:
    bus = await connect(**BOUND)
    consumer = await consume(on=bus)
    sending = [asyncio.create_task(bus.send(make(n))) for n in range(40)]
    await until(lambda: sum(task.done() for task in sending) == 10)
    got = []
    while len(got) < 40:
        for delivery in await consumer.claim(5):
            got.append(delivery.message.body["n"])
            await consumer.ack(delivery)
    await asyncio.gather(*sending)
    assert got == list(range(40))


async def test_retries_and_replies_pass_a_full_queue(connect, consume, make) -> None:
    bus = await connect(retry_delay_seconds=0, **BOUND)
    consumer = await consume(on=bus)
    asking = asyncio.create_task(bus.request(make(0), 10))
    (delivery,) = await consumer.claim(1)
    for n in range(9):
        await bus.send(make(n))
    with pytest.raises(QueueFull):
        await bus.send(make(), wait=0.05)
    await consumer.fail(delivery, "once more")
    (again,) = [d for d in await consumer.claim(10) if d.attempt == 2]
    await consumer.ack(again, again.message.reply({"passed": True}))
    assert (await asking).body == {"result": {"passed": True}}


async def test_delayed_messages_count(connect, make) -> None:
    bus = await connect(**BOUND)
    options = {"not_before": "2100-01-01T00:00:00Z"}
    for n in range(10):
        await bus.send(make(n, delivery_options=options))
    with pytest.raises(QueueFull):
        await bus.send(make(11), wait=0.05)


async def test_many_senders_share_few_calls(bus, make, raw) -> None:
    before = (await raw.info("commandstats"))["cmdstat_fcall"]["calls"]
    await asyncio.gather(*(bus.send(make(n)) for n in range(BATCH_MESSAGES * 4)))
    calls = (await raw.info("commandstats"))["cmdstat_fcall"]["calls"] - before
    assert calls <= 8
    assert (await bus.queue("worker")).backlog == BATCH_MESSAGES * 4


async def test_large_messages_are_sent_in_batches_of_bounded_size(bus, consume, make, claim_all) -> None:
    body = {"text": "x" * 900_000}
    await asyncio.gather(*(bus.send(make(body=body)) for _ in range(12)))
    consumer = await consume()
    deliveries = await claim_all(consumer, 12)
    assert all(d.message.body == body for d in deliveries)
    for delivery in deliveries:
        await consumer.ack(delivery)


async def test_a_cancelled_sender_disturbs_nobody(bus, make) -> None:
    for _ in range(30):
        sending = [asyncio.create_task(bus.send(make(n))) for n in range(20)]
        await asyncio.sleep(0)
        for task in sending[::2]:
            task.cancel()
        results = await asyncio.gather(*sending, return_exceptions=True)
        assert all(isinstance(result, str) for result in results[1::2])


async def test_a_cancelled_look_disturbs_nobody(bus, make) -> None:
    await bus.send(make())
    for _ in range(30):
        looking = [asyncio.create_task(bus.queue("worker")) for _ in range(10)]
        await asyncio.sleep(0)
        for task in looking[::2]:
            task.cancel()
        results = await asyncio.gather(*looking, return_exceptions=True)
        assert all(result.backlog == 1 for result in results[1::2])
