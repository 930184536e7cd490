"""What the API server must refuse, and what it must take: each CEL rule and each bound, as data.

``CASES`` holds ``(name, kind, old, new, message)``. Without ``old`` a case creates ``new``; with it, ``old`` is created
(a ``status`` in it is written through ``/status``) and then replaced by ``new``. ``message`` is part of the text of the
422 that has to come, or None where the object has to be taken. Objects have no namespace: the runner chooses one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

API_VERSION = "agenthive.dev/v1alpha1"

Manifest = dict[str, Any]


class Case(NamedTuple):
    """One attempt and what has to come of it."""

    name: str
    kind: str
    old: Manifest | None
    new: Manifest
    message: str | None


def hive(name: str = "demo", *, status: Manifest | None = None, **spec: Any) -> Manifest:
    """An AgentHive called ``name`` with ``spec``."""
    manifest = {"apiVersion": API_VERSION, "kind": "AgentHive", "metadata": {"name": name}, "spec": spec}
    if status is not None:
        manifest["status"] = status
    return manifest


def agent(name: str = "worker", **spec: Any) -> Manifest:
    """An Agent called ``name``; a field given as None is left out of the valid spec that it starts from."""
    full = {"hiveRef": {"name": "demo"}, "entrypoint": "worker:agent"} | spec
    return {
        "apiVersion": API_VERSION,
        "kind": "Agent",
        "metadata": {"name": name},
        "spec": {key: value for key, value in full.items() if value is not None},
    }


def hive_with_defaults(**fields: Any) -> Manifest:
    """A hive whose agents start from ``fields``."""
    return hive(agentDefaults=fields)


def managed(server: str, **fields: Any) -> Manifest:
    """A hive whose ``server`` (redis or postgres) is managed with ``fields``."""
    return hive(**{server: {"managed": fields}})


def external(server: str, **more: Any) -> Manifest:
    """A hive whose ``server`` is external."""
    return hive(**{server: {"external": {"urlSecretRef": {"name": "urls", "key": "url"}}} | more})


def containers(*items: Manifest, key: str = "containers") -> Manifest:
    """An agent whose podTemplate has these containers."""
    return agent(podTemplate={"spec": {key: list(items)}})


def without(manifest: Manifest, *path: str) -> Manifest:
    """``manifest`` without the field at ``path``."""
    result = copy.deepcopy(manifest)
    target = result
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    return result


def create(name: str, new: Manifest, message: str | None = None) -> Case:
    """``new`` is created."""
    return Case(name, new["kind"], None, new, message)


def update(name: str, old: Manifest, new: Manifest, message: str | None = None) -> Case:
    """``old`` becomes ``new``."""
    return Case(name, new["kind"], old, new, message)


NAME_OF_HIVE = "name the hive with at most 40 lower-case letters"
NAME_OF_AGENT = "name the Agent with at most 47 lower-case letters"
RESERVED = "AGENTHIVE_* is set by the operator"
OWN_LABELS = "choose other labels"
EITHER_SERVER = "set either managed (a server that the operator runs) or external"

HIVE_NAMES = [
    create("hive: name of 40", hive("h" * 40)),
    create("hive: name of 41", hive("h" * 41), NAME_OF_HIVE),
    create("hive: name with a dot", hive("a.b"), NAME_OF_HIVE),
    create("hive: name that starts with a digit", hive("1st"), NAME_OF_HIVE),
    create("hive: no spec at all", without(hive(), "spec")),
]


def server_cases(server: str) -> list[Case]:
    """The rules that Redis and PostgreSQL share."""
    small = managed(server, storage={"size": "2Gi"})
    return [
        create(f"{server}: managed", small),
        create(f"{server}: external", external(server)),
        create(f"{server}: managed and external", external(server, managed={}), EITHER_SERVER),
        create(
            f"{server}: external without a URL", hive(**{server: {"external": {}}}), "set exactly one of urlSecretRef"
        ),
        create(
            f"{server}: external without a name of the Secret",
            hive(**{server: {"external": {"urlSecretRef": {"key": "uri"}}}}),
            "urlSecretRef.name: Required",
        ),
        create(f"{server}: ephemeral", managed(server, ephemeral=True)),
        create(
            f"{server}: annotations of backup tools",
            managed(
                server,
                annotations={
                    "pre.hook.backup.velero.io/command": "[]",
                    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                    "plain": "",
                },
            ),
        ),
        *(
            create(f"{server}: annotation {key}", managed(server, annotations={key: "x"}), "belong to the operator")
            for key in ("agenthive.dev/checksum", "pv.kubernetes.io/bind-completed", "kubernetes.io/a", "a.k8s.io/b")
        ),
        create(
            f"{server}: ephemeral with storage",
            managed(server, ephemeral=True, storage={"size": "1Gi"}),
            "set either storage (a volume that stays) or ephemeral: true",
        ),
        create(f"{server}: size is not a quantity", managed(server, storage={"size": "big"}), "storage.size"),
        create(f"{server}: size of zero", managed(server, storage={"size": "0Gi"}), "storage.size"),
        create(f"{server}: empty image", managed(server, image=""), "image"),
        create(
            f"{server}: limit that is no quantity",
            managed(server, resources={"limits": {"memory": "a lot"}}),
            "resources.limits.memory",
        ),
        update(f"{server}: size grows", small, managed(server, storage={"size": "3Gi"})),
        update(f"{server}: same size in another unit", small, managed(server, storage={"size": "2048Mi"})),
        update(
            f"{server}: size shrinks",
            small,
            managed(server, storage={"size": "2047Mi"}),
            "size can grow but not shrink",
        ),
        update(f"{server}: size falls back to the default", small, hive(), "size can grow but not shrink"),
        update(
            f"{server}: shrinks below the default", hive(), managed(server, storage={"size": "1M"}), "size can grow"
        ),
        update(
            f"{server}: ephemeral later",
            hive(),
            managed(server, ephemeral=True),
            "managed.ephemeral is immutable",
        ),
        update(
            f"{server}: ephemeral no longer",
            managed(server, ephemeral=True),
            managed(server, ephemeral=False),
            "managed.ephemeral is immutable",
        ),
        update(
            f"{server}: another storage class",
            managed(server, storage={"storageClassName": "fast"}),
            managed(server, storage={"storageClassName": "slow"}),
            "storageClassName is immutable",
        ),
        update(
            f"{server}: storage class named later",
            managed(server, storage={}),
            managed(server, storage={"storageClassName": "slow"}),
            "storageClassName is immutable",
        ),
        update(f"{server}: managed becomes external", small, external(server)),
        update(f"{server}: external becomes managed", external(server), managed(server, ephemeral=True)),
    ]


def urls(**secrets: str) -> Manifest:
    """The fields of an external server that name these Secrets."""
    return {f"{field}SecretRef": {"name": name} for field, name in secrets.items()}


EXTERNAL_URLS = [
    create(
        "postgres: past PgBouncer, and an administrator",
        hive(postgres={"external": urls(url="app", directUrl="direct", adminUrl="admin")}),
    ),
    create(
        "postgres: an administrator alone",
        hive(postgres={"external": urls(adminUrl="admin")}),
        "set exactly one of urlSecretRef",
    ),
    create(
        "postgres: direct URL without a name",
        hive(postgres={"external": {**urls(url="app"), "directUrlSecretRef": {"key": "uri"}}}),
        "directUrlSecretRef.name: Required",
    ),
    create(
        "postgres: impossible name of the administrator's Secret",
        hive(postgres={"external": urls(url="app", adminUrl="No")}),
        "adminUrlSecretRef.name",
    ),
]


def login_cases(server: str, good: str) -> list[Case]:
    """The rules on a URL in the spec, whose login is in Secrets."""

    def url(text: str, **more: Any) -> Manifest:
        return hive(**{server: {"external": {"url": text, **more}}})

    password = {"passwordSecretRef": {"name": "login"}}
    named = f"{server}: {good}"
    return [
        create(f"{named} with its login in Secrets", url(good, usernameSecretRef={"name": "login"}, **password)),
        create(f"{named} with a user", url(good.replace("//", "//app@"), **password)),
        create(f"{named} with neither", url(good)),
        create(f"{named} twice", url(good, **urls(url="app")), "set exactly one of urlSecretRef"),
        create(f"{named} of something else", url("http://host/x"), "url is not one of this server's"),
        create(f"{named}, no host", url(good.partition("//")[0] + "//"), "url is not one of this server's"),
        create(f"{named} with a password", url(good.replace("//", "//app:pw@")), "url holds a password"),
        create(f"{named} with a password alone", url(good.replace("//", "//:pw@")), "url holds a password"),
        create(f"{named} with a password as option", url(f"{good}?password=pw"), "url holds a password"),
        create(
            f"{named} with two users",
            url(good.replace("//", "//app@"), usernameSecretRef={"name": "login"}),
            "usernameSecretRef does so, too",
        ),
        create(
            f"{named}, and a login beside a whole URL",
            hive(**{server: {"external": {**urls(url="app"), **password}}}),
            "usernameSecretRef and passwordSecretRef go with url",
        ),
    ]


_SENTINEL = {"sentinelPasswordSecretRef": {"name": "login"}}
LOGINS = [
    *login_cases("redis", "redis://host:6379/0"),
    *login_cases("redis", "rediss+cluster://one,two:7000"),
    *login_cases("postgres", "postgresql://one,two/app?target_session_attrs=read-write"),
    create(
        "redis: password of the sentinels",
        hive(redis={"external": {"url": "rediss+sentinel://one,two/mymaster", **_SENTINEL}}),
    ),
    create(
        "redis: password of sentinels that there are none of",
        hive(redis={"external": {"url": "redis://one", **_SENTINEL}}),
        "sentinelPasswordSecretRef goes with a url of redis+sentinel://",
    ),
    create(
        "redis: password of the sentinels beside a whole URL",
        hive(redis={"external": {**urls(url="app"), **_SENTINEL}}),
        "sentinelPasswordSecretRef goes with a url of redis+sentinel://",
    ),
]

CACHE_AND_RETENTION = [
    create("cache: in a Redis of its own", hive(redis={"cache": urls(url="cache")})),
    create("cache: off", hive(redis={"cache": {"enabled": False}})),
    create("cache: off, with a Redis of its own", hive(redis={"cache": {"enabled": False, **urls(url="cache")}})),
    create("cache: bounded", hive(redis={"cache": {"maxBytes": 1024}})),
    create("cache: beside an external bus", external("redis", cache={"maxBytes": 2**40})),
    create(
        "cache: bounded, in a Redis of its own",
        hive(redis={"cache": {"maxBytes": 1024, **urls(url="cache")}}),
        "set either maxBytes (the cache's share of the Redis that carries the messages) or urlSecretRef",
    ),
    create("cache: of 1023 bytes", hive(redis={"cache": {"maxBytes": 1023}}), "cache.maxBytes"),
    create("cache: beyond 1 TiB", hive(redis={"cache": {"maxBytes": 2**40 + 1}}), "cache.maxBytes"),
    create(
        "retention: a day of everything",
        hive(retention=dict.fromkeys(("messagesDays", "metricsDays", "auditDays", "inboxDays"), 1)),
    ),
    create("retention: audit of a century", hive(retention={"auditDays": 36_500})),
    *(
        create(f"retention: {field} of zero", hive(retention={field: 0}), f"retention.{field}")
        for field in ("messagesDays", "metricsDays", "auditDays", "inboxDays")
    ),
    create("retention: metrics of more than ten years", hive(retention={"metricsDays": 3651}), "retention.metricsDays"),
]

INSTANCE_ID = [
    create("instanceId: set", hive(instanceId="eu-1")),
    create("instanceId: upper case", hive(instanceId="EU"), "instanceId"),
    create("instanceId: of 33", hive(instanceId="a" * 33), "instanceId"),
    update("instanceId: changed", hive(instanceId="a"), hive(instanceId="b"), "instanceId is immutable"),
    update("instanceId: removed", hive(instanceId="a"), hive(), "instanceId is immutable"),
    update("instanceId: kept", hive(instanceId="a"), hive(instanceId="a", suspend=True)),
    update(
        "instanceId: other than the generated one",
        hive(status={"instanceId": "generated"}),
        hive(instanceId="other"),
        "must be the one in status.instanceId",
    ),
    update(
        "instanceId: the generated one written down",
        hive(status={"instanceId": "generated"}),
        hive(instanceId="generated"),
    ),
]

HIVE_BOUNDS = [
    create("hive: unknown deletionPolicy", hive(deletionPolicy="Keep"), "deletionPolicy"),
    create("hive: ttl of zero", hive(messaging={"ttlSeconds": 0}), "messaging.ttlSeconds"),
    create("hive: retry delay above the cap", hive(messaging={"retryDelaySeconds": 301}), "retryDelaySeconds"),
    create("hive: fractional retry delay", hive(messaging={"retryDelaySeconds": 0.5})),
    create("hive: timeout of zero", hive(messaging={"handlerTimeoutSeconds": 0}), "handlerTimeoutSeconds"),
    create("hive: weight of zero", hive(messaging={"priorityWeights": {"low": 0}}), "priorityWeights.low"),
    create("hive: one connection", hive(redis={"pool": {"maxConnections": 1}}), "redis.pool.maxConnections"),
    create(
        "hive: more connections kept than allowed",
        hive(postgres={"pool": {"minSize": 5, "maxSize": 4}}),
        "pool.minSize must not exceed pool.maxSize",
    ),
    create(
        "hive: more connections kept than the default allows",
        hive(postgres={"pool": {"minSize": 11}}),
        "pool.minSize must not exceed pool.maxSize",
    ),
    create("hive: suspend is not a boolean", hive(suspend="yes"), "suspend"),
    create("hive: pull policy", hive(agentDefaults={"imagePullPolicy": "Sometimes"}), "imagePullPolicy"),
    create(
        "hive: the same pull secret twice",
        hive(agentDefaults={"imagePullSecrets": [{"name": "a"}, {"name": "a"}]}),
        "Duplicate value",
    ),
]

AGENT_NAMES = [
    create("agent: name of 47", agent("a" * 47)),
    create("agent: name of 48", agent("a" * 48), NAME_OF_AGENT),
    create("agent: name with a dot", agent("a.b"), NAME_OF_AGENT),
    create("agent: name that starts with a digit", agent("3d")),
]

AGENT_PROGRAM = [
    create("agent: entrypoint", agent()),
    create("agent: command and args", agent(entrypoint=None, command=["python"], args=["-m", "x"])),
    create("agent: entrypoint in a package", agent(entrypoint="pkg.sub.module:factory.agent")),
    create("agent: neither entrypoint nor command", agent(entrypoint=None), "set exactly one of entrypoint"),
    create("agent: both entrypoint and command", agent(command=["python"]), "set exactly one of entrypoint"),
    create("agent: args with an entrypoint", agent(args=["--fast"]), "args belong to command"),
    create("agent: empty command", agent(entrypoint=None, command=[]), "command"),
    *(
        create(f"agent: entrypoint {text!r}", agent(entrypoint=text), 'write entrypoint as "module:attribute"')
        for text in ("worker", "worker:", ":agent", "worker.py:agent:x", "a-b:agent", "1a:agent", "a:b c", "", "a..b:c")
    ),
]

AGENT_HIVE = [
    create("agent: no hive", agent(hiveRef=None), "hiveRef: Required"),
    create("agent: hive without a name", agent(hiveRef={}), "hiveRef.name: Required"),
    create("agent: impossible name of a hive", agent(hiveRef={"name": "No"}), "hiveRef.name"),
    update("agent: another hive", agent(), agent(hiveRef={"name": "other"}), "hiveRef.name is immutable"),
    update("agent: same hive", agent(), agent(concurrency=3)),
]

FROM_NODE = {"fieldRef": {"fieldPath": "spec.nodeName"}}
TWO_SOURCES = {"secretKeyRef": {"name": "s", "key": "k"}, "configMapKeyRef": {"name": "c", "key": "k"}}


def env_cases(place: str, make: Callable[..., Manifest]) -> list[Case]:
    """The rules of ``env`` and ``envFrom``, which ``make`` puts into a manifest."""
    return [
        create(f"{place}: env", make(env=[{"name": "A", "value": "1"}])),
        create(f"{place}: env from the pod", make(env=[{"name": "NODE", "valueFrom": FROM_NODE}])),
        create(f"{place}: env AGENTHIVE_HIVE", make(env=[{"name": "AGENTHIVE_HIVE", "value": "x"}]), RESERVED),
        create(f"{place}: the same variable twice", make(env=[{"name": "A"}, {"name": "A"}]), "Duplicate value"),
        create(f"{place}: env name with =", make(env=[{"name": "A=B"}]), "env[0].name"),
        create(
            f"{place}: value and valueFrom",
            make(env=[{"name": "A", "value": "1", "valueFrom": FROM_NODE}]),
            "set either value or valueFrom",
        ),
        create(f"{place}: empty valueFrom", make(env=[{"name": "A", "valueFrom": {}}]), "valueFrom needs exactly one"),
        create(
            f"{place}: two sources of a value",
            make(env=[{"name": "A", "valueFrom": TWO_SOURCES}]),
            "valueFrom needs exactly one",
        ),
        create(f"{place}: envFrom a Secret", make(envFrom=[{"secretRef": {"name": "s"}}])),
        create(f"{place}: envFrom nothing", make(envFrom=[{}]), "an item of envFrom needs exactly one"),
        create(
            f"{place}: envFrom both",
            make(envFrom=[{"secretRef": {"name": "s"}, "configMapRef": {"name": "c"}}]),
            "an item of envFrom needs exactly one",
        ),
    ]


AGENT_BOUNDS = [
    create("agent: no handlers", agent(concurrency=0), "concurrency"),
    create("agent: negative replicas", agent(replicas=-1), "replicas"),
    create("agent: zero replicas", agent(replicas=0)),
    create("agent: replicas as text", agent(replicas="two"), "replicas"),
    create("agent: negative drainSeconds", agent(drainSeconds=-1), "drainSeconds"),
    create("agent: image with a blank", agent(image="a b"), "image"),
    create("agent: codeFrom without a ConfigMap", agent(codeFrom={}), "configMapRef: Required"),
    create("agent: the same capability twice", agent(capabilities=["a", "a"]), "Duplicate value"),
    create("agent: capability with a comma", agent(capabilities=["a,b"]), "capabilities[0]"),
    create("agent: topics from the beginning", agent(topics=["news", "v1.Releases_x"], topicStart="beginning")),
    create("agent: the same topic twice", agent(topics=["a", "a"]), "Duplicate value"),
    create("agent: topic with a comma", agent(topics=["a,b"]), "topics[0]"),
    create("agent: topic start that is none", agent(topicStart="yesterday"), "topicStart"),
    create("agent: quantities", agent(resources={"requests": {"cpu": 1, "memory": "64Mi"}})),
    create("agent: request that is no quantity", agent(resources={"requests": {"cpu": "1 core"}}), "requests.cpu"),
]

POD_TEMPLATE = [
    create(
        "podTemplate: sidecar, volume and toleration",
        agent(
            podTemplate={
                "metadata": {"labels": {"team": "a"}, "annotations": {"x/y": "z"}},
                "spec": {
                    "containers": [{"name": "proxy", "image": "p:1", "command": ["p"], "env": [{"name": "A"}]}],
                    "volumes": [{"name": "scratch", "emptyDir": {}}],
                    "tolerations": [{"key": "gpu", "operator": "Exists"}],
                },
            }
        ),
    ),
    create(
        "podTemplate: mount for the agent",
        containers({"name": "agent", "volumeMounts": [{"name": "s", "mountPath": "/s"}]}),
    ),
    create("podTemplate: command of the agent", containers({"name": "agent", "command": ["x"]}), "set it there"),
    create("podTemplate: args of the agent", containers({"name": "agent", "args": ["x"]}), "set it there"),
    create(
        "podTemplate: reserved variable of the agent",
        containers({"name": "agent", "env": [{"name": "AGENTHIVE_REDIS_URL", "value": "redis://evil"}]}),
        RESERVED,
    ),
    create(
        "podTemplate: reserved variable of a sidecar",
        containers({"name": "proxy", "env": [{"name": "AGENTHIVE_AGENT", "value": "other"}]}),
        RESERVED,
    ),
    create(
        "podTemplate: reserved variable of an init container",
        containers({"name": "init", "env": [{"name": "AGENTHIVE_AGENT", "value": "other"}]}, key="initContainers"),
        RESERVED,
    ),
    create(
        "podTemplate: init container called agent",
        containers({"name": "agent", "image": "x"}, key="initContainers"),
        "name the init container otherwise",
    ),
    create("podTemplate: container without a name", containers({"image": "x"}), "containers[0].name: Required"),
    create("podTemplate: the same container twice", containers({"name": "a"}, {"name": "a"}), "Duplicate value"),
    *(
        create(f"podTemplate: label {key}", agent(podTemplate={"metadata": {"labels": {key: "x"}}}), OWN_LABELS)
        for key in (
            "agenthive.dev/agent",
            "agenthive.dev/anything",
            "app.kubernetes.io/name",
            "app.kubernetes.io/managed-by",
            "pod-template-hash",
        )
    ),
    *(
        create(f"agentDefaults.podTemplate: {name}", hive(agentDefaults={"podTemplate": template}), expected)
        for name, template, expected in (
            ("label of the operator's", {"metadata": {"labels": {"agenthive.dev/agent": "x"}}}, OWN_LABELS),
            (
                "command of the agent",
                {"spec": {"containers": [{"name": "agent", "command": ["x"]}]}},
                "set it there",
            ),
            (
                "reserved variable",
                {"spec": {"containers": [{"name": "agent", "env": [{"name": "AGENTHIVE_HIVE", "value": "x"}]}]}},
                "AGENTHIVE_*",
            ),
            (
                "init container called agent",
                {"spec": {"initContainers": [{"name": "agent", "image": "x"}]}},
                "name the init container otherwise",
            ),
        )
    ),
    create(
        "podTemplate: foreign label", agent(podTemplate={"metadata": {"labels": {"app.kubernetes.io/part-of": "x"}}})
    ),
]


def network(**fields: Any) -> Manifest:
    """A hive with ``fields`` of networkPolicy."""
    return hive(networkPolicy=fields)


PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}, "podSelector": {}}
TO_DATABASE = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"]}}], "ports": [{"port": 5432}]}
NETWORK_POLICY = [
    create("network: disabled", network(enabled=False)),
    create("network: metrics for a namespace", network(metricsFrom=[PEER])),
    create("network: metrics for nobody named", network(metricsFrom=[{}]), "a peer needs a podSelector"),
    create("network: a list of peers that is none", network(metricsFrom=PEER), "metricsFrom"),
    create(
        "network: a peer of two kinds",
        network(metricsFrom=[PEER | {"ipBlock": {"cidr": "10.0.0.0/8"}}]),
        "a peer is either an ipBlock",
    ),
    create("network: a block without a range", network(metricsFrom=[{"ipBlock": {}}]), "metricsFrom[0].ipBlock.cidr"),
    create("network: egress denied", network(egress="deny")),
    create("network: egress allowed to a range", network(egress="deny", allowEgress=[TO_DATABASE])),
    create("network: egress allowed on a port", network(egress="deny", allowEgress=[{"ports": [{"port": 443}]}])),
    create("network: a rule that allows all", network(egress="deny", allowEgress=[{}]), "would allow everything"),
    create(
        "network: a rule of empty lists",
        network(egress="deny", allowEgress=[{"to": [], "ports": []}]),
        "would allow everything",
    ),
    create(
        "network: egress to an empty peer", network(egress="deny", allowEgress=[{"to": [{}]}]), "a peer needs a podSel"
    ),
    create("network: allowed while open", network(allowEgress=[TO_DATABASE]), "no effect while egress is open"),
    create("network: nothing allowed while open", network(egress="open", allowEgress=[])),
    create("network: egress neither open nor denied", network(egress="closed"), "networkPolicy.egress"),
]

CASES: list[Case] = [
    *HIVE_NAMES,
    *server_cases("redis"),
    *server_cases("postgres"),
    *EXTERNAL_URLS,
    *LOGINS,
    *CACHE_AND_RETENTION,
    *INSTANCE_ID,
    *HIVE_BOUNDS,
    *AGENT_NAMES,
    *AGENT_PROGRAM,
    *AGENT_HIVE,
    *env_cases("agentDefaults", hive_with_defaults),
    *env_cases("agent", agent),
    *AGENT_BOUNDS,
    *POD_TEMPLATE,
    *NETWORK_POLICY,
]
