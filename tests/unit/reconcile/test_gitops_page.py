"""The snippets of docs/gitops.md, run over statuses that the operator's own code wrote."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cel
import lupa
import pytest
import yaml

from agenthive_operator.api import crd
from agenthive_operator.reconcile.conditions import Verdict
from agenthive_operator.reconcile.reasons import REASONS
from agenthive_operator.reconcile.status import merge_conditions

PAGE = (Path(__file__).parents[3] / "docs" / "gitops.md").read_text(encoding="utf-8")
WAITING = {
    "Probing", "Starting", "Loading", "WaitingForPostgres", "RedisNotReady", "PostgresNotReady", "SchemaNotReady",
    "AgentsNotReady", "RollingOut", "PodsNotReady", "HiveMissing", "HiveNotReady", "CodeMissing", "Deleting",
    "HiveDeleting",
}  # fmt: skip
SPEAKING = ("Ready", "RedisReady", "PostgresReady", "SchemaReady")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def document(generation: int = 2, observed: int = 2, **verdicts: Verdict) -> dict[str, Any]:
    conditions = merge_conditions([], verdicts, observed, datetime(2026, 1, 1, tzinfo=UTC))
    return {
        "metadata": {"name": "demo", "generation": generation},
        "status": {"observedGeneration": observed, "conditions": conditions},
    }


def table() -> list[tuple[dict[str, Any], str, str]]:
    """Objects with what Argo CD and what Flux have to make of them: one for each reason that there is."""
    found = []
    for kinds in REASONS.values():
        for kind in SPEAKING:
            for reason, entry in kinds.get(kind, {}).items():
                for status in entry.status.split(", "):
                    ready = Verdict(status, reason, "text")
                    verdicts = {"Ready": ready}
                    if kind != "Ready":
                        prefix = kind.removesuffix("Ready")
                        of_ready = Verdict(status, "AllReady" if status == "True" else f"{prefix}NotReady", "text")
                        verdicts = {"Ready": of_ready, kind: ready}
                    if status == "True":
                        expected = ("Suspended" if reason == "Suspended" else "Healthy", "current")
                    elif status == "False" and reason not in WAITING:
                        expected = ("Degraded", "failed")
                    else:
                        expected = ("Progressing", "inProgress")
                    found.append((document(**verdicts), *expected))
    good = Verdict("True", "AllReady", "text")
    found.append((document(generation=3, observed=2, Ready=good), "Progressing", "inProgress"))
    found.append(
        (document(generation=3, observed=2, Ready=Verdict("False", "InvalidSpec", "x")), "Progressing", "inProgress")
    )
    found.append(({"metadata": {"generation": 1}, "status": {"instanceId": "i"}}, "Progressing", "inProgress"))
    return found


TABLE = table()


@pytest.mark.parametrize(("obj", "expected", "_flux"), TABLE)
def test_argo_cd(obj: dict[str, Any], expected: str, _flux: str) -> None:
    lua = lupa.LuaRuntime()
    judge = lua.eval(f"function(obj)\n{block('lua')}\nend")
    assert judge(lua.table_from(obj, recursive=True))["status"] == expected


def test_argo_cd_before_there_is_a_status() -> None:
    lua = lupa.LuaRuntime()
    judge = lua.eval(f"function(obj)\n{block('lua')}\nend")
    assert judge(lua.table_from({"metadata": {"generation": 1}}, recursive=True))["status"] == "Progressing"


@pytest.mark.parametrize(("obj", "_argo", "expected"), TABLE)
def test_flux(obj: dict[str, Any], _argo: str, expected: str) -> None:
    (entry,) = yaml.safe_load(block("yaml"))["healthCheckExprs"]
    # The order in which Flux asks; what nothing says is in progress.
    said = next((name for name in ("inProgress", "failed", "current") if cel.evaluate(entry[name], obj)), "inProgress")
    assert said == expected


def test_every_reason_to_wait_is_one_that_exists() -> None:
    known = {reason for kinds in REASONS.values() for reasons in kinds.values() for reason in reasons}
    assert known >= WAITING


def defaults_in_items(node: Any, inside: bool = False) -> list[Any]:
    """Defaults of fields of list items in a schema: a tool that compares lists whole would take them for drift."""
    if not isinstance(node, dict):
        return []
    own = [node["default"]] if inside and "default" in node and "type" in node else []
    deeper = [defaults_in_items(value, inside or key == "items") for key, value in node.items()]
    return own + [found for part in deeper for found in part]


def test_no_list_item_is_defaulted() -> None:
    for text in crd.crd_files().values():
        schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        assert defaults_in_items(schema) == []
        assert defaults_in_items({"items": schema}) != [], "the walk finds defaults"
