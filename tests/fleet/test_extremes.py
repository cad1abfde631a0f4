"""How high and how low readings have been, back to any time."""

from __future__ import annotations

import random

import pytest

import node_pb2 as pb
from edge import history
from edge.fleet import extremes
from edge.fleet.extremes import after, new_extremes, read
from edge.fleet.row import Row
from edge.history import MEMORY, NOT_REPORTED, TEMPERATURE, UTILIZATION
from server import Registry
from tests.fixtures.examples import example_row
from tests.fixtures.sessions import Clock, opened

MINUTE = 29_000_000


def frames(*utilizations: int) -> bytes:
    """A node without devices, which reports these, and a memory that is half full."""
    return b"".join(bytes([utilization, 50, NOT_REPORTED]) for utilization in utilizations)


def within(packed: bytes, seconds: float, column: int = UTILIZATION) -> tuple[int, int] | None:
    return read(packed)[1][column].within(seconds)


@pytest.mark.parametrize("course", ["noise", "falling", "rising", "steps"])
def test_any_duration_has_the_lowest_and_highest_of_its_minutes(course: str) -> None:
    chance, packed, seen = random.Random(course), b"", []
    for minute in range(400):
        values = {
            "noise": [chance.randrange(101) for _ in range(5)],
            "falling": [100 - minute // 4],
            "rising": [minute // 4, minute // 4],
            "steps": [30 * (minute // 50 % 4), 30 * (minute // 50 % 4) + 1],
        }[course]
        seen.append(values)
        packed = after(packed, MINUTE + minute, frames(*values), 3)
        for minutes in (1, 2, 30, 60, 398):
            past = [value for values in seen[-minutes - 1 :] for value in values]
            wanted = (min(past), max(past)) if minute > minutes else None
            assert within(packed, 60 * minutes) == wanted
    assert within(packed, 60 * 30, MEMORY) == (50, 50)
    assert within(packed, 60 * 30, TEMPERATURE) is None  # never reported
    assert len(packed) <= 4 + 3 * 4 + 3 * (102 + 2)


def test_a_time_that_was_not_observed_throughout_tells_nothing() -> None:
    packed = b""
    for minute in range(30):
        packed = after(packed, MINUTE + minute, frames(3), 3)
    assert within(packed, 28 * 60) == (3, 3)
    assert within(packed, 28.5 * 60) is None
    assert within(after(packed, MINUTE + 31, frames(3), 3), 30 * 60) == (3, 3)  # two minutes: its history reaches back so far
    for later in (MINUTE + 32, MINUTE + 10**6, MINUTE - 5):  # silent for a while, or the clock was set
        assert within(after(packed, later, frames(3), 3), 60) is None
    assert within(after(packed, MINUTE + 30, frames(3, NOT_REPORTED, 3), 3), 60) is None
    assert within(after(packed, MINUTE + 30, b"", 3), 60) is None


def test_it_goes_back_no_further_than_two_bytes_count() -> None:
    packed = after(b"", MINUTE, frames(90), 3)
    for hop in range(1, 2**15 + 2):
        packed = after(packed, MINUTE + 2 * hop, frames(5), 3)
    assert within(packed, 60 * (2**16 - 2)) == (5, 5)
    assert within(packed, 60 * (2**16 - 1)) is None


@pytest.mark.parametrize("packed", [b"", b"\0\0\0\0", bytes(range(40)), b"\xff" * 300, after(b"", MINUTE, frames(1), 3)[:-1]])
def test_bytes_of_another_kind_tell_nothing(packed: bytes) -> None:
    assert [one.within(60) for one in read(packed)[1]] == [None] * 3
    once = after(packed, MINUTE, frames(1), 3)
    assert within(once, 0) is None  # observed for how much of this minute, nobody knows
    assert within(after(once, MINUTE + 1, frames(1), 3), 0) == (1, 1)


def test_each_node_that_reports_has_its_turn_once_a_minute() -> None:
    rows = [example_row(index % 6)._replace(node_id=f"n{index}", heartbeat_at=1000.0, sample_at=1000.0) for index in range(450)]
    wall, turns = 60.0 * MINUTE, dict.fromkeys((row.node_id for row in rows), 0)
    for second in range(60):
        new = new_extremes(rows, 1000.0, wall + second)
        assert len(new) <= 11
        rows = [row._replace(extremes=new.get(row.node_id, row.extremes)) for row in rows]
        for node_id in new:
            turns[node_id] += 1
    assert set(turns.values()) == {1}
    silent = [rows[0]._replace(heartbeat_at=900.0), rows[0]._replace(sample_at=900.0), rows[0]._replace(sample_at=None)]
    assert new_extremes(silent, 1000.0, wall + 60) == {}


def test_a_registry_sees_how_a_node_has_fared(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, wall = Clock(), 60.0 * MINUTE
    registry = Registry(1.0, 10, clock)
    monkeypatch.setattr(registry, "wall", lambda: wall + clock.now)
    session = opened(registry, "box")

    def row() -> Row:
        (one,) = registry.snapshot()
        return one

    for second in range(40 * 60):
        clock.now += 1
        busy = 60 if second < 60 else 2
        sample = pb.Sample(sequence=second + 1, host=pb.HostSample(cpu_percent=busy))
        registry.heartbeat(session, pb.HeartbeatRequest(sample=sample))
        if second % 20 == 0:
            registry.tick()
    assert within(row().extremes, 30 * 60) == (2, 2)
    assert within(row().extremes, 39 * 60) == (2, 60)
    assert within(row().extremes, 41 * 60) is None
    assert history.series(row().history, 0, -1, UTILIZATION)[-1] == 2
    assert len(row().extremes) < 40
    assert extremes.MAX_GAP_MINUTES * extremes.MINUTE_SECONDS <= history.SAMPLES  # at the usual cadence no sample is missed
