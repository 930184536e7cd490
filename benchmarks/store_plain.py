"""The same work with plain asyncpg: one statement per row through a pool, and the two fastest ways there are."""

from __future__ import annotations

import itertools
from typing import Any

import orjson

from agenthive.store import codec, schema_name
from agenthive.store.naming import quote
from benchmarks.ours import BODY
from benchmarks.store_load import AGENT, DOCUMENT, OTHERS, Call

_SCHEMA = quote(schema_name(OTHERS))
STATE, METRICS = f"{_SCHEMA}.agent_state", f"{_SCHEMA}.agent_metrics"
_STATE_COLUMNS = ("agent", "key", "value", "version")
_METRIC_COLUMNS = ("id", "agent_name", "metric_type", "value", "timestamp", "metadata")
_calls = itertools.count()


def single_sets(pool: Any) -> Call:
    """A document per INSERT; each call opens and commits a transaction of its own, as ``pool.execute`` does."""
    query = f"INSERT INTO {STATE} (agent, key, value, version) VALUES ($1, $2, $3::text::json, 1)"
    return lambda who, number: pool.execute(query, AGENT, f"{who}/{number}/{next(_calls)}", orjson.dumps(BODY).decode())


def single_records(pool: Any) -> Call:
    """A figure per INSERT."""
    query = (
        f"INSERT INTO {METRICS} (agent_name, metric_type, value, timestamp, metadata) "
        "VALUES ($1, $2, $3, $4, $5::text::jsonb)"
    )
    return lambda who, number: pool.execute(
        query, AGENT, "latency_ms", float(number), codec.utc_now(), orjson.dumps({"n": who}).decode()
    )


def single_reads(pool: Any, keys: list[str]) -> Call:
    """A document per SELECT, decoded."""
    query = f"SELECT value::text FROM {STATE} WHERE agent = $1 AND key = $2"

    async def read(who: int, number: int) -> Any:
        return orjson.loads(await pool.fetchval(query, AGENT, keys[(who * 7919 + number * 104_729) % len(keys)]))

    return read


def unnest_sets(pool: Any, rows: int) -> Call:
    """One connection, so many documents per statement, one statement after the other."""
    query = (
        f"INSERT INTO {STATE} (agent, key, value, version) "
        "SELECT i.a, i.k, i.v::json, 1 FROM unnest($1::text[], $2::text[], $3::text[]) AS i(a, k, v)"
    )

    def call(who: int, number: int) -> Any:
        first = next(_calls)
        keys = [f"{first}/{row}" for row in range(rows)]
        return pool.execute(query, [AGENT] * rows, keys, [DOCUMENT] * rows)

    return call


def unnest_records(pool: Any, rows: int) -> Call:
    """One connection, so many figures per statement, one statement after the other."""
    query = (
        f"INSERT INTO {METRICS} (agent_name, metric_type, value, timestamp, metadata) "
        "SELECT i.a, i.t, i.v, i.w, i.m::jsonb "
        "FROM unnest($1::text[], $2::text[], $3::float8[], $4::timestamptz[], $5::text[]) AS i(a, t, v, w, m)"
    )

    def call(who: int, number: int) -> Any:
        now = codec.utc_now()
        values = [float(row) for row in range(rows)]
        return pool.execute(query, [AGENT] * rows, ["latency_ms"] * rows, values, [now] * rows, ['{"n":1}'] * rows)

    return call


def copy_sets(pool: Any, rows: int) -> Call:
    """One connection, so many documents per COPY."""

    def call(who: int, number: int) -> Any:
        first = next(_calls)
        records = [(AGENT, f"{first}/{row}", DOCUMENT, 1) for row in range(rows)]
        return pool.copy_records_to_table(
            "agent_state", schema_name=schema_name(OTHERS), records=records, columns=_STATE_COLUMNS
        )

    return call


def copy_records(pool: Any, rows: int) -> Call:
    """One connection, so many figures per COPY."""

    def call(who: int, number: int) -> Any:
        now = codec.utc_now()
        records = [(codec.new_id(), AGENT, "latency_ms", float(row), now, '{"n":1}') for row in range(rows)]
        return pool.copy_records_to_table(
            "agent_metrics", schema_name=schema_name(OTHERS), records=records, columns=_METRIC_COLUMNS
        )

    return call
