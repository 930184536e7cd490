"""The operator's rights as its comments name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.rights import Request, asked, complaints

from agenthive_operator import rbac
from agenthive_operator.rbac import MarkerError, Right, rights_in, rules

SOURCE = """
    # rbac: core/secrets,configmaps get,list
    # rbac own: coordination.k8s.io/leases get
        # rbac cluster: core/namespaces list
    # rbac: agenthive.dev/agents/status patch
"""


def test_a_comment_names_each_verb_on_each_resource() -> None:
    assert set(rights_in(SOURCE, "x.py")) == {
        Right("watched", "", "secrets", "get"),
        Right("watched", "", "secrets", "list"),
        Right("watched", "", "configmaps", "get"),
        Right("watched", "", "configmaps", "list"),
        Right("own", "coordination.k8s.io", "leases", "get"),
        Right("cluster", "", "namespaces", "list"),
        Right("watched", "agenthive.dev", "agents/status", "patch"),
    }


@pytest.mark.parametrize(
    "comment", ["# rbac core/secrets get", "# rbac: secrets get", "# rbac: core/secrets", "# rbac all: core/pods get"]
)
def test_a_comment_that_cannot_be_read_is_told(comment: str) -> None:
    with pytest.raises(MarkerError, match=r"x\.py: cannot read"):
        list(rights_in(f"    {comment}\n", "x.py"))


def test_resources_with_the_same_verbs_share_a_rule() -> None:
    assert rules(frozenset(rights_in(SOURCE, "x.py")), "watched") == [
        {"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": ["get", "list"]},
        {"apiGroups": ["agenthive.dev"], "resources": ["agents/status"], "verbs": ["patch"]},
    ]


def test_the_chart_has_the_rules_of_the_code() -> None:
    file = Path(__file__).parents[2] / "charts/agenthive/files/rbac.yaml"
    assert file.read_text(encoding="utf-8") == rbac.text(), "run `make rbac`"


def test_nothing_is_granted_that_could_be_used_to_get_more() -> None:
    for right in rbac.rights():
        assert "*" not in right
        assert right.group != "rbac.authorization.k8s.io"
        assert not right.resource.startswith(("pods/", "serviceaccounts", "nodes", "validatingwebhook"))
        assert right.verb not in {"impersonate", "escalate", "bind", "deletecollection"}
        if right.resource == "pods":
            assert right.verb in {"get", "list", "watch"}


def line(agent: str, verb: str, code: int = 200, **target: str) -> str:
    objective = {"objectRef": {"apiGroup": "", **target}, "responseStatus": {"code": code}}
    return json.dumps({"userAgent": agent, "verb": verb, **objective})


def test_only_what_operators_ask_for_counts() -> None:
    lines = [
        line("agenthive-operator", "get", resource="secrets"),
        line("kopf/1.44", "watch", resource="pods"),
        line("kubectl/v1.36", "delete", resource="secrets"),
        line("agenthive-operator", "patch", resource="agents", subresource="status", apiGroup="agenthive.dev"),
        json.dumps({"userAgent": "kopf/1.44", "verb": "get"}),
        '{"userAgent": "agenthive-oper',
    ]
    assert asked(lines) == {
        Request("", "secrets", "get"),
        Request("", "pods", "watch"),
        Request("agenthive.dev", "agents/status", "patch"),
    }


def test_an_apply_that_creates_needs_both_rights() -> None:
    applied = [line("agenthive-operator", "patch", code, resource="secrets") for code in (200, 409)]
    assert asked(applied) == {Request("", "secrets", "patch")}
    made = line("agenthive-operator", "patch", 201, resource="secrets")
    assert asked([made]) == {Request("", "secrets", "patch"), Request("", "secrets", "create")}


def test_what_lacks_is_told_and_after_a_whole_suite_what_is_unused() -> None:
    granted = frozenset({Right("watched", "", "pods", "list"), Right("watched", "", "pods", "watch")})
    requests = {Request("", "pods", "list"), Request("", "secrets", "delete")}
    assert complaints(requests, granted, complete=False) == [
        "the operator asked to delete core/secrets, which no `# rbac:` comment names"
    ]
    assert complaints(requests, granted, complete=True)[1:] == [
        "a `# rbac:` comment names core/pods watch, which no test made the operator ask for"
    ]
