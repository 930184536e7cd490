"""The audit log: the same lines from the emulator as from a real kube-apiserver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import server_folder

from agenthive_operator.local.client import MERGE_PATCH, ApiClient, ApiError, Connection
from agenthive_operator.local.folder import Folder
from agenthive_operator.local.kubelet.process import Records
from agenthive_operator.local.planes import Plane
from agenthive_operator.local.resources import CONFIG_MAPS, DEPLOYMENTS

AGENT = "agenthive-test/1"


@pytest.fixture
async def audited() -> AsyncIterator[tuple[ApiClient, Path]]:
    """A client of an API server of its own, and the log that this writes."""
    with server_folder("audit") as root:
        folder = Folder.at(root)
        folder.create()
        plane = Plane(folder, Records(folder.processes), audit=root / "audit.jsonl")
        try:
            await plane.start()
            assert plane.pids
            async with ApiClient(Connection.from_kubeconfig(folder.kubeconfig), user_agent=AGENT) as client:
                yield client, root / "audit.jsonl"
        finally:
            await plane.stop()


def lines(log: Path) -> list[tuple[Any, ...]]:
    """What this test asked for: verb, group, resource, subresource, namespace, name, code, stage."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    found = []
    for event in events:
        if event.get("userAgent") == AGENT:
            asked = event.get("objectRef", {})
            names = (asked.get(key, "") for key in ("apiGroup", "resource", "subresource", "namespace", "name"))
            found.append((event["verb"], *names, event["responseStatus"]["code"], event["stage"]))
    return found


async def test_each_request_is_a_line(audited: tuple[ApiClient, Path]) -> None:
    client, log = audited
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}}
    made = await client.create(CONFIG_MAPS, {**body, "data": {"key": "never-to-be-logged"}})
    await client.get(CONFIG_MAPS, "default", "a")
    _, version = await client.list(CONFIG_MAPS, "default")
    async with aclosing(client.watch(CONFIG_MAPS, version, "default")) as events:
        # Made to speak by what it tells: a watch is in the log before anything has changed.
        first = asyncio.ensure_future(anext(events))
        await until(log, lambda found: found[-1][0] == "watch")
        await client.patch(CONFIG_MAPS, made, {"data": {"b": "c"}})
        assert (await first)[0] == "MODIFIED"
    await client.delete(CONFIG_MAPS, made)
    path = DEPLOYMENTS.path("default", "none", "status")
    with pytest.raises(ApiError):
        await client.request("PATCH", path, body={}, content_type=MERGE_PATCH)
    found = await until(log, lambda found: found[-1][-2] == 404)
    where = ("", "configmaps", "")
    done = "ResponseComplete"
    expected = [
        ("create", *where, "default", "a", 201, done),
        ("get", *where, "default", "a", 200, done),
        ("list", *where, "default", "", 200, done),
        ("watch", *where, "default", "", 200, "ResponseStarted"),
        ("patch", *where, "default", "a", 200, done),
        ("delete", *where, "default", "a", 200, done),
        ("patch", "apps", "deployments", "status", "default", "none", 404, done),
    ]
    assert [line for line in found if line in expected] == expected
    assert "never-to-be-logged" not in log.read_text()


async def until(log: Path, check: Any) -> list[tuple[Any, ...]]:
    """The lines, once ``check`` says yes to them."""
    async with asyncio.timeout(20):
        while not (found := lines(log)) or not check(found):  # noqa: ASYNC110 - polls under a deadline
            await asyncio.sleep(0.02)
    return found
