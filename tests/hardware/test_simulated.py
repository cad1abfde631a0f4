"""The simulated boxes: their physics, and that one seed is one course of events."""

from __future__ import annotations

import itertools
import math
import queue
import threading

import pytest

import node_pb2 as pb
from edge.hardware.machine import Machine, simulated
from edge.hardware.simulated import CATALOGUE, SimulatedBox, SimulatedDevice
from edge.protocol import ThrottleReason


def test_temperature_follows_power_with_the_time_constant_of_the_heat_sink() -> None:
    for model in CATALOGUE:
        device = SimulatedDevice(model._replace(slowdown_celsius=500), ambient_celsius=25)
        device.fan = 1.0
        device.watts = model.limit_watts
        start, end = device.celsius, device.equilibrium()
        assert end == pytest.approx(model.full_load_celsius)
        hot = SimulatedDevice(model._replace(slowdown_celsius=500, time_constant_seconds=model.time_constant_seconds), 25)
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
    model = CATALOGUE[1]
    one, many = (SimulatedDevice(model, 25) for _ in range(2))
    for device in (one, many):
        device.watts, device.fan = model.idle_watts, 0.3
        device.celsius = 60
    one.step(10, load=0, memory=0)
    for _ in range(100):
        many.step(0.1, load=0, memory=0)
    assert one.celsius == pytest.approx(many.celsius, abs=1.5)  # the fan moves meanwhile


def test_a_device_in_a_hot_place_throttles_loses_power_and_recovers() -> None:
    model = CATALOGUE[2]
    device = SimulatedDevice(model, ambient_celsius=55)
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
    device = SimulatedDevice(CATALOGUE[2], ambient_celsius=25)
    cold = device.fan
    for _ in range(120):
        device.step(1, load=1.0, memory=0.5)
    assert device.fan > cold + 0.3


@pytest.mark.parametrize("seed", range(27))
def test_simulated_readings_never_leave_their_bounds(seed: int) -> None:
    seconds = 0.0
    box = SimulatedBox(seed, clock=lambda: seconds)
    hardware = Machine(box, [box])
    infos = hardware.info()[1]
    loads = set()
    for _ in range(360):
        seconds += 20
        host, devices = hardware.sample()
        assert 0 <= host.cpu_percent <= 100
        assert 0 <= host.memory_used_bytes <= box.model.host_memory_gib * 2**30
        for info, device in zip(infos, devices, strict=True):
            loads.add(device.utilization_percent)
            assert 0 <= device.utilization_percent <= 100
            assert 0 < device.memory_used_bytes <= info.memory_total_bytes
            assert 10 <= device.temperature_celsius <= info.slowdown_temperature_celsius + 5
            assert box.model.idle_watts * 999 <= device.power_milliwatts <= info.power_limit_milliwatts
    assert not infos or len(loads) > 20  # jobs come and go


def test_the_same_seed_makes_the_same_course_however_often_one_looks() -> None:
    def course(every: float) -> bytes:
        seconds = 0.0
        hardware = simulated(4, clock=lambda: seconds)
        while seconds < 120:
            seconds += every
            sample = hardware.sample()[1]
        return b"".join(device.SerializeToString(deterministic=True) for device in sample)

    assert course(0.5) == course(1.0) == course(60.0)
    first, second = (simulated(seed, clock=lambda: 0.0).sample()[1][0] for seed in (0, 9))
    assert first != second


def test_the_catalogue_is_a_mixed_fleet() -> None:
    names = {model.device for model in CATALOGUE}
    assert len(names) >= 6
    assert "NVIDIA H200" in names
    assert {model.device_count for model in CATALOGUE} >= {0, 1, 2, 4, 8}


def test_processes_are_those_of_the_jobs_that_run_and_have_their_names() -> None:
    seconds = 0.0
    machine = simulated(1, clock=lambda: seconds)
    seen = 0
    for _ in range(50):
        seconds += 20
        devices = machine.sample()[1]
        processes = machine.processes()
        seen += len(processes)
        for process in processes:
            assert process.name
            assert process.user
            assert 0 < process.memory_used_bytes < 143771 * 2**20
        assert len(processes) == len({process.device_index for process in processes})  # one job a device
        assert {process.device_index for process in processes} <= set(range(len(devices)))
    assert seen > 50


def faulty(seed: int, *faults: str) -> tuple[Machine, SimulatedBox]:
    """A box with faults, each reading of which is a second later."""
    clock = itertools.count()
    box = SimulatedBox(seed, lambda: next(clock), frozenset(faults))
    return Machine(box, [box]), box


@pytest.mark.parametrize("seed", (0, 1, 5))
def test_a_process_never_has_more_than_its_device(seed: int) -> None:
    machine, _ = faulty(seed)
    for _ in range(300):
        devices = machine.sample()[1]
        for process in machine.processes():
            assert process.memory_used_bytes <= devices[process.device_index].memory_used_bytes


@pytest.mark.parametrize("seed", range(9))
def test_a_hot_box_has_a_device_at_its_slowdown_limit_throttled(seed: int) -> None:
    machine, box = faulty(seed, "hot")
    for _ in range(20):
        host, devices = machine.sample()
        if devices:
            limit = machine.info()[1][0].slowdown_temperature_celsius
            assert limit <= devices[0].temperature_celsius <= limit + 5
            assert devices[0].throttle_reasons == ThrottleReason.THERMAL_SOFTWARE
            assert devices[0].utilization_percent > 80
            assert machine.processes()[0].device_index == 0
        else:
            assert host.temperature_celsius >= box.model.slowdown_celsius


def test_a_box_with_a_failed_gpu_has_an_error_in_its_place() -> None:
    machine, _ = faulty(1, "failed-gpu")
    for _ in range(20):
        devices = machine.sample()[1]
        assert [bool(device.error) for device in devices] == [False] * 7 + [True]
        assert devices[7] == pb.DeviceSample(error="GPU is lost (simulated)")
        assert 7 not in {process.device_index for process in machine.processes()}
    assert machine.info()[1][7].name == "NVIDIA H200"
    assert faulty(8, "failed-gpu")[0].sample()[1] == []  # which has none


def test_hung_sensors_answer_for_a_while_and_then_no_more() -> None:
    machine, _ = faulty(1, "hung-sensors")
    readings: queue.SimpleQueue[int] = queue.SimpleQueue()

    def read() -> None:
        for number in itertools.count():
            machine.sample()
            readings.put(number)

    threading.Thread(target=read, daemon=True).start()
    assert [readings.get(timeout=10) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(queue.Empty):
        readings.get(timeout=0.2)
