"""What is asked beside the screen."""

from __future__ import annotations

import queue
import threading
import time

from edge.fleet.lookup import Answered, Lookup
from edge.fleet.source import NoPast
from tests.fixtures.processes import eventually

PATIENT = 10.0  # seconds; an answer ends the wait


def test_an_answer_that_comes_soon_is_there_at_once() -> None:
    lookup = Lookup[int, int](lambda number: 2 * number, PATIENT)
    assert lookup.ask(2) == Answered(2, 4)
    assert lookup.ask(3) == Answered(3, 6)


def test_a_slow_one_keeps_no_key_and_only_the_newest_question_is_asked_next() -> None:
    asked: list[int] = []
    go_on: queue.Queue[None] = queue.Queue()

    def slow(number: int) -> int:
        asked.append(number)
        go_on.get()
        return number

    lookup = Lookup[int, int](slow, PATIENT)
    assert lookup.ask(1, is_patient=False) is None
    eventually(lambda: asked == [1])
    started = time.monotonic()
    for number in range(2, 1000):
        assert lookup.ask(number) is None
    assert time.monotonic() - started < PATIENT
    go_on.put(None)
    go_on.put(None)
    eventually(lambda: lookup.ask(999) == Answered(999, 999))
    assert asked == [1, 999]


def test_the_same_question_is_asked_once_until_it_is_dropped() -> None:
    asked: list[int] = []
    lookup = Lookup[int, int](lambda number: asked.append(number) or number, PATIENT)  # type: ignore[func-returns-value]
    for _ in range(10):
        lookup.ask(1)
    assert asked == [1]
    lookup.drop()
    lookup.ask(1)
    assert asked == [1, 1]


def test_a_refusal_is_its_words_and_so_is_what_nobody_foresaw() -> None:
    def refuse(question: str) -> str:
        raise {"kept": NoPast("nothing is kept"), "cut": OSError("cut short")}[question]

    lookup = Lookup[str, str](refuse, PATIENT)
    assert lookup.ask("kept") == Answered("kept", None, "nothing is kept")
    assert lookup.ask("cut") == Answered("cut", None, "the past can't be read: cut short")


def test_an_answer_nobody_waits_for_any_more_is_not_shown_later() -> None:
    held = threading.Event()

    def wait(number: int) -> int:
        return number if held.wait(PATIENT) else 0

    lookup = Lookup[int, int](wait, 0.0)
    lookup.ask(1)
    lookup.drop()
    held.set()
    eventually(lambda: "past" not in {thread.name for thread in threading.enumerate()})
    assert lookup._newest is None
