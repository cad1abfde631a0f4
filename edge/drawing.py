"""What lines and panels are drawn with: pure functions of text and numbers, which return spans of text and style."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from edge.history import NOT_REPORTED
from edge.text import MISSING

MIN_WIDTH, MIN_HEIGHT = 40, 10
Span = tuple[str, str]  # text, and its style in rich's words ("bold red"); "" is the terminal's own
Line = list[Span]


def cells(text: str) -> int:
    """Width of `text` on a terminal. rich.cells knows the wide and the combining characters; ASCII needs no table."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def fit(text: str, width: int, align: str = "<") -> str:
    """`text` in exactly `width` cells: cut with an ellipsis, or padded (`<` left-aligned, `>` right-aligned)."""
    excess = cells(text) - width
    if excess > 0:
        if width <= 0:
            return ""
        from rich.cells import set_cell_size

        return set_cell_size(text, width - 1) + "…"
    return text + " " * -excess if align == "<" else " " * -excess + text


def fit_name(text: str, width: int, tail: int = 0) -> str:
    """`text` in at most `width` cells: cut in its middle, since names differ at their ends, and most of all at the last one, of
    which `tail` cells stay; 0: three fifths."""
    excess = cells(text) - width
    if excess <= 0:
        return text
    if width <= 0:
        return ""
    from rich.cells import set_cell_size, split_text

    tail = tail or width * 3 // 5
    _, end = split_text(text, cells(text) - tail)
    return set_cell_size(text, width - 1 - tail) + "…" + end


def tail_for(names: Iterable[str], width: int) -> int:
    """How many cells at their ends tell these names from each other where they are cut to `width`; 0: as many as usual."""
    long = {name for name in names if cells(name) > width}
    if len({fit_name(name, width) for name in long}) == len(long):
        return 0
    differing = max(map(cells, long)) - cells(os.path.commonprefix(list(long)))  # noqa: RUF071  # characters are meant
    return max(min(differing, width - 4), 0)


def fit_line(line: Line, width: int) -> Line:
    """`line` in exactly `width` cells."""
    used = 0
    for index, (text, style) in enumerate(line):
        length = cells(text)
        if used + length > width:
            return [*line[:index], (fit(text, width - used), style)]
        used += length
    return [*line, (" " * (width - used), "")] if used < width else line


def fit_parts(parts: Iterable[Line], width: int) -> Line:
    """As many of the parts as fit whole, in exactly `width` cells: half a number is a wrong one."""
    line: Line = []
    for part in parts:
        if sum(cells(text) for text, _ in [*line, *part]) > width:
            break
        line += part
    return fit_line(line, width)


def fit_lines(lines: list[Line], width: int, height: int) -> list[Line]:
    """Exactly `height` lines of exactly `width` cells: a frame."""
    blank: Line = [(" " * width, "")]
    return [fit_line(line, width) for line in lines[:height]] + [blank] * (height - len(lines))


def too_small(width: int, height: int) -> list[Line]:
    """A frame that says how large the terminal must be."""
    return fit_lines([[(f"too small: {width}x{height}, needs {MIN_WIDTH}x{MIN_HEIGHT}", "")]], width, height)


def plain(lines: list[Line]) -> str:
    """Lines as text, without their styles."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def box(title: str, lines: list[Line], width: int) -> list[Line]:
    """`lines` in a dim border of `width` cells, with its title in it."""
    title = fit(title, min(cells(title), width - 6))
    top: Line = [("╭─ ", "dim"), (title, "bold"), (" " + "─" * (width - 5 - cells(title)) + "╮", "dim")]
    body = [[("│ ", "dim"), *fit_line(line, width - 4), (" │", "dim")] for line in lines]
    return [top, *body, [("╰" + "─" * (width - 2) + "╯", "dim")]]


def bar(fraction: float | None, width: int) -> str:
    """A meter of `width` cells in eighths of a cell; no fraction, no meter."""
    if fraction is None:
        return " " * width
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[rest] * (rest > 0)).ljust(width, "·")


def meter(fraction: float | None, width: int, style: str) -> Line:
    """A bar whose empty part is dim."""
    text = bar(fraction, width)
    filled = text.rstrip("·")
    return [(filled, style), (text[len(filled) :], "dim")]


def gauge(label: str, part: float | None, value: str, style: str, width: int) -> Line:
    """A labelled meter with its value at the right."""
    length = max(width - 16 - 21, 4)
    return [
        (fit(label, 16), "dim"),
        *meter(part, length, style),
        (fit(value, width - 16 - length, ">"), "" if value != MISSING else "dim"),
    ]


BLOCKS = "▁▂▃▄▅▆▇█"
# For each byte of a history one of them: 0 to 100 from the lowest to the highest, above it the highest; NOT_REPORTED: 8, a blank.
SPARKS = bytes(min(value * 8 // 101, 7) for value in range(255)) + b"\x08"
SPARK_CHARACTERS = dict(enumerate(BLOCKS + " "))


def sparkline(values: bytes, width: int) -> str:
    """The newest `width` values, the newest at the right, on a fixed scale from 0 to 100."""
    return values[-width:].translate(SPARKS).decode("latin-1").translate(SPARK_CHARACTERS).rjust(width)


GRAPH_CHARACTERS = dict(enumerate(" " + BLOCKS))
SHADE = "░"  # from the lowest to the highest


def graph(values: bytes, width: int, height: int, style: str) -> list[Line]:
    """A curve in `height` lines, the newest at the right, on a fixed scale from 0 to 100. 0 is a thin line, nothing is nothing."""
    newest = values[-width:]
    tables = [graph_table(height, level) for level in range(height - 1, -1, -1)]
    return [[(newest.translate(table).decode("latin-1").translate(GRAPH_CHARACTERS).rjust(width), style)] for table in tables]


@functools.lru_cache(maxsize=1000)
def graph_table(height: int, level: int) -> bytes:
    """For each value of a history, how many eighths of a cell it fills at this level of a graph."""
    eighths = (round(min(value, 100) * height * 8 / 100) - level * 8 for value in range(NOT_REPORTED))
    return bytes(min(max(count, level == 0), 8) for count in eighths) + b"\0"


@functools.lru_cache(maxsize=100)
def band(lowest: bytes, highest: bytes, width: int, height: int, style: str) -> list[Line]:
    """A graph of steps of time, each with the lowest and the highest that was read in it, in all of its width: solid up to the
    lowest, shaded up to the highest, so that a spike of a second is seen in a week."""
    low, high = stretched(lowest, width, min), stretched(highest, width, max)
    lines: list[Line] = []
    for level in range(height - 1, -1, -1):
        table = graph_table(height, level)
        cells_of_line = zip(low.translate(table), high.translate(table), strict=True)
        text = "".join(
            SHADE if up >= 4 and down <= 1 < up else GRAPH_CHARACTERS[max(down, up if down <= 1 else 0)]
            for down, up in cells_of_line
        )
        lines.append([(text, style)])
    return lines


def stretched(values: bytes, width: int, pick: Callable[[Iterable[int]], int]) -> bytes:
    """So many values, each picked from those that fall into its place; NOT_REPORTED where none does."""
    count, ends = len(values), [place * len(values) // width for place in range(width + 1)]
    groups = (values[start : max(end, start + 1)] for start, end in itertools.pairwise(ends))
    reported = (group.replace(bytes([NOT_REPORTED]), b"") for group in groups)
    return bytes(pick(group) if group else NOT_REPORTED for group in reported) if count else bytes([NOT_REPORTED]) * width


def heat_style(degrees: float | None, limit: float | None) -> str:
    """Colour of a temperature, against the device's own slowdown limit (90 °C where it names none)."""
    if degrees is None:
        return "dim"
    limit = 90 if limit is None else limit
    return "bold red" if degrees >= limit else "yellow" if degrees >= limit * 0.9 else "green"


class Column(NamedTuple):
    """A column of a table. Where the terminal is narrow, those with the lowest `rank` come first, and one that is too wide for what
    is left is passed over."""

    title: str
    width: int
    rank: int
    align: str = "<"


def choose_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit side by side into `width` with one space between them, the lowest ranks first, in their order."""
    chosen: set[Column] = set()
    for column in sorted(columns, key=lambda column: column.rank):
        if sum(other.width + 1 for other in chosen) + column.width <= width:
            chosen.add(column)
    return [column for column in columns if column in chosen]


def align(line: Line, column: Column) -> Line:
    """What stands in a column: `line` in exactly its width."""
    if column.align == ">":
        line = [(" " * (column.width - sum(cells(text) for text, _ in line)), ""), *line]
    return fit_line(line, column.width)
