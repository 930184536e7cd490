"""The images, built: the same twice, small in rights, and running the example: `make images-test`, not the suite.

Needs buildah and runc, and root; where no registry can be reached, PYTHON_IMAGE names a local base (docs/images.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PREFIX = "localhost/test/"
MISSING = [program for program in ("buildah", "runc") if shutil.which(program) is None]

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("AGENTHIVE_TEST_IMAGES"), reason="builds images for minutes: `make images-test` does"
    ),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="buildah's mounts and runc need root here"),
    pytest.mark.timeout(600),
]


def run(*command: str | Path, **env: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout


def identity(image: str) -> str:
    """Digest of an image's configuration, which names its layers by theirs."""
    return str(json.loads(run("buildah", "inspect", "--type", "image", image))["FromImageID"])


@dataclass(frozen=True)
class Built:
    name: str
    identity: str

    @property
    def config(self) -> dict[str, Any]:
        described = json.loads(run("buildah", "inspect", "--type", "image", self.name))
        return dict(described["OCIv1"]["config"])

    @contextlib.contextmanager
    def mounted(self) -> Iterator[Path]:
        container = run("buildah", "from", "--pull-never", self.name).strip()
        try:
            yield Path(run("buildah", "mount", container).strip())
        finally:
            run("buildah", "rm", container)


@pytest.fixture(scope="module")
def built() -> dict[str, Built]:
    run("hack/images.sh", "build", ENGINE="buildah", IMAGE_PREFIX=PREFIX)
    names = {image: f"{PREFIX}agenthive-{image}:{VERSION}" for image in ("operator", "runtime")}
    return {image: Built(name, identity(name)) for image, name in names.items()}


@contextlib.contextmanager
def container(
    image: Built, folder: Path, *arguments: str, env: dict[str, str], code: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``image`` under runc: account 65532, no capabilities, read-only root, the host's network."""
    folder.mkdir()
    with image.mounted() as root:
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 65532, "gid": 65532}, "args": arguments, "cwd": image.config["WorkingDir"],
                "env": [*image.config["Env"], *(f"{key}={value}" for key, value in env.items())],
                "noNewPrivileges": True, "capabilities": {"bounding": [], "effective": [], "permitted": []},
            },
            "root": {"path": str(root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
                {"destination": "/agenthive/code", "type": "bind", "source": str(code), "options": ["rbind", "ro"]},
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        name = f"agenthive-test-{os.getpid()}-{folder.name}"
        command = ["runc", "--root", str(folder / "runc"), "run", "--bundle", str(folder), name]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            process.kill()
            process.wait()


def test_a_second_build_gives_the_same_images(built: dict[str, Built]) -> None:
    run("hack/images.sh", "build", ENGINE="buildah", IMAGE_PREFIX=PREFIX)
    for image in built.values():
        print(f"{image.name}: {image.identity}")  # noqa: T201
        assert identity(image.name) == image.identity


def test_the_runtime_has_neither_kopf_nor_kubernetes(built: dict[str, Built]) -> None:
    with built["runtime"].mounted() as root:
        installed = {path.name for path in (root / "opt/agenthive").glob("lib/python3*/site-packages/*")}
    assert {"agenthive", "asyncpg"} <= installed
    assert not {name for name in installed if name.partition("-")[0] in {"kopf", "kubernetes", "pip", "uv"}}
    with built["operator"].mounted() as root:
        installed = {path.name for path in (root / "opt/agenthive").glob("lib/python3*/site-packages/*")}
    assert {"agenthive", "agenthive_operator", "kopf", "kubernetes"} <= installed


@pytest.mark.parametrize("image", ["operator", "runtime"])
def test_nothing_of_it_belongs_to_its_account(built: dict[str, Built], image: str) -> None:
    assert built[image].config["User"] == "65532:65532"
    assert built[image].config["Labels"]["org.opencontainers.image.version"] == VERSION
    with built[image].mounted() as root:
        for path in (root / "opt/agenthive").rglob("*"):
            status = path.lstat()
            assert status.st_uid == 0, path
            assert path.is_symlink() or not status.st_mode & 0o022, path


def test_the_operator_starts(built: dict[str, Built], tmp_path: Path) -> None:
    command = [*built["operator"].config["Entrypoint"], "--help"]
    with container(built["operator"], tmp_path / "c", *command, env={}, code=tmp_path) as process:
        process.wait(timeout=60)
    output = (tmp_path / "c" / "log").read_text()
    assert process.returncode == 0, output
    assert "Usage: agenthive-operator" in output


def answer(url: str, postgres: str, agent: str, kind: str, body: str) -> Any:
    env = {"AGENTHIVE_REDIS_URL": url, "AGENTHIVE_POSTGRES_URL": postgres, "AGENTHIVE_HIVE": "first"}
    return run(BIN / "agenthive", "--hive", "first", "ask", agent, kind, body, **env)


def test_the_runtime_runs_an_agent_from_mounted_code(
    built: dict[str, Built], tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    env = {
        "AGENTHIVE_HIVE": "first", "AGENTHIVE_AGENT": "hello", "AGENTHIVE_REDIS_URL": redis_url,
        "AGENTHIVE_POSTGRES_URL": postgres_url, "AGENTHIVE_HTTP_PORT": str(free_port()), "AGENTHIVE_BIND": "127.0.0.1",
        "PYTHONPATH": "/agenthive/code",
    }  # fmt: skip
    run(BIN / "agenthive", "--hive", "first", "db", "upgrade", **{key: env[key] for key in env if key != "PYTHONPATH"})
    command = ("agenthive", "run", "hello:agent")
    with container(built["runtime"], tmp_path / "c", *command, env=env, code=ROOT / "examples" / "hello") as process:
        text = answer(redis_url, postgres_url, "hello", "greet", '{"name": "Ada"}')
        assert "Hello Ada, this is time number 1." in text
        process.terminate()
        process.wait(timeout=30)
    assert process.returncode == 0, (tmp_path / "c" / "log").read_text()


def test_another_image_builds_on_the_runtime(built: dict[str, Built], tmp_path: Path, redis_url: str) -> None:
    name = f"{PREFIX}word-shapes:1"
    run(
        "buildah", "build", "--file", "examples/custom-image/Dockerfile", "--tag", name,
        "--build-arg", f"RUNTIME_IMAGE={built['runtime'].name}", ".",
    )  # fmt: skip
    image = Built(name, identity(name))
    assert image.config["User"] == "65532:65532"
    env = {
        "AGENTHIVE_HIVE": "first", "AGENTHIVE_AGENT": "word-shapes", "AGENTHIVE_REDIS_URL": redis_url,
        "AGENTHIVE_HTTP_PORT": str(free_port()), "AGENTHIVE_BIND": "127.0.0.1",
    }  # fmt: skip
    with container(image, tmp_path / "c", "agenthive", "run", "word_shapes:agent", env=env, code=tmp_path):
        text = answer(redis_url, "", "word-shapes", "count", '{"number": 3, "noun": "ox"}')
    assert "three oxen" in text


def test_bills_of_materials_name_what_is_installed(built: dict[str, Built], tmp_path: Path) -> None:
    run("hack/images.sh", "sbom", tmp_path, ENGINE="buildah", IMAGE_PREFIX=PREFIX)
    names = {}
    for image in built:
        bom = json.loads((tmp_path / f"agenthive-{image}.cdx.json").read_text())
        assert bom["bomFormat"] == "CycloneDX"
        names[image] = {component["name"] for component in bom["components"]}
    assert "asyncpg" in names["runtime"]
    assert not {"kopf", "kubernetes", "cyclonedx-bom"} & names["runtime"]
    assert {"kopf", "kubernetes"} <= names["operator"]
