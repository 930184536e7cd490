"""The control plane of the end-to-end tests and a namespace of it for each."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import rights
from tests.e2e.plane import EXISTING, Plane, command, local_folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more than this plane has, whatever fixtures it uses."""
    if EXISTING and "processes" in {mark.args[0] for mark in item.iter_markers("needs")}:
        pytest.skip("needs pods that are processes of this machine")


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Plane]:
    """The control plane all end-to-end tests share."""
    if EXISTING:
        yield Plane(Path(EXISTING), None)
        return
    folder = local_folder()
    env = {"AGENTHIVE_LOCAL_BACKOFF_SECONDS": "0.5"}
    audit = f"--audit-log-path={rights.audit_file()}"
    command("agenthive", "local", "up", "--detach", "--dir", folder, audit, env=env)
    try:
        yield Plane(folder / "kubeconfig", folder)
    finally:
        command("agenthive", "local", "down", "--dir", folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def plane(control_plane: Plane) -> Iterator[Plane]:
    """A namespace of the test's own."""
    with namespace_of(control_plane) as own:
        yield own


@pytest.fixture(scope="module")
def module_plane(control_plane: Plane) -> Iterator[Plane]:
    """A namespace of the module's own."""
    with namespace_of(control_plane) as own:
        yield own


@contextlib.contextmanager
def namespace_of(control_plane: Plane) -> Iterator[Plane]:
    """A fresh namespace, emptied and deleted afterwards."""
    namespace = f"e2e-{secrets.token_hex(4)}"
    own = Plane(control_plane.kubeconfig, control_plane.folder, namespace)
    own.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    yield own
    own.kubectl("delete", "agents,hives", "--all", "--timeout=60s")
    # Not waited for: beside a bare API server nobody ends namespaces.
    own.kubectl("delete", "namespace", namespace, "--wait=false")
