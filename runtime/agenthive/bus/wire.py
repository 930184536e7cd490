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
from typing import Any, cast

import hiredis

from agenthive.bus.endpoint import Endpoint
from agenthive.bus.errors import AccessDenied, BusUnavailable

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
            self._fail(
                ConnectionLost(f"the server does not speak the Redis protocol, or only over TLS (rediss://): {error}")
            )
            return
        if self._waiter is not None and len(self._replies) >= self._wanted and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        lost = ConnectionLost(str(exc) if exc else "the server closed the connection")
        lost.__cause__ = exc
        self._fail(lost)
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

        An answer that is an error is returned as a ReplyError. ``meanwhile`` is called while the server works; it must
        not raise. Raises ConnectionLost.
        """
        self.write(commands)
        if meanwhile is not None:
            # Not at once: uvloop sends what was written when this turn of the loop ends.
            asyncio.get_running_loop().call_soon(meanwhile)
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
    """Connect to one server, authenticate, choose the database, set the client's name.

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
                server_hostname=endpoint.host if endpoint.tls else None,
            )
    except TimeoutError as error:
        hint = " (or it does not speak TLS here: then write redis://)" if endpoint.tls else ""
        raise ConnectionLost(f"no connection within {endpoint.connect_timeout:g} s{hint}") from error
    except ssl.SSLError as error:
        raise BusUnavailable(f"cannot use Redis at {endpoint}: {explain_tls(error)}") from error
    except OSError as error:
        raise ConnectionLost(str(error)) from error
    try:
        await _greet(connection, endpoint)
    except ConnectionLost as error:
        await connection.aclose()
        if isinstance(error.__cause__, ssl.SSLError):  # TLS 1.3: a server refuses a client after the handshake
            raise BusUnavailable(f"cannot use Redis at {endpoint}: {explain_tls(error.__cause__)}") from error
        raise
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
        if answer.code in {"WRONGPASS", "NOAUTH", "NOPERM"} or "AUTH" in str(answer):
            raise AccessDenied(
                f"cannot use Redis at {endpoint}: it refuses the user name or password of the URL ({answer})"
            )
        raise BusUnavailable(f"cannot use Redis at {endpoint}: {answer}")


def explain_tls(error: ssl.SSLError) -> str:
    """What a TLS error means for the URL. Pure."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "the server's certificate is not trusted; name the file of its CA by ssl_ca_certs in the URL"
        if "match" in error.verify_message:
            hint = "the server's certificate is for another name; write the name it is for, or ssl_check_hostname=false"
    elif "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        hint = "the server wants a client certificate; name its files by ssl_certfile and ssl_keyfile in the URL"
    elif "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        hint = "the server does not trust the client certificate of ssl_certfile"
    elif reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}:
        hint = "the server does not speak TLS here; write redis:// for a plain connection"
    else:
        hint = "no secure connection"
    return f"TLS failed: {hint} ({error})"
