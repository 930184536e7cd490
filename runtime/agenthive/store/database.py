"""The connections of one process: opening, sharing, repeating what is safe after a loss, clear errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

import asyncpg

from agenthive.settings import PostgresPool
from agenthive.store import codec
from agenthive.store.errors import (
    InvalidValue,
    StoreAuthError,
    StoreClosed,
    StoreError,
    StoreUnavailable,
    is_collision,
    is_connection_loss,
    translate,
)
from agenthive.store.loans import Lent, PooledConnection, Spare, probe
from agenthive.store.tls import FILES, SYSTEM, explain_tls, system_context, unreadable
from agenthive.urls import split_url

logger = logging.getLogger(__name__)

Connection = Any  # a pool's connection proxy: asyncpg offers no type that fits both it and a plain connection
T = TypeVar("T")

CONNECT_SECONDS = 5.0
ACQUIRE_SECONDS = 10.0
STATEMENT_SECONDS = 30.0
#: How long an operation keeps trying after the connection was lost: a restart of PostgreSQL fits in.
RETRY_SECONDS = 30.0
_COLLISIONS = 10
_CLOSE_SECONDS = 5.0

#: Parameters libpq knows and PostgreSQL does not: asyncpg would send them to the server, which refuses them.
_LIBPQ_ONLY = frozenset({
    "channel_binding", "client_encoding", "fallback_application_name", "gssencmode", "gssdelegation", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "require_auth", "sslcertmode",
    "sslcompression", "sslsni", "tcp_user_timeout",
})  # fmt: skip


#: What opening a connection raises; ssl.SSLError is an OSError, asyncpg's ClientConfigurationError a ValueError.
_CONNECT_ERRORS = (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True, slots=True)
class Address:
    """A PostgreSQL URL taken apart as far as the store needs it."""

    dsn: str = field(repr=False)
    where: str
    statement_cache_size: int = 100
    connect_seconds: float = CONNECT_SECONDS
    tls_files: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Understand ``postgresql://user:password@host:port/database?parameters``.

        Besides what asyncpg knows (``sslmode``, ``sslrootcert``, ``target_session_attrs`` …): ``connect_timeout``
        (seconds), ``statement_cache_size`` (0 behind a PgBouncer that pools transactions and is older than 1.21) and
        ``sslrootcert=system``, which asks for ``sslmode=verify-full`` as in libpq.

        Raises:
            InvalidValue: the URL is not one of PostgreSQL's; the text never repeats its password.
        """
        try:
            parts = split_url(url, "the PostgreSQL URL")
        except ValueError as error:
            raise InvalidValue(str(error)) from None
        port = parts.port if "," not in parts.netloc else None
        if parts.scheme not in {"postgresql", "postgres"}:
            raise InvalidValue(
                f"the PostgreSQL URL must start with postgresql://, not {(parts.scheme or 'nothing')!r}: "
                "write postgresql://user:password@host:5432/database"
            )
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        cache = _number(parameters.pop("statement_cache_size", "100"), "statement_cache_size")
        timeout = _number(parameters.pop("connect_timeout", ""), "connect_timeout") or CONNECT_SECONDS
        files = {name: parameters[name] for name in FILES if name in parameters}
        if files.get("sslrootcert") == SYSTEM:
            if parameters.setdefault("sslmode", "verify-full") != "verify-full" or len(files) > 1:
                raise InvalidValue(
                    "the PostgreSQL URL's sslrootcert=system goes with sslmode=verify-full and no sslcert"
                )
            del parameters["sslrootcert"], parameters["sslmode"]  # the context of connect_arguments says both
        kept = {name: value for name, value in parameters.items() if name not in _LIBPQ_ONLY}
        dsn = f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(kept)}" if kept else "")
        host = parts.netloc.rpartition("@")[2] or parameters.get("host", "localhost")
        if port is None and ":" not in host:
            host = f"{host}:5432"
        return cls(dsn, f"{host}/{unquote(parts.path.lstrip('/'))}", int(cache), timeout, files)

    def connect_arguments(self, application_name: str) -> dict[str, Any]:
        """What ``asyncpg.connect`` and ``asyncpg.create_pool`` are called with."""
        return {
            "dsn": self.dsn,
            "timeout": self.connect_seconds,
            "command_timeout": STATEMENT_SECONDS,
            "statement_cache_size": self.statement_cache_size,
            # application_name is the one start-up parameter besides the usual that PgBouncer lets through, hence no
            # search_path: every statement names its schema.
            "server_settings": {"application_name": application_name[:63]},
            **({"ssl": system_context()} if self.tls_files.get("sslrootcert") == SYSTEM else {}),
        }


def _number(text: str, name: str) -> float:
    if not text:
        return 0.0
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0:
        raise InvalidValue(f"the PostgreSQL URL's {name} must be a number from 0 up, not {text!r}")
    return number


def _one_line(record: logging.LogRecord) -> bool:
    """While PostgreSQL is away asyncpg's pool reports each try with sixty lines of traceback: the error is enough."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", None
        record.exc_info = None
    return True


logging.getLogger("asyncpg.pool").addFilter(_one_line)


async def _prepare(connection: Any) -> None:
    """Give a fresh connection the JSON codecs, for users' own SQL as for ours."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(name, schema="pg_catalog", encoder=codec.encode, decoder=codec.decode)
    connection.touch()


def backoff(first: float = 0.05, most: float = 1.0) -> Iterator[float]:
    """Endless delays in seconds, doubling from ``first`` to ``most``, with jitter so that pods do not come at once."""
    delay = first
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        delay = min(delay * 2, most)


async def connect_once(address: Address, application_name: str) -> asyncpg.Connection[asyncpg.Record]:
    """One connection outside any pool: for migrations.

    Raises:
        StoreUnavailable, StoreAuthError, InvalidValue: as ``Database.connect``.
    """
    try:
        return await asyncpg.connect(**address.connect_arguments(application_name))
    except _CONNECT_ERRORS as error:
        raise _connect_error(error, address) from error


async def close_once(connection: asyncpg.Connection[asyncpg.Record], timeout: float = _CLOSE_SECONDS) -> None:
    """Close a connection of ``connect_once``; cut it after ``timeout`` seconds.

    Raises nothing for a server that is gone or hangs, lest that hide what was found or what went wrong before.
    """
    try:
        await connection.close(timeout=timeout)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        logger.info("a connection to PostgreSQL was cut and not closed: %s", str(error) or type(error).__name__)
        connection.terminate()


@contextlib.asynccontextmanager
async def connected(address: Address, application_name: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection outside any pool for the length of an ``async with``. Raises as ``connect_once``."""
    connection = await connect_once(address, application_name)
    try:
        yield connection
    finally:
        await close_once(connection)


#: Opens a connection for the length of an ``async with``, or lends one: ``connected``, or what does as it does.
Connect = Callable[[Address, str], contextlib.AbstractAsyncContextManager[Any]]


def _connect_error(error: BaseException, address: Address) -> Exception:
    if isinstance(error, TimeoutError):
        return StoreUnavailable(
            f"PostgreSQL at {address.where} did not answer within {address.connect_seconds:g} s: "
            "is the address right, is it running, does a network policy block it?"
        )
    if isinstance(error, OSError) and (file := unreadable(address.tls_files)):
        return InvalidValue(f"the PostgreSQL URL for {address.where} cannot be used: {file} cannot be read")
    if isinstance(error, ssl.SSLError):
        return StoreUnavailable(f"PostgreSQL at {address.where}: {explain_tls(error)}")
    if isinstance(error, ConnectionError) and "SSL" in str(error):
        return StoreUnavailable(
            f"PostgreSQL at {address.where} does not offer TLS: {error}. Turn it on there (ssl = on), "
            "or write sslmode=disable"
        )
    if isinstance(error, asyncpg.ConnectionDoesNotExistError):
        # What a missing client certificate comes to in TLS 1.3: the handshake is over when the server has looked.
        return StoreUnavailable(
            f"PostgreSQL at {address.where} closed the connection while it was being opened; its log says why. "
            "Over TLS it may want a client certificate: name its files by sslcert and sslkey"
        )
    if isinstance(error, OSError):
        return StoreUnavailable(
            f"PostgreSQL at {address.where} cannot be reached: {error}. Is the address right, is it running?"
        )
    if isinstance(error, ValueError):
        return InvalidValue(f"the PostgreSQL URL for {address.where} cannot be used: {error}")
    return translate(error, address.where)


async def _open_pool(address: Address, sizes: PostgresPool, application_name: str) -> asyncpg.Pool[asyncpg.Record]:
    pool = asyncpg.create_pool(
        **address.connect_arguments(application_name),
        min_size=sizes.min_size,
        max_size=sizes.max_size,
        connection_class=PooledConnection,
        init=_prepare,
        setup=probe,
    )
    try:
        await pool
        if sizes.min_size == 0:  # nothing was opened, and a wrong password is to be found now
            async with pool.acquire():
                pass
    except BaseException as error:
        pool.terminate()
        if isinstance(error, _CONNECT_ERRORS):
            raise _connect_error(error, address) from error
        raise
    return pool


class Database:
    """The pool, and ``run``: one function on one connection, repeated as long as that is safe."""

    def __init__(self, address: Address, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self.address = address
        self.pool = pool
        self.spare = Spare()
        self.closed = False

    @classmethod
    async def connect(
        cls, url: str, *, pool: PostgresPool, application_name: str, wait_seconds: float = 0.0
    ) -> Database:
        """Open ``pool.min_size`` connections, at least one.

        Args:
            url: ``postgresql://…``; see ``Address.parse``.
            pool: sizes.
            application_name: what ``pg_stat_activity`` shows.
            wait_seconds: how long to keep trying while the server cannot be reached.

        Raises:
            StoreUnavailable: not reachable, or no such database.
            StoreAuthError: user or password refused.
            InvalidValue: the URL or the sizes make no sense.
        """
        if pool.min_size > pool.max_size:
            raise InvalidValue(f"postgres pool: minSize {pool.min_size} is more than maxSize {pool.max_size}")
        address = Address.parse(url)
        deadline = asyncio.get_running_loop().time() + wait_seconds
        for delay in backoff():
            try:
                return cls(address, await _open_pool(address, pool, application_name))
            except StoreUnavailable:
                if asyncio.get_running_loop().time() + delay > deadline:
                    raise
            await asyncio.sleep(delay)
        raise AssertionError("backoff() is endless")  # pragma: no cover

    async def run(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        retry: bool = True,
        deadline: float | None = None,
        own_transaction: bool = False,
    ) -> T:
        """Call ``work`` with a connection of the pool.

        Args:
            work: statements that leave no session state behind (no advisory locks, no SET), since the session is not
                reset afterwards. Errors of the caller's data pass through untranslated.
            retry: repeat after a lost connection, which may have happened after the commit: only for work that does
                no harm when done twice.
            deadline: when to give up, in the loop's time; RETRY_SECONDS from now by default. ``work`` runs at least
                once.
            own_transaction: ``work`` opens its transactions itself.

        Raises:
            StoreUnavailable, StoreAuthError: no connection, and no sense in waiting longer.
        """

        async def attempt() -> T:
            async with self.lend() as connection:
                if own_transaction or self.address.statement_cache_size:
                    return await work(connection)
                # Without named statements a query is two exchanges, and outside a transaction PgBouncer may send
                # the second to another server.
                async with connection.transaction():
                    return await work(connection)

        return await self.repeat(attempt, retry=retry, deadline=deadline)

    async def repeat(
        self, attempt: Callable[[], Awaitable[T]], *, retry: bool = True, deadline: float | None = None
    ) -> T:
        """``run`` for what gets its connection itself, by ``lend``."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RETRY_SECONDS if deadline is None else deadline
        collisions = 0
        for delay in backoff():
            try:
                return await attempt()
            except Exception as error:
                if is_collision(error) and collisions < _COLLISIONS:
                    collisions += 1
                    continue
                if isinstance(error, StoreAuthError) or not _is_loss(error):
                    raise
                if self.closed or not retry or loop.time() + delay > give_up:
                    raise translate(error, self.address.where) from error
            await asyncio.sleep(delay)
        raise AssertionError("backoff() is endless")  # pragma: no cover

    def explain(self, error: BaseException) -> StoreError:
        """The store's own error for what a statement raised."""
        return translate(error, self.address.where)

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """Raise what PostgreSQL raises inside as the store's own errors."""
        try:
            yield
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if isinstance(error, StoreError):
                raise
            raise self.explain(error) from error

    def lend(self, *, reset: bool = False) -> Loan:
        """A connection of the pool for the length of an ``async with``.

        Args:
            reset: clear the session afterwards, a round trip; otherwise nothing may be left in it.
        """
        if self.closed:
            raise StoreClosed("the store of this process was closed")
        return Loan(self, reset)

    async def aclose(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Close the connections; those still in use after ``timeout`` seconds are cut."""
        self.closed = True
        try:
            async with asyncio.timeout(timeout):
                await self.spare.aclose()
                await self.pool.close()
        except TimeoutError:
            self.pool.terminate()


def is_broken(error: BaseException) -> bool:
    """True if a statement may still be on its way, so that nothing is to wait for its connection any more.

    Rolling back or giving the connection back would wait for the server's answer to it: who cancels, a timeout most of
    all, does not want that, and after a loss there is none.
    """
    return isinstance(error, asyncio.CancelledError) or is_connection_loss(error)


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, StoreUnavailable) or is_connection_loss(error)


class Loan:
    """A pooled connection for the length of an ``async with``."""

    def __init__(self, database: Database, reset: bool) -> None:
        self._database = database
        self._reset = reset
        self._lent: Lent

    def is_clean(self) -> None:
        """The session was cleared by the last statement."""
        self._reset = False

    def cut(self) -> None:
        """Whatever is going on in the connection: end it, and have the pool make another one."""
        self._lent.abandon()

    async def __aenter__(self) -> Connection:
        self._lent = self._database.spare.take() or await self._borrow()
        return self._lent.connection

    async def _borrow(self) -> Lent:
        database = self._database
        try:
            return Lent(database.pool, await database.pool.acquire(timeout=ACQUIRE_SECONDS))
        except TimeoutError as error:
            if database.pool.get_size() >= database.pool.get_max_size():
                raise StoreUnavailable(
                    f"none of the {database.pool.get_max_size()} connections to PostgreSQL at "
                    f"{database.address.where} became free within {ACQUIRE_SECONDS:g} s: "
                    "return them sooner or raise spec.postgres.pool.maxSize"
                ) from error
            raise _connect_error(error, database.address) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise _connect_error(error, database.address) from error

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None and not self._reset:
            await self._database.spare.keep(self._lent)
        elif error is not None and is_broken(error) and not self._lent.is_lost():
            self._database.spare.cancel(self._lent)
        else:
            # After an error the session may be in any state: a reset is worth a round trip.
            await self._lent.give_back(clean=False)
