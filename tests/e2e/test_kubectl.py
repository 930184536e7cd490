"""What a user does with kubectl, against the whole path."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.e2e.plane import BIN, ECHO, REPOSITORY, CommandError, Plane, agent, hive


@pytest.fixture
def echo(plane: Plane) -> Plane:
    """A hive with one agent that answers with what it was sent."""
    plane.apply(hive(), *agent("echo", code=ECHO))
    plane.wait("condition=Ready", "hive/hive", "agent/echo")
    return plane


def ask(plane: Plane, body: dict[str, object]) -> dict[str, object]:
    return json.loads(plane.agenthive("ask", "echo", "echo", json.dumps(body), "--hive", "hive", "--output", "json"))


def test_an_agent_answers_and_its_resources_say_so(echo: Plane) -> None:
    assert ask(echo, {"n": 1}) == {"n": 1}
    table = echo.kubectl("get", "hives,agents")
    hive_row, agent_row = (next(line for line in table.splitlines() if f"/{name}" in line) for name in ("hive", "echo"))
    assert "True" in hive_row
    assert "True" in agent_row
    status = echo.get("agent/echo")["status"]
    assert status["observedGeneration"] == 1
    assert status["readyReplicas"] == 1
    assert {c["type"]: c["status"] for c in echo.get("hive/hive")["status"]["conditions"]} == {
        "Ready": "True", "RedisReady": "True", "PostgresReady": "True", "SchemaReady": "True", "AgentsReady": "True",
    }  # fmt: skip


def test_applying_what_is_there_changes_nothing(echo: Plane) -> None:
    def versions() -> dict[str, str]:
        objects = echo.get("hives,agents,deployments,statefulsets,services,secrets,configmaps")["items"]
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in objects}

    before = versions()
    echo.apply(hive(), *agent("echo", code=ECHO))
    for manifest in (hive(), *agent("echo", code=ECHO)):
        echo.kubectl("apply", "--server-side", "--field-manager=test", "-f", "-", stdin=json.dumps(manifest))
    first_server_side = versions()
    for manifest in (hive(), *agent("echo", code=ECHO)):
        echo.kubectl("apply", "--server-side", "--field-manager=test", "-f", "-", stdin=json.dumps(manifest))
    assert versions() == first_server_side
    children = {
        key: value for key, value in before.items() if key.split("/")[0] not in {"AgentHive", "Agent", "ConfigMap"}
    }
    assert {key: first_server_side[key] for key in children} == children


def test_scale_reaches_the_pods(echo: Plane) -> None:
    echo.kubectl("scale", "agents/echo", "--replicas=3")
    echo.until(lambda: echo.get("agent/echo")["status"].get("readyReplicas") == 3, "three pods ready")
    echo.kubectl("scale", "agents/echo", "--replicas=1")
    echo.until(lambda: len(echo.get("pods", "-l", "agenthive.dev/agent=echo")["items"]) == 1, "one pod left")


def test_logs_of_an_agent_are_readable(echo: Plane) -> None:
    assert "echo" in echo.kubectl("logs", "deployment/echo")


def test_watch_shows_an_agent_becoming_ready(plane: Plane) -> None:
    watch = subprocess.Popen(
        [BIN / "kubectl", "-n", plane.namespace, "get", "agents", "-w", "-o", "json"],
        env={**os.environ, **plane.env}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        plane.apply(hive(), *agent("echo", code=ECHO))
        assert watch.stdout is not None
        decoder, text = json.JSONDecoder(), ""
        ready = False
        while not ready:
            line = watch.stdout.readline()
            assert line, "the watch ended before the agent was ready"
            text += line
            try:
                shown, end = decoder.raw_decode(text.lstrip())
            except json.JSONDecodeError:
                continue
            text = text.lstrip()[end:]
            ready = any(
                c["type"] == "Ready" and c["status"] == "True" for c in shown.get("status", {}).get("conditions", [])
            )
    finally:
        watch.kill()
        watch.wait()
        assert watch.stdout is not None
        watch.stdout.close()


def test_a_change_of_the_code_rolls_the_pods(echo: Plane) -> None:
    changed = ECHO.replace("return message.body", "return {**message.body, 'changed': True}")
    echo.apply(*agent("echo", code=changed))
    echo.until(lambda: ask(echo, {"n": 2}) == {"n": 2, "changed": True}, "the new code answers")


def test_an_agent_and_its_hive_can_be_deleted(echo: Plane) -> None:
    echo.kubectl("delete", "agent/echo", "--timeout=60s")
    echo.until(lambda: not echo.get("pods", "-l", "agenthive.dev/agent=echo")["items"], "the agent's pods are gone")
    echo.kubectl("delete", "hive/hive", "--timeout=60s")
    echo.until(lambda: not echo.get("pods,statefulsets,services")["items"], "the stores are gone")


def test_every_shipped_manifest_is_accepted(plane: Plane) -> None:
    plane.kubectl("apply", "--dry-run=server", "-f", REPOSITORY / "crds")
    for example in ("hello", "code-atlas"):
        shown = plane.kubectl("apply", "--dry-run=server", "-k", REPOSITORY / "examples" / example)
        assert "dry run" in shown


def test_a_refusal_says_what_to_write(plane: Plane) -> None:
    both = hive(redis={"managed": {"ephemeral": True}, "external": {"urlSecretRef": {"name": "x", "key": "url"}}})
    with pytest.raises(CommandError, match="managed"):
        plane.apply(both)
    with pytest.raises(CommandError, match=r"spec\.concurrency"):
        plane.apply(*agent("bad", concurrency=0))
    with pytest.raises(CommandError, match="unknown field"):
        plane.apply(*agent("bad", entrypiont="code:agent"))
