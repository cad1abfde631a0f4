"""What a source of readings is, and how one that may fail or hang is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

import node_pb2 as pb
from edge.files import reason
from edge.text import show_seconds

T = TypeVar("T")

SLOW_READING_SECONDS = 5.0  # from one reading to the next of what changes slowly, or is costly: disks, names, processes


class Host(Protocol):
    """The box itself. Called by the telemetry thread alone: `host_sample` once an interval."""

    backend: pb.Backend

    @property
    def hostname(self) -> str:
        """What the box calls itself; empty where that is not known."""

    def notices(self) -> list[str]:
        """Why something is not reported, a sentence each, as of the last readings."""

    def host_info(self) -> pb.HostInfo:
        """What seldom changes: asked with the slow readings."""

    def host_sample(self) -> pb.HostSample:
        """What changes all the time."""

    def owner(self, pid: int) -> tuple[str, str]:
        """User and name of a process; empty where it is gone, or not ours to ask."""


class Accelerators(Protocol):
    """The accelerators of one maker. Called after `host_sample`, once an interval. None of it may raise: a device that can't be
    read has its error; what may hang or raise is wrapped in BoundedAccelerators."""

    backend: pb.Backend

    def notices(self) -> list[str]:
        """Why something is not reported, a sentence each, as of the last readings."""

    def device_infos(self) -> list[pb.DeviceInfo]:
        """What seldom changes, as of the last `device_samples`; there may be more devices, or fewer, after those.
        `unified_memory` without a size: it is the host's."""

    def device_samples(self) -> list[pb.DeviceSample]:
        """What changes all the time, in the order of `device_infos` after this call; the error of a device that can't be read."""

    def energies(self) -> list[int | None]:
        """What each device's own counter says, in millijoules since some time, as of the last `device_samples`; None: it has none.
        Where it is empty, no device has one."""

    def processes(self) -> list[pb.Process]:
        """What runs on them: device_index is the place in `device_infos`. Without a name, the host is asked for it."""


def within(value: float | None, lowest: float, highest: float) -> int | None:
    """`value` as an integer, if it is a number in the range; else None: drivers answer with sentinels such as 2**63 - 14."""
    return round(value) if value is not None and lowest <= value <= highest else None


class Readings:
    """The boundary that each reading has for itself: one that fails is not reported, which is told in a notice while it lasts,
    and costs no other."""

    def __init__(self, of: str = "") -> None:
        self._of = of
        self._failures: dict[str, str] = {}  # a sentence each, by what is read; swapped whole, for who reads it meanwhile

    def notices(self) -> list[str]:
        """What can't be read now, and why: in the words of when that began."""
        return list(self._failures.values())

    def take(self, what: str, read: Callable[..., T], *arguments: Any) -> T | None:
        """What `read` returns; None where it raises, whatever that is."""
        try:
            value = read(*arguments)
        except Exception as error:
            self.failed(what, error)
            return None
        self.succeeded(what)
        return value

    def succeeded(self, what: str) -> None:
        """Nothing to be told of this reading, which was taken elsewhere."""
        if what in self._failures:
            self._failures = {other: failure for other, failure in self._failures.items() if other != what}

    def failed(self, what: str, error: Exception) -> None:
        """Tell of this reading, which was taken elsewhere, until it succeeds."""
        if what not in self._failures:
            self._failures = {**self._failures, what: f"{self._of}{what} can't be read ({reason(error)})"}

    def forget(self) -> None:
        """Nothing more to be told: what was read is gone, or has failed as a whole."""
        self._failures = {}


class BoundedCalls:
    """Calls what may hang: on a daemon thread, one call at a time, each waited for `timeout_seconds` in all, however often it is
    asked for again meanwhile."""

    def __init__(self, timeout_seconds: float, whom: str = "the driver") -> None:
        self._timeout_seconds = timeout_seconds
        self._whom = whom
        self._thread: threading.Thread | None = None
        self._started_at = 0.0
        self._outcome: Callable[[], Any]

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises. TimeoutError when it, or the call before it, has not come back yet."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, args=(function,), name="bounded", daemon=True)
            self._started_at = time.monotonic()
            thread.start()  # raises where there may be no more: the next call tries again
            self._thread = thread
        self._thread.join(max(self._started_at + self._timeout_seconds - time.monotonic(), 0))
        if self._thread.is_alive():
            raise TimeoutError(f"no answer from {self._whom} for {show_seconds(time.monotonic() - self._started_at)}")
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
    """Accelerators whose driver may hang, or fail in any way: that costs their readings, not the host's, nor another maker's, nor
    the heartbeat."""

    def __init__(self, source: Accelerators, timeout_seconds: float) -> None:
        self.backend = source.backend
        self._source = source
        self._infos = source.device_infos()
        self._energies: list[int | None] = []
        self._timeout_seconds = timeout_seconds
        self._samples, self._processes = BoundedCalls(timeout_seconds), BoundedCalls(timeout_seconds)
        self._readings = Readings()

    def notices(self) -> list[str]:
        return [*self._source.notices(), *self._readings.notices()]

    def device_infos(self) -> list[pb.DeviceInfo]:
        return self._infos

    def device_samples(self) -> list[pb.DeviceSample]:
        samples: list[pb.DeviceSample]
        try:
            begun_at, samples, self._infos, self._energies = self._samples.call(self._read)
            if time.monotonic() - begun_at > self._timeout_seconds:  # it hung: what has come at last is old
                _, samples, self._infos, self._energies = self._samples.call(self._read)
        except Exception as error:
            self._energies = []
            return [pb.DeviceSample(error=reason(error)) for _ in self._infos]
        return samples

    def energies(self) -> list[int | None]:
        return self._energies

    def processes(self) -> list[pb.Process]:
        return self._readings.take("processes", self._processes.call, self._source.processes) or []

    def _read(self) -> tuple[float, list[pb.DeviceSample], list[pb.DeviceInfo], list[int | None]]:
        return time.monotonic(), self._source.device_samples(), self._source.device_infos(), self._source.energies()
