"""Topics: every subscribed agent gets its copy, whoever is away, dies, or says a thing twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
import redis.asyncio

from agenthive.bus import Bus, BusUnavailable
from agenthive.bus.keys import AgentKeys, TopicKeys, topics_key
from agenthive.bus.library import library
from agenthive.protocol import MessageDeliveryStatus, MessagePriority
from agenthive.settings import CircuitBreaker, RedisPool


@contextlib.asynccontextmanager
async def handling(*consumers):
    """Handlers of several consumers; yields what each agent handled, by number."""
    seen = {consumer.agent: Counter() for consumer in consumers}

    async def handle(consumer) -> None:
        while True:
            for delivery in await consumer.claim(50):
                seen[consumer.agent][delivery.message.body["n"]] += 1
                await consumer.ack(delivery)

    tasks = [asyncio.create_task(handle(consumer)) for consumer in consumers]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def claimed(consumer, count: int) -> list[int]:
    """Numbers of the next ``count`` messages, acknowledged."""
    numbers = []
    async with asyncio.timeout(10):
        while len(numbers) < count:
            for delivery in await consumer.claim(count - len(numbers)):
                numbers.append(delivery.message.body["n"])
                await consumer.ack(delivery)
    return numbers


async def nothing_is_left(bus, agent: str) -> bool:
    stats = await bus.queue(agent)
    return stats.backlog + stats.in_flight + stats.delayed == 0


async def test_each_of_two_agents_handles_each_message_once(bus, connect, consume, make, until) -> None:
    other = await connect()
    consumers = [
        await consume(agent, pod=f"{agent}-{replica}", on=on, topics=["news"])
        for agent in ("mailer", "indexer")
        for replica, on in enumerate((bus, other))
    ]
    async with handling(*consumers) as seen:
        await asyncio.gather(*(bus.publish("news", make(n, to="whoever")) for n in range(1000)))
        await until(lambda: all(len(numbers) == 1000 for numbers in seen.values()))
    assert seen == {agent: Counter(range(1000)) for agent in ("mailer", "indexer")}
    copied = [consumer.pump.copied["news"] for consumer in consumers]
    assert sorted(copied) == [0, 0, 1000, 1000], "one replica of each agent copies"
    readers = Counter(task.get_name() for task in asyncio.all_tasks())
    assert readers["agenthive-topics-mailer"] == readers["agenthive-topics-indexer"] == 1, "the others stand by"
    assert [topic.behind for topic in await bus.topics()] == [{"indexer": 0, "mailer": 0}]


async def test_a_copy_is_the_message_that_was_published(bus, consume, make, raw, scope) -> None:
    consumer = await consume(topics=["news"])
    message = make(1, to="whoever", priority=MessagePriority.HIGH, delivery_options={"max_retries": 1})
    assert await bus.publish("news", message) == message.message_id
    (delivery,) = await consumer.claim(1)
    assert delivery.message.to_agent == "#news"
    assert (delivery.message.message_id, delivery.message.body) == (message.message_id, {"n": 1})
    assert (delivery.lane, delivery.attempt) == (MessagePriority.HIGH, 1)
    await consumer.ack(delivery, delivery.message.reply({"nobody": "waits"}))
    status = await bus.status("worker", message.message_id)
    assert status.status is MessageDeliveryStatus.DELIVERED
    assert [key async for key in raw.scan_iter(f"{scope.key_prefix('worker')}r:*")] == []


async def test_publishing_to_a_topic_nobody_listens_to_is_kept_for_who_begins_there(bus, consume, make, until) -> None:
    for n in range(3):
        await bus.publish("news", make(n))
    (topic,) = await bus.topics()
    assert (topic.topic, topic.length, topic.behind) == ("news", 3, {})
    early = await consume("historian", topics=["news"], topic_start="beginning")
    late = await consume("reporter", topics=["news"], topic_start="now")
    assert await claimed(early, 3) == [0, 1, 2]
    await bus.publish("news", make(3))
    assert await claimed(early, 1) == [3]
    assert await claimed(late, 1) == [3]
    assert await nothing_is_left(bus, "reporter")


async def test_an_agent_that_was_away_gets_what_it_missed(bus, consume, make) -> None:
    first = await consume(topics=["news"])
    await first.aclose()  # before anything was ever published: its place counts from its start
    await asyncio.gather(*(bus.publish("news", make(n)) for n in range(700)))
    assert [topic.behind for topic in await bus.topics()] == [{"worker": 700}]
    second = await consume(topics=["news"])
    assert sorted(await claimed(second, 700)) == list(range(700))
    assert second.pump.missed == Counter()


async def test_what_was_published_twice_is_handled_once(bus, consume, make) -> None:
    consumer = await consume(topics=["news"])
    message = make(1)
    await bus.publish("news", message)
    await bus.publish("news", message)  # known, as it is not finished
    assert await claimed(consumer, 1) == [1]
    await bus.publish("news", message)  # known by its final status
    await bus.publish("news", make(2))
    assert await claimed(consumer, 1) == [2]
    assert await nothing_is_left(bus, "worker")
    assert [topic.length for topic in await bus.topics()] == [4]


async def test_a_cut_connection_neither_loses_nor_doubles(own_valkey, scope, consume, make, until) -> None:
    impatient = RedisPool(circuit_breaker=CircuitBreaker(reset_seconds=0.05))
    bus, publisher = [await Bus.connect(own_valkey.url, scope, pool=impatient) for _ in range(2)]
    consumer = await consume(on=bus, topics=["news"])
    async with redis.asyncio.Redis.from_url(own_valkey.url, protocol=2) as raw, handling(consumer) as seen:
        for start in range(0, 2000, 200):
            batch = [make(n, message_id=f"m{n}") for n in range(start, start + 200)]
            publishing = asyncio.gather(*(published(publisher, message) for message in batch))
            await asyncio.sleep(random.uniform(0, 0.03))
            assert await raw.client_kill_filter(_type="normal", skipme=True) > 0
            await publishing
        await until(lambda: len(seen["worker"]) == 2000, 30)
        await until(lambda: nothing_is_left(bus, "worker"))
    assert seen["worker"] == Counter(range(2000))
    await consumer.aclose()
    for one in (bus, publisher):
        await one.aclose()


async def published(bus, message) -> None:
    while True:
        try:
            await bus.publish("news", message)
        except BusUnavailable:
            await asyncio.sleep(0.01)
        else:
            return


async def test_copying_one_entry_twice_makes_one_copy(bus, consume, make, raw, scope) -> None:
    """As two pumps at a time would, or one whose answer was lost."""
    gate, log = AgentKeys.of(scope, "worker").gate, TopicKeys.of(scope, "news").log
    consumer = await consume(topics=["news"])
    await consumer.pump.stop()
    for n in range(3):
        await bus.publish("news", make(n))
    entries = await raw.xrange(log)
    arguments = [part for entry, fields in entries for part in (entry, fields[b"l"], fields[b"m"])]
    first, both = (library().call("copy", gate, "news", 100, *arguments[:count]) for count in (6, 9))
    last = entries[-1][0]
    assert await raw.execute_command(*first) == [entries[1][0], 2, 2, 0, b"0"]
    assert await raw.execute_command(*both) == [last, 3, 1, 0, b"0"]
    assert await raw.execute_command(*first) == [last, 2, 0, 0, b"0"]
    assert await claimed(consumer, 3) == [0, 1, 2]


async def test_another_replica_takes_over_from_the_one_that_copies(bus, consume, make, until) -> None:
    first = await consume(topics=["news"])
    second = await consume(topics=["news"])
    await bus.publish("news", make(1))
    assert await claimed(first, 1) == [1]
    await first.aclose()
    await bus.publish("news", make(2))
    assert await claimed(second, 1) == [2]
    assert (first.pump.copied["news"], second.pump.copied["news"]) == (1, 1)


async def test_replicas_with_different_topics_copy_each_what_they_know(bus, consume, make) -> None:
    """A rolling update that adds a topic: the old replica copies the old one, the new one must not wait for it."""
    old = await consume(topics=["news"])
    new = await consume(topics=["news", "alerts"])
    await bus.publish("alerts", make(1))
    await bus.publish("news", make(2))
    assert sorted(await claimed(old, 2)) == [1, 2]
    assert new.pump.copied == Counter(alerts=1)


async def test_retention_drops_the_oldest_and_the_pump_counts_what_it_missed(connect, consume, make, caplog) -> None:
    bus = await connect(topics={"max_length": 100})
    away = await consume(on=bus, topics=["news"])
    await bus.publish("news", make(-1))
    assert await claimed(away, 1) == [-1]
    await away.aclose()
    await asyncio.gather(*(bus.publish("news", make(n)) for n in range(1000)))
    (topic,) = await bus.topics()
    assert 100 <= topic.length < 1000, "Redis trims whole nodes of a stream"
    assert topic.behind == {"worker": topic.length}
    back = await consume(on=bus, topics=["news"])
    assert sorted(await claimed(back, topic.length)) == list(range(1000 - topic.length, 1000))
    assert back.pump.missed == Counter(news=1000 - topic.length)
    assert f"topic news dropped {1000 - topic.length} messages" in caplog.text


async def test_a_topic_nobody_publishes_to_any_more_is_forgotten(connect, make, raw, scope, until) -> None:
    bus = await connect(topics={"retention_seconds": 1})
    keys = TopicKeys.of(scope, "news")
    await bus.publish("news", make(1))
    assert 0 < await raw.pttl(keys.log) <= 1000

    async def gone() -> bool:
        return not await raw.exists(keys.log)

    await until(gone)
    await raw.zadd(topics_key(scope), {"news": 1})  # its time is over

    await bus.publish("other", make(2))  # whoever publishes to a new one sweeps
    assert [topic.topic for topic in await bus.topics()] == ["other"]


async def test_time_trims_a_busy_topic(connect, make, raw, scope, until) -> None:
    bus = await connect(topics={"retention_seconds": 1})
    log = TopicKeys.of(scope, "news").log
    await asyncio.gather(*(bus.publish("news", make(n)) for n in range(300)))
    (oldest, _), *_ = await raw.xrange(log, count=1)

    async def trimmed() -> bool:
        await bus.publish("news", make(1000))
        return (await raw.xrange(log, count=1))[0][0] > oldest

    await until(trimmed)


async def test_a_full_queue_makes_the_pump_wait(connect, consume, make, until, caplog) -> None:
    bus = await connect(queue={"max_length": 5})
    consumer = await consume(on=bus, topics=["news"])
    await asyncio.gather(*(bus.publish("news", make(n)) for n in range(50)))

    async def full() -> bool:
        return (await bus.queue("worker")).backlog == 5

    await until(full)
    await until(lambda: "the queue of worker is full" in caplog.text)
    assert [topic.behind for topic in await bus.topics()] == [{"worker": 45}]
    assert sorted(await claimed(consumer, 50)) == list(range(50))
    assert caplog.text.count("the queue of worker is full") == 1
    assert consumer.pump.missed == Counter()


async def test_a_queue_full_of_bytes_makes_the_pump_wait_too(connect, consume, make, until) -> None:
    bus = await connect(queue={"max_bytes": 65536})
    consumer = await consume(on=bus, topics=["news"])
    for n in range(10):
        await bus.publish("news", make(n, body={"n": n, "text": "small" if n % 2 else "large" * 10_000}))

    async def waits() -> bool:
        return [topic.behind for topic in await bus.topics()] == [{"worker": 8}]

    await until(waits)
    assert await claimed(consumer, 10) == list(range(10)), "small ones do not overtake the large one that waits"


async def test_a_deduplication_key_holds_for_each_agent(bus, consume, make, until) -> None:
    first, second = await consume("first", topics=["news"]), await consume("second", topics=["news"])
    for n in range(3):
        await bus.publish("news", make(n, delivery_options={"deduplication_key": "k"}))
    await bus.publish("news", make(3))
    assert (await claimed(first, 2), await claimed(second, 2)) == ([0, 3], [0, 3])
    await until(lambda: nothing_is_left(bus, "first"))


async def test_time_to_live_counts_from_publication(bus, consume, make, until) -> None:
    first = await consume(topics=["news"])
    await first.aclose()
    message = make(1, ttl=0.05)
    await bus.publish("news", message)
    await bus.publish("news", make(2))
    await asyncio.sleep(0.06)
    second = await consume(topics=["news"])
    assert await claimed(second, 1) == [2]
    assert (await bus.status("worker", message.message_id)).status is MessageDeliveryStatus.EXPIRED


async def test_a_published_message_may_be_delayed(bus, consume, make) -> None:
    consumer = await consume(topics=["news"])
    due = datetime.now(UTC) + timedelta(seconds=0.3)
    await bus.publish("news", make(1, delivery_options={"not_before": due}))
    await bus.publish("news", make(2))
    assert await claimed(consumer, 2) == [2, 1]
    assert datetime.now(UTC) >= due


async def test_without_a_ttl_of_its_own_a_message_lives_as_long_as_the_topic_keeps_it(connect, consume, make) -> None:
    bus = await connect(ttl_seconds=60, topics={"retention_seconds": 7200})
    consumer = await consume(on=bus, topics=["news"])
    await bus.publish("news", make(1))
    (delivery,) = await consumer.claim(1)
    assert delivery.message.ttl == 7200


async def test_a_topic_given_up_is_kept_until_nobody_looked_at_it_for_its_retention(
    bus, connect, consume, make, raw, scope, until
) -> None:
    cursors = AgentKeys.of(scope, "worker").cursors
    await (await consume(topics=["news", "alerts"])).aclose()
    assert await raw.hkeys(cursors) == [b"news", b"alerts"]
    await (await consume(topics=["alerts"])).aclose()  # perhaps a rollback: nothing is forgotten yet
    await bus.publish("news", make(1))
    assert await claimed(await consume(topics=["news"]), 1) == [1]
    short = await connect(topics={"retention_seconds": 1})

    async def forgotten() -> bool:
        await (await consume(on=short, pod="short")).aclose()
        return await raw.hkeys(cursors) == [b"news"]

    await until(forgotten)


async def test_what_nobody_of_ours_wrote_ends_in_the_dead_letters(bus, consume, make, raw, scope, until) -> None:
    consumer = await consume(topics=["news"])
    await raw.xadd(TopicKeys.of(scope, "news").log, {"what": "ever"})
    await bus.publish("news", make(1))
    assert await claimed(consumer, 1) == [1]

    async def dead() -> list:
        return await bus.dead_letters("worker")

    (letter,) = await until(dead)
    assert (letter.reason, letter.message) == ("malformed", None)


async def test_redis_that_restarts_keeps_topics_and_places(own_valkey, connect, consume, make) -> None:
    bus = await connect(own_valkey.url)
    consumer = await consume(on=bus, topics=["news"])
    await bus.publish("news", make(1))
    assert await claimed(consumer, 1) == [1]
    await asyncio.sleep(1.1)  # appendfsync everysec
    own_valkey.kill()
    await asyncio.to_thread(own_valkey.start)
    await published(bus, make(2))
    assert await claimed(consumer, 1) == [2]


async def test_a_place_that_is_gone_is_taken_anew(bus, consume, make, raw, scope, until, caplog) -> None:
    consumer = await consume(topics=["news"])
    await raw.delete(AgentKeys.of(scope, "worker").cursors)
    await until(lambda: "has lost its place" in caplog.text)

    async def subscribed() -> bool:
        return bool([topic for topic in await bus.topics() if topic.behind])

    await until(subscribed)
    await bus.publish("news", make(2))
    assert await claimed(consumer, 1) == [2]


async def test_an_agent_without_topics_has_no_pump(bus, consume, caplog) -> None:
    await consume()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not [name for name in names if name.startswith(("agenthive-pump", "agenthive-topics"))]


@pytest.mark.parametrize("topic", ["", "a b", "#news", "a}b", "x" * 254])
async def test_names_a_topic_cannot_have(bus, make, topic: str) -> None:
    with pytest.raises(ValueError, match="no name of a topic"):
        await bus.publish(topic, make(1))


async def test_what_cannot_be_published_is_refused(bus, make) -> None:
    with pytest.raises(ValueError, match="has no reply"):
        await bus.publish("news", make(1, reply_to="@someone"))
    with pytest.raises(ValueError, match="publish to it"):
        await bus.send(make(1, to="#news"))
