"""Panels of one node: its own screen, and its page on the server's. Pure functions of a subject and a size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge import history
from edge.drawing import (
    Column,
    Line,
    align,
    box,
    choose_columns,
    fit,
    gauge,
    graph,
    heat_style,
    meter,
    sparkline,
)
from edge.event_log import Event
from edge.protocol import ThrottleReason, reported
from edge.text import (
    MISSING,
    fraction,
    of,
    show_bytes,
    show_celsius,
    show_percent,
    show_seconds,
    show_watts,
    visible,
)

GAUGE_LINES = 7  # of a device's box, without its graph
THROTTLE_WORDS = {  # the reasons that hold a device back
    ThrottleReason.POWER_CAP: "power cap",
    ThrottleReason.HARDWARE_SLOWDOWN: "hardware slowdown",
    ThrottleReason.SYNC_BOOST: "sync boost",
    ThrottleReason.THERMAL_SOFTWARE: "thermal (software)",
    ThrottleReason.THERMAL_HARDWARE: "thermal (hardware)",
    ThrottleReason.POWER_BRAKE: "power brake",
}
USUAL_REASONS = ThrottleReason.IDLE | ThrottleReason.POWER_CAP  # any busy GPU meets its power limit


class Subject(NamedTuple):
    """A node, as the panels show it."""

    info: pb.NodeInfo
    sample: pb.Sample
    processes: Sequence[pb.Process]
    history: bytes


def node_panels(subject: Subject, width: int, room: int) -> list[Line]:
    """Devices, processes and host, in at most `room` lines: the devices come first where there is little."""
    host = host_panel(subject, width, room)
    room -= len(host)
    count = len(subject.info.devices)
    columns = max(min(width // 58, count), 1)
    gauge_lines = -(-count // columns) * GAUGE_LINES
    least = gauge_lines if gauge_lines <= room else count + 1
    processes = process_panel(subject.processes, width, min(room // 4, room - least))
    room -= len(processes)
    if not count:
        return [*processes, *host]
    if least == gauge_lines:
        graph_height = min((room - gauge_lines) // -(-count // columns), 15)
        return [*gauge_boxes(subject, width, columns, graph_height), *processes, *host]
    lines = device_table(subject, width)
    if len(lines) > room:
        lines = [*lines[: room - 1], [(f" and {len(lines) - room + 1} more: the terminal is too low", "dim")]]
    return [*lines, *processes, *host]


def gauge_boxes(subject: Subject, width: int, columns: int, graph_height: int) -> list[Line]:
    """A box a device, `columns` of them side by side."""
    lines: list[Line] = []
    devices = list(zip(subject.info.devices, subject.sample.devices, strict=False))
    for start in range(0, len(devices), columns):
        boxes = []
        for position, (info, sample) in enumerate(devices[start : start + columns]):
            box_width = width * (position + 1) // columns - width * position // columns
            content = gauges(info, sample, box_width - 4)
            if graph_height >= 3:
                content += graphs(subject, start + position, box_width - 4, graph_height)
            boxes.append(box(f"GPU {info.index} · {visible(info.name)}", content, box_width))
        lines += [[span for part in parts for span in part] for parts in zip(*boxes, strict=True)]
    return lines


def graphs(subject: Subject, device: int, width: int, height: int) -> list[Line]:
    """Utilization and temperature of the last minutes, side by side, each under its title."""
    half = (width - 2) // 2
    limit = subject.info.devices[device].slowdown_temperature_celsius
    reached = reported(subject.sample.devices[device], "temperature_celsius")
    left = graph(curve(subject, device, history.UTILIZATION), half, height - 1, "green")
    right = graph(curve(subject, device, history.TEMPERATURE), half, height - 1, heat_style(reached, limit))
    titles: Line = [(fit("utilization, 0 to 100%", half), "dim"), ("  ", ""), (fit("temperature, 0 to 100°C", half), "dim")]
    return [titles, *([*first, ("  ", ""), *second] for first, second in zip(left, right, strict=True))]


def curve(subject: Subject, device: int, column: int) -> bytes:
    """A reading of a device over time, oldest first."""
    return history.series(subject.history, len(subject.info.devices), device, column)


def gauges(info: pb.DeviceInfo, sample: pb.DeviceSample, width: int) -> list[Line]:
    """Five lines: utilization, memory, temperature, power, and the rest in words."""
    if sample.error:
        return [[(fit(f"✗ {visible(sample.error)}", width), "bold red")], *[[]] * 4]
    reading = Reading(info, sample)
    memory = "memory (shared)" if info.unified_memory else "memory"
    words = [
        f"fan {reading.fan}",
        f"SM {reading.clock}",
        f"throttle: {reading.throttle}",
    ]
    return [
        gauge("utilization", reading.utilization, show_percent(reading.utilization), "green", width),
        gauge(memory, reading.memory, of(show_bytes(reading.memory_used), show_bytes(reading.memory_total)), "cyan", width),
        gauge(
            "temperature",
            reading.heat,
            of(show_celsius(reading.celsius, reading.limit), reading.limit_text),
            reading.heat_style,
            width,
        ),
        gauge("power", reading.power, of(show_watts(reading.milliwatts), show_watts(reading.limit_milliwatts)), "magenta", width),
        [("   ".join(words), "yellow" if reading.throttled else "dim")],
    ]


class Reading:
    """A device's sample against its info, with None for what is not reported."""

    def __init__(self, info: pb.DeviceInfo, sample: pb.DeviceSample) -> None:
        percent = reported(sample, "utilization_percent")
        self.utilization = fraction(percent, 100)
        self.memory_used = reported(sample, "memory_used_bytes")
        self.memory_total = reported(info, "memory_total_bytes")
        self.memory = fraction(self.memory_used, self.memory_total)
        self.celsius = reported(sample, "temperature_celsius")
        self.limit = reported(info, "slowdown_temperature_celsius")
        self.limit_text = MISSING if self.limit is None else f"{self.limit}°C"
        self.heat = fraction(self.celsius, self.limit or 100)
        self.heat_style = heat_style(self.celsius, self.limit)
        self.milliwatts = reported(sample, "power_milliwatts")
        self.limit_milliwatts = reported(info, "power_limit_milliwatts")
        self.power = fraction(self.milliwatts, self.limit_milliwatts)
        fan = reported(sample, "fan_percent")
        self.fan = show_percent(fraction(fan, 100))
        clock = reported(sample, "sm_clock_mhz")
        self.clock = MISSING if clock is None else f"{clock} MHz"
        reasons = reported(sample, "throttle_reasons")
        held_back = [words for bit, words in THROTTLE_WORDS.items() if (reasons or 0) & bit]
        self.throttled = bool((reasons or 0) & ~USUAL_REASONS)  # those that have no name here, too
        self.throttle = MISSING if reasons is None else ", ".join(held_back) or "none"


DEVICE_COLUMNS = (
    Column("GPU", 3, 0, ">"),
    Column("NAME", 24, 6),
    Column("UTILIZATION", 16, 1),
    Column("MEMORY", 16, 3),
    Column("USED", 20, 5, ">"),
    Column("TEMP", 6, 0, ">"),
    Column("POWER", 7, 2, ">"),
    Column("FAN", 4, 7, ">"),
    Column("SM CLOCK", 8, 8, ">"),
    Column("THROTTLE", 20, 4),
)


def device_table(subject: Subject, width: int) -> list[Line]:
    """A title line, then a line a device."""
    columns = choose_columns(DEVICE_COLUMNS, width - 2)
    lines: list[Line] = [[(" " + " ".join(fit(column.title, column.width, column.align) for column in columns), "bold dim")]]
    for info, sample in zip(subject.info.devices, subject.sample.devices, strict=False):
        if sample.error:
            text = f"{visible(info.name)}  ✗ {visible(sample.error)}"
            lines.append([(fit(str(info.index), 4, ">"), "bold"), (f" {text}", "bold red")])
            continue
        spans = device_spans(info, sample)
        lines.append([(" ", "")] + [span for column in columns for span in [*align(spans[column.title], column), (" ", "")]])
    return lines


def device_spans(info: pb.DeviceInfo, sample: pb.DeviceSample) -> dict[str, Line]:
    """What stands in each column for a device."""
    reading = Reading(info, sample)
    return {
        "GPU": [(str(info.index), "bold")],
        "NAME": [(visible(info.name), "")],
        "UTILIZATION": [*meter(reading.utilization, 10, "green"), (fit(show_percent(reading.utilization), 6, ">"), "")],
        "MEMORY": [*meter(reading.memory, 10, "cyan"), (fit(show_percent(reading.memory), 6, ">"), "")],
        "USED": [(of(show_bytes(reading.memory_used), show_bytes(reading.memory_total)), "")],
        "TEMP": [(show_celsius(reading.celsius, reading.limit), reading.heat_style)],
        "POWER": [(show_watts(reading.milliwatts), "")],
        "FAN": [(reading.fan, "dim")],
        "SM CLOCK": [(reading.clock, "dim")],
        "THROTTLE": [(reading.throttle, "yellow" if reading.throttled else "dim")],
    }


def host_panel(subject: Subject, width: int, room: int) -> list[Line]:
    """The host: a box of meters, or one line where there is little room."""
    readings = host_readings(subject)
    if room < 14:
        summary = "  ".join(f"{label} {show_percent(part)}" for label, part, _, _ in readings)
        return [[(f" host  {summary}  {host_words(subject)}", "")]]
    inner = width - 4
    if subject.info.devices and width >= 120:
        third = inner // 3
        spans = [
            [(fit(label, 7), "dim"), *meter(part, third - 7 - 22, style), (fit(text, 20, ">") + "  ", "")]
            for label, part, text, style in readings
        ]
        lines: list[Line] = [[span for part in spans for span in part]]
    else:
        lines = [gauge(label, part, text, style, inner) for label, part, text, style in readings]
    info, cores = subject.info.host, subject.sample.host.cpu_core_percents
    if cores and room >= 24:
        lines += core_lines(cores, inner)
    title = " · ".join(visible(text) for text in ("Host", info.model, info.operating_system) if text)
    return box(title, [*lines, [(host_words(subject), "dim")]], width)


def host_readings(subject: Subject) -> list[tuple[str, float | None, str, str]]:
    """Label, fraction, text and style of the host's three meters."""
    info, sample = subject.info.host, subject.sample.host
    cpu = fraction(reported(sample, "cpu_percent"), 100)
    memory, memory_total = reported(sample, "memory_used_bytes"), reported(info, "memory_total_bytes")
    disk, disk_total = reported(sample, "disk_used_bytes"), reported(info, "disk_total_bytes")
    return [
        ("cpu", cpu, show_percent(cpu), "green"),
        ("memory", fraction(memory, memory_total), of(show_bytes(memory), show_bytes(memory_total)), "cyan"),
        ("disk", fraction(disk, disk_total), of(show_bytes(disk), show_bytes(disk_total)), "blue"),
    ]


def host_words(subject: Subject) -> str:
    """The rest of what the host reports, in words."""
    sample = subject.sample.host
    celsius, load, uptime = (reported(sample, field) for field in ("temperature_celsius", "load_1m", "uptime_seconds"))
    cpus = reported(subject.info.host, "cpu_count")
    received = reported(sample, "network_received_bytes_per_second")
    sent = reported(sample, "network_sent_bytes_per_second")
    words = [
        "" if celsius is None else show_celsius(celsius, None).strip(),
        "" if load is None else f"load {load:.2f}",
        "" if cpus is None else f"{cpus} CPU{'s' * (cpus != 1)}",
        "" if received is None else f"↓ {show_bytes(received)}/s ↑ {show_bytes(sent)}/s",
        "" if uptime is None else f"up {show_seconds(uptime)}",
    ]
    return "  ".join(filter(None, words))


def process_panel(processes: Sequence[pb.Process], width: int, room: int) -> list[Line]:
    """Who uses the devices, those with most memory first, in `room` lines."""
    shown = min(len(processes), room - 3)
    if shown < 1:
        return []
    largest = sorted(processes, key=lambda process: -process.memory_used_bytes)
    lines: list[Line] = [[(f"{'GPU':>3} {'PID':>8} {'USER':12} {'MEMORY':>9} NAME", "bold dim")]]
    for process in largest[:shown]:
        memory = show_bytes(reported(process, "memory_used_bytes"))
        user = fit(visible(process.user) or MISSING, 12)
        lines.append([(f"{process.device_index:3} {process.pid:8} {user} {memory:>9} ", ""), (visible(process.name), "bold")])
    more = f", {len(processes) - shown} more" if len(processes) > shown else ""
    return box(f"Processes{more}", lines, width)


def core_lines(percents: bytes, width: int) -> list[Line]:
    """A spark a processor: how even the load is."""
    each = width - 7
    parts = [percents[start : start + each] for start in range(0, len(percents), each)]
    return [[("cores  ", "dim"), (sparkline(part, len(part)), "green")] for part in parts]


LOG_STYLES = {"info": "", "warning": "yellow", "error": "bold red"}


def log_panel(log: Sequence[Event], width: int, room: int) -> list[Line]:
    """A node's own log: the newest lines that fit, the newest last."""
    if room < 3:
        return log_lines(log, room)
    lines = log_lines(log, room - 2)
    return box("Log", lines + [[]] * (room - 2 - len(lines)), width)


def log_lines(log: Sequence[Event], count: int) -> list[Line]:
    """The last `count` lines."""
    newest = log[-count:] if count > 0 else ()
    return [
        [(time.strftime("%H:%M:%S ", time.localtime(line.time)), "dim"), (line.text, LOG_STYLES.get(line.kind, ""))]
        for line in newest
    ]
