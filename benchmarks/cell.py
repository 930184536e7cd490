"""One measurement in a process of its own: ``python -m benchmarks.cell ours:sends '{"url": …}'`` prints JSON."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

CELL_SECONDS = 40.0


def command(cell: str, **arguments: Any) -> list[str]:
    """The command that runs a cell."""
    return [sys.executable, "-m", "benchmarks.cell", cell, json.dumps(arguments)]


def begin(cell: str, *, leads: bool = False, **arguments: Any) -> subprocess.Popen[str]:
    """Start a cell; ``end`` waits for it. One that leads a process group takes what it started with it."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(cell, **arguments), stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=leads
    )


def end(process: subprocess.Popen[str], cell: str, seconds: float = CELL_SECONDS) -> Any:
    """What a cell returned, at most ``seconds`` from now.

    Raises:
        RuntimeError: it failed; carries the end of what it printed.
    """
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{cell} took more than {seconds:.0f} s") from error
    finally:
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # nobody, unless it leads a group
        process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{cell} failed:\n{errors[-2000:]}")
    return json.loads(output.splitlines()[-1])


def measure(cell: str, seconds: float = CELL_SECONDS, **arguments: Any) -> Any:
    """Run a cell in a process of its own; what it returned. Raises RuntimeError as ``end`` does."""
    return end(begin(cell, leads=True, **arguments), cell, seconds)


def main() -> None:
    """Run the cell that the command line names."""
    import uvloop

    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    # Not asyncio.run: it would wait for whatever tasks of others do when they are cancelled, and some never end.
    print(json.dumps(uvloop.new_event_loop().run_until_complete(function(**json.loads(sys.argv[2])))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
