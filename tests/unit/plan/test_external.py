"""The ways into external servers, out of Secrets as the operators and charts of others make them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tls import Authority

from agenthive.bus.endpoint import Endpoint
from agenthive.store.database import Address
from agenthive_operator.api.external import ExternalPostgres, ExternalRedis
from agenthive_operator.plan import external
from agenthive_operator.plan.external import UnusableError, cache_way, secret_names, ways_in

NOW = datetime.now(UTC)
PAGE = Path(__file__).parents[3] / "docs" / "connections.md"

# What is in the Secrets of others, key by key.
CLOUDNATIVE_PG = {
    "username": "app", "user": "app", "password": "p@ss/1", "dbname": "app", "host": "pg-rw", "port": "5432",
    "uri": "postgresql://app:p%40ss%2F1@pg-rw.team:5432/app", "jdbc-uri": "jdbc:…", "pgpass": "pg-rw:5432:…",
}  # fmt: skip
ZALANDO = {"username": "foo_user", "password": "a+b c%d"}
PASSWORD_ONLY = {"password": "s3cret/@:#"}
BITNAMI = {"redis-password": "b1tn@mi\n"}


def worked_example(title: str) -> dict[str, Any]:
    """``spec.<server>.external`` of the example below this heading of the page."""
    section = PAGE.read_text().split(f"### {title}\n")[1].split("\n### ")[0]
    spec = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])["spec"]
    ((_, server),) = spec.items()
    found: dict[str, Any] = server["external"]
    return found


def redis(spec: dict[str, Any], **secrets: dict[str, str]) -> dict[str, str]:
    parsed = ExternalRedis.model_validate(spec)
    assert secret_names(parsed) == secrets.keys()
    return ways_in("redis", parsed, secrets, NOW).below("/f")


def postgres(spec: dict[str, Any], **secrets: dict[str, str]) -> dict[str, str]:
    parsed = ExternalPostgres.model_validate(spec)
    assert secret_names(parsed) == secrets.keys()
    return ways_in("postgres", parsed, secrets, NOW).below("/f")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours", ends=timedelta(days=90))


@pytest.fixture(scope="module")
def cert_manager(authority: Authority) -> dict[str, str]:
    """A Secret of cert-manager: its certificate, key and CA in one."""
    certificate, key = authority.issue("client", ends=timedelta(days=60))
    return {"ca.crt": authority.pem, "tls.crt": certificate.read_text(), "tls.key": key.read_text()}


def test_cloudnative_pg(authority: Authority) -> None:
    secrets = {"pg-app": CLOUDNATIVE_PG, "pg-ca": {"ca.crt": authority.pem, "ca.key": "…"}}
    url = postgres(worked_example("CloudNativePG"), **secrets)["url"]
    assert url == f"{CLOUDNATIVE_PG['uri']}?sslrootcert=/f/postgres-ca.crt&sslmode=verify-full"
    assert Address.parse(url).where == "pg-rw.team:5432/app"


def test_cloudnative_pg_by_its_pooler(authority: Authority) -> None:
    spec = worked_example("CloudNativePG behind its Pooler")
    urls = postgres(spec, **{"pg-app": CLOUDNATIVE_PG, "pg-ca": {"ca.crt": authority.pem}})
    assert urls["url"].startswith("postgresql://app:p%40ss%2F1@pg-pooler-rw.team.svc:5432/app?")
    assert urls["direct"].startswith(CLOUDNATIVE_PG["uri"])
    assert urls["direct"].endswith("sslmode=verify-full")


def test_zalando() -> None:
    name = "foo-user.acid-minimal-cluster.credentials.postgresql.acid.zalan.do"
    url = postgres(worked_example("Zalando's postgres-operator"), **{name: ZALANDO})["url"]
    assert url == "postgresql://foo_user:a%2Bb%20c%25d@acid-minimal-cluster.team.svc:5432/foo?sslmode=require"


@pytest.mark.parametrize(
    ("title", "name", "secret", "password"),
    [
        ("OT-Container-Kit's redis-operator", "redis-secret", PASSWORD_ONLY, "s3cret/@:#"),
        ("Bitnami's chart", "redis", BITNAMI, "b1tn@mi"),
    ],
)
def test_secrets_with_a_password_alone(title: str, name: str, secret: dict[str, str], password: str) -> None:
    endpoint = Endpoint.parse(redis(worked_example(title), **{name: secret})["url"])
    assert (endpoint.username, endpoint.password, endpoint.kind) == (None, password, "single")


def test_sentinels() -> None:
    endpoint = Endpoint.parse(redis(worked_example("Sentinel"), redis=BITNAMI)["url"])
    assert (endpoint.kind, endpoint.service, endpoint.sentinel_password) == ("sentinel", "mymaster", "b1tn@mi")
    assert endpoint.password == "b1tn@mi"
    assert len(endpoint.nodes) == 3


def test_a_cluster_with_a_user_and_a_secret_of_cert_manager(cert_manager: dict[str, str]) -> None:
    spec = {
        "url": "rediss+cluster://one.example,two.example:7000",
        "usernameSecretRef": {"name": "login"}, "passwordSecretRef": {"name": "login"},
        "tls": {"caSecretRef": {"name": "cert"}, "clientCertSecretRef": {"name": "cert"}},
    }  # fmt: skip
    url = redis(spec, login={"username": "a:b", "password": "c@d"}, cert=cert_manager)["url"]
    assert url == (
        "rediss+cluster://a%3Ab:c%40d@one.example,two.example:7000"
        "?ssl_ca_certs=/f/redis-ca.crt&ssl_certfile=/f/redis-tls.crt&ssl_keyfile=/f/redis-tls.key"
    )


def test_a_user_in_the_url_keeps_its_place() -> None:
    spec = {"url": "postgresql://app@h/d", "passwordSecretRef": {"name": "login"}}
    assert postgres(spec, login={"password": "x"}) == {"url": "postgresql://app:x@h/d"}


def test_what_the_hives_own_processes_need() -> None:
    spec = ExternalRedis.model_validate({"urlSecretRef": {"name": "app"}, "adminUrlSecretRef": {"name": "root"}})
    assert secret_names(spec, admin=False) == {"app"}
    secrets = {"app": {"url": "redis://a"}, "root": {"url": "redis://r"}}
    assert ways_in("redis", spec, secrets, NOW).urls == {"url": "redis://a", "admin": "redis://r"}
    assert ways_in("redis", spec, {"app": secrets["app"]}, NOW, admin=False).urls == {"url": "redis://a"}


def refused(server: Any, spec: dict[str, Any], secrets: dict[str, Any]) -> tuple[str, str]:
    kind = ExternalRedis if server == "redis" else ExternalPostgres
    with pytest.raises(UnusableError) as caught:
        ways_in(server, kind.model_validate(spec), secrets, NOW).below("/f")
    return caught.value.reason, str(caught.value)


URL = {"urlSecretRef": {"name": "u"}}
CA = {"tls": {"caSecretRef": {"name": "c"}}}


@pytest.mark.parametrize(
    ("server", "spec", "url", "words"),
    [
        ("redis", URL | CA, "redis://:secret@h", "write rediss://"),
        ("redis", URL | CA, "redis+sentinel://:secret@h/m", "write rediss+sentinel://"),
        ("redis", URL | CA, "rediss://:secret@h?ssl_ca_certs=/x", "take ssl_ca_certs out"),
        ("redis", URL | CA, "rediss://:sec/ret@h", "'/' as %2F"),
        ("redis", {"url": "redis://h:x", "passwordSecretRef": {"name": "u", "key": "url"}}, "secret", "%XX"),
        ("postgres", URL | CA, "postgresql://u:secret@h/d?sslmode=disable", "write verify-full, or leave sslmode out"),
        ("postgres", URL | CA, "postgresql://u:secret@h/d?sslrootcert=system", "take sslrootcert out"),
    ],
)
def test_urls_that_do_not_go_with_what_is_beside_them(
    server: str, spec: Any, url: str, words: str, authority: Any
) -> None:
    reason, text = refused(server, spec, {"u": {"url": url}, "c": {"ca.crt": authority.pem}})
    assert reason == "InvalidURL"
    assert words in text
    assert "secret" not in text


def test_sentinels_over_tls_of_plain_servers(authority: Authority) -> None:
    secrets = {"u": {"url": "redis+sentinel://h/m?sentinel_tls=true"}, "c": {"ca.crt": authority.pem}}
    ways = ways_in("redis", ExternalRedis.model_validate(URL | CA), secrets, NOW)
    assert ways.below("/f")["url"].endswith("sentinel_tls=true&ssl_ca_certs=/f/redis-ca.crt")


def test_an_sslmode_of_the_urls_own_stays(authority: Authority) -> None:
    secrets = {"u": {"url": "postgresql://h/d?sslmode=verify-ca"}, "c": {"ca.crt": authority.pem}}
    assert "sslmode=verify-ca" in postgres(URL | CA, **secrets)["url"]


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        ({"u": None}, "Secret 'u' of spec.redis.external.urlSecretRef does not exist; create it"),
        ({"u": {"URL": "x"}}, "has no key 'url'; its keys: URL"),
        ({"u": {"url": "rediss://h"}, "c": None}, "'c' of spec.redis.external.tls.caSecretRef does not exist"),
        ({"u": {"url": "rediss://h"}, "c": {}}, "has no key 'ca.crt'; its keys: none"),
    ],
)
def test_secrets_that_are_missing(secrets: dict[str, Any], words: str) -> None:
    reason, text = refused("redis", URL | CA, secrets)
    assert reason == "SecretMissing"
    assert words in text


def test_certificates_that_cannot_be_used(tmp_path: Path, authority: Authority, cert_manager: dict[str, str]) -> None:
    spec = URL | {"tls": {"caSecretRef": {"name": "c"}, "clientCertSecretRef": {"name": "c"}}}
    old = Authority(tmp_path, "old", ends=-timedelta(days=1))
    other = authority.issue("other")[1].read_text()
    expired = [file.read_text() for file in authority.issue("expired", ends=-timedelta(hours=1))]
    locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    for changes, words in (
        ({"ca.crt": "nonsense"}, "key 'ca.crt' holds no certificate in PEM form"),
        ({"ca.crt": cert_manager["tls.key"]}, "holds a private key and no certificate"),
        ({"ca.crt": old.pem}, "the CA certificate expired on"),
        ({"tls.crt": "nonsense"}, "key 'tls.crt' holds no certificate"),
        ({"tls.key": "nonsense"}, "key 'tls.key' holds no private key"),
        ({"tls.key": locked}, "'tls.key'"),
        ({"tls.key": other}, "tls.key is not the key of the first certificate"),
        ({"tls.crt": expired[0], "tls.key": expired[1]}, "the client certificate expired on"),
    ):
        secrets = {"u": {"url": "rediss://h"}, "c": cert_manager | changes}
        reason, text = refused("redis", spec, secrets)
        assert (reason, words in text) == ("CertificateInvalid", True), text
        assert "PRIVATE" not in text
    parsed = ExternalRedis.model_validate(spec)
    with pytest.raises(UnusableError, match="is not valid before"):
        ways_in("redis", parsed, {"u": {"url": "rediss://h"}, "c": cert_manager}, NOW - timedelta(days=30))


def test_certificates_about_to_expire_are_named_with_the_day(
    authority: Authority, cert_manager: dict[str, str]
) -> None:
    spec = ExternalRedis.model_validate(
        URL | {"tls": {"caSecretRef": {"name": "c"}, "clientCertSecretRef": {"name": "c"}}}
    )
    secrets = {"u": {"url": "rediss://h"}, "c": cert_manager}
    assert ways_in("redis", spec, secrets, NOW + timedelta(days=45)).warnings == ()
    (client,) = ways_in("redis", spec, secrets, NOW + timedelta(days=47)).warnings
    assert f"the client certificate expires on {NOW + timedelta(days=60):%Y-%m-%d}; renew it" in client
    # Of several authorities the one that lasts longest counts: a bundle holds the former one, too.
    brief = authority.pem + Authority(authority.folder, "brief", ends=timedelta(days=1)).pem
    assert ways_in("redis", spec, {**secrets, "c": cert_manager | {"ca.crt": brief}}, NOW).warnings == ()
    only = secrets | {"c": cert_manager | {"ca.crt": Authority(authority.folder, "b", ends=timedelta(days=1)).pem}}
    assert "the CA certificate expires" in ways_in("redis", spec, only, NOW).warnings[0]


def test_the_caches_own_redis_is_known_by_the_same_certificates(authority: Authority) -> None:
    pointer = ExternalRedis.model_validate({"urlSecretRef": {"name": "cache"}}).url_secret_ref
    bus = ExternalRedis.model_validate(URL | CA)
    assert pointer is not None

    def way(url: str, of: ExternalRedis | None = bus) -> str:
        return cache_way(pointer, of, {"cache": {"url": url}, "c": {"ca.crt": authority.pem}}, NOW).below("/f")["url"]

    assert way("rediss://h") == "rediss://h?ssl_ca_certs=/f/redis-ca.crt"
    assert way("redis://h") == "redis://h"
    assert way("rediss://h", None) == "rediss://h"


def test_files_of_an_agents_url() -> None:
    url = "rediss://h?ssl_ca_certs=/agenthive/tls/redis-ca.crt&ssl_keyfile=/etc/own.key"
    assert external.mounted_files(url) == ["redis-ca.crt"]
