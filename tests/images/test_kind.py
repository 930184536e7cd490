"""What ``hack/kind.sh`` decides, told by programs that only note; and that kind-config.yaml is what it should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.images.tools import ROOT, Tools

KUBECONFIG = ROOT / "build" / "kind" / "test.kubeconfig"
CLUSTER = {"CLUSTER": "test"}
THERE = 'if [ "$*" = "get clusters" ]; then echo other; echo test; fi'
NO_DAEMON = 'if [ "$1" = info ]; then exit 1; fi'
WHERE = {"kind": "kind.sigs.k8s.io", "kubectl": "kubernetes.io/docs/tasks/tools", "helm": "helm.sh/docs/intro/install"}


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    """Everything that `up` needs, and no cluster yet."""
    found = Tools(tmp_path)
    for name in ("docker", "kind", "kubectl", "helm"):
        found.add(name)
    return found


@pytest.mark.parametrize("missing", WHERE)
def test_a_missing_tool_is_named_with_where_to_get_it(tools: Tools, missing: str) -> None:
    (tools.folder / missing).unlink()
    result = tools.run("kind.sh", "up", **CLUSTER)
    assert result.returncode == 1
    assert f"{missing} is not installed. Get it from https://{WHERE[missing]}" in result.stderr
    assert tools.asked() == []


def test_a_docker_without_its_daemon_is_no_engine(tools: Tools) -> None:
    tools.add("docker", NO_DAEMON)
    result = tools.run("kind.sh", "up", **CLUSTER)
    assert result.returncode == 1
    assert "docker or podman, and neither works here" in result.stderr


def test_podman_stands_in_for_docker(tools: Tools) -> None:
    tools.add("docker", NO_DAEMON)
    tools.add("podman")
    tools.add("kind", 'echo "provider=$KIND_EXPERIMENTAL_PROVIDER"')
    result = tools.run("kind.sh", "down", **CLUSTER)
    assert result.returncode == 0, result.stderr
    assert "provider=podman" in result.stdout


def test_up_builds_creates_loads_installs_and_waits_in_that_order(tools: Tools) -> None:
    result = tools.run("kind.sh", "up", **CLUSTER)
    assert result.returncode == 0, result.stderr
    wanted = [
        r"docker buildx build .*--file operator/Dockerfile.*",
        r"docker buildx build .*--file runtime/Dockerfile.*",
        r"docker save --output build/images/agenthive-operator.tar agenthive-operator:\S+",
        r"docker save --output build/images/agenthive-runtime.tar agenthive-runtime:\S+",
        r"kind get clusters",
        rf"kind create cluster --name test --config kind-config.yaml --kubeconfig {KUBECONFIG} --wait 300s",
        r"kind load image-archive build/images/agenthive-operator.tar --name test",
        r"kind load image-archive build/images/agenthive-runtime.tar --name test",
        r"helm upgrade --install agenthive charts/agenthive --namespace agenthive-system --create-namespace --wait .*",
        r"kubectl --namespace agenthive-system rollout restart deployment .*",
        r"kubectl --namespace agenthive-system rollout status deployment .*",
        r"kubectl apply --kustomize examples/hello",
        r"kubectl wait --for=condition=Ready hive/first --timeout 300s",
        r"kubectl wait --for=condition=Ready agent/hello --timeout 300s",
        r"kubectl get hives,agents,pods",
    ]
    asked = tools.asked()
    assert len(asked) == len(wanted), asked
    for call, pattern in zip(asked, wanted, strict=True):
        assert re.fullmatch(pattern, call), f"{call!r} is not {pattern!r}"
    assert f"export KUBECONFIG={KUBECONFIG}" in result.stdout


def test_up_uses_a_cluster_that_is_there(tools: Tools) -> None:
    tools.add("kind", THERE)
    result = tools.run("kind.sh", "up", **CLUSTER)
    assert result.returncode == 0, result.stderr
    assert "the cluster test is there already" in result.stdout
    assert not [call for call in tools.asked() if call.startswith("kind create")]


def test_another_version_of_kubernetes(tools: Tools) -> None:
    tools.run("kind.sh", "up", KIND_NODE_IMAGE="kindest/node:v1.35.5", **CLUSTER)
    assert [call for call in tools.asked() if call.endswith("--image kindest/node:v1.35.5")]


def test_a_failed_build_makes_no_cluster(tools: Tools) -> None:
    tools.add("docker", 'if [ "$1" = buildx ]; then echo "no space left" >&2; exit 1; fi')
    result = tools.run("kind.sh", "up", **CLUSTER)
    assert result.returncode == 1
    assert "no space left" in result.stderr
    assert not [call for call in tools.asked() if call.startswith("kind")]


def test_the_callers_kubeconfig_is_left_alone(tools: Tools) -> None:
    # kubectl and helm are to work on the cluster's own kubeconfig, whatever the caller's says.
    tools.add("kubectl", 'echo "kubectl on $KUBECONFIG"')
    tools.add("helm", 'echo "helm on $KUBECONFIG"')
    result = tools.run("kind.sh", "up", KUBECONFIG="/somebody/elses", **CLUSTER)
    assert {line for line in result.stdout.splitlines() if " on " in line and "/" in line} >= {
        f"kubectl on {KUBECONFIG}", f"helm on {KUBECONFIG}",
    }  # fmt: skip
    assert "/somebody/elses" not in result.stdout


def test_tests_run_on_the_cluster(tools: Tools) -> None:
    tools.add("kind", THERE)
    tools.add("pytest", 'echo "on $AGENTHIVE_E2E_KUBECONFIG"')
    result = tools.run("kind.sh", "test", "-q", PYTEST=str(tools.folder / "pytest"), **CLUSTER)
    assert result.returncode == 0, result.stderr
    assert f"on {KUBECONFIG}" in result.stdout
    assert tools.asked()[-1] == "pytest tests/e2e -q"


def test_tests_need_a_cluster(tools: Tools) -> None:
    result = tools.run("kind.sh", "test", **CLUSTER)
    assert result.returncode == 1
    assert "there is no cluster test: make kind-up makes it" in result.stderr


def test_down_deletes_that_cluster_alone(tools: Tools) -> None:
    result = tools.run("kind.sh", "down", **CLUSTER)
    assert result.returncode == 0, result.stderr
    assert tools.asked() == [f"kind delete cluster --name test --kubeconfig {KUBECONFIG}"]


def test_nothing_of_the_cluster_answers_beyond_this_machine() -> None:
    config = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
    assert config["networking"]["apiServerAddress"] == "127.0.0.1"
    assert [node["role"] for node in config["nodes"]] == ["control-plane", "worker"]
    for node in config["nodes"]:
        assert re.fullmatch(r"kindest/node:v1\.\d+\.\d+@sha256:[0-9a-f]{64}", node["image"])
        assert all(port["listenAddress"] == "127.0.0.1" for port in node.get("extraPortMappings", []))
