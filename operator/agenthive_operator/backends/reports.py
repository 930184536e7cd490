"""What a look at a server outside of Kubernetes found. Plain values, made by the probes, judged by the conditions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from agenthive.urls import split_url


class Warned(NamedTuple):
    """A reason of a condition that is True, and what to mend."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class StoreReport:
    """One probe of a Redis or PostgreSQL server.

    ``reason`` is one of the reasons of RedisReady or PostgresReady, ``message`` says what was found and, where
    something is wrong, what to do; neither ever holds a credential. ``endpoint`` is ``host:port``; ``room`` is how many
    connections a PostgreSQL has for ordinary roles. ``warnings`` are what somebody should mend though it works.
    ``identity`` is who the server is, where that was asked.
    """

    ok: bool
    reason: str
    message: str
    endpoint: str = ""
    version: str = ""
    room: int | None = None
    warnings: tuple[Warned, ...] = ()
    identity: str = ""


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """The hive's schema in PostgreSQL after the operator brought it up to date, or why it could not."""

    ok: bool
    reason: str
    message: str
    applied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PostgresReport:
    """A probe of PostgreSQL and of the hive's schema in it."""

    store: StoreReport
    schema: SchemaReport


@dataclass(frozen=True, slots=True)
class Figures:
    """What one agent's queue holds. ``oldest`` is when its oldest waiting message was sent."""

    backlog: int = 0
    in_flight: int = 0
    dead_letters: int = 0
    oldest: datetime | None = None


def endpoint_of(url: str, default_port: int) -> str:
    """``host:port`` of a URL, without credentials, database or options.

    Raises ``ValueError`` when there is no host or the URL cannot be read; the text repeats nothing of it.
    """
    parts = split_url(url, "the URL")
    if not parts.hostname:
        raise ValueError("the URL names no host")
    if "," in parts.netloc:  # a PostgreSQL of several hosts, sentinels, nodes of a cluster
        return parts.netloc.rpartition("@")[2]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{parts.port or default_port}"


def without_secret(text: str, url: str) -> str:
    """``text`` with the passwords of ``url`` blotted out, wherever a driver may have quoted them."""
    try:
        parts = urlsplit(url)
        secrets = [parts.netloc.rpartition("@")[0].partition(":")[2]]
    except ValueError:
        return text.replace(url, "<url>")
    secrets += [value for name, value in parse_qsl(parts.query) if "password" in name]
    text = text.replace(url, "<url>")
    for secret in filter(None, [*secrets, *(unquote(secret) for secret in secrets)]):
        text = text.replace(secret, "***")
    return text
