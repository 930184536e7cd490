"""What the planners know beside the resources themselves: everything that was read or minted outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agenthive_operator.plan.references import Reference
from agenthive_operator.plan.rotation import Record


@dataclass(frozen=True, slots=True)
class ObservedServer:
    """A managed server as it stands.

    Attributes:
        password: The password in the server's Secret, or a fresh one where there is no Secret yet. Required for a
            managed server: minting is I/O and happens once, outside the plan.
        claim_size: Size in the volumeClaimTemplates of the StatefulSet that exists; None where there is none.
            Templates are immutable: a larger size goes to the claim itself (``plan_claims``).
        annotated: Whether the claim may carry annotations from the spec as it was: the StatefulSet that exists has
            some, or none exists and the claim may be an earlier hive's.
        users: Of Redis, the users of its agents as ``users.user_file`` has them; empty for none.
    """

    password: str | None = None
    claim_size: str | None = None
    annotated: bool = False
    users: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class OperatorPlace:
    """Where the operator runs.

    Attributes:
        namespace: That of its pod; None where it is no pod of the cluster that it works for.
        nameservers: Addresses of the DNS servers of its pod, which are those of the agents' pods.
    """

    namespace: str | None = None
    nameservers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ObservedHive:
    """What ``plan_hive`` knows beside the hive."""

    redis: ObservedServer = ObservedServer()
    postgres: ObservedServer = ObservedServer()


@dataclass(frozen=True, slots=True)
class ObservedAgent:
    """What ``plan_agent`` knows beside the Agent and its hive.

    Attributes:
        instance_id: The hive's instance id in force.
        redis_url: Validated URL of the bus; it goes into the Agent's Secret.
        postgres_url: Validated URL of the store, with the Agent's own login where the operator makes such.
        runtime_image: Image of agents for which neither the Agent nor its hive names one.
        digests: Digest (``checksum.digest``) of the data of each Secret and ConfigMap that the pods use, by
            ``references.agent_references``; what does not exist is left out. A change rolls the pods.
        cache_url: Validated URL of the cache's own Redis; None where it has none, or none that was ever good.
        tls_files: Certificates (PEM) that the URLs name below ``external.TLS_PATH``, by the name of the file.
        credentials: How old the credentials in the URLs are, and those that they are about to replace.
        halted: Whether the Agent is to stand at zero pods, for its hive moves to another server.
    """

    instance_id: str
    redis_url: str
    postgres_url: str
    runtime_image: str
    digests: Mapping[Reference, str] = field(default_factory=dict)
    cache_url: str | None = None
    tls_files: Mapping[str, str] = field(default_factory=dict, repr=False)
    credentials: Record = field(default_factory=Record)
    halted: bool = False
