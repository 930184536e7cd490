"""kubectl against the server. The same on both servers, except where a test says so."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import agent, config_map, deployment, eventually

CODE_ATLAS = Path(__file__).parents[3] / "examples" / "code-atlas"


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    def __call__(self, *args: str, stdin: Any = None, check: bool = True) -> str:
        text = stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin)
        done = self.api.kubectl("-n", self.namespace, *args, stdin=text, check=check)
        return str(done.stdout + ("" if check else done.stderr))

    def get(self, what: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("get", what, "-o", "json"))
        return found


@pytest.fixture
def kubectl(api_server: Any, kube_namespace: str) -> Kubectl:
    return Kubectl(api_server, kube_namespace)


def test_apply_twice(kubectl: Kubectl) -> None:
    body = deployment("web")
    assert "created" in kubectl("apply", "-f", "-", stdin=body)
    first = kubectl.get("deployment/web")
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=body)
    assert kubectl.get("deployment/web")["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    body["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "B", "value": "c"}]
    assert "configured" in kubectl("apply", "-f", "-", stdin=body)
    found = kubectl.get("deployment/web")["spec"]["template"]["spec"]["containers"][0]
    assert found["env"] == [{"name": "B", "value": "c"}]


def test_apply_of_a_custom_resource_twice(kubectl: Kubectl) -> None:
    assert "created" in kubectl("apply", "-f", "-", stdin=agent("w", env=[{"name": "A", "value": "b"}]))
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=agent("w", env=[{"name": "A", "value": "b"}]))
    assert "configured" in kubectl("apply", "-f", "-", stdin=agent("w"))
    assert "env" not in kubectl.get("agent/w")["spec"]


def test_server_side_apply_and_conflict(kubectl: Kubectl) -> None:
    body = config_map("a", {"n": "1"})
    apply = ("apply", "--server-side", "-f", "-")
    assert "serverside-applied" in kubectl(*apply, stdin=body)
    first = kubectl.get("configmap/a")
    kubectl(*apply, stdin=body)
    assert kubectl.get("configmap/a") == first
    body["data"]["n"] = "2"
    said = kubectl(*apply, "--field-manager=other", stdin=body, check=False)
    assert 'conflict with "kubectl": .data.n' in said
    kubectl(*apply, "--field-manager=other", "--force-conflicts", stdin=body)
    assert kubectl.get("configmap/a")["data"] == {"n": "2"}


def test_server_side_after_client_side_apply(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=config_map("a", {"n": "1", "m": "1"}))
    kubectl("apply", "--server-side", "-f", "-", stdin=config_map("a", {"n": "1"}))
    kubectl("apply", "--server-side", "-f", "-", stdin=config_map("a", {"n": "2"}))
    assert kubectl.get("configmap/a")["data"] == {"n": "2"}, "what client-side apply owned has a new owner"


def test_strict_validation_names_the_field(kubectl: Kubectl) -> None:
    said = kubectl("apply", "-f", "-", stdin=agent("w", replicsa=3), check=False)
    assert 'strict decoding error: unknown field "spec.replicsa"' in said


def test_patch_scale_label_delete(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=deployment("web"))
    kubectl("apply", "-f", "-", stdin=agent("w"))
    kubectl("scale", "deployment/web", "--replicas=3")
    kubectl("scale", "agents/w", "--replicas=4")
    assert kubectl.get("deployment/web")["spec"]["replicas"] == 3
    assert kubectl.get("agent/w")["spec"]["replicas"] == 4
    kubectl("patch", "deployment", "web", "-p", '{"spec":{"replicas":1}}')
    kubectl("patch", "agent", "w", "--type=merge", "-p", '{"spec":{"replicas":1}}')
    kubectl("patch", "agent", "w", "--type=json", "-p", '[{"op":"add","path":"/spec/concurrency","value":3}]')
    kubectl("label", "deployment", "web", "tier=front")
    kubectl("set", "image", "deployment/web", "c=nginx:2")
    assert kubectl("get", "deployments", "-l", "tier=front", "-o", "name").strip() == "deployment.apps/web"
    assert kubectl.get("agt/w")["spec"]["concurrency"] == 3
    kubectl("delete", "deployment/web", "agent/w")
    assert "NotFound" in kubectl("get", "deployment/web", check=False)


def test_get_shows_columns(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=agent("w"))
    kubectl("apply", "-f", "-", stdin=deployment("web"))
    head, row = kubectl("get", "agents").splitlines()
    assert head.split()[:2] == ["NAME", "HIVE"]
    assert row.split()[:2] == ["w", "demo"]
    head, row = kubectl("get", "deployments", "-o", "wide").splitlines()
    assert head.split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    assert row.split()[:4] == ["web", "0/1", "0", "0"]


def test_get_watches(kubectl: Kubectl, api_server: Any, tmp_path: Path) -> None:
    kubectl("apply", "-f", "-", stdin=agent("w"))
    output = tmp_path / "watched"
    environment = {**os.environ, "KUBECONFIG": str(api_server.kubeconfig), "HOME": str(tmp_path)}
    from tests.conftest import KUBECTL

    with output.open("wb") as file:
        command = [str(KUBECTL), "-n", kubectl.namespace, "get", "agents", "-w"]
        watching = subprocess.Popen(command, stdout=file, env=environment)
        try:
            eventually(lambda: "w " in output.read_text(), "the first row")
            kubectl("apply", "-f", "-", stdin=agent("x"))
            eventually(lambda: "x " in output.read_text(), "the new row")
        finally:
            watching.terminate()
            watching.wait(timeout=10)
    assert output.read_text().count("NAME") == 1


def test_wait_for_a_condition(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=agent("w"))
    condition = {
        "type": "Ready", "status": "True", "reason": "R", "message": "", "observedGeneration": 1,
        "lastTransitionTime": "2024-01-01T00:00:00Z",
    }  # fmt: skip
    patch = json.dumps({"status": {"conditions": [condition]}})
    kubectl("patch", "agent", "w", "--subresource=status", "--type=merge", "-p", patch)
    assert "condition met" in kubectl("wait", "--for=condition=Ready", "agent/w", "--timeout=5s")
    assert "timed out" in kubectl("wait", "--for=condition=Other", "agent/w", "--timeout=1s", check=False)


def test_the_example_applies_unchanged(kubectl: Kubectl, api_server: Any) -> None:
    kubectl("apply", "-k", str(CODE_ATLAS))
    what = ("configmaps,agents,hives", "-o", "json", "-l", "app.kubernetes.io/part-of!=none")
    before = json.loads(kubectl("get", *what))
    kubectl("apply", "-k", str(CODE_ATLAS))
    after = json.loads(kubectl("get", *what))
    assert before == after
    assert len(before["items"]) >= 7


def test_create_and_replace(kubectl: Kubectl) -> None:
    assert "created" in kubectl("create", "-f", "-", stdin=config_map("a", {"n": "1"}))
    assert "AlreadyExists" in kubectl("create", "-f", "-", stdin=config_map("a"), check=False)
    assert "replaced" in kubectl("replace", "-f", "-", stdin=config_map("a", {"n": "2"}))
    assert kubectl.get("configmap/a")["data"] == {"n": "2"}


def test_edit_by_diff_and_dry_run(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=config_map("a", {"n": "1"}))
    assert '+  "n": "2"' in kubectl("diff", "-f", "-", stdin=config_map("a", {"n": "2"}), check=False)
    kubectl("apply", "--dry-run=server", "-f", "-", stdin=config_map("a", {"n": "2"}))
    assert kubectl.get("configmap/a")["data"] == {"n": "1"}


def test_explain_and_api_resources(kubectl: Kubectl) -> None:
    assert "FIELD: replicas <integer>" in kubectl("explain", "agents.spec.replicas")
    listed = kubectl("api-resources", "--api-group=agenthive.dev", "--no-headers")
    assert {line.split()[0] for line in listed.splitlines()} == {"agenthives", "agents"}


@pytest.mark.parametrize(
    "command",
    [
        ("create", "namespace", "made-{}"),
        ("create", "configmap", "c", "--from-literal=a=b"),
        ("create", "secret", "generic", "s", "--from-literal=password=x"),
        ("create", "serviceaccount", "robot"),
    ],
)
def test_what_kubectl_sends_as_protobuf(kubectl: Kubectl, command: tuple[str, ...], unique: str) -> None:
    said = kubectl(*(part.format(unique) for part in command))
    assert "created" in said


def test_permissions(kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "create", "agents").strip() == "yes"


def test_output_as_yaml_round_trips(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=deployment("web"))
    text = kubectl("get", "deployment/web", "-o", "yaml")
    assert yaml.safe_load(text)["kind"] == "Deployment"
    assert "replaced" in kubectl("replace", "-f", "-", stdin=text)
