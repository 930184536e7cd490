"""Every reason a condition can have: its status, what it means and what to do. The source of docs/conditions.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason of one condition. ``status``: the statuses it comes with; ``todo`` is empty where nothing is wrong."""

    status: str
    meaning: str
    todo: str = ""


_TRUE: Final = "True"
_FALSE: Final = "False"
_WAIT: Final = "Wait: it goes on by itself."

_NAME_CONFLICT: Final = "Delete or rename that object, or choose another name for this one."
_REJECTED: Final = "Read the message. Often it is an admission policy, or a right that the operator lacks."
_ENDING: Final = Reason(
    _FALSE, "The namespace is being deleted: nothing is made in it any more.", "Nothing; all in it goes."
)
_INVALID: Final = "Correct the field that the message names, or upgrade the operator."

_EGRESS_DENIED: Final = Reason(
    _TRUE,
    "The operator reaches the server, which is external. Agents do not where the network enforces NetworkPolicies: "
    "spec.networkPolicy.egress is deny and allowEgress is empty.",
    "List the server's address in spec.networkPolicy.allowEgress, or set egress to open.",
)
_PROBING: Final = Reason("Unknown", "The first look since the operator started is under way.", _WAIT)
_REACHABLE: Final = Reason(_TRUE, "The server answers, takes the credentials and is recent enough.")
_UNREACHABLE: Final = Reason(
    _FALSE,
    "No connection could be opened, or no answer came in time. Agents that run are left running.",
    "Check the host and port in the URL, the server itself, and network policies between the operator and it.",
)
_REFUSED: Final = Reason(
    _FALSE, "The server refuses the user or the password.", "Correct the URL in the Secret that urlSecretRef names."
)
_INVALID_URL: Final = Reason(
    _FALSE, "The URL in the Secret cannot be used.", "Write it as the message says; quote special characters as %XX."
)
_SECRET_MISSING: Final = Reason(
    _FALSE,
    "A Secret that the spec names for the URL, the login or the certificates, or its key, does not exist.",
    "Create the Secret in the hive's namespace, or correct name and key.",
)
_CERTIFICATE_INVALID: Final = Reason(
    _FALSE,
    "A certificate that spec.redis.external.tls (or spec.postgres.external.tls) names is no certificate, has expired, "
    "or is not that of its key. Agents that run are left running with those they have.",
    "Put what the message says into the Secret that it names.",
)
_TLS_FAILED: Final = Reason(
    _FALSE,
    "A server answers, and no TLS connection comes about: one side does not trust the other's certificate, or there "
    "is none. Agents that run are left running.",
    "Do what the message says, on the server or in external.tls.",
)
_EXPIRING: Final = Reason(
    _TRUE,
    "The server is ready, and a certificate that external.tls names expires within 14 days.",
    "Renew it in its Secret; agents are rolled and use the new one.",
)
_MOVES: Final[Mapping[str, Reason]] = {
    "NewServerRefused": Reason(
        _TRUE,
        "The server in use is ready. The one that the spec and its Secrets name now cannot be used: everything stays "
        "on the one in use.",
        "Correct the URL, the certificates or the server, as the message says, or put the former value back.",
    ),
    "CuttingOver": Reason(_TRUE, "The hive moves to another server; the message says how far it is.", _WAIT),
    "CutoverTimedOut": Reason(
        _TRUE,
        "The move to another server took too long and was given up; the hive stays on the one in use.",
        "See docs/cutover.md; the message says what was left and how to try again.",
    ),
}
_HIVE_MISSING: Final = Reason(
    _FALSE,
    "There is no AgentHive of that name in this namespace. The agent starts once there is.",
    "Create the hive, or correct spec.hiveRef.name.",
)
_HIVE_NOT_READY: Final = Reason(
    _FALSE,
    "The hive's stores or its schema are not ready. An agent that runs is left running.",
    "See the conditions of the hive.",
)
_ROLL_QUEUED: Final = Reason(
    _FALSE,
    "The pods work and are to be replaced; at most 10 % of a hive's agents, and at least five, are rolled at once.",
    _WAIT,
)
_ROLL_HALTED: Final = Reason(
    _FALSE,
    "A change of the hive failed on other agents: this one keeps its pods.",
    "See AgentsReady of the hive.",
)
_HIVE_DELETING: Final = Reason(_FALSE, "The hive is being deleted; its agents are drained.", _WAIT)

REASONS: Final[Mapping[str, Mapping[str, Mapping[str, Reason]]]] = {
    "AgentHive": {
        "Ready": {
            "AllReady": Reason(_TRUE, "Both stores, the schema and every agent are ready."),
            "Suspended": Reason(
                _TRUE,
                "spec.suspend is true. The stores are ready; all agents stand at zero pods.",
                "Set spec.suspend to false to go on.",
            ),
            "Deleting": Reason(_FALSE, "The hive is being deleted; the message says what it waits for.", _WAIT),
            "InvalidSpec": Reason(_FALSE, "This operator cannot read the spec. Nothing is changed.", _INVALID),
            "NameConflict": Reason(
                _FALSE, "An object of a name the hive needs belongs to somebody else.", _NAME_CONFLICT
            ),
            "NamespaceTerminating": _ENDING,
            "ApplyRejected": Reason(_FALSE, "The API server refused an object of the hive.", _REJECTED),
            "QuotaExceeded": Reason(
                _FALSE,
                "A quota of the namespace has no room for an object of the hive.",
                "Raise the ResourceQuota that the message names. It is tried again.",
            ),
            "RedisNotReady": Reason("False, Unknown", "RedisReady is not True.", "See RedisReady."),
            "PostgresNotReady": Reason("False, Unknown", "PostgresReady is not True.", "See PostgresReady."),
            "SchemaNotReady": Reason(_FALSE, "SchemaReady is not True.", "See SchemaReady."),
            "AgentsNotReady": Reason(_FALSE, "AgentsReady is not True.", "See AgentsReady."),
            "ServerChangePending": Reason(
                _FALSE,
                "The hive is of use, on other servers than the spec and its Secrets name now.",
                "See RedisReady and PostgresReady.",
            ),
        },
        "RedisReady": {
            "Reachable": _REACHABLE,
            "Probing": _PROBING,
            "Starting": Reason(
                _FALSE,
                "The managed server has no ready pod yet, or is not reachable yet.",
                f"{_WAIT} If it takes minutes: `kubectl describe pod <hive>-redis-0`.",
            ),
            "Loading": Reason(_FALSE, "The server is reading its data from disk.", _WAIT),
            "Unreachable": _UNREACHABLE,
            "AuthenticationFailed": _REFUSED,
            "VersionTooOld": Reason(_FALSE, "The server is too old for the bus.", "Use Redis ≥ 7 or Valkey ≥ 7.2."),
            "InvalidURL": _INVALID_URL,
            "UsersFailed": Reason(
                _FALSE,
                "The functions of the bus, or the users of the agents, could not be brought into Redis, or do not let "
                "agents in. Agents that run are left running with the URL they have.",
                "Do what the message says; it is about the URL that spec.redis.external.adminUrlSecretRef leads to.",
            ),
            "SecretMissing": _SECRET_MISSING,
            "CertificateInvalid": _CERTIFICATE_INVALID,
            "TLSFailed": _TLS_FAILED,
            "ReadOnly": Reason(
                _FALSE,
                "The server is a replica: it takes no messages.",
                "Name its master in the URL, or use the sentinels' form of it.",
            ),
            "PrivilegesMissing": Reason(
                _FALSE,
                "The server forbids the user commands that the bus needs; the message names them.",
                "Grant them by ACL SETUSER (or use a user that may do all but administer).",
            ),
            "CertificateExpiring": _EXPIRING,
            "MayEvict": Reason(
                _TRUE,
                "The server is ready, and throws messages away when its memory is short.",
                "Set maxmemory-policy noeviction (in the parameter group of a managed service).",
            ),
            "MayLoseMessages": Reason(
                _TRUE,
                "The server is ready, and does not write down what it takes: a restart loses messages.",
                "Set appendonly yes, or live with it where a replica takes over.",
            ),
            "NoReplicas": Reason(
                _TRUE,
                "The server is ready, spec.messaging.durability is replicated, and no replica is connected.",
                "Add a replica, or set durability to default.",
            ),
            "CacheNotReady": Reason(
                _TRUE,
                "The bus is ready. The Redis that the cache has for itself is not: agents that know it "
                "from before read past the cache meanwhile, others start with the cache off.",
                "Read the message: it is about the server that spec.redis.cache.urlSecretRef leads to.",
            ),
            **_MOVES,
            "EgressDenied": _EGRESS_DENIED,
        },
        "PostgresReady": {
            "Reachable": _REACHABLE,
            "Probing": _PROBING,
            "Starting": Reason(
                _FALSE,
                "The managed server has no ready pod yet, or a server is still starting up.",
                f"{_WAIT} If it takes minutes: `kubectl describe pod <hive>-postgres-0`.",
            ),
            "Unreachable": _UNREACHABLE,
            "AuthenticationFailed": _REFUSED,
            "DatabaseMissing": Reason(
                _FALSE, "The database that the URL names does not exist.", "Create it, or name another in the URL."
            ),
            "VersionTooOld": Reason(_FALSE, "The server is too old for the store.", "Use PostgreSQL ≥ 14."),
            "InvalidURL": _INVALID_URL,
            "SecretMissing": _SECRET_MISSING,
            "CertificateInvalid": _CERTIFICATE_INVALID,
            "TLSFailed": _TLS_FAILED,
            "ReadOnly": Reason(
                _FALSE,
                "The server is a standby, or the user's transactions only read.",
                "Name the primary in the URL, such as CloudNativePG's Service `<cluster>-rw`.",
            ),
            "PrivilegesMissing": Reason(
                _FALSE,
                "The user may neither create schemas nor change the one that the hive has.",
                "Run the GRANT that the message says.",
            ),
            "CertificateExpiring": _EXPIRING,
            "NearConnectionLimit": Reason(
                _TRUE,
                "The server is ready, and the pods of the hive may open more than 80 % of the connections that it has.",
                "Lower spec.postgres.pool.maxSize or replicas, raise max_connections, or put PgBouncer in between.",
            ),
            **_MOVES,
            "DatabaseNotAccepted": Reason(
                _TRUE,
                "The server in use is ready. The database that the spec names now lacks this hive's data.",
                "Restore a dump there, or accept it with the annotation that the message writes out.",
            ),
            "EgressDenied": _EGRESS_DENIED,
        },
        "SchemaReady": {
            "Migrated": Reason(_TRUE, "The hive's schema is at the version that this operator brings."),
            "WaitingForPostgres": Reason(_FALSE, "PostgreSQL has not been reached yet.", "See PostgresReady."),
            "MigrationFailed": Reason(
                _FALSE,
                "A migration failed and left no trace; the message is the server's.",
                "Give the user the right to create schemas, or do what the message says. It is tried again.",
            ),
            **{
                reason: Reason(
                    _FALSE,
                    f"By the URL that directUrlSecretRef or adminUrlSecretRef names {what}. Agents do not use it.",
                    "Correct the URL in the Secret that the message names, or the server behind it.",
                )
                for reason, what in (
                    ("Unreachable", "no server answers"),
                    ("Starting", "the server is still starting up"),
                    ("AuthenticationFailed", "the server refuses the user or the password"),
                    ("DatabaseMissing", "there is no such database"),
                    ("VersionTooOld", "the server is too old"),
                    ("InvalidURL", "nothing can be reached: it is malformed"),
                    ("TLSFailed", "no TLS connection comes about"),
                    ("ReadOnly", "the server is a standby, or only reads"),
                    ("PrivilegesMissing", "the user may neither create schemas nor change the hive's"),
                )
            },
            "RolesFailed": Reason(
                _FALSE,
                "The logins of the agents could not be made, or are not let in; the message is the server's. Agents "
                "that run are left running on the login they have.",
                "Do what the message says. Where adminUrlSecretRef is left out, agents use the hive's own login.",
            ),
            "SchemaTooNew": Reason(
                _FALSE, "A newer version migrated the schema. Schemas are never downgraded.", "Upgrade the operator."
            ),
        },
        "AgentsReady": {
            "AllReady": Reason(_TRUE, "Every agent of the hive is ready."),
            "NoAgents": Reason(_TRUE, "No Agent names this hive."),
            "Suspended": Reason(_TRUE, "spec.suspend is true: all agents stand at zero pods."),
            "RollHalted": Reason(
                _FALSE,
                "A change of the hive failed on three agents or more, and on more than it worked on: the others keep "
                "their former pods. The message names those that failed.",
                "See the conditions of those Agents, and correct the hive: agents that failed take on the next change "
                "at once, the others when it works.",
            ),
            "AgentsNotReady": Reason(
                _FALSE, "Some agents are not ready; the message names them.", "See the conditions of those Agents."
            ),
        },
    },
    "Agent": {
        "Ready": {
            "AllPodsReady": Reason(_TRUE, "Every pod runs the newest spec and is ready."),
            "Suspended": Reason(_TRUE, "The hive is suspended and no pod runs."),
            "ScaledToZero": Reason(_TRUE, "spec.replicas is 0 and no pod runs."),
            "CuttingOver": Reason(_FALSE, "The hive moves to another server; its agents stand at zero pods.", _WAIT),
            "HiveMissing": _HIVE_MISSING,
            "HiveNotReady": _HIVE_NOT_READY,
            "HiveDeleting": _HIVE_DELETING,
            "InvalidSpec": Reason(
                _FALSE,
                "This operator cannot read the spec, or it asks for the impossible. Nothing is changed.",
                _INVALID,
            ),
            "CodeMissing": Reason(
                _FALSE,
                "The ConfigMap that codeFrom names does not exist. The agent starts once it does.",
                "Create it, or correct spec.codeFrom.configMapRef.name.",
            ),
            "NameConflict": Reason(
                _FALSE, "An object of a name the agent needs belongs to somebody else.", _NAME_CONFLICT
            ),
            "NamespaceTerminating": _ENDING,
            "ApplyRejected": Reason(_FALSE, "The API server refused an object of the agent.", _REJECTED),
            "PodTemplateRejected": Reason(
                _FALSE,
                "The API server refuses the pod template that the podTemplates of the hive and the Agent make. Nothing "
                "is written: pods that run go on.",
                "Correct the field that the message names.",
            ),
            "QuotaExceeded": Reason(
                _FALSE,
                "A quota of the namespace has no room for a pod or another object of the agent.",
                "Raise the ResourceQuota that the message names, or ask for less. It is tried again.",
            ),
            "PodsRefused": Reason(
                _FALSE,
                "The API server refuses the agent's pods: often Pod Security, a LimitRange or an admission policy.",
                "Read the message; what it names is in spec.resources, a podTemplate or the namespace.",
            ),
            "RollQueued": _ROLL_QUEUED,
            "RollHalted": _ROLL_HALTED,
            "ContainerFailed": Reason(
                _FALSE,
                "A container ended with an error; the message holds its last words.",
                "Correct what they say, often an import. All of it: `kubectl logs --previous <pod>`.",
            ),
            "ContainerWaiting": Reason(
                _FALSE, "A container cannot be started; the message says why.", "Often it is the name of the image."
            ),
            "Unschedulable": Reason(
                _FALSE, "No node has room for a pod.", "Ask for less in spec.resources, or add a node."
            ),
            "PodFailed": Reason(
                _FALSE, "A pod was evicted, or its node refused it.", "Read the message; the pod is replaced."
            ),
            "RollingOut": Reason(_FALSE, "Pods of the newest spec are being started.", _WAIT),
            "PodsNotReady": Reason(
                _FALSE,
                "Pods run and do not report ready.",
                "Read `kubectl logs <pod>`: an agent is ready once bus and store answer it.",
            ),
        },
        "Progressing": {
            "UpToDate": Reason(_FALSE, "All pods run the newest spec."),
            "RollingOut": Reason(
                _TRUE, "Pods of the newest spec are being started, or those of the former are draining.", _WAIT
            ),
            "RollQueued": replace(_ROLL_QUEUED, status=_TRUE),
            "RollHalted": _ROLL_HALTED,
            "Stalled": Reason(_FALSE, "The rollout made no progress for too long.", "See Ready."),
            "Waiting": Reason(_FALSE, "Nothing is being rolled out yet.", "See Ready."),
        },
        "HiveReady": {
            "HiveReady": Reason(_TRUE, "The hive has what its agents need."),
            "HiveSuspended": Reason(
                _TRUE,
                "The hive has what its agents need and holds them at zero pods.",
                "Set spec.suspend of the hive to false to go on.",
            ),
            "HiveMissing": _HIVE_MISSING,
            "HiveNotReady": _HIVE_NOT_READY,
            "HiveDeleting": _HIVE_DELETING,
        },
    },
}

_HEAD: Final = """\
<!-- Generated by `make docs`. The source is operator/agenthive_operator/reconcile/reasons.py. -->
# Conditions

What `kubectl get hives,agents` shows under READY and REASON, and `kubectl describe` in full. Each condition has a
status, a reason and a message. The message says what was found; this page says what the reason means.

A hive is of use to its agents while RedisReady, PostgresReady and SchemaReady are True. When one of them turns
False, agents that run are left running.
"""


def markdown() -> str:
    """docs/conditions.md."""
    parts = [_HEAD]
    for kind, conditions in REASONS.items():
        parts.append(f"\n## {kind}\n")
        for condition, reasons in conditions.items():
            parts.append(f"\n### {condition}\n\n| reason | status | what it means | what to do |\n|---|---|---|---|\n")
            parts += [
                f"| {name} | {reason.status} | {reason.meaning} | {reason.todo} |\n" for name, reason in reasons.items()
            ]
    return "".join(parts)
