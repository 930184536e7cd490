"""How a person's command line reaches a hive in a cluster: its Secrets and settings, read through KUBECONFIG."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import click
from kubernetes.aio import config

from agenthive.settings import Settings
from agenthive_operator.api.hive import AgentHive
from agenthive_operator.api.meta import InvalidObjectError, SecretKeyReference
from agenthive_operator.backends.certificates import CertificateFolder
from agenthive_operator.backends.kube import AGENT_HIVE, SECRET, ApiError, Kube, secret_data
from agenthive_operator.backends.resolve import NoEndpointError, Resolver
from agenthive_operator.plan.book import Book, book_of
from agenthive_operator.plan.external import (
    Secrets,
    Server,
    UnusableError,
    Ways,
    cache_way,
    secret_names,
    secret_text,
    ways_in,
)
from agenthive_operator.plan.names import connections_name, server_name

SERVERS: Final[tuple[Server, Server]] = ("redis", "postgres")


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
    book = await _in_force(kube, hive)
    secrets: dict[str, dict[str, str] | None] = {}
    for secret in sorted(_secret_names(hive)):
        found = await kube.get(SECRET, namespace, secret)
        secrets[secret] = secret_data(found) if found else None
    try:
        urls = {f"{name}_url": await resolver.resolve(url) for name, url in _urls(hive, book, secrets).items()}
    except UnusableError as error:
        raise HiveLookupError(f"hive {name!r} in namespace {namespace!r}: {error}") from error
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


async def _in_force(kube: Kube, hive: AgentHive) -> Book:
    """The servers in force; none where this user may not read them, or an older operator keeps no book."""
    try:
        found = await kube.get(SECRET, hive.metadata.namespace, connections_name(hive.metadata.name))
    except ApiError as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return Book()
    return book_of(secret_data(found)) if found is not None else Book()


def _secret_names(hive: AgentHive) -> set[str]:
    """The Secrets with what a process of the hive needs to connect. Pure."""
    cache = hive.spec.redis.cache.own_url
    names = {cache.name} if cache else set()
    for server in SERVERS:
        external = hive.spec.redis.external if server == "redis" else hive.spec.postgres.external
        names |= secret_names(external, admin=False) if external else {server_name(hive.metadata.name, server)}
    return names


def _urls(hive: AgentHive, book: Book, secrets: Secrets) -> dict[str, str]:
    """URLs by server that a process of the hive connects to; certificates are laid into files until it ends.

    Raises ``UnusableError``.
    """
    now, name = datetime.now(UTC), hive.metadata.name
    urls: dict[str, str] = {}
    for server in SERVERS:
        external = hive.spec.redis.external if server == "redis" else hive.spec.postgres.external
        if (held := book.held(server)) is not None:
            _note(urls, server, held.ways(server))
            continue
        if external is None:
            pointer = SecretKeyReference(name=server_name(name, server), key="url")
            urls[server] = secret_text(pointer, f"the managed server of {name!r}", secrets).strip()
            continue
        _note(urls, server, ways_in(server, external, secrets, now, admin=False))
    if (cache := hive.spec.redis.cache.own_url) is not None:
        way = cache_way(cache, hive.spec.redis.external, secrets, now)
        urls["cache"] = way.below(_laid("redis", way.files))["url"]
    return urls


def _note(urls: dict[str, str], server: Server, ways: Ways) -> None:
    found = ways.below(_laid(server, ways.files))
    urls[server] = found["url"]
    if server == "postgres" and "direct" in found:
        urls["postgres_direct"] = found["direct"]


_CERTIFICATES: Final = CertificateFolder()
atexit.register(_CERTIFICATES.close)


def _laid(server: str, files: Mapping[str, str]) -> str:
    return _CERTIFICATES.place(server, files)


def context_namespace() -> str:
    """The namespace of the current context in KUBECONFIG; ``default`` where it names none."""
    named = os.environ.get("KUBECONFIG", "").strip() or str(Path("~/.kube/config").expanduser())
    load: Any = config  # the package carries no annotations
    try:
        _, active = load.list_kube_config_contexts(config_file=named)
    except config.ConfigException:
        return "default"
    return str(active["context"].get("namespace") or "default")
