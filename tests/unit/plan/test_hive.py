"""The plan of a hive, decision by decision; the whole objects stand in ``golden/``."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from tests.unit.plan.build import OBSERVED_HIVE, hive, manifest, named

from agenthive_operator.api import AgentHive
from agenthive_operator.api.hive import HIVE_NAME_MAX
from agenthive_operator.plan.checksum import object_digest
from agenthive_operator.plan.hive import plan_annotations, plan_claims, plan_hive
from agenthive_operator.plan.inputs import ObservedHive, ObservedServer
from agenthive_operator.plan.names import claim_name
from agenthive_operator.plan.servers import MissingPasswordError


def observed(size: str | None) -> ObservedHive:
    return ObservedHive(ObservedServer("r", size), ObservedServer("p", size))


def secret(of: AgentHive, name: str, password: str = "p@ss/word") -> dict[str, str]:
    server = ObservedServer(password)
    data = named(plan_hive(of, ObservedHive(server, server)), "Secret", name)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def template(of: AgentHive, name: str) -> dict[str, Any]:
    found: dict[str, Any] = named(plan_hive(of, OBSERVED_HIVE), "StatefulSet", name)["spec"]["template"]
    return found


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        ({}, {"demo-redis": 4, "demo-postgres": 3}),
        ({"redis": {"external": {"urlSecretRef": {"name": "u"}}}}, {"demo-postgres": 3}),
        ({"postgres": {"external": {"urlSecretRef": {"name": "u"}}}}, {"demo-redis": 4}),
    ],
)
def test_only_managed_servers_have_objects(spec: dict[str, Any], kinds: dict[str, int]) -> None:
    objects = plan_hive(hive(**spec), OBSERVED_HIVE)
    names = [o["metadata"]["name"] for o in objects]
    assert {name: names.count(name) for name in names} == kinds


@pytest.mark.parametrize("missing", ["redis", "postgres"])
def test_a_managed_server_needs_its_password(missing: str) -> None:
    servers = {"redis": ObservedServer("r"), "postgres": ObservedServer("p"), missing: ObservedServer()}
    with pytest.raises(MissingPasswordError, match=f"demo-{missing} has no password"):
        plan_hive(hive(), ObservedHive(**servers))


def test_urls_quote_the_password() -> None:
    assert secret(hive(), "demo-redis")["url"] == "redis://:p%40ss%2Fword@demo-redis.team.svc:6379/0"
    expected = "postgresql://agenthive:p%40ss%2Fword@demo-postgres.team.svc:5432/agenthive"
    assert secret(hive(), "demo-postgres")["url"] == expected
    assert secret(hive(), "demo-postgres")["password"] == "p@ss/word"


def test_the_password_is_one_word_to_redis() -> None:
    assert secret(hive(), "demo-redis", 'a b"c\\d')["auth.conf"] == 'requirepass "a b\\"c\\\\d"\n'


def test_every_object_belongs_to_the_hive() -> None:
    for found in plan_hive(hive(deletionPolicy="Delete"), OBSERVED_HIVE):
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("AgentHive", "demo", True)
        assert found["metadata"]["labels"]["agenthive.dev/hive"] == "demo"


def test_labels_of_the_longest_name_fit() -> None:
    resource = manifest("hive-minimal")
    resource["metadata"]["name"] = "h" * HIVE_NAME_MAX
    for found in plan_hive(AgentHive.parse(resource), OBSERVED_HIVE):
        revision = f"{found['metadata']['name']}-{'x' * 10}"
        assert len(revision) <= 63, "controller-revision-hash is a label of the pods"


@pytest.mark.parametrize(
    ("image", "program"),
    [
        ("valkey/valkey:8.1", "valkey-server"),
        ("redis:8", "redis-server"),
        ("registry:5000/library/redis@sha256:abc", "redis-server"),
        ("redis.example.org/valkey:9", "valkey-server"),
    ],
)
def test_the_program_is_that_of_the_image(image: str, program: str) -> None:
    spec = template(hive(redis={"managed": {"image": image}}), "demo-redis")["spec"]
    assert spec["containers"][0]["command"] == [program]


def test_a_memory_limit_bounds_what_redis_holds() -> None:
    limited = hive(redis={"managed": {"resources": {"limits": {"memory": "1Gi"}}}})
    config = named(plan_hive(limited, OBSERVED_HIVE), "ConfigMap")["data"]["redis.conf"]
    assert "maxmemory 805306368\n" in config
    assert "maxmemory-policy noeviction\n" in config
    unlimited = named(plan_hive(hive(), OBSERVED_HIVE), "ConfigMap")["data"]["redis.conf"]
    assert "maxmemory " not in unlimited


def test_a_new_password_rolls_the_server() -> None:
    before = template(hive(), "demo-redis")["metadata"]["annotations"]
    other = ObservedHive(ObservedServer("other"), ObservedServer("p"))
    after = named(plan_hive(hive(), other), "StatefulSet", "demo-redis")["spec"]["template"]["metadata"]["annotations"]
    assert before != after


def test_ephemeral_has_no_claim() -> None:
    found = named(plan_hive(hive(redis={"managed": {"ephemeral": True}}), OBSERVED_HIVE), "StatefulSet", "demo-redis")
    assert "volumeClaimTemplates" not in found["spec"]
    assert {"name": "data", "emptyDir": {}} in found["spec"]["template"]["spec"]["volumes"]


@pytest.mark.parametrize(
    ("spec", "stays"),
    [
        ({}, True),
        ({"deletionPolicy": "Delete"}, False),
        ({"redis": {"managed": {"ephemeral": True}}}, False),
    ],
)
def test_the_password_stays_where_the_volume_stays(spec: dict[str, Any], stays: bool) -> None:
    found = named(plan_hive(hive(**spec), OBSERVED_HIVE), "Secret", "demo-redis")
    assert ("ownerReferences" not in found["metadata"]) is stays


def test_the_admin_secret_holds_the_instance_id() -> None:
    found = named(plan_hive(hive(instanceId="mine"), OBSERVED_HIVE), "Secret", "demo-redis")
    assert found["metadata"]["annotations"] == {"agenthive.dev/instance-id": "mine"}


@pytest.mark.parametrize(("policy", "deleted"), [("Retain", "Retain"), ("Delete", "Delete")])
def test_deletion_policy_is_that_of_the_claims(policy: str, deleted: str) -> None:
    found = named(plan_hive(hive(deletionPolicy=policy), OBSERVED_HIVE), "StatefulSet", "demo-redis")
    assert found["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": deleted, "whenScaled": "Retain"}


@pytest.mark.parametrize(
    ("spec", "size", "expected"),
    [
        ({}, None, []),
        ({}, "1Gi", []),
        ({"redis": {"managed": {"storage": {"size": "1024Mi"}}}}, "1Gi", []),
        ({"redis": {"managed": {"storage": {"size": "2048Mi"}}}}, "1Gi", [("data-demo-redis-0", "2Gi")]),
        ({"postgres": {"managed": {"storage": {"size": "5G"}}}}, "1Gi", [("data-demo-postgres-0", "5G")]),
        ({"redis": {"managed": {"ephemeral": True}}}, "1Gi", []),
    ],
)
def test_claims_grow(spec: dict[str, Any], size: str | None, expected: list[tuple[str, str]]) -> None:
    claims = plan_claims(hive(**spec), observed(size))
    found = [(c["metadata"]["name"], c["spec"]["resources"]["requests"]["storage"]) for c in claims]
    assert found == expected
    assert claim_name("demo", "redis") == "data-demo-redis-0"


def test_external_servers_have_no_claims() -> None:
    assert plan_claims(hive("hive-external"), observed("1Gi")) == []


def test_the_template_of_a_claim_never_changes() -> None:
    grown = hive(redis={"managed": {"storage": {"size": "9Gi"}}})
    found = named(plan_hive(grown, observed("1Gi")), "StatefulSet", "demo-redis")
    assert found["spec"]["volumeClaimTemplates"][0]["spec"]["resources"] == {"requests": {"storage": "1Gi"}}


def test_a_digest_sees_data_only() -> None:
    one = {"metadata": {"resourceVersion": "1"}, "data": {"a": "1", "b": "2"}}
    two = {"metadata": {"resourceVersion": "2"}, "data": {"b": "2", "a": "1"}, "binaryData": None}
    assert object_digest(one) == object_digest(two)
    assert object_digest(one) != object_digest({"data": {"a": "1"}})
    assert object_digest({"data": {"a": "1"}}) != object_digest({"binaryData": {"a": "1"}})


def test_plans_are_pure() -> None:
    of = hive("hive-full")
    assert plan_hive(of, OBSERVED_HIVE) == plan_hive(of, OBSERVED_HIVE)


NOTED = {"redis": {"managed": {"annotations": {"a.example/b": "c"}}}}


@pytest.mark.parametrize(
    ("spec", "annotated", "expected"),
    [
        ({}, False, {}),
        (NOTED, False, {"data-demo-redis-0": {"a.example/b": "c"}}),
        (NOTED, True, {"data-demo-redis-0": {"a.example/b": "c"}, "data-demo-postgres-0": {}}),
        ({}, True, {"data-demo-redis-0": {}, "data-demo-postgres-0": {}}),
        ({"redis": {"managed": {"ephemeral": True}}, "postgres": NOTED["redis"]}, True,
         {"data-demo-postgres-0": {"a.example/b": "c"}}),
        ({"redis": {"external": {"urlSecretRef": {"name": "u"}}}}, False, {}),
    ],
)  # fmt: skip
def test_annotations_of_claims(spec: dict[str, Any], annotated: bool, expected: dict[str, dict[str, str]]) -> None:
    server = ObservedServer("p", "1Gi", annotated=annotated)
    claims = plan_annotations(hive(**spec), ObservedHive(server, server))
    assert {claim["metadata"]["name"]: claim["metadata"]["annotations"] for claim in claims} == expected
    assert not any("spec" in claim for claim in claims)


def test_annotations_are_those_of_the_pod_and_not_of_the_template_of_the_claim() -> None:
    found = named(plan_hive(hive(**NOTED), OBSERVED_HIVE), "StatefulSet", "demo-redis")["spec"]
    before = template(hive(), "demo-redis")["metadata"]["annotations"]
    assert found["template"]["metadata"]["annotations"] == {"a.example/b": "c", **before}
    assert "annotations" not in found["volumeClaimTemplates"][0]["metadata"]
