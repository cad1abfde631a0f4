"""A mirror against the feed that fills it: what a viewer knows is what the registry knows, a tick later, field by field."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError

import node_pb2 as pb
from edge import history
from edge.event_log import Event, EventLog
from edge.fleet.intake import MAX_BYTES, MAX_JOULES, MAX_MILLIWATTS
from edge.fleet.mirror import MAX_KINDS, Mirror, Offset
from edge.fleet.row import Refused, Row, Session, State, state_of
from edge.fleet.source import EVENTS_KEPT
from edge.fleet.watch import Feed
from edge.fleet.wire import node_row
from edge.history import WHOLE_NODE
from edge.summary import MAX_PERMILLE
from server import Registry
from tests.fixtures.examples import example_row
from tests.fixtures.sessions import Clock, opened

AHEAD = 5000.0  # of the viewer's clock, before the server's
GPU = pb.DeviceInfo(name="NVIDIA H200", memory_total_bytes=141 * 2**30, slowdown_temperature_celsius=87)


class Looking:
    """A server without a network, and one who looks at it. Time passes when the test says so; what is said takes none."""

    def __init__(self, name: str = "") -> None:
        self.server_clock, self.clock = Clock(), Clock(1000.0 + AHEAD)
        self.registry = Registry(1.0, 100_000, clock=self.server_clock)
        self.registry.wall = lambda: 1_800_000_000.0 + self.server_clock.now
        self.log = EventLog(EVENTS_KEPT)
        self.mirror = Mirror(self.log, name, self.clock, lambda: 5.0)
        self.feed = Feed(self.registry, pb.ServerStatus)
        self.begin()

    def begin(self, **wants: Any) -> None:
        """A new stream, from what the mirror knows."""
        self.mirror.begin()
        self.viewer = self.feed.join(self.request(epoch=self.mirror.epoch, version=self.mirror.version, **wants), is_local=True)

    def request(self, **fields: Any) -> pb.WatchRequest:
        return pb.WatchRequest(clock_milliseconds=int(1000 * self.clock.now), **fields)

    def want(self, **wants: Any) -> None:
        self.viewer.want(self.request(**wants))

    def pass_time(self, seconds: float = 1.0) -> None:
        self.server_clock.now += seconds
        self.clock.now += seconds

    def updates(self) -> list[pb.WatchUpdate]:
        """What a viewer is told now."""
        asyncio.run(self.feed.publish())
        return [pb.WatchUpdate.FromString(message) for message in self.feed._news(self.viewer)]

    def look(self) -> None:
        for update in self.updates():
            self.mirror.take(update)

    def rows(self) -> dict[str, Row]:
        return {row.node_id: row for row in self.mirror.snapshot()}


def info(devices: int, instance: str = "a", **fields: Any) -> pb.NodeInfo:
    host = pb.HostInfo(memory_total_bytes=2**40)
    return pb.NodeInfo(instance_id=instance, hostname="host", devices=[GPU] * devices, host=host, **fields)


def sample(chance: random.Random, sequence: int, devices: int) -> pb.Sample:
    """Readings of any kind, some of them not reported."""

    def some(most: int) -> int | None:
        return chance.randrange(most) if chance.random() < 0.9 else None

    host = pb.HostSample(cpu_percent=some(101), memory_used_bytes=some(2**40), temperature_celsius=some(90))
    found = [
        pb.DeviceSample(
            utilization_percent=some(101),
            memory_used_bytes=some(141 * 2**30),
            temperature_celsius=some(95),
            power_milliwatts=some(700_000),
        )
        for _ in range(devices)
    ]
    return pb.Sample(sequence=sequence, host=host, devices=found)


def plain(row: Row) -> dict[str, Any]:
    """A row as it is compared: the session is there or not, and numbers are what Beats say of them. The frames of devices, and
    what is asked for alone, are compared elsewhere."""
    fields = row._asdict() | row.vitals._asdict() | {"session": row.session is not None}
    fields["memory_used_bytes"] >>= 20
    for name in ("vitals", "frame", "history", "packed_sample", "packed_processes", "unread"):
        fields.pop(name, None)
    return fields


def expected(row: Row) -> dict[str, Any]:
    """A row of the registry, as a mirror should have it."""
    fields = plain(row)
    for name, most in {
        "heartbeat_at": 0.02,
        "sample_at": 0.02,
        "round_trip_seconds": 1e-6,
        "utilization": 6e-4,
        "memory": 6e-4,
        "milliwatts": 99,
        "energy_joules": 999,
    }.items():
        if fields[name] is not None:
            fields[name] = pytest.approx(fields[name] + AHEAD * name.endswith("_at"), abs=most)
    return fields


@pytest.mark.parametrize("seed", range(8))
def test_a_mirror_is_what_the_registry_is_within_a_tick(seed: int) -> None:
    chance, looking = random.Random(seed), Looking()
    registry, sessions = looking.registry, dict[str, tuple[Session, int]]()
    sequences = itertools.count(1)

    def come() -> None:
        node_id, devices = f"n{chance.randrange(12)}", chance.choice((0, 1, 8))
        if node_id not in sessions:
            first = pb.HeartbeatRequest(node_id=node_id, info=info(devices))
            if chance.random() < 0.8 or registry.rows([node_id]) != [None]:
                first.sample.CopyFrom(sample(chance, next(sequences), devices))
            session = registry.open(first, "10.0.0.7", lambda _: None)
            sessions[node_id] = session, devices

    def beat() -> None:
        for session, devices in sessions.values():
            if chance.random() < 0.8:
                trip = chance.choice((0, chance.randrange(1, 10**6)))
                news = sample(chance, next(sequences), devices)
                registry.heartbeat(session, pb.HeartbeatRequest(sample=news, round_trip_microseconds=trip))

    def go() -> None:
        if sessions and chance.random() < 0.5:
            session, _ = sessions.pop(chance.choice(list(sessions)))
            if chance.random() < 0.5:
                registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
            else:
                registry.stream_ended(session, "the stream broke")

    def forget() -> None:
        node_id = f"n{chance.randrange(12)}"
        if registry.forget(node_id):
            sessions.pop(node_id, None)

    def change() -> None:
        if sessions:
            node_id = chance.choice(list(sessions))
            session, devices = sessions[node_id][0], chance.choice((0, 2, 8))
            sessions[node_id] = session, devices
            changed, news = info(devices, notice=f"notice {next(sequences)}"), sample(chance, next(sequences), devices)
            registry.heartbeat(session, pb.HeartbeatRequest(info=changed, sample=news))

    def break_off() -> None:
        looking.feed.leave(looking.viewer)
        looking.mirror.unheard()
        looking.begin()
        looking.look()

    looking.look()
    for _ in range(60):
        for action in chance.choices((come, beat, beat, go, forget, change, lambda: looking.pass_time(12)), k=3):
            action()
        looking.pass_time(chance.uniform(0.2, 1.5))
        if chance.random() < 0.1:
            break_off()
        if chance.random() < 0.8:  # else it lags, and gets the sum
            looking.want()
            looking.look()
            mirrored, known = looking.rows(), registry.snapshot()
            assert mirrored.keys() == {row.node_id for row in known}
            for row in known:
                assert plain(mirrored[row.node_id]) == expected(row)


# ---- What is asked for, and what happens ----


def beaten(looking: Looking, node_id: str, seconds: int, devices: int = 2, first: int = 1) -> None:
    """So many seconds of a node that is looked at each second."""
    chance, session = random.Random(1), opened_with(looking, node_id, devices)
    for sequence in range(first, first + seconds):
        looking.registry.heartbeat(session, pb.HeartbeatRequest(sample=sample(chance, sequence, devices)))
        looking.pass_time()
        looking.look()


def opened_with(looking: Looking, node_id: str, devices: int) -> Session:
    request = pb.HeartbeatRequest(node_id=node_id, info=info(devices))
    return looking.registry.open(request, "10.0.0.7", lambda _: None)


@pytest.mark.parametrize("seconds", [1, 2, 5, 130])
def test_a_node_that_is_open_has_the_history_that_it_has_there_and_its_newest_sample(seconds: int) -> None:
    looking = Looking()
    looking.want(open=["n1"])
    beaten(looking, "n1", seconds)
    mine, theirs = looking.rows()["n1"], looking.registry.snapshot()[0]
    assert mine.history == theirs.history
    assert mine.packed_sample == theirs.packed_sample
    assert mine.vitals == theirs.vitals._replace(memory_used_bytes=mine.vitals.memory_used_bytes)


def test_what_is_opened_again_has_its_whole_history_again() -> None:
    looking = Looking()
    looking.want(open=["n1"])
    beaten(looking, "n1", 5)
    looking.want()
    beaten(looking, "n1", 5, first=10)
    assert curve(looking.rows()["n1"]) == curve(looking.registry.snapshot()[0])
    looking.want(open=["n1"])
    beaten(looking, "n1", 1, first=20)
    assert looking.rows()["n1"].history == looking.registry.snapshot()[0].history


def curve(row: Row) -> bytes:
    return history.series(row.history, len(row.capacities.devices), WHOLE_NODE, history.UTILIZATION)


def test_details_of_all_tell_each_device() -> None:
    looking = Looking()
    looking.want(details=True)
    for node_id in ("n1", "n2"):
        beaten(looking, node_id, 3)
    theirs = {row.node_id: (row.packed_sample, row.vitals.frame) for row in looking.registry.snapshot()}
    assert {row.node_id: (row.packed_sample, row.vitals.frame) for row in looking.mirror.snapshot()} == theirs


def test_processes_come_and_go() -> None:
    looking = Looking()
    session = opened(looking.registry, "n1")
    looking.want(processes=True)
    for names in (["vllm"], []):
        found = pb.ProcessList(processes=[pb.Process(pid=1, name=name) for name in names])
        looking.registry.heartbeat(session, pb.HeartbeatRequest(processes=found))
        looking.look()
        assert [process.name for process in looking.rows()["n1"].processes] == names


def test_each_event_comes_once_however_often_the_stream_begins() -> None:
    looking = Looking()
    for number in range(3):
        looking.registry.log.add("joined", "why", f"n{number}")
        looking.look()
        looking.feed.leave(looking.viewer)
        looking.mirror.version = 0  # so that all comes anew
        looking.begin()
        looking.look()
    assert [event.node_id for event in looking.log.newest(100)] == ["n0", "n1", "n2"]


def test_of_several_servers_rows_and_events_tell_which() -> None:
    looking = Looking("10.0.0.5")
    opened(looking.registry, "n1")
    looking.registry.complain("warning", "server", "few files")
    looking.look()
    assert looking.rows()["n1"].server == "10.0.0.5"
    assert [(event.kind, event.node_id) for event in looking.log.newest(100)] == [("joined", "n1"), ("warning", "10.0.0.5")]


# ---- Time ----


def test_an_age_is_never_too_young_and_too_old_by_a_round_trip_at_most() -> None:
    """The server's clock is 300 s behind; what is said takes up to 0.4 s there, and up to 0.4 s back."""
    chance, offset, sent = random.Random(1), Offset(), 1000.0
    for second in range(200):
        made = 1000.0 + second + chance.uniform(0.001, 0.4)
        arrived = made + chance.uniform(0.001, 0.4)
        if second % 5 == 0:
            sent = 1000.0 + second
        assert offset.take(made - 300, sent, arrived) == 0
        assert made - 0.8 <= offset.here(made - 300) <= made + 1e-6


@pytest.mark.parametrize("seconds", [-3600.0, 3600.0])
def test_a_clock_that_stood_still_is_found_out(seconds: float) -> None:
    """-3600: this machine was suspended for an hour. The server's clock went on; or stood still, while ours went on."""
    looking = Looking()
    opened(looking.registry, "n1")
    opened(looking.registry, "silent")
    looking.look()
    clock = looking.server_clock if seconds < 0 else looking.clock
    clock.now += abs(seconds)
    looking.want()
    looking.pass_time(0.5)
    opened(looking.registry, "n1")
    looking.look()
    looking.want()
    looking.look()
    ages = {row.node_id: looking.clock.now - row.heartbeat_at for row in looking.mirror.snapshot()}
    assert ages["silent"] >= abs(seconds)
    opened(looking.registry, "n1")
    looking.look()
    assert 0 <= looking.clock.now - looking.rows()["n1"].heartbeat_at < 1.0


def test_a_server_that_is_not_heard_keeps_its_nodes_as_they_were_and_their_ages_grow() -> None:
    looking = Looking()
    opened(looking.registry, "n1")
    looking.look()
    looking.pass_time(100)
    looking.mirror.unheard()
    row = looking.rows()["n1"]
    assert state_of(row, looking.clock.now) is State.UNHEARD
    assert looking.clock.now - row.heartbeat_at >= 100
    assert row.known_until < looking.clock.now
    looking.begin()
    looking.look()
    assert state_of(looking.rows()["n1"], looking.clock.now) is State.LOST


def test_who_was_lost_or_has_left_when_the_server_went_stays_so() -> None:
    looking = Looking()
    opened(looking.registry, "lost")
    session = opened(looking.registry, "left")
    looking.registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    looking.pass_time(100)
    opened(looking.registry, "here")
    looking.look()
    looking.mirror.unheard()
    looking.pass_time(100)
    states = {row.node_id: state_of(row, looking.clock.now).value for row in looking.mirror.snapshot()}
    assert states == {"lost": "LOST", "left": "LEFT", "here": "UNHEARD"}


def test_a_snapshot_that_is_given_up_for_another_leaves_nothing() -> None:
    looking = Looking()
    for number, version in ((0, 0), (1, 1)):
        looking.mirror.take(pb.WatchUpdate(epoch=1, is_snapshot=True))
        looking.mirror.take(pb.WatchUpdate(epoch=1, rows=[node_row(number, example_row(number), 0.0)], version=version))
    assert list(looking.rows()) == [example_row(1).node_id]


def test_a_server_that_started_anew_is_told_from_the_one_before() -> None:
    looking = Looking()
    opened(looking.registry, "old")
    looking.look()
    again = Looking()
    again.mirror, again.server_clock.now, again.clock = looking.mirror, 3.0, looking.clock
    opened(again.registry, "new")
    looking.mirror.unheard()
    again.pass_time()
    again.begin()
    for update in again.updates():
        assert again.rows().keys() == {"old"}  # until all has come
        assert state_of(again.rows()["old"], again.clock.now) is State.UNHEARD
        again.mirror.take(update)
        if update.version:
            break
    assert again.rows().keys() == {"new"}
    assert state_of(again.rows()["new"], again.clock.now) is State.ONLINE


# ---- Hostile servers ----

ROW = node_row(1, example_row(0), 1000.0)
BEAT = {name: [1] for name in pb.Beats.DESCRIPTOR.fields_by_name}


def row_with(**changes: Any) -> pb.NodeRow:
    message = pb.NodeRow.FromString(ROW.SerializeToString())
    message.MergeFrom(pb.NodeRow(**changes))
    return message


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"rows": [row_with(node_id="\x1b[2J")]}, "printable"),
        ({"rows": [pb.NodeRow(number=2)]}, "must not be empty"),
        ({"rows": [row_with(info=b"\xff")]}, "can't be"),
        ({"rows": [row_with(info=bytes(2**17))]}, "may have"),
        ({"rows": [row_with(sample=bytes(2**17))]}, "may have"),
        ({"rows": [row_with(summary=pb.Summary(utilization_permille=1001))]}, "out of its range"),
        ({"rows": [row_with(summary=pb.Summary(without_power=9))]}, "does not fit"),
        ({"rows": [ROW] * 501}, "501 rows: it may have 500"),
        ({"details": [pb.NodeDetails(number=1, sample=b"\x08\x01")] * 501}, "501 details: it may have 500"),
        ({"removed": range(2**17 + 1)}, "131073 removals"),
        ({"beats": pb.Beats(**{name: [1, 0] for name in BEAT})}, "not in the order"),
        ({"beats": pb.Beats(**BEAT | {"cpu_percent": [1, 2]})}, "different lengths"),
        ({"beats": pb.Beats(**BEAT | {"number_steps": [77]})}, "not told"),
        ({"beats": pb.Beats(**BEAT | {"utilization_permille": [1002]})}, "at most 1001"),
        ({"details": [pb.NodeDetails(number=77)]}, "not told"),
        ({"details": [pb.NodeDetails(number=1, sample=bytes(2**17))]}, "may have"),
        ({"events": [pb.FleetEvent(unix_milliseconds=2**62)]}, "no time"),
        ({"unix_milliseconds": -1}, "no time"),
        ({"server": pb.ServerStatus(past_unix_milliseconds=2**62)}, "no time"),
        ({"echoed_clock_milliseconds": 2**60}, "not asked yet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_ends_the_stream_and_harms_nothing(parts: dict[str, Any], reason: str) -> None:
    clock, log = Clock(), EventLog(EVENTS_KEPT)
    mirror = Mirror(log, "", clock)
    mirror.begin()
    mirror.take(pb.WatchUpdate(epoch=1, version=1, is_snapshot=True, rows=[ROW]))
    with pytest.raises(Refused, match=reason):
        mirror.take(pb.WatchUpdate(epoch=1, version=2, **parts))
    assert [row.node_id for row in mirror.snapshot()][:1] == ["Node-1000"]
    mirror.take(pb.WatchUpdate(epoch=1, version=2, beats=pb.Beats(**BEAT)))
    assert mirror.snapshot()[0].vitals.utilization == 0


def test_a_fleet_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.fleet.mirror.MAX_NODES", 700)
    mirror = Mirror(EventLog(EVENTS_KEPT), "", Clock())
    mirror.begin()
    mirror.take(pb.WatchUpdate(epoch=1, version=1, is_snapshot=True, rows=[ROW]))
    pieces = [[pb.NodeRow(number=number, node_id=f"n{number}") for number in range(first, first + 350)] for first in (2, 352)]
    mirror.take(pb.WatchUpdate(epoch=1, version=2, rows=pieces[0]))
    with pytest.raises(Refused, match="larger"):
        mirror.take(pb.WatchUpdate(epoch=1, version=3, rows=pieces[1]))


def test_a_fleet_that_grows_by_readings_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.fleet.mirror.MAX_BYTES", 30_000)
    mirror = Mirror(EventLog(EVENTS_KEPT), "", clock := Clock())
    mirror.begin()
    mirror.take(
        pb.WatchUpdate(
            epoch=1, version=1, is_snapshot=True, rows=[pb.NodeRow(number=1, node_id="n", info=info(128).SerializeToString())]
        )
    )
    with pytest.raises(Refused, match="larger"):
        for second in range(1, 60):
            clock.now += 1
            mirror.take(pb.WatchUpdate(epoch=1, version=1 + second, clock_milliseconds=1000 * second, beats=pb.Beats(**BEAT)))


def test_a_node_that_comes_under_new_numbers_again_and_again_takes_no_more_room() -> None:
    mirror = Mirror(EventLog(EVENTS_KEPT), "", Clock())
    mirror.begin()
    for number in range(1, 100):
        details = pb.NodeDetails(number=number, readings=bytes(3))
        rows = [pb.NodeRow(number=number, node_id="n")]
        mirror.take(pb.WatchUpdate(epoch=1, version=number, is_snapshot=number == 1, rows=rows, details=[details]))
    assert len(mirror._told) <= 1


def test_the_most_that_a_server_takes_of_a_node_is_taken_of_the_server() -> None:
    """Else one node could end every look at its fleet."""
    looking = Looking()
    session = looking.registry.open(pb.HeartbeatRequest(node_id="n1", info=info(128)), "10.0.0.7")
    looking.look()
    most = pb.Summary(
        utilization_permille=1000, memory_permille=MAX_PERMILLE, memory_used_bytes=MAX_BYTES, memory_total_bytes=MAX_BYTES,
        temperature_celsius=500, hottest_device=128, power_milliwatts=MAX_MILLIWATTS, failed_devices=128,
        without_memory=1, cpu_percent=100, energy_joules=MAX_JOULES,
    )  # fmt: skip
    for sequence in range(1, 4):
        looking.pass_time()
        beat = pb.HeartbeatRequest(sample=pb.Sample(sequence=sequence), summary=most, round_trip_microseconds=2**32 - 1)
        looking.registry.heartbeat(session, beat)
        looking.look()
    assert looking.rows()["n1"].vitals.milliwatts == MAX_MILLIWATTS


def test_what_builds_on_nothing_is_refused() -> None:
    mirror = Mirror(EventLog(EVENTS_KEPT), "", Clock())
    mirror.begin()
    with pytest.raises(Refused, match="builds on what was not told"):
        mirror.take(pb.WatchUpdate(epoch=1, version=7, rows=[ROW]))


def test_kinds_of_events_are_bounded_and_texts_can_not_paint() -> None:
    log = EventLog(EVENTS_KEPT)
    mirror = Mirror(log, "", Clock())
    mirror.begin()
    events = [pb.FleetEvent(unix_milliseconds=number, kind=f"k{number}", text="\x1b[31m") for number in range(500)]
    for number in range(3):
        mirror.take(pb.WatchUpdate(epoch=1, version=1 + number, is_snapshot=True, events=events))
    assert len(log.newest(EVENTS_KEPT)) == MAX_KINDS
    assert log.newest(1) == [Event(0.063, "k63", "", "�[31m")]


@pytest.mark.parametrize("seed", range(3))
def test_garbage_ends_as_a_refusal(seed: int) -> None:
    """Bytes of a real stream, some of them changed."""
    chance, looking = random.Random(seed), Looking()
    beaten(looking, "n1", 3)
    opened(looking.registry, "n2")
    looking.want(open=["n1"], details=True, processes=True)
    packed = [update.SerializeToString() for update in looking.updates()]
    for _ in range(300):
        message = bytearray(chance.choice(packed))
        for _ in range(chance.randrange(1, 6)):
            message[chance.randrange(len(message))] = chance.randrange(256)
        try:
            update = pb.WatchUpdate.FromString(bytes(message))
        except (DecodeError, UnicodeDecodeError):  # gRPC ends the stream
            continue
        try:
            looking.mirror.take(update)
        except Refused:
            looking.mirror.begin()
        for row in looking.mirror.snapshot():
            assert isinstance(row.sample, pb.Sample)
