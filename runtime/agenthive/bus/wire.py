"""One connection to Redis, as thin as the bus needs it: RESP2 over asyncio, parsed by hiredis.

A connection belongs to one task at a time. Whatever goes wrong in an exchange (an error of the network, no answer in
time, a cancelled task) ends the connection: an answer can never reach the wrong question.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qs, unquote

import hiredis

from agenthive.bus.errors import BusUnavailable
from agenthive.urls import split_url

DEFAULT_PORT = 6379
Command = tuple[str | bytes | int, ...]
_MISSING = object()


class ReplyError(Exception):
    """An error that Redis answered a command with; ``code`` is its first word."""

    @property
    def code(self) -> str:
        """First word of the error: ``ERR``, ``NOGROUP``, ``OOM`` …"""
        return str(self).partition(" ")[0]


class ConnectionLost(Exception):  # noqa: N818 - an event more than a mistake
    """The connection ended before all answers came: what was asked may or may not have been done."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where Redis is and how to get in. ``parse`` reads ``redis://`` and ``rediss://`` URLs."""

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    client_name: str = "agenthive"
    connect_timeout: float = 5.0
    socket_timeout: float = 5.0

    @classmethod
    def parse(cls, url: str, **options: Any) -> Endpoint:
        """``redis[s]://[[user]:password@]host[:port][/db]``; ``rediss`` takes the options ``ssl_ca_certs``,
        ``ssl_certfile``, ``ssl_keyfile`` (paths) and ``ssl_cert_reqs=none|required`` in its query.

        Raises ValueError that says what is wrong; it never shows the password.
        """
        parts = split_url(url, "the Redis URL")
        if parts.scheme not in {"redis", "rediss"}:
            raise ValueError(f"the Redis URL starts with {parts.scheme or 'nothing'}://; write redis:// or rediss://")
        if not parts.hostname:
            raise ValueError("the Redis URL names no host; write redis://host:6379/0")
        path = parts.path.strip("/")
        if path and not path.isdigit():
            raise ValueError(f"the Redis URL ends with /{path}; write the number of a database, such as /0")
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return cls(
            host=parts.hostname,
            port=parts.port or DEFAULT_PORT,
            db=int(path or query.pop("db", "0")),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            tls=_tls_context(parts.scheme == "rediss", query),
            **options,
        )

    def __str__(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}/{self.db}"


def _tls_context(secure: bool, query: dict[str, str]) -> ssl.SSLContext | None:
    known = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"} if secure else set()
    unknown = sorted(query.keys() - known)
    if unknown:
        options = f"it knows {', '.join(sorted(known))}" if secure else "it has none"
        raise ValueError(f"unknown option {unknown[0]!r} in the Redis URL; {options}")
    if not secure:
        return None
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
        if "ssl_certfile" in query:
            context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    except OSError as error:
        raise ValueError(f"a certificate file of the Redis URL cannot be used: {error}") from error
    requirement = query.get("ssl_cert_reqs", "required")
    if requirement == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif requirement != "required":
        raise ValueError(f"ssl_cert_reqs={requirement!r} in the Redis URL; write none or required")
    return context


class Connection(asyncio.Protocol):
    """An open connection; made by :func:`open_connection`."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_MISSING)
        self._transport: asyncio.Transport | None = None
        self._replies: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = 0
        self._lost: Exception | None = None
        self._closed = asyncio.get_running_loop().create_future()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        raw = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets(False)) is not _MISSING:
                self._replies.append(reply)
        except hiredis.ProtocolError as error:
            self._fail(ConnectionLost(f"the server does not speak the Redis protocol: {error}"))
            return
        if self._waiter is not None and len(self._replies) >= self._wanted and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._fail(ConnectionLost(str(exc) if exc else "the server closed the connection"))
        if not self._closed.done():
            self._closed.set_result(None)

    # --- exchanges

    @property
    def usable(self) -> bool:
        """False once anything went wrong."""
        return self._lost is None

    async def execute(
        self, commands: Sequence[Command], timeout: float, meanwhile: Callable[[], None] | None = None
    ) -> list[Any]:
        """Send ``commands`` in one write and wait at most ``timeout`` seconds for all their answers.

        An answer that is an error is returned as a ReplyError. ``meanwhile`` is called once the commands are on their
        way. Raises ConnectionLost.
        """
        self.write(commands)
        if meanwhile is not None:
            try:
                meanwhile()
            except BaseException:
                self.abort()  # nobody is going to read the answers
                raise
        return await self.receive(len(commands), timeout)

    def write(self, commands: Iterable[Command]) -> None:
        """Send commands without waiting. Raises ConnectionLost."""
        if self._lost is not None:
            raise self._lost
        assert self._transport is not None
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type] # any length
        self._transport.write(b"".join(packed))

    async def receive(self, count: int, timeout: float) -> list[Any]:
        """The next ``count`` answers. Raises ConnectionLost, also when they take longer than ``timeout`` seconds."""
        if len(self._replies) < count:
            if self._lost is not None:
                raise self._lost
            loop = asyncio.get_running_loop()
            self._wanted = count
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout, self._fail, ConnectionLost(f"no answer within {timeout:g} s"))
            try:
                await self._waiter
            except asyncio.CancelledError:
                self._fail(ConnectionLost("the exchange was cancelled"))
                raise
            finally:
                timer.cancel()
                self._waiter = None
        return [self._replies.popleft() for _ in range(count)]

    async def receive_push(self, timeout: float) -> Any | None:
        """What the server says next by itself, or None after ``timeout`` seconds. Raises ConnectionLost."""
        if not self._replies:
            if self._lost is not None:
                raise self._lost
            loop = asyncio.get_running_loop()
            self._wanted = 1
            waiter = self._waiter = loop.create_future()
            timer = loop.call_later(timeout, _end_wait, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiter = None
        return self._replies.popleft() if self._replies else None

    def _fail(self, error: Exception) -> None:
        if self._lost is None:
            self._lost = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._lost)
        if self._transport is not None:
            self._transport.abort()

    def abort(self) -> None:
        """End the connection now; whoever waits for an answer gets ConnectionLost."""
        self._fail(ConnectionLost("the connection was closed"))

    async def aclose(self) -> None:
        """End the connection and wait until its socket is closed."""
        self.abort()
        await self._closed


def _end_wait(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def open_connection(endpoint: Endpoint) -> Connection:
    """Connect, authenticate, choose the database, set the client's name.

    Raises ConnectionLost where trying again later may help, BusUnavailable where it will not (wrong password).
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(endpoint.connect_timeout):
            _, connection = await loop.create_connection(
                Connection,
                endpoint.host,
                endpoint.port,
                ssl=endpoint.tls,
                server_hostname=endpoint.host if endpoint.tls and endpoint.tls.check_hostname else None,
            )
    except TimeoutError as error:
        raise ConnectionLost(f"no connection within {endpoint.connect_timeout:g} s") from error
    except ssl.SSLError as error:
        raise BusUnavailable(f"cannot use Redis at {endpoint}: TLS failed: {error}") from error
    except OSError as error:
        raise ConnectionLost(str(error)) from error
    try:
        await _greet(connection, endpoint)
    except BaseException:
        await connection.aclose()
        raise
    return connection


async def _greet(connection: Connection, endpoint: Endpoint) -> None:
    commands: list[Command] = []
    if endpoint.password is not None:
        user = (endpoint.username,) if endpoint.username else ()
        commands.append(("AUTH", *user, endpoint.password))
    if endpoint.db:
        commands.append(("SELECT", endpoint.db))
    commands.append(("CLIENT", "SETNAME", endpoint.client_name))
    commands.append(("PING",))
    answers = await connection.execute(commands, endpoint.connect_timeout)
    for command, answer in zip(commands, answers, strict=True):
        if not isinstance(answer, ReplyError) or command[0] == "CLIENT":  # a name is a convenience
            continue
        if answer.code in {"LOADING", "MASTERDOWN"}:
            raise ConnectionLost(str(answer))
        raise BusUnavailable(f"cannot use Redis at {endpoint}: {_explain(answer)}")


def _explain(error: ReplyError) -> str:
    if error.code in {"WRONGPASS", "NOAUTH"} or "AUTH" in str(error):
        return f"it refuses the user name or password of the URL ({error})"
    return str(error)
