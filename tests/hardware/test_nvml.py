"""NVIDIA GPUs: a real pynvml over a driver that answers as each test says."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

import node_pb2 as pb
from edge.hardware.base import BoundedAccelerators
from edge.hardware.host import LocalHost
from edge.hardware.machine import Machine, open_machine
from edge.hardware.nvml import NvmlAccelerators
from edge.program import Failure
from edge.protocol import ThrottleReason
from tests.fixtures.nvml import Code, Driver, h200, running
from tests.fixtures.processes import eventually

OpenNvml = Callable[..., Machine]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> OpenNvml:
    """A box with the GPUs given."""

    def opened(*gpus: dict[str, Any], timeout_seconds: float = 5.0) -> Machine:
        monkeypatch.setattr(pynvml, "nvmlLib", Driver(*gpus))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return Machine(LocalHost(), [BoundedAccelerators(NvmlAccelerators(timeout_seconds), timeout_seconds)])

    return opened


def test_nvml_reads_all_fields_of_several_gpus(nvml: OpenNvml) -> None:
    hardware = nvml(h200(), h200(nvmlDeviceGetFanSpeed=41, nvmlDeviceGetTemperature=88))
    infos = hardware.info()[1]
    host, devices = hardware.sample()
    assert hardware.backend == pb.BACKEND_NVML
    assert [info.index for info in infos] == [0, 1]
    assert infos[0] == pb.DeviceInfo(
        index=0,
        uuid="GPU-6c1f6f0e-4f0e-4a29-8d9e-000000000001",
        name="NVIDIA H200",
        memory_total_bytes=143771 * 2**20,
        power_limit_milliwatts=700_000,
        slowdown_temperature_celsius=87,
        backend=pb.BACKEND_NVML,
    )
    assert devices[0] == pb.DeviceSample(
        utilization_percent=53,
        memory_used_bytes=45 * 2**30,
        temperature_celsius=63,
        power_milliwatts=412_345,
        sm_clock_mhz=1980,
        throttle_reasons=4,
    )
    assert not devices[0].HasField("fan_percent")
    assert (devices[1].fan_percent, devices[1].temperature_celsius) == (41, 88)
    assert host.memory_used_bytes > 0


def test_an_old_driver_answers_with_the_first_version_of_memory(nvml: OpenNvml) -> None:
    old = h200(nvmlDeviceGetMemoryInfo={"total": 2**34, "free": 2**33, "used": 2**33})
    del old["nvmlDeviceGetMemoryInfo_v2"], old["nvmlDeviceGetCurrentClocksThrottleReasons"]
    hardware = nvml(old)
    device = hardware.sample()[1][0]
    assert hardware.info()[1][0].memory_total_bytes == 2**34
    assert device.memory_used_bytes == 2**33
    assert not device.HasField("throttle_reasons")


def test_unified_memory_is_the_hosts(nvml: OpenNvml) -> None:
    gb10 = h200(nvmlDeviceGetName="NVIDIA GB10", nvmlDeviceGetMemoryInfo_v2=Code(pynvml.NVML_ERROR_NOT_SUPPORTED))
    hardware = nvml(gb10)
    info, (host, devices) = hardware.info(), hardware.sample()
    assert info[1][0].unified_memory
    assert info[1][0].memory_total_bytes == info[0].memory_total_bytes
    assert devices[0].memory_used_bytes == host.memory_used_bytes


def test_sentinels_are_not_readings(nvml: OpenNvml) -> None:
    device = nvml(
        h200(
            nvmlDeviceGetUtilizationRates={"gpu": 0xFFFFFFFF, "memory": 0},
            nvmlDeviceGetPowerUsage=0xFFFFFFFF,
            nvmlDeviceGetTemperature=0xFFFFFFFF,
            nvmlDeviceGetMemoryInfo_v2={"total": 2**63 - 14, "reserved": 0, "free": 0, "used": 2**63 - 14},
        )
    ).sample()[1][0]
    for field in ("utilization_percent", "power_milliwatts", "temperature_celsius", "memory_used_bytes"):
        assert not device.HasField(field)
    assert device.sm_clock_mhz == 1980


def test_a_lost_device_shows_its_error_and_the_others_go_on(nvml: OpenNvml) -> None:
    lost = h200()
    hardware = nvml(h200(), lost, h200())
    lost["nvmlDeviceGetUtilizationRates"] = Code(pynvml.NVML_ERROR_GPU_IS_LOST)
    devices = hardware.sample()[1]
    assert [device.error for device in devices] == ["", "GPU is lost", ""]
    assert not devices[1].HasField("temperature_celsius")
    assert devices[2].temperature_celsius == 63
    lost["nvmlDeviceGetUtilizationRates"] = {"gpu": 7, "memory": 0}
    assert [device.utilization_percent for device in hardware.sample()[1]] == [53, 7, 53]


def test_a_hanging_driver_costs_the_gpus_readings_and_not_the_hosts(nvml: OpenNvml) -> None:
    release = threading.Event()
    hanging = h200()
    hardware = nvml(h200(), hanging, timeout_seconds=0.2)
    hanging["nvmlDeviceGetTemperature"] = lambda: release.wait(60) and 50
    host, devices = hardware.sample()
    assert host.memory_used_bytes > 0
    assert all(device.error.startswith("no answer from the driver for") for device in devices)
    assert hardware.sample()[1][0].error
    hanging["nvmlDeviceGetTemperature"] = 50
    release.set()
    assert eventually(lambda: [device.error for device in hardware.sample()[1]] == ["", ""])


def test_a_hanging_start_of_the_driver_does_not_stop_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: release.wait(60))
    with pytest.raises(Failure, match="no answer from the driver"):
        NvmlAccelerators(timeout_seconds=0.05)
    release.set()


def test_a_device_that_fails_at_the_start_is_asked_again_by_each_sample(nvml: OpenNvml) -> None:
    failing = h200(nvmlDeviceGetUUID=Code(pynvml.NVML_ERROR_GPU_IS_LOST))
    hardware = nvml(failing, h200())
    assert [info.name for info in hardware.info()[1]] == ["GPU 0", "NVIDIA H200"]
    assert [device.temperature_celsius for device in hardware.sample()[1]] == [63, 63]


def test_without_gpus_auto_is_the_host_and_says_why(nvml: OpenNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="counts none"):
        nvml()
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    hardware = open_machine("auto", 0)
    assert hardware.backend == pb.BACKEND_HOST
    (notice,) = hardware.notices()
    assert "NVML Shared Library Not Found" in notice
    with pytest.raises(Failure, match="nvidia-smi"):
        open_machine("nvml", 0)
    assert open_machine("host", 0).notices() == []


def test_a_python_without_ctypes_has_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (notice,) = open_machine("auto", 0).notices()
    assert "no NVIDIA GPU is read" in notice


def test_auto_takes_nvml_when_it_counts_a_gpu(nvml: OpenNvml) -> None:
    nvml(h200())
    assert open_machine("auto", 0).backend == pb.BACKEND_NVML


def test_processes_have_their_owner_and_memory_where_nvml_tells(nvml: OpenNvml) -> None:
    me, gone = os.getpid(), 2**22 + 1
    compute, graphics = running((me, 2**30), (gone, 2**64 - 1)), running((me, 2**30))
    hardware = nvml(
        h200(nvmlDeviceGetComputeRunningProcesses_v3=compute, nvmlDeviceGetGraphicsRunningProcesses_v3=graphics), h200()
    )
    mine, ghost = sorted(hardware.processes(), key=lambda process: process.pid != me)
    assert (mine.device_index, mine.pid, mine.memory_used_bytes) == (0, me, 2**30)
    assert mine.name.startswith(("python", "pytest"))
    assert mine.user
    assert (ghost.name, ghost.user, ghost.HasField("memory_used_bytes")) == ("", "", False)


def test_an_old_driver_has_the_second_version_of_processes(nvml: OpenNvml) -> None:
    hardware = nvml(h200(nvmlDeviceGetComputeRunningProcesses_v2=running((7, 2**30))))
    assert [(process.pid, process.memory_used_bytes) for process in hardware.processes()] == [(7, 2**30)]


def test_throttle_reasons_are_nvmls_bits() -> None:
    names = {
        ThrottleReason.IDLE: "GpuIdle",
        ThrottleReason.APPLICATION_CLOCKS: "ApplicationsClocksSetting",
        ThrottleReason.POWER_CAP: "SwPowerCap",
        ThrottleReason.HARDWARE_SLOWDOWN: "HwSlowdown",
        ThrottleReason.SYNC_BOOST: "SyncBoost",
        ThrottleReason.THERMAL_SOFTWARE: "SwThermalSlowdown",
        ThrottleReason.THERMAL_HARDWARE: "HwThermalSlowdown",
        ThrottleReason.POWER_BRAKE: "HwPowerBrakeSlowdown",
    }
    assert set(names) == set(ThrottleReason)
    assert {reason: getattr(pynvml, f"nvmlClocksEventReason{name}") for reason, name in names.items()} == {
        reason: int(reason) for reason in ThrottleReason
    }
