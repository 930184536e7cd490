"""Dead letters: found, shown, put back, thrown away."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from agenthive.bus import LetterFilter
from agenthive.bus import letters as letters_module
from agenthive.protocol import MessageDeliveryStatus, MessagePriority

PENDING, DELIVERED, FAILED = (
    MessageDeliveryStatus.PENDING,
    MessageDeliveryStatus.DELIVERED,
    MessageDeliveryStatus.FAILED,
)


@pytest.fixture
def kill(consume, claim_all):
    """Claims so many messages and rejects each, all for one reason or each for its own."""

    async def kill(count: int, reason: str | None = None, agent: str = "worker") -> None:
        consumer = await consume(agent)
        deliveries = await claim_all(consumer, count)
        reasons = (reason or f"no {delivery.message.body.get('n')}" for delivery in deliveries)
        await asyncio.gather(*(consumer.reject(*pair) for pair in zip(deliveries, reasons, strict=True)))
        await consumer.aclose()

    return kill


async def _plant(raw, scope, *fields: dict[str, str | bytes]) -> None:
    """Dead letters as another version of the package, or an accident, may have left them."""
    for some in fields:
        await raw.xadd(f"{scope.key_prefix('worker')}dead", some)


def _numbers(letters) -> list[int]:
    return [letter.message.body["n"] for letter in letters]


async def test_filters(bus, make, kill, raw, scope) -> None:
    for n in range(4):
        await bus.send(make(n, message_type="even" if n % 2 == 0 else "odd", from_agent="ä" if n < 2 else "b-2"))
    await kill(4)
    await _plant(raw, scope, {"i": "", "m": "gar\nbage", "reason": "malformed", "error": "IT is bad", "attempts": "0"})
    letters = await bus.dead_letters("worker")
    assert [letter.message is None for letter in letters] == [False] * 4 + [True]
    assert letters.next is None
    ids = [letter.message_id for letter in letters]

    async def found(**filters) -> list[str]:
        page = await bus.dead_letters("worker", **filters)
        assert page.next is None
        return [letter.message_id for letter in page]

    assert await found(message_type="even") == [ids[0], ids[2]]
    assert await found(message_type="eve") == []
    assert await found(from_agent="ä") == ids[:2]
    assert await found(message_type="odd", from_agent="b-2") == [ids[3]]
    assert await found(reason="rejected") == ids[:4]
    assert await found(reason="malformed", error="it IS") == [""]
    assert await found(error="no 1") == [ids[1]]
    assert await found(message_id=ids[2]) == [ids[2]]
    assert await found(since=datetime.now(UTC) + timedelta(hours=1)) == []
    assert await found(newest_first=True) == ids[::-1]
    first = await bus.dead_letters("worker", newest_first=True, limit=2)
    rest = await bus.dead_letters("worker", newest_first=True, limit=5, after=first.next)
    assert [letter.message_id for letter in [*first, *rest]] == ids[::-1]
    with pytest.raises(ValueError, match="'x' is no id of a dead letter"):
        await bus.dead_letters("worker", after="x")


async def test_a_time_filter_includes_both_ends(bus, raw, scope) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(4):
        entry = f"{int(start.timestamp() * 1000) + n}-{n}"
        await raw.xadd(f"{scope.key_prefix('worker')}dead", {"i": f"m{n}", "m": "{}"}, id=entry)
    moments = [start + timedelta(milliseconds=n) for n in range(4)]
    for newest_first in (False, True):
        page = await bus.dead_letters("worker", since=moments[1], until=moments[2], newest_first=newest_first)
        assert sorted(letter.message_id for letter in page) == ["m1", "m2"]
    assert (await bus.redrive("worker", LetterFilter(until=moments[1]))).refused == 2
    assert (await bus.purge("worker", LetterFilter(since=moments[2]))).done == 2
    assert [letter.died_at for letter in await bus.dead_letters("worker")] == moments[:2]


async def test_a_search_among_many_goes_on_page_by_page(bus, raw, scope, monkeypatch) -> None:
    monkeypatch.setattr(letters_module, "LOOK_LETTERS", 1000)
    async with raw.pipeline(transaction=False) as pipeline:
        for n in range(2600):
            fields = {"i": f"m{n}", "m": "{}", "reason": "failed", "error": "needle" if n % 1300 == 1250 else ""}
            pipeline.xadd(f"{scope.key_prefix('worker')}dead", fields)
        await pipeline.execute()
    pages, after = [], None
    while not pages or after is not None:
        page = await bus.dead_letters("worker", error="needle", after=after)
        pages.append([letter.message_id for letter in page])
        after = page.next
    assert pages == [[], ["m1250"], ["m2550"]]
    assert (await bus.dead_letter("worker", "m7")).message_id == "m7"


async def test_large_letters_are_read_in_small_steps(bus, raw, scope) -> None:
    large = "x" * 1_000_000
    await _plant(raw, scope, *({"i": f"m{n}", "m": large, "reason": "failed", "error": ""} for n in range(11)))
    _, looked, found = await bus._letters._look("worker", LetterFilter(), None, 500, newest_first=False)
    assert (looked, len(found)) == (5, 5)
    assert len(await bus.dead_letters("worker")) == 11


async def test_one_letter_by_its_id_or_its_messages(bus, make, kill) -> None:
    message = make(1)
    for reason in ("first", "second"):
        await bus.send(message)
        await kill(1, reason)
    first, second = await bus.dead_letters("worker")
    assert await bus.dead_letter("worker", first.id) == first
    assert await bus.dead_letter("worker", message.message_id) == second
    for missing in ("1-1", "nothing"):
        with pytest.raises(LookupError, match=f"no dead letter, and none of a message, of id {missing}"):
            await bus.dead_letter("worker", missing)


async def test_a_redriven_message_starts_anew(bus, consume, make) -> None:
    consumer = await consume()
    options = {"max_retries": 1, "retry_delay": 0.001}
    message = make(1, priority=MessagePriority.HIGH, ttl=50, delivery_options=options, body={"n": 1, "ü": [1.5]})
    await bus.send(message)
    for _ in range(2):
        (delivery,) = await consumer.claim(1)
        await consumer.fail(delivery, "broke")
    (letter,) = await bus.dead_letters("worker")
    report = await bus.redrive("worker", letter.id)
    assert (report.total, report.looked, report.done, report.refused) == (1, 1, 1, 0)
    assert await bus.dead_letters("worker") == []
    status = await bus.status("worker", message.message_id)
    assert (status.status, status.attempts, status.error) == (PENDING, 0, None)
    assert (await bus.queue("worker")).backlog_by_priority[MessagePriority.HIGH] == 1

    # It fails for good as before, and that is one dead letter again.
    for attempt in (1, 2):
        (delivery,) = await consumer.claim(1)
        assert (delivery.message, delivery.attempt) == (message, attempt)
        await consumer.fail(delivery, "broke again")
    status = await bus.status("worker", message.message_id)
    assert (status.status, status.error) == (FAILED, "failed: broke again")
    (letter,) = await bus.dead_letters("worker")
    await bus.redrive("worker", message.message_id)
    (delivery,) = await consumer.claim(1)
    await consumer.ack(delivery)
    assert (await bus.status("worker", message.message_id)).status is DELIVERED
    assert await bus.dead_letters("worker") == []


async def test_an_expired_message_gets_its_time_to_live_again(bus, consume, make, until) -> None:
    message = make(1, ttl=0.5)
    await bus.send(message)
    await asyncio.sleep(0.6)
    consumer = await consume()
    waiting = asyncio.create_task(consumer.claim(1))
    (letter,) = await until(lambda: bus.dead_letters("worker"))
    assert letter.reason == "expired"
    await bus.redrive("worker", [letter.id], ttl=60)
    (delivery,) = await waiting
    await consumer.fail(delivery, "again", retry_after=1)  # there is time for it, which there was not before
    assert (await bus.status("worker", message.message_id)).detail == "retrying"


@pytest.mark.usefixtures("no_fallback")
async def test_a_redrive_wakes_an_idle_consumer(bus, consume, make, kill, until) -> None:
    await bus.send(make(1))
    await kill(1)
    consumer = await consume()
    waiting = asyncio.create_task(consumer.claim(1))
    await until(lambda: consumer._parking.parked)
    await bus.redrive("worker", LetterFilter())
    async with asyncio.timeout(10):
        (delivery,) = await waiting
    await consumer.ack(delivery)


async def test_a_full_queue_takes_redriven_messages(connect, make, kill) -> None:
    bus = await connect(queue={"max_length": 3})
    for n in range(3):
        await bus.send(make(n))
    await kill(3)
    for n in range(3):
        await bus.send(make(n))
    assert (await bus.redrive("worker", LetterFilter())).done == 3
    assert (await bus.queue("worker")).backlog == 6


async def test_what_cannot_be_redriven_says_why_and_the_rest_goes_on(bus, make, kill, raw, scope) -> None:
    again = make(1)
    await bus.send(again)
    await bus.send(make(2))
    await kill(2)
    await bus.send(again)
    await _plant(raw, scope, {"i": "bad", "m": "[]", "reason": "malformed", "error": "not an object"})
    pending, good, bad = await bus.dead_letters("worker")
    report = await bus.redrive("worker", [bad.id, "unknown", pending.id, good.id])
    assert (report.total, report.looked, report.done, report.refused) == (4, 4, 1, 3)
    assert {problem.id: problem.error for problem in report.problems} == {
        "unknown": "agent worker has no dead letter, and none of a message, of this id",
        bad.id: "it holds no message and cannot be redriven: not an object",
        pending.id: f"a message of id {again.message_id} is pending already",
    }
    assert [letter.id for letter in await bus.dead_letters("worker")] == [pending.id, bad.id]
    for wrong in ({"rate": 0}, {"ttl": -1}, {"to": "no such{name"}):
        with pytest.raises(ValueError, match=r"must be greater than 0|is no name of an agent"):
            await bus.redrive("worker", LetterFilter(), **wrong)


async def test_two_redrives_at_once_put_each_letter_back_once(bus, connect, consume, make, kill, claim_all) -> None:
    other = await connect()
    await asyncio.gather(*(bus.send(make(n)) for n in range(600)))
    await kill(600)
    reports = await asyncio.gather(*(one.redrive("worker", LetterFilter()) for one in (bus, other)))
    assert sum(report.done for report in reports) == 600
    assert (await bus.queue("worker")).backlog == 600
    consumer = await consume()
    assert sorted(_numbers(await claim_all(consumer, 600))) == list(range(600))


async def test_redriving_a_filter_ends_although_its_letters_die_again(bus, consume, make, kill, until) -> None:
    await asyncio.gather(*(bus.send(make(n)) for n in range(450)))
    await kill(450)
    consumer = await consume()

    async def kill_on() -> None:
        while True:
            for delivery in await consumer.claim(50):
                await consumer.reject(delivery, "still bad")

    killing = asyncio.create_task(kill_on())
    seen: list[int] = []
    report = await bus.redrive(
        "worker", LetterFilter(message_type="t"), rate=2000, progress=lambda so_far: seen.append(so_far.done)
    )
    assert report.done == 450
    assert seen[-1] == 450
    assert len(seen) >= 3
    assert all(after > before for before, after in pairwise(seen))

    async def all_dead() -> bool:
        return (await bus.queue("worker")).dead_letters == 450

    await until(all_dead)
    killing.cancel()


async def test_the_rate_holds(bus, make, kill) -> None:
    await asyncio.gather(*(bus.send(make(n)) for n in range(60)))
    await kill(60)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    report = await bus.redrive("worker", LetterFilter(), rate=100)
    assert report.done == 60
    assert loop.time() - begun >= 0.5, "60 letters at 100 a second, the first ten at once"


async def test_into_another_agents_queue(bus, consume, make, kill, claim_all, monkeypatch) -> None:
    await asyncio.gather(*(bus.send(make(n)) for n in range(3)))
    await kill(3)
    ids = {letter.message_id for letter in await bus.dead_letters("worker")}
    with monkeypatch.context() as cut:  # who redrives ends between the two calls
        execute = bus._connections.execute

        async def no_delete(commands, **how):
            if commands[0][1].endswith("_purge"):
                raise ConnectionError
            return await execute(commands, **how)

        cut.setattr(bus._connections, "execute", no_delete)
        with pytest.raises(ConnectionError):
            await bus.redrive("worker", LetterFilter(), to="other")
    assert (await bus.queue("worker")).dead_letters == 3
    consumer = await consume("other")
    deliveries = await claim_all(consumer, 3)
    assert {delivery.message.message_id for delivery in deliveries} == ids
    assert {delivery.message.to_agent for delivery in deliveries} == {"other"}
    await consumer.ack(deliveries[0])
    assert (await bus.redrive("worker", LetterFilter(), to="other")).done == 3
    assert (await bus.queue("worker")).dead_letters == 0
    queue = await bus.queue("other")
    assert (queue.backlog, queue.in_flight) == (0, 2)


async def test_purge(bus, make, kill) -> None:
    for n in range(6):
        await bus.send(make(n, message_type="a" if n < 2 else "b"))
    await kill(6)
    letters = await bus.dead_letters("worker")
    report = await bus.purge("worker", [letters[5].id, letters[4].message_id, "unknown"])
    assert (report.done, report.refused, report.problems[0].id) == (2, 1, "unknown")
    assert (await bus.purge("worker", LetterFilter(message_type="a"))).done == 2
    assert _numbers(await bus.dead_letters("worker")) == [2, 3]
    assert (await bus.status("worker", letters[0].message_id)).status is FAILED
    assert (await bus.purge("worker", LetterFilter())).done == 2
    assert (await bus.purge("worker", LetterFilter())).done == 0
    assert (await bus.purge("nobody", LetterFilter())).done == 0


async def test_a_topics_copy_is_not_taken_for_another_agents_copy(bus, consume, make, claim_all) -> None:
    """One id, two agents: that one of them has handled its copy says nothing about the other's."""
    alpha, beta = await consume("alpha", topics=["news"]), await consume("beta", topics=["news"])
    message_id = await bus.publish("news", make(to="news"))
    (handled,) = await claim_all(beta, 1)
    await beta.ack(handled)
    (refused,) = await claim_all(alpha, 1)
    await alpha.reject(refused, "not by me")
    report = await bus.redrive("alpha", LetterFilter(), to="beta")
    assert (report.done, report.refused) == (0, 1)
    assert report.problems[0].error == f"agent beta has, or has had, a message of id {message_id} already"
    assert (await bus.queue("alpha")).dead_letters == 1, "not thrown away"
    assert (await bus.redrive("alpha", LetterFilter(), to="gamma")).done == 1
    assert (await bus.queue("alpha")).dead_letters == 0
    assert (await bus.queue("gamma")).backlog == 1


async def test_thousands_are_redriven_and_purged_in_steps(bus, make, kill) -> None:
    await asyncio.gather(*(bus.send(make(n)) for n in range(1500)))
    await kill(1500)
    report = await bus.redrive("worker", LetterFilter())
    assert (report.total, report.looked, report.done) == (1500, 1500, 1500)
    await kill(1500)
    assert Counter(letter.reason for letter in await bus.dead_letters("worker", limit=2000)) == {"rejected": 1500}
    assert (await bus.purge("worker", LetterFilter(reason="rejected"))).done == 1500


async def test_what_the_bound_pushes_out_is_counted(bus, make, kill, raw, scope) -> None:
    fill = "for n = 1, 100000 do redis.call('XADD', KEYS[1], '*', 'i', 'x', 'reason', 'failed') end"
    await raw.eval(fill, 1, f"{scope.key_prefix('worker')}dead")
    assert (await bus.queue("worker")).dead_letters_dropped == 0
    await asyncio.gather(*(bus.send(make(n)) for n in range(300)))
    await kill(300)
    stats = await bus.queue("worker")
    assert stats.dead_letters_dropped > 0
    assert stats.dead_letters + stats.dead_letters_dropped == 100_300
    assert 100_000 <= stats.dead_letters < 100_300
    await raw.delete(f"{scope.key_prefix('worker')}dead")
