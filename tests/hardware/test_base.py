"""Sources that may hang, and numbers that may be none."""

from __future__ import annotations

import functools
import math
import threading
import time

import pytest

import node_pb2 as pb
from edge.hardware.base import BoundedAccelerators, BoundedCalls, within
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

    def processes(self) -> list[pb.Process]:
        self.goes.wait(60)
        return [pb.Process(pid=7)]


def test_a_bounded_source_is_the_source_while_it_answers() -> None:
    source = Hanging()
    bounded = BoundedAccelerators(source, 5)
    assert bounded.backend == source.backend
    assert bounded.notices() == source.notices()
    assert bounded.device_infos() == source.device_infos()
    assert bounded.device_samples() == source.device_samples()
    assert bounded.processes() == source.processes()


def test_a_source_that_hangs_costs_its_timeout_and_says_so_for_each_device() -> None:
    source = Hanging()
    bounded = BoundedAccelerators(source, 0.1)
    source.goes.clear()
    begun = time.monotonic()
    samples, processes = bounded.device_samples(), bounded.processes()
    assert time.monotonic() - begun < 5
    assert [sample.error for sample in samples] == ["no answer from the driver for 0s"] * 2
    assert processes == []
    assert [info.name for info in bounded.device_infos()] == ["one", "two"]
    source.goes.set()
    assert eventually(lambda: [sample.utilization_percent for sample in bounded.device_samples()] == [1, 2])
    assert eventually(bounded.processes) == [pb.Process(pid=7)]


def test_a_bug_in_a_source_is_not_taken_for_a_driver_that_hangs() -> None:
    class Broken(Hanging):
        def device_samples(self) -> list[pb.DeviceSample]:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        BoundedAccelerators(Broken(), 5).device_samples()
