"""Everything an agent process is told from outside, each field declared once.

The policy models (``Messaging``, ``RedisPool`` …) are also the schema of the fields of the same name in
the AgentHive resource: the operator puts them into its CRD and hands them to pods as JSON documents in the environment.
A new tuning field is therefore added here and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DEFAULT_HTTP_PORT = 8080


class Policy(BaseModel):
    """Base of the tuning models: camelCase outside (YAML, JSON), snake_case in Python, immutable, no unknown fields."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")

    def to_env(self) -> str:
        """This policy as the JSON document of an environment variable: what differs from the defaults."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)


class PriorityWeights(Policy):
    """Share of each priority lane under contention; lanes that are empty give their share to the others."""

    critical: int = Field(8, ge=1, le=100, description="Weight of CRITICAL messages.")
    high: int = Field(4, ge=1, le=100, description="Weight of HIGH messages.")
    medium: int = Field(2, ge=1, le=100, description="Weight of MEDIUM messages.")
    low: int = Field(1, ge=1, le=100, description="Weight of LOW messages.")


class QueuePolicy(Policy):
    """Bound of one agent's queue."""

    max_length: int = Field(
        1_000_000, ge=1, le=100_000_000, description="Messages one agent's queue may hold; beyond it senders wait."
    )
    max_bytes: int = Field(
        2**30,
        ge=1024,
        le=2**40,
        description="Bytes the JSON documents of one agent's queue may have together; beyond it senders wait.",
    )


class TopicPolicy(Policy):
    """How long a topic keeps what was published to it."""

    retention_seconds: int = Field(
        86_400,
        ge=1,
        le=31_536_000,
        description="How long a topic keeps a message for agents that are away or new, seconds; "
        "also the time to live of a published message that names none.",
    )
    max_length: int = Field(
        100_000, ge=1, le=100_000_000, description="Messages one topic keeps; beyond it the oldest are dropped."
    )


class Messaging(Policy):
    """How messages of a hive are kept, retried and given up."""

    ttl_seconds: int = Field(
        3600, ge=1, le=31_536_000, description="Time to live of a message that names none, seconds."
    )
    max_retries: int = Field(3, ge=0, le=1000, description="Retries after the first attempt before the dead letters.")
    retry_delay_seconds: float = Field(
        2.0,
        ge=0,
        le=300,
        description="Delay before the first retry, seconds; doubles each time, full jitter, at most 300.",
    )
    lease_seconds: int = Field(
        30, ge=2, le=3600, description="How long messages of a vanished process stay with it, seconds."
    )
    handler_timeout_seconds: float | None = Field(
        None, gt=0, le=86_400, description="Time one handling may take, seconds; absent means no limit."
    )
    status_seconds: int = Field(
        3600, ge=1, le=2_592_000, description="How long the final status of a message can be looked up, seconds."
    )
    deduplication_seconds: int = Field(
        300,
        ge=1,
        le=86_400,
        description="How long messages to one agent with one deduplication_key are one message, seconds.",
    )
    priority_weights: PriorityWeights = Field(
        default_factory=PriorityWeights, description="Share of each priority under contention."
    )
    queue: QueuePolicy = Field(default_factory=QueuePolicy, description="Bound of each agent's queue.")
    topics: TopicPolicy = Field(default_factory=TopicPolicy, description="What each topic of the hive keeps.")
    durability: Literal["default", "replicated"] = Field(
        "default", description="When a message counts as sent: in the master, or also in a replica (replicated)."
    )
    log: Literal["failures", "all"] = Field(
        "failures",
        description="What the message log in PostgreSQL keeps: messages that failed or expired, "
        "or each message that an agent sends and each status it takes (all).",
    )


class CircuitBreaker(Policy):
    """When to stop asking a Redis that does not answer."""

    failure_threshold: int = Field(5, ge=1, le=1000, description="Failures in a row that open the circuit.")
    reset_seconds: float = Field(10.0, gt=0, le=600, description="How long the circuit stays open, seconds.")


class RedisPool(Policy):
    """Connections of one process to Redis."""

    max_connections: int = Field(50, ge=2, le=1000, description="Most connections one process opens to Redis.")
    connect_timeout_seconds: float = Field(5.0, gt=0, le=120, description="Time to open a connection, seconds.")
    socket_timeout_seconds: float = Field(5.0, gt=0, le=120, description="Time to wait for an answer, seconds.")
    circuit_breaker: CircuitBreaker = Field(
        default_factory=CircuitBreaker, description="When to fail fast while Redis is down."
    )


class PostgresPool(Policy):
    """Connections of one process to PostgreSQL."""

    min_size: int = Field(1, ge=0, le=100, description="Connections one process keeps open.")
    max_size: int = Field(10, ge=1, le=200, description="Most connections one process opens.")


class CachePolicy(Policy):
    """The read-through cache in Redis of what agents keep in PostgreSQL."""

    enabled: bool = Field(True, description="Whether reads of agent state and cached calls go through Redis.")
    max_bytes: int = Field(
        64 * 2**20,
        ge=1024,
        le=2**40,
        description="Bytes the cache of the hive may take in the Redis that carries its messages.",
    )


class Retention(Policy):
    """How long PostgreSQL keeps what is only of interest for a while."""

    messages_days: int = Field(7, ge=1, le=3650, description="Days the message log is kept.")
    metrics_days: int = Field(30, ge=1, le=3650, description="Days agent metrics are kept.")
    audit_days: int = Field(365, ge=1, le=36_500, description="Days the audit trail is kept.")
    inbox_days: int = Field(
        30,
        ge=1,
        le=3650,
        description="Days, beyond its time to live, for which a message that a transaction handled is known: "
        "redriven within them it does not run again.",
    )


class HiveScope(BaseModel):
    """Where a hive's keys and rows live; two clusters that share a server differ in ``instance``."""

    model_config = ConfigDict(frozen=True)

    instance: str = Field("local", pattern=DNS_LABEL, max_length=32)
    namespace: str = Field("default", pattern=DNS_LABEL, max_length=63)
    hive: str = Field("default", pattern=DNS_LABEL, max_length=63)

    def key_prefix(self, agent: str) -> str:
        """Prefix of every Redis key of ``agent``; the braces keep them in one Cluster slot."""
        return f"ah:{{{self.instance}/{self.namespace}/{self.hive}/{agent}}}:"

    @property
    def hive_prefix(self) -> str:
        """Prefix of the Redis keys that belong to the hive and to no single agent."""
        return f"ah:{{{self.instance}/{self.namespace}/{self.hive}}}:"


class Settings(BaseSettings):
    """The environment of an agent process: ``AGENTHIVE_*``, with JSON documents for the policies."""

    model_config = SettingsConfigDict(env_prefix="AGENTHIVE_", extra="ignore", frozen=True)

    instance: str = Field("local", description="Prefix of keys and schemas; in a pod the hive's instanceId.")
    namespace: str = Field("default", description="Namespace of the hive.")
    hive: str = Field("default", description="Name of the hive.")
    agent: str | None = Field(None, description="Name of the agent; absent: the name that its code gives it.")
    pod: str | None = Field(None, description="Name of this process among the agent's; absent: one is made.")
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="The Redis that carries the messages."
    )
    postgres_url: SecretStr | None = Field(None, description="The PostgreSQL; absent: no state and no records.")
    postgres_direct_url: SecretStr | None = Field(
        None, description="The same database past PgBouncer, where the other URL leads through it: for `agenthive db`."
    )
    messaging: Messaging = Field(Messaging(), description="See below.")
    redis_pool: RedisPool = Field(RedisPool(), description="See below.")
    postgres_pool: PostgresPool = Field(PostgresPool(), description="See below.")
    cache: CachePolicy = Field(CachePolicy(), description="See below.")
    cache_url: SecretStr | None = Field(
        None, description="Another Redis for the cache; absent: the one that carries the messages."
    )
    retention: Retention = Field(Retention(), description="See below.")
    concurrency: int = Field(10, ge=1, le=10_000, description="Messages that this process handles at a time.")
    drain_seconds: float = Field(
        30.0, ge=0, description="How long a process that is told to end waits for its handlers, seconds."
    )
    capabilities: Annotated[tuple[str, ...], NoDecode] = Field((), description="What this agent says that it can do.")
    topics: Annotated[tuple[str, ...], NoDecode] = Field((), description="Topics that the agent gets copies of.")
    topic_start: Literal["now", "beginning"] = Field("now", description="Where a new subscription starts.")
    # Every address: probes reach a pod from the node.
    bind: str = Field("0.0.0.0", description="Address of /livez, /readyz and /metrics.")  # noqa: S104
    http_port: int = Field(DEFAULT_HTTP_PORT, ge=0, le=65_535, description="Their port; 0: a free one.")
    termination_log: str = Field("/dev/termination-log", description="File for the last words of a process that fails.")
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = Field(
        "INFO", description="Least severe log lines: DEBUG, INFO, WARNING or ERROR."
    )
    log_format: Annotated[str, Field(pattern="^(auto|json|text)$")] = Field(
        "auto", description="Form of log lines: json, text, or auto (text on a terminal)."
    )

    @field_validator("capabilities", "topics", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """In the environment a list is written ``a,b``."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @property
    def scope(self) -> HiveScope:
        """The hive this process belongs to."""
        return HiveScope(instance=self.instance, namespace=self.namespace, hive=self.hive)

    def replace(self, **changes: Any) -> Self:
        """A copy with ``changes`` applied and validated."""
        return type(self).model_validate({**self.model_dump(by_alias=True), **changes})
