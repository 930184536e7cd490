"""agent_metrics on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from agenthive.store import InvalidValue, Store
from agenthive.store.partitions import METRICS, wanted

from .conftest import commits


async def partitions(store: Store, table: str = "agent_metrics") -> list[str]:
    rows = await store.pool.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = $1::regclass ORDER BY 1",
        f"{store.schema}.{table}",
    )
    return [row["name"].rpartition(".")[2] for row in rows]


async def today(store: Store) -> date:
    day = await store.pool.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    assert isinstance(day, date)
    return day


async def test_record_and_query(store: Store) -> None:
    now = datetime.now(UTC)
    for age in range(5):
        await store.metrics.record("a", "latency_ms", age, {"n": age}, timestamp=now - timedelta(minutes=age))
    await store.metrics.record("a", "errors", 1)
    await store.metrics.record("b", "latency_ms", 99)
    newest = await store.metrics.query(agent="a", metric_type="latency_ms", limit=2)
    assert [(m.agent_name, m.metric_type, m.value, m.metadata) for m in newest] == [
        ("a", "latency_ms", 0.0, {"n": 0}),
        ("a", "latency_ms", 1.0, {"n": 1}),
    ]
    assert newest[0].timestamp == now
    window = await store.metrics.query(
        agent="a", since=now - timedelta(minutes=3), until=now - timedelta(minutes=1), metric_type="latency_ms"
    )
    assert [m.value for m in window] == [2.0, 3.0]
    assert len(await store.metrics.query()) == 7
    assert await store.metrics.query(agent="nobody") == []
    assert (await store.metrics.query(agent="b"))[0].metadata == {}


async def test_rows_of_many_callers_share_a_commit(store: Store) -> None:
    await asyncio.gather(*(store.metrics.record("a", "m", n) for n in range(500)))
    assert await commits(store, "agent_metrics") <= 2
    assert sorted(m.value for m in await store.metrics.query()) == list(range(500))


async def test_any_finite_value(store: Store) -> None:
    for value in (0, -1.5, 1_000_000, 1e308, 5e-324, 10**300):
        await store.metrics.record("a", "m", value)
        assert (await store.metrics.query(limit=1))[0].value == float(value)


async def test_other_values_are_refused_by_the_store_and_by_the_table(store: Store) -> None:
    insert = f"INSERT INTO {store.schema}.agent_metrics (agent_name, metric_type, value) VALUES ('a', 'm', $1)"
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(InvalidValue, match="finite"):
            await store.metrics.record("a", "m", value)
        with pytest.raises(asyncpg.CheckViolationError, match="agent_metrics_value_finite"):
            await store.pool.execute(insert, value)


async def test_bad_arguments(store: Store) -> None:
    now = datetime.now(UTC)
    with pytest.raises(InvalidValue, match="names no time zone"):
        await store.metrics.record("a", "m", 1, timestamp=datetime(2026, 1, 1))
    with pytest.raises(InvalidValue, match="agent"):
        await store.metrics.record("", "m", 1)
    with pytest.raises(InvalidValue, match="metadata takes"):
        await store.metrics.record("a", "m", 1, {"x": "y" * 70_000})
    with pytest.raises(InvalidValue, match="limit"):
        await store.metrics.query(limit=0)
    with pytest.raises(InvalidValue, match="since"):
        await store.metrics.query(since=now.replace(tzinfo=None))


async def test_the_table_is_as_designed(store: Store) -> None:
    table = f"{store.schema}.agent_metrics"
    strategy = await store.pool.fetchval("SELECT pg_get_partkeydef($1::regclass)", table)
    assert strategy == 'RANGE ("timestamp")'
    key = await store.pool.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::regclass AND contype = 'p'", table
    )
    assert key == 'PRIMARY KEY (id, "timestamp")'
    expected = [METRICS.partition(day) for day in wanted(METRICS, await today(store))]
    assert await partitions(store) == expected
    assert await partitions(store, "message_log") == [name.replace("agent_metrics", "message_log") for name in expected]
    assert (
        await store.pool.fetchval("SELECT partdefid FROM pg_partitioned_table WHERE partrelid = $1::regclass", table)
        == 0
    )
    indexes = await store.pool.fetch(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = $1::regclass",
        f"{table}_p{await today(store):%Y%m%d}",
    )
    assert len(indexes) == 3, "a partition has the indexes of its table"


async def test_a_query_of_a_window_looks_at_its_partitions_only(store: Store) -> None:
    now = datetime.now(UTC)
    plan = await store.pool.fetch(
        f"EXPLAIN SELECT * FROM {store.schema}.agent_metrics "
        "WHERE agent_name = 'a' AND timestamp >= $1 AND timestamp < $2",
        now, now + timedelta(seconds=1),
    )  # fmt: skip
    assert "agent_metrics_p" in str(plan)
    assert str(plan).count(" on agent_metrics_p") <= 2


async def test_maintenance_makes_the_days_to_come_once(store: Store) -> None:
    assert await store.metrics.maintain() == []
    day = await today(store)
    made = await store.metrics.maintain(today=day + timedelta(days=3))
    new_days = [day + timedelta(days=offset) for offset in (15, 16, 17)]
    daily = [name for name in made if not name.startswith("audit_log")]
    assert daily == [f"{table}_p{new:%Y%m%d}" for table in ("agent_metrics", "message_log") for new in new_days]
    assert await store.metrics.maintain(today=day + timedelta(days=3)) == []
    await store.metrics.record("a", "m", 1, timestamp=datetime.now(UTC) + timedelta(days=16))
    assert await store.maintain(today=date(2030, 1, 1)), "a gap is no obstacle"


async def test_maintenance_by_many_at_once(store: Store) -> None:
    day = await today(store) + timedelta(days=1)
    made = await asyncio.gather(*(store.metrics.maintain(today=day) for _ in range(5)))
    assert sorted(map(bool, made)) == [False, False, False, False, True]


async def test_days_are_utc_whatever_the_session_says(store: Store) -> None:
    day = await today(store)
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    async with store.pool.acquire() as connection:
        await connection.execute("SET TimeZone = 'Asia/Tokyo'")
        for moment, expected in [(midnight, day), (midnight - timedelta(microseconds=1), day - timedelta(days=1))]:
            name = await connection.fetchval(
                f"INSERT INTO {store.schema}.agent_metrics (agent_name, metric_type, value, timestamp) "
                "VALUES ('a', 'm', 1, $1) RETURNING tableoid::regclass::text",
                moment,
            )
            assert name.endswith(f"p{expected:%Y%m%d}")


async def test_a_day_without_partition_fails_its_row_alone(store: Store) -> None:
    now = datetime.now(UTC)
    moments = [now, now + timedelta(days=40), now - timedelta(days=40), now]
    results = await asyncio.gather(
        *(store.metrics.record("a", "m", n, timestamp=moment) for n, moment in enumerate(moments)),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), InvalidValue, InvalidValue, type(None)]
    assert f"no partition of agent_metrics for {moments[1].isoformat()}: timestamps go from yesterday" in str(
        results[1]
    )
    assert sorted(m.value for m in await store.metrics.query()) == [0.0, 3.0]


async def test_a_process_that_outlived_its_partitions_makes_new_ones(store: Store) -> None:
    for name in await partitions(store):
        await store.pool.execute(f"DROP TABLE {store.schema}.{name}")
    await asyncio.gather(*(store.metrics.record("a", "m", n) for n in range(10)))
    assert len(await store.metrics.query()) == 10
    assert len(await partitions(store)) == 16
