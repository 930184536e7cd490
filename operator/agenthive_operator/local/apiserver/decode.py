"""Reading what a client sent for a built-in kind: types, unknown fields, required fields, canonical values."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Any

from .errors import FieldError, Json, bad_request, required
from .quantity import canonical_quantity
from .typing_tree import Node

_GO_KIND = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


class Decoder:
    """Decodes one object.

    Args:
        kind: For messages.
        version: For messages.
        canonical: Bring quantities into their canonical form. Server-side apply compares them as they were sent.

    Attributes:
        unknown: Paths of fields the kind does not have; they are left out of the result.
        missing: Required fields that are not there.
    """

    def __init__(self, kind: str, version: str, *, canonical: bool = True) -> None:
        self.kind = kind
        self.canonical = canonical
        self.version = version
        self.unknown: list[str] = []
        self.missing: list[FieldError] = []

    def decode(self, obj: Json, node: Node) -> Json:
        """``obj`` with nulls and unknown fields left out and values in canonical form; a new object.

        Raises:
            ApiError: 400 where a value has the wrong type.
        """
        # These two lead, so that a list can leave them out without looking further.
        found: Json = {key: obj[key] for key in ("apiVersion", "kind") if key in obj}
        for key, value in obj.items():
            child = node.fields.get(key)
            if child is None:
                self.unknown.append(key)
            elif value is not None:
                # Status is written by controllers, and nothing in it is required of them.
                found[key] = self._value(value, child, key, strict=key != "status")
        return found

    def _value(self, value: Any, node: Node, path: str, *, strict: bool) -> Any:
        match node.shape:
            case "scalar":
                return self._scalar(value, node.scalar, path)
            case "struct":
                return self._struct(value, node, path, strict=strict)
            case "map":
                if not isinstance(value, dict):
                    raise self._mismatch(value, "object", path)
                child = node.items()
                return {
                    key: self._value(below, child, f"{path}.{key}", strict=strict)
                    for key, below in value.items()
                    if below is not None or child.shape == "scalar"
                }
            case "list":
                if not isinstance(value, list):
                    raise self._mismatch(value, "array", path)
                child = node.items()
                return [self._value(item, child, f"{path}[{i}]", strict=strict) for i, item in enumerate(value)]
        return value

    def _struct(self, value: Any, node: Node, path: str, *, strict: bool) -> Json:
        if not isinstance(value, dict):
            raise self._mismatch(value, "object", path)
        found: Json = {}
        fields = node.fields
        for key, below in value.items():
            child = fields.get(key)
            if child is None:
                self.unknown.append(f"{path}.{key}")
            elif below is not None:
                found[key] = self._value(below, child, f"{path}.{key}", strict=strict)
        if strict and node.required:
            self.missing += [required(f"{path}.{name}") for name in node.required if name not in found]
        return found

    def _scalar(self, value: Any, scalar: str, path: str) -> Any:
        if value is None:
            return ""
        match scalar:
            case "str":
                if not isinstance(value, str):
                    raise self._mismatch(value, "string", path)
            case "bool":
                if not isinstance(value, bool):
                    raise self._mismatch(value, "bool", path)
            case "int":
                if isinstance(value, float) and value.is_integer():
                    return int(value)
                if isinstance(value, bool) or not isinstance(value, int):
                    raise self._mismatch(value, "int", path)
            case "float":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise self._mismatch(value, "float64", path)
            case "quantity":
                return self._quantity(value, path)
            case "datetime":
                return self._time(value, path)
            case "bytes":
                return self._bytes(value, path)
        return value

    def _quantity(self, value: Any, path: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._mismatch(value, "string", path)
        try:
            canonical = canonical_quantity(str(value))
            return canonical if self.canonical else value
        except ValueError as error:
            raise self._refusal(path, str(error)) from error

    def _time(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise self._mismatch(value, "string", path)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise self._refusal(path, f'parsing time "{value}": it must look like 2006-01-02T15:04:05Z') from error
        if moment.tzinfo is None:
            raise self._refusal(path, f'parsing time "{value}": the time zone is missing')
        micro = path.rpartition(".")[2] in _MICRO_TIMES
        return timestamp(moment, micro=micro)

    def _bytes(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise self._mismatch(value, "string", path)
        try:
            return base64.b64encode(base64.b64decode(re.sub(r"[\r\n]", "", value), validate=True)).decode()
        except (binascii.Error, ValueError) as error:
            raise self._refusal(path, f"illegal base64 data: {error}") from error

    def _mismatch(self, value: Any, wanted: str, path: str) -> Exception:
        sent = _GO_KIND.get(type(value), type(value).__name__)
        return self._refusal(path, f"json: cannot unmarshal {sent} into Go struct field of type {wanted}")

    def _refusal(self, path: str, why: str) -> Exception:
        return bad_request(
            f'{self.kind} in version "{self.version}" cannot be handled as a {self.kind}: .{path}: {why}'
        )


# The fields of type MicroTime.
_MICRO_TIMES = {"acquireTime", "renewTime", "eventTime", "lastObservedTime"}


def timestamp(moment: datetime, *, micro: bool = False) -> str:
    """RFC 3339 in UTC, whole seconds, or microseconds as in Leases and Events."""
    text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment.microsecond:06d}Z" if micro else f"{text}Z"


def now() -> str:
    """The time as metadata holds it."""
    return timestamp(datetime.now(UTC))
