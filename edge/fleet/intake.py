"""What a node may send, and what becomes of it: everything is checked here before it is kept, and a heartbeat makes a new row."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

import node_pb2 as pb
from edge import history
from edge.fleet.row import Capacities, Refused, Row, Vitals
from edge.protocol import BACKLOG_SAMPLES, MAX_DEVICES, MAX_PROCESSES, MAX_TEXT, check_node_id

MAX_UNREAD_BYTES = 2 * 1024  # of a heartbeat put aside; one of 64 devices has 2 KiB
MAX_KEPT_BYTES = 2**16  # of info, sample and processes together: what a node can make this process keep


def heartbeat_of(raw: bytes) -> pb.HeartbeatRequest:
    """What came on the wire. Raises Refused."""
    try:
        return pb.HeartbeatRequest.FromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:  # the latter of protobuf in pure Python (musl, armv7l)
        raise Refused(f"this is no heartbeat: {error}") from error


# What a number may be. A reading outside is no reading: a sentinel, a negative number in an unsigned field, NaN.
RANGES: dict[str, tuple[float, float]] = {
    "sampling_interval_milliseconds": (0, 3_600_000),
    "cpu_count": (0, 10**6),
    "memory_total_bytes": (0, 2**50),
    "disk_total_bytes": (0, 2**60),
    "power_limit_milliwatts": (0, 10**8),
    "slowdown_temperature_celsius": (-100, 500),
    "cpu_percent": (0, 100),
    "memory_used_bytes": (0, 2**50),
    "disk_used_bytes": (0, 2**60),
    "network_received_bytes_per_second": (0, 2**50),
    "network_sent_bytes_per_second": (0, 2**50),
    "temperature_celsius": (-100, 500),
    "load_1m": (0, 10**6),
    "utilization_percent": (0, 100),
    "power_milliwatts": (0, 10**8),
    "fan_percent": (0, 1000),
    "sm_clock_mhz": (0, 10**6),
    "gpu_temp": (-100, 500),
}


def is_sane_host(host: pb.HostSample) -> bool:
    """Whether all of a host is within RANGES: the question of check_fields without the words, five times as fast."""
    return (
        host.cpu_percent <= 100
        and host.memory_used_bytes <= 2**50
        and host.disk_used_bytes <= 2**60
        and host.network_received_bytes_per_second <= 2**50
        and host.network_sent_bytes_per_second <= 2**50
        and -100 <= host.temperature_celsius <= 500
        and 0 <= host.load_1m <= 10**6
    )


def check_fields(message: Any, where: str) -> None:
    """Raises Refused naming the first field of `message` that is out of its range, or too long."""
    for field, value in message.ListFields():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise Refused(f"{where}.{field.name} has {len(value)} characters: it may have {MAX_TEXT}")
        if field.name in RANGES:
            lowest, highest = RANGES[field.name]
            if not lowest <= value <= highest:
                raise Refused(f"{where}.{field.name} is {value}: it must be from {lowest:g} to {highest:g}")


def check_count(items: Sequence[Any], most: int, where: str, what: str = "devices") -> None:
    """Raises Refused for more than there can be. Before any is looked at: a megabyte holds half a million empty ones."""
    if len(items) > most:
        raise Refused(f"{where} has {len(items)} {what}: it may have {most}")


def packed(part: Any, where: str) -> bytes:
    """A part of a message, to be kept. Raises Refused if it is large."""
    kept: bytes = part.SerializeToString()
    if len(kept) > MAX_KEPT_BYTES:  # with fields that this version does not know
        raise Refused(f"{where} has {len(kept)} bytes: it may have {MAX_KEPT_BYTES}")
    return kept


def check_processes(processes: pb.ProcessList) -> None:
    """Raises Refused, naming the first field that is out of its range."""
    check_count(processes.processes, MAX_PROCESSES, "heartbeat", "processes")
    for index, process in enumerate(processes.processes):
        check_fields(process, f"processes[{index}]")


def identify(request: pb.HeartbeatRequest) -> None:
    """Writes the node's id as it is told from others. Raises Refused for one that can't name a node, or too long a backlog."""
    check_count(request.backlog, BACKLOG_SAMPLES, "heartbeat", "samples in its backlog")
    try:
        request.node_id = check_node_id(request.node_id)
    except ValueError as error:
        raise Refused(f"{error}: see --id") from error


def check_info(info: pb.NodeInfo) -> None:
    """Raises Refused, naming the first field that is out of its range."""
    check_count(info.devices, MAX_DEVICES, "info")
    check_fields(info, "info")
    check_fields(info.host, "info.host")
    for index, device in enumerate(info.devices):
        check_fields(device, f"info.devices[{index}]")
    try:
        info.started_at.ToJsonString()
    except ValueError as error:
        raise Refused("info.started_at is no time from the year 1 to 9999") from error


def sample_of(request: pb.HeartbeatRequest) -> pb.Sample | None:
    """The sample of a message; the first version's nodes send one temperature and no more. Raises Refused."""
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


def vitals_from(capacities: Capacities, summary: pb.Summary) -> Vitals:
    """What a node says that its sample adds up to. Raises Refused where that can't be."""
    devices, readings = len(capacities.devices), summary.readings
    utilization = summary.utilization_permille if summary.HasField("utilization_permille") else None
    memory = summary.memory_permille if summary.HasField("memory_permille") else None
    celsius = summary.temperature_celsius if summary.HasField("temperature_celsius") else None
    if not (
        (utilization or 0) <= 1000 and (memory or 0) <= 10**6 and -100 <= (celsius or 0) <= 500
        and summary.memory_used_bytes <= 2**60 and summary.memory_total_bytes <= 2**60 and summary.power_milliwatts <= 10**10
        and summary.failed_devices <= MAX_DEVICES and summary.cpu_percent <= 100 and summary.energy_joules <= 2**60
        and max(summary.without_utilization, summary.without_memory, summary.without_power) <= devices
        and len(readings) in (0, len(history.COLUMNS) * devices)
    ):  # fmt: skip
        raise Refused("heartbeat.summary has a value out of its range")
    hottest = summary.hottest_device
    known = capacities.devices[hottest : hottest + 1]
    has_memory = memory is not None
    total = summary.memory_total_bytes or sum(size for size, _ in capacities.devices) or capacities.host_memory_bytes * has_memory
    node = (None if utilization is None else utilization / 10, at_most_100(memory and memory / 10), celsius)
    return Vitals(
        utilization=None if utilization is None else utilization / 1000,
        memory=None if memory is None else memory / 1000,
        memory_used_bytes=summary.memory_used_bytes,
        memory_total_bytes=total,
        celsius=celsius,
        limit_celsius=(known[0][1] or None) if known else None,
        milliwatts=summary.power_milliwatts if summary.HasField("power_milliwatts") else None,
        errors=summary.failed_devices,
        frame=history.encode(node) + (readings or bytes([history.NOT_REPORTED]) * (len(history.COLUMNS) * devices)),
        devices=devices,
        with_utilization=devices - summary.without_utilization if devices else int(utilization is not None),
        with_memory=devices - summary.without_memory if devices else int(has_memory),
        with_power=devices - summary.without_power,
        hottest=hottest,
        cpu_percent=summary.cpu_percent if summary.HasField("cpu_percent") else None,
        energy_joules=summary.energy_joules if summary.HasField("energy_joules") else None,
    )


def vitals_of(capacities: Capacities, sample: pb.Sample) -> Vitals:
    """What matters most of a sample: of its devices; of the host where it has none. Raises Refused, naming the first field
    that is out of its range."""
    host = sample.host
    if not is_sane_host(host):
        check_fields(host, "sample.host")
    if sample.devices:
        return device_vitals(capacities.devices, sample.devices)
    total = capacities.host_memory_bytes
    busy = host.cpu_percent if host.HasField("cpu_percent") else None
    used = host.memory_used_bytes if total and host.HasField("memory_used_bytes") else None
    full = None if used is None else 100 * used / total
    celsius = host.temperature_celsius if host.HasField("temperature_celsius") else None
    frame = history.frame((busy, at_most_100(full), celsius), len(capacities.devices))
    sums = (0, 0) if used is None else (used, total)
    has_load, has_memory = int(busy is not None), int(used is not None)
    return Vitals(share_of(busy), share_of(full), *sums, celsius, frame=frame, with_utilization=has_load, with_memory=has_memory)


def device_vitals(capacities: Sequence[tuple[int, int]], devices: Sequence[pb.DeviceSample]) -> Vitals:
    """Checks and sums up devices in one pass, since it is run for each heartbeat: a field is read once, compared without words,
    and asked whether it is set only when it is 0. Raises Refused."""
    check_count(devices, MAX_DEVICES, "sample")
    utilization = readings = used = total = sized = metered = errors = 0
    fullest = celsius = limit = milliwatts = None
    known = len(capacities)
    if len(devices) != known:
        capacities = [*capacities, *[(0, 0)] * (len(devices) - known)]
    rows: list[float | None] = [None] * len(history.COLUMNS)  # of the history: of the node, then of each device
    for device, (capacity, slowdown) in zip(devices, capacities, strict=False):
        busy, part, degrees, power = (
            device.utilization_percent, device.memory_used_bytes, device.temperature_celsius, device.power_milliwatts,
        )  # fmt: skip
        if (
            busy > 100 or part > 2**50 or not -100 <= degrees <= 500 or power > 10**8
            or device.fan_percent > 1000 or device.sm_clock_mhz > 10**6 or device.error
        ):  # fmt: skip
            check_fields(device, f"sample.devices[{len(rows) // len(history.COLUMNS) - 1}]")
            errors += 1  # no number is out of its range: it is the device's own error
        load = full = heat = None
        if busy or device.HasField("utilization_percent"):
            load = busy
            utilization += busy
            readings += 1
        if capacity and (part or device.HasField("memory_used_bytes")):
            used += part
            total += capacity
            sized += 1
            full = 100 * part / capacity
            if fullest is None or full > fullest:
                fullest = full
        if degrees or device.HasField("temperature_celsius"):
            heat = degrees
            if celsius is None or degrees > celsius:
                celsius, limit = degrees, slowdown
        if power or device.HasField("power_milliwatts"):
            milliwatts = power if milliwatts is None else milliwatts + power
            metered += 1
        rows += load, full if full is None or full < 100 else 100, heat
    mean = utilization / readings if readings else None
    rows[: len(history.COLUMNS)] = mean, at_most_100(fullest), celsius
    frame = history.frame(rows, known)
    return Vitals(
        share_of(mean), share_of(fullest), used, total, celsius, limit or None, milliwatts, errors, frame,
        len(rows) // len(history.COLUMNS) - 1, readings, sized, metered,
    )  # fmt: skip


def at_most_100(percent: float | None) -> float | None:
    """What the history keeps of a memory that reports more use than it has room."""
    return percent if percent is None or percent < 100 else 100


def share_of(percent: float | None) -> float | None:
    """0 to 1 for 0 to 100."""
    return None if percent is None else percent / 100


def after(row: Row, request: pb.HeartbeatRequest) -> Row:
    """The row after what a heartbeat says. Raises Refused when a field is out of its range."""
    changes: dict[str, Any] = {"unread": b""}
    capacities, frames = row.capacities, row.history
    if request.HasField("info"):
        changes["packed_info"] = packed(request.info, "info")  # first of all: its size bounds what the check costs
        check_info(request.info)
        capacities = changes["capacities"] = capacities_of(request.info)
        if len(capacities.devices) != len(row.capacities.devices):
            frames = b""
    if request.HasField("processes"):
        check_processes(request.processes)
        changes["packed_processes"] = packed(request.processes, "processes")
    if request.round_trip_microseconds:
        changes["round_trip_seconds"] = request.round_trip_microseconds / 1e6
    if request.backlog:
        check_count(request.backlog, BACKLOG_SAMPLES, "heartbeat", "samples in its backlog")
        newest = row.sample.sequence
        for missed in request.backlog[-history.SAMPLES :]:
            if missed.sequence > newest:  # else it came, and only its acknowledgement was lost
                frames = history.extend(frames, vitals_of(capacities, missed).frame)
    sample = sample_of(request)
    if sample:
        vitals = vitals_of(capacities, sample)
        if not (request.HasField("info") and sample.sequence and sample.sequence == row.sample.sequence):  # else it came already
            frames = history.extend(frames, vitals.frame)
        age_milliseconds = max(request.clock_milliseconds - sample.taken_milliseconds, 0)
        sample_at = row.heartbeat_at - age_milliseconds / 1000
        changes |= {"packed_sample": packed(sample, "sample"), "sample_at": sample_at, "vitals": vitals}
    row = row._replace(**changes, history=frames)
    kept = len(row.packed_info) + len(row.packed_sample) + len(row.packed_processes)
    if kept > MAX_KEPT_BYTES:
        raise Refused(f"info, sample and processes have {kept} bytes together: they may have {MAX_KEPT_BYTES}")
    return row


def with_unread(row: Row) -> Row:
    """The row after its unread heartbeat. Raises Refused."""
    return after(row, pb.HeartbeatRequest.FromString(row.unread)) if row.unread else row


def with_unread_if_sane(row: Row) -> Row:
    """The same; a heartbeat that is refused stays unread, and its session ends within a minute."""
    with contextlib.suppress(Refused):
        return with_unread(row)
    return row


def is_only_a_sample(request: pb.HeartbeatRequest) -> bool:
    """Whether nothing is lost when the next heartbeat takes the place of this one."""
    return request.HasField("sample") and not (request.HasField("info") or request.HasField("processes") or request.leaving)
