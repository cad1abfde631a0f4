"""The events: in their panel, and in the event view."""

from __future__ import annotations

import re
import time

import pytest

from edge.drawing import cells, plain
from edge.event_log import Event
from edge.fleet.events import draw_events, event_lines, newest_lines, parse_event_filter
from edge.fleet.screen import event_panel
from edge.fleet.source import EVENTS_KEPT
from server import Registry
from tests.fixtures.examples import example_registry
from tests.fixtures.screens import Screen, exact


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def lost(count: int, at: float = 100.0) -> list[Event]:
    return [Event(at + index / 1000, "lost", f"Node-{1001 + index}", "no heartbeat for 10s") for index in range(count)]


def told(registry: Registry, events: list[Event]) -> Registry:
    """A registry with these events in its log."""
    for event in events:
        registry.log._wall = lambda event=event: event.time  # type: ignore[misc]
        registry.log.add(event.kind, event.text, event.node_id)
    return registry


def shown(screen: Screen) -> list[str]:
    """What stands in the view, without its border."""
    return [line[2:-2].rstrip() for line in screen.text().splitlines() if line.startswith("│") and line[2:-2].strip()]


# ---- Lines ----


def test_many_of_a_kind_within_a_second_are_one_line() -> None:
    events = [Event(99, "joined", "Node-1", "why"), *lost(200), Event(101, "left", "Node-2", "said goodbye")]
    text = plain(draw_events(event_lines(events, ""), 90, 0.0))
    assert text.splitlines() == [
        "00:01:39 joined       Node-1    why",
        "00:01:40 200 lost: Node-1001, Node-1002, Node-1003, Node-1004, +196 · no heartbeat for 10s",
        "00:01:41 left         Node-2    said goodbye",
    ]
    differing = [event._replace(text=f"{index}") for index, event in enumerate(lost(200))]
    assert plain(draw_events(event_lines(differing, ""), 60, 0.0)) == "00:01:40 200 lost: Node-1001, Node-1002, Node-1003, +197"
    assert plain(event_panel(events, 0.0, 74, 7)).count("lost") == 1


def test_what_was_on_another_day_has_its_date() -> None:
    events = [Event(99, "joined", "Node-1", "why"), Event(86_400, "left", "Node-1", "said goodbye")]
    lines = event_lines(events, "")
    assert plain(draw_events(lines, 90, 86_500.0)).splitlines()[0].startswith("01-01 00:01:39 joined")
    assert plain(draw_events(lines, 90, 86_500.0)).splitlines()[1].startswith("01-02 00:00:00 left")
    assert plain(draw_events(lines[1:], 90, 86_500.0)).startswith("00:00:00 left")
    assert plain(draw_events(lines, 46, 86_500.0)).startswith("00:01:39 joined")  # no room


def test_few_of_a_kind_and_those_of_another_second_stand_alone() -> None:
    assert len(event_lines(lost(3), "")) == 3
    assert len(event_lines([*lost(10), *lost(10, 101.0)], "")) == 2
    assert len(event_lines([Event(100, "warning", "server", f"{number}") for number in range(10)], "")) == 10
    refused = [Event(100, "refused", "box", "taken") for _ in range(10)]
    assert plain(draw_events(event_lines(refused, ""), 70, 0.0)) == "00:01:40 10 refused: box · taken"
    mixed = [
        event for pair in zip(lost(20), [one._replace(kind="disconnected") for one in lost(20)], strict=True) for event in pair
    ]
    assert [line.first.kind for line in event_lines(mixed, "")] == ["lost", "disconnected"]


def test_the_panel_looks_at_no_more_than_it_shows() -> None:
    events = [Event(number, "joined", f"box-{number}", "") for number in range(EVENTS_KEPT)]
    assert next(newest_lines(events)).first == events[-1]


@pytest.mark.parametrize("width", [36, 46, 76, 156])
def test_event_text_is_padded_by_cells(width: int) -> None:
    names = ["日本語ノード", "Node-1", "🚀", "gpu-rack07-eu-west-1.cluster.example.com-node-0002", "机" * 63]
    events = [Event(number, "lost", name, "why it is") for number, name in enumerate(names)]
    lines = draw_events(event_lines(events, ""), width, 0.0)
    columns = {cells(plain([line]).partition("why")[0]) for line in lines}
    assert len(columns) == 1
    assert columns.pop() < width
    assert "0002 why" in plain(lines)


@pytest.mark.parametrize("width", [36, 46, 76, 156])
def test_a_line_of_many_fits(width: int) -> None:
    events = [event._replace(node_id=f"機械学習の箱-{event.node_id}" * 2) for event in lost(500)]
    (line,) = draw_events(event_lines(events, ""), width, 0.0)
    text = plain([line])
    assert cells(text) <= width
    assert "500 lost: " in text
    assert re.search(r"\+\d+($| · no heartbeat for 10s$)", text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", 4), ("lost", 1), ("kind:lost,late", 2), ("k:l", 3), ("-kind:left", 3), ("node-1|node-3", 2), ("goodbye", 1),
        ("kind:lost node-9", 0), ("LATE", 1), ('"said goodbye"', 1),
    ],
)  # fmt: skip
def test_the_filter_of_events(text: str, wanted: int) -> None:
    kinds = ("lost", "late", "left", "joined")
    texts = ("no heartbeat", "no heartbeat", "said goodbye", "edge-1, 10.0.0.1")
    events = [Event(number, kind, f"Node-{number}", texts[number]) for number, kind in enumerate(kinds)]
    assert len(event_lines(events, text)) == wanted
    assert not parse_event_filter(text)[1]


def test_what_cannot_be_read_is_named_and_restricts_nothing() -> None:
    screen = Screen(told(example_registry(3), lost(2))).press("e", "/", *"kind:foo node-1001")
    assert "not understood: kind:foo " in screen.text()
    assert len(shown(screen)) == 1


# ---- The view ----


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15), (40, 10)])
def test_every_event_is_reached_by_scrolling(size: tuple[int, int]) -> None:
    events = [Event(number, "joined", f"box-{number:03}", "") for number in range(200)]
    screen = Screen(told(example_registry(), events), *size).press("e")
    room = size[1] - 5
    assert exact(screen.frame(), *size)
    assert [line.split()[-1] for line in shown(screen)] == [f"box-{number}" for number in range(200 - room, 200)]
    seen = set()
    for _ in range(200 // (room - 1) + 1):
        seen |= {line.split()[-1] for line in shown(screen)}
        screen.press("page up")
    assert len(seen) == 200
    assert f"Events 1 to {room} of 200 · {200 - room} newer below" in screen.text() or size[0] == 40
    assert shown(screen)[0].endswith("box-000")
    assert shown(screen.press("down"))[0].endswith("box-001")
    assert shown(screen.press("wheel down"))[0].endswith("box-004")
    assert shown(screen.press("wheel up"))[0].endswith("box-001")
    assert shown(screen.press("end"))[-1].endswith("box-199")
    assert screen.ui.last_event is None
    assert shown(screen.press("up"))[-1].endswith("box-198")
    assert shown(screen.press("home"))[0].endswith("box-000")


def test_it_follows_the_newest_until_one_scrolls_up() -> None:
    registry = told(example_registry(), [Event(number, "joined", f"box-{number}", "") for number in range(100)])
    screen = Screen(registry, 80, 24).press("e")
    told(registry, [Event(100, "late", "box-100", "")])
    assert shown(screen)[-1].endswith("box-100")
    before = shown(screen.press("up", "up"))
    told(registry, [Event(number, "lost", f"box-{number}", "") for number in range(101, 120)])
    assert shown(screen) == before
    assert "21 newer below" in screen.text()
    told(registry, [Event(number, "lost", f"box-{number}", "") for number in range(200, 200 + EVENTS_KEPT)])
    assert len(shown(screen)) == 19  # what was shown is no longer kept: the oldest that is
    assert shown(screen.press("end"))[-1].endswith("box-1199")


def test_it_is_short_where_little_has_happened() -> None:
    screen = Screen(told(example_registry(0), lost(2)), 80, 24).press("e", "up", "page up", "home", "wheel up")
    assert screen.ui.last_event is None
    assert len(shown(screen)) == 2
    assert "Nothing matches the filter: Esc clears it." in screen.press("/", *"xyz", "up").text()


def test_its_filter_is_its_own_and_is_typed_as_the_table_s() -> None:
    registry = told(example_registry(), [*lost(30), Event(200, "left", "Node-1003", "said goodbye")])
    screen = Screen(registry).press("e", "/", *"1003", "enter")
    assert [line.split()[2] for line in shown(screen)] == ["lost", "left"]  # alone again, with its reason
    assert "Events · /1003" in screen.text()
    assert screen.ui.filter == ""
    assert len(screen.press("q").nodes()) == 28
    assert len(shown(screen.press("e"))) == 2
    assert len(shown(screen.press("escape"))) == 2  # first its filter goes: all, the thirty in one line
    assert "Events ─" in screen.text()
    assert not screen.press("escape").ui.events
    assert screen.press("e").ui.events
    assert len(shown(screen.press("/", "ctrl-u", *"zzz", "escape"))) == 2
    assert screen.ui.event_filter == ""


def test_it_stands_still_with_a_frozen_picture() -> None:
    registry = told(example_registry(), [Event(number, "joined", f"box-{number}", "") for number in range(100)])
    screen = Screen(registry, 80, 24).press("e", "p")
    before = screen.text()
    told(registry, [Event(100, "late", "box-100", "")])
    assert screen.text() == before
    assert shown(screen.press("up"))[-1].endswith("box-98")
    assert shown(screen.press("p", "end"))[-1].endswith("box-100")
