"""``helm test`` where it does not go well; that it does, tests/chart shows."""

from __future__ import annotations

import click
import orjson
import pytest
from click.testing import CliRunner
from tests.integration.operator.conftest import Cluster

from agenthive_operator.hooks import trial
from agenthive_operator.hooks.trial import Trial, is_well
from agenthive_operator.plugin.session import Ran


async def test_without_an_operator_it_says_so_and_clears_away(cluster: Cluster) -> None:
    said: list[str] = []
    with pytest.raises(click.ClickException, match=r"no answer within 1 s.*no operator has looked at it"):
        await Trial(cluster.kube, cluster.namespace, said.append).run(1)
    assert said[-1] == "cleared away"
    for kind in ("AgentHive", "Agent", "ConfigMap"):
        assert not [each for each in await cluster.list(kind) if each["metadata"]["name"].startswith("trial-")]


async def test_what_cannot_be_cleared_away_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CLEAR_SECONDS", 0.1)
    said: list[str] = []
    tried = Trial(cluster.kube, cluster.namespace, said.append)
    await tried._apply()
    await cluster.patch("AgentHive", tried.name, metadata={"finalizers": ["example.com/theirs"]})
    await tried._clear()
    assert said[-1].startswith("WARNING: the trial's objects are not cleared away (not in time)")
    assert f"-n {cluster.namespace} -l agenthive.dev/trial={tried.name}" in said[-1]
    await cluster.patch("AgentHive", tried.name, metadata={"finalizers": []})


@pytest.mark.parametrize(
    ("ran", "error"),
    [
        (Ran(3, b"", b"Error: the bus is away\n"), "failed with exit code 3: Error: the bus is away"),
        (Ran(0, orjson.dumps({"word": "another"}), b""), "answered .*another"),
    ],
)
async def test_a_wrong_answer_is_none(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, ran: Ran, error: str) -> None:
    async def run(*_: object, **__: object) -> Ran:
        return ran

    tried = Trial(cluster.kube, cluster.namespace, lambda _: None)
    monkeypatch.setattr(tried._session, "run", run)
    with pytest.raises(click.ClickException, match=error):
        await tried._ask("pod")


@pytest.mark.parametrize(
    ("status", "observed", "well"), [("True", 2, True), ("True", 1, False), ("False", 2, False)]
)  # fmt: skip
def test_only_what_is_said_of_the_newest_spec_counts(status: str, observed: int, well: bool) -> None:
    ready = {"type": "Ready", "status": status, "observedGeneration": observed}
    assert is_well({"metadata": {"generation": 2}, "status": {"conditions": [ready]}}) is well


def test_a_cluster_that_cannot_be_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    done = CliRunner().invoke(trial.main, ["--namespace=n"])
    assert done.exit_code == 1
    assert "Error: " in done.output
