"""NVIDIA GPUs: a real pynvml over a driver that answers as each test says."""

from __future__ import annotations

import os
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

import node_pb2 as pb
from edge.hardware.base import BoundedAccelerators
from edge.hardware.host import FIRST_PID_NAMESPACE, LocalHost
from edge.hardware.machine import Machine, open_machine
from edge.hardware.nvml import NvmlAccelerators
from edge.program import Failure
from edge.protocol import MAX_DEVICES, ThrottleReason
from tests.fixtures.nvml import Code, Driver, _fill, h200, running
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import Clock

OpenNvml = Callable[..., Machine]
UNKNOWN, LOST = Code(pynvml.NVML_ERROR_UNKNOWN), Code(pynvml.NVML_ERROR_GPU_IS_LOST)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> OpenNvml:
    """A box with the GPUs given, or with a driver; its kernel lists nothing else."""

    def opened(*gpus: dict[str, Any], timeout_seconds: float = 5.0, driver: Driver | None = None, **settings: Any) -> Machine:
        monkeypatch.setattr(pynvml, "nvmlLib", driver or Driver(*gpus))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        monkeypatch.setattr("edge.hardware.nvml.KERNELS_LIST", tmp_path / "gpus")
        source = NvmlAccelerators(timeout_seconds, **settings)
        return Machine(host_that_knows_pids(tmp_path), [BoundedAccelerators(source, timeout_seconds)])

    return opened


def host_that_knows_pids(root: pathlib.Path) -> LocalHost:
    """A host in the first namespace of process ids, wherever the test runs."""
    link = root / "proc/self/ns/pid"
    link.parent.mkdir(parents=True)
    link.symlink_to(FIRST_PID_NAMESPACE)
    return LocalHost(root=root)


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
            nvmlDeviceGetCurrentClocksThrottleReasons=2**64 - 1,
            nvmlDeviceGetMemoryInfo_v2={"total": 2**63 - 14, "reserved": 0, "free": 0, "used": 2**63 - 14},
        )
    ).sample()[1][0]
    for field in ("utilization_percent", "power_milliwatts", "temperature_celsius", "memory_used_bytes", "throttle_reasons"):
        assert not device.HasField(field)
    assert device.sm_clock_mhz == 1980


def test_no_more_devices_are_read_than_a_node_may_report(nvml: OpenNvml) -> None:
    driver = Driver(*[h200()] * MAX_DEVICES)
    driver.__dict__["nvmlDeviceGetCount_v2"] = lambda count: _fill(count._obj, 2**32 - 1)
    machine = nvml(driver=driver)
    assert len(machine.sample()[1]) == len(machine.info()[1]) == MAX_DEVICES


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
    hardware = nvml(h200(), hanging, timeout_seconds=0.5)
    hanging["nvmlDeviceGetTemperature"] = lambda: release.wait(60) and 50
    host, devices = hardware.sample()
    assert host.memory_used_bytes > 0
    assert all(device.error.startswith("no answer from the driver for") for device in devices)
    assert hardware.sample()[1][0].error
    hanging["nvmlDeviceGetTemperature"] = 50
    release.set()
    assert eventually(lambda: [device.error for device in hardware.sample()[1]] == ["", ""])


def test_a_hanging_start_of_the_driver_does_not_stop_the_node(nvml: OpenNvml) -> None:
    release, driver = threading.Event(), Driver(h200())
    driver.init = lambda: release.wait(60) and None
    hardware = nvml(driver=driver, timeout_seconds=0.05)
    assert hardware.notices() == ["no NVIDIA GPU is read (no answer from the driver for 0s)"]
    assert (hardware.backend, hardware.sample()[1]) == (pb.BACKEND_HOST, [])
    release.set()  # and when it comes back at last:
    assert eventually(lambda: [device.temperature_celsius for device in hardware.sample()[1]]) == [63]
    assert (hardware.notices(), hardware.backend) == ([], pb.BACKEND_NVML)


def test_a_device_that_fails_at_the_start_is_asked_again_by_each_sample(nvml: OpenNvml) -> None:
    failing = h200(nvmlDeviceGetUUID=Code(pynvml.NVML_ERROR_GPU_IS_LOST))
    hardware = nvml(failing, h200())
    assert [info.name for info in hardware.info()[1]] == ["GPU 0", "NVIDIA H200"]
    assert [device.temperature_celsius for device in hardware.sample()[1]] == [63, 63]


def test_without_gpus_auto_is_the_host_and_says_why(nvml: OpenNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml()
    with pytest.raises(Failure, match=r"counts none.*nvidia-smi"):
        open_machine("nvml", 0)
    assert open_machine("auto", 0).notices() == ["no NVIDIA GPU is read (NVML counts none)"]
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


# ---- One field that fails, and a device that does ----


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_TIMEOUT, 77])
@pytest.mark.parametrize(
    ("function", "field", "name"),
    [
        ("nvmlDeviceGetFanSpeed", "fan_percent", "fan"),
        ("nvmlDeviceGetPowerUsage", "power_milliwatts", "power"),
        ("nvmlDeviceGetUtilizationRates", "utilization_percent", "utilization"),
        ("nvmlDeviceGetMemoryInfo_v2", "memory_used_bytes", "memory"),
        ("nvmlDeviceGetTemperature", "temperature_celsius", "temperature"),
    ],
)
def test_a_field_that_fails_costs_that_field_and_is_told(nvml: OpenNvml, code: int, function: str, field: str, name: str) -> None:
    gpu = h200(nvmlDeviceGetFanSpeed=41)
    hardware = nvml(h200(), gpu)
    well = hardware.sample()[1][1]
    assert hardware.notices() == []
    gpu[function] = Code(code)
    sample = hardware.sample()[1][1]
    well.ClearField(field)
    assert sample == well
    (notice,) = hardware.notices()
    assert notice.startswith(f"GPU 1: {name} can't be read (")
    gpu[function] = h200(nvmlDeviceGetFanSpeed=41)[function]
    assert hardware.sample()[1][1].HasField(field)
    assert hardware.notices() == []


@pytest.mark.parametrize("code", ["RESET_REQUIRED", "GPU_IS_LOST", "UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH"])
def test_a_device_is_lost_when_nvml_says_so_of_any_field(nvml: OpenNvml, code: str) -> None:
    number = getattr(pynvml, f"NVML_ERROR_{code}")
    lost = h200(nvmlDeviceGetClockInfo=Code(number))
    devices = nvml(lost, h200()).sample()[1]
    assert devices == [pb.DeviceSample(error=str(pynvml.NVMLError(number))), devices[1]]
    assert devices[1].sm_clock_mhz == 1980


def test_a_device_is_lost_when_all_its_fields_fail(nvml: OpenNvml) -> None:
    gpu = h200()
    hardware = nvml(gpu)
    gpu.update({name: UNKNOWN for name in gpu if name != "nvmlDeviceGetFanSpeed"})  # which it never had
    assert hardware.sample()[1] == [pb.DeviceSample(error="Unknown Error")]
    assert hardware.notices() == []  # the error says it
    info = hardware.info()[1][0]
    assert (info.name, info.memory_total_bytes) == ("NVIDIA H200", 143771 * 2**20)  # what it was is known


def test_a_failing_device_costs_no_other_and_its_processes_are_not_asked_for(nvml: OpenNvml) -> None:
    gpu = h200(nvmlDeviceGetComputeRunningProcesses_v3=lambda _: 999)
    hardware = nvml(gpu, h200(nvmlDeviceGetComputeRunningProcesses_v3=running((7, 2**30))))
    assert [process.pid for process in hardware.processes()] == [7]
    assert hardware.notices() == ["GPU 0: compute processes can't be read (Unknown Error)"]
    gpu["nvmlDeviceGetCurrentClocksThrottleReasons"] = LOST
    for _ in range(3):
        assert [device.error for device in hardware.sample()[1]] == ["GPU is lost", ""]
        assert [process.pid for process in hardware.processes()] == [7]
        assert hardware.notices() == []  # the error says it all


def test_what_is_static_fails_field_by_field_and_is_read_again(nvml: OpenNvml) -> None:
    clock = Clock()
    gpu = h200(nvmlDeviceGetTemperatureThreshold=Code(pynvml.NVML_ERROR_INVALID_ARGUMENT), nvmlDeviceGetEnforcedPowerLimit=UNKNOWN)
    driver = Driver(gpu)
    hardware = nvml(driver=driver, clock=clock)
    for _ in range(20):
        clock.now += 1
        sample = hardware.sample()[1][0]
    info = hardware.info()[1][0]
    assert (info.name, info.uuid[:4], info.memory_total_bytes) == ("NVIDIA H200", "GPU-", 143771 * 2**20)
    assert not info.HasField("power_limit_milliwatts")
    assert not info.HasField("slowdown_temperature_celsius")
    assert (sample.temperature_celsius, sample.error) == (63, "")
    assert hardware.notices() == [
        "GPU 0: power limit can't be read (Unknown Error)",
        "GPU 0: slowdown temperature can't be read (Invalid Argument)",
    ]
    assert driver.opened == 1  # what one field says is no reason to open all anew
    gpu.update(h200(nvmlDeviceGetEnforcedPowerLimit=450_000))
    clock.now += 5
    hardware.sample()
    assert hardware.info()[1][0].power_limit_milliwatts == 450_000
    assert hardware.notices() == []


def test_a_name_that_is_no_utf8_has_a_replacement_character(nvml: OpenNvml) -> None:
    hardware = nvml(h200(nvmlDeviceGetName=b"NVIDIA \xff200"))
    assert hardware.info()[1][0].name == "NVIDIA �200"
    assert hardware.notices() == []


def test_what_pynvml_itself_fails_at_is_a_field_that_fails(nvml: OpenNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda _handle: int("lots"))
    hardware = nvml(h200())
    sample = hardware.sample()[1][0]
    assert (sample.HasField("power_milliwatts"), sample.temperature_celsius) == (False, 63)
    assert hardware.notices()[0].startswith("GPU 0: power can't be read (ValueError: invalid literal")


def test_memory_that_may_not_be_read_is_not_the_hosts(nvml: OpenNvml) -> None:
    clock, denied, gpu = Clock(), Code(pynvml.NVML_ERROR_NO_PERMISSION), h200()
    hardware = nvml(gpu, clock=clock)
    hardware.sample()
    gpu.update(nvmlDeviceGetMemoryInfo_v2=denied, nvmlDeviceGetMemoryInfo=denied)  # in parts from now on
    clock.now += 5
    sample, info = hardware.sample()[1][0], hardware.info()[1][0]
    assert not info.unified_memory
    assert not info.HasField("memory_total_bytes")
    assert not sample.HasField("memory_used_bytes")
    assert hardware.notices() == []


@pytest.mark.parametrize(
    "answers",
    [
        {"nvmlDeviceGetMemoryInfo_v2": {"total": 0, "reserved": 0, "free": 0, "used": 0}},
        {"nvmlDeviceGetMemoryInfo_v2": Code(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND), "nvmlDeviceGetMemoryInfo": {"total": 0}},
        {"nvmlDeviceGetMemoryInfo_v2": Code(pynvml.NVML_ERROR_NOT_SUPPORTED), "nvmlDeviceGetMemoryInfo": Code(3)},
    ],
)
def test_not_supported_or_a_total_of_zero_is_unified_memory(nvml: OpenNvml, answers: dict[str, Any]) -> None:
    hardware = nvml(h200(**answers))
    host, devices = hardware.sample()
    assert hardware.info()[1][0].unified_memory
    assert devices[0].memory_used_bytes == host.memory_used_bytes


def test_zero_degrees_are_a_reading(nvml: OpenNvml) -> None:
    device = nvml(h200(nvmlDeviceGetTemperature=0, nvmlDeviceGetPowerUsage=0, nvmlDeviceGetFanSpeed=0)).sample()[1][0]
    for field in ("temperature_celsius", "power_milliwatts", "fan_percent"):
        assert device.HasField(field)
        assert getattr(device, field) == 0


# ---- What was true at the start ----


def test_a_driver_that_is_loaded_after_the_start_is_followed(nvml: OpenNvml) -> None:
    clock, driver = Clock(), Driver(h200(), h200(), init=Code(pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    hardware = nvml(driver=driver, clock=clock)
    assert hardware.sample()[1] == hardware.info()[1] == []
    assert hardware.backend == pb.BACKEND_HOST
    assert hardware.notices() == ["no NVIDIA GPU is read (Driver Not Loaded)"]
    driver.init = None
    for _ in range(5):
        clock.now += 1
        devices = hardware.sample()[1]
    assert [device.temperature_celsius for device in devices] == [63, 63]
    assert [info.name for info in hardware.info()[1]] == ["NVIDIA H200"] * 2
    assert (hardware.backend, hardware.notices()) == (pb.BACKEND_NVML, [])


@pytest.mark.parametrize("stale", [pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_UNKNOWN])
def test_a_driver_that_is_loaded_again_is_opened_again(nvml: OpenNvml, stale: int) -> None:
    clock, driver = Clock(), Driver(h200(), h200())
    driver.stale = stale
    hardware = nvml(driver=driver, clock=clock)
    hardware.sample()
    driver.init = Code(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    driver.reload()
    errors = [device.error for device in hardware.sample()[1]]
    assert errors == ["RM has detected an NVML/RM version mismatch."] * 2
    assert [info.name for info in hardware.info()[1]] == ["NVIDIA H200"] * 2
    driver.init = None
    clock.now += 5
    assert [device.temperature_celsius for device in hardware.sample()[1]] == [63, 63]


def test_a_gpu_that_stays_lost_has_nvml_opened_ever_more_seldom(nvml: OpenNvml) -> None:
    clock, driver = Clock(), Driver(h200(), h200(nvmlDeviceGetUtilizationRates=LOST))
    hardware = nvml(driver=driver, clock=clock)
    opened = []
    for _ in range(600):
        clock.now += 1
        assert [device.error for device in hardware.sample()[1]] == ["", "GPU is lost"]
        opened.append(driver.opened)
    assert opened[0] == 2  # at once
    assert 5 < opened[-1] < 20
    assert opened[-1] - opened[-121] == 2  # at last once a minute


def test_the_info_of_a_gpu_that_was_away_is_read_when_it_comes_back(nvml: OpenNvml) -> None:
    clock, away = Clock(), h200(nvmlDeviceGetHandleByIndex_v2=LOST)
    hardware = nvml(driver=Driver(h200(), away), clock=clock)
    assert [device.error for device in hardware.sample()[1]] == ["", "GPU is lost"]
    assert [info.name for info in hardware.info()[1]] == ["NVIDIA H200", "GPU 1"]
    del away["nvmlDeviceGetHandleByIndex_v2"]
    clock.now += 1
    assert [device.error for device in hardware.sample()[1]] == ["", ""]
    assert hardware.info()[1][1].memory_total_bytes == 143771 * 2**20
    assert [info.name for info in hardware.info()[1]] == ["NVIDIA H200"] * 2


def test_a_gpu_that_is_added_is_seen_and_one_that_is_taken_away_told_of(nvml: OpenNvml, tmp_path: pathlib.Path) -> None:
    clock, driver = Clock(), Driver(h200())
    hardware = nvml(driver=driver, clock=clock)
    assert len(hardware.sample()[1]) == 1
    driver.gpus.append(h200(nvmlDeviceGetName="NVIDIA L4", nvmlDeviceGetUUID="GPU-2"))
    (tmp_path / "gpus/0000:41:00.0").mkdir(parents=True)  # the kernel lists it; NVML counts it when it is opened
    clock.now += 5
    assert len(hardware.sample()[1]) == len(hardware.info()[1]) == 2
    assert [info.name for info in hardware.info()[1]] == ["NVIDIA H200", "NVIDIA L4"]
    del driver.gpus[0]
    (tmp_path / "gpus/0000:41:00.0").rmdir()
    clock.now += 5
    assert len(hardware.sample()[1]) == 1
    (info,) = hardware.info()[1]
    assert (info.name, info.uuid) == ("NVIDIA L4", "GPU-2")
    assert hardware.notices() == ["NVML counts 1 of 2 GPUs"]


def test_opening_again_takes_no_more_than_the_drivers_patience(nvml: OpenNvml) -> None:
    release, driver = threading.Event(), Driver(h200())
    hardware = nvml(driver=driver, timeout_seconds=0.5)
    driver.init = lambda: release.wait(60) and None
    driver.reload()
    assert hardware.sample()[1][0].error.startswith("no answer from the driver for")
    assert hardware.processes() == []
    release.set()
    assert eventually(lambda: hardware.sample()[1][0].temperature_celsius == 63)


def test_processes_of_a_container_with_its_own_ids_have_no_names(nvml: OpenNvml, tmp_path: pathlib.Path) -> None:
    hardware = nvml(h200(nvmlDeviceGetComputeRunningProcesses_v3=running((os.getpid(), 2**30), (1, 2**20))))
    link = tmp_path / "proc/self/ns/pid"
    link.unlink()
    link.symlink_to("pid:[4026532211]")
    assert [(process.name, process.user) for process in hardware.processes()] == [("", "")] * 2
    (notice,) = hardware.notices()
    assert "process ids of its own" in notice


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
