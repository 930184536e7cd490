"""What must hold of the tree itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_A_POD = {"agenthive_operator", "kopf", "kubernetes"}
RUNTIME = sorted((ROOT / "runtime").rglob("*.py"))


def test_operator_folder_is_no_package() -> None:
    # operator/__init__.py would shadow the standard library's `operator` for everything run from the root.
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_runtime_never_imports_the_operator(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            assert name.partition(".")[0] not in {"agenthive_operator", "kopf", "kubernetes"}, (
                f"line {node.lineno}: {name}"
            )


def test_an_agent_process_loads_neither_kopf_nor_kubernetes() -> None:
    script = (
        "import sys, agenthive.worker, agenthive.bus, agenthive.store, agenthive.cli\n"
        f"heavy = {NOT_IN_A_POD | {'aiohttp', 'rich'}} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_dependency_is_pinned_without_an_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), f"not NAME==VERSION: {line!r}"
    pinned = {normalised(line.partition("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(name for extra in project["project"]["optional-dependencies"].values() for name in extra),
        *(name for group in project.get("dependency-groups", {}).values() for name in group),
    ]
    names = {normalised(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in wanted} - {"agenthive-k8s"}
    assert names <= pinned, f"not in constraints.txt: {sorted(names - pinned)}"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
