"""A box as it is composed: its host, and a list of accelerators of any makers. Here is where another maker's are looked for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge.hardware.base import Accelerators, Host, Readings
from edge.hardware.host import LocalHost
from edge.hardware.nvml import open_nvml
from edge.hardware.simulated import SimulatedBox
from edge.program import Failure
from edge.protocol import MAX_PROCESSES, MAX_TEXT


class Machine:
    """A host and its accelerators, read as one: the devices of all makers are one list."""

    def __init__(self, host: Host, accelerators: Sequence[Accelerators] = (), notices: Iterable[str] = ()) -> None:
        self._host = host
        self._accelerators = accelerators
        self._notices = tuple(notices)
        self._energies: list[int | None] = []
        self._readings = Readings()  # of whole sources: their own readings have boundaries of their own

    @property
    def hostname(self) -> str:
        """What the box calls itself; empty where that is not known."""
        return self._host.hostname

    @property
    def backend(self) -> pb.Backend:
        """Of its first device; the host's where it has none."""
        return next((source.backend for source in self._accelerators if source.device_infos()), self._host.backend)

    def notices(self) -> list[str]:
        """Why something is not reported, a sentence each; empty when all is well."""
        found = [*self._notices, *self._host.notices()]
        for source in self._accelerators:
            found += source.notices()
        return list(dict.fromkeys([*found, *self._readings.notices()]))

    def info(self) -> tuple[pb.HostInfo, list[pb.DeviceInfo]]:
        """What seldom changes, as of the last sample. Devices are numbered anew, through all makers."""
        host = self._readings.take("the host", self._host.host_info) or pb.HostInfo()
        devices: list[pb.DeviceInfo] = []
        for source in self._accelerators:
            for found in source.device_infos():
                device = pb.DeviceInfo()
                device.CopyFrom(found)
                device.index, device.backend = len(devices), source.backend
                if device.unified_memory and not device.HasField("memory_total_bytes") and host.HasField("memory_total_bytes"):
                    device.memory_total_bytes = host.memory_total_bytes
                devices.append(device)
        return host, devices

    def described(self, info: pb.NodeInfo, notices: Sequence[str]) -> pb.NodeInfo:
        """A copy of `info`, which may have been published, with what the box says of itself as of the last sample."""
        host, devices = self.info()
        notice, fresh = "; ".join(notices), pb.NodeInfo()
        fresh.CopyFrom(info)
        for field in ("host", "devices", "notice"):
            fresh.ClearField(field)
        fresh.MergeFrom(pb.NodeInfo(hostname=self.hostname, backend=self.backend, host=host, devices=devices))
        fresh.notice = notice if len(notice) <= MAX_TEXT else f"{notice[: MAX_TEXT - 1]}…"
        return fresh

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        """What changes all the time: the devices in the order of `info` after this call."""
        host = self._readings.take("the host's load", self._host.host_sample) or pb.HostSample()
        devices: list[pb.DeviceSample] = []
        self._energies = []
        for source in self._accelerators:
            samples = source.device_samples()
            counters = itertools.chain(source.energies(), itertools.repeat(None))
            for info, device, counter in zip(source.device_infos(), samples, counters, strict=False):
                self._energies.append(counter)
                is_the_hosts = info.unified_memory and not device.error and not device.HasField("memory_used_bytes")
                if is_the_hosts and host.HasField("memory_used_bytes"):
                    device.memory_used_bytes = host.memory_used_bytes
                devices.append(device)
        return host, devices

    def energies(self) -> list[int | None]:
        """What the own counters of the last sample's devices say, in millijoules; None: it has none, or was not read."""
        return self._energies

    def processes(self) -> list[pb.Process]:
        """What runs on the devices, MAX_PROCESSES at most."""
        return self._readings.take("processes", lambda: list(self._processes())[:MAX_PROCESSES]) or []

    def _processes(self) -> Iterator[pb.Process]:
        first = 0  # of the source's devices
        for source in self._accelerators:
            for process in source.processes():
                process.device_index += first
                if not process.name:
                    process.user, process.name = self._host.owner(process.pid)
                yield process
            first += len(source.device_infos())


def simulated(seed: int, clock: Callable[[], float] = time.monotonic, faults: frozenset[str] = frozenset()) -> Machine:
    """A box that does not exist, with some of FAULTS."""
    box = SimulatedBox(seed, clock, faults)
    return Machine(box, [box])


class Maker(NamedTuple):
    """Accelerators of one maker, as they are looked for."""

    open: Callable[[], Accelerators]  # raises Failure where there never will be one: with `auto`, its words are a notice
    advice: str  # follows the reason, for who has asked for them by name


MAKERS = {"nvml": Maker(open_nvml, "is the NVIDIA driver installed and loaded? Try nvidia-smi, or --hardware host")}
KINDS = ("auto", *MAKERS, "host", "simulated")  # of --hardware


def open_machine(kind: str, seed: int, faults: frozenset[str] = frozenset(), makers: Mapping[str, Maker] = MAKERS) -> Machine:
    """What --hardware asks for. `auto` is never simulated, and follows devices that come later. Raises Failure when a maker's are
    asked for and are not there."""
    if kind == "simulated":
        return simulated(seed, faults=faults)
    found: list[Accelerators] = []
    notices: list[str] = []
    for name, maker in makers.items():
        try:
            if kind in (name, "auto"):
                source = maker.open()
                if kind == name and not source.device_infos():
                    raise Failure("; ".join(source.notices()))
                found.append(source)
        except Failure as failure:
            if kind == name:
                raise Failure(f"{failure}: {maker.advice}") from failure
            notices.append(str(failure))
    return Machine(LocalHost(), found, notices)
