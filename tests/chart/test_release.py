"""Install, upgrade, roll back and uninstall, by the real helm against an API server of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chart.conftest import CHART, Helm
from tests.conftest import KubeApi, running_emulator, running_kube_apiserver, server_folder

NAMESPACE = "agenthive-system"
MAX_RELEASE_BYTES = 600 * 1024
HIVE: dict[str, Any] = {
    "apiVersion": "agenthive.dev/v1alpha1", "kind": "AgentHive", "metadata": {"name": "kept", "namespace": "default"},
    "spec": {"redis": {"managed": {"ephemeral": True}}, "postgres": {"managed": {"ephemeral": True}}},
}  # fmt: skip


@pytest.fixture
def bare() -> Iterator[KubeApi]:
    """An API server that nothing was applied to: the chart brings the definitions."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    with server_folder("chart") as folder, contextlib.ExitStack() as stack:
        if assets:
            yield stack.enter_context(running_kube_apiserver(folder, Path(assets)))
        else:
            yield stack.enter_context(running_emulator(folder, "--memory"))


def arguments(api: KubeApi) -> list[str]:
    """The Deployment's arguments, as the server has them."""
    found = json.loads(api.kubectl("get", "deployment", "agenthive", "-n", NAMESPACE, "-o", "json").stdout)
    args: list[str] = found["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def test_a_release_comes_and_goes_and_hives_stay(helm: Helm, bare: KubeApi) -> None:
    def run(verb: str, *args: object) -> None:
        helm(verb, "agenthive", *args, "--namespace", NAMESPACE, kubeconfig=bare.kubeconfig)

    run("install", CHART, "--create-namespace", "--set", "firstHive.enabled=true")
    bare.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/agenthives.agenthive.dev")
    bare.kubectl("apply", "-f", "-", stdin=json.dumps(HIVE))
    secrets = json.loads(bare.kubectl("get", "secrets", "-n", NAMESPACE, "-l", "owner=helm", "-o", "json").stdout)
    assert 0 < max(len(json.dumps(secret)) for secret in secrets["items"]) < MAX_RELEASE_BYTES

    run("upgrade", CHART, "--set", "log.level=DEBUG", "--set", "replicas=1")
    assert "--log-level=DEBUG" in arguments(bare)
    assert not bare.kubectl("get", "pdb", "-n", NAMESPACE, "-o", "name").stdout
    run("rollback", "1")
    assert "--log-level=INFO" in arguments(bare)
    assert bare.kubectl("get", "pdb", "-n", NAMESPACE, "-o", "name").stdout

    before = bare.kubectl("get", "agenthives", "-A", "-o", "jsonpath={.items[*].metadata.uid}").stdout.split()
    assert len(before) == 2
    run("uninstall")
    assert not bare.kubectl("get", "deployments", "-n", NAMESPACE, "-o", "name").stdout
    after = bare.kubectl("get", "agenthives", "-A", "-o", "jsonpath={.items[*].metadata.uid}").stdout.split()
    assert after == before
    run("install", CHART, "--set", "firstHive.enabled=true")
    assert bare.kubectl("get", "agenthives", "-A", "-o", "jsonpath={.items[*].metadata.uid}").stdout.split() == before
