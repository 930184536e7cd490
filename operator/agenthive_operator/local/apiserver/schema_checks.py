"""Decoding, defaulting and validation of one object, whether its kind is built in or comes from a CRD."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from . import builtin_checks, builtin_defaults, celrules, errors, structural
from .builtin_types import metadata_type
from .decode import Decoder
from .errors import ApiError, FieldError, Json
from .kinds import BUILTIN, Kind
from .scale import scale_problems
from .typing_tree import Node

if TYPE_CHECKING:
    from .admission import Admission
    from .writes import Options


def decode_object(kind: Kind, body: Json, options: Options, *, applied: bool = False) -> Json:
    """What the client sent, in the stored form: typed, pruned, a new object down to what may be changed.

    Args:
        kind: What the URL names.
        body: The object.
        options: Say what unknown fields are; warnings go there.
        applied: It is a configuration for server-side apply, where an unknown field is always an error.

    Raises:
        ApiError: 400 for the wrong kind, types, or unknown fields when strict.
    """
    _check_type(kind, body)
    if not isinstance(body.get("metadata", {}), dict):
        raise errors.bad_request("metadata must be an object")
    decoder = Decoder(kind.kind, kind.version, canonical=not applied)
    if kind.schema is not None:
        meta = decoder.decode({"metadata": body.get("metadata", {})}, _metadata_only())
        rest = {key: value for key, value in body.items() if key != "metadata"}
        obj = structural.prune(rest, kind.schema, "", decoder.unknown)
        obj["metadata"] = meta["metadata"]
    else:
        obj = decoder.decode(body, kind.node)
        obj.setdefault("metadata", {})
    if decoder.unknown:
        _report_unknown(kind, obj, decoder.unknown, options, applied=applied)
    obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
    return kind.to_storage(obj) if kind.to_storage else obj


@cache
def _metadata_only() -> Node:
    return Node("struct", fields={"metadata": metadata_type()})


def _check_type(kind: Kind, body: Json) -> None:
    sent, version = body.get("kind"), body.get("apiVersion")
    if not sent or not version:
        missing = "Kind" if not sent else "apiVersion"
        raise errors.bad_request(f"Object '{missing}' is missing in the body")
    if version != kind.api_version:
        text = f"the API version in the data ({version}) does not match the expected API version ({kind.api_version})"
        raise errors.bad_request(text)
    if sent != kind.kind:
        raise errors.bad_request(f"the kind in the data ({sent}) does not match the expected kind ({kind.kind})")


def _report_unknown(kind: Kind, obj: Json, unknown: list[str], options: Options, *, applied: bool) -> None:
    if applied:
        meta = obj["metadata"]
        fields = "\n".join(f".{path}: field not declared in schema" for path in unknown)
        where = f"{meta.get('namespace', '')}/{meta.get('name', '')}; {kind.api_version}, Kind={kind.kind}"
        raise ApiError(500, "", f"failed to create typed patch object ({where}): {fields}")
    texts = [f'unknown field "{path}"' for path in unknown]
    if options.validation == "Strict":
        raise errors.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
            f"strict decoding error: {', '.join(texts)}"
        )
    if options.validation == "Warn":
        options.warnings += texts


def validate_object(kind: Kind, obj: Json, old: Json | None, admission: Admission, *, sub: str = "") -> Json:
    """The object with defaults, checked.

    Raises:
        ApiError: 422 with every cause.
    """
    problems: list[FieldError]
    if kind.schema is not None:
        rest = {key: value for key, value in obj.items() if key != "metadata"}
        meta = obj["metadata"]
        obj = structural.apply_defaults(rest, kind.schema)
        obj["metadata"] = meta
        problems = builtin_checks.check_metadata(kind, obj, old)
        if old is None:
            found = structural.validate(obj, kind.schema, "")
        else:
            found = structural.validate(obj, kind.schema, "", old)
        problems += found + scale_problems(kind, obj)
        if kind.schema.has_rules:
            # Rules rely on what the schema says of types and sizes.
            if any(problem.reason in _BLOCKING for problem in found):
                problems.append(errors.invalid("<nil>", None, _UNCHECKED))
            else:
                problems += celrules.check(obj, kind.schema, old)
    else:
        decoder = Decoder(kind.kind, kind.version)
        # A copy of our own, so that defaults never reach into what is stored.
        obj = decoder.decode(obj, _storage_node(kind))
        if sub != "status":
            builtin_defaults.apply_defaults(kind, obj, old, admission)
        problems = builtin_checks.check_metadata(kind, obj, old)
        # Workloads say themselves what their spec lacks.
        own = ("spec.selector", "spec.template")
        if sub != "status":
            problems += [
                problem
                for problem in decoder.missing
                if problem.field not in own and not problem.field.startswith("metadata.ownerReferences")
            ]
        problems += builtin_checks.check(kind, obj, old)
    if problems:
        name = obj["metadata"].get("name", "")
        raise errors.unprocessable(kind.group, kind.kind, name, problems)
    return obj


_BLOCKING = (
    "FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid", "FieldValueNotSupported",
)  # fmt: skip
_UNCHECKED = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete "
    "validation"
)


def _storage_node(kind: Kind) -> Node:
    if kind.stored_as:
        return next(other.node for other in BUILTIN if other.resource == kind.stored_as)
    return kind.node
