"""URLs of servers, which hold passwords: taken apart without ever repeating a piece of one."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

_HINT = "write special characters of user and password as %XX, '/' as %2F and '@' as %40"


def split_url(url: str, what: str) -> SplitResult:
    """``url`` taken apart, its port checked; several hosts, separated by commas, keep their ports unchecked.

    A password with a ``/`` of its own ends the host too early: its start then looks like a port and its rest like a
    path. So nothing of a URL that looks wrong is ever repeated, not even by the error that this one came from.

    Args:
        what: what the URL is, for the text of the error: ``the Redis URL``.

    Raises:
        ValueError: it cannot be read; the text says what to write.
    """
    try:
        parts = urlsplit(url)
        if "," not in parts.netloc:
            _ = parts.port
    except ValueError:
        raise ValueError(f"{what} cannot be read: its host or port is malformed; {_HINT}") from None
    if "@" in parts.path or "@" in parts.fragment:
        raise ValueError(f"{what} has an '@' behind its host; {_HINT}")
    return parts
