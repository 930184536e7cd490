"""A newcomer's path: what README.md and the first pages say to type, typed in a clean clone.

The clone has a virtual environment of its own, in which its own code is installed; what that depends on comes from the
environment that runs the tests, so that nothing is fetched. `make` finds it set up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.snippets import ROOT, Snippet, script, snippets
from tests.e2e.plane import local_folder

README = ROOT / "README.md"
QUICK_START = ROOT / "docs" / "quick-start.md"
FIRST_AGENT = ROOT / "docs" / "first-agent.md"
PATIENCE = 300  # far more than it takes, for machines that do much else


@pytest.fixture
def clone() -> Iterator[Path]:
    """A clean clone of HEAD with its environment, stopped and removed afterwards."""
    if not (ROOT / ".git").exists():
        pytest.skip("these sources are no git repository that could be cloned")
    folder = local_folder()
    target = folder / "agenthive"
    # git clones no repository of another account, as a checkout in CI may be, unless a home says so.
    (folder / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    try:
        subprocess.run(
            ["git", "clone", "--quiet", ROOT, target], env={**os.environ, "HOME": str(folder)}, check=True, timeout=60
        )
        install(target)
        yield target
    finally:
        subprocess.run(
            ["make", "down"], cwd=target, env=environment(target), capture_output=True, check=False, timeout=60
        )
        shutil.rmtree(folder, ignore_errors=True)


def install(target: Path) -> None:
    """What `make .venv/.installed` would do, without a download."""
    venv, ours = target / ".venv", Path(sys.executable).parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    paths = (target / "operator", target / "runtime", sysconfig.get_path("purelib"))
    (packages / "clone.pth").write_text("\n".join(map(str, paths)) + "\n")
    for program in ours.iterdir():
        copy = venv / "bin" / program.name
        if copy.exists() or not program.is_file():
            continue
        content = program.read_bytes()
        if content.startswith(b"#!" + str(ours).encode()):
            copy.write_bytes(content.replace(str(ours).encode(), str(venv / "bin").encode(), 1))
            copy.chmod(0o755)
        else:
            copy.symlink_to(program)
    (venv / ".installed").touch()


def environment(clone: Path) -> dict[str, str]:
    """That of a person who has just logged in: nothing of ours, no programs of our environment, a home of their own."""
    ours = str(Path(sys.executable).parent)
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != ours)
    kept = {name: os.environ[name] for name in ("LANG", "USER") if name in os.environ}
    return {**kept, "HOME": str(clone.parent), "PATH": path}


def typed(clone: Path, parts: list[Snippet]) -> str:
    """What a person sees who types all of it, one after the other."""
    done = subprocess.run(
        ["bash", "-c", script(parts)], cwd=clone, env=environment(clone), text=True, timeout=PATIENCE, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def section(page: Path, title: str) -> list[Snippet]:
    """The snippets of a page below the heading ``title``."""
    lines = page.read_text().splitlines()
    start = lines.index(f"## {title}")
    end = next((n for n in range(start + 1, len(lines)) if lines[n].startswith("## ")), len(lines))
    return [snippet for snippet in snippets(page) if start < snippet.line <= end]


@pytest.mark.timeout(PATIENCE + 100)
def test_what_a_newcomer_types_works(clone: Path) -> None:
    readme = section(README, "The first agent in five minutes")
    first, *quick_start = snippets(QUICK_START)
    assert readme[0].text == first.text  # both begin with `make up`, which is done once here
    printed = typed(clone, [*readme, *quick_start, *snippets(FIRST_AGENT)])
    times = [number for number in range(1, 9) if f"Hello Ada, this is time number {number}." in printed]
    # Once by README.md, twice by the quick start: the state outlives `make down`.
    assert times == [1, 2, 3]
    assert "1 passed" in printed
    assert "no word in it" in printed
    assert "no_such_module" in printed
    assert '"longest": "here"' in printed or '"longest": "still"' in printed
