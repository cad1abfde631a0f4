"""The orchestrator: liveness, sessions, bad input, its screen. Real sessions over real sockets, real processes and terminals."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import node
import node_pb2 as pb
import node_pb2_grpc
import server
from conftest import ROOT, Program, Terminal, eventually
from server import State

Start = Callable[..., Program]
Open = Callable[..., Terminal]
Serve = Callable[..., "Serving"]

LOCAL = (("grpc.use_local_subchannel_pool", 1),)  # a connection of its own for each channel
SIMULATED = ("--hardware", "simulated", "--seed", "1", "--headless")
DAY = 24 * 3600.0
# Clears the screen, paints, sets the title, moves up, turns the writing direction, breaks lines; and rich's markup.
NASTY = "\x1b[2J\x1b[41m\x1b]0;owned\x07\x9b5A\u202e\u2066evil\n\r\t\x00\x7f\x85[red]x[/red][/][bold"


@pytest.fixture(autouse=True)
def nothing_goes_wrong_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An exception that gRPC or asyncio catches in the network thread would be written across the operator's screen."""
    yield
    records = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not [record.getMessage() for record in records if not is_expected(record)]


def is_expected(record: logging.LogRecord) -> bool:
    return record.exc_info is not None and isinstance(record.exc_info[1], grpc.aio.InternalError)  # see server.ErrorEvents


class Clock:
    """Time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Serving:
    """A real registry and network on a free port, in this process."""

    def __init__(self, interval: float = 1.0, max_nodes: int = 100) -> None:
        self.registry = server.Registry(interval, max_nodes)
        self.network = server.Network(self.registry, [server.Endpoint("127.0.0.1", 0)])
        (endpoint,) = self.network.start()
        self.address, self.port = str(endpoint), endpoint.port

    def rows(self) -> dict[str, server.Row]:
        return {row.node_id: row for row in self.registry.snapshot()}

    def state(self, node_id: str) -> State | None:
        row = self.rows().get(node_id)
        return server.state_of(row, self.registry.clock()) if row else None

    def events(self) -> list[str]:
        return [f"{event.kind} {event.node_id}: {event.text}" for event in self.registry.events_since(0)[1]]

    def streams(self) -> int:
        return len(self.network._service._streams)


class Stream:
    """A session of a node that the test plays."""

    def __init__(
        self, address: str, node_id: str = "box", instance: str = "a", channel: grpc.Channel | None = None, **first: Any
    ) -> None:
        self.channel = channel or grpc.insecure_channel(address, options=LOCAL)
        self.outbox: queue.SimpleQueue[pb.HeartbeatRequest | None] = queue.SimpleQueue()
        self.call = node_pb2_grpc.NodeServiceStub(self.channel).StreamHeartbeats(iter(self.outbox.get, None), timeout=30)
        if node_id or instance or first:
            info = pb.NodeInfo(instance_id=instance, hostname=f"host-{instance}") if instance else None
            self.send(**{"node_id": node_id, "info": info, **first})

    def send(self, **fields: Any) -> None:
        self.outbox.put(pb.HeartbeatRequest(**fields))

    def answer(self) -> pb.HeartbeatResponse:
        response: pb.HeartbeatResponse = next(self.call)
        return response

    def half_close(self) -> None:
        self.outbox.put(None)

    def status(self) -> tuple[grpc.StatusCode, str]:
        """How the server ended it."""
        with contextlib.suppress(grpc.RpcError):
            for _ in self.call:
                pass
        return self.call.code(), self.call.details()

    def close(self) -> None:
        self.call.cancel()
        self.half_close()
        self.channel.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server of this process."""
    servings: list[Serving] = []

    def start(**settings: Any) -> Serving:
        servings.append(Serving(**settings))
        return servings[-1]

    yield start
    for serving in servings:
        serving.network.stop()
        assert not serving.network.is_alive()
        assert not serving.network.failure


@pytest.fixture
def connect() -> Iterator[Callable[..., Stream]]:
    """Opens sessions."""
    streams: list[Stream] = []

    def start(address: str, node_id: str = "box", instance: str = "a", **first: Any) -> Stream:
        streams.append(Stream(address, node_id, instance, **first))
        return streams[-1]

    yield start
    for stream in streams:
        stream.close()


def unary(address: str, **fields: Any) -> pb.HeartbeatResponse:
    """One unary heartbeat."""
    with grpc.insecure_channel(address, options=LOCAL) as channel:
        response: pb.HeartbeatResponse = node_pb2_grpc.NodeServiceStub(channel).Heartbeat(pb.HeartbeatRequest(**fields), timeout=20)
        return response


def refusal(address: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    """How the server refuses one unary heartbeat."""
    with pytest.raises(grpc.RpcError) as error:
        unary(address, **fields)
    return error.value.code(), error.value.details() or ""


def opened(
    registry: server.Registry, node_id: str, instance: str = "a", close: Any = lambda: None, **fields: Any
) -> server.Session:
    """A session of a registry without a network."""
    info = pb.NodeInfo(instance_id=instance, hostname=f"host-{instance}") if instance else None
    return registry.open(pb.HeartbeatRequest(node_id=node_id, info=info, **fields), "10.0.0.7", close)


def refused(action: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(server.Refused) as error:
        action()
    return error.value.code, str(error.value)


def kinds(registry: server.Registry) -> list[str]:
    return [event.kind for event in registry.events_since(0)[1]]


# ---- Liveness ----


@pytest.mark.parametrize(("interval", "late", "lost"), [(0.1, 0.3, 10.0), (1.0, 3.0, 10.0), (2.0, 6.0, 10.0), (10.0, 30.0, 50.0)])
def test_late_after_three_intervals_lost_after_ten_seconds_or_five(interval: float, late: float, lost: float) -> None:
    session = server.Session(pb.HeartbeatRequest(), "", None)
    row = server.Row("box", "", session, interval, heartbeat_at=0.0)
    ages = {0.0: State.ONLINE, late: State.ONLINE, late + 0.01: State.LATE, lost: State.LATE, lost + 0.01: State.LOST}
    assert {age: server.state_of(row, age) for age in ages} == ages
    broken = row._replace(session=None)
    assert [server.state_of(broken, age) for age in (0, lost, lost + 0.01)] == [State.DISCONNECTED, State.DISCONNECTED, State.LOST]
    left = row._replace(session=None, left=True)
    assert [server.state_of(left, age) for age in (0, lost + 1, 1e9)] == [State.LEFT] * 3


def test_silence_is_logged_once_with_its_reason_and_so_is_the_return() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 10, clock)
    session = opened(registry, "box")
    for seconds in (1, 2.5, 1, 1, 6, 1, 1):
        clock.now += seconds
        registry.watch()
    assert kinds(registry) == ["joined", "late", "lost"]
    assert registry.events_since(0)[1][-1].text == "no heartbeat for 11s"
    registry.heartbeat(session, pb.HeartbeatRequest())
    registry.heartbeat(session, pb.HeartbeatRequest())
    assert kinds(registry) == ["joined", "late", "lost", "back"]
    assert "after 13s" in registry.events_since(0)[1][-1].text
    assert server.state_of(registry.snapshot()[0], clock.now) is State.ONLINE


def test_a_lost_node_keeps_its_reason() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 10, clock)
    registry.end(opened(registry, "box"), "the stream broke")
    (row,) = registry.snapshot()
    assert server.reason_of(row, State.DISCONNECTED, clock.now) == "the stream broke"
    clock.now += 42
    assert server.reason_of(row, State.LOST, clock.now) == "no heartbeat for 42s; the stream broke"


@pytest.mark.parametrize("how", ["silent", "left", "broken"])
def test_a_row_is_forgotten_after_a_day_and_its_stream_ended(how: str) -> None:
    clock, ended = Clock(), threading.Event()
    registry = server.Registry(1.0, 10, clock)
    session = opened(registry, "box", close=ended.set)
    if how == "left":
        registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    elif how == "broken":
        registry.end(session, "the stream broke")
    clock.now += DAY - 1
    registry.watch()
    assert len(registry.snapshot()) == 1
    clock.now += 2
    registry.watch()
    assert registry.snapshot() == []
    assert ended.is_set() == (how == "silent")


def test_three_ages_are_told_apart() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 10, clock)
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
    assert server.state_of(row, clock.now) is State.ONLINE
    assert server.age_span(row, clock.now) == ("~30s", "bold yellow")  # sensors hang; the box lives
    (span, _) = server.age_span(row._replace(sample_at=row.heartbeat_at), clock.now + 30)
    assert span == "30s"  # the box is dead; its sensors did not hang


def test_a_sample_from_the_future_is_new_and_one_without_a_clock_too() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 10, clock)
    opened(registry, "future", sample=pb.Sample(sequence=1, taken_milliseconds=2**64 - 1))
    opened(registry, "none", sample=pb.Sample(sequence=1))
    assert [row.sample_at for row in registry.snapshot()] == [clock.now] * 2


def test_what_was_not_reported_is_no_vital() -> None:
    info = pb.NodeInfo(devices=[pb.DeviceInfo(memory_total_bytes=100, slowdown_temperature_celsius=90), pb.DeviceInfo()])
    blank = b"\xff" * (3 + 3 * len(info.devices))
    assert server.vitals_of(server.limits_of(info), pb.Sample()) == server.Vitals(frame=blank)
    lost = pb.Sample(devices=[pb.DeviceSample(error="lost"), pb.DeviceSample()])
    assert server.vitals_of(server.limits_of(info), lost) == server.Vitals(errors=1, frame=blank)
    reported = [
        pb.DeviceSample(utilization_percent=0, memory_used_bytes=25, temperature_celsius=40, power_milliwatts=0),
        pb.DeviceSample(utilization_percent=50, memory_used_bytes=99, temperature_celsius=30),
    ]
    frame = bytes([25, 25, 40, 0, 25, 40, 50, 255, 30])
    assert server.vitals_of(server.limits_of(info), pb.Sample(devices=reported)) == server.Vitals(
        0.25, 0.25, 25, 100, 40, 90, 0, 0, frame
    )
    assert node.history_frame((0.25, 0.25, 40), info, pb.Sample(devices=reported)) == frame  # the node's own screen shows the same
    host = pb.Sample(host=pb.HostSample(cpu_percent=50, memory_used_bytes=1, temperature_celsius=60))
    assert server.vitals_of(server.Limits(host_memory_bytes=4), host) == server.Vitals(
        0.5, 0.25, celsius=60, frame=bytes([50, 25, 60])
    )


def test_without_a_screen_only_what_is_asked_for_is_read() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 10, clock, keeps_history=False)
    session = opened(registry, "box", close=lambda: None)

    def beat(**fields: Any) -> None:
        clock.now += 1
        registry.heartbeat(session, pb.HeartbeatRequest(**fields))

    def sample(sequence: int, **fields: Any) -> pb.Sample:
        return pb.Sample(sequence=sequence, taken_milliseconds=1000, devices=[pb.DeviceSample(**fields)])

    beat(sample=sample(1, temperature_celsius=50))
    beat(sample=sample(2, temperature_celsius=60), clock_milliseconds=1500)
    beat(sample=sample(3, temperature_celsius=70), clock_milliseconds=1500)
    (row,) = registry.snapshot()
    assert (row.sample.sequence, row.vitals.celsius, row.heartbeat_at, row.sample_at) == (3, 70, clock.now, clock.now - 0.5)
    assert registry.acknowledgement(session).acknowledged_sequence == 3
    assert len(row.history) == len(row.vitals.frame)  # none is kept
    beat(processes=pb.ProcessList(processes=[pb.Process(pid=7)]))  # what comes after it does not lose it
    (row,) = registry.snapshot()
    assert (row.sample.sequence, row.sample_at, row.processes[0].pid) == (3, clock.now - 1.5, 7)
    beat(sample=sample(4, temperature_celsius=10_000))
    (row,) = registry.snapshot()
    assert row.vitals.celsius == 70  # nonsense is not shown
    with pytest.raises(server.Refused, match=r"sample.devices\[0\].temperature_celsius is 10000"):
        for _ in range(int(server.CHECK_SECONDS) + 1):
            beat(sample=sample(5, temperature_celsius=10_000))


# ---- Sessions ----


def test_a_stream_is_a_row_with_its_values(serve: Serve, connect: Callable[..., Stream]) -> None:
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
    assert "73°C" in server.plain(frame_of([row], 160, 45, serving.registry.clock()))
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


def test_a_backlog_is_accepted_and_acknowledged(serve: Serve, connect: Callable[..., Stream]) -> None:
    serving = serve()
    backlog = [pb.Sample(sequence=sequence) for sequence in (3, 4, 5)]
    assert connect(serving.address, "with", backlog=backlog, sample=pb.Sample(sequence=6)).answer().acknowledged_sequence == 6
    assert connect(serving.address, "only", backlog=backlog).answer().acknowledged_sequence == 5


def test_a_backlog_is_not_kept_in_memory() -> None:
    registry = server.Registry(1.0, 1000, Clock())
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


def test_a_goodbye_is_left_at_once_and_ends_the_stream(serve: Serve, connect: Callable[..., Stream]) -> None:
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
def test_a_broken_stream_is_disconnected_at_once_and_later_lost(
    serve: Serve, connect: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(server, "LOST_SECONDS", 1.0)
    serving = serve(interval=0.2)
    stream = connect(serving.address)
    stream.answer()
    {"half-close": stream.half_close, "cancel": stream.call.cancel, "reset": stream.channel.close}[how]()
    eventually(lambda: serving.state("box") is State.DISCONNECTED, 1.0)
    assert serving.rows()["box"].reason == "the stream broke"
    eventually(lambda: serving.state("box") is State.LOST)
    serving.registry.watch()
    assert [event.split()[0] for event in serving.events()] == ["joined", "disconnected", "lost"]
    eventually(lambda: serving.streams() == 0)


def test_the_same_instance_takes_over_from_its_own_old_stream(serve: Serve, connect: Callable[..., Stream]) -> None:
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


def test_the_late_end_of_an_old_stream_does_not_take_a_newer_session_offline() -> None:
    registry = server.Registry(1.0, 10, Clock())
    old = opened(registry, "box")
    new = opened(registry, "box")
    registry.end(old, "the stream broke")
    assert registry.snapshot()[0].session is new
    code, reason = refused(lambda: registry.heartbeat(old, pb.HeartbeatRequest()))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "another session of box has taken over")
    refused(lambda: registry.heartbeat(old, pb.HeartbeatRequest(leaving=True)))
    assert not registry.snapshot()[0].left


def test_a_clone_is_refused_and_told_who_holds_the_id(serve: Serve, connect: Callable[..., Stream]) -> None:
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


def test_clones_that_race_get_one_winner(serve: Serve, connect: Callable[..., Stream]) -> None:
    serving = serve()
    streams = [connect(serving.address, instance=str(number)) for number in range(20)]
    eventually(lambda: sum(stream.call.done() for stream in streams) == 19)
    assert len(serving.rows()) == 1
    assert serving.streams() == 1


@pytest.mark.parametrize("how", ["late", "broken", "left"])
def test_a_dead_holder_gives_way(how: str) -> None:
    clock, ended = Clock(), threading.Event()
    registry = server.Registry(1.0, 10, clock)
    holder = opened(registry, "box", "a", close=ended.set, sample=pb.Sample(sequence=99))
    if how == "late":
        clock.now += 3.1
    elif how == "broken":
        registry.end(holder, "the stream broke")
    else:
        registry.heartbeat(holder, pb.HeartbeatRequest(leaving=True))
    successor = opened(registry, "box", "b")
    (row,) = registry.snapshot()
    assert row.session is successor
    assert row.info.hostname == "host-b"
    assert row.sample_at is None  # nothing of the other box is shown as this one's
    assert not row.sample.sequence
    assert ended.is_set() == (how == "late")
    assert kinds(registry)[-1] == "joined"


def test_who_may_take_over_from_unary_heartbeats() -> None:
    registry = server.Registry(1.0, 10, Clock())
    old = pb.HeartbeatRequest(node_id="old", gpu_temp=50)
    assert registry.take_unary(old, "10.0.0.1") is registry.take_unary(old, "10.0.0.1")
    code, _ = refused(lambda: opened(registry, "old", "a"))  # a living first version's node is not pushed aside
    assert code is grpc.StatusCode.ALREADY_EXISTS
    ours = pb.HeartbeatRequest(node_id="ours", info=pb.NodeInfo(instance_id="a"))
    session = registry.take_unary(ours, "10.0.0.1")
    assert registry.take_unary(pb.HeartbeatRequest(node_id="ours"), "10.0.0.1") is session  # info comes only with the first
    assert opened(registry, "ours", "a") is not session  # the same instance, with a stream now
    assert registry.take_unary(ours, "10.0.0.1") is not session  # and back
    opened(registry, "anonymous", "")
    opened(registry, "anonymous", "")  # a script's stream, started again
    for action in (
        lambda: opened(registry, "old", ""),  # the kinds of call do not mix: these are two senders
        lambda: registry.take_unary(pb.HeartbeatRequest(node_id="anonymous"), "10.0.0.1"),
    ):
        assert refused(action)[0] is grpc.StatusCode.ALREADY_EXISTS


def test_the_cadence_is_what_the_user_asks_stretched_when_the_fleet_exceeds_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEARTBEATS_PER_SECOND", 10)
    clock = Clock()
    registry = server.Registry(0.5, 1000, clock)
    sessions = [opened(registry, f"box-{number}") for number in range(5)]
    registry.watch()
    assert registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds == 500
    sessions += [opened(registry, f"box-{number}") for number in range(5, 16)]
    registry.watch()
    assert registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds == 1600  # told again
    rows = {row.node_id: row for row in registry.snapshot()}
    assert rows["box-0"].interval_seconds == 1.6
    assert rows["box-1"].interval_seconds == 0.5  # not told yet: it is not late before its own three intervals
    for session in sessions[1:]:
        registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    registry.watch()
    assert registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds == 500  # those that left do not count


def test_acknowledgements_are_coalesced_and_spread(
    serve: Serve, connect: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = server.Registry(1.0, 1000, Clock())
    due = [opened(registry, f"box-{number}").next_acknowledgement_at - 1000 for number in range(200)]
    assert 0 <= min(due) < 1
    assert server.ACKNOWLEDGE_SECONDS - 1 < max(due) <= server.ACKNOWLEDGE_SECONDS < node.SILENCE_SECONDS - 2
    monkeypatch.setattr(server, "ACKNOWLEDGE_SECONDS", 0.4)
    stream = connect(serve().address)
    stream.answer()
    for sequence in range(1, 101):
        stream.send(sample=pb.Sample(sequence=sequence))
        time.sleep(0.01)  # a heartbeat comes now and then, not a hundred at once
    stream.send(leaving=True)
    answers = [answer.acknowledged_sequence for answer in stream.call]
    assert answers == sorted(answers)
    assert answers[-1] == 100
    assert 2 <= len(answers) <= 20


def test_node_n_plus_one_is_refused_and_a_gone_one_gives_way(serve: Serve, connect: Callable[..., Stream]) -> None:
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
    clock, ended = Clock(), threading.Event()
    registry = server.Registry(1.0, 3, clock)
    opened(registry, "first", close=ended.set)
    clock.now += 5
    opened(registry, "second")
    clock.now += 6
    registry.watch()
    opened(registry, "living")
    clock.now += 5
    living = opened(registry, "living")
    registry.watch()
    opened(registry, "new")
    assert ended.is_set()
    assert {row.node_id for row in registry.snapshot()} == {"second", "living", "new"}
    opened(registry, "newer")
    assert {row.node_id for row in registry.snapshot()} == {"living", "new", "newer"}
    registry.heartbeat(living, pb.HeartbeatRequest())
    assert refused(lambda: opened(registry, "one too many"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_came_back_since_the_last_watch_does_not_give_way() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 1, clock)
    session = opened(registry, "box")
    clock.now += 11
    registry.watch()
    registry.heartbeat(session, pb.HeartbeatRequest())
    assert refused(lambda: opened(registry, "new"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_what_strangers_send_is_bounded_in_memory() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 50, clock)
    for number in range(2000):
        with contextlib.suppress(server.Refused):
            registry.take_unary(pb.HeartbeatRequest(node_id=f"box-{number}"), "10.0.0.9")
        clock.now += 0.5
        registry.watch()
    assert len(registry.snapshot()) == 50
    assert len(registry._told) <= 50
    assert len(registry._gone) <= 50
    assert len(registry._events) <= server.EVENTS_KEPT


def test_many_refusals_do_not_flood_the_log() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 50, clock)
    for _ in range(500):
        registry.complain("refused", "box", "no")
    assert kinds(registry).count("refused") == server.COMPLAINTS_PER_SECOND
    clock.now += 1
    registry.complain("refused", "box", "no")
    assert kinds(registry).count("refused") == server.COMPLAINTS_PER_SECOND + 1


# ---- Bad input ----


@pytest.mark.parametrize("node_id", ["", "   ", "x" * 64, "a\x1b[31mb", "a\nb", "a\tb", "a\x7f", "a\u202eb", "a\u200bb"])
def test_an_id_that_can_not_name_a_node_is_refused(serve: Serve, connect: Callable[..., Stream], node_id: str) -> None:
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


def numeric_fields(message: Any) -> list[str]:
    """Names of the fields of a message that are numbers with a range."""
    return [field.name for field in message.DESCRIPTOR.fields if field.name in server.RANGES]


BOUNDED = [
    (where, field)
    for where, kind in (
        ("host", pb.HostSample),
        ("device", pb.DeviceSample),
        ("info.host", pb.HostInfo),
        ("info.device", pb.DeviceInfo),
    )
    for field in numeric_fields(kind)
]
UNBOUNDED = {  # numbers that may be anything
    "HeartbeatRequest": {"clock_milliseconds", "round_trip_microseconds"},
    "NodeInfo": {"backend", "session_number"},
    "DeviceInfo": {"index"},
    "Sample": {"sequence", "taken_milliseconds"},
    "HostSample": {"uptime_seconds"},
    "DeviceSample": {"throttle_reasons"},
}


def with_field(where: str, field: str, value: float) -> pb.HeartbeatRequest:
    """A heartbeat with one number."""
    request = pb.HeartbeatRequest(node_id="box")
    targets: dict[str, Callable[[], Any]] = {
        "host": lambda: request.sample.host,
        "device": request.sample.devices.add,
        "info.host": lambda: request.info.host,
        "info.device": request.info.devices.add,
        "heartbeat": lambda: request,
    }
    setattr(targets[where](), field, value)
    return request


def test_every_number_has_a_range_or_is_known_to_need_none() -> None:
    for kind in (pb.HeartbeatRequest, pb.NodeInfo, pb.HostInfo, pb.DeviceInfo, pb.Sample, pb.HostSample, pb.DeviceSample):
        numbers = {
            field.name
            for field in kind.DESCRIPTOR.fields
            if field.type not in (field.TYPE_STRING, field.TYPE_BYTES, field.TYPE_MESSAGE, field.TYPE_BOOL)
        }
        assert numbers - set(server.RANGES) == UNBOUNDED.get(kind.DESCRIPTOR.name, set()), kind.DESCRIPTOR.name


@pytest.mark.parametrize(("where", "field"), [*BOUNDED, ("heartbeat", "gpu_temp")])
def test_a_number_out_of_its_range_is_refused_by_its_name(where: str, field: str) -> None:
    registry = server.Registry(1.0, 10, Clock())
    lowest, highest = server.RANGES[field]
    largest = (highest + 1, 2**31 - 1, 2**32 - 1, 2**64 - 1, float("nan"), float("inf"), float("-inf"), lowest - 1, -(2**31), -1e30)
    tried = 0
    for value in largest:
        try:
            request = with_field(where, field, value)
        except (ValueError, TypeError):  # the field's type can't hold it
            continue
        if lowest <= value <= highest:
            continue
        tried += 1
        code, reason = refused(lambda request=request: registry.open(request, ""))  # type: ignore[misc]
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert field in reason
        assert "must be from" in reason
    assert tried
    assert registry.snapshot() == []
    for value in (lowest, highest):
        with contextlib.suppress(ValueError, TypeError):
            registry.take_unary(with_field(where, field, value), "")


def test_a_bad_heartbeat_ends_its_own_session_and_no_other(serve: Serve, connect: Callable[..., Stream]) -> None:
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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"info": pb.NodeInfo(devices=[pb.DeviceInfo()] * 129)}, "129 devices"),
        ({"sample": pb.Sample(devices=[pb.DeviceSample()] * 129)}, "129 devices"),
        ({"info": pb.NodeInfo(hostname="h" * 257)}, "info.hostname"),
        ({"info": pb.NodeInfo(host=pb.HostInfo(model="h" * 257))}, "info.host.model"),
        ({"info": pb.NodeInfo(devices=[pb.DeviceInfo(), pb.DeviceInfo(name="h" * 257)])}, "info.devices[1].name"),
        ({"sample": pb.Sample(devices=[pb.DeviceSample(error="h" * 257)])}, "sample.devices[0].error"),
        ({"info": pb.NodeInfo.FromString(b"\xfa\x7f\x80\x80\x08" + bytes(2**17))}, "info has 131077 bytes"),  # an unknown field
        ({"sample": pb.Sample.FromString(b"\xfa\x7f\x80\x80\x08" + bytes(2**17))}, "sample has 131077 bytes"),
    ],
)
def test_what_is_too_much_to_keep_is_refused(fields: dict[str, Any], named: str) -> None:
    code, reason = refused(lambda: server.Registry(1.0, 10).open(pb.HeartbeatRequest(node_id="box", **fields), ""))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert named in reason


def test_a_time_that_is_none_does_not_reach_the_json(serve: Serve, connect: Callable[..., Stream]) -> None:
    serving = serve()
    for seconds, nanos in ((2**62, 0), (-(2**62), 0), (0, -5), (0, 2**31 - 1)):
        info = pb.NodeInfo(instance_id="a")
        info.started_at.seconds, info.started_at.nanos = seconds, nanos
        code, reason = connect(serving.address, info=info).status()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "info.started_at" in reason
    server.snapshot_json(serving.registry)


def test_a_message_over_one_mebibyte_is_refused(serve: Serve, connect: Callable[..., Stream]) -> None:
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


def test_a_stream_that_says_nothing_is_ended(serve: Serve, connect: Callable[..., Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_MESSAGE_SECONDS", 0.2)
    serving = serve()
    silent = connect(serving.address, "", "")
    assert silent.status() == (grpc.StatusCode.DEADLINE_EXCEEDED, "no message within 0.2 s")
    empty = connect(serving.address, "", "")
    empty.half_close()
    assert empty.status() == (grpc.StatusCode.INVALID_ARGUMENT, "the stream ended before its first message")
    assert serving.rows() == {}


@pytest.mark.parametrize("garbage", [b"\xff" * 50, b"\x0a\x03\xff\xfe\xfd", b"\x0a" + b"\xff" * 9 + b"\x01", b"\x0b" * 500])
def test_bytes_that_are_no_heartbeat_are_refused(serve: Serve, connect: Callable[..., Stream], garbage: bytes) -> None:
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


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: str = "/node.NodeService/StreamHeartbeats") -> bytes:
    """A request's headers, uncompressed."""
    pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    pairs["content-type"] = "application/grpc"
    return b"".join(bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in pairs.items())


def message(request: pb.HeartbeatRequest) -> bytes:
    """A message as gRPC frames it."""
    data = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


@pytest.fixture
def dial() -> Iterator[Callable[..., socket.socket]]:
    """Opens raw connections, and sends bytes."""
    sockets: list[socket.socket] = []

    def start(serving: Serving, *data: bytes) -> socket.socket:
        sockets.append(socket.create_connection(("127.0.0.1", serving.port), timeout=20))
        with contextlib.suppress(OSError):  # the server has hung up already
            sockets[-1].sendall(b"".join(data))
        return sockets[-1]

    yield start
    for opened_socket in sockets:
        opened_socket.close()


def test_garbage_on_the_wire_disturbs_nobody(
    serve: Serve, connect: Callable[..., Stream], dial: Callable[..., socket.socket]
) -> None:
    serving = serve()
    other = connect(serving.address, "other")
    other.answer()
    dial(serving, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    dial(serving, bytes(range(256)) * 20)
    dial(serving, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))  # TLS
    dial(serving, PREFACE, bytes(range(200)))
    dial(serving, PREFACE, frame(4, 0, 0, b""), frame(1, 4, 1, headers("/node.NodeService/Nothing")))
    dial(serving, PREFACE, frame(4, 0, 0, b""), frame(1, 4, 1, headers()), frame(0, 0, 1, b"\x07\xff\xff\xff\xff"))
    for _ in range(50):
        dial(serving, b"PRI")  # half a greeting, and silence
    reset = (headers_and_reset(2 * number + 1) for number in range(500))
    dial(serving, PREFACE, frame(4, 0, 0, b""), *reset)
    other.send(sample=pb.Sample(sequence=5))
    eventually(lambda: serving.rows()["other"].sample.sequence == 5)
    assert set(serving.rows()) == {"other"}


def headers_and_reset(stream: int) -> bytes:
    return frame(1, 4, stream, headers()) + frame(3, 0, stream, struct.pack(">I", 8))


def test_nodes_that_never_read_can_not_hold_the_server(serve: Serve, dial: Callable[..., socket.socket]) -> None:
    serving = serve()
    no_window = frame(4, 0, 0, struct.pack(">HI", 4, 0))  # SETTINGS_INITIAL_WINDOW_SIZE = 0: not one answer can be sent
    for number in range(10):
        first = message(pb.HeartbeatRequest(node_id=f"slow-{number}"))
        goodbye = message(pb.HeartbeatRequest(leaving=True))
        dial(serving, PREFACE, no_window, frame(1, 4, 1, headers()), frame(0, 0, 1, first), frame(0, 0, 1, goodbye))
    eventually(lambda: len(serving.rows()) == 10)
    unary(serving.address, node_id="other")
    begun = time.monotonic()
    serving.network.stop()
    assert not serving.network.is_alive()
    assert time.monotonic() - begun < server.GOODBYE_SECONDS


def test_half_closing_is_an_end_though_the_connection_stays(serve: Serve, dial: Callable[..., socket.socket]) -> None:
    serving = serve()
    first = message(pb.HeartbeatRequest(node_id="box"))
    dial(serving, PREFACE, frame(4, 0, 0, b""), frame(1, 4, 1, headers()), frame(0, 1, 1, first))
    eventually(lambda: serving.state("box") is State.DISCONNECTED)
    assert serving.rows()["box"].reason == "the stream broke"
    assert serving.streams() == 0


def test_a_standstill_of_the_server_is_told_and_no_node_is_lost_by_it() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 10, clock)
    watch = server.Watch(registry)
    session = opened(registry, "box")
    clock.now += 1
    watch.keep()
    clock.now += 60
    watch.keep()
    registry.heartbeat(session, pb.HeartbeatRequest())
    clock.now += 1
    watch.keep()
    assert [(event.kind, event.node_id) for event in registry.events_since(0)[1]] == [("joined", "box"), ("warning", "server")]
    assert "stood still for 1m00s" in registry.events_since(0)[1][-1].text
    clock.now += 4
    watch.keep()
    assert registry.events_since(0)[1][-1].kind == "late"


def test_a_large_heartbeat_is_read_at_once_and_what_is_not_known_is_dropped() -> None:
    registry = server.Registry(1.0, 10, keeps_history=False)
    session = opened(registry, "box")
    registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=1)))
    unknown = b"\xa2\x06" + b"\x80\x80\x04" + bytes(65_536)  # field 100, of a newer version
    request = pb.HeartbeatRequest.FromString(pb.HeartbeatRequest(sample=pb.Sample(sequence=2)).SerializeToString() + unknown)
    registry.heartbeat(session, request)
    (row,) = registry._all()
    assert (row.unread, row.sample.sequence) == (b"", 2)
    assert len(row.packed_sample) < 100


def test_a_goodbye_is_taken_whatever_came_before_it_and_an_end_settles_what_was_unread() -> None:
    registry = server.Registry(1.0, 10, keeps_history=False)
    for node_id, ends in (("polite", False), ("rude", True)):
        session = opened(registry, node_id, sample=pb.Sample(sequence=1))
        session.next_check_at = math.inf
        registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=2, host=pb.HostSample(cpu_percent=900))))
        if ends:
            registry.end(session, "the stream broke")
        else:
            registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    polite, rude = registry._all()
    assert (polite.left, polite.unread, polite.sample.sequence) == (True, b"", 1)
    assert (rude.reason, rude.unread, rude.sample.sequence) == ("the stream broke", b"", 1)


def test_who_said_goodbye_gives_way_before_who_is_lost() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 3, clock)
    for node_id in ("lost", "left"):
        session = opened(registry, node_id)
    clock.now += 20
    registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    registry.watch()
    opened(registry, "new-1")
    opened(registry, "new-2")
    assert [row.node_id for row in registry.snapshot()] == ["lost", "new-1", "new-2"]


def test_a_history_starts_anew_when_the_devices_change() -> None:
    registry = server.Registry(1.0, 10)
    devices = [pb.DeviceInfo(index=index) for index in range(2)]
    two = pb.NodeInfo(instance_id="a", devices=devices)
    session = registry.open(pb.HeartbeatRequest(node_id="box", info=two, sample=pb.Sample(sequence=1)), "10.0.0.7", None)
    assert len(registry.snapshot()[0].history) == 3 * 3
    registry.heartbeat(session, pb.HeartbeatRequest(info=pb.NodeInfo(instance_id="a", devices=devices[:1])))
    assert registry.snapshot()[0].history == b""
    registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=2)))
    assert len(registry.snapshot()[0].history) == 2 * 3


def test_a_refused_heartbeat_does_not_bring_a_node_back() -> None:
    clock = Clock()
    registry = server.Registry(1.0, 10, clock)
    session = opened(registry, "box")
    clock.now += 20
    registry.watch()
    refused(lambda: registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(host=pb.HostSample(cpu_percent=900)))))
    assert kinds(registry) == ["joined", "lost"]


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


def test_sessions_that_end_leave_nothing_to_the_garbage_collector(serve: Serve) -> None:
    """Reference cycles would pile up until it runs, with the messages that they hold."""
    serving = serve(max_nodes=3)
    gc.collect()
    gc.disable()
    try:
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
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = [found for found in gc.garbage if type(found).__module__ == "server" or is_frame_of_server(found)]
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    assert ours == []


def is_frame_of_server(found: object) -> bool:
    return isinstance(found, types.FrameType) and found.f_code.co_filename == server.__file__


def test_one_id_can_not_pile_up_streams(serve: Serve, connect: Callable[..., Stream]) -> None:
    serving = serve()
    with grpc.insecure_channel(serving.address, options=LOCAL) as channel:
        streams = [Stream("", channel=channel) for _ in range(100)]
        eventually(lambda: len([event for event in serving.events() if event.startswith("back")]) == 99)
        eventually(lambda: serving.streams() == 1)
        for stream in streams:
            stream.close()


# ---- What a node says is text, and nothing else ----


def spoil(message: Any) -> Any:
    """NASTY in every text of a message, and of the messages in it."""
    for field in message.DESCRIPTOR.fields:
        repeated = isinstance(getattr(message, field.name), type(pb.HeartbeatRequest().backlog)) or field.is_repeated
        if field.type == field.TYPE_STRING:
            setattr(message, field.name, NASTY)
        elif field.type == field.TYPE_MESSAGE and repeated:
            spoil(getattr(message, field.name).add())
        elif field.type == field.TYPE_MESSAGE and field.name != "started_at":
            spoil(getattr(message, field.name))
    return message


def nasty_heartbeat() -> pb.HeartbeatRequest:
    request: pb.HeartbeatRequest = spoil(pb.HeartbeatRequest())
    request.node_id = "[red]box[/] [bold"  # what has control characters is refused
    del request.backlog[:]
    request.leaving = False
    device = request.sample.devices[0]
    device.utilization_percent, device.temperature_celsius = 50, 60
    return request


def is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")


def test_every_text_is_spoilt() -> None:
    texts = str(nasty_heartbeat())
    for name in ("hostname", "agent_version", "instance_id", "notice", "model", "operating_system", "uuid", "name", "error"):
        assert re.search(rf"\b{name}: .*owned", texts), name


def test_nothing_a_node_sends_moves_the_operators_cursor_or_colour(terminal: Open) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0")
    address = screen.shows(r"listening on (127\.0\.0\.1:\d+)")[1]
    stream = Stream(address, "", "")
    try:
        stream.outbox.put(nasty_heartbeat())
        stream.answer()
        Stream(address, "box\x1b[2J\x07", "").status()
        Stream(address, "clone", NASTY, sample=pb.Sample(devices=[pb.DeviceSample(error="x" * 300)])).status()
        screen.shows(r"\[red\]box\[/\] \[bold")
        screen.shows("refused")
        screen.press("\x1b[B\x1b[A")
        screen.shows("�")
        lines = screen.text().splitlines()
        assert lines[0].startswith(" Edge fleet")
        assert lines[2].startswith("╭─ Nodes ─")
        assert lines[-1].startswith(" q quit")
        panel = lines[2:-1]
        assert {line[0] for line in panel} <= set("╭│╰")
        assert {line[159] for line in panel} <= set("╮│╯")  # nothing wrapped, nothing moved
        assert screen.cell("�").bg == "default"
        assert screen.cell("evil").bg == "default"
        for stolen in (
            b"owned\x07",
            b"\x1b]",
            b"\x1b[41m",
            b"\x9b5A",
            b"\x07",
            "\u202e".encode(),
            "\u2066".encode(),
            "\x85".encode(),
        ):
            assert stolen not in screen.raw
        screen.press("q")
        assert screen.wait() == 0
        assert screen.is_restored()
    finally:
        stream.close()


@pytest.mark.parametrize("option", ["--headless", "--json"])
def test_no_control_character_reaches_a_line_or_json(start: Start, option: str) -> None:
    program, address = started(start, option)
    stream = Stream(address, "", "")
    try:
        stream.outbox.put(nasty_heartbeat())
        stream.answer()
        Stream(address, "box\x1b[2J\x07", "").status()
        if option == "--json":
            (row,) = program.json_line(lambda line: line["nodes"])["nodes"]
            assert row["hostname"] == NASTY  # a program gets what was sent, in JSON's own escapes
            assert row["info"]["devices"][0]["name"] == NASTY
        else:
            program.line(r"joined \[red\]box\[/\] \[bold: �\[2J�\[41m�")
            program.line(r"refused box�\[2J�: 127\.0\.0\.1: a node id has printable characters only")
    finally:
        stream.close()
    assert program.end() == 130
    assert not [line for line in program.lines if any(map(is_control, line))]


# ---- The program ----


def started(start: Start, *options: str) -> tuple[Program, str]:
    """A real server on a free port, and where it listens."""
    program = start("server.py", "--listen", "127.0.0.1:0", *options)
    return program, program.line(r"listening on (\S+:\d+)")[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_all_sessions_with_unavailable(start: Start, connect: Callable[..., Stream], number: int, code: int) -> None:
    program, address = started(start)
    streams = [connect(address, f"box-{number}") for number in range(20)]
    for stream in streams:
        stream.answer()
    silent = connect(address, "", "")
    program.line("joined box-19")
    begun = time.monotonic()
    assert program.end(number) == code
    assert time.monotonic() - begun < 2
    for stream in streams:
        assert stream.status() == (grpc.StatusCode.UNAVAILABLE, "the server is going away: come back soon")
    assert silent.status()[0] is grpc.StatusCode.UNAVAILABLE
    assert not any("Traceback" in line for line in program.lines)


def test_json_lines_have_exactly_these_keys(start: Start, connect: Callable[..., Stream]) -> None:
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


def test_headless_tells_each_event_in_a_line(start: Start) -> None:
    program, address = started(start)
    agent = start("node.py", "--server", address, "--id", "box", "--interval", "0.2", *SIMULATED)
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    program.line(stamp + r"joined box: \S+, 127\.0\.0\.1$")
    agent.process.send_signal(signal.SIGSTOP)
    program.line(stamp + r"late box: no heartbeat for 3s$")
    agent.process.send_signal(signal.SIGCONT)
    program.line(stamp + "back box: after ")
    agent.kill()
    program.line(stamp + "disconnected box: the stream broke$", 2)
    again = start("node.py", "--server", address, "--id", "box", "--interval", "0.2", *SIMULATED)
    again.line("connected to")
    clone = start("node.py", "--server", address, "--id", "box", *SIMULATED)
    program.line(stamp + r"refused box: 127\.0\.0\.1: the id box is taken by \S+ at 127\.0\.0\.1 \(ALREADY_EXISTS\)$")
    assert clone.wait() == 1
    again.end()
    program.line(stamp + "left box: said goodbye$")
    assert program.end() == 130


def test_a_killed_node_is_lost_after_ten_seconds(start: Start) -> None:
    program, address = started(start, "--json")
    agent = start("node.py", "--server", address, "--id", "box", *SIMULATED)
    program.json_line(lambda line: line["nodes"] and line["nodes"][0]["state"] == "ONLINE")
    agent.kill()
    (row,) = program.json_line(lambda line: line["nodes"][0]["state"] != "ONLINE", 4)["nodes"]
    assert (row["state"], row["reason"]) == ("DISCONNECTED", "the stream broke")
    (row,) = program.json_line(lambda line: line["nodes"][0]["state"] == "LOST")["nodes"]
    assert 10 < row["heartbeat_age_seconds"] < 13
    assert re.fullmatch(r"no heartbeat for 1\ds; the stream broke", row["reason"])
    assert row["sample"]["devices"]  # the last values stay


RUN_NODE = "import node, sys; sys.exit(node.main(sys.argv[1:]))"
RUN_SERVER = "import server, sys; sys.exit(server.main(sys.argv[1:]))"


@pytest.mark.parametrize("hours", [1, -1])
def test_ages_are_right_whatever_the_boxs_clock_says(start: Start, hours: int) -> None:
    program, address = started(start, "--json")
    lie = f"import time; real = time.time; time.time = lambda: real() + {3600 * hours}; " + RUN_NODE
    start("-c", lie, "--server", address, "--id", "box", "--interval", "0.2", *SIMULATED)
    for _ in range(2):
        (row,) = program.json_line(lambda line: line["nodes"] and "devices" in line["nodes"][0]["sample"])["nodes"]
        assert row["state"] == "ONLINE"
        assert 0 <= row["heartbeat_age_seconds"] < 3
        assert 0 <= row["sample_age_seconds"] < 3


def test_sensors_that_hang_are_told_from_a_dead_box(start: Start) -> None:
    program, address = started(start, "--json")
    hang = (
        "import threading, node; read, calls = node.SimulatedHardware.sample, []\n"
        "def sample(self):\n"
        "    calls.append(1)\n"
        "    return read(self) if len(calls) < 4 else threading.Event().wait()\n"
        "node.SimulatedHardware.sample = sample\n"
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
    assert version.lines[0].startswith(f"server {server.VERSION} (Python ")
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
    assert server.default_endpoint().port == 50051
    host = str(server.default_endpoint()._replace(port=0))
    if host.startswith("0.0.0.0"):
        pytest.skip("this machine has no IPv6")
    program = start("server.py", "--listen", host)
    port = program.line(r"listening on \[::\]:(\d+)")[1]
    assert unary(f"127.0.0.1:{port}", node_id="four").acknowledged
    assert unary(f"[::1]:{port}", node_id="six").acknowledged
    program.line(r"joined four: 127\.0\.0\.1$")
    program.line(r"joined six: ::1$")


@pytest.mark.parametrize("option", ["--json", "--headless"])
def test_a_reader_that_closes_the_pipe_ends_it_quietly(option: str) -> None:
    with subprocess.Popen(
        [sys.executable, "server.py", "--listen", "127.0.0.1:0", option],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()
        process.stdout.close()
        if option == "--headless":
            unary(first.split()[-1], node_id="box")
        assert process.wait(10) == 128 + signal.SIGPIPE
        assert re.sub(r"[-\d]+ [:\d]+ (listening on|stopped by) \S+\n", "", process.stderr.read()) == ""


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "server.py", "--listen", "127.0.0.1:0"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "server: cannot write: no space left on device\n"


def test_a_limit_on_open_files_that_is_too_low_is_said(start: Start) -> None:
    low = "from resource import *; setrlimit(RLIMIT_NOFILE, (300, 300)); " + RUN_SERVER
    program = start("-c", low, "--listen", "127.0.0.1:0")
    program.line("warning server: only 300 files may be open here, so about 200 nodes: raise it with ulimit -Hn 15100")


def test_an_exception_in_the_network_thread_is_an_event_and_not_on_the_screen(start: Start) -> None:
    broken = "import server; server.vitals_of = lambda *_: 1 / 0; " + RUN_SERVER
    program = start("-c", broken, "--listen", "127.0.0.1:0")
    address = program.line(r"listening on (\S+)")[1]
    stream = Stream(address, sample=pb.Sample(sequence=1))
    assert stream.status()[0] is grpc.StatusCode.UNKNOWN
    stream.close()
    program.line("error server: .*ZeroDivisionError")
    assert program.end() == 130
    assert not any("Traceback" in line for line in program.lines)


# ---- The screen ----


def frame_of(rows: list[server.Row], width: int, height: int, now: float = 1000.0) -> list[server.Line]:
    """The table of these rows."""
    registry = server.Registry(1.0, 100_000, clock=lambda: now)
    for row in rows:
        registry.restore(row)
    events = [server.Event(0.0, "joined", "box", "why")]
    return server.render(server.look(server.Lens(registry), server.Ui(), width, height, "[::]:50051", events), width, height)


def examples(count: int = 24) -> list[server.Row]:
    return list(map(server.example_row, range(count)))


def exact(lines: list[server.Line], width: int, height: int) -> bool:
    """Whether a frame has exactly its size, in cells."""
    return len(lines) == height and all(sum(server.cells(text) for text, _ in line) == width for line in lines)


@pytest.mark.parametrize(
    "size", [(160, 45), (120, 36), (80, 24), (60, 16), (50, 15), (40, 10), (39, 9), (40, 9), (1, 1), (7, 0), (0, 7), (0, 0)]
)
@pytest.mark.parametrize("count", [0, 1, 24, 300])
def test_a_frame_has_exactly_its_size(size: tuple[int, int], count: int) -> None:
    rows = examples(count)
    wide = [
        row._replace(node_id="机" * 40, address="a" * 300, packed_info=pb.NodeInfo(hostname="机" * 200).SerializeToString())
        for row in rows[:1]
    ]
    assert exact(frame_of(rows, *size), *size)
    assert exact(frame_of(wide + rows[1:], *size), *size)


def test_the_screen_at_160_by_45_has_all_columns_and_states() -> None:
    text = server.plain(frame_of(examples(), 160, 45))
    assert re.search(r"NODE↑ +HOSTNAME +STATE +HARDWARE +UTIL +MEM +TEMP +POWER +AGE", text)
    assert "24 nodes  ● 21 online  ◐ 1 late  ✗ 1 lost  ◌ 1 left" in text
    assert re.search(r"\d+ GPUs · utilization \d+% · hottest \d+°C Node-10\d\d · memory \S+ \wiB of \S+ \wiB · power \S+ kW", text)
    assert re.search(r"● Node-1000 +edge-00 +ONLINE +8× H200 +[▁▂▃▄▅▆▇█]+ [█▏▎▍▌▋▊▉·]+ +\d+% .* \d+°C +\S+ kW +0s", text)
    assert re.search(r"◐ Node-1006 .* LATE", text)
    assert re.search(r"✗ Node-1011 .* LOST .* 31s", text)
    assert re.search(r"◌ Node-1017 .* LEFT", text)
    assert "joined" in text.split("Events")[1]


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((80, 24), ("NODE", "HOSTNAME", "UTIL", "MEM", "TEMP", "POWER", "AGE")),
        ((50, 15), ("NODE", "UTIL", "MEM", "TEMP", "AGE")),
        ((40, 10), ("NODE", "UTIL", "TEMP")),
    ],
)
def test_a_narrow_screen_keeps_what_matters_most(size: tuple[int, int], kept: tuple[str, ...]) -> None:
    text = server.plain(frame_of(examples(), *size))
    (titles,) = [line for line in text.splitlines() if "NODE↑" in line]
    assert all(title in titles for title in kept)
    assert "● Node-1000" in text
    assert text.splitlines()[-1].startswith(" q quit")
    assert ("Events" in text) == (size[1] >= 16)


def test_too_small_a_screen_says_so() -> None:
    assert "too small: 39x9, needs 40x10" in server.plain(frame_of(examples(), 39, 9))
    assert frame_of(examples(), 0, 0) == []


def test_an_empty_fleet_says_what_to_do() -> None:
    text = server.plain(frame_of([], 80, 24))
    assert "No node yet" in text
    assert "node.pyz --server THIS-HOST" in text


def test_order_is_by_name_as_people_count() -> None:
    ids = ["Node-10", "node-2", "Node-9", "²", "10", "9", "Node-9b", "Node"]
    assert sorted(ids, key=server.natural) == ["9", "10", "Node", "Node-9", "Node-9b", "Node-10", "node-2", "²"]


def test_the_screen_follows_a_fleet_and_its_keys(terminal: Open) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0", columns=100, lines=24)
    address = screen.shows(r"listening on (127\.0\.0\.1:\d+)")[1]
    for number in range(30):
        unary(address, node_id=f"box-{number}", gpu_temp=40 + number)
    screen.shows("30 nodes  ● 30 online")
    screen.shows(r"Nodes 1 to 1\d of 30")
    screen.shows("69°C box-29")
    assert "box-29 " not in screen.text().split("Events")[0].split("Nodes")[1]
    screen.press("\x1b[B\x1b[F")
    screen.shows(r"Nodes \d\d to 30 of 30")
    screen.press("\x1b[H")
    screen.shows(r"Nodes 1 to \d\d of 30")
    screen.resize(60, 15)
    eventually(lambda: screen.text().splitlines()[14].startswith(" q quit"))
    screen.resize(20, 5)
    screen.shows("too small: 20x5")
    screen.resize(100, 24)
    screen.shows(r"◐ 30 late")
    assert screen.cell("◐ 30 late").fg == "brown"  # pyte's word for yellow
    screen.press("q")
    assert screen.wait() == 0
    assert screen.is_restored()


@pytest.mark.parametrize(("keys", "number", "code"), [("\x03", 0, 130), ("", signal.SIGTERM, 143), ("", signal.SIGHUP, 129)])
def test_the_terminal_is_restored_however_it_ends(terminal: Open, keys: str, number: int, code: int) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0")
    screen.shows("No node yet")
    if keys:
        screen.press(keys)
    else:
        screen.process.send_signal(number)
    assert screen.wait() == code
    assert eventually(screen.is_restored)


def test_the_terminal_is_restored_after_an_exception(terminal: Open) -> None:
    screen = terminal("-c", "import server; server.render = lambda *_: 1 / 0; " + RUN_SERVER, "--listen", "127.0.0.1:0")
    assert screen.wait() == 1
    assert eventually(screen.is_restored)
    screen.shows("server: ZeroDivisionError .*--debug")
    assert "Traceback" not in screen.text()


def test_the_program_ends_when_its_network_thread_dies(terminal: Open) -> None:
    broken = "import server; server.Service.close = lambda _: 1 / 0; server.Network.is_alive = lambda _: False; " + RUN_SERVER
    screen = terminal("-c", broken, "--listen", "127.0.0.1:0")
    assert screen.wait() == 1
    assert eventually(screen.is_restored)
    screen.shows("server: ZeroDivisionError")


def test_a_closed_terminal_ends_the_server(terminal: Open) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0")
    screen.shows("No node yet")
    os.close(screen.slave)
    os.close(screen.master)
    assert screen.wait() == 129


def test_suspend_gives_the_terminal_back(terminal: Open) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0")
    screen.shows("No node yet")
    screen.press("\x1a")
    eventually(lambda: os.waitpid(screen.process.pid, os.WUNTRACED | os.WNOHANG)[0])
    assert eventually(screen.is_restored)
    start = len(screen.raw)
    screen.process.send_signal(signal.SIGCONT)
    eventually(lambda: b"No node yet" in screen.raw[start:])
    screen.press("q")
    assert screen.wait() == 0


def test_a_terminal_of_no_size_does_not_end_the_server(terminal: Open) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0", columns=0, lines=0)
    eventually(lambda: b"\x1b[?1049h" in screen.raw)
    screen.resize(80, 24)
    screen.shows("No node yet")
    screen.press("q")
    assert screen.wait() == 0


@pytest.mark.parametrize("options", [["--headless"], ["--json"], []])
def test_plain_lines_on_request_and_on_a_dumb_terminal(terminal: Open, options: list[str]) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0", *options, TERM="xterm" if options else "dumb")
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
