"""A node's row: online, late, lost or left by its ages, and why."""

from __future__ import annotations

import pytest

import node_pb2 as pb
from edge.fleet.columns import age_span
from edge.fleet.entry import EntryId, make_entries
from edge.fleet.row import DEVICE_BYTES, Capacities, Row, Session, State, Vitals, reason_of, state_of
from server import Registry
from tests.fixtures.sessions import Clock, opened


@pytest.mark.parametrize(("interval", "late", "lost"), [(0.1, 0.3, 10.0), (1.0, 3.0, 10.0), (2.0, 6.0, 10.0), (10.0, 30.0, 50.0)])
def test_late_after_three_intervals_lost_after_ten_seconds_or_five(interval: float, late: float, lost: float) -> None:
    session = Session(pb.HeartbeatRequest(), "", None)
    row = Row("box", "", session, interval, heartbeat_at=0.0)
    ages = {0.0: State.ONLINE, late: State.ONLINE, late + 0.01: State.LATE, lost: State.LATE, lost + 0.01: State.LOST}
    assert {age: state_of(row, age) for age in ages} == ages
    broken = row._replace(session=None)
    assert [state_of(broken, age) for age in (0, lost, lost + 0.01)] == [State.DISCONNECTED, State.DISCONNECTED, State.LOST]
    left = row._replace(session=None, left=True)
    assert [state_of(left, age) for age in (0, lost + 1, 1e9)] == [State.LEFT] * 3


def test_a_lost_node_keeps_its_reason() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    registry.stream_ended(opened(registry, "box"), "the stream broke")
    (row,) = registry.snapshot()
    assert reason_of(row, State.ONLINE, clock.now) == ""
    assert reason_of(row, State.DISCONNECTED, clock.now) == "the stream broke"
    clock.now += 42
    assert reason_of(row, State.LOST, clock.now) == "no heartbeat for 42s; the stream broke"


def test_what_a_row_takes_is_all_that_its_node_has_chosen() -> None:
    row = Row(
        "box", "", None, 1.0, packed_info=bytes(1), packed_sample=bytes(20), packed_processes=bytes(300), history=bytes(4000),
        capacities=Capacities(devices=((0, 0),) * 2),
    )  # fmt: skip
    assert row.kept_bytes() == 4321 + 2 * DEVICE_BYTES


def test_a_beat_changes_these_and_nothing_else() -> None:
    row = Row("box", "", None, 1.0, reason="why", extremes=b"x")
    beaten = row._replace(
        round_trip_seconds=0.1, packed_sample=b"s", vitals=Vitals(0.5), history=b"h", sample_at=1.0, heartbeat_at=2.0
    )  # fmt: skip
    assert row.beat(0.1, b"s", Vitals(0.5), b"h", 1.0, 2.0) == beaten


def test_three_ages_are_told_apart() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    session = opened(registry, "box", clock_milliseconds=10_000, sample=pb.Sample(sequence=1, taken_milliseconds=9_700))
    (row,) = registry.snapshot()
    assert row.sample_at == pytest.approx(clock.now - 0.3)  # by the node's own clock: it was 0.3 s old when it was sent
    for beat in range(1, 31):
        clock.now += 1
        registry.heartbeat(session, pb.HeartbeatRequest(clock_milliseconds=10_000 + 1000 * beat))
    clock.now += 0.5
    (row,) = registry.snapshot()
    assert clock.now - row.heartbeat_at == pytest.approx(0.5)
    assert row.sample_at is not None
    assert clock.now - row.sample_at == pytest.approx(30.8)
    assert state_of(row, clock.now) is State.ONLINE
    (entry,) = make_entries([(EntryId("box"), row)], clock.now)
    assert age_span(entry) == ("~30s", "bold yellow")  # sensors hang; the box lives
    (entry,) = make_entries([(EntryId("box"), row._replace(sample_at=row.heartbeat_at))], clock.now + 30)
    (span, _) = age_span(entry)
    assert span == "30s"  # the box is dead; its sensors did not hang
