"""The audit trail on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from agenthive.settings import HiveScope
from agenthive.store import InvalidValue, Store, StorePermissionError, StoreUnavailable, schema_name, upgrade
from agenthive.store.chain import AuditRow, Finding, row_hash
from agenthive.store.partitions import AUDIT

from .conftest import Connect, as_role, commits, eventually


async def rows_of(store: Store) -> list[AuditRow]:
    rows = await store.pool.fetch(f"SELECT * FROM {store.schema}.audit_log WHERE agent <> '' ORDER BY chain, seq, at")
    return [AuditRow(*row.values()) for row in rows]


async def findings(store: Store, checkpoint: Any = None) -> list[tuple[str, int, str]]:
    verified = await store.audit.verify(checkpoint, page_rows=3)
    return [(one.chain, one.seq, one.kind) for one in verified.findings]


async def test_what_is_recorded(connect: Connect) -> None:
    store = await connect(process="pod-1")
    await store.audit.record("invoice.approve", "4711", {"amount": 12.5})
    await store.audit.record("invoice.pay", "4711")
    pay, approve, upgraded = await store.audit.recent()
    assert (approve.agent, approve.actor, approve.action, approve.subject) == (
        "librarian", "pod-1", "invoice.approve", "4711",
    )  # fmt: skip
    assert (approve.details, pay.details) == ('{"amount":12.5}', "{}")
    assert (approve.seq, pay.seq, pay.previous) == (1, 2, approve.hash)
    assert approve.chain == pay.chain == store.audit.chain
    assert approve.chain.startswith("librarian/pod-1/")
    assert (upgraded.action, upgraded.subject, upgraded.agent) == ("schema.upgrade", store.schema, "")
    assert '"0001_state_metrics_messages"' in upgraded.details
    assert [row.action for row in await store.audit.recent(action="invoice.pay")] == ["invoice.pay"]
    assert [row.seq for row in await store.audit.recent(agent="librarian", subject="4711", limit=1)] == [2]
    assert await store.audit.recent(actor="pod-1", since=pay.at + timedelta(seconds=1)) == []
    verified = await store.audit.verify()
    assert (verified.rows, verified.chains, verified.findings) == (3, 2, [])
    with pytest.raises(InvalidValue, match="limit"):
        await store.audit.recent(limit=0)


async def test_rows_of_many_callers_share_a_commit_and_each_has_its_place(connect: Connect) -> None:
    stores = [await connect(agent) for agent in ("a", "a", "b")]
    await asyncio.gather(*(store.audit.record("x", str(n)) for store in stores for n in range(300)))
    assert await commits(stores[0], "audit_log") <= 15, "and one was the schema's"
    assert [store.audit.written for store in stores] == [300, 300, 300]
    assert await findings(stores[0]) == []
    heads = await stores[0].audit.heads()
    assert [heads[store.audit.chain].seq for store in stores] == [300, 300, 300]


async def test_arguments_that_cannot_be_kept(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for bad in (("", "s"), ("a", ""), ("a", "nul\0"), ("a", "s", {"x": object()}), ("a", "s", {"x": "y" * 9000})):
        with pytest.raises(InvalidValue):
            await store.audit.record(*bad)
    store.audit.note("", "s")
    assert store.audit.dropped == 1
    assert "audit: 1 rows lost so far: action must be a non-empty string" in caplog.text
    store.audit.note("x", "nul\0\ud800")
    store.audit.note("x", "")
    await store.audit.record("x", "s")
    assert [row.subject for row in await rows_of(store)] == ["nul\\0\\ud800", "-", "s"]


async def test_closing_writes_what_waits(connect: Connect) -> None:
    store, other = await connect(), await connect("other")
    for n in range(50):
        store.audit.note("x", str(n))
    await store.aclose()
    assert len(await rows_of(other)) == 50
    store.audit.note("x", "late")
    assert store.audit.dropped == 1
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.audit.record("x", "late")


async def test_an_answer_that_was_lost_doubles_and_forks_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.audit.record("x", "1")
    run, failing = store._database.run, True

    async def lossy(work: Any, **options: Any) -> Any:
        result = await run(work, **options)
        if failing:
            raise StoreUnavailable("the answer to the commit was lost")
        return result

    monkeypatch.setattr(store._database, "run", lossy)
    with pytest.raises(StoreUnavailable):
        await store.audit.record("x", "2")
    failing = False
    await asyncio.gather(*(store.audit.record("x", str(n)) for n in (3, 4)))
    assert [(row.seq, row.subject) for row in await rows_of(store)] == [(1, "1"), (2, "2"), (3, "3"), (4, "4")]
    assert await findings(store) == []


async def test_what_could_not_be_sent_is_written_when_postgres_is_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive.store.audit.AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("agenthive.store.audit.MAX_UNCONFIRMED", 3)
    run = store._database.run
    away, back = asyncio.Event(), asyncio.Event()

    async def outage(work: Any, **options: Any) -> Any:
        if not back.is_set():
            away.set()
            raise StoreUnavailable("away")
        return await run(work, **options)

    monkeypatch.setattr(store._database, "run", outage)
    for n in range(5):
        with pytest.raises(StoreUnavailable):
            await store.audit.record("x", str(n))
    assert store.audit.dropped == 2, "no more than so many are kept"
    back.set()
    await eventually(lambda: store.audit.written == 3, "rows that waited")
    assert [(row.seq, row.subject) for row in await rows_of(store)] == [(1, "0"), (2, "1"), (3, "2")]
    await store.audit.record("x", "next")
    assert await findings(store) == []


async def test_killed_under_load_nothing_that_returned_is_missing_and_nothing_is_there_twice(
    own_postgres: Any, scope: HiveScope
) -> None:
    await upgrade(own_postgres.url(), schema_name(scope))
    store = await Store.connect(own_postgres.url(), scope, agent="librarian")
    done: set[str] = set()

    async def work(worker: int) -> None:
        for n in range(40):
            await store.audit.record("x", f"{worker}/{n}")
            done.add(f"{worker}/{n}")

    workers = [asyncio.create_task(work(n)) for n in range(20)]
    for least in (100, 400):
        await eventually(lambda least=least: len(done) >= least, "load")
        own_postgres.kill()
        await asyncio.to_thread(own_postgres.start)
    await asyncio.gather(*workers)
    subjects = [row.subject for row in await rows_of(store)]
    assert len(subjects) == len(set(subjects)) == 800
    assert set(subjects) == done
    assert await findings(store) == []
    await store.aclose()


async def test_a_forged_row_in_the_way_makes_the_process_go_on_with_another_chain(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.audit.record("x", "1")
    [first] = await rows_of(store)
    forged = first._replace(seq=2, subject="forged", previous=first.hash)
    forged = forged._replace(hash=row_hash(forged))
    await insert(store.pool, store.schema, forged)
    monkeypatch.setattr("agenthive.store.codec.utc_now", lambda: first.at)  # the same time: the same primary key
    with pytest.raises(Exception, match="were written by somebody else: run `agenthive audit verify`"):
        await store.audit.record("x", "2")
    await store.audit.record("x", "3")
    assert store.audit.chain != first.chain
    assert "this process goes on with another chain" in caplog.text
    assert sorted((row.seq, row.subject) for row in await rows_of(store)) == [(1, "1"), (1, "3"), (2, "forged")]


async def insert(connection: Any, schema: str, row: AuditRow) -> None:
    places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
    await connection.execute(f"INSERT INTO {schema}.audit_log VALUES ({places})", *row)


EDITS = {
    "at": "at + interval '1 microsecond'",
    "actor": "actor || '!'",
    "action": "'other'",
    "subject": "''",
    "details": "details || ' '",
    "previous": "sha256(previous)",
    "hash": "sha256(hash)",
}


@pytest.mark.parametrize("column", EDITS)
async def test_a_cell_that_the_owner_edits_is_found(store: Store, column: str) -> None:
    for n in range(8):
        await store.audit.record("x", str(n))
    statement = f"UPDATE {store.schema}.audit_log SET {column} = {EDITS[column]} WHERE chain = $1 AND seq = 5"
    assert await store.pool.execute(statement, store.audit.chain) == "UPDATE 1"
    assert await findings(store) == [(store.audit.chain, 5, "changed")]


async def test_tampering_of_each_kind_is_named(connect: Connect) -> None:
    stores = {name: await connect(name) for name in ("fine", "missing", "swapped", "twice", "cut", "gone", "moved")}
    for store in stores.values():
        for n in range(6):
            await store.audit.record("x", str(n))
    store, table = stores["fine"], f"{stores['fine'].schema}.audit_log"
    chains = {name: one.audit.chain for name, one in stores.items()}
    checkpoint = await store.audit.heads()
    await stores["fine"].audit.record("x", "after the checkpoint")

    async def tamper(name: str, statement: str) -> None:
        assert await store.pool.execute(statement.format(table), chains[name]) != "UPDATE 0"

    await tamper("missing", "DELETE FROM {} WHERE chain = $1 AND seq IN (3, 4)")
    await tamper("swapped", "UPDATE {} SET seq = CASE seq WHEN 2 THEN 3 ELSE 2 END WHERE chain = $1 AND seq IN (2, 3)")
    await tamper("cut", "DELETE FROM {} WHERE chain = $1 AND seq > 4")
    await tamper("gone", "DELETE FROM {} WHERE chain = $1")
    await tamper("moved", "UPDATE {} SET chain = agent || '/x/y' WHERE chain = $1 AND seq = 1")
    third = next(row for row in await rows_of(store) if row.chain == chains["twice"] and row.seq == 3)
    await insert(store.pool, store.schema, third._replace(at=third.at + timedelta(seconds=1)))

    blind, sighted = await findings(store), await findings(store, checkpoint)
    expected = [
        (chains["missing"], 3, "missing"),
        (chains["moved"], 1, "missing"),
        ("moved/x/y", 1, "changed"),
        (chains["swapped"], 2, "changed"),
        (chains["twice"], 3, "inserted"),
    ]
    assert sorted(blind) == sorted(expected)
    assert sorted(sighted) == sorted([*expected, (chains["cut"], 5, "cut off"), (chains["gone"], 1, "removed")])


@pytest.fixture
async def restricted(hive_url: str, scope: HiveScope, connect: Connect, unique: str) -> AsyncIterator[str]:
    """The URL of a role that may add and read rows of agent librarian, and nothing else."""
    owner, schema = await asyncpg.connect(hive_url), schema_name(scope)
    await connect()
    await owner.execute(f"""
        CREATE ROLE {unique} LOGIN PASSWORD 'pw';
        GRANT USAGE ON SCHEMA {schema} TO {unique};
        GRANT SELECT ON {schema}.schema_migrations, {schema}.audit_anchors TO {unique};
        GRANT INSERT, SELECT ON {schema}.audit_log TO {unique};
        ALTER TABLE {schema}.audit_log ENABLE ROW LEVEL SECURITY;
        CREATE POLICY own_rows ON {schema}.audit_log FOR SELECT TO {unique} USING (agent = 'librarian');
        CREATE POLICY own_inserts ON {schema}.audit_log FOR INSERT TO {unique} WITH CHECK (agent = 'librarian');
    """)
    yield as_role(hive_url, unique, "pw")
    await owner.execute(f"DROP OWNED BY {unique} CASCADE")
    await owner.execute(f"DROP ROLE {unique}")
    await owner.close()


async def test_insert_and_select_are_enough_and_all_there_is(
    restricted: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await connect(url=restricted)
    other = await connect("other")
    await other.audit.record("x", "theirs")
    await asyncio.gather(*(store.audit.record("x", str(n)) for n in range(100)))
    # What repeats after a lost answer needs no more rights either.
    monkeypatch.setattr(store.audit, "_unconfirmed", await rows_of(store))
    monkeypatch.setattr(store.audit, "_head", store.audit._head._replace(seq=0))
    await store.audit.record("x", "after")
    assert [row.seq for row in await rows_of(store)] == list(range(1, 102)), "theirs are not seen"
    assert (await store.audit.verify()).findings == []
    assert await findings(other) == []
    for statement in (
        "UPDATE {}.audit_log SET actor = 'x'", "DELETE FROM {}.audit_log", "TRUNCATE {}.audit_log",
        "DELETE FROM {}.audit_anchors", "INSERT INTO {}.audit_anchors SELECT chain, seq, at, hash FROM {}.audit_log",
        f"DELETE FROM {{}}.{AUDIT.partition((await rows_of(store))[0].at.date())}",
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.pool.execute(statement.replace("{}", store.schema))


async def test_nobody_writes_into_the_chain_of_another_agent(restricted: str, connect: Connect) -> None:
    store, other = await connect(url=restricted), await connect("other")
    await other.audit.record("x", "theirs")
    [theirs] = [row for row in await rows_of(other) if row.agent == "other"]
    forged = theirs._replace(seq=2, previous=theirs.hash)
    for row in (forged, forged._replace(agent="librarian")):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.CheckViolationError)):
            await insert(store.pool, store.schema, row._replace(hash=row_hash(row)))
    stranger = await connect("stranger", url=restricted)
    with pytest.raises(StorePermissionError, match="row-level security"):
        await stranger.audit.record("x", "y")
    stranger.audit.note("x", "y")
    await stranger.aclose()
    assert stranger.audit.dropped == 1


async def test_a_page_is_read_off_the_primary_keys(store: Store) -> None:
    await store.pool.execute(
        f"""
        INSERT INTO {store.schema}.audit_log
        SELECT '/' || (i / 1000), i % 1000 + 1, now(), '', 'x', 'y', 'z', '{{}}', sha256('a'), sha256('b')
        FROM generate_series(0, 20000 - 1) AS i
        """
    )
    await store.pool.execute(f"ANALYZE {store.schema}.audit_log")
    arguments = ("/3", 5, (await store.audit.recent(limit=1))[0].at, 100)
    plan = str(await store.pool.fetch(f"EXPLAIN (ANALYZE) {store.audit._sql.page}", *arguments))
    assert "Sort" not in plan.replace("Sort Key", "")
    verified = await store.audit.verify()
    assert (verified.rows, verified.chains, len(verified.findings)) == (20_001, 21, 20)
    assert verified.findings[0] == Finding("/0", 1, verified.findings[0].at, "changed", verified.findings[0].text)
    heads = await store.audit.heads()
    assert len(heads) == 21
    assert heads["/7"].seq == 1000


async def test_rows_that_are_refused_when_sent_again_end_their_chain(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await store.audit.record("x", "1")
    chain = store.audit.chain
    [first] = await rows_of(store)
    refused = first._replace(seq=2, agent="another", previous=first.hash)  # the constraint on the chain's name
    monkeypatch.setattr(store.audit, "_unconfirmed", [refused])
    await store.audit.record("x", "2")
    assert store.audit.chain != chain
    assert store.audit.dropped == 1
    assert "audit_log_chain" in caplog.text
    assert [(row.chain == chain, row.seq, row.subject) for row in await rows_of(store)].count((False, 1, "2")) == 1
    assert await findings(store) == []


@pytest.mark.parametrize("back", [True, False])
async def test_closing_sends_what_was_not_confirmed_once_more(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, back: bool
) -> None:
    store, other = await connect(), await connect("other")
    run = store._database.run

    async def away(work: Any, **options: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(store._database, "run", away)
    with pytest.raises(StoreUnavailable):
        await store.audit.record("x", "1")
    if back:
        monkeypatch.setattr(store._database, "run", run)
    await store.aclose()
    assert [row.subject for row in await rows_of(other)] == (["1"] if back else [])
    assert ("the store was closed before PostgreSQL confirmed them" in caplog.text) is not back


async def test_without_prepared_statements_as_behind_a_pooler(connect: Connect, hive_url: str) -> None:
    store = await connect(url=f"{hive_url}?statement_cache_size=0")
    await asyncio.gather(*(store.audit.record("x", str(n)) for n in range(10)))
    assert await findings(store, await store.audit.heads()) == []
    assert await store.maintain() == []
    await store.metrics.record("a", "m", 1)
    assert len(await store.metrics.query()) == 1
    now = datetime.now(UTC)
    window = {"since": now - timedelta(hours=1), "until": now + timedelta(hours=1)}
    assert len(await store.metrics.series("m", step=timedelta(days=7), **window)) == 1
