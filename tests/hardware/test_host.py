"""The host itself."""

from __future__ import annotations

import os
import pathlib
import sys
import time
import types

import pytest

from edge.hardware.host import LocalHost
from edge.protocol import MAX_CORES


def test_the_host_is_read_through_psutil() -> None:
    import psutil

    seconds = iter([0.0, 0.001, 10.0])
    hardware = LocalHost(clock=lambda: next(seconds))
    info = hardware.host_info()
    first, too_soon, sample = (hardware.host_sample() for _ in range(3))
    assert hardware.notices() == []
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
    hardware = LocalHost()
    sample = hardware.host_sample()
    (notice,) = hardware.notices()
    assert "python3-psutil" in notice
    assert sample.HasField("disk_used_bytes")
    assert not sample.HasField("memory_used_bytes")
    assert not hardware.host_info().HasField("memory_total_bytes")
    assert hardware.owner(os.getpid()) == ("", "")


def test_the_model_of_a_jetson_comes_from_its_device_tree(tmp_path: pathlib.Path) -> None:
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert LocalHost(root=tmp_path).host_info().model == "NVIDIA Jetson AGX Orin Developer Kit"


def test_the_owner_of_a_process_is_its_user_and_name() -> None:
    user, name = LocalHost().owner(os.getpid())
    assert user
    assert name.startswith(("python", "pytest"))
    assert LocalHost().owner(2**22 + 1) == ("", "")  # gone


def test_slow_readings_are_taken_every_five_seconds() -> None:
    class Counted(LocalHost):
        temperatures = 0

        def _hottest(self) -> int | None:
            self.temperatures += 1
            return self.temperatures

    seconds = iter([0.0, 1.0, 4.9, 5.0, 9.0])
    host = Counted(clock=lambda: next(seconds))
    assert [host.host_sample().temperature_celsius for _ in range(5)] == [1, 1, 1, 2, 2]


def test_many_processors_are_told_as_means_of_equal_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    percents = [0.0] * 50 + [100.0] * 50
    monkeypatch.setattr(psutil, "cpu_percent", lambda percpu: percents)
    seconds = iter([0.0, 1.0])
    host = LocalHost(clock=lambda: next(seconds))
    host.host_sample()
    sample = host.host_sample()
    assert sample.cpu_percent == 50
    assert len(sample.cpu_core_percents) <= MAX_CORES
    assert list(sample.cpu_core_percents) == [0] * 10 + [100] * 10


def test_the_network_is_its_physical_interfaces_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    import psutil

    counts = {"lo": 10**9, "eth0": 0, "docker0": 10**6}

    def counters(**_: bool) -> dict[str, types.SimpleNamespace]:
        for name in counts:
            counts[name] += 1000
        return {name: types.SimpleNamespace(bytes_recv=count, bytes_sent=count // 2) for name, count in counts.items()}

    monkeypatch.setattr(psutil, "net_io_counters", counters)

    def rates() -> tuple[int, int]:
        seconds = iter([0.0, 2.0])
        host = LocalHost(clock=lambda: next(seconds), root=tmp_path)
        host.host_sample()
        sample = host.host_sample()
        return sample.network_received_bytes_per_second, sample.network_sent_bytes_per_second

    assert rates() == (1000, 500)  # a container: all but loopback
    (tmp_path / "sys/class/net/eth0/device").mkdir(parents=True)
    assert rates() == (500, 250)
