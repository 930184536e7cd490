"""TLS for tests of servers that were built without: certificates, and the server's side of a connection."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A CA that signs for 127.0.0.1 (``names`` otherwise); files in ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(self._sign(self.name, self.key, ca=True).public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject, key, *, ca: bool = False, address: str = "127.0.0.1") -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        return (builder if ca else builder.add_extension(names, critical=False)).sign(self.key, hashes.SHA256())

    def issue(self, name: str, **options: str) -> tuple[Path, Path]:
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
