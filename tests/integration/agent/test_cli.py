"""The command line against a real agent: what it prints, for people and for programs, and its exit codes."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

import agenthive.cli
from agenthive.cli import options as cli_options
from agenthive.settings import Settings
from agenthive.store.roles import drop_roles, ensure_agent, ensure_roles, roles_sql

CODE = """
from agenthive import Agent, Reject

agent = Agent("worker")

@agent.on("echo")
async def echo(message, ctx):
    return {"body": message.body, "from": message.from_agent, "priority": int(message.priority)}

@agent.on("bad")
async def bad(message):
    raise Reject("no [bold]way[/bold]")
"""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def worker(process: Callable[..., Any], tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "cli_code.py").write_text(CODE)
    pod = process()
    pod.start("cli_code:agent")
    pod.wait_for("serving worker")
    yield pod
    pod.popen.terminate()
    assert pod.exit_code() == 0


@pytest.mark.usefixtures("worker")
def test_ask_prints_what_the_handler_returned(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("ask", "worker", "echo", '{"n": 1}', "--priority", "high", "--from", "me")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"body": {"n": 1}, "from": "me", "priority": 3}
    (tmp_path / "body.json").write_text('{"from": "a file"}')
    assert json.loads(cli("ask", "worker", "echo", f"@{tmp_path}/body.json")[1])["body"] == {"from": "a file"}
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"from": "stdin"}')))
    assert json.loads(cli("ask", "worker", "echo", "-")[1])["body"] == {"from": "stdin"}
    assert json.loads(cli("ask", "worker", "echo")[1])["body"] == {}


@pytest.mark.usefixtures("worker")
def test_ask_fails_with_the_handlers_reason_on_one_line(cli: Cli) -> None:
    assert cli("ask", "worker", "bad") == (1, "", "agenthive: rejected: no [bold]way[/bold]\n")


def test_ask_says_what_became_of_a_request_without_reply(cli: Cli) -> None:
    code, out, err = cli("ask", "nobody", "echo", "--timeout", "0.2")
    assert (code, out) == (1, "")
    assert err.startswith("agenthive: nobody did not reply to echo within 0.2 s")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("worker")
def test_send_wait_and_status(cli: Cli) -> None:
    code, out, _ = cli("send", "worker", "echo", "{}", "--id", "my-id", "--ttl", "60", "--max-retries", "1")
    assert (code, out) == (0, "my-id\n")
    code, out, _ = cli("send", "worker", "echo", "--wait", "-o", "json")
    document = json.loads(out)
    assert (code, document["status"], document["attempts"], document["agent"]) == (0, "delivered", 1, "worker")
    code, out, _ = cli("status", "worker", document["message_id"])
    assert code == 0
    assert out.split()[:3] == ["AGENT", "MESSAGE", "STATUS"]
    assert f"worker  {document['message_id']}  delivered" in out
    code, out, _ = cli("send", "worker", "bad", "--wait")
    assert code == 1
    assert "failed" in out
    assert "no [bold]way[/bold]" in out


@pytest.mark.usefixtures("worker")
def test_watch_prints_each_change_and_exits_with_the_outcome(cli: Cli) -> None:
    cli("send", "worker", "echo", "--id", "good", "--delay", "0.5")
    code, out, err = cli("watch", "worker", "good", "--timeout", "20")
    first, *_, last = out.splitlines()
    assert (code, err) == (0, "")
    assert "pending (delayed)  due 20" in first
    assert last.endswith("delivered  attempt 1")
    cli("send", "worker", "bad", "--id", "bad")
    code, out, _ = cli("watch", "worker", "bad", "-o", "json")
    changes = [json.loads(line) for line in out.splitlines()]
    assert (code, changes[-1]["status"], changes[-1]["detail"]) == (1, "failed", None)


def test_watch_gives_up_in_time(cli: Cli) -> None:
    cli("send", "nobody", "echo", "--id", "m")
    code, out, err = cli("watch", "nobody", "m", "--timeout", "0.1")
    assert (code, out.count("\n")) == (1, 1)
    assert err == "agenthive: message m to nobody is not final after 0.1 s: it is waiting after 0 attempts\n"
    assert cli("status", "nobody", "m")[1].splitlines()[1].split()[2:4] == ["pending", "(waiting)"]
    assert "nobody has no message x" in cli("watch", "nobody", "x")[2]


def test_send_without_wait_does_not_need_the_agent(cli: Cli) -> None:
    code, out, _ = cli("-o", "json", "send", "nobody", "x", "--delay", "60")
    document = json.loads(out)
    assert (code, document["agent"]) == (0, "nobody")
    code, out, _ = cli("send", "nobody", "x", "--wait", "--timeout", "0.1")
    assert code == 1, "still pending when the time was up"
    assert "pending" in out
    code, out, _ = cli("status", "nobody", "-o", "json")
    (queue,) = json.loads(out)
    assert (queue["agent"], queue["backlog"], queue["delayed"]) == ("nobody", 1, 1)
    assert queue["backlog_by_priority"]["medium"] == 1
    code, _, err = cli("status", "nobody", "no-such-id")
    assert code == 1
    assert err.startswith("agenthive: agent nobody has no message no-such-id")


@pytest.mark.usefixtures("worker")
def test_status_and_dead_letters_of_the_hive(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agenthive.cli.queues.LOOK_SECONDS", 0.01)
    assert cli("dlq", "list", "worker") == (0, "", "worker has no dead letters\n")
    cli("send", "worker", "bad", "--id", "doomed", "--wait")
    code, out, _ = cli("status")
    heading, row = out.splitlines()
    assert code == 0
    assert heading.split("  ")[0] == "AGENT"
    assert row.split() == ["worker", "0", "0", "0", "1", "-", "0B", "0"]
    (queue,) = json.loads(cli("status", "worker", "--rates", "-o", "json")[1])
    assert (queue["arrived"], queue["finished"], queue["given_up"]) == (1, 1, 1)
    assert queue["rates"] == {"in": 0.0, "out": 0.0, "given_up": 0.0}
    heading, row = cli("status", "worker", "--rates")[1].splitlines()
    assert heading.split()[-3:] + row.split()[-3:] == ["OUT/S", "GIVEN", "UP/S", "0", "0", "0"]
    assert cli("status", "worker", "doomed", "--rates")[0] == 2
    code, out, _ = cli("dlq", "list", "worker")
    assert "doomed" in out
    assert "no [bold]way[/bold]" in out
    code, out, _ = cli("dlq", "list", "worker", "--output", "json")
    (letter,) = json.loads(out)
    assert (letter["message"]["message_id"], letter["reason"], letter["attempts"]) == ("doomed", "rejected", 1)
    assert cli("dlq", "list", "worker", "--after", letter["id"])[2] == "worker has no dead letters\n"


@pytest.mark.usefixtures("worker")
def test_a_halted_key_is_listed_and_resumed(cli: Cli) -> None:
    assert cli("resume", "worker") == (0, "", "worker has no halted ordering keys\n")
    key = ("--ordering-key", "order 17")
    assert cli("send", "worker", "bad", "--wait", *key, "--on-fail", "halt")[0] == 1
    assert cli("send", "worker", "echo", "--id", "later", *key)[0] == 0
    assert "blocked" in cli("status", "worker", "later")[1]
    assert cli("status")[1].splitlines()[1].split()[-1] == "1"
    _, row = cli("resume", "worker")[1].splitlines()
    assert row.split()[:3] == ["order", "17", "1"]
    assert cli("resume", "worker", "order 17") == (0, "order 17 goes on\n", "")
    code, _, err = cli("resume", "worker", "order 17")
    assert code == 1
    assert "is not halted" in err
    assert "delivered" in cli("watch", "worker", "later")[1]
    code, _, err = cli("send", "worker", "echo", "--on-fail", "halt")
    assert code != 0
    assert "on_fail needs an ordering_key" in err


def test_an_empty_hive_says_so(cli: Cli, unique: str) -> None:
    assert cli("status") == (0, "", f"no agent has run in hive {unique} yet\n")
    assert cli("status", "-o", "json") == (0, "[]\n", "")
    assert cli("status", "--hive", "other") == (0, "", "no agent has run in hive other yet\n")


def test_db_upgrade_and_status(cli: Cli, postgres_url: str, monkeypatch: pytest.MonkeyPatch, unique: str) -> None:
    code, _, err = cli("db", "status")
    assert (code, err) == (1, f"agenthive: hive {unique} names no PostgreSQL: set AGENTHIVE_POSTGRES_URL\n")
    monkeypatch.setenv("AGENTHIVE_POSTGRES_URL", postgres_url)
    code, out, _ = cli("db", "status", "-o", "json")
    before = json.loads(out)
    assert (code, before["current"]) == (1, 0)
    assert before["pending"][0]["version"] == 1
    code, out, _ = cli("db", "upgrade")
    assert code == 0
    assert f"{before['schema']}: applied 1 " in out
    assert cli("db", "upgrade") == (0, f"{before['schema']} is up to date\n", "")
    assert json.loads(cli("db", "upgrade", "-o", "json")[1]) == {"schema": before["schema"], "applied": []}
    code, out, _ = cli("db", "status")
    assert (code, out) == (0, f"{before['schema']}: version {before['latest']} of {before['latest']}\n")


def test_db_goes_the_direct_way(cli: Cli, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHIVE_POSTGRES_URL", "postgresql://u:p@127.0.0.1:1/a-pgbouncer-that-is-not-there")
    monkeypatch.setenv("AGENTHIVE_POSTGRES_DIRECT_URL", postgres_url)
    for command in (("upgrade",), ("status",), ("maintain",), ("roles",)):
        code, _, err = cli("db", *command)
        assert code == 0, err


def test_db_roles(cli: Cli, postgres_url: str, monkeypatch: pytest.MonkeyPatch, unique: str) -> None:
    monkeypatch.setenv("AGENTHIVE_POSTGRES_URL", postgres_url)
    schema = f"ah_local_default_{unique}"
    assert cli("db", "roles") == (0, "", f"{schema} has no database roles: one login owns it all\n")
    assert cli("db", "upgrade")[0] == 0

    async def change(work: Callable[..., Any], *arguments: str) -> None:
        connection = await asyncpg.connect(postgres_url)
        try:
            await work(connection, schema, *arguments)
        finally:
            await connection.close()

    asyncio.run(change(ensure_roles))
    try:
        asyncio.run(change(ensure_agent, "code-atlas", "secret"))
        asyncio.run(change(partial(ensure_agent, generation=1), "code-atlas", "another"))
        code, out, err = cli("db", "roles")
        assert (code, err) == (0, "")
        lines = [line.split() for line in out.splitlines()]
        assert [line[:3] for line in lines] == [
            ["ROLE", "KIND", "AGENT"],
            [f"{schema}_owner", "owner", "-"],
            [f"{schema}_agents", "agents", "-"],
            [f"{schema}_readonly", "readonly", "-"],
            [f"{schema}_agent_code__atlas", "agent", "code-atlas"],
            [f"{schema}_agent_code__atlas_1", "agent", "code-atlas"],
        ]
        assert [line[3].strip("0123456789") for line in lines] == ["AGE", "-", "-", "-", "s", "s"]
        *_, older, newer = json.loads(cli("db", "roles", "-o", "json")[1])
        assert older.pop("made") < newer.pop("made")
        assert newer == {"role": f"{schema}_agent_code__atlas_1", "kind": "agent", "agent": "code-atlas"}
    finally:
        asyncio.run(change(drop_roles))
    monkeypatch.delenv("AGENTHIVE_POSTGRES_URL")  # the SQL is printed without
    assert cli("db", "roles", "--sql", "--agent", "b", "--agent", "a-1") == (0, roles_sql(schema, ["a-1", "b"]), "")
    code, _, err = cli("db", "roles", "--agent", "b")
    assert code == 2
    assert "--agent goes with --sql" in err


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{", "BODY is no JSON: "),
        ("[1]", "BODY must be a JSON object, as in '{\"topic\": \"bees\"}', not '[1]'"),
        ("@/no/such/file", "cannot read /no/such/file: No such file or directory"),
    ],
)
def test_a_body_that_is_none_is_a_usage_error(cli: Cli, body: str, reason: str) -> None:
    code, out, err = cli("send", "worker", "x", body)
    assert (code, out) == (2, "")
    assert reason in err


def test_usage_errors(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("frobnicate")[0] == 2
    assert cli()[0] == 2
    code, _, err = cli("send", "", "x")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("agenthive: to_agent: ")
    monkeypatch.delenv("AGENTHIVE_REDIS_URL")
    monkeypatch.delenv("AGENTHIVE_HIVE")
    code, _, err = cli("status")
    assert code == 2
    assert "which hive? Give --hive NAME" in err


def test_an_unreachable_redis_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTHIVE_REDIS_URL", "redis://127.0.0.1:1/0")
    code, _, err = cli("status")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("agenthive: Redis at redis://127.0.0.1:1/0 cannot be reached")


def test_version_and_help(cli: Cli) -> None:
    assert cli("version")[1].startswith("agenthive 0.")
    assert json.loads(cli("version", "-o", "json")[1])["agenthive"].startswith("0.")
    code, out, _ = cli("--help")
    assert code == 0
    for command in (*agenthive.cli.COMMANDS, "local"):
        assert f"  {command} " in out


class EntryPoint:
    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def load(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_an_added_command_that_cannot_be_loaded_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("local", ImportError("No module named 'aiohttp'"))
    monkeypatch.setattr(agenthive.cli, "_added", lambda: {"local": broken})
    code, _, err = cli("local", "up", "--dir", "x")
    assert (code, err) == (
        1,
        "agenthive: local needs more than is installed (No module named 'aiohttp'): "
        "pip install 'agenthive-k8s[local]'\n",
    )
    assert "(not installed)" in cli("--help")[1]


def test_without_an_environment_the_cluster_is_asked(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, redis_url: str, unique: str
) -> None:
    asked = []

    def hive_settings(hive: str, namespace: str | None) -> Settings:
        asked.append((hive, namespace))
        return Settings().replace(redis_url=redis_url, hive=hive)

    async def later(hive: str, namespace: str | None) -> Settings:
        return hive_settings(hive, namespace)

    monkeypatch.delenv("AGENTHIVE_REDIS_URL")
    for find in (hive_settings, later):
        monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group, find=find: [EntryPoint(group, find)])
        assert cli("status", "-n", "prod", "--hive", unique)[0] == 0
    assert asked == [(unique, "prod")] * 2

    missing = ImportError("No module named 'kubernetes'")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: [EntryPoint(group, missing)])
    assert "pip install 'agenthive-k8s[operator]'" in cli("status")[2]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: [])
    assert "nothing installed can look up hive" in cli("status")[2]
    assert cli_options.ENTRY_POINTS == "agenthive.connections"
