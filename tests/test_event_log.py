"""The log: its last lines, how many there were, and who follows it."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest

from edge.event_log import Event, EventLog


def filled(count: int, kept: int = 10) -> EventLog:
    """A log of so many events, one a second."""
    seconds = itertools.count()
    log = EventLog(kept, wall=lambda: float(next(seconds)))
    for number in range(count):
        log.add("info", str(number))
    return log


def texts(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events]


def test_an_event_is_kept_as_it_happened() -> None:
    log = EventLog(10, wall=lambda: 7.5)
    log.add("lost", "no heartbeat", "box-1")
    log.add("info", "hello")
    assert log.newest(9) == [Event(7.5, "lost", "box-1", "no heartbeat"), Event(7.5, "info", "", "hello")]


def test_the_newest_come_last() -> None:
    log = filled(5)
    assert texts(log.newest(2)) == ["3", "4"]
    assert texts(log.newest(99)) == ["0", "1", "2", "3", "4"]
    assert log.newest(0) == []
    assert texts(filled(25).newest(99)) == [str(number) for number in range(15, 25)]
    assert EventLog(10).newest(5) == []


def test_since_tells_how_many_there_were_and_what_is_kept_of_the_rest() -> None:
    log = filled(25)
    assert log.since(25) == (25, [])
    assert log.since(99) == (25, [])
    count, events = log.since(22)
    assert (count, texts(events)) == (25, ["22", "23", "24"])
    count, events = log.since(3)
    assert (count, texts(events)) == (25, [str(number) for number in range(15, 25)])


def test_two_followers_go_at_their_own_pace() -> None:
    log = filled(2)
    quick, slow = log.follow(), log.follow()
    assert texts(quick.new()[1]) == ["0", "1"]
    assert quick.new() == (0, [])
    log.add("info", "2")
    assert texts(quick.new()[1]) == ["2"]
    log.add("info", "3")
    assert texts(slow.new()[1]) == ["0", "1", "2", "3"]
    assert texts(quick.new()[1]) == ["3"]
    assert slow.new() == quick.new() == (0, [])


def test_what_came_too_fast_is_counted_as_missed() -> None:
    log = filled(10)
    follower = log.follow()
    assert follower.new()[0] == 0
    for number in range(10, 33):
        log.add("info", str(number))
    missed, events = follower.new()
    assert (missed, texts(events)) == (13, [str(number) for number in range(23, 33)])
    assert follower.new() == (0, [])
    missed, events = log.follow().new()  # who comes late has missed what was before
    assert (missed, len(events)) == (23, 10)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
def test_several_threads_add_and_no_event_is_lost_or_told_twice() -> None:
    log, writers, each = EventLog(500), 4, 2000

    def write(name: str) -> None:
        for number in range(each):
            log.add("info", str(number), name)

    threads = [threading.Thread(target=write, args=(f"box-{number}",)) for number in range(writers)]
    for thread in threads:
        thread.start()
    follower, missed, seen = log.follow(), 0, list[Event]()
    is_over = False
    while not is_over:
        is_over = not any(thread.is_alive() for thread in threads)  # asked before the last look
        too_fast, events = follower.new()
        missed += too_fast
        seen += events
    assert missed + len(seen) == writers * each
    assert log.since(0)[0] == writers * each
    for number in range(writers):
        told = [int(event.text) for event in seen if event.node_id == f"box-{number}"]
        assert told == sorted(set(told))  # each once, in their order


def test_what_was_before_stands_before_all_and_is_no_news() -> None:
    log = EventLog(3, lambda: 100.0)
    log.add("lost", "now", "c")
    follower = log.follow()
    log.recall([Event(float(second), "lost", "b", str(second)) for second in range(5)])
    assert [event.text for event in log.newest(10)] == ["3", "4", "now"]  # the newest of before, as many as there is room for
    assert [event.text for event in follower.new()[1]] == ["now"]
    log.add("lost", "later", "c")
    assert follower.new() == (0, [Event(100.0, "lost", "c", "later")])
    assert [event.text for event in log.newest(10)] == ["4", "now", "later"]
