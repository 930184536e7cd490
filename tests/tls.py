"""TLS for tests of servers that were built without: certificates, and the server's side of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A CA that signs for 127.0.0.1 (``names`` otherwise); files in ``folder``."""

    def __init__(self, folder: Path, name: str, **options) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(
            self._sign(self.name, self.key, ca=True, **options).public_bytes(serialization.Encoding.PEM)
        )

    @property
    def pem(self) -> str:
        return self.file.read_text()

    def _sign(
        self,
        subject,
        key,
        *,
        ca: bool = False,
        address: str = "127.0.0.1",
        ends: datetime.timedelta = datetime.timedelta(hours=1),
    ) -> x509.Certificate:
        """``ends``: from now; may be past."""
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        return (builder if ca else builder.add_extension(names, critical=False)).sign(self.key, hashes.SHA256())

    def issue(self, name: str, **options) -> tuple[Path, Path]:
        """Certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, **options)
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


class Terminated:
    """The server's side of one TLS connection. asyncio's own keeps the alert of a failed handshake to itself."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._in, self._out, server_side=True)
        self._reader, self._writer = reader, writer

    async def call(self, step: Callable[..., bytes], *arguments: int | bytes) -> bytes:
        while True:
            try:
                return step(*arguments)
            except ssl.SSLWantReadError:
                self._writer.write(self._out.read())
                data = await self._reader.read(65536)
                if not data:
                    raise ConnectionResetError from None
                self._in.write(data)
            finally:
                self._writer.write(self._out.read())

    async def upwards(self, outer: asyncio.StreamWriter) -> None:
        try:
            while data := await self.call(self.ssl.read, 65536):
                outer.write(data)
        finally:
            outer.close()

    async def downwards(self, inner: asyncio.StreamReader) -> None:
        while data := await inner.read(65536):
            await self.call(self.ssl.write, data)
            await self._writer.drain()
        self._writer.close()


def server_context(certificate: tuple[Path, Path], *, clients: Authority | None = None) -> ssl.SSLContext:
    """A server's side; with ``clients`` it wants a certificate that this authority signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    if clients is not None:
        context.load_verify_locations(clients.file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.asynccontextmanager
async def redis_front(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """TLS on a port of its own in front of ``port``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            tls = Terminated(context, reader, writer)
            await tls.call(tls.ssl.do_handshake)
            inner, outer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await asyncio.gather(tls.upwards(outer), tls.downwards(inner))
            finally:
                outer.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()


_SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])


class PostgresFront:
    """What stands in front of the server: a port that speaks TLS to those who ask for it."""

    def __init__(self, port: int, context: ssl.SSLContext, *, plain: bool) -> None:
        self._port, self._context, self._plain = port, context, plain
        self.kinds: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            first = await reader.readexactly(8)
            if first == _SSL_REQUEST:
                await self._secure(reader, writer)
            elif self._plain:
                await self._pass_on(first, reader, writer)
        writer.close()

    async def _secure(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.kinds.append("tls")
        writer.write(b"S")
        tls = Terminated(self._context, reader, writer)
        await tls.call(tls.ssl.do_handshake)
        inner, outer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(tls.upwards(outer), tls.downwards(inner))
        finally:
            outer.close()

    async def _pass_on(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.kinds.append("plain")
        inner, outer = await asyncio.open_connection("127.0.0.1", self._port)
        outer.write(first)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, outer), pump(inner, writer))


@contextlib.asynccontextmanager
async def postgres_front(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """As ``redis_front``, in front of a PostgreSQL; nobody gets in without TLS."""
    async with await asyncio.start_server(PostgresFront(port, context, plain=False).serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        server.close()
