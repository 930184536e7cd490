"""The order in which workers take test files: the longest first, so that none is left when all else is done.

``tests/seconds.txt`` says how long files take. ``python -m tests.order FILE`` prints it anew from what a run wrote by
``--junitxml=FILE``. It is a hint and nothing more: what it lacks, or names in vain, does no harm.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = Path(__file__).with_name("seconds.txt")
HEADER = "# Seconds that test files take, printed by `python -m tests.order`. Those that are not here are quick.\n"
LEAST = 3.0
"""Seconds from which on a file is worth a line."""


def known(text: str) -> dict[str, float]:
    """Seconds by file, from lines of both. Pure."""
    pairs = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {file: float(seconds) for seconds, file in pairs}


def longest_first(files: Iterable[str], seconds: Mapping[str, float]) -> list[str]:
    """The files, each once. Pure."""
    return sorted(dict.fromkeys(files), key=lambda file: -seconds.get(file, 0.0))


def reorder(items: list[pytest.Item]) -> None:
    """Sort what was collected by the time its files take; within a file nothing changes."""
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.nodeid.partition("::")[0], []).append(item)
    order = longest_first(by_file, known(SECONDS.read_text(encoding="utf-8")))
    items[:] = [item for file in order for item in by_file[file]]


def measured(report: ElementTree.Element) -> Counter[str]:
    """Seconds by file, from a report in the form of JUnit. Pure."""
    seconds: Counter[str] = Counter()
    for case in report.iter("testcase"):
        seconds[case.attrib["classname"].replace(".", "/") + ".py"] += float(case.attrib["time"])
    return seconds


def main(report: str) -> None:
    """Print tests/seconds.txt."""
    sys.stdout.write(HEADER)
    for file, seconds in measured(ElementTree.parse(report).getroot()).most_common():
        if seconds >= LEAST:
            sys.stdout.write(f"{seconds:.0f} {file}\n")


if __name__ == "__main__":
    main(sys.argv[1])
