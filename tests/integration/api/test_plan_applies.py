"""The planned objects on the API server under test: taken as they are, returned as they were written, applied once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.api.server import Server
from tests.unit.plan.build import OBSERVED_AGENT, OBSERVED_HIVE, PLACE, manifest

from agenthive_operator.api import Agent, AgentHive
from agenthive_operator.plan.agent import plan_agent
from agenthive_operator.plan.hive import plan_hive
from agenthive_operator.plan.network import plan_network
from agenthive_operator.reconcile.children import needs_apply

PLANS = [("hive-minimal", "agent-minimal"), ("hive-full", "agent-full"), ("hive-external", "agent-command")]


@pytest.fixture
def server(api_server: Any, unique: str) -> Iterator[Server]:
    found = Server.of(api_server, unique)
    yield found
    found.close()


def created(server: Server, name: str) -> dict[str, Any]:
    """The resource in ``inputs/<name>.yaml``, as the server returns it."""
    wanted = manifest(name)
    wanted["metadata"] = {"name": wanted["metadata"]["name"]}
    status, answer = server.request("POST", server.path(wanted["kind"]) + "?fieldValidation=Strict", wanted)
    assert status == 201, answer
    return answer


def planned(server: Server, hive_name: str, agent_name: str) -> list[dict[str, Any]]:
    hive = AgentHive.parse(created(server, hive_name))
    agent = Agent.parse(created(server, agent_name))
    objects = plan_hive(hive, OBSERVED_HIVE) + plan_network(hive, PLACE)
    return objects + plan_agent(agent, hive, OBSERVED_AGENT)


def differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Where ``found`` lacks what ``wanted`` says, or says it otherwise; what it has beside is the server's."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        # A server may leave out a list that is empty.
        missing = [f"{path}.{key} is missing" for key in wanted if key not in found and wanted[key] != []]
        inside = [differences(wanted[key], found[key], f"{path}.{key}") for key in wanted if key in found]
        return missing + [line for lines in inside for line in lines]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    return [] if wanted == found else [f"{path}: wrote {wanted!r}, got {found!r}"]


@pytest.mark.parametrize(("hive_name", "agent_name"), PLANS)
def test_an_apply_is_returned_as_written_and_repeats_without_a_change(
    server: Server, hive_name: str, agent_name: str
) -> None:
    for wanted in planned(server, hive_name, agent_name):
        status, first = server.apply(wanted)
        assert status == 201, first["message"]
        assert differences(wanted, first) == []
        assert not needs_apply(wanted, first), "a steady state writes nothing"
        if wanted["kind"] == "NetworkPolicy":
            continue  # the real one counts an apply of an empty list, which it does not store, as a change
        status, second = server.apply(wanted)
        assert status == 200, second["message"]
        assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


@pytest.mark.needs("pod-security")
def test_pods_pass_pod_security_restricted(server: Server, api_server: Any) -> None:
    if not api_server.real:
        pytest.skip("the emulator has no Pod Security admission")
    for wanted in planned(server, "hive-minimal", "agent-minimal"):
        if "template" not in wanted.get("spec", {}):
            continue
        spec = wanted["spec"]["template"]["spec"]
        claims = [claim["metadata"]["name"] for claim in wanted["spec"].get("volumeClaimTemplates", ())]
        # What the StatefulSet controller adds.
        spec["volumes"] += [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}
        status, answer = server.request("POST", server.path("Pod") + "?dryRun=All&fieldValidation=Strict", pod)
        assert status == 201, answer
