"""The plan of an agent, decision by decision; the whole objects stand in ``golden/``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.plan.build import OBSERVED_AGENT, agent, hive, manifest, named

from agenthive.settings import DEFAULT_HTTP_PORT, CachePolicy, Settings
from agenthive_operator.api import Agent, AgentHive
from agenthive_operator.plan.agent import checksum, plan_agent, pod_template
from agenthive_operator.plan.names import agent_selector, selector_string
from agenthive_operator.plan.references import Reference, agent_references, code_reference, hive_references
from agenthive_operator.plan.replicas import replicas

DELETED = {"deletionTimestamp": "2026-11-22T20:00:00Z"}


def deleted(name: str) -> dict[str, Any]:
    resource = manifest(name)
    resource["metadata"] |= DELETED
    return resource


@pytest.mark.parametrize(
    ("worker", "of", "expected"),
    [
        (agent(replicas=3), hive(), 3),
        (agent(replicas=0), hive(), 0),
        (agent(), hive(), 1),
        (agent(replicas=3), hive(suspend=True), 0),
        (agent(replicas=3), AgentHive.parse(deleted("hive-minimal")), 0),
        (Agent.parse(deleted("agent-minimal")), hive(), 0),
    ],
)
def test_replicas(worker: Agent, of: AgentHive, expected: int) -> None:
    assert replicas(worker, of) == expected
    assert named(plan_agent(worker, of, OBSERVED_AGENT), "Deployment")["spec"]["replicas"] == expected


def container(worker: Agent, of: AgentHive) -> dict[str, Any]:
    found: dict[str, Any] = pod_template(worker, of, OBSERVED_AGENT)["spec"]["containers"][0]
    return found


def environment(worker: Agent, of: AgentHive) -> dict[str, Any]:
    return {variable["name"]: variable for variable in container(worker, of)["env"]}


@pytest.mark.parametrize(
    ("own", "default", "expected"),
    [(None, None, OBSERVED_AGENT.runtime_image), (None, "d:1", "d:1"), ("o:1", "d:1", "o:1"), ("o:1", None, "o:1")],
)
def test_image(own: str | None, default: str | None, expected: str) -> None:
    defaults = {} if default is None else {"image": default}
    worker = agent() if own is None else agent(image=own)
    assert container(worker, hive(agentDefaults=defaults))["image"] == expected


def test_the_runtime_reads_what_the_pod_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are those that the runtime's settings know."""
    of = hive("hive-full")
    for name, variable in environment(agent("agent-full"), of).items():
        if name.startswith("AGENTHIVE_") and "value" in variable:
            monkeypatch.setenv(name, variable["value"])
    settings = Settings()
    assert (settings.instance, settings.namespace, settings.hive, settings.agent) == ("local", "team", "demo", "worker")
    assert settings.messaging == of.spec.messaging
    assert settings.redis_pool == of.spec.redis.pool
    assert settings.postgres_pool == of.spec.postgres.pool
    assert (settings.concurrency, settings.drain_seconds) == (3, 120)
    assert settings.http_port == DEFAULT_HTTP_PORT
    assert "AGENTHIVE_CAPABILITIES" in environment(agent("agent-full"), of)


def test_default_policies_are_not_written() -> None:
    names = environment(agent(), hive()).keys()
    assert not names & {"AGENTHIVE_MESSAGING", "AGENTHIVE_REDIS_POOL", "AGENTHIVE_POSTGRES_POOL", "AGENTHIVE_CACHE",
                        "AGENTHIVE_CACHE_URL", "AGENTHIVE_RETENTION"}  # fmt: skip
    assert "PYTHONPATH" not in names


OWN_CACHE = {"cache": {"urlSecretRef": {"name": "cache"}}}
CACHE = "redis://:cache-password@cache:6379/0"


@pytest.mark.parametrize(
    ("redis", "url", "expected"),
    [
        ({"cache": {"maxBytes": 4096}}, None, CachePolicy(max_bytes=4096)),
        ({"cache": {"enabled": False}}, None, CachePolicy(enabled=False)),
        (OWN_CACHE, CACHE, CachePolicy()),
        (OWN_CACHE, None, CachePolicy(enabled=False)),
    ],
)
def test_the_cache_is_off_until_its_own_redis_was_found_good(
    redis: dict[str, Any], url: str | None, expected: CachePolicy
) -> None:
    of, observed = hive(redis=redis), replace(OBSERVED_AGENT, cache_url=url)
    variables = {v["name"]: v for v in pod_template(agent(), of, observed)["spec"]["containers"][0]["env"]}
    document = variables.get("AGENTHIVE_CACHE", {}).get("value", "{}")
    assert CachePolicy.model_validate_json(document) == expected
    secret = named(plan_agent(agent(), of, observed), "Secret")["data"]
    assert ("AGENTHIVE_CACHE_URL" in variables) == ("AGENTHIVE_CACHE_URL" in secret) == (url is not None)
    assert CACHE not in str(variables), "the URL is in the Secret alone"


def test_retention_reaches_the_pods() -> None:
    variables = environment(agent(), hive(retention={"inboxDays": 90}))
    assert variables["AGENTHIVE_RETENTION"]["value"] == '{"inboxDays":90}'


def test_the_operators_variables_hold() -> None:
    env = [{"name": "POD_IP", "value": "1.2.3.4"}, {"name": "AGENTHIVE_HIVE", "value": "other"}]
    variables = environment(agent(env=env), hive())
    assert variables["POD_IP"]["value"] == "1.2.3.4", "a name of the user's own"
    assert "AGENTHIVE_BIND" not in variables, "an agent listens on every interface of its pod"
    assert variables["AGENTHIVE_HIVE"]["value"] == "demo"


def test_the_agents_variables_win_over_the_hives() -> None:
    of = hive(agentDefaults={"env": [{"name": "A", "value": "hive"}, {"name": "HOME", "value": "/home"}]})
    variables = environment(agent(env=[{"name": "A", "value": "agent"}]), of)
    assert variables["A"]["value"] == "agent"
    assert variables["HOME"]["value"] == "/home"


def test_a_python_path_from_elsewhere_replaces_ours() -> None:
    source = {"configMapKeyRef": {"name": "c", "key": "k"}}
    worker = agent("agent-full", env=[{"name": "PYTHONPATH", "valueFrom": source}])
    assert environment(worker, hive())["PYTHONPATH"] == {"name": "PYTHONPATH", "valueFrom": source}


def test_grace_is_above_the_drain() -> None:
    spec = pod_template(agent(drainSeconds=77), hive(), OBSERVED_AGENT)["spec"]
    assert spec["terminationGracePeriodSeconds"] > 77


def test_the_selector_holds_whatever_the_template_says() -> None:
    template = {
        "metadata": {"labels": {"agenthive.dev/agent": "other"}, "annotations": {"agenthive.dev/checksum": "x"}}
    }
    worker = agent(podTemplate=template)
    deployment = named(plan_agent(worker, hive(), OBSERVED_AGENT), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    annotation = deployment["spec"]["template"]["metadata"]["annotations"]["agenthive.dev/checksum"]
    assert annotation == checksum(worker, hive(), OBSERVED_AGENT)


def test_selector_of_the_scale_subresource() -> None:
    assert selector_string(agent_selector("demo", "worker")) == "agenthive.dev/agent=worker,agenthive.dev/hive=demo"


def test_malformed_templates_are_left_to_the_server() -> None:
    template = {"spec": {"volumes": "all", "containers": [{"name": "x", "resources": {"limits": {"cpu": "many"}}}]}}
    spec = pod_template(agent(podTemplate=template), hive(), OBSERVED_AGENT)["spec"]
    assert spec["volumes"] == "all"
    assert spec["containers"][1]["resources"] == {"limits": {"cpu": "many"}}


CODE = Reference("ConfigMap", "worker-code")


@pytest.mark.parametrize(
    ("change", "rolls"),
    [
        ({"redis_url": "redis://other/0"}, True),
        ({"postgres_url": "postgresql://other/x"}, True),
        ({"cache_url": "redis://cache/0"}, True),
        ({"digests": {CODE: "other"}}, True),
        ({"digests": {}}, True),
        ({"digests": {CODE: "c0de", Reference("Secret", "unrelated"): "x"}}, False),
        ({"digests": {CODE: "c0de", Reference("Secret", "certs"): "x"}}, True),
    ],
)
def test_what_rolls_the_pods(change: dict[str, Any], rolls: bool) -> None:
    before = checksum(agent("agent-full"), hive(), OBSERVED_AGENT)
    after = checksum(agent("agent-full"), hive(), replace(OBSERVED_AGENT, **change))
    assert (before != after) is rolls


def test_references_of_an_agent() -> None:
    assert agent_references(agent("agent-full"), hive("hive-full")) == {
        Reference("ConfigMap", "common"),
        Reference("ConfigMap", "projected"),
        Reference("ConfigMap", "worker-code"),
        Reference("Secret", "certs"),
        Reference("Secret", "fetch-token"),
        Reference("Secret", "keys"),
        Reference("Secret", "more"),
        Reference("Secret", "proxy-env"),
    }
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]
    assert agent_references(agent(env=env), hive()) == {Reference("ConfigMap", "c")}
    assert agent_references(agent(), hive()) == frozenset()
    assert code_reference(agent()) is None
    assert code_reference(agent("agent-full")) == CODE


def test_references_of_a_hive() -> None:
    expected = {Reference("Secret", "redis-urls"), Reference("Secret", "main-app")}
    assert hive_references(hive("hive-external")) == expected
    assert hive_references(hive()) == frozenset()
    pointers = {f"{name}SecretRef": {"name": name.lower()} for name in ("url", "directUrl", "adminUrl")}
    of = hive(redis=OWN_CACHE, postgres={"external": pointers})
    assert {reference.name for reference in hive_references(of)} == {"cache", "url", "directurl", "adminurl"}
    off = hive(redis={"cache": {"enabled": False, **OWN_CACHE["cache"]}})
    assert hive_references(off) == frozenset()


def test_certificates_are_in_the_agents_own_secret_and_roll_the_pods() -> None:
    def template(**files: str) -> tuple[dict[str, Any], dict[str, Any]]:
        observed = replace(OBSERVED_AGENT, tls_files={name.replace("_", "."): text for name, text in files.items()})
        objects = plan_agent(agent(), hive(), observed)
        return named(objects, "Secret"), named(objects, "Deployment")["spec"]["template"]

    _, plain = template()
    assert "agenthive-tls" not in str(plain)
    secret, pod = template(ca_crt="CA", tls_key="KEY")
    assert secret["data"]["tls.key"] == "S0VZ"
    (volume,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "agenthive-tls"]
    assert volume["secret"] == {
        "secretName": secret["metadata"]["name"],
        "items": [{"key": "ca.crt", "path": "ca.crt"}, {"key": "tls.key", "path": "tls.key"}],
        "defaultMode": 0o440,
        "optional": True,
    }
    mount = {"name": "agenthive-tls", "mountPath": "/agenthive/tls", "readOnly": True}
    assert mount in pod["spec"]["containers"][0]["volumeMounts"]
    assert "KEY" not in str(pod)
    renewed = template(ca_crt="CA", tls_key="NEW")[1]
    assert len({str(each["metadata"]["annotations"]) for each in (plain, pod, renewed)}) == 3


def test_secrets_of_logins_and_certificates_are_followed() -> None:
    external = {
        "url": "redis://h",
        "usernameSecretRef": {"name": "user"},
        "passwordSecretRef": {"name": "password"},
        "tls": {"caSecretRef": {"name": "ca"}, "clientCertSecretRef": {"name": "client"}},
    }
    of = hive(redis={"external": external}, postgres={"managed": {}})
    assert hive_references(of) == {Reference("Secret", name) for name in ("user", "password", "ca", "client")}
