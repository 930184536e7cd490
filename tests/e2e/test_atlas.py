"""The example, whole: every module exactly once in the table, also when something is killed on the way."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator

import asyncpg
import psutil
import pytest
from tests.e2e.plane import REPOSITORY, CommandError, Plane, environment

from agenthive.store import schema_name
from agenthive_operator.backends.connections import hive_settings

pytestmark = [pytest.mark.needs("processes"), pytest.mark.timeout(240)]

EVERYTHING = ("hive/atlas", "agent/crawler", "agent/analyst", "agent/librarian")


@pytest.fixture(scope="module")
def atlas(module_plane: Plane) -> Iterator[Plane]:
    """The example, applied and ready; the tests crawl it one after the other."""
    module_plane.kubectl("apply", "-k", REPOSITORY / "examples" / "code-atlas")
    module_plane.wait("condition=Ready", *EVERYTHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(module_plane.kubeconfig))
        yield module_plane


def ask(plane: Plane, agent: str, question: str, body: str = "{}") -> dict[str, object]:
    answer = plane.agenthive("ask", agent, question, body, "--hive", "atlas", "--timeout", "60", "--output", "json")
    return json.loads(answer)


def sql(plane: Plane, statement: str) -> list[str]:
    """The first column of a statement on ``agent_state``, past everything of ours but the connection."""
    settings = asyncio.run(hive_settings("atlas", plane.namespace))

    async def fetch() -> list[str]:
        assert settings.postgres_url is not None
        connection = await asyncpg.connect(settings.postgres_url.get_secret_value())
        try:
            table = f"{schema_name(settings.scope)}.agent_state"
            return [row[0] for row in await connection.fetch(statement.format(table=table))]
        finally:
            await connection.close()

    return asyncio.run(fetch())


def one_analyst(plane: Plane) -> list[psutil.Process]:
    return plane.processes("analyst")[:1]


def the_librarian(plane: Plane) -> list[psutil.Process]:
    return plane.processes("librarian")


def the_operator(plane: Plane) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "agenthive_operator" in (process.info["cmdline"] or [])
        and environment(process).get("KUBECONFIG") == str(plane.kubeconfig)
    ]


def the_redis(plane: Plane) -> list[psutil.Process]:
    return plane.processes("atlas-redis")


def the_postgres(plane: Plane) -> list[psutil.Process]:
    return plane.processes("atlas-postgres")


def nobody(plane: Plane) -> list[psutil.Process]:
    return []


@pytest.mark.parametrize("victims", [nobody, one_analyst, the_librarian, the_operator, the_redis, the_postgres])
def test_every_module_is_stored_once_whatever_is_killed(
    atlas: Plane, victims: Callable[[Plane], list[psutil.Process]]
) -> None:
    sql(atlas, "DELETE FROM {table} WHERE key LIKE 'module/%' RETURNING key")
    modules = ask(atlas, "crawler", "crawl")["modules"]
    assert isinstance(modules, int)
    assert modules > 100

    atlas.until(lambda: ask(atlas, "librarian", "progress")["stored"], "the first modules stored")
    killed = victims(atlas)
    assert bool(killed) == (victims is not nobody), "found nothing to kill"
    for process in killed:
        process.send_signal(signal.SIGKILL)

    def complete() -> bool:
        try:
            return ask(atlas, "librarian", "progress")["stored"] == modules
        except CommandError:
            return False  # Redis or PostgreSQL is coming back

    atlas.until(complete, f"{modules} modules stored", timeout=120)
    stored = sql(atlas, "SELECT key FROM {table} WHERE key LIKE 'module/%'")
    assert len(stored) == modules
    assert len(set(stored)) == modules
    for agent in ("crawler", "analyst", "librarian"):
        assert json.loads(atlas.agenthive("dlq", "list", agent, "--hive", "atlas", "--output", "json")) == []
    atlas.wait("condition=Ready", *EVERYTHING)


def test_the_librarian_answers(atlas: Plane) -> None:
    card = ask(atlas, "librarian", "card", '{"module": "json.decoder"}')
    assert card["path"] == "json/decoder.py"
    assert card["functions"] > 5
    functions = ask(atlas, "librarian", "most-complex", '{"top": 3}')["functions"]
    assert [f["complexity"] for f in functions] == sorted((f["complexity"] for f in functions), reverse=True)
    assert "sys" in [m["module"] for m in ask(atlas, "librarian", "most-imported")["modules"]]
    cost = ask(atlas, "librarian", "cost")
    assert 0 < cost["analyse_ms"]["p50"] <= cost["analyse_ms"]["p99"]
    with pytest.raises(CommandError, match="no card of 'nonsense'"):
        ask(atlas, "librarian", "card", '{"module": "nonsense"}')
