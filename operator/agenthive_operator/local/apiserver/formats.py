"""Formats and patterns of schemas, as the API server reads them."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import uuid
from collections.abc import Callable
from datetime import date, datetime
from functools import lru_cache
from urllib.parse import urlsplit

_DURATION = re.compile(
    r"^[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))*$|^[+-]?0$"
)
_HOSTNAME = re.compile(
    r"^(?=.{1,253}$)[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*$"
)
_EMAIL = re.compile(r"^[^@\s]+@[^@\s]+$")


@lru_cache(maxsize=1024)
def go_pattern(text: str) -> re.Pattern[str]:
    """A pattern of Go's regular expressions in Python's: ``$`` and ``\\z`` mean the very end.

    Raises:
        ValueError: It does not compile.
    """
    # An unescaped `$` outside a character class also matches before a final newline in Python, and not in Go.
    out, in_class, index = [], False, 0
    while index < len(text):
        char = text[index]
        if char == "\\" and index + 1 < len(text):
            following = text[index + 1]
            out.append(r"\Z" if following == "z" else char + following)
            index += 2
            continue
        if char == "[" and not in_class:
            in_class = True
        elif char == "]" and in_class:
            in_class = False
        out.append(r"\Z" if char == "$" and not in_class else char)
        index += 1
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error


def _parses(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            parse(text)
        except (ValueError, binascii.Error):
            return False
        return True

    return check


def _moment(text: str) -> None:
    if "T" not in text.upper() or datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(text)


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": _parses(_moment),
    "date": _parses(date.fromisoformat),
    "duration": lambda text: _DURATION.match(text) is not None,
    "ipv4": _parses(ipaddress.IPv4Address),
    "ipv6": _parses(ipaddress.IPv6Address),
    "cidr": _parses(lambda text: ipaddress.ip_network(text, strict=False)),
    "uuid": _parses(uuid.UUID),
    "byte": _parses(lambda text: base64.b64decode(text, validate=True)),
    "hostname": lambda text: _HOSTNAME.match(text) is not None,
    "email": lambda text: _EMAIL.match(text) is not None,
    "uri": lambda text: bool(urlsplit(text).scheme) or text.startswith("/"),
}


def fits(name: str, text: str) -> bool:
    """Whether ``text`` has the format; a format the server does not know fits everything, as in Kubernetes."""
    check = _FORMATS.get(name)
    return check is None or check(text)
