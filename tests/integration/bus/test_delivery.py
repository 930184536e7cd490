"""From send to acknowledgement, on a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from agenthive.bus import ConsumerStopped
from agenthive.protocol import MessageDeliveryStatus, MessagePriority


async def test_a_message_goes_from_pending_to_delivered(bus, consume, make) -> None:
    message = make(7, priority=MessagePriority.HIGH)
    assert await bus.send(message) == message.message_id
    status = await bus.status("worker", message.message_id)
    assert status.status is MessageDeliveryStatus.PENDING
    assert (status.attempts, status.claimed_at) == (0, None)

    consumer = await consume()
    (delivery,) = await consumer.claim(10)
    assert delivery.message == message
    assert delivery.attempt == 1
    status = await bus.status("worker", message.message_id)
    assert status.status is MessageDeliveryStatus.PENDING, "claimed is not delivered"
    assert status.attempts == 1

    await consumer.ack(delivery)
    status = await bus.status("worker", message.message_id)
    assert status.status is MessageDeliveryStatus.DELIVERED
    assert status.accepted_at <= status.claimed_at <= status.finished_at
    with pytest.raises(LookupError, match="has no message nothing"):
        await bus.status("worker", "nothing")


async def test_nothing_stays_in_redis_but_the_status(bus, consume, make, scope, raw) -> None:
    consumer = await consume()
    for n in range(20):
        await bus.send(make(n))
    for delivery in await consumer.claim(20):
        await consumer.ack(delivery)
    prefix = scope.key_prefix("worker")
    keys = {key.decode().removeprefix(prefix): key async for key in raw.scan_iter(f"{prefix}*")}
    assert set(keys) <= {"q:1", "q:2", "q:3", "q:4", "consumers", "st:1", "sg", "wake", "alarm"}
    assert await raw.xlen(f"{prefix}q:2") == 0
    assert await raw.pttl(keys["st:1"]) > 0


async def test_figures_of_queues(bus, consume, make) -> None:
    assert (await bus.queue("worker")).backlog == 0
    before = datetime.now(UTC) - timedelta(seconds=1)
    for n in range(3):
        await bus.send(make(n))
    await bus.send(make(3, priority=MessagePriority.CRITICAL))
    await bus.send(make(4, delivery_options={"not_before": datetime.now(UTC) + timedelta(hours=1)}))
    await bus.send(make(5, to="other"))
    consumer = await consume()
    (held,) = await consumer.claim(1)
    stats = await bus.queues(["worker", "other", "nobody"])
    worker = stats["worker"]
    assert (worker.backlog, worker.in_flight, worker.delayed, worker.dead_letters) == (3, 1, 1, 0)
    assert sum(worker.backlog_by_priority.values()) == 3
    assert before < worker.oldest < datetime.now(UTC) + timedelta(seconds=1)
    assert stats["other"].backlog == 1
    assert (stats["nobody"].backlog, stats["nobody"].oldest) == (0, None)
    assert await bus.queues([]) == {}
    assert await bus.agents() == ["worker"]
    await consumer.release([held])
    assert (await bus.queue("worker")).backlog == 4
    assert (await bus.queue("worker")).in_flight == 0


async def test_messages_sent_before_the_first_consumer_are_not_missed(bus, consume, make, claim_all) -> None:
    for n in range(5):
        await bus.send(make(n))
    consumer = await consume()
    assert [d.message.body["n"] for d in await claim_all(consumer, 5)] == [0, 1, 2, 3, 4]


async def test_a_claim_never_gets_more_than_its_slots(bus, consume, make) -> None:
    for n in range(10):
        await bus.send(make(n))
    consumer = await consume()
    assert len(await consumer.claim(4)) == 4
    assert len(await consumer.claim(1)) == 1
    with pytest.raises(ValueError, match="at least one"):
        await consumer.claim(0)


async def test_lanes_share_by_weight_and_none_starves(bus, consume, make) -> None:
    for priority in MessagePriority:
        for n in range(60):
            await bus.send(make(n, priority=priority))
    consumer = await consume()
    got = Counter()
    for _ in range(60):  # one at a time: the hardest way to be fair
        (delivery,) = await consumer.claim(1)
        got[delivery.message.priority] += 1
        await consumer.ack(delivery)
    assert got == {4: 32, 3: 16, 2: 8, 1: 4}


async def test_lanes_with_nothing_to_do_give_their_share_away(bus, consume, make) -> None:
    for n in range(30):
        await bus.send(make(n, priority=MessagePriority.LOW))
    consumer = await consume()
    assert len(await consumer.claim(30)) == 30


async def test_many_slots_are_filled_in_two_halves(bus, consume, make) -> None:
    await asyncio.gather(*(bus.send(make(n)) for n in range(100)))
    consumer = await consume()
    assert [len(await consumer.claim(slots)) for slots in (80, 40, 7)] == [40, 40, 7]


async def test_order_within_a_lane(bus, consume, make, claim_all) -> None:
    for n in range(100):
        await bus.send(make(n))
    consumer = await consume()
    assert [d.message.body["n"] for d in await claim_all(consumer, 100)] == list(range(100))


async def test_two_consumers_share_the_load_without_overlap(bus, consume, make, until) -> None:
    seen = Counter()
    shares = Counter()

    async def work(consumer) -> None:
        while True:
            for delivery in await consumer.claim(5):
                seen[delivery.message.body["n"]] += 1
                shares[consumer.name] += 1
                consumer.ack(delivery)
                await asyncio.sleep(0)

    workers = [asyncio.create_task(work(await consume())) for _ in range(2)]
    await asyncio.gather(*(bus.send(make(n)) for n in range(1000)))
    await until(lambda: len(seen) == 1000, 20)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert set(seen.values()) == {1}
    assert min(shares.values()) > 100


@pytest.mark.usefixtures("no_fallback")
async def test_an_idle_consumer_is_woken_and_does_not_poll(bus, consume, make, raw, until) -> None:
    consumer = await consume()
    claim = asyncio.create_task(consumer.claim(1))
    await until(lambda: consumer._parking.parked)
    before = (await raw.info("commandstats"))["cmdstat_fcall"]["calls"]
    await asyncio.sleep(0.5)
    assert (await raw.info("commandstats"))["cmdstat_fcall"]["calls"] - before <= 1
    await bus.send(make())
    async with asyncio.timeout(10):
        (delivery,) = await claim
    await consumer.ack(delivery)


async def test_one_message_wakes_one_of_many_idle_consumers(bus, consume, make, until) -> None:
    consumers = [await consume() for _ in range(10)]
    claims = [asyncio.create_task(consumer.claim(1)) for consumer in consumers]
    await until(lambda: all(consumer._parking.parked for consumer in consumers))
    await bus.send(make())
    done, waiting = await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    assert sum(consumer._parking.parked for consumer in consumers) >= 8
    for claim in waiting:
        claim.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.usefixtures("no_fallback")
async def test_a_backlog_wakes_as_many_as_it_takes(bus, consume, make, until) -> None:
    consumers = [await consume() for _ in range(4)]
    claims = [asyncio.create_task(consumer.claim(1)) for consumer in consumers]
    await until(lambda: all(consumer._parking.parked for consumer in consumers))
    await asyncio.gather(*(bus.send(make(n)) for n in range(4)))
    async with asyncio.timeout(10):
        got = await asyncio.gather(*claims)
    assert sorted(d.message.body["n"] for (d,) in got) == [0, 1, 2, 3]


@pytest.mark.usefixtures("no_fallback")
async def test_released_messages_come_back_at_once_and_uncounted(bus, consume, make) -> None:
    first, second = await consume(), await consume()
    await bus.send(make(1))
    deliveries = await first.claim(5)
    waiting = asyncio.create_task(second.claim(5))
    await first.release(deliveries)
    async with asyncio.timeout(10):
        (again,) = await waiting
    assert again.message.body == {"n": 1}
    assert again.attempt == 1
    await second.ack(again)
    await first.release(deliveries)  # somebody else's now: passed over


async def test_at_most_once_when_no_acknowledgement_is_asked_for(bus, consume, make) -> None:
    message = make(delivery_options={"require_ack": False})
    await bus.send(message)
    consumer = await consume()
    (delivery,) = await consumer.claim(1)
    assert (await bus.status("worker", message.message_id)).status is MessageDeliveryStatus.DELIVERED
    assert (await bus.queue("worker")).in_flight == 0
    await consumer.ack(delivery)
    await consumer.fail(delivery, "too late")
    await consumer.reject(delivery, "too late")
    await consumer.release([delivery])
    assert (await bus.queue("worker")).backlog == 0


async def test_one_id_is_one_message(bus, consume, make) -> None:
    message = make(1)
    await asyncio.gather(*(bus.send(message) for _ in range(5)))
    await bus.send(message)
    assert (await bus.queue("worker")).backlog == 1
    consumer = await consume()
    (delivery,) = await consumer.claim(5)
    await bus.send(message)
    assert (await bus.queue("worker")).backlog == 0
    await consumer.ack(delivery)


@pytest.mark.usefixtures("no_fallback")
async def test_delayed_messages_come_in_time_and_wake_an_idle_consumer(bus, consume, make) -> None:
    consumer = await consume()
    claim = asyncio.create_task(consumer.claim(1))
    due = datetime.now(UTC) + timedelta(seconds=1.2)
    message = make(delivery_options={"not_before": due}, ttl=1.1)  # less: it counts from then
    await bus.send(message)
    assert (await bus.queue("worker")).delayed == 1
    async with asyncio.timeout(10):
        (delivery,) = await claim
    assert datetime.now(UTC) >= due - timedelta(milliseconds=5)
    assert delivery.message == message
    await consumer.ack(delivery)
    assert (await bus.queue("worker")).delayed == 0


async def test_a_cancelled_claim_loses_nothing(bus, consume, make) -> None:
    first = await consume()
    for _ in range(20):
        claim = asyncio.create_task(first.claim(3))
        sending = asyncio.create_task(bus.send(make()))
        await asyncio.sleep(0)
        claim.cancel()
        await asyncio.gather(claim, return_exceptions=True)
        await sending
    second = await consume()
    got = 0
    async with asyncio.timeout(10):
        while got < 20:
            for delivery in await second.claim(20):
                assert delivery.attempt == 1
                await second.ack(delivery)
                got += 1


async def test_a_claim_cancelled_in_the_moment_its_messages_come_loses_nothing(
    bus, consume, make, until, monkeypatch
) -> None:
    first = await consume()
    claim = asyncio.create_task(first.claim(1))
    await until(lambda: first._parking.parked)
    advance = first._wheel.advance

    def cancelled_before_it_resumes(count: int) -> None:
        advance(count)
        asyncio.get_running_loop().call_soon(claim.cancel)

    with monkeypatch.context() as moment:
        moment.setattr(first._wheel, "advance", cancelled_before_it_resumes)
        await bus.send(make())
        with pytest.raises(asyncio.CancelledError):
            await claim
    second = await consume()
    async with asyncio.timeout(10):
        (delivery,) = await second.claim(1)
    assert delivery.attempt == 1
    await second.ack(delivery)


async def test_a_wake_up_of_who_asks_no_more_goes_to_another_one(bus, consume, make, until, no_fallback) -> None:
    for consumer in (await consume(), await consume()):
        claim = asyncio.create_task(consumer.claim(1))
        await until(lambda consumer=consumer: consumer._parking.parked)
        claim.cancel()
        await asyncio.gather(claim, return_exceptions=True)
        assert consumer._parking.parked
    last = await consume()
    waiting = asyncio.create_task(last.claim(1))
    await until(lambda: last._parking.parked)
    await bus.send(make())
    async with asyncio.timeout(10):
        (delivery,) = await waiting
    await last.ack(delivery)


async def test_what_was_acknowledged_by_being_fetched_ahead_is_handled_all_the_same(bus, consume, make, until) -> None:
    consumer = await consume()
    for n in range(4):
        await bus.send(make(n, delivery_options={"require_ack": False}))
    # One is asked for; as it comes there is room for another one.
    (first,) = await consumer.claim(1, free=lambda: 1 if consumer._answered is None else 2)
    await until(lambda: consumer._ready)
    await consumer.stop()
    (second,) = await consumer.rest()
    assert [one.message.body["n"] for one in (first, second)] == [0, 1]
    assert await consumer.rest() == []
    assert (await bus.queue("worker")).backlog == 2


async def test_a_stopped_consumer_claims_no_more_but_completes(bus, consume, make, until) -> None:
    consumer = await consume()
    await bus.send(make())
    (delivery,) = await consumer.claim(1)
    waiting = asyncio.create_task(consumer.claim(1))
    await until(lambda: consumer._parking.parked)
    await consumer.stop()
    with pytest.raises(ConsumerStopped):
        await waiting
    with pytest.raises(ConsumerStopped):
        await consumer.claim(1)
    await consumer.ack(delivery)
    assert (await bus.queue("worker")).in_flight == 0


async def test_closing_gives_everything_back(bus, make, consume, scope, raw) -> None:
    leaving = bus.consumer("worker", pod="leaving")
    await leaving.start()
    await bus.send(make())
    await leaving.claim(1)
    await leaving.aclose()
    await leaving.aclose()
    assert await raw.zcard(f"{scope.key_prefix('worker')}consumers") == 0
    (delivery,) = await (await consume()).claim(1)
    assert delivery.attempt == 2, "closing with a message in hand is no hand-back"


async def test_only_one_claim_waits_at_a_time(bus, consume) -> None:
    consumer = await consume()
    waiting = asyncio.create_task(consumer.claim(1))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one claim at a time"):
        await consumer.claim(1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_what_cannot_be_consumed_is_refused(bus) -> None:
    with pytest.raises(ValueError, match="no name of a topic"):
        bus.consumer("worker", pod="p", topics=["#news"])
    with pytest.raises(ValueError, match="name of the pod"):
        bus.consumer("worker", pod="a b")
    with pytest.raises(ValueError, match="no name of an agent"):
        bus.consumer("a}b", pod="p")
