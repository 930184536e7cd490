"""The operator's wiring: what kopf is told, and when the probe fails."""

from __future__ import annotations

import gc
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agenthive_operator import main
from agenthive_operator.backends import lease
from agenthive_operator.main import EndlessBackoffs, settings, wire
from agenthive_operator.metrics import Metrics


def test_backoffs_never_end_and_stay_bounded() -> None:
    delays = list(itertools.islice(EndlessBackoffs(), 5000))
    assert len(delays) == 5000
    assert min(delays) >= 0.1
    assert max(delays) <= 30
    assert len(set(delays)) > 4000, "jittered"
    assert not hasattr(EndlessBackoffs(), "__len__"), "kopf counts attempts of what has a length"


def test_kopf_is_told_to_write_nothing_and_to_select_children_on_the_server() -> None:
    chosen = settings()
    assert chosen.posting.enabled is False
    assert chosen.peering.standalone is True
    assert chosen.persistence.finalizer != "agenthive.dev/cleanup", "kopf would strip the reconciler's finalizer"
    selected = {selector.plural or selector.any_name for selector in chosen.watching.label_selectors}
    assert selected == {
        "deployments",
        "statefulsets",
        "services",
        "secrets",
        "configmaps",
        "poddisruptionbudgets",
        "networkpolicies",
        "pods",
    }


async def test_every_watched_kind_hands_its_events_over() -> None:
    seen: list[tuple[str | None, dict[str, Any]]] = []
    registry = wire(lambda kind, obj: seen.append((kind, obj)), Metrics().tracing)
    handlers = list(registry._watching.get_all_handlers())
    assert len(handlers) == 10
    for handler in handlers:
        await handler.fn(event={"type": "ADDED", "object": {"metadata": {"name": "x"}}})  # type: ignore[call-arg, misc]
    assert {obj["kind"] for _, obj in seen} == {
        "AgentHive", "Agent", "Deployment", "StatefulSet", "Service", "Secret", "ConfigMap", "Pod",
        "PodDisruptionBudget", "NetworkPolicy",
    }  # fmt: skip


def test_where_namespaces_are_named_kopf_asks_for_nothing_cluster_wide() -> None:
    assert settings(("a", "b")).scanning.disabled is True
    assert settings().scanning.disabled is False


def test_namespaces_are_watched_once_each_and_patterns_are_refused() -> None:
    assert main.checked_namespaces(("a", "b", "a")) == ("a", "b")
    for wrong in ("team-*", "a,b", "", "Upper"):
        result = CliRunner().invoke(main.main, ["--namespace", wrong])
        assert result.exit_code == 2
        assert f"{wrong!r} is no name of a namespace; write one name" in " ".join(result.output.split())


def test_of_a_namespace_that_refuses_us_kopf_does_not_tell_each_attempt() -> None:
    refusal = "Request attempt #7 failed; will retry: GET https://k/x -> APIForbiddenError('no', status=403)"
    line = logging.LogRecord("kopf", logging.ERROR, "", 0, "%s", (refusal,), None)
    assert not main.is_news(line)
    assert main.is_news(logging.LogRecord("kopf", logging.ERROR, "", 0, "%s", ("APIServerError",), None))


def test_the_lease_is_in_the_pods_namespace_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "namespace"
    monkeypatch.setattr(lease, "NAMESPACE_FILE", file)
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    result = CliRunner().invoke(main.main, ["--leader-elect"])
    assert result.exit_code == 2
    assert "give --lease-namespace, or POD_NAMESPACE" in " ".join(result.output.split())
    file.write_text("of-the-pod\n")
    assert main.lease_of("x", None).namespace == "of-the-pod"
    monkeypatch.setenv("POD_NAMESPACE", "of-the-environment")
    assert main.lease_of("x", None).namespace == "of-the-environment"
    assert str(main.lease_of("x", "named")) == "named/x"


def test_a_process_that_comes_back_is_not_its_predecessor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "operator-0")
    one, other = lease.own_identity(), lease.own_identity()
    assert one.startswith("operator-0_")
    assert one != other


def test_an_address_to_serve_at_is_checked_before_anything_starts() -> None:
    result = CliRunner().invoke(main.main, ["--probe-address", "8080"])
    assert result.exit_code == 2
    assert "write host:port" in " ".join(result.output.split())


def test_help_names_every_flag() -> None:
    result = CliRunner().invoke(main.main, ["--help"])
    assert result.exit_code == 0
    for flag in (
        "--namespace",
        "--leader-elect",
        "--lease-name",
        "--lease-namespace",
        "--resolve-services",
        "--runtime-image",
        "--probe-address",
    ):
        assert flag in result.output


def test_the_process_is_set_up_for_many_small_objects() -> None:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)  # as it is in a process that nobody has set up yet
    try:
        main.be_thrifty()
        assert gc.get_threshold()[0] > 700
    finally:
        gc.set_threshold(*before)
