"""The part of the fleet that the user asks for: which entries, in which order, and what the whole fleet adds up to."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from edge.drawing import cells
from edge.event_log import Event
from edge.fleet.columns import SORT_BY_NAME, SORTED_BY, natural_id
from edge.fleet.entry import Entry, EntryId, ids_of, make_entries, name_of
from edge.fleet.filters import asks_for_processes, parse_filter
from edge.fleet.groups import grouped, is_head
from edge.fleet.intake import device_vitals
from edge.fleet.lookup import PATIENCE_SECONDS, Answered, Lookup
from edge.fleet.metrics import METRICS
from edge.fleet.row import Row, State, hanging_seconds, state_of
from edge.fleet.source import EVENTS_KEPT, NOT_IN_THE_PAST, Frozen, Moment, NoPast, Past, Readings, Source, Wants, wrong_in
from edge.fleet.times import is_time, show_time
from edge.fleet.users import SORT_BY_GPUS, User, Users, sorted_users
from edge.history import WHOLE_NODE
from edge.program import VERSION, version_numbers
from edge.protocol import MAX_OPEN_NODES

SINCE_SECONDS = 1.0  # from one look at what happens behind a picture that stands still to the next
ASKING_SECONDS = 3.0  # that a server elsewhere has for its first answer of what runs on its nodes
LOOKS_PER_SECOND = 2.0  # into a past that is played
HOLE_SECONDS = 100.0  # without a moment: nothing was kept there
OWN_VERSION = version_numbers(VERSION)
NO_JOURNAL = "nothing is kept of this fleet: it has no journal"


class Range(NamedTuple):
    """A time that the graphs of a page show."""

    name: str
    seconds: int
    steps: int
    refresh_seconds: int  # from one look to the next, while it goes on
    clock: str  # how the times at its ends are said, as strftime has it


RANGES = (
    Range("2m", 120, 120, 10, "%H:%M:%S"), Range("1h", 3600, 360, 10, "%H:%M"),
    Range("24h", 86400, 288, 60, "%a %H:%M"), Range("7d", 604800, 336, 60, "%m-%d %H:%M"),
)  # fmt: skip


class Graphs(NamedTuple):
    """What the graphs of a page show."""

    range: Range
    end: float  # by the wall clock
    readings: Readings


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
    at: float | None = None  # the moment of the past that is looked at, by the wall clock; None: now
    beyond: float | None = None  # a moment that a step forth has left, by the wall clock: it leads to a later one
    nearest: bool = False  # a moment that is nearer to `at` is as good where it is a later one
    playing_since: float | None = None  # by the lens' own clock: it goes on from there; None: it stands still
    speed: float = 1.0  # of that
    time: str | None = None  # the time to go to, while it is typed
    graph: int = 0  # which of RANGES the graphs of a page show
    help: bool = False
    join: bool = False  # how a box joins
    page: str = ""  # the node whose page is open
    scroll: int = 0  # lines of a page, or of the help, above the screen
    group: str = ""  # the label that the table is in groups by
    users: bool = False  # the table of users is open
    user: str | None = None  # who is selected in it
    users_sort: str = SORT_BY_GPUS
    users_descending: bool = True
    events: bool = False  # the event view is open
    event_filter: str = ""
    last_event: Event | None = None  # the event view's lowest line; None: it follows the newest
    question: Question | None = None
    said: str = ""  # what the last key could not do, until the next one
    closed: bool = False  # the user has left


class Goal(NamedTuple):
    """Where a visit goes to."""

    at: float  # by the wall clock
    beyond: float | None = None  # it is to be later than this moment
    nearest: bool = False  # the nearest moment; else the last one up to it


class Visit(NamedTuple):
    """A moment of the past, and what is kept before and after it."""

    goal: Goal
    moment: Source
    first: float  # moment that is kept, by the wall clock
    last: float


class Totals(NamedTuple):
    """The fleet in numbers."""

    states: Mapping[State, int] = MappingProxyType({})
    gpus: int = 0
    utilization: float | None = None
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    milliwatts: int | None = None
    with_memory: int = 0  # GPUs that the sums are of; nodes, where there is no GPU
    with_power: int = 0
    hottest: Row | None = None
    energy_joules: int | None = None  # since each node's agent started; of all nodes, silent ones as they were heard last
    with_energy: int = 0  # nodes that report it, of those with GPUs
    with_gpus: int = 0
    outdated: int = 0  # agents that are online and older than this program
    failed: int = 0  # GPUs that are not read


def count_totals(rows: Iterable[Row], now: float) -> Totals:
    """What the nodes have and do that are online and read, all together: one pass. Each GPU counts once; the processors and memory
    of boxes without any count only where no box has one. What has been used stays so, whatever has become of a node."""
    (totals,) = (totals for totals in counting(rows, now) if totals)
    return totals


def counting(rows: Iterable[Row], now: float) -> Iterator[Totals | None]:
    """The same a row at a time: nothing for each, and the totals at the end."""
    states: dict[State, int] = dict.fromkeys(State, 0)
    gpus = milliwatts = with_power = joules = with_energy = with_gpus = outdated = failed = 0
    # With GPUs and without: utilization, of how many; memory used and in all, of how many.
    sums = {True: [0.0, 0, 0, 0, 0], False: [0.0, 0, 0, 0, 0]}
    heat, hottest = -math.inf, None
    for row in rows:
        yield None
        state = state_of(row, now)
        states[state] += 1
        vitals = row.vitals
        with_gpus += vitals.devices > 0
        if vitals.energy_joules is not None:
            joules += vitals.energy_joules
            with_energy += 1
        if state is not State.ONLINE:
            continue
        outdated += () < row.version < OWN_VERSION
        if hanging_seconds(row, now) is not None:
            continue
        gpus += len(row.capacities.devices)
        failed += vitals.errors
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
    yield Totals(
        states, gpus, utilization / readings if readings else None, int(used), int(total),
        milliwatts if with_power else None, int(with_memory), with_power, hottest,
        joules if with_energy else None, with_energy, with_gpus, outdated, failed,
    )  # fmt: skip


class Lens:
    """The entries that the Ui asks for, in its order, as of the last `refresh`.

    What costs by the whole fleet (order, filter, totals) is done once a second, or less often where it would take more than a
    tenth of the time; a frame costs only the rows that it shows.
    """

    def __init__(
        self, source: Source | None, past: Past | None = None, is_here: bool = True, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """`source`: the fleet now; None where there is no now, in a recording. `past`: what is kept of that fleet, where anything
        is; a key waits so long for it at most. `is_here`: its nodes report to this program."""
        self.past = past
        self.has_now = source is not None
        self.has_servers = False  # rows are of several servers
        self._is_here = is_here
        self.order: list[EntryId] = []  # where there are groups, with the line of each
        self.groups: list[tuple[str, Totals]] = []  # the label's value, and what has it
        self.totals = Totals()  # of what the filter matches
        self.known_nodes = self.known_entries = 0  # whatever the filter matches
        self.is_filtered = False  # by at least one term that can be read
        self.not_understood: list[str] = []  # terms of the filter
        self.labels: list[str] = []  # names of those that there are
        self.shown: Sequence[str] = ()  # the nodes that the last frame shows
        self.longest_name = 0  # in cells, whatever the filter matches
        self.users: list[User] = []  # of what the filter matches, in their order, while they are looked at
        self.since: list[tuple[str, int]] = []  # what has happened behind a picture that is frozen; in the past, what is wrong now
        self._live = source or Nothing()
        self._source = self._live
        self._left: Frozen | None = None  # now, as it was when it was frozen
        self._visits = Lookup(self._visit, patience_seconds)
        self._graphs = Lookup(self._read_graph, patience_seconds)
        self.visit: Visit | None = None  # the moment of the past that is shown
        self.going_to: float | None = None  # the one that is fetched, where it is another one
        self._news = ""  # what the last visit could not do, until it is told
        self._told: Answered[Goal, Visit] | None = None
        self.graphs: Graphs | None = None  # of the page; None: those that the row has
        self.refusal = ""  # why there are none
        self._graph_of: tuple[str, int] | None = None  # page and range
        self._shape: tuple[object, ...] = ()  # what the order by name depends on
        self._by_name: list[EntryId] = []
        self._places: dict[EntryId, int] = {}
        self._asked: tuple[object, ...] = ()
        self._wants: Wants | None = None
        self._asked_at = -math.inf  # what runs on the nodes
        self._users = Users()
        self._due, self._since_due = 0.0, -math.inf
        self.now = self.wall = 0.0  # the moment that is shown

    def refresh(self, ui: Ui) -> None:
        """Follow the Ui and the time: called after each key and before each frame, and cheap when nothing is due."""
        self._look_at(ui)
        if (wants := self._wanted_for(ui)) != self._wants:
            if wants.processes and not (self._wants and self._wants.processes):
                self._asked_at = self._live.clock()
            self._wants = wants
            self._live.want(wants)
        self.now, self.wall = self._source.clock(), self._source.wall()
        self._look_up_graph(ui)
        asked = (ui.sort, ui.descending, ui.filter, ui.by_gpu, self._source)
        asked_more = (ui.group, ui.grid, ui.users, ui.users_sort, ui.users_descending)
        if (asked, asked_more) != self._asked or self.now >= self._due:
            self._asked = asked, asked_more
            started = self._live.clock()
            self._sort(ui, self._source.snapshot())
            took_seconds = self._live.clock() - started
            self._due = self.now + took_seconds + max(1.0, 10 * took_seconds)

    def _wanted_for(self, ui: Ui) -> Wants:
        """What must be at hand of the nodes themselves, beside their sums."""
        shown = [ui.page] * bool(ui.page) + list(self.shown) * ui.by_gpu
        processes = ui.users or asks_for_processes(ui.filter)
        return Wants(frozenset(shown[:MAX_OPEN_NODES]), details=ui.by_gpu or ui.users, processes=processes)

    # ---- Now, a picture that is frozen, or the past ----

    def _look_at(self, ui: Ui) -> None:
        """Choose what is shown. What happens now is counted behind all that stands still."""
        is_frozen, clock = ui.at is None and ui.frozen, self._live.clock()
        if is_frozen != bool(self._left) or (ui.at is None and not is_frozen):
            self._left, self.since, self._since_due = Frozen(self._live) if is_frozen else None, [], -math.inf
        if self.has_now and (is_frozen or ui.at is not None) and clock >= self._since_due:
            self.since, self._since_due = self._left.since() if self._left else wrong_in(self._live), clock + SINCE_SECONDS
        if ui.at is None and not is_frozen:
            self._source = self._live
        if ui.at is not None:
            self._travel(ui, ui.at)
        elif self._told or self.going_to is not None:
            self._visits.drop()
            self.visit = self.going_to = self._told = None
        if self._left:
            self._source = self._left

    def _travel(self, ui: Ui, at: float) -> None:
        """To the moment of the past, as soon as it is there."""
        if ui.playing_since is not None:  # in steps: looking at each costs something
            step_seconds = max(1.0, ui.speed / LOOKS_PER_SECOND)
            at += (self.position(ui) - at) // step_seconds * step_seconds
        goal = Goal(at, ui.beyond, ui.nearest) if ui.playing_since is None else Goal(at)
        told = self._visits.ask(goal, is_patient=ui.playing_since is None)
        self.going_to = None if told and told.question == goal else at
        if told and told is not self._told:
            self._news = self._news_of(told)
            self._told = told
            if told.answer:
                self.visit = told.answer
                self._source = told.answer.moment

    def _news_of(self, told: Answered[Goal, Visit]) -> str:
        """What a visit could not do: it is at the last moment before the one that was asked for, if any is kept."""
        before, visit, goal = self._told, told.answer, told.question
        if not visit:
            return told.refusal
        wall = visit.moment.wall()
        if goal.at < wall <= visit.first:
            return f"nothing is kept before {show_time(wall)}"
        if goal.nearest and wall > goal.at + HOLE_SECONDS:
            return f"nothing is kept of {show_time(goal.at)}: this is the nearest"
        is_forth = before and before.answer and before.question.at < goal.at
        has_moved = goal.beyond is not None and wall > goal.beyond
        if is_forth and goal.at > visit.last and not has_moved:
            return f"nothing is kept after {show_time(visit.last)}" + " yet: Esc is now" * self.has_now
        return ""

    def news(self) -> str:
        """What the last visit could not do, told once."""
        news, self._news = self._news, ""
        return news

    @property
    def is_refused(self) -> bool:
        """Whether the moment that is asked for can't be had."""
        return self._told is not None and self._told.answer is None and self.going_to is None

    def _visit(self, goal: Goal) -> Visit:
        """In the lookup's thread. Raises NoPast."""
        assert self.past
        moment = self.past.moment(goal.at)
        if goal.beyond is not None and moment.wall() <= goal.beyond:
            moment = self.past.moment(goal.beyond, after=True)
        elif goal.nearest and moment.wall() < goal.at:
            moment = min(moment, self.past.moment(goal.at, after=True), key=lambda one: abs(one.wall() - goal.at))
        first, last = self.past.span()  # after it: a moment that is kept meanwhile is the last one
        if not all(map(is_time, (first, last, moment.wall(), *(event.time for event in moment.newest_events(EVENTS_KEPT))))):
            raise NoPast("what is kept there has times that there never were")
        return Visit(goal, moment, first, last)

    def position(self, ui: Ui) -> float:
        """The moment that is asked for, by the wall clock, within what is kept: while the past is played, it goes on."""
        if ui.at is None:
            return self.wall
        if ui.playing_since is not None:
            return ui.at + (self.clock() - ui.playing_since) * ui.speed
        if not self.visit or self.going_to is not None:
            return ui.at
        shown = self.visit.moment.wall()
        return min(max(ui.at, shown), max(self.visit.last, shown))

    def clock(self) -> float:
        """That the past is played by, in seconds: it goes on, whatever is shown."""
        return self._live.clock()

    def today(self) -> float:
        """What "ago" counts from, in seconds by the wall clock: now; in a recording its end, as far as it is known."""
        return self._live.wall() if self.has_now or not self.visit else self.visit.last

    # ---- The graphs of a page ----

    def _look_up_graph(self, ui: Ui) -> None:
        """Of the range that is asked for. A row has its last two minutes itself, as long as it is now."""
        wanted = RANGES[ui.graph]
        if not ui.page or not self.past or (ui.at is None and not ui.graph):
            self.graphs, self.refusal, self._graph_of = None, "", None
            return
        end = self.wall if ui.at is not None else self.wall // wanted.refresh_seconds * wanted.refresh_seconds
        is_new = self._graph_of != (ui.page, ui.graph)
        self._graph_of = ui.page, ui.graph
        told = self._graphs.ask((ui.page, end, ui.graph), is_patient=is_new and ui.playing_since is None)
        if told and (told.question[0], told.question[2]) == (ui.page, ui.graph):
            self.graphs, self.refusal = Graphs(wanted, told.question[1], told.answer) if told.answer else None, told.refusal
        else:
            self.graphs, self.refusal = None, ""

    def _read_graph(self, question: tuple[str, float, int]) -> Readings:
        """In the lookup's thread. Raises NoPast."""
        assert self.past
        node_id, end, number = question
        return self.past.graph(node_id, end, RANGES[number].seconds, RANGES[number].steps)

    # ---- What is shown of it ----

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

    def why_not_forget(self, ui: Ui) -> str:
        """Why nothing that is shown can be forgotten; empty where something can."""
        return self._live.why_not_forget() if ui.at is None else NOT_IN_THE_PAST

    def notices(self) -> Sequence[str]:
        """What is wrong with where all this comes from."""
        return self._live.notices()

    @property
    def is_asking(self) -> bool:
        """Whether what runs on the nodes of a server elsewhere may only be on its way."""
        is_elsewhere = not self._is_here and self._source is self._live
        return is_elsewhere and self._live.clock() - self._asked_at < ASKING_SECONDS

    def reporting(self) -> list[str]:
        """The nodes that are online now and report here, whatever is shown."""
        if not self._is_here:
            return []
        now = self._live.clock()
        return [row.node_id for row in self._live.snapshot() if state_of(row, now) is State.ONLINE]

    def forgettable(self) -> list[str]:
        """The nodes that are lost or left now, of those that the filter matches."""
        now, node_ids = self._live.clock(), list(dict.fromkeys(one.node_id for one in self.order if not is_head(one)))
        rows = self._live.rows(node_ids)
        return [row.node_id for row in rows if row and state_of(row, now) in (State.LOST, State.LEFT)]

    def _sort(self, ui: Ui, rows: Sequence[Row]) -> None:
        order = self._ordered_by_name(ui, rows)
        self.labels = sorted({name for labels in {row.labels for row in rows} for name, _ in labels})
        tests, self.not_understood = parse_filter(ui.filter, {name.lower() for name in self.labels})
        in_groups = ui.group and not ui.grid
        if tests or ui.users or in_groups or ui.sort != SORT_BY_NAME:
            known = {row.node_id: row for row in rows}
            entries = make_entries(((entry_id, known[entry_id.node_id]) for entry_id in order), self.now)
            if tests:
                entries = [entry for entry in entries if all(test(entry) for test in tests)]
            order = [entry.id for entry in entries] if ui.sort == SORT_BY_NAME else sorted_ids(entries, ui)
        self.has_servers = any(row.server for row in rows)
        self.is_filtered, self.known_nodes, self.known_entries = bool(tests), len(rows), len(self._by_name)
        self.totals = count_totals(matched_rows(entries) if tests else rows, self.now)
        self.users = sorted_users(self._users.of(entries if ui.users else ()), ui.users_sort, ui.users_descending)
        if ui.sort == SORT_BY_NAME and ui.descending:
            order = order[::-1]
        groups: dict[str, list[Entry]] = {}
        if in_groups:
            order, groups = grouped(order, entries, ui.group)
        self.groups = [(value, count_totals(matched_rows(some), self.now)) for value, some in groups.items()]
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


class Nothing(Moment):
    """Where there is no now: a fleet without a node, whose clock goes on."""

    def __init__(self) -> None:
        super().__init__(0.0, 0.0, (), ())

    def clock(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
