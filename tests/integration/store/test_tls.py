"""TLS to PostgreSQL as libpq names its modes, and what people read when it fails.

The program of the wheel was built without TLS: a terminator in front of it does that part.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.tls import Authority, PostgresFront

from agenthive.settings import HiveScope
from agenthive.store import InvalidValue, Store, StoreAuthError, StoreError, StoreUnavailable, schema_name, upgrade
from agenthive.store.database import Address, connect_once
from agenthive.store.errors import translate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


Open = Callable[..., Any]


@pytest.fixture
async def front(postgres: Any, authority: Authority) -> AsyncIterator[Open]:
    """Starts one, returns it and a maker of URLs through it with parameters."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*, address: str = "127.0.0.1", clients: Authority | None = None, plain: bool = True) -> Any:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*authority.issue("server", address=address))
            if clients is not None:
                context.load_verify_locations(clients.file)
                context.verify_mode = ssl.CERT_REQUIRED
            front = PostgresFront(postgres.port, context, plain=plain)
            server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
            stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]

            def url(host: str = "127.0.0.1", **parameters: Any) -> str:
                query = "&".join(f"{name}={value}" for name, value in parameters.items())
                return f"postgresql://postgres:{postgres.password}@{host}:{port}/postgres?{query}"

            return front, url

        yield start


async def ask(url: str) -> int:
    connection = await connect_once(Address.parse(url), "test")
    try:
        return int(await connection.fetchval("SELECT 1"))
    finally:
        await connection.close()


async def test_a_store_works_over_tls(front: Open, authority: Authority, scope: HiveScope) -> None:
    seen, url = await front(clients=authority)
    certificate, key = authority.issue("client")
    secure = url(sslmode="verify-full", sslrootcert=authority.file, sslcert=certificate, sslkey=key)
    await upgrade(secure, schema_name(scope))
    async with await Store.connect(secure, scope, agent="librarian") as store:
        await asyncio.gather(*(store.state.set(f"k{n}", "x" * 1000) for n in range(100)))
        assert len(await store.state.list(limit=200)) == 100
    assert set(seen.kinds) == {"tls"}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("disable", "plain"), ("allow", "plain"), ("prefer", "tls"), (None, "tls"), ("require", "tls")],
)
async def test_modes_that_trust_anybody(front: Open, mode: str | None, kind: str) -> None:
    seen, url = await front()
    assert await ask(url(**({"sslmode": mode} if mode else {}))) == 1
    assert seen.kinds == [kind]


async def test_allow_goes_on_to_tls_where_plain_is_refused(front: Open) -> None:
    seen, url = await front(plain=False)
    assert await ask(url(sslmode="allow")) == 1
    assert seen.kinds == ["tls"]


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
async def test_a_server_without_tls_is_good_enough_for_some(hive_url: str, mode: str) -> None:
    assert await ask(f"{hive_url}?sslmode={mode}") == 1


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_said_to_be_one(hive_url: str, authority: Authority, mode: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"does not offer TLS: .*Turn it on there \(ssl = on\), or write"):
        await ask(f"{hive_url}?sslmode={mode}&sslrootcert={authority.file}")


async def test_who_signed_it_and_for_which_name(front: Open, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    stranger = Authority(tmp_path / "else", "theirs")
    _, url = await front()
    _, misnamed = await front(address="192.0.2.1")
    ours, theirs = authority.file, stranger.file
    for good in (
        url(sslmode="verify-full", sslrootcert=ours),
        misnamed(sslmode="verify-ca", sslrootcert=ours),
        misnamed(sslmode="require", sslrootcert=ours),
    ):
        assert await ask(good) == 1
    unknown = "TLS failed: its certificate is not signed by an authority of sslrootcert"
    for bad, says in {
        url(sslmode="verify-full", sslrootcert=theirs): unknown,
        url(sslmode="verify-ca", sslrootcert=theirs): unknown,
        # As libpq has it: with a root certificate at hand, require verifies it.
        url(sslmode="require", sslrootcert=theirs): unknown,
        misnamed(sslmode="verify-full", sslrootcert=ours): "for another name; write a host it names, or sslmode=verify",
        url(host="localhost", sslmode="verify-full", sslrootcert=ours): "for another name",
    }.items():
        with pytest.raises(StoreUnavailable, match=says) as caught:
            await ask(bad)
        assert "TLS failed" in str(caught.value)


async def test_the_systems_authorities(front: Open, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, url = await front()
    with pytest.raises(StoreUnavailable, match="not signed by an authority"):
        await ask(url(sslrootcert="system"))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    assert await ask(url(sslrootcert="system")) == 1
    assert await ask(url(sslmode="verify-full", sslrootcert="system")) == 1
    with pytest.raises(StoreUnavailable, match="for another name"):
        await ask(url(host="localhost", sslrootcert="system"))
    with pytest.raises(InvalidValue, match="sslrootcert=system goes with sslmode=verify-full"):
        await ask(url(sslmode="require", sslrootcert="system"))
    assert set(seen.kinds) == {"tls"}


async def test_client_certificates(front: Open, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    stranger = Authority(tmp_path / "else", "theirs")
    certificate, key = authority.issue("client")
    other, other_key = stranger.issue("other")
    _, url = await front(clients=authority)
    assert await ask(url(sslmode="require", sslcert=certificate, sslkey=key)) == 1
    for bad, says in {
        url(sslmode="require"): "it may want a client certificate: name its files by sslcert and sslkey",
        url(sslmode="require", ssl_max_protocol_version="TLSv1.2"): "TLS failed: it wants a client certificate",
        url(sslmode="require", sslcert=other, sslkey=other_key): "it may want a client certificate",
        url(sslmode="require", sslcert=certificate, sslkey=other_key): "TLS failed: sslkey is not the key of sslcert",
        url(sslmode="require", sslrootcert=key): "is not a PEM file",
    }.items():
        with pytest.raises(StoreUnavailable, match=says):
            await ask(bad)


async def test_files_and_modes_that_are_not_there(hive_url: str, scope: HiveScope) -> None:
    for parameters, says in {
        "sslmode=verify-full&sslrootcert=/nowhere/ca.crt": "sslrootcert=/nowhere/ca.crt cannot be read",
        "sslmode=require&sslcert=/nowhere/tls.crt": "sslcert=/nowhere/tls.crt cannot be read",
        "sslmode=sometimes": "`sslmode` parameter must be one of: disable, allow, prefer, require, verify-ca, verify-f",
    }.items():
        for call in (ask(f"{hive_url}?{parameters}"), Store.connect(f"{hive_url}?{parameters}", scope, agent="x")):
            with pytest.raises(InvalidValue, match=says):
                await call


def test_a_server_that_insists_on_tls() -> None:
    refused = asyncpg.InvalidAuthorizationSpecificationError(
        'no pg_hba.conf entry for host "10.0.0.1", user "app", database "app", no encryption'
    )
    failure: StoreError = translate(refused, "db:5432/app")
    assert isinstance(failure, StoreAuthError)
    assert "write sslmode=require or stronger" in str(failure)
