"""What a node may send, and what becomes of it: everything is checked here before it is kept, and a heartbeat makes a new row."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

import node_pb2 as pb
from edge import history
from edge.fleet.checks import check_fields, check_info, check_processes, check_sample
from edge.fleet.row import Capacities, Refused, Row, Vitals
from edge.program import version_numbers
from edge.protocol import BACKLOG_SAMPLES, MAX_DEVICES, check_node_id
from edge.summary import MAX_PERMILLE, summarize

MAX_KEPT_BYTES = 2**16  # of info, sample and processes together: what a node can make this process keep
MAX_BYTES, MAX_MILLIWATTS, MAX_JOULES = 2**52 - 1, MAX_DEVICES * 10**8, 2**60  # of all devices together: as Beats can say it
WIDTH = len(history.COLUMNS)  # of a frame: bytes of the node, and of each device
BLANK = bytes([history.NOT_REPORTED]) * WIDTH
PERCENTS = bytes([*range(101), history.NOT_REPORTED])


def heartbeat_of(raw: bytes) -> pb.HeartbeatRequest:
    """What came on the wire. Raises Refused."""
    try:
        return pb.HeartbeatRequest.FromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:  # the latter of protobuf in pure Python (musl, armv7l)
        raise Refused(f"this is no heartbeat: {error}") from error


def packed(part: Any, where: str) -> bytes:
    """A part of a message, to be kept. Raises Refused if it is large."""
    kept: bytes = part.SerializeToString()
    if len(kept) > MAX_KEPT_BYTES:  # with fields that this version does not know
        raise Refused(f"{where} has {len(kept)} bytes: it may have {MAX_KEPT_BYTES}")
    return kept


def identify(request: pb.HeartbeatRequest) -> None:
    """Writes the node's id as it is told from others. Raises Refused for one that can't name a node, or too long a backlog."""
    check_backlog(request)
    try:
        request.node_id = check_node_id(request.node_id)
    except ValueError as error:
        raise Refused(f"{error}: see --id") from error


def check_backlog(request: pb.HeartbeatRequest) -> None:
    """Raises Refused for one that is too long."""
    if len(request.backlog) > BACKLOG_SAMPLES:
        raise Refused(f"heartbeat has {len(request.backlog)} samples in its backlog: it may have {BACKLOG_SAMPLES}")


def sample_of(request: pb.HeartbeatRequest) -> pb.Sample | None:
    """The sample of a message; the first version's nodes send one temperature and no more. Raises ValueError."""
    if request.gpu_temp:
        check_fields(request, "heartbeat")
    if request.HasField("sample"):
        return request.sample
    if request.gpu_temp:
        return pb.Sample(devices=[pb.DeviceSample(temperature_celsius=round(request.gpu_temp))])
    return None


def capacities_of(info: pb.NodeInfo) -> Capacities:
    """What a node's readings are measured against."""
    devices = tuple((device.memory_total_bytes, device.slowdown_temperature_celsius) for device in info.devices)
    return shared(Capacities(info.host.memory_total_bytes, devices, info.sampling_interval_milliseconds / 1000))


@functools.lru_cache(maxsize=1000)
def shared(capacities: Capacities) -> Capacities:
    """The first of all that are equal: boxes of one kind share one object."""
    return capacities


def labels_of(info: pb.NodeInfo) -> tuple[tuple[str, str], ...]:
    """What the box's owner says of it, by name; boxes with equal labels share them."""
    return shared_labels(tuple(sorted(info.labels.items())))


@functools.lru_cache(maxsize=1000)
def shared_labels(labels: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The first of all that are equal."""
    return labels


def vitals_of(capacities: Capacities, sample: pb.Sample) -> Vitals:
    """What matters most of a sample, which has been checked: of its devices; of the host where it has none."""
    memories = [memory for memory, _ in capacities.devices]
    return vitals_from(capacities, summarize(sample.host, sample.devices, capacities.host_memory_bytes, memories))


def device_vitals(capacities: Sequence[tuple[int, int]], devices: Sequence[pb.DeviceSample]) -> Vitals:
    """The same of some devices alone."""
    summary = summarize(pb.HostSample(), devices, 0, [memory for memory, _ in capacities])
    return vitals_from(Capacities(devices=tuple(capacities)), summary)


def vitals_from(capacities: Capacities, summary: pb.Summary) -> Vitals:
    """What a node's sample adds up to. Run for each heartbeat: a field is read once, and asked whether it is set only when it is 0.

    Raises ValueError where a value can't be.
    """
    known = capacities.devices
    count = len(known)
    load, full, heat, power, cpu, energy = (
        summary.utilization_permille, summary.memory_permille, summary.temperature_celsius, summary.power_milliwatts,
        summary.cpu_percent, summary.energy_joules,
    )  # fmt: skip
    used, total, hottest, errors, readings = (
        summary.memory_used_bytes, summary.memory_total_bytes, summary.hottest_device, summary.failed_devices, summary.readings,
    )  # fmt: skip
    with_load, with_memory, with_power = (
        count - summary.without_utilization, count - summary.without_memory, count - summary.without_power,
    )  # fmt: skip
    if (
        load > 1000 or full > MAX_PERMILLE or not -100 <= heat <= 500 or power > MAX_MILLIWATTS or cpu > 100
        or energy > MAX_JOULES or used > MAX_BYTES or total > MAX_BYTES or hottest > MAX_DEVICES or errors > MAX_DEVICES
    ):  # fmt: skip
        raise ValueError("heartbeat.summary has a number out of its range")
    if count == 0:  # the host stands for the node, or devices that it has said nothing of
        readings, with_load, with_memory, with_power, total = b"", 1, 1, 1, capacities.host_memory_bytes
    elif with_load < 0 or with_memory < 0 or with_power < 0 or len(readings) not in (0, WIDTH * count) or is_no_frame(readings):
        raise ValueError(f"heartbeat.summary does not fit the {count} devices of info")
    elif with_memory == count:
        total = 0
        for memory, _ in known:
            total += memory
    utilization = fullest = celsius = limit = milliwatts = None
    own_load = own_memory = own_heat = history.NOT_REPORTED
    if load or summary.HasField("utilization_permille"):
        utilization, own_load = load / 1000, (load + 5) // 10
    else:
        with_load = 0
    if full or summary.HasField("memory_permille"):
        fullest, own_memory = full / 1000, (full + 5) // 10 if full < 1000 else 100
    else:
        with_memory = total = 0
    if heat or summary.HasField("temperature_celsius"):
        celsius, own_heat = heat, history.BYTES[heat]
        limit = known[hottest][1] or None if hottest < count else None
    if power or summary.HasField("power_milliwatts"):
        milliwatts = power
    else:
        with_power = 0
    return Vitals(
        utilization, fullest, used, total, celsius, limit, milliwatts, errors,
        bytes((own_load, own_memory, own_heat)) + (readings or BLANK * count),
        count, with_load, with_memory, with_power, hottest,
        cpu if cpu or summary.HasField("cpu_percent") else None,
        energy if energy or summary.HasField("energy_joules") else None,
    )  # fmt: skip


def is_no_frame(readings: bytes) -> bool:
    """Whether the load or the memory of some device is no percentage."""
    if not readings.translate(None, PERCENTS):  # nor is anything too hot for one: so it is nearly always
        return False
    return bool((readings[history.UTILIZATION :: WIDTH] + readings[history.MEMORY :: WIDTH]).translate(None, PERCENTS))


def after(row: Row, request: pb.HeartbeatRequest, now: float) -> Row:
    """The row after a heartbeat that has come now. Raises Refused, naming the first field that is out of its range."""
    try:
        return _after(row, request, now)
    except ValueError as error:
        raise Refused(str(error)) from error


def _after(row: Row, request: pb.HeartbeatRequest, now: float) -> Row:
    has_info = request.HasField("info")
    if has_info:
        row = with_info(row, request.info)
    if request.HasField("processes"):
        check_processes(request.processes)
        row = row._replace(packed_processes=packed(request.processes, "processes"))
    if request.backlog:
        check_backlog(request)
        row = row._replace(history=with_backlog(row, request.backlog))
    kept, vitals, frames, sample_at = row.packed_sample, row.vitals, row.history, row.sample_at
    if sample := sample_of(request):
        is_summed = request.HasField("summary")
        if has_info or not is_summed:  # else it is checked when someone reads it
            check_sample(sample)
        vitals = vitals_from(row.capacities, request.summary) if is_summed else vitals_of(row.capacities, sample)
        if not (has_info and sample.sequence and sample.sequence == row.sample.sequence):  # else it came already
            frames = history.extend(frames, vitals.frame)
        kept = packed(sample, "sample")
        sample_at = now - max(request.clock_milliseconds - sample.taken_milliseconds, 0) / 1000
    size = len(row.packed_info) + len(kept) + len(row.packed_processes)
    if size > MAX_KEPT_BYTES:
        raise Refused(f"info, sample and processes have {size} bytes together: they may have {MAX_KEPT_BYTES}")
    trip = request.round_trip_microseconds
    return row.beat(trip / 1e6 if trip else row.round_trip_seconds, kept, vitals, frames, sample_at, now)


def with_info(row: Row, info: pb.NodeInfo) -> Row:
    """The row of a box that says anew what it is. Its history begins anew where the number of its devices changes."""
    kept = packed(info, "info")  # first of all: its size bounds what the check costs
    check_info(info)
    before, version = row.capacities, version_numbers(info.agent_version)
    row = row._replace(packed_info=kept, capacities=capacities_of(info), labels=labels_of(info), version=version)
    if row.capacities != before:
        row = row._replace(vitals=vitals_from(row.capacities, pb.Summary()))  # until there is a sample that was measured against it
    return row if len(row.capacities.devices) == len(before.devices) else row._replace(history=b"")


def with_backlog(row: Row, backlog: Sequence[pb.Sample]) -> bytes:
    """The history with the samples that have not come yet: of the others only the acknowledgement was lost."""
    newest = row.sample.sequence
    missed = [sample for sample in backlog[-history.SAMPLES :] if sample.sequence > newest]
    for sample in missed:
        check_sample(sample)
    frames = b"".join([row.history, *(vitals_of(row.capacities, sample).frame for sample in missed)])
    return frames[-history.SAMPLES * row.capacities.frame_bytes :]
