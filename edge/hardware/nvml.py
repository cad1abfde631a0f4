"""NVIDIA GPUs, through NVML (libnvidia-ml, package pynvml)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import node_pb2 as pb
from edge.hardware.base import BoundedAccelerators, BoundedCalls, within
from edge.program import Failure

NVML_TIMEOUT_SECONDS = 2.0  # a driver call that takes longer hangs


class NvmlAccelerators:
    """NVIDIA GPUs through NVML. Every call to it goes through `_ask`."""

    backend = pb.BACKEND_NVML

    def __init__(self, timeout_seconds: float = NVML_TIMEOUT_SECONDS) -> None:
        """Raises Failure when NVML's library is absent, its driver does not answer, or there is no GPU."""
        try:
            import pynvml  # 44 ms: only where it is asked for
        except ImportError as error:  # a Python that was built without _ctypes
            raise Failure(f"no NVIDIA GPU is read ({error})") from error

        self._nvml = pynvml
        self._devices: list[Any] = []
        self._infos: list[pb.DeviceInfo] = []
        try:
            BoundedCalls(5 * timeout_seconds).call(self._open)  # loading the driver can take seconds
        except (pynvml.NVMLError, TimeoutError) as error:
            raise Failure(f"no NVIDIA GPU is read ({error})") from error
        if not self._devices:
            raise Failure("no NVIDIA GPU is read (NVML counts none)")

    def notices(self) -> list[str]:
        return []

    def device_infos(self) -> list[pb.DeviceInfo]:
        return self._infos

    def device_samples(self) -> list[pb.DeviceSample]:
        return [self._sample_device(index) for index in range(len(self._devices))]

    def processes(self) -> list[pb.Process]:
        return [process for index, handle in enumerate(self._devices) if handle for process in self._processes_of(index, handle)]

    def _processes_of(self, index: int, handle: Any) -> list[pb.Process]:
        """Compute and graphics; a process that does both is named once."""
        nvml, found = self._nvml, {}
        try:
            for kind in ("Compute", "Graphics"):
                for version in ("v3", "v2"):
                    running = self._ask(getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}"), handle)
                    if running is not None:
                        found.update({process.pid: process.usedGpuMemory for process in running})
                        break
        except nvml.NVMLError:
            return []  # the sample says what is wrong with this device
        return [pb.Process(device_index=index, pid=pid, memory_used_bytes=within(used, 0, 2**50)) for pid, used in found.items()]

    def _open(self) -> None:
        self._nvml.nvmlInit()
        for index in range(self._nvml.nvmlDeviceGetCount()):
            info = pb.DeviceInfo(index=index, name=f"GPU {index}")
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                info = self._info(index, handle)
            except self._nvml.NVMLError:
                handle = None  # told by each sample, which asks again
            self._devices.append(handle)
            self._infos.append(info)

    def _info(self, index: int, handle: Any) -> pb.DeviceInfo:
        nvml = self._nvml
        memory = self._memory(handle)
        slowdown = self._ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        return pb.DeviceInfo(
            index=index,
            uuid=self._ask(nvml.nvmlDeviceGetUUID, handle) or "",
            name=self._ask(nvml.nvmlDeviceGetName, handle) or f"GPU {index}",
            memory_total_bytes=within(memory and memory.total, 1, 2**50),
            power_limit_milliwatts=within(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1, 10**7),
            slowdown_temperature_celsius=within(slowdown, 1, 200),
            unified_memory=memory is None,
        )

    def _sample_device(self, index: int) -> pb.DeviceSample:
        nvml = self._nvml
        try:
            handle = self._devices[index] = self._devices[index] or nvml.nvmlDeviceGetHandleByIndex(index)
            utilization = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = self._memory(handle)
            return pb.DeviceSample(
                utilization_percent=within(utilization and utilization.gpu, 0, 100),
                memory_used_bytes=within(memory and memory.used, 0, 2**50),
                temperature_celsius=within(self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU), -60, 200),
                power_milliwatts=within(self._ask(nvml.nvmlDeviceGetPowerUsage, handle), 0, 10**7),
                fan_percent=within(self._ask(nvml.nvmlDeviceGetFanSpeed, handle), 0, 200),
                sm_clock_mhz=within(self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM), 0, 10_000),
                throttle_reasons=self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
            )
        except nvml.NVMLError as error:
            return pb.DeviceSample(error=str(error))

    def _memory(self, handle: Any) -> Any:
        """Version 2 leaves out what the driver reserves, as nvidia-smi does; old drivers have only version 1."""
        nvml = self._nvml
        return self._ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2) or self._ask(
            nvml.nvmlDeviceGetMemoryInfo, handle
        )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call to NVML. None for what this device or driver does not support. Raises NVMLError for a device that fails."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in (
                self._nvml.NVML_ERROR_NOT_SUPPORTED,
                self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                self._nvml.NVML_ERROR_NO_PERMISSION,
                self._nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
            ):
                return None
            raise


def open_nvml() -> BoundedAccelerators:
    """All NVIDIA GPUs of this machine. Raises Failure when there is none."""
    return BoundedAccelerators(NvmlAccelerators(), NVML_TIMEOUT_SECONDS)
