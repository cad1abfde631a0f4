"""What happened, as the server's screen shows it: the newest events in its panel, all of them in the event view.

Many events of one kind within a second are one line: a switch that fails must not hide what came before.
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from edge.drawing import Line, cells, fit, fit_name
from edge.event_log import Event
from edge.fleet.filters import Test, parse_terms, values_of

EVENT_STYLES = {
    "joined": "green",
    "back": "green",
    "attached": "green",
    "renewed": "green",
    "started": "green",
    "late": "yellow",
    "disconnected": "yellow",
    "lost": "bold red",
    "hung": "yellow",
    "failed": "bold red",
    "refused": "bold red",
    "error": "bold red",
    "warning": "yellow",
    "left": "dim",
    "forgotten": "dim",
}
DATES_WIDTH = 70  # from which on there is room for dates
MANY = 4  # events of one kind within a second


class EventLine(NamedTuple):
    """One event, or the many of one kind within a second."""

    first: Event
    number: int = 1  # of events
    node_ids: Sequence[str] = ()  # of many
    said: str = ""  # of all of these


def newest_lines(events: Sequence[Event]) -> Iterator[EventLine]:
    """The newest first; only as many events are looked at as lines are taken."""
    for _, group in itertools.groupby(reversed(events), key=lambda event: int(event.time)):
        yield from reversed(lines_of_second(list(group)[::-1]))


def lines_of_second(events: Sequence[Event]) -> list[EventLine]:
    """Each event on its own, but many of one kind in one line, where the first of them is."""
    kinds: dict[str, list[Event]] = collections.defaultdict(list)
    for event in events:
        kinds[event.kind].append(event)
    many = {kind: line for kind, group in kinds.items() if (line := line_of_many(group))}
    lines = (many.get(event.kind, EventLine(event)) for event in events)
    return [line for event, line in zip(events, lines, strict=True) if line.first is event]


def line_of_many(events: Sequence[Event]) -> EventLine | None:
    """Those of one kind in one line: where many nodes are named, or the same is said many times. None: they stand alone."""
    node_ids = list(dict.fromkeys(event.node_id for event in events))
    texts = {event.text for event in events}
    said = texts.pop() if len(texts) == 1 else ""
    if len(node_ids) < MANY and (len(events) < MANY or not said):
        return None
    return EventLine(events[0], len(events), node_ids, said)


def event_lines(events: Sequence[Event], text: str) -> list[EventLine]:
    """All that a filter matches, the newest last."""
    tests, _ = parse_event_filter(text)
    return list(newest_lines([event for event in events if all(test(event) for test in tests)]))[::-1]


def parse_event_filter(text: str) -> tuple[list[Test[Event]], list[str]]:
    """The language of `/` among events: words match kind, node and text; kind:lost,late the kind alone."""
    return parse_terms(text, parse_plain)


def parse_plain(term: str) -> Test[Event] | None:
    """A word, or kinds. None: it can't be read."""
    name, colon, wanted = term.partition(":")
    if colon and name and "kind".startswith(name):
        kinds = values_of(wanted, {kind: kind for kind in EVENT_STYLES})
        return (lambda event: event.kind in kinds) if kinds else None
    return lambda event: term in f"{event.kind} {event.node_id} {event.text}".lower()


def lowest_line(lines: Sequence[EventLine], last_event: Event | None) -> int:
    """Where the lowest line of the view stands: the newest, or the one that it was scrolled to."""
    if last_event is None:
        return len(lines) - 1
    places = [place for place, line in enumerate(lines) if line.first == last_event]
    return places[-1] if places else sum(line.first.time <= last_event.time for line in lines) - 1  # it is no longer kept


def draw_events(lines: Sequence[EventLine], width: int, wall: float) -> list[Line]:
    """Time, what, who, and why; who in a column as wide as these lines need. Dates too, where one is not that of `wall`."""
    today = time.localtime(wall)[:3]
    has_dates = width >= DATES_WIDTH and any(time.localtime(line.first.time)[:3] != today for line in lines)
    stamp = "%m-%d %H:%M:%S " if has_dates else "%H:%M:%S "
    longest = max((cells(line.first.node_id) for line in lines if not line.node_ids), default=0)
    return [draw_event(line, width, min(max(longest, 9), max(width // 4, 12)), stamp) for line in lines]


def draw_event(line: EventLine, width: int, name_width: int, stamp: str) -> Line:
    """One line; of many nodes as many names as there is room for, and how many more there are."""
    event, style = line.first, EVENT_STYLES.get(line.first.kind, "")
    drawn: Line = [(time.strftime(stamp, time.localtime(event.time)), "dim")]
    if not line.node_ids:
        name = fit(fit_name(event.node_id, name_width), name_width)
        return [*drawn, (fit(event.kind, 13), style), (f"{name} {event.text}", "")]
    count = f"{line.number:,} {event.kind}"
    said = f" · {line.said}" if line.said else ""
    said = said if cells(said) <= width // 2 else ""
    room, names, left = width - cells(drawn[0][0]) - cells(count) - 2 - cells(said), "", len(line.node_ids)
    for node_id in line.node_ids:
        more = f"{', ' if names else ''}{fit_name(node_id, 24)}"
        if cells(names + more) + (cells(f", +{left - 1:,}") if left > 1 else 0) > room:
            break
        names, left = names + more, left - 1
    rest = f"{', ' if names else ''}+{left:,}" if left else ""
    return [*drawn, (count, style), (f": {names}{rest}{said}", "")]
