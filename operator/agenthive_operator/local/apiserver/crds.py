"""CustomResourceDefinitions: checked, and turned into kinds."""

from __future__ import annotations

import uuid
from typing import Any

from . import celrules, errors, formats, structural
from .decode import now
from .errors import FieldError, Json
from .kinds import Column, Kind, Scale


def new_uid() -> str:
    return str(uuid.uuid4())


def resource_of(name: str) -> tuple[str, str]:
    """Group and plural of a CRD's name ``<plural>.<group>``."""
    plural, _, group = name.partition(".")
    return group, plural


def _to_version(api_version: str) -> Any:
    return lambda obj: {**obj, "apiVersion": api_version}


def kinds_of(obj: Json) -> list[Kind]:
    """One kind for each version that is served."""
    spec = obj["spec"]
    names = spec["names"]
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    found = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        source = version["schema"]["openAPIV3Schema"]
        subresources = version.get("subresources") or {}
        stored = version["name"] == storage
        found.append(
            Kind(
                spec["group"], version["name"], names["kind"], names["plural"],
                namespaced=spec["scope"] == "Namespaced",
                singular=names.get("singular", ""),
                short_names=tuple(names.get("shortNames", ())),
                categories=tuple(names.get("categories", ())),
                has_status="status" in subresources,
                scale=_scale(subresources.get("scale")),
                schema=structural.compile_schema(source, root=True),
                schema_json=source,
                columns=tuple(_column(column) for column in version.get("additionalPrinterColumns", ())),
                to_storage=None if stored else _to_version(f"{spec['group']}/{storage}"),
                from_storage=None if stored else _to_version(f"{spec['group']}/{version['name']}"),
                selectable=frozenset(f["jsonPath"].lstrip(".") for f in version.get("selectableFields", ())),
                list_kind_name=names.get("listKind", ""),
            )
        )  # fmt: skip
    return found


def _scale(source: Json | None) -> Scale | None:
    if source is None:
        return None
    selector = source.get("labelSelectorPath")
    return Scale(
        source["specReplicasPath"].lstrip("."), source["statusReplicasPath"].lstrip("."),
        selector.lstrip(".") if selector else None,
    )  # fmt: skip


def _column(source: Json) -> Column:
    return Column(
        source["name"], source["type"], source["jsonPath"], source.get("priority", 0), source.get("format", ""),
        source.get("description", ""),
    )  # fmt: skip


def complete(obj: Json) -> None:
    """Fill in what the server fills in: names, list kind, and the conditions of an accepted CRD."""
    spec = obj["spec"]
    names = spec.setdefault("names", {})
    names.setdefault("singular", names.get("kind", "").lower())
    names.setdefault("listKind", f"{names.get('kind', '')}List")
    spec.setdefault("conversion", {"strategy": "None"})
    status = obj.setdefault("status", {})
    storage = [version["name"] for version in spec.get("versions", ()) if version.get("storage")]
    status["acceptedNames"] = dict(names)
    status["storedVersions"] = list(dict.fromkeys([*status.get("storedVersions", ()), *storage]))
    if not status.get("conditions"):
        moment = now()
        status["conditions"] = [
            {
                "type": kind, "status": "True", "lastTransitionTime": moment, "reason": reason, "message": message,
            }
            for kind, reason, message in (
                ("NamesAccepted", "NoConflicts", "no conflicts found"),
                ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            )
        ]  # fmt: skip


def check(obj: Json, old: Json | None) -> list[FieldError]:
    """What is wrong with a CRD."""
    spec = obj["spec"]
    found: list[FieldError] = []
    names = spec.get("names", {})
    found += [errors.required(f"spec.names.{name}") for name in ("plural", "kind") if not names.get(name)]
    if not spec.get("group"):
        found.append(errors.required("spec.group"))
    if found:
        return found
    wanted = f"{names['plural']}.{spec['group']}"
    if obj["metadata"]["name"] != wanted:
        found.append(
            errors.invalid("metadata.name", obj["metadata"]["name"], 'must be spec.names.plural+"."+spec.group')
        )
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        found.append(errors.not_supported("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced")))
    if old is not None:
        same = (("spec.group", "group"), ("spec.scope", "scope"))
        found += [
            errors.invalid(path, spec.get(name), "field is immutable")
            for path, name in same
            if spec.get(name) != old["spec"].get(name)
        ]
    if spec.get("conversion", {}).get("strategy", "None") != "None":
        text = "this server converts between versions with strategy None only"
        found.append(errors.forbidden_field("spec.conversion.strategy", text))
    versions = spec.get("versions") or []
    if sum(bool(version.get("storage")) for version in versions) != 1:
        found.append(
            errors.invalid("spec.versions", len(versions), "must have exactly one version marked as storage version")
        )
    for index, version in enumerate(versions):
        found += _check_version(version, f"spec.versions[{index}]")
    return found


def _check_version(version: Json, path: str) -> list[FieldError]:
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    where = f"{path}.schema.openAPIV3Schema"
    if not isinstance(schema, dict):
        return [errors.required(where, "schemas are required")]
    found: list[FieldError] = []
    if schema.get("type") != "object":
        found.append(errors.invalid(f"{where}.type", schema.get("type", ""), "must be object at the root"))
    _check_schema(schema, where, found)
    return found


_UNKNOWN_TO_STRUCTURAL = (
    "$ref", "definitions", "dependencies", "deprecated", "discriminator", "id", "patternProperties", "readOnly",
    "writeOnly", "xml",
)  # fmt: skip


def _check_schema(schema: Json, path: str, found: list[FieldError]) -> None:
    """The rules of structural schemas that a hand-written or generated CRD is likely to break."""
    found += [
        errors.forbidden_field(f"{path}.{name}", "must not be set in a structural schema")
        for name in _UNKNOWN_TO_STRUCTURAL
        if name in schema
    ]
    typeless = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if not schema.get("type") and not typeless:
        found.append(errors.required(f"{path}.type", "must not be empty for specified object fields"))
    if schema.get("properties") and schema.get("additionalProperties"):
        text = "must not be used together with properties"
        found.append(errors.forbidden_field(f"{path}.additionalProperties", text))
    if schema.get("type") == "array" and "items" not in schema:
        found.append(errors.required(f"{path}.items", "must be specified"))
    if schema.get("x-kubernetes-list-type") == "map" and not schema.get("x-kubernetes-list-map-keys"):
        text = "must not be empty if x-kubernetes-list-type is map"
        found.append(errors.required(f"{path}.x-kubernetes-list-map-keys", text))
    if pattern := schema.get("pattern"):
        try:
            formats.go_pattern(pattern)
        except ValueError as error:
            found.append(
                errors.invalid(f"{path}.pattern", pattern, f"must be a valid regular expression, but isn't: {error}")
            )
    for index, rule in enumerate(schema.get("x-kubernetes-validations", ())):
        problem = celrules.problem_of(rule)
        if problem:
            where = f"{path}.x-kubernetes-validations[{index}].{problem[0]}"
            found.append(errors.invalid(where, rule.get(problem[0], ""), problem[1]))
    _check_default(schema, path, found)
    for name, below in schema.get("properties", {}).items():
        _check_schema(below, f"{path}.properties[{name}]", found)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            _check_schema(schema[name], f"{path}.{name}", found)


def _check_default(schema: Json, path: str, found: list[FieldError]) -> None:
    if "default" not in schema:
        return
    try:
        compiled = structural.compile_schema(schema)
    except ValueError:
        return  # Its pattern is reported above.
    value = structural.apply_defaults(schema["default"], compiled)
    found += structural.validate(value, compiled, f"{path}.default")
