"""Messages of one deduplication key, on a real server."""

from __future__ import annotations

import asyncio

import pytest

from agenthive.bus import QueueFull, RequestTimeout

KEYS = ["order 17", "ключ\n\t%", "x" * 256, "日" * 256]


def keyed(key: str, **more) -> dict:
    return {"deduplication_key": key, **more}


@pytest.mark.parametrize("key", KEYS)
async def test_the_first_message_of_a_key_is_the_message(bus, consume, make, key) -> None:
    first = await bus.send(make(1, delivery_options=keyed(key)))
    later = make(2, delivery_options=keyed(key))
    assert await bus.send(later) == first
    assert await bus.find("worker", later.message_id) is None
    other = make(3, delivery_options=keyed(key[:-1] + "!"))
    assert await bus.send(other) == other.message_id
    elsewhere = make(4, to="other", delivery_options=keyed(key))
    assert await bus.send(elsewhere) == elsewhere.message_id, "keys are the recipient's"
    consumer = await consume()
    deliveries = await consumer.claim(10)
    assert [d.message.body["n"] for d in deliveries] == [1, 3]
    assert deliveries[0].message.delivery_options.deduplication_key == key


async def test_the_key_outlives_the_message_until_its_window_ends(connect, consume, make, until) -> None:
    bus = await connect(deduplication_seconds=1, status_seconds=1)
    consumer = await consume(on=bus)
    first = make(1, delivery_options=keyed("k"))
    await bus.send(first)
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    assert await bus.send(make(2, delivery_options=keyed("k"))) == first.message_id
    assert await bus.send(first) == first.message_id, "sent again by a caller who lost the answer"
    assert (await bus.queue("worker")).backlog == 0

    async def accepted() -> bool:
        message = make(3, delivery_options=keyed("k"))
        return await bus.send(message) == message.message_id

    await until(accepted)
    assert (await bus.queue("worker")).backlog == 1


async def test_a_thousand_at_once_are_as_many_as_there_are_keys(connect, make) -> None:
    buses = [await connect() for _ in range(3)]
    messages = [make(n, delivery_options=keyed(f"k{n % 70}")) for n in range(1000)]
    ids = await asyncio.gather(*(buses[n % 3].send(message) for n, message in enumerate(messages)))
    assert (await buses[0].queue("worker")).backlog == len(set(ids)) == 70
    for n in range(70):
        assert len(set(ids[n::70])) == 1, "every sender learns the id of the first"
    assert set(ids) <= {message.message_id for message in messages}


async def test_retries_and_delays_are_not_taken_for_repetitions(connect, consume, make, claim_all) -> None:
    bus = await connect(retry_delay_seconds=0)
    consumer = await consume(on=bus)
    await bus.send(make(1, delivery_options=keyed("k", not_before="2000-01-01T00:00:00Z")))
    for attempt in (1, 2):
        (delivery,) = await consumer.claim(1)
        assert delivery.attempt == attempt
        await consumer.fail(delivery, "not yet")
    (delivery,) = await consumer.claim(1)
    await consumer.release([delivery])
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    assert (await bus.status("worker", delivery.message.message_id)).attempts == 3


async def test_a_delayed_message_has_its_key_from_acceptance(bus, make) -> None:
    first = await bus.send(make(1, delivery_options=keyed("k", not_before="2100-01-01T00:00:00Z")))
    assert await bus.send(make(2, delivery_options=keyed("k"))) == first
    assert (await bus.queue("worker")).delayed == 1


async def test_what_a_full_queue_refused_leaves_no_key_and_a_repetition_needs_no_room(connect, consume, make) -> None:
    bus = await connect(queue={"max_length": 1})
    first = await bus.send(make(1, delivery_options=keyed("a")))
    assert await bus.send(make(2, delivery_options=keyed("a")), wait=0) == first
    with pytest.raises(QueueFull):
        await bus.send(make(3, delivery_options=keyed("b")), wait=0)
    consumer = await consume(on=bus)
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    last = make(4, delivery_options=keyed("b"))
    assert await bus.send(last) == last.message_id


async def test_a_request_with_a_key_is_refused(bus, make) -> None:
    with pytest.raises(ValueError, match="a request cannot have a deduplication_key"):
        await bus.request(make(delivery_options=keyed("k")), 1)
    with pytest.raises(RequestTimeout):
        await bus.request(make(), 0.05)


async def test_keys_are_few_hashes_that_expire(connect, make, scope, raw) -> None:
    bus = await connect(deduplication_seconds=2)
    await asyncio.gather(*(bus.send(make(n, delivery_options=keyed(f"k{n}"))) for n in range(300)))
    prefix = scope.key_prefix("worker")
    keys = {key.decode().removeprefix(prefix) async for key in raw.scan_iter(f"{prefix}d*")}
    assert keys == {"dd:1", "dg"}
    assert await raw.hlen(f"{prefix}dd:1") == 300
    assert 0 < await raw.pttl(f"{prefix}dd:1") <= 2500
    assert 0 < await raw.pttl(f"{prefix}dg") <= 4000
