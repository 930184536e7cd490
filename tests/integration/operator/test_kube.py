"""The client against a server that answers badly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from agenthive_operator.backends.answers import LONGEST_RETRY_AFTER
from agenthive_operator.backends.kube import SECRET, ApiError, Kube
from agenthive_operator.reconcile.cache import ObjectCache
from agenthive_operator.reconcile.children import Children

from .conftest import TESTS

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
    async with await Kube.connect(user_agent=TESTS) as client:
        items, version = await client.list(SECRET, kube_namespace, metadata_only=True)
    assert items == []
    assert int(version) > 0


GOOD: dict[str, Any] = {"kind": "Secret", "metadata": {"name": "x", "resourceVersion": "1"}}
NOT_SERVED: dict[str, Any] = {"kind": "Status", "reason": "NotFound", "code": 404, "details": {}}


@asynccontextmanager
async def answering(*answers: web.Response) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server that gives these answers in turn; its URL and what it was asked."""
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return answers[len(asked) - 1]

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2]), asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "absent"),
    [
        (lambda: web.json_response({**NOT_SERVED, "details": {"name": "x", "kind": "secrets"}}, status=404), True),
        (lambda: web.json_response(NOT_SERVED, status=404), False),
        (lambda: web.Response(text="404 page not found", status=404), False),
        (lambda: web.json_response({"kind": "Status", "metadata": {}}), False),
        (lambda: web.json_response([]), False),
    ],
    ids=["NotFound", "not served", "a load balancer's", "no Secret", "no object"],
)
async def test_only_the_api_servers_word_on_this_name_is_absence(
    answer: Callable[[], web.Response], absent: bool
) -> None:
    async with answering(answer()) as (url, _):
        client = Kube(Configuration(host=url))
        try:
            if absent:
                assert await client.get(SECRET, "default", "x") is None
            else:
                with pytest.raises(ApiError):
                    await client.get(SECRET, "default", "x")
        finally:
            await client.aclose()


@pytest.mark.parametrize(
    "page", [{"items": []}, {"items": 7, "metadata": {"resourceVersion": "1"}}, {"items": [1], "metadata": {}}], ids=str
)
async def test_what_is_no_list_is_no_absence_of_everything(page: dict[str, Any]) -> None:
    async with answering(web.json_response(page)) as (url, _):
        client = Kube(Configuration(host=url))
        with pytest.raises(ApiError, match="no list of secrets"):
            await client.list(SECRET, "default")
        await client.aclose()


async def test_refused_credentials_are_read_again_and_not_all_the_time() -> None:
    refusals = [web.json_response({"kind": "Status", "reason": "Unauthorized"}, status=401) for _ in range(3)]
    async with answering(refusals[0], web.json_response(GOOD), *refusals[1:]) as (url, asked):
        read = 0

        async def renew() -> Configuration:
            nonlocal read
            read += 1
            return Configuration(host=url, api_key={"BearerToken": f"Bearer {read}"})

        client = Kube(Configuration(host=url, api_key={"BearerToken": "Bearer old"}), renew=renew)
        assert await client.get(SECRET, "default", "x") == GOOD
        assert [request.headers["Authorization"] for request in asked] == ["Bearer old", "Bearer 1"]
        with pytest.raises(ApiError, match="Unauthorized"):
            await client.get(SECRET, "default", "x")
        assert (read, len(asked)) == (1, 3), "read a moment ago"
        await client.aclose()


async def test_a_retry_after_that_is_out_of_reason_is_cut_short() -> None:
    async with answering(web.Response(status=429, headers={"Retry-After": "86400"})) as (url, _):
        client = Kube(Configuration(host=url))
        with pytest.raises(ApiError) as raised:
            await client.get(SECRET, "default", "x")
        assert raised.value.retry_after == LONGEST_RETRY_AFTER
        await client.aclose()


def child(owner_uid: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "agenthive-operator", "agenthive.dev/hive": "demo"}
    owner = {"apiVersion": "agenthive.dev/v1alpha1", "kind": "Agent", "name": "a", "uid": owner_uid, "controller": True}
    metadata = {"name": "x", "namespace": "default", "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


@pytest.mark.parametrize(("alive", "taken"), [("new", True), ("old", False)])
async def test_a_child_changes_hands_only_to_an_owner_that_lives(alive: str, taken: bool) -> None:
    """What is known of the heir may be old: then the one that holds the child is the one that lives."""
    owner = {"kind": "Agent", "metadata": {"name": "a", "namespace": "default", "uid": alive}}
    answers = web.json_response(child("old")), web.json_response(owner), web.json_response(child("new"))
    async with answering(*answers) as (url, asked):
        client = Kube(Configuration(host=url))
        children = Children(client, ObjectCache())
        if taken:
            assert await children.apply([child("new")]) is None
        else:
            with pytest.raises(ApiError, match="not taken over"):
                await children.apply([child("new")])
        assert ("PATCH" in [request.method for request in asked]) is taken
        await client.aclose()
