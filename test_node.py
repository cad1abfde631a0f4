"""The agent: its hardware, its link to the server, its screen. Real servers, real processes, real terminals."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import os
import pathlib
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pynvml
import pytest

import node
import node_pb2 as pb
import node_pb2_grpc
from conftest import ROOT, Program, Terminal, eventually

Start = Callable[..., Program]
Open = Callable[..., Terminal]
SIMULATED = ("--hardware", "simulated", "--seed", "1")


def started_server(start: Start, *options: str, port: int = 0) -> tuple[Program, str]:
    """A real server and where it listens."""
    server = start("server.py", "--headless", "--listen", f"127.0.0.1:{port}", *options)
    return server, server.line(r"listening on (\S+:\d+)")[1]


@pytest.fixture
def grpc_server() -> Iterator[Callable[..., str]]:
    """Starts a gRPC server of the test's own with the given behaviour; returns its address."""
    servers = []

    def serve(servicer: node_pb2_grpc.NodeServiceServicer) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        node_pb2_grpc.add_NodeServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(0)


# ---- Small things ----


def test_the_shared_block_is_the_same_in_both_scripts() -> None:
    def block(path: str) -> str:
        text = (ROOT / path).read_text()
        return text[text.index("# ---- The same block") : text.index("# ---- End of the block")]

    assert len(block("node.py")) > 5000
    assert block("node.py") == block("server.py")


def test_backoff_is_exponential_with_full_jitter() -> None:
    ceilings = list(itertools.islice(node.backoff(lambda lowest, highest: highest), 12))
    assert ceilings[:4] == pytest.approx([1, 1.6, 2.56, 4.096])
    assert ceilings[-1] == 30
    assert list(itertools.islice(node.backoff(lambda lowest, highest: lowest), 12)) == [0] * 12
    assert len({next(node.backoff()) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 50051),
        ("10.0.0.5", "10.0.0.5", 50051),
        ("10.0.0.5:6000", "10.0.0.5", 6000),
        ("::1", "::1", 50051),
        ("[::1]", "::1", 50051),
        ("[fd00::5]:6000", "fd00::5", 6000),
        ("fe80::1%eth0", "fe80::1%eth0", 50051),
        ("gpu-07.lab.example:1", "gpu-07.lab.example", 1),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert node.parse_endpoint(text) == node.Endpoint(host, port)
    assert node.parse_endpoint(str(node.Endpoint(host, port))) == node.Endpoint(host, port)


@pytest.mark.parametrize(
    "text", ["", ":50051", "a b", "http://host:50051", "host:port", "host:70000", "[::1", "[::1]x", "host:", "a/b"]
)
def test_bad_addresses_say_what_to_write(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"HOST:PORT|no port"):
        node.parse_endpoint(text)


def test_node_ids_are_the_same_after_a_restart_and_other_for_each_attempt() -> None:
    drawn = [node.machine_digits(attempt) for attempt in range(8)]
    assert drawn == [node.machine_digits(attempt) for attempt in range(8)]
    assert len(set(drawn)) == 8
    assert [len(digits) for digits in drawn] == [4, 4, 4, 5, 5, 5, 6, 6]
    identity = node.Identity(None, None)
    assert identity.node_id == f"Node-{drawn[0]}"
    assert identity.redraw() == f"Node-{drawn[1]}"
    simulated = [node.Identity(None, random.Random(seed)) for seed in range(50)]
    assert len({identity.node_id for identity in simulated}) > 40
    assert node.Identity(None, random.Random(7)).node_id == simulated[7].node_id
    assert simulated[7].redraw() != node.Identity(None, random.Random(7)).node_id


def test_numbers_have_three_digits_and_what_is_missing_is_a_dash() -> None:
    assert [node.show_bytes(count) for count in (None, 0, 1023, 1024, 2**30 * 45.2, 143771 * 2**20, 2**50)] == [
        "—", "0 B", "1.0 KiB", "1.0 KiB", "45.2 GiB", "140 GiB", "1.0 PiB",
    ]  # fmt: skip
    assert [node.show_watts(milliwatts) for milliwatts in (None, 0, 9_400, 700_000, 5_600_000, 4_100_000_000)] == [
        "—", "0 W", "9 W", "700 W", "5.6 kW", "4.1 MW",
    ]  # fmt: skip
    assert [node.show_seconds(seconds) for seconds in (-1, 7.9, 200, 18_120, 1_047_600)] == ["0s", "7s", "3m20s", "5h02m", "12d03h"]
    assert node.show_celsius(None, 87) == "—"
    assert node.show_celsius(87, 87) == "87°C!"


def test_bars_have_eighths_and_their_exact_width() -> None:
    assert node.bar(0, 4) == "····"
    assert node.bar(0.5, 4) == "██··"
    assert node.bar(1, 4) == "████"
    assert node.bar(1 / 32, 4) == "▏···"
    assert node.bar(None, 4) == "    "
    assert {len(node.bar(step / 100, 7)) for step in range(-20, 130)} == {7}


def test_text_from_outside_can_not_steer_the_terminal() -> None:
    assert node.visible("a\x1b[2Jb\nc\u202ed\x00\x9b") == "a�[2Jb�c�d��"
    assert node.visible("Müller 機 [red]") == "Müller 機 [red]"
    assert node.fit("機械学習", 5) == "機械…"
    assert node.cells(node.fit("機械学習", 6)) == 6


def test_columns_are_chosen_by_rank_and_keep_their_order() -> None:
    columns = [node.Column("A", 5, 2), node.Column("B", 5, 0), node.Column("C", 20, 1), node.Column("D", 2, 3)]
    assert [column.title for column in node.choose_columns(columns, 80)] == ["A", "B", "C", "D"]
    assert [column.title for column in node.choose_columns(columns, 12)] == ["A", "B"]
    assert [column.title for column in node.choose_columns(columns, 26)] == ["B", "C"]


# ---- The simulated model's physics ----


def test_temperature_follows_power_with_the_time_constant_of_the_heat_sink() -> None:
    for model in node.CATALOGUE:
        device = node.SimulatedDevice(model._replace(slowdown_celsius=500), ambient_celsius=25)
        device.fan = 1.0
        device.watts = model.limit_watts
        start, end = device.celsius, device.equilibrium()
        assert end == pytest.approx(model.full_load_celsius)
        hot = node.SimulatedDevice(model._replace(slowdown_celsius=500, time_constant_seconds=model.time_constant_seconds), 25)
        hot.fan = 1.0
        # A step of power: after one time constant, 63 % of the way; after five, all of it. The fan is held by its own slowness
        # only in the first seconds, so it is set again at each step.
        for seconds, share in (
            (model.time_constant_seconds, 1 - math.exp(-1)),
            (4 * model.time_constant_seconds, 1 - math.exp(-5)),
        ):
            for _ in range(round(seconds * 10)):
                hot.fan = 1.0
                hot.step(0.1, load=1.0, memory=0.5)
            assert hot.celsius == pytest.approx(start + (end - start) * share, abs=0.02 * (end - start) + 0.5)


def test_one_long_step_is_as_good_as_many_short_ones_for_constant_power() -> None:
    model = node.CATALOGUE[1]
    one, many = (node.SimulatedDevice(model, 25) for _ in range(2))
    for device in (one, many):
        device.watts, device.fan = model.idle_watts, 0.3
        device.celsius = 60
    one.step(10, load=0, memory=0)
    for _ in range(100):
        many.step(0.1, load=0, memory=0)
    assert one.celsius == pytest.approx(many.celsius, abs=1.5)  # the fan moves meanwhile


def test_a_device_in_a_hot_place_throttles_loses_power_and_recovers() -> None:
    model = node.CATALOGUE[2]
    device = node.SimulatedDevice(model, ambient_celsius=55)
    for _ in range(600):
        device.step(1, load=1.0, memory=0.9)
    sample = device.sample()
    assert device.clock < 0.95
    assert sample.throttle_reasons & 0x20
    assert sample.sm_clock_mhz < model.sm_clock_mhz
    assert sample.power_milliwatts < model.limit_watts * 1000
    assert model.slowdown_celsius - 3 <= device.celsius <= model.slowdown_celsius + 4
    for _ in range(300):
        device.step(1, load=0.0, memory=0.0)
    assert device.clock == 1.0
    assert device.sample().throttle_reasons == 0x01


def test_the_fan_follows_temperature() -> None:
    device = node.SimulatedDevice(node.CATALOGUE[2], ambient_celsius=25)
    cold = device.fan
    for _ in range(120):
        device.step(1, load=1.0, memory=0.5)
    assert device.fan > cold + 0.3


@pytest.mark.parametrize("seed", range(27))
def test_simulated_readings_never_leave_their_bounds(seed: int) -> None:
    seconds = 0.0
    hardware = node.SimulatedHardware(seed, clock=lambda: seconds)
    infos = hardware.info()[1]
    loads = set()
    for _ in range(360):
        seconds += 20
        host, devices = hardware.sample()
        assert 0 <= host.cpu_percent <= 100
        assert 0 <= host.memory_used_bytes <= hardware.model.host_memory_gib * 2**30
        for info, device in zip(infos, devices, strict=True):
            loads.add(device.utilization_percent)
            assert 0 <= device.utilization_percent <= 100
            assert 0 < device.memory_used_bytes <= info.memory_total_bytes
            assert 10 <= device.temperature_celsius <= info.slowdown_temperature_celsius + 5
            assert hardware.model.idle_watts * 999 <= device.power_milliwatts <= info.power_limit_milliwatts
    assert not infos or len(loads) > 20  # jobs come and go


def test_the_same_seed_makes_the_same_course_however_often_one_looks() -> None:
    def course(every: float) -> bytes:
        seconds = 0.0
        hardware = node.SimulatedHardware(4, clock=lambda: seconds)
        while seconds < 120:
            seconds += every
            sample = hardware.sample()[1]
        return b"".join(device.SerializeToString(deterministic=True) for device in sample)

    assert course(0.5) == course(1.0) == course(60.0)
    first, second = (node.SimulatedHardware(seed, clock=lambda: 0.0).sample()[1][0] for seed in (0, 9))
    assert first != second


def test_the_catalogue_is_a_mixed_fleet() -> None:
    names = {model.device for model in node.CATALOGUE}
    assert len(names) >= 6
    assert "NVIDIA H200" in names
    assert {model.device_count for model in node.CATALOGUE} >= {0, 1, 2, 4, 8}


# ---- The host ----


def test_the_host_is_read_through_psutil() -> None:
    import psutil

    seconds = iter([0.0, 0.001, 10.0])
    hardware = node.HostHardware(clock=lambda: next(seconds))
    info, devices = hardware.info()
    first, too_soon, sample = (hardware.sample()[0] for _ in range(3))
    assert devices == []
    assert hardware.notice == ""
    assert info.memory_total_bytes == psutil.virtual_memory().total
    assert info.cpu_count == os.cpu_count()
    assert 0 <= sample.cpu_percent <= 100
    assert 0 < sample.memory_used_bytes < info.memory_total_bytes
    assert 0 < sample.disk_used_bytes < info.disk_total_bytes
    assert sample.load_1m >= 0
    assert sample.HasField("network_received_bytes_per_second")
    assert abs(sample.uptime_seconds - (time.time() - psutil.boot_time())) < 5
    assert not first.HasField("cpu_percent")  # a mean needs two readings
    assert not too_soon.HasField("cpu_percent")  # and one over no time at all would be a false zero
    assert sample.HasField("cpu_percent")
    assert not first.HasField("network_received_bytes_per_second")  # a rate needs two readings


def test_a_box_without_psutil_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    hardware = node.HostHardware()
    sample = hardware.sample()[0]
    assert "python3-psutil" in hardware.notice
    assert sample.HasField("disk_used_bytes")
    assert not sample.HasField("memory_used_bytes")


def test_the_model_of_a_jetson_comes_from_its_device_tree(tmp_path: pathlib.Path) -> None:
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert node.HostHardware(root=tmp_path).info()[0].model == "NVIDIA Jetson AGX Orin Developer Kit"


# ---- NVML, at pynvml's own boundary: the C functions of libnvidia-ml ----


class Driver:
    """libnvidia-ml as pynvml calls it. A GPU is a dict: C function -> its answer, an NVML error code (Code), or a function."""

    def __init__(self, *gpus: dict[str, Any]) -> None:
        self.gpus = list(gpus)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name in ("nvmlInitWithFlags", "nvmlShutdown"):
            return lambda *_: 0
        if name == "nvmlDeviceGetCount_v2":
            return lambda count: _fill(count._obj, len(self.gpus))
        if name == "nvmlDeviceGetHandleByIndex_v2":
            return lambda index, handle: _point(handle._obj, index.value + 1)
        if not any(name in gpu for gpu in self.gpus):
            raise AttributeError(name)  # an older driver: pynvml makes FUNCTION_NOT_FOUND of it
        return lambda handle, *arguments: self._answer(name, ctypes.cast(handle, ctypes.c_void_p).value or 0, arguments)

    def _answer(self, name: str, handle: int, arguments: tuple[Any, ...]) -> int:
        answer = self.gpus[handle - 1].get(name, Code(pynvml.NVML_ERROR_NOT_SUPPORTED))
        if name.endswith("RunningProcesses_v3") and callable(answer):
            return int(answer(arguments))
        if callable(answer):
            answer = answer()
        if isinstance(answer, Code):
            return answer.number
        if isinstance(answer, str):
            arguments[0].value = answer.encode()
            return 0
        return _fill(arguments[-1]._obj, answer)


class Code:
    """An NVML return code other than success."""

    def __init__(self, number: int) -> None:
        self.number = number


def _point(handle: Any, number: int) -> int:
    """A device handle is an opaque pointer: here it holds the index plus one."""
    ctypes.memmove(ctypes.byref(handle), ctypes.byref(ctypes.c_void_p(number)), ctypes.sizeof(ctypes.c_void_p))
    return 0


def _fill(target: Any, answer: Any) -> int:
    for name, value in (answer if isinstance(answer, dict) else {"value": answer}).items():
        setattr(target, name, value)
    return 0


def h200(**changes: Any) -> dict[str, Any]:
    """What an H200 answers, written after NVML's documentation: a passive board has no fan of its own."""
    answers: dict[str, Any] = {
        "nvmlDeviceGetName": "NVIDIA H200",
        "nvmlDeviceGetUUID": "GPU-6c1f6f0e-4f0e-4a29-8d9e-000000000001",
        "nvmlDeviceGetMemoryInfo_v2": {"total": 143771 * 2**20, "reserved": 600 * 2**20, "free": 2**30, "used": 45 * 2**30},
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetTemperatureThreshold": 87,
        "nvmlDeviceGetUtilizationRates": {"gpu": 53, "memory": 20},
        "nvmlDeviceGetTemperature": 63,
        "nvmlDeviceGetPowerUsage": 412_345,
        "nvmlDeviceGetFanSpeed": Code(pynvml.NVML_ERROR_NOT_SUPPORTED),
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x04,
    }
    return answers | changes


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., node.NvmlHardware]:
    """NvmlHardware on the GPUs given."""

    def opened(*gpus: dict[str, Any], patience_seconds: float = 5.0) -> node.NvmlHardware:
        monkeypatch.setattr(pynvml, "nvmlLib", Driver(*gpus))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        return node.NvmlHardware(node.HostHardware(), patience_seconds)

    return opened


def test_nvml_reads_all_fields_of_several_gpus(nvml: Callable[..., node.NvmlHardware]) -> None:
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


def test_an_old_driver_answers_with_the_first_version_of_memory(nvml: Callable[..., node.NvmlHardware]) -> None:
    old = h200(nvmlDeviceGetMemoryInfo={"total": 2**34, "free": 2**33, "used": 2**33})
    del old["nvmlDeviceGetMemoryInfo_v2"], old["nvmlDeviceGetCurrentClocksThrottleReasons"]
    hardware = nvml(old)
    device = hardware.sample()[1][0]
    assert hardware.info()[1][0].memory_total_bytes == 2**34
    assert device.memory_used_bytes == 2**33
    assert not device.HasField("throttle_reasons")


def test_unified_memory_is_the_hosts(nvml: Callable[..., node.NvmlHardware]) -> None:
    gb10 = h200(nvmlDeviceGetName="NVIDIA GB10", nvmlDeviceGetMemoryInfo_v2=Code(pynvml.NVML_ERROR_NOT_SUPPORTED))
    hardware = nvml(gb10)
    info, (host, devices) = hardware.info(), hardware.sample()
    assert info[1][0].unified_memory
    assert info[1][0].memory_total_bytes == info[0].memory_total_bytes
    assert devices[0].memory_used_bytes == host.memory_used_bytes


def test_sentinels_are_not_readings(nvml: Callable[..., node.NvmlHardware]) -> None:
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


def test_a_lost_device_shows_its_error_and_the_others_go_on(nvml: Callable[..., node.NvmlHardware]) -> None:
    lost = h200()
    hardware = nvml(h200(), lost, h200())
    lost["nvmlDeviceGetUtilizationRates"] = Code(pynvml.NVML_ERROR_GPU_IS_LOST)
    devices = hardware.sample()[1]
    assert [device.error for device in devices] == ["", "GPU is lost", ""]
    assert not devices[1].HasField("temperature_celsius")
    assert devices[2].temperature_celsius == 63
    lost["nvmlDeviceGetUtilizationRates"] = {"gpu": 7, "memory": 0}
    assert [device.utilization_percent for device in hardware.sample()[1]] == [53, 7, 53]


def test_a_hanging_driver_costs_the_gpus_readings_and_not_the_hosts(nvml: Callable[..., node.NvmlHardware]) -> None:
    release = threading.Event()
    hanging = h200()
    hardware = nvml(h200(), hanging, patience_seconds=0.2)
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
    with pytest.raises(node.Failure, match="no answer from the driver"):
        node.NvmlHardware(node.HostHardware(), patience_seconds=0.05)
    release.set()


def test_without_gpus_auto_is_the_host_and_says_why(
    nvml: Callable[..., node.NvmlHardware], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(node.Failure, match="counts none"):
        nvml()
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    hardware = node.open_hardware("auto", 0)
    assert hardware.backend == pb.BACKEND_HOST
    assert "NVML Shared Library Not Found" in hardware.notice
    with pytest.raises(node.Failure, match="nvidia-smi"):
        node.open_hardware("nvml", 0)
    assert node.open_hardware("host", 0).notice == ""


def test_a_python_without_ctypes_has_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "no NVIDIA GPU is read" in node.open_hardware("auto", 0).notice


def test_auto_takes_nvml_when_it_counts_a_gpu(nvml: Callable[..., node.NvmlHardware]) -> None:
    nvml(h200())
    assert node.open_hardware("auto", 0).backend == pb.BACKEND_NVML


def running(*processes: tuple[int, int]) -> Callable[[Any], int]:
    """nvmlDeviceGet…RunningProcesses: first the count, then pid and memory of each."""

    def answer(count: Any, array: Any) -> int:
        known, count._obj.value = count._obj.value, len(processes)
        if known < len(processes):
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        for entry, (pid, used) in zip(array or (), processes, strict=False):
            entry.pid, entry.usedGpuMemory = pid, used
        return 0

    return lambda arguments: answer(*arguments)


def test_processes_have_their_owner_and_memory_where_nvml_tells(nvml: Callable[..., node.NvmlHardware]) -> None:
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


class Shaky(node.HostHardware):
    """A host with one device that fails at its second reading."""

    readings = 0

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        self.readings += 1
        return pb.HostSample(), [pb.DeviceSample(error="GPU is lost" if self.readings == 2 else "")]


def test_telemetry_logs_a_failing_device_once_and_its_return() -> None:
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 0.01)
    telemetry = threading.Thread(target=node.keep_sampling, args=(Shaky(), state, 0.01))
    telemetry.start()
    eventually(lambda: state.newest_sequence() >= 5)
    state.close()
    telemetry.join(5)
    assert [line.text for line in state.view().log] == ["GPU 0: GPU is lost", "GPU 0: answers again"]
    assert not telemetry.is_alive()


# ---- The command line ----


def test_once_prints_a_reading_and_exits(start: Start) -> None:
    program = start("node.py", "--once", *SIMULATED)
    assert program.wait() == 0
    text = "\n".join(program.lines)
    assert text.count("NVIDIA H200") == 8
    assert "cpu" in text
    assert "\x1b" not in text


def test_once_as_json(start: Start) -> None:
    program = start("node.py", "--once", "--json", *SIMULATED, "--id", "box-1")
    assert program.wait() == 0
    (line,) = program.lines
    reading = json.loads(line)
    assert set(reading) == {"time", "node_id", "info", "sample"}
    assert reading["node_id"] == "box-1"
    assert reading["info"]["backend"] == "BACKEND_SIMULATED"
    assert len(reading["sample"]["devices"]) == 8
    assert 0 <= reading["sample"]["devices"][0]["temperature_celsius"] < 100


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--interval", "0"], "0.1 to 3600"),
        (["--interval", "nan"], "0.1 to 3600"),
        (["--server", "http://x:1"], "HOST:PORT"),
        (["--server", "x:0"], "no port from 1"),
        (["--server", "x:99999"], "no port from 1"),
        (["--id", ""], "must not be empty"),
        (["--id", "x" * 64], "at most 63"),
        (["--id", "a\x1b[2J"], "printable"),
        (["--hardware", "cuda"], "auto, nvml, host, simulated"),
        (["--seed", "x"], "--seed"),
        (["--seed", "3"], "--seed is for --hardware simulated"),
        (["--servr", "x"], "--servr"),
    ],
)
def test_bad_options_exit_with_2_and_say_what_to_do(start: Start, options: list[str], said: str) -> None:
    program = start("node.py", *options)
    assert program.wait() == 2
    assert said in program.lines[0]
    assert "--help" in program.lines[-1]
    assert all(line.isprintable() for line in program.lines)


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("Yes", True), ("0", False), ("off", False), ("", False)])
def test_a_switch_from_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, is_on: bool) -> None:
    monkeypatch.setenv("EDGE_HEADLESS", value)
    assert node.parse_options([]).headless is is_on


def test_a_switch_that_is_neither_on_nor_off(start: Start) -> None:
    program = start("node.py", EDGE_HEADLESS="maybe")
    assert program.wait() == 2
    assert program.lines[0].endswith("argument --headless: 'maybe' is neither 1 nor 0 (from EDGE_HEADLESS in the environment)")


def test_each_option_comes_from_the_environment_and_a_flag_beats_it(start: Start) -> None:
    environ = {"EDGE_ONCE": "1", "EDGE_JSON": "1", "EDGE_HARDWARE": "simulated", "EDGE_SEED": "0", "EDGE_ID": "from-env"}
    first, second = start("node.py", **environ), start("node.py", "--id", "from-flag", **environ)
    third = start("node.py", EDGE_INTERVAL="soon")
    assert (first.wait(), second.wait(), third.wait()) == (0, 0, 2)
    assert json.loads(first.lines[0])["node_id"] == "from-env"
    assert json.loads(second.lines[0])["node_id"] == "from-flag"
    assert "from EDGE_INTERVAL in the environment" in third.lines[0]


def test_version_and_help(start: Start) -> None:
    version, about = start("node.py", "--version"), start("node.py", "--help")
    assert (version.wait(), about.wait()) == (0, 0)
    assert node.VERSION in version.lines[0]
    text = "\n".join(about.lines)
    for option in ("--server", "--id", "--hardware", "--interval", "--headless", "--once", "--json", "--debug", "--no-color"):
        assert option in text
        assert "EDGE_" + option[2:].upper().replace("-", "_") in text


def test_nvml_asked_for_and_not_there_is_one_line(start: Start) -> None:
    if pathlib.Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    program = start("node.py", "--hardware", "nvml")
    assert program.wait() == 1
    (line,) = program.lines
    assert "--hardware host" in line


# ---- The link ----


def nodes_of(server: Program) -> dict[str, Any]:
    """The newest snapshot of a server with --json, by node id."""
    snapshot = server.json_line(lambda _: True)
    return {row["node_id"]: row for row in snapshot["nodes"]}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_node_reports_and_leaves_cleanly(start: Start, number: int, code: int) -> None:
    server, address = started_server(start, "--json")
    agent = start("node.py", "--server", address, "--id", "box-1", *SIMULATED)
    row = server.json_line(lambda line: line["nodes"] and line["nodes"][0]["sample"].get("sequence", "0") >= "2")["nodes"][0]
    assert (row["node_id"], row["state"]) == ("box-1", "ONLINE")
    assert len(row["sample"]["devices"]) == len(row["info"]["devices"]) == 8
    assert row["heartbeat_age_seconds"] < 2
    agent.line("connected to")
    assert agent.end(number) == code
    agent.line("goodbye acknowledged")
    assert server.json_line(lambda line: line["nodes"][0]["state"] == "LEFT")


def test_headless_json_has_a_line_a_sample_and_a_line_an_event(start: Start) -> None:
    _, address = started_server(start)
    agent = start("node.py", "--server", address, "--json", "--interval", "0.2", *SIMULATED)
    assert agent.json_line(lambda line: line.get("sample", {}).get("sequence") == "3")["node_id"].startswith("Node-")
    assert any("connected to" in json.loads(line).get("text", "") for line in agent.lines)


def test_a_killed_server_is_survived_and_the_backlog_arrives(start: Start) -> None:
    server, address = started_server(start)
    agent = start("node.py", "--server", address, "--id", "box-1", "--json", "--interval", "0.2", *SIMULATED)
    server.line("joined box-1")
    server.kill()
    agent.line(r"next try in \d+\.\d s")
    before = int(agent.json_line(lambda line: "sample" in line)["sample"]["sequence"])
    agent.json_line(lambda line: int(line.get("sample", {}).get("sequence", 0)) > before + 3)  # sampling goes on
    back, _ = started_server(start, port=int(address.rpartition(":")[2]))
    back.line("joined box-1", 40)
    eventually(lambda: sum("connected to" in line for line in agent.lines) >= 2)
    assert agent.end() == 130


def test_a_server_that_goes_away_says_so_and_the_node_comes_back(start: Start) -> None:
    server, address = started_server(start)
    agent = start("node.py", "--server", address, *SIMULATED)
    agent.line("connected to")
    assert server.end() == 130
    agent.line("going away: come back soon.*next try in")
    back, _ = started_server(start, "--json", port=int(address.rpartition(":")[2]))
    (row,) = back.json_line(lambda line: line["nodes"], 40)["nodes"]
    assert row["info"]["session_number"] == 2
    # Where the new server starts slowly, a try in between found nobody.
    assert re.search("going away: come back soon|nothing listens on", row["info"]["last_error"])


def test_half_open_connections_are_found_within_15_seconds(start: Start) -> None:
    server, address = started_server(start)
    frozen = start("node.py", "--server", address, *SIMULATED)
    frozen.line("connected to")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        mute = start("node.py", "--server", f"127.0.0.1:{silent.getsockname()[1]}", *SIMULATED)
        server.process.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        mute.line("half-open.*next try in", 15)
        frozen.line("half-open.*next try in", 20)
        assert time.monotonic() - frozen_at < 17  # 15 s, and 2 for a busy machine
    server.process.send_signal(signal.SIGCONT)
    eventually(lambda: sum("connected to" in line for line in frozen.lines) >= 2, 40)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("127.0.0.1:{closed}", "nothing listens on .*is the server running.*next try in"),
        ("no-such-host.invalid", "cannot resolve no-such-host.invalid:50051 .check the name.*next try in"),
        ("127.0.0.1:{http}", "next try in"),
    ],
)
def test_a_server_that_is_not_there_is_explained(start: Start, server: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else takes the port meanwhile

        def answer() -> None:
            connection, _ = http.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        target = server.format(closed=closed.getsockname()[1], http=http.getsockname()[1])
        agent = start("node.py", "--server", target, *SIMULATED)
        agent.line(said, 20)
        assert agent.end() == 130


class UnaryOnly(node_pb2_grpc.NodeServiceServicer):
    """The first version's server: only the unary call, which takes an id and a temperature."""

    def __init__(self) -> None:
        self.requests: list[pb.HeartbeatRequest] = []

    def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        self.requests.append(request)
        return pb.HeartbeatResponse(acknowledged=True)


def test_a_server_with_only_the_unary_call_gets_a_heartbeat_each_interval(start: Start, grpc_server: Callable[..., str]) -> None:
    servicer = UnaryOnly()
    agent = start("node.py", "--server", grpc_server(servicer), "--id", "box-1", "--interval", "0.3", *SIMULATED)
    eventually(lambda: len(servicer.requests) >= 4)
    assert agent.end() == 130
    agent.line("goodbye acknowledged")
    heartbeats, goodbye = servicer.requests[:-1], servicer.requests[-1]
    assert all(request.node_id == "box-1" for request in servicer.requests)
    assert all(10 < request.gpu_temp < 100 for request in heartbeats)
    assert [request.sample.sequence for request in heartbeats[:4]] == [1, 2, 3, 4]
    assert goodbye.leaving


class Scripted(node_pb2_grpc.NodeServiceServicer):
    """A server that answers the first sessions with the given status codes, and then as told."""

    def __init__(self, *refusals: tuple[grpc.StatusCode, str], interval_milliseconds: int = 0) -> None:
        self.refusals = list(refusals)
        self.interval_milliseconds = interval_milliseconds
        self.sessions: list[list[tuple[float, pb.HeartbeatRequest]]] = []

    def StreamHeartbeats(self, requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        self.sessions.append([])
        session = self.sessions[-1]
        if self.refusals:
            context.abort(*self.refusals.pop(0))
        for request in requests:
            session.append((time.monotonic(), request))
            if len(session) == 1:
                yield pb.HeartbeatResponse(acknowledged=True, heartbeat_interval_milliseconds=self.interval_milliseconds)


def test_the_first_message_of_a_session_has_all_and_the_rest_what_is_new(start: Start, grpc_server: Callable[..., str]) -> None:
    servicer = Scripted((grpc.StatusCode.UNAVAILABLE, "not yet"))
    start("node.py", "--server", grpc_server(servicer), "--id", "box-1", "--interval", "0.1", *SIMULATED)
    eventually(lambda: len(servicer.sessions) == 2 and len(servicer.sessions[1]) >= 6)
    requests = [request for _, request in servicer.sessions[1]]
    assert (requests[0].node_id, requests[0].info.hostname) == ("box-1", "h200-01")
    assert all(not request.node_id and not request.HasField("info") for request in requests[1:])
    sequences = [sample.sequence for sample in requests[0].backlog] + [request.sample.sequence for request in requests]
    assert sequences == list(range(1, len(sequences) + 1))  # none lost, none twice
    assert all(0 <= request.clock_milliseconds - request.sample.taken_milliseconds < 1000 for request in requests)


def test_the_server_sets_the_cadence(start: Start, grpc_server: Callable[..., str]) -> None:
    servicer = Scripted(interval_milliseconds=700)
    start("node.py", "--server", grpc_server(servicer), "--interval", "0.1", *SIMULATED)
    eventually(lambda: servicer.sessions and len(servicer.sessions[0]) >= 5)
    times = [at for at, _ in servicer.sessions[0]][1:5]
    assert 0.5 <= (times[-1] - times[0]) / 3 <= 1.2


def test_a_taken_id_is_drawn_again_or_ends_a_node_with_its_own_id(start: Start, grpc_server: Callable[..., str]) -> None:
    hostile = "taken by \x1b[31mbox\x1b[0m at 10.0.0.7"
    address = grpc_server(Scripted((grpc.StatusCode.ALREADY_EXISTS, hostile), (grpc.StatusCode.ALREADY_EXISTS, hostile)))
    given = start("node.py", "--server", address, "--id", "box-1", *SIMULATED)
    assert given.wait() == 1
    assert "\x1b" not in "\n".join(given.lines)
    assert "another --id" in given.lines[-1]
    drawn = start("node.py", "--server", address, *SIMULATED)
    drawn.line(r"this node is Node-\d+ now")
    drawn.line("connected to")


def test_two_boxes_with_one_machine_id_get_two_rows(start: Start) -> None:
    server, address = started_server(start)
    first = start("node.py", "--server", address, "--hardware", "host")
    first.line("connected to")
    second = start("node.py", "--server", address, "--hardware", "host")
    second.line(f"is taken by .*this node is Node-{node.machine_digits(1)} now")
    second.line("connected to")
    server.line(f"joined Node-{node.machine_digits(1)}")


class Broken(node.HostHardware):
    """Hardware with a bug in its driver's code."""

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        raise ZeroDivisionError("a bug")


def test_the_death_of_a_thread_ends_the_program_with_its_reason() -> None:
    state = node.NodeState("Node-1", "", pb.NodeInfo(), 1.0)
    node.guarded(state, False, node.keep_sampling, Broken(), state, 1.0).join(5)
    assert state.is_closed()
    assert "ZeroDivisionError: a bug" in state.failure


def test_a_closed_pipe_ends_the_program_without_a_traceback(start: Start) -> None:
    program = start(
        "-c", "import os, sys, node; os.close(1); os.dup2(os.pipe()[1], 1); sys.exit(node.main(sys.argv[1:]))", "--once", *SIMULATED
    )
    assert program.wait() == 141
    assert program.lines == []


# ---- The screen ----


def view_of(seed: int, **changes: Any) -> node.View:
    hardware = node.SimulatedHardware(seed, clock=lambda: 0.0)
    state = node.NodeState("Node-8821", "10.0.0.5:50051", node.make_info(hardware, "i"), 1.0, clock=lambda: 0.0)
    state.publish(node.take_sample(hardware, 1, 0, lambda: 0.0))
    state.log("connected to 10.0.0.5:50051")
    return state.view()._replace(**changes)


SIZES = [(160, 45), (80, 24), (50, 15), (40, 10), (39, 9), (250, 70), (160, 12), (45, 60), (1, 1), (0, 0)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(len(node.CATALOGUE)))
def test_a_frame_has_exactly_its_size(size: tuple[int, int], seed: int) -> None:
    width, height = size
    frame = node.render(view_of(seed), width, height, 0, 0)
    assert len(frame) == height
    assert {sum(node.cells(text) for text, _ in line) for line in frame} <= {width}
    text = node.plain(frame)
    if width >= 50 and height >= 15:
        assert "Node-8821" in text
        assert "connecting" in text
        assert text.count("°C") >= min(len(view_of(seed).sample.devices), 8)
        assert "quit" in text
    elif width > 30:
        assert ("too small" in text) == (width < 40 or height < 10)


def test_history_is_a_window() -> None:
    history = b""
    for value in range(node.HISTORY_SAMPLES + 5):
        history = node.extend_history(history, bytes([value % 100, 1, 2]))
    assert len(history) == 3 * node.HISTORY_SAMPLES
    assert history[0] == 5


def test_a_frame_of_history_has_bytes_for_the_node_and_each_device() -> None:
    info = pb.NodeInfo(devices=[pb.DeviceInfo(memory_total_bytes=1000), pb.DeviceInfo(), pb.DeviceInfo()])
    full = pb.DeviceSample(utilization_percent=50, memory_used_bytes=250, temperature_celsius=-5)
    frame = node.history_frame((0.5, None, 81.4), info, pb.Sample(devices=[full, pb.DeviceSample()]))
    assert list(frame) == [50, 255, 81, 50, 25, 0, 255, 255, 255, 255, 255, 255]


def test_sparklines_and_graphs_have_a_fixed_scale_with_the_newest_at_the_right() -> None:
    assert node.sparkline(bytes([0, 50, 100, 255]), 6) == "  ▁▄█ "
    assert node.sparkline(bytes(range(100)), 3) == "███"
    assert node.plain(node.graph(bytes([0, 50, 100, 255]), 5, 2, "")) == "   █ \n ▁██ "


def test_each_gauge_shows_its_reading() -> None:
    text = node.plain(node.render(view_of(2), 160, 45, 0, 0))
    for word in (
        "NVIDIA GeForce RTX 4090",
        "utilization",
        "memory",
        "temperature",
        "power",
        "fan",
        "SM",
        "throttle",
        "cpu",
        "disk",
        "Log",
    ):
        assert word in text
    assert " of 450 W" in text
    assert " of 24.0 GiB" in text
    assert " of 90°C" in text


def test_what_is_not_reported_is_a_dash_and_a_failing_device_says_why() -> None:
    view = view_of(1)
    silent, lost = pb.DeviceSample(), pb.DeviceSample(error="GPU is lost\x1b[2J")
    view = view._replace(sample=pb.Sample(host=view.sample.host, devices=[silent, lost, *view.sample.devices[2:]]))
    for size in ((160, 45), (80, 24)):
        frame = node.plain(node.render(view, *size, 0, 0))
        assert "✗ GPU is lost�[2J" in frame
        assert "\x1b" not in frame
    assert node.plain(node.gauges(pb.DeviceInfo(), silent, 60)).count("—") == 7


def test_the_countdown_and_the_reason_are_shown_while_waiting() -> None:
    link = node.Link(phase="waiting", reason="nothing listens on 10.0.0.5:50051", retry_at=12.34)
    text = node.plain(node.render(view_of(0, link=link), 120, 30, 0, 10))
    assert "disconnected" in text
    assert "next try in 2.3 s · nothing listens on 10.0.0.5:50051" in text


def test_sensors_that_hang_are_told_from_a_link_that_is_down() -> None:
    link = node.Link(phase="connected", interval_seconds=1)
    text = node.plain(node.render(view_of(0, link=link, sample_age_seconds=42.0), 120, 30, 0, 0))
    assert "sensors silent for 42s" in text
    assert "connected to" in text


def test_the_screen_lives_through_the_servers_absence_and_q_leaves(terminal: Open, start: Start) -> None:
    server, address = started_server(start)
    screen = terminal("node.py", "--server", address, "--id", "box-1", *SIMULATED)
    screen.shows(r"● connected to .* · round trip \d+\.\d ms · every 1 s")
    eventually(lambda: screen.text().count("NVIDIA H200") == 8)
    assert screen.cell("● connected").fg == "green"
    server.kill()
    screen.shows(r"○ disconnected .*next try in \d\.\d s")
    back, _ = started_server(start, port=int(address.rpartition(":")[2]))
    screen.shows("● connected", 40)
    screen.press("q")
    assert screen.wait() == 0
    assert screen.is_restored()
    back.line("left box-1")
    screen.shows("goodbye acknowledged")


@pytest.mark.parametrize(("keys", "number", "code"), [("\x03", 0, 130), ("", signal.SIGTERM, 143), ("", signal.SIGHUP, 129)])
def test_the_terminal_is_restored_however_it_ends(terminal: Open, keys: str, number: int, code: int) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED)
    screen.shows("disconnected")
    if keys:
        screen.press(keys)
    else:
        screen.process.send_signal(number)
    assert screen.wait() == code
    assert eventually(screen.is_restored)


def test_the_terminal_is_restored_after_an_exception(terminal: Open) -> None:
    program = "import node, sys; node.render = lambda *_: 1 / 0; sys.exit(node.main(sys.argv[1:]))"
    screen = terminal("-c", program, "--server", "127.0.0.1:1", *SIMULATED)
    assert screen.wait() == 1
    assert eventually(screen.is_restored)
    screen.shows("ZeroDivisionError")


def test_a_closed_terminal_ends_the_node(terminal: Open, start: Start) -> None:
    server, address = started_server(start)
    screen = terminal("node.py", "--server", address, "--id", "box-1", *SIMULATED)
    screen.shows("● connected")
    os.close(screen.slave)
    os.close(screen.master)
    assert screen.wait() == 129
    server.line("left box-1")


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15)])
def test_the_screen_fits_real_terminals_and_follows_their_size(terminal: Open, size: tuple[int, int]) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, columns=size[0], lines=size[1])
    screen.shows("disconnected")
    screen.shows("q quit")
    screen.resize(72, 20)
    eventually(lambda: screen.text().splitlines()[-1].startswith(" q quit"))
    screen.resize(30, 5)
    screen.shows("too small: 30x5")
    screen.resize(*size)
    screen.shows("disconnected")
    screen.press("q")
    assert screen.wait() == 0


def test_a_terminal_of_no_size_does_not_end_the_node(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, columns=0, lines=0)
    eventually(lambda: b"\x1b[?1049h" in screen.raw)
    screen.resize(80, 24)
    screen.shows("disconnected")
    screen.press("q")
    assert screen.wait() == 0


def test_a_quiet_screen_sends_only_what_changed(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", "--interval", "3600", *SIMULATED)
    screen.shows("disconnected")
    start = len(screen.raw)
    eventually(lambda: screen.raw[start:].count(b"\x1b[?2026h") >= 5)
    update = screen.raw[start:].split(b"\x1b[?2026h")[3]
    assert update.count(b"H") < 6  # a cursor move a line: the countdown's, the clock's, the log's
    assert update.rstrip().endswith(b"\x1b[?2026l")


def test_suspend_gives_the_terminal_back_and_fg_takes_it_again(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED)
    screen.shows("disconnected")
    screen.press("\x1a")
    status = pathlib.Path(f"/proc/{screen.process.pid}/stat")
    eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
    assert eventually(screen.is_restored)
    start = len(screen.raw)
    screen.process.send_signal(signal.SIGCONT)
    eventually(lambda: b"\x1b[?1049h" in screen.raw[start:] and b"NVIDIA H200" in screen.raw[start:])
    screen.press("q")
    assert screen.wait() == 0
    assert eventually(screen.is_restored)


def test_fps_bounds_the_frames(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", "--fps", "2", "--interval", "0.1", *SIMULATED)
    screen.shows("disconnected")
    start, begun = len(screen.raw), time.monotonic()
    eventually(lambda: screen.raw[start:].count(b"\x1b[?2026h") >= 4)
    assert time.monotonic() - begun >= 1.4


@pytest.mark.parametrize("how", ["--no-color", "NO_COLOR"])
def test_no_color_means_no_color(terminal: Open, how: str) -> None:
    options, environ = ([how], {}) if how.startswith("--") else ([], {how: "1"})
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, *options, **environ)
    screen.shows("disconnected")
    assert screen.cell("disconnected").fg == "default"
    assert screen.cell("disconnected").bold


def test_a_terminal_that_is_not_utf8_gets_ascii(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    screen.shows("disconnected")
    assert screen.text().isascii()
    screen.shows("####")


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_plain_lines(terminal: Open, term: str) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", *SIMULATED, TERM=term)
    screen.shows(r"\d\d:\d\d:\d\d nothing listens on")
    assert b"\x1b" not in screen.raw
    screen.press("\x03")
    assert screen.wait() == 130
