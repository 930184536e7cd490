"""Where the operator runs: what it finds in its pod, and that it claims nothing elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenthive_operator.backends.place import nameservers_in, operator_place
from agenthive_operator.plan.inputs import OperatorPlace

RESOLV = "search team.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The files of a pod, and its environment."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    namespace, resolv = tmp_path / "namespace", tmp_path / "resolv.conf"
    namespace.write_text("of-the-account\n")
    resolv.write_text(RESOLV)
    return namespace, resolv


def test_a_pod_knows_its_namespace(pod: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert operator_place(*pod) == OperatorPlace("of-the-account", ("10.96.0.10",))
    monkeypatch.setenv("POD_NAMESPACE", "of-the-pod")
    assert operator_place(*pod) == OperatorPlace("of-the-pod", ("10.96.0.10",))


def test_a_laptop_claims_no_namespace(pod: tuple[Path, Path], tmp_path: Path) -> None:
    assert operator_place(tmp_path / "none", pod[1]) == OperatorPlace()


def test_a_kubeconfig_leads_to_any_cluster(pod: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/some/config")
    monkeypatch.setenv("POD_NAMESPACE", "of-the-pod")
    assert operator_place(*pod) == OperatorPlace()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("nameserver 10.0.0.2\nnameserver fd00::a\n", ("10.0.0.2", "fd00::a")),
        ("nameserver 127.0.0.53\nnameserver ::1\n", ()),
        ("# nameserver 10.0.0.2\nnameserver\nnameserver none\n", ()),
        ("nameserver fe80::1%eth0\n", ()),
    ],
)
def test_nameservers(text: str, found: tuple[str, ...]) -> None:
    assert nameservers_in(text) == found
