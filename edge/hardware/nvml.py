"""NVIDIA GPUs, through NVML (libnvidia-ml, package pynvml)."""

from __future__ import annotations

import contextlib
import math
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import node_pb2 as pb
from edge.files import reason
from edge.hardware.base import SLOW_READING_SECONDS, BoundedAccelerators, BoundedCalls, Readings, within
from edge.program import Failure
from edge.protocol import MAX_DEVICES
from edge.text import encodable

NVML_TIMEOUT_SECONDS = 2.0  # a driver call that takes longer hangs
REOPEN_SECONDS, MAX_REOPEN_SECONDS = 2.5, 60.0  # from one opening to the next: twice as long each time that it did not help
KERNELS_LIST = pathlib.Path("/proc/driver/nvidia/gpus")  # NVML counts when it is opened: here a GPU that comes later is seen
MAX_NAME = 96  # characters of a name


class GpuFailed(Exception):
    """NVML says of the device itself, and not of one field, that it can't be read."""


class Gpu:
    """One device of NVML. Every question to it goes through `_ask`: a field that fails costs that field."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.info = pb.DeviceInfo(index=index, name=f"GPU {index}")
        self.readings = Readings(f"GPU {index}: ")
        self.handle: Any = None
        self.millijoules: int | None = None  # of its counter, which starts with the driver
        self._nvml = nvml
        self._is_failed = False
        self._answered = False  # a field in this round
        self._failure: Exception | None = None  # of one
        # Return codes that say that the device itself is gone, and those that say that it has no such field.
        self._gone = {
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_GPU_IS_LOST,
            nvml.NVML_ERROR_RESET_REQUIRED,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            nvml.NVML_ERROR_GPU_NOT_FOUND,
        }
        self._absent = {
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        }

    def open(self) -> None:
        """Take a handle, and read what seldom changes. Raises GpuFailed."""
        try:
            self.handle = self._nvml.nvmlDeviceGetHandleByIndex(self.info.index)
        except Exception as error:
            raise GpuFailed(reason(error)) from error
        self.read_info()

    def sample(self) -> pb.DeviceSample:
        """What changes; the error where the device is lost, or answers each question with one."""
        nvml = self._nvml
        try:
            if not self.handle:
                self.open()
            self._answered, self._failure = False, None
            utilization = self._ask("utilization", nvml.nvmlDeviceGetUtilizationRates)
            memory = self._memory()[0]
            celsius = self._ask("temperature", nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
            sample = pb.DeviceSample(
                utilization_percent=within(utilization and utilization.gpu, 0, 100),
                memory_used_bytes=within(memory and memory.used, 0, 2**50),
                temperature_celsius=within(celsius, -60, 200),
                power_milliwatts=within(self._ask("power", nvml.nvmlDeviceGetPowerUsage), 0, 10**7),
                fan_percent=within(self._ask("fan", nvml.nvmlDeviceGetFanSpeed), 0, 200),
                sm_clock_mhz=within(self._ask("clock", nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM), 0, 10_000),
                throttle_reasons=within(self._ask("throttling", nvml.nvmlDeviceGetCurrentClocksThrottleReasons), 0, 2**32 - 1),
            )
            energy = self._ask("energy", nvml.nvmlDeviceGetTotalEnergyConsumption)
            self.millijoules = within(energy, 0, 2**62)
        except Exception as error:  # GpuFailed, or something that pynvml makes of what the driver says
            return self.failed(reason(error))
        if self._failure and not self._answered:
            return self.failed(reason(self._failure))
        self._is_failed = False
        return sample

    def failed(self, error: str) -> pb.DeviceSample:
        """The sample of a device that can't be read at all, which need not be told of each field."""
        self._is_failed = True
        self.millijoules = None
        self.readings.forget()
        return pb.DeviceSample(error=error)

    def read_info(self) -> None:
        """What seldom changes. What can't be read stays as it was known, if it is the same device. Raises GpuFailed."""
        nvml = self._nvml
        uuid = encodable(self._ask("UUID", nvml.nvmlDeviceGetUUID) or "")[:MAX_NAME]
        memory, is_unified = self._memory()
        limit = self._ask("power limit", nvml.nvmlDeviceGetEnforcedPowerLimit)
        slowdown = self._ask(
            "slowdown temperature", nvml.nvmlDeviceGetTemperatureThreshold, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        )
        new = pb.DeviceInfo(
            index=self.info.index,
            uuid=uuid,
            name=encodable(self._ask("name", nvml.nvmlDeviceGetName) or "")[:MAX_NAME],
            memory_total_bytes=within(memory and memory.total, 1, 2**50),
            power_limit_milliwatts=within(limit, 1, 10**7),
            slowdown_temperature_celsius=within(slowdown, 1, 200),
        )
        info = pb.DeviceInfo(name=f"GPU {self.info.index}")
        if uuid in ("", self.info.uuid):
            info.CopyFrom(self.info)
        info.MergeFrom(new)
        if is_unified is not None:
            info.unified_memory = is_unified
            if not memory:
                info.ClearField("memory_total_bytes")
        self.info = info

    def processes(self) -> list[pb.Process]:
        """Compute and graphics; a process that does both is named once."""
        nvml, found = self._nvml, {}
        if self._is_failed or not self.handle:
            return []  # the sample says what is wrong
        with contextlib.suppress(GpuFailed):  # and will
            for kind in ("Compute", "Graphics"):
                for version in ("v3", "v2"):
                    ask = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}")
                    running, code = self._ask_with_code(f"{kind.lower()} processes", ask)
                    found.update({process.pid: process.usedGpuMemory for process in running or ()})
                    if code not in self._absent:
                        break
        return [
            pb.Process(device_index=self.info.index, pid=pid, memory_used_bytes=within(used, 0, 2**50))
            for pid, used in found.items()
        ]

    def _memory(self) -> tuple[Any, bool | None]:
        """NVML's structure; and whether it says that there is no memory but the host's. None: it does not say.

        Version 2 leaves out what the driver reserves, as nvidia-smi does; old drivers have only version 1.
        """
        nvml, denials = self._nvml, set()
        for version in ((nvml.nvmlMemory_v2,), ()):
            memory, code = self._ask_with_code("memory", nvml.nvmlDeviceGetMemoryInfo, *version)
            if memory:
                return (memory, False) if memory.total else (None, True)
            if code not in self._absent:
                return None, None
            denials.add(code)
        if nvml.NVML_ERROR_NO_PERMISSION in denials:  # in a container with a part of a GPU
            return None, False
        return None, nvml.NVML_ERROR_NOT_SUPPORTED in denials

    def _ask(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """One question to NVML. None for what this device or driver does not have, or what fails. Raises GpuFailed."""
        return self._ask_with_code(what, function, *arguments)[0]

    def _ask_with_code(self, what: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, int | None]:
        """The same, with NVML's return code."""
        value, code = None, self._nvml.NVML_SUCCESS
        try:
            value = function(self.handle, *arguments)
            self._answered = True
        except UnicodeDecodeError as error:  # a name; pynvml wants UTF-8
            value = error.object.decode(errors="replace")
        except Exception as error:
            code = getattr(error, "value", None) if isinstance(error, self._nvml.NVMLError) else None
            if code in self._gone:
                raise GpuFailed(str(error)) from error
            if code not in self._absent:
                self._failure = error
                self.readings.failed(what, error)
                return None, code
        self.readings.succeeded(what)
        return value, code


class NvmlAccelerators:
    """NVIDIA GPUs through NVML. While one fails, or none is counted, NVML is opened anew now and then: after a reset, or when the
    driver has been loaded again, what was open answers with errors for ever."""

    backend = pb.BACKEND_NVML

    def __init__(self, timeout_seconds: float = NVML_TIMEOUT_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises Failure where NVML's library is absent. Where its driver does not answer, or counts no GPU, one may come later."""
        try:
            import pynvml  # 44 ms: only where it is asked for
        except ImportError as error:  # a Python that was built without _ctypes
            raise Failure(f"no NVIDIA GPU is read ({error})") from error

        self._nvml = pynvml
        self._clock = clock
        self._lock = threading.Lock()  # samples and processes are asked for on two threads, and one may open what the other reads
        self._gpus: list[Gpu] = []
        self._most = 0  # GPUs that were ever counted
        self._problem = ""  # why none can be read
        self._kernels_list: list[str] = []
        self._is_open = False
        self._slow_at = self._opened_at = -math.inf
        self._wait_seconds = REOPEN_SECONDS
        try:
            BoundedCalls(5 * timeout_seconds).call(self._open_first)  # loading the driver can take seconds
        except TimeoutError as error:
            self._problem = str(error)

    def notices(self) -> list[str]:
        if not self._gpus:
            return [f"no NVIDIA GPU is read ({self._problem})"]
        fewer = [f"NVML counts {len(self._gpus)} of {self._most} GPUs"] if len(self._gpus) < self._most else []
        return fewer + [notice for gpu in self._gpus for notice in gpu.readings.notices()]

    def device_infos(self) -> list[pb.DeviceInfo]:
        return [gpu.info for gpu in self._gpus]

    def device_samples(self) -> list[pb.DeviceSample]:
        with self._lock:
            now = self._clock()
            if now - self._slow_at >= SLOW_READING_SECONDS:
                self._slow_at = now
                self._read_slowly()
            samples = self._samples()
            if samples and not any(sample.error for sample in samples):
                self._wait_seconds = REOPEN_SECONDS
            elif now - self._opened_at >= self._wait_seconds:
                self._opened_at = now
                self._wait_seconds = min(2 * self._wait_seconds, MAX_REOPEN_SECONDS)
                self._open()
                samples = self._samples()
            return samples

    def energies(self) -> list[int | None]:
        return [gpu.millijoules for gpu in self._gpus]

    def processes(self) -> list[pb.Process]:
        with self._lock:
            return [] if self._problem else [process for gpu in self._gpus for process in gpu.processes()]

    def _samples(self) -> list[pb.DeviceSample]:
        if self._problem:
            return [gpu.failed(self._problem) for gpu in self._gpus]
        return [gpu.sample() for gpu in self._gpus]

    def _read_slowly(self) -> None:
        """What seldom changes: of each GPU, and how many there are."""
        if self._problem:
            return
        try:
            if self._count() != len(self._gpus) or _kernels_list() != self._kernels_list:
                self._open()
                return
        except Exception:
            return  # the samples say so
        for gpu in self._gpus:
            with contextlib.suppress(GpuFailed):
                if gpu.handle:
                    gpu.read_info()

    def _count(self) -> int:
        """How many GPUs there are, as many as a node may report at most: drivers answer with sentinels."""
        return min(int(self._nvml.nvmlDeviceGetCount()), MAX_DEVICES)

    def _open_first(self) -> None:
        with self._lock:
            self._open()

    def _open(self) -> None:
        """NVML, and a handle of each GPU, anew. Raises Failure where its library is absent."""
        nvml, self._kernels_list = self._nvml, _kernels_list()
        try:
            if self._is_open:
                self._is_open = False
                with contextlib.suppress(Exception):
                    nvml.nvmlShutdown()
            nvml.nvmlInit()
            self._is_open = True
            count = self._count()
        except Exception as error:  # of the library's or the driver's making: told, and tried again
            self._problem = reason(error)
            if isinstance(error, nvml.NVMLError) and error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                raise Failure(f"no NVIDIA GPU is read ({self._problem})") from error
            return
        self._problem = "" if count else "NVML counts none"
        if count:
            self._gpus = [*self._gpus, *(Gpu(nvml, index) for index in range(len(self._gpus), count))][:count]
            self._most = max(self._most, count)
        for gpu in self._gpus:
            gpu.handle = None
            with contextlib.suppress(GpuFailed):  # its sample says so
                gpu.open()


def _kernels_list() -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(entry.name for entry in KERNELS_LIST.iterdir())
    return []


def open_nvml() -> BoundedAccelerators:
    """All NVIDIA GPUs of this machine, also those that come later. Raises Failure where libnvidia-ml is not there."""
    return BoundedAccelerators(NvmlAccelerators(), NVML_TIMEOUT_SECONDS)
