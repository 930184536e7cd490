"""What is planned for each input, whole: a change of the plan shows as a change of a golden file.

``UPDATE_GOLDEN=1 pytest tests/unit/plan/test_golden.py`` rewrites them; read the difference before committing it, for
every change of a pod template rolls the pods of all hives.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import yaml
from tests.unit.plan.build import GOLDEN, INPUTS, OBSERVED_AGENT, OBSERVED_HIVE, PLACE, agent, hive

from agenthive_operator.plan.agent import plan_agent
from agenthive_operator.plan.hive import plan_hive
from agenthive_operator.plan.network import plan_network

UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
PLANS = [
    *((name, None) for name in ("hive-minimal", "hive-full", "hive-external", "hive-template")),
    *((name, "hive-minimal") for name in ("agent-minimal", "agent-command")),
    ("agent-full", "hive-full"),
    ("agent-template", "hive-template"),
]


class Dumper(yaml.SafeDumper):
    """Without anchors, so that a golden file reads as what kubectl would show."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _text)


def planned(name: str, of_hive: str | None) -> str:
    objects = (
        plan_hive(hive(name), OBSERVED_HIVE) + plan_network(hive(name), PLACE)
        if of_hive is None
        else plan_agent(agent(name), hive(of_hive), OBSERVED_AGENT)
    )
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=120, explicit_start=True)


@pytest.mark.parametrize(("name", "of_hive"), PLANS)
def test_plan_is_the_golden_one(name: str, of_hive: str | None) -> None:
    path = GOLDEN / f"{name}.yaml"
    text = planned(name, of_hive)
    if UPDATE:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: see the module's first lines"


def test_every_input_has_a_golden_file() -> None:
    inputs = {path.name for path in INPUTS.iterdir()}
    assert {f"{name}.yaml" for name, _ in PLANS} == inputs == {path.name for path in GOLDEN.iterdir()}
