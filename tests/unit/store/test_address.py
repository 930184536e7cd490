"""PostgreSQL URLs, retry delays, and what asyncpg's errors are told apart as."""

from __future__ import annotations

import itertools
import ssl
from typing import Any

import asyncpg
import pytest

from agenthive.settings import PostgresPool
from agenthive.store import errors
from agenthive.store.database import Address, Database, backoff
from agenthive.store.errors import (
    InvalidValue,
    SchemaMissing,
    StoreAuthError,
    StoreError,
    StorePermissionError,
    StoreUnavailable,
)


@pytest.mark.parametrize(
    ("url", "dsn", "where"),
    [
        ("postgresql://u:p@db:5433/app", "postgresql://u:p@db:5433/app", "db:5433/app"),
        ("postgres://u:p@db/app", "postgres://u:p@db/app", "db:5432/app"),
        ("postgresql://u:p@[::1]:5432/app", "postgresql://u:p@[::1]:5432/app", "[::1]:5432/app"),
        ("postgresql://u:p@a:1,b:2/app", "postgresql://u:p@a:1,b:2/app", "a:1,b:2/app"),
        (
            "postgresql://u:p@db/app?sslmode=require&channel_binding=require&keepalives=1",
            "postgresql://u:p@db/app?sslmode=require",
            "db:5432/app",
        ),
        ("postgresql:///app?host=/run/pg", "postgresql:///app?host=%2Frun%2Fpg", "/run/pg:5432/app"),
    ],
)
def test_urls(url: str, dsn: str, where: str) -> None:
    address = Address.parse(url)
    assert (address.dsn, address.where) == (dsn, where)
    assert (address.statement_cache_size, address.connect_seconds) == (100, 5.0)
    assert "p@" not in repr(address)


def test_parameters_of_ours_are_taken_from_the_url() -> None:
    address = Address.parse("postgresql://u@db/app?statement_cache_size=0&connect_timeout=2.5")
    assert (address.dsn, address.statement_cache_size, address.connect_seconds) == ("postgresql://u@db/app", 0, 2.5)
    arguments = address.connect_arguments("x" * 100)
    assert (arguments["statement_cache_size"], arguments["timeout"]) == (0, 2.5)
    assert arguments["server_settings"] == {"application_name": "x" * 63}


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mysql://u:secret@db/app", "must start with postgresql://, not 'mysql'"),
        ("postgresql+asyncpg://u:secret@db/app", "must start with postgresql://"),
        ("db:5432", "must start with postgresql://"),
        ("", "not 'nothing'"),
        ("postgresql://u:secret@db:port/app", "cannot be read"),
        ("postgresql://u:secret@db/app?statement_cache_size=many", "statement_cache_size must be a number"),
        ("postgresql://u:secret@db/app?connect_timeout=-1", "connect_timeout must be a number"),
    ],
)
def test_bad_urls_are_refused_without_repeating_the_password(url: str, text: str) -> None:
    with pytest.raises(InvalidValue, match=text) as caught:
        Address.parse(url)
    assert "secret" not in str(caught.value)


async def test_pool_sizes_must_make_sense() -> None:
    with pytest.raises(InvalidValue, match="minSize 5 is more than maxSize 2"):
        await Database.connect("postgresql://db/app", pool=PostgresPool(min_size=5, max_size=2), application_name="x")


def test_backoff_doubles_with_jitter_up_to_its_most() -> None:
    delays = list(itertools.islice(backoff(first=0.1, most=1.0), 8))
    for delay, whole in zip(delays, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], strict=True):
        assert whole / 2 <= delay <= whole


def server_error(kind: type[asyncpg.PostgresError], text: str = "oops") -> asyncpg.PostgresError:
    return kind(text)


TABLE: list[tuple[BaseException, type[StoreError], str]] = [
    (ConnectionRefusedError(111, "refused"), StoreUnavailable, "cannot be reached"),
    (TimeoutError(), StoreUnavailable, "did not answer in time"),
    (asyncpg.InterfaceError("connection is closed"), StoreUnavailable, "connection is closed"),
    (server_error(asyncpg.ConnectionDoesNotExistError), StoreUnavailable, "cannot be reached"),
    (server_error(asyncpg.AdminShutdownError), StoreUnavailable, "cannot be reached"),
    (server_error(asyncpg.CannotConnectNowError), StoreUnavailable, "cannot be reached"),
    (server_error(asyncpg.TooManyConnectionsError), StoreUnavailable, "maxSize"),
    (server_error(asyncpg.InvalidCatalogNameError), StoreUnavailable, "Create the database"),
    (server_error(asyncpg.InvalidPasswordError), StoreAuthError, "Check user and password"),
    (server_error(asyncpg.InvalidAuthorizationSpecificationError), StoreAuthError, "Check user and password"),
    (server_error(asyncpg.UndefinedTableError), SchemaMissing, "agenthive db upgrade"),
    (server_error(asyncpg.InsufficientPrivilegeError), StorePermissionError, "oops"),
    (server_error(asyncpg.CheckViolationError), InvalidValue, "refused the value"),
    (asyncpg.DataError("invalid input for query argument $1"), InvalidValue, "refused the value"),
    (server_error(asyncpg.DiskFullError), StoreUnavailable, "no room on its disk: oops"),
    (server_error(asyncpg.QueryCanceledError), StoreUnavailable, "gave up: oops"),
    (server_error(asyncpg.LockNotAvailableError), StoreUnavailable, "gave up: oops"),
    (StoreUnavailable("as it is"), StoreUnavailable, "^as it is$"),
]


@pytest.mark.parametrize(("error", "kind", "text"), TABLE, ids=[type(row[0]).__name__ for row in TABLE])
def test_translate(error: BaseException, kind: type[StoreError], text: str) -> None:
    failure = errors.translate(error, "db:5432/app")
    assert type(failure) is kind
    with pytest.raises(kind, match=text):
        raise failure


@pytest.mark.parametrize(
    ("error", "loss", "collision", "row"),
    [
        (ConnectionResetError(), True, False, False),
        (ssl.SSLError("bad"), True, False, True),
        (asyncpg.InterfaceError("connection is closed"), True, False, True),
        (asyncpg.InterfaceError("connection has been released back to the pool"), True, False, True),
        (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), False, False, True),
        (asyncpg.DataError("bad"), False, False, True),
        (server_error(asyncpg.CrashShutdownError), True, False, False),
        (server_error(asyncpg.DeadlockDetectedError), False, True, False),
        (server_error(asyncpg.SerializationError), False, True, False),
        (asyncpg.InternalServerError("tuple concurrently updated"), False, True, False),
        (asyncpg.InternalServerError("something else"), False, False, False),
        (server_error(asyncpg.UniqueViolationError), False, False, True),
        (server_error(asyncpg.ProgramLimitExceededError), False, False, True),
        (server_error(asyncpg.RaiseError), False, False, True),
        (server_error(asyncpg.InsufficientPrivilegeError), False, False, True),
        (server_error(asyncpg.DiskFullError), False, False, False),
        (server_error(asyncpg.UndefinedTableError), False, False, False),
        (KeyError("x"), False, False, False),
    ],
)
def test_kinds(error: Any, loss: bool, collision: bool, row: bool) -> None:
    assert errors.is_connection_loss(error) is loss
    assert errors.is_collision(error) is collision
    # Losses are asked for first.
    assert (errors.is_row_error(error) and not errors.is_connection_loss(error)) is (row and not loss)
