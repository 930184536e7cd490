"""Pods of a hive that is suspended, resumed and rolled back, with their state in the stores."""

from __future__ import annotations

import json

from tests.e2e.plane import Plane, agent, hive

COUNTER = """
from agenthive import Agent

agent = Agent("counter")


@agent.on("count")
async def count(message, ctx):
    times = await ctx.state.get("times", default=0) + 1
    await ctx.state.set("times", times)
    return {"times": times}
"""


def count(plane: Plane) -> int:
    answer = plane.agenthive("ask", "counter", "count", "{}", "--hive", "hive", "--output", "json")
    return int(json.loads(answer)["times"])


def pods(plane: Plane) -> int:
    return len(plane.get("pods", "-l", "agenthive.dev/agent=counter")["items"])


def test_a_suspended_hive_runs_no_agent_and_keeps_what_they_know(plane: Plane) -> None:
    plane.apply(hive(), *agent("counter", code=COUNTER, replicas=2))
    plane.wait("condition=Ready", "hive/hive", "agent/counter")
    assert count(plane) == 1
    assert plane.get("pdb/counter")["spec"]["maxUnavailable"] == "10%"

    plane.kubectl("patch", "hive/hive", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    plane.until(lambda: plane.condition("agent/counter").get("reason") == "Suspended", "the agent is suspended")
    # A Deployment does not count pods that still drain.
    plane.until(lambda: pods(plane) == 0, "no pod is left")
    assert plane.get("pdb")["items"] == []
    assert plane.condition("hive/hive")["reason"] == "Suspended"

    plane.kubectl("patch", "hive/hive", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    plane.until(lambda: plane.condition("agent/counter").get("reason") == "AllPodsReady", "the agent is back")
    assert pods(plane) == 2
    assert count(plane) == 2

    before = plane.get("deployment/counter")["spec"]["template"]
    plane.kubectl("patch", "agent/counter", "--type=merge", "-p", '{"spec":{"drainSeconds":31}}')

    def rolled() -> bool:
        deployment = plane.get("deployment/counter")
        return deployment["spec"]["template"] != before and plane.condition("agent/counter")["status"] == "True"

    plane.until(rolled, "the change rolled the pods")
    wanted = plane.get("deployment/counter")["spec"]["template"]
    plane.kubectl("rollout", "undo", "deployment/counter")
    plane.until(lambda: plane.get("deployment/counter")["spec"]["template"] == wanted, "what the Agent says is back")
    plane.until(lambda: plane.condition("agent/counter").get("status") == "True", "it is ready again")
    assert count(plane) == 3
