"""The few messages that kubectl sends as protobuf and in no other form: ``kubectl create namespace|secret|…``.

The wire format is generic; what the numbers mean is a small table here. What is not in it is refused with 415.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import errors
from .errors import Json

MEDIA = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\x00"


@dataclass(frozen=True, slots=True)
class Field:
    """What a field number means.

    Attributes:
        name: In JSON.
        kind: ``text``, ``bytes``, ``bool``, ``int``, the name of a message, or ``map:`` and one of these.
        many: It may come several times.
    """

    name: str
    kind: str = "text"
    many: bool = False


_META = Field("metadata", "ObjectMeta")

MESSAGES: dict[str, dict[int, Field]] = {
    "ObjectMeta": {
        1: Field("name"), 2: Field("generateName"), 3: Field("namespace"), 5: Field("uid"),
        6: Field("resourceVersion"), 11: Field("labels", "map:text"), 12: Field("annotations", "map:text"),
        13: Field("ownerReferences", "OwnerReference", many=True), 14: Field("finalizers", many=True),
    },
    "OwnerReference": {
        1: Field("kind"), 3: Field("name"), 4: Field("uid"), 5: Field("apiVersion"), 6: Field("controller", "bool"),
        7: Field("blockOwnerDeletion", "bool"),
    },
    "Namespace": {1: _META},
    "ConfigMap": {
        1: _META, 2: Field("data", "map:text"), 3: Field("binaryData", "map:bytes"), 4: Field("immutable", "bool"),
    },
    "Secret": {
        1: _META, 2: Field("data", "map:bytes"), 3: Field("type"), 4: Field("stringData", "map:text"),
        5: Field("immutable", "bool"),
    },
    "ServiceAccount": {1: _META, 4: Field("automountServiceAccountToken", "bool")},
    "SelfSubjectAccessReview": {1: _META, 2: Field("spec", "SelfSubjectAccessReviewSpec")},
    "SelfSubjectAccessReviewSpec": {1: Field("resourceAttributes", "ResourceAttributes")},
    "ResourceAttributes": {
        1: Field("namespace"), 2: Field("verb"), 3: Field("group"), 4: Field("version"), 5: Field("resource"),
        6: Field("subresource"), 7: Field("name"),
    },
    "SelfSubjectReview": {1: _META},
    "DeleteOptions": {
        1: Field("gracePeriodSeconds", "int"), 2: Field("preconditions", "Preconditions"),
        3: Field("orphanDependents", "bool"), 4: Field("propagationPolicy"), 5: Field("dryRun", many=True),
    },
    "Preconditions": {1: Field("uid"), 2: Field("resourceVersion")},
}  # fmt: skip

# What is in a message besides and may be left out: set by the server, or empty when a client creates something.
_IGNORED = {
    "ObjectMeta": {4, 7, 8, 9, 10, 17},
    "Namespace": {2, 3},
    "SelfSubjectAccessReview": {3},
    "SelfSubjectReview": {2},
    "DeleteOptions": {6},
}


def parse(data: bytes) -> Json:
    """An object from the envelope that Kubernetes wraps its protobuf in.

    Raises:
        ApiError: 400 for bytes that are none, 415 for a kind this server knows in JSON and YAML only.
    """
    if not data.startswith(MAGIC):
        raise errors.bad_request("the protobuf body does not start with the mark of Kubernetes")
    envelope = dict(_fields(data[len(MAGIC) :]))
    names = dict(_fields(_as_bytes(envelope.get(1, b""))))
    version = _as_bytes(names.get(1, b"")).decode()
    kind = _as_bytes(names.get(2, b"")).decode()
    if kind not in MESSAGES or kind == "ObjectMeta":
        raise errors.unsupported_media_type(
            f"this server takes {kind or 'this kind'} as JSON or YAML, not as protobuf: write it with "
            "--dry-run=client -o yaml and apply that"
        )
    return {"apiVersion": version, "kind": kind, **_message(_as_bytes(envelope.get(2, b"")), kind)}


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise errors.bad_request("the protobuf body is damaged")
    return value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise errors.bad_request("the protobuf body is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and raw values of one message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise errors.bad_request("the protobuf body is cut off")
            yield number, data[at : at + length]
            at += length
        else:
            raise errors.bad_request(f"the protobuf body has wire type {wire}, which none of these messages has")


def _message(data: bytes, name: str) -> Json:
    known = MESSAGES[name]
    found: Json = {}
    for number, value in _fields(data):
        field = known.get(number)
        if field is None:
            if number not in _IGNORED.get(name, ()):
                text = f"field {number} of {name} is known to this server in JSON and YAML only"
                raise errors.unsupported_media_type(text)
            continue
        if field.kind.startswith("map:"):
            pair = dict(_fields(_as_bytes(value)))
            key = _as_bytes(pair.get(1, b"")).decode()
            found.setdefault(field.name, {})[key] = _value(pair.get(2, b""), field.kind[4:])
        elif field.many:
            found.setdefault(field.name, []).append(_value(value, field.kind))
        else:
            decoded = _value(value, field.kind)
            # Go writes empty text where JSON leaves the field out.
            if decoded != "":
                found[field.name] = decoded
    return found


def _value(value: int | bytes, kind: str) -> Any:
    match kind:
        case "text":
            return _as_bytes(value).decode()
        case "bytes":
            return base64.b64encode(_as_bytes(value)).decode()
        case "bool":
            return bool(value)
        case "int":
            number = int(value) if isinstance(value, int) else 0
            return number - (1 << 64) if number >= 1 << 63 else number
    return _message(_as_bytes(value), kind)
