"""CustomResourceDefinitions of both kinds, generated from the models: ``python -m agenthive_operator.api.crd crds``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agenthive_operator.api import schema as s
from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import GROUP, VERSION, Resource

MAX_CRD_BYTES = 200 * 1024
HEADER = "# Generated from the API models by `make crds`: change the models, not this file.\n"

# Keywords that a structural schema takes over as they are.
_PLAIN = (
    "type", "format", "pattern", "enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "maxProperties", "required", "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string",
)  # fmt: skip


class SchemaError(Exception):
    """A model uses what a structural schema can not express."""


def structural(schema: Mapping[str, Any], definitions: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The structural schema of a pydantic JSON schema: references inlined, null and titles gone.

    Args:
        schema: What pydantic's ``model_json_schema`` makes, or a part of it.
        definitions: Its ``$defs``.
        where: Path for errors.

    Raises:
        SchemaError: ``schema`` has a keyword or a union that structural schemas lack.
    """
    schema = _resolve(schema, definitions, where)
    result: dict[str, Any] = {}
    known = {*_PLAIN, "title", "description", "default", "exclusiveMinimum", "properties", "items",
             "additionalProperties", "int-or-string"}  # fmt: skip
    if unknown := set(schema) - known:
        raise SchemaError(f"{where}: a structural schema has no {', '.join(sorted(unknown))}")
    if "description" in schema:
        result["description"] = " ".join(schema["description"].split())
    result.update({key: schema[key] for key in _PLAIN if key in schema})
    if "int-or-string" in schema:
        result["anyOf"] = schema["int-or-string"]
    if "exclusiveMinimum" in schema:
        result.update(minimum=_number(schema["exclusiveMinimum"]), exclusiveMinimum=True)
    for key in ("minimum", "maximum"):
        if key in result:
            result[key] = _number(result[key])
    if schema.get("default") is not None and schema["default"] != []:
        result["default"] = _number(schema["default"])
    if "properties" in schema:
        result["properties"] = {
            name: structural(value, definitions, f"{where}.{name}") for name, value in schema["properties"].items()
        }
    if "items" in schema:
        result["items"] = structural(schema["items"], definitions, f"{where}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        result["additionalProperties"] = structural(schema["additionalProperties"], definitions, f"{where}.*")
    return result


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``schema`` with its reference and its ``| None`` replaced by what they stand for; own keywords win."""
    own = dict(schema)
    if "$ref" in own:
        target = definitions[own.pop("$ref").rsplit("/", 1)[-1]]
        return _resolve(_joined(target, own), definitions, where)
    options = [option for option in own.get("anyOf", ()) if option.get("type") != "null"]
    if not options:
        return own
    del own["anyOf"]
    if len(options) == 1:
        return _resolve(_joined(options[0], own), definitions, where)
    if {option.get("type") for option in options} == {"integer", "string"}:
        union = {
            "int-or-string": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": s.QUANTITY,
            "maxLength": 64,
        }
        return _joined(union, own)
    raise SchemaError(f"{where}: a structural schema has no unions but int-or-string")


def _joined(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``; the rules of both hold."""
    joined = {**base, **own}
    if s.VALIDATIONS in base and s.VALIDATIONS in own:
        joined[s.VALIDATIONS] = [*base[s.VALIDATIONS], *own[s.VALIDATIONS]]
    return joined


def _number(value: Any) -> Any:
    """Integral floats as integers, as JSON writes them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_defaults(schema: Any) -> Any:
    """A status is only ever written whole by the operator: an API server must not invent parts of it."""
    if isinstance(schema, list):
        return [_without_defaults(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_defaults(sub) for name, sub in value.items()}
        if key == "properties"
        else _without_defaults(value)
        for key, value in schema.items()
        if key != "default"
    }


def openapi_schema(model: type[Resource]) -> dict[str, Any]:
    """The ``openAPIV3Schema`` of one kind."""
    generated = model.model_json_schema(by_alias=True, mode="validation")
    definitions = generated.get("$defs", {})
    properties = {
        name: structural(value, definitions, name)
        for name, value in generated["properties"].items()
        if name in {"spec", "status"}
    }
    properties["status"] = _without_defaults(properties["status"])
    schema: dict[str, Any] = {
        "type": "object",
        "description": generated["description"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this object's schema."},
            "kind": {"type": "string", "description": "Kind of this object."},
            "metadata": {"type": "object"},
            **properties,
        },
        s.VALIDATIONS: generated[s.VALIDATIONS],
    }
    required = [name for name in generated.get("required", ()) if name == "spec"]
    if required:
        schema["required"] = required
    return schema


def column(name: str, path: str, description: str, kind: str = "string", priority: int = 0) -> dict[str, Any]:
    """A column of ``kubectl get``; priority 1 shows with ``-o wide`` only."""
    item: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "description": description}
    if priority:
        item["priority"] = priority
    return item


def condition_column(name: str, condition: str, description: str) -> dict[str, Any]:
    """A column with the status of ``condition``."""
    return column(name, f'.status.conditions[?(@.type=="{condition}")].status', description)


AGE = column("Age", ".metadata.creationTimestamp", "Time since creation.", "date")
REASON = column("Reason", '.status.conditions[?(@.type=="Ready")].reason', "Why it is ready or not.", priority=1)
HIVE_COLUMNS = [
    condition_column("Ready", "Ready", "Everything of the hive works."),
    column("Agents", ".status.agents.ready", "Agents that are ready.", "integer"),
    column("Backlog", ".status.backlog", "Messages waiting.", "integer"),
    condition_column("Redis", "RedisReady", "The message bus answers."),
    condition_column("Postgres", "PostgresReady", "The store answers."),
    AGE,
    REASON,
]
AGENT_COLUMNS = [
    column("Hive", ".spec.hiveRef.name", "Hive it works in."),
    condition_column("Ready", "Ready", "All its pods are ready."),
    column("Replicas", ".status.replicas", "Pods.", "integer"),
    column("Backlog", ".status.backlog", "Messages waiting.", "integer"),
    column("InFlight", ".status.inFlight", "Messages being handled.", "integer"),
    AGE,
    REASON,
    column("DeadLetters", ".status.deadLetters", "Messages given up.", "integer", priority=1),
]
SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}


def manifest(
    model: type[Resource],
    *,
    plural: str,
    short_names: list[str],
    columns: list[dict[str, Any]],
    scale: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    kind = model.__name__
    subresources: dict[str, Any] = {"status": {}}
    if scale is not None:
        subresources["scale"] = scale
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}", "labels": {"app.kubernetes.io/name": "agenthive"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short_names,
                "categories": ["all", "agenthive"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": columns,
                    "subresources": subresources,
                    "schema": {"openAPIV3Schema": openapi_schema(model)},
                }
            ],
        },
    }


def crd_manifests() -> list[dict[str, Any]]:
    """The CustomResourceDefinitions of AgentHive and Agent."""
    return [
        manifest(AgentHive, plural="agenthives", short_names=["hive", "hives"], columns=HIVE_COLUMNS),
        manifest(Agent, plural="agents", short_names=["agt"], columns=AGENT_COLUMNS, scale=SCALE),
    ]


class _Dumper(yaml.SafeDumper):
    """Without anchors: every object stands where it belongs."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def crd_files() -> dict[str, str]:
    """Name and text of each file of ``crds/``."""
    files = {}
    for crd in crd_manifests():
        text = HEADER + yaml.dump(crd, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        files[f"{crd['spec']['names']['plural']}.yaml"] = text
    return files


def main(arguments: list[str]) -> int:
    """Write the files into the folder named by the one argument."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m agenthive_operator.api.crd FOLDER\n")
        return 2
    folder = Path(arguments[0])
    for name, text in crd_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
