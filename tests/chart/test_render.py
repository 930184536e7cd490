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
from agenthive_operator.hooks import trial, uninstall
from agenthive_operator.plan.network import OPERATOR_LABELS

Objects = dict[tuple[str, str], dict[str, Any]]


@cache
def render(helm: Helm, case: str, *more: str) -> Objects:
    """The objects of one case by kind and name; rendered once, so leave them as they are."""
    done = helm("template", "hives", CHART, "--namespace", "system", "-f", CHART / f"ci/{case}-values.yaml", *more)
    found = [entry for entry in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if entry]
    return {(entry["kind"], entry["metadata"]["name"]): entry for entry in found}


def pod_specs(objects: Objects) -> dict[tuple[str, str], dict[str, Any]]:
    """Of every pod that the chart makes, those of hooks included."""
    return {
        key: each["spec"] if key[0] == "Pod" else each["spec"]["template"]["spec"]
        for key, each in objects.items()
        if key[0] in {"Deployment", "Job", "Pod"}
    }


def pod_spec(objects: Objects) -> dict[str, Any]:
    """Of the operator's Deployment."""
    spec: dict[str, Any] = objects["Deployment", "hives-agenthive"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("case", CASES)
def test_lint(helm: Helm, case: str) -> None:
    helm("lint", "--strict", CHART, "-f", CHART / f"ci/{case}-values.yaml")


@pytest.mark.parametrize("case", CASES)
def test_pods_are_restricted(helm: Helm, case: str) -> None:
    specs = pod_specs(render(helm, case))
    assert {kind for kind, _ in specs} == {"Deployment", "Job", "Pod"}
    for spec in specs.values():
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
    lifting = [entry["metadata"] for entry in roles if entry["metadata"]["name"] == f"{HOOK}-watched"]
    assert [metadata["namespace"] for metadata in lifting] == ["team-a", "team-b"]
    assert not any("annotations" in metadata for metadata in lifting), "a namespace may be gone when the hook runs"
    watched = [entry["metadata"]["namespace"] for entry in roles if entry["rules"] == rules["watched"]]
    assert watched == ["team-a", "team-b"]


HOOK = "hives-agenthive-uninstall"


@pytest.mark.parametrize("case", CASES)
def test_hooks_know_their_arguments(helm: Helm, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    async def run(*args: Any) -> None:
        seen.extend(args)

    monkeypatch.setattr(uninstall, "_run", run)
    monkeypatch.setattr(trial, "_run", run)
    specs = pod_specs(render(helm, case))
    for key, program in ((("Job", HOOK), uninstall.main), (("Pod", "hives-agenthive-test"), trial.main)):
        (container,) = specs[key]["containers"]
        assert container["command"] == ["python", "-m", program.callback.__module__]
        done = CliRunner().invoke(program, container["args"])
        assert done.exit_code == 0, done.output
    watched = ("team-a", "team-b") if case == "namespaced" else ()
    asked = uninstall.Asked("system", "hives-agenthive", watched, delete=case == "everything", seconds=180)
    assert seen == [asked, watched[0] if watched else "system", 180]


@pytest.mark.parametrize("case", CASES)
def test_hooks_are_none_of_the_release_own_pods_and_go_when_they_are_done(helm: Helm, case: str) -> None:
    objects = render(helm, case)
    selector = objects["Deployment", "hives-agenthive"]["spec"]["selector"]["matchLabels"]
    hooks = [each for each in objects.values() if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    hooks = [each for each in hooks if each["kind"] != "AgentHive"]
    assert {each["kind"] for each in hooks} >= {"ServiceAccount", "Role", "RoleBinding", "Job", "Pod"}
    weights: dict[str, set[int]] = {}
    for each in hooks:
        labels, notes = each["metadata"]["labels"], each["metadata"]["annotations"]
        assert not selector.items() <= labels.items()
        assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        weights.setdefault(each["kind"].removeprefix("Cluster"), set()).add(int(notes["helm.sh/hook-weight"]))
    assert weights == {"ServiceAccount": {-2}, "Role": {-1}, "RoleBinding": {-1}, "Job": {0}, "Pod": {0}}
    job = objects["Job", HOOK]["spec"]
    assert job["activeDeadlineSeconds"] <= 300 - 20, "helm's own default is the longer"
    assert not selector.items() <= job["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("sets", "there"),
    [
        (["uninstall.hook.enabled=false", "test.enabled=false"], set()),
        (["rbac.create=false"], set()),
        (["test.enabled=false"], {"Job"}),
        (["uninstall.hook.enabled=false"], {"Pod"}),
    ],
)
def test_hooks_can_be_left_out(helm: Helm, sets: list[str], there: set[str]) -> None:
    objects = render(helm, "default", *(word for entry in sets for word in ("--set", entry)))
    assert {kind for kind, _ in objects} & {"Job", "Pod"} == there
    assert (("NetworkPolicy", "hives-agenthive-hooks") in objects) == bool(there)


def test_only_the_hook_of_definitions_that_go_may_delete(helm: Helm) -> None:
    for sets, verbs in (
        ([], ["list", "patch"]),
        (["--set", "crds.keep=false"], ["list", "patch", "delete"]),
        (["--set", "crds.keep=false", "--set", "crds.enabled=false"], ["list", "patch"]),
    ):
        objects = render(helm, "default", *sets)
        (rule,) = objects["ClusterRole", f"system:{HOOK}"]["rules"]
        assert rule == {"apiGroups": ["agenthive.dev"], "resources": ["agenthives", "agents"], "verbs": verbs}
        assert ("--delete" in pod_specs(objects)["Job", HOOK]["containers"][0]["args"]) == ("delete" in verbs)


def test_one_replica_has_no_disruption_budget(helm: Helm) -> None:
    assert ("PodDisruptionBudget", "hives-agenthive") in render(helm, "default")
    assert ("PodDisruptionBudget", "hives-agenthive") not in render(helm, "single")


@pytest.mark.parametrize(
    "wrong",
    ["replica=3", "image.digest=abc", "image.tags=1", "log.level=LOUD", "watchNamespaces[0]=A_b", "crds.keeps=true",
     "port=80", "uninstall.hook.timeoutSeconds=0", "test.namespace=A_b", "monitoring.podMonitor.every=3"],
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
