"""A box as it is composed: its host, and a list of accelerators of any makers. Here is where another maker's are looked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge.hardware.base import Accelerators, Host
from edge.hardware.host import LocalHost
from edge.hardware.nvml import open_nvml
from edge.hardware.simulated import SimulatedBox
from edge.program import Failure
from edge.protocol import MAX_PROCESSES


class Machine:
    """A host and its accelerators, read as one: the devices of all makers are one list."""

    def __init__(self, host: Host, accelerators: Sequence[Accelerators] = (), notices: Iterable[str] = ()) -> None:
        self.hostname = host.hostname
        self.backend = accelerators[0].backend if accelerators else host.backend
        self._host = host
        self._accelerators = accelerators
        self._notices = tuple(notices)

    def notices(self) -> list[str]:
        """Why something is not reported, a sentence each; empty when all is well."""
        found = [*self._notices, *self._host.notices()]
        for source in self._accelerators:
            found += source.notices()
        return list(dict.fromkeys(found))

    def info(self) -> tuple[pb.HostInfo, list[pb.DeviceInfo]]:
        """What does not change. Devices are numbered anew, through all makers."""
        host = self._host.host_info()
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

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        """What does: the devices in the order of `info`."""
        host = self._host.host_sample()
        devices: list[pb.DeviceSample] = []
        for source in self._accelerators:
            for info, device in zip(source.device_infos(), source.device_samples(), strict=True):
                is_the_hosts = info.unified_memory and not device.error and not device.HasField("memory_used_bytes")
                if is_the_hosts and host.HasField("memory_used_bytes"):
                    device.memory_used_bytes = host.memory_used_bytes
                devices.append(device)
        return host, devices

    def processes(self) -> list[pb.Process]:
        """What runs on the devices, MAX_PROCESSES at most."""
        return list(self._processes())[:MAX_PROCESSES]

    def _processes(self) -> Iterator[pb.Process]:
        first = 0  # of the source's devices
        for source in self._accelerators:
            for process in source.processes():
                process.device_index += first
                if not process.name:
                    process.user, process.name = self._host.owner(process.pid)
                yield process
            first += len(source.device_infos())


def simulated(seed: int, clock: Callable[[], float] = time.monotonic) -> Machine:
    """A box that does not exist."""
    box = SimulatedBox(seed, clock)
    return Machine(box, [box])


class Maker(NamedTuple):
    """Accelerators of one maker, as they are looked for."""

    open: Callable[[], Accelerators]  # raises Failure, whose words are a notice with `auto`, when there is none
    advice: str  # to who has asked for them, after these words


MAKERS = {"nvml": Maker(open_nvml, "is the NVIDIA driver installed and loaded? Try nvidia-smi, or --hardware host")}
KINDS = ("auto", *MAKERS, "host", "simulated")  # of --hardware


def open_machine(kind: str, seed: int, makers: Mapping[str, Maker] = MAKERS) -> Machine:
    """What --hardware asks for. `auto` is never simulated. Raises Failure when a maker's are asked for and are not there."""
    if kind == "simulated":
        return simulated(seed)
    found: list[Accelerators] = []
    notices: list[str] = []
    for name, maker in makers.items():
        try:
            if kind in (name, "auto"):
                found.append(maker.open())
        except Failure as failure:
            if kind == name:
                raise Failure(f"{failure}: {maker.advice}") from failure
            notices.append(str(failure))
    return Machine(LocalHost(), found, notices)
