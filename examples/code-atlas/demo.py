"""``make demo``: a hive from nothing to answers on this machine, and what it cost.

Everything a user would do by hand is done by the same commands (``agenthive local up``, ``kubectl apply -k``, ``kubectl
wait``); what a user would watch is read from the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agenthive.bus import Bus, QueueStats
from agenthive.protocol import AgentMessage
from agenthive_operator.backends.connections import hive_settings

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
HIVE = "atlas"
AGENTS = ("crawler", "analyst", "librarian")
POLL_SECONDS = 0.5
console = Console()


def run(*command: str | Path, quiet: bool = False) -> str:
    """Show a command as a user would type it, run it, return its output; a failure ends the demo with what it said."""
    if not quiet:
        console.print(f"[dim]$[/] {' '.join(Path(part).name if part is command[0] else str(part) for part in command)}")
    result = subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False)
    if result.returncode != 0:
        console.print(result.stdout + result.stderr, style="red", highlight=False, markup=False)
        raise SystemExit(f"{Path(command[0]).name} failed with exit code {result.returncode}")
    return result.stdout


def kubectl(*arguments: str | Path) -> str:
    return run(BIN / "kubectl", *arguments)


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[None]:
    """The local mode in ``folder``, ended on the way out whatever happened, Ctrl-C during the start included."""
    try:
        run(BIN / "agenthive", "local", "up", "--detach", "--dir", folder)
        os.environ["KUBECONFIG"] = str(folder.absolute() / "kubeconfig")
        yield
    finally:
        run(BIN / "agenthive", "local", "down", "--dir", folder)


def backlog_table(queues: dict[str, QueueStats]) -> Table:
    """What waits at each agent now."""
    table = Table("agent", "backlog", "in flight", "dead letters")
    for agent, queue in queues.items():
        table.add_row(agent, str(queue.backlog), str(queue.in_flight), str(queue.dead_letters))
    return table


class Demo:
    """Questions to the hive and what they told."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.asked: list[float] = []

    async def ask(self, agent: str, question: str, body: dict[str, Any] | None = None) -> Any:
        """The answer, within a minute: longer than a killed process of the hive takes to come back."""
        message = AgentMessage(from_agent="demo", to_agent=agent, message_type=question, body=body or {})
        started = time.perf_counter()
        reply = await self.bus.request(message, timeout=60)
        self.asked.append((time.perf_counter() - started) * 1000)
        return reply.body["result"]

    async def crawl(self) -> tuple[int, float]:
        """Start the crawl and show it until every module has its card: (modules, seconds)."""
        started = time.perf_counter()
        modules = (await self.ask("crawler", "crawl"))["modules"]
        bar = Progress(
            TextColumn("modules"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip
        task = bar.add_task("modules", total=modules, rate="")
        stored = 0
        with Live(console=console, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext() as live:
            while stored < modules:
                stored = (await self.ask("librarian", "progress"))["stored"]
                # Each module is two messages: one to an analyst, one to the librarian.
                rate = 2 * stored / (time.perf_counter() - started)
                bar.update(task, completed=stored, rate=f"{rate:,.0f} messages/s")
                queues = await self.bus.queues(AGENTS)
                if live is None:
                    backlog = ", ".join(f"{agent} {queue.backlog}" for agent, queue in queues.items())
                    print(f"{stored}/{modules} modules, {rate:,.0f} messages/s, backlog: {backlog}", flush=True)
                else:
                    view = Table.grid()
                    view.add_row(bar)
                    view.add_row(backlog_table(queues))
                    live.update(view)
                if stored < modules:
                    await asyncio.sleep(POLL_SECONDS)
        return modules, time.perf_counter() - started

    async def questions(self) -> None:
        """Three questions to the librarian."""
        answer = await self.ask("librarian", "most-complex", {"top": 5})
        table = Table("function", "module", "complexity", title="Which functions are the most complex?")
        for row in answer["functions"]:
            table.add_row(row["function"], f"{row['module']}:{row['line']}", str(row["complexity"]))
        console.print(table)
        answer = await self.ask("librarian", "most-imported", {"top": 5})
        table = Table("module", "imported by", title="Which modules do the others import most?")
        for row in answer["modules"]:
            table.add_row(row["module"], str(row["imported_by"]))
        console.print(table)
        answer = await self.ask("librarian", "card", {"module": "asyncio.tasks"})
        table = Table("asyncio.tasks", "", title="What is asyncio.tasks?")
        for name in ("path", "lines", "functions", "classes", "complexity", "docstring_coverage"):
            table.add_row(name, str(answer[name]))
        console.print(table)

    async def cost(self, modules: int, seconds: float) -> None:
        """What the crawl took, from the hive's own metrics."""
        figures = await self.ask("librarian", "cost")
        table = Table("cost", "", title="What it cost")
        table.add_row("messages", f"{2 * modules + 1:,}")
        table.add_row("seconds", f"{seconds:.1f}")
        for name, label in (("analyse_ms", "to analyse a module"), ("store_ms", "analyst to table")):
            table.add_row(label, f"p50 {figures[name]['p50']:.1f} ms, p99 {figures[name]['p99']:.1f} ms")
        answers = sorted(self.asked[-4:])
        table.add_row("to answer a question", f"fastest {answers[0]:.1f} ms, slowest {answers[-1]:.1f} ms")
        console.print(table)


async def tour() -> None:
    """Crawl, ask, count."""
    settings = await hive_settings(HIVE, None)
    bus = await Bus.connect(settings.redis_url.get_secret_value(), settings.scope, client_name="demo")
    try:
        demo = Demo(bus)
        modules, seconds = await demo.crawl()
        await demo.questions()
        await demo.cost(modules, seconds)
    finally:
        await bus.aclose()


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="agenthive-demo-") as folder, control_plane(Path(folder)):
        kubectl("apply", "-k", HERE)
        kubectl("wait", "--for=condition=Ready", f"hive/{HIVE}", "--timeout=60s")
        kubectl("wait", "--for=condition=Ready", "agents", "--all", "--timeout=60s")
        console.print(f"ready after {time.perf_counter() - started:.1f} s")
        asyncio.run(tour())
        print(kubectl("get", "hive,agents,pods"))
    console.print(f"done in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
