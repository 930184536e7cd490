"""rediss:// with a CA and client certificates of the test's own.

The program of the wheel was built without TLS: a terminator in front of it does that part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.tls import Authority, redis_front, server_context

from agenthive.bus import Bus, BusUnavailable
from agenthive.settings import HiveScope, RedisPool


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
async def secure_url(valkey, authority) -> AsyncIterator[Callable[..., str]]:
    """Makes URLs of the terminator, with files as options."""
    async with redis_front(valkey.port, server_context(authority.issue("server"), clients=authority)) as port:
        yield (
            lambda **options: (
                f"rediss://:{valkey.password}@127.0.0.1:{port}/0?" + "&".join(f"{k}={v}" for k, v in options.items())
            )
        )


async def test_messages_go_through_tls_with_client_certificates(secure_url, authority, connect, consume, make) -> None:
    certificate, key = authority.issue("client")
    url = secure_url(ssl_ca_certs=authority.file, ssl_certfile=certificate, ssl_keyfile=key)
    bus = await connect(url)
    consumer = await consume(on=bus)  # its lease is renewed over TLS by a thread
    await asyncio.gather(*(bus.send(make(n)) for n in range(200)))
    got = []
    while len(got) < 200:
        for delivery in await consumer.claim(50):
            got.append(delivery.message.body["n"])
            await consumer.ack(delivery)
    assert sorted(got) == list(range(200))


async def test_what_tls_refuses_is_said(secure_url, authority, tmp_path, valkey) -> None:
    certificate, key = authority.issue("client")
    (tmp_path / "else").mkdir()
    stranger = Authority(tmp_path / "else", "theirs")
    other, other_key = stranger.issue("other")
    cases = {
        secure_url(ssl_certfile=certificate, ssl_keyfile=key): "not trusted; name the file of its CA by ssl_ca_certs",
        secure_url(ssl_ca_certs=stranger.file, ssl_certfile=certificate, ssl_keyfile=key): "is not trusted",
        secure_url(ssl_ca_certs=authority.file): "wants a client certificate; name its files by ssl_certfile",
        secure_url(ssl_ca_certs=authority.file, ssl_certfile=other, ssl_keyfile=other_key): "does not trust the client",
        secure_url(ssl_ca_certs=authority.file, ssl_certfile=certificate, ssl_keyfile=key).replace(
            "127.0.0.1", "localhost"
        ): "for another name",
    }
    for url, says in cases.items():
        with pytest.raises(BusUnavailable, match=f"TLS failed: .*{says}") as caught:
            await Bus.connect(url, HiveScope())
        assert valkey.password not in str(caught.value)
    with pytest.raises(BusUnavailable, match=r"no connection within 0.3 s \(or it does not speak TLS"):
        await Bus.connect(
            valkey.url.replace("redis://", "rediss://"), HiveScope(), pool=RedisPool(connect_timeout_seconds=0.3)
        )
    plain = secure_url().replace("rediss://", "redis://").rstrip("?")
    with pytest.raises(BusUnavailable, match=r"only over TLS \(rediss://\)|closed the connection"):
        await Bus.connect(plain, HiveScope())
    trusting = secure_url(ssl_cert_reqs="none", ssl_certfile=certificate, ssl_keyfile=key)
    await (await Bus.connect(trusting, HiveScope())).aclose()
