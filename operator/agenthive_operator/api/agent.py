"""Agent: one kind of worker of a hive, any number of pods."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from agenthive.protocol import MAX_NAME_LENGTH
from agenthive.settings import DNS_LABEL
from agenthive_operator.api import schema as s
from agenthive_operator.api.hive import owner_reference
from agenthive_operator.api.meta import (
    ApiModel,
    Conditions,
    Env,
    EnvFrom,
    LocalObjectReference,
    PullPolicy,
    PullSecrets,
    Resource,
    ResourceRequirements,
)
from agenthive_operator.api.podtemplate import PodTemplate

AGENT_NAME_MAX = 47
# Python allows more than ASCII in identifiers; modules that go into an image or a ConfigMap key do not need it.
ENTRYPOINT = "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*$"

Capability = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$")]
Topic = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$")
]
Argument = Annotated[str, Field(max_length=s.MAX_ENV_VALUE)]


class HiveReference(ApiModel):
    """The hive an Agent belongs to."""

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=DNS_LABEL,
        description="Name of an AgentHive in the same namespace. Immutable.",
        json_schema_extra=s.rules(
            s.Rule(s.IMMUTABLE, "hiveRef.name is immutable: create another Agent to work in another hive")
        ),
    )


class CodeSource(ApiModel):
    """Where an agent's code comes from when it is not in the image."""

    config_map_ref: LocalObjectReference = Field(
        description="ConfigMap whose keys are mounted as files and put on Python's path."
    )


class AgentSpec(ApiModel):
    """What an Agent should be."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                "has(self.entrypoint) != has(self.command)",
                'set exactly one of entrypoint ("module:attribute", run by the runtime)'
                " and command (a program of the image)",
            ),
            s.Rule(
                "!has(self.args) || has(self.command)",
                "args belong to command: an entrypoint takes none",
                ".args",
            ),
        )
    )

    hive_ref: HiveReference = Field(description="The hive this Agent belongs to.")
    entrypoint: str | None = Field(
        None,
        max_length=512,
        description='The Agent object in code as "module:attribute", run by the runtime.',
        json_schema_extra=s.rules(
            s.Rule(
                f"self.matches('{ENTRYPOINT}')",
                'write entrypoint as "module:attribute", for instance "summarizer:agent"',
            )
        ),
    )
    command: tuple[Argument, ...] | None = Field(
        None,
        min_length=1,
        max_length=s.MAX_ARGS,
        description="Program to run instead of an entrypoint.",
        json_schema_extra=s.atomic(),
    )
    args: tuple[Argument, ...] | None = Field(
        None, max_length=s.MAX_ARGS, description="Arguments of command.", json_schema_extra=s.atomic()
    )
    code_from: CodeSource | None = Field(None, description="Code that is not in the image.")
    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        pattern=s.IMAGE,
        description="Image; absent means the hive's agentDefaults.image.",
    )
    image_pull_policy: PullPolicy = None
    image_pull_secrets: PullSecrets = ()
    capabilities: tuple[Capability, ...] = Field(
        (), max_length=64, description="What this agent can do, for others to find.", json_schema_extra=s.list_set()
    )
    topics: tuple[Topic, ...] = Field(
        (),
        max_length=64,
        description="Topics the agent is subscribed to: it gets a copy of each message published there.",
        json_schema_extra=s.list_set(),
    )
    topic_start: Literal["now", "beginning"] = Field(
        "now",
        description="Where a new subscription starts: with what is published from now on, or with all the topic has.",
    )
    concurrency: int = Field(10, ge=1, le=10_000, description="Handlers at a time in one pod.")
    replicas: int = Field(1, ge=0, le=10_000, description="Pods; what kubectl scale and autoscalers set.")
    drain_seconds: int = Field(
        30, ge=0, le=86_400, description="Time running handlers have to finish when a pod stops, seconds."
    )
    env: Env = ()
    env_from: EnvFrom = ()
    resources: ResourceRequirements | None = Field(
        None, description="Compute resources; absent means the hive's agentDefaults.resources."
    )
    service_account_name: str | None = Field(
        None,
        min_length=1,
        max_length=s.DNS_SUBDOMAIN_MAX,
        pattern=s.DNS_SUBDOMAIN,
        description="Service account of the pods; its token is not mounted.",
    )
    pod_template: PodTemplate = Field(
        default_factory=PodTemplate, description="A partial pod template, merged into the operator's."
    )


class AgentStatus(ApiModel):
    """What an Agent is."""

    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that this speaks of.")
    replicas: int | None = Field(None, ge=0, description="Pods that exist.")
    ready_replicas: int | None = Field(None, ge=0, description="Pods that are ready.")
    selector: str | None = Field(None, max_length=1024, description="Label selector of the pods.")
    backlog: int | None = Field(None, ge=0, description="Messages waiting.")
    in_flight: int | None = Field(None, ge=0, description="Messages being handled.")
    oldest_message_time: datetime | None = Field(None, description="When the oldest waiting message was sent.")
    dead_letters: int | None = Field(None, ge=0, description="Messages given up.")
    conditions: Conditions = ()


class Agent(Resource):
    """Agent is one kind of worker of a hive, any number of pods."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                f"self.metadata.name.size() <= {AGENT_NAME_MAX} && self.metadata.name.matches('{DNS_LABEL}')",
                f"name the Agent with at most {AGENT_NAME_MAX} lower-case letters, digits and '-':"
                " its pods and queue are named after it",
            )
        )
    )

    spec: AgentSpec = Field(description="What the Agent should be.")
    status: AgentStatus = Field(default_factory=AgentStatus, description="What the Agent is.")

    def owner(self) -> dict[str, Any]:
        """The owner reference that the Agent's children carry."""
        return owner_reference("Agent", self)
