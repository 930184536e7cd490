"""``python -m benchmarks [--only bus]``: measure, print one table, write build/bench.json."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.report import Row, show, write

#: Suite → module with ``run(progress) -> list[Row]``.
SUITES = {"bus": "benchmarks.bus", "store": "benchmarks.store", "operator": "benchmarks.operator"}


def main() -> None:
    """Run the suites."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=sorted(SUITES), help="one suite")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="default: %(default)s")
    arguments = parser.parse_args()
    started = time.monotonic()

    def progress(what: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {what}", file=sys.stderr, flush=True)

    rows: list[Row] = []
    for name, module in SUITES.items():
        if arguments.only in {None, name}:
            rows += importlib.import_module(module).run(progress)
    show(rows)
    write(rows, arguments.output)
    print(f"{arguments.output} written, {time.monotonic() - started:.0f} s")
    if any(row.failed for row in rows):
        sys.exit("a measurement of our own failed, see above")


if __name__ == "__main__":
    main()
