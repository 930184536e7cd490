"""Metrics over time: put together by PostgreSQL, at a cost that days gone by do not raise."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agenthive.store import InvalidValue, Store
from agenthive.store.metrics import Bucket
from agenthive.store.partitions import METRICS, _create_partition

#: Noon of yesterday: a day with a partition, and no midnight near.
NOON = datetime.combine(datetime.now(UTC).date() - timedelta(days=1), datetime.min.time(), UTC) + timedelta(hours=12)
MINUTE = timedelta(minutes=1)


async def fill(store: Store) -> None:
    figures = [("a", 0, 4.0), ("a", 10, 1.0), ("a", 50, 2.5), ("b", 30, 100.0), ("a", 61, -3.0), ("a", 300, 7.0)]
    await asyncio.gather(
        *(store.metrics.record(agent, "m", value, timestamp=NOON + timedelta(seconds=s)) for agent, s, value in figures)
    )
    await store.metrics.record("a", "other", 1e9, timestamp=NOON)


async def test_a_series_of_one_agent_and_of_all(store: Store) -> None:
    await fill(store)
    window = {"since": NOON, "until": NOON + 5 * MINUTE, "step": MINUTE}
    assert await store.metrics.series("m", agent="a", **window) == [
        Bucket(NOON, 3, 1.0, 2.5, 4.0, 7.5, 2.5, None),
        Bucket(NOON + MINUTE, 1, -3.0, -3.0, -3.0, -3.0, -3.0, None),
    ]
    [first, _] = await store.metrics.series("m", **window, percentile=0.5)
    assert (first.count, first.maximum, first.last, first.percentile) == (4, 100.0, 2.5, 3.25)
    mine = store.metrics.for_agent("b")
    assert [bucket.total for bucket in await mine.series("m", **window)] == [100.0]
    assert [bucket.count for bucket in await store.metrics.series("m", since=NOON, step=timedelta(days=1))] == [6]
    assert await store.metrics.series("m", since=NOON, until=NOON, step=MINUTE) == []


async def test_steps_begin_at_multiples_of_their_length(store: Store) -> None:
    await fill(store)
    [bucket] = await store.metrics.series("m", agent="b", since=NOON + timedelta(seconds=7), step=timedelta(days=1))
    assert bucket.start == NOON - timedelta(hours=12)
    [bucket] = await store.metrics.series("m", agent="b", since=NOON, step=timedelta(days=7))
    assert (bucket.start.weekday(), bucket.start.hour) == (0, 0)


async def test_types(store: Store) -> None:
    await fill(store)
    found = await store.metrics.types(since=NOON)
    assert [(one.agent_name, one.metric_type, one.count) for one in found] == [
        ("a", "m", 5), ("a", "other", 1), ("b", "m", 1),
    ]  # fmt: skip
    assert found[0].latest == NOON + timedelta(seconds=300)
    assert [one.agent_name for one in await store.metrics.types(agent="b", since=NOON)] == ["b"]
    assert len(await store.metrics.types(since=NOON, limit=2)) == 2
    assert await store.metrics.types(since=NOON, until=NOON) == []


async def test_large_values(store: Store) -> None:
    for value in (1e308, -1e308, 1_000_000.0):
        await store.metrics.record("a", "m", value, timestamp=NOON)
    [bucket] = await store.metrics.series("m", since=NOON, step=MINUTE)
    assert (bucket.minimum, bucket.maximum, bucket.count) == (-1e308, 1e308, 3)
    for _ in range(3):
        await store.metrics.record("a", "huge", 1e308, timestamp=NOON)
    with pytest.raises(InvalidValue, match="out of range"):
        await store.metrics.series("huge", since=NOON, step=MINUTE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": timedelta(0)}, "step must be at least 1 ms"),
        ({"step": timedelta(seconds=1), "since": NOON - timedelta(days=1)}, "more than 10000 steps: make them longer"),
        ({"percentile": 1.5}, "percentile must be from 0 to 1"),
        ({"since": datetime(2026, 1, 1)}, "since .* names no time zone"),
    ],
)
async def test_arguments_that_make_no_sense(store: Store, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidValue, match=reason):
        await store.metrics.series("m", **{"since": NOON, "until": NOON + MINUTE, "step": MINUTE, **changes})


async def test_the_latest_are_found_however_far_back(store: Store) -> None:
    days = (2, 3, 5, 20, 70, 300)
    for day in days:
        await store.pool.execute(_create_partition(store.schema, METRICS, NOON.date() - timedelta(days=day)))
        await store.metrics.record("a", "m", day, timestamp=NOON - timedelta(days=day))
    await store.metrics.record("a", "m", -3, timestamp=NOON + timedelta(days=4))  # of the future
    for limit in range(1, 8):
        found = await store.metrics.query(agent="a", limit=limit)
        assert [metric.value for metric in found] == list(days[:limit])
    since = NOON - timedelta(days=20)
    assert [metric.value for metric in await store.metrics.query(since=since)] == [2, 3, 5, 20]
    assert [metric.value for metric in await store.metrics.query(until=since)] == [70, 300]
    [ahead] = await store.metrics.query(since=NOON + timedelta(days=3), until=NOON + timedelta(days=5))
    assert ahead.value == -3


async def test_queries_look_at_no_more_partitions_when_there_are_a_hundred(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in the plan that PostgreSQL makes for any parameters, the one that prunes least."""
    now = datetime.now(UTC)
    statements: list[tuple[str, tuple[Any, ...]]] = []
    run = store._database.run

    async def explained(work: Any, **options: Any) -> Any:
        async def with_noting(connection: Any) -> Any:
            class Noting:
                async def fetch(self, statement: str, *arguments: Any) -> Any:
                    statements.append((statement, arguments))
                    return await connection.fetch(statement, *arguments)

            return await work(Noting())

        return await run(with_noting, **options)

    async def partitions_looked_at() -> list[int]:
        await store.pool.execute(f"ANALYZE {store.schema}.agent_metrics")
        statements.clear()
        with monkeypatch.context() as patch:
            patch.setattr(store._database, "run", explained)
            hour = {"since": now - timedelta(hours=1), "until": now}
            await store.metrics.query(agent="a", metric_type="m", **hour)
            await store.metrics.query(agent="a", limit=5)
            await store.metrics.series("m", agent="a", since=now - timedelta(days=1), until=now, step=5 * MINUTE)
            await store.metrics.types(**hour)
        counts = []
        async with store.pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            for statement, arguments in statements:
                plan = str(await connection.fetch(f"EXPLAIN {statement}", *arguments))
                counts.append(len(set(re.findall(r"agent_metrics_p\d{8}", plan))))
        return counts

    for n in range(10):
        await store.metrics.record("a", "m", n, timestamp=now)
    few = await partitions_looked_at()
    for day in range(2, 102):
        await store.pool.execute(_create_partition(store.schema, METRICS, now.date() - timedelta(days=day)))
    assert await partitions_looked_at() == few
    assert len(few) == 4
    assert max(few) <= 3
