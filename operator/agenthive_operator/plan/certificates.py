"""Certificates out of a user's Secrets: may they be used, and how long still. Pure; keys are never repeated."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

SOON: Final = timedelta(days=14)
"""Who has to renew a certificate wants to know this long before."""


class CertificateError(ValueError):
    """What a Secret holds is of no use for TLS; the text says what to put there."""


def check_authorities(pem: str, where: str, now: datetime) -> str | None:
    """Certificates of authorities, one at least that is valid.

    Args:
        pem: What the Secret's key holds.
        where: The Secret and its key, for texts.
        now: With a time zone.

    Returns:
        What a person should know: that the last of them is about to expire. None most of the time.

    Raises:
        CertificateError: nothing there can be trusted today.
    """
    last = max(certificate.not_valid_after_utc for certificate in _certificates(pem, where))
    if last <= now:
        raise CertificateError(f"{where}: the CA certificate expired on {_day(last)}; put its successor there")
    return f"{where}: the CA certificate expires on {_day(last)}; renew it" if last - now <= SOON else None


def check_pair(certificate: str, key: str, where: str, now: datetime) -> str | None:
    """The certificate that clients show, and its key. Arguments, result and errors as ``check_authorities``."""
    leaf = _certificates(certificate, f"{where}, key 'tls.crt'")[0]
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except TypeError:
        raise CertificateError(f"{where}, key 'tls.key': the key has a password; put one without there") from None
    except ValueError:
        raise CertificateError(f"{where}, key 'tls.key' holds no private key in PEM form") from None
    if _public(private.public_key()) != _public(leaf.public_key()):
        raise CertificateError(
            f"{where}: tls.key is not the key of the first certificate in tls.crt; put a pair there, the client's own "
            "certificate first"
        )
    ends, begins = leaf.not_valid_after_utc, leaf.not_valid_before_utc
    if ends <= now:
        raise CertificateError(f"{where}: the client certificate expired on {_day(ends)}; put its successor there")
    if begins > now:
        raise CertificateError(f"{where}: the client certificate is not valid before {begins:%Y-%m-%d %H:%M} UTC")
    return f"{where}: the client certificate expires on {_day(ends)}; renew it" if ends - now <= SOON else None


def _certificates(pem: str, where: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        what = "a private key and no certificate" if "PRIVATE KEY" in pem else "no certificate in PEM form"
        raise CertificateError(
            f"{where} holds {what}; it should read -----BEGIN CERTIFICATE----- … as a certificate file does"
        ) from None


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
