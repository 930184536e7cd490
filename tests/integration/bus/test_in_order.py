"""Messages sent in order, as ones that may have been sent before."""

from __future__ import annotations

import asyncio

import pytest

from agenthive.bus import Bus, BusUnavailable, QueueFull
from agenthive.settings import CircuitBreaker, RedisPool


async def test_what_was_sent_before_is_not_accepted_again(bus, consume, claim_all, make) -> None:
    finished, pending, new, twin = make(0), make(1), make(2), make(3, delivery_options={"deduplication_key": "k"})
    consumer = await consume()
    await bus.send(finished)
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    await bus.send(pending)
    first = make(4, delivery_options={"deduplication_key": "k"})
    sent = [finished, pending, new, new, first, twin]
    accepted = await bus.send_in_order(sent)
    assert accepted == [*(message.message_id for message in sent[:5]), first.message_id]
    deliveries = await claim_all(consumer, 3)
    assert [one.message.message_id for one in deliveries] == [pending.message_id, new.message_id, first.message_id]
    assert (await bus.queue("worker")).backlog == 0


async def test_order_among_many(bus, consume, claim_all, make) -> None:
    rows = [[make(n, message_id=f"{row} {n}") for n in range(700)] for row in range(3)]
    await asyncio.gather(*(bus.send_in_order(row) for row in rows))
    got = [one.message.message_id for one in await claim_all(await consume(), 2100)]
    for row in rows:
        mine = [message.message_id for message in row]
        assert [message_id for message_id in got if message_id in set(mine)] == mine


async def test_topics_keep_the_order(bus, consume, claim_all, make) -> None:
    consumer = await consume(topics=["news"])
    messages = [make(n, to="#news") for n in range(100)]
    assert await bus.send_in_order(messages, topic="news") == [message.message_id for message in messages]
    assert [one.message.body["n"] for one in await claim_all(consumer, 100)] == list(range(100))


async def test_behind_a_refused_one_no_other_is_sent(connect, make) -> None:
    bus = await connect(queue={"max_length": 10})
    results = await bus.send_in_order([make(n) for n in range(30)], wait=0.1)
    assert all(isinstance(result, str) for result in results[:10])
    assert {type(result) for result in results[10:]} == {QueueFull}
    assert (await bus.queue("worker")).backlog == 10


async def test_an_outage_leaves_no_gap(own_valkey, scope, make, until) -> None:
    pool = RedisPool(circuit_breaker=CircuitBreaker(failure_threshold=2, reset_seconds=0.1))
    bus = await Bus.connect(own_valkey.url, scope, pool=pool)
    messages = [make(n) for n in range(900)]

    async def backlog() -> int:
        try:
            return (await bus.queue("worker")).backlog
        except BusUnavailable:  # the circuit is open yet
            return 0

    try:
        await bus.send_in_order(messages[:1])
        own_valkey.kill()
        # Only some are under way when the outage is noticed; those behind them are not sent when Redis is back.
        results = await bus.send_in_order(messages)
        assert {type(result) for result in results} == {BusUnavailable}
        assert any("a message before it was not accepted" in str(result) for result in results)
        await asyncio.to_thread(own_valkey.start)
        assert await until(backlog) == 1
        assert await bus.send_in_order(messages) == [message.message_id for message in messages]
        assert (await bus.queue("worker")).backlog == 900
    finally:
        await bus.aclose()


async def test_what_cannot_be_sent_is_refused_before_anything_is(bus, make) -> None:
    small = bus.messaging.queue.model_copy(update={"max_bytes": 1024})
    bus.messaging = bus.messaging.model_copy(update={"queue": small})
    with pytest.raises(ValueError, match=r"queue\.maxBytes"):
        await bus.send_in_order([make(0), make(1, body={"n": "x" * 2000})])
    assert (await bus.queue("worker")).backlog == 0
    with pytest.raises(ValueError, match="is no name of a topic"):
        await bus.send_in_order([make(0)], topic="no such name!")
    assert bus.checked(make(0), "news").to_agent == "#news"
