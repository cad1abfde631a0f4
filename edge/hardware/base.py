"""What a source of readings is, and how one that may hang is asked. The other files are sources, but machine.py and identity.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import node_pb2 as pb
from edge.text import show_seconds

SLOW_READING_SECONDS = 5.0  # from one reading to the next of what changes slowly, or is costly: disks, temperatures, processes


class Host(Protocol):
    """The box itself. Called by the telemetry thread alone: `host_sample` once an interval."""

    backend: pb.Backend
    hostname: str

    def notices(self) -> list[str]:
        """Why something is not reported, a sentence each."""

    def host_info(self) -> pb.HostInfo:
        """What does not change."""

    def host_sample(self) -> pb.HostSample:
        """What does."""

    def owner(self, pid: int) -> tuple[str, str]:
        """User and name of a process; empty where it is gone, or not ours to ask."""


class Accelerators(Protocol):
    """The accelerators of one maker. Called after `host_sample`, once an interval. None of it may raise: a device that can't be
    read has its error; what may hang is wrapped in BoundedAccelerators."""

    backend: pb.Backend

    def notices(self) -> list[str]:
        """Why something is not reported, a sentence each."""

    def device_infos(self) -> list[pb.DeviceInfo]:
        """What does not change. `unified_memory` without a size: it is the host's."""

    def device_samples(self) -> list[pb.DeviceSample]:
        """What does, in the order of `device_infos`; the error of a device that can't be read."""

    def processes(self) -> list[pb.Process]:
        """What runs on them: device_index is the place in `device_infos`. Without a name, the host is asked for it."""


def within(value: float | None, lowest: float, highest: float) -> int | None:
    """`value` as an integer, if it is a number in the range; else None: drivers answer with sentinels such as 2**63 - 14."""
    return round(value) if value is not None and lowest <= value <= highest else None


class BoundedCalls:
    """Calls what may hang: on a daemon thread, one call at a time, waited for `timeout_seconds` at most."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._thread: threading.Thread | None = None
        self._started_at = 0.0
        self._outcome: Callable[[], Any]

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises. TimeoutError when it, or the call before it, has not come back yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(function,), name="driver", daemon=True)
            self._started_at = time.monotonic()
            self._thread.start()
        self._thread.join(self._timeout_seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"no answer from the driver for {show_seconds(time.monotonic() - self._started_at)}")
        self._thread = None
        return self._outcome()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            value = function()
        except Exception as error:  # carried over to the thread that waits for it
            self._outcome = _raiser(error)
        else:
            self._outcome = lambda: value


def _raiser(error: Exception) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


class BoundedAccelerators:
    """Accelerators whose driver may hang: that costs their readings, not the host's, nor another maker's, nor the heartbeat."""

    def __init__(self, source: Accelerators, timeout_seconds: float) -> None:
        self.backend = source.backend
        self._source = source
        self._infos = source.device_infos()
        self._samples, self._processes = BoundedCalls(timeout_seconds), BoundedCalls(timeout_seconds)

    def notices(self) -> list[str]:
        return self._source.notices()

    def device_infos(self) -> list[pb.DeviceInfo]:
        return self._infos

    def device_samples(self) -> list[pb.DeviceSample]:
        try:
            samples: list[pb.DeviceSample] = self._samples.call(self._source.device_samples)
        except TimeoutError as error:
            return [pb.DeviceSample(error=str(error)) for _ in self._infos]
        return samples

    def processes(self) -> list[pb.Process]:
        try:
            processes: list[pb.Process] = self._processes.call(self._source.processes)
        except TimeoutError:
            return []  # the samples say what is wrong
        return processes
