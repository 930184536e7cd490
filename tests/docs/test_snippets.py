"""Every snippet of README.md and docs/: resources are accepted, code compiles and loads, commands are understood.

The commands of README.md, docs/quick-start.md and docs/first-agent.md are also run: see test_newcomer.py.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from tests.docs.snippets import PAGES, ROOT, Snippet, commands, script, snippets, words

import agenthive.testing
from agenthive import Agent
from agenthive.cli import agenthive as agenthive_command
from agenthive_operator.api.crd import crd_manifests
from agenthive_operator.api.meta import GROUP, VERSION
from agenthive_operator.local.apiserver import celrules, structural
from agenthive_operator.main import main as operator_command
from agenthive_operator.plugin.group import hive as hive_command

CONSOLES = {"console", "sh", "bash", "shell"}
VALUES = yaml.safe_load((ROOT / "charts" / "agenthive" / "values.yaml").read_text())
HELM_VERBS = {
    "get", "history", "install", "lint", "list", "package", "pull", "push", "rollback", "show", "status", "template",
    "test", "uninstall", "upgrade",
}  # fmt: skip
#: Where on a page a value stands whose field is not said: what it belongs to.
PARTS = {"tls": lambda value: {"redis": {"external": {"urlSecretRef": {"name": "redis"}, "tls": value}}}}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# ---- resources


@cache
def schema_of(kind: str) -> Any:
    (manifest,) = (each for each in crd_manifests() if each["spec"]["names"]["kind"] == kind)
    return structural.compile_schema(manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"], root=True)


def refusals(kind: str, part: dict[str, Any], *, whole: bool) -> list[str]:
    """Why the API server would refuse a resource; what a page leaves out of a part of one is filled in."""
    obj = dict(part)
    if not whole:
        obj = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": "name"}} | obj
        if kind == "Agent":
            needed = {"hiveRef": {"name": "hive"}} | ({} if "command" in obj["spec"] else {"entrypoint": "code:agent"})
            obj["spec"] = needed | obj["spec"]
    unknown: list[str] = []
    schema = schema_of(kind)
    body = {key: value for key, value in obj.items() if key != "metadata"}
    checked = structural.apply_defaults(structural.prune(body, schema, "", unknown), schema)
    checked["metadata"] = obj["metadata"]
    found = structural.validate(checked, schema, "") or celrules.check(checked, schema, None)
    return [f"unknown field {path}" for path in unknown] + [str(problem) for problem in found]


def resource_problems(text: str) -> list[str]:
    """What is wrong with the resources of a snippet that are ours; others only have to be YAML."""
    problems: list[str] = []
    for document in yaml.safe_load_all(text):
        if not isinstance(document, dict):
            continue
        name = next(iter(document), "")
        part = {"spec": PARTS[name](document[name])} if name in PARTS else document
        ours = str(part.get("apiVersion", GROUP)).partition("/")[0] == GROUP
        kinds = [part["kind"]] if "kind" in part else ["AgentHive", "Agent"] if set(part) == {"spec"} else []
        if ours and kinds:
            whole = {"apiVersion", "kind", "metadata", "spec"} <= set(part)
            found = [refusals(kind, part, whole=whole) for kind in kinds]
            if all(found):
                problems += min(found, key=len)
    return problems


@every_page
def test_resources_are_accepted(page: Path) -> None:
    for snippet in snippets(page):
        if snippet.language == "yaml":
            assert not resource_problems(snippet.text), str(snippet)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("spec: {replica: 2}", "unknown field"),
        ("kind: Agent\nspec: {concurrency: 0}", "concurrency"),
        ("kind: Agent\nspec: {command: [a], entrypoint: 'a:b'}", "exactly one of entrypoint"),
        ("tls: {caSecret: {name: a}}", "unknown field"),
        (f"apiVersion: {GROUP}/{VERSION}\nkind: Agent\nmetadata: {{name: a}}\nspec: {{entrypoint: 'a:b'}}", "hiveRef"),
    ],
)
def test_a_resource_that_is_wrong_is_found(text: str, problem: str) -> None:
    assert any(problem in found for found in resource_problems(text)), resource_problems(text)


# ---- code


@every_page
async def test_code_compiles_and_agents_run(page: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    blocks = [snippet for snippet in snippets(page) if snippet.language == "python"]
    for block in blocks:
        compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    code = "\n".join(block.text for block in blocks if not (block.file or "").startswith("test_"))
    if "= Agent(" in code:
        module = ModuleType("page")
        monkeypatch.setitem(sys.modules, "page", module)  # where annotations are looked up
        exec(compile(code, str(page), "exec"), module.__dict__)  # the page's own code
        assert isinstance(module.agent, Agent)
        async with agenthive.testing.run(module.agent, redis_url=redis_url) as running:
            await running.idle()


# ---- commands


def click_problem(command: click.Command, name: str, arguments: list[str]) -> str | None:
    """Why a command line is not understood; None if it is."""
    asks_for_help = "--help" in arguments
    try:
        context = command.make_context(name, [word for word in arguments if word != "--help"])
        if isinstance(command, click.Group):
            found, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert child is not None
            return click_problem(child, f"{name} {found}", [*rest, *(["--help"] if asks_for_help else [])])
    except (click.exceptions.NoArgsIsHelpError, click.MissingParameter) as error:
        return None if asks_for_help else error.format_message()
    except click.ClickException as error:
        return error.format_message()
    return None


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def make_problem(arguments: list[str]) -> str | None:
    known = "\n".join(path.read_text() for path in (ROOT / "Makefile", *sorted((ROOT / "hack").glob("*.sh"))))
    for word in arguments:
        name, equals, _ = word.partition("=")
        if equals and not re.search(rf"\b{re.escape(name)}\b", known):
            return f"make reads no {name}"
        if not equals and not word.startswith("-") and word not in make_targets():
            return f"make has no target {word}"
    return None


def helm_problem(arguments: list[str]) -> str | None:
    if not arguments or arguments[0] not in HELM_VERBS:
        return f"helm has no verb {arguments[:1]}"
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag in {"--set", "--set-string", "--set-json"}:
            for path in re.findall(r"(?:^|,)([\w.\[\]-]+)=", re.sub(r"\{[^}]*\}", "", value)):
                if not has_value(VALUES, path):
                    return f"the chart has no value {path}"
        if flag.startswith("charts/") and not (ROOT / flag).exists():
            return f"there is no {flag}"
    return None


def has_value(values: Any, path: str) -> bool:
    """Whether values.yaml has ``a.b``; what is below an empty object or a list is anybody's."""
    name, _, rest = path.partition(".")
    name = name.partition("[")[0]
    if not isinstance(values, dict) or not values:
        return True
    return name in values and (not rest or has_value(values[name], rest))


def kubectl_problem(arguments: list[str]) -> str | None:
    if arguments[:1] == ["hive"]:
        return click_problem(hive_command, "kubectl hive", arguments[1:])
    for flag, value in itertools.pairwise(arguments):
        inside = value.partition("/")[0] in {"charts", "crds", "examples", "docs"}
        if flag in {"-f", "-k"} and inside and not (ROOT / value).exists():
            return f"there is no {value}"
    return None


def command_problem(line: list[str]) -> str | None:
    """Why a command is not understood; of programs that are not ours nothing is known."""
    program, arguments = line[0], line[1:]
    if program == "agenthive":
        return click_problem(agenthive_command, program, arguments)
    if program == "agenthive-operator":
        return click_problem(operator_command, program, arguments)
    checks = {"make": make_problem, "helm": helm_problem, "kubectl": kubectl_problem}
    return checks[program](arguments) if program in checks else None


def lines(page: Path) -> Iterator[tuple[Snippet, list[str]]]:
    for snippet in snippets(page):
        if snippet.language in CONSOLES:
            for command in commands(snippet):
                for line in words(command):
                    yield snippet, line


@every_page
def test_commands_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    for snippet, line in lines(page):
        for word in line[1:]:  # files that a command reads, which others of the page have written
            if re.fullmatch(r"@?[\w-]+\.(json|yaml|sql)", word):
                (tmp_path / word.lstrip("@")).write_text("{}")
        problem = command_problem(line)
        assert problem is None, f"{snippet}: {' '.join(line)}: {problem}"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("make demo ARGS=x", None),
        ("make nothing", "no target nothing"),
        ("make test NOTHING=1", "no NOTHING"),
        ("agenthive dlq list hello --hive first", None),
        ("agenthive dlq lst hello", "No such command"),
        ("agenthive status --hives first", "No such option"),
        ("kubectl hive why", "Missing argument"),
        ("kubectl hive --help", None),
        ("kubectl apply -k examples/nothing", "no examples/nothing"),
        ("agenthive-operator --leader-elected", "No such option"),
        ("helm install a charts/agenthive --set image.tag=1,rbac.create=false --set 'watchNamespaces={a,b}'", None),
        ("helm install a charts/agenthive --set image.tags=1", "no value image.tags"),
        ("helm instal a charts/agenthive", "no verb"),
        ("helm install a charts/nothing", "no charts/nothing"),
    ],
)
def test_a_command_that_is_wrong_is_found(command: str, problem: str | None) -> None:
    (line,) = words(command)
    found = command_problem(line)
    assert found is None if problem is None else problem in (found or ""), found


# ---- the reading of pages


def test_lines_are_read_as_a_shell_reads_them() -> None:
    text = (
        "$ A=1 make test ARGS='a b' \\\n    && agenthive log > x.json  # why\nnot a command\n$ (cd x; make up) | cat\n"
    )
    read = [words(command) for command in commands(Snippet("page", 1, "console", text))]
    assert read == [
        [["make", "test", "ARGS=a b"], ["agenthive", "log"]],
        [["cd", "x"], ["make", "up"], ["cat"]],
    ]


def test_a_script_writes_files_and_demands_the_failures_that_are_said() -> None:
    parts = [Snippet("p", 1, "yaml", "# a.yaml\nb: 1\n"), Snippet("p", 2, "console", "false  # fails: always\ntrue\n")]
    made = script(parts)
    assert "cat > a.yaml" in made
    assert "must_fail false" in made
    assert made.endswith("\ntrue\n")


def test_every_page_is_read() -> None:
    assert len(PAGES) > 25
    assert sum(1 for page in PAGES for _ in lines(page)) > 80
