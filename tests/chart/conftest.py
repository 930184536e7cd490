"""The real helm, where there is one: on PATH, or where HELM says."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "agenthive"
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
Helm = Callable[..., subprocess.CompletedProcess[str]]
Promtool = Callable[..., None]
Rendered = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs helm with a home of its own; a failure raises with what helm said, unless ``check`` is False."""
    program = os.environ.get("HELM") or shutil.which("helm")
    if not program:
        pytest.skip("no helm on PATH, and HELM names none")
    home = tmp_path_factory.mktemp("helm")
    places = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}

    def run(*args: object, kubeconfig: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = os.environ | places | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})
        done = subprocess.run([program, *map(str, args)], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"helm {args}: {done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Runs promtool: what is on PATH, or what PROMTOOL names. A failure raises with what it said."""
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not program:
        pytest.skip("no promtool on PATH, and PROMTOOL names none (Debian has it in `prometheus`)")

    def run(*args: object) -> None:
        done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"promtool {args}: {done.stdout}{done.stderr}"

    return run


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Rendered:
    """All objects of one case of ci/, hooks and tests among them; rendered once, so leave them as they are."""

    @cache
    def run(case: str) -> list[dict[str, Any]]:
        done = helm("template", "hives", CHART, "--namespace", "system", "-f", CHART / f"ci/{case}-values.yaml")
        return [entry for entry in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if entry]

    return run
