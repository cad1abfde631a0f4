"""Sources that may hang, and numbers that may be none."""

from __future__ import annotations

import functools
import itertools
import math
import os
import pathlib
import threading
import time

import pytest

import node_pb2 as pb
from edge.files import read_text, reason
from edge.hardware.base import BoundedAccelerators, BoundedCalls, Readings, within
from tests.fixtures.processes import eventually


def test_a_reading_outside_its_range_is_none() -> None:
    assert [within(value, 0, 100) for value in (0, 49.6, 100)] == [0, 50, 100]
    assert [within(value, 0, 100) for value in (None, -1, 101, 2**63 - 14, math.nan, math.inf)] == [None] * 6


def test_a_call_that_comes_back_in_time_is_as_without() -> None:
    calls = BoundedCalls(5)
    assert [calls.call(lambda: 1), calls.call(lambda: 2)] == [1, 2]
    with pytest.raises(ZeroDivisionError):
        calls.call(lambda: 1 // 0)
    assert calls.call(lambda: 3) == 3


def test_one_call_hangs_at_a_time_and_its_answer_is_taken_when_it_comes() -> None:
    release, started = threading.Event(), list[str]()

    def hang(name: str) -> str:
        started.append(name)
        release.wait(60)
        return name

    calls = BoundedCalls(0.05)
    for name in ("first", "second", "third"):
        with pytest.raises(TimeoutError, match=r"no answer from the driver for \d+s"):
            calls.call(functools.partial(hang, name))
    assert started == ["first"]  # no thread more while one hangs
    release.set()
    assert eventually(lambda: answer(calls)) == "first"
    assert calls.call(lambda: "new") == "new"


def answer(calls: BoundedCalls) -> object:
    """What the call that was begun has returned, if it has."""
    try:
        return calls.call(lambda: "another")
    except TimeoutError:
        return None


def test_a_thread_that_can_not_be_started_costs_that_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = BoundedCalls(5)
    with monkeypatch.context() as full, pytest.raises(RuntimeError, match="can't start new thread"):
        full.setattr("threading.Thread.start", start_no_thread)
        calls.call(lambda: 1)
    assert calls.call(lambda: 2) == 2


def start_no_thread(*_arguments: object, **_options: object) -> None:
    raise RuntimeError("can't start new thread")


class Hanging:
    """Two devices of a driver that can be stopped."""

    backend = pb.BACKEND_NVML

    def __init__(self) -> None:
        self.goes = threading.Event()
        self.goes.set()

    def notices(self) -> list[str]:
        return ["an old driver"]

    def device_infos(self) -> list[pb.DeviceInfo]:
        return [pb.DeviceInfo(name="one"), pb.DeviceInfo(name="two")]

    def device_samples(self) -> list[pb.DeviceSample]:
        self.goes.wait(60)
        return [pb.DeviceSample(utilization_percent=1), pb.DeviceSample(utilization_percent=2)]

    def energies(self) -> list[int | None]:
        return [70, None]

    def processes(self) -> list[pb.Process]:
        self.goes.wait(60)
        return [pb.Process(pid=7)]


def test_a_thread_that_could_not_be_started_costs_that_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = BoundedCalls(5.0)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:  # a container's pids limit, for a moment
        limited.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="start new thread"):
                calls.call(lambda: 7)
    assert calls.call(lambda: 7) == 7


def test_a_bounded_source_is_the_source_while_it_answers() -> None:
    source = Hanging()
    bounded = BoundedAccelerators(source, 5)
    assert bounded.backend == source.backend
    assert bounded.notices() == source.notices()
    assert bounded.device_infos() == source.device_infos()
    assert bounded.device_samples() == source.device_samples()
    assert bounded.energies() == source.energies()
    assert bounded.processes() == source.processes()


def test_a_source_that_hangs_costs_its_timeout_and_says_so_for_each_device() -> None:
    source = Hanging()
    bounded = BoundedAccelerators(source, 0.1)
    source.goes.clear()
    begun = time.monotonic()
    samples, processes = bounded.device_samples(), bounded.processes()
    assert time.monotonic() - begun < 5
    assert [sample.error for sample in samples] == ["no answer from the driver for 0s"] * 2
    assert bounded.energies() == processes == []
    assert [info.name for info in bounded.device_infos()] == ["one", "two"]
    source.goes.set()
    assert eventually(lambda: [sample.utilization_percent for sample in bounded.device_samples()] == [1, 2])
    assert eventually(bounded.processes) == [pb.Process(pid=7)]


def test_what_comes_after_its_time_is_not_taken_for_new() -> None:
    class Counting(Hanging):
        asked = 0

        def device_samples(self) -> list[pb.DeviceSample]:
            self.asked += 1
            number = self.asked
            self.goes.wait(60)
            return [pb.DeviceSample(utilization_percent=number)]

        def device_infos(self) -> list[pb.DeviceInfo]:
            return [pb.DeviceInfo(name="one")]

    source = Counting()
    bounded = BoundedAccelerators(source, 0.1)
    source.goes.clear()
    assert bounded.device_samples()[0].error
    assert source.asked == 1
    source.goes.set()
    assert eventually(lambda: bounded.device_samples()[0].utilization_percent) >= 2


def test_a_source_that_fails_in_any_way_is_the_error_of_its_devices() -> None:
    class Broken(Hanging):
        def device_samples(self) -> list[pb.DeviceSample]:
            raise ZeroDivisionError("a bug")

        def processes(self) -> list[pb.Process]:
            raise OSError(5, "Input/output error")

    bounded = BoundedAccelerators(Broken(), 5)
    assert [sample.error for sample in bounded.device_samples()] == ["ZeroDivisionError: a bug"] * 2
    assert bounded.processes() == []
    assert bounded.notices() == ["an old driver", "processes can't be read (Input/output error)"]


def test_a_hung_call_is_waited_for_once() -> None:
    calls, release = BoundedCalls(0.2, "the disks"), threading.Event()
    with pytest.raises(TimeoutError, match="no answer from the disks for 0s"):
        calls.call(lambda: release.wait(60))
    begun = time.monotonic()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            calls.call(lambda: release.wait(60))
    assert time.monotonic() - begun < 10  # a hundred times its patience would be 20
    release.set()


def test_a_reading_that_fails_is_told_once_while_it_lasts_and_costs_no_other() -> None:
    readings, attempts = Readings("GPU 1: "), itertools.count(1)

    def fan() -> int:
        if (attempt := next(attempts)) < 4:
            raise OSError(5, f"Input/output error {attempt}")
        return 41

    for _ in range(3):
        assert readings.take("fan", fan) is None
        assert readings.take("clock", int, "1980") == 1980
        assert readings.notices() == ["GPU 1: fan can't be read (Input/output error 1)"]
    assert readings.take("fan", fan) == 41
    assert readings.notices() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(13, "Permission denied"), "Permission denied"),
        (TimeoutError("no answer for 3s"), "no answer for 3s"),
        (RuntimeError("line 'btime' not found"), "line 'btime' not found"),
        (KeyError(b"MemTotal:"), "KeyError: b'MemTotal:'"),
        (TypeError("float() argument must be\na string"), "TypeError: float() argument must be�a string"),
        (ValueError("cut \udce8"), "ValueError: cut �"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_a_reason_is_a_few_words_on_a_line(error: Exception, words: str) -> None:
    assert reason(error) == words


def test_files_of_the_system_are_read_whole_and_in_any_encoding(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"Jetson\0" + b"\xe8\xae\n")
    assert read_text(path) == "Jetson\0�"
    path.write_bytes(b"x" * 3 * 2**20)
    assert len(read_text(path)) >= 2**20
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "pipe") == ""  # nobody writes into it, and nobody waits
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")
