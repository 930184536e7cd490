"""What the managed Redis and the managed PostgreSQL have in common: Secret, ConfigMap, Service, StatefulSet."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agenthive_operator.api.hive import AgentHive, ManagedServer, Storage
from agenthive_operator.plan import names, pods
from agenthive_operator.plan.checksum import digest
from agenthive_operator.plan.inputs import ObservedServer
from agenthive_operator.plan.names import Component
from agenthive_operator.plan.quantity import canonical, value

# User and group `redis`/`valkey` and `postgres` of the official Debian images.
SERVER_USER = 999
SECRET_PATH = "/etc/agenthive-secret"  # noqa: S105 - a folder
SECRET_MODE = 0o440
DATA_VOLUME = "data"


class MissingPasswordError(ValueError):
    """A managed server was planned without its password: the caller reads or mints it first."""


@dataclass(frozen=True, slots=True)
class ServerParts:
    """What one managed server adds to the common objects.

    Attributes:
        container: The server's container without what is common (security, secret and data mounts).
        data_path: Where the data volume is mounted.
        scratch: Path by name of each emptyDir; the root file system is read-only.
        secret: Texts of the Secret.
        config: Texts of the ConfigMap; empty means none.
        config_path: Where the ConfigMap is mounted.
        grace: Seconds between SIGTERM and SIGKILL.
        beside: A Secret that may be there, whose texts lie beside those of ``secret``; a change restarts nothing.
    """

    container: dict[str, Any]
    data_path: str
    scratch: Mapping[str, str]
    secret: Mapping[str, str]
    config: Mapping[str, str]
    config_path: str
    grace: int
    beside: str | None = None


def password_of(observed: ObservedServer, hive: AgentHive, component: Component) -> str:
    """The server's password.

    Raises:
        MissingPasswordError: ``observed`` holds none.
    """
    if not observed.password:
        name = names.server_name(hive.metadata.name, component)
        raise MissingPasswordError(f"the managed server {name} has no password: read it from its Secret, or mint one")
    return observed.password


def service_host(hive: AgentHive, component: Component) -> str:
    """DNS name of a managed server."""
    return f"{names.server_name(hive.metadata.name, component)}.{hive.metadata.namespace}.svc"


def encoded(texts: Mapping[str, str]) -> dict[str, str]:
    """The ``data`` of a Secret."""
    return {key: base64.b64encode(text.encode()).decode() for key, text in sorted(texts.items())}


def server_objects(
    hive: AgentHive, component: Component, spec: ManagedServer, observed: ObservedServer, parts: ServerParts
) -> list[dict[str, Any]]:
    """The objects of one managed server, in the order in which they are applied."""
    objects = [_secret(hive, component, spec, parts)]
    if parts.config:
        objects.append(names.hive_child("v1", "ConfigMap", hive, component, data=dict(sorted(parts.config.items()))))
    objects.append(_service(hive, component, parts))
    objects.append(_stateful_set(hive, component, spec, observed, parts))
    return objects


def _secret(hive: AgentHive, component: Component, spec: ManagedServer, parts: ServerParts) -> dict[str, Any]:
    """The admin Secret. It has no owner where the volume stays.

    A volume is of no use without its password, and its data not found again without the instance id.
    """
    secret = names.hive_child("v1", "Secret", hive, component, type="Opaque", data=encoded(parts.secret))
    if hive.instance_id is not None:
        secret["metadata"]["annotations"] = {names.INSTANCE_ANNOTATION: hive.instance_id}
    if hive.spec.deletion_policy == "Retain" and not spec.ephemeral:
        del secret["metadata"]["ownerReferences"]
    return secret


def _service(hive: AgentHive, component: Component, parts: ServerParts) -> dict[str, Any]:
    """A headless Service: the name resolves to the one pod while that is ready."""
    port = parts.container["ports"][0]
    service_port = {
        "name": port["name"],
        "port": port["containerPort"],
        "protocol": "TCP",
        "targetPort": port["name"],
    }
    spec = {
        "clusterIP": "None",
        "selector": names.server_selector(hive.metadata.name, component),
        "ports": [service_port],
    }
    return names.hive_child("v1", "Service", hive, component, spec=spec)


def _stateful_set(
    hive: AgentHive, component: Component, spec: ManagedServer, observed: ObservedServer, parts: ServerParts
) -> dict[str, Any]:
    name = names.server_name(hive.metadata.name, component)
    # The server reads both once, when it starts.
    checksum = digest({"secret": dict(parts.secret), "config": dict(parts.config)})
    stateful: dict[str, Any] = {
        "serviceName": name,
        "replicas": 1,
        "revisionHistoryLimit": 3,
        "selector": {"matchLabels": names.server_selector(hive.metadata.name, component)},
        "persistentVolumeClaimRetentionPolicy": {
            "whenDeleted": hive.spec.deletion_policy,
            "whenScaled": "Retain",
        },
        "template": {
            "metadata": {
                "labels": names.labels(hive.metadata.name, component),
                "annotations": {**spec.annotations, names.CHECKSUM_ANNOTATION: checksum},
            },
            "spec": _pod_spec(name, spec, parts),
        },
    }
    if not spec.ephemeral:
        stateful["volumeClaimTemplates"] = [_claim_template(hive, component, spec.storage or Storage(), observed)]
    return names.hive_child("apps/v1", "StatefulSet", hive, component, spec=stateful)


def _pod_spec(name: str, spec: ManagedServer, parts: ServerParts) -> dict[str, Any]:
    mounts = [pods.mount(DATA_VOLUME, parts.data_path), pods.mount("secret", SECRET_PATH, read_only=True)]
    volumes: list[dict[str, Any]] = [_secret_volume(name, parts.beside)]
    if parts.config:
        mounts.append(pods.mount("config", parts.config_path, read_only=True))
        volumes.append({"name": "config", "configMap": {"name": name}})
    for volume, path in parts.scratch.items():
        mounts.append(pods.mount(volume, path))
        volumes.append(pods.empty_dir(volume))
    if spec.ephemeral:
        volumes.append(pods.empty_dir(DATA_VOLUME))
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pods.pod_security(SERVER_USER),
        "terminationGracePeriodSeconds": parts.grace,
        "containers": [
            {**parts.container, "securityContext": pods.container_security(), "volumeMounts": mounts},
        ],
        "volumes": volumes,
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [secret.dump() for secret in spec.image_pull_secrets]
    return pod


def _secret_volume(name: str, beside: str | None) -> dict[str, Any]:
    if beside is None:
        return {"name": "secret", "secret": {"secretName": name, "defaultMode": SECRET_MODE}}
    sources = [{"secret": {"name": name}}, {"secret": {"name": beside, "optional": True}}]
    return {"name": "secret", "projected": {"sources": sources, "defaultMode": SECRET_MODE}}


def _claim_template(
    hive: AgentHive, component: Component, storage: Storage, observed: ObservedServer
) -> dict[str, Any]:
    claim: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": canonical(observed.claim_size or storage.size)}},
        "volumeMode": "Filesystem",
    }
    if storage.storage_class_name is not None:
        claim["storageClassName"] = storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": DATA_VOLUME, "labels": names.labels(hive.metadata.name, component)},
        "spec": claim,
    }


def claim_size(stateful_set: Mapping[str, Any] | None) -> str | None:
    """The size in the claim template of a StatefulSet, if it has one."""
    for template in ((stateful_set or {}).get("spec") or {}).get("volumeClaimTemplates") or ():
        size = template["spec"]["resources"]["requests"].get("storage")
        return str(size) if size else None
    return None


def grown_claim(
    hive: AgentHive, component: Component, spec: ManagedServer, observed: ObservedServer
) -> dict[str, Any] | None:
    """The volume claim with the size that the spec asks for, where that is more than the template's.

    The template of a StatefulSet is immutable, so that an existing volume grows by its claim. The claim belongs to the
    StatefulSet controller: only its size is applied, and only where it exists.
    """
    if spec.ephemeral or observed.claim_size is None:
        return None
    wanted = (spec.storage or Storage()).size
    if value(wanted) <= value(observed.claim_size):
        return None
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names.claim_name(hive.metadata.name, component),
            "namespace": hive.metadata.namespace,
        },
        "spec": {"resources": {"requests": {"storage": canonical(wanted)}}},
    }


def annotated_claim(
    hive: AgentHive, component: Component, spec: ManagedServer, observed: ObservedServer
) -> dict[str, Any] | None:
    """The volume claim with the annotations that the spec asks for; None where it has none and had none.

    They are not in the StatefulSet's template of the claim, which is immutable.
    """
    if spec.ephemeral or not (spec.annotations or observed.annotated):
        return None
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names.claim_name(hive.metadata.name, component),
            "namespace": hive.metadata.namespace,
            "annotations": dict(spec.annotations),
        },
    }
