"""PostgreSQL is killed, restarted, frozen, cut off: what returned is there, and the store goes on by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from tests.integration.store.load import PATIENCE, Writers, impatient, until

from agenthive.settings import HiveScope, PostgresPool
from agenthive.store import Store, StoreUnavailable, VersionConflict, schema_name, upgrade
from agenthive.store.database import Address, close_once, connect_once


@pytest.fixture
async def store(own_postgres: Any, scope: HiveScope) -> AsyncIterator[Store]:
    """A store on a PostgreSQL of the test's own."""
    await upgrade(own_postgres.url(), schema_name(scope))
    async with await Store.connect(own_postgres.url(), scope, agent="librarian") as store:
        yield store


@pytest.mark.timeout(180)
async def test_sigkill_in_the_middle_of_writes(store: Store, own_postgres: Any) -> None:
    writers = Writers(store)
    writers.start()
    for _ in range(3):
        await writers.goes_on()
        own_postgres.kill()
        await asyncio.to_thread(own_postgres.start)
    await writers.goes_on()
    await writers.stop()
    assert not writers.raised, "a restart is shorter than the store's patience"
    assert not writers.lost_metrics
    await writers.verify()


@pytest.mark.timeout(180)
async def test_what_raised_during_a_kill_is_there_once_or_not_at_all(
    store: Store, own_postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(store, monkeypatch, 0.01)
    writers = Writers(store)
    writers.start(sets=20, records=20, counts=20)
    for _ in range(5):
        await writers.goes_on(1500)
        own_postgres.kill()
        raised = len(writers.raised)
        await until(lambda raised=raised: len(writers.raised) > raised, "writes that raise")
        await asyncio.to_thread(own_postgres.start)
    await writers.goes_on(1500)
    await writers.stop()
    assert writers.raised
    assert writers.lost_metrics
    await writers.verify()


async def test_operations_wait_for_a_restart(store: Store, own_postgres: Any) -> None:
    version = await store.state.set("k", 1)
    own_postgres.kill()
    waiting = [
        asyncio.create_task(call)
        for call in (store.state.get("k"), store.state.set("other", 2), store.state.list(), store.maintain())
    ]
    waiting.append(asyncio.create_task(store.metrics.record("a", "m", 1)))
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert not any(task.done() for task in waiting)
    await asyncio.to_thread(own_postgres.start)
    assert await waiting[0] == 1
    await asyncio.gather(*waiting[1:])
    assert (await store.state.get_versioned("k")).version == version
    await store.ping()


async def test_patience_ends(store: Store, own_postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(store, monkeypatch)
    own_postgres.kill()
    calls = [store.state.set(f"k{n}", n) for n in range(20)]
    calls += [store.state.get("k"), store.metrics.record("a", "m", 1), store.state.list(), store.metrics.query()]
    started = time.monotonic()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    assert all("cannot be reached" in str(result) for result in results)
    assert time.monotonic() - started < 10
    await asyncio.to_thread(own_postgres.start)
    assert await store.state.get("k0") is None, "and the store goes on; what raised is not there"
    await store.state.set("k0", 0)


async def test_connections_cut_by_the_server_are_replaced(store: Store) -> None:
    cut = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )

    progress = asyncio.Event()

    async def work(who: int) -> None:
        for n in range(100):
            await store.state.set(f"{who}/{n}", n)
            progress.set()
            assert await store.state.get(f"{who}/{n}") == n

    workers = [asyncio.create_task(work(who)) for who in range(10)]
    admin = await asyncpg.connect(store._database.address.dsn)
    cuts = 0
    while not all(worker.done() for worker in workers):
        # After each cut something has to be written again: a slow machine could not even log in between faster ones.
        waiting = asyncio.create_task(progress.wait())
        await asyncio.wait([waiting, *(w for w in workers if not w.done())], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        progress.clear()
        cuts += await admin.fetchval(cut)
        await asyncio.sleep(0.05)
    await admin.close()
    await asyncio.gather(*workers)
    assert cuts > 0
    assert len(await store.state.list(limit=2000)) == 1000


async def test_a_connection_lost_between_two_statements_of_a_transaction(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = store._lanes._lock
    tries = []

    async def lock_and_lose(connection: Any, keys: Any) -> Any:
        found = await lock(connection, keys)
        tries.append(len(keys))
        if len(tries) == 1:
            admin = await asyncpg.connect(store._database.address.dsn)
            await admin.execute(
                "SELECT pg_terminate_backend($1, 5000)", await connection.fetchval("SELECT pg_backend_pid()")
            )
            await admin.close()
            await until(connection.is_closed, "the client noticed")
        return found

    monkeypatch.setattr(store._lanes, "_lock", lock_and_lose)
    assert await store.state.set("k", 1, expect_version=0)
    assert tries == [1, 1]
    assert await store.state.get("k") == 1


async def test_a_lost_answer_to_a_commit_is_doubt_and_not_a_conflict(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit arrives, its answer does not: a compare-and-set that is repeated meets itself."""
    version = await store.state.set("k", 1)
    commit = asyncpg.transaction.Transaction.commit
    lost = []

    async def commit_and_lose(transaction: Any) -> None:
        await commit(transaction)
        if not lost:
            lost.append(True)
            raise ConnectionResetError("lost")

    monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", commit_and_lose)
    results = await asyncio.gather(
        store.state.set("k", 2, expect_version=version),
        store.state.set("new", 1, expect_version=0),
        store.state.set("plain", 1),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable, int]
    assert "whether it was cannot be told" in str(results[0])
    assert await store.state.get("k") == 2
    with pytest.raises(VersionConflict):
        await store.state.set("k", 3, expect_version=version)


async def test_a_frozen_server_fails_the_ping_in_time(store: Store, own_postgres: Any) -> None:
    rows = await store.pool.fetch("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
    pids = [own_postgres.process.pid, *(row["pid"] for row in rows)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s"):
            await store.ping(timeout=0.3)
        assert time.monotonic() - started < 3
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    await store.state.set("k", 1)
    await store.ping()


async def test_connecting_waits_if_asked(store: Store, own_postgres: Any, scope: HiveScope) -> None:
    own_postgres.kill()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await Store.connect(own_postgres.url(), scope, agent="x")
    opening = asyncio.create_task(Store.connect(own_postgres.url(), scope, agent="x", wait_seconds=PATIENCE))
    await asyncio.to_thread(own_postgres.start)
    async with await opening as other:
        await other.state.set("k", 1)


async def test_the_message_log_outlasts_an_outage(store: Store, own_postgres: Any) -> None:
    own_postgres.kill()
    for n in range(100):
        store.messages.record(
            f"m{n}",
            from_agent="a",
            to_agent="b",
            message_type="t",
            status="failed",
            attempts=1,
            created_at=datetime.now(UTC),
        )
    await asyncio.to_thread(own_postgres.start)
    await store.messages.flush()
    assert len(await store.messages.recent(limit=1000)) == 100
    assert store.messages.dropped == 0


async def test_closing_during_an_outage_ends_in_time_and_says_what_is_lost(
    store: Store, own_postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own_postgres.kill()
    store.messages.record(
        "m", from_agent="a", to_agent="b", message_type="t", status="failed", attempts=1, created_at=datetime.now(UTC)
    )
    write = asyncio.create_task(store.state.set("k", 1))
    await asyncio.sleep(0)
    started = time.monotonic()
    await store.aclose(timeout=0.3)
    assert time.monotonic() - started < 5
    with pytest.raises(StoreUnavailable):
        await write
    assert store.messages.dropped == 1
    assert "1 rows lost so far: the store was closed before PostgreSQL took them" in caplog.text


async def test_an_upgrade_that_is_killed_is_finished_by_the_next(own_postgres: Any, scope: HiveScope) -> None:
    schema = schema_name(scope)
    for _ in range(3):
        task = asyncio.create_task(upgrade(own_postgres.url(), schema))
        await asyncio.sleep(0.02)  # somewhere in the middle, or not: any point must do
        own_postgres.kill()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(own_postgres.start)
    await upgrade(own_postgres.url(), schema)
    async with await Store.connect(own_postgres.url(), scope, agent="x", pool=PostgresPool(min_size=0)) as store:
        assert await store.maintain() == []
        await store.metrics.record("x", "m", 1)


async def test_a_backend_that_hangs_does_not_hide_what_went_wrong(postgres_url: str) -> None:
    connection = await connect_once(Address.parse(postgres_url), "test")
    pid = connection.get_server_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        await close_once(connection, timeout=0.3)  # raises nothing in its place
        assert connection.is_closed()
    finally:
        os.kill(pid, signal.SIGCONT)
