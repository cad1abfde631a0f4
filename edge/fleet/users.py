"""The users of a fleet: who holds how many GPUs, how much of their memory, how busy these are, and on which boxes."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import node_pb2 as pb
from edge import history
from edge.drawing import Column, Line, align, cells, choose_columns, fit, fit_name, meter
from edge.fleet.columns import METER_CELLS, natural_id
from edge.fleet.entry import Entry
from edge.history import WHOLE_NODE
from edge.text import MISSING, show_bytes, show_percent, visible

IDLE_PERCENT = 5  # a GPU that is held and below it does nothing


class User(NamedTuple):
    """What one of them holds on the nodes that are online. A GPU that several hold counts for each."""

    name: str  # empty: whose these are, the boxes do not tell
    gpus: int
    memory_bytes: int | None  # of the processes that report it
    utilization: float | None  # mean of these GPUs, 0 to 1
    idle: int  # GPUs, of these, below IDLE_PERCENT
    nodes: tuple[tuple[str, int | None], ...]  # by name, with how many GPUs there; None: some when it was read last


class Tally:
    """Adds up one user's."""

    def __init__(self) -> None:
        self.percents: dict[tuple[str, int], int | None] = {}  # by node and device
        self.memory: list[int] = []
        self.silent: set[str] = set()  # nodes that are not read any more

    def user(self, name: str) -> User:
        """What it comes to."""
        percents = [percent for percent in self.percents.values() if percent is not None]
        nodes = dict.fromkeys(self.silent) | collections.Counter(node_id for node_id, _ in self.percents)
        return User(
            name=name,
            gpus=len(self.percents),
            memory_bytes=sum(self.memory) if self.memory else None,
            utilization=sum(percents) / len(percents) / 100 if percents else None,
            idle=sum(percent < IDLE_PERCENT for percent in percents),
            nodes=tuple(sorted(nodes.items(), key=lambda pair: natural_id(pair[0]))),
        )


class Users:
    """Counts them, again and again: what runs on a node is read once for as long as it stays the same."""

    def __init__(self) -> None:
        self._read: dict[bytes, list[pb.Process]] = {}

    def of(self, entries: Iterable[Entry]) -> list[User]:
        """All who hold a device of these entries; what is not online or not read is not known to be held, and only named."""
        read: dict[bytes, list[pb.Process]] = {}
        tallies: dict[str, Tally] = collections.defaultdict(Tally)
        for entry in entries:
            row, device = entry.row, entry.id.device
            packed = row.packed_processes
            if not packed:
                continue
            read[packed] = processes = self._read.get(packed) or read.get(packed) or list(row.processes)
            for one in processes:
                index = one.device_index
                if index < len(row.capacities.devices) and device in (WHOLE_NODE, index):
                    tally = tallies[one.user]
                    if entry.is_stale:
                        tally.silent.add(row.node_id)
                        continue
                    tally.percents[row.node_id, index] = history.newest(row.vitals.frame, index, history.UTILIZATION)
                    if one.HasField("memory_used_bytes"):
                        tally.memory.append(one.memory_used_bytes)
        self._read = read
        return [tally.user(name) for name, tally in tallies.items() if tally.percents]


# ---- The table of users ----


class UserColumn(NamedTuple):
    """One column: how it is laid out, sorted by and filled."""

    layout: Column
    sort: str  # what the order by it is called
    value: Callable[[User], Any]
    spans: Callable[[User, int], Line]  # what stands in it, where it is so many cells wide


def shown_name(name: str) -> str:
    """A dash where the boxes do not tell."""
    return visible(name) or MISSING


def utilization_spans(user: User, width: int) -> Line:
    """With a meter before it, where there is room."""
    bar = [*meter(user.utilization, METER_CELLS, "green"), (" ", "")] if width > METER_CELLS else []
    return [*bar, (fit(show_percent(user.utilization), width - (METER_CELLS + 1) * bool(bar), ">"), "")]


def boxes(user: User, room: int) -> str:
    """As many of the nodes as there is room for, each with its number of GPUs (a dash where it is not read any more), and how many
    more there are."""
    text, left = "", len(user.nodes)
    for node_id, gpus in user.nodes:
        more = f"{', ' if text else ''}{fit_name(node_id, 24)} ({MISSING if gpus is None else gpus})"
        if cells(text + more) + (len(f", +{left - 1:,}") if left > 1 else 0) > room:
            break
        text, left = text + more, left - 1
    return text + (f"{', ' if text else ''}+{left:,}" if left else "")


def count_column(title: str, rank: int, sort: str, count: Callable[[User], int], style: str = "") -> UserColumn:
    """A number, in this style where it is not 0."""
    return UserColumn(
        Column(title, 6, rank, ">"), sort, count, lambda user, _: [(f"{count(user):,}", style if count(user) else "")]
    )


# In this order they stand, and `s` goes through them. Where it is narrow, those with the highest rank are left out.
COLUMNS = (
    UserColumn(
        Column("USER", 16, 0), "user", lambda user: natural_id(user.name),
        lambda user, width: [(fit_name(shown_name(user.name), width), "bold")],
    ),
    count_column("GPUS", 1, "GPUs", lambda user: user.gpus),
    count_column("IDLE", 4, "idle GPUs", lambda user: user.idle, "yellow"),
    UserColumn(Column("UTIL", 6, 2, ">"), "utilization", lambda user: user.utilization, utilization_spans),
    UserColumn(
        Column("MEMORY", 9, 3, ">"), "memory", lambda user: user.memory_bytes,
        lambda user, _: [(show_bytes(user.memory_bytes), "")],
    ),
    count_column("NODES", 5, "nodes", lambda user: len(user.nodes)),
    UserColumn(Column("ON", 18, 6), "", lambda _: None, lambda user, width: [(boxes(user, width), "dim")]),
)  # fmt: skip
SORTED_BY: Mapping[str, UserColumn] = {column.sort: column for column in COLUMNS if column.sort}
SORT_BY_GPUS = COLUMNS[1].sort


def sorted_users(users: Sequence[User], sort: str, descending: bool) -> list[User]:
    """In this order, those that are equal by name; what has no value comes last, whichever way it is turned."""
    value_of = SORTED_BY[sort].value
    by_name = sorted(users, key=lambda user: natural_id(user.name))
    valued = [user for user in by_name if value_of(user) is not None]
    return [
        *sorted(valued, key=value_of, reverse=descending), *(user for user in by_name if value_of(user) is None),
    ]  # fmt: skip


def sort_after(sort: str) -> str:
    """The next one, round and round."""
    sorts = list(SORTED_BY)
    return sorts[(sorts.index(sort) + 1) % len(sorts)]


def lay_out(longest_name: int, width: int) -> list[UserColumn]:
    """The columns that fit: names up to a quarter of the width, then a meter, and what is left over is for the boxes."""
    columns = [widened(COLUMNS[0], max(min(longest_name, width // 4) - COLUMNS[0].layout.width, 0)), *COLUMNS[1:]]
    chosen = choose_columns([column.layout for column in columns], width)
    columns = [column for column in columns if column.layout in chosen]
    for title, least, most in (("UTIL", METER_CELLS + 1, METER_CELLS + 1), ("ON", 0, width)):
        spare = width - sum(column.layout.width + 1 for column in columns) + 1
        if spare >= least:
            columns = [widened(column, min(spare, most)) if column.layout.title == title else column for column in columns]
    return columns


def widened(column: UserColumn, more: int) -> UserColumn:
    """By so many cells."""
    return column._replace(layout=column.layout._replace(width=column.layout.width + more))


def draw_users(
    users: Sequence[User], columns: Sequence[UserColumn], sort: str, descending: bool, selected: str | None
) -> list[Line]:
    """Titles, and a line a user."""
    arrow = "↓" if descending else "↑"
    titles = [fit(layout.title + arrow * (by == sort), layout.width, layout.align) for layout, by, *_ in columns]
    lines: list[Line] = [[(" ".join(titles), "bold dim")]]
    for user in users:
        line: Line = []
        for column in columns:
            line += [*align(column.spans(user, column.layout.width), column.layout), (" ", "")]
        lines.append([(text, f"{style} reverse".strip()) for text, style in line] if user.name == selected else line)
    return lines
