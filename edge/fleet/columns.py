"""The columns of the table: what stands in each, how wide it is, and how the table is sorted by it. Here is where one is added."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import node_pb2 as pb
from edge import history
from edge.drawing import Column, Line, Span, cells, choose_columns, fit, fit_name, meter, sparkline, tail_for
from edge.fleet.entry import Entry
from edge.fleet.metrics import METRICS, Metric
from edge.fleet.row import State
from edge.history import WHOLE_NODE
from edge.text import MISSING, show_seconds, visible

STATE_STYLES = {
    State.ONLINE: ("●", "green"),
    State.LATE: ("◐", "yellow"),
    State.DISCONNECTED: ("○", "yellow"),
    State.UNHEARD: ("?", "bold yellow"),
    State.LOST: ("✗", "bold red"),
    State.LEFT: ("◌", "dim"),
}
METER_CELLS = 8
MAX_SPARKS = 60
SERVER = "SERVER"  # the column that is there where rows are of several servers
LONGER_NAMES = ("HARDWARE", "HOSTNAME", "NODE")  # get what is left over, in this order
MIN_SPARKS = 6  # cells, its space counted, of a sparkline that is worth its room


class TableColumn(NamedTuple):
    """One column: how it is laid out, sorted by and filled."""

    layout: Column
    sort: str  # what the order by it is called
    value: Callable[[Entry], Any]  # what entries are compared by; None sorts last
    spans: Callable[[Entry, int], Line]  # what stands in it for an entry, where it is so many cells wide
    largest_first: bool = False  # at first; `S` turns it round
    has_meter: bool = False  # before its number, and a sparkline before that, where there is room

    def title(self, sort: str, descending: bool) -> str:
        """With an arrow when the table is sorted by it."""
        return f"{self.layout.title}{'↓' if descending else '↑'}" if self.sort == sort else self.layout.title


def natural(text: str) -> str:
    """Sorts Node-9 before Node-10: before each number stands how many digits it has."""
    return re.sub("0*([0-9]+)", lambda number: chr(len(number[1])) + number[1], text)


natural_id = functools.lru_cache(maxsize=100_000)(natural)


def name_spans(entry: Entry, width: int, tail: int = 0) -> Line:
    """The glyph of the node's state, the entry's name, and how many of its devices can't be read."""
    glyph, style = STATE_STYLES[entry.state]
    failed = f" ✗{entry.vitals.errors}" if entry.vitals.errors else ""
    return [(f"{glyph} ", style), (fit_name(entry.name, width - 2 - len(failed), tail), "bold"), (failed, "bold red")]


def hostname_of(entry: Entry) -> str:
    """What the box calls itself."""
    return visible(entry.info.hostname)


def hostname_spans(entry: Entry, width: int, tail: int = 0) -> Line:
    """The same, as far as there is room."""
    return [(fit_name(hostname_of(entry), width, tail) or MISSING, "")]


def hostname_value(entry: Entry) -> Any:
    """None, which sorts last, where there is none."""
    return natural(entry.info.hostname) if entry.info.hostname else None


def server_spans(entry: Entry, width: int) -> Line:
    """The server that the node reports to."""
    return [(fit_name(entry.row.server, width), "")]


def hardware_value(entry: Entry) -> Any:
    """Boxes of one kind stand together, those with fewer devices first."""
    names = re.sub("[0-9]+× ", "", device_names(entry.info.devices, entry.info.host.model))
    return natural(f"{names} {len(entry.info.devices)}")


def hardware_spans(entry: Entry, _width: int) -> Line:
    """What the devices are, and how many of them can't be read."""
    errors = entry.vitals.errors
    if entry.id.device == WHOLE_NODE:
        failed, names = f"{errors} failed ", device_names(entry.devices, entry.info.host.model)
    else:
        failed, names = "failed ", device_names(entry.devices, "")
    return [(failed, "bold red")] * bool(errors) + [(names, "")]


def device_names(devices: Sequence[pb.DeviceInfo], model: str) -> str:
    """ "8× H200", "L4, A2", or the host's model where there is no device."""
    names = collections.Counter(device.name.removeprefix("NVIDIA ") for device in devices)
    shown = ", ".join(f"{count}× {name}" if count > 1 else name for name, count in names.items())
    return visible(shown) or visible(model) or MISSING


def age_span(entry: Entry) -> Span:
    """Age of the heartbeat; of the sample, and yellow, where the sensors hang."""
    hanging = entry.hanging_seconds
    return (show_seconds(entry.heartbeat_age_seconds), "dim") if hanging is None else (f"~{show_seconds(hanging)}", "bold yellow")


def age_value(entry: Entry) -> float:
    """All that are well are of one age: else their order would change with each heartbeat."""
    if (hanging := entry.hanging_seconds) is not None:
        return hanging
    return 0 if entry.state is State.ONLINE else entry.heartbeat_age_seconds


def metric_spans(metric: Metric, entry: Entry, width: int) -> Line:
    """A number; before it a meter, and before that its sparkline, as far as the column is wide enough."""
    digits, vitals = metric.column.width, entry.vitals
    text, style, room = metric.text(vitals), metric.style(vitals), width - digits
    number_style = style if metric.colours_number else ""
    if metric.meter is None:
        return [(text, number_style)]
    line: Line = []
    if room > METER_CELLS + 1:
        values = b""
        if metric.history is not None:
            values = history.series(entry.row.history, len(entry.row.capacities.devices), entry.id.device, metric.history)
        line.append((sparkline(values[-MAX_SPARKS:], room - METER_CELLS - 2) + " ", style))
        room = METER_CELLS + 1
    if room > METER_CELLS:
        line += [*meter(metric.meter(vitals), METER_CELLS, style), (" " * (room - METER_CELLS - 1), "")]
        digits += 1
    return [*line, (fit(text, digits, ">"), number_style)]


def metric_column(metric: Metric) -> TableColumn:
    """The column of a metric."""
    spans = functools.partial(metric_spans, metric)
    return TableColumn(metric.column, metric.name, metric.of, spans, True, metric.meter is not None)


# In this order they stand, and `s` goes through them. Where it is narrow, those with the highest rank are left out.
TABLE = (
    TableColumn(Column("NODE", 16, 0), "name", lambda entry: natural_id(entry.id.node_id), name_spans),
    TableColumn(Column("HOSTNAME", 14, 4), "hostname", hostname_value, hostname_spans),
    TableColumn(Column(SERVER, 14, 3), "server", lambda entry: natural(entry.row.server) or None, server_spans),
    TableColumn(
        Column("STATE", 12, 6), "state",
        lambda entry: -list(State).index(entry.state),
        lambda entry, _: [(entry.state.value, STATE_STYLES[entry.state][1])],
    ),
    TableColumn(Column("HARDWARE", 16, 7), "hardware", hardware_value, hardware_spans),
    *map(metric_column, METRICS),
    TableColumn(Column("AGE", 7, 2, ">"), "age", age_value, lambda entry, _: [age_span(entry)], True),
)  # fmt: skip
SORTED_BY = {column.sort: column for column in TABLE}
SORT_BY_NAME = TABLE[0].sort  # kept while the fleet is the same: the usual order costs nothing


def column_after(sort: str, has_servers: bool = False) -> TableColumn:
    """The next one to sort by, round and round; by the server only where there are several."""
    sorts = [column.sort for column in TABLE if has_servers or column.layout.title != SERVER or column.sort == sort]
    return SORTED_BY[sorts[(sorts.index(sort) + 1) % len(sorts)]]


def lay_out(entries: Sequence[Entry], longest_name: int, width: int) -> list[TableColumn]:
    """The columns that fit, as wide as they get, for these entries. Names come before everything that is not yet there: up to a
    quarter of the width before another column, up to two fifths before meters and graphs."""
    servers = max((cells(entry.row.server) for entry in entries), default=0)
    hostnames = max((cells(hostname_of(entry)) for entry in entries), default=0)
    needs = {
        "NODE": longest_name + 2,
        "HOSTNAME": -(-hostnames // 4) * 4,
        SERVER: servers,
    }  # by fours: it moves less while one scrolls
    table = [widened(TABLE[0], max(TABLE[0].layout.width, min(needs["NODE"], width // 4))), *TABLE[1:]]
    table = [column for column in table if servers or column.layout.title != SERVER]
    chosen = choose_columns([column.layout for column in table], width)
    columns = [column for column in table if column.layout in chosen]
    widths = widths_of(columns, width, needs)
    columns = [widened(column, widths[column.layout.title]) for column in columns]
    return [with_tail(column, entries) for column in columns]


def widened(column: TableColumn, width: int) -> TableColumn:
    """As wide as that."""
    return column._replace(layout=column.layout._replace(width=width))


def with_tail(column: TableColumn, entries: Sequence[Entry]) -> TableColumn:
    """A column of names cuts them where they are alike."""
    width = column.layout.width
    if column.layout.title == "NODE":
        return column._replace(spans=functools.partial(name_spans, tail=tail_for((entry.name for entry in entries), width - 2)))
    if column.layout.title == "HOSTNAME":
        return column._replace(spans=functools.partial(hostname_spans, tail=tail_for(map(hostname_of, entries), width)))
    return column


def widths_of(columns: Sequence[TableColumn], width: int, needs: Mapping[str, int]) -> dict[str, int]:
    """By title, the cells of each column when what is left over is shared out: first names as long as `needs` says, by title, then
    meters, then sparklines, and what still is left to names again."""
    widths = {column.layout.title: column.layout.width for column in columns}
    spare = width - sum(taken + 1 for taken in widths.values()) + 1

    def widen(title: str, most: int) -> None:
        nonlocal spare
        more = max(min(spare, most), 0)
        widths[title] += more
        spare -= more

    for title, cells_now in list(widths.items()):
        widen(title, min(needs.get(title, 0), width * 2 // 5) - cells_now)
    meters = [column.layout.title for column in columns if column.has_meter][: spare // (METER_CELLS + 1)]
    for title in meters:
        widen(title, METER_CELLS + 1)
    if "HARDWARE" in widths:
        widen("HARDWARE", min(spare - MIN_SPARKS * len(meters), 10))
    with_sparks = next((meters[:count] for count in range(len(meters), 0, -1) if spare // count >= MIN_SPARKS), [])
    each = spare // max(len(with_sparks), 1)
    for title in with_sparks:
        widen(title, min(each, MAX_SPARKS + 1))
    for title in LONGER_NAMES:
        if title in widths:
            widen(title, 12)
    return widths
