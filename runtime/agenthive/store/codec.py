"""JSON between Python and PostgreSQL, by orjson; and what else a value must be to be kept."""

from __future__ import annotations

import math
import os
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import orjson

from agenthive.store.errors import InvalidValue, ValueTooLarge

MAX_DOCUMENT_BYTES = 1_048_576
MAX_KEY_BYTES = 1024


def encode(value: Any, *, limit: int = MAX_DOCUMENT_BYTES, what: str = "value") -> str:
    """``value`` as JSON text.

    Args:
        value: None, bool, int (64 bits), finite float, str, list, tuple or dict with str keys; also
            datetimes, UUIDs and enums, which orjson writes as text.
        limit: most bytes the text may have.
        what: how the message names the value.

    Raises:
        InvalidValue: it is not JSON; the message says which part.
        ValueTooLarge: the text is longer than ``limit``.
    """
    try:
        # Dataclasses are refused: what comes back would be something else.
        data = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError as error:  # orjson's JSONEncodeError is a TypeError
        raise InvalidValue(f"{what} cannot be written as JSON: {error}") from error
    # orjson writes NaN and infinity as null, which would change a value silently. Looking is only needed after a null.
    if b"null" in data and _holds_non_finite(value):
        raise InvalidValue(f"{what} cannot be written as JSON: it holds NaN or infinity")
    if len(data) > limit:
        raise ValueTooLarge(f"{what} takes {len(data)} bytes as JSON; at most {limit} are kept: split it")
    return data.decode()


def decode(text: str | bytes) -> Any:
    """The value of JSON ``text`` as PostgreSQL returns it."""
    return orjson.loads(text)


def _holds_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_holds_non_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_non_finite(item) for item in value)
    return False


def check_key(key: str, what: str = "key") -> str:
    """``key`` itself, if PostgreSQL can keep it as a key.

    Raises:
        InvalidValue: not a string, empty, over 1024 bytes, or with a NUL or a lone surrogate.
    """
    if not isinstance(key, str) or not key:
        raise InvalidValue(f"{what} must be a non-empty string, not {key!r}")
    # Cheap for what nearly every key is; the exact count only where it can matter.
    if "\0" in key or not key.isascii() or len(key) > MAX_KEY_BYTES:
        try:
            size = len(key.encode())
        except UnicodeEncodeError as error:
            raise InvalidValue(f"{what} {key!r} is not valid Unicode: {error.reason}") from error
        if size > MAX_KEY_BYTES or "\0" in key:
            raise InvalidValue(f"{what} {key[:80]!r} must have at most {MAX_KEY_BYTES} bytes and no NUL character")
    return key


def storable(text: str) -> str:
    """``text`` without what PostgreSQL's text cannot hold, NUL and lone surrogates: an error of a handler may."""
    return text if text.isprintable() else text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def check_finite(value: float, what: str = "value") -> float:
    """``value`` as a finite float.

    Raises:
        InvalidValue: not a number, NaN, infinite, or beyond the range of a double.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValue(f"{what} must be a finite number, not {value!r:.80}") from error
    if isinstance(value, str) or not math.isfinite(number):
        raise InvalidValue(f"{what} must be a finite number, not {value!r:.80}")
    return number


def check_timestamp(moment: datetime, what: str = "timestamp") -> datetime:
    """``moment`` itself, if it names its time zone.

    Raises:
        InvalidValue: it does not.
    """
    if moment.tzinfo is None:
        raise InvalidValue(f"{what} {moment.isoformat()} names no time zone: write datetime.now(UTC)")
    return moment


def utc_now() -> datetime:
    """The time of this machine."""
    return datetime.now(UTC)


def new_id() -> uuid.UUID:
    """A UUIDv7: rows of one time lie together in the index. Made here, so that repeating an insert is harmless."""
    random = int.from_bytes(os.urandom(10), "big")
    milliseconds = time.time_ns() // 1_000_000
    low = 0x8000000000000000 | (random & 0x3FFFFFFFFFFFFFFF)
    return uuid.UUID(int=(milliseconds << 80) | 0x7000 << 64 | ((random >> 62) & 0xFFF) << 64 | low)
