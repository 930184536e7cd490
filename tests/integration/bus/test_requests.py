"""Asking and answering."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from agenthive.bus import BusUnavailable, RequestFailed, RequestTimeout
from agenthive.protocol import MessageDeliveryStatus


@contextlib.asynccontextmanager
async def answering(consumer, answer):
    """Handles every message with ``answer(delivery)`` while the block runs."""

    async def loop() -> None:
        while True:
            for delivery in await consumer.claim(100):
                await answer(delivery)

    task = asyncio.create_task(loop())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_request_returns_the_reply(bus, consume, make) -> None:
    consumer = await consume()

    async def double(delivery) -> None:
        await consumer.ack(delivery, delivery.message.reply({"double": delivery.message.body["n"] * 2}))

    request = make(21)
    async with answering(consumer, double):
        reply = await bus.request(request, 5)
    assert reply.body == {"result": {"double": 42}}
    assert (reply.message_type, reply.correlation_id) == ("reply", request.message_id)
    assert (reply.from_agent, reply.to_agent) == ("worker", "tester")


async def test_many_requests_share_one_reader(bus, consume, make) -> None:
    consumer = await consume()

    async def echo(delivery) -> None:
        consumer.ack(delivery, delivery.message.reply(delivery.message.body))

    async with answering(consumer, echo):
        replies = await asyncio.gather(*(bus.request(make(n), 20) for n in range(1500)))
    assert [reply.body["result"]["n"] for reply in replies] == list(range(1500))
    assert bus._replies._waiting == {}


async def test_a_reply_goes_to_the_process_that_asked(connect, consume, make) -> None:
    first, second = await connect(), await connect()
    consumer = await consume(on=first)

    async def echo(delivery) -> None:
        await consumer.ack(delivery, delivery.message.reply(delivery.message.body))

    async with answering(consumer, echo):
        one, two = await asyncio.gather(first.request(make(1), 5), second.request(make(2), 5))
    assert (one.body, two.body) == ({"result": {"n": 1}}, {"result": {"n": 2}})


async def test_no_reply_in_time_says_where_the_request_stands(bus, consume, make) -> None:
    with pytest.raises(RequestTimeout, match=r"worker did not reply to t within 1 s; it is pending") as caught:
        await bus.request(make(), 1)
    assert caught.value.status.status is MessageDeliveryStatus.PENDING
    assert isinstance(caught.value, TimeoutError)
    assert bus._replies._waiting == {}
    with pytest.raises(ValueError, match="greater than 0"):
        await bus.request(make(), 0)
    for timeout in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="greater than 0 seconds, and at most 31536000"):
            await bus.request(make(), timeout)


async def test_a_thousand_outstanding_requests_need_no_more_connections_than_one(
    bus, consume, make, claim_all, raw, until
) -> None:
    consumer = await consume()
    warm = asyncio.create_task(bus.request(make(0), 20))
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery, delivery.message.reply(0))
    await warm
    asking = [asyncio.create_task(bus.request(make(n), 20 if n < 900 else 2)) for n in range(1000)]
    deliveries = await claim_all(consumer, 1000)
    assert len(bus._replies._waiting) == 1000
    channels = await raw.pubsub_channels(f"*:reply:{bus._replies.process}")
    assert len(channels) == 1
    assert (await raw.pubsub_numsub(*channels))[0][1] == 1
    for delivery in reversed(deliveries):
        if delivery.message.body["n"] < 900:
            consumer.ack(delivery, delivery.message.reply(delivery.message.body["n"]))
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [reply.body["result"] for reply in results[:900]] == list(range(900))
    for late in results[900:]:
        assert isinstance(late, RequestTimeout)
        assert str(late) == "worker did not reply to t within 2 s; it is pending (in flight) after 1 attempt"
        assert late.status.status is MessageDeliveryStatus.PENDING
    assert bus._replies._waiting == {}
    await consumer.release([delivery for delivery in deliveries if delivery.message.body["n"] >= 900])


async def test_one_id_is_asked_once_at_a_time(bus, consume, make) -> None:
    consumer = await consume()
    first = asyncio.create_task(bus.request(make(1, message_id="one"), 10))
    (delivery,) = await consumer.claim(1)
    with pytest.raises(ValueError, match="a request of id one is under way"):
        await bus.request(make(2, message_id="one"), 10)
    await consumer.ack(delivery, delivery.message.reply("still heard"))
    assert (await first).body == {"result": "still heard"}


async def test_a_cancelled_request_waits_for_nothing(bus, consume, make, until) -> None:
    consumer = await consume()
    asking = asyncio.create_task(bus.request(make(1), 30))
    (delivery,) = await consumer.claim(1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert bus._replies._waiting == {}
    await consumer.ack(delivery, delivery.message.reply("to nobody"))
    assert (await bus.status("worker", delivery.message.message_id)).status is MessageDeliveryStatus.DELIVERED


async def test_a_request_expires_with_its_timeout(bus, consume, make) -> None:
    request = make()
    with pytest.raises(RequestTimeout):
        await bus.request(request, 1)
    await asyncio.sleep(1)  # it was accepted before the timeout, and lives for 1 s from then
    consumer = await consume()
    await bus.send(make(7))
    (delivery,) = await consumer.claim(5)
    assert delivery.message.body == {"n": 7}, "nobody waits for the request any more, so nobody handles it"
    assert (await bus.status("worker", request.message_id)).status is MessageDeliveryStatus.EXPIRED


async def test_whoever_asked_learns_of_the_final_failure(connect, consume, make) -> None:
    bus = await connect(max_retries=1, retry_delay_seconds=0.01)
    consumer = await consume(on=bus)
    attempts = []

    async def fail(delivery) -> None:
        attempts.append(delivery.attempt)
        await consumer.fail(delivery, "division by zero")

    async with answering(consumer, fail):
        with pytest.raises(RequestFailed, match="failed: division by zero") as caught:
            await bus.request(make(), 10)
    assert attempts == [1, 2]
    assert caught.value.error == "failed: division by zero"


async def test_whoever_asked_learns_of_a_rejection(bus, consume, make) -> None:
    consumer = await consume()

    async def reject(delivery) -> None:
        await consumer.reject(delivery, "unknown type t")

    async with answering(consumer, reject):
        with pytest.raises(RequestFailed, match="rejected: unknown type t"):
            await bus.request(make(), 10)


@pytest.mark.parametrize("outcome", ["reply", "fail", "reject"])
async def test_requests_that_are_acknowledged_when_claimed(bus, consume, make, outcome) -> None:
    consumer = await consume()

    async def answer(delivery) -> None:
        if outcome == "reply":
            await consumer.ack(delivery, delivery.message.reply({"ok": True}))
        elif outcome == "fail":
            await consumer.fail(delivery, "no luck")
        else:
            await consumer.reject(delivery, "no luck")

    request = make(delivery_options={"require_ack": False})
    async with answering(consumer, answer):
        if outcome == "reply":
            assert (await bus.request(request, 5)).body == {"result": {"ok": True}}
        else:
            with pytest.raises(RequestFailed, match="no luck"):
                await bus.request(request, 5)


async def test_a_reply_to_nobody_is_dropped_and_ends_by_itself(bus, consume, make, scope, raw) -> None:
    consumer = await consume()
    asked = make(1, reply_to="@0123456789abcdef", ttl=30)
    await bus.send(asked)
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery, delivery.message.reply({}))
    key = f"{scope.key_prefix('worker')}r:{asked.message_id}"
    assert 0 < await raw.pttl(key) <= 30_000
    await bus.send(make(2))
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery, delivery.message.reply({}))  # was no request


async def test_a_fetched_reply_can_be_fetched_again_for_a_while(bus, consume, make, scope, raw) -> None:
    # The answer to the fetch may be lost with its connection: the asker fetches again and must still find it.
    consumer = await consume()

    async def reply(delivery) -> None:
        await consumer.ack(delivery, delivery.message.reply({"ok": True}))

    request = make()
    async with answering(consumer, reply):
        await bus.request(request, 60)
    assert 0 < await raw.pttl(f"{scope.key_prefix('worker')}r:{request.message_id}") <= 10_000


async def test_a_reply_whose_word_was_lost_is_found(bus, consume, make, raw) -> None:
    consumer = await consume()

    async def cut_and_reply(delivery) -> None:
        (await bus._replies._listening_lane.connection()).abort()
        await consumer.ack(delivery, delivery.message.reply({"late": True}))

    async with answering(consumer, cut_and_reply):
        reply = await bus.request(make(), 10)
    assert reply.body == {"result": {"late": True}}


async def test_closing_the_bus_ends_what_waits(connect, make, until) -> None:
    bus = await connect()
    waiting = asyncio.create_task(bus.request(make(), 30))
    await until(lambda: bus._replies._waiting)
    await bus.aclose()
    with pytest.raises(BusUnavailable, match="closed"):
        await waiting
    with pytest.raises(BusUnavailable, match="closed"):
        await bus.send(make())


async def test_closing_the_bus_ends_a_send_that_is_under_way(own_valkey, connect, make, until) -> None:
    bus = await connect(own_valkey.url)
    await bus.send(make())
    own_valkey.process.send_signal(signal.SIGSTOP)
    sending = [asyncio.create_task(bus.send(make(n))) for n in range(3)]
    await until(lambda: bus._sender._in_flight)
    sending.append(asyncio.create_task(bus.send(make(4))))
    await asyncio.sleep(0)
    await bus.aclose()
    own_valkey.process.send_signal(signal.SIGCONT)
    for result in await asyncio.gather(*sending, return_exceptions=True):
        assert isinstance(result, BusUnavailable)


def unheard(bus, channel: str):
    """Asks whether the server, too, has seen the end of the connection that listened for replies."""

    async def ask() -> bool:
        ((_, listeners),) = await bus._connections.execute([("PUBSUB", "NUMSUB", channel)])
        return int(listeners) == 0

    return ask


async def test_a_reply_to_a_process_that_is_gone_is_dropped_and_counted(connect, consume, make, bus, until) -> None:
    asking = await connect()
    request = asyncio.create_task(asking.request(make(1), 60))
    consumer = await consume()
    (delivery,) = await consumer.claim(1)
    await asking.aclose()
    with pytest.raises(BusUnavailable):
        await request
    await until(unheard(bus, asking._replies._channel))
    await consumer.ack(delivery, delivery.message.reply({}))
    assert (await bus.queue("worker")).replies_dropped == 1
    gone = make(2, reply_to="@gone")
    await bus.send(gone)
    (delivery,) = await consumer.claim(1)
    await consumer.reject(delivery, "nobody hears this either")
    assert (await bus.queue("worker")).replies_dropped == consumer.replies_dropped == 2


async def test_a_reply_that_is_fetched_after_all_does_not_count_as_dropped(bus, consume, make, until) -> None:
    consumer = await consume()
    request = make(1)
    asking = asyncio.create_task(bus.request(request, 60))
    (delivery,) = await consumer.claim(1)
    await until(lambda: bus._replies._listening_lane._connection is not None)
    bus._replies._tasks[0].cancel()  # the reader is cut off
    await asyncio.gather(bus._replies._tasks[0], return_exceptions=True)
    await bus._replies._listening_lane.aclose()
    await until(unheard(bus, bus._replies._channel))
    await consumer.ack(delivery, delivery.message.reply({"n": 1}))
    assert (await bus.queue("worker")).replies_dropped == 1
    bus._replies._tasks[0] = asyncio.create_task(bus._replies._listen())  # and connects again
    assert (await asking).body == {"result": {"n": 1}}
    assert (await bus.queue("worker")).replies_dropped == 0
