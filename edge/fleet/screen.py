"""The server's screen: pure functions of a view, a size and a time. What a frame shows is looked up once, and then drawn."""

from __future__ import annotations

import itertools
import textwrap
import time
from collections.abc import Sequence
from typing import NamedTuple

from edge.credentials import PREFIX
from edge.drawing import (
    BLOCKS,
    MIN_HEIGHT,
    MIN_WIDTH,
    SHADE,
    Line,
    Span,
    align,
    box,
    cells,
    fit,
    fit_line,
    fit_lines,
    fit_name,
    fit_parts,
    heat_style,
    too_small,
)
from edge.event_log import Event
from edge.fleet.columns import SORT_BY_NAME, STATE_STYLES, TableColumn, lay_out
from edge.fleet.entry import Entry, make_entries
from edge.fleet.events import draw_events, event_lines, lowest_line, newest_lines, parse_event_filter
from edge.fleet.filters import asks_for_a_while
from edge.fleet.groups import head_of, is_head
from edge.fleet.joining import Joining, Step, details, named, steps, token_command
from edge.fleet.keys import LISTS, Place, Room, behind_help, filter_of, footer_of, help_lines, place_of
from edge.fleet.lens import HOLE_SECONDS, RANGES, Graphs, Lens, Totals, Ui
from edge.fleet.metrics import METRIC_NAMED, METRICS
from edge.fleet.row import Row, State, hanging_seconds, reason_of, state_of
from edge.fleet.source import EVENTS_KEPT
from edge.fleet.times import EXAMPLES as TIME_EXAMPLES
from edge.fleet.times import show_time
from edge.fleet.users import User, draw_users, shown_name
from edge.fleet.users import lay_out as lay_out_users
from edge.panels import Reach, Subject, node_panels, reach_of
from edge.program import VERSION
from edge.protocol import LATE_INTERVALS, LOST_INTERVALS, LOST_SECONDS, MAX_TEXT
from edge.text import show_bytes, show_celsius, show_energy, show_percent, show_seconds, show_watts, visible

STATE_HELP = {
    State.ONLINE: "heartbeats come",
    State.LATE: f"none for {LATE_INTERVALS} intervals",
    State.DISCONNECTED: "its stream broke without a goodbye",
    State.UNHEARD: "its server is not heard any more: what is known of it is old",
    State.LOST: f"no heartbeat for {LOST_SECONDS:g} s or {LOST_INTERVALS} intervals, whichever is longer",
    State.LEFT: "it said goodbye",
}
Sign = tuple[str, str, str]  # as the screen shows it, its style, and what it means
FAILED: Sign = ("✗2", "bold red", "after a name: so many of its devices can't be read")
HANGING = "heartbeats come, but its sensors are silent"
MORE_SIGNS: dict[Place, Sequence[Sign]] = {  # beside the states
    Place.TABLE: (FAILED, ("~3m", "bold yellow", f"in AGE: {HANGING} for so long")),
    Place.GRID: (("~", "bold yellow", HANGING), ("·", "dim", "the metric is not reported")),
    Place.PAGE: ((SHADE, "green", "in a graph: between the lowest and the highest reading of that time"),),
}
HEADER_LINES, FOOTER_LINES = 2, 1
KEYS_CELLS = 15  # of the help
GLYPHS = {f"{glyph} " for glyph, _ in STATE_STYLES.values()}
CHANGE_GLYPHS = {state.value.lower(): glyph for state, (glyph, _) in STATE_STYLES.items()} | {"joined": "+"}
NOTHING_MATCHES: list[Line] = [[], [("Nothing matches the filter: Esc clears it.", "")]]
NOT_OBSERVED: Line = [("`for` asks of nodes that are online, and have been observed all that time.", "")]
NOBODY_THEN: list[Line] = [[], [("No node was here then.", "")]]
GRID_CELLS = (26, 9, 2, 1)  # widths of a cell: with name and value, with its value, apart, side by side: the widest that fits all
GRID_NAME_CELLS = 15  # of the widest
GRID_STYLES = ("blue", "blue", "cyan", "cyan", "green", "green", "yellow", "bold red")


class About(NamedTuple):
    """What the screen says of the server itself, beside its fleet."""

    listening: str  # where nodes report to
    joining: Joining
    is_here: bool = True  # this program is the server: it ends when the screen is left
    is_known: bool = True  # some server has answered


class Then(NamedTuple):
    """Of the past, what its header says."""

    wall: float  # the moment that is shown
    ago_seconds: float
    going_to: float | None  # the moment that is waited for
    is_there: bool  # whether any moment of the past is shown yet
    has_now: bool  # else it is a recording
    gap_until: float | None  # the moment that was asked for, where nothing was kept for long before it


class View(NamedTuple):
    """All that a frame shows, taken at one moment."""

    ui: Ui
    room: Room
    entries: Sequence[Entry]  # those on the screen, from ui.first on
    first: int  # how many entries stand before these
    groups: Sequence[tuple[int, str, Totals]]  # before which of these a group begins, its label's value, and what it adds up to
    matching: int  # entries in all
    known_entries: int  # whatever the filter matches, as are the nodes
    known_nodes: int
    is_filtered: bool  # by at least one term that can be read
    not_understood: Sequence[str]  # terms of the filter
    longest_name: int  # in cells
    totals: Totals  # of what the filter matches
    users: Sequence[User]  # of what the filter matches
    since: Sequence[tuple[str, int]]  # what has happened behind a frozen picture; in the past, what is wrong now
    page: Row | None
    graphs: Graphs | None  # of the page, where these are not what the row has
    then: Then | None  # where a moment of the past is shown, or asked for
    now: float  # by the registry's clock
    wall: float
    about: About
    events: Sequence[Event]
    may_forget: bool = True  # any of the nodes
    notices: Sequence[str] = ()  # what is wrong with where all this comes from
    is_asking: bool = False  # who the users are


def look(lens: Lens, ui: Ui, about: About, width: int, height: int) -> View:
    """What a frame needs, and no more."""
    room = room_of(ui, lens, about.joining, width, height)
    lines = lens.order[ui.first : ui.first + room.entries]
    ids = [entry_id for entry_id in lines if not is_head(entry_id)]
    lens.shown = [entry_id.node_id for entry_id in ids]
    rows = lens.rows(lens.shown)
    return View(
        ui=ui,
        room=room,
        entries=make_entries([(entry_id, row) for entry_id, row in zip(ids, rows, strict=True) if row], lens.now),
        first=ui.first - sum((lens.place(head_of(group)) or 0) < ui.first for group in range(len(lens.groups))),
        groups=[(at, *lens.groups[entry_id.device]) for at, entry_id in enumerate(lines) if is_head(entry_id)],
        matching=len(lens.order) - len(lens.groups),
        known_entries=lens.known_entries,
        known_nodes=lens.known_nodes,
        is_filtered=lens.is_filtered,
        not_understood=lens.not_understood,
        longest_name=lens.longest_name,
        totals=lens.totals,
        users=lens.users,
        since=lens.since,
        page=lens.rows([ui.page])[0] if ui.page else None,
        graphs=lens.graphs,
        then=then_of(lens, ui),
        now=lens.now,
        wall=lens.wall,
        about=about,
        events=lens.events(EVENTS_KEPT),
        may_forget=not lens.why_not_forget(ui),
        notices=lens.notices(),
        is_asking=lens.is_asking,
    )


def then_of(lens: Lens, ui: Ui) -> Then | None:
    """What a header says of the past that is looked at."""
    if ui.at is None:
        return None
    ago_seconds = max(lens.today() - lens.wall, 0) if lens.has_now else max(time.time() - lens.wall, 0)
    visit = lens.visit
    gap_until = visit.goal.at if visit and lens.wall < min(visit.goal.at, visit.last) - HOLE_SECONDS else None
    going_to = lens.going_to if ui.playing_since is None else None
    return Then(lens.wall, ago_seconds, going_to, lens.visit is not None, lens.has_now, gap_until)


def render(view: View, width: int, height: int) -> list[Line]:
    """A frame: exactly `height` lines of `width` cells."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return too_small(width, height)
    room = height - HEADER_LINES - FOOTER_LINES
    if view.ui.help:
        body = help_panel(view, width, room)
    elif view.ui.join:
        body = joining_panel(view, width, room)
    elif view.ui.events:
        body = event_view(view, width, room)
    elif view.ui.users:
        body = user_view(view, width)
    elif view.page:
        body = page_panels(view.page, view.now, width, room, view.ui.scroll, view.graphs)
    elif view.ui.page:
        body = [[], [(f" {fit_name(view.ui.page, max(width - 20, 16))} was not here then.", "bold")]]
    else:
        panel = empty_panel if not view.known_nodes and not view.then else grid_panel if view.ui.grid else table_panel
        body = [*panel(view, width), *event_panel(view.events, view.wall, width, event_panel_height(height))]
    return [*fit_lines([*header(view, width), *body], width, height - 1), footer(view, width)]


def event_panel_height(height: int) -> int:
    """Lines of the event log, its border counted: none on a low terminal."""
    return 0 if height < 16 else max(height // 5, 5)


def room_of(ui: Ui, lens: Lens, joining: Joining, width: int, height: int) -> Room:
    """What header, borders, titles, log and footer leave."""
    view_lines = max(height - HEADER_LINES - FOOTER_LINES, 3)
    lines = max(view_lines - 3 - event_panel_height(height), 1)
    reach = Reach(0, view_lines)
    if ui.help:
        text = help_text(behind_help(ui), width, outdated(lens.totals, joining))
        reach = Reach(max(len(text) - (view_lines - 2), 0), view_lines - 2)
    elif ui.join:
        reach = Reach(
            max(len(joining_text(joining, all_steps(joining), width, view_lines - 1)) - (view_lines - 1), 0), view_lines - 1
        )
    elif ui.events:
        reach = Reach(0, view_lines - 2)
    elif ui.users:
        reach = Reach(max(len(lens.users) - (view_lines - 3), 0), view_lines - 3)
    elif page := ui.page and lens.rows([ui.page])[0]:
        reach = reach_of(subject_of(page, lens.graphs), width, view_lines - len(page_head(page, lens.now, width, view_lines)))
    rooms = [Room(lines, max((width - 4) // cell, 1), reach) for cell in GRID_CELLS] if ui.grid else [Room(lines, 1, reach)]
    return next((room for room in rooms if room.entries >= len(lens.order)), rooms[-1])


def cut(lines: list[Line], scroll: int, room: int, key: str = "PgDn") -> list[Line]:
    """So many lines, from the one on that was scrolled to; the last one says how many there are below it, and what shows them."""
    below = len(lines) - scroll - room
    shown = lines[scroll : scroll + room]
    return [*shown[:-1], [(f" ↓ {below + 1} more lines: {key}", "dim")]] if below > 0 else shown


# ---- Header and footer ----


def header(view: View, width: int) -> list[Line]:
    """Two lines: who gets in and nodes by state, and what the fleet is and does; where a filter holds, what it matches of it."""
    count, known = sum(view.totals.states.values()), view.known_nodes
    wide = width >= 80
    nodes = (
        f" {count:,} of {known:,} nodes match{'es' * (count == 1)}" if view.is_filtered else f" {known:,} node{'s' * (known != 1)}"
    )
    parts: list[Line] = [[(" Edge fleet ", "bold")]] * wide
    if view.about.is_known:
        parts += [[(" secure ", "green") if view.about.joining.is_secure else (" open ", "yellow")]]
        parts += [[(nodes, "bold yellow" if view.is_filtered else "")]]
    for state, (glyph, style) in STATE_STYLES.items():
        if number := view.totals.states.get(state):
            parts.append([(f"  {glyph} {number:,}" + f" {state.value.lower()}" * wide, style)])
    notices, sums = notice_parts(view, width), totals_parts(view)
    between: Line = [(" ·", "dim")] if notices else []
    totals = fit_parts([*notices, *([*between, *part] for part in sums[:1]), *sums[1:]], width)
    if view.then:
        return [past_line(view, view.then, width), totals]
    right = clock_span(view, width)
    return [[*fit_parts(parts, width - cells(right[0])), right], totals]


def notice_parts(view: View, width: int) -> list[Line]:
    """What is wrong, before the totals: several sentences where there is room, else how many there are more."""
    if not view.notices:
        return []
    first, *more = view.notices
    rest = f" (and {len(more)} more)" if more else ""
    if cells(" · ".join(view.notices)) + 2 <= width // 2:
        first, rest = " · ".join(view.notices), ""
    return [[(f" {fit(first, min(cells(first), width - cells(rest) - 2))}{rest}", "bold yellow")]]


def past_line(view: View, then: Then, width: int) -> Line:
    """The whole line reversed, so that nobody takes it for now: which moment it is, how long ago, what happens meanwhile, and what
    there was by state."""
    ui, wide = view.ui, width >= 110
    weekday = time.strftime("%a ", time.localtime(then.wall)) if wide else ""
    moment = f"{weekday}{show_time(then.wall)[0 if width >= 50 else len('2026-') :]}"
    parts = [" PAST " if then.has_now else " REPLAY "]
    if not then.is_there:
        parts += ["· this is still now " * then.has_now]
    else:
        parts += [f"{moment}, {show_seconds(then.ago_seconds)} ago "]
    if then.going_to is not None:
        parts += [f"· going to {show_time(then.going_to)} … "]
    if view.since:
        changes = [f"{number:,} {word if width >= 80 else CHANGE_GLYPHS[word]}" for word, number in view.since]
        parts += [f"{'· ' * (width >= 80)}NOW {', '.join(changes if wide else changes[:1])} "]
    if ui.playing_since is not None:
        parts += [f"▶ {ui.speed:g}× "]
    if then.gap_until is not None:
        parts += [f"· nothing kept until {show_time(then.gap_until)} "]
    parts += [
        f"  {glyph} {number:,}" + f" {state.value.lower()}" * wide
        for state, (glyph, _) in STATE_STYLES.items()
        if (number := view.totals.states.get(state))
    ]
    return [(text, "bold reverse") for text, _ in fit_parts([[(part, "")] for part in parts], width)]


def clock_span(view: View, width: int) -> Span:
    """The time; of a frozen picture also what has happened since, at least the worst of it."""
    clock = time.strftime("%H:%M:%S", time.localtime(view.wall))
    if not view.ui.frozen:
        return (f" {clock} ", "dim")
    if not view.since:
        return (f" FROZEN at {clock} ", "bold reverse")
    changes = [f"{number:,} {word}" for word, number in view.since]
    said = f"{', '.join(changes)} since {clock}" if width >= 120 else f"{changes[0]} since"
    return (f" FROZEN · {said} ", "bold reverse")


def totals_parts(view: View) -> list[Line]:
    """What the living nodes have and do, all together: the most important first."""
    totals = view.totals
    parts: list[Line] = [[(" matching:", "bold yellow")]] * view.is_filtered
    if not view.about.is_known:
        return parts
    if view.is_filtered and not any(totals.states.values()):
        return [[(" nothing matches the filter", "")]]
    if not totals.states.get(State.ONLINE):
        if totals.states.get(State.UNHEARD):  # nobody knows
            return parts
        where = f" {'listening on' if view.about.is_here else 'looking at'} {view.about.listening}:"
        listening: list[Line] = [] if view.then else [[(where, "")]]
        return [*(parts or listening), [(f" no node {'was' if view.then else 'is'} online", "")], *energy_parts(totals)]
    return [*parts, *sums(totals)]


def sums(totals: Totals) -> list[Line]:
    """What some nodes have and do, all together: the most important first."""
    parts: list[Line] = []
    parts.append([(f" {totals.gpus:,} GPU{'s' * (totals.gpus != 1)}", "")])
    parts.append([(f" · utilization {show_percent(totals.utilization)}", "")])
    if totals.hottest:
        vitals = totals.hottest.vitals
        style = heat_style(vitals.celsius, vitals.limit_celsius)
        heat = show_celsius(vitals.celsius, vitals.limit_celsius).strip()
        parts.append([(" · hottest ", ""), (f"{heat} {fit_name(totals.hottest.node_id, 24)}", style)])
    if totals.memory_total_bytes:
        memory = f"{show_bytes(totals.memory_used_bytes)} of {show_bytes(totals.memory_total_bytes)}"
        count = totals.gpus or totals.states[State.ONLINE]
        parts.append([(f" · memory {memory}{of_some(totals.with_memory, count)}", "")])
    if totals.milliwatts is not None:
        parts.append([(f" · power {show_watts(totals.milliwatts)}{of_some(totals.with_power, totals.gpus)}", "")])
    return [*parts, *energy_parts(totals)]


def energy_parts(totals: Totals) -> list[Line]:
    """What has been used, if that is known."""
    if totals.energy_joules is None:
        return []
    some = of_some(totals.with_energy, totals.with_gpus, " nodes")
    return [[(f" · energy {show_energy(totals.energy_joules)}{some}", "")]]


def of_some(number: int, count: int, what: str = "") -> str:
    """Of how many of all a sum is, where the others do not report it."""
    return f" ({number:,} of {count:,}{what})" if number < count else ""


def footer(view: View, width: int) -> Line:
    """The keys, or the filter while it is typed, or a question."""
    ui, place = view.ui, place_of(view.ui)
    named = footer_of(ui, place, view.may_forget, not view.then or view.then.has_now)
    if ui.typing:
        typed = filter_of(ui)
        while cells(typed) > max(width - 20, 1):  # its end is where one types
            typed = typed[1:]
        keys = ", ".join(f"{label} {does}" for label, does in named)
        return fit_line([(" /", "bold"), (typed, ""), ("█", ""), (f"  {keys}", "dim")], width)
    if ui.time is not None and ui.said:
        typed = fit(ui.time, min(cells(ui.time), width // 3))
        return fit_line([(" t ", "bold"), (f"{typed}█  ", ""), (ui.said, "bold yellow")], width)
    if ui.time is not None:
        hint = "" if ui.time else f" {TIME_EXAMPLES}"
        keys = ", ".join(f"{label} {does}" for label, does in named)
        return fit_line([(" go to the time ", "bold"), (ui.time, ""), ("█", ""), (hint, "dim"), (f"  {keys}", "dim")], width)
    if ui.question:
        count = len(ui.question.node_ids)
        nodes = f"{count:,} node{'s' * (count != 1)}"
        asked = f"{nodes} report{'s' * (count == 1)} here" if place is Place.QUIT else f"forget {nodes}, lost or left"
        answers: list[Line] = [[(f"{', ' * (index > 0)}{label} {does}", "bold")] for index, (label, does) in enumerate(named)]
        words = f" {asked}: " if cells(f" {asked}: {answers[0][0][0]}") <= width else f" {nodes}: "
        return fit_parts([[(words, "bold yellow")], *answers], width)
    if ui.said:
        return fit_line([(f" {ui.said}", "bold yellow")], width)
    parts: list[Line] = [[(f" {label}", "bold"), (f" {does} ", "dim")] for label, does in named]
    right = f" {view.about.listening} " if width > 120 else ""
    return [*fit_parts(parts, width - len(right)), (right, "dim")]


# ---- The table ----


def table_panel(view: View, width: int) -> list[Line]:
    """The table in its border: a line an entry."""
    columns = lay_out(view.entries, view.longest_name, width - 4)
    titles = " ".join(
        fit(column.title(view.ui.sort, view.ui.descending), column.layout.width, column.layout.align) for column in columns
    )
    lines: list[Line] = [[(titles, "bold dim")]]
    lines += [entry_line(entry, columns, view.ui) for entry in view.entries]
    for at, value, totals in view.groups:
        lines.insert(at + 1, group_line(view.ui.group, value, totals, width - 4))
    if not view.matching:
        lines += nothing_there(view)
    return box(panel_title(view), lines + [[]] * (view.room.lines + 1 - len(lines)), width)


def nothing_there(view: View) -> list[Line]:
    """In the place of nodes, where none is shown."""
    if not view.known_nodes:
        return NOBODY_THEN
    return NOTHING_MATCHES + ([NOT_OBSERVED] if asks_for_a_while(view.ui.filter) else [])


def panel_title(view: View) -> str:
    """What is listed, which part of it the filter matches and is on the screen, and how it is sorted."""
    ui, shown = view.ui, len(view.entries)
    title = "GPUs" if ui.by_gpu else "Nodes"
    if view.is_filtered:
        title += f" {view.matching:,} of {view.known_entries:,}"
    if shown < view.matching:
        title += f"{', ' * view.is_filtered or ' '}{view.first + 1:,} to {view.first + shown:,}"
        title += "" if view.is_filtered else f" of {view.matching:,}"
    if ui.sort != SORT_BY_NAME or ui.descending:
        title += f" · by {ui.sort}{' ↓' if ui.descending else ' ↑'}"
    title += f" · in groups by {ui.group}" * bool(ui.group and not ui.grid)
    return title + filter_title(ui.filter, view.not_understood)


def filter_title(text: str, unread: Sequence[str]) -> str:
    """A filter, and what of it restricts nothing."""
    return (f" · /{text}" if text else "") + (f" · not understood: {' '.join(unread)}" if unread else "")


def group_line(label: str, value: str, totals: Totals, width: int) -> Line:
    """A group's own line: which it is, its nodes by state, and what they add up to."""
    parts: list[Line] = [[("── ", "dim"), (f"{label}={fit_name(visible(value), 32)}", "bold") if value else (f"no {label}", "dim")]]
    for state, (glyph, style) in STATE_STYLES.items():
        if number := totals.states.get(state):
            parts.append([(f"  {glyph} {number:,}", style)])
    return fit_parts([*parts, *([[(" ", "")], *sums(totals)] if totals.states.get(State.ONLINE) else energy_parts(totals))], width)


def entry_line(entry: Entry, columns: Sequence[TableColumn], ui: Ui) -> Line:
    """One node or device. Values of a node that is not online are grey: stale is never shown as live."""
    line: Line = []
    for column in columns:
        spans = column.spans(entry, column.layout.width)
        if entry.is_stale and column.sort not in ("state", "age"):
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
    lines_most, per_line = view.room.lines, view.room.per_line
    cell_width = min((width - 4) // per_line, max(GRID_CELLS[0], view.longest_name + GRID_CELLS[0] - GRID_NAME_CELLS))
    shown = [grid_cell(entry, cell_width, view.ui) for entry in view.entries]
    lines = [list(itertools.chain(*shown[start : start + per_line])) for start in range(0, len(shown), per_line)]
    if not view.matching:
        lines += nothing_there(view)
    return box(panel_title(view), [grid_legend(view, width), *lines, *[[]] * (lines_most - len(lines))], width)


def grid_legend(view: View, width: int) -> Line:
    """The metric and its scale, and what the selected cell stands for."""
    metric = METRIC_NAMED[view.ui.metric]
    scale: Line = [(f"{metric.name}  0 ", "dim"), *zip(BLOCKS, GRID_STYLES, strict=True), (f" {metric.full_text}   ", "dim")]
    selected = next((entry for entry in view.entries if entry.id == view.ui.selected), None)
    if not selected:
        return [*scale, ("↑↓←→ choose a cell", "dim")]
    numbers = "  ".join(f"{metric.word} " * metric.needs_word + metric.text(selected.vitals).strip() for metric in METRICS)
    glyph, style = STATE_STYLES[selected.state]
    return [
        *(scale if width >= 110 else []),
        (f"{glyph} ", style),
        (f"{fit_name(selected.name, 32)}  {fit_name(visible(selected.info.hostname), 24)}", "bold"),
        (f"  {numbers}", ""),
    ]


def grid_cell(entry: Entry, width: int, ui: Ui) -> Line:
    """A block of `width` cells, with as much in words as it is wide enough for."""
    metric = METRIC_NAMED[ui.metric]
    glyph, style = STATE_STYLES[entry.state]
    if entry.hanging_seconds is not None:
        glyph, style = "~", "bold yellow"
    elif entry.state is State.ONLINE:
        part = metric.part(entry)
        step = 0 if part is None else min(max(int(part * 8), 0), 7)
        glyph, style = ("·", "dim") if part is None else (BLOCKS[step], GRID_STYLES[step])
    words = fit(metric.text(entry.vitals), 7, ">") if width >= GRID_CELLS[1] else ""
    if width >= GRID_CELLS[0]:
        name_cells = width - GRID_CELLS[0] + GRID_NAME_CELLS
        words = f" {fit(fit_name(entry.name, name_cells), name_cells)}{words}"
    reverse = " reverse" if entry.id == ui.selected else ""
    spans: Line = [(glyph, style + reverse)]
    if words:
        spans.append((words, ("dim" if entry.is_stale else "") + reverse))
    return [*spans, (" " * (width - 1 - cells(words)), "")] if width > 1 else spans


# ---- How a box joins ----
# No border at the sides: a line that is selected has nothing but its token, and a token fits 80 columns.


def empty_panel(view: View, width: int) -> list[Line]:
    """Of a fleet without a node: what to do first."""
    room = view.room.lines + 2  # of the table, its titles and its lower border
    if not view.about.is_known:
        return connecting(view, width, room)
    more = ", and more" * bool(details(view.about.joining))
    text = [*steps(view.about.joining), Step(f"j shows this at any time{more}.")]
    lines = joining_text(view.about.joining, text, width, room)
    return [rule("No node yet", width), *cut(lines, 0, room, "j"), *[[]] * (room - len(lines))]


def connecting(view: View, width: int, room: int) -> list[Line]:
    """Before any server has answered: nothing is known of it yet."""
    return fit_lines([[], [(f" Connecting to {view.about.listening} …", "bold")]], width, room)


def joining_panel(view: View, width: int, room: int) -> list[Line]:
    """All that there is to know of it; what does not fit is scrolled to."""
    if not view.about.is_known:
        return connecting(view, width, room)
    title = "How a box joins" + " · ↑↓ scroll" * bool(view.room.reach.most)
    lines = joining_text(view.about.joining, all_steps(view.about.joining), width, room - 1)
    return [rule(title, width), *cut(lines, view.ui.scroll, room - 1)]


def all_steps(joining: Joining) -> list[Step]:
    """Those of the empty screen first."""
    return [*steps(joining), *details(joining)]


def joining_text(joining: Joining, text: Sequence[Step], width: int, room: int) -> list[Line]:
    """Steps as lines, at this width, with a blank one between them where there is room. A token is alone in its line; elsewhere a
    word stands for it, and its name is left out where there is no room. What can't be wrapped is not shown."""
    lines: list[Line] = []
    width = max(width, MIN_WIDTH)
    for step in text:
        words = step.words
        for name in (joining.node_token_name, joining.view_token_name) if cells(words) > width - 2 else ():
            words = words.replace(named(name), "")
        lines += [[], *([(f" {part}", "")] for part in textwrap.wrap(words, width - 2, break_on_hyphens=False))]
        is_token = step.text.startswith(PREFIX)
        shown = [step.text] if is_token else typed(step.text.replace(joining.node_token or PREFIX, "TOKEN"), width)
        if (widest := max(map(cells, shown), default=0)) <= width:
            lines += [[(part, "bold")] for part in shown]
        else:  # nobody is to paste the half of it
            way = token_command(joining, "list") if joining.is_secure else "make the window wider"
            narrow = f"Too narrow for its {widest} columns: {way}"
            lines += [[(f" {part}", "bold yellow")] for part in textwrap.wrap(narrow, width - 2)]
    return lines[1:] if len(lines) <= room + 1 else [line for line in lines if line]


def typed(command: str, width: int) -> list[str]:
    """A command for a shell, in as many lines as it needs."""
    if cells(command) + 4 <= width:
        return [f"    {command}"] * bool(command)
    *most, last = textwrap.wrap(command, width - 3, break_long_words=False, break_on_hyphens=False)
    return [*(f" {part} \\" for part in most), f" {last}"]


def rule(title: str, width: int) -> Line:
    """A line with a title in it."""
    title = fit(title, min(cells(title), width - 5))
    return [("── ", "dim"), (title, "bold"), (" " + "─" * (width - 4 - cells(title)), "dim")]


# ---- A node's page, the help, the events ----


def page_panels(row: Row, now: float, width: int, room: int, scroll: int, graphs: Graphs | None = None) -> list[Line]:
    """A node's page: its session, and the panels of its own screen, so far scrolled; all grey when it is not online."""
    head = page_head(row, now, width, room)
    panels = node_panels(subject_of(row, graphs), width, room - len(head), scroll)
    if state_of(row, now) is not State.ONLINE or hanging_seconds(row, now) is not None:
        panels = [[(text, "dim") for text, _ in line] for line in panels]
    return [*head, *panels]


def subject_of(row: Row, graphs: Graphs | None) -> Subject:
    """What the panels show. `graphs`: where these are not what the row has."""
    subject = Subject(row.info, row.sample, row.processes, row.history)
    if not graphs:
        return subject
    span, end, (devices, lowest, highest) = graphs
    began, ended = (time.strftime(span.clock, time.localtime(at)) for at in (end - span.seconds, end))
    if devices != len(row.capacities.devices):  # what is kept is of another number of devices, or nothing at all
        lowest = highest = b""
    subject = subject._replace(history=lowest, highest=highest, past=span.name, ends=(began, ended))
    return subject._replace(graphs_first=span is not RANGES[0])


def page_head(row: Row, now: float, width: int, room: int) -> list[Line]:
    """Which node it is, its state, and what there is to know of its session."""
    state = state_of(row, now)
    glyph, style = STATE_STYLES[state]
    reason = reason_of(row, state, now)
    names = [fit_name(name, max(width // 3, 16)) for name in (row.node_id, visible(row.info.hostname))]
    first: Line = [(f" {names[0]}", "bold"), (f"  {names[1]}  ", ""), (f"{glyph} {state.value}", style)]
    if state is State.ONLINE and (hanging := hanging_seconds(row, now)) is not None:
        first.append((f"  its sensors are silent for {show_seconds(hanging)}", "bold yellow"))
    first.append((f"  {reason}" if reason else f"  {visible(row.info.notice)}", "" if reason else "dim"))
    return [first, *page_facts(row, now, width)[: max(room // 6, 1)]]


def page_facts(row: Row, now: float, width: int) -> list[Line]:
    """What there is to know of a session, in as many lines as it needs; a fact is never parted."""
    info = row.info
    trip = "" if row.round_trip_seconds is None else f"round trip {row.round_trip_seconds * 1000:.1f} ms"
    facts = [
        f"from {row.address}" + f" at {row.server}" * bool(row.server),
        f"token {row.token_id}" if row.token_id else "",
        f"agent {visible(info.agent_version)}" if info.agent_version.strip() else "",
        f"heartbeat {show_seconds(now - row.heartbeat_at)} ago",
        "no sample" if row.sample_at is None else f"sample {show_seconds(now - row.sample_at)} ago",
        trip,
        "" if row.vitals.energy_joules is None else f"energy {show_energy(row.vitals.energy_joules)}",
        " ".join(f"{visible(name)}={visible(value)}" for name, value in row.labels),
        f"reconnected {info.session_number - 1}×" if info.session_number > 1 else "",
        f"last error: {visible(info.last_error, MAX_TEXT)}" if info.last_error.strip() else "",
    ]
    lines: list[str] = []
    for fact in filter(None, facts):
        if lines and cells(f" {lines[-1]} · {fact}") <= width:
            lines[-1] += f" · {fact}"
        else:
            lines.append(fact)
    return [[(f" {line}", "dim")] for line in lines]


def help_panel(view: View, width: int, room: int) -> list[Line]:
    """All keys of a place, and all its signs; what does not fit is scrolled to."""
    text = help_text(behind_help(view.ui), width, outdated(view.totals, view.about.joining))
    back = "↑↓ scroll, q goes back" if view.room.reach.most else "any key goes back"
    return box(f"Help · {back}", cut(text, view.ui.scroll, max(room - 2, 1)), width)


def outdated(totals: Totals, joining: Joining) -> str:
    """How many agents are online that want an update, and how to find them; empty: none."""
    if not (count := totals.outdated):
        return ""
    agents = f"{count:,} agents that are online are" if count > 1 else "an agent that is online is"
    return f"{agents} older than this {'server' if joining.is_here else 'screen'} ({VERSION}): / version<{VERSION}"


def help_text(place: Place, width: int, first: str = "") -> list[Line]:
    """Its lines, at this width. `first`: what is to be known before all, in the help of a list."""
    lines: list[Line] = [[(part, "bold yellow")] for part in textwrap.wrap(first, max(width - 4, 10)) if place in LISTS]
    for keys, does in help_lines(place):
        wrapped = textwrap.wrap(does, max(width - 4 - KEYS_CELLS, 10))
        lines += [[(fit(keys if index == 0 else "", KEYS_CELLS), "bold"), (part, "")] for index, part in enumerate(wrapped)]
    for sign, style, means in signs_of(place):
        wrapped = textwrap.wrap(means, max(width - 4 - KEYS_CELLS, 10))
        lines += [[(fit(sign if index == 0 else "", KEYS_CELLS), style), (part, "")] for index, part in enumerate(wrapped)]
    return lines


def signs_of(place: Place) -> list[Sign]:
    """What a place shows beside words."""
    if place not in MORE_SIGNS:
        return []
    states = [(f"{glyph} {state.value}", style, STATE_HELP[state]) for state, (glyph, style) in STATE_STYLES.items()]
    return [*states, *MORE_SIGNS[place]]


def user_view(view: View, width: int) -> list[Line]:
    """All who hold GPUs of what the filter matches; what does not fit is scrolled to."""
    ui, users, room = view.ui, view.users, view.room.reach.page
    shown = users[ui.scroll : ui.scroll + room]
    title = f"Users {ui.scroll + 1:,} to {ui.scroll + len(shown):,} of {len(users):,}" if len(shown) < len(users) else "Users"
    title += f" · by {ui.users_sort}{' ↓' if ui.users_descending else ' ↑'}" + filter_title(ui.filter, view.not_understood)
    longest = max((cells(shown_name(user.name)) for user in users), default=0)
    columns = lay_out_users(longest, width - 4)
    lines = draw_users(shown, columns, ui.users_sort, ui.users_descending, ui.user)
    if not users:
        said = "No process on a GPU is known" + " of what the filter matches: Esc and Esc clear it." * view.is_filtered
        lines += [[], [("The server is asked what runs on its nodes …" if view.is_asking else said, "")]]
    return box(title, lines + [[]] * (room + 1 - len(lines)), width)


def event_panel(events: Sequence[Event], wall: float, width: int, height: int) -> list[Line]:
    """The newest events, the newest last."""
    if not height:
        return []
    newest = list(itertools.islice(newest_lines(events), height - 2))
    lines = draw_events(newest[::-1], width - 4, wall)
    return box("Events", lines + [[]] * (height - 2 - len(lines)), width)


def event_view(view: View, width: int, height: int) -> list[Line]:
    """All events that the filter matches, up to the newest, or to the one that was scrolled to."""
    ui, room = view.ui, height - 2
    lines = event_lines(view.events, ui.event_filter)
    end = min(max(lowest_line(lines, ui.last_event) + 1, room), len(lines))
    start = max(end - room, 0)
    title = f"Events {start + 1:,} to {end:,} of {len(lines):,}" if end - start < len(lines) else "Events"
    title += f" · {len(lines) - end:,} newer below" if end < len(lines) else ""
    drawn = draw_events(lines[start:end], width - 4, view.wall)
    if not lines:
        drawn = NOTHING_MATCHES if ui.event_filter else [[], [("Nothing has happened yet.", "")]]
    title += filter_title(ui.event_filter, parse_event_filter(ui.event_filter)[1])
    return box(title, drawn + [[]] * (room - len(drawn)), width)
