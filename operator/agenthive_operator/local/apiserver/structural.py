"""The schema of a custom resource: compiled once, then used to prune, default and validate objects.

Error texts are those of the API server, which has them from go-openapi.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

from . import formats
from .errors import (
    FieldError,
    Json,
    duplicate,
    invalid,
    not_supported,
    required,
    shown,
    too_long,
    too_many,
    type_invalid,
)  # fmt: skip
from .typing_tree import Node

_ABSENT = object()


@dataclass(slots=True, eq=False)
class Rule:
    """One entry of ``x-kubernetes-validations``."""

    rule: str
    message: str = ""
    message_expression: str = ""
    reason: str = "FieldValueInvalid"
    field_path: str = ""
    optional_old_self: bool = False


@dataclass(eq=False)
class Schema:
    """One node of a structural schema."""

    type: str = ""
    nullable: bool = False
    int_or_string: bool = False
    preserve: bool = False
    embedded: bool = False
    properties: dict[str, Schema] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    additional: Schema | None = None
    items: Schema | None = None
    default: Any = _ABSENT
    enum: list[Any] | None = None
    bounds: Json = field(default_factory=dict)
    pattern: re.Pattern[str] | None = None
    pattern_text: str = ""
    format: str = ""
    list_type: str = "atomic"
    list_keys: tuple[str, ...] = ()
    atomic: bool = False
    rules: list[Rule] = field(default_factory=list)
    all_of: list[Schema] = field(default_factory=list)
    any_of: list[Schema] = field(default_factory=list)
    one_of: list[Schema] = field(default_factory=list)
    negated: Schema | None = None
    root: bool = False

    @cached_property
    def node(self) -> Node:
        """The same as merging sees it."""
        if self.items is not None:
            return Node(
                "list", item=self.items.node, topology=self.list_type,  # type: ignore[arg-type]
                keys=self.list_keys, key_defaults=self._key_defaults(),
            )  # fmt: skip
        if self.properties or self.root:
            fields = {name: schema.node for name, schema in self.properties.items()}
            if self.root:
                fields |= {"metadata": _metadata(), "apiVersion": _TEXT, "kind": _TEXT}
            return Node("struct", fields=fields, preserve=self.preserve, atomic=self.atomic)
        if self.additional is not None:
            return Node("map", item=self.additional.node, atomic=self.atomic)
        if self.type == "object" or self.preserve:
            return Node("any", atomic=self.atomic)
        return _TEXT

    def _key_defaults(self) -> Json:
        assert self.items is not None
        found = {}
        for key in self.list_keys:
            schema = self.items.properties.get(key)
            if schema is not None and schema.default is not _ABSENT:
                found[key] = schema.default
        return found

    @cached_property
    def has_defaults(self) -> bool:
        """Whether defaulting can change anything here or below."""
        return self.default is not _ABSENT or any(below.has_defaults for below in self.below())

    @cached_property
    def has_rules(self) -> bool:
        """Whether CEL rules stand here or below."""
        return bool(self.rules) or any(below.has_rules for below in self.below())

    def below(self) -> list[Schema]:
        found = list(self.properties.values())
        return found + [below for below in (self.additional, self.items) if below is not None]


_TEXT = Node("scalar", scalar="any")


def _metadata() -> Node:
    from .builtin_types import metadata_type  # noqa: PLC0415  only schemas of whole objects need it

    return metadata_type()


_BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems",
    "maxItems", "minProperties", "maxProperties",
)  # fmt: skip


def compile_schema(source: Json, *, root: bool = False) -> Schema:
    """A schema as the CRD writes it, ready for use; ``root`` for that of whole objects.

    Raises:
        ValueError: A pattern that does not compile.
    """
    found = Schema(
        type=source.get("type", ""),
        nullable=bool(source.get("nullable")),
        int_or_string=bool(source.get("x-kubernetes-int-or-string")),
        preserve=bool(source.get("x-kubernetes-preserve-unknown-fields")),
        embedded=bool(source.get("x-kubernetes-embedded-resource")),
        required=tuple(source.get("required", ())),
        enum=source.get("enum"),
        bounds={key: source[key] for key in _BOUNDS if key in source},
        pattern_text=source.get("pattern", ""),
        format=source.get("format", ""),
        list_type=source.get("x-kubernetes-list-type", "atomic"),
        list_keys=tuple(source.get("x-kubernetes-list-map-keys", ())),
        atomic=source.get("x-kubernetes-map-type") == "atomic",
        rules=[_rule(rule) for rule in source.get("x-kubernetes-validations", ())],
        root=root,
    )
    if "default" in source:
        found.default = source["default"]
    if found.pattern_text:
        found.pattern = formats.go_pattern(found.pattern_text)
    found.properties = {name: compile_schema(schema) for name, schema in source.get("properties", {}).items()}
    additional = source.get("additionalProperties")
    if additional:
        found.additional = Schema(preserve=True) if additional is True else compile_schema(additional)
    if "items" in source:
        found.items = compile_schema(source["items"])
    found.all_of = [compile_schema(schema) for schema in source.get("allOf", ())]
    found.any_of = [compile_schema(schema) for schema in source.get("anyOf", ())]
    found.one_of = [compile_schema(schema) for schema in source.get("oneOf", ())]
    if "not" in source:
        found.negated = compile_schema(source["not"])
    if root:
        for name in ("apiVersion", "kind", "metadata"):
            found.properties.pop(name, None)
    return found


def _rule(source: Json) -> Rule:
    return Rule(
        source["rule"], source.get("message", ""), source.get("messageExpression", ""),
        source.get("reason") or "FieldValueInvalid", source.get("fieldPath", ""), bool(source.get("optionalOldSelf")),
    )  # fmt: skip


def prune(value: Any, schema: Schema, path: str, unknown: list[str]) -> Any:
    """``value`` without the fields the schema does not have; their paths go to ``unknown``.

    Nulls are left out where the field is not nullable.
    """
    if isinstance(value, dict):
        if schema.preserve and not schema.properties and schema.additional is None:
            return value
        found: Json = {}
        for key, below in value.items():
            child = schema.properties.get(key) or schema.additional
            if child is None:
                if schema.preserve or ((schema.root or schema.embedded) and key in ("apiVersion", "kind", "metadata")):
                    found[key] = below
                else:
                    unknown.append(f"{path}.{key}" if path else key)
            elif below is None and not child.nullable:
                continue
            else:
                found[key] = prune(below, child, f"{path}.{key}" if path else key, unknown)
        return found
    if isinstance(value, list) and schema.items is not None:
        return [prune(item, schema.items, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    return value


def apply_defaults(value: Any, schema: Schema) -> Any:
    """``value`` with defaults filled in; shares what it does not change."""
    if not schema.has_defaults:
        return value
    if isinstance(value, dict):
        found = dict(value)
        for name, child in schema.properties.items():
            if name not in found:
                if child.default is _ABSENT:
                    continue
                found[name] = orjson.loads(orjson.dumps(child.default))
            found[name] = apply_defaults(found[name], child)
        if schema.additional is not None and schema.additional.has_defaults:
            for name in found.keys() - schema.properties.keys():
                found[name] = apply_defaults(found[name], schema.additional)
        return found
    if isinstance(value, list) and schema.items is not None:
        return [apply_defaults(item, schema.items) for item in value]
    return value


def validate(value: Any, schema: Schema, path: str, old: Any = _ABSENT) -> list[FieldError]:
    """What is wrong with ``value``. What did not change from ``old`` is not held against it."""
    if old is not _ABSENT and old == value:
        return []
    if value is None and schema.nullable:
        return []
    problem = _type_problem(value, schema, path)
    if problem is not None:
        return [problem]
    errors: list[FieldError] = []
    if schema.enum is not None and value not in schema.enum:
        errors.append(not_supported(path, value, schema.enum))
    if isinstance(value, str):
        errors += _text(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        errors += _number(value, schema, path)
    elif isinstance(value, list):
        errors += _list(value, schema, path, old)
    elif isinstance(value, dict):
        errors += _object(value, schema, path, old)
    return errors + _combined(value, schema, path)


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "boolean": (bool,), "array": (list,), "object": (dict,), "integer": (int,),
    "number": (int, float),
}  # fmt: skip


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for name in ("string", "array", "object", "integer", "number"):
        if isinstance(value, _TYPES[name]):
            return name
    raise AssertionError(f"{value!r} is not JSON")


def _type_problem(value: Any, schema: Schema, path: str) -> FieldError | None:
    if schema.int_or_string:
        wanted = "integer,string"
        fits = isinstance(value, int | str) and not isinstance(value, bool)
    elif schema.type:
        wanted = schema.type
        fits = isinstance(value, _TYPES[wanted]) and (wanted == "boolean") == isinstance(value, bool)
        if wanted == "integer" and isinstance(value, float) and value.is_integer():
            fits = True
    else:
        return None
    if fits:
        return None
    sent = _type_name(value)
    return type_invalid(path, sent, f'{path} in body must be of type {wanted}: "{sent}"')


def _text(value: str, schema: Schema, path: str) -> list[FieldError]:
    """The first thing wrong with a text; the API server looks no further either."""
    bounds = schema.bounds
    if "maxLength" in bounds and len(value) > bounds["maxLength"]:
        return [too_long(path, bounds["maxLength"])]
    if "minLength" in bounds and len(value) < bounds["minLength"]:
        return [invalid(path, value, f"{path} in body should be at least {bounds['minLength']} chars long")]
    if schema.pattern is not None and not schema.pattern.search(value):
        return [invalid(path, value, f"{path} in body should match '{schema.pattern_text}'")]
    if schema.format and not formats.fits(schema.format, value):
        return [invalid(path, value, f"{path} in body must be of type {schema.format}: {shown(value)}")]
    return []


def _number(value: float, schema: Schema, path: str) -> list[FieldError]:
    errors = []
    bounds = schema.bounds
    if (low := bounds.get("minimum")) is not None:
        strict = bounds.get("exclusiveMinimum", False)
        if value < low or (strict and value == low):
            text = "greater than" if strict else "greater than or equal to"
            errors.append(invalid(path, value, f"{path} in body should be {text} {_plain(low)}"))
    if (high := bounds.get("maximum")) is not None:
        strict = bounds.get("exclusiveMaximum", False)
        if value > high or (strict and value == high):
            text = "less than" if strict else "less than or equal to"
            errors.append(invalid(path, value, f"{path} in body should be {text} {_plain(high)}"))
    if (step := bounds.get("multipleOf")) is not None and value % step != 0:
        errors.append(invalid(path, value, f"{path} in body should be a multiple of {_plain(step)}"))
    if schema.format in ("int32", "int64") and isinstance(value, int):
        limit = 1 << (31 if schema.format == "int32" else 63)
        if not -limit <= value < limit:
            errors.append(invalid(path, value, f"Checked value must be of type integer with format {schema.format}"))
    return errors


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _list(value: list[Any], schema: Schema, path: str, old: Any) -> list[FieldError]:
    bounds = schema.bounds
    errors = []
    if "maxItems" in bounds and len(value) > bounds["maxItems"]:
        return [too_many(path, len(value), bounds["maxItems"])]
    if "minItems" in bounds and len(value) < bounds["minItems"]:
        errors.append(invalid(path, len(value), f"{path} in body should have at least {bounds['minItems']} items"))
    if schema.items is None:
        return errors
    before: dict[bytes, Any] = {}
    if schema.list_type in ("set", "map"):
        if isinstance(old, list):
            before = {item_key(item, schema): item for item in old}
        seen = set()
        for index, item in enumerate(value):
            key = item_key(item, schema)
            if key in seen:
                shown = orjson.loads(key) if schema.list_type == "map" else item
                errors.append(duplicate(f"{path}[{index}]", shown))
            seen.add(key)
    for index, item in enumerate(value):
        was = before.get(item_key(item, schema), _ABSENT) if before else _ABSENT
        errors += validate(item, schema.items, f"{path}[{index}]", was)
    return errors


def item_key(item: Any, schema: Schema) -> bytes:
    """What makes an item of a ``set`` or ``map`` list unique."""
    if schema.list_type == "map" and isinstance(item, dict):
        defaults = schema.node.key_defaults
        item = {key: item.get(key, defaults.get(key)) for key in schema.list_keys}
    return orjson.dumps(item, option=orjson.OPT_SORT_KEYS)


def _object(value: Json, schema: Schema, path: str, old: Any) -> list[FieldError]:
    bounds = schema.bounds
    errors = []
    prefix = f"{path}." if path else ""
    if "maxProperties" in bounds and len(value) > bounds["maxProperties"]:
        errors.append(too_many(path, len(value), bounds["maxProperties"]))
    if "minProperties" in bounds and len(value) < bounds["minProperties"]:
        text = f"{path} in body should have at least {bounds['minProperties']} properties"
        errors.append(invalid(path, len(value), text))
    errors += [required(prefix + name) for name in schema.required if name not in value]
    before = old if isinstance(old, dict) else {}
    for name, below in value.items():
        child = schema.properties.get(name)
        if child is None:
            child = schema.additional
            if child is None:
                continue
        errors += validate(below, child, prefix + name, before.get(name, _ABSENT))
    return errors


def _combined(value: Any, schema: Schema, path: str) -> list[FieldError]:
    """allOf, anyOf, oneOf, not: their schemas hold value validations only."""
    errors = []
    for part in schema.all_of:
        errors += validate(value, part, path)
    if schema.any_of and all(validate(value, part, path) for part in schema.any_of):
        errors.append(invalid(path, value, f"{path} in body must validate at least one schema (anyOf)"))
    if schema.one_of:
        fitting = sum(not validate(value, part, path) for part in schema.one_of)
        if fitting != 1:
            text = f"{path} in body must validate one and only one schema (oneOf). "
            text += "Found none valid" if fitting == 0 else f"Found {fitting} valid alternatives"
            errors.append(invalid(path, value, text))
    if schema.negated is not None and not validate(value, schema.negated, path):
        errors.append(invalid(path, value, f"{path} in body must not validate the schema (not)"))
    return errors
