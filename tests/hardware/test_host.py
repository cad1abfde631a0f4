"""The host itself."""

from __future__ import annotations

import itertools
import os
import pathlib
import sys
import threading
import time
import types
from typing import Any

import pytest

import node_pb2 as pb
from edge.hardware.host import LocalHost, Users
from edge.hardware.network import rates_between
from edge.protocol import MAX_CORES, reported
from tests.fixtures.processes import eventually


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


def test_the_owner_of_a_process_is_its_user_and_name(tmp_path: pathlib.Path) -> None:
    host = LocalHost(root=tmp_path)  # which knows no namespaces of process ids
    user, name = host.owner(os.getpid())
    assert user
    assert name.startswith(("python", "pytest"))
    assert host.owner(2**22 + 1) == ("", "")  # gone
    assert host.notices() == []


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


def read_twice(host: LocalHost) -> pb.HostSample:
    """Means and rates need two readings."""
    host.host_sample()
    return host.host_sample()


def well_for(root: pathlib.Path, seconds: float = 1.0) -> LocalHost:
    """A host whose clock goes on by so much with each reading."""
    clock = itertools.count(0.0, seconds)
    return LocalHost(clock=lambda: next(clock), root=root)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), ValueError("x"), IndexError("x"), TypeError("x"), KeyError("x")]
)
@pytest.mark.parametrize(
    ("module", "function", "fields", "word"),
    [
        ("psutil", "cpu_percent", {"cpu_percent", "cpu_core_percents"}, "processors"),
        ("psutil", "virtual_memory", {"memory_used_bytes"}, "memory"),
        ("psutil", "boot_time", {"uptime_seconds"}, "uptime"),
        (
            "psutil",
            "net_io_counters",
            {"network_received_bytes_per_second", "network_sent_bytes_per_second"},
            "network",
        ),
        ("psutil", "sensors_temperatures", {"temperature_celsius"}, "temperature"),
        ("os", "getloadavg", {"load_1m"}, "load"),
        ("shutil", "disk_usage", {"disk_used_bytes"}, "disk /"),
        ("socket", "gethostname", set(), "hostname"),
        ("os", "cpu_count", set(), "number of processors"),
    ],
)
def test_a_reading_that_raises_is_not_reported_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    module: str,
    function: str,
    fields: set[str],
    word: str,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    well = {field.name for field, _ in read_twice(well_for(tmp_path)).ListFields()}
    monkeypatch.setattr(f"{module}.{function}", fail)
    host = well_for(tmp_path)
    broken = {field.name for field, _ in read_twice(host).ListFields()}
    assert broken == well - fields
    notices = [notice for notice in host.notices() if notice.startswith(f"{word} can't be read (")]
    assert len(notices) == 1
    assert host.host_info().operating_system
    monkeypatch.undo()
    assert {field.name for field, _ in read_twice(well_for(tmp_path)).ListFields()} == well


def answer(**fields: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**fields)


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "fields", "values"),
    [
        ("psutil.virtual_memory", {"memory_used_bytes"}, [
            None, (), answer(total=None, available=None), answer(total=2**34, available=None), answer(total=2**34, available=NAN),
            answer(total=NAN, available=NAN), answer(total=0, available=0), answer(total=2**34, available=-5),
            answer(total=-1, available=-5), answer(total=2**64 - 1, available=2**64 - 1), answer(total="a", available="b"),
        ]),
        ("psutil.net_io_counters", {"network_received_bytes_per_second", "network_sent_bytes_per_second"}, [
            None, {}, {"eth0": None}, {"eth0": answer(bytes_recv=None, bytes_sent=None)},
            {"eth0": answer(bytes_recv=NAN, bytes_sent=NAN)}, {"eth0": answer(bytes_recv="a", bytes_sent="b")},
        ]),
        ("psutil.cpu_percent", {"cpu_percent", "cpu_core_percents"}, [None, [], [None], [NAN, 5.0], ["a"], 5.0]),
        ("psutil.boot_time", {"uptime_seconds"}, [None, NAN, 0, -1e9, 1e12, float("inf"), "a"]),
        ("psutil.sensors_temperatures", {"temperature_celsius"}, [
            None, {"coretemp": None}, {"coretemp": [None]}, *({"coretemp": [answer(current=value)]} for value in (None, NAN, "a")),
        ]),
        ("os.getloadavg", {"load_1m"}, [None, (), *((value, 0, 0) for value in (None, NAN, -1, float("inf"), "a"))]),
        ("shutil.disk_usage", {"disk_used_bytes"}, [
            None, (), (None, None, None), (NAN, NAN, NAN), (0, 0, 0), (-5, -3, 0), (100, 500, 0), (100, -1, 0), ("a", "b", "c"),
        ]),
        ("socket.gethostname", set(), [None, 5, b"x", "", "\udcff"]),
        ("os.cpu_count", set(), [None, 0, -1, NAN, "a"]),
    ],
)  # fmt: skip
def test_a_reading_that_makes_no_sense_is_not_reported_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, name: str, fields: set[str], values: list[Any]
) -> None:
    well = {field.name for field, _ in read_twice(well_for(tmp_path)).ListFields()}
    for value in values:
        monkeypatch.setattr(name, lambda *_, value=value, **__: value)
        host = well_for(tmp_path)
        assert {field.name for field, _ in read_twice(host).ListFields()} == well - fields, value
        assert host.host_info().operating_system
        monkeypatch.undo()


def test_a_sensor_that_makes_no_sense_costs_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    readings = [answer(current=value) for value in (None, "a", NAN, 51.0, -273.0)]
    monkeypatch.setattr("psutil.sensors_temperatures", lambda: {"coretemp": readings}, raising=False)
    assert read_twice(well_for(tmp_path)).temperature_celsius == 51


def test_processors_that_come_or_go_are_not_compared_with_one_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    percents = iter([[0.0, 0.0], [10.0, 30.0], [100.0], [50.0]])
    monkeypatch.setattr("psutil.cpu_percent", lambda percpu: next(percents))
    host = well_for(tmp_path)
    assert [reported(host.host_sample(), "cpu_percent") for _ in range(4)] == [None, 20, None, 50]


def test_processors_whose_time_stands_still_are_not_idle(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    seconds = iter([(5.0, 9.0), (5.0, 10.0), (5.0, 10.0), (5.0, 11.0)])
    monkeypatch.setattr("psutil.cpu_percent", lambda percpu: [0.0, 0.0])  # which is what psutil makes of both
    monkeypatch.setattr("edge.hardware.host.MIN_MEAN_SECONDS", 0.0)
    monkeypatch.setattr("psutil.cpu_times", lambda: next(seconds))
    host = well_for(tmp_path)
    assert [reported(host.host_sample(), "cpu_percent") for _ in range(4)] == [None, 0, None, None]
    assert host.notices() == []  # it goes on
    monkeypatch.setattr("psutil.cpu_times", lambda: (0.0, 0.0))  # gVisor
    host = well_for(tmp_path)
    assert not read_twice(host).HasField("cpu_percent")
    assert host.notices() == ["processors can't be read (ValueError: their time stands still)"]


def test_no_processors_are_a_dash(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda percpu: [])
    host = well_for(tmp_path)
    assert not read_twice(host).HasField("cpu_percent")
    assert host.notices() == ["processors can't be read (ValueError: there are none)"]


def sensors(**chips: float) -> dict[str, list[types.SimpleNamespace]]:
    return {name: [types.SimpleNamespace(current=celsius)] for name, celsius in chips.items()}


@pytest.mark.parametrize(
    ("found", "celsius"),
    [
        (sensors(coretemp=0.0), 0),  # outdoors
        (sensors(coretemp=-12.0), -12),
        (sensors(coretemp=0.0, nvme=41.0), 0),
        (sensors(acpitz=-3.0, nvme=0.4), 0),
        (sensors(acpitz=-273.1, cpu_thermal=-256.0), None),  # a zone without power
        ({}, None),
    ],
)
def test_zero_degrees_are_a_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, found: object, celsius: int | None
) -> None:
    monkeypatch.setattr("psutil.sensors_temperatures", lambda: found)
    sample = LocalHost(root=tmp_path).host_sample()
    assert reported(sample, "temperature_celsius") == celsius


def test_a_zone_that_answers_eagain_costs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    def fail() -> None:
        raise TypeError("float() argument must be a string or a real number, not 'NoneType'")

    for number, (name, text) in enumerate({"cpu-thermal": "47400", "gpu-thermal": "51000", "cv0-thermal": ""}.items()):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{name}\n")
        (zone / "temp").write_text(f"{text}\n")
    (tmp_path / "sys/class/thermal/thermal_zone7").mkdir()
    monkeypatch.setattr("psutil.sensors_temperatures", fail)
    host = LocalHost(root=tmp_path)
    assert (host.host_sample().temperature_celsius, host.notices()) == (47, [])


def test_what_seldom_changes_is_read_with_the_slow_readings(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    host = well_for(tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "old")
    monkeypatch.setattr("shutil.disk_usage", lambda _: (100, 50, 50))
    host.host_sample()
    assert (host.hostname, host.host_info().disk_total_bytes) == ("old", 100)
    monkeypatch.setattr("socket.gethostname", lambda: "b\udce4r")
    monkeypatch.setattr("shutil.disk_usage", lambda _: (200, 150, 50))
    monkeypatch.setattr("os.cpu_count", lambda: 96)
    for _ in range(4):
        assert host.host_sample().disk_used_bytes == 50
        assert (host.hostname, host.host_info().disk_total_bytes) == ("old", 100)
    assert host.host_sample().disk_used_bytes == 150  # of the disk whose size the same reading told
    info = host.host_info()
    assert (host.hostname, info.disk_total_bytes, info.cpu_count) == ("b�r", 200, 96)


def test_a_disk_that_hangs_costs_its_patience_once(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    release = threading.Event()
    monkeypatch.setattr("shutil.disk_usage", lambda _: release.wait(60) and (100, 50, 50))
    host = well_for(tmp_path, seconds=5.0)
    begun = time.monotonic()
    for _ in range(40):
        assert not host.host_sample().HasField("disk_used_bytes")
    assert time.monotonic() - begun < 10  # forty times its patience would be 20
    assert host.notices() == ["disk can't be read (no answer from the disks for 0s)"]
    release.set()
    assert eventually(lambda: host.host_sample().disk_used_bytes) == 50
    assert host.notices() == []


def test_a_sensor_that_hangs_costs_its_temperature(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    release = threading.Event()
    monkeypatch.setattr("psutil.sensors_temperatures", lambda: release.wait(60) and sensors(coretemp=41.0))
    host = well_for(tmp_path, seconds=5.0)
    sample = read_twice(host)
    assert not sample.HasField("temperature_celsius")
    assert sample.HasField("memory_used_bytes")
    assert host.notices() == ["temperature can't be read (no answer from the sensors for 0s)"]
    release.set()
    assert eventually(lambda: host.host_sample().temperature_celsius) == 41


def test_a_directory_of_users_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    release, asked = threading.Event(), list[int]()

    def look_up(uid: int) -> types.SimpleNamespace:
        asked.append(uid)
        release.wait(60)
        if uid == 7:
            raise KeyError(uid)
        return types.SimpleNamespace(pw_name=f"user-{uid}\udcff")

    monkeypatch.setattr("pwd.getpwuid", look_up)
    users = Users()
    begun = time.monotonic()
    assert [users.name(uid) for uid in (1, 2, 1, 7) * 100] == [""] * 400
    assert time.monotonic() - begun < 10  # four hundred times its patience would be 20
    assert asked == [1]
    release.set()
    assert eventually(lambda: users.name(1)) == "user-1\udcff"  # who puts it into a message makes it encodable
    assert [eventually(lambda uid=uid: users.name(uid)) for uid in (2, 7)] == ["user-2\udcff", "7"]  # type: ignore[misc]
    assert users.name(1) == "user-1\udcff"
    assert asked == [1, 2, 7]  # each once


@pytest.mark.parametrize(
    ("release", "name"),
    [
        (b'NAME=Debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n', "Debian GNU/Linux 12 (bookworm)"),
        (b"PRETTY_NAME=Alpine\r\n", "Alpine"),
        (b"PRETTY_NAME='it\\'s \\$5'\n", "it's $5"),
        (b'PRETTY_NAME="B\xe4r"\n', "B�r"),
        (b'PRETTY_NAME="' + b"x" * 5000 + b'"\n', "x" * 128),  # more than a server takes
    ],
)
def test_the_operating_system_is_what_os_release_says(tmp_path: pathlib.Path, release: bytes, name: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_bytes(release)
    assert LocalHost(root=tmp_path).host_info().operating_system == name


def counter(received: int, sent: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(bytes_recv=received, bytes_sent=sent)


ETH0, ETH1 = ("eth0", 2), ("eth1", 3)


@pytest.mark.parametrize(
    ("before", "now", "rates"),
    [
        ({ETH0: counter(1000, 500)}, {ETH0: counter(3000, 500)}, (1000, 0)),
        ({ETH0: counter(10**12, 10**12)}, {ETH0: counter(10**9, 10**9)}, None),  # it started again
        ({ETH0: counter(10**12, 5)}, {ETH0: counter(10**12 + 2, 4)}, None),
        ({ETH0: counter(10, 10)}, {ETH0: counter(30, 30), ETH1: counter(10**9, 10**9)}, (10, 10)),  # one came
        ({ETH0: counter(10, 10), ETH1: counter(10**9, 10**9)}, {ETH0: counter(30, 30)}, (10, 10)),  # one went
        ({ETH0: counter(10, 10)}, {("eth0", 9): counter(10**9, 10**9)}, None),  # another by the same name
        ({ETH0: counter(10, 10)}, {}, None),
        ({}, {ETH0: counter(10, 10)}, None),
    ],
)
def test_a_rate_is_the_difference_of_a_counter_with_itself(before: Any, now: Any, rates: tuple[float, float] | None) -> None:
    assert rates_between(before, now, list(now), 2.0) == rates
    assert rates_between(before, now, list(now), 0.0) is None


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
