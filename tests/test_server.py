"""The orchestrator: registry, sessions, bad input, the program. Real sessions over real sockets, real processes and terminals."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import signal
import struct
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import node_pb2 as pb
from bench.http2 import (
    CANCEL,
    DATA,
    END_STREAM,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    data_frame,
    frame,
    request_headers,
)
from edge.drawing import plain
from edge.fleet.admission import COMPLAINTS_PER_SECOND, OWN_BYTES
from edge.fleet.export import snapshot_json
from edge.fleet.intake import vitals_of
from edge.fleet.listening import default_endpoint
from edge.fleet.row import End, Refused, Session, State, state_of
from edge.fleet.source import EVENTS_KEPT
from edge.history import UTILIZATION, WHOLE_NODE, series
from edge.program import VERSION
from edge.protocol import ACKNOWLEDGE_SECONDS, SILENCE_SECONDS
from server import BACKLOG_OF_MANY, STRAINED_NODES, Registry, Ticker
from tests.fixtures.examples import example_registry
from tests.fixtures.garbage import collected
from tests.fixtures.peers import Peer
from tests.fixtures.processes import ROOT, Program, Terminal, eventually
from tests.fixtures.screens import exact, frame_of
from tests.fixtures.sessions import LOCAL, Clock, Serving, Stream, kinds, opened, refusal, refused, unary

Start = Callable[..., Program]
Open = Callable[..., Terminal]
Serve = Callable[..., Serving]
Connect = Callable[..., Stream]
Dial = Callable[..., Peer]

SIMULATED = ("--hardware", "simulated", "--seed", "1", "--headless")
DAY = 24 * 3600.0


@pytest.fixture(autouse=True)
def nothing_goes_wrong_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An exception that gRPC or asyncio catches in the network thread would be written across the operator's screen."""
    yield
    records = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not [record.getMessage() for record in records if not is_expected(record)]


def is_expected(record: logging.LogRecord) -> bool:
    return record.exc_info is not None and isinstance(record.exc_info[1], grpc.aio.InternalError)  # see ErrorEvents


# ---- The registry ----


def test_silence_is_logged_once_with_its_reason_and_so_is_the_return() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    session = opened(registry, "box")
    for seconds in (1, 2.5, 1, 1, 6, 1, 1):
        clock.now += seconds
        registry.tick()
    assert kinds(registry) == ["joined", "late", "lost"]
    assert registry.log.newest(1)[0].text == "no heartbeat for 11s"
    registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=1)))
    registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=2)))
    assert kinds(registry) == ["joined", "late", "lost", "back"]
    assert "after 13s" in registry.log.newest(1)[0].text
    assert state_of(registry.snapshot()[0], clock.now) is State.ONLINE


@pytest.mark.parametrize("how", ["silent", "left", "broken"])
def test_a_row_is_forgotten_after_a_day_and_its_stream_ended(how: str) -> None:
    clock = Clock()
    ends: list[End] = []
    registry = Registry(1.0, 10, clock)
    session = opened(registry, "box", close=ends.append)
    if how == "left":
        registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    elif how == "broken":
        registry.stream_ended(session, "the stream broke")
    clock.now += DAY
    registry.tick()
    assert len(registry.snapshot()) == 1
    clock.now += 1
    registry.tick()
    assert registry.snapshot() == []
    assert bool(ends) == (how == "silent")


def test_sensors_that_hang_and_devices_that_fail_are_told_once() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    info = pb.NodeInfo(instance_id="a", devices=[pb.DeviceInfo(), pb.DeviceInfo()])
    well, bad = ([pb.DeviceSample(), pb.DeviceSample(error=error)] for error in ("", "GPU is\x1b lost"))
    first = pb.HeartbeatRequest(node_id="box", info=info, sample=pb.Sample(sequence=1, devices=bad))
    session = registry.open(first, "10.0.0.7", lambda _end: None)

    def beat(**fields: Any) -> None:
        clock.now += 1
        registry.heartbeat(session, pb.HeartbeatRequest(**fields))
        registry.tick()

    beat(sample=pb.Sample(sequence=2, devices=bad))
    beat(sample=pb.Sample(sequence=3, devices=well))
    for _ in range(15):
        beat()
    clock.now += 60  # and then it is lost: no news of its sensors
    registry.tick()
    beat(sample=pb.Sample(sequence=4, devices=well))
    told = [f"{event.kind} {event.text}" for event in registry.log.newest(EVENTS_KEPT)]
    assert told == [
        "joined 10.0.0.7",
        "failed 1 of 2 GPUs can't be read: GPU is� lost",
        "back all its GPUs are read again",
        "hung no readings for 11s",
        "lost no heartbeat for 1m00s",
        "back after 1m01s",
        "back its readings come again",
    ]


def test_devices_that_fail_are_told_by_the_summary_whatever_the_sample_says() -> None:
    registry = Registry(1.0, 10, Clock())
    info = pb.NodeInfo(instance_id="a", devices=[pb.DeviceInfo(), pb.DeviceInfo()])
    session = registry.open(pb.HeartbeatRequest(node_id="box", info=info), "10.0.0.7", lambda _end: None)
    nonsense = pb.Sample(devices=[pb.DeviceSample(error="x" * 300)])
    for failed in (2, 0):
        registry.heartbeat(session, pb.HeartbeatRequest(sample=nonsense, summary=pb.Summary(failed_devices=failed)))
    told = [event.text for event in registry.log.newest(2)]
    assert told == ["2 of 2 GPUs can't be read: it does not say why", "all its GPUs are read again"]


def test_devices_that_have_failed_are_no_news_when_their_node_comes_back() -> None:
    registry = Registry(1.0, 10, Clock())
    info = pb.NodeInfo(instance_id="a", devices=[pb.DeviceInfo(), pb.DeviceInfo()])
    for failed in (1, 1, 2):
        first = pb.HeartbeatRequest(node_id="box", info=info, sample=pb.Sample(), summary=pb.Summary(failed_devices=failed))
        registry.stream_ended(registry.open(first, "10.0.0.7", lambda _end: None), "broken")
    assert [event.text for event in registry.log.newest(9) if event.kind == "failed"] == [
        "1 of 2 GPUs can't be read: it does not say why",
        "2 of 2 GPUs can't be read: it does not say why",
    ]


def test_a_refused_heartbeat_does_not_bring_a_node_back() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    session = opened(registry, "box")
    clock.now += 20
    registry.tick()
    refused(lambda: registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(host=pb.HostSample(cpu_percent=900)))))
    assert kinds(registry) == ["joined", "lost"]


def test_a_standstill_of_the_server_is_told_and_no_node_is_lost_by_it() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    ticker = Ticker(registry)
    session = opened(registry, "box")
    clock.now += 1
    ticker.tick()
    clock.now += 60
    ticker.tick()
    registry.heartbeat(session, pb.HeartbeatRequest())
    clock.now += 1
    ticker.tick()
    assert [(event.kind, event.node_id) for event in registry.log.newest(EVENTS_KEPT)] == [("joined", "box"), ("warning", "server")]
    assert "stood still for 1m00s" in registry.log.newest(1)[0].text
    clock.now += 4
    ticker.tick()
    assert registry.log.newest(1)[0].kind == "late"


def test_to_forget_says_what_became_of_it() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    opened(registry, "box")
    assert not registry.forget("box")  # it is neither lost nor left
    assert kinds(registry) == ["joined"]
    clock.now += 11
    assert registry.forget("box")
    assert registry.log.newest(1)[0][1:] == ("forgotten", "box", "by the user")
    assert registry.forget("box")  # it is gone
    assert registry.rows(["box"]) == [None]


def test_a_row_that_is_put_there_counts_like_one_that_came() -> None:
    registry = Registry(1.0, 10)
    opened(registry, "box")
    (row,) = registry.snapshot()
    registry.restore(row._replace(node_id="copy", packed_processes=bytes(OWN_BYTES)))
    assert registry._places.count(row.address) == 2
    assert registry._memory._all == len(row.packed_info)


def test_an_error_elsewhere_is_told_at_the_next_tick() -> None:
    registry = Registry(1.0, 10)
    registry.errors.extend(["first", "second\n"])
    registry.tick()
    assert [event[1:] for event in registry.log.newest(9)] == [("error", "server", "first"), ("error", "server", "second�")]
    assert not registry.errors


def test_forget_takes_only_what_is_gone() -> None:
    registry = example_registry()
    for node_id in ("Node-1000", "Node-1006", "Node-1011", "Node-1017"):
        registry.forget(node_id)
    gone = {f"Node-{1000 + index}" for index in range(28)} - {row.node_id for row in registry.snapshot()}
    assert gone == {"Node-1011", "Node-1017"}


def test_what_strangers_send_is_bounded_in_memory() -> None:
    clock = Clock()
    registry = Registry(1.0, 50, clock)
    for number in range(2000):
        with contextlib.suppress(Refused):
            registry.take_unary(pb.HeartbeatRequest(node_id=f"box-{number}"), "10.0.0.9")
        clock.now += 0.5
        registry.tick()
    assert len(registry.snapshot()) == 50
    assert len(registry._told) <= 50
    assert sum(map(len, registry._places._gone.values())) <= 50
    kinds_seen = [event.kind for event in registry.log.newest(100 * EVENTS_KEPT)]
    assert max(map(kinds_seen.count, kinds_seen)) <= EVENTS_KEPT


def test_many_refusals_do_not_flood_the_log() -> None:
    clock = Clock()
    registry = Registry(1.0, 50, clock)
    for _ in range(500):
        registry.complain("refused", "box", "no")
    assert kinds(registry).count("refused") == COMPLAINTS_PER_SECOND
    clock.now += 1
    registry.complain("refused", "box", "no")
    assert kinds(registry).count("refused") == COMPLAINTS_PER_SECOND + 1


def test_of_a_backlog_a_large_fleet_s_server_reads_the_newest() -> None:
    registry = Registry(1.0, 2000, Clock())
    for number in range(STRAINED_NODES):
        opened(registry, f"box-{number}")
    backlog = [pb.Sample(sequence=sequence, host=pb.HostSample(cpu_percent=sequence)) for sequence in range(1, 51)]
    request = pb.HeartbeatRequest(node_id="back", backlog=backlog, sample=pb.Sample(sequence=51, host=backlog[0].host))
    session = registry.open(request, "10.0.0.7")
    (row,) = registry.rows(["back"])
    assert row
    assert list(series(row.history, 0, WHOLE_NODE, UTILIZATION)) == [*range(51 - BACKLOG_OF_MANY, 51), 1]
    assert registry.acknowledgement(session).acknowledged_sequence == 51


def test_a_backlog_is_not_kept_in_memory() -> None:
    registry = Registry(1.0, 1000, Clock())
    backlog = [pb.Sample(devices=[pb.DeviceSample(error="x" * 200)] * 100)] * 30
    large = pb.HeartbeatRequest(info=pb.NodeInfo(hostname="h"), sample=pb.Sample(sequence=1), backlog=backlog).SerializeToString()
    assert len(large) > 500_000

    def resident_mebibytes() -> int:
        return int((ROOT / "/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

    before = resident_mebibytes()
    for number in range(300):
        request = pb.HeartbeatRequest.FromString(large)
        request.node_id = f"box-{number}"
        registry.open(request, "")
    assert len(registry.snapshot()) == 300
    assert resident_mebibytes() - before < 60  # a part of a message would keep all of it: 250


# ---- Sessions ----


def test_a_stream_is_a_row_with_its_values(serve: Serve, connect: Connect) -> None:
    serving = serve()
    stream = connect(serving.address, sample=pb.Sample(sequence=7, devices=[pb.DeviceSample(temperature_celsius=61)]))
    answer = stream.answer()
    assert (answer.acknowledged, answer.acknowledged_sequence, answer.heartbeat_interval_milliseconds) == (True, 7, 1000)
    row = serving.rows()["box"]
    assert (row.address, row.info.hostname, row.sample.sequence, row.vitals.celsius) == ("127.0.0.1", "host-a", 7, 61)
    stream.send(sample=pb.Sample(sequence=8, devices=[pb.DeviceSample(temperature_celsius=62)]))
    eventually(lambda: serving.rows()["box"].vitals.celsius == 62)
    stream.send(info=pb.NodeInfo(instance_id="a", hostname="renamed"))
    eventually(lambda: serving.rows()["box"].info.hostname == "renamed")
    assert serving.rows()["box"].sample.sequence == 8  # what a message does not bring is as it was
    assert serving.events() == ["joined box: host-a, 127.0.0.1"]


def test_the_first_versions_node_shows_up(serve: Serve) -> None:
    serving = serve()
    raw = b"\x0a\x05box-1\x15\x00\x00\x92\x42"  # {node_id: "box-1", gpu_temp: 73.0}, bytes as the first version sends them
    with grpc.insecure_channel(serving.address, options=LOCAL) as channel:
        heartbeat: Any = channel.unary_unary("/node.NodeService/Heartbeat")
        answer = heartbeat(raw, timeout=20)
        heartbeat(raw, timeout=20)
    assert answer.startswith(b"\x08\x01")  # acknowledged: true
    row = serving.rows()["box-1"]
    assert (row.vitals.celsius, serving.state("box-1")) == (73, State.ONLINE)
    assert "73°C" in plain(frame_of([row], 160, 45, serving.registry.clock()))
    assert serving.events() == ["joined box-1: 127.0.0.1"]


def test_a_unary_node_can_say_goodbye_and_come_back(serve: Serve) -> None:
    serving = serve()
    first = unary(serving.address, node_id="box", info=pb.NodeInfo(instance_id="a"), sample=pb.Sample(sequence=3))
    assert first.acknowledged_sequence == 3
    unary(serving.address, node_id="box", leaving=True)
    assert serving.state("box") is State.LEFT
    unary(serving.address, node_id="box", info=pb.NodeInfo(instance_id="b"))
    assert serving.state("box") is State.ONLINE
    assert [event.split()[0] for event in serving.events()] == ["joined", "left", "joined"]


def test_a_backlog_is_accepted_and_acknowledged(serve: Serve, connect: Connect) -> None:
    serving = serve()
    backlog = [pb.Sample(sequence=sequence) for sequence in (3, 4, 5)]
    assert connect(serving.address, "with", backlog=backlog, sample=pb.Sample(sequence=6)).answer().acknowledged_sequence == 6
    assert connect(serving.address, "only", backlog=backlog).answer().acknowledged_sequence == 5


def test_a_goodbye_is_left_at_once_and_ends_the_stream(serve: Serve, connect: Connect) -> None:
    serving = serve()
    stream = connect(serving.address)
    stream.answer()
    stream.send(leaving=True, sample=pb.Sample(sequence=9))
    assert stream.answer().acknowledged_sequence == 9
    assert serving.state("box") is State.LEFT
    assert stream.status()[0] is grpc.StatusCode.OK  # though this client never half-closes
    eventually(lambda: serving.streams() == 0)
    assert serving.events()[-1] == "left box: said goodbye"


@pytest.mark.parametrize("how", ["half-close", "cancel", "reset"])
def test_a_broken_stream_is_disconnected_at_once_and_later_lost(serve: Serve, connect: Connect, how: str) -> None:
    clock = Clock()
    serving = serve(interval=0.2, clock=clock)
    stream = connect(serving.address)
    stream.answer()
    {"half-close": stream.half_close, "cancel": stream.call.cancel, "reset": stream.channel.close}[how]()
    eventually(lambda: serving.state("box") is State.DISCONNECTED)  # no time passes
    assert serving.rows()["box"].reason == "the stream broke"
    clock.now += 10.1
    assert serving.state("box") is State.LOST
    serving.registry.tick()
    assert [event.split()[0] for event in serving.events() if " box: " in event] == ["joined", "disconnected", "lost"]
    eventually(lambda: serving.streams() == 0)


def test_the_same_instance_takes_over_from_its_own_old_stream(serve: Serve, connect: Connect) -> None:
    serving = serve()
    old = connect(serving.address, sample=pb.Sample(sequence=5))
    old.answer()
    new = connect(serving.address)  # the network broke; the server has not noticed yet
    assert new.answer().acknowledged
    assert old.status() == (grpc.StatusCode.ABORTED, "another session of box has taken over")
    eventually(lambda: serving.streams() == 1)
    assert serving.state("box") is State.ONLINE  # the late end of the old stream takes nothing offline
    assert serving.rows()["box"].sample.sequence == 5
    assert [event.split()[0] for event in serving.events()] == ["joined", "back"]


def test_an_instance_that_comes_back_is_online_from_where_it_is_now_with_what_was_known_of_it() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock, heartbeats_per_second=1)
    first = opened(registry, "box", sample=pb.Sample(sequence=7), round_trip_microseconds=1500)
    registry.heartbeat(first, pb.HeartbeatRequest(leaving=True))
    for other in ("b", "c"):
        opened(registry, other)
    registry.tick()
    clock.now += 20
    again = pb.HeartbeatRequest(node_id="box", info=pb.NodeInfo(instance_id="a"))
    session = registry.open(again, "10.0.0.9", lambda _end: None)
    (row,) = registry.rows(["box"])
    assert row
    assert (row.session, row.address, row.heartbeat_at, row.reason) == (session, "10.0.0.9", clock.now, "")
    assert state_of(row, clock.now) is State.ONLINE
    assert row.interval_seconds == 2  # two were beating when it came
    assert (row.sample.sequence, row.round_trip_seconds) == (7, None)


def test_the_late_end_of_an_old_stream_does_not_take_a_newer_session_offline() -> None:
    registry = Registry(1.0, 10, Clock())
    old = opened(registry, "box")
    new = opened(registry, "box")
    registry.stream_ended(old, "the stream broke")
    assert registry.snapshot()[0].session is new
    code, reason = refused(lambda: registry.heartbeat(old, pb.HeartbeatRequest()))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "another session of box has taken over")
    refused(lambda: registry.heartbeat(old, pb.HeartbeatRequest(leaving=True)))
    assert not registry.snapshot()[0].left


def test_a_clone_is_refused_and_told_who_holds_the_id(serve: Serve, connect: Connect) -> None:
    serving = serve()
    holder = connect(serving.address, instance="a")
    holder.answer()
    code, reason = connect(serving.address, instance="b").status()
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert reason == "the id box is taken by host-a at 127.0.0.1"
    assert refusal(serving.address, node_id="box", info=pb.NodeInfo(instance_id="b")) == (code, reason)
    assert refusal(serving.address, node_id="box", gpu_temp=50) == (code, reason)  # a first version's node
    holder.send(sample=pb.Sample(sequence=1))
    eventually(lambda: serving.rows()["box"].sample.sequence == 1)  # the holder is not disturbed
    assert [event.split(": 127")[0] for event in serving.events()] == ["joined box: host-a, 127.0.0.1"] + ["refused box"] * 3


def test_clones_that_race_get_one_winner(serve: Serve, connect: Connect) -> None:
    serving = serve()
    streams = [connect(serving.address, instance=str(number)) for number in range(20)]
    eventually(lambda: sum(stream.call.done() for stream in streams) == 19)
    assert len(serving.rows()) == 1
    assert serving.streams() == 1


@pytest.mark.parametrize("how", ["late", "broken", "left"])
def test_a_dead_holder_gives_way(how: str) -> None:
    clock = Clock()
    ends: list[End] = []
    registry = Registry(1.0, 10, clock)
    holder = opened(registry, "box", "a", close=ends.append, sample=pb.Sample(sequence=99))
    if how == "late":
        clock.now += 3.1
    elif how == "broken":
        registry.stream_ended(holder, "the stream broke")
    else:
        registry.heartbeat(holder, pb.HeartbeatRequest(leaving=True))
    successor = opened(registry, "box", "b")
    (row,) = registry.snapshot()
    assert row.session is successor
    assert row.info.hostname == "host-b"
    assert row.sample_at is None  # nothing of the other box is shown as this one's
    assert not row.sample.sequence
    assert bool(ends) == (how == "late")
    assert kinds(registry)[-1] == "joined"


def test_who_may_take_over_from_unary_heartbeats() -> None:
    registry = Registry(1.0, 10, Clock())
    blanks = [registry.take_unary(pb.HeartbeatRequest(node_id=node_id), "10.0.0.1") for node_id in (" box", "box ")]
    assert blanks[0] is blanks[1]  # it is one id
    old = pb.HeartbeatRequest(node_id="old", gpu_temp=50)
    assert registry.take_unary(old, "10.0.0.1") is registry.take_unary(old, "10.0.0.1")
    code, _ = refused(lambda: opened(registry, "old", "a"))  # a living first version's node is not pushed aside
    assert code is grpc.StatusCode.ALREADY_EXISTS
    ours = pb.HeartbeatRequest(node_id="ours", info=pb.NodeInfo(instance_id="a"))
    session = registry.take_unary(ours, "10.0.0.1")
    assert registry.take_unary(pb.HeartbeatRequest(node_id="ours"), "10.0.0.1") is session  # info comes only with the first
    assert opened(registry, "ours", "a") is not session  # the same instance, with a stream now
    back = registry.take_unary(ours, "10.0.0.1")
    assert back is not session
    assert registry.take_unary(ours, "10.0.0.2") is back  # wherever it is
    opened(registry, "anonymous", "")
    opened(registry, "anonymous", "")  # a script's stream, started again
    for action in (
        lambda: opened(registry, "old", ""),  # the kinds of call do not mix: these are two senders
        lambda: registry.take_unary(pb.HeartbeatRequest(node_id="anonymous"), "10.0.0.1"),
    ):
        assert refused(action)[0] is grpc.StatusCode.ALREADY_EXISTS


def test_who_comes_back_is_told_with_its_silence() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    opened(registry, "box")
    clock.now += 7
    opened(registry, "box")
    assert registry.log.newest(1)[0][1:] == ("back", "box", "after 7s")


@pytest.mark.parametrize(
    ("instance", "info", "address", "taken"),
    [
        ("b", {}, "10.0.0.7", ""),  # the same box: its agent has started again
        ("b", {"hostname": "l4-04"}, "10.0.0.7", "l4-03 at 10.0.0.7"),
        ("b", {"box_id": "two"}, "10.0.0.7", "l4-03 at 10.0.0.7"),
        ("b", {}, "10.0.0.8", "l4-03 at 10.0.0.7"),
        ("", {"hostname": ""}, "10.0.0.8", "l4-03 at 10.0.0.7"),
    ],
)
def test_who_takes_the_id_of_a_silent_box_is_told(instance: str, info: dict[str, str], address: str, taken: str) -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    known: dict[str, Any] = {"hostname": "l4-03", "box_id": "one"}
    first = registry.open(pb.HeartbeatRequest(node_id="box", info=pb.NodeInfo(instance_id="a", **known)), "10.0.0.7")
    registry.stream_ended(first, "the stream broke")
    clock.now += 12
    told = {**known, **info}
    registry.open(pb.HeartbeatRequest(node_id="box", info=pb.NodeInfo(instance_id=instance, **told)), address)
    said = f"; took the id from {taken}, silent for 12s" if taken else ""
    hostname = f"{told['hostname']}, " if told["hostname"] else ""
    assert registry.log.newest(1)[0][1:] == ("joined", "box", f"{hostname}{address}{said}")


def test_who_takes_an_id_after_a_goodbye_is_nobodys_news_and_a_hostile_name_is_bounded() -> None:
    registry = Registry(1.0, 10, Clock())
    opened(registry, "box", "a", leaving=True)
    opened(registry, "box", "b")
    assert "took" not in registry.log.newest(1)[0].text
    registry = Registry(1.0, 10, clock := Clock())
    info = pb.NodeInfo(instance_id="a", hostname="\x1b[2J" + "x" * 190)
    registry.open(pb.HeartbeatRequest(node_id="box", info=info), "10.0.0.7")
    clock.now += 5
    opened(registry, "box", "b")
    text = registry.log.newest(1)[0].text
    assert text == f"host-b, 10.0.0.7; took the id from �[2J{'x' * 60} at 10.0.0.7, silent for 5s"
    for address in ("10.0.0.8", "10.0.0.9"):  # the first version's nodes do not say which they are
        clock.now += 5
        registry.take_unary(pb.HeartbeatRequest(node_id="old"), address)
    assert registry.log.newest(1)[0].text == "10.0.0.9; took the id from a node at 10.0.0.8, silent for 5s"


def test_the_silence_of_a_box_is_not_that_of_its_successor() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    opened(registry, "box", "a")
    clock.now += 11
    registry.tick()
    registry.heartbeat(opened(registry, "box", "b"), pb.HeartbeatRequest())
    assert kinds(registry) == ["joined", "lost", "joined"]


def test_a_fleet_that_has_not_come_yet_stretches_nothing() -> None:
    registry = Registry(0.5, 10, Clock(), heartbeats_per_second=1)
    assert registry.acknowledgement(opened(registry, "box")).heartbeat_interval_milliseconds == 500
    registry.tick()
    assert registry.acknowledgement(opened(registry, "box")).heartbeat_interval_milliseconds == 1000


def test_the_cadence_is_what_the_user_asks_stretched_when_the_fleet_exceeds_the_budget() -> None:
    registry = Registry(0.5, 1000, Clock(), heartbeats_per_second=10)
    sessions = [opened(registry, f"box-{number}") for number in range(5)]
    registry.tick()
    assert registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds == 500
    sessions += [opened(registry, f"box-{number}") for number in range(5, 16)]
    registry.tick()
    assert registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds == 1600  # told again
    rows = {row.node_id: row for row in registry.snapshot()}
    assert rows["box-0"].interval_seconds == 1.6
    assert rows["box-1"].interval_seconds == 0.5  # not told yet: it is not late before its own three intervals
    for session in sessions[1:]:
        registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    registry.tick()
    assert registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds == 500  # those that left do not count


def test_a_server_that_falls_behind_has_its_nodes_beat_more_slowly_until_it_keeps_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.STRAINED_NODES", 2)
    registry = Registry(0.5, 1000, Clock())
    session = opened(registry, "box-0")
    registry.tick()
    registry.keep_up(2.0)  # a fleet so small is not what keeps it
    assert registry.acknowledgement(session).heartbeat_interval_milliseconds == 500
    opened(registry, "box-1")
    registry.tick()

    def told_after(*late_seconds: float) -> int:
        for late in late_seconds:
            registry.keep_up(late)
        return registry.acknowledgement(session).heartbeat_interval_milliseconds

    assert told_after(*[0.2] * 9) == 500
    assert told_after(0.3) == 800
    assert told_after(*[2.0] * 9) == 2500
    assert told_after(*[0.0] * 200) == 500


def test_a_large_fleet_is_told_to_spread_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.RECONNECTS_PER_SECOND", 2)
    registry = Registry(0.5, 1000, Clock())
    session = opened(registry, "box-0")
    registry.tick()
    assert registry.acknowledgement(session).reconnect_spread_milliseconds == 0
    for number in range(1, 5):
        opened(registry, f"box-{number}")
    registry.tick()
    assert registry.acknowledgement(session).reconnect_spread_milliseconds == 2500


def test_the_first_acknowledgement_is_due_at_a_time_of_its_own_and_the_next_ones_at_a_distance() -> None:
    clock = Clock()
    registry = Registry(1.0, 100, clock)
    sessions = [opened(registry, f"box-{number}") for number in range(50)]
    dues = {session.next_acknowledgement_at - clock.now for session in sessions}
    assert len(dues) == 50
    assert 0 <= min(dues) < ACKNOWLEDGE_SECONDS / 2 < max(dues) <= ACKNOWLEDGE_SECONDS
    first = sessions[0].next_acknowledgement_at
    assert registry.acknowledgement(sessions[0]).acknowledged_sequence == 0  # the answer to a first message without a sample
    assert sessions[0].next_acknowledgement_at == first
    clock.now = first
    registry.acknowledgement(sessions[0])
    assert sessions[0].next_acknowledgement_at == first + ACKNOWLEDGE_SECONDS


def test_acknowledgements_are_coalesced_and_spread(serve: Serve, connect: Connect) -> None:
    registry = Registry(1.0, 1000, Clock())
    due = [opened(registry, f"box-{number}").next_acknowledgement_at - 1000 for number in range(200)]
    assert 0 <= min(due) < 1
    assert ACKNOWLEDGE_SECONDS - 1 < max(due) <= ACKNOWLEDGE_SECONDS < SILENCE_SECONDS - 2
    stream = connect(serve(acknowledge_seconds=0.4).address)
    stream.answer()
    for sequence in range(1, 101):
        stream.send(sample=pb.Sample(sequence=sequence))
        time.sleep(0.01)  # a heartbeat comes now and then, not a hundred at once
    stream.send(leaving=True)
    answers = [answer.acknowledged_sequence for answer in stream.call]
    assert answers == sorted(answers)
    assert answers[-1] == 100
    assert 2 <= len(answers) <= 20


def test_streams_opened_and_dropped_leave_nothing(serve: Serve) -> None:
    serving = serve()
    with grpc.insecure_channel(serving.address, options=LOCAL) as channel:
        for number in range(150):
            stream = Stream("", f"box-{number % 20}", str(number), channel)
            if number % 3 == 0:
                stream.send(sample=pb.Sample(sequence=1))
            if number % 2:
                stream.half_close()
            stream.call.cancel()
            stream.half_close()
    eventually(lambda: serving.streams() == 0)
    eventually(lambda: all(serving.state(node_id) is State.DISCONNECTED for node_id in serving.rows()))
    unary(serving.address, node_id="other")


def test_one_id_can_not_pile_up_streams(serve: Serve, connect: Connect) -> None:
    serving = serve()
    with grpc.insecure_channel(serving.address, options=LOCAL) as channel:
        streams = [Stream("", channel=channel) for _ in range(100)]
        eventually(lambda: serving.registry.log.since(0)[0] == 100)  # a join, and 99 that came back: not all of them are kept
        eventually(lambda: serving.streams() == 1)
        for stream in streams:
            stream.close()


# ---- A full server ----


def test_node_n_plus_one_is_refused_and_a_gone_one_gives_way(serve: Serve, connect: Connect) -> None:
    serving = serve(max_nodes=2)
    streams = [connect(serving.address, f"box-{number}") for number in range(2)]
    for stream in streams:
        stream.answer()
    code, reason = connect(serving.address, "box-2").status()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 nodes" in reason
    assert "--max-nodes" in reason
    assert refusal(serving.address, node_id="box-2")[0] is code
    assert unary(serving.address, node_id="box-1", info=pb.NodeInfo(instance_id="a")).acknowledged  # those it has go on
    streams[0].send(leaving=True)
    streams[0].answer()
    assert connect(serving.address, "box-2").answer().acknowledged
    assert set(serving.rows()) == {"box-1", "box-2"}


def test_the_longest_lost_gives_way_first_and_its_stream_ends() -> None:
    clock = Clock()
    ends: list[End] = []
    registry = Registry(1.0, 3, clock)
    opened(registry, "first", close=ends.append)
    clock.now += 5
    opened(registry, "second")
    clock.now += 6
    registry.tick()
    opened(registry, "living")
    clock.now += 5
    living = opened(registry, "living")
    registry.tick()
    opened(registry, "new")
    assert ends
    assert {row.node_id for row in registry.snapshot()} == {"second", "living", "new"}
    opened(registry, "newer")
    assert {row.node_id for row in registry.snapshot()} == {"living", "new", "newer"}
    registry.heartbeat(living, pb.HeartbeatRequest())
    assert refused(lambda: opened(registry, "one too many"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_came_back_since_the_last_tick_does_not_give_way() -> None:
    clock = Clock()
    registry = Registry(1.0, 1, clock)
    session = opened(registry, "box")
    clock.now += 11
    registry.tick()
    registry.heartbeat(session, pb.HeartbeatRequest())
    assert refused(lambda: opened(registry, "new"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_said_goodbye_gives_way_before_who_is_lost() -> None:
    clock = Clock()
    registry = Registry(1.0, 3, clock)
    for node_id in ("lost", "left"):
        session = opened(registry, node_id)
    clock.now += 20
    registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    registry.tick()
    opened(registry, "new-1")
    opened(registry, "new-2")
    assert [row.node_id for row in registry.snapshot()] == ["lost", "new-1", "new-2"]


# ---- One end for a session ----


def take_over(serving: Serving, connect: Connect, _clock: Clock) -> None:
    assert connect(serving.address).answer().acknowledged


def forget(serving: Serving, _connect: Connect, clock: Clock) -> None:
    clock.now += 11
    assert serving.registry.forget("box")


def give_way(serving: Serving, connect: Connect, clock: Clock) -> None:
    clock.now += 11
    serving.registry.tick()
    assert connect(serving.address, "newcomer").answer().acknowledged


def be_silent_for_a_day(serving: Serving, _connect: Connect, clock: Clock) -> None:
    clock.now += DAY + 1
    serving.registry.tick()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (take_over, "another session of box has taken over"),
        (forget, "box was silent, .* operator has forgotten it"),
        (give_way, "the server is full: box, which was silent, gave way to newcomer"),
        (be_silent_for_a_day, "no heartbeat for 1d00h: the server has forgotten box"),
    ],
)
def test_the_server_ends_a_session_with_one_reason(
    serve: Serve, connect: Connect, end: Callable[[Serving, Connect, Clock], None], said: str
) -> None:
    clock = Clock()
    serving = serve(max_nodes=1, clock=clock)
    stream = connect(serving.address)
    stream.answer()
    session = serving.rows()["box"].session
    assert session
    end(serving, connect, clock)
    code, reason = stream.status()
    assert code is grpc.StatusCode.ABORTED
    assert re.fullmatch(said, reason)
    for late in (pb.HeartbeatRequest(sample=pb.Sample(sequence=1)), pb.HeartbeatRequest(leaving=True)):
        assert refused(lambda late=late: serving.registry.heartbeat(session, late)) == (code, reason)  # type: ignore[misc]


# ---- Bad input ----


@pytest.mark.parametrize("node_id", ["", "   ", "x" * 64, "a\x1b[31mb", "a\nb", "a\tb", "a\x7f", "a\u202eb", "a\u200bb"])
def test_an_id_that_can_not_name_a_node_is_refused(serve: Serve, connect: Connect, node_id: str) -> None:
    serving = serve()
    code, reason = connect(serving.address, node_id).status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason.isprintable()
    assert "node id" in reason
    assert "--id" in reason
    assert refusal(serving.address, node_id=node_id, gpu_temp=1) == (code, reason)
    assert serving.rows() == {}
    assert all(line.isprintable() for line in serving.events())


def test_ids_at_the_limit_are_taken(serve: Serve) -> None:
    serving = serve()
    for node_id in ("x" * 63, "机" * 63, "²", "1²٣", "-", "[red]", "a b"):
        unary(serving.address, node_id=node_id)
        assert exact(frame_of(serving.registry.snapshot(), 120, 30, serving.registry.clock()), 120, 30)
    assert len(serving.rows()) == 7


def test_a_bad_heartbeat_ends_its_own_session_and_no_other(serve: Serve, connect: Connect) -> None:
    serving = serve()
    other = connect(serving.address, "other")
    other.answer()
    stream = connect(serving.address, sample=pb.Sample(sequence=1, host=pb.HostSample(load_1m=1)))
    stream.answer()
    stream.send(sample=pb.Sample(sequence=2, host=pb.HostSample(load_1m=float("nan"))))
    code, reason = stream.status()
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "sample.host.load_1m is nan: it must be from 0 to 1e+06")
    assert serving.rows()["box"].sample.sequence == 1  # the last good one stays
    assert serving.state("box") is State.DISCONNECTED
    assert serving.rows()["box"].reason == reason
    assert any(event.startswith("refused box: 127.0.0.1: sample.host.load_1m") for event in serving.events())
    other.send(sample=pb.Sample(sequence=5))
    eventually(lambda: serving.rows()["other"].sample.sequence == 5)
    assert refusal(serving.address, node_id="new", gpu_temp=float("nan"))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "new" not in serving.rows()


def test_a_time_that_is_none_does_not_reach_the_json(serve: Serve, connect: Connect) -> None:
    serving = serve()
    for seconds, nanos in ((2**62, 0), (-(2**62), 0), (0, -5), (0, 2**31 - 1)):
        info = pb.NodeInfo(instance_id="a")
        info.started_at.seconds, info.started_at.nanos = seconds, nanos
        code, reason = connect(serving.address, info=info).status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "info.started_at" in reason
    snapshot_json(serving.registry)


def test_a_message_over_one_mebibyte_is_refused(serve: Serve, connect: Connect) -> None:
    serving = serve()
    other = connect(serving.address, "other")
    other.answer()
    code, reason = connect(serving.address, backlog=[pb.Sample(devices=[pb.DeviceSample(error="x" * 250)] * 128)] * 40).status()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1048576" in reason
    assert (
        connect(serving.address, backlog=[pb.Sample(devices=[pb.DeviceSample(error="x" * 250)] * 100)] * 39).answer().acknowledged
    )
    other.send(sample=pb.Sample(sequence=5))
    eventually(lambda: serving.rows()["other"].sample.sequence == 5)


def test_a_stream_that_says_nothing_is_ended(serve: Serve, connect: Connect) -> None:
    serving = serve(first_message_seconds=0.2)
    silent = connect(serving.address, "", "")
    assert silent.status() == (grpc.StatusCode.DEADLINE_EXCEEDED, "no message within 0.2 s")
    empty = connect(serving.address, "", "")
    empty.half_close()
    assert empty.status() == (grpc.StatusCode.INVALID_ARGUMENT, "the stream ended before its first message")
    assert serving.rows() == {}


@pytest.mark.parametrize("garbage", [b"\xff" * 50, b"\x0a\x03\xff\xfe\xfd", b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0b" * 500])
def test_bytes_that_are_no_heartbeat_are_refused(serve: Serve, connect: Connect, garbage: bytes) -> None:
    serving = serve()
    for first in ([], [pb.HeartbeatRequest(node_id="box").SerializeToString()]):
        with grpc.insecure_channel(serving.address, options=LOCAL) as channel:
            open_stream: Any = channel.stream_stream("/node.NodeService/StreamHeartbeats")
            with pytest.raises(grpc.RpcError) as error:
                list(open_stream(iter([*first, garbage]), timeout=20))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no heartbeat" in (error.value.details() or "")
    eventually(lambda: serving.state("box") is State.DISCONNECTED)
    assert connect(serving.address, "good").answer().acknowledged


UNREAD = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))  # not one answer can be sent


def test_garbage_on_the_wire_disturbs_nobody(serve: Serve, connect: Connect, dial: Dial) -> None:
    serving = serve()
    other = connect(serving.address, "other")
    other.answer()
    dial(serving, greeting=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    dial(serving, greeting=bytes(range(256)) * 20)
    dial(serving, greeting=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))  # TLS
    dial(serving, greeting=PREFACE + bytes(range(200)))
    dial(serving, request_headers(path=b"/node.NodeService/Nothing"))
    dial(serving, request_headers(), frame(DATA, 0, 1, b"\x07\xff\xff\xff\xff"))
    for _ in range(50):
        dial(serving, greeting=b"PRI")  # half a greeting, and silence
    dial(serving, *(request_headers(stream) + frame(RST_STREAM, 0, stream, CANCEL) for stream in range(1, 1001, 2)))
    other.send(sample=pb.Sample(sequence=5))
    eventually(lambda: serving.rows()["other"].sample.sequence == 5)
    assert set(serving.rows()) == {"other"}


def test_nodes_that_never_read_can_not_hold_the_server(serve: Serve, dial: Dial) -> None:
    serving = serve()
    for number in range(10):
        first, goodbye = pb.HeartbeatRequest(node_id=f"slow-{number}"), pb.HeartbeatRequest(leaving=True)
        beats = (data_frame(request.SerializeToString()) for request in (first, goodbye))
        dial(serving, request_headers(), *beats, greeting=UNREAD)
    eventually(lambda: len(serving.rows()) == 10)
    unary(serving.address, node_id="other")
    serving.network.stop()  # it waits for GOODBYE_SECONDS, and one more
    assert not serving.network.is_alive()


def test_a_node_that_never_reads_can_be_taken_over(
    serve: Serve, connect: Connect, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    serving = serve()
    node_ids = [f"slow-{number}" for number in range(10)]
    for node_id in node_ids:
        first = pb.HeartbeatRequest(node_id=node_id, info=pb.NodeInfo(instance_id="a"))
        dial(serving, request_headers(), data_frame(first.SerializeToString()), greeting=UNREAD)
    eventually(lambda: len(serving.rows()) == 10)
    before = serving.rows()
    for node_id in node_ids:
        assert connect(serving.address, node_id).answer().acknowledged
    after = serving.rows()
    assert set(after) == set(node_ids)
    assert all(after[node_id].session not in (None, before[node_id].session) for node_id in node_ids)
    eventually(lambda: serving.streams() == 10)
    assert {serving.state(node_id) for node_id in node_ids} == {State.ONLINE}
    serving.network.stop()  # it waits for GOODBYE_SECONDS, and one more
    assert not serving.network.is_alive()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_half_closing_is_an_end_though_the_connection_stays(serve: Serve, dial: Dial) -> None:
    serving = serve()
    dial(serving, request_headers(), data_frame(pb.HeartbeatRequest(node_id="box").SerializeToString(), END_STREAM))
    eventually(lambda: serving.state("box") is State.DISCONNECTED)
    assert serving.rows()["box"].reason == "the stream broke"
    assert serving.streams() == 0


# ---- What a session leaves behind ----


def test_sessions_that_end_leave_nothing_to_the_garbage_collector(serve: Serve) -> None:
    """Reference cycles would pile up until it runs, with the messages that they hold."""
    serving = serve(max_nodes=3)
    with collected() as found:
        leaving, dropped, taken_over = (Stream(serving.address, f"box-{number}") for number in range(3))
        for stream in (leaving, dropped, taken_over):
            stream.answer()
        again = Stream(serving.address, "box-2")
        nonsense = Stream(serving.address, sample=pb.Sample(host=pb.HostSample(load_1m=math.nan)))
        assert taken_over.status()[0] is grpc.StatusCode.ABORTED
        assert nonsense.status()[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal(serving.address, node_id="one too many")[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        leaving.send(leaving=True)
        assert leaving.status()[0] is grpc.StatusCode.OK
        for stream in (leaving, dropped, taken_over, again, nonsense):
            stream.close()
        eventually(lambda: serving.streams() == 0)
    assert found == []


def test_a_cycle_would_be_found() -> None:
    def leave_a_frame_of_the_server() -> None:
        error = ZeroDivisionError()

        def clock() -> float:
            raise error  # it keeps the frame of `open`, which keeps the registry, and that this clock

        with contextlib.suppress(ZeroDivisionError):
            Registry(1.0, 1, clock).open(pb.HeartbeatRequest(node_id="box"), "")

    def leave_a_session() -> None:
        session = Session(pb.HeartbeatRequest(), "", None)
        session.close = session.finish

    with collected() as found:
        leave_a_frame_of_the_server()
        leave_a_session()
    kinds_found = {type(one) for one in found}
    assert kinds_found >= {types.FrameType, Registry, Session}


# ---- The program ----


def started(start: Start, *options: str) -> tuple[Program, str]:
    """A real server on a free port, and where it listens."""
    program = start("server.py", "--listen", "127.0.0.1:0", *options)
    return program, program.line(r"listening on (\S+:\d+)")[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_all_sessions_with_unavailable(start: Start, connect: Connect, number: int, code: int) -> None:
    program, address = started(start)
    streams = [connect(address, f"box-{number}") for number in range(20)]
    for stream in streams:
        stream.answer()
    silent = connect(address, "", "")
    program.line("joined box-19")
    begun = time.monotonic()
    assert program.end(number) == code
    assert time.monotonic() - begun < 4  # 2 s, and the machine may be busy
    for stream in streams:
        assert stream.status() == (grpc.StatusCode.UNAVAILABLE, "the server is going away: come back soon")
    assert silent.status()[0] is grpc.StatusCode.UNAVAILABLE
    assert not any("Traceback" in line for line in program.lines)


def test_json_lines_have_exactly_these_keys(start: Start, connect: Connect) -> None:
    program, address = started(start, "--json")
    assert program.json_line(lambda line: True)["nodes"] == []
    info = pb.NodeInfo(
        instance_id="a", hostname="gpu-07", backend=pb.BACKEND_NVML, devices=[pb.DeviceInfo(memory_total_bytes=2**37)]
    )
    sample = pb.Sample(sequence=4, devices=[pb.DeviceSample(utilization_percent=0, memory_used_bytes=2**36)])
    connect(address, info=info, sample=sample).answer()
    unary(address, node_id="bare", gpu_temp=71.6)
    unary(address, node_id="empty")
    line = program.json_line(lambda line: len(line["nodes"]) == 3)
    assert set(line) == {"time", "nodes"}
    assert abs(line["time"] - time.time()) < 60
    rows = {row["node_id"]: row for row in line["nodes"]}
    for row in rows.values():
        assert list(row) == [
            "node_id", "hostname", "state", "reason", "heartbeat_age_seconds", "sample_age_seconds", "info", "sample",
        ]  # fmt: skip
    assert (rows["box"]["hostname"], rows["box"]["state"], rows["box"]["reason"]) == ("gpu-07", "ONLINE", "")
    assert rows["box"]["info"]["devices"] == [{"memory_total_bytes": str(2**37)}]
    assert rows["box"]["info"]["backend"] == "BACKEND_NVML"
    assert rows["box"]["sample"] == {"sequence": "4", "devices": [{"utilization_percent": 0, "memory_used_bytes": str(2**36)}]}
    assert 0 <= rows["box"]["sample_age_seconds"] < 10
    assert rows["bare"]["sample"] == {"devices": [{"temperature_celsius": 72}]}
    assert rows["empty"]["sample_age_seconds"] is None  # not reported is not 0
    again = program.json_line(lambda line: True)
    assert 0.5 < again["time"] - line["time"] < 5


def test_what_a_real_node_sums_up_is_what_the_server_would(serve: Serve, start: Start) -> None:
    """Its labels come along, and the energy that the server can't know."""
    serving = serve(interval=0.1)
    arguments = ("--server", serving.address, "--id", "box", "--interval", "0.1", "--label", "rack=a3,team=ml", *SIMULATED)
    start("node.py", *arguments)
    eventually(lambda: "box" in serving.rows() and (serving.rows()["box"].vitals.energy_joules or 0) > 20)
    row = serving.rows()["box"]
    assert row.labels == (("rack", "a3"), ("team", "ml"))
    assert vitals_of(row.capacities, row.sample) == row.vitals._replace(energy_joules=None)
    assert row.sample.devices


def test_headless_tells_each_event_in_a_line(start: Start) -> None:
    program, address = started(start, "--interval", "0.5")
    agent = start("node.py", "--server", address, "--id", "box", "--interval", "0.2", *SIMULATED)
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    program.line(stamp + r"joined box: \S+, 127\.0\.0\.1$")
    agent.process.send_signal(signal.SIGSTOP)
    program.line(stamp + r"late box: no heartbeat for \ds$")
    agent.process.send_signal(signal.SIGCONT)
    program.line(stamp + "back box: after ")
    agent.kill()
    program.line(stamp + "disconnected box: the stream broke$")
    again = start("node.py", "--server", address, "--id", "box", "--interval", "0.2", *SIMULATED)
    again.line("connected to")
    clone = start("node.py", "--server", address, "--id", "box", *SIMULATED)
    program.line(stamp + r"refused box: 127\.0\.0\.1: the id box is taken by \S+ at 127\.0\.0\.1 \(ALREADY_EXISTS\)$")
    assert clone.wait() == 1
    again.end()
    program.line(stamp + "left box: said goodbye$")
    assert program.end() == 130


RUN_NODE = "import node, sys; sys.exit(node.main(sys.argv[1:]))"
RUN_SERVER = "import server, sys; sys.exit(server.main(sys.argv[1:]))"


def test_ages_are_right_whatever_the_boxs_clock_says(start: Start) -> None:
    program, address = started(start, "--json")
    for hours in (1, -1):
        lie = f"import time; real = time.time; time.time = lambda: real() + {3600 * hours}; " + RUN_NODE
        start("-c", lie, "--server", address, "--id", f"box {hours}", "--interval", "0.2", *SIMULATED)
    for _ in range(2):
        for row in program.json_line(lambda line: sum("devices" in row["sample"] for row in line["nodes"]) == 2)["nodes"]:
            assert row["state"] == "ONLINE"
            assert 0 <= row["heartbeat_age_seconds"] < 3
            assert 0 <= row["sample_age_seconds"] < 3


def test_sensors_that_hang_are_told_from_a_dead_box(start: Start) -> None:
    program, address = started(start, "--json")
    hang = (
        "import threading; from edge.hardware.simulated import SimulatedBox; read, calls = SimulatedBox.host_sample, []\n"
        "def sample(self):\n"
        "    calls.append(1)\n"
        "    return read(self) if len(calls) < 4 else threading.Event().wait()\n"
        "SimulatedBox.host_sample = sample\n"
    ) + RUN_NODE
    start("-c", hang, "--server", address, "--id", "box", "--interval", "0.2", *SIMULATED)
    (row,) = program.json_line(lambda line: line["nodes"] and (line["nodes"][0]["sample_age_seconds"] or 0) > 3)["nodes"]
    assert row["state"] == "ONLINE"
    assert row["heartbeat_age_seconds"] < 2


FLEET = """
import asyncio, os, resource, sys, time
os.environ["GRPC_VERBOSITY"] = "NONE"
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
import grpc, grpc.aio
import node_pb2 as pb, node_pb2_grpc

async def session(address, number):
    channel = grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
    call = node_pb2_grpc.NodeServiceStub(channel).StreamHeartbeats()
    await call.write(pb.HeartbeatRequest(node_id=f"box-{number}", info=pb.NodeInfo(instance_id=str(number))))
    assert (await call.read()).acknowledged
    return call

async def main(address, count):
    calls = await asyncio.gather(*(session(address, number) for number in range(count)), return_exceptions=True)
    print("failed", [call for call in calls if isinstance(call, Exception)][:3], flush=True)
    for beat in range(1, 1000):
        await asyncio.sleep(1)
        for call in calls:
            await call.write(pb.HeartbeatRequest(sample=pb.Sample(sequence=beat)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_a_thousand_streams_at_once_are_all_admitted(start: Start) -> None:
    low = "from resource import *; setrlimit(RLIMIT_NOFILE, (256, getrlimit(RLIMIT_NOFILE)[1])); " + RUN_SERVER
    program = start("-c", low, "--listen", "127.0.0.1:0", "--json")
    address = program.line(r"listening on (\S+:\d+)")[1]
    fleet = start("-c", FLEET, address, "1000")
    fleet.line(r"failed \[\]", 30)
    line = program.json_line(lambda line: sum(int(row["sample"].get("sequence", 0)) >= 2 for row in line["nodes"]) == 1000, 30)
    assert {row["state"] for row in line["nodes"]} == {"ONLINE"}
    assert len(list((ROOT / f"/proc/{program.process.pid}/fd").iterdir())) > 1000
    fleet.kill()
    program.json_line(lambda line: {row["state"] for row in line["nodes"]} == {"DISCONNECTED"}, 10)
    assert program.end() == 130


def test_a_port_in_use_is_one_line(start: Start) -> None:
    _, address = started(start)
    port = int(address.rpartition(":")[2])
    second = start("server.py", "--listen", address)
    assert second.wait() == 1
    (line,) = second.lines
    assert line == f"server: port {port} is in use: is a server running already? Else try --listen 127.0.0.1:{port + 1}"


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("no-such-host.invalid:1", "cannot resolve no-such-host.invalid"),
        ("203.0.113.1:50051", "cannot listen on 203.0.113.1:50051"),
    ],
)
def test_an_address_that_is_not_this_machines_is_one_line(start: Start, listen: str, said: str) -> None:
    program = start("server.py", "--listen", listen)
    assert program.wait() == 1
    (line,) = program.lines
    assert said in line
    assert "give --listen" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "a b"], "write HOST or HOST:PORT"),
        (["--listen", "host:70000"], "port"),
        (["--listen", ""], "write HOST or HOST:PORT"),
        (["--interval", "0"], "0.1 to 3600"),
        (["--interval", "nan"], "0.1 to 3600"),
        (["--max-nodes", "0"], "from 1"),
        (["--max-nodes", "many"], "from 1"),
        (["--nonsense"], "--nonsense"),
        (["stray"], "stray"),
    ],
)
def test_bad_options_exit_with_2_and_say_what_to_do(start: Start, options: list[str], said: str) -> None:
    program = start("server.py", *options)
    assert program.wait() == 2
    assert said in program.lines[0]
    assert program.lines[1:] == ["try python3 server.pyz --help"]


def test_options_come_from_the_environment_and_a_flag_beats_it(start: Start) -> None:
    two = start("server.py", EDGE_LISTEN="127.0.0.1:0, 127.0.0.2:0", EDGE_JSON="1", EDGE_INTERVAL="2.5", EDGE_MAX_NODES="1")
    addresses = two.line(r"listening on (127\.0\.0\.1:\d+), (127\.0\.0\.2:\d+)$")
    assert unary(addresses[1], node_id="box").heartbeat_interval_milliseconds == 2500
    assert refusal(addresses[2], node_id="other")[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert two.json_line(lambda line: line["nodes"])
    flag = start(
        "server.py",
        "--listen",
        "127.0.0.3:0",
        "--listen",
        "127.0.0.4:0",
        "--interval",
        "3",
        EDGE_LISTEN="x.invalid",
        EDGE_INTERVAL="1",
    )
    addresses = flag.line(r"listening on (127\.0\.0\.3:\d+), (127\.0\.0\.4:\d+)$")
    for number in (1, 2):
        assert unary(addresses[number], node_id="box").heartbeat_interval_milliseconds == 3000
    wrong = start("server.py", EDGE_INTERVAL="often")
    assert wrong.wait() == 2
    assert "from EDGE_INTERVAL" in wrong.lines[0]


def test_version_and_help(start: Start) -> None:
    version = start("server.py", "--version")
    assert version.wait() == 0
    assert version.lines[0].startswith(f"server {VERSION} (Python ")
    about = start("server.py", "--help")
    assert about.wait() == 0
    text = "\n".join(about.lines)
    for option in (
        "--listen",
        "--interval",
        "--max-nodes",
        "--headless",
        "--json",
        "--no-color",
        "--debug",
        "--version",
        "EDGE_LISTEN",
    ):
        assert option in text


def test_the_default_takes_ipv6_and_ipv4(start: Start) -> None:
    assert default_endpoint().port == 50051
    host = str(default_endpoint()._replace(port=0))
    if host.startswith("0.0.0.0"):
        pytest.skip("this machine has no IPv6")
    program = start("server.py", "--listen", host)
    port = program.line(r"listening on \[::\]:(\d+)")[1]
    assert unary(f"127.0.0.1:{port}", node_id="four").acknowledged
    assert unary(f"[::1]:{port}", node_id="six").acknowledged
    program.line(r"joined four: 127\.0\.0\.1$")
    program.line(r"joined six: ::1$")


def test_a_limit_on_open_files_that_is_too_low_is_said(start: Start) -> None:
    low = "from resource import *; setrlimit(RLIMIT_NOFILE, (300, 300)); " + RUN_SERVER
    program = start("-c", low, "--listen", "127.0.0.1:0")
    program.line("warning server: only 300 files may be open here, so about 268 nodes: raise it with ulimit -Hn 16532")


def test_an_exception_in_the_network_thread_is_an_event_and_not_on_the_screen(start: Start) -> None:
    broken = (
        "import server, sys\n"
        "class Broken(server.Registry):\n"
        "    def open(self, *_):\n"
        "        return 1 / 0\n"
        "sys.exit(server.main(sys.argv[1:], Broken))"
    )
    program = start("-c", broken, "--listen", "127.0.0.1:0")
    address = program.line(r"listening on (\S+)")[1]
    stream = Stream(address, sample=pb.Sample(sequence=1))
    assert stream.status()[0] is grpc.StatusCode.UNKNOWN
    stream.close()
    program.line("error server: .*ZeroDivisionError")
    assert program.end() == 130
    assert not any("Traceback" in line for line in program.lines)


# ---- The program in a terminal ----


def test_the_program_ends_when_its_network_thread_dies(terminal: Open) -> None:
    broken = "import server; server.Service.close = lambda _: 1 / 0; server.Network.is_alive = lambda _: False; " + RUN_SERVER
    screen = terminal("-c", broken, "--listen", "127.0.0.1:0")
    assert screen.wait() == 1
    assert eventually(screen.is_restored)
    screen.shows("server: ZeroDivisionError")


@pytest.mark.parametrize("option", ["--headless", "--json"])
def test_plain_lines_on_request(terminal: Open, option: str) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0", option)
    screen.shows("listening on 127.0.0.1:")
    screen.press("\x03")
    assert screen.wait() == 130
    assert b"\x1b" not in screen.raw


@pytest.mark.parametrize("how", ["--no-color", "NO_COLOR"])
def test_no_color_means_no_color(terminal: Open, how: str) -> None:
    options, environ = ([how], {}) if how.startswith("--") else ([], {how: "1"})
    screen = terminal("server.py", "--listen", "127.0.0.1:0", *options, **environ)
    address = screen.shows(r"listening on (127\.0\.0\.1:\d+)")[1]
    unary(address, node_id="box", gpu_temp=99)
    screen.shows("● box")
    assert screen.cell("● box").fg == "default"
    assert screen.cell("99°C").fg == "default"
