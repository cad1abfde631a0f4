"""What is measured: a figure, what was promised of it, and the table of all."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from edge.text import MISSING

WINDOW_SECONDS = 12.0  # of each measurement


class Figure(NamedTuple):
    """One line of the table."""

    section: str
    name: str
    value: float | None  # None: it could not be measured; `note` says why
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    def verdict(self) -> str:
        """Whether what was promised is held; empty where nothing was."""
        if self.at_most is None and self.at_least is None:
            return ""
        low, high = self.at_least or 0.0, float("inf") if self.at_most is None else self.at_most
        return "met" if self.value is not None and low <= self.value <= high else "MISSED"


class Failed(Exception):
    """A measurement that can't be made: what ends its section with this line."""


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed; 0 where there are none."""
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)] if values else 0.0


def show(value: float | None) -> str:
    """Three digits where there are decimals."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def print_table(figures: Sequence[Figure]) -> None:
    """All figures, with what was promised of each."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold dim", pad_edge=False)
    for title in ("SECTION", "FIGURE", "VALUE", "", "PROMISED", "", "NOTE"):
        table.add_column(title, justify="right" if title == "VALUE" else "left", style="dim" if title == "NOTE" else "")
    section = ""
    for figure in figures:
        promise = "" if figure.at_most is None else f"≤ {figure.at_most:g}"
        promise = f"≥ {figure.at_least:g}" if figure.at_least is not None and figure.at_most is None else promise
        verdict = figure.verdict()
        table.add_row(
            figure.section if figure.section != section else "", figure.name, show(figure.value), figure.unit, promise,
            f"[{'green' if verdict == 'met' else 'bold red'}]{verdict}[/]" if verdict else "", figure.note,
        )  # fmt: skip
        section = figure.section
    Console(width=None if sys.stdout.isatty() else 200).print(table)
