"""Redis URLs."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from agenthive.bus.wire import Endpoint, ReplyError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host", ("host", 6379, 0, None, None)),
        ("redis://host:7000/3", ("host", 7000, 3, None, None)),
        ("redis://:secret@host/0", ("host", 6379, 0, None, "secret")),
        ("redis://user:p%40ss%2F@host:1/", ("host", 1, 0, "user", "p@ss/")),
        ("redis://[::1]:6380/1", ("::1", 6380, 1, None, None)),
    ],
)
def test_urls(url: str, expected: tuple[Any, ...]) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.host, endpoint.port, endpoint.db, endpoint.username, endpoint.password) == expected
    assert endpoint.tls is None


def test_rediss_verifies_unless_told_otherwise() -> None:
    verified = Endpoint.parse("rediss://host").tls
    assert verified is not None
    assert verified.verify_mode == ssl.CERT_REQUIRED
    assert verified.check_hostname
    trusting = Endpoint.parse("rediss://host?ssl_cert_reqs=none").tls
    assert trusting is not None
    assert trusting.verify_mode == ssl.CERT_NONE


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
        ("rediss://host?ssl_ca_certs=/no/such/file", "certificate file"),
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


def test_the_code_of_an_error() -> None:
    assert ReplyError("NOGROUP No such key").code == "NOGROUP"
