"""Servers behind TLS, known by certificates in Secrets: what reaches pods, and what people read when it fails."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.tls import Authority, postgres_front, redis_front, server_context

from agenthive.bus import Bus
from agenthive.settings import HiveScope
from agenthive.store import Store, schema_name
from agenthive_operator.backends.connections import hive_settings
from agenthive_operator.plan.external import TLS_PATH

from .conftest import Cluster

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours", ends=timedelta(days=90))


def cert_manager(authority: Authority, **options: Any) -> dict[str, str]:
    """What cert-manager writes: a certificate, its key and its CA in one Secret."""
    certificate, key = authority.issue("client", **({"ends": timedelta(days=60)} | options))
    return {"ca.crt": authority.pem, "tls.crt": certificate.read_text(), "tls.key": key.read_text()}


def encoded(data: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}


def decoded(secret: dict[str, Any]) -> dict[str, str]:
    return {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}


async def told(cluster: Cluster, condition: str, status: str, reason: str, *words: str) -> None:
    """Wait until a condition of the hive says this."""

    async def check() -> bool:
        found = await cluster.condition("AgentHive", "demo", condition, status, reason)
        assert "PRIVATE" not in found["message"]
        return all(word in found["message"] for word in words)

    await cluster.until(f"{condition} {status} {reason} with {words}", check)


TLS = {"caSecretRef": {"name": "cert"}, "clientCertSecretRef": {"name": "cert"}}


@pytest.fixture
async def secure_hive(
    cluster: Cluster, valkey: Any, postgres_url: str, postgres: Any, authority: Authority
) -> AsyncIterator[None]:
    """A hive whose servers both want a client certificate."""
    context = server_context(authority.issue("server"), clients=authority)
    async with redis_front(valkey.port, context) as redis, postgres_front(postgres.port, context) as store:
        database = postgres_url.rpartition("/")[2]
        await cluster.create("Secret", "login", stringData={"redis": valkey.password, "password": postgres.password})
        await cluster.create("Secret", "cert", stringData=cert_manager(authority))
        spec = {
            "redis": {
                "external": {
                    "url": f"rediss://127.0.0.1:{redis}/0",
                    "passwordSecretRef": {"name": "login", "key": "redis"},
                    "tls": TLS,
                }
            },
            "postgres": {
                "external": {
                    "url": f"postgresql://postgres@127.0.0.1:{store}/{database}",
                    "passwordSecretRef": {"name": "login"},
                    "tls": TLS,
                }
            },
        }
        await cluster.create("AgentHive", "demo", spec=spec)
        yield


@pytest.mark.usefixtures("secure_hive")
async def test_agents_get_what_they_need_and_never_what_is_bad(
    cluster: Cluster, authority: Authority, tmp_path: Path
) -> None:
    await cluster.agent("greeter", "demo")
    await told(cluster, "RedisReady", "True", "Reachable")
    await told(cluster, "SchemaReady", "True", "Migrated")
    deployment = await cluster.exists("Deployment", "greeter")
    first = decoded(await cluster.need("Secret", "greeter-agenthive"))
    pod = deployment["spec"]["template"]["spec"]
    (volume,) = [entry for entry in pod["volumes"] if entry["name"] == "agenthive-tls"]
    files = [item["key"] for item in volume["secret"]["items"]]
    assert files == sorted(name for name in first if not name.startswith("AGENTHIVE_"))
    assert (volume["secret"]["secretName"], volume["secret"]["defaultMode"]) == ("greeter-agenthive", 0o440)
    (mount,) = [entry for entry in pod["containers"][0]["volumeMounts"] if entry["name"] == "agenthive-tls"]
    assert (mount["mountPath"], mount["readOnly"]) == (TLS_PATH, True)

    # As in a pod: files at the mounted path, URLs from the environment.
    for name in files:
        (tmp_path / name).write_text(first[name])
    at_hand = {name: text.replace(TLS_PATH, str(tmp_path)) for name, text in first.items() if name not in files}
    instance = (await cluster.need("AgentHive", "demo"))["status"]["instanceId"]
    scope = HiveScope(instance=instance, namespace=cluster.namespace, hive="demo")
    await (await Bus.connect(at_hand["AGENTHIVE_REDIS_URL"], scope)).aclose()
    async with await Store.connect(at_hand["AGENTHIVE_POSTGRES_URL"], scope, agent="greeter") as store:
        await store.state.set("k", 1)
    # And so from a person's command line.
    settings = await hive_settings("demo", cluster.namespace)
    assert settings.postgres_url is not None
    await (await Bus.connect(settings.redis_url.get_secret_value(), scope)).aclose()
    async with await Store.connect(settings.postgres_url.get_secret_value(), scope, agent="greeter") as store:
        assert await store.state.get("k") == 1
    assert schema_name(scope)

    # What is bad is told, and running agents keep what they have.
    before = await cluster.need("Deployment", "greeter")
    stranger = Authority(tmp_path, "stranger", ends=timedelta(days=90))
    expired = cert_manager(authority, ends=-timedelta(hours=1))
    for data, reason, words in (
        ({"ca.crt": "nonsense"}, "CertificateInvalid", "Secret 'cert' of spec.redis.external.tls.caSecretRef"),
        ({"ca.crt": stranger.pem}, "TLSFailed", "not signed by a CA that is trusted"),
        (expired, "CertificateInvalid", "the client certificate expired on"),
        (cert_manager(stranger) | {"ca.crt": authority.pem}, "TLSFailed", "does not trust the client certificate"),
    ):
        await cluster.patch("Secret", "cert", data=encoded(cert_manager(authority) | data))
        why = f"({reason})" if reason == "TLSFailed" else "this stays in use"
        await told(cluster, "RedisReady", "True", "NewServerRefused", words, why)
        await told(cluster, "PostgresReady", "True", "NewServerRefused", words.replace("redis", "postgres"), why)
    await cluster.condition("AgentHive", "demo", "Ready", "False", "ServerChangePending")
    assert (await cluster.need("Deployment", "greeter"))["spec"] == before["spec"]
    assert decoded(await cluster.need("Secret", "greeter-agenthive")) == first

    # Renewed, with little time left: agents are rolled, and the hive says when it ends.
    renewed = cert_manager(authority, ends=timedelta(days=3))
    await cluster.patch("Secret", "cert", data=encoded(renewed))
    await told(cluster, "RedisReady", "True", "CertificateExpiring", "the client certificate expires on")
    await told(cluster, "PostgresReady", "True", "CertificateExpiring")

    async def rolled() -> bool:
        now = decoded(await cluster.need("Secret", "greeter-agenthive"))
        template = (await cluster.need("Deployment", "greeter"))["spec"]["template"]
        has = {now["redis-tls.crt"], now["postgres-tls.crt"]} == {renewed["tls.crt"]}
        urls = {name: now[name] == first[name] for name in now if name.startswith("AGENTHIVE_")}
        return has and all(urls.values()) and template != before["spec"]["template"]

    await cluster.until("agents have the renewed certificate", rolled)


@pytest.mark.usefixtures("secure_hive")
async def test_without_a_client_certificate_it_is_asked_for(cluster: Cluster) -> None:
    await told(cluster, "RedisReady", "True", "Reachable")
    await told(cluster, "SchemaReady", "True", "Migrated")
    without = {"external": {"tls": {"clientCertSecretRef": None}}}
    await cluster.patch("AgentHive", "demo", spec={"redis": without, "postgres": without})
    for condition, server in (("RedisReady", "redis"), ("PostgresReady", "postgres")):
        words = "(TLSFailed)", f"spec.{server}.external.tls.clientCertSecretRef"
        await told(cluster, condition, "True", "NewServerRefused", *words)


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"address": "127.0.0.9"}, "write a host in the URL that the certificate names"),
        ({"ends": -timedelta(hours=1)}, "renew it on the server"),
    ],
)
async def test_certificates_of_servers_that_are_not_for_us(
    cluster: Cluster, valkey: Any, postgres: Any, authority: Authority, flaw: dict[str, Any], words: str
) -> None:
    context = server_context(authority.issue("server", **flaw))
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(redis_front(valkey.port, context))
        store = await stack.enter_async_context(postgres_front(postgres.port, context))
        await cluster.create("Secret", "cert", stringData={"ca.crt": authority.pem})
        await cluster.external_hive("demo", f"rediss://127.0.0.1:{redis}", f"postgresql://u:p@127.0.0.1:{store}/d")
        tls = {"external": {"tls": {"caSecretRef": {"name": "cert"}}}}
        await cluster.patch("AgentHive", "demo", spec={"redis": tls, "postgres": tls})
        await told(cluster, "RedisReady", "False", "TLSFailed", words)
        await told(cluster, "PostgresReady", "False", "TLSFailed", words)
