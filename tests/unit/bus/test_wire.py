"""Redis URLs."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from agenthive.bus.endpoint import Endpoint
from agenthive.bus.wire import ReplyError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", ("host", 6379, 0, None, None)),
        ("redis://host:7000/3", ("host", 7000, 3, None, None)),
        ("redis://:secret@host/0", ("host", 6379, 0, None, "secret")),
        ("redis://user:p%40ss%2F@host:1/", ("host", 1, 0, "user", "p@ss/")),
        ("redis://[::1]:6380/1", ("::1", 6380, 1, None, None)),
        ("redis://host?db=4", ("host", 6379, 4, None, None)),
    ],
)
def test_urls(url: str, expected: tuple[Any, ...]) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.host, endpoint.port, endpoint.db, endpoint.username, endpoint.password) == expected
    assert endpoint.tls is None


def test_sentinel_urls() -> None:
    url = "redis+sentinel://me:p%40ss@one,two:7000/my%20bus/2?sentinel_username=watch&sentinel_password=a%26b"
    endpoint = Endpoint.parse(url)
    assert endpoint.kind == "sentinel"
    assert endpoint.nodes == (("one", 26379), ("two", 7000))
    assert (endpoint.service, endpoint.db, endpoint.username, endpoint.password) == ("my bus", 2, "me", "p@ss")
    assert str(endpoint) == "redis+sentinel://one:26379,two:7000/my bus/2"
    sentinel = endpoint.sentinel_at(("two", 7000))
    assert (sentinel.host, sentinel.port, sentinel.db, sentinel.kind) == ("two", 7000, 0, "single")
    assert (sentinel.username, sentinel.password, sentinel.tls) == ("watch", "a&b", None)
    server = endpoint.at(("three", 1))
    assert (str(server), server.username, server.password) == ("redis://three:1/2", "me", "p@ss")


@pytest.mark.parametrize(
    ("url", "servers", "sentinels"),
    [
        ("redis+sentinel://h/s", False, False),
        ("rediss+sentinel://h/s", True, True),
        ("rediss+sentinel://h/s?sentinel_tls=false", True, False),
        ("redis+sentinel://h/s?sentinel_tls=true", False, True),
    ],
)
def test_tls_of_servers_and_of_sentinels(url: str, servers: bool, sentinels: bool) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.tls is not None, endpoint.sentinel_at(("h", 1)).tls is not None) == (servers, sentinels)


def test_cluster_urls() -> None:
    endpoint = Endpoint.parse("redis+cluster://:secret@one:7000,[::1]:7001,three")
    assert endpoint.kind == "cluster"
    assert endpoint.nodes == (("one", 7000), ("::1", 7001), ("three", 6379))
    assert endpoint.password == "secret"
    assert str(endpoint) == "redis+cluster://one:7000,[::1]:7001,three:6379"
    assert str(Endpoint.parse("rediss+cluster://one")) == "rediss+cluster://one:6379"


def test_rediss_verifies_unless_told_otherwise() -> None:
    verified = Endpoint.parse("rediss://host").tls
    assert verified is not None
    assert verified.verify_mode == ssl.CERT_REQUIRED
    assert verified.check_hostname
    trusting = Endpoint.parse("rediss://host?ssl_cert_reqs=none").tls
    assert trusting is not None
    assert trusting.verify_mode == ssl.CERT_NONE
    nameless = Endpoint.parse("rediss://host?ssl_check_hostname=false").tls
    assert nameless is not None
    assert nameless.verify_mode == ssl.CERT_REQUIRED
    assert not nameless.check_hostname


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host", "write redis:// or rediss://"),
        ("host:6379", "write redis:// or rediss://"),
        ("redis://", "names no host"),
        ("redis://host/x", "number of a database"),
        ("redis://host:99999", "the Redis URL cannot be read: its host or port"),
        ("redis://host?colour=red", "unknown option 'colour'.*it has none"),
        ("rediss://host?colour=red", "unknown option 'colour'.*ssl_ca_certs"),
        ("rediss://host?ssl_cert_reqs=maybe", "write none or required"),
        ("rediss://host?ssl_ca_certs=/no/such/file", r"certificate file of the Redis URL \(ssl_ca_certs\)"),
        ("rediss://host?ssl_check_hostname=perhaps", "neither true nor false"),
        ("redis+proxy://host", r"redis\+sentinel:// or redis\+cluster://"),
        ("redis://one,two", r"names 2 servers; write redis\+sentinel.*redis\+cluster"),
        ("redis+sentinel://one,two", "names no service"),
        ("redis+sentinel://one/bus/x", "number of a database"),
        ("redis+sentinel://one/bus?sentinel_tls=x", "neither true nor false"),
        ("redis+sentinel://one/bus?colour=red", "unknown option 'colour'.*sentinel_password"),
        ("redis+cluster://one,two:x", "no number from 1 to 65535"),
        ("redis+cluster://one,,two", "no host"),
        ("redis+cluster://one,two/3", "a cluster has only database 0"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Endpoint.parse(url)


def test_nothing_shows_the_password(tmp_path: Path) -> None:
    endpoint = Endpoint.parse("redis://:hush@host:1/2")
    assert "hush" not in repr(endpoint)
    assert str(endpoint) == "redis://host:1/2"
    with pytest.raises(ValueError, match="port") as caught:
        Endpoint.parse("redis://:hush@host:99999")
    assert "hush" not in str(caught.value)
    watched = Endpoint.parse("redis+sentinel://:hush@host/bus?sentinel_password=quiet")
    assert "hush" not in repr(watched) + str(watched)
    assert "quiet" not in repr(watched) + str(watched)


def test_the_code_of_an_error() -> None:
    assert ReplyError("NOGROUP No such key").code == "NOGROUP"
