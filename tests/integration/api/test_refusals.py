"""Every CEL rule and bound on the API server under test: the emulator, or the real one with KUBEBUILDER_ASSETS."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cel_cases import CASES, Case
from tests.integration.api.server import Server


@pytest.fixture(scope="module")
def server(api_server: Any) -> Iterator[Server]:
    found = Server.of(api_server, f"cel-{secrets.token_hex(4)}")
    yield found
    found.close()


def attempt(server: Server, case: Case) -> tuple[int, dict[str, Any]]:
    """What the server answers to the create or update of ``case``."""
    if case.old is None:
        return server.request("POST", server.path(case.kind), case.new)
    name = case.old["metadata"]["name"]
    status, stored = server.request("POST", server.path(case.kind), case.old)
    assert status == 201, stored
    if "status" in case.old:
        body = {**stored, "status": case.old["status"]}
        status, stored = server.request("PUT", server.path(case.kind, name, "/status"), body)
        assert status == 200, stored
    changed = copy.deepcopy(case.new)
    changed["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
    return server.request("PUT", server.path(case.kind, name), changed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(server: Server, case: Case) -> None:
    try:
        status, answer = attempt(server, case)
    finally:
        server.request("DELETE", server.path(case.kind, case.new["metadata"]["name"]))
    if case.message is None:
        assert status in {200, 201}, answer
    else:
        assert (status, answer["reason"]) == (422, "Invalid"), answer
        assert case.message in answer["message"]
