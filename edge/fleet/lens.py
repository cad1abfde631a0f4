"""The part of the fleet that the user asks for: which entries, in which order, and what the whole fleet adds up to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from edge.drawing import cells
from edge.event_log import Event
from edge.fleet.columns import SORT_BY_NAME, SORTED_BY, natural_id
from edge.fleet.entry import Entry, EntryId, ids_of, make_entries, name_of
from edge.fleet.filters import parse_filter
from edge.fleet.intake import device_vitals
from edge.fleet.metrics import METRICS
from edge.fleet.row import Row, State, hanging_seconds, is_outdated, state_of
from edge.fleet.source import Frozen, Past, Source
from edge.history import WHOLE_NODE

SINCE_SECONDS = 1.0  # from one look at what happens behind a frozen picture to the next


class Question(NamedTuple):
    """What waits for a yes, in the footer."""

    about: str  # "quit" or "forget"
    node_ids: Sequence[str]  # the nodes that it concerns


class Ui(NamedTuple):
    """What the keys have chosen. Never changed in place: each key makes the next one."""

    selected: EntryId | None = None
    first: int = 0  # the first entry on the screen
    sort: str = SORT_BY_NAME
    descending: bool = False
    filter: str = ""
    typing: bool = False  # the filter is being typed
    by_gpu: bool = False
    grid: bool = False
    metric: str = METRICS[0].name  # what colours the grid
    frozen: bool = False
    help: bool = False
    join: bool = False  # how a box joins
    page: str = ""  # the node whose page is open
    scroll: int = 0  # lines of a page, or of the help, above the screen
    events: bool = False  # the event view is open
    event_filter: str = ""
    last_event: Event | None = None  # the event view's lowest line; None: it follows the newest
    question: Question | None = None
    said: str = ""  # what the last key could not do, until the next one
    closed: bool = False  # the user has left


class Totals(NamedTuple):
    """The fleet in numbers."""

    states: Mapping[State, int] = MappingProxyType({})  # of nodes whose server is heard
    unheard: int = 0  # the other nodes
    gpus: int = 0
    utilization: float | None = None
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    milliwatts: int | None = None
    with_memory: int = 0  # GPUs that the sums are of; nodes, where there is no GPU
    with_power: int = 0
    hottest: Row | None = None


def count_totals(rows: Iterable[Row], now: float) -> Totals:
    """What the nodes have and do that are online and read, all together: one pass. Each GPU counts once; the processors and memory
    of boxes without any count only where no box has one."""
    states: dict[State, int] = dict.fromkeys(State, 0)
    gpus = milliwatts = with_power = unheard = 0
    # With GPUs and without: utilization, of how many; memory used and in all, of how many.
    sums = {True: [0.0, 0, 0, 0, 0], False: [0.0, 0, 0, 0, 0]}
    heat, hottest = -math.inf, None
    for row in rows:
        if is_outdated(row, now):
            unheard += 1
            continue
        state = state_of(row, now)
        states[state] += 1
        if state is not State.ONLINE or hanging_seconds(row, now) is not None:
            continue
        vitals = row.vitals
        gpus += len(row.capacities.devices)
        part = sums[vitals.devices > 0]
        part[2] += vitals.memory_used_bytes
        part[3] += vitals.memory_total_bytes
        part[4] += vitals.with_memory
        milliwatts += vitals.milliwatts or 0
        with_power += vitals.with_power
        if vitals.utilization is not None:
            part[0] += vitals.utilization * vitals.with_utilization
            part[1] += vitals.with_utilization
        if vitals.celsius is not None and vitals.celsius > heat:
            heat, hottest = vitals.celsius, row
    utilization, readings, used, total, with_memory = sums[gpus > 0]
    return Totals(
        states, unheard, gpus, utilization / readings if readings else None, int(used), int(total),
        milliwatts if with_power else None, int(with_memory), with_power, hottest,
    )  # fmt: skip


class Lens:
    """The entries that the Ui asks for, in its order, as of the last `refresh`.

    What costs by the whole fleet (order, filter, totals) is done once a second, or less often where it would take more than a
    tenth of the time; a frame costs only the rows that it shows.
    """

    def __init__(self, source: Source, past: Past | None = None, is_here: bool = True) -> None:
        """`past`: what is kept of that fleet, where anything is. `is_here`: its nodes report to this program."""
        self.past = past
        self.has_servers = False  # rows are of several servers
        self._is_here = is_here
        self.order: list[EntryId] = []
        self.totals = Totals()  # of what the filter matches
        self.known_nodes = self.known_entries = 0  # whatever the filter matches
        self.is_filtered = False  # by at least one term that can be read
        self.longest_name = 0  # in cells, whatever the filter matches
        self.since: list[tuple[str, int]] = []  # what has happened behind a frozen picture
        self._live = source
        self._source = source
        self._shape: tuple[object, ...] = ()  # what the order by name depends on
        self._by_name: list[EntryId] = []
        self._places: dict[EntryId, int] = {}
        self._asked: tuple[object, ...] = ()
        self._due = self._since_due = 0.0
        self.now = self.wall = 0.0  # the moment that is shown

    def refresh(self, ui: Ui) -> None:
        """Follow the Ui and the time: called after each key and before each frame, and cheap when nothing is due."""
        if ui.frozen != isinstance(self._source, Frozen):
            self._source, self.since = Frozen(self._live) if ui.frozen else self._live, []
            self._since_due = self._live.clock() + SINCE_SECONDS
        if isinstance(self._source, Frozen) and self._live.clock() >= self._since_due:
            self.since = self._source.since()
            self._since_due = self._live.clock() + SINCE_SECONDS
        self.now, self.wall = self._source.clock(), self._source.wall()
        asked = (ui.sort, ui.descending, ui.filter, ui.by_gpu, ui.frozen)
        if asked != self._asked or self.now >= self._due:
            self._asked = asked
            started = self._live.clock()
            self._sort(ui, self._source.snapshot())
            took_seconds = self._live.clock() - started
            self._due = self.now + took_seconds + max(1.0, 10 * took_seconds)

    def place(self, entry_id: EntryId | None) -> int | None:
        """Where an entry stands in the order."""
        return self._places.get(entry_id) if entry_id else None

    def rows(self, node_ids: Iterable[str]) -> list[Row | None]:
        """These nodes at the moment that is shown. None: forgotten meanwhile."""
        return self._source.rows(node_ids)

    def events(self, count: int) -> Sequence[Event]:
        """The newest of that moment."""
        return self._source.newest_events(count)

    def forget(self, node_id: str) -> bool:
        """Remove a node that is lost or left; tells whether it is gone. The next refresh makes the order anew."""
        self._asked = ()
        return self._source.forget(node_id)

    def notices(self) -> Sequence[str]:
        """What is wrong with where all this comes from."""
        return self._live.notices()

    def reporting(self) -> list[str]:
        """The nodes that are online now and report here, whatever is shown."""
        if not self._is_here:
            return []
        now = self._live.clock()
        return [row.node_id for row in self._live.snapshot() if state_of(row, now) is State.ONLINE]

    def forgettable(self) -> list[str]:
        """The nodes that are lost or left now, of those that the filter matches."""
        now, node_ids = self._live.clock(), list(dict.fromkeys(entry_id.node_id for entry_id in self.order))
        rows = self._live.rows(node_ids)
        return [row.node_id for row in rows if row and state_of(row, now) in (State.LOST, State.LEFT)]

    def _sort(self, ui: Ui, rows: Sequence[Row]) -> None:
        order = self._ordered_by_name(ui, rows)
        tests, _ = parse_filter(ui.filter)
        if tests or ui.sort != SORT_BY_NAME:
            known = {row.node_id: row for row in rows}
            entries = make_entries(((entry_id, known[entry_id.node_id]) for entry_id in order), self.now)
            if tests:
                entries = [entry for entry in entries if all(test(entry) for test in tests)]
            order = [entry.id for entry in entries] if ui.sort == SORT_BY_NAME else sorted_ids(entries, ui)
        self.has_servers = any(row.server for row in rows)
        self.is_filtered, self.known_nodes, self.known_entries = bool(tests), len(rows), len(self._by_name)
        self.totals = count_totals(matched_rows(entries) if tests else rows, self.now)
        if ui.sort == SORT_BY_NAME and ui.descending:
            order = order[::-1]
        if order != self.order:
            self.order = order
            self._places = {entry_id: place for place, entry_id in enumerate(order)}

    def _ordered_by_name(self, ui: Ui, rows: Sequence[Row]) -> list[EntryId]:
        """All entries; kept as long as the fleet is the same."""
        shape = (ui.by_gpu, [row.node_id for row in rows], [row.capacities for row in rows])
        if shape != self._shape:
            self._shape = shape
            ids = [entry_id for row in rows for entry_id in ids_of(row, ui.by_gpu)]
            self._by_name = sorted(ids, key=lambda entry_id: (natural_id(entry_id.node_id), entry_id.device))
            self.longest_name = max((cells(name_of(entry_id)) for entry_id in ids), default=0)
        return self._by_name


def matched_rows(entries: Iterable[Entry]) -> Iterator[Row]:
    """The rows of these entries, those of one node one after the other: of a node of which only some devices are there, the row
    has these alone."""
    for _, group in itertools.groupby(entries, key=lambda entry: entry.id.node_id):
        some = list(group)
        row, devices = some[0].row, some[0].row.capacities.devices
        if len(some) < len(devices) and some[0].id.device != WHOLE_NODE:
            capacities = [devices[entry.id.device] for entry in some]
            samples = [sample for entry in some for sample in entry.sample.devices[entry.id.device : entry.id.device + 1]]
            row = row._replace(
                capacities=row.capacities._replace(devices=tuple(capacities)), vitals=device_vitals(capacities, samples)
            )
        yield row


def sorted_ids(entries: Iterable[Entry], ui: Ui) -> list[EntryId]:
    """In the order that the Ui asks for; what has no value comes last, whichever way it is turned."""
    value_of = SORTED_BY[ui.sort].value
    valued: list[tuple[EntryId, Any]] = [(entry.id, value_of(entry)) for entry in entries]
    present = [pair for pair in valued if pair[1] is not None]
    present.sort(key=lambda pair: pair[1], reverse=ui.descending)
    return [entry_id for entry_id, _ in present] + [entry_id for entry_id, value in valued if value is None]
