"""The client against a server that answers badly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from agenthive_operator.backends.kube import SECRET, ApiError, Kube

WHOLE = b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}\n'


@pytest.fixture
async def kube() -> AsyncIterator[Kube]:
    """A client of a server whose watches end in the middle of a line and whose objects are a proxy's page."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.Response(text="<html>welcome</html>")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(WHOLE + WHOLE[:20])
        return response

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    client = Kube(Configuration(host=f"http://{host}:{port}"))
    yield client
    await client.aclose()
    await runner.cleanup()


async def test_a_watch_cut_in_the_middle_of_a_line_is_an_error_of_the_api(kube: Kube) -> None:
    events = kube.watch(SECRET, "default", "1")
    kind, obj = await anext(events)
    assert (kind, obj["metadata"]["name"]) == ("ADDED", "a")
    with pytest.raises(ApiError, match="watch of secrets"):
        await anext(events)


async def test_an_answer_that_is_no_json_is_an_error_of_the_api(kube: Kube) -> None:
    with pytest.raises(ApiError, match="GET /api/v1/namespaces/default/secrets/x"):
        await kube.get(SECRET, "default", "x")


async def test_a_list_of_no_metadata_is_empty(
    api_server: Any, kube_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    async with await Kube.connect() as client:
        items, version = await client.list(SECRET, kube_namespace, metadata_only=True)
    assert items == []
    assert int(version) > 0
