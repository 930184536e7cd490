"""How a person's command line reaches a hive in a cluster: its Secrets and settings, read through KUBECONFIG."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click
from kubernetes.aio import config

from agenthive.settings import Settings
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import InvalidObjectError
from agenthive_operator.backends.kube import AGENT_HIVE, SECRET, ApiError, Kube, secret_data
from agenthive_operator.backends.resolve import NoEndpointError, Resolver
from agenthive_operator.plan.names import Component, server_name

SERVERS: Final[tuple[Component, Component]] = ("redis", "postgres")


class HiveLookupError(click.ClickException):
    """The hive, its Secrets or its servers' addresses could not be read; the text says which and what to do."""


async def hive_settings(hive: str, namespace: str | None = None) -> Settings:
    """The settings with which a process outside of the cluster talks to a hive.

    ``namespace``: None means that of the context in KUBECONFIG, else ``default``. Service names become addresses of
    ready endpoints, unless this runs in a pod, where DNS knows them.

    Raises:
        HiveLookupError: see there.
    """
    try:
        kube = await Kube.connect(user_agent="agenthive")
    except config.ConfigException as error:
        raise HiveLookupError(f"no cluster to ask for hive {hive!r}: {error}. Set KUBECONFIG") from error
    async with kube:
        try:
            return await _read(kube, hive, namespace or context_namespace())
        except ApiError as error:
            raise HiveLookupError(f"the cluster refused to tell about hive {hive!r}: {error}") from error
        except (NoEndpointError, InvalidObjectError) as error:
            raise HiveLookupError(f"hive {hive!r}: {error}") from error


async def _read(kube: Kube, name: str, namespace: str) -> Settings:
    live = await kube.get(AGENT_HIVE, namespace, name)
    if live is None:
        raise HiveLookupError(f"there is no AgentHive {name!r} in namespace {namespace!r}; see kubectl get hives -A")
    hive = AgentHive.parse(live)
    if hive.instance_id is None:
        raise HiveLookupError(f"hive {name!r} was not looked at by an operator yet; is one running?")
    resolver = Resolver(kube, enabled="KUBERNETES_SERVICE_HOST" not in os.environ)
    urls: dict[str, str] = {}
    for server, (secret, key) in _pointers(hive).items():
        found = await kube.get(SECRET, namespace, secret)
        url = secret_data(found).get(key, "").strip() if found else ""
        if not url:
            raise HiveLookupError(f"Secret {secret!r} in namespace {namespace!r} has no key {key!r} with a URL")
        urls[f"{server}_url"] = await resolver.resolve(url)
    return Settings.model_validate(
        {
            "instance": hive.instance_id,
            "namespace": namespace,
            "hive": name,
            **urls,
            "messaging": hive.spec.messaging,
            "redis_pool": hive.spec.redis.pool,
            "postgres_pool": hive.spec.postgres.pool,
            "cache": hive.spec.redis.cache.policy,
            "retention": hive.spec.retention,
        }
    )


def _pointers(hive: AgentHive) -> dict[str, tuple[str, str]]:
    """Secret and key with the URL of each server that a process of the hive talks to. Pure."""
    redis, postgres, cache = hive.spec.redis.external, hive.spec.postgres.external, hive.spec.redis.cache.own_url
    found: dict[str, tuple[str, str]] = {server: (server_name(hive.metadata.name, server), "url") for server in SERVERS}
    if redis is not None:
        found["redis"] = redis.url_secret_ref.name, redis.url_secret_ref.key
    if postgres is not None:
        found["postgres"] = postgres.url_secret_ref.name, postgres.url_secret_ref.key
        if postgres.direct_url_secret_ref is not None:
            found["postgres_direct"] = postgres.direct_url_secret_ref.name, postgres.direct_url_secret_ref.key
    if cache is not None:
        found["cache"] = cache.name, cache.key
    return found


def context_namespace() -> str:
    """The namespace of the current context in KUBECONFIG; ``default`` where it names none."""
    named = os.environ.get("KUBECONFIG", "").strip() or str(Path("~/.kube/config").expanduser())
    load: Any = config  # the package carries no annotations
    try:
        _, active = load.list_kube_config_contexts(config_file=named)
    except config.ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")
