"""The host itself: processors, memory, disk, network, temperature."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
import platform
import re
import socket
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import node_pb2 as pb
from edge.files import read_text, reason
from edge.hardware.base import SLOW_READING_SECONDS, BoundedCalls, Readings, within
from edge.hardware.disks import Disks, read_disks
from edge.hardware.network import Key, counted_once, rates_between, with_indexes
from edge.protocol import MAX_CORES
from edge.text import encodable

MIN_MEAN_SECONDS = 0.05  # the kernel counts a processor's time in ticks of 10 ms
PATIENCE_SECONDS = 0.5  # a failing disk may hang, or one in the network, or a sensor on a bus
DIRECTORY_PATIENCE_SECONDS = 0.05  # a directory service that is away takes many seconds to name a user
MAX_NAME = 128  # characters of a name
MAX_UPTIME_SECONDS = 2**30  # 34 years; without a clock, or a time of the start, it would be the time since 1970
FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO in Linux' include/linux/proc_ns.h


class Memory(NamedTuple):
    """In bytes. None is "not known"."""

    total: int | None
    used: int | None


class LocalHost:
    """The host alone, through psutil. Without psutil (it has no wheel for 32-bit ARM), what os and shutil know."""

    backend = pb.BACKEND_HOST

    def __init__(self, clock: Callable[[], float] = time.monotonic, root: pathlib.Path = pathlib.Path("/")) -> None:
        self._clock = clock
        self._root = root
        self._readings = Readings()
        self._disk_calls = BoundedCalls(PATIENCE_SECONDS, "the disks")
        self._sensor_calls = BoundedCalls(PATIENCE_SECONDS, "the sensors")
        self._users = Users()
        self._slow_at = -math.inf
        self._facts: pb.HostInfo | None = None
        self._hostname = ""
        self._disks = Disks(None, [])
        self._temperature: int | None = None
        self._memory = Memory(None, None)
        self._processors_at: float | None = None
        self._processors = 0
        self._counted_time = -math.inf, 0.0  # when the processors' time was looked at, really; and what it was, in seconds
        self._counters: tuple[float, dict[Key, Any]] = -math.inf, {}
        self._counted: list[Key] = []
        self._psutil: Any = None
        self._notices: list[str] = []
        try:
            import psutil
        except ImportError:
            self._notices.append("psutil is not there: no CPU, memory, network; install python3-psutil")
        except Exception as error:  # it reads /proc when it is imported
            self._notices.append(f"psutil does not start: no CPU, memory, network ({reason(error)})")
        else:
            self._psutil = psutil
            warnings.filterwarnings("ignore", module="psutil")  # of what a container's memory lacks: across the screen

    @property
    def hostname(self) -> str:
        """As of the last slow readings."""
        self._known_facts()
        return self._hostname

    def notices(self) -> list[str]:
        return [*self._notices, *self._readings.notices(), *self._disks.notices]

    def host_info(self) -> pb.HostInfo:
        info = pb.HostInfo()
        info.CopyFrom(self._known_facts())
        if not self._memory.total:
            self._read_memory()
        if self._memory.total:
            info.memory_total_bytes = self._memory.total
        return info

    def host_sample(self) -> pb.HostSample:
        now = self._clock()
        if now - self._slow_at >= SLOW_READING_SECONDS:
            self._slow_at = now
            self._read_slowly()
        self._read_memory()
        disk = self._disks.fullest
        host = pb.HostSample(
            memory_used_bytes=self._memory.used,
            disk_used_bytes=disk and within(disk.used, 0, 2**60),
            temperature_celsius=self._temperature,
            load_1m=self._readings.take("load", _load) if hasattr(os, "getloadavg") else None,
            uptime_seconds=self._readings.take("uptime", self._uptime_seconds) if self._psutil else None,
        )
        if self._psutil:
            self._add_processors(host, now)
            self._add_network(host, now)
        return host

    def owner(self, pid: int) -> tuple[str, str]:
        """User and name of a process; empty where it is gone, or not ours to ask."""
        if not self._psutil or not self._readings.take("owners of processes", self._knows_pids):
            return "", ""
        user = self._readings.take("users of processes", self._user_of, pid)
        name = self._readings.take("names of processes", self._name_of, pid)
        return encodable(user or "")[:64], encodable(name or "")[:64]

    def _user_of(self, pid: int) -> str:
        with contextlib.suppress(self._psutil.Error):
            process = self._psutil.Process(pid)
            return self._users.name(process.uids().real) if hasattr(process, "uids") else str(process.username())
        return ""

    def _name_of(self, pid: int) -> str:
        with contextlib.suppress(self._psutil.Error):
            return str(self._psutil.Process(pid).name())
        return ""

    def _knows_pids(self) -> bool:
        """True. Raises PermissionError in a container with process ids of its own: the driver's are the host's."""
        with contextlib.suppress(FileNotFoundError):  # no Linux, or one without such namespaces
            if str((self._root / "proc/self/ns/pid").readlink()) != FIRST_PID_NAMESPACE:
                raise PermissionError("this container has process ids of its own, and the driver tells the host's")
        return True

    def _known_facts(self) -> pb.HostInfo:
        if not self._facts:
            self._read_slowly()
        assert self._facts
        return self._facts

    def _read_slowly(self) -> None:
        """What changes slowly, or is costly."""
        take = self._readings.take
        mountinfo = self._root / "proc/self/mountinfo"
        self._disks = take("disk", self._disk_calls.call, functools.partial(_read_disks, mountinfo)) or Disks(None, [])
        disk = self._disks.fullest
        self._temperature = take("temperature", self._sensor_calls.call, self._hottest)
        self._hostname = take("hostname", lambda: encodable(socket.gethostname())[:MAX_NAME]) or ""
        self._facts = pb.HostInfo(
            model=take("model", self._model),
            operating_system=take("operating system", self._operating_system),
            cpu_count=take("number of processors", lambda: within(os.cpu_count(), 1, 10**6)),
            disk_total_bytes=disk and within(disk.total, 1, 2**60),
        )
        self._counted = []

    def _read_memory(self) -> None:
        if self._psutil:
            self._memory = self._readings.take("memory", self._memory_now) or Memory(None, None)

    def _memory_now(self) -> Memory:
        memory = self._psutil.virtual_memory()
        total, available = within(memory.total, 1, 2**50), within(memory.available, 0, 2**50)
        if total is None or available is None:
            return Memory(total, None)
        return Memory(total, max(total - available, 0))  # a container may have more available than in all

    def _uptime_seconds(self) -> int | None:
        return within(time.time() - self._psutil.boot_time(), 0, MAX_UPTIME_SECONDS)

    def _add_processors(self, host: pb.HostSample, now: float) -> None:
        before = self._processors_at
        if before is not None and now - before < MIN_MEAN_SECONDS:
            return  # psutil would say 0
        percents = self._readings.take("processors", self._percents)
        self._processors_at, known, self._processors = now if percents else None, self._processors, len(percents or ())
        if before is None or not percents or len(percents) != known:
            return  # no mean since the call before: there was none, or each was compared with another, since one came or went
        host.cpu_percent = round(sum(percents) / len(percents))
        group = -(-len(percents) // MAX_CORES)
        groups = [percents[start : start + group] for start in range(0, len(percents), group)]
        host.cpu_core_percents = bytes(round(sum(part) / len(part)) for part in groups)

    def _percents(self) -> list[float]:
        percents = [min(max(percent, 0.0), 100.0) for percent in self._psutil.cpu_percent(percpu=True)]
        if not percents or math.isnan(sum(percents)):
            raise ValueError("there are none")
        (before_at, before), is_first = self._counted_time, not self._processors
        if is_first or not any(percents):  # idle, or not counted at all (gVisor): psutil says 0 for both
            now, counted = self._counted_time = time.monotonic(), sum(self._psutil.cpu_times())
            if counted == before and MIN_MEAN_SECONDS <= now - before_at < math.inf:
                raise ValueError("their time stands still")
        return percents

    def _add_network(self, host: pb.HostSample, now: float) -> None:
        """Rates since the sample before."""
        counters = self._readings.take("network", self._read_counters)
        (before_at, before), self._counters = self._counters, (now, counters or {})
        if not counters:
            return
        rates = self._readings.take("network rates", rates_between, before, counters, self._counted, now - before_at)
        if rates:
            host.network_received_bytes_per_second = round(min(rates.received, 2**50))
            host.network_sent_bytes_per_second = round(min(rates.sent, 2**50))

    def _read_counters(self) -> dict[Key, Any]:
        # Without nowrap=False, psutil adds what a counter said before it started again to what it says since.
        counters = with_indexes(self._psutil.net_io_counters(pernic=True, nowrap=False))
        if not self._counted or counters.keys() != self._counters[1].keys():
            self._counted = counted_once(counters, self._root)
        return counters

    def _hottest(self) -> int | None:
        """Of the processor's own sensors, else of the board's zones, in °C. None in most virtual machines."""
        if not self._psutil or not hasattr(self._psutil, "sensors_temperatures"):
            return None
        try:
            found = self._psutil.sensors_temperatures().items()
            sensors = [(name, celsius) for name, readings in found for reading in readings if is_number(celsius := reading.current)]
        except Exception:  # TypeError where one of them answers EAGAIN: https://github.com/giampaolo/psutil/issues/2477
            sensors = self._zones()
            if not sensors:
                raise
        processor = [celsius for name, celsius in sensors if re.search(r"core|cpu|k10|zen|soc|package", name, re.IGNORECASE)]
        readings = (within(celsius, -60, 200) for celsius in processor or [celsius for _, celsius in sensors])
        return max((celsius for celsius in readings if celsius is not None), default=None)

    def _zones(self) -> list[tuple[str, float]]:
        """The kernel's thermal zones that answer: name and °C."""
        zones = []
        for zone in (self._root / "sys/class/thermal").glob("thermal_zone*"):
            with contextlib.suppress(OSError, ValueError):
                zones.append((read_text(zone / "type"), int(read_text(zone / "temp")) / 1000))
        return zones

    def _model(self) -> str:
        for path in ("sys/class/dmi/id/product_name", "proc/device-tree/model"):
            with contextlib.suppress(OSError):
                if text := read_text(self._root / path):
                    return text[:MAX_NAME]
        return encodable(platform.machine())[:MAX_NAME]

    def _operating_system(self) -> str:
        for path in ("etc/os-release", "usr/lib/os-release"):  # os-release(5)
            with contextlib.suppress(OSError):
                if name := re.search(r"""^PRETTY_NAME=(["']?)(.+?)\1\s*$""", read_text(self._root / path), re.MULTILINE):
                    return re.sub(r"\\(.)", r"\1", name[2])[:MAX_NAME]
        return encodable(platform.platform(terse=True))[:MAX_NAME]


def is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _load() -> float | None:
    load = os.getloadavg()[0]
    return load if 0 <= load <= 10**6 else None


def _read_disks(mountinfo: pathlib.Path) -> Disks:
    """Raises OSError."""
    try:
        text = read_text(mountinfo)
    except FileNotFoundError:  # no Linux
        text = ""
    return read_disks(text)


class Users:
    """Names of users, kept by uid: to look one up may take a directory service."""

    def __init__(self, timeout_seconds: float = DIRECTORY_PATIENCE_SECONDS) -> None:
        self._names: dict[int, str] = {}
        self._lookups = BoundedCalls(timeout_seconds, "the directory of users")

    def name(self, uid: int) -> str:
        """The number where the system has no name for it; empty while it is being looked up."""
        if uid not in self._names:
            with contextlib.suppress(TimeoutError):  # what comes later is of the uid that was asked for then
                found, name = self._lookups.call(functools.partial(_look_up, uid))
                self._names[found] = name
        return self._names.get(uid, "")


def _look_up(uid: int) -> tuple[int, str]:
    import pwd

    try:
        return uid, pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        return uid, str(uid)
