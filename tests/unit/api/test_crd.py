"""The generated CRDs: no drift, structural, bounded, small, and every rule with a case that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, Field
from tests.cel_cases import CASES

from agenthive_operator.api import crd

CRDS = Path(__file__).parents[3] / "crds"
MANIFESTS = {manifest["spec"]["names"]["kind"]: manifest for manifest in crd.crd_manifests()}


def schema_of(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = MANIFESTS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, value in schema.get("properties", {}).items():
        yield from walk(value, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from walk(schema[key], f"{path}[]")


ALL = [(kind + path, node) for kind in MANIFESTS for path, node in walk(schema_of(kind)) if path]
SPECS = [(path, node) for path, node in ALL if ".spec" in path]


def test_files_are_what_the_models_generate() -> None:
    files = crd.crd_files()
    assert {path.name for path in CRDS.iterdir()} == files.keys()
    for name, text in files.items():
        assert (CRDS / name).read_text(encoding="utf-8") == text, f"crds/{name} is stale: run make crds"


def test_files_are_valid_yaml_below_the_limit() -> None:
    for name, text in crd.crd_files().items():
        assert yaml.safe_load(text) == MANIFESTS["AgentHive" if name.startswith("agenthives") else "Agent"]
        assert len(text.encode()) < crd.MAX_CRD_BYTES


def test_main_writes_both_files(tmp_path: Path) -> None:
    assert crd.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"agenthives.yaml", "agents.yaml"}


def test_main_asks_for_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main([]) == 2
    assert "FOLDER" in capsys.readouterr().err


def bounded(node: dict[str, Any]) -> bool:
    """The API server's estimate of what the rules cost rests on these bounds."""
    kind = node.get("type")
    if kind == "string":
        return "maxLength" in node or "enum" in node
    if kind == "array":
        return "maxItems" in node
    if kind in {"integer", "number"}:
        return "minimum" in node and "maximum" in node
    return "additionalProperties" not in node or "maxProperties" in node


def test_every_field_has_a_type() -> None:
    assert not [path for path, node in ALL if "type" not in node and not node.get("x-kubernetes-int-or-string")]


def test_every_field_is_bounded() -> None:
    assert not [path for path, node in SPECS if not bounded(node)]


def test_every_list_says_how_it_merges() -> None:
    assert not [path for path, node in SPECS if node.get("type") == "array" and "x-kubernetes-list-type" not in node]


def test_every_property_is_described() -> None:
    for path, node in SPECS:
        assert not [
            f"{path}.{name}" for name, value in node.get("properties", {}).items() if "description" not in value
        ]


def test_keys_of_list_items_are_required() -> None:
    for path, node in ALL:
        missing = set(node.get("x-kubernetes-list-map-keys", ())) - set(node.get("items", {}).get("required", ()))
        assert not missing, path


def test_a_status_has_no_defaults() -> None:
    for kind in MANIFESTS:
        assert not [path for path, node in walk(schema_of(kind)["properties"]["status"]) if "default" in node]


def test_every_rule_has_a_message_and_a_case_that_breaks_it() -> None:
    expected = {case.kind: [c.message for c in CASES if c.message and c.kind == case.kind] for case in CASES}
    for kind in MANIFESTS:
        for path, node in walk(schema_of(kind)):
            for rule in node.get("x-kubernetes-validations", ()):
                broken = [message for message in expected[kind] if message in rule["message"]]
                assert broken, f"{kind}{path}: no case expects {rule['message']!r}"


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def test_subresources_and_names() -> None:
    hive, agent = MANIFESTS["AgentHive"]["spec"], MANIFESTS["Agent"]["spec"]
    assert hive["names"]["shortNames"] == ["hive", "hives"]
    assert agent["names"]["shortNames"] == ["agt"]
    assert hive["versions"][0]["subresources"] == {"status": {}}
    assert agent["versions"][0]["subresources"] == {"status": {}, "scale": crd.SCALE}
    shown = [column["name"] for column in hive["versions"][0]["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Ready", "Agents", "Backlog", "Redis", "Postgres", "Age"]
    shown = [column["name"] for column in agent["versions"][0]["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Hive", "Ready", "Replicas", "Backlog", "InFlight", "Age"]


class Union(BaseModel):
    """What a structural schema can not say."""

    value: list[int] | str


class Constant(BaseModel):
    """What a structural schema has no word for."""

    value: int = Field(multiple_of=2)


@pytest.mark.parametrize(("model", "message"), [(Union, "no unions"), (Constant, "no multipleOf")])
def test_what_is_not_structural_is_refused(model: type[BaseModel], message: str) -> None:
    with pytest.raises(crd.SchemaError, match=message):
        crd.structural(model.model_json_schema(), {})
