"""What the plugin passes on to the command in a pod."""

from __future__ import annotations

from typing import Any

import click
import orjson
import pytest

from agenthive.cli.letters import redrive
from agenthive.cli.messages import send
from agenthive_operator.backends.kube import ApiError
from agenthive_operator.plugin.bus import arguments
from agenthive_operator.plugin.session import exit_code, refusal


def passed(command: click.Command, *words: str) -> tuple[list[str], bytes | None]:
    context = command.make_context("verb", list(words))
    given: dict[str, Any] = context.params
    source = context.get_parameter_source
    return arguments(command, given, {n for n in given if source(n) is click.core.ParameterSource.COMMANDLINE})


def test_a_body_is_never_an_argument() -> None:
    words, stdin = passed(send, "a", "t", '{"password": "hush"}', "--wait", "--delay", "2")
    assert set(words[:-4]) == {"--delay=2.0", "--wait"}
    assert words[-4:] == ["--", "a", "t", "-"]
    assert orjson.loads(stdin or b"") == {"password": "hush"}


def test_ids_filters_and_moments_are_passed_on() -> None:
    assert passed(redrive, "a", "1-0", "2-0") == (["--", "a", "1-0", "2-0"], None)
    words, _ = passed(redrive, "a", "--since", "2026-01-31T12:00:00Z", "--all")
    assert set(words[:-2]) == {"--since=2026-01-31T12:00:00+00:00", "--all"}
    assert words[-2:] == ["--", "a"]


def test_the_exit_code_of_a_command_is_found_in_its_status() -> None:
    assert exit_code({"status": "Success"}) == 0
    causes = [{"reason": "ExitCode", "message": "2"}]
    assert exit_code({"status": "Failure", "details": {"causes": causes}}) == 2
    with pytest.raises(click.ClickException, match="no such file"):
        exit_code({"status": "Failure", "message": "no such file"})


def test_a_refusal_names_the_right_and_how_to_grant_it() -> None:
    text = refusal(ApiError(403, "Forbidden", "no"), "a-1", "team")
    assert "pods/exec" in text
    assert "kubectl create role agenthive-exec -n team" in text
