"""The feed: what a viewer is sent that keeps up, lags, comes back, or takes long over a fleet that changes meanwhile."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

import node_pb2 as pb
from edge.event_log import EventLog
from edge.fleet import watch
from edge.fleet.mirror import Mirror
from edge.fleet.row import Refused, Row, Vitals
from edge.fleet.source import EVENTS_KEPT
from edge.fleet.watch import Feed, Viewer, frames_since
from edge.fleet.wire import beats_of
from edge.protocol import MAX_UPDATE_BYTES
from server import Registry
from tests.fixtures.examples import example_row
from tests.fixtures.sessions import Clock


class Fleet:
    """A registry whose rows the test puts, and its feed."""

    def __init__(self, *node_ids: str) -> None:
        self.clock = Clock()
        self.registry = Registry(1.0, 100_000, clock=self.clock)
        self.feed = Feed(self.registry)
        for node_id in node_ids:
            self.put(node_id)
        self.publish()

    def put(self, node_id: str, percent: int = 5, **changes: Any) -> None:
        """A node as it is now, with a reading."""
        row = example_row(0)
        vitals = row.vitals._replace(utilization=percent / 100)
        at = {"heartbeat_at": self.clock.now, "sample_at": self.clock.now}
        self.registry.restore(row._replace(**{"node_id": node_id, "vitals": vitals, **at, **changes}))

    def publish(self) -> None:
        asyncio.run(self.feed.publish())

    def join(self, **request: Any) -> Viewer:
        return self.feed.join(pb.WatchRequest(**request), is_local=True)

    def told(self, viewer: Viewer) -> list[pb.WatchUpdate]:
        return [pb.WatchUpdate.FromString(message) for message in self.feed._news(viewer)]


class Looking:
    """One who looks, and what it knows. Its messages are taken when the test says so."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.viewer = fleet, fleet.join()
        self.mirror = Mirror(EventLog(EVENTS_KEPT), clock=fleet.clock)
        self.mirror.begin()
        self._coming: Iterator[bytes] = iter(())

    def take(self) -> pb.WatchUpdate | None:
        """One more message; None where there is none."""
        message = next(self._coming, None)
        if message is None:
            self._coming = self.fleet.feed._news(self.viewer)
            message = next(self._coming, None)
        if message is None:
            return None
        update = pb.WatchUpdate.FromString(message)
        self.mirror.take(update)
        return update

    def take_all(self) -> None:
        while self.take():
            pass

    def knows(self) -> list[tuple[str, int, float]]:
        return told_of(self.mirror.snapshot())


def told_of(rows: Iterable[Row]) -> list[tuple[str, int, float]]:
    return sorted((row.node_id, round(100 * (row.vitals.utilization or 0)), round(row.heartbeat_at, 2)) for row in rows)


def test_who_keeps_up_shares_what_is_made_once() -> None:
    fleet = Fleet("a", "b")
    viewers = [fleet.join(), fleet.join()]
    for viewer in viewers:
        fleet.told(viewer)
    fleet.put("a", 7)
    fleet.publish()
    first, second = (list(fleet.feed._news(viewer)) for viewer in viewers)
    assert len(first) == 1
    assert first[0] is second[0]
    update = pb.WatchUpdate.FromString(first[0])
    assert (update.version, list(update.beats.number_steps), list(update.beats.utilization_permille)) == (2, [0], [71])
    assert not update.rows


def test_a_large_sum_comes_in_pieces_each_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CHANGES_A_MESSAGE", 2)
    fleet = Fleet("a", "b", "c", "d", "e")
    viewers = [fleet.join(), fleet.join()]
    for viewer in viewers:
        fleet.told(viewer)
    for node_id in "abcd":
        fleet.put(node_id, 7)
    fleet.registry.restore(example_row(17)._replace(node_id="e"))
    fleet.registry.forget("e")
    fleet.put("f")
    fleet.publish()
    coming = [fleet.feed._news(viewer) for viewer in viewers]
    pairs = list(zip(*coming, strict=True))  # in turn
    assert all(first is second for first, second in pairs)
    updates = [pb.WatchUpdate.FromString(first) for first, _ in pairs]
    assert [(update.version, len(update.beats.number_steps), len(update.rows)) for update in updates] == [
        (0, 2, 0), (0, 2, 0), (2, 0, 1),
    ]  # fmt: skip
    assert [list(update.removed) for update in updates] == [[4], [], []]
    assert [len(update.events) for update in updates] == [0, 0, 1]
    assert [viewer.version for viewer in viewers] == [2, 2]


def test_a_piece_that_can_not_be_made_leaves_nobody_with_a_version_they_do_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CHANGES_A_MESSAGE", 2)
    fleet = Fleet("a", "b", "c")
    first, second = Looking(fleet), Looking(fleet)
    for viewer in (first, second):
        viewer.take_all()
    for node_id in "abc":
        fleet.put(node_id, 7)
    fleet.publish()
    assert first.take() and second.take()  # a piece of two

    def fail(*_: object) -> pb.Beats:
        monkeypatch.setattr(watch, "beats_of", beats_of)
        raise ValueError("of its own")

    monkeypatch.setattr(watch, "beats_of", fail)
    with pytest.raises(ValueError, match="of its own"):
        first.take()
    second.take_all()
    assert second.viewer.version == fleet.feed.version and second.knows() == told_of(fleet.registry.snapshot())
    assert first.viewer.version < fleet.feed.version


def test_who_lags_gets_the_sum_of_what_it_missed() -> None:
    fleet = Fleet("a", "b", "c")
    viewer = fleet.join()
    fleet.told(viewer)
    for percent in range(10, 14):
        fleet.clock.now += 1
        fleet.put("a", percent)
        fleet.registry.log.add("late", f"{percent}", "a")
        fleet.publish()
    fleet.put("b", 20, reason="the stream broke", session=None)
    fleet.put("d")
    fleet.registry.restore(example_row(17)._replace(node_id="c"))
    fleet.publish()
    fleet.registry.forget("c")
    fleet.publish()
    (total,) = fleet.told(viewer)
    assert total.version == fleet.feed.version == 7
    assert list(total.beats.utilization_permille) == [131]
    assert {row.node_id: bool(row.info) for row in total.rows} == {"b": False, "d": True}  # what it knows is not said again
    assert list(total.removed) == [2]
    assert [event.text for event in total.events] == ["10", "11", "12", "13", "by the user"]
    assert fleet.told(viewer) == []


def test_who_comes_back_goes_on_from_where_it_was_and_after_a_restart_from_nothing() -> None:
    fleet = Fleet("a")
    epoch = fleet.feed.epoch
    fleet.put("a", 9)
    fleet.publish()
    back = fleet.told(fleet.join(epoch=epoch, version=1))
    assert not any(update.is_snapshot for update in back)
    assert list(back[-1].beats.utilization_permille) == [91]
    for request in ({"epoch": epoch + 1, "version": 1}, {"epoch": epoch, "version": 99}, {}):
        assert any(update.is_snapshot for update in fleet.told(fleet.join(**request)))


def test_who_lags_too_far_gets_the_fleet_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "VERSIONS_KEPT", 3)
    fleet = Fleet("a")
    viewer = fleet.join()
    fleet.told(viewer)
    for _ in range(2):
        fleet.publish()
    assert not any(update.is_snapshot for update in fleet.told(viewer))
    for _ in range(3):
        fleet.publish()
    assert any(update.is_snapshot for update in fleet.told(viewer))


def test_who_gets_the_fleet_anew_gets_its_details_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "VERSIONS_KEPT", 2)
    fleet = Fleet()
    fleet.put("a", packed_processes=b"\x0a\x00", packed_sample=b"\x08\x01")
    fleet.publish()
    looking = Looking(fleet)
    looking.viewer.want(pb.WatchRequest(open=["a"], details=True, processes=True))
    looking.take_all()
    (known,) = looking.mirror.snapshot()
    for _ in range(4):
        fleet.publish()
    looking.take_all()
    (row,) = looking.mirror.snapshot()
    assert (row.packed_processes, row.packed_sample, row.history) == (b"\x0a\x00", b"\x08\x01", known.history)


def test_a_number_has_another_node_only_when_nobody_can_be_told_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "VERSIONS_KEPT", 3)
    fleet = Fleet("a")
    viewer = fleet.join()
    fleet.registry.restore(example_row(17)._replace(node_id="a"))
    fleet.registry.forget("a")
    fleet.publish()
    fleet.put("b")
    fleet.publish()
    assert numbers_of(fleet.told(viewer)) == {"b": 1}
    for _ in range(3):
        fleet.publish()
    fleet.put("c")
    fleet.publish()
    assert numbers_of(fleet.told(viewer)) == {"b": 1, "c": 0}  # anew: it lags too far


def numbers_of(updates: Iterable[pb.WatchUpdate]) -> dict[str, int]:
    return {row.node_id: row.number for update in updates for row in update.rows}


@pytest.mark.parametrize("pieces", range(1, 7))
def test_a_fleet_that_changes_while_it_is_sent_arrives_as_it_is(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """Nodes that change, come and go between any two pieces; and again while a viewer that lags is sent much."""
    monkeypatch.setattr(watch, "MAX_NODES_A_MESSAGE", 3)
    monkeypatch.setattr(watch, "ROWS_A_MESSAGE", 3)
    monkeypatch.setattr(watch, "CHANGES_A_MESSAGE", 5)
    fleet = Fleet(*(f"node-{index}" for index in range(12)))
    looking = Looking(fleet)

    def change(turn: int) -> None:
        fleet.clock.now += 1
        for index in range(12):
            fleet.put(f"node-{index}", 10 * turn + 1, reason=f"{turn}")
        fleet.registry.restore(example_row(17)._replace(node_id=f"node-{turn}"))
        fleet.registry.forget(f"node-{turn}")
        fleet.put(f"new-{turn}")
        fleet.publish()

    for turn in (1, 2):
        for _ in range(pieces):
            looking.take()
        change(turn)
        looking.take_all()
        assert looking.knows() == told_of(fleet.registry.snapshot())
        change(turn + 5)


def test_what_a_viewer_has_open_comes_with_its_details() -> None:
    fleet = Fleet("a", "b")
    viewer = fleet.join(open=["b", "not there"])
    fleet.put("b", packed_processes=b"", packed_sample=b"\x08\x01")
    row = fleet.registry.snapshot()[1]
    (details,) = fleet.told(viewer)[-1].details
    assert (details.number, details.readings, details.processes) == (1, row.history, row.packed_processes)
    assert fleet.told(viewer) == []
    frame = bytes(range(len(row.vitals.frame)))
    fleet.put("b", packed_processes=b"\x0a\x02\x10\x07", packed_sample=b"\x08\x02", history=(row.history + frame)[len(frame) :])
    fleet.put("a", 3)
    fleet.publish()
    (details,) = fleet.told(viewer)[-1].details
    assert (details.sample, details.processes, details.readings) == (b"\x08\x02", b"\x0a\x02\x10\x07", frame)
    fleet.put("b", packed_processes=b"", packed_sample=b"\x08\x02")
    fleet.publish()
    (details,) = fleet.told(viewer)[-1].details
    assert details.HasField("processes")  # the last one has ended
    assert details.processes == b""


def test_details_of_all_are_said_when_they_change() -> None:
    fleet = Fleet("a", "b")
    viewer = fleet.join(details=True, processes=True, clock_milliseconds=5)
    assert [len(update.details) for update in fleet.told(viewer) if update.details] == [2]
    fleet.put("b", packed_processes=b"\x0a\x00")
    fleet.publish()
    (details,) = fleet.told(viewer)[-1].details
    assert (details.number, details.processes, bool(details.sample)) == (1, b"\x0a\x00", True)
    viewer.want(pb.WatchRequest(processes=True, clock_milliseconds=6))
    fleet.put("a", 3)
    fleet.publish()
    told = fleet.told(viewer)
    assert [update.echoed_clock_milliseconds for update in told] == [0, 6]
    assert not any(update.details for update in told)


def test_details_of_a_node_that_comes_while_a_sum_is_taken_come_with_it() -> None:
    fleet = Fleet("a")
    looking = Looking(fleet)
    looking.viewer.want(pb.WatchRequest(processes=True))
    looking.take_all()
    fleet.put("a", 3)
    fleet.publish()
    looking.take()
    fleet.put("b", packed_processes=b"\x0a\x00")
    fleet.publish()
    looking.take_all()
    looking.take_all()
    assert {row.node_id: row.packed_processes for row in looking.mirror.snapshot()}["b"] == b"\x0a\x00"


def test_no_message_is_larger_than_a_viewer_takes() -> None:
    fleet = Fleet()
    for index in range(600):
        fleet.put(f"node-{index}", packed_info=bytes(2**16), history=bytes(2**14), packed_sample=bytes(2**14))
    fleet.publish()
    viewer = fleet.join(details=True)
    sizes = [len(message) for message in fleet.feed._news(viewer)]
    assert max(sizes) < 2 * watch.MESSAGE_BYTES < MAX_UPDATE_BYTES
    assert sum(sizes) > 600 * (2**16 + 2**14)


def test_no_reading_is_too_large_for_a_message() -> None:
    fleet = Fleet("a")
    viewer = fleet.join()
    fleet.told(viewer)
    most = Vitals(1.0, 2.0**60, 2**57, 2**57, 500.0, 500, 2**34, 128, bytes(387), 128, 0, 0, 0, 127, 100, 2**60)
    fleet.put("a", round_trip_seconds=(2**32 - 1) / 1e6)
    fleet.registry.restore(fleet.registry.snapshot()[0]._replace(vitals=most))
    fleet.publish()
    assert fleet.told(viewer)[0].rows[0].summary.memory_permille == 2**32 - 1
    fleet.registry.restore(fleet.registry.snapshot()[0]._replace(heartbeat_at=-1e9))
    fleet.publish()
    assert fleet.told(viewer)[0].beats.memory_used_mebibytes == [2**32 - 1]


def test_nothing_is_kept_for_one_who_reads_nothing() -> None:
    fleet = Fleet(*(f"node-{index}" for index in range(100)))
    viewer = fleet.join()
    coming = fleet.feed._news(viewer)
    next(coming)  # and it takes no more
    grown = []
    tracemalloc.start()
    for turn in range(40):
        for index in range(100):
            fleet.put(f"node-{index}", turn)
        fleet.publish()
        gc.collect()  # Python keeps tuples that are free by the thousand, until then
        grown.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert grown[-1] - grown[9] < 100_000


def test_without_a_viewer_all_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.001)
    fleet = Fleet("a")
    epoch, viewer = fleet.feed.epoch, fleet.join()

    async def run_for_some_ticks() -> None:
        running = asyncio.create_task(fleet.feed.run())
        await asyncio.sleep(0.02)
        running.cancel()

    fleet.clock.now += 100
    asyncio.run(run_for_some_ticks())
    assert fleet.feed.epoch == epoch
    assert fleet.feed.version > 1
    fleet.feed.leave(viewer)
    asyncio.run(run_for_some_ticks())
    assert fleet.feed.epoch == epoch  # it may come back
    fleet.clock.now += watch.IDLE_SECONDS + 1
    asyncio.run(run_for_some_ticks())
    assert (fleet.feed.epoch != epoch, fleet.feed.version) == (True, 0)


def test_there_is_room_for_so_many() -> None:
    fleet = Fleet()
    for _ in range(14):
        fleet.feed.join(pb.WatchRequest(), is_local=False)
    with pytest.raises(Refused, match="14 look already"):
        fleet.feed.join(pb.WatchRequest(), is_local=False)
    fleet.join()


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        (b"", b"aabb", b"aabb"),
        (b"aabb", b"aabb", b""),
        (b"aabb", b"aabbcc", b"cc"),
        (b"aa" * 120, b"aa" * 119 + b"bb", b"bb"),
        (b"aa" * 120, b"aa" * 120, b""),
        (b"ab" * 120, b"cd" * 5, b"cd" * 5),
        (b"aa" * 120, b"aa" * 118 + b"bbcc", b"bbcc"),
        (b"aa" * 119, b"aa" * 119 + b"bb", b"bb"),
        (b"ab" * 120, b"ab" * 119, b"ab" * 119),
        (b"aabb", b"", b""),
        (b"", b"", b""),
    ],
)
def test_the_frames_since(before: bytes, after: bytes, news: bytes) -> None:
    assert frames_since(before, after, 2) == news
