"""Dockerfiles and scripts as linters see them, and what ``hack/images.sh`` decides: by engines that only note."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.images.tools import ROOT, Tools

from agenthive_operator.reconcile.context import Options

BIN = Path(sys.executable).parent
IMAGES = ("operator", "runtime")
DOCKERFILES = sorted(
    path.relative_to(ROOT)
    for folder in ("operator", "runtime", "hack", "examples")
    for path in (ROOT / folder).rglob("*Dockerfile")
)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ENGINES = ("buildah", "podman", "docker")


def test_every_dockerfile_is_found() -> None:
    assert {str(path) for path in DOCKERFILES} == {
        "operator/Dockerfile", "runtime/Dockerfile", "hack/sbom.Dockerfile", "examples/custom-image/Dockerfile",
    }  # fmt: skip


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_hadolint_finds_nothing(path: Path) -> None:
    # DL3002: a stage that only installs may be root's; test_final_stage_is_nobodys looks at the last one.
    command = [BIN / "hadolint", "--no-color", "--failure-threshold", "warning", "--ignore", "DL3002", path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "hack").glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    result = subprocess.run([BIN / "shellcheck", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_final_stage_is_nobodys(image: str) -> None:
    final = (ROOT / image / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == ["65532:65532"]
    # Nothing runs in it: it is the same for every platform, and holds no cache and no log of an installer.
    assert "\nRUN " not in final


@pytest.mark.parametrize("image", IMAGES)
def test_commands_need_no_shell(image: str) -> None:
    text = (ROOT / image / "Dockerfile").read_text()
    instructions = re.findall(r"^(?:RUN|CMD|ENTRYPOINT) (.*)$", text, re.MULTILINE)
    assert instructions
    assert all(instruction.startswith("[") for instruction in instructions), instructions


def test_the_operator_asks_for_the_runtime_image_of_its_version() -> None:
    assert Options().runtime_image == f"agenthive-runtime:{VERSION}"


NO_DAEMON = 'if [ "$1" = info ]; then exit 1; fi'


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def test_without_an_engine_it_says_what_to_install(tools: Tools) -> None:
    result = tools.run("images.sh", "build")
    assert result.returncode == 1
    assert "none of buildah, podman and docker works here. Install one of them" in result.stderr


def test_a_docker_without_its_daemon_is_passed_over(tools: Tools) -> None:
    tools.add("docker", NO_DAEMON)
    assert "and, for docker, start its daemon" in tools.run("images.sh", "build").stderr
    tools.add("podman")
    assert tools.run("images.sh", "names").stdout.split() == [
        f"docker.io/library/agenthive-operator:{VERSION}", f"docker.io/library/agenthive-runtime:{VERSION}",
    ]  # fmt: skip


def test_an_engine_that_was_asked_for_is_not_replaced(tools: Tools) -> None:
    tools.add("buildah")
    result = tools.run("images.sh", "build", ENGINE="podman")
    assert result.returncode == 1
    assert "ENGINE=podman is not installed" in result.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_both_images_are_built_with_the_times_of_the_commit(tools: Tools, engine: str) -> None:
    tools.add(engine)
    result = tools.run("images.sh", "build", IMAGE_PREFIX="registry.example.com/team/", PYTHON_IMAGE="mirror/python:3")
    assert result.returncode == 0, result.stderr
    made = tools.asked()
    assert len(made) == len(IMAGES)
    for image, call in zip(IMAGES, made, strict=True):
        assert f"--file {image}/Dockerfile" in call
        assert f"registry.example.com/team/agenthive-{image}:{VERSION}" in call
        assert "--build-arg PYTHON_IMAGE=mirror/python:3" in call
        assert "--build-arg CREATED=1970-01-02T00:00:00Z" in call
        assert ("rewrite-timestamp=true" if engine == "docker" else "--timestamp 86400") in call


@pytest.mark.parametrize(("engine", "verb"), [("buildah", "push"), ("podman", "save"), ("docker", "save")])
def test_archives_carry_the_names_that_pods_ask_for(tools: Tools, tmp_path: Path, engine: str, verb: str) -> None:
    tools.add(engine)
    result = tools.run("images.sh", "archive", str(tmp_path / "archives"))
    assert result.stdout.split() == [f"{tmp_path}/archives/agenthive-{image}.tar" for image in IMAGES]
    prefix = "" if engine == "docker" else "docker.io/library/"
    for image, call in zip(IMAGES, tools.asked(), strict=True):
        assert call.startswith(f"{engine} {verb} ")
        assert f" {prefix}agenthive-{image}:{VERSION}" in call
