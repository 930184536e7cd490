"""A queue at its bound, and callers that go away."""

from __future__ import annotations

import asyncio

import pytest

from agenthive.bus import QueueFull
from agenthive.bus.sender import BATCH_MESSAGES
from agenthive.bus.wire import ConnectionLost

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


def of_size(make, size: int, **fields):
    """A message whose document has exactly so many bytes."""
    message = make(0, body={"text": ""}, ttl=3600, **fields)
    return message.model_copy(update={"body": {"text": "x" * (size - len(message.to_json()))}})


async def test_a_queue_full_of_bytes_delays_senders(connect, consume, make, until) -> None:
    bus = await connect(queue={"max_bytes": 10_000})
    consumer = await consume(on=bus)
    for _ in range(3):
        await bus.send(of_size(make, 3000))
    assert (await bus.queue("worker")).bytes == 9000
    with pytest.raises(QueueFull, match=r"its 10000 bytes \(queue.maxBytes\)"):
        await bus.send(of_size(make, 1001), wait=0.05)
    await bus.send(of_size(make, 1000))
    large = asyncio.create_task(bus.send(of_size(make, 6000)))
    small = asyncio.create_task(bus.send(of_size(make, 500)))
    for bytes_left in (10_000, 7000):
        assert not large.done()
        assert not small.done(), "the small one has room, but came later"
        (delivery,) = await consumer.claim(1)
        assert (await bus.queue("worker")).bytes >= bytes_left, "what is in flight counts"
        await consumer.ack(delivery)
    await consumer.ack((await consumer.claim(1))[0])
    await asyncio.gather(large, small)
    assert (await bus.queue("worker")).bytes == 1000 + 6000 + 500


async def test_a_message_larger_than_the_bound_is_an_error_at_once(connect, make) -> None:
    bus = await connect(queue={"max_bytes": 2000})
    with pytest.raises(ValueError, match=r"2001 bytes as JSON, but a queue of this hive takes 2000 \(queue.maxBytes\)"):
        await bus.send(of_size(make, 2001))
    await bus.send(of_size(make, 2000))


async def test_every_way_out_of_the_queue_gives_its_bytes_back(connect, consume, make, until, raw, scope) -> None:
    bus = await connect(retry_delay_seconds=0)
    consumer = await consume(on=bus)

    async def left() -> int:
        return (await bus.queue("worker")).bytes

    async def claim(message, **more):
        await bus.send(message)
        (delivery,) = await consumer.claim(1)
        assert await left() >= len(message.to_json()), more
        return delivery

    acked, answered, rejected, failed = [of_size(make, 1000, message_id=name) for name in "abcd"]
    stays = of_size(make, 700, delivery_options={"not_before": "2100-01-01T00:00:00Z"})
    await bus.send(stays)
    await consumer.ack(await claim(acked))
    asking = asyncio.create_task(bus.request(answered, 10))
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery, delivery.message.reply(1))
    await asking
    await consumer.reject(await claim(rejected), "no")
    delivery = await claim(failed)
    await consumer.fail(delivery, "once more")
    (delivery,) = await consumer.claim(1)
    await consumer.release([delivery])
    (delivery,) = await consumer.claim(1)
    assert await left() == 1700, "one message, however often it is tried"
    await consumer.reject(delivery, "no")
    assert await left() == 700

    taken = of_size(make, 900, delivery_options={"require_ack": False})
    await bus.send(taken)
    await consumer.claim(1)
    assert await left() == 700
    expires = of_size(make, 900).model_copy(update={"ttl": 0.001})
    await bus.send(expires)
    await asyncio.sleep(0.005)
    claim_nothing = asyncio.create_task(consumer.claim(1))
    await until(lambda: bus.find("worker", expires.message_id))

    async def expired() -> bool:
        return (await bus.status("worker", expires.message_id)).final

    await until(expired)
    claim_nothing.cancel()
    assert await left() == 700
    report = await bus.redrive("worker", ["c"])
    assert report.done == 1
    assert await left() == 1700
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    assert await left() == 700
    await bus.send(of_size(make, 800, message_id="e", delivery_options={"not_before": "2100-01-01T00:00:00Z"}))
    assert await left() == 1500
    await bus.cancel("worker", "e")
    assert await left() == 700
    await bus.cancel("worker", stays.message_id)
    assert await left() == 0
    assert await raw.exists(scope.key_prefix("worker") + "bytes") == 0


async def test_a_repeated_acknowledgement_gives_bytes_back_once(bus, consume, make) -> None:
    consumer = await consume()
    for _ in range(3):
        await bus.send(of_size(make, 1000))
    deliveries = await consumer.claim(3)
    lane = consumer._lane
    execute = lane.execute

    async def lose_the_answer(commands, **more):
        answers = await execute(commands, **more)
        if lane.execute is lose_the_answer:
            lane.execute = execute
            raise ConnectionLost("cut by the test")
        return answers

    lane.execute = lose_the_answer
    await consumer.ack(deliveries[0])
    assert lane.execute is execute
    assert (await bus.queue("worker")).bytes == 2000


async def test_a_wrong_number_of_bytes_is_right_after_the_queue_was_empty(bus, consume, make, raw, scope) -> None:
    key = scope.key_prefix("worker") + "bytes"
    await raw.set(key, 5_000_000)
    assert (await bus.queue("worker")).bytes == 0
    await bus.send(of_size(make, 1000))
    assert (await bus.queue("worker")).bytes == 1000
    await raw.set(key, 10)
    consumer = await consume()
    await consumer.ack((await consumer.claim(1))[0])
    assert (await bus.queue("worker")).bytes == 0


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
