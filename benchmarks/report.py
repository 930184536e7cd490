"""Rows of figures: medians, ratios, the table and the JSON document."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


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

    @property
    def value(self) -> float:
        """The median of our rounds."""
        return statistics.median(self.rounds)

    @property
    def others(self) -> dict[str, float]:
        """The medians of the others."""
        return {name: statistics.median(rounds) for name, rounds in self.against.items() if rounds}

    @property
    def ratio(self) -> float | None:
        """How many times better we are than the best of the others; None without others."""
        if not self.others:
            return None
        if self.less_is_better:
            return min(self.others.values()) / self.value
        return self.value / max(self.others.values())

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
        }


def number(value: float) -> str:
    """A figure as people read it: four digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


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
    """The table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("WHAT")
    for heading in ("OURS", "SPREAD"):
        table.add_column(heading, justify="right")
    table.add_column("UNIT")
    for heading in ("TARGET", "OTHERS", "RATIO"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            number(row.value),
            f"{number(min(row.rounds))} … {number(max(row.rounds))}",
            row.unit,
            row.target,
            "\n".join(f"{name} {number(value)}" for name, value in row.others.items()) or "-",
            "\n".join(f"{_ratio(row, value):.2f} x" for value in row.others.values()) or "-",
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)


def _ratio(row: Row, other: float) -> float:
    return other / row.value if row.less_is_better else row.value / other
