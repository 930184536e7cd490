"""Install, upgrade, roll back and uninstall by the real helm; the release's pods run, as processes of this machine.

The control plane is that of local mode without an operator: with the emulator, or with a real API server where
KUBEBUILDER_ASSETS names one. There each pod has the rights of its account and no others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chart.conftest import CHART, Helm
from tests.e2e.plane import ECHO, Plane, agent, command, hive, local_folder

from agenthive_operator.plan.names import FINALIZER

# Beside a real API server, on a machine that does much else, one takes more than the usual two minutes.
pytestmark = pytest.mark.timeout(300)

NAMESPACE = "agenthive-system"
MAX_RELEASE_BYTES = 600 * 1024
REAL = bool(os.environ.get("KUBEBUILDER_ASSETS"))
# Pods share one network here: the operator serves its probes at its pod's address, and reads those of Services.
HERE = """
extraEnv: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
extraArgs: [--resolve-services, "--probe-address=$(POD_IP):8080"]
networkPolicy: {enabled: false}
"""


class Release:
    """One release in one control plane."""

    def __init__(self, helm: Helm, plane: Plane, values: Path) -> None:
        self.helm = helm
        self.plane = plane
        self.values = ["-f", CHART / "ci/single-values.yaml", "-f", values]

    def run(self, verb: str, *args: object, check: bool = True) -> str:
        """A verb of helm; returns all that it said."""
        done = self.helm(
            verb, "agenthive", *args, "--namespace", NAMESPACE, kubeconfig=self.plane.kubeconfig, check=check
        )
        return done.stdout + done.stderr

    def install(self, *args: object) -> None:
        self.run("install", CHART, *self.values, "--create-namespace", "--wait", "--timeout=60s", *args)

    def arguments(self) -> list[str]:
        """The operator's, as the server has them."""
        found = json.loads(self.plane.kubectl("get", "deployment/agenthive", "-n", NAMESPACE, "-o", "json"))
        args: list[str] = found["spec"]["template"]["spec"]["containers"][0]["args"]
        return args

    def hives(self) -> dict[str, tuple[str, list[str]]]:
        """Uid and finalizers of the hives by name."""
        found = [each["metadata"] for each in self.plane.get("hives")["items"]]
        return {each["name"]: (each["uid"], each.get("finalizers", [])) for each in found}

    def left(self) -> list[str]:
        """What is there of the operator and of hooks."""
        kinds = "deployments,jobs,pods,serviceaccounts,roles,rolebindings"
        found = self.plane.kubectl("get", kinds, "-n", NAMESPACE, "-o", "name").split()
        return [name for name in found if "agenthive" in name]


@pytest.fixture
def release(helm: Helm, tmp_path: Path) -> Iterator[Release]:
    """A control plane that nothing was applied to, and its chart's values."""
    folder = local_folder()
    values = tmp_path / "here.yaml"
    values.write_text(HERE)
    env = {"AGENTHIVE_LOCAL_BACKOFF_SECONDS": "0.5"}
    command("agenthive", "local", "up", "--bare", "--detach", "--dir", folder, env=env)
    try:
        yield Release(helm, Plane(folder / "kubeconfig", folder), values)
    finally:
        command("agenthive", "local", "down", "--dir", folder)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_release_comes_and_goes_and_hives_stay(release: Release) -> None:
    plane, run = release.plane, release.run
    assert "operator left out" in plane.agenthive("local", "status", "--dir", plane.folder or "")
    release.install()
    plane.apply(hive("kept"), *agent("echo", hive="kept", code=ECHO))
    plane.wait("condition=Ready", "agent/echo")
    secrets = json.loads(plane.kubectl("get", "secrets", "-n", NAMESPACE, "-l", "owner=helm", "-o", "json"))
    assert 0 < max(len(json.dumps(secret)) for secret in secrets["items"]) < MAX_RELEASE_BYTES
    before = release.hives()
    assert before["kept"][1] == [FINALIZER]
    pods = plane.get("pods")["items"]

    run("upgrade", CHART, "--reset-then-reuse-values", "--set", "log.level=DEBUG", "--wait", "--timeout=60s")
    assert {"--log-level=DEBUG", "--resolve-services"} <= set(release.arguments()), "the values of before are kept"
    # Arguments that the operator does not know: its pod never is ready, and what was there goes on.
    broken = ["--set", "extraArgs={--nonsense}", "--rollback-on-failure", "--timeout=6s"]
    said = run("upgrade", CHART, "--reset-then-reuse-values", *broken, check=False)
    assert "has been rolled back" in said
    assert "--log-level=DEBUG" in release.arguments()
    run("rollback", "1", "--wait", "--timeout=60s")
    assert "--log-level=INFO" in release.arguments()

    said = run("uninstall", "--timeout=60s")
    assert "came off 1" in said
    assert release.left() == []
    assert release.hives() == {"kept": (before["kept"][0], [])}
    running = plane.get("pods")["items"]
    assert {pod["metadata"]["uid"] for pod in running} == {pod["metadata"]["uid"] for pod in pods}, "agents run on"

    release.install("--set", "firstHive.enabled=true")
    plane.until(lambda: release.hives()["kept"][1] == [FINALIZER], "the new operator adopts the hive")
    run("upgrade", CHART, "--reset-then-reuse-values", "--set", "crds.keep=false")
    said = run("uninstall", "--timeout=60s")
    assert "deleting 3 hives and agents" in said
    assert "WARNING" not in said, "the operator took them apart in time"
    assert release.left() == []
    assert "agenthive.dev" not in plane.kubectl("get", "crds", "-o", "name")
    plane.until(lambda: not plane.get("pods")["items"], "no pod is left")


def test_a_release_of_one_namespace_is_tried_and_goes_though_its_operator_does_not_run(release: Release) -> None:
    plane = release.plane
    plane.kubectl("create", "namespace", "gone")
    release.install("--set", "watchNamespaces={default,gone},crds.keep=false,rbac.aggregate=false")
    said = release.run("test", "--timeout=90s")
    assert "it answered what it was asked" in said
    assert "cleared away" in said
    assert not plane.get("hives,agents,pods,configmaps,secrets")["items"]
    plane.apply(hive("stuck"), *agent("echo", hive="stuck", code=ECHO))
    plane.until(lambda: release.hives()["stuck"][1], "the operator sets its finalizer")
    # As where its image is gone: nobody takes the hive apart any more.
    plane.kubectl("scale", "deployment/agenthive", "-n", NAMESPACE, "--replicas=0")
    plane.kubectl("delete", "hive/stuck", "--wait=false")
    plane.kubectl("delete", "namespace", "gone", "--wait=false")
    plane.kubectl("delete", "roles,rolebindings", "--all", "-n", "gone")  # nobody ends namespaces beside a bare server
    said = release.run("uninstall", "--timeout=60s")
    assert "no operator is ready" in said
    assert ("WARNING: namespace gone is left out" in said) == REAL, "only a real server has rights to refuse"
    assert "WARNING: AgentHive default/stuck was being deleted" in said
    assert release.left() == []
    assert "agenthive.dev" not in plane.kubectl("get", "crds", "-o", "name")
