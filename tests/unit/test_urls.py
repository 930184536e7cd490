"""URLs with passwords that were not quoted: refused, and never repeated."""

from __future__ import annotations

import traceback

import pytest

from agenthive.bus.endpoint import Endpoint
from agenthive.store.database import Address
from agenthive.urls import split_url
from agenthive_operator.backends.reports import endpoint_of
from agenthive_operator.backends.resolve import service_of

SECRETS = ("hunter", "4711", "sesame")
UNQUOTED = [
    "scheme://user:hunter/sesame@host:1234/0",
    "scheme://user:4711/sesame@host:1234/0",
    "scheme://user:hunter#sesame@host:1234/0",
    "scheme://user:4711#sesame@host:1234/0",
    "scheme://:hunter\u2100sesame@host:1234/0",  # normalises to a/c, which urlsplit refuses and repeats
    "scheme://user:hunter@[sesame/0",
    "scheme://user@host:hunter/0",
]


@pytest.mark.parametrize("url", UNQUOTED)
@pytest.mark.parametrize(
    ("scheme", "read"),
    [
        ("redis", lambda url: split_url(url, "the URL")),
        ("redis", Endpoint.parse),
        ("postgresql", Address.parse),
        ("redis", lambda url: endpoint_of(url, 6379)),
        ("redis", service_of),
    ],
)
def test_an_unquoted_password_is_refused_and_not_repeated(url: str, scheme: str, read) -> None:
    with pytest.raises(ValueError, match="%XX") as caught:
        read(url.replace("scheme", scheme))
    told = "".join(traceback.format_exception(caught.value, chain=True)).split("ValueError:")[-1] + str(caught.value)
    assert not any(secret in told for secret in SECRETS), told
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p%2Fq%40r@host:6379/3",
        "postgresql://u:p@one:5432,two:5433/db?target_session_attrs=any",
        "postgresql:///db?host=/tmp&user=a@b",
    ],
)
def test_a_url_in_order_is_taken_apart(url: str) -> None:
    assert split_url(url, "the URL").path == "/" + url.partition("?")[0].rpartition("/")[2]


def test_several_hosts_of_one_server_are_an_endpoint() -> None:
    assert endpoint_of("postgresql://u:p@one:5432,two:5433/db", 5432) == "one:5432,two:5433"
