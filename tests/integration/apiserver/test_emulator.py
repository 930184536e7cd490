"""What the emulator does besides answering as Kubernetes does: its process, its file, its limits."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from tests.conftest import KubeApi, running_emulator, wait_until

from agenthive_operator.local.apiserver import ApiServer
from agenthive_operator.local.apiserver.journal import JournalError

from .conftest import APPLY, MERGE, Http, config_map, deployment, pod


class Client:
    """An asynchronous client of an ApiServer in this process."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        headers = {"Authorization": f"Bearer {server.token}"}
        connector = aiohttp.TCPConnector(ssl=server.tls.client_context())
        self.session = aiohttp.ClientSession(headers=headers, connector=connector)

    async def __call__(
        self, method: str, path: str, body: Any = None, media: str = "application/json"
    ) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes | None) else orjson.dumps(body)
        data = io.BytesIO(raw) if raw is not None else None
        headers = {"Content-Type": media} if data is not None else {}
        async with self.session.request(method, self.server.url + path, data=data, headers=headers) as answer:
            text = await answer.read()
            return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    found = ApiServer(tmp_path, token="t")
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[Client]:
    found = Client(server)
    yield found
    await found.session.close()


MAPS = "/api/v1/namespaces/default/configmaps"


@contextlib.contextmanager
def killed_at_the_end(folder: Path) -> Iterator[Http]:
    """A client of an emulator that ends by SIGKILL."""
    log = folder / "log"
    command = [sys.executable, "-m", "agenthive_operator.local.apiserver", "--dir", str(folder)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        wait_until(lambda: b"kubeconfig\n" in log.read_bytes(), process, "the emulator")
        config = json.loads((folder / "kubeconfig").read_text())
        url, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        kubeconfig = folder / "kubeconfig"
        http = Http(KubeApi(url, token, folder / "ca.crt", kubeconfig, kubeconfig, real=False))
        yield http
        http.connection.close()
    finally:
        process.kill()
        process.wait(timeout=10)


def test_state_survives_a_kill(tmp_path: Path) -> None:
    with killed_at_the_end(tmp_path) as http:
        first = http.ok("POST", MAPS, config_map("a", {"n": "1"}))
        http.ok("POST", MAPS, config_map("b"))
        http.ok("DELETE", f"{MAPS}/b")
    with (tmp_path / "state.jsonl").open("ab") as file:
        file.write(b'{"r":"configmaps","o":{"cut')
    with killed_at_the_end(tmp_path) as http:
        assert http.ok("GET", f"{MAPS}/a") == first
        assert http("GET", f"{MAPS}/b").code == 404
        made = http.ok("POST", MAPS, config_map("c"))
        assert int(made["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"]) + 2
        event = http.watch(MAPS, "resourceVersion=1&timeoutSeconds=1")[0]
        assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert "was cut off by a crash" in (tmp_path / "log").read_text()


def test_files_are_private(tmp_path: Path) -> None:
    with running_emulator(tmp_path):
        for name in ("server.key", "kubeconfig", "state.jsonl", "token"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with running_emulator(folder) as api:
        port = api.url.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "agenthive_operator.local.apiserver", "--dir", str(tmp_path / "b"), "--port", port],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "address already in use" in done.stderr


async def test_only_the_token_opens_it(server: ApiServer, client: Client) -> None:
    context = server.tls.client_context()
    async with aiohttp.ClientSession() as stranger:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with stranger.get(f"{server.url}/api/v1/pods", ssl=context, headers=headers) as answer:
                assert answer.status == 401
                assert (await answer.json())["reason"] == "Unauthorized"
        for path in ("/readyz", "/livez", "/version"):
            async with stranger.get(server.url + path, ssl=context) as answer:
                assert answer.status == 200
        async with stranger.get(f"{server.url}/openapi/v3", ssl=context) as answer:
            assert answer.status == 401
    assert (await client("GET", "/"))[1]["paths"][0] == "/api"
    assert (await client("POST", "/version", {}))[0] == 405
    assert (await client("GET", "/openapi/v2"))[0] == 404


async def test_what_it_does_not_do_it_refuses(client: Client) -> None:
    status, answer = await client(
        "POST", "/apis/apps/v1/namespaces/default/deployments", b"k8s\x00\x0a\x0c\x0a\x02v1\x12\x06Widget",
        "application/vnd.kubernetes.protobuf",
    )  # fmt: skip
    assert (status, answer["reason"]) == (415, "UnsupportedMediaType")
    assert "as JSON or YAML" in answer["message"]
    assert (await client("GET", "/apis/batch/v1/cronjobs"))[0] == 404
    assert (await client("POST", MAPS, b"x", "application/cbor"))[0] == 415
    await client("POST", "/apis/apps/v1/namespaces/default/deployments", deployment("a"))
    path = "/apis/apps/v1/namespaces/default/deployments/a/scale?fieldManager=m"
    status, answer = await client("PATCH", path, {"kind": "Scale"}, APPLY)
    assert (status, answer["code"]) == (400, 400)
    assert "does not do server-side apply of a Scale" in answer["message"]


async def test_too_large_objects(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    large = config_map("large", {"n": "x" * 1_000_000}, annotations={"note": "x" * 200_000})
    assert (await client("POST", MAPS, large))[0] == 201
    status, answer = await client("POST", MAPS, config_map("a", {"n": "x" * 2_000_000}))
    assert (status, answer["reason"]) == (413, "RequestEntityTooLarge")
    assert "etcdserver: request is too large" in answer["message"]
    assert "misconfiguration" not in caplog.text
    body = io.BytesIO(b"x" * 4_000_000)
    async with client.session.post(client.server.url + MAPS, data=body) as answer:
        assert answer.status == 413


async def test_logs_come_from_the_kubelet(client: Client) -> None:
    asked: list[str] = []

    async def kubelet(request: web.BaseRequest) -> web.Response:
        asked.append(request.path_qs)
        if "previous" in request.query:
            return web.Response(status=400, text="previous terminated container not found")
        return web.Response(text="line 1\nline 2\n")

    runner = web.ServerRunner(web.Server(kubelet))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        path = "/api/v1/namespaces/default/pods"
        await client("POST", path, pod("p"))
        status, answer = await client("GET", f"{path}/p/log")
        assert (status, "no node assigned" in answer["message"]) == (400, True)
        await client("POST", path, pod("q", nodeName="n"))
        assert (await client("GET", f"{path}/q/log"))[0] == 500
        await client("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})
        status, answer = await client("GET", f"{path}/q/log")
        assert "names no kubelet address" in answer["message"]
        node = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": runner.addresses[0][1]}},
        }  # fmt: skip
        await client("PATCH", "/api/v1/nodes/n/status", {"status": node}, MERGE)
        assert await client("GET", f"{path}/q/log?tailLines=2&pretty=true") == (200, "line 1\nline 2\n")
        assert asked == ["/containerLogs/default/q/c?tailLines=2"]
        status, answer = await client("GET", f"{path}/q/log?previous=true")
        assert (status, answer["message"]) == (400, "previous terminated container not found")
        status, answer = await client("GET", f"{path}/q/log?container=x")
        assert "container x is not valid for pod q" in answer["message"]
        two = [{"name": name, "image": "i"} for name in "ab"]
        await client("POST", path, pod("r", containers=two))
        status, answer = await client("GET", f"{path}/r/log")
        assert "a container name must be specified" in answer["message"]
        assert (await client("POST", f"{path}/q/log", {}))[0] == 405
    finally:
        await runner.cleanup()
    status, answer = await client("GET", f"{path}/q/log")
    assert "the kubelet does not answer" in answer["message"]


async def test_namespaces_have_their_account(client: Client) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    await client("POST", "/api/v1/namespaces", body)
    path = "/api/v1/namespaces/n/serviceaccounts/default"
    assert (await client("GET", path))[0] == 200
    await client("DELETE", path)
    assert (await client("GET", path))[0] == 200


async def test_crd_takes_its_objects_along(client: Client) -> None:
    version = {
        "name": "v1", "served": True, "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }  # fmt: skip
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"},
            "versions": [version, {**version, "name": "v2", "storage": False}],
        },
    }  # fmt: skip
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert (await client("POST", crds, definition))[0] == 201
    thing = {
        "apiVersion": "example.com/v2", "kind": "Thing", "metadata": {"name": "a", "finalizers": ["x.io/y"]}, "x": 1
    }  # fmt: skip
    assert (await client("POST", "/apis/example.com/v2/things", thing))[1]["apiVersion"] == "example.com/v2"
    assert (await client("GET", "/apis/example.com/v1/things/a"))[1]["apiVersion"] == "example.com/v1"
    status, answer = await client("DELETE", f"{crds}/things.example.com")
    assert answer["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
    status, answer = await client("PATCH", "/apis/example.com/v1/things/a", {"metadata": {"finalizers": None}}, MERGE)
    assert status == 200
    assert (await client("GET", "/apis/example.com/v1/things"))[0] == 404
    assert (await client("GET", f"{crds}/things.example.com"))[0] == 404


async def test_a_watch_that_fell_behind_is_told(
    server: ApiServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agenthive_operator.local.apiserver.store.WATCH_LOG", 5)
    first = (await client("POST", MAPS, config_map("a")))[1]["metadata"]["resourceVersion"]
    for number in range(12):
        await client("PATCH", f"{MAPS}/a", {"data": {"n": str(number)}}, MERGE)
    status, answer = await client("GET", f"{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={first}")
    assert (status, answer["object"]["code"]) == (200, 410)
    assert answer["object"]["message"].startswith("too old resource version: ")


async def test_bookmarks_move_on_while_nothing_happens(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenthive_operator.local.apiserver.reads.BOOKMARK_SECONDS", 0.1)
    version = (await client("GET", MAPS))[1]["metadata"]["resourceVersion"]
    other = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    made = (await client("POST", "/api/v1/namespaces/default/secrets", other))[1]
    query = f"watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={version}"
    async with client.session.get(f"{client.server.url}{MAPS}?{query}") as answer:
        line = json.loads(await answer.content.readline())
    assert line["type"] == "BOOKMARK"
    assert line["object"]["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_old_events_go(server: ApiServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/api/v1/namespaces/default/events"
    about = {"kind": "Pod", "name": "p", "namespace": "default"}
    for name, stamp in (("old", "2020-01-01T00:00:00Z"), ("new", "2999-01-01T00:00:00Z")):
        body = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": about,
            "lastTimestamp": stamp,
        }  # fmt: skip
        assert (await client("POST", path, body))[0] == 201
    monkeypatch.setattr("agenthive_operator.local.apiserver.server.SWEEP_SECONDS", 0.01)
    sweep = asyncio.create_task(server._sweep())
    query = "watch=1&timeoutSeconds=5&resourceVersion=1&fieldSelector=metadata.name%3Dold"
    async with client.session.get(f"{server.url}{path}?{query}") as answer:
        kinds = [json.loads(await answer.content.readline())["type"] for _ in range(2)]
    assert kinds == ["ADDED", "DELETED"]
    sweep.cancel()
    assert (await client("GET", f"{path}/new"))[0] == 200


async def test_a_fault_of_the_server_is_a_status(
    server: ApiServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(server.store, "put", broken)
    status, answer = await client("POST", MAPS, config_map("a"))
    assert (status, answer["reason"]) == (500, "InternalError")
    assert "RuntimeError: no luck" in answer["message"]


async def test_a_burst_of_applies(client: Client) -> None:
    """A thousand objects at once: all there, each once, in one order."""

    async def one(number: int) -> int:
        path = f"/apis/apps/v1/namespaces/default/deployments/d{number}?fieldManager=m"
        return (await client("PATCH", path, deployment(f"d{number}"), APPLY))[0]

    assert set(await asyncio.gather(*map(one, range(300)))) == {201}
    _, answer = await client("GET", "/apis/apps/v1/deployments")
    versions = [int(item["metadata"]["resourceVersion"]) for item in answer["items"]]
    assert len(set(versions)) == 300
    assert int(answer["metadata"]["resourceVersion"]) >= max(versions)


def test_foreign_state_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "state.jsonl").write_text('{"something": "else"}\n')
    with pytest.raises(JournalError, match="not a state file of this version"):
        ApiServer(tmp_path, token="t")
    (tmp_path / "state.jsonl").write_text('{"format":1,"version":5}\nnonsense\n')
    with pytest.raises(JournalError, match="line 2: not JSON"):
        ApiServer(tmp_path, token="t")


async def test_what_is_stored_and_does_nothing_says_so(client: Client) -> None:
    async def warnings(path: str, body: Any) -> list[str]:
        url, data = client.server.url + path, io.BytesIO(orjson.dumps(body))
        async with client.session.post(url, data=data, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 201, await answer.text()
            return answer.headers.getall("Warning", [])

    policy = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "deny"}, "spec": {"podSelector": {}},
    }  # fmt: skip
    (said,) = await warnings("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", policy)
    assert said == '299 - "NetworkPolicy objects are stored here and have no effect"'
    assert await warnings("/api/v1/namespaces/default/configmaps", config_map("c")) == []
