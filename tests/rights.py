"""What the operator asked of API servers while the suite ran, against the rights that its code names.

The API servers of the tests keep audit logs in one folder. At the end of the session the requests of operators (not
those of the tests, nor of people's command lines) are compared with the ``# rbac:`` comments: none may be missing, and
after the whole suite none may be there that nothing used.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from agenthive_operator import rbac

FOLDER = "AGENTHIVE_TESTS_AUDIT"
OPERATORS = ("agenthive-operator", "kopf/")


class Request(NamedTuple):
    """What was asked of which resource; ``resource`` may be a subresource."""

    group: str
    resource: str
    verb: str


def audit_file() -> Path:
    """Where one API server is to write its audit log."""
    return Path(os.environ[FOLDER]) / f"{uuid.uuid4().hex}.jsonl"


def asked(lines: Iterable[str]) -> set[Request]:
    """The requests of operators in lines of an audit log that a server answered or began to answer. Pure."""
    found = set()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the last line of a server that was killed
        target = event.get("objectRef")
        if target is None or not str(event.get("userAgent", "")).startswith(OPERATORS):
            continue
        resource = "/".join(part for part in (target["resource"], target.get("subresource")) if part)
        group = target.get("apiGroup", "")
        found.add(Request(group, resource, event["verb"]))
        if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
            found.add(Request(group, resource, "create"))  # an apply of what was not there needs both rights
    return found


def complaints(requests: set[Request], granted: frozenset[rbac.Right], *, complete: bool) -> list[str]:
    """What is wrong with the comments: rights that lack and, if the suite was ``complete``, that nobody used. Pure."""
    allowed = {Request(right.group, right.resource, right.verb) for right in granted}
    wrong = [
        f"the operator asked to {request.verb} {request.group or 'core'}/{request.resource}, which no `# rbac:` comment"
        " names"
        for request in sorted(requests - allowed)
    ]
    if complete:
        wrong += [
            f"a `# rbac:` comment names {request.group or 'core'}/{request.resource} {request.verb}, which no test made"
            " the operator ask for"
            for request in sorted(allowed - requests)
        ]
    return wrong


def is_whole(config: pytest.Config) -> bool:
    """Whether every test was asked for: then each right has its use."""
    options = config.option
    chosen = ("keyword", "markexpr", "collectonly", "deselect", "ignore", "ignore_glob", "lf", "stepwise")
    return (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and not any(getattr(options, name, None) for name in chosen)
        and not os.environ.get("AGENTHIVE_E2E_KUBECONFIG")  # an operator whose requests nobody notes
    )


class Watch:
    """The plugin of the process that pytest was started as; workers of xdist inherit the folder."""

    def __init__(self) -> None:
        self._wrong: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Compare, and let the session fail."""
        requests: set[Request] = set()
        folder = Path(os.environ[FOLDER])
        for file in folder.glob("*.jsonl"):
            with file.open(encoding="utf-8", errors="replace") as lines:
                requests |= asked(lines)
            file.unlink()
        folder.rmdir()
        self._wrong = complaints(requests, rbac.rights(), complete=exitstatus == 0 and is_whole(session.config))
        if self._wrong and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what is wrong."""
        if self._wrong:
            terminalreporter.section("rights of the operator", red=True)
            for line in self._wrong:
                terminalreporter.line(line)


def install(config: pytest.Config) -> None:
    """To be called from ``pytest_configure``."""
    if not hasattr(config, "workerinput"):
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="agenthive-audit-")
        config.pluginmanager.register(Watch(), "rights-of-the-operator")
