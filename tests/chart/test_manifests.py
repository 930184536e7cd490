"""What the chart renders for every file in ci/: valid for Kubernetes, restricted, as it was, and small enough."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from tests.chart.conftest import CASES, CHART, Helm, Promtool, Rendered
from tests.conftest import KubeApi, running_kube_apiserver, server_folder
from tests.snapshots import assert_golden

from agenthive_operator.local.apiserver.structural import compile_schema, prune, validate

Object = dict[str, Any]
GOLDEN = CHART.parents[1] / "tests" / "golden" / "chart"
MAX_RELEASE_BYTES = 600 * 1024
#: The oldest version that Chart.yaml allows, and the newest whose schemas are at hand.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

each_case = pytest.mark.parametrize("case", CASES)


def closed(required: str, **properties: Any) -> Object:
    """A schema of an object that has these fields and no others."""
    return {
        "type": "object", "additionalProperties": False, "properties": properties, "required": required.split(),
    }  # fmt: skip


def list_of(items: Object) -> Object:
    return {"type": "array", "minItems": 1, "items": items}


TEXT: Object = {"type": "string", "minLength": 1}
TEXTS: Object = {"type": "object", "additionalProperties": TEXT}
DURATION: Object = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
SELECTOR = closed("matchLabels", matchLabels=TEXTS)
SCRAPE = list_of(
    closed("port path interval", port=TEXT, path=TEXT, interval=DURATION, honorLabels={"type": "boolean"})
)  # fmt: skip
RULE = closed(
    "alert expr for labels annotations",
    **{"alert": TEXT, "expr": TEXT, "for": DURATION, "labels": TEXTS, "annotations": TEXTS},
)
#: kubernetes-validate has the schemas of Kubernetes alone. Of the Prometheus operator's kinds these are the fields, of
#: those in its API reference, that the chart uses.
MONITORING = {
    "ServiceMonitor": closed("selector endpoints", selector=SELECTOR, endpoints=SCRAPE),
    "PodMonitor": closed(
        "selector namespaceSelector podMetricsEndpoints",
        selector=SELECTOR,
        podMetricsEndpoints=SCRAPE,
        namespaceSelector={
            "oneOf": [closed("any", any={"const": True}), closed("matchNames", matchNames=list_of(TEXT))]
        },
    ),
    "PrometheusRule": closed("groups", groups=list_of(closed("name rules", name=TEXT, rules=list_of(RULE)))),
}


def our_problems(found: Object) -> list[str]:
    """What the CRD of an AgentHive or Agent does not allow in one, unknown fields among it."""
    plural = found["kind"].lower() + "s"
    crd = yaml.safe_load((CHART.parents[1] / "crds" / f"{plural}.yaml").read_text())
    schema = compile_schema(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], root=True)
    unknown: list[str] = []
    prune(found, schema, "", unknown)
    return [f"unknown field {path}" for path in unknown] + [str(error) for error in validate(found, schema, "")]


def check(found: Object, version: str) -> None:
    """One object against its schema; a kind that nobody has a schema of fails."""
    group = found["apiVersion"].partition("/")[0]
    if group == "monitoring.coreos.com":
        head = {"apiVersion": {"const": "monitoring.coreos.com/v1"}, "kind": TEXT, "metadata": {"type": "object"}}
        jsonschema.validate(found, closed("spec", **head, spec=MONITORING[found["kind"]]))
    elif group == "agenthive.dev":
        assert our_problems(found) == []
    else:
        kubernetes_validate.validate(found, version, strict=True)


REFUSALS = (
    AssertionError,
    KeyError,
    jsonschema.ValidationError,
    kubernetes_validate.ValidationError,
    kubernetes_validate.SchemaNotFoundError,
)


DEFINITION = "CustomResourceDefinition"


@each_case
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(rendered: Rendered, case: str, version: str) -> None:
    for found in rendered(case):
        if found["kind"] != DEFINITION:
            check(found, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_definitions_are_valid(rendered: Rendered, version: str) -> None:
    """Once: they are large, and the same in each case."""
    definitions = [found for found in rendered("default") if found["kind"] == DEFINITION]
    assert len(definitions) == 2
    for found in definitions:
        check(found, version)


@pytest.mark.parametrize(
    "wrong",
    [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": []}},
        {"apiVersion": "apps/v9", "kind": "Deployment", "metadata": {"name": "a"}},
        {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "a"}},
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "Probe", "metadata": {"name": "a"}, "spec": {}},
        {"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": {"name": "a"}, "spec": {}},
        {
            "apiVersion": "agenthive.dev/v1alpha1",
            "kind": "AgentHive",
            "metadata": {"name": "a"},
            "spec": {"reddis": {}},
        },
        {
            "apiVersion": "agenthive.dev/v1alpha1",
            "kind": "AgentHive",
            "metadata": {"name": "a"},
            "spec": {"suspend": 1},
        },
    ],
    ids=lambda wrong: f"{wrong['kind']}-{len(str(wrong))}",
)
def test_what_is_not_valid_fails(wrong: Object) -> None:
    with pytest.raises(REFUSALS):
        check(wrong, VERSIONS[-1])


def test_promtool_takes_the_rendered_rules(promtool: Promtool, rendered: Rendered, tmp_path: Path) -> None:
    (found,) = (found for found in rendered("everything") if found["kind"] == "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(found["spec"]))
    promtool("check", "rules", tmp_path / "rules.yaml")


def pods(objects: list[Object]) -> dict[str, Object]:
    """The spec of every pod that the objects make, by the object's kind and name."""
    found = {}
    for entry in objects:
        spec = entry.get("spec") or {}
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        template = entry if entry["kind"] == "Pod" else spec.get("template")
        if entry["kind"] in {"Pod", "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"}:
            found[f"{entry['kind']}/{entry['metadata']['name']}"] = template["spec"]
    assert found
    return found


VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def unrestricted(spec: Object) -> list[str]:
    """What the Pod Security Standard `restricted` forbids in a pod, and that its root is not read-only."""
    pod = spec.get("securityContext") or {}
    found = [f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    found += [f"volume {one['name']}" for one in spec.get("volumes", ()) if set(one) - {"name"} - VOLUMES]
    for container in [*spec["containers"], *spec.get("initContainers", ())]:
        context = {**pod, **(container.get("securityContext") or {})}
        wanted = {
            "allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}, "readOnlyRootFilesystem": True,
        }  # fmt: skip
        name = container["name"]
        found += [f"{name}: {field} is {context.get(field)}" for field in wanted if context.get(field) != wanted[field]]
        found += [f"{name}: {field}" for field in ("privileged", "procMount", "seLinuxOptions") if context.get(field)]
        found += [f"{name}: runs as root"] if context.get("runAsUser") == 0 else []
        found += [f"{name}: host port" for port in container.get("ports", ()) if port.get("hostPort")]
    return found


@each_case
def test_every_pod_is_restricted(rendered: Rendered, case: str) -> None:
    wrong = {name: unrestricted(spec) for name, spec in pods(rendered(case)).items()}
    assert not {name: found for name, found in wrong.items() if found}


@each_case
def test_what_stays_up_is_probed(rendered: Rendered, case: str) -> None:
    staying = {name: spec for name, spec in pods(rendered(case)).items() if not name.startswith(("Job/", "Pod/"))}
    assert staying
    for name, spec in staying.items():
        for container in spec["containers"]:
            assert {"livenessProbe", "readinessProbe"} <= set(container), name


def test_what_is_not_restricted_is_found() -> None:
    bare: Object = {
        "hostPID": True,
        "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
        "containers": [{"name": "a"}],
    }
    assert len(unrestricted(bare)) == 7


@pytest.fixture(scope="module")
def restricted() -> Iterator[KubeApi]:
    """A kube-apiserver with a namespace `restricted` that enforces Pod Security."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.skip("KUBEBUILDER_ASSETS names no kube-apiserver: nothing here enforces Pod Security")
    namespace = {
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "restricted", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }  # fmt: skip
    with server_folder("restricted") as folder, contextlib.ExitStack() as stack:
        api = stack.enter_context(running_kube_apiserver(folder, Path(assets)))
        api.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
        yield api


def test_a_real_api_server_takes_every_pod_as_restricted(restricted: KubeApi, rendered: Rendered) -> None:
    def refused(spec: Object) -> str:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": "restricted"}, "spec": spec}
        done = restricted.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod), check=False)
        return "" if done.returncode == 0 else done.stderr

    assert 'violates PodSecurity "restricted' in refused({"containers": [{"name": "a", "image": "a"}]})
    for case in CASES:
        for spec in pods(rendered(case)).values():
            assert refused(spec) == ""


@each_case
def test_golden(rendered: Rendered, case: str) -> None:
    """All but what other files in the tree hold word for word: definitions, and the dashboards."""
    shown = [
        found for found in rendered(case)
        if found["kind"] != DEFINITION and "-dashboard-" not in found["metadata"]["name"]
    ]  # fmt: skip
    assert_golden(GOLDEN / f"{case}.yaml", shown)


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@each_case
def test_a_release_is_small(helm: Helm, case: str) -> None:
    """Helm keeps a release (manifests, and the chart itself) gzipped and base64-coded in a Secret of at most 1 MiB."""
    values = CHART / f"ci/{case}-values.yaml"
    release = helm("install", "hives", CHART, "-n", "system", "-f", values, "--dry-run=client", "-o", "json").stdout
    assert json.loads(release)["chart"]["files"]
    kept = base64.b64encode(base64.b64encode(gzip.compress(release.encode())))
    assert 10 * 1024 < len(kept) < MAX_RELEASE_BYTES
