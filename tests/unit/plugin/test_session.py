"""No cluster to ask, and what was said in a pod."""

from __future__ import annotations

from pathlib import Path

import pytest

from agenthive_operator.backends.kube import ApiError
from agenthive_operator.plugin import main
from agenthive_operator.plugin.session import failure, said_here

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: here, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
current-context: here
"""


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        (None, [], "KUBECONFIG is {file}, and there is no such file"),
        ("", [], "{file} is no kubeconfig"),
        ("[1", [], "{file} does not say where one is"),
        ("kind: Config", [], "{file} does not say where one is"),
        (KUBECONFIG, ["--context", "there"], "there is no context there in {file}; there are: here"),
        ("[]", ["--context", "there"], "there is no context there in {file}; there are: none"),
        (KUBECONFIG, [], "the API server cannot be reached (GET /apis/agenthive.dev"),
    ],
)
def test_no_cluster_to_ask(
    text: str | None, words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    assert told.format(file=file) in said(capsys, "status", *words)


def test_no_kubeconfig_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "set KUBECONFIG, give --kubeconfig, or have a ~/.kube/config" in said(capsys, "plan", "-f", "x")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ApiError(403, "Forbidden", "GET /api/v1/pods: pods is forbidden"), "you may not: pods is forbidden"),
        (ApiError(401, "Unauthorized", "Unauthorized"), "does not know you"),
        (ApiError(500, "InternalError", "etcd is away"), "etcd is away"),
    ],
)
def test_what_a_refusal_means(error: ApiError, told: str) -> None:
    assert told in failure(error)


def test_usage_of_the_command_in_the_pod_is_that_of_the_verb() -> None:
    usage = b"Usage: agenthive dlq redrive [OPTIONS]\nTry 'agenthive dlq redrive --help' for help.\n"
    assert said_here(usage) == usage.replace(b"agenthive", b"kubectl hive")
    assert said_here(b"agenthive: no such message\n") == b"kubectl hive: no such message\n"
    assert said_here(b"the agenthive: of others\n") == b"the agenthive: of others\n"
