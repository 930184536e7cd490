"""What is planned for each input, whole: a change of the plan shows as a change of a golden file.

``make golden`` rewrites them; read the difference before committing it, for
every change of a pod template rolls the pods of all hives.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.snapshots import assert_golden
from tests.unit.plan.build import GOLDEN, INPUTS, OBSERVED_AGENT, OBSERVED_HIVE, PLACE, agent, hive

from agenthive_operator.plan.agent import plan_agent
from agenthive_operator.plan.hive import plan_hive
from agenthive_operator.plan.network import plan_network

PLANS = [
    *((name, None) for name in ("hive-minimal", "hive-full", "hive-external", "hive-template")),
    *((name, "hive-minimal") for name in ("agent-minimal", "agent-command")),
    ("agent-full", "hive-full"),
    ("agent-template", "hive-template"),
]


def planned(name: str, of_hive: str | None) -> list[dict[str, Any]]:
    return (
        plan_hive(hive(name), OBSERVED_HIVE) + plan_network(hive(name), PLACE)
        if of_hive is None
        else plan_agent(agent(name), hive(of_hive), OBSERVED_AGENT)
    )


@pytest.mark.parametrize(("name", "of_hive"), PLANS)
def test_plan_is_the_golden_one(name: str, of_hive: str | None) -> None:
    assert_golden(GOLDEN / f"{name}.yaml", planned(name, of_hive))


def test_every_input_has_a_golden_file() -> None:
    inputs = {path.name for path in INPUTS.iterdir()}
    assert {f"{name}.yaml" for name, _ in PLANS} == inputs == {path.name for path in GOLDEN.iterdir()}
