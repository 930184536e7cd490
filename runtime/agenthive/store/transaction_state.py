"""``tx.state``: documents read and written inside a transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from agenthive.store import codec
from agenthive.store.fold import Key, Write
from agenthive.store.state import SHARED, Versioned, expected_of, seconds_of

if TYPE_CHECKING:
    from agenthive.store.transaction import Transaction


class TransactionState:
    """The documents of one owner inside a transaction: as ``ctx.state``, but committed, or rolled back, with it.

    A document that was read here is locked until the transaction ends: another one that reads it waits, so what is made
    of the value that was read never overwrites a change.
    """

    def __init__(self, transaction: Transaction, owner: str, absent: set[Key]) -> None:
        self._transaction = transaction
        self._owner = owner
        #: What the transaction found not to exist.
        self._absent = absent

    @property
    def shared(self) -> TransactionState:
        """The documents that all agents of the hive share."""
        return TransactionState(self._transaction, SHARED, self._absent)

    async def get(self, key: str, default: Any = None) -> Any:
        """The document of ``key``, or ``default``; it is locked until the transaction ends, also if there is none.

        Raises:
            InvalidValue: the key cannot be one.
            StoreUnavailable: the connection was lost.
        """
        return (await self.get_versioned(key, default)).value

    async def get_versioned(self, key: str, default: Any = None) -> Versioned:
        """The document of ``key`` and its version, or ``(default, 0)``; else as ``get``."""
        place = (self._owner, codec.check_key(key))
        found = await self._transaction.read(place)
        if found is None:
            self._absent.add(place)
            return Versioned(default, 0)
        return Versioned(codec.decode(found[0]), found[1])

    async def set(
        self, key: str, value: Any, *, ttl: float | timedelta | None = None, expect_version: int | None = None
    ) -> int:
        """Write ``value`` under ``key`` with the commit; the new version. Arguments as of ``ctx.state.set``.

        Raises:
            VersionConflict: the key is at another version than ``expect_version``, or was not there when this
                transaction read it and was made meanwhile, outside of transactions.
            InvalidValue, ValueTooLarge: the store cannot keep the key or the value.
            StoreUnavailable: the connection was lost.
        """
        data = codec.encode(value, what=f"state key {key!r}")
        return await self._write(key, data, seconds_of(ttl), expected_of(expect_version))

    async def delete(self, key: str, *, expect_version: int | None = None) -> bool:
        """Delete ``key`` with the commit; True if there was something to delete. Raises as ``set``."""
        return bool(await self._write(key, None, None, expected_of(expect_version)))

    async def _write(self, key: str, data: str | None, ttl: float | None, expected: int | None) -> int:
        place = (self._owner, codec.check_key(key))
        if expected is None and place in self._absent:
            expected = 0
        result = await self._transaction.write(Write(place, data, ttl, expected))
        self._absent.discard(place)
        return result
