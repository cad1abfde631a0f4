"""What a node may send, and what is made of it."""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import node_pb2 as pb
from edge import history
from edge.fleet import wire
from edge.fleet.checks import RANGES, check_fields, check_sample, is_sane_device, is_sane_host
from edge.fleet.export import snapshot_json
from edge.fleet.intake import MAX_KEPT_BYTES, capacities_of, packed, vitals_from, vitals_of
from edge.fleet.row import Capacities, Session, Vitals
from edge.protocol import BACKLOG_SAMPLES, MAX_DEVICES, MAX_TEXT
from edge.summary import box_summary, own_frame
from edge.text import show_percent
from server import Registry
from tests.fixtures.processes import ROOT, environment
from tests.fixtures.sessions import Clock, opened, refused


@pytest.mark.parametrize("implementation", ["upb", "python"])  # the second on musl and armv7l
def test_what_is_no_message_is_refused(implementation: str) -> None:
    script = """
import sys
from edge.fleet.intake import heartbeat_of
from edge.fleet.row import Refused
for text in sys.argv[1:]:
    try:
        print("taken:", heartbeat_of(bytes.fromhex(text)))
    except Refused as error:
        print(error.end.code.name)
"""
    no_text, in_info, nested = b"\x0a\x01\xff", b"\x1a\x03\x0a\x01\xff", b"\x9b\x06" * 5000
    raw = [no_text, in_info, b"\x0a\x02\xed\xa0", nested, b"\x0a\x05ab", b"\x38" + b"\xff" * 11, b"\x0f", b"\x02\0"]
    environ = environment(PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=implementation)
    command = [sys.executable, "-c", script, *(part.hex() for part in raw)]
    lines = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["INVALID_ARGUMENT"] * len(raw)


# ---- Vitals ----


def test_what_was_not_reported_is_no_vital() -> None:
    info = pb.NodeInfo(devices=[pb.DeviceInfo(memory_total_bytes=100, slowdown_temperature_celsius=90), pb.DeviceInfo()])
    blank = b"\xff" * (3 + 3 * len(info.devices))
    assert vitals_of(capacities_of(info), pb.Sample()) == Vitals(frame=blank, devices=2)
    lost = pb.Sample(devices=[pb.DeviceSample(error="lost"), pb.DeviceSample()])
    assert vitals_of(capacities_of(info), lost) == Vitals(errors=1, frame=blank, devices=2)
    reported = [
        pb.DeviceSample(utilization_percent=0, memory_used_bytes=25, temperature_celsius=40, power_milliwatts=0),
        pb.DeviceSample(utilization_percent=50, memory_used_bytes=99, temperature_celsius=30),
    ]
    frame = bytes([25, 25, 40, 0, 25, 40, 50, 255, 30])
    sample = pb.Sample(devices=reported)
    assert vitals_of(capacities_of(info), sample) == Vitals(
        0.25, 0.25, 25, 100, 40, 90, 0, 0, frame, devices=2, with_utilization=2, with_memory=1, with_power=1,
    )  # fmt: skip
    assert own_frame(info, sample, box_summary(info, sample))[3:] == frame[3:]  # the node's own screen shows the same
    host = pb.Sample(host=pb.HostSample(cpu_percent=50, memory_used_bytes=1, temperature_celsius=60))
    frame = bytes([50, 25, 60])
    assert vitals_of(Capacities(host_memory_bytes=4), host) == Vitals(
        0.5, 0.25, 1, 4, celsius=60, frame=frame, with_utilization=1, with_memory=1, cpu_percent=50,
    )  # fmt: skip
    info = pb.NodeInfo(host=pb.HostInfo(memory_total_bytes=4))
    assert own_frame(info, host, box_summary(info, host)) == frame


def test_a_reading_of_0_counts_and_watts_are_added_up() -> None:
    capacities = Capacities(devices=((200, 90), (200, 80)))
    devices = [
        pb.DeviceSample(memory_used_bytes=0, temperature_celsius=0, power_milliwatts=300),
        pb.DeviceSample(memory_used_bytes=50, temperature_celsius=-5, power_milliwatts=200),
    ]
    vitals = vitals_of(capacities, pb.Sample(devices=devices))
    assert (vitals.memory_used_bytes, vitals.memory_total_bytes, vitals.memory) == (50, 400, 0.25)
    assert (vitals.celsius, vitals.limit_celsius, vitals.milliwatts) == (0, 90, 500)
    host = pb.Sample(host=pb.HostSample(cpu_percent=0, memory_used_bytes=30, temperature_celsius=0))
    vitals = vitals_of(Capacities(host_memory_bytes=40), host)
    assert vitals == Vitals(
        0, 0.75, 30, 40, celsius=0, frame=bytes([0, 75, 0]), with_utilization=1, with_memory=1, cpu_percent=0,
    )  # fmt: skip


def test_of_what_is_not_known_neither_the_memory_nor_the_limit_is() -> None:
    reading = pb.DeviceSample(memory_used_bytes=5, temperature_celsius=70)
    for capacities in (Capacities(), Capacities(devices=((0, 0),))):  # its node has not said what it has, or the driver does not
        vitals = vitals_of(capacities, pb.Sample(devices=[reading]))
        assert (vitals.memory, vitals.memory_total_bytes, vitals.celsius, vitals.limit_celsius) == (None, 0, 70, None)
    of_two = vitals_of(Capacities(devices=((10, 90),)), pb.Sample(devices=[pb.DeviceSample(), reading]))
    assert of_two == Vitals(frame=b"\xff" * 6, devices=1)  # info has one alone
    assert vitals_of(Capacities(), pb.Sample(host=pb.HostSample(memory_used_bytes=5))).memory is None


def test_of_two_that_are_equally_hot_the_first_one_says_the_limit() -> None:
    devices = [pb.DeviceSample(temperature_celsius=70)] * 2
    assert vitals_of(Capacities(devices=((0, 90), (0, 80))), pb.Sample(devices=devices)).limit_celsius == 90


# ---- Summaries ----


def reporting(registry: Registry, **fields: Any) -> Session:
    """A session that begins with these fields."""
    return registry.open(pb.HeartbeatRequest(node_id="box", **fields), "10.0.0.7", lambda _end: None)


def drawn_box(chance: random.Random) -> tuple[pb.NodeInfo, pb.Sample]:
    """A box in which each reading may be missing, or at a bound, or more than there is room for."""

    def maybe(*values: int) -> int | None:
        return chance.choice([None, *values])

    info = pb.NodeInfo(host=pb.HostInfo(memory_total_bytes=maybe(1, 7, 2**40)))
    sample = pb.Sample(sequence=1)
    sample.host.MergeFrom(
        pb.HostSample(
            cpu_percent=maybe(0, chance.randrange(101)),
            memory_used_bytes=maybe(0, 1, 8, chance.randrange(2**40)),
            temperature_celsius=maybe(-100, 0, 45, 500),
        )
    )
    for index in range(chance.choice([0, 0, 1, 2, 8])):
        memory = maybe(1, 1000, 2**37)
        info.devices.add(index=index, memory_total_bytes=memory, slowdown_temperature_celsius=maybe(0, 90))
        sample.devices.add(
            utilization_percent=maybe(0, 100, chance.randrange(101)),
            memory_used_bytes=maybe(0, 1, 2**48, chance.randrange(2**38)),
            temperature_celsius=maybe(-100, 0, chance.randrange(100), 500),
            power_milliwatts=maybe(0, 10**8, chance.randrange(10**6)),
            error=chance.choice(["", "", "lost"]),
        )
    return info, sample


def test_what_is_shown_of_a_node_is_the_same_whoever_has_summed_it_up() -> None:
    """And what a message says of its vitals, is they."""
    for seed in range(500):
        info, sample = drawn_box(random.Random(seed))
        rows = []
        for summary in (None, box_summary(info, sample)):
            registry = Registry(1.0, 10, Clock())
            session = reporting(registry, info=info)
            registry.heartbeat(session, pb.HeartbeatRequest(sample=sample, summary=summary))
            rows.append(registry.snapshot()[0])
        made_here, sent = rows
        assert made_here.vitals == sent.vitals, seed
        assert (made_here.history, made_here.packed_sample) == (sent.history, sent.packed_sample)
        assert vitals_from(sent.capacities, wire.summary_of(sent.vitals)) == sent.vitals, seed
        assert wire.beats_of([(1, sent)], 1000).number_steps == [1]


def test_a_percentage_is_rounded_once() -> None:
    """12.49 is 12, though 12.5 is 13 and 12.49 is 12.5 to the permille: in numbers, and in the history."""
    for used in range(10_001):
        vitals = vitals_of(Capacities(devices=((10_000, 0),)), pb.Sample(devices=[pb.DeviceSample(memory_used_bytes=used)]))
        nearest = (used + 50) // 100
        assert show_percent(vitals.memory) == f"{nearest}%"
        assert [vitals.frame[history.MEMORY], vitals.frame[3 + history.MEMORY]] == [nearest] * 2


HOSTILE_SUMMARIES: list[tuple[dict[str, Any], str]] = [
    ({"utilization_permille": 1001}, "a number out of its range"),
    ({"memory_permille": 10**6 + 1}, "a number out of its range"),
    ({"memory_used_bytes": 2**52}, "a number out of its range"),
    ({"memory_total_bytes": 2**52}, "a number out of its range"),
    ({"temperature_celsius": 501}, "a number out of its range"),
    ({"temperature_celsius": -101}, "a number out of its range"),
    ({"temperature_celsius": -(2**31)}, "a number out of its range"),
    ({"hottest_device": 2**32 - 1}, "a number out of its range"),
    ({"power_milliwatts": 2**64 - 1}, "a number out of its range"),
    ({"failed_devices": MAX_DEVICES + 1}, "a number out of its range"),
    ({"cpu_percent": 101}, "a number out of its range"),
    ({"energy_joules": 2**63}, "a number out of its range"),
    ({"without_utilization": 3}, "does not fit the 2 devices of info"),
    ({"without_memory": 2**32 - 1}, "does not fit the 2 devices of info"),
    ({"without_power": 3}, "does not fit the 2 devices of info"),
    ({"readings": bytes(5)}, "does not fit the 2 devices of info"),
    ({"readings": bytes(7)}, "does not fit the 2 devices of info"),
    ({"readings": bytes(2**19)}, "does not fit the 2 devices of info"),
    ({"readings": bytes([0, 0, 0, 101, 0, 0])}, "does not fit the 2 devices of info"),
    ({"readings": bytes([0, 254, 0, 0, 0, 0])}, "does not fit the 2 devices of info"),
]


@pytest.mark.parametrize(("fields", "said"), HOSTILE_SUMMARIES, ids=map(str, range(len(HOSTILE_SUMMARIES))))
def test_a_summary_that_can_not_be_is_refused(fields: dict[str, Any], said: str) -> None:
    registry = Registry(1.0, 10, Clock())
    session = reporting(registry, info=pb.NodeInfo(devices=[pb.DeviceInfo(memory_total_bytes=1000)] * 2))
    (before,) = registry.snapshot()
    request = pb.HeartbeatRequest(sample=pb.Sample(sequence=1), summary=pb.Summary(**fields))
    code, reason = refused(lambda: registry.heartbeat(session, request))
    assert (code, reason.startswith("heartbeat.summary ")) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert said in reason
    assert registry.snapshot() == [before]


def test_a_summary_at_its_bounds_is_taken_and_shown_as_it_is() -> None:
    registry = Registry(1.0, 10, Clock())
    session = reporting(registry, info=pb.NodeInfo(devices=[pb.DeviceInfo(memory_total_bytes=1000)] * 2))
    most = pb.Summary(
        utilization_permille=1000, memory_permille=10**6, memory_used_bytes=2**52 - 1, memory_total_bytes=2**52 - 1,
        temperature_celsius=500, hottest_device=MAX_DEVICES, power_milliwatts=MAX_DEVICES * 10**8, failed_devices=MAX_DEVICES,
        without_memory=1, cpu_percent=100, energy_joules=2**60, readings=bytes([100, 100, 254, 255, 255, 255]),
    )  # fmt: skip
    registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=1), summary=most))
    (row,) = registry.snapshot()
    assert row.vitals == Vitals(
        1.0, 1000.0, 2**52 - 1, 2**52 - 1, 500, None, MAX_DEVICES * 10**8, MAX_DEVICES, bytes([100, 100, 254]) + most.readings,
        2, 2, 1, 2, MAX_DEVICES, 100, 2**60,
    )  # fmt: skip
    assert wire.beats_of([(1, row)], 1000).memory_used_mebibytes == [2**32 - 1]  # no number is too large for any message
    registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=2), summary=pb.Summary()))
    (row,) = registry.snapshot()
    assert row.vitals == Vitals(frame=b"\xff" * 9, devices=2)  # nothing is reported, and nothing is 0


def test_a_summary_of_what_info_does_not_name_stands_for_the_host() -> None:
    """Of a node that has said nothing of its devices: no byte of its readings is kept."""
    registry = Registry(1.0, 10, Clock())
    summary = pb.Summary(utilization_permille=500, power_milliwatts=7, readings=bytes(2**16), without_power=9)
    opened(registry, "box", sample=pb.Sample(sequence=1), summary=summary)
    (row,) = registry.snapshot()
    assert row.vitals == Vitals(0.5, milliwatts=7, frame=bytes([50, 255, 255]), with_utilization=1, with_power=1)


def test_a_sample_with_a_summary_is_checked_when_it_is_read_and_wholly_when_a_session_begins() -> None:
    registry = Registry(1.0, 10, Clock())
    info = pb.NodeInfo(devices=[pb.DeviceInfo()])
    nonsense = pb.Sample(sequence=2, devices=[pb.DeviceSample(temperature_celsius=10_000)])
    summary = pb.Summary(temperature_celsius=70)
    code, reason = refused(lambda: reporting(registry, info=info, sample=nonsense, summary=summary))
    assert (code, "temperature_celsius is 10000" in reason) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    session = reporting(registry, info=info, sample=pb.Sample(sequence=1))
    registry.heartbeat(session, pb.HeartbeatRequest(sample=nonsense, summary=summary))
    (row,) = registry.snapshot()
    assert (row.vitals.celsius, row.sample) == (70, pb.Sample())
    assert registry.acknowledgement(session).acknowledged_sequence == 2
    assert '"sample": {}' in snapshot_json(registry)
    for bad in (b"\xff", pb.ProcessList(processes=[pb.Process(name="x" * 257)]).SerializeToString()):
        assert row._replace(packed_sample=bad, packed_processes=bad).processes == ()
    assert row._replace(packed_sample=b"\xff").sample == pb.Sample()
    refused(lambda: registry.heartbeat(session, pb.HeartbeatRequest(sample=nonsense)))  # without a summary, at once


def test_who_has_other_devices_than_before_has_no_reading_until_there_is_a_new_sample() -> None:
    registry = Registry(1.0, 10, Clock())
    info = pb.NodeInfo(instance_id="a", devices=[pb.DeviceInfo(memory_total_bytes=10)])
    session = reporting(registry, info=info, sample=pb.Sample(devices=[pb.DeviceSample(memory_used_bytes=5)]))
    assert registry.snapshot()[0].vitals.memory == 0.5
    info.devices[0].memory_total_bytes = 20
    registry.heartbeat(session, pb.HeartbeatRequest(info=info))
    assert registry.snapshot()[0].vitals == Vitals(frame=b"\xff" * 6, devices=1)


def test_a_summary_without_a_sample_says_nothing() -> None:
    registry = Registry(1.0, 10, Clock())
    registry.heartbeat(opened(registry, "box"), pb.HeartbeatRequest(summary=pb.Summary(utilization_permille=2**32 - 1)))
    (row,) = registry.snapshot()
    assert (row.vitals.utilization, row.sample_at, row.history) == (None, None, b"")


def test_a_sample_from_the_future_is_new_and_one_without_a_clock_too() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    opened(registry, "future", sample=pb.Sample(sequence=1, taken_milliseconds=2**64 - 1))
    opened(registry, "none", sample=pb.Sample(sequence=1))
    assert [row.sample_at for row in registry.snapshot()] == [clock.now] * 2


def test_a_history_starts_anew_when_the_devices_change() -> None:
    registry = Registry(1.0, 10)
    devices = [pb.DeviceInfo(index=index) for index in range(2)]
    two = pb.NodeInfo(instance_id="a", devices=devices)
    session = registry.open(pb.HeartbeatRequest(node_id="box", info=two, sample=pb.Sample(sequence=1)), "10.0.0.7", None)
    assert len(registry.snapshot()[0].history) == 3 * 3
    registry.heartbeat(session, pb.HeartbeatRequest(info=pb.NodeInfo(instance_id="a", devices=devices[:1])))
    assert registry.snapshot()[0].history == b""
    registry.heartbeat(session, pb.HeartbeatRequest(sample=pb.Sample(sequence=2)))
    assert len(registry.snapshot()[0].history) == 2 * 3


def test_a_backlog_adds_only_what_has_not_come() -> None:
    def reading(sequence: int) -> pb.Sample:
        return pb.Sample(sequence=sequence, host=pb.HostSample(cpu_percent=10 * sequence))

    registry = Registry(1.0, 10)
    registry.heartbeat(opened(registry, "box", sample=reading(1)), pb.HeartbeatRequest(sample=reading(2)))
    opened(registry, "box", backlog=[reading(1), reading(2), reading(3)], sample=reading(4))  # no answer came to the first two
    (row,) = registry.snapshot()
    assert list(row.history[:: len(history.COLUMNS)]) == [10, 20, 30, 40]


def test_a_round_trip_is_known_until_the_next_one() -> None:
    registry = Registry(1.0, 10)
    session = opened(registry, "box")
    for microseconds, seconds in ((0, None), (1_500_000, 1.5), (0, 1.5), (250_000, 0.25)):
        registry.heartbeat(session, pb.HeartbeatRequest(round_trip_microseconds=microseconds))
        assert registry.snapshot()[0].round_trip_seconds == seconds


# ---- What is refused ----


def numeric_fields(message: Any) -> list[str]:
    """Names of the fields of a message that are numbers with a range."""
    return [field.name for field in message.DESCRIPTOR.fields if field.name in RANGES]


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
    "DeviceInfo": {"index", "backend"},
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
        assert numbers - set(RANGES) == UNBOUNDED.get(kind.DESCRIPTOR.name, set()), kind.DESCRIPTOR.name


@pytest.mark.parametrize(("where", "field"), [*BOUNDED, ("heartbeat", "gpu_temp")])
def test_a_number_out_of_its_range_is_refused_by_its_name(where: str, field: str) -> None:
    registry = Registry(1.0, 10, Clock())
    lowest, highest = RANGES[field]
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


@pytest.mark.parametrize(("where", "field"), [(where, field) for where, field in BOUNDED if where in ("host", "device")])
def test_ranges_stand_in_one_table_and_the_fast_checks_agree_with_it(where: str, field: str) -> None:
    lowest, highest = RANGES[field]
    accepted_values = refused_values = 0
    beyond = (lowest - 1, lowest - 2**-100, highest + 1, highest * (1 + 2**-23), math.nan, math.inf)  # a float has 24 bits
    for value in (lowest, highest, *beyond):
        part: Any = pb.HostSample() if where == "host" else pb.DeviceSample()
        try:
            setattr(part, field, value)
        except (ValueError, TypeError):  # the field's type can't hold it
            continue
        sample = pb.Sample(host=part) if where == "host" else pb.Sample(devices=[part])
        is_sane = is_sane_host(part) if where == "host" else is_sane_device(part)
        assert is_sane == (lowest <= getattr(part, field) <= highest)
        if is_sane:
            check_sample(sample)
            check_fields(part, where)
            accepted_values += 1
        else:
            with pytest.raises(ValueError, match=rf"\.{field} is "):
                check_sample(sample)
            refused_values += 1
    assert accepted_values >= 2
    assert refused_values


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"info": pb.NodeInfo(devices=[pb.DeviceInfo()] * 129)}, "129 devices"),
        ({"sample": pb.Sample(devices=[pb.DeviceSample()] * 129)}, "129 devices"),
        ({"info": pb.NodeInfo(hostname="h" * 257)}, "info.hostname"),
        ({"processes": pb.ProcessList(processes=[pb.Process(), pb.Process(name="h" * 257)])}, "processes[1].name"),
        ({"info": pb.NodeInfo(host=pb.HostInfo(model="h" * 257))}, "info.host.model"),
        ({"info": pb.NodeInfo(devices=[pb.DeviceInfo(), pb.DeviceInfo(name="h" * 257)])}, "info.devices[1].name"),
        ({"sample": pb.Sample(devices=[pb.DeviceSample(error="h" * 257)])}, "sample.devices[0].error"),
        ({"info": pb.NodeInfo(labels={f"n{number}": "x" for number in range(17)})}, "at most 16 labels, this one 17"),
        ({"info": pb.NodeInfo(labels={"n" * 33: "x"})}, "names no label"),
        ({"info": pb.NodeInfo(labels={"": "x"})}, "'' names no label"),
        ({"info": pb.NodeInfo(labels={"\x1b[2J": "x"})}, "'\ufffd[2J' names no label"),
        ({"info": pb.NodeInfo(labels={"rack": "x" * 65})}, "label rack needs a value of 1 to 64 printable characters"),
        ({"info": pb.NodeInfo(labels={"rack": ""})}, "label rack needs a value"),
        ({"info": pb.NodeInfo(labels={"rack": "a\x1b[2J"})}, "label rack needs a value"),
        ({"info": pb.NodeInfo.FromString(b"\xfa\x7f\x80\x80\x08" + bytes(2**17))}, "info has 131077 bytes"),  # an unknown field
        ({"sample": pb.Sample.FromString(b"\xfa\x7f\x80\x80\x08" + bytes(2**17))}, "sample has 131077 bytes"),
    ],
)
def test_what_is_too_much_to_keep_is_refused(fields: dict[str, Any], named: str) -> None:
    code, reason = refused(lambda: Registry(1.0, 10).open(pb.HeartbeatRequest(node_id="box", **fields), ""))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert named in reason


def test_labels_are_kept_by_name_and_change_with_info() -> None:
    registry = Registry(1.0, 10, Clock())
    most = {f"n{number}": "v" * 64 for number in range(16)}
    session = reporting(registry, info=pb.NodeInfo(instance_id="a", labels=most))
    (row,) = registry.snapshot()
    assert row.labels == tuple(sorted(most.items()))
    assert row.kept_bytes() > sum(len(name) + len(value) for name, value in row.labels) + len(row.packed_info)
    registry.heartbeat(session, pb.HeartbeatRequest(info=pb.NodeInfo(instance_id="a", labels={"team": "ml", "rack": "a3"})))
    assert registry.snapshot()[0].labels == (("rack", "a3"), ("team", "ml"))


def test_a_backlog_that_is_too_long_is_refused_whenever_it_comes() -> None:
    registry, backlog = Registry(1.0, 10), [pb.Sample()] * (BACKLOG_SAMPLES + 1)
    registry.heartbeat(opened(registry, "box", backlog=backlog[1:]), pb.HeartbeatRequest(backlog=backlog[1:]))
    for action in (
        lambda: opened(registry, "box", backlog=backlog),
        lambda: registry.heartbeat(opened(registry, "box"), pb.HeartbeatRequest(backlog=backlog)),
    ):
        assert refused(action)[1] == "heartbeat has 301 samples in its backlog: it may have 300"


def test_what_is_just_not_too_large_is_kept() -> None:
    unknown = b"\xfa\x7f\xfb\xff\x03"  # a field of 65531 bytes, and 5 of its own
    info = pb.NodeInfo.FromString(unknown + bytes(MAX_KEPT_BYTES - len(unknown)))
    assert len(packed(info, "info")) == MAX_KEPT_BYTES
    (row,) = registry_with(info).snapshot()
    assert len(row.packed_info) == MAX_KEPT_BYTES
    assert refused(lambda: registry_with(info, sample=pb.Sample(sequence=1)))[1].startswith("info, sample and processes have 65538")


def registry_with(info: pb.NodeInfo, **fields: Any) -> Registry:
    registry = Registry(1.0, 10)
    registry.open(pb.HeartbeatRequest(node_id="box", info=info, **fields), "")
    return registry


def test_the_largest_box_is_taken() -> None:
    registry = Registry(1.0, 10)
    info = pb.NodeInfo(devices=[pb.DeviceInfo(name="h" * MAX_TEXT)] * MAX_DEVICES)
    registry.open(pb.HeartbeatRequest(node_id="box", info=info, sample=pb.Sample(devices=[pb.DeviceSample()] * MAX_DEVICES)), "")
    (row,) = registry.snapshot()
    assert len(row.sample.devices) == MAX_DEVICES
