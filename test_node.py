"""What a node does end to end: its link to the server, its command line, its screen. Real servers, processes and terminals."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pathlib
import queue
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

import node
import node_pb2 as pb
import node_pb2_grpc
from bench.messages import BOXES, Box
from edge import history, limits
from edge.drawing import cells, plain
from edge.errors import SessionEnded
from edge.fleet.row import Refused
from edge.hardware.host import LocalHost
from edge.hardware.identity import Identity, draw_id, machine_text
from edge.hardware.machine import Machine, simulated
from edge.hardware.options import parse_options
from edge.hardware.round_trips import RoundTrips
from edge.hardware.screen import Link, View, render
from edge.hardware.simulated import CATALOGUE
from edge.program import VERSION
from edge.protocol import BACKLOG_SAMPLES, MAX_TEXT
from edge.trust import Trust
from server import Registry
from tests.fixtures.processes import Program, Terminal, eventually
from tests.fixtures.sessions import Clock, Serving

Start = Callable[..., Program]
Open = Callable[..., Terminal]
SIMULATED = ("--hardware", "simulated", "--seed", "1")


def started_server(start: Start, *options: str, port: int = 0) -> tuple[Program, str]:
    """A real server and where it listens."""
    server = start("server.py", "--headless", "--listen", f"127.0.0.1:{port}", *options)
    return server, server.line(r"listening on (\S+:\d+)")[1]


@pytest.fixture
def grpc_server() -> Iterator[Callable[..., str]]:
    """Starts a gRPC server of the test's own with the given behaviour; returns its address."""
    servers = []

    def serve(servicer: node_pb2_grpc.NodeServiceServicer) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        node_pb2_grpc.add_NodeServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(0)


# ---- The threads and what they share ----


class Shaky:
    """One device that fails at its second reading."""

    backend = pb.BACKEND_NVML
    readings = 0

    def notices(self) -> list[str]:
        return []

    def device_infos(self) -> list[pb.DeviceInfo]:
        return [pb.DeviceInfo()]

    def device_samples(self) -> list[pb.DeviceSample]:
        self.readings += 1
        return [pb.DeviceSample(error="GPU is lost" if self.readings == 2 else "")]

    def energies(self) -> list[int | None]:
        return []

    def processes(self) -> list[pb.Process]:
        return []


def test_telemetry_logs_a_failing_device_once_and_its_return() -> None:
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 0.01)
    telemetry = threading.Thread(target=node.keep_sampling, args=(Machine(LocalHost(), [Shaky()]), state, 0.01))
    telemetry.start()
    eventually(lambda: state.newest_sequence() >= 5)
    state.close()
    telemetry.join(5)
    lines = [(line.kind, line.text) for line in state.view().log]
    assert lines == [("error", "GPU 0: GPU is lost"), ("info", "GPU 0: answers again")]
    assert not telemetry.is_alive()


def test_what_a_box_is_replaces_what_it_was_and_a_history_of_other_devices_ends() -> None:
    one, two = pb.NodeInfo(devices=[pb.DeviceInfo()]), pb.NodeInfo(devices=[pb.DeviceInfo(), pb.DeviceInfo()])
    state = node.NodeState("Node-1", "", one, 1.0)
    sample = pb.Sample(sequence=1, devices=[pb.DeviceSample(utilization_percent=7)])
    state.publish(sample, pb.NodeInfo(devices=[pb.DeviceInfo()]))
    assert state.view().info is one  # the same is not sent again
    renamed = pb.NodeInfo(hostname="other", devices=[pb.DeviceInfo()])
    frame = state.view().history
    state.publish(sample, renamed)
    assert (state.view().info, state.view().history) == (renamed, 2 * frame)
    state.publish(sample, two)
    assert state.view().info is two
    assert len(state.view().history) == len(frame) + len(history.COLUMNS)


class Slow(Shaky):
    """One device whose readings take these seconds of the clock."""

    def __init__(self, clock: Clock, *seconds: float) -> None:
        self.clock, self.seconds = clock, list(seconds)

    def device_samples(self) -> list[pb.DeviceSample]:
        self.clock.now += self.seconds.pop(0)
        return [pb.DeviceSample()]


class Waiting(node.NodeState):
    """A state in which a wait takes no time but the clock's, and that is closed where the device has nothing left to say."""

    slow: Slow

    def wait(self, condition: Callable[[], object], seconds: float) -> None:
        self.slow.clock.now += seconds
        if not self.slow.seconds:
            self.close()


def test_samples_keep_their_cadence_and_a_slow_reading_skips_beats() -> None:
    clock = Clock()
    state = Waiting("Node-1", "", pb.NodeInfo(), 1.0, clock)
    state.slow = Slow(clock, 0.25, 0.5, 2.5, 0.25, 0.25)
    node.keep_sampling(Machine(LocalHost(), [state.slow]), state, 1.0)
    assert [sample.taken_milliseconds for sample in state.unacknowledged()] == [0, 1000, 2000, 4500, 5500]
    assert [sample.sequence for sample in state.unacknowledged()] == [1, 2, 3, 4, 5]


def test_each_change_has_another_version_and_is_told() -> None:
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 1.0, Clock())
    told: list[str] = []
    state.on_change = lambda: told.append("changed")
    processes = pb.ProcessList(processes=[pb.Process(pid=7)])
    for number, change in enumerate(
        (
            lambda: state.publish(pb.Sample(sequence=1)),
            lambda: state.publish_processes(processes),
            lambda: state.rename("Node-2"),
            lambda: state.update_link(phase="connected"),
            lambda: state.log("connected"),
            state.close,
        )
    ):
        assert state.version() == len(told) == number
        change()
    state.publish_processes(pb.ProcessList(processes=[pb.Process(pid=7)]))  # no news
    assert state.version() == len(told) == 6


def test_a_view_says_how_old_its_sample_is() -> None:
    clock = Clock()
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 1.0, clock)
    clock.now += 1
    state.publish(pb.Sample(sequence=1))
    clock.now += 2.5
    assert state.view().sample_age_seconds == 2.5


def test_a_failure_is_logged_and_ends_the_program() -> None:
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 1.0)
    state.fail("the box is on fire")
    assert [(line.kind, line.text) for line in state.view().log] == [("error", "the box is on fire")]
    assert (state.failure, state.is_closed()) == ("the box is on fire", True)


def test_each_notice_is_logged_once() -> None:
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 1.0)
    for notices in (["no fan"], ["no fan", "no disk"], [], ["no disk"]):
        state.tell(notices)
    assert [(line.kind, line.text) for line in state.view().log] == [("warning", "no fan"), ("warning", "no disk")]


def test_an_info_says_how_often_the_box_is_read_and_is_no_longer_than_a_server_takes() -> None:
    notices = [f"reading {number} can't be read (Input/output error)" for number in range(20)]
    info = node.make_info(Machine(LocalHost(), notices=notices), "i", 0.25)
    assert info.sampling_interval_milliseconds == 250
    assert (len(info.notice), info.notice[-1]) == (MAX_TEXT, "…")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroDivisionError("a bug"), "die failed: ZeroDivisionError: a bug; run with --debug for more, and please report it"),
        (RuntimeError("can't start new thread"), limits.too_few_threads()),
    ],
    ids=["bug", "limit"],
)
def test_the_death_of_a_thread_ends_the_program_with_its_reason(error: Exception, said: str) -> None:
    def die() -> None:
        raise error

    state = node.NodeState("Node-1", "", pb.NodeInfo(), 1.0)
    node.guarded(state, False, die).join(5)
    assert state.is_closed()
    assert state.failure == said


def test_what_is_acknowledged_is_kept_no_longer() -> None:
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 1.0)
    for sequence in (1, 2, 3):
        state.publish(pb.Sample(sequence=sequence))
    state.acknowledge(2)
    assert [sample.sequence for sample in state.unacknowledged()] == [3]
    state.acknowledge(1)  # an old answer
    assert [sample.sequence for sample in state.unacknowledged()] == [3]


def test_a_round_trip_is_from_a_sample_to_its_acknowledgement_and_told_once() -> None:
    trips = RoundTrips()
    assert trips.take_microseconds() == 0
    trips.sent(1, 10.0)
    trips.sent(2, 11.0)
    assert trips.heard(1, 10.25) == 0.25
    trips.sent(3, 12.0)  # between two acknowledgements
    assert trips.take_microseconds() == 250_000
    assert trips.take_microseconds() == 0
    assert trips.heard(3, 12.75) == 0.75
    assert trips.take_microseconds() == 750_000


def test_what_was_not_sent_or_is_acknowledged_already_has_no_round_trip() -> None:
    trips = RoundTrips()
    assert trips.heard(1, 10.0) is None
    for sequence in (1, 2, 3):
        trips.sent(sequence, 10.0)
    assert trips.heard(2, 10.5) == 0.5
    assert trips.heard(2, 11.0) is None
    assert trips.heard(1, 11.0) is None  # forgotten with the second: it was before it
    assert trips.take_microseconds() == 500_000  # what is not known does not count
    assert trips.heard(3, 12.0) == 2.0
    trips.sent(4, 12.0)
    assert trips.heard(4, 12.0) == 0
    assert trips.take_microseconds() == 1  # 0 would say that nothing was measured


def test_no_round_trip_is_lost_between_the_two_threads() -> None:
    trips, rounds = RoundTrips(), 5000
    acknowledged: queue.SimpleQueue[int] = queue.SimpleQueue()
    told: list[int] = []

    def send() -> None:
        for sequence in range(1, rounds + 1):
            trips.sent(sequence, 0.0)
            acknowledged.put(sequence)
            told.append(trips.take_microseconds())

    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        heard = 0
        while heard < rounds:
            heard = acknowledged.get()
            while not acknowledged.empty():
                heard = acknowledged.get()
            assert trips.heard(heard, heard / 1e6) == heard / 1e6
    finally:
        sys.setswitchinterval(switch_seconds)
        sender.join(10)
    told.append(trips.take_microseconds())
    measured = [microseconds for microseconds in told if microseconds]
    assert measured == sorted(set(measured))  # each once, in their order
    assert measured[-1] == rounds


# ---- A session, without its server ----


def session_of(state: node.NodeState, identity: Identity | None = None, interval_seconds: float = 1.0) -> node.Session:
    return node.Session(state, identity or Identity("box-1", "machine"), Trust(), "server:1", interval_seconds)


def answer(sequence: int = 0, interval_milliseconds: int = 0) -> pb.HeartbeatResponse:
    return pb.HeartbeatResponse(
        acknowledged=True, acknowledged_sequence=sequence, heartbeat_interval_milliseconds=interval_milliseconds
    )


def test_a_first_heartbeat_brings_all_and_the_next_ones_what_is_new() -> None:
    clock, identity = Clock(), Identity(None, "machine")
    state = node.NodeState("Node-1", "", pb.NodeInfo(hostname="edge-07"), 1.0, clock)
    samples = [pb.Sample(sequence=sequence, host=pb.HostSample(cpu_percent=10 * sequence)) for sequence in (1, 2, 3, 4)]
    for sample in samples[:3]:
        state.publish(sample)
    processes = pb.ProcessList(processes=[pb.Process(pid=7)])
    state.publish_processes(processes)
    state.update_link(sessions=4, last_error="x" * 257)
    clock.now += 1.5
    session = session_of(state, identity)
    info = pb.NodeInfo(
        hostname="edge-07", box_id=identity.box_id, id_is_drawn=True, session_number=5, last_error="x" * MAX_TEXT
    )  # fmt: skip
    assert session._heartbeat() == pb.HeartbeatRequest(
        node_id="Node-1", clock_milliseconds=1500, info=info, backlog=samples[:2], sample=samples[2], processes=processes,
        summary=pb.Summary(cpu_percent=30, utilization_permille=300),
    )  # fmt: skip
    clock.now += 1
    assert session._heartbeat() == pb.HeartbeatRequest(clock_milliseconds=2500)
    info.hostname = "edge-08"
    state.publish(samples[3], pb.NodeInfo(hostname="edge-08"))
    state.update_link(sessions=5)  # this one
    sums = pb.Summary(cpu_percent=40, utilization_permille=400)
    assert session._heartbeat() == pb.HeartbeatRequest(clock_milliseconds=2500, info=info, sample=samples[3], summary=sums)
    state.publish_processes(pb.ProcessList())
    assert session._heartbeat() == pb.HeartbeatRequest(clock_milliseconds=2500, processes=pb.ProcessList())
    assert session_of(state)._heartbeat().info.session_number == 6


def test_a_heartbeat_of_8_gpus_is_small_on_the_wire() -> None:
    """With what HTTP/2 and gRPC add to it, of a box that is a day old."""
    largest = max(len(beat.frame) for seed in range(BOXES) for beat in Box(8, seed).beats)
    assert 300 < largest < 345


def test_a_round_trip_is_shown_here_and_told_to_the_server() -> None:
    clock = Clock()
    state = node.NodeState("box-1", "", pb.NodeInfo(), 1.0, clock)
    state.publish(pb.Sample(sequence=1))
    session = session_of(state)
    session._heartbeat()
    clock.now += 0.25
    session._hear(answer(1), 1)
    session._hear(answer(1), 1)  # no news: what was measured stays
    assert state.view().link.round_trip_seconds == 0.25
    assert state.unacknowledged() == []
    assert [session._heartbeat().round_trip_microseconds for _ in range(2)] == [250_000, 0]


def test_the_first_answer_connects_and_another_interval_is_told() -> None:
    state = node.NodeState("box-1", "", pb.NodeInfo(), 1.0, Clock())
    state.update_link(phase="waiting", reason="broken", sessions=2, last_error="broken")
    session = session_of(state)
    session._hear(answer(interval_milliseconds=2500), 0)
    assert state.view().link == Link("connected", sessions=3, interval_seconds=2.5, last_error="broken")
    assert session.acknowledged
    for milliseconds, seconds in ((2500, 2.5), (500, 0.5), (0, 0.5), (1, 0.1), (10_000_000, 3600)):
        session._hear(answer(interval_milliseconds=milliseconds), 0)
        assert state.view().link.interval_seconds == seconds
    assert state.view().link.sessions == 3
    assert [(line.kind, line.text) for line in state.view().log] == [
        ("info", "connected to server:1, a heartbeat every 2.5 s"),
        ("info", "server:1 asks for a heartbeat every 0.5 s"),
        ("info", "server:1 asks for a heartbeat every 0.1 s"),
        ("info", "server:1 asks for a heartbeat every 3600 s"),
    ]


def test_an_id_that_cannot_be_kept_is_told_when_a_server_takes_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/file")
    state = node.NodeState("", "", pb.NodeInfo(), 1.0, Clock())
    identity = Identity(None, "machine")
    identity.redraw()
    session_of(state, identity)._hear(answer(), 0)
    assert identity.is_own
    (warning,) = [line.text for line in state.view().log if line.kind == "warning"]
    assert re.fullmatch(r"after a restart this node may have another id: this one can't be kept \(.+\)", warning)


def test_a_server_is_silent_for_some_time_before_a_session_is_given_up() -> None:
    clock = Clock()
    state = node.NodeState("box-1", "", pb.NodeInfo(), 1.0, clock)
    session = session_of(state, interval_seconds=2.0)
    clock.now += 10
    session._check_silence()
    clock.now += 0.5
    with pytest.raises(SessionEnded, match=r"^server:1 has been silent for 10 s: the connection is half-open$"):
        session._check_silence()
    session._hear(answer(), 0)
    clock.now += 16
    session._check_silence()
    clock.now += 1
    with pytest.raises(SessionEnded, match="silent for 17 s"):
        session._check_silence()
    session._over = True  # it has ended, for a reason of its own
    session._check_silence()


class Simulated(node.NodeState):
    """A state whose time is a clock's: a wait takes none, and meanwhile happens what is to happen at a second."""

    def __init__(self) -> None:
        self.time = Clock()
        self.to_come: dict[float, Callable[[], object]] = {}
        super().__init__("box-1", "", pb.NodeInfo(), 1.0, self.time)

    def wait(self, condition: Callable[[], object], seconds: float) -> None:
        end = self.time.now + max(seconds, 0)
        while not condition() and self.time.now < end:
            self.time.now = min([end, *(self.started_at + second for second in self.to_come)])
            self.to_come.pop(self.time.now - self.started_at, lambda: None)()


@pytest.mark.parametrize(
    ("happens", "second"),
    [
        ({}, 1.1),
        ({0.5: "a sample"}, 0.9),
        ({1.0: "a sample"}, 1.0),
        ({0.5: 10_000}, 11.0),
        ({0.5: 1000}, 1.1),
        ({0.25: 500}, 0.55),
        ({0.25: 500, 0.5: "a sample"}, 0.5),
        ({0.5: "the end"}, 0.5),
        ({1.0: "the end"}, 1.0),
    ],
)
def test_a_beat_is_an_interval_and_a_sample_brings_it_a_tenth_forward_or_back(happens: dict[float, Any], second: float) -> None:
    state = Simulated()
    state.publish(pb.Sample(sequence=1))
    session = session_of(state)
    session._heartbeat()
    over: list[bool] = []
    for at, what in happens.items():
        if what == "a sample":
            state.to_come[at] = functools.partial(state.publish, pb.Sample(sequence=2))
        elif what == "the end":
            state.to_come[at] = functools.partial(over.append, True)
        else:
            state.to_come[at] = functools.partial(session._hear, answer(interval_milliseconds=what), 0)
    session._wait_for_beat(lambda: bool(over))
    assert state.time.now - state.started_at == pytest.approx(second)


# ---- The command line ----


def test_once_prints_a_reading_and_exits(start: Start) -> None:
    program = start("node.py", "--once", *SIMULATED)
    assert program.wait() == 0
    text = "\n".join(program.lines)
    assert text.count("NVIDIA H200") == 8
    assert "cpu" in text
    assert "\x1b" not in text


def test_once_as_json(start: Start) -> None:
    program = start("node.py", "--once", "--json", *SIMULATED, "--id", "box-1")
    assert program.wait() == 0
    (line,) = program.lines
    reading = json.loads(line)
    assert set(reading) == {"time", "node_id", "info", "sample"}
    assert reading["node_id"] == "box-1"
    assert reading["info"]["backend"] == "BACKEND_SIMULATED"
    assert len(reading["sample"]["devices"]) == 8
    assert 0 <= reading["sample"]["devices"][0]["temperature_celsius"] < 100
    assert [device["index"] for device in reading["info"]["devices"]] == list(range(8))  # the first one's 0 as well
    assert reading["info"]["sampling_interval_milliseconds"] == 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--interval", "0"], "0.1 to 3600"),
        (["--interval", "nan"], "0.1 to 3600"),
        (["--server", "http://x:1"], "HOST:PORT"),
        (["--server", "x:0"], "no port from 1"),
        (["--server", "x:99999"], "no port from 1"),
        (["--server", "x,"], "'' is no address"),
        (["--server", "x", "--server", "y:0"], "'y:0' has no port from 1"),
        (["--id", ""], "must not be empty"),
        (["--id", "x" * 64], "at most 63"),
        (["--id", "a\x1b[2J"], "printable"),
        (["--hardware", "cuda"], "auto, nvml, host, simulated"),
        (["--seed", "x"], "--seed"),
        (["--seed", "3"], "--seed is for --hardware simulated"),
        (["--faults", "hot"], "--faults is for --hardware simulated"),
        (["--faults", "hot,cold", *SIMULATED], "'cold' is none of hot, failed-gpu, hung-sensors"),
        (["--servr", "x"], "--servr"),
    ],
)
def test_bad_options_exit_with_2_and_say_what_to_do(start: Start, options: list[str], said: str) -> None:
    program = start("node.py", *options)
    assert program.wait() == 2
    assert said in program.lines[0]
    assert "--help" in program.lines[-1]
    assert all(line.isprintable() for line in program.lines)


def test_a_switch_that_is_neither_on_nor_off(start: Start) -> None:
    program = start("node.py", EDGE_HEADLESS="maybe")
    assert program.wait() == 2
    assert program.lines[0].endswith("argument --headless: 'maybe' is neither 1 nor 0 (from EDGE_HEADLESS in the environment)")


def test_each_option_comes_from_the_environment_and_a_flag_beats_it(start: Start) -> None:
    environ = {"EDGE_ONCE": "1", "EDGE_JSON": "1", "EDGE_HARDWARE": "simulated", "EDGE_SEED": "0", "EDGE_ID": "from-env"}
    first, second = start("node.py", **environ), start("node.py", "--id", "from-flag", **environ)
    third = start("node.py", EDGE_INTERVAL="soon")
    assert (first.wait(), second.wait(), third.wait()) == (0, 0, 2)
    assert json.loads(first.lines[0])["node_id"] == "from-env"
    assert json.loads(second.lines[0])["node_id"] == "from-flag"
    assert "from EDGE_INTERVAL in the environment" in third.lines[0]


@pytest.mark.parametrize(
    ("argv", "environ", "servers"),
    [
        ([], None, ["localhost:50051"]),
        (["--server", "b"], "a", ["b:50051"]),
        (["--server", "b", "--server", "c:7", "--server", "b:50051"], "a", ["b:50051", "c:7", "b:50051"]),
        (["--server", "b, fd00::1", "--server", "c"], None, ["b:50051", "[fd00::1]:50051", "c:50051"]),
        ([], "a:1,[fd00::2]:3", ["a:1", "[fd00::2]:3"]),
    ],
)
def test_servers_are_a_list(argv: list[str], environ: str | None, servers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if environ:
        monkeypatch.setenv("EDGE_SERVER", environ)
    assert [str(endpoint) for endpoint in parse_options(argv).server] == servers


@pytest.mark.parametrize(
    ("argv", "environ", "labels"),
    [
        ([], "", {}),
        (["--label", "rack=a3", "--label", "team=ml,x=1"], "rack=b", {"rack": "a3", "team": "ml", "x": "1"}),
        ([], "rack=a3,team=ml", {"rack": "a3", "team": "ml"}),
    ],
)
def test_labels_are_a_map(argv: list[str], environ: str, labels: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_LABEL", environ)
    assert parse_options(argv).labels == labels


def test_labels_are_few_and_each_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    many = ",".join(f"n{number}=x" for number in range(17))
    for labels, said in (("rack=a3,rack=a4", "give each name once"), (many, "a node has at most 16 labels, this one 17")):
        with pytest.raises(SystemExit):
            parse_options(["--label", labels])
        assert said in capsys.readouterr().err


def test_a_reading_says_the_labels(start: Start) -> None:
    program = start("node.py", "--once", "--json", "--hardware", "simulated", "--label", "rack=a3")
    assert program.wait() == 0
    assert json.loads(program.lines[0])["info"]["labels"] == {"rack": "a3"}
    program = start("node.py", "--once", "--hardware", "simulated", "--label", "team=ml,rack=a3")
    assert program.wait() == 0
    assert " · rack=a3 team=ml" in program.lines[0]


def test_faults_of_simulated_hardware_are_a_list(start: Start) -> None:
    flag = start("node.py", "--once", "--json", *SIMULATED, "--faults", "hot,failed-gpu")
    environ = start("node.py", "--once", "--json", *SIMULATED, EDGE_FAULTS="failed-gpu")
    assert (flag.wait(), environ.wait()) == (0, 0)
    hot, well = (json.loads(program.lines[0])["sample"]["devices"] for program in (flag, environ))
    assert [device.get("error") for device in hot] == [device.get("error") for device in well]
    assert (well[7]["error"], hot[0]["throttle_reasons"]) == ("GPU is lost (simulated)", "32")
    assert hot[0]["temperature_celsius"] >= 87 > well[0]["temperature_celsius"]


def test_version_and_help(start: Start) -> None:
    version, about = start("node.py", "--version"), start("node.py", "--help")
    assert (version.wait(), about.wait()) == (0, 0)
    assert VERSION in version.lines[0]
    text = "\n".join(about.lines)
    for option in ("--server", "--id", "--hardware", "--interval", "--headless", "--once", "--json", "--debug", "--no-color"):
        assert option in text
        assert "EDGE_" + option[2:].upper().replace("-", "_") in text


def test_nvml_asked_for_and_not_there_is_one_line(start: Start) -> None:
    if pathlib.Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    program = start("node.py", "--hardware", "nvml")
    assert program.wait() == 1
    (line,) = program.lines
    assert "--hardware host" in line


# ---- The link ----


def nodes_of(server: Program) -> dict[str, Any]:
    """The newest snapshot of a server with --json, by node id."""
    snapshot = server.json_line(lambda _: True)
    return {row["node_id"]: row for row in snapshot["nodes"]}


def test_nodes_report_and_leave_cleanly(start: Start) -> None:
    server, address = started_server(start, "--json")
    ends = {"box-1": signal.SIGINT, "box-2": signal.SIGTERM, "box-3": signal.SIGHUP}
    agents = {node_id: start("node.py", "--server", address, "--id", node_id, *SIMULATED) for node_id in ends}

    def have_reported(line: Any) -> bool:
        return {row["node_id"] for row in line["nodes"] if int(row["sample"].get("sequence", 0)) >= 2} == {*ends}

    for row in server.json_line(have_reported)["nodes"]:
        assert row["state"] == "ONLINE"
        assert len(row["sample"]["devices"]) == len(row["info"]["devices"]) == 8
        assert row["info"]["devices"][0]["index"] == 0
        assert row["heartbeat_age_seconds"] < 3
    for node_id, number in ends.items():
        agents[node_id].line("connected to")
        assert agents[node_id].end(number) == 128 + number
        agents[node_id].line("goodbye acknowledged")
    assert server.json_line(lambda line: {row["state"] for row in line["nodes"]} == {"LEFT"})


GROWING = """
import itertools, sys
import node, node_pb2 as pb
from edge.errors import SessionEnded
from edge.hardware.host import LocalHost
from edge.hardware.machine import Machine

class Growing:
    backend, readings = pb.BACKEND_NVML, 0
    def notices(self):
        return ["GPU 1: fan can't be read (Unknown Error)"] if self.readings > 5 else []
    def device_infos(self):
        return [pb.DeviceInfo(name=f"H{number}", memory_total_bytes=100) for number in range(1 + self.readings // 8)]
    def energies(self):
        return []

    def device_samples(self):
        self.readings += self.readings < 16
        return [pb.DeviceSample(utilization_percent=7, memory_used_bytes=50) for _ in self.device_infos()]
    def processes(self):
        return []

sys.exit(node.main(sys.argv[1:], find_machine=lambda *_: Machine(LocalHost(), [Growing()])))
"""


def test_what_changes_while_a_session_lasts_is_sent_and_the_history_follows(start: Start, serve: Callable[..., Serving]) -> None:
    serving = serve(interval=0.1)
    agent = start("-c", GROWING, "--server", serving.address, "--id", "box", "--interval", "0.1", "--headless")
    eventually(lambda: "box" in serving.rows())
    assert [device.name for device in serving.rows()["box"].info.devices] == ["H0"]
    eventually(lambda: len(serving.rows()["box"].info.devices) == 3 and len(serving.rows()["box"].history) > 60)
    row = serving.rows()["box"]
    assert [(device.index, device.name) for device in row.info.devices] == [(0, "H0"), (1, "H1"), (2, "H2")]
    assert row.info.notice == "GPU 1: fan can't be read (Unknown Error)"
    assert row.info.session_number == 1
    width = len(history.COLUMNS) * 4  # of a frame: the node and three devices
    assert len(row.history) % width == 0
    for start_at in range(0, len(row.history), width):
        assert list(row.history[start_at + 3 : start_at + 5]) == [7, 50]
    agent.line("GPU 1: fan can't be read")
    assert not [event for event in serving.events() if "refused" in event]


SLOW_DIRECTORY = """
import os, pwd, sys, threading
import pynvml, node
from tests.fixtures.nvml import Driver, h200, running

pwd.getpwuid = lambda uid: threading.Event().wait()  # a directory service that is away
pynvml.nvmlLib = Driver(h200(nvmlDeviceGetComputeRunningProcesses_v3=running((os.getpid(), 2**30))))
sys.exit(node.main(sys.argv[1:]))
"""


def test_samples_do_not_wait_for_a_directory_of_users(start: Start) -> None:
    agent = start("-c", SLOW_DIRECTORY, "--server", "127.0.0.1:1", "--json", "--headless", "--interval", "0.1")
    reading = agent.json_line(lambda line: int(line.get("sample", {}).get("sequence", 0)) >= 15)
    assert reading["sample"]["devices"][0]["temperature_celsius"] == 63
    assert "notice" not in reading["info"]
    assert agent.end() == 130


def test_headless_json_has_a_line_a_sample_and_a_line_an_event(start: Start) -> None:
    _, address = started_server(start)
    agent = start("node.py", "--server", address, "--json", "--interval", "0.2", *SIMULATED)
    assert agent.json_line(lambda line: line.get("sample", {}).get("sequence") == "3")["node_id"].startswith("Node-")
    assert any("connected to" in json.loads(line).get("text", "") for line in agent.lines)


def test_a_killed_server_is_survived_and_the_backlog_arrives(start: Start) -> None:
    server, address = started_server(start)
    agent = start("node.py", "--server", address, "--id", "box-1", "--json", "--interval", "0.2", *SIMULATED)
    server.line("joined box-1")
    server.kill()
    agent.line(r"next try in \d+\.\d s")
    before = int(agent.json_line(lambda line: "sample" in line)["sample"]["sequence"])
    agent.json_line(lambda line: int(line.get("sample", {}).get("sequence", 0)) > before + 3)  # sampling goes on
    back, _ = started_server(start, port=int(address.rpartition(":")[2]))
    back.line("joined box-1", 40)
    eventually(lambda: sum("connected to" in line for line in agent.lines) >= 2)
    assert agent.end() == 130


def test_a_server_that_goes_away_says_so_and_the_node_comes_back(start: Start) -> None:
    server, address = started_server(start)
    agent = start("node.py", "--server", address, *SIMULATED)
    agent.line("connected to")
    assert server.end() == 130
    agent.line("going away: come back soon.*next try in")
    back, _ = started_server(start, "--json", port=int(address.rpartition(":")[2]))
    (row,) = back.json_line(lambda line: any(row["state"] == "ONLINE" for row in line["nodes"]), 40)["nodes"]
    assert row["info"]["session_number"] == 2
    # Where the new server starts slowly, a try in between found nobody.
    assert re.search("going away: come back soon|nothing listens on", row["info"]["last_error"])


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("127.0.0.1:{closed}", "nothing listens on .*is the server running.*next try in"),
        ("no-such-host.invalid", "cannot resolve no-such-host.invalid:50051 .check the name.*next try in"),
        ("127.0.0.1:{http}", "is no gRPC server .is the port right.*next try in"),
    ],
)
def test_a_server_that_is_not_there_is_explained(start: Start, server: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else takes the port meanwhile

        def answer() -> None:
            with contextlib.suppress(OSError):  # nobody came: the test has shut it down
                connection, _ = http.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        target = server.format(closed=closed.getsockname()[1], http=http.getsockname()[1])
        agent = start("node.py", "--server", target, *SIMULATED)
        agent.line(said, 20)
        assert agent.end() == 130
        http.shutdown(socket.SHUT_RDWR)
        answering.join(5)


class UnaryOnly(node_pb2_grpc.NodeServiceServicer):
    """The first version's server: only the unary call, which takes an id and a temperature."""

    def __init__(self, interval_milliseconds: int = 0) -> None:
        self.requests: list[pb.HeartbeatRequest] = []
        self.interval_milliseconds = interval_milliseconds

    def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        self.requests.append(request)
        return pb.HeartbeatResponse(acknowledged=True, heartbeat_interval_milliseconds=self.interval_milliseconds)


def test_a_server_with_only_the_unary_call_gets_a_heartbeat_each_interval(start: Start, grpc_server: Callable[..., str]) -> None:
    servicer = UnaryOnly()
    agent = start("node.py", "--server", grpc_server(servicer), "--id", "box-1", "--interval", "0.3", *SIMULATED)
    eventually(lambda: len(servicer.requests) >= 4)
    assert agent.end() == 130
    agent.line("goodbye acknowledged")
    heartbeats, goodbye = servicer.requests[:-1], servicer.requests[-1]
    assert all(request.node_id == "box-1" for request in servicer.requests)
    assert all(10 < request.gpu_temp < 100 for request in heartbeats)
    sequences = [request.sample.sequence for request in heartbeats if request.HasField("sample")]
    assert sequences == sorted({*sequences})
    assert len(sequences) > 1
    assert goodbye.leaving


def test_a_server_with_only_the_unary_call_is_believed_for_a_minute(start: Start, grpc_server: Callable[..., str]) -> None:
    """Nothing else tells whether it lives: an hour's interval would be an hour of 'connected' to a dead one."""
    servicer = UnaryOnly(interval_milliseconds=3_600_000)
    agent = start("node.py", "--server", grpc_server(servicer), "--id", "box-1", *SIMULATED)
    agent.line("connected to .*, a heartbeat every 60 s")
    assert agent.end() == 130


def test_a_backlog_has_the_newest_samples_that_a_message_has_room_for() -> None:
    sample = pb.Sample(devices=[pb.DeviceSample(memory_used_bytes=2**40, throttle_reasons=2**40) for _ in range(128)])
    samples = [pb.Sample(sequence=sequence, devices=sample.devices) for sequence in range(1, BACKLOG_SAMPLES + 1)]
    kept = node.newest_within(samples, 100_000)
    assert 20 < len(kept) < BACKLOG_SAMPLES
    assert kept[-1].sequence == BACKLOG_SAMPLES
    assert 90_000 < pb.HeartbeatRequest(backlog=kept).ByteSize() <= 100_000
    assert node.newest_within(samples[:2], 100_000) == samples[:2]
    assert not node.newest_within(samples, 1)
    room = 8 + samples[-1].ByteSize()
    assert [len(node.newest_within(samples, 2 * room + more)) for more in (-1, 0, room - 1)] == [1, 2, 2]


class Scripted(node_pb2_grpc.NodeServiceServicer):
    """A server that answers the first sessions with the given status codes (None: takes one, and breaks it), and then as told."""

    def __init__(self, *refusals: tuple[grpc.StatusCode, str] | None, interval_milliseconds: int = 0) -> None:
        self.refusals = list(refusals)
        self.interval_milliseconds = interval_milliseconds
        self.sessions: list[list[pb.HeartbeatRequest]] = []

    def StreamHeartbeats(self, requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        self.sessions.append([])
        session = self.sessions[-1]
        if self.refusals:
            refusal = self.refusals.pop(0)
            if not refusal:
                yield pb.HeartbeatResponse(acknowledged=True)
            context.abort(*(refusal or ENDED))
        for request in requests:
            session.append(request)
            if len(session) == 1:
                yield pb.HeartbeatResponse(acknowledged=True, heartbeat_interval_milliseconds=self.interval_milliseconds)


ENDED = (grpc.StatusCode.UNAVAILABLE, "ended")


def test_waits_grow_until_a_session_has_been_acknowledged(grpc_server: Callable[..., str]) -> None:
    address = grpc_server(Scripted(ENDED, ENDED, None, ENDED, ENDED))
    state = node.NodeState("Node-1", address, pb.NodeInfo(), 0.1)
    state.publish(pb.Sample(sequence=1))

    def delays() -> Iterator[float]:
        return (tenths / 10 for tenths in itertools.count())

    arguments = (state, Identity("Node-1", "machine"), Trust(), [address], 0.1, delays)
    thread = node.guarded(state, False, node.keep_connected, *arguments)

    def waits() -> list[str]:
        return re.findall(r"next try in (\S+) s", "\n".join(line.text for line in state.view().log))

    eventually(lambda: len(waits()) == 5)
    state.close()
    thread.join(5)
    assert waits() == ["0.0", "0.1", "0.0", "0.1", "0.2"]


@pytest.mark.parametrize(
    ("end", "wait"),
    [
        ((grpc.StatusCode.UNAVAILABLE, "going away"), "30.0"),
        ((grpc.StatusCode.ABORTED, "another session has taken over"), "0.0"),  # of this node alone
    ],
)
def test_a_fleet_whose_server_is_gone_does_not_come_back_at_once(
    grpc_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, end: tuple[grpc.StatusCode, str], wait: str
) -> None:
    class Going(node_pb2_grpc.NodeServiceServicer):
        def StreamHeartbeats(self, requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
            yield pb.HeartbeatResponse(acknowledged=True, reconnect_spread_milliseconds=10**9)  # what is too long is 30 s
            context.abort(*end)

    monkeypatch.setattr("node.random.uniform", lambda lowest, highest: highest)
    address = grpc_server(Going())
    state = node.NodeState("Node-1", address, pb.NodeInfo(), 0.1)
    state.publish(pb.Sample(sequence=1))
    arguments = (state, Identity("Node-1", "machine"), Trust(), [address], 0.1, lambda: itertools.repeat(0.0))
    thread = node.guarded(state, False, node.keep_connected, *arguments)
    lines = eventually(lambda: [line.text for line in state.view().log if "next try" in line.text])
    state.close()
    thread.join(5)
    assert f"next try in {wait} s" in lines[0]


def test_the_first_message_of_a_session_has_all_and_the_rest_what_is_new(start: Start, grpc_server: Callable[..., str]) -> None:
    servicer = Scripted((grpc.StatusCode.UNAVAILABLE, "not yet"))
    start("node.py", "--server", grpc_server(servicer), "--id", "box-1", "--interval", "0.1", *SIMULATED)
    eventually(lambda: len(servicer.sessions) == 2 and len(servicer.sessions[1]) >= 6)
    requests = list(servicer.sessions[1])
    assert (requests[0].node_id, requests[0].info.hostname) == ("box-1", "h200-01")
    assert all(not request.node_id and not request.HasField("info") for request in requests[1:])
    backlog = [sample.sequence for sample in (*requests[0].backlog, requests[0].sample)]
    assert backlog == list(range(1, len(backlog) + 1))  # none lost
    brought = [request for request in requests if request.HasField("sample")]  # on a busy machine one is late, or two are there
    assert all(one.sample.sequence < next_one.sample.sequence for one, next_one in itertools.pairwise(brought))  # none twice
    assert all(0 <= request.clock_milliseconds - request.sample.taken_milliseconds < 10_000 for request in brought)  # of one clock


def test_the_server_sets_the_cadence(start: Start, grpc_server: Callable[..., str]) -> None:
    servicer = Scripted(interval_milliseconds=500)
    start("node.py", "--server", grpc_server(servicer), "--interval", "0.1", *SIMULATED)

    def gaps() -> list[int]:
        """By the node's own clock: in milliseconds, from one heartbeat to the next."""
        times = [request.clock_milliseconds for request in servicer.sessions[0]] if servicer.sessions else []
        return [later - sooner for sooner, later in itertools.pairwise(times)]

    eventually(lambda: len(gaps()) >= 3 and min(gaps()[-3:]) >= 440)  # 450, and the clock is rounded
    assert servicer.sessions[0][0].sample.sequence  # a box appears with its readings


def test_a_taken_id_is_drawn_again_or_ends_a_node_with_its_own_id(start: Start, grpc_server: Callable[..., str]) -> None:
    hostile = "taken by \x1b[31mbox\x1b[0m at 10.0.0.7"
    address = grpc_server(Scripted((grpc.StatusCode.ALREADY_EXISTS, hostile), (grpc.StatusCode.ALREADY_EXISTS, hostile)))
    given = start("node.py", "--server", address, "--id", "box-1", *SIMULATED)
    assert given.wait() == 1
    assert "\x1b" not in "\n".join(given.lines)
    assert "another --id" in given.lines[-1]
    drawn = start("node.py", "--server", address, *SIMULATED)
    drawn.line(r"this node is Node-\d+ now")
    drawn.line("connected to")


def test_a_node_that_reads_seldom_beats_at_once_as_the_server_says(grpc_server: Callable[..., str]) -> None:
    servicer = Scripted(interval_milliseconds=100)
    state = connecting(grpc_server(servicer), Identity("box-1", "machine"), interval_seconds=60.0)
    eventually(lambda: servicer.sessions and len(servicer.sessions[0]) >= 4)
    state.close()


TAKEN = (grpc.StatusCode.ALREADY_EXISTS, "taken")


def running(
    address: str,
    identity: Identity | None = None,
    interval_seconds: float = 60.0,
    delay_seconds: float = 0.01,
    sample: pb.Sample | None = None,
) -> tuple[node.NodeState, threading.Thread]:
    """A node of this process that keeps connected, without its backoff."""
    identity = identity or Identity("box-1", "machine")
    state = node.NodeState(identity.node_id, address, pb.NodeInfo(), interval_seconds)
    state.publish(sample or pb.Sample(sequence=1))
    arguments = (state, identity, Trust(), [address], interval_seconds, lambda: itertools.repeat(delay_seconds))
    return state, node.guarded(state, False, node.keep_connected, *arguments)


def connecting(address: str, identity: Identity, interval_seconds: float = 1.0) -> node.NodeState:
    """The same, where its end is of no interest."""
    return running(address, identity, interval_seconds)[0]


def log_of(state: node.NodeState) -> list[str]:
    return [line.text for line in state.view().log]


def end(state: node.NodeState, thread: threading.Thread) -> None:
    state.close()
    thread.join(5)
    assert not thread.is_alive()
    assert not state.failure


class Talking(node_pb2_grpc.NodeServiceServicer):
    """A server whose sessions go as the test says."""

    def __init__(self, talk: Callable[[Iterator[pb.HeartbeatRequest], Any], Iterator[pb.HeartbeatResponse]]) -> None:
        self.talk = talk

    def StreamHeartbeats(self, requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        return self.talk(requests, context)


def test_a_goodbye_is_said_and_its_acknowledgement_waited_for(grpc_server: Callable[..., str]) -> None:
    servicer = Scripted()
    state, thread = running(grpc_server(servicer))
    eventually(lambda: state.view().link.sessions)
    end(state, thread)
    assert log_of(state)[-1] == "goodbye acknowledged"
    assert [[request.leaving for request in session] for session in servicer.sessions] == [[False, True]]


def test_a_goodbye_that_is_not_acknowledged_is_not_waited_for_without_end(
    grpc_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.protocol.GOODBYE_SECONDS", 0.1)
    over = threading.Event()

    def talk(requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        yield answer()
        over.wait(20)

    address = grpc_server(Talking(talk))
    state, thread = running(address)
    eventually(lambda: state.view().link.sessions)
    end(state, thread)
    over.set()
    assert log_of(state)[-1] == f"{address} did not acknowledge the goodbye"


def test_who_was_not_acknowledged_says_no_goodbye(grpc_server: Callable[..., str]) -> None:
    heard: list[pb.HeartbeatRequest] = []

    def talk(requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        heard.extend(requests)
        yield answer()

    state, thread = running(grpc_server(Talking(talk)), interval_seconds=0.1)
    eventually(lambda: len(heard) > 1)
    end(state, thread)
    assert not any(request.leaving for request in heard)
    assert log_of(state) == []


def test_the_end_of_a_session_is_known_at_once_and_a_wait_follows(grpc_server: Callable[..., str]) -> None:
    def talk(requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        yield answer(next(requests).sample.sequence)

    address = grpc_server(Talking(talk))
    state, thread = running(address, delay_seconds=1000.0)
    eventually(state.is_waiting, 10)
    link, reason = state.view().link, f"{address} ended the session"
    assert (link.reason, link.last_error, link.sessions, link.round_trip_seconds) == (reason, reason, 1, None)
    assert 900 < link.retry_at - state.clock() <= 1000
    assert log_of(state)[-1] == f"{reason}; next try in 1000.0 s"
    end(state, thread)


def test_a_session_that_breaks_while_the_node_ends_is_the_last(grpc_server: Callable[..., str]) -> None:
    def talk(requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        yield answer()
        while not next(requests).leaving:
            pass
        context.abort(*ENDED)

    state, thread = running(grpc_server(Talking(talk)))
    eventually(lambda: state.view().link.sessions)
    end(state, thread)
    assert state.view().link.phase == "connected"
    assert [text.split()[0] for text in log_of(state)] == ["connected"]


def test_a_server_that_says_nothing_is_given_up(grpc_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.protocol.FIRST_ANSWER_SECONDS", 0.05)
    over = threading.Event()

    def talk(requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        over.wait(20)
        yield answer()

    state, thread = running(grpc_server(Talking(talk)), interval_seconds=0.1, delay_seconds=1000.0)
    eventually(state.is_waiting)
    over.set()
    assert "has been silent for 0 s: the connection is half-open; next try" in log_of(state)[-1]
    end(state, thread)


def test_sessions_that_end_leave_no_thread_behind(grpc_server: Callable[..., str]) -> None:
    address = grpc_server(Scripted(*[ENDED] * 30))
    before = threading.active_count()
    state, thread = running(address)
    eventually(lambda: state.view().link.sessions)
    end(state, thread)
    eventually(lambda: threading.active_count() < before + 15)  # the server has a few of its own


def test_without_streams_a_beat_is_waited_for(grpc_server: Callable[..., str]) -> None:
    servicer = UnaryOnly()
    state, thread = running(grpc_server(servicer))
    eventually(lambda: state.view().link.sessions)
    end(state, thread)
    assert [request.leaving for request in servicer.requests] == [False, True]


def test_without_streams_each_heartbeat_says_whose_it_is(grpc_server: Callable[..., str]) -> None:
    servicer = UnaryOnly(interval_milliseconds=100)
    address = grpc_server(servicer)
    reading = pb.Sample(sequence=1, devices=[pb.DeviceSample(temperature_celsius=71)])
    state, thread = running(address, sample=reading)
    eventually(lambda: len(servicer.requests) >= 3)
    assert state.view().link._replace(round_trip_seconds=None) == Link("connected", sessions=1, interval_seconds=0.1, unary=True)
    assert state.unacknowledged() == []
    end(state, thread)
    first, *others, goodbye = servicer.requests
    assert (first.info.session_number, first.sample) == (1, reading)
    assert {(request.node_id, request.gpu_temp) for request in servicer.requests} == {("box-1", 71)}
    assert not any(request.HasField("info") or request.HasField("sample") for request in (*others, goodbye))
    assert [request.leaving for request in (first, *others, goodbye)] == [*[False] * (1 + len(others)), True]
    assert log_of(state) == [
        f"{address} has only the unary call: heartbeats go one by one",
        f"connected to {address}, a heartbeat every 0.1 s",
        "goodbye acknowledged",
    ]


@pytest.mark.parametrize("leaving", [False, True])
def test_a_unary_call_has_a_deadline(grpc_server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, leaving: bool) -> None:
    monkeypatch.setattr("edge.protocol.GOODBYE_SECONDS", 0.1 if leaving else 30.0)
    monkeypatch.setattr("edge.protocol.FIRST_ANSWER_SECONDS", 30.0 if leaving else 0.1)
    over = threading.Event()

    class Hanging(UnaryOnly):
        def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
            if request.leaving == leaving:
                over.wait(20)
            return super().Heartbeat(request, context)

    servicer = Hanging(interval_milliseconds=100)
    state, thread = running(grpc_server(servicer), delay_seconds=1000.0)
    eventually(lambda: bool(servicer.requests) if leaving else state.is_waiting())
    end(state, thread)
    over.set()
    assert state.view().link.reason.endswith("" if leaving else "(DEADLINE_EXCEEDED)")
    assert "goodbye acknowledged" not in log_of(state)


def test_a_server_that_has_streams_again_is_served_with_them(grpc_server: Callable[..., str]) -> None:
    servicer = Scripted((grpc.StatusCode.UNIMPLEMENTED, "not yet"))
    state, thread = running(grpc_server(servicer))
    eventually(lambda: state.view().link.sessions)
    assert not state.view().link.unary
    assert state.view().link.last_error.endswith("(UNIMPLEMENTED)")
    end(state, thread)


class Waited(node.NodeState):
    """A state that knows for how long it was waited for."""

    def __init__(self, *arguments: Any) -> None:
        self.waits: list[float] = []
        super().__init__(*arguments)

    def wait(self, condition: Callable[[], object], seconds: float) -> None:
        self.waits.append(seconds)
        super().wait(condition, seconds)


def test_a_box_appears_with_its_readings(grpc_server: Callable[..., str]) -> None:
    servicer = Scripted()
    state = Waited("box-1", "", pb.NodeInfo(), 60.0)
    arguments = (state, Identity("box-1", "machine"), Trust(), [grpc_server(servicer)], 60.0)
    thread = node.guarded(state, False, node.keep_connected, *arguments)
    assert eventually(lambda: state.waits) == [node.FIRST_SAMPLE_SECONDS]
    state.publish(pb.Sample(sequence=1))
    eventually(lambda: servicer.sessions and servicer.sessions[0])
    assert servicer.sessions[0][0].sample.sequence == 1
    end(state, thread)


def test_a_given_id_that_another_has_ends_the_node(grpc_server: Callable[..., str]) -> None:
    address = grpc_server(Scripted(TAKEN, TAKEN))
    state, thread = running(address)
    thread.join(5)
    assert not thread.is_alive()
    assert state.is_closed()
    assert state.failure == f"{address}: taken (ALREADY_EXISTS): stop the other one, or give this one another --id"
    drawn = Identity(None, "machine")
    state, thread = running(address, drawn)
    eventually(lambda: state.view().link.sessions)
    renamed = draw_id("machine", 1)
    assert state.view().node_id == renamed
    assert log_of(state)[0] == f"{address}: taken (ALREADY_EXISTS): this node is {renamed} now; next try in 0.0 s"
    end(state, thread)


def test_who_held_its_own_id_asks_for_it_again_while_another_has_it(grpc_server: Callable[..., str]) -> None:
    servicer = Scripted(None, *[TAKEN] * 9)
    state = connecting(grpc_server(servicer), Identity("box-1", "machine"))
    eventually(lambda: state.view().link.sessions == 2)
    assert not servicer.refusals
    assert servicer.sessions[-1][0].node_id == "box-1"
    state.close()


def test_a_drawn_id_that_was_accepted_before_is_not_given_up_at_once(grpc_server: Callable[..., str]) -> None:
    identity = Identity(None, "machine")
    identity.accepted()
    own = identity.node_id
    state = connecting(grpc_server(Scripted(*[TAKEN] * node.OWN_ID_TRIES)), identity)
    eventually(lambda: state.view().link.sessions == 1)
    assert identity.node_id == own
    state.close()
    state = connecting(grpc_server(Scripted(*[TAKEN] * (node.OWN_ID_TRIES + 1))), identity)
    eventually(lambda: state.view().link.sessions == 1)
    assert identity.node_id == draw_id("machine", 1)
    state.close()


def test_only_refusals_in_a_row_count(grpc_server: Callable[..., str]) -> None:
    identity = Identity(None, "machine")
    identity.accepted()
    state = connecting(grpc_server(Scripted(*[TAKEN] * node.OWN_ID_TRIES, ENDED, *[TAKEN] * node.OWN_ID_TRIES)), identity)
    eventually(lambda: state.view().link.sessions == 1)
    assert identity.node_id == draw_id("machine", 0)
    state.close()


def test_the_first_message_says_which_box_it_is(grpc_server: Callable[..., str]) -> None:
    for identity in (Identity(None, "machine"), Identity("box-1", "machine")):
        servicer = Scripted()
        state = connecting(grpc_server(servicer), identity)
        eventually(lambda: servicer.sessions and servicer.sessions[0])  # noqa: B023
        info = servicer.sessions[0][0].info
        assert (info.box_id, info.id_is_drawn) == (identity.box_id, not identity.given)
        assert len(identity.box_id) == 16
        state.close()


def joined(registry: Registry, identity: Identity) -> str:
    """A box joins under its id, or draws another until it may."""
    info = pb.NodeInfo(instance_id=str(random.random()), box_id=identity.box_id, id_is_drawn=True)
    while True:
        try:
            registry.open(pb.HeartbeatRequest(node_id=identity.node_id, info=info), "10.0.0.7", lambda _end: None)
        except Refused:
            identity.redraw()
        else:
            identity.accepted()
            return identity.node_id


def test_a_fleet_that_draws_its_ids_has_the_same_after_a_restart_in_any_order(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, names = list(range(400)), []
    for _ in range(3):
        registry, drawn = Registry(1.0, 1000), {}
        for box in boxes:
            monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/{box}")
            identity = Identity(None, f"machine {box}")
            drawn[box] = joined(registry, identity)
            identity.close()
        assert len(set(drawn.values())) == len(boxes)
        names.append(drawn)
        random.Random(7).shuffle(boxes)
    assert any(drawn != draw_id(f"machine {box}", 0) for box, drawn in names[0].items())  # some drew again
    assert names[0] == names[1] == names[2]


def test_two_boxes_with_one_machine_id_get_two_rows(start: Start) -> None:
    server, address = started_server(start)
    first = start("node.py", "--server", address, "--hardware", "host")
    first.line("connected to")
    second = start("node.py", "--server", address, "--hardware", "host")
    second_id = draw_id(machine_text(), 1)
    second.line(f"is taken by .*this node is {second_id} now")
    second.line("connected to")
    second.line("may have another id: this one can't be kept .another agent of this user keeps its own")
    server.line(f"joined {second_id}")


# ---- The screen ----


def view_of(seed: int, **changes: Any) -> View:
    hardware = simulated(seed, clock=lambda: 0.0)
    state = node.NodeState("Node-8821", "10.0.0.5:50051", node.make_info(hardware, "i"), 1.0, clock=lambda: 0.0)
    state.publish(node.take_sample(hardware, 1, 0, lambda: 0.0))
    state.log("connected to 10.0.0.5:50051")
    return state.view()._replace(**changes)


SIZES = [(160, 45), (80, 24), (50, 15), (40, 10), (39, 9), (250, 70), (160, 12), (45, 60), (1, 1), (0, 0)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(len(CATALOGUE)))
def test_a_frame_has_exactly_its_size(size: tuple[int, int], seed: int) -> None:
    width, height = size
    frame = render(view_of(seed), width, height, 0, 0)
    assert len(frame) == height
    assert {sum(cells(text) for text, _ in line) for line in frame} <= {width}
    text = plain(frame)
    if width >= 50 and height >= 15:
        assert "Node-8821" in text
        assert "connecting" in text
        assert text.count("°C") >= min(len(view_of(seed).sample.devices), 8)
        assert "quit" in text
    elif width > 30:
        assert ("too small" in text) == (width < 40 or height < 10)


def test_each_gauge_shows_its_reading() -> None:
    text = plain(render(view_of(2), 160, 45, 0, 0))
    for word in (
        "NVIDIA GeForce RTX 4090",
        "utilization",
        "memory",
        "temperature",
        "power",
        "fan",
        "SM",
        "throttle",
        "cpu",
        "disk",
        "Log",
    ):
        assert word in text
    assert " of 450 W" in text
    assert " of 24.0 GiB" in text
    assert " of 90°C" in text


def test_what_is_not_reported_is_a_dash_and_a_failing_device_says_why() -> None:
    view = view_of(1)
    silent, lost = pb.DeviceSample(), pb.DeviceSample(error="GPU is lost\x1b[2J")
    view = view._replace(sample=pb.Sample(host=view.sample.host, devices=[silent, lost, *view.sample.devices[2:]]))
    for size in ((160, 45), (80, 24)):
        frame = plain(render(view, *size, 0, 0))
        assert "✗ GPU is lost�[2J" in frame
        assert "\x1b" not in frame


def test_the_countdown_and_the_reason_are_shown_while_waiting() -> None:
    link = Link(phase="waiting", reason="nothing listens on 10.0.0.5:50051", retry_at=12.34)
    text = plain(render(view_of(0, link=link), 120, 30, 0, 10))
    assert "disconnected" in text
    assert "next try in 2.3 s · nothing listens on 10.0.0.5:50051" in text


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15), (40, 10)])
def test_a_long_reason_is_shown_whole_where_there_is_room(size: tuple[int, int]) -> None:
    reason = f"10.0.0.5:50051 wants a token: its screen shows the one for nodes (key j), {'and so on ' * 8}there; end"
    view = view_of(1, link=Link(phase="waiting", reason=reason, retry_at=12.34))
    frame = render(view, *size, 0, 10)
    assert len(frame) == size[1]
    assert ("there; end" in plain(frame)) == (size[1] > 10)
    assert "next try in 2.3 s" in plain(frame)


def test_sensors_that_hang_are_told_from_a_link_that_is_down() -> None:
    link = Link(phase="connected", interval_seconds=1)
    text = plain(render(view_of(0, link=link, sample_age_seconds=42.0), 120, 30, 0, 0))
    assert "sensors silent for 42s" in text
    assert "connected to" in text


def test_the_screen_lives_through_the_servers_absence_and_q_leaves(terminal: Open, start: Start) -> None:
    server, address = started_server(start)
    screen = terminal("node.py", "--server", address, "--id", "box-1", *SIMULATED)
    screen.shows(r"● connected to .* · round trip \d+\.\d ms · every 1 s")
    eventually(lambda: screen.text().count("NVIDIA H200") == 8)
    assert screen.cell("● connected").fg == "green"
    server.kill()
    screen.shows(r"○ disconnected .*next try in \d\.\d s")
    back, _ = started_server(start, port=int(address.rpartition(":")[2]))
    screen.shows("● connected", 40)
    screen.press("q")
    assert screen.wait() == 0
    assert screen.is_restored()
    back.line("left box-1")
    screen.shows("goodbye acknowledged")


def test_keys_scroll_the_screen_to_what_does_not_fit(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, columns=80, lines=24)
    screen.shows(r"Processes 1 to 5 of 8 · PgDn")
    screen.shows(r"q quit  ↑↓ PgUp PgDn scroll")
    screen.press("\x1b[6~")
    screen.shows(r"Processes 4 to 8 of 8 · PgUp")
    screen.press("\x1b[A")
    screen.shows(r"Processes 3 to 7 of 8 · PgUp PgDn")
    screen.press("\x1b[H")
    screen.shows(r"Processes 1 to 5 of 8 · PgDn")
    screen.press("q")
    assert screen.wait() == 0


def test_a_closed_terminal_ends_the_node(terminal: Open, start: Start) -> None:
    server, address = started_server(start)
    screen = terminal("node.py", "--server", address, "--id", "box-1", *SIMULATED)
    screen.shows("● connected")
    os.close(screen.slave)
    os.close(screen.master)
    assert screen.wait() == 129
    server.line("left box-1")


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15)])
def test_the_screen_fits_real_terminals_and_follows_their_size(terminal: Open, size: tuple[int, int]) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, columns=size[0], lines=size[1])
    screen.shows("disconnected")
    screen.shows("q quit")
    screen.resize(72, 20)
    eventually(lambda: screen.text().splitlines()[-1].startswith(" q quit"))
    screen.resize(30, 5)
    screen.shows("too small: 30x5")
    screen.resize(*size)
    screen.shows("disconnected")
    screen.press("q")
    assert screen.wait() == 0


def test_a_quiet_screen_sends_only_what_changed(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", "--interval", "3600", *SIMULATED)
    screen.shows("disconnected")
    start = len(screen.raw)
    eventually(lambda: screen.raw[start:].count(b"\x1b[?2026h") >= 5)
    update = screen.raw[start:].split(b"\x1b[?2026h")[3]
    assert update.count(b"H") < 6  # a cursor move a line: the countdown's, the clock's, the log's
    assert update.rstrip().endswith(b"\x1b[?2026l")


def test_fps_bounds_the_frames(terminal: Open) -> None:
    begun = time.monotonic()  # before the first frame: those that are read late are fewer than were drawn, and never more
    screen = terminal("node.py", "--server", "127.0.0.1:1", "--fps", "2", "--interval", "0.1", *SIMULATED)
    eventually(lambda: screen.raw.count(b"\x1b[?2026h") >= 6)  # ten are wanted each second
    assert 2 + 2 * (time.monotonic() - begun) >= 6  # the first, one that was due, and two each second


@pytest.mark.parametrize("how", ["--no-color", "NO_COLOR"])
def test_no_color_means_no_color(terminal: Open, how: str) -> None:
    options, environ = ([how], {}) if how.startswith("--") else ([], {how: "1"})
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, *options, **environ)
    screen.shows("disconnected")
    assert screen.cell("disconnected").fg == "default"
    assert screen.cell("disconnected").bold


def test_a_terminal_that_is_not_utf8_gets_ascii(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    screen.shows("disconnected")
    assert screen.text().isascii()
    screen.shows("####")
