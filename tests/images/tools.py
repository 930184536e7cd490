"""Programs that only note what they are asked: what a script of ours decides, where the real ones cannot run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ("bash", "cat", "date", "dirname", "env", "git", "grep", "head", "mkdir", "mktemp", "mv", "rm", "sed")
SETTINGS = {
    "BUILD_FLAGS", "CLUSTER", "ENGINE", "IMAGE_PREFIX", "KIND_EXPERIMENTAL_PROVIDER", "KIND_NODE_IMAGE", "KUBECONFIG",
    "PYTEST", "PYTHON_IMAGE", "SOURCE", "TIMEOUT",
}  # fmt: skip


class Tools:
    """A PATH of a test's own: the system's small programs, and noting ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.notes = folder / "notes"
        self.folder.mkdir()
        self.notes.touch()
        for program in SYSTEM:
            for place in (Path("/usr/bin"), Path("/bin")):
                if (place / program).exists():
                    (self.folder / program).symlink_to(place / program)
                    break

    def add(self, name: str, script: str = "") -> None:
        """A program that notes its arguments, then runs ``script``; none: it succeeds in silence."""
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.notes}\n{script}\n')
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if key not in SETTINGS}
        return subprocess.run(
            [ROOT / "hack" / script, *arguments],
            env=clean | {"PATH": str(self.folder), "SOURCE_DATE_EPOCH": "86400"} | env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def asked(self) -> list[str]:
        """What was noted, in order, without the questions whether an engine works."""
        return [line for line in self.notes.read_text().splitlines() if not line.endswith(" info")]
