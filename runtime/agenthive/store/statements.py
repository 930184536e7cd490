"""The SQL of the store, with the hive's schema written out: no search_path is relied on, so that PgBouncer may pool."""
# ruff: noqa: S608 - the only text put into a statement is a quoted identifier or a constant; values are parameters

from __future__ import annotations

from collections.abc import Mapping

from agenthive.store.naming import quote

_ALIVE = "(expires_at IS NULL OR expires_at > clock_timestamp())"
_BIRTH = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
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

        self.read = f"{document} AND key = ANY($2::text[]) AND {_ALIVE}"
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


class TransactionSql:
    """Statements on ``inbox`` and ``outbox``. Each names the agent, whose rows alone its role may see."""

    def __init__(self, schema: str) -> None:
        inbox, outbox = f"{quote(schema)}.inbox", f"{quote(schema)}.outbox"
        # A second handling of the message waits here for the end of the first. That of a machine which is gone is ended
        # by the server, hence the limit, which lasts as long as the transaction.
        self.mark = f"""
            INSERT INTO {inbox} (agent, message_id, keep_until) VALUES ($1, $2, now() + $3 * interval '1 second')
            ON CONFLICT DO NOTHING
            RETURNING set_config('idle_in_transaction_session_timeout', $4, true)
        """
        # Not now(), which is when the transaction began: the sweep would take what was written at the end of a long one
        # for what a dead process has left. Rows of one statement are in the order of their ids.
        self.insert = f"""
            INSERT INTO {outbox} (id, agent, cause, kind, message_id, recipient, document, created_at, due_at)
            SELECT i.id, $1, $2, i.kind, i.message_id, i.recipient, i.document, statement_timestamp(),
                statement_timestamp() + $8 * interval '1 second'
            FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[])
                AS i (id, kind, message_id, recipient, document)
        """
        columns = "id, cause, kind, message_id, recipient, octet_length(document) AS size, created_at"
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
                SELECT id FROM {outbox} WHERE agent = $1 AND due_at < clock_timestamp() + $5 * interval '1 second'
                ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
            )
            UPDATE {outbox} AS o
            SET tries = o.tries + 1,
                due_at = clock_timestamp() + least($3 * 2.0 ^ least(o.tries, 30), $4) * interval '1 second'
            FROM due WHERE o.id = due.id AND o.agent = $1
            RETURNING o.id, o.cause, o.kind, o.message_id, o.recipient, octet_length(o.document) AS size, o.created_at
        """
        self.find = f"SELECT {columns} FROM {outbox} WHERE agent = $1 AND id = ANY($2::uuid[])"
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


def filtered(select: str, order: str, conditions: Mapping[str, object | None], limit: int) -> tuple[str, list[object]]:
    """A query and its arguments.

    Args:
        select: ``SELECT … FROM …``.
        order: ``ORDER BY …``.
        conditions: column and operator, such as ``"agent ="`` → the value; those with None are left out.
        limit: most rows.
    """
    given = {condition: value for condition, value in conditions.items() if value is not None}
    tests = [f"{condition} ${number}" for number, condition in enumerate(given, 1)]
    where = f"WHERE {' AND '.join(tests)}" if tests else ""
    return f"{select} {where} {order} LIMIT ${len(given) + 1}", [*given.values(), limit]
