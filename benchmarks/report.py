"""Rows of figures: medians, ratios, the table and the JSON document."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

WIDTH = 118


@dataclass
class Row:
    """One figure, and the same figure of others."""

    name: str
    unit: str
    #: What DESIGN asks for, as it is printed.
    target: str = ""
    #: Whether less is better, as for seconds.
    less_is_better: bool = False
    rounds: list[float] = field(default_factory=list)
    against: dict[str, list[float]] = field(default_factory=dict)
    #: What a reader has to know about the figures; printed below the table.
    remarks: list[str] = field(default_factory=list)
    #: Whether one of our own measurements failed.
    failed: bool = False

    @property
    def value(self) -> float | None:
        """The median of our rounds; None if each of them failed."""
        return statistics.median(self.rounds) if self.rounds else None

    @property
    def spread(self) -> float | None:
        """Half the distance from the lowest to the highest round, as a part of the median."""
        if not self.value or len(self.rounds) < 2:
            return None
        return (max(self.rounds) - min(self.rounds)) / 2 / self.value

    @property
    def others(self) -> dict[str, float]:
        """The medians of the others."""
        return {name: statistics.median(rounds) for name, rounds in self.against.items() if rounds}

    def better_than(self, other: float) -> float | None:
        """How many times better we are than ``other``."""
        if not self.value or not other:
            return None
        return other / self.value if self.less_is_better else self.value / other

    @property
    def ratio(self) -> float | None:
        """How many times better we are than the best of the others; None without others."""
        ratios = [ratio for other in self.others.values() if (ratio := self.better_than(other)) is not None]
        return min(ratios, default=None)

    def document(self) -> dict[str, object]:
        """The row as JSON."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "against": self.others,
            "ratio": self.ratio,
            "target": self.target,
            "rounds": self.rounds,
            "remarks": self.remarks,
        }


def number(value: float) -> str:
    """A figure as people read it: three digits that count, more only before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _value(value: float | None, unit: str, failed: bool) -> str:
    if value is None:
        return "failed" if failed else "-"
    return f"{number(value)}{unit}" if unit.startswith("/") else f"{number(value)} {unit}"


def write(rows: Sequence[Row], path: Path) -> None:
    """The JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": [row.document() for row in rows],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def show(rows: Sequence[Row]) -> None:
    """The table, and below it what its readers have to know."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("WHAT")
    for heading in ("OURS", "SPREAD", "TARGET", "OTHERS", "RATIO"):
        table.add_column(heading, justify="right")
    for row in rows:
        others = row.others
        ratios = [row.better_than(value) for value in others.values()]
        table.add_row(
            row.name,
            _value(row.value, row.unit, row.failed),
            "" if row.spread is None else f"±{row.spread:.0%}",
            row.target,
            "\n".join(f"{name} {number(value)}" for name, value in others.items()),
            "\n".join("" if ratio is None else f"{number(ratio)} x" for ratio in ratios),
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    console.print("\nMedians of the rounds. RATIO: how many times better ours is; below 1 the other one is better.")
    for row in rows:
        for remark in row.remarks:
            console.print(f"- {row.name}: {remark}", markup=False)
