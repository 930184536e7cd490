"""The workflows of GitHub Actions: what linters find, what they may do, and that they agree with the tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.images.tools import ROOT

BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
#: What a job may write, by workflow; whatever is not here, only reads.
WRITES = {"release.yaml": {"packages", "id-token", "attestations"}}

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def loaded(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in loaded(path)["jobs"].values() for step in job["steps"]]


def test_zizmor_finds_nothing() -> None:
    command = [BIN / "zizmor", "--offline", "--no-progress", ".github/workflows"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not on PATH; the checks workflow runs it")
def test_actionlint_finds_nothing() -> None:
    result = subprocess.run(["actionlint", "-no-color"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@each_workflow
def test_actions_are_pinned_by_commit(path: Path) -> None:
    for used in re.findall(r"uses: *(.*)$", path.read_text(), re.MULTILINE):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_an_action_has_one_version_everywhere() -> None:
    versions: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for step in steps(path):
            if "uses" in step:
                action, _, commit = step["uses"].partition("@")
                versions.setdefault(action, set()).add(commit)
    assert not {action: commits for action, commits in versions.items() if len(commits) > 1}


@each_workflow
def test_jobs_may_do_the_least(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, name
        writes = {right for right, level in job["permissions"].items() if level == "write"}
        assert writes <= WRITES.get(path.name, set()), name


@each_workflow
def test_a_checkout_leaves_no_token_behind(path: Path) -> None:
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_the_default_node_image_is_one_of_those_tested() -> None:
    config = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
    matrix = loaded(ROOT / ".github" / "workflows" / "e2e.yaml")["jobs"]["kind"]["strategy"]["matrix"]["include"]
    assert [entry["kubernetes"] for entry in matrix] == ["1.34", "1.35", "1.36"]
    for entry in matrix:
        assert re.fullmatch(
            rf"kindest/node:v{re.escape(entry['kubernetes'])}\.\d+@sha256:[0-9a-f]{{64}}", entry["image"]
        )
    assert {node["image"] for node in config["nodes"]} <= {entry["image"] for entry in matrix}


def test_the_release_finds_what_it_rewrites() -> None:
    values = (ROOT / "charts" / "agenthive" / "values.yaml").read_text().splitlines()
    assert values.count("  repository: agenthive-operator") == 1
    assert values.count('runtimeImage: ""') == 1
    assert values.count("    runbooks: docs/runbooks") == 1
    chart = (ROOT / "charts" / "agenthive" / "Chart.yaml").read_text().splitlines()
    assert chart.count("annotations:") == 1
    assert [line.partition(":")[0] for line in chart if line.startswith("      image: agenthive-")] == [
        "      image"
    ] * 2
    for image in ("operator", "runtime"):
        lines = (ROOT / image / "Dockerfile").read_text().splitlines()
        assert len([line for line in lines if line.startswith("ARG PYTHON_IMAGE=")]) == 1
