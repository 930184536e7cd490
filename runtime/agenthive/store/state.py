"""Agent state: versioned JSON documents by key.

Reads of concurrent callers become one query, writes one statement and one commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from agenthive.cache_entries import Change, Loaded, state_name
from agenthive.store import codec
from agenthive.store.batch import Batcher
from agenthive.store.database import RETRY_SECONDS, Connection, Database, is_broken
from agenthive.store.errors import InvalidValue, StoreError, StoreUnavailable, VersionConflict, is_row_error
from agenthive.store.fold import Current, Folded, Key, Row, Write, change, changes_of, fold, is_plain
from agenthive.store.naming import lock_key
from agenthive.store.statements import StateSql

if TYPE_CHECKING:
    from agenthive.cache import Cache

#: The owner of what all agents of a hive share; no agent's name is empty.
SHARED = ""
DEFAULT_LIST_LIMIT = 1000
_LAST_CHARACTER = 0x10FFFF
_FIRST_SURROGATE = 0xD800
_LAST_SURROGATE = 0xDFFF


class StateEntry(NamedTuple):
    """One document of ``StateStore.list``."""

    key: str
    value: Any
    version: int


class Versioned(NamedTuple):
    """A document and its version; version 0 stands for a key that does not exist."""

    value: Any
    version: int


class StateStore:
    """The documents of one owner: an agent, or the hive as a whole (``shared``).

    A version is a number that changes with every write to its key and is never used by that key again, not even after
    it was deleted. Replicas of an agent share its documents.
    """

    def __init__(self, lanes: StateLanes, owner: str, *, cached: bool = False) -> None:
        """``cached``: ``get`` goes through the cache, if the process has one."""
        self._lanes = lanes
        self._owner = owner
        self._cached = cached

    @property
    def shared(self) -> StateStore:
        """The documents that all agents of the hive share."""
        return StateStore(self._lanes, SHARED, cached=True)

    def for_agent(self, agent: str) -> StateStore:
        """The documents of ``agent``, always from PostgreSQL."""
        return StateStore(self._lanes, codec.check_key(agent, "agent"))

    async def get(self, key: str, default: Any = None) -> Any:
        """The document of ``key``, or ``default`` if there is none or it has expired.

        It may come from the cache, which knows of every write that returned, see docs/state.md.

        Raises:
            InvalidValue: the key cannot be one.
            StoreUnavailable: PostgreSQL did not come back within 30 s.
        """
        read = self._lanes.read_through if self._cached else self._lanes.read_text
        text = await read((self._owner, codec.check_key(key)))
        return default if text is None else codec.decode(text)

    async def get_versioned(self, key: str, default: Any = None) -> Versioned:
        """The document of ``key`` and its version, or ``(default, 0)``: what ``set(expect_version=…)`` takes.

        Always from PostgreSQL.

        Raises:
            As ``get``.
        """
        found = await self._lanes.read((self._owner, codec.check_key(key)))
        return Versioned(default, 0) if found is None else Versioned(codec.decode(found[0]), found[1])

    async def set(
        self, key: str, value: Any, *, ttl: float | timedelta | None = None, expect_version: int | None = None
    ) -> int:
        """Keep ``value`` under ``key``; when this returns, it is committed.

        Args:
            key: 1 to 1024 bytes.
            value: JSON, at most 1 MiB as text.
            ttl: seconds until it expires, by PostgreSQL's clock; None keeps it, also if it had a ttl before.
            expect_version: write only if the key is at this version; 0: only if it does not exist.

        Returns:
            The new version.

        Raises:
            VersionConflict: the key is at another version than ``expect_version``.
            ValueTooLarge, InvalidValue: the store cannot keep the key or the value.
            StoreUnavailable: PostgreSQL did not come back within 30 s. The write may have happened nevertheless.
        """
        data = codec.encode(value, what=f"state key {key!r}")
        write = Write((self._owner, codec.check_key(key)), data, seconds_of(ttl), expected_of(expect_version))
        return await self._lanes.write(write, len(data))

    async def delete(self, key: str, *, expect_version: int | None = None) -> bool:
        """Delete ``key``; when this returns, that is committed.

        Args:
            key: need not exist.
            expect_version: delete only if the key is at this version.

        Returns:
            True if there was something to delete. (After a lost connection the deletion may be repeated, and
            False mean that the first try did it.)

        Raises:
            VersionConflict, InvalidValue, StoreUnavailable: as ``set``.
        """
        write = Write((self._owner, codec.check_key(key)), None, None, expected_of(expect_version))
        return bool(await self._lanes.write(write, 0))

    async def list(
        self, prefix: str = "", *, limit: int = DEFAULT_LIST_LIMIT, after: str | None = None
    ) -> list[StateEntry]:
        """The documents whose key starts with ``prefix``, ordered by key (by code point).

        Args:
            prefix: empty for all.
            limit: most entries, at least 1.
            after: continue behind this key: the last one of the page before.

        Raises:
            InvalidValue: prefix, limit or after make no sense.
            StoreUnavailable: as ``get``.
        """
        if limit < 1:
            raise InvalidValue(f"limit must be at least 1, not {limit}")
        for name, text in (("prefix", prefix), ("after", after)):
            if text:
                codec.check_key(text, name)
        return await self._lanes.page(self._owner, prefix, after, limit)


def seconds_of(ttl: float | timedelta | None) -> float | None:
    """A ``ttl`` in seconds. Raises InvalidValue for one that makes no sense."""
    if ttl is None:
        return None
    seconds = codec.check_finite(ttl.total_seconds() if isinstance(ttl, timedelta) else ttl, "ttl")
    # A thousand years: PostgreSQL's timestamps end somewhere, and a ttl beyond is a mistake in units.
    if not 0 < seconds <= 31_557_600_000:
        raise InvalidValue(f"ttl must be more than 0 and at most a thousand years, in seconds, not {seconds:g}")
    return seconds


def expected_of(version: int | None) -> int | None:
    """``version`` itself. Raises InvalidValue for one that cannot be expected."""
    if version is not None and (not isinstance(version, int) or version < 0):
        raise InvalidValue(f"expect_version must be a version that set() or get_versioned() returned, not {version!r}")
    return version


def prefix_end(prefix: str) -> str | None:
    """The first string behind all that start with ``prefix``, by code point; None if there is none."""
    for length in range(len(prefix), 0, -1):
        code = ord(prefix[length - 1])
        if code < _LAST_CHARACTER:
            following = code + 1
            if _FIRST_SURROGATE <= following <= _LAST_SURROGATE:
                following = _LAST_SURROGATE + 1
            return prefix[: length - 1] + chr(following)
    return None


Found = tuple[str, int]


class StateLanes:
    """The SQL of agent state, and the batches of one process; one per store, shared by its ``StateStore`` views."""

    def __init__(self, database: Database, schema: str, cache: Cache | None = None) -> None:
        self._database = database
        self._schema = schema
        self._cache = cache
        self._sql = StateSql(schema)
        self._reads: Batcher[Key, Found | None] = Batcher(
            "state reads", self._flush_reads, explain=database.explain, patience=RETRY_SECONDS
        )
        self._loads: Batcher[Key, Loaded] = Batcher(
            "state loads", self._flush_loads, explain=database.explain, patience=RETRY_SECONDS
        )
        self._writes: Batcher[Write, int] = Batcher(
            "state writes", self._flush_writes, explain=database.explain, patience=RETRY_SECONDS
        )

    async def read(self, key: Key) -> Found | None:
        """Text and version of ``key``, in the next query."""
        return await self._reads.submit(key)

    async def read_text(self, key: Key) -> str | None:
        """Text of ``key``, in the next query."""
        found = await self._reads.submit(key)
        return None if found is None else found[0]

    async def read_through(self, key: Key) -> str | bytes | None:
        """Text of ``key`` from the cache, which asks PostgreSQL for what it has not."""
        if self._cache is None:
            return await self.read_text(key)
        return await self._cache.read("state", state_name(*key), lambda: self._loads.submit(key))

    async def changed(self, changes: Sequence[Change]) -> None:
        """Tell the cache what was committed to ``agent_state`` by others than these lanes.

        To be awaited after the commit and before anybody learns of it; also where it is not known whether the
        transaction was committed, then with ``Change(state_name(owner, key))`` for each key. Never raises.

        Args:
            changes: see ``fold.change``; a ``Change`` of nothing but a name for what was deleted.
        """
        if self._cache is not None:
            await self._cache.changed(changes)

    async def write(self, write: Write, size: int) -> int:
        """Do ``write`` with the next commit: the new version, or 1 or 0 for a deletion."""
        return await self._writes.submit(write, size)

    async def read_within(self, connection: Connection, key: Key) -> Found | None:
        """Text and version of ``key`` in the caller's transaction, at whose end other transactions may read it, too."""
        row = await connection.fetchrow(self._sql.read_locked, *key)
        if row is None:
            # There is no row to lock. Another transaction may have had this lock, and made the row: a new statement
            # sees it.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", lock_key("state", self._schema, *key))
            row = await connection.fetchrow(self._sql.read_locked, *key)
        return (row["value"], row["version"]) if row is not None and row["alive"] else None

    async def write_within(self, connection: Connection, write: Write) -> int:
        """Do ``write`` in the caller's transaction: the new version, or 1 or 0 for a deletion.

        Raises:
            VersionConflict: the key is at another version than the write expects.
        """
        if is_plain([write]):
            return (await self._upsert(connection, [write]))[0]
        folded = fold([write], *await self._lock(connection, [write.key]))
        (result,) = folded.results
        if isinstance(result, StoreError):
            raise result
        if not await self._apply(connection, folded):
            # Somebody else's insertion was committed after we had looked, so that now there is a row to lock.
            current, _ = await self._lock(connection, [write.key])
            found = current.get(write.key)
            raise VersionConflict(write.key[1], 0, found.version if found is not None and found.alive else 0)
        return result

    async def page(self, owner: str, prefix: str, after: str | None, limit: int) -> list[StateEntry]:
        """See ``StateStore.list``."""
        end = prefix_end(prefix)
        query = self._sql.page if end is None else self._sql.page_of_prefix
        arguments = (owner, prefix, after or "", limit) if end is None else (owner, prefix, after or "", limit, end)
        with self._database.translating():
            rows = await self._database.run(lambda connection: connection.fetch(query, *arguments))
        return [StateEntry(key, codec.decode(value), version) for key, value, version in rows]

    async def purge_expired(self, limit: int = 10_000) -> int:
        """Delete up to ``limit`` documents that have expired; how many that were."""
        with self._database.translating():
            return int(await self._database.run(lambda connection: connection.fetchval(self._sql.purge, limit)))

    async def aclose(self, timeout: float) -> None:
        """Flush what waits."""
        await self._writes.aclose(timeout)
        await self._reads.aclose(timeout)
        await self._loads.aclose(timeout)

    async def _flush_reads(self, keys: Sequence[Key], deadline: float) -> list[Found | None]:
        rows = await self._fetch(self._sql.read, keys, deadline)
        return [rows.get(key) for key in keys]

    async def _flush_loads(self, keys: Sequence[Key], deadline: float) -> list[Loaded]:
        rows = await self._fetch(self._sql.load, keys, deadline)
        return [Loaded(*rows[key]) if key in rows else Loaded(None) for key in keys]

    async def _fetch(self, statement: str, keys: Sequence[Key], deadline: float) -> dict[Key, Any]:
        owners: dict[str, set[str]] = {}
        for owner, key in keys:
            owners.setdefault(owner, set()).add(key)

        async def query(connection: Connection) -> dict[Key, Any]:
            # A query per owner, nearly always one: the index is (agent, key), and = ANY walks it key by key.
            found: dict[Key, Any] = {}
            for owner, names in owners.items():
                for key, *rest in await connection.fetch(statement, owner, list(names)):
                    found[owner, key] = rest
            return found

        return await self._database.run(query, deadline=deadline)

    async def _flush_writes(self, writes: Sequence[Write], deadline: float) -> Sequence[int | StoreError]:
        try:
            results, changes = await (
                self._write_plain(writes, deadline) if is_plain(writes) else self._write_folded(writes, deadline)
            )
        except BaseException as error:
            # Nobody knows whether it was committed, unless PostgreSQL has refused it.
            if self._cache is not None and not is_row_error(error):
                await self._cache.forget([state_name(*write.key) for write in writes])
            raise
        # Nobody learns of the commit before the cache has. (To let the next batch fly meanwhile gains nothing: where
        # all writers wait, it splits them into two batches of half the size.)
        await self.changed(changes)
        return results

    async def _write_plain(self, writes: Sequence[Write], deadline: float) -> tuple[list[int], list[Change]]:
        versions = await self._database.run(lambda connection: self._upsert(connection, writes), deadline=deadline)
        if self._cache is None:
            return versions, []
        # A try that was committed and not answered leaves a version between: then the cache just forgets.
        return versions, [
            change(write.key, version, write.data or "", write.ttl, before=version - 1)
            for write, version in zip(writes, versions, strict=True)
        ]

    async def _upsert(self, connection: Connection, writes: Sequence[Write]) -> list[int]:
        """Sets of distinct keys with no condition: one statement, which is its own transaction."""
        ordered = sorted(writes, key=lambda write: write.key)  # processes lock rows in one order: no deadlocks
        rows = await connection.fetch(
            self._sql.upsert,
            [write.key[0] for write in ordered],
            [write.key[1] for write in ordered],
            [write.data for write in ordered],
            [write.ttl for write in ordered],
        )
        versions = {(agent, key): version for agent, key, version in rows}
        return [versions[write.key] for write in writes]

    async def _write_folded(
        self, writes: Sequence[Write], deadline: float
    ) -> tuple[list[int | StoreError], list[Change]]:
        """Anything else: lock the rows, decide in Python, write what it comes to."""
        keys = sorted({write.key for write in writes})
        outcome_unknown = False

        async def transact(connection: Connection) -> tuple[list[int | StoreError], list[Change]] | None:
            nonlocal outcome_unknown
            transaction = connection.transaction()
            await transaction.start()
            try:
                current, birth = await self._lock(connection, keys)
                folded = fold(writes, current, birth)
                complete = await self._apply(connection, folded)
            except BaseException as error:
                if not is_broken(error):
                    await transaction.rollback()
                raise
            if not complete:
                await transaction.rollback()
                return None
            was_unknown, outcome_unknown = outcome_unknown, True
            await transaction.commit()
            outcome_unknown = was_unknown
            return folded.results, changes_of(folded, current) if self._cache is not None else []

        done = None
        while done is None:  # each round that fails is one in which another process made one of our keys
            done = await self._database.run(transact, deadline=deadline, own_transaction=True)
        results, changes = done
        if outcome_unknown:
            # A try whose commit was not answered may have counted: a conflict may be with ourselves.
            changes = [Change(state_name(*key)) for key in keys]
            results = [_doubt(result) if isinstance(result, VersionConflict) else result for result in results]
        return results, changes

    async def _lock(self, connection: Connection, keys: Sequence[Key]) -> tuple[dict[Key, Current], int]:
        """Lock the rows of ``keys``, in order; what they are, and the version a new row would start with."""
        rows = await connection.fetch(self._sql.lock, *_columns(keys))
        current = {
            (row["agent"], row["key"]): Current(row["version"], row["alive"])
            for row in rows
            if row["agent"] is not None
        }
        return current, rows[0]["birth"]

    async def _apply(self, connection: Connection, folded: Folded) -> bool:
        """Write what was decided; False if a row to insert is there by now, so that it has to be decided anew."""
        if folded.inserts:
            rows = await connection.fetch(self._sql.insert, *_row_columns(folded.inserts))
            if len(rows) < len(folded.inserts):
                return False
        if folded.updates:
            await connection.execute(self._sql.update, *_row_columns(folded.updates))
        if folded.deletes:
            await connection.execute(self._sql.delete, *_columns(folded.deletes))
        return True


def _doubt(conflict: VersionConflict) -> StoreUnavailable:
    return StoreUnavailable(
        f"state key {conflict.key!r}: the connection was lost while the write was being committed, and whether it was "
        "cannot be told: read it again with get_versioned()"
    )


def _columns(keys: Sequence[Key]) -> tuple[list[str], list[str]]:
    return [agent for agent, _ in keys], [key for _, key in keys]


def _row_columns(rows: Sequence[Row]) -> tuple[list[str], list[str], list[str], list[float | None], list[int]]:
    return (
        [row.key[0] for row in rows],
        [row.key[1] for row in rows],
        [row.data for row in rows],
        [row.ttl for row in rows],
        [row.version for row in rows],
    )
