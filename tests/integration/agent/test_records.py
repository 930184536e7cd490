"""What an agent's process and the command line write down: message log, audit trail, metrics, and their commands."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.integration.agent.conftest import Hive, hive_on

from agenthive import Agent, AgentMessage, Context, Reject, Retry
from agenthive.cli.records import Duration
from agenthive.settings import Settings
from agenthive.store import Store, schema_name, upgrade

PAGE = Path(__file__).parents[3] / "docs" / "records.md"
Cli = Callable[..., tuple[int, str, str]]


async def store_on(settings: Settings, url: str) -> Store:
    return await Store.connect(url, settings.scope, agent="reader")


def busy_agent() -> Agent:
    """Does everything that can be written down."""
    agent = Agent("worker")
    agent.on("good")(lambda message: "fine")

    @agent.on("flaky")
    async def flaky(message: AgentMessage, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Retry(after=0.01, reason="secret words")

    @agent.on("bad")
    async def bad(message: AgentMessage) -> None:
        raise Reject("secret words")

    @agent.on("talk")
    async def talk(message: AgentMessage, ctx: Context) -> None:
        await ctx.send("worker", "good", message_id="sent")
        await ctx.ask("worker", "good", message_id="asked")
        await ctx.publish("news", "good", message_id="published")
        await ctx.send("worker", "good", message_id="quiet", persistent=False)
        await ctx.send("worker", "good", message_id="first", deduplication_key="k")
        await ctx.send("worker", "good", message_id="second", deduplication_key="k")
        await ctx.audit.record("talked", message.message_id)

    return agent


async def play(hive: Hive) -> None:
    runner = await hive.start(busy_agent())
    for kind in ("talk", "flaky", "bad"):
        await hive.final("worker", await hive.send("worker", kind, {"word": "secret body"}, message_id=kind))
    for sent in ("sent", "first"):
        await hive.final("worker", sent)
    await hive.stop(runner)


async def test_with_log_all_each_message_is_followed_from_its_sender_to_its_end(
    redis_url: str, unique: str, postgres_url: str
) -> None:
    async with hive_on(redis_url, unique, postgres_url=postgres_url, messaging={"log": "all"}) as hive:
        await upgrade(postgres_url, schema_name(hive.settings.scope))
        await play(hive)
        async with await store_on(hive.settings, postgres_url) as store:
            rows = sorted(await store.messages.recent(limit=1000), key=lambda row: row.logged_at)
            trail = await store.audit.recent(agent="worker", limit=1000)
            assert (await store.audit.verify()).findings == []
    steps: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        steps.setdefault(row.message_id, []).append((row.status, row.attempts))
    both = [("sent", 0), ("delivered", 1)]
    assert sorted(steps.pop("sent")) == sorted(both), "who handles may be quicker at writing than who sent"
    assert sorted(steps.pop("asked")) == sorted(both)
    assert sorted(steps.pop("first")) == sorted(both)
    assert steps == {
        "published": [("sent", 0)],
        "talk": [("delivered", 1)],
        "flaky": [("retried", 1), ("delivered", 2)],
        "bad": [("failed", 1)],
    }
    sent = next(row for row in rows if row.message_id == "published")
    assert (sent.agent, sent.from_agent, sent.to_agent, sent.message_type) == ("worker", "worker", "#news", "good")
    retried = next(row for row in rows if row.status == "retried")
    assert (retried.error, retried.body) == ("secret words", {"word": "secret body"})

    actions = [(row.action, row.subject) for row in trail]
    assert actions[-1] == ("process.start", "pod-1")
    assert actions[0] == ("process.stop", "pod-1")
    for action in (
        ("talked", "talk"), ("message.retried", "flaky"), ("message.rejected", "bad"), ("message.sent", "asked"),
    ):  # fmt: skip
        assert action in actions
    assert {row.actor for row in trail} == {"pod-1"}
    assert len({row.chain for row in trail}) == 1
    assert "secret" not in str(trail)


async def test_with_log_failures_only_failures_are_kept(redis_url: str, unique: str, postgres_url: str) -> None:
    async with hive_on(redis_url, unique, postgres_url=postgres_url) as hive:
        await upgrade(postgres_url, schema_name(hive.settings.scope))
        late = await hive.send("worker", "good", ttl=0.001)
        await play(hive)
        async with await store_on(hive.settings, postgres_url) as store:
            rows = await store.messages.recent()
            trail = await store.audit.recent(agent="worker")
    assert {(row.message_id, row.status) for row in rows} == {("bad", "failed"), (late, "expired")}
    messages = {(row.action, row.subject) for row in trail if row.action.startswith("message.")}
    assert messages == {("message.rejected", "bad"), ("message.expired", late)}


@pytest.fixture
def hive_in_postgres(cli: Cli, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The command line with a PostgreSQL whose schema was upgraded by it; the URL."""
    monkeypatch.setenv("AGENTHIVE_POSTGRES_URL", postgres_url)
    assert cli("db", "upgrade")[0] == 0
    return postgres_url


def run(work: Any) -> Any:
    return asyncio.run(work)


async def played(redis_url: str, name: str, url: str) -> None:
    async with hive_on(redis_url, name, postgres_url=url, messaging={"log": "all"}) as hive:
        await play(hive)


def test_log(cli: Cli, hive_in_postgres: str, redis_url: str, unique: str) -> None:
    assert cli("log") == (0, "", f"the message log of hive {unique} has nothing of that\n")
    run(played(redis_url, unique, hive_in_postgres))
    code, out, _ = cli("log", "worker", "--message", "flaky")
    assert code == 0
    header, retried, delivered = out.splitlines()
    assert header.split() == ["LOGGED", "AGENT", "MESSAGE", "STATUS", "FROM", "TO", "TYPE", "ATTEMPTS", "ERROR"]
    assert re.search(r"worker +flaky +retried +test +worker +flaky +1 +secret words", retried)
    assert re.search(r"worker +flaky +delivered +test +worker +flaky +2 +-", delivered)
    [row] = json.loads(cli("log", "--status", "failed", "--since", "1h", "--limit", "5", "-o", "json")[1])
    assert (row["message_id"], row["error"], row["body"]) == ("bad", "secret words", {"word": "secret body"})
    assert json.loads(cli("log", "nobody", "-o", "json")[1]) == []


def test_metrics(cli: Cli, hive_in_postgres: str, unique: str) -> None:
    async def fill() -> None:
        async with await store_on(Settings().replace(hive=unique), hive_in_postgres) as store:
            for value in (1.0, 2.0, 6.0):
                await store.metrics.record("a", "latency_ms", value, {"n": 1})
            await store.metrics.record("b", "errors", 1_000_000)

    assert "no such figures in hive" in cli("metrics")[2]
    run(fill())
    lines = cli("metrics")[1].splitlines()
    assert lines[0].split() == ["AGENT", "TYPE", "COUNT", "LATEST"]
    assert [line.split()[:3] for line in lines[1:]] == [["a", "latency_ms", "3"], ["b", "errors", "1"]]
    rows = json.loads(cli("metrics", "a", "--type", "latency_ms", "--limit", "2", "-o", "json")[1])
    assert [(row["agent"], row["value"], row["metadata"]) for row in rows] == [
        ("a", 2.0, {"n": 1}), ("a", 6.0, {"n": 1}),
    ]  # fmt: skip
    step = ("--type", "latency_ms", "--step", "7d", "--since", "2h")
    [row] = json.loads(cli("metrics", *step, "--percentile", "0.5", "-o", "json")[1])
    del row["start"]
    assert row == {"count": 3, "min": 1.0, "avg": 3.0, "max": 6.0, "sum": 9.0, "last": 6.0, "percentile": 2.0}
    assert cli("metrics", "b", "--type", "errors")[1].split()[-2:] == ["1e+06", "{}"]
    assert cli("metrics", *step)[1].splitlines()[0].split() == ["START", "COUNT", "MIN", "AVG", "MAX", "SUM", "LAST"]
    assert "--step and --percentile are of one type" in cli("metrics", "--step", "5m")[2]
    assert "give --step LENGTH" in cli("metrics", "--type", "x", "--percentile", "0.5")[2]
    assert "'soon' is no length of time; write 30s, 5m, 1h or 1d" in cli("metrics", "--type", "x", "--step", "soon")[2]
    assert Duration().convert("1.5h", None, None).total_seconds() == 5400


async def tamper(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


def test_audit(cli: Cli, hive_in_postgres: str, redis_url: str, unique: str, tmp_path: Path) -> None:
    run(played(redis_url, unique, hive_in_postgres))
    code, out, _ = cli("audit", "list", "--agent", "worker", "--action", "talked")
    assert code == 0
    assert re.search(r"worker +pod-1 +talked +talk +-", out)
    [row] = json.loads(cli("audit", "list", "--subject", "bad", "--since", "1h", "-o", "json")[1])
    assert (row["action"], row["details"]["attempts"], len(row["hash"])) == ("message.rejected", 1, 64)
    assert "has nothing of that" in cli("audit", "list", "--actor", "nobody")[2]
    code, out, _ = cli("audit", "verify")
    assert code == 0
    assert re.fullmatch(r"\d+ rows in 2 chains: nothing is wrong\n", out)
    file = tmp_path / "checkpoint.json"
    file.write_text(cli("audit", "checkpoint")[1])
    assert cli("audit", "verify", "--checkpoint", str(file))[0] == 0
    table = schema_name(Settings().replace(hive=unique).scope) + ".audit_log"
    run(tamper(hive_in_postgres, f"DELETE FROM {table} WHERE action = 'process.stop'"))
    assert cli("audit", "verify")[0] == 0, "an end that is cut off takes a checkpoint to be seen"
    code, out, _ = cli("audit", "verify", "--checkpoint", str(file))
    assert code == 1
    assert re.search(r"worker/pod-1/\w+ +\d+ +- +cut off +the chain was cut off behind row", out)
    run(tamper(hive_in_postgres, f"UPDATE {table} SET subject = 'x' WHERE seq = 2"))
    code, out, _ = cli("audit", "verify", "-o", "json")
    document = json.loads(out)
    assert (code, document["ok"], document["chains"]) == (1, False, 2)
    assert [(one["seq"], one["kind"]) for one in document["findings"]] == [(2, "changed")]
    file.write_text("{}")
    code, _, err = cli("audit", "verify", "--checkpoint", str(file))
    assert (code, err.startswith("agenthive: this is no checkpoint")) == (1, True)


def test_what_people_do_is_audited(cli: Cli, hive_in_postgres: str, redis_url: str, unique: str) -> None:
    async def spoil() -> None:
        agent = busy_agent()
        async with hive_on(redis_url, unique) as hive:
            runner = await hive.start(agent)
            for n in range(4):
                await hive.final("worker", await hive.send("worker", "bad", message_id=f"m{n}"))
            await hive.stop(runner)
            await hive.send("worker", "bad", message_id="waits")

    run(spoil())
    assert cli("dlq", "redrive", "worker", "m0", "m1")[0] == 0
    assert cli("dlq", "purge", "worker", "--type", "bad", "--error", "words", "--yes")[0] == 0
    assert cli("cancel", "worker", "waits", "--reason", "no need")[0] == 0
    assert cli("cancel", "worker", "waits")[0] == 1
    assert cli("dlq", "redrive", "worker", "--all")[0] == 0, "nothing was done, so nothing is said"
    rows = [row for row in json.loads(cli("audit", "list", "-o", "json")[1]) if row["agent"] == ""]
    assert [(row["action"], row["subject"]) for row in rows] == [
        ("schema.upgrade", schema_name(Settings().replace(hive=unique).scope)),
        ("dlq.redrive", "worker"),
        ("dlq.purge", "worker"),
        ("message.cancel", "waits"),
    ]
    assert rows[1]["details"] == {"done": 2, "selected": {"ids": ["m0", "m1"], "id_count": 2}, "to": "worker"}
    assert rows[2]["details"] == {"done": 2, "selected": {"message_type": "bad", "error": "words"}}
    assert rows[3]["details"] == {"agent": "worker", "reason": "no need"}
    assert {row["actor"].partition("@")[2] for row in rows} == {socket.gethostname()}
    assert cli("audit", "verify")[0] == 0


def test_a_halted_key_that_somebody_resumes_is_audited(
    cli: Cli, hive_in_postgres: str, redis_url: str, unique: str
) -> None:
    async def halt() -> None:
        async with hive_on(redis_url, unique) as hive:
            runner = await hive.start(busy_agent())
            options = {"ordering_key": "k", "on_fail": "halt"}
            await hive.final("worker", await hive.send("worker", "bad", delivery_options=options))
            await hive.stop(runner)

    run(halt())
    assert cli("resume", "worker", "k") == (0, "k goes on\n", "")
    [row] = json.loads(cli("audit", "list", "--action", "key.resume", "-o", "json")[1])
    assert (row["subject"], row["details"]) == ("k", {"agent": "worker"})


@pytest.mark.parametrize("url", ["postgresql://u:secret@127.0.0.1:1/app", "{postgres_url}"])
def test_a_command_whose_row_cannot_be_written_is_done_and_warns(
    cli: Cli, postgres_url: str, redis_url: str, unique: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("AGENTHIVE_POSTGRES_URL", url.format(postgres_url=postgres_url))  # the second has no schema
    cli("send", "worker", "x", "--id", "waits")
    code, out, err = cli("cancel", "worker", "waits")
    assert (code, out) == (0, "cancelled\n")
    assert err.startswith("warning: this was done, but it is not in the audit trail: PostgreSQL at 127.0.0.1:")
    assert "secret" not in err


def test_db_maintain(cli: Cli, hive_in_postgres: str, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = schema_name(Settings().replace(hive=unique).scope)
    assert cli("db", "maintain") == (0, f"{schema}: nothing was due\n", "")
    monkeypatch.setenv("AGENTHIVE_RETENTION", '{"metricsDays": 2}')
    make = f"CREATE TABLE {schema}.{{0}} PARTITION OF {schema}.agent_metrics FOR VALUES FROM ('{{1}}') TO ('{{2}}');"
    old = make.format("agent_metrics_p20200101", "2020-01-01 00:00:00+00", "2020-01-02 00:00:00+00")
    run(tamper(hive_in_postgres, old))
    assert cli("db", "maintain") == (0, f"{schema}: dropped agent_metrics_p20200101\n", "")
    run(tamper(hive_in_postgres, old))
    document = json.loads(cli("db", "maintain", "-o", "json")[1])
    assert document == {"schema": schema, "made": [], "dropped": ["agent_metrics_p20200101"]}


def test_a_hive_without_postgres_is_told_so(cli: Cli, unique: str) -> None:
    for command in (["log"], ["metrics"], ["audit", "verify"], ["db", "maintain"]):
        assert cli(*command) == (
            1, "", f"agenthive: hive {unique} names no PostgreSQL: set AGENTHIVE_POSTGRES_URL\n",
        )  # fmt: skip


def test_the_page_works(
    cli: Cli, hive_in_postgres: str, redis_url: str, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text()
    file = tmp_path / "records_page.py"
    file.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    spec = importlib.util.spec_from_file_location("records_page", file)
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)

    async def use() -> None:
        async with hive_on(redis_url, unique, postgres_url=hive_in_postgres) as hive:
            runner = await hive.start(page.agent)
            await hive.final("cashier", await hive.send("cashier", "pay", {"invoice": "4711", "amount": 12.5}))
            await hive.final("cashier", await hive.send("cashier", "index"))
            await hive.stop(runner)

    run(use())
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^agenthive (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(commands) == 11
    for line in commands:
        for part in line.replace("agenthive ", "").split(" && "):
            command, _, output = part.partition(" > ")
            code, out, err = cli(*shlex.split(command))
            assert code == 0, f"agenthive {command}: {err}"
            if output:
                (tmp_path / output).write_text(out)
                (tmp_path / "last.json").write_text(out)  # what the next night starts with
    [row] = json.loads(cli("audit", "list", "--action", "invoice.pay", "-o", "json")[1])
    assert (row["subject"], row["details"]) == ("4711", {"amount": 12.5})
