"""The keys of the server's screen, as a table: what each does, where it holds, and what help and footer say of it.

Here is where a key is added: a line of BINDINGS. Help and footer are drawn from it, and a key that is not in it does nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from edge.fleet.columns import column_after
from edge.fleet.entry import EntryId
from edge.fleet.events import event_lines, lowest_line
from edge.fleet.filters import TERM
from edge.fleet.groups import is_head
from edge.fleet.lens import NO_JOURNAL, RANGES, Lens, Question, Ui
from edge.fleet.metrics import METRICS, metric_after
from edge.fleet.source import EVENTS_KEPT, MayNot
from edge.fleet.times import EXAMPLES as TIME_EXAMPLES
from edge.fleet.times import Unreadable, parse_time
from edge.fleet.users import SORTED_BY as USERS_SORTED_BY
from edge.fleet.users import sort_after
from edge.keyboard import PASTE
from edge.panels import WHEEL_LINES, Reach, scrolled
from edge.text import visible

MAX_FILTER = 120  # characters
STEP_SECONDS = {"[": -10, "]": 10, "{": -600, "}": 600}
SPEEDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 3600)


class Place(enum.Enum):
    """Where a key is pressed."""

    TABLE = "table"
    GRID = "grid"
    PAGE = "page"
    EVENTS = "events"
    USERS = "users"
    FILTER = "filter"  # it is being typed
    TIME = "time"  # the same, of the time to go to
    HELP = "help"
    JOIN = "join"  # how a box joins
    QUIT = "quit"  # the question is asked
    FORGET = "forget"  # the same


class Room(NamedTuple):
    """How many entries fit on the screen."""

    lines: int  # of the table or grid
    per_line: int  # entries beside each other: one in the table
    reach: Reach = Reach(0, 0)  # of a page, the event view, the help or how a box joins, which stand before them

    @property
    def entries(self) -> int:
        """In all."""
        return self.lines * self.per_line


class Turn(NamedTuple):
    """One key, and all that it may look at. The lens is as of the key before."""

    ui: Ui
    key: str
    lens: Lens
    room: Room


class Footer(NamedTuple):
    """What the footer says of a key."""

    rank: int  # the smaller the further to the left; what does not fit is left out at the right
    does: Callable[[Ui, bool], str]  # nothing where it need not be said; whether there is a now: a recording has none
    short_label: str = ""  # where the binding's own is too long
    is_of_past: bool = False  # there it comes first


class Binding(NamedTuple):
    """What some keys do in some places."""

    keys: tuple[str, ...]  # by their names in keyboard.py
    places: tuple[Place, ...]
    action: Callable[[Turn], Ui]
    label: str  # what help and footer call the keys
    help: str = ""  # what they do there, in the help; "" where the footer alone names them
    footer: Footer | None = None


ANY = "any key"  # that has no binding of its own there


# ---- What keys do ----


def say(text: str) -> Callable[[Ui, bool], str]:
    """Words that do not depend on what is chosen."""
    return lambda *_: text


def say_of_now(text: str) -> Callable[[Ui, bool], str]:
    """Words of what the past has not."""
    return lambda ui, _: text if ui.at is None else ""


def change(**changes: Any) -> Callable[[Turn], Ui]:
    """An action that only sets fields of the Ui."""
    Ui()._replace(**changes)  # one that it has not fails here, and not when the key is pressed
    return lambda turn: turn.ui._replace(**changes)


def by_gpu(turn: Turn) -> Ui:
    """The selection stays on its node, or on its first device."""
    ui = turn.ui._replace(by_gpu=not turn.ui.by_gpu)
    if not ui.selected:
        return ui
    turn.lens.refresh(ui)
    forms = (EntryId(ui.selected.node_id), EntryId(ui.selected.node_id, 0))
    return ui._replace(selected=next((form for form in forms if turn.lens.place(form) is not None), None))


def open_page(turn: Turn) -> Ui:
    """Of the selected entry; of the first on the screen, where none is."""
    ui, lens = turn.ui, turn.lens
    shown = next((entry_id for entry_id in lens.order[ui.first : ui.first + 2] if not is_head(entry_id)), None)
    selected = shown if lens.place(ui.selected) is None else ui.selected
    return ui._replace(selected=selected, page=selected.node_id) if selected else ui


def sort_by_next(turn: Turn) -> Ui:
    """By the next column, its largest first where that is what one looks for."""
    column = column_after(turn.ui.sort, turn.lens.has_servers)
    return turn.ui._replace(sort=column.sort, descending=column.largest_first)


def group_by_next(turn: Turn) -> Ui:
    """By the next label, and by none."""
    names = ["", *turn.lens.labels]
    if len(names) == 1 and not turn.ui.group:
        return turn.ui._replace(said="no node has a label: node.pyz --label NAME=VALUE gives it one")
    place = names.index(turn.ui.group) if turn.ui.group in names else -1
    return turn.ui._replace(group=names[(place + 1) % len(names)])


def turn_round(turn: Turn) -> Ui:
    """The other way round."""
    return turn.ui._replace(descending=not turn.ui.descending)


def next_metric(turn: Turn) -> Ui:
    """What colours the grid."""
    return turn.ui._replace(metric=metric_after(turn.ui.metric))


def freeze(turn: Turn) -> Ui:
    """The picture stands still, or goes on: the past, too, which is played then."""
    ui, lens = turn.ui, turn.lens
    if ui.at is None:
        return ui._replace(frozen=not ui.frozen)
    playing_since = lens.clock() if ui.playing_since is None else None
    return ui._replace(at=lens.position(ui), beyond=None, nearest=False, playing_since=playing_since)


def play_at(turn: Turn) -> Ui:
    """The past, faster or slower."""
    ui, lens = turn.ui, turn.lens
    if ui.at is None:
        return ui._replace(said="only the past is played faster or slower: [ steps back, Space plays it from there")
    others = [speed for speed in SPEEDS if (speed > ui.speed if turn.key == "+" else speed < ui.speed)]
    return go(turn, lens.position(ui))._replace(speed=(others or [ui.speed])[0 if turn.key == "+" else -1])


def go(turn: Turn, at: float) -> Ui:
    """To a moment of the past; what is played goes on from there, and what was frozen is left."""
    ui, lens = turn.ui, turn.lens
    playing_since = None if ui.playing_since is None else lens.clock()
    at = min(at, lens.today()) if lens.has_now else at
    return ui._replace(at=at, beyond=None, nearest=False, playing_since=playing_since, frozen=False, last_event=None)


def step(turn: Turn) -> Ui:
    """Back or forth in time, to another moment: where they are far apart, to the next one; beyond the last one is now."""
    ui, lens, seconds = turn.ui, turn.lens, STEP_SECONDS[turn.key]
    if not lens.past:
        return ui._replace(said=NO_JOURNAL)
    if seconds > 0 and ui.at is None and not ui.frozen:
        return ui._replace(said="this is now: [ steps back")
    at = lens.position(ui) + seconds
    if ui.at is not None and ui.playing_since is None:  # beyond an end each step asks anew, and so is answered
        at = min(at, ui.at + seconds) if seconds < 0 else max(at, ui.at + seconds)
    if at >= lens.today() and lens.has_now:
        return to_now(ui)
    if ui.at is None or not lens.visit or lens.going_to is not None:
        return go(turn, at)
    shown = lens.visit.moment.wall()
    return go(turn, min(at, shown - 0.001)) if seconds < 0 else go(turn, at)._replace(beyond=shown)


def ask_for_time(turn: Turn) -> Ui:
    """To go to."""
    return turn.ui._replace(time="") if turn.lens.past else turn.ui._replace(said=NO_JOURNAL)


def go_to_time(turn: Turn) -> Ui:
    """That was typed; one that can't be read stays, with what is wrong with it."""
    ui, now = turn.ui, turn.lens.today()
    try:
        at = parse_time(ui.time or "", now)
    except Unreadable as error:
        return ui._replace(said=str(error))
    ui = ui._replace(time=None)
    return to_now(ui) if at >= now and turn.lens.has_now else go(turn._replace(ui=ui), at)._replace(nearest=True)


def to_now(ui: Ui) -> Ui:
    """From the past, or from a picture that is frozen."""
    return ui._replace(at=None, beyond=None, nearest=False, playing_since=None, frozen=False, last_event=None)


def now_or(action: Callable[[Turn], Ui]) -> Callable[[Turn], Ui]:
    """What a key does, but in the past: there it first leads to now, if there is one."""
    return lambda turn: to_now(turn.ui) if turn.ui.at is not None and turn.lens.has_now else action(turn)


def join(turn: Turn) -> Ui:
    """How a box joins, where one can."""
    if not turn.lens.has_now:
        return turn.ui._replace(said="this is a recording: no box can join it")
    return turn.ui._replace(join=True, scroll=0)


def next_range(turn: Turn) -> Ui:
    """Of a page's graphs."""
    if not turn.lens.past:
        return turn.ui._replace(said=NO_JOURNAL)
    return turn.ui._replace(graph=(turn.ui.graph + 1) % len(RANGES))


def move(turn: Turn) -> Ui:
    """The selection moved; with a page open, the page goes to the next node."""
    ui, key, lens, room = turn
    order = lens.order
    steps = {"up": -room.per_line, "down": room.per_line, "left": -1, "right": 1}
    steps |= {"page up": -room.entries, "page down": room.entries, "home": -len(order), "end": len(order)}
    steps |= {"wheel up": -WHEEL_LINES * room.per_line, "wheel down": WHEEL_LINES * room.per_line}
    if not order:
        return ui
    place = lens.place(ui.selected)
    if place is None:  # the first key only shows where one is
        place, steps = ui.first, steps | dict.fromkeys(("up", "down", "left", "right", *WHEEL), 0)
    place = min(max(place + steps[key], 0), len(order) - 1)
    while ui.page and order[place].node_id == ui.page and 0 < place < len(order) - 1:  # by the row of another node, not GPU by GPU
        place += 1 if steps[key] > 0 else -1
    while is_head(order[place]):
        place += 1 if steps[key] >= 0 or place == 0 else -1
    selected = order[place]
    page = ui.page and selected.node_id
    return ui._replace(selected=selected, page=page, scroll=ui.scroll if page == ui.page else 0)


def scroll(turn: Turn) -> Ui:
    """What stands before table and grid, as far as there is more of it."""
    return turn.ui._replace(scroll=scrolled(turn.ui.scroll, turn.key, turn.room.reach))


def close(turn: Turn) -> Ui:
    """The help, or how a box joins."""
    return turn.ui._replace(help=False, join=False, scroll=0)


def scroll_or_close(turn: Turn) -> Ui:
    """Where all of it is on the screen, every key goes back."""
    return scroll(turn) if turn.room.reach.most else close(turn)


def scroll_events(turn: Turn) -> Ui:
    """The event view; at its end it follows the newest again."""
    lines = event_lines(turn.lens.events(EVENTS_KEPT), turn.ui.event_filter)
    highest, newest = turn.room.reach.page - 1, len(lines) - 1  # where the lowest line of the screen can be
    place = max(lowest_line(lines, turn.ui.last_event) - highest, 0)
    lowest = highest + scrolled(place, turn.key, Reach(max(newest - highest, 0), turn.room.reach.page))
    return turn.ui._replace(last_event=lines[lowest].first if lowest < newest else None)


def forget(turn: Turn) -> Ui:
    """The selected node goes, when it is lost or left, and the selection to its neighbour."""
    ui, _, lens, _ = turn
    if not ui.selected or lens.place(ui.selected) is None:
        return ui
    if why := lens.why_not_forget(ui):
        return ui._replace(said=why)
    try:
        if not lens.forget(ui.selected.node_id):
            return ui._replace(said=f"{ui.selected.node_id} stays: it is neither lost nor left")
    except MayNot as reason:
        return ui._replace(said=str(reason))
    there = turn._replace(ui=ui._replace(page=ui.selected.node_id), room=Room(1, 1))
    moved = (move(there._replace(key=key)) for key in ("down", "up"))
    neighbour = next((other for other in moved if other.page != ui.selected.node_id), ui)
    return neighbour._replace(page="")


def forget_all(turn: Turn) -> Ui:
    """The nodes that were counted for the question; one that has come back since stays."""
    said = ""
    for node_id in turn.ui.question.node_ids if turn.ui.question else ():
        try:
            turn.lens.forget(node_id)
        except MayNot as reason:
            said = str(reason)
    return turn.ui._replace(question=None, said=said)


def ask_to_forget(turn: Turn) -> Ui:
    """All that are lost or left, of those that the filter matches."""
    if why := turn.lens.why_not_forget(turn.ui):
        return turn.ui._replace(said=why)
    node_ids = turn.lens.forgettable()
    return turn.ui._replace(question=Question(Place.FORGET.value, node_ids)) if node_ids else turn.ui


def ask_to_quit(turn: Turn) -> Ui:
    """Without a question where no node would notice."""
    node_ids = turn.lens.reporting()
    return turn.ui._replace(question=Question(Place.QUIT.value, node_ids)) if node_ids else turn.ui._replace(closed=True)


def move_user(turn: Turn) -> Ui:
    """The selection, among the users; the first key only shows where one is."""
    names, room = [user.name for user in turn.lens.users], turn.room.reach.page
    steps = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -len(names), "end": len(names)}
    steps |= {"wheel up": -WHEEL_LINES, "wheel down": WHEEL_LINES}
    if not names:
        return turn.ui
    if turn.ui.user in names:
        place = names.index(turn.ui.user) + steps[turn.key]
    else:
        place = {"home": 0, "end": len(names)}.get(turn.key, turn.ui.scroll)
    return turn.ui._replace(user=names[min(max(place, 0), len(names) - 1)])


def nodes_of_user(turn: Turn) -> Ui:
    """The table, with all that this user holds: beside what the filter asks for already."""
    ui, users = turn.ui, turn.lens.users
    name = next((user.name for user in users if user.name == ui.user), users[ui.scroll].name if users else "")
    if not users:
        return ui
    wanted = [term for term in TERM.findall(ui.filter) if not term.startswith("user=")]
    wanted.append(f'user="{name}"' if " " in name else f"user={name}")
    text = " ".join(wanted)
    if not name:
        return ui._replace(said="their boxes do not tell whose these are")
    if set(name) & set('|,"') or name != visible(name) or len(text) > MAX_FILTER:
        return ui._replace(said="no filter can say this name")
    return ui._replace(users=False, user=name, scroll=0, filter=text, first=0)


def sort_users(turn: Turn) -> Ui:
    """By the next column; names from the first on, numbers from the largest."""
    sort = sort_after(turn.ui.users_sort)
    return turn.ui._replace(users_sort=sort, users_descending=sort != next(iter(USERS_SORTED_BY)))


def turn_users_round(turn: Turn) -> Ui:
    """The other way round."""
    return turn.ui._replace(users_descending=not turn.ui.users_descending)


def leave_events(turn: Turn) -> Ui:
    """First its filter goes, then the view."""
    return with_filter(turn.ui, "") if turn.ui.event_filter else turn.ui._replace(events=False)


def filter_of(ui: Ui) -> str:
    """The filter of what is shown: the events', or the table's and the grid's. While a time is typed: that."""
    if ui.time is not None:
        return ui.time
    return ui.event_filter if ui.events else ui.filter


def with_filter(ui: Ui, text: str) -> Ui:
    """Another one; the event view then follows its newest."""
    if ui.time is not None:
        return ui._replace(time=text)
    return ui._replace(event_filter=text, last_event=None) if ui.events else ui._replace(filter=text)


def type_text(turn: Turn) -> Ui:
    """The filter while it is typed: each key narrows what is shown at once. Lines that are pasted are words."""
    key = turn.key
    typed = " ".join(key.removeprefix(PASTE).split()) if key.startswith(PASTE) else key * (len(key) == 1)
    return with_filter(turn.ui, (filter_of(turn.ui) + typed)[:MAX_FILTER])


def take_back(turn: Turn) -> Ui:
    """The last letter of the filter."""
    return with_filter(turn.ui, filter_of(turn.ui)[:-1])


def clear_filter(turn: Turn) -> Ui:
    """All of it."""
    return with_filter(turn.ui, "")


def drop_filter(turn: Turn) -> Ui:
    """All of it, and no more is typed."""
    return clear_filter(turn)._replace(typing=False)


# ---- The table ----

LISTS = (Place.TABLE, Place.GRID)
VIEWS = (*LISTS, Place.PAGE, Place.EVENTS, Place.USERS)
TYPED = (Place.FILTER, Place.TIME)
WHEEL = ("wheel up", "wheel down")
LINES = ("up", "down")
PAGES = ("page up", "page down")
ENDS = ("home", "end")
MOVES = (*LINES, *PAGES, *ENDS, *WHEEL)
PAGE_HELP = "a node's page, and back; Esc clears the filter"  # keys with the same words share a line of the help
BACK_HELP = "back"
FORGET_HELP = "forget a lost or left node; all that the filter shows"
FREEZE_HELP = "freeze the picture; play the past"
SORT_HELP = "sort by the next column; turn it round"
EXAMPLES = ("state:lost,late", *(metric.example for metric in METRICS), "mem>10GiB", "cpu>90", "gpus>=4", "age>2m", "user:ada")
FILTER_HELP = (
    f"filter: words match id, hostname, device and address\n{' '.join(EXAMPLES)} proc:vllm version<0.2 token:d8d213\n"
    "util<5 for 30m  rack=a3 team:ml  energy>1kWh\n"
    'all must hold; -h200 or !h200: not; h200|a100; "two words"'
)
USER_FILTER_HELP = "filter: the same as the table's: users of the nodes that it matches"
EVENT_FILTER_HELP = "filter: words match kind, node and text\nkind:lost,late -kind:joined Node-7|Node-8"


def freeze_word(ui: Ui, _has_now: bool) -> str:
    """What `p` does then."""
    if ui.at is not None:
        return "play" if ui.playing_since is None else "stop"
    return "go on" if ui.frozen else "freeze"


def past_word(ui: Ui, _has_now: bool) -> str:
    """What `[` and `]` do in the past."""
    return "" if ui.at is None else "10 s"


def long_past_word(ui: Ui, _has_now: bool) -> str:
    """The same of `{` and `}`."""
    return "" if ui.at is None else "10 min"


def now_word(ui: Ui, has_now: bool) -> str:
    """Where Esc leads first."""
    return "now" if ui.at is not None and has_now else ""


def quit_word(ui: Ui, has_now: bool) -> str:
    """Where `q` leads: from the past to now first."""
    return "quit" if ui.at is None or not has_now else "back"


def speed_word(ui: Ui, _has_now: bool) -> str:
    """How fast the past is played."""
    return f"{ui.speed:g}×" if ui.at is not None and (ui.playing_since is not None or ui.speed != 1) else ""


ESC_FOOTER = Footer(-1, now_word, is_of_past=True)
STEP_HELP = "back in time and forth, by 10 s; Esc is now"

BINDINGS = (
    Binding(MOVES, (Place.TABLE,), move, "↑↓ PgUp End …", "move", Footer(14, say("move"), "↑↓")),
    Binding((*MOVES, "left", "right"), (Place.GRID,), move, "↑↓←→ PgUp End…", "move", Footer(14, say("move"), "↑↓")),
    Binding((*LINES, *ENDS), (Place.PAGE,), move, "↑↓ End …", "other nodes", Footer(8, say("other nodes"), "↑↓")),
    Binding((*PAGES, *WHEEL), (Place.PAGE,), scroll, "PgUp PgDn …", "scroll", Footer(7, say("scroll"), "PgDn")),
    Binding(MOVES, (Place.EVENTS,), scroll_events, "↑↓ PgUp End …", "scroll; End follows", Footer(2, say("scroll"), "↑↓")),
    Binding(MOVES, (Place.USERS,), move_user, "↑↓ PgUp End …", "move", Footer(2, say("move"), "↑↓")),
    Binding(("enter",), LISTS, open_page, "Enter", PAGE_HELP, Footer(3, say("page"))),
    Binding(("enter",), (Place.USERS,), nodes_of_user, "Enter", "the nodes where this user holds a GPU", Footer(3, say("nodes"))),
    Binding(("escape",), LISTS, now_or(clear_filter), "Esc", PAGE_HELP, ESC_FOOTER),
    Binding(("escape",), (Place.PAGE,), now_or(change(page="", scroll=0)), "Esc", BACK_HELP, ESC_FOOTER),
    Binding(("escape",), (Place.EVENTS,), now_or(leave_events), "Esc", "clears the filter; back", ESC_FOOTER),
    Binding(("s",), (Place.TABLE,), sort_by_next, "s", SORT_HELP, Footer(5, lambda ui, _: f"sort: {ui.sort}")),
    Binding(("s",), (Place.GRID,), next_metric, "s", "the next metric", Footer(5, lambda ui, _: f"metric: {ui.metric}")),
    Binding(("s",), (Place.USERS,), sort_users, "s", SORT_HELP, Footer(5, lambda ui, _: f"sort: {ui.users_sort}")),
    Binding(("S",), (Place.USERS,), turn_users_round, "S", SORT_HELP),
    Binding(("S",), (Place.TABLE,), turn_round, "S", SORT_HELP),
    Binding(("S",), (Place.GRID,), turn_round, "S", "turn the order round"),
    Binding(("/",), LISTS, change(typing=True), "/", FILTER_HELP, Footer(4, say("filter"))),
    Binding(("/",), (Place.USERS,), change(typing=True), "/", USER_FILTER_HELP, Footer(4, say("filter"))),
    Binding(("/",), (Place.EVENTS,), change(typing=True), "/", EVENT_FILTER_HELP, Footer(4, say("filter"))),
    Binding(("g",), LISTS, by_gpu, "g", "a row for each GPU", Footer(7, lambda ui, _: "nodes" if ui.by_gpu else "GPUs")),
    Binding(
        ("v",), (Place.TABLE,), change(grid=True),
        "v", "grid: a cell for each node or GPU; s: the next metric", Footer(6, say("grid")),
    ),
    Binding(("v",), (Place.GRID,), change(grid=False), "v", "the table", Footer(6, say("table"))),
    Binding(
        ("b",), (Place.TABLE,), group_by_next,
        "b", "groups by a label, with totals; by the next", Footer(8, lambda ui, _: f"group: {ui.group}" if ui.group else "group"),
    ),
    Binding(("u",), LISTS, change(users=True, scroll=0), "u", "users: who holds which GPUs", Footer(8, say("users"))),
    Binding(("u",), (Place.USERS,), change(users=False, scroll=0), "u", BACK_HELP),
    Binding(("q",), (Place.USERS,), change(users=False, scroll=0), "q", BACK_HELP, Footer(0, say("back"))),
    Binding(("escape",), (Place.USERS,), now_or(change(users=False, scroll=0)), "Esc", BACK_HELP, ESC_FOOTER),
    Binding(("e",), LISTS, change(events=True, last_event=None), "e", "all events", Footer(8, say("events"))),
    Binding(("e",), (Place.PAGE,), change(events=True, last_event=None, scroll=0), "e", "all events", Footer(8, say("events"))),
    Binding(("e",), (Place.EVENTS,), change(events=False), "e", BACK_HELP),
    Binding(("p", " "), VIEWS, freeze, "p Space", FREEZE_HELP, Footer(9, freeze_word, "p", is_of_past=True)),
    Binding(("[",), VIEWS, step, "[", STEP_HELP, Footer(4, say_of_now("past"))),
    Binding(("]",), VIEWS, step, "]", STEP_HELP, Footer(10, past_word, "[ ]", is_of_past=True)),
    Binding(("{", "}"), VIEWS, step, "{ }", "the same, by 10 minutes", Footer(11, long_past_word, "{ }", is_of_past=True)),
    Binding(("t",), VIEWS, ask_for_time, "t", f"go to a time: {TIME_EXAMPLES}", Footer(12, say("time"), is_of_past=True)),
    Binding(("+", "-"), VIEWS, play_at, "+ -", "play the past faster, slower", Footer(10, speed_word, is_of_past=True)),
    Binding(
        ("h",), (Place.PAGE,), next_range,
        "h", "graphs over 2 minutes, 1 hour, 24 hours, 7 days", Footer(6, lambda ui, _: f"graphs: {RANGES[ui.graph].name}"),
    ),
    Binding(("f",), LISTS, forget, "f", FORGET_HELP, Footer(10, say("forget"))),
    Binding(("f",), (Place.PAGE,), forget, "f", "forget it, when it is lost or left"),
    Binding(("F",), LISTS, ask_to_forget, "F", FORGET_HELP),
    Binding(("j",), VIEWS, join, "j", "how a box joins", Footer(12, say_of_now("join"))),
    Binding(("?",), LISTS, change(help=True), "?", footer=Footer(1, say("help"))),
    Binding(("?",), (Place.PAGE, Place.EVENTS, Place.USERS), change(help=True, scroll=0), "?", footer=Footer(5, say("help"))),
    Binding(("q",), LISTS, now_or(ask_to_quit), "q", "quit; from the past to now", Footer(0, quit_word)),
    Binding(("q",), (Place.PAGE,), change(page="", scroll=0), "q", BACK_HELP, Footer(0, say("back"))),
    Binding(("q",), (Place.EVENTS,), change(events=False), "q", BACK_HELP, Footer(0, say("back"))),
    Binding(("enter",), (Place.FILTER,), change(typing=False), "Enter", footer=Footer(0, say("keeps it"))),
    Binding(("escape",), (Place.FILTER,), drop_filter, "Esc", footer=Footer(1, say("clears it"))),
    Binding(("enter",), (Place.TIME,), go_to_time, "Enter", footer=Footer(0, say("goes"))),
    Binding(("escape",), (Place.TIME,), change(time=None), "Esc", footer=Footer(1, say("stays"))),
    Binding(("backspace",), TYPED, take_back, "Backspace", footer=Footer(2, say("takes a letter back"))),
    Binding(("ctrl-u",), TYPED, clear_filter, "Ctrl-U", footer=Footer(3, say("takes all back"))),
    Binding((ANY,), TYPED, type_text, "letters"),
    Binding(MOVES, (Place.HELP, Place.JOIN), scroll_or_close, "↑↓ PgUp End …"),
    Binding((ANY,), (Place.HELP, Place.JOIN), close, "any key", footer=Footer(0, say("goes back"))),
    Binding(("q", "y"), (Place.QUIT,), change(closed=True), "q or y", footer=Footer(0, say("ends the server"))),
    Binding(("y",), (Place.FORGET,), forget_all, "y", footer=Footer(0, say("forgets them"))),
    Binding((ANY,), (Place.QUIT, Place.FORGET), change(question=None), "any other key", footer=Footer(1, say("goes on"))),
)  # fmt: skip
HERE: dict[tuple[Place, str], Binding] = {
    (place, key): binding for binding in BINDINGS for place in binding.places for key in binding.keys
}


def place_of(ui: Ui) -> Place:
    """Where the next key is pressed."""
    if ui.question:
        return Place(ui.question.about)
    if ui.time is not None:
        return Place.TIME
    return Place.FILTER if ui.typing else Place.HELP if ui.help else Place.JOIN if ui.join else behind_help(ui)


def behind_help(ui: Ui) -> Place:
    """What the help stands before: the place that it explains."""
    if ui.events or ui.users:
        return Place.EVENTS if ui.events else Place.USERS
    return Place.PAGE if ui.page else Place.GRID if ui.grid else Place.TABLE


def press(ui: Ui, key: str, lens: Lens, room: Room) -> Ui:
    """The Ui after a key; the lens has followed it. What is pasted is text where text is typed, and nothing elsewhere."""
    place = place_of(ui)
    binding = HERE.get((place, key)) or HERE.get((place, ANY))
    if binding and (place in TYPED or not key.startswith(PASTE)):
        ui = binding.action(Turn(ui._replace(said=""), key, lens, room))
        lens.refresh(ui)
    return ui


def follow(ui: Ui, lens: Lens, room: Room) -> Ui:
    """The Ui with its selection on the screen: the selection stays on its node when rows move."""
    ui = follow_time(ui, lens)
    if ui.page and ui.at is None and lens.rows([ui.page]) == [None]:  # forgotten; one that was not there then, may be soon
        ui = ui._replace(page="", scroll=0)
    ui = ui._replace(scroll=min(ui.scroll, room.reach.most))
    names = [user.name for user in lens.users]
    if ui.users and place_of(ui) in (Place.USERS, Place.FILTER) and ui.user in names:
        place_of_user = names.index(ui.user)
        ui = ui._replace(scroll=min(max(ui.scroll, place_of_user - room.reach.page + 1), place_of_user))
    place = lens.place(ui.selected)
    first = ui.first
    if place is not None:  # else it is hidden by the filter, and may come back
        first = min(max(ui.first, place - room.entries + 1), place)
        if first == place > 0 and is_head(lens.order[place - 1]) and room.entries > 1:
            first -= 1  # with what it belongs to
    first = max(min(first, len(lens.order) - room.entries + room.per_line - 1), 0)
    return ui._replace(first=first - first % room.per_line)


def follow_time(ui: Ui, lens: Lens) -> Ui:
    """The Ui within what is kept, and with what there is to say of it."""
    if news := lens.news():
        ui = ui._replace(said=news)
    if lens.refusal and ui.graph:
        ui = ui._replace(said=lens.refusal, graph=0)
    visit = lens.visit
    if lens.is_refused and (lens.has_now or visit):  # back to where one was
        return to_now(ui)._replace(at=visit.moment.wall() if visit else None)
    if ui.at is None or not visit:
        return ui
    if ui.playing_since is None:
        is_last = ui.beyond is not None and lens.going_to is None and visit.moment.wall() <= ui.beyond
        return to_now(ui) if is_last and lens.has_now else ui
    is_over = visit.moment.wall() >= visit.last < lens.position(ui)
    return ui._replace(at=visit.last, playing_since=None) if is_over else ui


def bindings_in(place: Place) -> list[Binding]:
    """Those that hold there, in the order of the table."""
    return [binding for binding in BINDINGS if place in binding.places]


def help_lines(place: Place) -> list[tuple[str, str]]:
    """The keys of a place and what they do, a line each; a second line of words has no keys."""
    labels: dict[str, list[str]] = {}
    for binding in bindings_in(place):
        if binding.help:
            labels.setdefault(binding.help, []).append(binding.label)
    lines = []
    for words, keys in labels.items():
        first, *more = words.splitlines()
        lines += [(" ".join(keys), first), *(("", line) for line in more)]
    return lines


def footer_of(ui: Ui, place: Place, may_forget: bool = True, has_now: bool = True) -> list[tuple[str, str]]:
    """The keys that a footer names, and what they do. `has_now`: it is no recording."""
    here = [binding for binding in bindings_in(place) if may_forget or binding.action is not forget]
    named = [(binding.footer, binding.label) for binding in here if binding.footer]
    named.sort(key=lambda pair: (ui.at is None or not pair[0].is_of_past, pair[0].rank))
    return [(footer.short_label or label, does) for footer, label in named if (does := footer.does(ui, has_now))]
