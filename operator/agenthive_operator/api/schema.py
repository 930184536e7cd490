"""What turns pydantic fields into fields of a structural Kubernetes schema: list markers and CEL rules.

The helpers return ``json_schema_extra`` values. Rules keep to the functions of the CEL library that every supported
API server has, and every string and list they walk is bounded, so that the server's cost estimate stays within budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VALIDATIONS = "x-kubernetes-validations"

DNS_LABEL_MAX = 63
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
DNS_SUBDOMAIN_MAX = 253
DATA_KEY = r"^[-._a-zA-Z0-9]+$"
ENV_NAME = r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"
QUANTITY = r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
IMAGE = r"^[^\s]+$"
LABEL_VALUE_MAX = 63

# Bounds of lists and maps, wide enough for any real use: they bound the cost of the rules.
MAX_ENV = 256
MAX_ENV_VALUE = 32_768
MAX_REFS = 32
MAX_ARGS = 256
MAX_CONTAINERS = 16
MAX_LABELS = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule of a CRD.

    Attributes:
        rule: The expression; a rule that names ``oldSelf`` is checked on updates only.
        message: What a user reads when it is broken; it says what to write.
        field_path: The field to name in the error, relative to the rule's object, for instance ``.size``.
    """

    rule: str
    message: str
    field_path: str | None = None

    def manifest(self) -> dict[str, str]:
        """The rule as an item of ``x-kubernetes-validations``."""
        item = {"rule": self.rule, "message": self.message}
        if self.field_path is not None:
            item["fieldPath"] = self.field_path
        return item


def rules(*items: Rule) -> dict[str, Any]:
    """``x-kubernetes-validations`` holding ``items``."""
    return {VALIDATIONS: [item.manifest() for item in items]}


def list_map(*keys: str) -> dict[str, Any]:
    """Marks a list of objects that are known by ``keys``: duplicates are refused, appliers own items."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def list_set() -> dict[str, Any]:
    """Marks a list of scalars without duplicates, which appliers own one by one."""
    return {"x-kubernetes-list-type": "set"}


def atomic() -> dict[str, Any]:
    """Marks a list that one applier owns as a whole."""
    return {"x-kubernetes-list-type": "atomic"}


def atomic_map() -> dict[str, Any]:
    """Marks an object that one applier owns as a whole: a reference half of which is another's makes no sense."""
    return {"x-kubernetes-map-type": "atomic"}


IMMUTABLE = "self == oldSelf"
RESERVED_ENV = Rule(
    "!self.name.startsWith('AGENTHIVE_')",
    "AGENTHIVE_* is set by the operator: choose another name, or use the field of the spec that tunes this",
    ".name",
)
