"""``spec.podTemplate`` of an Agent: a partial pod template, of which only what the rules need is in the schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, WithJsonSchema

from agenthive_operator.api import schema as s
from agenthive_operator.api.meta import ApiModel

AGENT_CONTAINER = "agent"

_ENV: dict[str, Any] = {
    "type": "array",
    "description": "Environment variables.",
    "maxItems": s.MAX_ENV,
    **s.list_map("name"),
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 256, "description": "Name of the variable."}
        },
        "x-kubernetes-preserve-unknown-fields": True,
        **s.rules(s.RESERVED_ENV),
    },
}


def _containers(description: str, properties: dict[str, Any], *rules: s.Rule) -> dict[str, Any]:
    """A list of containers of which the schema knows the name, the environment and ``properties``."""
    return {
        "type": "array",
        "description": description,
        "maxItems": s.MAX_CONTAINERS,
        **s.list_map("name"),
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": s.DNS_LABEL_MAX,
                    "description": "Name of the container.",
                },
                "env": _ENV,
                **properties,
            },
            "x-kubernetes-preserve-unknown-fields": True,
            **(s.rules(*rules) if rules else {}),
        },
    }


def _strings(description: str) -> dict[str, Any]:
    return {
        "type": "array",
        "description": description,
        "maxItems": s.MAX_ARGS,
        **s.atomic(),
        "items": {"type": "string", "maxLength": s.MAX_ENV_VALUE},
    }


POD_SPEC_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "containers": _containers(
            f"Containers; the one named {AGENT_CONTAINER} is merged into the agent's, others are sidecars.",
            {
                "command": _strings("Command of a sidecar."),
                "args": _strings("Arguments of a sidecar."),
            },
            s.Rule(
                f"self.name != '{AGENT_CONTAINER}' || !(has(self.command) || has(self.args))",
                f"the command of the container {AGENT_CONTAINER} is the Agent's spec.entrypoint or spec.command/args:"
                " set it there",
            ),
        ),
        "initContainers": _containers(
            "Init containers.",
            {},
            s.Rule(
                f"self.name != '{AGENT_CONTAINER}'",
                f"{AGENT_CONTAINER} is the name of the agent's own container: name the init container otherwise",
                ".name",
            ),
        ),
    },
    "x-kubernetes-preserve-unknown-fields": True,
}

_OWN_LABELS = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app.kubernetes.io/managed-by",
    "pod-template-hash",
)

Labels = Annotated[
    dict[str, Annotated[str, Field(max_length=s.LABEL_VALUE_MAX)]],
    Field(
        max_length=s.MAX_LABELS,
        description="Labels added to the pods.",
        json_schema_extra=s.rules(
            s.Rule(
                f"self.all(k, !k.startsWith('agenthive.dev/') && !(k in [{', '.join(repr(k) for k in _OWN_LABELS)}]))",
                "labels agenthive.dev/*, pod-template-hash and app.kubernetes.io/{name,instance,component,managed-by}"
                " select the operator's pods: choose other labels",
            )
        ),
    ),
]
Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=s.MAX_ENV_VALUE)]],
    Field(max_length=s.MAX_LABELS, description="Annotations added to the pods."),
]


class PodTemplateMetadata(ApiModel):
    """Metadata added to an agent's pods."""

    labels: Labels = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)


class PodTemplate(ApiModel):
    """A partial pod template that is merged into the one the operator makes."""

    model_config = ConfigDict(extra="ignore")

    metadata: PodTemplateMetadata = Field(
        default_factory=PodTemplateMetadata, description="Labels and annotations added to the pods."
    )
    spec: Annotated[dict[str, Any], WithJsonSchema(POD_SPEC_SCHEMA)] = Field(
        default_factory=dict,
        description="Any part of a pod's spec, merged into the operator's: sidecars, volumes, affinity, tolerations …",
    )
