"""Names inside PostgreSQL: the schema of a hive, identifiers, locks."""

from __future__ import annotations

import hashlib

from agenthive.settings import HiveScope

#: PostgreSQL cuts identifiers silently after this many bytes.
MAX_IDENTIFIER = 63
_HASH_DIGITS = 10


def schema_name(scope: HiveScope) -> str:
    """The PostgreSQL schema of a hive: ``ah_<instance>_<namespace>_<hive>``, at most 63 characters.

    A dash becomes two underscores, so that the name needs no quotes in psql and no two hives share one: labels hold
    no underscore, so a single one always separates. A name that is too long ends in a hash of the whole.
    """
    parts = (scope.instance, scope.namespace, scope.hive)
    return capped("ah_" + "_".join(label_part(part) for part in parts))


def label_part(label: str) -> str:
    """A DNS label as a part of a name whose parts a single underscore separates."""
    return label.replace("-", "__")


def capped(name: str) -> str:
    """``name``, of ASCII; one that is longer than PostgreSQL keeps ends in a hash of the whole."""
    if len(name) <= MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{name[: MAX_IDENTIFIER - _HASH_DIGITS - 1]}_{digest}"


def application_name(hive: str, agent: str, pod: str) -> str:
    """What ``pg_stat_activity`` shows of a process: ``<hive>/<agent>/<pod>``, at most 63 bytes.

    Where that is too long each part gives what it has over its share; of the pod the end stays, which tells it from
    its siblings.
    """
    name = f"{hive}/{agent}/{pod}"
    return name if len(name) <= MAX_IDENTIFIER else f"{hive[:16]}/{agent[:28]}/{pod[-17:]}"


def quote(identifier: str) -> str:
    """``identifier`` as SQL writes it, quotes included.

    Raises:
        ValueError: it is empty, holds a NUL or is longer than PostgreSQL keeps.
    """
    if not identifier or "\0" in identifier or len(identifier.encode()) > MAX_IDENTIFIER:
        raise ValueError(f"not a PostgreSQL identifier of 1 to {MAX_IDENTIFIER} bytes: {identifier!r}")
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """``text`` as an expression of SQL that holds nothing but hexadecimal digits of it, whatever it and the server's
    settings are: for statements that go together with others and so can have no parameters.
    """
    return f"convert_from(decode('{text.encode().hex()}', 'hex'), 'UTF8')"


def lock_key(*parts: str) -> int:
    """A key for ``pg_advisory_xact_lock``: the same for the same parts, in every process, signed 64 bits."""
    digest = hashlib.blake2b("\0".join(("agenthive", *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
