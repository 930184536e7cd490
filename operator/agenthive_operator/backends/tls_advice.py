"""What a TLS error means for whoever writes the hive. Pure."""

from __future__ import annotations

import ssl

from agenthive_operator.plan.external import Server

_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})


def tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error that this one came from, if it did."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def tls_advice(error: ssl.SSLError, server: Server) -> str:
    """What is wrong between the operator and a server, and which field or whose certificate to change."""
    tls, reason = f"spec.{server}.external.tls", getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        what = error.verify_message
        if "match" in what or "valid for" in what:
            hint = "its certificate is for another name; write a host in the URL that the certificate names"
        elif "expired" in what or "not yet valid" in what:
            hint = "its certificate, or its CA's, is not valid today; renew it on the server"
        else:
            hint = f"its certificate is not signed by a CA that is trusted; name the CA's Secret in {tls}.caSecretRef"
    elif "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        hint = f"it wants a client certificate; name its Secret in {tls}.clientCertSecretRef"
    elif "EXPIRED" in reason:
        hint = f"it says that the client certificate has expired; renew that of {tls}.clientCertSecretRef"
    elif "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
        hint = f"it does not trust the client certificate of {tls}.clientCertSecretRef; have one signed by its CA"
    elif reason in _NOT_TLS:
        plain = "redis://" if server == "redis" else "sslmode=disable"
        hint = f"it does not speak TLS at this port; turn TLS on there, or write {plain}"
    else:
        hint = f"check the scheme and options of the URL, and {tls}"
    return f"TLS failed: {hint} ({error.strerror or reason or error})"
