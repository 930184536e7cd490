"""Firing the slots of schedules: each once, whoever asks."""

from __future__ import annotations

import asyncio
import collections

from agenthive.bus import Firing


async def test_each_slot_is_fired_once_however_many_ask(bus, connect, consume, make, claim_all) -> None:
    consumer = await consume()
    now = await bus.clock("worker")
    buses = [bus, *[await connect() for _ in range(3)]]
    slots = [now - 20_000 + 100 * n for n in range(100)]

    async def replica(one, delay: float) -> list[Firing]:
        outcomes = []
        for slot in slots:
            outcome, _ = await one.fire("s", slot, make(slot, message_id=f"every:s:{slot}"))
            outcomes.append(outcome)
            await asyncio.sleep(delay)
        return outcomes

    outcomes = await asyncio.gather(*(replica(one, 0.001 * n) for n, one in enumerate(buses)))
    assert collections.Counter(outcome for one in outcomes for outcome in one)[Firing.FIRED] == len(slots)
    deliveries = await claim_all(consumer, len(slots))
    assert sorted(delivery.message.body["n"] for delivery in deliveries) == slots
    await consumer.release(deliveries)
    assert (await bus.queue("worker")).backlog == len(slots)


async def test_slots_only_go_forward_and_none_comes_early(bus, make) -> None:
    now = await bus.clock("worker")
    assert (await bus.fire("s", now + 60_000, make()))[0] is Firing.EARLY
    assert (await bus.fire("s", now - 1000, make()))[0] is Firing.FIRED
    assert (await bus.fire("s", now - 1000, make()))[0] is Firing.DONE
    assert (await bus.fire("s", now - 2000, make()))[0] is Firing.DONE
    assert (await bus.fire("t", now - 2000, make()))[0] is Firing.FIRED
    assert (await bus.queue("worker")).backlog == 2


async def test_a_new_schedule_begins_with_the_next_slot(bus, make) -> None:
    now = await bus.clock("worker")
    assert (await bus.fire("s", now - 5000, make(), first=True))[0] is Firing.NOTED
    assert (await bus.fire("s", now - 5000, make()))[0] is Firing.DONE
    assert (await bus.fire("s", now - 4000, make(), first=True))[0] is Firing.FIRED
    assert (await bus.queue("worker")).backlog == 1


async def test_a_late_slot_is_lost_unless_it_is_wanted_whenever(bus, make) -> None:
    now = await bus.clock("worker")
    assert (await bus.fire("s", now - 5000, make(), most_late=4))[0] is Firing.LATE
    assert (await bus.fire("s", now - 5000, make()))[0] is Firing.DONE
    assert (await bus.fire("s", now - 4000, make(), most_late=30))[0] is Firing.FIRED
    assert (await bus.fire("t", now - 5000, make()))[0] is Firing.FIRED


async def test_a_slot_may_be_skipped_while_the_last_message_is_pending(bus, consume, make) -> None:
    now = await bus.clock("worker")
    assert (await bus.fire("s", now - 5000, make(1), overlap=False))[0] is Firing.FIRED
    assert (await bus.fire("s", now - 4000, make(2), overlap=False))[0] is Firing.OVERLAP
    consumer = await consume()
    (delivery,) = await consumer.claim(5)
    assert (await bus.fire("s", now - 3000, make(3), overlap=False))[0] is Firing.OVERLAP
    await consumer.ack(delivery)
    assert (await bus.fire("s", now - 2000, make(4), overlap=False))[0] is Firing.FIRED
    assert (await bus.fire("s", now - 1000, make(5)))[0] is Firing.FIRED


async def test_a_full_queue_takes_a_firing_and_its_options_count(connect, consume, make, raw, scope, claim_all) -> None:
    bus = await connect(queue={"max_length": 1})
    await bus.send(make(priority=1))
    now = await bus.clock("worker")
    message = make(2, priority=4, ttl=30, delivery_options={"max_retries": 0})
    assert (await bus.fire("s", now - 1000, message))[0] is Firing.FIRED
    consumer = await consume(on=bus)
    # Which lane comes first is a matter of where its wheel happens to start.
    delivery = max(await claim_all(consumer, 2), key=lambda delivery: delivery.message.priority)
    assert delivery.message.body == {"n": 2}
    await consumer.fail(delivery, "no")
    assert (await bus.dead_letters("worker"))[0].message.body == {"n": 2}
    key = f"{scope.key_prefix('worker')}every:s"
    assert (await raw.get(key)).decode() == f"{now - 1000} {message.message_id}"
    assert await raw.pttl(key) > 300 * 86_400_000, "a schedule nobody fires any more leaves nothing for ever"
