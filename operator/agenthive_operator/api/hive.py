"""AgentHive: the shared ground of a fleet — its Redis, its PostgreSQL, and the defaults of its agents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from agenthive.settings import DNS_LABEL, CachePolicy, Messaging, PostgresPool, RedisPool, Retention
from agenthive_operator.api import schema as s
from agenthive_operator.api.external import ExternalPostgres, ExternalRedis
from agenthive_operator.api.meta import (
    ApiModel,
    Conditions,
    Env,
    EnvFrom,
    PullPolicy,
    PullSecrets,
    Resource,
    ResourceRequirements,
    SecretKeyReference,
)
from agenthive_operator.api.network import NetworkPolicySpec
from agenthive_operator.api.podtemplate import Annotations, PodTemplate

# `<hive>-postgres-<revision hash>` is the value of a label of the StatefulSet's pods: 63 characters at most.
HIVE_NAME_MAX = 40
DEFAULT_REDIS_IMAGE = "valkey/valkey:8.1"
DEFAULT_POSTGRES_IMAGE = "postgres:18"
DEFAULT_STORAGE_SIZE = "1Gi"
STORAGE_SIZE = r"^[1-9][0-9]{0,14}([KMGTP]i|[kMGTP])?$"


def _storage(of: str, field: str, absent: str) -> str:
    """CEL: ``storage.<field>`` of the managed server ``of`` (self or oldSelf), or ``absent``."""
    return (
        f"(has({of}.managed) && has({of}.managed.storage) && has({of}.managed.storage.{field})"
        f" ? {of}.managed.storage.{field} : '{absent}')"
    )


# What a StatefulSet can not change is immutable while the server stays managed. Moving to an external server and back
# makes a new StatefulSet, so the rules look at transitions from managed to managed only.
_STAYS_MANAGED = "has(self.external) || has(oldSelf.external) || "
_EPHEMERAL = "(has({of}.managed) && has({of}.managed.ephemeral) && {of}.managed.ephemeral)"

SERVER_RULES = (
    s.Rule(
        "!(has(self.managed) && has(self.external))",
        "set either managed (a server that the operator runs) or external (a server of yours), not both",
    ),
    s.Rule(
        _STAYS_MANAGED + _EPHEMERAL.format(of="self") + " == " + _EPHEMERAL.format(of="oldSelf"),
        "managed.ephemeral is immutable: create a new hive, or move to an external server",
    ),
    s.Rule(
        _STAYS_MANAGED
        + _storage("self", "storageClassName", "")
        + " == "
        + _storage("oldSelf", "storageClassName", ""),
        "managed.storage.storageClassName is immutable: create a new hive, or move to an external server",
    ),
    s.Rule(
        _STAYS_MANAGED
        + f"quantity({_storage('self', 'size', DEFAULT_STORAGE_SIZE)})"
        + f".compareTo(quantity({_storage('oldSelf', 'size', DEFAULT_STORAGE_SIZE)})) >= 0",
        "managed.storage.size can grow but not shrink: write at least the present size"
        f" ({DEFAULT_STORAGE_SIZE} where none is set)",
    ),
)


class Storage(ApiModel):
    """The volume of a managed server."""

    size: str = Field(
        DEFAULT_STORAGE_SIZE,
        min_length=1,
        max_length=20,
        pattern=STORAGE_SIZE,
        description="Size of the volume as a whole number with a unit, e.g. 10Gi; it can grow, never shrink.",
    )
    storage_class_name: str | None = Field(
        None,
        min_length=1,
        max_length=s.DNS_SUBDOMAIN_MAX,
        pattern=s.DNS_SUBDOMAIN,
        description="Storage class; absent means the cluster's default. Immutable.",
    )


class ManagedServer(ApiModel):
    """A server that the operator runs as a StatefulSet of one pod: for one machine and for trying out."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                "!(has(self.storage) && has(self.ephemeral) && self.ephemeral)",
                "set either storage (a volume that stays) or ephemeral: true (data goes with the pod), not both",
            )
        )
    )

    storage: Storage | None = Field(None, description="The volume that holds the data.")
    ephemeral: bool = Field(False, description="No volume: data goes with the pod. Immutable.")
    image_pull_secrets: PullSecrets = ()
    resources: ResourceRequirements | None = Field(None, description="Compute resources of the server.")
    annotations: Annotations = Field(
        default_factory=dict,
        description="Annotations of the server's pod and of its volume claim, for tools that back up volumes. A change "
        "restarts the server.",
        json_schema_extra=s.rules(
            s.Rule(
                "self.all(k, !k.matches('^([^/]+[.])?(agenthive[.]dev|kubernetes[.]io|k8s[.]io)/')"
                " || k.startsWith('cluster-autoscaler.kubernetes.io/'))",
                "annotations of agenthive.dev, kubernetes.io and k8s.io belong to the operator and to Kubernetes:"
                " choose others (of these, cluster-autoscaler.kubernetes.io/* may be set)",
            )
        ),
    )


class ManagedRedis(ManagedServer):
    """Redis or Valkey that the operator runs: append-only file on, password, no eviction."""

    image: str = Field(
        DEFAULT_REDIS_IMAGE,
        min_length=1,
        max_length=512,
        pattern=s.IMAGE,
        description="Image with valkey-server or redis-server ≥ 7.2 of the official layout.",
    )


class ManagedPostgres(ManagedServer):
    """PostgreSQL that the operator runs: scram, password in a Secret."""

    image: str = Field(
        DEFAULT_POSTGRES_IMAGE,
        min_length=1,
        max_length=512,
        pattern=s.IMAGE,
        description="Image with PostgreSQL ≥ 14 of the official layout. A new major version does not read old data.",
    )


class CacheSpec(ApiModel):
    """The read-through cache of what agents keep in PostgreSQL, in Redis."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                "!(has(self.urlSecretRef) && has(self.maxBytes))",
                "set either maxBytes (the cache's share of the Redis that carries the messages) or urlSecretRef (a"
                " Redis of its own: bound it there with maxmemory and maxmemory-policy allkeys-lru), not both",
            )
        )
    )

    enabled: bool = Field(True, description=CachePolicy.model_fields["enabled"].description)
    url_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds the URL of a Redis for the cache alone; absent means the one that carries "
        "the messages.",
    )
    max_bytes: int | None = Field(
        None,
        ge=1024,
        le=2**40,
        description=f"{CachePolicy.model_fields['max_bytes'].description} Absent means 64 MiB.",
    )

    @property
    def own_url(self) -> SecretKeyReference | None:
        """Where the URL of the cache's own Redis is; None when the cache has none, or is off."""
        return self.url_secret_ref if self.enabled else None

    @property
    def policy(self) -> CachePolicy:
        """What agents are told."""
        bound = {} if self.max_bytes is None else {"max_bytes": self.max_bytes}
        return CachePolicy(enabled=self.enabled, **bound)


class Cutover(ApiModel):
    """How agents move to another Redis when the spec or a Secret names one with other data."""

    strategy: Literal["Drain", "Abandon"] = Field(
        "Drain",
        description="Drain: nothing new is taken, queues run empty, all agents stop, then start on the new server. "
        "Abandon: they stop and start at once; what waits in the old server stays there.",
    )
    timeout_seconds: int = Field(
        300,
        ge=1,
        le=86_400,
        description="Time for the queues to run empty; then the hive stays on the old server and says so.",
    )


class CredentialsSpec(ApiModel):
    """The logins that the operator makes for agents."""

    rotate_days: int | None = Field(
        None,
        ge=1,
        le=3650,
        description="Age at which an agent's passwords are replaced, days; absent means only on demand, by the "
        "annotation agenthive.dev/rotate.",
    )


class RedisSpec(ApiModel):
    """The Redis that carries the hive's messages; neither managed nor external means managed."""

    model_config = ConfigDict(json_schema_extra=s.rules(*SERVER_RULES))

    managed: ManagedRedis | None = Field(None, description="A Redis that the operator runs.")
    external: ExternalRedis | None = Field(None, description="A Redis ≥ 7 or Valkey ≥ 7.2 of yours.")
    pool: RedisPool = Field(default_factory=RedisPool, description="Connections of each agent process to Redis.")
    cache: CacheSpec = Field(default_factory=CacheSpec, description="The cache of what agents keep in PostgreSQL.")
    cutover: Cutover = Field(default_factory=Cutover, description="How agents move to another Redis.")

    @property
    def run(self) -> ManagedRedis | None:
        """The server to run, defaults filled in; None when it is external."""
        return None if self.external is not None else self.managed or ManagedRedis()

    @property
    def mints_users(self) -> bool:
        """Whether the operator has administrative access, so that each Agent gets a user of its own."""
        return self.external is None or self.external.admin_url_secret_ref is not None


class PostgresSpec(ApiModel):
    """The PostgreSQL that holds the hive's state; neither managed nor external means managed."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            *SERVER_RULES,
            s.Rule(
                "!has(self.pool) || self.pool.minSize <= self.pool.maxSize",
                "pool.minSize must not exceed pool.maxSize",
                ".pool.minSize",
            ),
        )
    )

    managed: ManagedPostgres | None = Field(None, description="A PostgreSQL that the operator runs.")
    external: ExternalPostgres | None = Field(None, description="A PostgreSQL ≥ 14 of yours.")
    pool: PostgresPool = Field(
        default_factory=PostgresPool, description="Connections of each agent process to PostgreSQL."
    )

    @property
    def run(self) -> ManagedPostgres | None:
        """The server to run, defaults filled in; None when it is external."""
        return None if self.external is not None else self.managed or ManagedPostgres()

    @property
    def mints_logins(self) -> bool:
        """Whether the operator has administrative access, so that each Agent gets a login of its own."""
        return self.external is None or self.external.admin_url_secret_ref is not None


class AgentDefaults(ApiModel):
    """What every agent of the hive starts from; the Agent's own fields win."""

    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        pattern=s.IMAGE,
        description="Image of agents that name none; absent means the operator's runtime image.",
    )
    image_pull_policy: PullPolicy = None
    image_pull_secrets: PullSecrets = ()
    env: Env = ()
    env_from: EnvFrom = ()
    resources: ResourceRequirements | None = Field(None, description="Compute resources of agents that name none.")
    pod_template: PodTemplate = Field(
        default_factory=PodTemplate,
        description="A partial pod template, merged into the operator's; the Agent's own is merged in after it.",
    )


InstanceId = Annotated[
    str,
    Field(min_length=1, max_length=32, pattern=DNS_LABEL),
]


class AgentHiveSpec(ApiModel):
    """What a hive should be."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                "!has(oldSelf.instanceId) || has(self.instanceId)",
                "instanceId is immutable: keep the value that was set, it names the hive's keys and schemas",
                ".instanceId",
            )
        )
    )

    redis: RedisSpec = Field(
        default_factory=RedisSpec,
        description="The message bus; absent means a managed server.",
        json_schema_extra={"default": {}},
    )
    postgres: PostgresSpec = Field(
        default_factory=PostgresSpec,
        description="The store; absent means a managed server.",
        json_schema_extra={"default": {}},
    )
    instance_id: InstanceId | None = Field(
        None,
        description="Prefix of keys and schemas, so that clusters can share a server; generated if absent. Immutable.",
        json_schema_extra=s.rules(
            s.Rule(
                s.IMMUTABLE,
                "instanceId is immutable: keep the value that was set, it names the hive's keys and schemas",
            )
        ),
    )
    messaging: Messaging = Field(default_factory=Messaging, description="How messages are kept, retried and given up.")
    retention: Retention = Field(
        default_factory=Retention, description="How long PostgreSQL keeps what is only of interest for a while."
    )
    agent_defaults: AgentDefaults = Field(
        default_factory=AgentDefaults, description="What every agent of the hive starts from."
    )
    credentials: CredentialsSpec = Field(
        default_factory=CredentialsSpec, description="The logins that the operator makes for agents."
    )
    network_policy: NetworkPolicySpec = Field(
        default_factory=NetworkPolicySpec, description="Who may speak with the pods of the hive."
    )
    suspend: bool = Field(False, description="Drain all agents to zero pods; data stays.")
    deletion_policy: Literal["Retain", "Delete"] = Field(
        "Retain",
        description="What becomes of the managed servers' volumes and of data in external servers when the hive is "
        "deleted. Retained volumes are found again by a hive of the same name; for data in external servers alone, "
        "give it the instanceId it had.",
    )


class AgentCounts(ApiModel):
    """How many Agents belong to the hive."""

    total: int = Field(0, ge=0, description="Agents that name this hive.")
    ready: int = Field(0, ge=0, description="Those that are Ready.")


class ServerStatus(ApiModel):
    """A server as the operator sees it; without credentials."""

    endpoint: str | None = Field(None, max_length=512, description="host:port.")
    version: str | None = Field(None, max_length=128, description="What the server says it is.")


class AgentHiveStatus(ApiModel):
    """What a hive is."""

    observed_generation: int | None = Field(None, ge=0, description="Generation of the spec that this speaks of.")
    instance_id: InstanceId | None = Field(None, description="Prefix of keys and schemas that is in use.")
    conditions: Conditions = ()
    agents: AgentCounts | None = Field(None, description="Agents of the hive.")
    redis: ServerStatus | None = Field(None, description="The message bus.")
    postgres: ServerStatus | None = Field(None, description="The store.")
    backlog: int | None = Field(None, ge=0, description="Messages waiting in all queues of the hive.")


class AgentHive(Resource):
    """AgentHive is the shared ground of a fleet of agents: its Redis, its PostgreSQL, and defaults."""

    model_config = ConfigDict(
        json_schema_extra=s.rules(
            s.Rule(
                f"self.metadata.name.size() <= {HIVE_NAME_MAX}"
                " && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                f"name the hive with at most {HIVE_NAME_MAX} lower-case letters, digits and '-',"
                " starting with a letter: its Services are named after it",
            ),
            s.Rule(
                "!has(self.status) || !has(self.status.instanceId) || !has(self.spec.instanceId)"
                " || self.spec.instanceId == self.status.instanceId",
                "spec.instanceId must be the one in status.instanceId, or absent: it can not change any more",
            ),
        )
    )

    spec: AgentHiveSpec = Field(
        default_factory=AgentHiveSpec, description="What the hive should be.", json_schema_extra={"default": {}}
    )
    status: AgentHiveStatus = Field(default_factory=AgentHiveStatus, description="What the hive is.")

    @property
    def instance_id(self) -> str | None:
        """The instance id in force: what is in use already, else what the spec asks for, else None."""
        return self.status.instance_id or self.spec.instance_id

    def owner(self) -> dict[str, Any]:
        """The owner reference that the hive's children carry."""
        return owner_reference("AgentHive", self)


def owner_reference(kind: str, resource: Resource) -> dict[str, Any]:
    """A controller reference to ``resource``: its children go when it goes."""
    return {
        "apiVersion": "agenthive.dev/v1alpha1",
        "kind": kind,
        "name": resource.metadata.name,
        "uid": resource.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
