"""Errors of the API, worded as the real API server words them, and their Status bodies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One cause of an Invalid answer.

    Attributes:
        reason: ``FieldValueRequired``, ``FieldValueInvalid`` …
        field: Path such as ``spec.containers[0].name``.
        message: ``Required value: …``.
    """

    reason: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"

    def cause(self) -> Json:
        return {"reason": self.reason, "message": self.message, "field": self.field}


def shown(value: object) -> str:
    """A bad value as error messages show it: text quoted, everything else as JSON."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS).decode()


def _with(kind: str, detail: str) -> str:
    return f"{kind}: {detail}" if detail else kind


def required(field: str, detail: str = "") -> FieldError:
    return FieldError("FieldValueRequired", field, _with("Required value", detail))


def invalid(field: str, value: object, detail: str = "") -> FieldError:
    return FieldError("FieldValueInvalid", field, _with(f"Invalid value: {shown(value)}", detail))


def type_invalid(field: str, value: object, detail: str) -> FieldError:
    return FieldError("FieldValueTypeInvalid", field, f"Invalid value: {shown(value)}: {detail}")


def not_supported(field: str, value: object, supported: Iterable[object]) -> FieldError:
    choices = ", ".join(shown(choice) for choice in supported)
    return FieldError(
        "FieldValueNotSupported", field, f"Unsupported value: {shown(value)}: supported values: {choices}"
    )


def duplicate(field: str, value: object) -> FieldError:
    return FieldError("FieldValueDuplicate", field, f"Duplicate value: {shown(value)}")


def forbidden_field(field: str, detail: str) -> FieldError:
    return FieldError("FieldValueForbidden", field, f"Forbidden: {detail}")


def too_long(field: str, limit: int) -> FieldError:
    return FieldError("FieldValueTooLong", field, f"Too long: may not be more than {limit} bytes")


def too_many(field: str, actual: int, limit: int) -> FieldError:
    return FieldError("FieldValueTooMany", field, f"Too many: {actual}: must have at most {limit} items")


class ApiError(Exception):
    """A request that is refused: becomes a Status body with ``code``."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> Json:
        """The Status object of this error."""
        body: Json = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message,
        }  # fmt: skip
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


def resource_name(group: str, plural: str) -> str:
    """``agents.agenthive.dev``, or just ``pods`` in the core group."""
    return f"{plural}.{group}" if group else plural


def _details(group: str, what: str, name: str) -> Json:
    found = {"name": name, "group": group, "kind": what}
    return {key: value for key, value in found.items() if value}


def not_found(group: str, plural: str, name: str) -> ApiError:
    text = f'{resource_name(group, plural)} "{name}" not found'
    return ApiError(404, "NotFound", text, _details(group, plural, name))


def no_such_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(group: str, plural: str, name: str) -> ApiError:
    text = f'{resource_name(group, plural)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", text, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str) -> ApiError:
    text = f'Operation cannot be fulfilled on {resource_name(group, plural)} "{name}": {why}'
    return ApiError(409, "Conflict", text, _details(group, plural, name))


def precondition_failed(group: str, kind: str, name: str, why: str) -> ApiError:
    """As ``conflict``; a delete names the kind and not the resource."""
    text = f'Operation cannot be fulfilled on {resource_name(group, kind)} "{name}": {why}'
    return ApiError(409, "Conflict", text, _details(group, kind, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def unprocessable(group: str, kind: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422 with one cause for each error."""
    texts = list(dict.fromkeys(str(error) for error in errors))
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    what = f"{kind}.{group}" if group else kind
    details = _details(group, kind, name) | {"causes": [error.cause() for error in errors]}
    return ApiError(422, "Invalid", f'{what} "{name}" is invalid: {listed}', details)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def forbidden(group: str, plural: str, name: str, why: str, causes: Sequence[Json] = ()) -> ApiError:
    text = f'{resource_name(group, plural)} "{name}" is forbidden: {why}'
    details = _details(group, plural, name)
    if causes:
        details["causes"] = list(causes)
    return ApiError(403, "Forbidden", text, details)


def gone(message: str) -> ApiError:
    return ApiError(410, "Expired", message)


def method_not_allowed() -> ApiError:
    text = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", text, {})


def unsupported_media_type(message: str) -> ApiError:
    return ApiError(415, "UnsupportedMediaType", message)


def not_acceptable(kinds: str) -> ApiError:
    text = f"only the following media types are accepted: {kinds}"
    return ApiError(406, "NotAcceptable", text)


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def internal(message: str) -> ApiError:
    return ApiError(500, "InternalError", message)
