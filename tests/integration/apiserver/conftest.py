"""A plain HTTP client for the API server, whichever it is."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
PARTIAL = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


@dataclass
class Answer:
    """An answer's code, body and headers."""

    code: int
    body: Any
    headers: http.client.HTTPMessage

    @property
    def message(self) -> str:
        return str(self.body.get("message", self.body))


class Http:
    """One connection to an API server."""

    def __init__(self, api: Any) -> None:
        self.api = api
        where = urlsplit(api.url)
        self.connection = http.client.HTTPSConnection(where.hostname or "", where.port, context=api.client_ssl())

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        accept: str = "application/json",
        token: str | None = None,
        agent: str = "tester/1",
    ) -> Answer:
        headers = {
            "Authorization": f"Bearer {self.api.token if token is None else token}", "Accept": accept,
            "User-Agent": agent,
        }  # fmt: skip
        if body is not None:
            headers["Content-Type"] = media
        data = body if isinstance(body, bytes | str | None) else json.dumps(body)
        self.connection.request(method, path, data, headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        return Answer(answer.status, found, answer.headers)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The body of an answer that has to be a success."""
        answer = self(method, path, body, **more)
        assert answer.code < 300, f"{method} {path}: {answer.code} {answer.body}"
        return answer.body

    def apply(self, path: str, body: Any, manager: str, *, force: bool = False) -> Answer:
        """Server-side apply."""
        query = f"fieldManager={manager}" + ("&force=true" if force else "")
        return self("PATCH", f"{path}?{query}", body, media=APPLY)

    def watch(self, path: str, query: str = "") -> list[dict[str, Any]]:
        """The events of a watch that ends by its timeout."""
        answer = self("GET", f"{path}?watch=1&{query}")
        assert answer.code == 200, answer.body
        if isinstance(answer.body, dict):
            return [answer.body]
        return [json.loads(line) for line in answer.body.splitlines() if line]


@pytest.fixture
def http_api(api_server: Any) -> Iterator[Http]:
    """A client of the session's API server."""
    client = Http(api_server)
    yield client
    client.connection.close()


@pytest.fixture
def core(kube_namespace: str) -> str:
    """Path of the core group in the test's namespace."""
    return f"/api/v1/namespaces/{kube_namespace}"


@pytest.fixture
def apps(kube_namespace: str) -> str:
    """Path of the apps group in the test's namespace."""
    return f"/apis/apps/v1/namespaces/{kube_namespace}"


@pytest.fixture
def hives(kube_namespace: str) -> str:
    """Path of the agenthive.dev group in the test's namespace."""
    return f"/apis/agenthive.dev/v1alpha1/namespaces/{kube_namespace}"


def deployment(name: str, **spec: Any) -> dict[str, Any]:
    """A valid Deployment."""
    container = {
        "name": "c", "image": "i:1", "env": [{"name": "A", "value": "b"}],
        "resources": {"limits": {"memory": "1Gi", "cpu": "1"}}, "ports": [{"containerPort": 80}],
        "livenessProbe": {"httpGet": {"port": 80}},
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
            **spec,
        },
    }  # fmt: skip


def config_map(name: str, data: dict[str, str] | None = None, **meta: Any) -> dict[str, Any]:
    """A ConfigMap."""
    found: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **meta}}
    if data is not None:
        found["data"] = data
    return found


def pod(name: str, **spec: Any) -> dict[str, Any]:
    """A valid Pod."""
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False, **spec},
    }  # fmt: skip


def agent(name: str, **spec: Any) -> dict[str, Any]:
    """A valid Agent."""
    return {
        "apiVersion": "agenthive.dev/v1alpha1", "kind": "Agent", "metadata": {"name": name},
        "spec": {"hiveRef": {"name": "demo"}, "entrypoint": "worker:agent", **spec},
    }  # fmt: skip


def eventually(check: Callable[[], bool], what: str, *, seconds: float = 10.0) -> None:
    """Poll until ``check`` holds."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.05)
