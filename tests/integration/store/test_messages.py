"""The message log on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agenthive.store import InvalidValue, Store

from .conftest import Connect, commits

SENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def note(store: Store, message_id: str, status: str = "failed", **changes: Any) -> bool:
    return store.messages.record(
        message_id,
        **{
            "from_agent": "crawler", "to_agent": "analyst", "message_type": "analyse", "status": status, "attempts": 4,
            "created_at": SENT, **changes,
        },
    )  # fmt: skip


async def test_what_is_recorded(store: Store) -> None:
    before = datetime.now(UTC)
    assert note(store, "m1", error="boom\n\0\ud800", body={"path": "a.py"})
    assert note(store, "m2", "expired", attempts=0, agent="somebody")
    await store.messages.flush()
    second, first = await store.messages.recent()
    assert (first.agent, first.message_id, first.from_agent, first.to_agent) == (
        "librarian",
        "m1",
        "crawler",
        "analyst",
    )
    assert (first.message_type, first.status, first.attempts, first.created_at) == ("analyse", "failed", 4, SENT)
    assert first.error == "boom\n\\0\\ud800"
    assert first.body == {"path": "a.py"}
    assert before <= first.logged_at <= datetime.now(UTC)
    assert (second.agent, second.status, second.error, second.body) == ("somebody", "expired", None, None)


async def test_policies(connect: Connect) -> None:
    failures, everything = await connect("a"), await connect("b", message_log="all")
    assert [note(failures, "m", status) for status in ("delivered", "failed", "expired")] == [False, True, True]
    assert [note(everything, "m", status) for status in ("sent", "delivered", "failed")] == [True, True, True]
    assert [store.messages.wants("delivered") for store in (failures, everything)] == [False, True]
    for store in (failures, everything):
        await store.messages.flush()
    assert [len(await failures.messages.recent(agent=agent)) for agent in ("a", "b")] == [2, 3]


async def test_recent_filters(store: Store) -> None:
    for number in range(5):
        note(store, f"m{number}", "failed" if number % 2 else "expired")
    await store.messages.flush()
    assert [row.message_id for row in await store.messages.recent(limit=2)] == ["m4", "m3"]
    assert [row.message_id for row in await store.messages.recent(status="failed")] == ["m3", "m1"]
    assert [row.message_id for row in await store.messages.recent(message_id="m2")] == ["m2"]
    assert await store.messages.recent(since=datetime.now(UTC) + timedelta(hours=1)) == []
    assert await store.messages.recent(agent="nobody") == []
    with pytest.raises(InvalidValue, match="limit"):
        await store.messages.recent(limit=0)
    with pytest.raises(InvalidValue, match="since"):
        await store.messages.recent(since=datetime.now())


async def test_rows_are_written_in_few_commits(store: Store) -> None:
    for number in range(2500):
        note(store, f"m{number}")
    assert store.messages.queued == 2500
    await store.messages.flush()
    assert await commits(store, "message_log") <= 4
    assert store.messages.queued == 0
    assert await store.pool.fetchval(f"SELECT count(*) FROM {store.schema}.message_log") == 2500


async def test_closing_writes_what_waits(connect: Connect) -> None:
    store = await connect()
    note(store, "m1")
    await store.aclose()
    assert note(store, "m2") is False
    other = await connect()
    assert [row.message_id for row in await other.messages.recent()] == ["m1"]


async def test_a_full_queue_drops_the_oldest_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store.messages, "_max_queued", 3)
    for number in range(5):
        note(store, f"m{number}")
    assert store.messages.dropped == 2
    await store.messages.flush()
    assert [row.message_id for row in await store.messages.recent()] == ["m4", "m3", "m2"]
    assert "1 rows lost so far: more than 3 rows wait for PostgreSQL" in caplog.text


async def test_a_row_the_server_refuses_is_dropped_alone(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10):
        note(store, f"m{number}", attempts=2**40 if number == 3 else 1)
    await store.messages.flush()
    assert {row.message_id for row in await store.messages.recent()} == {f"m{n}" for n in range(10) if n != 3}
    assert store.messages.dropped == 1
    assert "1 rows lost so far" in caplog.text


async def test_arguments_are_checked_where_they_are_given(store: Store) -> None:
    with pytest.raises(InvalidValue, match="created_at"):
        note(store, "m", created_at=datetime.now())
    with pytest.raises(InvalidValue, match="body cannot be written as JSON"):
        note(store, "m", body={"x": object()})
    note(store, "m", error="x" * 100_000)
    await store.messages.flush()
    [row] = await store.messages.recent()
    assert len(row.error or "") == 8192


async def test_flush_with_nothing_to_do(store: Store) -> None:
    await asyncio.wait_for(store.messages.flush(), timeout=1)
