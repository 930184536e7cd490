"""Who may speak with the pods of a hive: what becomes NetworkPolicies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from agenthive_operator.api import schema as s
from agenthive_operator.api.meta import ApiModel

MAX_PEERS = 32


def _any_object(description: str) -> dict[str, Any]:
    return {"type": "object", "description": description, "x-kubernetes-preserve-unknown-fields": True}


# As far as the rules need it; the rest is checked by the API server when the policy is applied.
_PEER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "podSelector": _any_object("Pods by label; without namespaceSelector those of the hive's namespace."),
        "namespaceSelector": _any_object("Namespaces by label; all of their pods, or those that podSelector selects."),
        "ipBlock": {
            "type": "object",
            "description": "A range of addresses outside of the cluster.",
            "required": ["cidr"],
            "properties": {
                "cidr": {"type": "string", "minLength": 1, "maxLength": 64, "description": "Range, e.g. 10.9.0.0/16."},
                "except": {
                    "type": "array",
                    "description": "Ranges within cidr that are left out.",
                    "maxItems": MAX_PEERS,
                    **s.atomic(),
                    "items": {"type": "string", "maxLength": 64},
                },
            },
        },
    },
    **s.rules(
        s.Rule(
            "has(self.podSelector) || has(self.namespaceSelector) || has(self.ipBlock)",
            "a peer needs a podSelector, a namespaceSelector or an ipBlock; namespaceSelector: {} is every pod",
        ),
        s.Rule(
            "!has(self.ipBlock) || !(has(self.podSelector) || has(self.namespaceSelector))",
            "a peer is either an ipBlock or selected by podSelector and namespaceSelector: make two of it",
        ),
    ),
}
_EGRESS_RULE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "to": {
            "type": "array",
            "description": "Whom to reach; absent means anybody on these ports.",
            "maxItems": MAX_PEERS,
            **s.atomic(),
            "items": _PEER,
        },
        "ports": {
            "type": "array",
            "description": "On which ports (port, endPort, protocol); absent means all.",
            "maxItems": MAX_PEERS,
            **s.atomic(),
            "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    },
    **s.rules(
        s.Rule(
            "(has(self.to) && self.to.size() > 0) || (has(self.ports) && self.ports.size() > 0)",
            "a rule without to and ports would allow everything: write egress: open, or name peers or ports",
        )
    ),
}


class NetworkPolicySpec(ApiModel):
    """NetworkPolicies of a hive: its servers are reached by its agents and the operator only."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                "!has(self.allowEgress) || self.allowEgress.size() == 0 || (has(self.egress) && self.egress == 'deny')",
                "allowEgress has no effect while egress is open: write egress: deny, or leave allowEgress out",
                ".allowEgress",
            )
        )
    )

    enabled: bool = Field(True, description="Make NetworkPolicies; they take effect where the network enforces them.")
    egress: Literal["open", "deny"] = Field(
        "open",
        description="Where agents may connect to: anywhere (open), or to DNS, the hive's managed servers and what "
        "allowEgress lists (deny).",
    )
    allow_egress: Annotated[
        tuple[Annotated[dict[str, Any], WithJsonSchema(_EGRESS_RULE)], ...],
        Field(
            max_length=MAX_PEERS,
            description="Rules of a NetworkPolicy's egress (to, ports) that agents need beside, where egress is deny; "
            "external servers are not known by address and belong here.",
            json_schema_extra=s.atomic(),
        ),
    ] = ()
    metrics_from: Annotated[
        tuple[Annotated[dict[str, Any], WithJsonSchema(_PEER)], ...],
        Field(
            max_length=MAX_PEERS,
            description="Peers of a NetworkPolicy (namespaceSelector, podSelector, ipBlock) that may read the metrics "
            "of agents; empty means nobody but the kubelet reaches an agent's pods.",
            json_schema_extra=s.atomic(),
        ),
    ] = ()
