"""The children of an Agent: the Secret with its connections, the Deployment of its pods, their disruption budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agenthive.settings import DEFAULT_HTTP_PORT, CachePolicy, Policy
from agenthive_operator.api.agent import Agent
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import EnvVar
from agenthive_operator.api.podtemplate import AGENT_CONTAINER
from agenthive_operator.plan import names, pods
from agenthive_operator.plan.checksum import digest
from agenthive_operator.plan.external import TLS_PATH
from agenthive_operator.plan.inputs import ObservedAgent
from agenthive_operator.plan.references import agent_references, default_references
from agenthive_operator.plan.replicas import SURGE_PERCENT, replicas
from agenthive_operator.plan.servers import encoded
from agenthive_operator.plan.template import merged_template, spread_by_default, user_templates

# An account that no image owns anything by: an image that runs as root would be refused by Pod Security otherwise.
AGENT_USER = 65532
CODE_PATH = "/agenthive/code"
CODE_VOLUME = "code"
TLS_VOLUME = "agenthive-tls"
# Read by the pod's group, which fsGroup makes the agent's.
TLS_MODE = 0o440
HTTP_PORT_NAME = "http"
REDIS_URL = "AGENTHIVE_REDIS_URL"
POSTGRES_URL = "AGENTHIVE_POSTGRES_URL"
CACHE_URL = "AGENTHIVE_CACHE_URL"
DEFAULT_RESOURCES = {"requests": {"cpu": "50m", "memory": "96Mi"}}
# Handlers have drainSeconds; handing back what is left, closing connections and the last flush come after.
GRACE_BEYOND_DRAIN_SECONDS = 15
# The program that answers the probes: the runtime, under the name its package gives it.
RUNTIME = ("agenthive", "run")
# Pods that may be evicted at once. A share is rounded up, so it is one pod up to ten replicas.
MAX_UNAVAILABLE = "10%"


def plan_agent(agent: Agent, hive: AgentHive, observed: ObservedAgent) -> list[dict[str, Any]]:
    """The objects that ``agent`` should own, as bodies of server-side apply, in the order to apply them."""
    planned = [_secret(agent, observed), _deployment(agent, hive, observed)]
    if replicas(agent, hive) > 1:  # of one pod, a budget would only keep its node from being drained
        planned.append(_budget(agent))
    return planned


def _connections(observed: ObservedAgent) -> dict[str, str]:
    urls = {REDIS_URL: observed.redis_url, POSTGRES_URL: observed.postgres_url, CACHE_URL: observed.cache_url}
    return {key: url for key, url in urls.items() if url is not None}


def _secrets(observed: ObservedAgent) -> dict[str, str]:
    """All that the Agent's own Secret holds: connections, and the certificates that they name."""
    return {**_connections(observed), **observed.tls_files}


def _secret(agent: Agent, observed: ObservedAgent) -> dict[str, Any]:
    """Pods use only this Secret of the operator's: a bad new value elsewhere never reaches them."""
    name, credentials = names.agent_secret_name(agent.metadata.name), observed.credentials
    data = encoded({**_secrets(observed), **credentials.previous})
    secret = names.agent_child("v1", "Secret", name, agent, type="Opaque", data=data)
    if credentials.annotations:
        secret["metadata"]["annotations"] = credentials.annotations
    return secret


def _deployment(agent: Agent, hive: AgentHive, observed: ObservedAgent) -> dict[str, Any]:
    selector = names.agent_selector(hive.metadata.name, agent.metadata.name)
    template = pod_template(agent, hive, observed)
    spec = {
        "replicas": replicas(agent, hive, halted=observed.halted),
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": selector},
        # The new pod is ready before the old one drains.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": f"{SURGE_PERCENT}%", "maxUnavailable": 0}},
        "template": template,
    }
    deployment = names.agent_child("apps/v1", "Deployment", agent.metadata.name, agent, spec=spec)
    deployment["metadata"]["annotations"] = {
        names.TEMPLATE_ANNOTATION: digest(template),
        names.CHANGE_ANNOTATION: hive_change(hive, observed),
    }
    return deployment


def _budget(agent: Agent) -> dict[str, Any]:
    name = agent.metadata.name
    spec = {
        "maxUnavailable": MAX_UNAVAILABLE,
        "selector": {"matchLabels": names.agent_selector(agent.spec.hive_ref.name, name)},
        # A pod that does not work protects nothing, and must not keep its node from being drained.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return names.agent_child("policy/v1", "PodDisruptionBudget", name, agent, spec=spec)


def checksum(agent: Agent, hive: AgentHive, observed: ObservedAgent) -> str:
    """Digest of all data that the pods use: connections, and the Secrets and ConfigMaps that they refer to."""
    used = {
        f"{reference.kind}/{reference.name}": observed.digests.get(reference)
        for reference in sorted(agent_references(agent, hive))
    }
    return digest({"connections": _secrets(observed), "references": used})


def hive_change(hive: AgentHive, observed: ObservedAgent) -> str:
    """Digest of what the pods of all agents of a hive have from it: of one change, every Deployment has the same."""
    used = {f"{pointer.kind}/{pointer.name}": observed.digests.get(pointer) for pointer in default_references(hive)}
    policies = (hive.spec.messaging, hive.spec.redis.pool, hive.spec.postgres.pool, _cache(hive, observed))
    return digest(
        {
            "defaults": hive.spec.agent_defaults.dump(),
            "policies": [policy.to_env() for policy in (*policies, hive.spec.retention)],
            "image": observed.runtime_image,
            # Without the login, which is each agent's own.
            "servers": {key: url.rpartition("@")[2] for key, url in _connections(observed).items()},
            "references": used,
        }
    )


def pod_template(agent: Agent, hive: AgentHive, observed: ObservedAgent) -> dict[str, Any]:
    """The pod template: what the operator needs, merged with what the podTemplates of hive and Agent add."""
    own_labels = names.labels(hive.metadata.name, "agent", agent.metadata.name)
    if observed.credentials.since:  # absent while the first ones are in use
        own_labels[names.CREDENTIALS_MARK] = observed.credentials.since
    own_annotations = {names.CHECKSUM_ANNOTATION: checksum(agent, hive, observed)}
    base = {
        "metadata": {"labels": own_labels, "annotations": own_annotations},
        "spec": _pod_spec(agent, hive, observed),
    }
    template = merged_template(base, user_templates(agent, hive))
    pods.canonical_template(template)
    return template


def _pod_spec(agent: Agent, hive: AgentHive, observed: ObservedAgent) -> dict[str, Any]:
    spec, defaults = agent.spec, hive.spec.agent_defaults
    volumes = [pods.empty_dir("tmp")]
    mounts = [pods.mount("tmp", "/tmp")]  # noqa: S108 - a mount
    if spec.code_from is not None:
        volumes.append({"name": CODE_VOLUME, "configMap": {"name": spec.code_from.config_map_ref.name}})
        mounts.append(pods.mount(CODE_VOLUME, CODE_PATH, read_only=True))
    if observed.tls_files:
        volumes.append(_certificates(agent, observed))
        mounts.append(pods.mount(TLS_VOLUME, TLS_PATH, read_only=True))
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pods.pod_security(AGENT_USER),
        "terminationGracePeriodSeconds": spec.drain_seconds + GRACE_BEYOND_DRAIN_SECONDS,
        "containers": [{**_container(agent, hive, observed), "volumeMounts": mounts}],
        "volumes": volumes,
    }
    if spread := spread_by_default(hive.metadata.name, agent.metadata.name, user_templates(agent, hive)):
        pod["topologySpreadConstraints"] = spread
    if pull_secrets := spec.image_pull_secrets or defaults.image_pull_secrets:
        pod["imagePullSecrets"] = [secret.dump() for secret in pull_secrets]
    if spec.service_account_name is not None:
        pod["serviceAccountName"] = spec.service_account_name
    return pod


def _certificates(agent: Agent, observed: ObservedAgent) -> dict[str, Any]:
    """The certificates alone, out of the Agent's Secret: URLs belong into the environment.

    Optional, since pods of the template before may start anew when the hive has just given up its certificates.
    """
    source = {
        "secretName": names.agent_secret_name(agent.metadata.name),
        "items": [{"key": name, "path": name} for name in sorted(observed.tls_files)],
        "defaultMode": TLS_MODE,
        "optional": True,
    }
    return {"name": TLS_VOLUME, "secret": source}


def _container(agent: Agent, hive: AgentHive, observed: ObservedAgent) -> dict[str, Any]:
    spec, defaults = agent.spec, hive.spec.agent_defaults
    container: dict[str, Any] = {
        "name": AGENT_CONTAINER,
        "image": spec.image or defaults.image or observed.runtime_image,
        **_program(agent),
        "env": _environment(agent, hive, observed),
        "ports": [{"name": HTTP_PORT_NAME, "containerPort": DEFAULT_HTTP_PORT, "protocol": "TCP"}],
        "resources": pods.resources(spec.resources or defaults.resources, DEFAULT_RESOURCES),
        "securityContext": pods.container_security(),
        **_probes(agent),
        # What kills an agent before it can say why still reaches the condition: the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if (policy := spec.image_pull_policy or defaults.image_pull_policy) is not None:
        container["imagePullPolicy"] = policy
    elif container["image"] == observed.runtime_image:
        # Its tag may be "latest", of which Kubernetes would ask a registry each time: a loaded image has to do.
        container["imagePullPolicy"] = "IfNotPresent"
    if sources := [source.dump() for source in (*defaults.env_from, *spec.env_from)]:
        container["envFrom"] = sources
    return container


def _program(agent: Agent) -> dict[str, Any]:
    if agent.spec.entrypoint is not None:
        return {"command": list(RUNTIME), "args": [agent.spec.entrypoint]}
    program: dict[str, Any] = {"command": list(agent.spec.command or ())}
    if agent.spec.args:
        program["args"] = list(agent.spec.args)
    return program


def _probes(agent: Agent) -> dict[str, Any]:
    """The runtime answers probes. Of another program nobody knows that: one that does not would be killed by them."""
    if agent.spec.entrypoint is None and tuple(agent.spec.command or ())[: len(RUNTIME)] != RUNTIME:
        return {}
    livez = {"httpGet": {"path": "/livez", "port": HTTP_PORT_NAME}}
    readyz = {"httpGet": {"path": "/readyz", "port": HTTP_PORT_NAME}}
    return {
        # Models and indexes may take minutes to load: five of them before the kubelet gives up.
        "startupProbe": pods.probe(livez, period=1, failures=300, timeout=2),
        "livenessProbe": pods.probe(livez, period=10, failures=6, timeout=5),
        "readinessProbe": pods.probe(readyz, period=2, failures=3, timeout=2),
    }


def _environment(agent: Agent, hive: AgentHive, observed: ObservedAgent) -> list[dict[str, Any]]:
    """The operator's variables first, so that the user's may refer to them; the Agent's win over its hive's."""
    own = [
        pods.env("AGENTHIVE_INSTANCE", observed.instance_id),
        pods.env("AGENTHIVE_NAMESPACE", agent.metadata.namespace),
        pods.env("AGENTHIVE_HIVE", hive.metadata.name),
        pods.env("AGENTHIVE_AGENT", agent.metadata.name),
        {
            "name": "AGENTHIVE_POD",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
        },
        *(
            # Pods of the template before may start anew when the hive has just given up its cache's own Redis.
            pods.secret_env(key, names.agent_secret_name(agent.metadata.name), key, optional=key == CACHE_URL)
            for key in _connections(observed)
        ),
        pods.env("AGENTHIVE_CONCURRENCY", str(agent.spec.concurrency)),
        pods.env("AGENTHIVE_DRAIN_SECONDS", str(agent.spec.drain_seconds)),
    ]
    if agent.spec.capabilities:
        own.append(pods.env("AGENTHIVE_CAPABILITIES", ",".join(agent.spec.capabilities)))
    if agent.spec.topics:
        own.append(pods.env("AGENTHIVE_TOPICS", ",".join(agent.spec.topics)))
        own.append(pods.env("AGENTHIVE_TOPIC_START", agent.spec.topic_start))
    own += _policies(
        ("AGENTHIVE_MESSAGING", hive.spec.messaging),
        ("AGENTHIVE_REDIS_POOL", hive.spec.redis.pool),
        ("AGENTHIVE_POSTGRES_POOL", hive.spec.postgres.pool),
        ("AGENTHIVE_CACHE", _cache(hive, observed)),
        ("AGENTHIVE_RETENTION", hive.spec.retention),
    )
    # The root file system is read-only and the account has no home of its own.
    own.append(pods.env("HOME", "/tmp"))  # noqa: S108 - a mount
    if agent.spec.code_from is not None:
        own.append(pods.env("PYTHONPATH", CODE_PATH))
    return _with_users(own, (*hive.spec.agent_defaults.env, *agent.spec.env))


def _cache(hive: AgentHive, observed: ObservedAgent) -> CachePolicy:
    """What the hive says; off as long as the cache's own Redis was never found good: it is not to fill another."""
    cache = hive.spec.redis.cache
    return CachePolicy(enabled=False) if cache.own_url is not None and observed.cache_url is None else cache.policy


def _policies(*policies: tuple[str, Policy]) -> list[dict[str, Any]]:
    """A variable for each policy that differs from the defaults."""
    return [pods.env(name, policy.to_env()) for name, policy in policies if policy != type(policy)()]


def _with_users(own: Sequence[dict[str, Any]], users: Iterable[EnvVar]) -> list[dict[str, Any]]:
    """``own`` and the user's variables; of one name the last counts, in the first one's place.

    The CRD refuses AGENTHIVE_*; HOME and PYTHONPATH may be the user's, the latter behind the mounted code.
    """
    variables = {variable["name"]: variable for variable in own}
    mounted_code = "PYTHONPATH" in variables
    reserved = variables.keys() - {"HOME", "PYTHONPATH"}
    for user in users:
        if user.name in reserved:
            continue
        variable = user.dump()
        if user.name == "PYTHONPATH" and mounted_code and user.value:
            variable["value"] = f"{CODE_PATH}:{user.value}"
        if variable.get("value") == "":
            del variable["value"]
        variables[user.name] = variable
    return list(variables.values())
