"""Certificates as files of this process, and as agents get them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from agenthive_operator.backends.certificates import KEPT, CertificateFolder
from agenthive_operator.local.kubelet.rewrite import Rewrite
from agenthive_operator.plan.external import TLS_PATH

FILES = {"redis-ca.crt": "CA", "redis-tls.key": "KEY"}


@pytest.fixture
def certificates() -> Iterator[CertificateFolder]:
    folder = CertificateFolder()
    yield folder
    folder.close()


def url_in(folder: str) -> str:
    return f"rediss://:p%40w@h/0?ssl_ca_certs={folder}/redis-ca.crt&ssl_keyfile={folder}/redis-tls.key"


def test_only_this_account_reads_them(certificates: CertificateFolder) -> None:
    folder = Path(certificates.place("a", FILES))
    assert {file.name: file.read_text() for file in folder.iterdir()} == FILES
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder, *folder.iterdir())]
    assert modes == [0o700, 0o700, 0o600, 0o600]
    certificates.close()
    assert not folder.parent.exists()


def test_pods_see_them_where_they_are_mounted(certificates: CertificateFolder) -> None:
    folder = certificates.place("a", FILES)
    url, files = certificates.mounted(url_in(folder)) or ("", {})
    assert (url, files) == (url_in(TLS_PATH), FILES)
    assert Rewrite({TLS_PATH: "/pods/x"}).text(url) == url_in("/pods/x")
    plain = "postgresql://u:p@h/d?sslrootcert=/etc/ssl/own.crt&application_name=a+b"
    assert certificates.mounted(plain) == (plain, {})
    certificates.forget("a")
    assert certificates.mounted(url_in(folder)) is None
    assert not Path(folder).exists()


def test_owners_share_and_former_ones_stay_for_a_while(certificates: CertificateFolder) -> None:
    first = certificates.place("a", FILES)
    assert certificates.place("b", FILES) == first
    later = [certificates.place("a", {"redis-ca.crt": str(n)}) for n in range(KEPT)]
    assert Path(first).exists(), "b has it"
    certificates.forget("b")
    assert not Path(first).exists()
    assert all(Path(folder).exists() for folder in later)
    assert certificates.place("a", {"redis-ca.crt": "0"}) == later[0]
    assert certificates.place("a", {}) == TLS_PATH
