"""The table of merge keys against an extract of Kubernetes' OpenAPI."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenthive_operator import mergekeys
from agenthive_operator.mergekeys import MergeRule, merge_rule, pod_template_rule

EXTRACT = Path(__file__).with_name("mergekeys.txt")


def extract() -> dict[tuple[str, str, str], tuple[str, ...]]:
    lines = [line.split() for line in EXTRACT.read_text().splitlines() if not line.startswith("#")]
    rules = {}
    for kind, path, *rule in lines:
        group, _, name = kind.partition("/")
        rules[group, name, path] = tuple(rule)
    return rules


def written(rule: MergeRule) -> tuple[str, ...]:
    patch_key = (rule.patch_key or "*") if rule.patch_merge else "-"
    return rule.topology, ",".join(rule.keys) or "-", patch_key, "retain" if rule.retain_keys else "-"


@pytest.mark.parametrize(("group", "kind", "path"), sorted(extract()))
def test_rule_is_that_of_the_openapi(group: str, kind: str, path: str) -> None:
    rule = merge_rule(group, kind, tuple(path.split(".")))
    assert rule is not None, "the table lacks it"
    assert written(rule) == extract()[group, kind, path]


def test_nothing_is_in_the_table_that_the_openapi_lacks() -> None:
    known = extract()
    # In the extract the pod template stands under Deployment only, and no custom or CRD kind is in it.
    kinds = {(group, kind) for group, kind, _ in known}
    for (group, kind), table in mergekeys._KINDS.items():
        for path, rule in table.items():
            dotted = ".".join(path)
            # Lists are atomic anyway; saying so changes nothing.
            stated = rule != mergekeys.ATOMIC and (kind == "Deployment" or ".template." not in dotted)
            if (group, kind) in kinds and stated:
                assert (group, kind, dotted) in known


def test_every_workload_has_the_pod_template_of_a_deployment() -> None:
    for path in mergekeys.POD_TEMPLATE:
        full = ("spec", "template", *path)
        assert merge_rule("apps", "StatefulSet", full) == merge_rule("apps", "Deployment", full)
        assert merge_rule("apps", "ReplicaSet", full) == pod_template_rule(path)


def test_unknown_fields_have_no_rule() -> None:
    assert merge_rule("", "ConfigMap", ("data",)) is None
    assert merge_rule("example.org", "Thing", ("spec", "containers")) is None


def test_metadata_has_rules_in_every_kind() -> None:
    rule = merge_rule("example.org", "Thing", ("metadata", "finalizers"))
    assert rule is not None
    assert rule.topology == "set"


def test_rules_of_a_crd_are_keyed_at_any_depth() -> None:
    path = ("spec", "versions", "schema", "openAPIV3Schema", "properties", "spec", "x-kubernetes-validations")
    assert merge_rule("apiextensions.k8s.io", "CustomResourceDefinition", path) == mergekeys.CRD_VALIDATIONS


def test_identity_fills_in_defaults() -> None:
    ports = merge_rule("", "Pod", ("spec", "containers", "ports"))
    assert ports is not None
    assert ports.identity({"containerPort": 80}) == (80, "TCP")
    assert ports.identity({"containerPort": 80, "protocol": "UDP"}) == (80, "UDP")
    with pytest.raises(KeyError, match="containerPort"):
        ports.identity({"name": "http"})
