"""Where Redis is and how to get in: the one reader of Redis URLs, for agents, the command line and the operator."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote

from agenthive.urls import split_url

DEFAULT_PORT: Final = 6379
DEFAULT_SENTINEL_PORT: Final = 26379
Kind = Literal["single", "sentinel", "cluster"]
Node = tuple[str, int]
"""Host and port of one server."""

_KINDS: Final[dict[str, Kind]] = {"": "single", "+sentinel": "sentinel", "+cluster": "cluster"}
_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile")
_SENTINEL_OPTIONS: Final = ("sentinel_password", "sentinel_tls", "sentinel_username")
_SCHEMES: Final = "redis:// or rediss:// (TLS), redis+sentinel:// or redis+cluster://"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One Redis, in any of its forms: a server, a master that sentinels watch, a cluster. ``parse`` reads URLs.

    ``host`` and ``port`` are those of the server, or of the first of ``nodes``: the sentinels, or the cluster's nodes
    that the URL names. ``at`` makes the endpoint of one server out of any.
    """

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    client_name: str = "agenthive"
    connect_timeout: float = 5.0
    socket_timeout: float = 5.0
    kind: Kind = "single"
    nodes: tuple[Node, ...] = ()
    service: str = ""
    """What the sentinels call the master."""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    sentinel_tls: ssl.SSLContext | None = None

    @classmethod
    def parse(cls, url: str, **options: Any) -> Endpoint:
        """Read a URL::

            redis[s]://[[user]:password@]host[:port][/db]
            redis[s]+sentinel://[[user]:password@]host[:port][,host[:port]…]/service[/db]
            redis[s]+cluster://[[user]:password@]host[:port][,host[:port]…]

        ``rediss`` takes the options ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths),
        ``ssl_cert_reqs=none|required`` and ``ssl_check_hostname=true|false`` in its query. With Sentinel, user and
        password are those of the Redis servers; the sentinels' own are the options ``sentinel_username`` and
        ``sentinel_password``, and ``sentinel_tls=true|false`` says whether they speak TLS (as the servers, unless
        told otherwise).

        Raises ValueError that says what is wrong; it never shows a password.
        """
        parts = split_url(url, "the Redis URL")
        base, plus, suffix = parts.scheme.partition("+")
        kind = _KINDS.get(plus + suffix)
        if base not in {"redis", "rediss"} or kind is None:
            raise ValueError(f"the Redis URL starts with {parts.scheme or 'nothing'}://; write {_SCHEMES}")
        login, _, hosts = parts.netloc.rpartition("@")
        nodes = _nodes(hosts, DEFAULT_SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT)
        if kind == "single" and len(nodes) > 1:
            raise ValueError(
                f"the Redis URL names {len(nodes)} servers; write {base}+sentinel://host,host/service if they are "
                f"sentinels, {base}+cluster://host,host if they are a cluster"
            )
        username, _, password = login.partition(":")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        service, db = _path(kind, parts.path.strip("/"), query)
        sentinel_options = _take(query, _SENTINEL_OPTIONS) if kind == "sentinel" else {}
        secure = base == "rediss"
        sentinel_secure = _flag(sentinel_options, "sentinel_tls", secure)
        context = _tls_context(secure or sentinel_secure, query, _SENTINEL_OPTIONS if kind == "sentinel" else ())
        return cls(
            host=nodes[0][0],
            port=nodes[0][1],
            db=db,
            username=unquote(username) or None,
            password=unquote(password) or None,
            tls=context if secure else None,
            kind=kind,
            nodes=nodes,
            service=service,
            sentinel_username=sentinel_options.get("sentinel_username") or None,
            sentinel_password=sentinel_options.get("sentinel_password") or None,
            sentinel_tls=context if sentinel_secure else None,
            **options,
        )

    def at(self, node: Node) -> Endpoint:
        """One server of it."""
        host, port = node
        return replace(self, host=host, port=port, kind="single", nodes=(node,), service="")

    def sentinel_at(self, node: Node) -> Endpoint:
        """One of its sentinels."""
        return replace(
            self.at(node),
            db=0,
            username=self.sentinel_username,
            password=self.sentinel_password,
            tls=self.sentinel_tls,
        )

    @property
    def address(self) -> str:
        """``host:port``, several separated by commas."""
        return ",".join(shown(node) for node in self.nodes or ((self.host, self.port),))

    def __str__(self) -> str:
        scheme = "rediss" if self.tls else "redis"
        if self.kind == "single":
            return f"{scheme}://{self.address}/{self.db}"
        path = f"/{self.service}/{self.db}" if self.kind == "sentinel" else ""
        return f"{scheme}+{self.kind}://{self.address}{path}"


def shown(node: Node) -> str:
    """``host:port``."""
    host, port = node
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_hosts(hosts: str) -> Sequence[tuple[str, str]]:
    """``host:port,[::1]:port`` as pairs of host and port, a port that is not written as an empty text. Pure."""
    pairs = []
    for entry in hosts.split(","):
        if entry.startswith("["):
            host, _, rest = entry[1:].partition("]")
            pairs.append((host, rest.removeprefix(":")))
        else:
            host, _, port = entry.partition(":")
            pairs.append((host, port))
    return pairs


def _nodes(hosts: str, default_port: int) -> tuple[Node, ...]:
    nodes = []
    for host, port in split_hosts(hosts):
        if not host:
            raise ValueError("the Redis URL names no host, or an empty one; write redis://host:6379/0")
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) <= 65_535):
            raise ValueError("a port of the Redis URL is no number from 1 to 65535; write host:6379")
        nodes.append((host.lower(), int(port or default_port)))
    return tuple(nodes)


def _path(kind: Kind, path: str, query: dict[str, str]) -> tuple[str, int]:
    """Service and database."""
    if kind == "cluster":
        if path not in {"", "0"}:
            raise ValueError(f"the Redis URL ends with /{path}; a cluster has only database 0: leave it out")
        return "", 0
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ValueError(
                "the Redis URL names no service; write redis+sentinel://host:26379/mymaster with the name by which "
                "the sentinels know the master"
            )
    number = path or query.pop("db", "0")
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"the Redis URL ends with /{path or number}; write the number of a database, such as /0")
    return unquote(service), int(number)


def _take(query: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: query.pop(name) for name in names if name in query}


def _flag(options: dict[str, str], name: str, default: bool) -> bool:
    value = options.get(name, "true" if default else "false").lower()
    if value not in {"true", "false"}:
        raise ValueError(f"{name} in the Redis URL is neither true nor false; write one of them")
    return value == "true"


def _tls_context(secure: bool, query: dict[str, str], more: tuple[str, ...] = ()) -> ssl.SSLContext | None:
    known = sorted(more + (_TLS_OPTIONS if secure else ()))
    unknown = sorted(query.keys() - set(known))
    if unknown:
        options = f"it knows {', '.join(known)}" if known else "it has none"
        raise ValueError(f"unknown option {unknown[0]!r} in the Redis URL; {options}")
    if not secure:
        return None
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
        if "ssl_certfile" in query:
            context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(sorted(query.keys() & {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}))
        raise ValueError(f"a certificate file of the Redis URL ({names}) cannot be used: {error}") from error
    context.check_hostname = _flag(query, "ssl_check_hostname", default=True)
    requirement = query.get("ssl_cert_reqs", "required")
    if requirement == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif requirement != "required":
        raise ValueError(f"ssl_cert_reqs={requirement!r} in the Redis URL; write none or required")
    return context
