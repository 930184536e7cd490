"""What kopf's session is held to: its pace, and answers that kopf can bear."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from agenthive_operator.backends.kube import AGENT, POD
from agenthive_operator.checked import CheckedResponse
from agenthive_operator.pace import FORGOTTEN_SECONDS, LONGEST_SECONDS, Pace, collection_of

AGENTS = "/apis/agenthive.dev/v1alpha1/namespaces/ns/agents"
EVENT = {"type": "ADDED", "object": {"metadata": {"name": "a"}}}
LINE = b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}\n'


def test_the_same_request_is_made_ever_more_seldom_until_it_rests() -> None:
    now = [0.0]
    pace = Pace(lambda resource, namespace: None, clock=lambda: now[0])
    assert pace.wait("/a", watches=True) == 0
    assert pace.wait("/a", watches=False) == 0, "the list before a watch is another request"
    waits = []
    for _ in range(8):
        waits.append(pace.wait("/a", watches=True))
        now[0] += waits[-1]
    assert 0 < waits[0] <= 0.5
    assert 0.7 * LONGEST_SECONDS <= waits[-1] <= LONGEST_SECONDS
    now[0] += FORGOTTEN_SECONDS
    assert pace.wait("/a", watches=True) == 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (AGENTS, (AGENT, "ns")),
        ("/apis/agenthive.dev/v1alpha1/agents", (AGENT, None)),
        ("/prefix/api/v1/namespaces/ns/pods", (POD, "ns")),
        ("/api/v1/namespaces", None),
        ("/apis/agenthive.dev/v1alpha1", None),
    ],
)
def test_what_a_path_lists(path: str, expected: object) -> None:
    assert collection_of(path) == expected


@pytest.fixture
async def served() -> AsyncIterator[Any]:
    """``ask(answer, query)``: what a session with checked responses makes of an answer to a list or a watch."""
    answers: list[web.Response] = []

    async def handle(_: web.Request) -> web.Response:
        return answers.pop()

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}".format(*runner.addresses[0][:2])
    async with aiohttp.ClientSession(response_class=CheckedResponse) as session:

        async def ask(answer: web.Response, query: str = "") -> Any:
            answers.append(answer)
            async with session.get(url + AGENTS + query) as response:
                if not query:
                    return await response.json()
                return [orjson.loads(chunk) async for chunk in response.content.iter_chunked(1)]

        yield ask
    await runner.cleanup()


async def test_good_answers_are_left_as_they_are(served: Any) -> None:
    assert await served(web.json_response({"items": None, "metadata": {}})) == {"items": [], "metadata": {}}
    assert await served(web.Response(body=LINE, content_type="application/json"), "?watch=true") == [EVENT]


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(text="<html>", content_type="text/html"),
        web.Response(text="<html>", content_type="application/json"),
        web.json_response([1]),
        web.json_response({"items": 7}),
        web.Response(status=404, text="404 page not found"),
        web.Response(status=401),
        web.Response(status=409),
    ],
    ids=repr,
)
async def test_a_list_that_is_none_is_a_connection_that_broke(served: Any, answer: web.Response) -> None:
    with pytest.raises((aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
        await served(answer)


@pytest.mark.parametrize("body", [b"<html>\n", b"[1]\n", b'{"type": "ADDED"}\n'])
async def test_a_line_that_is_no_event_breaks_the_watch(served: Any, body: bytes) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await served(web.Response(body=LINE + body, content_type="application/json"), "?watch=true")


@pytest.mark.parametrize(
    "answer",
    [
        web.Response(body=b'{"type":"ERROR","object":{"code":500}}\n', content_type="application/json"),
        web.json_response({"code": 410}, status=410),
    ],
    ids=["in the stream", "as an answer"],
)
async def test_an_error_calls_for_a_new_list(served: Any, answer: web.Response) -> None:
    (event,) = await served(answer, "?watch=true")
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


async def test_what_is_cut_off_is_left_out(served: Any) -> None:
    cut = web.Response(body=LINE + b'{"type":"MOD', content_type="application/json")
    assert await served(cut, "?watch=true") == [EVENT]
