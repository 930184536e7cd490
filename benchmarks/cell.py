"""One measurement in a process of its own: ``python -m benchmarks.cell ours:sends '{"url": …}'`` prints JSON."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from typing import Any

CELL_SECONDS = 40.0


def measure(cell: str, **arguments: Any) -> Any:
    """Run a cell in a process of its own; what it returned.

    Raises:
        RuntimeError: it failed; carries the end of what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.cell", cell, json.dumps(arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CELL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{cell} took more than {CELL_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise RuntimeError(f"{cell} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the cell that the command line names."""
    import uvloop

    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(function(**json.loads(sys.argv[2])))))


if __name__ == "__main__":
    main()
