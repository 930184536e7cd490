"""What ``kubectl hive why`` says, by tables of what was found."""

from __future__ import annotations

from typing import Any

import click
import pytest

from agenthive_operator.plugin.why import Facts, chosen, explain


def thing(kind: str, name: str, *found: tuple[str, str, str, str], **status: Any) -> dict[str, Any]:
    """An object with conditions."""
    conditions = [dict(zip(("type", "status", "reason", "message"), condition, strict=True)) for condition in found]
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": "team", "generation": 2},
        "spec": {},
        "status": {"conditions": conditions, "observedGeneration": 2, **status},
    }


STORES = (
    ("RedisReady", "True", "Reachable", "host:6379"),
    ("PostgresReady", "True", "Reachable", "host:5432"),
    ("SchemaReady", "True", "Migrated", "version 9"),
)
FINE = thing("AgentHive", "h", ("Ready", "True", "AllReady", ""), *STORES, ("AgentsReady", "True", "AllReady", ""))


def agent(reason: str, message: str = "", status: str = "False", **more: Any) -> dict[str, Any]:
    return thing("Agent", "a", ("Ready", status, reason, message), **more)


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a-1", "namespace": "team"}, "spec": {"containers": []}, "status": status}


DIED = pod(
    containerStatuses=[
        {
            "name": "agent",
            "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "No module named 'bees'"}},
        }
    ]
)
BACK_OFF = {
    "type": "Warning", "message": "Failed to pull image", "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
    "involvedObject": {"kind": "Pod", "name": "a-1"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("HiveMissing", "", "Create the hive, or correct spec.hiveRef.name."),
        ("InvalidSpec", "spec.concurrency: too large", "spec.concurrency: too large. What to do: Correct the field"),
        ("CodeMissing", "ConfigMap a-code", "correct spec.codeFrom.configMapRef.name"),
        ("NameConflict", "Deployment a", "Delete or rename that object"),
        ("NamespaceTerminating", "", "The namespace is being deleted"),
        ("ApplyRejected", "exceeded quota", "exceeded quota. What to do: Read the message."),
        ("ContainerWaiting", "ImagePullBackOff", "Often it is the name of the image."),
        ("Unschedulable", "0/3 nodes", "Ask for less in spec.resources"),
        ("PodFailed", "Evicted", "the pod is replaced"),
        ("RollingOut", "1 of 2", "Wait: it goes on by itself."),
        ("PodsNotReady", "0 of 1", "an agent is ready once bus and store answer it"),
        ("OfALaterVersion", "something new", "OfALaterVersion. something new."),
    ],
)
def test_an_agent_that_is_not_ready_says_what_to_do(reason: str, message: str, expected: str) -> None:
    good, text = explain(Facts(agent(reason, message)))
    assert not good
    assert text.startswith("Agent a is not ready: ")
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("kind", "reason", "expected"),
    [
        ("RedisReady", "Unreachable", "Check the host and port in the URL"),
        ("RedisReady", "AuthenticationFailed", "Correct the URL in the Secret that urlSecretRef names."),
        ("PostgresReady", "DatabaseMissing", "Create it, or name another in the URL."),
        ("PostgresReady", "ReadOnly", "Name the primary in the URL"),
        ("SchemaReady", "SchemaTooNew", "Upgrade the operator."),
    ],
)
def test_a_hive_names_the_store_at_fault_and_its_agents_point_there(kind: str, reason: str, expected: str) -> None:
    pointer = {"RedisReady": "RedisNotReady", "PostgresReady": "PostgresNotReady", "SchemaReady": "SchemaNotReady"}
    others = [condition for condition in STORES if condition[0] != kind]
    hive = thing(
        "AgentHive", "h", ("Ready", "False", pointer[kind], ""), *others, (kind, "False", reason, "it says so")
    )
    good, text = explain(Facts(hive, hive))
    assert not good
    assert text.startswith(f"Hive h is not ready because of {kind}: ")
    assert "it says so. What to do: " in text
    assert expected in text
    good, text = explain(Facts(agent("HiveNotReady"), hive))
    assert not good
    assert text.startswith("Agent a waits for its hive. Hive h is not ready because of")


def test_the_last_words_of_a_pod_and_the_last_warning_are_told() -> None:
    _, text = explain(Facts(agent("PodsNotReady"), FINE, [DIED], [BACK_OFF]))
    assert "No module named 'bees'" in text
    assert "kubectl logs --previous" in text
    assert "0 of its 1 pods are ready." in text
    assert text.endswith("The last warning was about Pod a-1: Failed to pull image")


def test_events_that_may_not_be_read_are_no_absence_of_events() -> None:
    assert "Events may not be read" in explain(Facts(agent("PodsNotReady"), FINE, events=None))[1]


def test_a_hive_tells_of_its_agents() -> None:
    hive = thing("AgentHive", "h", ("Ready", "False", "AgentsNotReady", ""), *STORES)
    other = agent("Unschedulable")
    other["metadata"]["name"] = "b"
    good, text = explain(Facts(hive, hive, agents=[Facts(agent("CodeMissing"), hive), Facts(other, hive)]))
    assert not good
    assert "The stores of hive h are ready, and an agent is not. Agent a is not ready: The ConfigMap" in text
    assert "Something is wrong with b, too" in text


def test_an_agent_that_does_not_work_comes_before_one_that_gave_messages_up() -> None:
    hive = thing("AgentHive", "h", ("Ready", "False", "AgentsNotReady", ""), *STORES)
    letters, broken = agent("AllPodsReady", status="True", deadLetters=1), agent("CodeMissing")
    broken["metadata"]["name"] = "b"
    _, text = explain(Facts(hive, hive, agents=[Facts(letters, hive), Facts(broken, hive)]))
    assert "an agent is not. Agent b is not ready" in text
    assert "Something is wrong with a, too" in text
    _, text = explain(Facts(hive, hive, agents=[Facts(letters, hive)]))
    assert "and its agents work. Agent a is ready, but 1 of its messages was given up." in text


def test_a_hive_without_agents_is_fine() -> None:
    good, text = explain(Facts(FINE, FINE))
    assert good
    assert "no Agent names it yet" in text


def test_what_is_fine_is_said_in_short() -> None:
    good, text = explain(Facts(FINE, FINE, agents=[Facts(agent("AllPodsReady", status="True"), FINE)]))
    assert good
    assert text == "Hive h is fine: its stores and its agent are ready."
    assert explain(Facts(agent("AllPodsReady", status="True"), FINE))[0]


def test_a_warning_of_a_store_that_is_ready_is_no_silence() -> None:
    stores = [("RedisReady", "True", "MayEvict", "allkeys-lru"), *STORES[1:]]
    good, text = explain(Facts(thing("AgentHive", "h", ("Ready", "True", "AllReady", ""), *stores)))
    assert not good
    assert "But RedisReady: " in text
    assert "noeviction" in text


def test_dead_letters_of_a_ready_agent_are_told() -> None:
    good, text = explain(Facts(agent("AllPodsReady", status="True", deadLetters=3), FINE))
    assert not good
    assert "3 of its messages were given up. kubectl hive dlq list a" in text


def test_an_operator_that_is_not_there_or_behind_is_told() -> None:
    unseen = thing("Agent", "a")
    assert "no operator has looked at it" in explain(Facts(unseen))[1]
    behind = agent("AllPodsReady", status="True", observedGeneration=1)
    good, text = explain(Facts(behind, FINE))
    assert not good
    assert "has not looked at the newest spec" in text


def test_a_name_may_carry_its_kind() -> None:
    assert [chosen(name) for name in ("x", "hive/x", "agents/x")] == [(None, "x"), ("AgentHive", "x"), ("Agent", "x")]
    with pytest.raises(click.UsageError, match="hive/NAME or agent/NAME"):
        chosen("pod/x")
