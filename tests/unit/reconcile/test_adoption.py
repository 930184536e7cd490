"""Which servers a hive of an older operator has in force, by what its agents' Secrets hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agenthive_operator.backends.certificates import CertificateFolder
from agenthive_operator.backends.postgres import Access
from agenthive_operator.plan.book import Held
from agenthive_operator.plan.external import TLS_PATH, Ways
from agenthive_operator.reconcile.adoption import as_used, leads_alike
from agenthive_operator.reconcile.stores import Connection

CA = {"redis-ca.crt": "PEM"}
SECURE = Ways("redis", {"url": "rediss://:pw@db:6379/0", "admin": "rediss://root:pw@db:6379/0"}, CA)


@pytest.fixture
def certificates() -> Iterator[CertificateFolder]:
    folder = CertificateFolder()
    yield folder
    folder.close()


@pytest.fixture
def wanted(certificates: CertificateFolder) -> Connection:
    urls = SECURE.below(certificates.place("owner", SECURE.files))
    return Connection(Access(**urls), server=Held.of(SECURE, managed=False))


@pytest.mark.parametrize(
    ("url", "minted", "alike"),
    [
        (f"rediss://:pw@db:6379/0?ssl_ca_certs={TLS_PATH}/redis-ca.crt", False, True),
        (f"rediss://:former@db:6379/0?ssl_ca_certs={TLS_PATH}/redis-ca.crt", False, False),
        ("rediss://anna:own@db:6379/0?ssl_ca_certs=%2Fagenthive%2Ftls%2Fredis-ca.crt", True, True),
        ("rediss://anna:own@elsewhere:6379/0", True, False),
        ("rediss://anna:own@db:6379/1", True, False),
    ],
)
def test_an_agents_url_is_what_the_spec_leads_to(
    certificates: CertificateFolder, wanted: Connection, url: str, minted: bool, alike: bool
) -> None:
    assert leads_alike(url, certificates, wanted, minted=minted) is alike
    assert not leads_alike(url, certificates, Connection(), minted=minted), "nothing is named"


def test_what_an_agent_uses_is_put_together_from_its_secret() -> None:
    url = f"rediss://:pw@db:6379/0?ssl_ca_certs={TLS_PATH}/redis-ca.crt&protocol=3"
    held = as_used("redis", url, {"AGENTHIVE_REDIS_URL": url, "redis-ca.crt": "PEM", "postgres-ca.crt": "other"})
    assert held == Held((("url", "rediss://:pw@db:6379/0?protocol=3"),), (("redis-ca.crt", "PEM"),))
    assert (
        held.ways("redis").below(TLS_PATH)["url"]
        == f"rediss://:pw@db:6379/0?protocol=3&ssl_ca_certs={TLS_PATH}/redis-ca.crt"
    )
    plain = "postgresql://u:p@db/x?sslmode=verify-full&sslrootcert=system"
    assert as_used("postgres", plain, {}) == Held((("url", plain),)), "a file of the image stays in the URL"
