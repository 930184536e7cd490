"""TLS to PostgreSQL: what an error means for the URL, and the certificates of the system."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

#: Parameters of the URL that name files.
FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
#: In place of a file: the authorities that this machine trusts, as libpq 16 has it.
SYSTEM = "system"


def system_context() -> ssl.SSLContext:
    """What ``sslrootcert=system`` means: any authority this machine trusts, and the name must be right."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    return context


def explain_tls(error: ssl.SSLError) -> str:
    """What a TLS error means for the URL. Pure."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "its certificate is not signed by an authority of sslrootcert; name the file of its CA there"
        if "match" in error.verify_message:
            hint = "its certificate is for another name; write a host it names, or sslmode=verify-ca"
        elif "expired" in error.verify_message or "not yet valid" in error.verify_message:
            hint = "its certificate is not valid today"
    elif "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        hint = "it wants a client certificate; name its files by sslcert and sslkey"
    elif "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        hint = "it does not trust the client certificate of sslcert"
    elif "KEY_VALUES_MISMATCH" in reason:
        hint = "sslkey is not the key of sslcert"
    elif "PEM" in (error.library or "") or "NO_START_LINE" in reason or "NO_CERTIFICATE" in reason:
        hint = "sslrootcert, sslcert or sslkey is not a PEM file"
    else:
        hint = "check sslmode, sslrootcert and sslcert of the URL"
    return f"TLS failed: {hint} ({error})"


def unreadable(parameters: Mapping[str, str]) -> str | None:
    """The first parameter whose file cannot be read, as ``name=path``; looks at the disk."""
    for name in FILES:
        path = parameters.get(name)
        if path and path != SYSTEM and not os.access(path, os.R_OK):
            return f"{name}={path}"
    return None
