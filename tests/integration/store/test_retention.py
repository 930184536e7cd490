"""Partitions that are made and dropped while others read and write."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from agenthive.settings import HiveScope, Retention
from agenthive.store import Store, StorePermissionError, audit, codec, partitions, schema_name
from agenthive.store.chain import Event, follow, start
from agenthive.store.codec import utc_now
from agenthive.store.naming import quote
from agenthive.store.partitions import AUDIT, MESSAGES, METRICS, _create_partition, existing_partitions

from .conftest import Connect, as_role

TODAY = utc_now().date()
KEEP = Retention(messages_days=7, metrics_days=30, audit_days=365)


async def past(store: Store, table: Any, *days: date) -> None:
    """Partitions of days gone by."""
    for day in days:
        await store.pool.execute(_create_partition(store.schema, table, day))


def ago(days: int) -> date:
    return TODAY - timedelta(days=days)


async def test_what_is_behind_its_retention_goes_and_nothing_else(store: Store) -> None:
    await past(store, METRICS, ago(32), ago(31), ago(30), ago(29))
    await past(store, MESSAGES, ago(9), ago(8), ago(7))
    await past(store, AUDIT, ago(500), ago(380))
    await store.pool.execute(
        f"CREATE TABLE {store.schema}.agent_metrics_old PARTITION OF {store.schema}.agent_metrics "
        "FOR VALUES FROM ('2001-01-01 00:00:00+00') TO ('2001-01-02 00:00:00+00')"
    )
    await store.metrics.record("a", "m", 1, timestamp=datetime.combine(ago(29), datetime.min.time(), UTC))
    dropped = await store.retain(KEEP)
    assert dropped[:4] == [
        METRICS.partition(ago(32)), METRICS.partition(ago(31)), MESSAGES.partition(ago(9)), MESSAGES.partition(ago(8)),
    ]  # fmt: skip
    assert AUDIT.partition(ago(500)) in dropped
    assert await store.retain(KEEP) == []
    assert await store.maintain(retention=KEEP) == [], "what maintenance makes is not what retention drops"
    assert await store.maintain(retention=Retention(messages_days=1, metrics_days=1, audit_days=1)) == []
    there = await existing_partitions(store.pool, store.schema, METRICS)
    assert there is not None
    assert "agent_metrics_old" in there, "what others have attached is theirs"
    assert await store.metrics.query(until=datetime.now(UTC)) == []


async def test_retention_leaves_anchors_from_which_the_rest_is_verified(store: Store) -> None:
    # A chain that goes on in the next month, one that ended, and one that begins there.
    first = ago(800).replace(day=1)
    second = AUDIT.days(first)[1]
    third = AUDIT.days(second)[1]
    await past(store, AUDIT, first, second, third)
    rows = []
    for chain, days in (("a/p/1", (first, first, second, third)), ("a/p/2", (first, first)), ("a/p/3", (third,))):
        events = [Event(datetime.combine(day, datetime.min.time(), UTC), "x", "y", "{}") for day in days]
        rows += follow(chain, "a", "p", start(chain), events)
    for row in rows:
        places = ", ".join(f"${n}" for n in range(1, 11))
        await store.pool.execute(f"INSERT INTO {store.schema}.audit_log VALUES ({places})", *row)
    checkpoint = await store.audit.heads()
    assert (await store.audit.verify(checkpoint)).findings == []

    def days_to(day: date) -> Retention:
        return Retention(audit_days=(TODAY - day).days)

    async def anchors() -> dict[str, int]:
        found = await store.pool.fetch(f"SELECT chain, seq FROM {store.schema}.audit_anchors")
        return {row["chain"]: row["seq"] for row in found}

    assert await store.retain(days_to(second)) == [AUDIT.partition(first)]
    assert await anchors() == {"a/p/1": 2, "a/p/2": 2}
    assert (await store.audit.verify(checkpoint)).findings == []
    assert await store.retain(days_to(third)) == [AUDIT.partition(second)]
    assert await anchors() == {"a/p/1": 3, "a/p/2": 2}
    assert (await store.audit.verify(checkpoint)).findings == []
    assert await store.pool.execute(f"DELETE FROM {store.schema}.audit_log WHERE chain = 'a/p/1'") == "DELETE 1"
    [found] = (await store.audit.verify(checkpoint)).findings
    assert (found.chain, found.seq, found.kind) == ("a/p/1", 4, "cut off"), "an anchor hides nothing behind it"

    await store.pool.execute(f"UPDATE {store.schema}.audit_anchors SET removed_at = now() - interval '800 days'")
    await store.retain(days_to(third))
    assert await anchors() == {}, "of chains that are gone for as long as rows are kept nothing is left"


async def test_a_partition_in_use_stays_for_now_and_holds_nobody_up(
    store: Store, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agenthive.store.partitions.DROP_TRIES", 2)
    monkeypatch.setattr("agenthive.store.partitions.backoff", lambda **_: iter([0.0] * 10))
    await past(store, METRICS, ago(33), ago(32), ago(31))
    other = await connect("other")
    async with store.pool.acquire() as reader, reader.transaction():
        await reader.fetch(f"SELECT * FROM {store.schema}.agent_metrics")  # its locks last until the transaction ends
        retaining = asyncio.create_task(other.retain(KEEP))
        waits = []
        while not retaining.done():
            started = time.monotonic()
            await store.metrics.record("a", "m", 1)
            waits.append(time.monotonic() - started)
        assert await retaining == []
        assert max(waits) < 5
    assert f"{METRICS.partition(ago(33))} is past its retention, but in use all the time" in caplog.text
    assert METRICS.partition(ago(32)) not in caplog.text, "none goes before an older one"
    assert len(await store.retain(KEEP)) == 3


async def test_reads_and_writes_go_on_while_partitions_are_made_and_dropped(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    keeper, workers = await connect("keeper"), [await connect(f"w{n}") for n in range(3)]
    stop = asyncio.Event()

    async def work(store: Store, number: int) -> int:
        count = 0
        while not stop.is_set():
            moment = datetime.now(UTC)
            await store.metrics.record(f"w{number}", "m", count, timestamp=moment)
            await store.audit.record("x", str(count))
            count += 1
            [newest] = await store.metrics.query(agent=f"w{number}", metric_type="m", limit=1)
            assert newest.value == count - 1
            assert await store.metrics.series("m", since=moment - timedelta(minutes=5), step=timedelta(minutes=1))
        return count

    working = [asyncio.create_task(work(store, number)) for number, store in enumerate(workers)]
    for round_ in range(6):
        await past(keeper, METRICS, *(ago(40 + day) for day in range(10)))
        await past(keeper, AUDIT, ago(500))
        assert len(await keeper.retain(KEEP)) == 11
        assert await keeper.maintain(retention=KEEP, today=TODAY + timedelta(days=round_ + 1))
    stop.set()
    counts = await asyncio.gather(*working)
    assert min(counts) > 0
    for number, count in enumerate(counts):
        assert len(await keeper.metrics.query(agent=f"w{number}", limit=100_000)) == count
    assert (await keeper.audit.verify()).findings == []
    assert caplog.text == ""


async def test_maintenance_at_once(connect: Connect) -> None:
    stores = [await connect(f"a{n}") for n in range(4)]
    await past(stores[0], METRICS, *(ago(31 + day) for day in range(5)))
    dropped = await asyncio.gather(*(store.retain(KEEP) for store in stores))
    there = await existing_partitions(stores[0].pool, stores[0].schema, METRICS)
    assert there is not None
    assert not there & {METRICS.partition(ago(31 + day)) for day in range(5)}
    assert {name for one in dropped for name in one} == {METRICS.partition(ago(31 + day)) for day in range(5)}


async def test_a_role_that_does_not_own_the_tables_is_told_so(
    hive_url: str, connect: Connect, scope: HiveScope, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    owner = await connect()
    schema = schema_name(scope)
    await past(owner, METRICS, ago(40))
    await owner.pool.execute(f"CREATE ROLE {unique} LOGIN PASSWORD 'pw'")
    await owner.pool.execute(f"GRANT USAGE ON SCHEMA {schema} TO {unique}")
    await owner.pool.execute(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO {unique}")
    try:
        store = await connect(url=as_role(hive_url, unique, "pw"))
        with pytest.raises(StorePermissionError, match="must be owner of table"):
            await store.retain(KEEP)
        for name in await existing_partitions(owner.pool, schema, AUDIT) or ():
            await owner.pool.execute(f"DROP TABLE {schema}.{name}")
        with pytest.raises(Exception, match='no partition of relation "audit_log" found for row'):
            await store.audit.record("x", "y")
        assert "this role may not make them: run `agenthive db maintain` as their owner" in caplog.text
        assert 'no partition of relation "audit_log"' in caplog.text
        await owner.audit.record("x", "an owner makes them itself")
        await store.audit.record("x", "y")
    finally:
        await owner.pool.execute(f"DROP OWNED BY {unique} CASCADE")
        await owner.pool.execute(f"DROP ROLE {unique}")


async def test_older_schemas_get_the_partitions_they_have_tables_for(store: Store) -> None:
    await store.pool.execute(f"DROP TABLE {store.schema}.audit_log")
    made = await store.metrics.maintain(today=TODAY + timedelta(days=1))
    assert [name.rpartition("_")[0] for name in made] == ["agent_metrics", "message_log"]


async def test_a_verification_that_waits_for_a_removal_sees_the_anchor(connect: Connect, store: Store) -> None:
    long_ago = ago(100)
    await past(store, AUDIT, long_ago)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "utc_now", lambda: datetime.now(UTC) - timedelta(days=100))
        await store.audit.record("old", "1")
        patch.setattr(audit, "CHAIN_REST", timedelta.max)
        patch.setattr(codec, "utc_now", lambda: datetime.now(UTC))
        await store.audit.record("new", "2")
    child = f"{quote(store.schema)}.{AUDIT.partition(long_ago)}"
    async with store.pool.acquire() as connection, await connect("auditor") as auditor:
        removal = connection.transaction()
        await removal.start()
        await connection.execute(partitions._anchor(store.schema, child))
        await connection.execute(f"DROP TABLE {child}")
        verifying = asyncio.create_task(auditor.audit.verify())
        while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await removal.commit()
        assert (await verifying).findings == []


async def test_a_process_that_rests_goes_on_with_another_chain(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.audit.chain
    await store.audit.record("process.start", "1")
    await store.audit.record("a", "2")
    assert store.audit.chain == first
    later = datetime.now(UTC) + timedelta(days=1, seconds=1)
    monkeypatch.setattr(codec, "utc_now", lambda: later)
    await store.audit.record("a", "3")
    assert store.audit.chain != first
    assert {head.seq for head in (await store.audit.heads()).values()} == {1, 2}
    assert (await store.audit.verify()).findings == []
