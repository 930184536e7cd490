"""The server's own certificate authority: kubectl sends no bearer token without TLS."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a server's identity.

    Attributes:
        ca: Certificate that clients trust.
        certificate: The server's, with its key in ``key`` (mode 0600).
    """

    ca: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        return context

    def kubelet_context(self, client: Path) -> ssl.SSLContext:
        """For a kubelet whom only the holder of the certificate ``client`` may ask."""
        context = self.server_context()
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client)
        return context

    def client_context(self) -> ssl.SSLContext:
        """For clients in Python."""
        return ssl.create_default_context(cafile=str(self.ca))


def ensure_tls(folder: Path) -> Tls:
    """The identity kept in ``folder``, made there when it is missing.

    The authority's key is thrown away after signing: nobody can sign a second certificate that these clients trust.
    """
    found = Tls(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    if found.ca.exists() and found.certificate.exists() and found.key.exists():
        return found
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agenthive-local-ca")])
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )  # fmt: skip
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"), x509.DNSName("kubernetes.default.svc"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.IPAddress(ipaddress.ip_address("::1")),
    ]  # fmt: skip
    certificate = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agenthive-local")]), ca_name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write(found.key, _pem(key))
    _write(found.ca, ca.public_bytes(serialization.Encoding.PEM))
    _write(found.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return found


def ensure_client(folder: Path) -> tuple[Path, Path]:
    """The certificate and key that the API server shows to kubelets, made in ``folder`` when missing.

    It is signed by itself: kubelets know it, and nobody else has to.
    """
    certificate, key = folder / "kubelet-client.crt", folder / "kubelet-client.key"
    if certificate.exists() and key.exists():
        return certificate, key
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agenthive-local-kube-apiserver")])
    signed = (
        _builder(name, name, private.public_key())
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    _write(key, _pem(private))
    _write(certificate, signed.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    moment = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(minutes=5))
        .not_valid_after(moment + LIFETIME)
    )


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
