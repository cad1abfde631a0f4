"""Times of the past, as people type them and as a header says them: pure functions of a text and of what time it is."""

from __future__ import annotations

import datetime
import re
import time

from edge.fleet.wire import LAST_SECOND

EXAMPLES = "03:12, -2h, yesterday 18:00, 2026-11-25 18:00"
UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LENGTH = r"\d{1,7} ?(?:min|[smhdw]) ?"
FARTHEST_SECONDS = 100 * 365 * 86400.0


class Unreadable(ValueError):
    """A text that names no time to go to; its words say why, for people."""


def parse_time(text: str, now: float) -> float:
    """The moment that a text means, in seconds by the wall clock, in this machine's time zone. `now` is what "ago" counts from.

    A time of day alone is the last one there was: `23:00` is yesterday's in the morning. Raises Unreadable.
    """
    words = " ".join(text.lower().split())
    if words == "now":
        return now
    if re.fullmatch(rf"- ?(?:{LENGTH})+|(?:{LENGTH})+(?:ago)?", words):
        seconds = sum(int(count) * UNIT_SECONDS[unit] for count, unit in re.findall(r"(\d+) ?(min|[smhdw])", words))
        if seconds > FARTHEST_SECONDS:
            raise Unreadable(f"{text.strip()} is before all that can be kept")
        return now - seconds
    match = re.fullmatch(
        r"(?:(today|yesterday|\d{4}-\d{1,2}-\d{1,2})(?:[ t]|$))?(?:(\d{1,2}):(\d{2})(?::(\d{2}))?)?", words, re.ASCII
    )
    if not words or not match:
        raise Unreadable(f"can't read {text.strip()!r}: try {EXAMPLES}" if words else f"no time is given: try {EXAMPLES}")
    day, *clock = match.groups()
    today = datetime.datetime.fromtimestamp(now).date()
    days = {"today": today, "yesterday": today - datetime.timedelta(1), None: today}
    try:
        date = days[day] if day in days else datetime.date(*map(int, day.split("-")))
    except ValueError:
        raise Unreadable(f"there is no {day}: try a date like {today}") from None
    hour, minute, second = (int(part or 0) for part in clock)
    try:
        at = datetime.datetime.combine(date, datetime.time(hour, minute, second))
    except ValueError:
        raise Unreadable(f"no clock shows {':'.join(filter(None, clock))}: try 03:12 or -2h") from None
    try:
        wall = at.timestamp()
        if wall > now and not day:
            wall = (at - datetime.timedelta(1)).timestamp()
    except (ValueError, OverflowError, OSError):  # year 1, or 9999
        raise Unreadable(f"{day} is out of reach: try a date like {today}") from None
    if wall > now:
        raise Unreadable(f"{words} has not come yet: try {EXAMPLES}")
    return wall


def is_time(wall: float) -> bool:
    """Whether a moment, which may come from a foreign file, is one that can be shown."""
    return 0 <= wall < LAST_SECOND


def show_time(wall: float) -> str:
    """ "2026-11-25 18:00:00", in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))
