"""Who may speak with the pods of a hive: what becomes NetworkPolicies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from agenthive_operator.api import schema as s
from agenthive_operator.api.meta import ApiModel

MAX_PEERS = 32

_PRESERVED: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


class NetworkPolicySpec(ApiModel):
    """NetworkPolicies of a hive: its servers are reached by its agents and the operator only."""

    enabled: bool = Field(True, description="Make NetworkPolicies; they take effect where the network enforces them.")
    egress: Literal["open", "deny"] = Field(
        "open",
        description="Where agents may connect to: anywhere (open), or to DNS, the hive's managed servers and what "
        "allowEgress lists (deny).",
    )
    allow_egress: Annotated[
        tuple[Annotated[dict[str, Any], WithJsonSchema(_PRESERVED)], ...],
        Field(
            max_length=MAX_PEERS,
            description="Rules of a NetworkPolicy's egress (to, ports) that agents need beside, where egress is deny; "
            "external servers are not known by address and belong here.",
            json_schema_extra=s.atomic(),
        ),
    ] = ()
    metrics_from: Annotated[
        tuple[Annotated[dict[str, Any], WithJsonSchema(_PRESERVED)], ...],
        Field(
            max_length=MAX_PEERS,
            description="Peers of a NetworkPolicy (namespaceSelector, podSelector, ipBlock) that may read the metrics "
            "of agents; empty means nobody but the kubelet reaches an agent's pods.",
            json_schema_extra=s.atomic(),
        ),
    ] = ()
