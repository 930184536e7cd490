"""Who may ask the kubelet: it runs commands as this account."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from agenthive_operator.local.apiserver import ensure_client, ensure_tls
from agenthive_operator.local.informer import Store
from agenthive_operator.local.kubelet.addresses import Addresses
from agenthive_operator.local.kubelet.server import PodServer


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[Addresses]:
    found = Addresses(tmp_path / "addresses.json", tmp_path)
    yield found
    found.close()


def pod_server(folder: Path, token: str | None) -> PodServer:
    return PodServer(Store(), folder, {}, lambda pod, name: None, token=token)


async def test_only_the_holder_of_the_certificate_is_let_in(tmp_path: Path, addresses: Addresses) -> None:
    """What a real API server shows; it is made once."""
    tls, (certificate, key) = ensure_tls(tmp_path), ensure_client(tmp_path)
    assert ensure_client(tmp_path) == (certificate, key)
    assert key.stat().st_mode & 0o077 == 0
    (tmp_path / "other").mkdir()
    somebody = ensure_client(tmp_path / "other")
    server = pod_server(tmp_path, None)
    await server.start(addresses.listener, tls.kubelet_context(certificate))
    host, port = addresses.listener.getsockname()[:2]
    try:
        for shown, let_in in (((certificate, key), True), (somebody, False), (None, False)):
            context = ssl.create_default_context(cafile=str(tls.ca))
            context.check_hostname = False
            if shown is not None:
                context.load_cert_chain(*shown)
            async with aiohttp.ClientSession() as session:
                asking = session.get(f"https://{host}:{port}/healthz", ssl=context)
                if let_in:
                    async with asking as answer:
                        assert answer.status == 200
                else:
                    with pytest.raises(aiohttp.ClientError):
                        await asking
    finally:
        await server.stop()


async def test_it_does_not_listen_where_nothing_tells_who_asks(tmp_path: Path, addresses: Addresses) -> None:
    for tls in (None, ensure_tls(tmp_path).server_context()):
        with pytest.raises(ValueError, match="a token or a certificate"):
            await pod_server(tmp_path, None).start(addresses.listener, tls)
