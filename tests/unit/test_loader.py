"""Finding the agent that `agenthive run` names, and what is said when it is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agenthive.loader import ConfigurationError, load_agent, write_termination_log

Write = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique: str) -> Write:
    """Writes a module of a unique name into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def write(text: str) -> str:
        (tmp_path / f"{unique}.py").write_text(text)
        return unique

    return write


AGENT = "from agenthive import Agent\nagent = Agent('a')\nagent.on('x')(lambda message: None)\n"


def test_an_agent_is_found_in_the_current_directory(module: Write) -> None:
    assert load_agent(f"{module(AGENT)}:agent").name == "a"


def test_an_attribute_may_be_dotted(module: Write) -> None:
    name = module(f"{AGENT}class Holder:\n    inner = agent\n")
    assert load_agent(f"{name}:Holder.inner").name == "a"


@pytest.mark.parametrize("entrypoint", ["", "summarizer", ":agent", "summarizer:"])
def test_the_form_is_explained(entrypoint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"not of the form module:attribute, as in summarizer:agent"):
        load_agent(entrypoint)


@pytest.mark.parametrize(
    ("text", "attribute", "reason"),
    [
        (None, "agent", r"ModuleNotFoundError: No module named '.*'; is its file in the image"),
        ("import no_such_library.part", "agent", r"No module named 'no_such_library'; is no_such_library installed"),
        ("1 / 0", "agent", r"ZeroDivisionError: division by zero; raised in .*\.py:1 while .* was imported"),
        ("\ndef broken(:", "agent", r"SyntaxError: .*; raised in .*\.py:2 while"),
        ("from agenthive import nothing", "agent", r"ImportError: cannot import name 'nothing'"),
        (AGENT, "agnet", r"has no 'agnet'; agents there: agent"),
        ("x = 1", "agent", r"has no 'agent'; the module defines no Agent"),
        ("x = 1", "x", r"x is 'int', not an agenthive.Agent"),
        ("from agenthive import Agent\nagent = Agent('a')", "agent", r"a handles no message type; decorate"),
        ("from agenthive import Agent\nagent = Agent('A')", "agent", r"Agent\('A'\): a name is .*; raised in"),
    ],
)
def test_every_mistake_is_one_line(module: Write, text: str | None, attribute: str, reason: str, unique: str) -> None:
    name = module(text) if text is not None else f"absent_{unique}"
    with pytest.raises(ConfigurationError, match=reason) as caught:
        load_agent(f"{name}:{attribute}")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"entrypoint {name}:{attribute}: ")


def test_the_termination_log_keeps_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_termination_log(str(log), "old reason, much longer than the new one")
    write_termination_log(str(log), "x" * 5000 + "the end")
    assert len(log.read_bytes()) == 4096
    assert log.read_text().endswith("the end")


def test_outside_a_pod_there_is_no_termination_log(tmp_path: Path) -> None:
    write_termination_log(str(tmp_path / "no" / "such"), "reason")
    assert list(tmp_path.iterdir()) == []
