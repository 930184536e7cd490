"""What the chart renders for every file in ci/, looked at without a cluster."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.chart.conftest import CASES, CHART, Helm

from agenthive_operator import main as operator_main
from agenthive_operator.plan.network import OPERATOR_LABELS

Objects = dict[tuple[str, str], dict[str, Any]]


@cache
def render(helm: Helm, case: str, *more: str) -> Objects:
    """The objects of one case by kind and name; rendered once, so leave them as they are."""
    done = helm("template", "hives", CHART, "--namespace", "system", "-f", CHART / f"ci/{case}-values.yaml", *more)
    found = [entry for entry in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if entry]
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in found}


def pod_spec(objects: Objects) -> dict[str, Any]:
    """Of the operator's Deployment."""
    spec: dict[str, Any] = objects["Deployment", "hives-agenthive"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("case", CASES)
def test_lint(helm: Helm, case: str) -> None:
    helm("lint", "--strict", CHART, "-f", CHART / f"ci/{case}-values.yaml")


@pytest.mark.parametrize("case", CASES)
def test_pods_are_restricted(helm: Helm, case: str) -> None:
    spec = pod_spec(render(helm, case))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert all(set(volume) <= {"name", "emptyDir"} for volume in spec["volumes"])
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("case", CASES)
def test_the_operator_knows_its_arguments(helm: Helm, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container = pod_spec(render(helm, case))["containers"][0]
    seen: list[Any] = []

    async def serve(*args: Any) -> bool:
        seen.append(args)
        return True

    monkeypatch.setenv("POD_NAMESPACE", "system")
    monkeypatch.setattr(operator_main, "_serve", serve)
    monkeypatch.setattr(operator_main.log, "configure", lambda *_: None)
    done = CliRunner().invoke(operator_main.main, container["args"])
    assert done.exit_code == 0, done.output
    assert seen
    assert [entry["name"] for entry in container["env"]][:2] == ["POD_NAMESPACE", "POD_NAME"]


@pytest.mark.parametrize("case", CASES)
def test_hives_let_the_operator_in(helm: Helm, case: str) -> None:
    deployment = render(helm, case)["Deployment", "hives-agenthive"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert OPERATOR_LABELS.items() <= labels.items()
    assert deployment["selector"]["matchLabels"].items() <= labels.items()


def test_definitions_are_those_of_the_repository(helm: Helm) -> None:
    objects = render(helm, "default")
    sources = sorted((CHART.parents[1] / "crds").glob("*.yaml"))
    assert sources
    for source in sources:
        wanted = yaml.safe_load(source.read_text())
        found = objects["CustomResourceDefinition", wanted["metadata"]["name"]]
        assert found["spec"] == wanted["spec"]
        assert found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    for case, wanted_count in (("minimal", 0), ("everything", len(sources))):
        crds = [entry for (kind, _), entry in render(helm, case).items() if kind == "CustomResourceDefinition"]
        assert len(crds) == wanted_count
        assert all("helm.sh/resource-policy" not in entry["metadata"].get("annotations", {}) for entry in crds)


def test_rights_by_scope(helm: Helm) -> None:
    rules = yaml.safe_load((CHART / "files" / "rbac.yaml").read_text())
    wide = render(helm, "default")
    assert wide["ClusterRole", "system:hives-agenthive"]["rules"] == rules["watched"] + rules["cluster"]
    assert wide["Role", "hives-agenthive"]["rules"] == rules["own"]
    narrow = render(helm, "namespaced", "--set", "rbac.aggregate=false")
    assert not any(kind.startswith("ClusterRole") for kind, _ in narrow)
    done = helm("template", "hives", CHART, "-n", "system", "-f", CHART / "ci/namespaced-values.yaml")
    roles = [entry for entry in yaml.safe_load_all(done.stdout) if entry and entry["kind"] == "Role"]
    watched = [entry["metadata"]["namespace"] for entry in roles if entry["rules"] == rules["watched"]]
    assert watched == ["team-a", "team-b"]


def test_one_replica_has_no_disruption_budget(helm: Helm) -> None:
    assert ("PodDisruptionBudget", "hives-agenthive") in render(helm, "default")
    assert ("PodDisruptionBudget", "hives-agenthive") not in render(helm, "single")


@pytest.mark.parametrize(
    "wrong",
    ["replica=3", "image.digest=abc", "image.tags=1", "log.level=LOUD", "watchNamespaces[0]=A_b", "crds.keeps=true",
     "port=80", "monitoring.podMonitor.every=3"],
)  # fmt: skip
def test_wrong_values_are_refused(helm: Helm, wrong: str) -> None:
    done = helm("template", "hives", CHART, "--set", wrong, check=False)
    assert done.returncode != 0
    assert "values don't meet the specifications" in done.stderr


def test_the_schema_knows_every_value_and_no_other() -> None:
    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        assert schema["additionalProperties"] is False, path
        assert set(schema["properties"]) - {"global", "claims"} == set(values), path
        for key, value in values.items():
            below = schema["properties"][key]
            if isinstance(value, dict) and "properties" in below:
                compare(below, value, f"{path}.{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    compare(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "values")
