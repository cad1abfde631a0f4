"""Times of the past, as people type them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from edge.fleet.row import Refused
from edge.fleet.times import Unreadable, parse_time, show_time
from edge.fleet.wire import LAST_SECOND, seconds_of

NOW = "2026-11-26 09:30:05"


@pytest.fixture(autouse=True, params=["UTC", "Pacific/Auckland", "America/Los_Angeles"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def wall(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("03:12", "2026-11-26 03:12:00"),
        ("3:12", "2026-11-26 03:12:00"),
        ("09:30:05", NOW),
        ("09:30:06", "2026-11-25 09:30:06"),  # that of today has not come yet
        ("23:00", "2026-11-25 23:00:00"),
        ("-2h", "2026-11-26 07:30:05"),
        ("- 2h", "2026-11-26 07:30:05"),
        ("2h ago", "2026-11-26 07:30:05"),
        ("90m", "2026-11-26 08:00:05"),
        ("-1h30m", "2026-11-26 08:00:05"),
        ("-1h 30min", "2026-11-26 08:00:05"),
        ("-45s", "2026-11-26 09:29:20"),
        ("-1d", "2026-11-25 09:30:05"),
        ("-2w", "2026-11-12 09:30:05"),
        ("yesterday 18:00", "2026-11-25 18:00:00"),
        ("  YESTERDAY   18:00 ", "2026-11-25 18:00:00"),
        ("yesterday", "2026-11-25 00:00:00"),
        ("today 08:00", "2026-11-26 08:00:00"),
        ("2026-11-25 18:00", "2026-11-25 18:00:00"),
        ("2026-11-25T18:00:59", "2026-11-25 18:00:59"),
        ("2026-11-25", "2026-11-25 00:00:00"),
        ("now", NOW),
    ],
)
def test_a_time_is_read_as_people_type_it(typed: str, meant: str) -> None:
    assert show_time(parse_time(typed, wall(NOW))) == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "no time is given: try 03:12"),
        ("   ", "no time is given: try 03:12"),
        ("noon", "can't read 'noon': try 03:12, -2h, yesterday 18:00"),
        ("12", "can't read '12'"),
        ("-2", "can't read '-2'"),
        ("-2y", "can't read '-2y'"),
        ("+2h", "can't read '+2h'"),
        ("18:00 yesterday", "can't read"),
        ("2026-11-25x18:00", "can't read"),
        ("2026-11-2518:00", "can't read"),
        ("٣:١٢", "can't read"),  # digits, and none of ours
        ("24:00", "no clock shows 24:00"),
        ("03:62", "no clock shows 03:62"),
        ("03:12:60", "no clock shows 03:12:60"),
        ("2026-02-30 18:00", "there is no 2026-02-30: try a date like 2026-11-26"),
        ("0000-01-01", "there is no 0000-01-01"),
        ("today 18:00", "today 18:00 has not come yet"),
        ("2027-01-01", "2027-01-01 has not come yet"),
        ("9999999w", "9999999w is before all that can be kept"),
    ],
)
def test_what_is_no_time_gets_one_sentence(typed: str, said: str) -> None:
    with pytest.raises(Unreadable, match="^" + said.replace("+", r"\+")):
        parse_time(typed, wall(NOW))


@pytest.mark.parametrize("typed", ["0001-01-01", "9999-12-31 23:59", "1969-12-31", "1w" * 30, "1" * 1000, "9" * 7 + "d"])
def test_no_text_breaks_it(typed: str) -> None:
    try:
        assert parse_time(typed, wall(NOW)) <= wall(NOW)
    except Unreadable as error:
        assert "\n" not in str(error)


def test_hours_that_a_clock_skips_or_repeats_are_times_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    now = wall("2026-10-25 12:00:00")
    assert parse_time("02:30", now) < now  # twice that night
    assert parse_time("2026-03-29 02:30", now) < now  # never that night
    assert now - parse_time("-12h", now) == 12 * 3600
    assert show_time(parse_time("-12h", now)) == "2026-10-25 01:00:00"


def test_a_server_may_tell_any_time_that_can_be_counted_back_from() -> None:
    told = seconds_of(1000 * LAST_SECOND)
    assert parse_time("-2h", told + 1e6) < parse_time("00:00", told + 1e6) + 2e5
    with pytest.raises(Refused, match="no time"):
        seconds_of(1000 * (LAST_SECOND + 1))
