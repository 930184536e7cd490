"""What is foreseen of a namespace, and how it is told."""

from __future__ import annotations

import copy
import subprocess
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.unit.plan.test_preview import EXTERNAL, a_hive, an_agent

from agenthive_operator.plan.preview import Side, template_of
from agenthive_operator.plugin import manifests
from agenthive_operator.plugin.foresight import UNSEEN_SECRETS, Foreseen, Seen, foresee
from agenthive_operator.plugin.manifests import Change, Files, changes_of, refused
from agenthive_operator.plugin.plan import change_document, plan
from agenthive_operator.plugin.planned import duration, print_plan, sentences
from agenthive_operator.plugin.session import Asked

STARTED, READY = "2026-11-29T10:00:00Z", "2026-11-29T10:00:02Z"


def named(agent: dict[str, Any], name: str) -> dict[str, Any]:
    agent = copy.deepcopy(agent)
    agent["metadata"]["name"] = name
    return agent


def deployment(name: str, replicas: int = 1, *, image: str = "runtime", ready: bool = True) -> dict[str, Any]:
    template = template_of(Side(named(an_agent(), name), a_hive()), image=image)
    status = {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas}
    return {
        "metadata": {"name": name, "generation": 1},
        "spec": {"replicas": replicas, "template": template},
        "status": {**status, "readyReplicas": replicas if ready else 0},
    }


def pod(labels: dict[str, str]) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": READY}
    metadata = {"labels": {"agenthive.dev/hive": "hive", **labels}, "creationTimestamp": STARTED}
    return {"metadata": metadata, "status": {"conditions": [ready]}}


def seen(*agents: dict[str, Any], hive: dict[str, Any] | None = None, **more: Any) -> Seen:
    by_name = {agent["metadata"]["name"]: agent for agent in agents}
    pods = [pod({"agenthive.dev/agent": name}) for name in by_name]
    pods += [pod({"app.kubernetes.io/component": "redis"})]
    found = {name: deployment(name, agent["spec"].get("replicas", 1)) for name, agent in by_name.items()}
    sizes = {"hive": {"redis": "1Gi", "postgres": "1Gi"}}
    return Seen(
        "team", {"hive": hive or a_hive()}, by_name, **{"deployments": found, "pods": pods, "stores": sizes} | more
    )


def test_an_agent_that_is_scaled_rolls_nothing_and_drains_what_is_taken_away() -> None:
    found = foresee(seen(an_agent(replicas=3)), [Change(an_agent(replicas=3), an_agent(replicas=1))])
    (agent,) = found.agents
    assert (agent["rolls"], agent["pods"], agent["drain_seconds"]) == ("no", {"before": 3, "after": 1}, 45.0)
    assert not found.hives


def test_a_change_of_the_hive_rolls_all_of_its_agents() -> None:
    agents = [named(an_agent(), name) for name in ("one", "two")]
    other = named(an_agent(hiveRef={"name": "elsewhere"}), "other")
    found = foresee(seen(*agents, other), [Change(a_hive(), a_hive(messaging={"maxRetries": 9}))])
    assert [(a["agent"], a["rolls"], a["seconds"]) for a in found.agents] == [
        ("one", "yes", {"least": 2.0, "most": 47.0}), ("two", "yes", {"least": 2.0, "most": 47.0}),
    ]  # fmt: skip
    (hive,) = found.hives
    assert (hive["rolling_agents"], hive["rolling_pods"], hive["agents_at_once"]) == (2, 2, 5)
    assert hive["seconds"] == {"least": 2.0, "most": 47.0}
    assert [note for note in found.notes if "other" not in note] == []


def test_a_suspended_hive_drains_and_what_its_pods_would_be_does_not_matter() -> None:
    after = a_hive(suspend=True, messaging={"maxRetries": 9})
    (agent,) = foresee(seen(an_agent()), [Change(a_hive(), after)]).agents
    assert (agent["rolls"], agent["pods"], agent["drain_seconds"]) == ("no", {"before": 1, "after": 0}, 45.0)


def test_a_new_agent_starts_and_what_it_will_wait_for_is_said() -> None:
    lost = named(an_agent(hiveRef={"name": "nowhere"}), "lost")
    new = [Change(None, named(an_agent(replicas=2), "new")), Change(None, lost)]
    found = foresee(seen(absent=frozenset({"code"})), new)
    assert [(a["agent"], a["change"], a["rolls"], a["pods"]["after"]) for a in found.agents] == [
        ("lost", "new", "no", 0), ("new", "new", "no", 2),
    ]  # fmt: skip
    assert "there is no AgentHive nowhere" in found.notes[0]
    assert "there is no ConfigMap code" in found.notes[1]
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code", "namespace": "team"}}
    assert not foresee(seen(absent=frozenset({"code"})), [new[0], Change(None, code)]).notes


def test_connections_that_change_are_told_apart_from_what_rolls_for_sure() -> None:
    before, after = a_hive(redis=EXTERNAL), a_hive(redis={"external": {"urlSecretRef": {"name": "other"}}})
    found = foresee(seen(an_agent(), hive=before), [Change(before, after)])
    assert [agent["rolls"] for agent in found.agents] == ["perhaps"]
    assert found.notes.count(UNSEEN_SECRETS) == 1
    (text, *_) = sentences(document(found), several=False)
    assert text == "Hive hive: its connections change (redis.external.urlSecretRef.name url → other)."


def test_stores_that_restart_grow_or_go_are_said() -> None:
    managed = {"managed": {"image": "valkey/valkey:9"}}
    found = foresee(seen(), [Change(a_hive(), a_hive(redis=managed, postgres=EXTERNAL))])
    (text, *_) = sentences(document(found), several=True)
    assert "Redis of hive team/hive restarts: redis.managed.image" in text
    assert "2s to start the last time" in text
    assert "PostgreSQL of hive team/hive is removed: deletionPolicy Retain: its volume stays" in text


def test_pods_that_are_not_what_the_spec_says_make_an_estimate() -> None:
    live = {"echo": deployment("echo", image="old:1", ready=False)}
    live["echo"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    found = foresee(seen(an_agent(), deployments=live), [Change(an_agent(), an_agent(image="new:2"))])
    assert "a roll is under way, or the operator is of another version" in found.notes[0]
    assert "nodes without the image new:2 have to pull it first" in found.notes[1]


def test_how_long_cannot_be_told_where_no_pod_is_ready() -> None:
    found = foresee(seen(an_agent(), pods=[]), [Change(an_agent(), an_agent(concurrency=2))])
    (text,) = sentences(document(found), several=False)
    assert "1 pod of 1 agent rolls, at most 5 agents at a time" in text
    assert "cannot be told: no pod of it is ready" in text


def document(found: Foreseen, *changes: Change) -> dict[str, Any]:
    return {
        "changes": [change_document(change) for change in changes], "agents": found.agents, "hives": found.hives,
        "stores": found.stores, "notes": found.notes,
    }  # fmt: skip


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    change = Change(an_agent(), an_agent(concurrency=2))
    print_plan(document(foresee(seen(an_agent()), [change]), change))
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[:5] == [
        "KIND NAME CHANGE FIELDS", "Agent echo changed concurrency 10 → 2", "",
        "AGENT ROLLS PODS STARTS IN DRAINS IN TAKES WHY", "echo yes 1 2s ≤ 45s 2s to 47s concurrency 10 → 2",
    ]  # fmt: skip
    print_plan(document(Foreseen(), Change(an_agent(), an_agent())))
    assert capsys.readouterr().out == "Nothing would change: the cluster has this already.\n"


def test_a_change_of_a_secret_shows_no_value() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    before, after = ({**secret, "data": {"password": value}} for value in ("aa", "bb"))
    assert change_document(Change(before, after))["fields"] == ["password"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.2, "2s"), (119, "119s"), (120, "2m"), (121, "3m"), (7200, "2h"), (9000, "3h")]
)
def test_durations_are_rounded_up(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give -f FILE"),
        (["-f", "a", "-k", "b"], "not both"),
        (["-f", "a", "--force-conflicts"], "goes with --server-side"),
        (["--nonsense"], "No such option"),
    ],
)
def test_what_is_not_understood_is_no_change(words: list[str], told: str) -> None:
    result = CliRunner().invoke(plan, words)
    assert result.exit_code == 1
    assert told in result.output


def test_files_in_the_words_of_kubectl() -> None:
    files = Files(("a.yaml", "-"), None, recursive=True, server_side=True, force_conflicts=True)
    assert files.words == ["--filename=a.yaml", "--filename=-", "--recursive", "--server-side", "--force-conflicts"]
    assert Files(kustomize="folder").words == ["--kustomize=folder"]


def test_a_namespace_that_is_not_there_yet_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'Warning: old\nError from server (NotFound): namespaces "new" not found\n'
    monkeypatch.setattr(
        manifests, "_kubectl", lambda *_, **__: subprocess.CompletedProcess([], returncode=1, stdout="", stderr=said)
    )
    with pytest.raises(
        click.ClickException, match=r'cannot be applied[\s\S]*"new" not found\nIf the same files make'
    ) as told:
        changes_of(Asked(), Files(("a",)))
    assert "old" not in told.value.message


def test_of_a_patch_that_is_refused_only_the_reason_is_told() -> None:
    said = (
        'Error from server (Forbidden): error when applying patch:\n{"spec":{"replicas":3}}\nto:\nResource: "agents"\n'
        'Name: "hello"\nfor: "a.yaml": error when patching "a.yaml": agents "hello" is forbidden\n'
        'The AgentHive "x" is invalid: spec.redis: Invalid value\n'
    )
    assert refused(said) == (
        'this cannot be applied as it is:\n  Error from server (Forbidden): agents "hello" is forbidden\n'
        '  The AgentHive "x" is invalid: spec.redis: Invalid value'
    )


def test_without_kubectl_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(click.ClickException, match="no kubectl on PATH"):
        changes_of(Asked(), Files(("a",)))
