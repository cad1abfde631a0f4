"""What a node may send: the range of each number, and how much there may be of anything. All raise ValueError, naming the first
field that can't be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import node_pb2 as pb
from edge.protocol import MAX_DEVICES, MAX_PROCESSES, MAX_TEXT

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


def is_sane_device(device: pb.DeviceSample) -> bool:
    """The same of a device."""
    return (
        device.utilization_percent <= 100
        and device.memory_used_bytes <= 2**50
        and -100 <= device.temperature_celsius <= 500
        and device.power_milliwatts <= 10**8
        and device.fan_percent <= 1000
        and device.sm_clock_mhz <= 10**6
        and len(device.error) <= MAX_TEXT
    )


def check_sample(sample: pb.Sample) -> None:
    """All of a sample."""
    check_count(sample.devices, MAX_DEVICES, "sample")
    if not is_sane_host(sample.host):
        check_fields(sample.host, "sample.host")
    for index, device in enumerate(sample.devices):
        if not is_sane_device(device):
            check_fields(device, f"sample.devices[{index}]")


def check_fields(message: Any, where: str) -> None:
    """The numbers and texts of a message, without those of the messages in it."""
    for field, value in message.ListFields():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"{where}.{field.name} has {len(value)} characters: it may have {MAX_TEXT}")
        if field.name in RANGES:
            lowest, highest = RANGES[field.name]
            if not lowest <= value <= highest:
                raise ValueError(f"{where}.{field.name} is {value}: it must be from {lowest:g} to {highest:g}")


def check_count(items: Sequence[Any], most: int, where: str, what: str = "devices") -> None:
    """That there are not more than there can be. Before any is looked at: a megabyte holds half a million empty ones."""
    if len(items) > most:
        raise ValueError(f"{where} has {len(items)} {what}: it may have {most}")


def check_processes(processes: pb.ProcessList) -> None:
    """All that runs on a node."""
    check_count(processes.processes, MAX_PROCESSES, "heartbeat", "processes")
    for index, process in enumerate(processes.processes):
        check_fields(process, f"processes[{index}]")


def check_info(info: pb.NodeInfo) -> None:
    """All that a node says of itself."""
    check_count(info.devices, MAX_DEVICES, "info")
    check_fields(info, "info")
    check_fields(info.host, "info.host")
    for index, device in enumerate(info.devices):
        check_fields(device, f"info.devices[{index}]")
    try:
        info.started_at.ToJsonString()
    except ValueError as error:
        raise ValueError("info.started_at is no time from the year 1 to 9999") from error
