"""The server's screen: pure functions of a view, a size and a time. What a frame shows is looked up once, and then drawn."""

from __future__ import annotations

import itertools
import textwrap
import time
from collections.abc import Sequence
from typing import NamedTuple

from edge.drawing import (
    SMALLEST_HEIGHT,
    SMALLEST_WIDTH,
    Line,
    Span,
    align,
    box,
    cells,
    choose_columns,
    fit,
    fit_line,
    fit_lines,
    fit_parts,
    heat_style,
    too_small,
)
from edge.event_log import Event
from edge.fleet.columns import SORT_BY_NAME, STATE_STYLES, TABLE, TableColumn, widths_of
from edge.fleet.entry import Entry, make_entries
from edge.fleet.filters import parse_filter
from edge.fleet.keys import Place, Room, behind_help, footer_of, help_lines
from edge.fleet.lens import Lens, Totals, Ui
from edge.fleet.metrics import METRIC_NAMED, METRICS
from edge.fleet.row import Row, State, reason_of, state_of
from edge.panels import Subject, node_panels
from edge.protocol import DEFAULT_PORT, LATE_INTERVALS, LOST_INTERVALS, LOST_SECONDS
from edge.text import show_bytes, show_celsius, show_percent, show_seconds, show_watts, visible

EVENT_STYLES = {
    "joined": "green",
    "back": "green",
    "late": "yellow",
    "disconnected": "yellow",
    "lost": "bold red",
    "refused": "bold red",
    "error": "bold red",
    "warning": "yellow",
    "left": "dim",
    "forgotten": "dim",
}
STATE_HELP = {
    State.ONLINE: "heartbeats come",
    State.LATE: f"none for {LATE_INTERVALS} intervals",
    State.DISCONNECTED: "its stream broke without a goodbye",
    State.LOST: f"no heartbeat for {LOST_SECONDS:g} s or {LOST_INTERVALS} intervals, whichever is longer",
    State.LEFT: "it said goodbye",
}
GLYPHS = {f"{glyph} " for glyph, _ in STATE_STYLES.values()}
GRID_CELLS = (26, 9, 2, 1)  # widths of a cell: with name and value, with its value, apart, side by side: the widest that fits all
GRID_STEPS = "▁▂▃▄▅▆▇█"
GRID_STYLES = ("blue", "blue", "cyan", "cyan", "green", "green", "yellow", "bold red")


class View(NamedTuple):
    """All that a frame shows, taken at one moment."""

    ui: Ui
    room: Room
    entries: Sequence[Entry]  # those on the screen, from ui.first on
    matching: int  # entries in all
    totals: Totals
    page: Row | None
    now: float  # by the registry's clock
    wall: float
    listening: str
    events: Sequence[Event]


def look(lens: Lens, ui: Ui, width: int, height: int, listening: str, events: Sequence[Event]) -> View:
    """What a frame needs, and no more."""
    room = room_of(ui, lens, width, height)
    ids = lens.order[ui.first : ui.first + room.entries]
    rows = lens.rows(entry_id.node_id for entry_id in ids)
    return View(
        ui=ui,
        room=room,
        entries=make_entries([(entry_id, row) for entry_id, row in zip(ids, rows, strict=True) if row], lens.now),
        matching=len(lens.order),
        totals=lens.totals,
        page=lens.rows([ui.page])[0] if ui.page else None,
        now=lens.now,
        wall=lens.wall,
        listening=listening,
        events=events,
    )


def render(view: View, width: int, height: int) -> list[Line]:
    """A frame: exactly `height` lines of `width` cells."""
    if width < SMALLEST_WIDTH or height < SMALLEST_HEIGHT:
        return too_small(width, height)
    if view.ui.help:
        body = help_panel(behind_help(view.ui), width)
    elif view.page:
        body = page_panels(view.page, view.now, width, height - 3)
    else:
        panel = grid_panel if view.ui.grid else table_panel
        body = [*panel(view, width), *event_panel(view.events, width, event_panel_height(height))]
    return [*fit_lines([*header(view, width), *body], width, height - 1), footer(view, width)]


def event_panel_height(height: int) -> int:
    """Lines of the event log, its border counted: none on a low terminal."""
    return 0 if height < 16 else max(height // 5, 5)


def room_of(ui: Ui, lens: Lens, width: int, height: int) -> Room:
    """What header, borders, titles, log and footer leave."""
    lines = max(height - 2 - 3 - event_panel_height(height) - 1, 1)
    if not ui.grid:
        return Room(lines, 1)
    rooms = [Room(lines, max((width - 4) // cell, 1)) for cell in GRID_CELLS]
    return next((room for room in rooms if room.entries >= len(lens.order)), rooms[-1])


# ---- Header and footer ----


def header(view: View, width: int) -> list[Line]:
    """Two lines: nodes by state, and what the fleet is and does."""
    count = sum(view.totals.states.values())
    wide = width >= 80
    parts: list[Line] = [[(" Edge fleet ", "bold")]] * wide + [[(f" {count:,} node{'s' * (count != 1)}", "")]]
    for state, (glyph, style) in STATE_STYLES.items():
        if number := view.totals.states.get(state):
            parts.append([(f"  {glyph} {number:,}" + f" {state.value.lower()}" * wide, style)])
    clock = time.strftime("%H:%M:%S", time.localtime(view.wall))
    right: Span = (f" FROZEN at {clock} ", "bold reverse") if view.ui.frozen else (f" {clock} ", "dim")
    return [[*fit_parts(parts, width - len(right[0])), right], fit_parts(totals_parts(view), width)]


def totals_parts(view: View) -> list[Line]:
    """What the living nodes have and do, all together: the most important first."""
    totals = view.totals
    if not totals.states.get(State.ONLINE):
        return [[(f" listening on {view.listening}", "")], [(": no node is online", "")]]
    parts: list[Line] = [[(f" {totals.gpus:,} GPU{'s' * (totals.gpus != 1)}", "")]]
    parts.append([(f" · utilization {show_percent(totals.utilization)}", "")])
    if totals.hottest:
        vitals = totals.hottest.vitals
        style = heat_style(vitals.celsius, vitals.limit_celsius)
        heat = show_celsius(vitals.celsius, vitals.limit_celsius).strip()
        parts.append([(" · hottest ", ""), (f"{heat} {totals.hottest.node_id}", style)])
    if totals.memory_total_bytes:
        parts.append([(f" · memory {show_bytes(totals.memory_used_bytes)} of {show_bytes(totals.memory_total_bytes)}", "")])
    if totals.milliwatts:
        parts.append([(f" · power {show_watts(totals.milliwatts)}", "")])
    return parts


def footer(view: View, width: int) -> Line:
    """The keys, or the filter while it is typed."""
    ui = view.ui
    if ui.typing:
        keys = ", ".join(f"{label} {does}" for label, does in footer_of(ui, Place.FILTER))
        return fit_line([(" /", "bold"), (ui.filter, ""), ("█", ""), (f"  {keys}", "dim")], width)
    parts: list[Line] = [[(f" {label}", "bold"), (f" {does} ", "dim")] for label, does in footer_of(ui, behind_help(ui))]
    right = f" {view.listening} " if width > 120 else ""
    return [*fit_parts(parts, width - len(right)), (right, "dim")]


# ---- The table ----


def table_panel(view: View, width: int) -> list[Line]:
    """The table in its border: a line an entry."""
    chosen = choose_columns([column.layout for column in TABLE], width - 4)
    columns = [column for column in TABLE if column.layout in chosen]
    widths = widths_of(columns, width - 4)
    columns = [column._replace(layout=column.layout._replace(width=widths[column.layout.title])) for column in columns]
    titles = " ".join(
        fit(column.title(view.ui.sort, view.ui.descending), column.layout.width, column.layout.align) for column in columns
    )
    lines: list[Line] = [[(titles, "bold dim")]]
    lines += [entry_line(entry, columns, view.ui) for entry in view.entries]
    if not view.matching:
        lines += nothing_to_show(view)
    return box(panel_title(view), lines + [[]] * (view.room.lines + 1 - len(lines)), width)


def panel_title(view: View) -> str:
    """What is listed, how it is sorted and filtered, and which part of it is on the screen."""
    ui = view.ui
    title = "GPUs" if ui.by_gpu else "Nodes"
    if len(view.entries) < view.matching:
        title += f" {ui.first + 1:,} to {ui.first + len(view.entries):,} of {view.matching:,}"
    if ui.sort != SORT_BY_NAME or ui.descending:
        title += f" · by {ui.sort}{' ↓' if ui.descending else ' ↑'}"
    unread = " ".join(parse_filter(ui.filter)[1])
    return title + (f" · /{ui.filter}" if ui.filter else "") + (f" · not understood: {unread}" if unread else "")


def nothing_to_show(view: View) -> list[Line]:
    """What to do first."""
    if sum(view.totals.states.values()):
        return [[], [("Nothing matches the filter: Esc clears it.", "")]]
    port = view.listening.rpartition(":")[2]
    address = "THIS-HOST" + (f":{port}" if port != str(DEFAULT_PORT) else "")
    return [[], [("No node yet. On each box:", "")], [], [(f"    python3 node.pyz --server {address}", "bold")]]


def entry_line(entry: Entry, columns: Sequence[TableColumn], ui: Ui) -> Line:
    """One node or device. Values of a node that is not online are grey: stale is never shown as live."""
    line: Line = []
    for column in columns:
        spans = column.spans(entry, column.layout.width)
        if entry.state is not State.ONLINE and column.sort != "state":
            spans = grey(spans)
        line += align(spans, column.layout)
        line.append((" ", ""))
    return [(text, f"{style} reverse".strip()) for text, style in line] if entry.id == ui.selected else line


def grey(line: Line) -> Line:
    """What is stale; the glyph of its state keeps its colour."""
    return [(text, style if text in GLYPHS else "dim") for text, style in line]


# ---- The grid ----


def grid_panel(view: View, width: int) -> list[Line]:
    """One cell an entry: its height and colour are the metric, its glyph the state where it is not online."""
    lines_most, per_line = view.room
    cell_width = min((width - 4) // per_line, GRID_CELLS[0])
    shown = [grid_cell(entry, cell_width, view.ui) for entry in view.entries]
    lines = [list(itertools.chain(*shown[start : start + per_line])) for start in range(0, len(shown), per_line)]
    if not view.matching:
        lines += nothing_to_show(view)
    return box(panel_title(view), [grid_legend(view, width), *lines, *[[]] * (lines_most - len(lines))], width)


def grid_legend(view: View, width: int) -> Line:
    """The metric and its scale, and what the selected cell stands for."""
    metric = METRIC_NAMED[view.ui.metric]
    scale: Line = [(f"{metric.name}  0 ", "dim"), *zip(GRID_STEPS, GRID_STYLES, strict=True), (f" {metric.full_text}   ", "dim")]
    selected = next((entry for entry in view.entries if entry.id == view.ui.selected), None)
    if not selected:
        return [*scale, ("↑↓←→ choose a cell", "dim")]
    numbers = "  ".join(f"{metric.word} " * metric.needs_word + metric.text(selected.vitals).strip() for metric in METRICS)
    glyph, style = STATE_STYLES[selected.state]
    return [
        *(scale if width >= 110 else []),
        (f"{glyph} ", style),
        (f"{selected.name}  {visible(selected.info.hostname)}", "bold"),
        (f"  {numbers}", ""),
    ]


def grid_cell(entry: Entry, width: int, ui: Ui) -> Line:
    """A block of `width` cells, with as much in words as it is wide enough for."""
    metric = METRIC_NAMED[ui.metric]
    glyph, style = STATE_STYLES[entry.state]
    if entry.state is State.ONLINE:
        part = metric.part(entry)
        step = 0 if part is None else min(max(int(part * 8), 0), 7)
        glyph, style = ("·", "dim") if part is None else (GRID_STEPS[step], GRID_STYLES[step])
    words = fit(metric.text(entry.vitals), 7, ">") if width >= GRID_CELLS[1] else ""
    if width >= GRID_CELLS[0]:
        words = f" {fit(entry.name, 15)}{words}"
    reverse = " reverse" if entry.id == ui.selected else ""
    spans: Line = [(glyph, style + reverse)]
    if words:
        spans.append((words, ("" if entry.state is State.ONLINE else "dim") + reverse))
    return [*spans, (" " * (width - 1 - cells(words)), "")] if width > 1 else spans


# ---- A node's page, the help, the events ----


def page_panels(row: Row, now: float, width: int, room: int) -> list[Line]:
    """A node's page: its session, and the panels of its own screen; all grey when it is not online."""
    state = state_of(row, now)
    glyph, style = STATE_STYLES[state]
    reason = reason_of(row, state, now)
    first: Line = [(f" {row.node_id}", "bold"), (f"  {visible(row.info.hostname)}  ", ""), (f"{glyph} {state.value}", style)]
    first.append((f"  {reason}" if reason else f"  {visible(row.info.notice)}", "" if reason else "dim"))
    facts = page_facts(row, now, width)[: max(room // 6, 1)]
    panels = node_panels(Subject(row.info, row.sample, row.processes, row.history), width, room - 1 - len(facts))
    if state is not State.ONLINE:
        panels = [[(text, "dim") for text, _ in line] for line in panels]
    return [first, *facts, *panels]


def page_facts(row: Row, now: float, width: int) -> list[Line]:
    """What there is to know of a session, in as many lines as it needs."""
    info = row.info
    trip = "" if row.round_trip_seconds is None else f"round trip {row.round_trip_seconds * 1000:.1f} ms"
    facts = [
        f"from {row.address}",
        f"agent {visible(info.agent_version)}" if info.agent_version else "",
        f"heartbeat {show_seconds(now - row.heartbeat_at)} ago",
        "no sample" if row.sample_at is None else f"sample {show_seconds(now - row.sample_at)} ago",
        trip,
        f"reconnected {info.session_number - 1}×" if info.session_number > 1 else "",
        f"last error: {visible(info.last_error)}" if info.last_error else "",
    ]
    unbroken = " · ".join(fact.replace(" ", "\0") for fact in facts if fact)
    return [[(f" {line}".replace("\0", " "), "dim")] for line in textwrap.wrap(unbroken, width - 1, break_long_words=False)]


def help_panel(place: Place, width: int) -> list[Line]:
    """All keys of a place, and all states, in few lines: a low terminal shows the keys."""
    lines: list[Line] = [[(fit(keys, 15), "bold"), (does, "")] for keys, does in help_lines(place)]
    for state, (glyph, style) in STATE_STYLES.items():
        lines.append([(fit(f"{glyph} {state.value}", 15), style), (STATE_HELP[state], "")])
    return box("Help · any key goes back", lines, width)


def event_panel(events: Sequence[Event], width: int, height: int) -> list[Line]:
    """The newest events, the newest last."""
    if not height:
        return []
    lines = [event_line(event) for event in events[-(height - 2) :]]
    return box("Events", lines + [[]] * (height - 2 - len(lines)), width)


def event_line(event: Event) -> Line:
    """Time, what, who, and why."""
    time_of_day = time.strftime("%H:%M:%S ", time.localtime(event.time))
    return [(time_of_day, "dim"), (fit(event.kind, 13), EVENT_STYLES.get(event.kind, "")), (f"{event.node_id:16} {event.text}", "")]
