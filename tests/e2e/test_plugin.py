"""``kubectl hive`` as a person uses it: the verbs against one hive with one agent."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from typing import Any

import pytest
from tests.e2e.plane import BIN, CommandError, Plane, agent, hive

CODE = """
from agenthive import Agent, Reject

agent = Agent("echo")


@agent.on("echo")
async def echo(message, ctx):
    return message.body


@agent.on("refuse")
async def refuse(message, ctx):
    raise Reject("not today")
"""


@pytest.fixture(scope="module")
def echo(module_plane: Plane) -> Plane:
    module_plane.apply(hive(), *agent("echo", code=CODE))
    module_plane.wait("condition=Ready", "hive/hive", "agent/echo")
    return module_plane


def plugin(plane: Plane, *arguments: str, stdin: str | None = None, code: int = 0) -> str:
    """By way of kubectl, which finds the plugin on PATH."""
    env = {**os.environ, **plane.env, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        [BIN / "kubectl", "hive", *arguments, "-n", plane.namespace], env=env, input=stdin, text=True,
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    if result.returncode != code:
        raise CommandError(f"exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def test_status_is_one_screen(echo: Plane) -> None:
    shown = plugin(echo, "status", "--no-rates")
    for word in ("RedisReady", "Reachable", "postgres", "echo", "1/1"):
        assert word in shown
    document = json.loads(plugin(echo, "status", "hive", "--no-rates", "-o", "json"))
    assert [found["agent"] for found in document["agents"]] == ["echo"]


def test_why_of_what_is_fine_and_of_code_that_cannot_be_imported(echo: Plane) -> None:
    assert "Agent echo is fine" in plugin(echo, "why", "agent/echo")
    echo.apply(*agent("broken", code="import no_such_module"))
    echo.until(lambda: echo.condition("agent/broken").get("reason") == "ContainerFailed", "the pod has failed")
    for name in ("broken", "hive/hive"):
        with pytest.raises(CommandError, match=r"exit 1[\s\S]*no_such_module[\s\S]*kubectl logs --previous"):
            plugin(echo, "why", name)
    with pytest.raises(CommandError, match="no pod of agent broken is ready"):
        plugin(echo, "dlq", "list", "broken")
    echo.kubectl("delete", "agent/broken")


def test_ask_and_send_with_bodies_from_arguments_and_standard_input(echo: Plane) -> None:
    assert json.loads(plugin(echo, "ask", "echo", "echo", '{"n": 1}')) == {"n": 1}
    assert json.loads(plugin(echo, "ask", "echo", "echo", "-", stdin='{"n": "it\'s"}')) == {"n": "it's"}
    sent = json.loads(plugin(echo, "send", "echo", "echo", "{}", "--wait", "--id", "one", "-o", "json"))
    assert (sent["message_id"], sent["status"]) == ("one", "delivered")


def test_dead_letters_are_listed_shown_redriven_and_purged(echo: Plane) -> None:
    with pytest.raises(CommandError, match="exit 1"):
        plugin(echo, "send", "echo", "refuse", "{}", "--wait")
    (letter,) = json.loads(plugin(echo, "dlq", "list", "echo", "--since", "1h", "-o", "json"))
    assert "not today" in plugin(echo, "dlq", "show", "echo", letter["id"])
    assert "1 redriven" in plugin(echo, "dlq", "redrive", "echo", letter["id"])
    echo.until(lambda: len(json.loads(plugin(echo, "dlq", "list", "echo", "-o", "json"))) == 1, "it is refused again")
    with pytest.raises(CommandError, match=r"exit 2[\s\S]*--yes"):
        plugin(echo, "dlq", "purge", "echo", "--all", stdin="")
    assert "1 purged" in plugin(echo, "dlq", "purge", "echo", "--all", "--yes")
    # Written by the agent's login, of which the row has to say so.
    trail = json.loads(echo.agenthive("audit", "list", "--hive", "hive", "--agent", "echo", "-o", "json"))
    assert {"dlq.redrive", "dlq.purge"} <= {entry["action"] for entry in trail}


def test_top_shows_the_queues_and_status_their_rates(echo: Plane) -> None:
    (agent,) = json.loads(plugin(echo, "status", "-o", "json"))["agents"]
    assert set(agent["rates"]) == {"in", "out", "given_up"}
    (row,) = json.loads(plugin(echo, "top", "--once", "-o", "json"))
    assert (row["agent"], row["in_flight"], row["rates"]["in"]) == ("echo", 0, 0.0)
    assert "BACKLOG" in plugin(echo, "top", "hive", "--once")


def test_logs_name_their_pod(echo: Plane) -> None:
    lines = plugin(echo, "logs", "echo", "--tail", "3").splitlines()
    assert lines
    assert all(line.startswith("[echo-") for line in lines)


def test_what_is_not_there_is_said(echo: Plane) -> None:
    with pytest.raises(CommandError, match=r"exit 1[\s\S]*there is no Agent 'nobody'"):
        plugin(echo, "send", "nobody", "echo", "{}")
    with pytest.raises(CommandError, match=r"exit 2[\s\S]*BODY is no JSON"):
        plugin(echo, "send", "echo", "echo", "{")
    with pytest.raises(CommandError, match="hive/NAME or agent/NAME"):
        plugin(echo, "why", "pod/x")


def templates(plane: Plane) -> dict[str, Any]:
    """The pod templates of all Deployments and StatefulSets by name."""
    found = plane.get("deployments,statefulsets")["items"]
    return {obj["metadata"]["name"]: obj["spec"]["template"] for obj in found}


def changed(plane: Plane, before: dict[str, Any]) -> set[str]:
    """Those whose template is another than before."""
    return {name for name, template in templates(plane).items() if template != before[name]}


def has_changed(plane: Plane, before: dict[str, Any], names: set[str]) -> bool:
    return changed(plane, before) >= names


def test_plan_foretells_which_pods_roll(echo: Plane) -> None:
    """Each plan is compared with what the operator then does."""
    echo.apply(*agent("other", code=CODE))
    echo.wait("condition=Ready", "agent/other")
    code, _ = agent("other", code=f"{CODE}# another\n")
    redis = {"managed": {"ephemeral": True, "annotations": {"a": "b"}}}
    steps: list[tuple[list[dict[str, Any]], set[str], set[str]]] = [
        # applied, what rolls of the agents, what restarts of the stores
        ([*agent("echo", code=CODE, replicas=2), code], {"other"}, set()),
        ([hive(messaging={"maxRetries": 7}, redis=redis)], {"echo", "other"}, {"hive-redis"}),
    ]
    for objects, agents, stores in steps:
        file = "\n---\n".join(map(json.dumps, objects))
        before = templates(echo)
        told = json.loads(plugin(echo, "plan", "-f", "-", "-o", "json", stdin=file, code=2))
        assert templates(echo) == before
        assert {entry["agent"] for entry in told["agents"] if entry["rolls"] == "yes"} == agents
        assert {f"hive-{store['store']}" for store in told["stores"] if store["effect"] == "restarts"} == stores
        echo.kubectl("apply", "-f", "-", stdin=file)
        foretold = agents | stores
        echo.until(partial(has_changed, echo, before, foretold), f"{foretold} roll")
        assert changed(echo, before) == foretold
    assert "Nothing would change" in plugin(echo, "plan", "-f", "-", stdin=file)
    assert "new" in plugin(echo, "plan", "-f", "-", "--server-side", stdin=json.dumps(hive("third")), code=2)


def test_plan_says_what_the_api_server_would_refuse(echo: Plane) -> None:
    file = json.dumps(agent("echo", entrypoint="nonsense")[0])
    with pytest.raises(CommandError, match=r'exit 1[\s\S]*write entrypoint as "module:attribute"'):
        plugin(echo, "plan", "-f", "-", stdin=file, code=2)
    with pytest.raises(CommandError, match=r"exit 1[\s\S]*Give -f FILE"):
        plugin(echo, "plan", code=2)
