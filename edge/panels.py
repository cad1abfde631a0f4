"""Panels of one node: its own screen, and its page on the server's. Pure functions of a subject, a size and how far it is scrolled.

A page shows all that a node has. Where that is more than there is room for, the processes scroll under the devices; on a screen so
low that not even the devices fit, both scroll as one list.
"""

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
    band,
    box,
    choose_columns,
    fit,
    fit_line,
    fit_parts,
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

GAUGE_LINES = 7  # of a device's box, without its graphs
GAUGE_WIDTH = 50  # at least, where boxes stand side by side
GRAPH_WIDTH = 20  # at least
MIN_GRAPH_LINES, GOOD_GRAPH_LINES, MAX_GRAPH_LINES = 3, 5, 15  # its title counted; from the second on with the times below it
MAX_DRAWN_CORES = 256  # our own agents send MAX_CORES at most
WHEEL_LINES = 3  # that a notch of the mouse's wheel moves
TABLE_LINES = 3  # of the processes: two borders, and the titles
THROTTLE_WORDS = {  # the reasons that hold a device back
    ThrottleReason.APPLICATION_CLOCKS: "application clocks",
    ThrottleReason.POWER_CAP: "power cap",
    ThrottleReason.HARDWARE_SLOWDOWN: "hardware slowdown",
    ThrottleReason.SYNC_BOOST: "sync boost",
    ThrottleReason.THERMAL_SOFTWARE: "thermal (software)",
    ThrottleReason.THERMAL_HARDWARE: "thermal (hardware)",
    ThrottleReason.POWER_BRAKE: "power brake",
}
# Any busy GPU meets its power limit, and its owner may have set its clocks.
USUAL_REASONS = ThrottleReason.IDLE | ThrottleReason.POWER_CAP | ThrottleReason.APPLICATION_CLOCKS


class Subject(NamedTuple):
    """A node, as the panels show it."""

    info: pb.NodeInfo
    sample: pb.Sample
    processes: Sequence[pb.Process]
    history: bytes
    highest: bytes = b""  # where each frame of the history is a step of time, with the lowest readings of it: the highest
    past: str = ""  # how far back that goes
    ends: tuple[str, str] = ("", "")  # the times at which that begins and ends
    graphs_first: bool = False  # it is these that one looks for


class Reach(NamedTuple):
    """What of a page, or of a list, is out of sight."""

    most: int  # the largest useful scroll, in lines; 0: all is in sight
    page: int  # lines that scroll, of those in sight


class Plan(NamedTuple):
    """Which form each part of a page takes."""

    boxes_per_line: int  # of the devices; 0: they are a table
    graph_lines: int  # of each graph, its title counted; 0: there are none
    host: list[Line]
    is_list: bool  # not even the table fits with a process below it: devices and processes scroll as one list
    reach: Reach
    has_table: bool = True  # of the devices, where they are no boxes
    says: str = ""  # why there are no graphs, where one looks for them


def node_panels(subject: Subject, width: int, room: int, scroll: int = 0) -> list[Line]:
    """Devices, processes and host, in at most `room` lines. `scroll`, in lines, is kept within what `reach_of` says."""
    plan = plan_of(subject, width, room)
    scroll = min(max(scroll, 0), plan.reach.most)
    says: list[Line] = [[(f" {plan.says}", "yellow")]] if plan.says else []
    if plan.is_list:
        return [*says, *node_list(subject, width, plan.reach.page, scroll), *plan.host][: max(room, 0)]
    processes = process_panel(subject, width, plan.reach.page, scroll)
    if plan.boxes_per_line:
        return [*says, *gauge_boxes(subject, width, plan.boxes_per_line, plan.graph_lines), *processes, *plan.host]
    table = device_table(subject, width) if subject.info.devices and plan.has_table else []
    return [*says, *table, *graph_panel(subject, width, plan.graph_lines), *processes, *plan.host]


def reach_of(subject: Subject, width: int, room: int) -> Reach:
    """How far `node_panels` of this size can be scrolled."""
    return plan_of(subject, width, room).reach


def scrolled(scroll: int, key: str, reach: Reach) -> int:
    """Where what is scrolled stands after a key, by its name; keys that do not scroll leave it where it is."""
    step = max(reach.page - 1, 1)  # a page leaves one line in sight, to read on from
    notch = min(WHEEL_LINES, step)
    steps = {"up": -1, "down": 1, "wheel up": -notch, "wheel down": notch, "page up": -step, "page down": step}
    steps |= {"home": -reach.most, "end": reach.most}
    return min(max(min(scroll, reach.most) + steps.get(key, 0), 0), reach.most)


def plan_of(subject: Subject, width: int, room: int) -> Plan:
    """The richest page that fits, with graphs if it is these that one looks for."""
    if not subject.graphs_first:
        return whole_plan(subject, width, room)
    says = f"nothing is kept of it in the last {subject.past}"
    if subject.history.strip(bytes([history.NOT_REPORTED])):
        if plan := graphs_plan(subject, width, room):
            return plan
        says = f"no room for the graphs of the last {subject.past}: a larger terminal shows them"
    return whole_plan(subject, width, room - 1)._replace(says=says)


def graphs_plan(subject: Subject, width: int, room: int) -> Plan | None:
    """Graphs in the place of the processes; on a low terminal in that of the devices, too. None: there is no room even then."""
    devices, processes, hosts = len(subject.info.devices), len(subject.processes), host_panels(subject, width)
    per_line, rows = even(devices, width // GAUGE_WIDTH), graph_rows(subject, width)
    box_rows, table_lines = -(-devices // per_line), devices + 1 if devices else 0
    forms = ((per_line, box_rows * GAUGE_LINES, box_rows, False), (0, table_lines + 2, rows, True), (0, 2, rows, False))
    for boxes_per_line, lines, graphs, has_table in forms:
        for host in reversed(hosts):
            graph_lines = min((room - lines - len(host)) // graphs, MAX_GRAPH_LINES) if graphs else 0
            if graph_lines < (MIN_GRAPH_LINES if host is hosts[0] else GOOD_GRAPH_LINES):
                continue
            shown = min(processes, max(room - lines - len(host) - graphs * graph_lines - TABLE_LINES, 0))
            reach = Reach(processes - shown, shown) if shown else Reach(0, 0)
            return Plan(boxes_per_line, graph_lines, host, False, reach, has_table)
    return None


def whole_plan(subject: Subject, width: int, room: int) -> Plan:
    """The richest page that fits, with all that there is.

    Room goes first to a line for each device and one for the host, then to all processes, to the host's box, and to graphs. The
    devices are boxes where that leaves a third of the page to the processes, or as much as they need.
    """
    devices, processes = len(subject.info.devices), len(subject.processes)
    hosts = host_panels(subject, width)
    wanted = processes + TABLE_LINES if processes else 0
    boxes_per_line = even(devices, width // GAUGE_WIDTH)
    box_lines = -(-devices // boxes_per_line) * GAUGE_LINES
    is_boxed = 0 < box_lines <= room - 1 - min(wanted, room // 3)
    left = room - (box_lines if is_boxed else devices + 1 if devices else 0) - 1
    if left < min(wanted, TABLE_LINES + 1):
        lines = devices + (processes + 1 if processes else 0)
        inside = room - (1 if devices else 0) - 1
        page = max(inside if lines <= inside else inside - 1, 1)  # less the line that says what is out of sight
        return Plan(0, 0, hosts[0], True, Reach(max(lines - page, 0), page))
    shown = min(processes, max(left - TABLE_LINES, 0))
    left -= min(wanted, left)
    host = [panel for panel in hosts if len(panel) <= left + 1 or panel is hosts[0]][-1]
    left -= len(host) - 1
    rows = box_lines // GAUGE_LINES if is_boxed else graph_rows(subject, width)
    graph_lines = min((left if is_boxed else left - 2) // rows, MAX_GRAPH_LINES) if rows else 0
    graph_lines = graph_lines if graph_lines >= MIN_GRAPH_LINES else 0
    return Plan(boxes_per_line if is_boxed else 0, graph_lines, host, False, Reach(processes - shown, shown))


def even(count: int, most: int) -> int:
    """How many of `count` stand side by side, at most `most`, so that no row is much shorter than another; at least 1."""
    rows = -(-count // max(most, 1))
    return -(-count // max(rows, 1)) or 1


def hint(what: str, first: int, shown: int, count: int) -> str:
    """What part of a list is in sight, and the keys to the rest."""
    keys = " PgUp" * (first > 0) + " PgDn" * (first + shown < count)
    return f"{what} {first + 1} to {first + shown} of {count} ·{keys}" if keys else what


def node_list(subject: Subject, width: int, page: int, scroll: int) -> list[Line]:
    """Devices and processes as one list: `page` lines of it, from line `scroll` on; the devices' titles stay."""
    devices, processes = len(subject.info.devices), len(subject.processes)
    table = device_table(subject, width) if devices else []
    count = devices + (processes + 1 if processes else 0)
    rows = table[1 + scroll :]
    if processes:
        lines = process_lines(subject, width - 1, max(scroll - devices - 1, 0), page)
        rows += [[(" ", ""), *line] for line in lines[scroll > devices :]]
    rest: list[Line] = [[(f" {hint('lines', scroll, page, count)}", "dim")]] if count > page else []
    return [*table[:1], *rows[:page], *rest]


def devices_of(subject: Subject) -> list[tuple[pb.DeviceInfo, pb.DeviceSample]]:
    """Each device with its readings; with none before its first sample."""
    missing = len(subject.info.devices) - len(subject.sample.devices)
    return list(zip(subject.info.devices, [*subject.sample.devices, *[pb.DeviceSample()] * missing], strict=False))


def gauge_boxes(subject: Subject, width: int, per_line: int, graph_lines: int) -> list[Line]:
    """A box a device, so many of them side by side."""
    lines: list[Line] = []
    devices = devices_of(subject)
    for start in range(0, len(devices), per_line):
        boxes = []
        for position, (info, sample) in enumerate(devices[start : start + per_line]):
            box_width = width * (position + 1) // per_line - width * position // per_line
            content = gauges(info, sample, box_width - 4)
            if graph_lines:
                content += graph_grid(subject, device_curves(subject, start + position), 2, box_width - 4, graph_lines)
            boxes.append(box(device_title(info), content, box_width))
        lines += [fit_line([span for part in parts for span in part], width) for parts in zip(*boxes, strict=True)]
    return lines


def device_title(info: pb.DeviceInfo) -> str:
    """ "GPU 0 · NVIDIA H200"; without a lone dot where it has no name."""
    return f"GPU {info.index}" + (f" · {visible(info.name)}" if info.name else "")


class Curve(NamedTuple):
    """A reading over time, as a byte a sample, oldest first; and how it is drawn."""

    name: str
    scale: str
    values: bytes
    style: str
    highest: bytes = b""  # where the values are the lowest of each step


def series(subject: Subject, device: int, column: int) -> bytes:
    """A reading of a device over time, or of the node itself."""
    return history.series(subject.history, len(subject.info.devices), device, column)


def curve(subject: Subject, name: str, scale: str, device: int, column: int, style: str) -> Curve:
    """Of a reading of a device, or of the node itself."""
    highest = history.series(subject.highest, len(subject.info.devices), device, column)
    return Curve(name, scale, series(subject, device, column), style, highest)


def device_curves(subject: Subject, device: int) -> list[Curve]:
    """Utilization and temperature."""
    info, sample = devices_of(subject)[device]
    style = heat_style(reported(sample, "temperature_celsius"), reported(info, "slowdown_temperature_celsius"))
    return [
        curve(subject, "utilization", ", 0 to 100%", device, history.UTILIZATION, "green"),
        curve(subject, "temperature", ", 0 to 100°C", device, history.TEMPERATURE, style),
    ]


def page_curves(subject: Subject) -> list[Curve]:
    """Of all devices; where there is none, what the host reports."""
    if subject.info.devices:
        return [
            curve(subject, f"GPU {info.index}", "", device, history.UTILIZATION, "green")
            for device, info in enumerate(subject.info.devices)
        ]
    style = heat_style(reported(subject.sample.host, "temperature_celsius"), None)
    curves = [
        curve(subject, "cpu", ", 0 to 100%", history.WHOLE_NODE, history.UTILIZATION, "green"),
        curve(subject, "memory", ", 0 to 100%", history.WHOLE_NODE, history.MEMORY, "cyan"),
        curve(subject, "temperature", ", 0 to 100°C", history.WHOLE_NODE, history.TEMPERATURE, style),
    ]
    return [one for one in curves if one.values.strip(bytes([history.NOT_REPORTED]))]


def graphs_per_line(subject: Subject, width: int) -> int:
    """How many graphs of a page stand side by side."""
    return even(len(page_curves(subject)), (width - 4 + 2) // (GRAPH_WIDTH + 2))


def graph_rows(subject: Subject, width: int) -> int:
    """In how many rows they stand."""
    return -(-len(page_curves(subject)) // graphs_per_line(subject, width))


def graph_panel(subject: Subject, width: int, graph_lines: int) -> list[Line]:
    """The room that a page leaves, used for a graph a device, or for the host's."""
    if not graph_lines:
        return []
    lines = graph_grid(subject, page_curves(subject), graphs_per_line(subject, width), width - 4, graph_lines)
    return box("Utilization, 0 to 100%" if subject.info.devices else "History", lines, width)


def graph_grid(subject: Subject, curves: Sequence[Curve], per_line: int, width: int, height: int) -> list[Line]:
    """Graphs, so many side by side, each of `height` lines: its title with its scale of time, then the curve."""
    each = (width + 2) // per_line - 2
    lines: list[Line] = []
    times: list[Line] = [time_line(subject, each)] if height >= GOOD_GRAPH_LINES and any(subject.ends) else []
    for start in range(0, len(curves), per_line):
        graphs = [
            [[(graph_title(subject, curve, each), "dim")], *curve_lines(curve, each, height - 1 - len(times)), *times]
            for curve in curves[start : start + per_line]
        ]
        lines += [[span for part in parts for span in [*part, ("  ", "")]][:-1] for parts in zip(*graphs, strict=True)]
    return lines


def time_line(subject: Subject, width: int) -> Line:
    """When a graph begins and ends, below it."""
    begin, end = subject.ends
    return [(begin + fit(end, width - len(begin), ">") if len(begin) + len(end) < width else fit(begin, width), "dim")]


def curve_lines(curve: Curve, width: int, height: int) -> list[Line]:
    """As it is; where it has a lowest and a highest of each step, both of all steps."""
    if curve.highest:
        return band(curve.values, curve.highest, width, height, curve.style)
    return graph(curve.values, width, height, curve.style)


def graph_title(subject: Subject, curve: Curve, width: int) -> str:
    """What a graph of `width` cells shows, and how far it goes back: in time, where the node says how often it samples."""
    shown, milliseconds = min(len(curve.values), width), subject.info.sampling_interval_milliseconds
    past = subject.past or (show_seconds(shown * milliseconds / 1000) if milliseconds else f"{shown} samples")
    titles = [f"{curve.name}{curve.scale} · last {past}", f"{curve.name} · last {past}", f"{curve.name}, {past}", curve.name]
    nothing = bytes([history.NOT_REPORTED])
    low, high = curve.values.replace(nothing, b""), curve.highest.replace(nothing, b"")
    if low and high:
        extent = f"{titles[0]} · lowest {min(low)}, highest {max(high)}"
        titles = [extent, *(f"{curve.name}: {min(low)}{to}{max(high)}, {past}" for to in (" to ", "–")), *titles]
    return fit(next((title for title in titles if len(title) <= width), titles[-1]), width)


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
        self.heat = fraction(self.celsius, 100 if self.limit is None else self.limit)
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
        self.throttle = MISSING if reasons is None else ", ".join(held_back) or ("other" if self.throttled else "none")


DEVICE_COLUMNS = (
    Column("GPU", 3, 0, ">"),
    Column("NAME", 24, 5),
    Column("UTILIZATION", 16, 1),
    Column("MEMORY", 16, 2),
    Column("USED", 20, 6, ">"),
    Column("TEMP", 6, 0, ">"),
    Column("POWER", 7, 3, ">"),
    Column("FAN", 4, 7, ">"),
    Column("SM CLOCK", 8, 8, ">"),
    Column("THROTTLE", 20, 4),
)


def device_table(subject: Subject, width: int) -> list[Line]:
    """A title line, then a line a device."""
    columns = choose_columns(DEVICE_COLUMNS, width - 2)
    lines: list[Line] = [[(" " + " ".join(fit(column.title, column.width, column.align) for column in columns), "bold dim")]]
    for info, sample in devices_of(subject):
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


def host_panels(subject: Subject, width: int) -> list[list[Line]]:
    """The host in each of its forms, the lowest first: a line, a box of words, a box of meters, and each box with a spark a
    processor."""
    readings, facts = host_readings(subject), host_facts(subject)
    shares: list[Line] = [[(f"  {label} {show_percent(part)}", "")] for label, part, _, _ in readings]
    line = fit_parts([[(" host", "")], *shares, *([(f"  {fact}", "")] for fact in facts)], width)
    inner, info, cores = width - 4, subject.info.host, subject.sample.host.cpu_core_percents
    forms: list[list[Line]] = []
    if subject.info.devices and width >= 120:
        third = inner // 3
        spans = [
            [(fit(label, 7), "dim"), *meter(part, third - 7 - 22, style), (fit(text, 20, ">") + "  ", "")]
            for label, part, text, style in readings
        ]
        forms.append([[span for part in spans for span in part]])
    else:
        if width >= 80:
            forms.append([[span for label, _, text, _ in readings for span in ((f"{label} ", "dim"), (f"{text}   ", ""))]])
        forms.append([gauge(label, part, text, style, inner) for label, part, text, style in readings])
    title = " · ".join(visible(text) for text in ("Host", info.model, info.operating_system) if text)
    rest = [fit_parts([[(fact + "  ", "dim")] for fact in facts], inner)] if facts else []
    sparks = core_lines(cores, inner)
    boxes = [box(title, [*form, *more, *rest], width) for form in forms for more in ([], sparks)]
    return [[line], *boxes]


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
    """The rest of what the host reports, in a line."""
    return "  ".join(host_facts(subject))


def host_facts(subject: Subject) -> list[str]:
    """The same one by one: nothing for what it does not report."""
    sample = subject.sample.host
    celsius, load, uptime = (reported(sample, field) for field in ("temperature_celsius", "load_1m", "uptime_seconds"))
    cpus = reported(subject.info.host, "cpu_count")
    received = reported(sample, "network_received_bytes_per_second")
    sent = reported(sample, "network_sent_bytes_per_second")
    network = "" if received is None and sent is None else f"↓ {show_bytes(received)}/s ↑ {show_bytes(sent)}/s"
    words = [
        "" if celsius is None else show_celsius(celsius, None).strip(),
        "" if load is None else f"load {load:.2f}",
        "" if cpus is None else f"{cpus} CPU{'s' * (cpus != 1)}",
        network,
        "" if uptime is None else f"up {show_seconds(uptime)}",
    ]
    return [word for word in words if word]


PROCESS_COLUMNS = (  # the name takes what they leave
    Column("GPU", 3, 0, ">"),
    Column("PID", 8, 2, ">"),
    Column("USER", 12, 3),
    Column("MEMORY", 9, 0, ">"),
    Column("SHARE", 15, 4),
    Column("NAME", 15, 1),
)


def process_panel(subject: Subject, width: int, shown: int, scroll: int) -> list[Line]:
    """Who uses the devices: so many processes, from the one at `scroll` on."""
    if not shown:
        return []
    title = hint("Processes", scroll, shown, len(subject.processes))
    return box(title, process_lines(subject, width - 4, scroll, shown), width)


def process_lines(subject: Subject, width: int, first: int, count: int) -> list[Line]:
    """A title line, then a line a process: those with most memory first. What is not known of a process is a dash."""
    totals = {device.index: reported(device, "memory_total_bytes") for device in subject.info.devices}
    columns = choose_columns(PROCESS_COLUMNS, width)
    lines: list[Line] = [[(" ".join(fit(column.title, column.width, column.align) for column in columns), "bold dim")]]
    for process in sorted(subject.processes, key=process_order)[first : first + count]:
        memory = reported(process, "memory_used_bytes")
        share = fraction(memory, totals.get(process.device_index))
        spans: dict[str, Line] = {
            "GPU": [(str(process.device_index), "bold")],
            "PID": [(str(process.pid), "")],
            "USER": [(visible(process.user) or MISSING, "")],
            "MEMORY": [(show_bytes(memory), "" if memory is not None else "dim")],
            "SHARE": [*meter(share, 10, "cyan"), (fit(show_percent(share), 5, ">"), "" if share is not None else "dim")],
        }
        line = [span for column in columns if column.title in spans for span in [*align(spans[column.title], column), (" ", "")]]
        lines.append([*line, (visible(process.name) or MISSING, "bold" if process.name else "dim")])
    return lines


def process_order(process: pb.Process) -> tuple[float, int, int]:
    """Most memory first; what is not reported is less than 0 bytes."""
    memory = reported(process, "memory_used_bytes")
    return (1 if memory is None else -memory, process.device_index, process.pid)


def core_lines(percents: bytes, width: int) -> list[Line]:
    """A spark a processor: how even the load is."""
    each = width - 7
    parts = [percents[start : start + each] for start in range(0, min(len(percents), MAX_DRAWN_CORES), each)]
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
