"""A node in few numbers, made of its sample: by the node, or by the server for a node that sends none. Here alone it is rounded."""

from __future__ import annotations

from collections.abc import Sequence

import node_pb2 as pb
from edge import history
from edge.protocol import reported

MAX_PERMILLE = 10**6  # of a memory that reports more use than room


def summarize(
    host: pb.HostSample, devices: Sequence[pb.DeviceSample], host_memory_bytes: int, memories_bytes: Sequence[int]
) -> pb.Summary:
    """What a sample adds up to, where memories have these sizes; 0 is not known.

    Of devices beyond those of `memories_bytes` nothing is taken, unless there is none at all: who does not say what it has is
    believed what it reports. Whole numbers throughout, and permille rounded down: what is then rounded to percent, half up, is as
    if it had been rounded once.
    """
    summary = pb.Summary()
    if host.HasField("cpu_percent"):
        summary.cpu_percent = host.cpu_percent
    if devices or memories_bytes:
        add_devices(summary, devices, memories_bytes or [0] * len(devices))
        return summary
    if host.HasField("cpu_percent"):
        summary.utilization_permille = 10 * host.cpu_percent
    if host_memory_bytes and host.HasField("memory_used_bytes"):
        summary.memory_used_bytes = host.memory_used_bytes
        summary.memory_permille = permille(host.memory_used_bytes, host_memory_bytes)
    if host.HasField("temperature_celsius"):
        summary.temperature_celsius = host.temperature_celsius
    return summary


def add_devices(summary: pb.Summary, devices: Sequence[pb.DeviceSample], memories_bytes: Sequence[int]) -> None:
    """Write the sums of devices. A field is asked whether it is set only when it is 0: this may run for each heartbeat."""
    utilization = with_utilization = used = total = with_memory = milliwatts = with_power = failed = hottest = 0
    fullest = celsius = None
    readings: list[int | None] = []
    for place, (device, memory) in enumerate(zip(devices, memories_bytes, strict=False)):
        busy, part, degrees, power = (
            device.utilization_percent, device.memory_used_bytes, device.temperature_celsius, device.power_milliwatts,
        )  # fmt: skip
        load = full = heat = None
        if busy or device.HasField("utilization_percent"):
            load = busy
            utilization += busy
            with_utilization += 1
        if memory and (part or device.HasField("memory_used_bytes")):
            used += part
            total += memory
            with_memory += 1
            full = percent(part, memory)
            share = permille(part, memory)
            if fullest is None or share > fullest:
                fullest = share
        if degrees or device.HasField("temperature_celsius"):
            heat = degrees
            if celsius is None or degrees > celsius:
                celsius, hottest = degrees, place
        if power or device.HasField("power_milliwatts"):
            milliwatts += power
            with_power += 1
        failed += bool(device.error)
        readings += load, full, heat
    count = len(memories_bytes)
    summary.failed_devices, summary.hottest_device = failed, hottest
    summary.without_utilization, summary.without_memory = count - with_utilization, count - with_memory
    summary.without_power = count - with_power
    summary.memory_used_bytes = used
    if with_memory < count:
        summary.memory_total_bytes = total
    if with_utilization:
        summary.utilization_permille = 10 * utilization // with_utilization
    if fullest is not None:
        summary.memory_permille = fullest
    if celsius is not None:
        summary.temperature_celsius = celsius
    if with_power:
        summary.power_milliwatts = milliwatts
    summary.readings = history.encode(readings).ljust(len(history.COLUMNS) * count, bytes([history.NOT_REPORTED]))


def permille(used: int, total: int) -> int:
    """How full a memory is, rounded down."""
    return min(1000 * used // total, MAX_PERMILLE)


def percent(used: int, total: int) -> int:
    """How full a memory is, rounded half up; at most 100, as the history keeps it."""
    return min((200 * used + total) // (2 * total), 100)


def box_summary(info: pb.NodeInfo, sample: pb.Sample) -> pb.Summary:
    """The same of a sample of this box."""
    memories = [device.memory_total_bytes for device in info.devices]
    return summarize(sample.host, sample.devices, info.host.memory_total_bytes, memories)


def own_frame(info: pb.NodeInfo, sample: pb.Sample, summary: pb.Summary) -> bytes:
    """What a sample adds to the history that a node shows of itself: the host's readings stand for the node."""
    host, total = sample.host, info.host.memory_total_bytes
    used = reported(host, "memory_used_bytes")
    full = None if used is None or not total else percent(used, total)
    return history.encode([reported(host, "cpu_percent"), full, reported(host, "temperature_celsius")]) + summary.readings
