"""The real helm, where there is one: on PATH, or where HELM says."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHART = Path(__file__).parents[2] / "charts" / "agenthive"
Helm = Callable[..., subprocess.CompletedProcess[str]]


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
