"""Whether pods roll, and why, by table; the end-to-end tests compare it with what the operator does."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agenthive_operator.plan.preview import Side, effect_on_agent, effect_on_stores, expected_template, template_of
from agenthive_operator.plan.references import Reference

CODE = Reference("ConfigMap", "code")
URL = Reference("Secret", "url")


def an_agent(**spec: Any) -> dict[str, Any]:
    code = {"configMapRef": {"name": "code"}}
    return {
        "apiVersion": "agenthive.dev/v1alpha1", "kind": "Agent", "metadata": {"name": "echo", "namespace": "team"},
        "spec": {"hiveRef": {"name": "hive"}, "entrypoint": "code:agent", "codeFrom": code, **spec},
    }  # fmt: skip


def a_hive(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "agenthive.dev/v1alpha1", "kind": "AgentHive",
        "metadata": {"name": "hive", "namespace": "team"}, "spec": spec, "status": {"instanceId": "i1"},
    }  # fmt: skip


def annotated(obj: dict[str, Any], value: str) -> dict[str, Any]:
    obj = copy.deepcopy(obj)
    obj["metadata"]["annotations"] = {"agenthive.dev/rotate": value}
    return obj


EXTERNAL = {"external": {"urlSecretRef": {"name": "url"}}}
OTHER = {"external": {"urlSecretRef": {"name": "other"}}}
SECURE = {"external": {"urlSecretRef": {"name": "url"}, "tls": {"caSecretRef": {"name": "ca"}}}}
BOTH = {"redis": EXTERNAL, "postgres": EXTERNAL}


@pytest.mark.parametrize(
    ("agent", "hive", "rolls", "why"),
    [
        (an_agent(replicas=5), a_hive(), "no", []),
        (an_agent(concurrency=3), a_hive(), "yes", ["concurrency 10 → 3"]),
        (an_agent(drainSeconds=60, replicas=2), a_hive(), "yes", ["drainSeconds 30 → 60"]),
        (an_agent(env=[{"name": "A", "value": "1"}]), a_hive(), "yes", ["env[A]"]),
        (an_agent(topics=["a"], topicStart="beginning"), a_hive(), "yes", ["topicStart now → beginning", "topics"]),
        # Each does what the other does.
        (
            an_agent(env=[{"name": "A"}]), a_hive(agentDefaults={"env": [{"name": "A"}]}),
            "yes", ["env[A]", "hive agentDefaults.env[A]"],
        ),
        (an_agent(), a_hive(messaging={"maxRetries": 9}), "yes", ["hive messaging.maxRetries 3 → 9"]),
        (an_agent(), a_hive(suspend=True, credentials={"rotateDays": 3}), "no", []),
        (an_agent(), a_hive(redis={"managed": {"image": "valkey/valkey:9"}}), "no", []),
        (an_agent(), a_hive(agentDefaults={"image": "a:2"}), "yes", ["hive agentDefaults.image a:2 (new)"]),
        (an_agent(image="own:1"), a_hive(agentDefaults={"image": "a:2"}), "yes", ["image own:1 (new)"]),
        (an_agent(), a_hive(redis=EXTERNAL), "yes", ["hive redis.external.urlSecretRef.name url (new)"]),
        (annotated(an_agent(), "1"), a_hive(), "yes", ["agenthive.dev/rotate: new credentials"]),
        (an_agent(), annotated(a_hive(), "1"), "yes", ["hive agenthive.dev/rotate: new credentials"]),
    ],
)  # fmt: skip
def test_what_rolls_the_pods_of_a_managed_hive(agent: Any, hive: Any, rolls: str, why: list[str]) -> None:
    effect = effect_on_agent(Side(an_agent(), a_hive()), Side(agent, hive))
    assert effect.rolls == rolls
    assert list(effect.why) == why


@pytest.mark.parametrize(
    ("hive", "data", "rolls", "why"),
    [
        (a_hive(redis=OTHER, postgres=EXTERNAL), {}, "perhaps", "connections: redis.external.urlSecretRef.name"),
        (a_hive(**BOTH), {URL: {"data": {"url": "b"}}}, "perhaps", "connections: Secret url"),
        (a_hive(redis=SECURE, postgres=EXTERNAL), {}, "yes", "hive redis.external.tls.caSecretRef.name ca (new)"),
        (annotated(a_hive(**BOTH), "1"), {}, "no", ""),  # nobody makes logins there
        (
            a_hive(redis={**EXTERNAL, "cache": {"urlSecretRef": {"name": "c"}}}, postgres=EXTERNAL), {},
            "yes", "hive redis.cache.urlSecretRef.name c (new)",
        ),
    ],
)  # fmt: skip
def test_what_secrets_hold_stays_open(hive: Any, data: Any, rolls: str, why: str) -> None:
    before = Side(an_agent(), a_hive(**BOTH), {URL: {"data": {"url": "a"}}} if data else {})
    effect = effect_on_agent(before, Side(an_agent(), hive, data))
    assert effect.rolls == rolls
    assert [word for word in effect.why if word.startswith(why)] if why else not effect.why


def test_data_that_the_pods_use_rolls_them_and_other_data_does_not() -> None:
    other = Reference("ConfigMap", "other")
    old, new = {"data": {"code.py": "1", "same.py": "x"}}, {"data": {"code.py": "2", "same.py": "x"}}
    before = Side(an_agent(), a_hive(), {CODE: old, other: None})
    effect = effect_on_agent(before, Side(an_agent(), a_hive(), {CODE: new, other: new}))
    assert (effect.rolls, effect.why) == ("yes", ("ConfigMap code (code.py)",))
    effect = effect_on_agent(before, Side(an_agent(), a_hive(), {CODE: old, other: new}))
    assert effect.rolls == "no"


def test_the_template_of_a_deployment_is_known_but_for_what_only_the_operator_knows() -> None:
    side = Side(an_agent(), a_hive())
    live = template_of(side, image="registry.example/runtime:1")
    live["metadata"]["annotations"]["agenthive.dev/checksum"] = "of the real connections"
    expected = expected_template(side, live)
    del live["metadata"]["annotations"]["agenthive.dev/checksum"]
    assert expected == live


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, a_hive(), [("redis", "new", ()), ("postgres", "new", ())]),
        (a_hive(), a_hive(messaging={"maxRetries": 9}), []),
        (
            a_hive(), a_hive(redis={"managed": {"image": "valkey/valkey:9"}}),
            [("redis", "restarts", ("redis.managed.image valkey/valkey:8.1 → valkey/valkey:9",))],
        ),
        (
            a_hive(redis={"managed": {"annotations": {"a": "b"}}}),
            a_hive(redis={"managed": {"annotations": {"a": "c"}, "storage": {"size": "1Gi"}}}),
            [("redis", "restarts", ("redis.managed.annotations.a b → c",))],
        ),
        (a_hive(), a_hive(postgres=EXTERNAL), [("postgres", "removed", ())]),
        (
            a_hive(postgres={"managed": {"storage": {"size": "1Gi"}}}),
            a_hive(postgres={"managed": {"storage": {"size": "5Gi"}}}),
            [("postgres", "grows", ("volume 1Gi → 5Gi",))],
        ),
    ],
)  # fmt: skip
def test_what_becomes_of_the_hives_own_servers(before: Any, after: Any, expected: Any) -> None:
    found = effect_on_stores(before, after, {"redis": "1Gi", "postgres": "1Gi"})
    assert [(effect.store, effect.effect, effect.why) for effect in found] == expected
