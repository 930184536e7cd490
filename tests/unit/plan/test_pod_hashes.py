"""Pods that an older operator started are not rolled by a newer one, unless somebody decided that they are.

``pod_hashes.json`` holds the digest of the pod template that each Agent among ``inputs/`` led to when it was last
decided. The observed values are fixed, the image of the runtime too: of an upgrade only what the code does shows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.unit.plan.build import OBSERVED_AGENT, agent, hive, named

from agenthive_operator.plan.agent import plan_agent
from agenthive_operator.plan.checksum import digest

PINNED = Path(__file__).with_name("pod_hashes.json")
PAIRS = {
    "agent-minimal": "hive-minimal",
    "agent-command": "hive-minimal",
    "agent-full": "hive-full",
    "agent-template": "hive-template",
}
HOW = """\
the pod template of {name} is another one: an upgrade to this code replaces the pods of agents like it in every cluster.
  Not meant? `git diff` the plan; a field that only some agents need must not appear in the others.
  Meant? ACCEPT_POD_ROLL=1 pytest tests/unit/plan/test_pod_hashes.py
  writes the new hash; say in the commit's message why pods roll, and in docs/api-policy.md under "What rolls pods"."""


def pod_hash(name: str) -> str:
    planned = plan_agent(agent(name), hive(PAIRS[name]), OBSERVED_AGENT)
    return digest(named(planned, "Deployment")["spec"]["template"])


def test_what_is_pinned_is_what_is_planned() -> None:
    if os.environ.get("ACCEPT_POD_ROLL") == "1":
        PINNED.write_text(json.dumps({name: pod_hash(name) for name in PAIRS}, indent=2) + "\n", encoding="utf-8")
    assert json.loads(PINNED.read_text(encoding="utf-8")).keys() == PAIRS.keys()


@pytest.mark.parametrize("name", PAIRS)
def test_no_pod_rolls_by_an_upgrade(name: str) -> None:
    assert pod_hash(name) == json.loads(PINNED.read_text(encoding="utf-8"))[name], HOW.format(name=name)
