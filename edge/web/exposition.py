"""The fleet as Prometheus reads it. Each node is read once, into columns; each family of lines is then made of its columns.

    # HELP edge_gpu_utilization_ratio How busy the GPU is, 0 to 1.
    # TYPE edge_gpu_utilization_ratio gauge
    edge_gpu_utilization_ratio{node="Node-8821",gpu="0"} 0.53

What is not reported has no line. A node whose readings are stale keeps what says so, and what does not change.
"""

from __future__ import annotations

import collections
import operator
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import node_pb2 as pb
from edge.fleet.counters import JournalState
from edge.fleet.lens import Totals
from edge.fleet.row import Row, State, hanging_seconds, state_of
from edge.panels import THROTTLE_WORDS, USUAL_REASONS
from edge.program import VERSION
from edge.protocol import reported
from edge.text import visible
from edge.web.site import Site

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NODES_A_BLOCK = 100
RATIOS = tuple(f"{percent / 100:g}" for percent in range(1001))  # of a percentage, as text
NVIDIA = (pb.BACKEND_NVML, pb.BACKEND_SIMULATED)
NO_LABEL_NAME = re.compile(r"[^A-Za-z0-9_]")
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


# ---- Text ----


def escaped(text: str) -> str:
    """As it stands between the quotes of a label."""
    return text.translate(ESCAPES)


def shown(text: str) -> str:
    """The same of what another machine says, as the screen shows it."""
    return escaped(visible(text))


def number(value: float) -> str:
    """Without an exponent, to the millionth."""
    return str(value) if isinstance(value, int) else f"{value:.6f}".rstrip("0").rstrip(".")


# ---- What does not change: kept as text from one look to the next ----


class Face(NamedTuple):
    """What an info says of a node, as it stands in the lines. None is "not reported"."""

    packed_info: bytes
    node: str  # labels of all of its lines, without braces
    info: str  # the further labels of edge_node_info
    gpu_info: str  # lines of edge_gpu_info, whole
    dcgm: str  # labels of each device, a line each; an empty one where the device is not NVIDIA's
    sizes: tuple[int | None, ...]  # memory of each device in bytes
    slowdowns: tuple[int | None, ...]  # temperatures
    limits: tuple[float | None, ...]  # of its power, in watts
    cpus: int | None
    memory_bytes: int | None
    disk_bytes: int | None


def face_of(row: Row) -> Face:
    """Of a row's info, which was checked when it came."""
    info, node = row.info, escaped(row.node_id)
    hostname = shown(info.hostname)
    facts = {
        "hostname": hostname,
        "version": shown(info.agent_version),
        "model": shown(info.host.model),
        "os": shown(info.host.operating_system),
    }
    for name, value in row.labels:
        facts.setdefault(f"label_{NO_LABEL_NAME.sub('_', name)}", shown(value))
    dcgm, infos, devices = [], [], info.devices
    for index, device in enumerate(devices):
        uuid, name = shown(device.uuid), shown(device.name)
        infos.append(f'edge_gpu_info{{node="{node}",gpu="{index}",uuid="{uuid}",name="{name}"}} 1\n')
        dcgm.append(
            f'{{gpu="{index}",UUID="{uuid}",device="nvidia{index}",modelName="{name}",hostname="{hostname}",instance="{node}"}}'
            if device.backend in NVIDIA
            else ""
        )
    return Face(
        row.packed_info,
        f'node="{node}"',
        "".join([f',{name}="{value}"' for name, value in facts.items() if value]),
        "".join(infos),
        "\n".join(dcgm),
        tuple(device.memory_total_bytes or None for device in devices),
        tuple(reported(device, "slowdown_temperature_celsius") for device in devices),
        tuple(device.power_limit_milliwatts / 1000 or None for device in devices),
        info.host.cpu_count or None,
        info.host.memory_total_bytes or None,
        info.host.disk_total_bytes or None,
    )


class Faces:
    """Those of the nodes that were looked at, by name."""

    def __init__(self) -> None:
        self._faces: dict[str, Face] = {}

    def of(self, row: Row) -> Face:
        """Made anew where the node says of itself what it did not say before."""
        face = self._faces.get(row.node_id)
        if face is None or face.packed_info != row.packed_info:
            face = self._faces[row.node_id] = face_of(row)
        return face

    def keep(self, rows: Sequence[Row]) -> None:
        """Forget those of nodes that are gone, when there are many of them."""
        if len(self._faces) > 1.1 * len(rows) + NODES_A_BLOCK:
            there = {row.node_id for row in rows}
            self._faces = {node_id: face for node_id, face in self._faces.items() if node_id in there}


# ---- What changes: read once, into columns ----

HOST = (
    "cpu_percent", "memory_used_bytes", "disk_used_bytes", "network_received_bytes_per_second", "network_sent_bytes_per_second",
    "temperature_celsius", "load_1m", "uptime_seconds",
)  # fmt: skip
DEVICE = {
    name: operator.attrgetter(name)
    for name in (
        "utilization_percent", "memory_used_bytes", "temperature_celsius", "power_milliwatts", "fan_percent", "sm_clock_mhz",
    )
}  # fmt: skip


class Block:
    """Some nodes, in columns: of all nodes, of those that are read, and of the GPUs of these. None is "not reported"."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = collections.defaultdict(list)  # those that are whole already, by family
        self.node: dict[str, list[Any]] = collections.defaultdict(list)  # by name; `labels` with their braces
        self.host: dict[str, list[Any]] = collections.defaultdict(list)
        self.gpu: dict[str, list[Any]] = collections.defaultdict(list)

    def add(self, row: Row, face: Face, now: float) -> None:
        """One more node."""
        state, node, lines = state_of(row, now), self.node, self.lines
        labels = f"{{{face.node}}}"
        lines["edge_node_state"].append(f'edge_node_state{{{face.node},state="{state.value.lower()}"}} 1\n')
        lines["edge_node_info"].append(f'edge_node_info{{{face.node},address="{shown(row.address)}"{face.info}}} 1\n')
        lines["edge_gpu_info"].append(face.gpu_info)
        node["labels"].append(labels)
        node["up"].append(int(state is State.ONLINE))
        node["heartbeat_age"].append(number(max(now - row.heartbeat_at, 0.0)))
        node["sample_age"].append(None if row.sample_at is None else number(max(now - row.sample_at, 0.0)))
        if state is State.ONLINE and hanging_seconds(row, now) is None:
            self._add_readings(row, face, labels)

    def _add_readings(self, row: Row, face: Face, labels: str) -> None:
        sample, host, vitals = row.sample, self.host, row.vitals
        host["labels"].append(labels)
        host["round_trip"].append(None if row.round_trip_seconds is None else number(row.round_trip_seconds))
        host["gpus"].append(len(row.capacities.devices))
        host["failed_gpus"].append(None if row.sample_at is None else vitals.errors)
        host["energy_joules"].append(vitals.energy_joules)
        host["cpus"].append(face.cpus)
        host["memory_size"].append(face.memory_bytes)
        host["disk_size"].append(face.disk_bytes)
        reading = sample.host
        for name in HOST:
            host[name].append(getattr(reading, name) if reading.HasField(name) else None)
        if face.sizes or sample.devices:
            self._add_devices(row, face, sample.devices)

    def _add_devices(self, row: Row, face: Face, reported: Sequence[pb.DeviceSample]) -> None:
        """As many as the node has said that it has; where it has said nothing of it, as many as it reports."""
        count = len(face.sizes) or len(reported)
        devices, gpu, unknown = reported[:count], self.gpu, [None] * count
        silent = unknown[len(devices) :]
        labels = [f'{{{face.node},gpu="{index}"}}' for index in range(count)]
        gpu["labels"] += labels
        gpu["dcgm"].append(face.dcgm or "\n" * (count - 1))
        gpu["size"] += face.sizes or unknown
        gpu["slowdown"] += face.slowdowns or unknown
        gpu["limit"] += face.limits or unknown
        gpu["failed"] += [1 if device.error else 0 for device in devices] + silent
        for name, value_of in DEVICE.items():
            values = list(map(value_of, devices))
            if not all(values):  # a field is asked whether it is set only when it is 0
                pairs = zip(values, devices, strict=True)
                values = [value if value or device.HasField(name) else None for value, device in pairs]
            gpu[name] += values + silent
        running = collections.Counter(one.device_index for one in row.processes) if row.packed_processes else None
        gpu["processes"] += unknown if running is None else [running[index] for index in range(count)]
        for place, device in zip(labels, devices, strict=False):
            if reasons := device.throttle_reasons:
                self.lines["edge_gpu_throttled"] += throttled_lines(place[1:-1], reasons)

    def close(self) -> Block:
        """What is made of other columns."""
        gpu = self.gpu
        gpu["watts"] = [None if power is None else str(power / 1000) for power in gpu.pop("power_milliwatts", [])]
        gpu["free"] = [
            None if used is None or size is None else max(size - used, 0)
            for used, size in zip(gpu["memory_used_bytes"], gpu["size"], strict=True)
        ]
        return self


def throttled_lines(labels: str, reasons: int) -> list[str]:
    """What holds a device back, by the words of a node's page."""
    words = [words for bit, words in THROTTLE_WORDS.items() if reasons & bit]
    if not words and reasons & ~USUAL_REASONS:
        words = ["other"]
    return [f'edge_gpu_throttled{{{labels},reason="{word}"}} 1\n' for word in words]


# ---- Families ----


class Family(NamedTuple):
    """All lines of one name."""

    name: str
    help: str
    of: str = ""  # which columns of a block: node, host, gpu; dcgm: gpu with other labels; empty: the block has the lines whole
    column: str = ""
    text: Callable[[Any], object] | None = None  # of a value, where that is not the line's own
    kind: str = "gauge"

    def head(self) -> str:
        """What comes before the lines."""
        return f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n"

    def lines(self, block: Block) -> str:
        """Those of a block."""
        if not self.of:
            return "".join(block.lines[self.name])
        columns = {"node": block.node, "host": block.host, "gpu": block.gpu, "dcgm": block.gpu}[self.of]
        values = columns[self.column]
        # The labels of DCGM are long: a node's are one text until they are used. One that is empty has no line.
        labels = "\n".join(columns["dcgm"]).split("\n") if self.of == "dcgm" else columns["labels"]
        pairs: Iterable[tuple[str, Any]] = zip(labels, values, strict=False)
        if None in values or "" in labels:
            pairs = [(label, value) for label, value in pairs if value is not None and label]
        name, text = self.name, self.text
        if text:
            return "".join([f"{name}{label} {text(value)}\n" for label, value in pairs])
        return "".join([f"{name}{label} {value}\n" for label, value in pairs])


ratio = RATIOS.__getitem__


def million(value: int) -> int:
    """Hertz of megahertz."""
    return value * 10**6


def mebibytes(value: int) -> int:
    """As DCGM's exporter counts memory."""
    return value >> 20


FAMILIES = (
    Family("edge_node_up", "Whether the node is online: 1, else 0.", "node", "up"),
    Family("edge_node_state", "What the node is, as the screen says it: 1 beside its state."),
    Family("edge_node_info", "What does not change of a node, in labels; label_NAME is what its owner says of it."),
    Family("edge_node_heartbeat_age_seconds", "Since the node was last heard.", "node", "heartbeat_age"),
    Family("edge_node_sample_age_seconds", "Since its newest readings were taken.", "node", "sample_age"),
    Family("edge_node_round_trip_seconds", "From a heartbeat to its acknowledgement.", "host", "round_trip"),
    Family("edge_node_gpus", "GPUs, or other accelerators, that the node has.", "host", "gpus"),
    Family("edge_node_failed_gpus", "Those of them that are not read.", "host", "failed_gpus"),
    Family("edge_node_cpus", "Logical processors.", "host", "cpus"),
    Family("edge_node_cpu_utilization_ratio", "Mean over all processors, 0 to 1.", "host", "cpu_percent", ratio),
    Family("edge_node_memory_used_bytes", "Memory of the host that is in use.", "host", "memory_used_bytes"),
    Family("edge_node_memory_size_bytes", "Memory of the host.", "host", "memory_size"),
    Family("edge_node_disk_used_bytes", "Of the fullest disk that is written to.", "host", "disk_used_bytes"),
    Family("edge_node_disk_size_bytes", "Size of that disk.", "host", "disk_size"),
    Family("edge_node_network_received_bytes_per_second", "By physical interfaces.", "host", "network_received_bytes_per_second"),
    Family("edge_node_network_sent_bytes_per_second", "By physical interfaces.", "host", "network_sent_bytes_per_second"),
    Family("edge_node_temperature_celsius", "Hottest sensor of the processor.", "host", "temperature_celsius"),
    Family("edge_node_load1", "Runnable processes, mean over a minute.", "host", "load_1m", lambda load: round(load, 2)),
    Family("edge_node_uptime_seconds", "Since the host started.", "host", "uptime_seconds"),
    Family(
        "edge_node_energy_joules_total", "That all its GPUs have used since the agent started.",
        "host", "energy_joules", kind="counter",
    ),
    Family("edge_gpu_info", "What does not change of a GPU, in labels."),
    Family("edge_gpu_failed", "Whether the GPU is not read: 1, else 0.", "gpu", "failed"),
    Family("edge_gpu_utilization_ratio", "How busy the GPU is, 0 to 1.", "gpu", "utilization_percent", ratio),
    Family("edge_gpu_memory_used_bytes", "Memory of the GPU that is in use.", "gpu", "memory_used_bytes"),
    Family("edge_gpu_memory_size_bytes", "Memory of the GPU; of the host where it is unified.", "gpu", "size"),
    Family("edge_gpu_temperature_celsius", "Of the GPU.", "gpu", "temperature_celsius"),
    Family("edge_gpu_slowdown_temperature_celsius", "From which on the GPU slows down.", "gpu", "slowdown"),
    Family("edge_gpu_power_watts", "That the GPU draws.", "gpu", "watts"),
    Family("edge_gpu_power_limit_watts", "That it may draw.", "gpu", "limit"),
    Family("edge_gpu_fan_ratio", "Speed of the fan, of its maximum, which it may pass.", "gpu", "fan_percent", ratio),
    Family("edge_gpu_sm_clock_hertz", "Clock of the streaming multiprocessors.", "gpu", "sm_clock_mhz", million),
    Family("edge_gpu_throttled", "What holds the GPU back now: 1 beside each reason."),
    Family("edge_gpu_processes", "That use the GPU, where any does on its node.", "gpu", "processes"),
    Family("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", "dcgm", "utilization_percent"),
    Family("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", "dcgm", "memory_used_bytes", mebibytes),
    Family("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", "dcgm", "free", mebibytes),
    Family("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", "dcgm", "temperature_celsius"),
    Family("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", "dcgm", "watts"),
    Family("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", "dcgm", "sm_clock_mhz"),
)  # fmt: skip


def node_lines(blocks: Sequence[Block]) -> Iterator[str]:
    """Of all nodes, a block at a time; a family that has no line is not there."""
    for family in FAMILIES:
        head = family.head()
        for block in blocks:
            if lines := family.lines(block):
                yield head + lines
                head = ""
            else:
                yield ""


class Single(NamedTuple):
    """A family of few lines: labels with their braces, and a value; None where it is not known."""

    name: str
    help: str
    values: Iterable[tuple[str, float | None]]
    kind: str = "gauge"

    def text(self) -> str:
        """All of it; empty where nothing is known."""
        lines = [f"{self.name}{labels} {number(value)}\n" for labels, value in self.values if value is not None]
        return "".join([f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n", *lines]) if lines else ""


def one(name: str, about: str, value: float | None, kind: str = "gauge") -> Single:
    """A family of one line."""
    return Single(name, about, [("", value)], kind)


def fleet_families(totals: Totals) -> list[Single]:
    """What the screen's header says."""
    states = [(f'{{state="{state.value.lower()}"}}', count) for state, count in totals.states.items()]
    watts = None if totals.milliwatts is None else totals.milliwatts / 1000
    used, size = (totals.memory_used_bytes, totals.memory_total_bytes) if totals.with_memory else (None, None)
    hottest = totals.hottest.vitals.celsius if totals.hottest else None
    return [
        Single("edge_fleet_nodes", "Nodes, by what they are.", states),
        one("edge_fleet_gpus", "GPUs of the nodes that are online and read; so it is with all sums here.", totals.gpus),
        one("edge_fleet_failed_gpus", "Those of them that are not read.", totals.failed),
        one("edge_fleet_utilization_ratio", "Mean of all GPUs; of the processors where no node has a GPU.", totals.utilization),
        one("edge_fleet_memory_used_bytes", "Memory in use, of the GPUs; of the hosts where no node has a GPU.", used),
        one("edge_fleet_memory_size_bytes", "All of that memory.", size),
        one("edge_fleet_power_watts", "That the GPUs draw.", watts),
        one("edge_fleet_hottest_celsius", "Temperature of the hottest GPU.", hottest),
        one("edge_fleet_outdated_agents", "Agents that are online, and older than this server.", totals.outdated),
    ]


def server_families(site: Site, sessions: int, open_files: int) -> list[Single]:
    """What the server counts of itself. `sessions`: that nodes have now; `open_files`: of this process; 0 is not known."""
    counters = site.counters
    refusals = [(f'{{reason="{reason}"}}', count) for reason, count in sorted(counters.refusals.items())]
    return [
        Single("edge_server_info", "This server.", [(f'{{version="{shown(VERSION)}"}}', 1)]),
        one("edge_server_heartbeats_total", "Heartbeats that were taken.", counters.heartbeats, "counter"),
        one("edge_server_sessions", "Nodes that have a session.", sessions),
        one("edge_server_sessions_opened_total", "Sessions that were opened.", counters.sessions, "counter"),
        Single("edge_server_refusals_total", "Calls that were refused, by the code they were told.", refusals, "counter"),
        one("edge_server_loop_lag_seconds", "That its clock came too late, at worst in the last minute.", counters.lag_seconds()),
        one("edge_server_viewers", "Who looks at the fleet just now.", site.feed.viewers()),
        one("edge_server_nodes_limit", "Nodes that it takes at most.", site.fleet.max_nodes),
        one("edge_server_heartbeat_interval_seconds", "That nodes are told to keep.", site.fleet.cadence_seconds()),
        *journal_families(counters.journal()),
        *process_families(counters.started, open_files),
    ]


def journal_families(state: JournalState | None) -> list[Single]:
    """None: there is no journal."""
    if not state:
        return []
    return [
        one("edge_server_journal_up", "Whether the journal is written: 1, else 0.", int(state.is_up)),
        one("edge_server_journal_size_bytes", "What it takes on disk.", state.size_bytes),
        one("edge_server_journal_size_limit_bytes", "What it may take.", state.limit_bytes),
        one("edge_server_journal_first_timestamp_seconds", "The first moment that is kept.", state.first),
    ]


def process_families(started: float, open_files: int) -> list[Single]:
    """What all programs tell Prometheus of themselves."""
    return [
        one("process_start_time_seconds", "Start of this process, since the epoch.", started),
        one("process_cpu_seconds_total", "Processor time, of user and system.", time.process_time(), "counter"),
        one("process_resident_memory_bytes", "Memory that is resident.", resident_bytes()),
        one("process_open_fds", "Open files, connections among them.", open_files or None),
    ]


def resident_bytes() -> int | None:
    """Of this process; None where the system does not say."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
