"""The SQL of the store, with the hive's schema written out: no search_path is relied on, so that PgBouncer may pool."""
# ruff: noqa: S608 - the only text put into a statement is a quoted identifier or a constant; values are parameters

from __future__ import annotations

import math
from collections.abc import Mapping

from agenthive.store.naming import literal, quote

# Operands have exactly the types of their operators: where others may make objects in the schema ``public``, one of
# their operators that fits better would be run in place of PostgreSQL's.
_ALIVE = "(expires_at IS NULL OR expires_at > clock_timestamp())"
_BIRTH = "(extract(epoch FROM clock_timestamp()) * 1000000::numeric)::bigint"
_EXPIRY = "now() + i.ttl * interval '1 second'"


class StateSql:
    """Statements on ``agent_state``; those that write take a column of values per parameter."""

    def __init__(self, schema: str) -> None:
        table = f"{quote(schema)}.agent_state"
        keys = "unnest($1::text[], $2::text[]) AS i (agent, key)"
        fields = "(agent, key, value, ttl, version)"
        rows = f"unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::bigint[]) AS i {fields}"
        columns = "(agent, key, value, version, expires_at, updated_at)"
        document = f"SELECT key, value::text, version FROM {table} WHERE agent = $1"

        by_key = "AND key = ANY($2::text[])"
        self.read = f"{document} {by_key} AND {_ALIVE}"
        # With the seconds that are left of its life.
        self.load = f"""
            SELECT key, value::text, version, extract(epoch FROM expires_at - clock_timestamp())::float8
            FROM {table} WHERE agent = $1 {by_key} AND {_ALIVE}
        """
        listing = f"{document} AND key >= $2 AND key > $3 AND {_ALIVE}"
        self.page = f"{listing} ORDER BY key LIMIT $4"
        self.page_of_prefix = f"{listing} AND key < $5 ORDER BY key LIMIT $4"
        self.upsert = f"""
            INSERT INTO {table} AS s {columns}
            SELECT i.agent, i.key, i.value::json, {_BIRTH}, {_EXPIRY}, now()
            FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[]) AS i (agent, key, value, ttl)
            ON CONFLICT (agent, key) DO UPDATE SET value = excluded.value, version = s.version + 1,
                expires_at = excluded.expires_at, updated_at = excluded.updated_at
            RETURNING s.agent, s.key, s.version
        """
        # For transactions: nobody else reads it to change it until they end.
        self.read_locked = f"""
            SELECT value::text AS value, version, {_ALIVE} AS alive FROM {table}
            WHERE agent = $1 AND key = $2 FOR UPDATE
        """
        # One row at least, for the birth; the rest of it is null where no key has a row.
        self.lock = f"""
            WITH locked AS (
                SELECT s.agent, s.key, s.version, {_ALIVE} AS alive
                FROM {table} AS s JOIN {keys} ON s.agent = i.agent AND s.key = i.key
                ORDER BY s.agent, s.key
                FOR UPDATE OF s
            )
            SELECT t.birth, l.agent, l.key, l.version, l.alive
            FROM (SELECT {_BIRTH} AS birth) AS t LEFT JOIN locked AS l ON true
        """
        self.insert = f"""
            INSERT INTO {table} AS s {columns}
            SELECT i.agent, i.key, i.value::json, i.version, {_EXPIRY}, now() FROM {rows}
            ON CONFLICT (agent, key) DO NOTHING
            RETURNING s.version
        """
        self.update = f"""
            UPDATE {table} AS s
            SET value = i.value::json, version = i.version, expires_at = {_EXPIRY}, updated_at = now()
            FROM {rows} WHERE s.agent = i.agent AND s.key = i.key
        """
        self.delete = f"DELETE FROM {table} AS s USING {keys} WHERE s.agent = i.agent AND s.key = i.key"
        self.purge = f"""
            WITH gone AS (
                DELETE FROM {table} WHERE (agent, key) IN (
                    SELECT agent, key FROM {table} WHERE expires_at <= now()
                    ORDER BY agent, key LIMIT $1 FOR UPDATE SKIP LOCKED
                ) RETURNING 1
            )
            SELECT count(*) FROM gone
        """


class MetricsSql:
    """Statements on ``agent_metrics``."""

    def __init__(self, schema: str) -> None:
        table = f"{quote(schema)}.agent_metrics"
        columns = "id, agent_name, metric_type, value, timestamp, metadata"
        # The id comes from the client: a batch that is repeated after a lost connection finds its rows and adds none.
        self.insert = f"""
            INSERT INTO {table} ({columns})
            SELECT i.id, i.agent_name, i.metric_type, i.value, i.timestamp, i.metadata::jsonb
            FROM unnest($1::uuid[], $2::text[], $3::text[], $4::float8[], $5::timestamptz[], $6::text[])
                AS i ({columns})
            ON CONFLICT DO NOTHING
        """
        self.select = f"SELECT {columns} FROM {table}"
        self.newest_first = "ORDER BY timestamp DESC, id DESC"
        self._table = table

    def types(self, days: str, *, agent: bool) -> str:
        """What is recorded between $1 and $2 (of agent $4): at most $3 rows. ``days``: see store/windows.py."""
        of_agent = "AND agent_name = $4" if agent else ""
        return f"""
            SELECT agent_name, metric_type, count(*) AS count, max(timestamp) AS latest FROM {self._table}
            WHERE timestamp >= $1 AND timestamp < $2 AND {days} {of_agent}
            GROUP BY agent_name, metric_type ORDER BY agent_name, metric_type LIMIT $3
        """

    def series(self, days: str, *, agent: bool) -> str:
        """Type $3 between $1 and $2 (of agent $6) by steps of $4, with percentile $5 or without where that is null."""
        of_agent = "AND agent_name = $6" if agent else ""
        # Buckets begin at multiples of the step counted from a Monday: those of a day, an hour or a week where people
        # expect it. No avg(): it squares the values, and so fails at 1e154.
        return f"""
            SELECT date_bin($4, timestamp, '2001-01-01 00:00:00+00') AS start, count(*) AS count,
                min(value) AS minimum, sum(value) / count(*) AS average, max(value) AS maximum, sum(value) AS total,
                (array_agg(value ORDER BY timestamp DESC, id DESC))[1] AS last,
                percentile_cont($5::float8) WITHIN GROUP (ORDER BY value) AS percentile
            FROM {self._table}
            WHERE timestamp >= $1 AND timestamp < $2 AND {days} AND metric_type = $3 {of_agent}
            GROUP BY 1 ORDER BY 1
        """


class MessagesSql:
    """Statements on ``message_log``."""

    def __init__(self, schema: str) -> None:
        table = f"{quote(schema)}.message_log"
        columns = (
            "agent, message_id, from_agent, to_agent, message_type, status, attempts, error, created_at, logged_at"
        )
        self.insert = f"""
            INSERT INTO {table} (id, {columns}, body)
            SELECT i.id, {columns}, i.body::json FROM unnest(
                $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::integer[],
                $9::text[], $10::timestamptz[], $11::timestamptz[], $12::text[]
            ) AS i (id, {columns}, body)
            ON CONFLICT DO NOTHING
        """
        self.select = f"SELECT {columns}, body FROM {table}"
        self.newest_first = "ORDER BY logged_at DESC, id DESC"


class AuditSql:
    """Statements on ``audit_log``; they need INSERT and SELECT, and nothing else."""

    def __init__(self, schema: str) -> None:
        table, anchors = f"{quote(schema)}.audit_log", f"{quote(schema)}.audit_anchors"
        columns = "chain, seq, at, agent, actor, action, subject, details, previous, hash"
        types = ["text", "bigint", "timestamptz", "text", "text", "text", "text", "text", "bytea", "bytea"]
        arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, 1))
        self.insert = f"""
            INSERT INTO {table} ({columns}) SELECT {columns} FROM unnest({arrays}) AS i ({columns})
            ON CONFLICT DO NOTHING
        """
        self.hold = f"LOCK TABLE {table} IN ACCESS SHARE MODE"
        self.hashes = f"SELECT seq, hash FROM {table} WHERE chain = $1 AND seq BETWEEN $2 AND $3"
        self.select = f"SELECT {columns} FROM {table}"
        self.newest_first = "ORDER BY at DESC, chain DESC, seq DESC"
        # A row comparison, so that a page is read off the primary key of each partition.
        self.page = f"{self.select} WHERE (chain, seq, at) > ($1, $2, $3) ORDER BY chain, seq, at LIMIT $4"
        self.anchors = f"SELECT chain, seq, at, hash FROM {anchors} WHERE chain = ANY($1::text[])"
        # One look into the primary keys per chain, however many rows it has.
        last = f"SELECT chain, seq, at, hash FROM {table} {{}} ORDER BY chain DESC, seq DESC, at DESC LIMIT 1"
        self.heads = f"""
            WITH RECURSIVE heads AS (
                ({last.format("")})
                UNION ALL
                SELECT n.* FROM heads h CROSS JOIN LATERAL ({last.format("WHERE chain < h.chain")}) n
            )
            SELECT chain, seq, at, hash FROM heads ORDER BY chain
        """


class TransactionSql:
    """Statements on ``inbox`` and ``outbox``. Each names the agent, whose rows alone its role may see."""

    def __init__(self, schema: str) -> None:
        inbox, outbox = f"{quote(schema)}.inbox", f"{quote(schema)}.outbox"
        self._inbox = inbox
        # Not now(), which is when the transaction began: the sweep would take what was written at the end of a long one
        # for what a dead process has left. Rows of one statement are in the order of their ids.
        self.insert = f"""
            INSERT INTO {outbox} (id, agent, cause, kind, message_id, recipient, document, created_at, due_at)
            SELECT i.id, $1, $2, i.kind, i.message_id, i.recipient, i.document, statement_timestamp(),
                statement_timestamp() + $8::float8 * interval '1 second'
            FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[])
                AS i (id, kind, message_id, recipient, document)
        """
        # What is known of messages that may have been handled before; a row for each that was, and for each row of its
        # outbox.
        self.handled = f"""
            SELECT i.message_id AS mark, o.id, o.cause, o.kind, o.message_id, o.recipient,
                octet_length(o.document) AS size, o.created_at,
                CASE WHEN o.kind = 'reply' THEN o.document END AS document
            FROM {inbox} AS i LEFT JOIN {outbox} AS o ON o.agent = i.agent AND o.cause = i.message_id
            WHERE i.agent = $1 AND i.message_id = ANY($2::text[])
        """
        self.take = f"""
            WITH due AS (
                SELECT id FROM {outbox}
                WHERE agent = $1 AND due_at < clock_timestamp() + $5::float8 * interval '1 second'
                ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
            )
            UPDATE {outbox} AS o
            SET tries = o.tries + 1,
                due_at = clock_timestamp()
                    + least($3::float8 * 2::float8 ^ least(o.tries, 30)::float8, $4::float8) * interval '1 second'
            FROM due WHERE o.id = due.id AND o.agent = $1
            RETURNING o.id, o.cause, o.kind, o.message_id, o.recipient, octet_length(o.document) AS size, o.created_at
        """
        self.documents = f"SELECT id, document FROM {outbox} WHERE agent = $1 AND id = ANY($2::uuid[])"
        self.delete = f"DELETE FROM {outbox} WHERE agent = $1 AND id = ANY($2::uuid[])"
        self.forget = f"""
            WITH gone AS (
                DELETE FROM {inbox} WHERE (agent, message_id) IN (
                    SELECT agent, message_id FROM {inbox} WHERE keep_until < now() LIMIT $1 FOR UPDATE SKIP LOCKED
                ) RETURNING 1
            )
            SELECT count(*) FROM gone
        """

    def mark(self, agent: str, message_id: str, keep_seconds: float, idle_seconds: int) -> str:
        """What follows the BEGIN of a handling: its status is ``INSERT 0 1``, or ``INSERT 0 0`` if the mark is there.

        A second handling of the message waits for the end of the first. That of a machine which is gone is ended by the
        server, hence the limit, which lasts as long as the transaction.
        """
        return f"""
            SET LOCAL idle_in_transaction_session_timeout = '{idle_seconds}s';
            INSERT INTO {self._inbox} (agent, message_id, keep_until)
            VALUES ({literal(agent)}, {literal(message_id)},
                now() + {math.ceil(keep_seconds)}::float8 * interval '1 second')
            ON CONFLICT DO NOTHING
        """


def filtered(
    select: str, order: str, conditions: Mapping[str, object | None], limit: int, *, constant: str = ""
) -> tuple[str, list[object]]:
    """A query and its arguments.

    Args:
        select: ``SELECT … FROM …``.
        order: ``ORDER BY …``.
        conditions: column and operator, such as ``"agent ="`` → the value; those with None are left out.
        limit: most rows.
        constant: a condition without parameters.
    """
    given = {condition: value for condition, value in conditions.items() if value is not None}
    tests = [f"{condition} ${number}" for number, condition in enumerate(given, 1)]
    if constant:
        tests.append(constant)
    where = f"WHERE {' AND '.join(tests)}" if tests else ""
    return f"{select} {where} {order} LIMIT ${len(given) + 1}", [*given.values(), limit]
