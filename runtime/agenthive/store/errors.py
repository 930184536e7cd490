"""What can go wrong with the store, and how PostgreSQL's own errors are told apart.

Callers see only the classes below; each message says what was wrong, where, and what to do.
"""
# ruff: noqa: N818 - they are named for what is the case: `except SchemaMissing` reads better

from __future__ import annotations

import asyncpg

#: Connections refused for now: the server starts, stops, or has none left; or ended, for its transaction sat idle.
_TRANSIENT_STATES = frozenset({"57P01", "57P02", "57P03", "53300", "25P03"})
#: The statement lost to another one and left nothing behind.
_COLLISION_STATES = frozenset({"40001", "40P01"})
#: The server ended a statement that took too long, or waited too long for a lock, by a limit of its own.
_OVERTIME_STATES = frozenset({"57014", "55P03"})
_AUTH_STATES = frozenset({"28000", "28P01"})
#: Error classes that one row of many can cause: bad data, broken constraint, refused by a policy, too large, trigger.
_ROW_CLASSES = ("22", "23", "54", "P0")
_ROW_STATES = frozenset({"42501", "44000"})


class StoreError(Exception):
    """Base of everything the store raises."""


class StoreUnavailable(StoreError):
    """PostgreSQL cannot be reached, or did not answer within the deadline. Trying again later may help."""


class StoreClosed(StoreUnavailable):
    """The store of this process was closed."""


class StoreAuthError(StoreError):
    """PostgreSQL refused the user or the password."""


class StorePermissionError(StoreError):
    """The role may not do this."""


class SchemaError(StoreError):
    """The hive's schema does not fit this code."""


class SchemaMissing(SchemaError):
    """The hive's schema is not there, or older than this code: it has to be upgraded first."""


class SchemaTooNew(SchemaError):
    """The hive's schema is newer than this code: the code has to be upgraded first."""


class MigrationError(SchemaError):
    """A migration failed, or one that was applied has changed since."""


class InvalidValue(StoreError, ValueError):
    """A key, a value or an argument that the store cannot keep."""


class ValueTooLarge(InvalidValue):
    """A document over the size limit."""


class VersionConflict(StoreError):
    """A compare-and-set found another version than the expected one.

    Attributes:
        key: the key.
        expected: the version the caller expected; 0 means that the key must not exist.
        current: the version found; 0 means that the key does not exist.
    """

    def __init__(self, key: str, expected: int, current: int) -> None:
        super().__init__(
            f"state key {key!r}: expected {_version(expected)}, found {_version(current)}; "
            "read it again with get_versioned() and repeat the change on what is there now"
        )
        self.key = key
        self.expected = expected
        self.current = current


def _version(number: int) -> str:
    return f"version {number}" if number else "no such key"


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of ``error``; empty for what did not come from the server."""
    return str(getattr(error, "sqlstate", None) or "") if isinstance(error, asyncpg.PostgresError) else ""


def is_connection_loss(error: BaseException) -> bool:
    """True for errors of the connection itself: lost, refused, timed out. The statement may have been committed."""
    if isinstance(error, asyncpg.PostgresError):
        return sqlstate(error) in _TRANSIENT_STATES or sqlstate(error).startswith("08")
    if isinstance(error, asyncpg.InterfaceError):
        # asyncpg has no class of its own for a call on a connection that went away under it, between two statements:
        # "connection is closed", "connection has been released back to the pool". DataError, a ValueError, is no loss.
        return not isinstance(error, ValueError) and any(
            word in str(error) for word in ("closed", "closing", "released")
        )
    return isinstance(error, OSError | TimeoutError | asyncpg.InternalClientError)


def is_collision(error: BaseException) -> bool:
    """True for a deadlock or serialization failure: rolled back, to be repeated as it was.

    So is what PostgreSQL calls an internal error: two changed the same catalog row at once, as two GRANTs on a table
    do, for which it takes no lock. It has no state of its own, and its text is never translated.
    """
    return sqlstate(error) in _COLLISION_STATES or (
        isinstance(error, asyncpg.InternalServerError) and str(error).startswith("tuple concurrently ")
    )


def is_lock_timeout(error: BaseException) -> bool:
    """True if a lock was not granted within ``lock_timeout``."""
    return sqlstate(error) == "55P03"


def is_row_error(error: BaseException) -> bool:
    """True where one bad row of a batch can be the cause, so that the others deserve another try without it."""
    if isinstance(error, InvalidValue | asyncpg.DataError):
        return True
    state = sqlstate(error)
    if state:
        return state.startswith(_ROW_CLASSES) or state in _ROW_STATES
    # Raised by asyncpg's encoders before anything was sent.
    return isinstance(error, asyncpg.InterfaceError | OverflowError | TypeError | ValueError)


def translate(error: BaseException, where: str) -> StoreError:
    """The store's own error for ``error``.

    Args:
        error: what asyncpg or the socket raised.
        where: ``host:port/database`` and, if known, the schema; never a password.
    """
    if isinstance(error, StoreError):
        return error
    state = sqlstate(error)
    if state in _AUTH_STATES and "no encryption" in str(error):
        return StoreAuthError(
            f"PostgreSQL at {where} refused the login: {error}. If it lets this user in over TLS only, "
            "write sslmode=require or stronger"
        )
    if state in _AUTH_STATES:
        return StoreAuthError(
            f"PostgreSQL at {where} refused the login: {error}. Check user and password of AGENTHIVE_POSTGRES_URL"
        )
    if state == "3D000":
        return StoreUnavailable(f"PostgreSQL at {where}: {error}. Create the database or correct the URL")
    if state == "53300":
        return StoreUnavailable(
            f"PostgreSQL at {where} has no connection left: {error}. "
            "Lower spec.postgres.pool.maxSize or the number of pods, or raise max_connections (of the server, or the "
            "CONNECTION LIMIT of the role)"
        )
    if state == "53100":
        return StoreUnavailable(
            f"PostgreSQL at {where} has no room on its disk: {error}. Nothing of this was written: free space there, "
            "or enlarge the volume (spec.postgres.managed.storage.size)"
        )
    if state in _OVERTIME_STATES:
        return StoreUnavailable(
            f"PostgreSQL at {where} gave up: {error}. Nothing of this was done: another session holds a lock on it, or "
            "the server's statement_timeout or lock_timeout is too short"
        )
    if state in {"42P01", "3F000"}:
        return SchemaMissing(f"PostgreSQL at {where}: {error}. Run `agenthive db upgrade`")
    if state == "42501":
        return StorePermissionError(f"PostgreSQL at {where}: {error}")
    if isinstance(error, TimeoutError):
        return StoreUnavailable(f"PostgreSQL at {where} did not answer in time")
    if is_connection_loss(error):
        return StoreUnavailable(f"PostgreSQL at {where} cannot be reached: {_describe(error)}")
    if is_row_error(error):
        return InvalidValue(f"PostgreSQL at {where} refused the value: {error}")
    return StoreError(f"PostgreSQL at {where}: {_describe(error)}")


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
