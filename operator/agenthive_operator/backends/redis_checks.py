"""What a Redis has to be for a hive's messages, and how to ask it in one round trip. Pure.

Nothing is written: rights are found by commands that do nothing where they are allowed. Redis looks at rights before
anything else, so that NOPERM is told from every other refusal, whatever role the server has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agenthive.bus.connections import info_fields
from agenthive.bus.wire import Command, ReplyError
from agenthive_operator.backends.reports import StoreReport, Warned

OLDEST: Final = (7, 0)
_ABOUT: Final[tuple[Command, ...]] = (("INFO",), ("CONFIG", "GET", "save"))


def questions(prefix: str | None, *, loads: bool = True) -> dict[str, Command]:
    """The commands a hive's processes use, by the right that each shows.

    Args:
        prefix: Of the hive's keys; None asks for nothing, as for a cache.
        loads: Whether who logs in also loads the bus's functions.
    """
    if prefix is None:
        return {}
    key = f"{prefix}probe"
    asked: dict[str, Command] = {
        "+fcall": ("FCALL", "agenthive_probe", 1, key),
        "+xlen": ("XLEN", key),
        "+xadd": ("XADD", key, "NOMKSTREAM", "*", "probe", "1"),
        "+xrange": ("XRANGE", key, "-", "+"),
        "+zrange": ("ZRANGE", key, 0, -1),
        "+hgetall": ("HGETALL", key),
        "+get": ("GET", key),
        "+mget": ("MGET", key),
        "+del": ("DEL", key),
        "+unlink": ("UNLINK", key),
        "+blpop": ("BLPOP", key, "0.001"),
        "+scan": ("SCAN", 0, "MATCH", key, "COUNT", 1),
    }
    if loads:  # without its first line no library is loaded
        asked |= {"+function|list": ("FUNCTION", "LIST", "LIBRARYNAME", "probe"), "+function|load": _LOAD}
    return asked


_LOAD: Final[Command] = ("FUNCTION", "LOAD", "-- asks for the right alone")


def commands(asked: Mapping[str, Command]) -> list[Command]:
    """What to send at once; ``judge`` takes the answers."""
    return [*_ABOUT, *asked.values()]


def judge(answers: Sequence[Any], asked: Mapping[str, Command], endpoint: str, *, replicated: bool) -> StoreReport:
    """What the answers to ``commands(asked)`` say of the server.

    Args:
        answers: Texts, lists and ReplyErrors.
        asked: Empty for a cache: what loses messages does not matter there.
        endpoint: Its host and port.
        replicated: Whether messages are to be on a replica before they count as accepted.
    """
    info, save, *rights = answers
    if isinstance(info, ReplyError):
        text = f"Redis at {endpoint} forbids this user the INFO command ({info}): grant +info"
        return StoreReport(False, "PrivilegesMissing", text, endpoint)
    about = info_fields(info)
    version, report = version_of(about, endpoint)
    if not report.ok:
        return report
    if about.get("role") == "slave":
        text = (
            f"{report.message} is a read-only replica of {about.get('master_host')}:{about.get('master_port')}: name "
            "its master in the URL (the Service that leads to it), or the sentinels: redis+sentinel://host,host/service"
        )
        return StoreReport(False, "ReadOnly", text, endpoint, version)
    missing = [right for right, answer in zip(asked, rights, strict=True) if forbidden(answer)]
    if missing:
        text = f"{report.message} does not let this user do what the bus needs: grant {' '.join(missing)}"
        return StoreReport(False, "PrivilegesMissing", f"{text} on keys 'ah:*' (ACL SETUSER)", endpoint, version)
    warnings = tuple(losses(about, save, replicated=replicated)) if asked else ()
    return StoreReport(True, "Reachable", report.message, endpoint, version, warnings=warnings)


def version_of(about: Mapping[str, object], endpoint: str) -> tuple[str, StoreReport]:
    """The server's version, and whether it is recent enough."""
    spoken = str(about.get("redis_version", ""))
    own = str(about.get("valkey_version", "")) or spoken
    name = "Valkey" if "valkey_version" in about else "Redis"
    numbers = tuple(int(part) for part in spoken.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        text = f"{name} at {endpoint} is {own or 'of unknown version'}: Redis ≥ 7 or Valkey ≥ 7.2 is needed"
        return own, StoreReport(False, "VersionTooOld", text, endpoint, own)
    return own, StoreReport(True, "Reachable", f"{name} {own} at {endpoint}", endpoint, own)


def forbidden(answer: Any) -> bool:
    """Whether a command was refused for want of a right, or taken away by renaming, rather than for anything else."""
    return isinstance(answer, ReplyError) and (answer.code == "NOPERM" or "unknown command" in str(answer))


def losses(about: Mapping[str, str], save: Any, *, replicated: bool) -> list[Warned]:
    """How the server may lose messages, by what INFO and CONFIG GET save say (the latter may be forbidden)."""
    found = []
    policy = about.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        text = f"maxmemory-policy is {policy}: when memory is short the server throws messages away; set noeviction"
        found.append(Warned("MayEvict", text))
    if about.get("aof_enabled", "1") == "0":
        points = None if isinstance(save, ReplyError) or len(save) < 2 else save[1]
        if points is None:
            what = "appendonly is no: a restart may lose messages"
        elif points:
            what = "appendonly is no: a restart loses the messages since the last snapshot"
        else:
            what = "appendonly is no and there are no snapshots (save): a restart loses every message"
        found.append(Warned("MayLoseMessages", f"{what}; set appendonly yes"))
    if replicated and about.get("connected_slaves", "0") == "0":
        text = "messaging.durability is replicated and no replica is connected: what is sent is not accepted; add one"
        found.append(Warned("NoReplicas", text))
    return found
