"""The host itself: processors, memory, disk, network, temperature."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import platform
import re
import shutil
import socket
import time
from collections.abc import Callable

import node_pb2 as pb
from edge.hardware.base import SLOW_READING_SECONDS, within
from edge.protocol import MAX_CORES

SHORTEST_MEAN_SECONDS = 0.05  # the kernel counts a processor's time in ticks of 10 ms


class LocalHost:
    """The host alone, through psutil. Without psutil (it has no wheel for 32-bit ARM), what os and shutil know."""

    backend = pb.BACKEND_HOST

    def __init__(self, clock: Callable[[], float] = time.monotonic, root: pathlib.Path = pathlib.Path("/")) -> None:
        self.hostname = socket.gethostname()
        self._notices: list[str] = []
        self._clock = clock
        self._root = root
        self._slow_at = -math.inf
        self._disk_used = 0
        self._temperature: int | None = None
        self._network: tuple[float, int, int] | None = None
        self._processors_at: float | None = None
        try:
            import psutil
        except ImportError:
            self._psutil = None
            self._notices.append("psutil is not there: no CPU, memory, network; install python3-psutil")
        else:
            self._psutil = psutil

    def notices(self) -> list[str]:
        return self._notices

    def host_info(self) -> pb.HostInfo:
        host = pb.HostInfo(model=self._model(), operating_system=self._operating_system(), cpu_count=os.cpu_count())
        if self._psutil:
            host.memory_total_bytes = self._psutil.virtual_memory().total
        host.disk_total_bytes = self._disk()[0]
        return host

    def host_sample(self) -> pb.HostSample:
        now = self._clock()
        if now - self._slow_at >= SLOW_READING_SECONDS:
            self._slow_at = now
            self._disk_used = self._disk()[1]
            self._temperature = self._hottest()
        host = pb.HostSample(disk_used_bytes=self._disk_used, temperature_celsius=self._temperature)
        if hasattr(os, "getloadavg"):
            host.load_1m = os.getloadavg()[0]
        if self._psutil:
            memory = self._psutil.virtual_memory()
            self._add_processors(host, now)
            host.memory_used_bytes = memory.total - memory.available
            host.uptime_seconds = max(round(time.time() - self._psutil.boot_time()), 0)
            self._add_network(host, now)
        return host

    def owner(self, pid: int) -> tuple[str, str]:
        """User and name of a process; empty where it is gone, or not ours to ask."""
        if not self._psutil:
            return "", ""
        user = name = ""
        with contextlib.suppress(self._psutil.Error, KeyError):
            process = self._psutil.Process(pid)
            name = process.name()
            user = process.username()
        return user[:64], name[:64]

    def _add_processors(self, host: pb.HostSample, now: float) -> None:
        assert self._psutil
        before = self._processors_at
        if before is not None and now - before < SHORTEST_MEAN_SECONDS:
            return  # psutil would say 0
        self._processors_at = now
        percents = self._psutil.cpu_percent(percpu=True) or [0.0]
        if before is None:
            return  # the mean since this thread's call before, which there was none
        host.cpu_percent = min(round(sum(percents) / len(percents)), 100)
        group = -(-len(percents) // MAX_CORES)
        groups = [percents[start : start + group] for start in range(0, len(percents), group)]
        host.cpu_core_percents = bytes(min(round(sum(part) / len(part)), 100) for part in groups)

    def _disk(self) -> tuple[int, int]:
        usage = shutil.disk_usage(self._root)
        return usage.total, usage.used

    def _add_network(self, host: pb.HostSample, now: float) -> None:
        """Rates since the sample before, over the physical interfaces; over all but loopback where none is (a container)."""
        assert self._psutil
        counters = {name: counter for name, counter in self._psutil.net_io_counters(pernic=True).items() if name != "lo"}
        physical = [counters[name] for name in counters if (self._root / "sys/class/net" / name / "device").exists()]
        used = physical or list(counters.values())
        received, sent = sum(counter.bytes_recv for counter in used), sum(counter.bytes_sent for counter in used)
        if self._network and now > self._network[0]:
            seconds = now - self._network[0]
            host.network_received_bytes_per_second = round(max(received - self._network[1], 0) / seconds)
            host.network_sent_bytes_per_second = round(max(sent - self._network[2], 0) / seconds)
        self._network = now, received, sent

    def _hottest(self) -> int | None:
        """Of the processor's own sensors, else of the board's zones, in °C. None in most virtual machines."""
        if not self._psutil or not hasattr(self._psutil, "sensors_temperatures"):
            return None
        sensors = self._psutil.sensors_temperatures()
        processor = [name for name in sensors if re.search(r"core|cpu|k10|zen|soc|package", name, re.IGNORECASE)]
        readings = [reading.current for name in processor or sensors for reading in sensors[name]]
        return max(filter(None, (within(reading, -60, 200) for reading in readings)), default=None)

    def _model(self) -> str:
        for path in ("sys/class/dmi/id/product_name", "proc/device-tree/model"):
            with contextlib.suppress(OSError):
                if text := (self._root / path).read_text(errors="replace").strip("\0 \n"):
                    return text[:128]
        return platform.machine()

    @staticmethod
    def _operating_system() -> str:
        with contextlib.suppress(OSError):
            return platform.freedesktop_os_release()["PRETTY_NAME"]
        return platform.platform(terse=True)
