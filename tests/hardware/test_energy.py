"""What devices have used: by their counters, and by their power over time."""

from __future__ import annotations

import pathlib
import threading
from typing import Any

import pynvml
import pytest

import node
import node_pb2 as pb
from edge.hardware.energy import Energy
from edge.hardware.machine import Machine, open_machine, simulated
from tests.fixtures.nvml import Code, Driver, h200
from tests.fixtures.processes import eventually
from tests.hardware.test_machine import FakeHost

NONE = pb.DeviceSample()


def watts(power: float | None) -> pb.DeviceSample:
    return pb.DeviceSample(power_milliwatts=None if power is None else round(1000 * power))


def test_power_is_added_up_over_time() -> None:
    energy = Energy()
    assert energy.add(10, [watts(100), watts(0)], [None, None]) == 0
    assert energy.add(11, [watts(100), watts(0)], [None, None]) == 100
    assert energy.add(13, [watts(200), watts(50)], [None, None]) == 100 + 300 + 50  # the mean of both ends
    assert energy.add(13, [watts(900), watts(50)], [None, None]) == 450  # no time has passed


def test_a_counter_says_more_than_the_power_of_two_moments() -> None:
    energy = Energy()
    assert energy.add(0, [watts(100)], [5_000_000]) == 0  # joules since the driver was loaded are not the agent's
    assert energy.add(1, [watts(100)], [5_170_000]) == 170
    assert energy.add(2, [watts(100)], [None]) == 270  # it was not read
    assert energy.add(3, [NONE], [5_600_000]) == 600  # and says at last what it has counted meanwhile


def test_a_counter_that_jumps_or_starts_anew_is_not_believed() -> None:
    energy = Energy()
    energy.add(0, [watts(100), NONE], [5_000_000, 5_000_000])
    assert energy.add(1, [watts(100), NONE], [3, 3]) == 100  # a driver that was loaded anew: by power, where there is any
    assert energy.add(2, [watts(100), NONE], [2**62, 2**62]) == 200
    assert energy.add(3, [watts(100), NONE], [2**62 + 50_000, 2**62 + 50_000]) == 300


def test_what_nobody_reports_is_not_0() -> None:
    energy = Energy()
    assert [energy.add(second, [NONE], [None]) for second in range(3)] == [None] * 3
    assert Energy().add(0, [], []) is None
    assert energy.add(3, [watts(0)], [None]) == 0
    assert energy.add(4, [NONE], [None]) == 0  # it was known once
    assert energy.add(5, [watts(100)], [None]) == 0  # and of the time without a reading nothing is
    assert energy.add(6, [watts(100)], [None]) == 100


def test_other_devices_begin_anew_and_what_was_used_stays() -> None:
    energy = Energy()
    energy.add(0, [watts(100)], [1000])
    assert energy.add(1, [watts(100)], [101_000]) == 100
    assert energy.add(2, [watts(100)] * 2, [201_000, 7]) == 100
    assert energy.add(3, [watts(100)] * 2, [301_000, 50_007]) == 250


@pytest.mark.parametrize(
    ("counter", "joules"),
    [
        ({"nvmlDeviceGetTotalEnergyConsumption": 7_000_000}, 2_000),
        ({"nvmlDeviceGetTotalEnergyConsumption": Code(pynvml.NVML_ERROR_NOT_SUPPORTED)}, 824),
        ({"nvmlDeviceGetTotalEnergyConsumption": Code(pynvml.NVML_ERROR_UNKNOWN)}, 824),
        ({"nvmlDeviceGetTotalEnergyConsumption": 2**64 - 1}, 824),
    ],
)
def test_nvml_has_a_counter_or_else_its_power_is_added_up(
    counter: dict[str, Any], joules: int, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    gpu = h200(nvmlDeviceGetTotalEnergyConsumption=5_000_000)
    monkeypatch.setattr(pynvml, "nvmlLib", Driver(gpu, h200(nvmlDeviceGetTotalEnergyConsumption=3)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr("edge.hardware.nvml.KERNELS_LIST", tmp_path)
    machine, energy = open_machine("nvml", 0), Energy()
    assert energy.add(0, machine.sample()[1], machine.energies()) == 0
    gpu.update(counter)
    assert energy.add(2, machine.sample()[1], machine.energies()) == joules  # the other one has stood still


def test_makers_without_counters_stand_between_those_that_have_some() -> None:
    class Maker:
        backend = pb.BACKEND_NVML

        def __init__(self, *counters: int | None) -> None:
            self.counters = list(counters)

        def notices(self) -> list[str]:
            return []

        def device_infos(self) -> list[pb.DeviceInfo]:
            return [pb.DeviceInfo(), pb.DeviceInfo()]

        def device_samples(self) -> list[pb.DeviceSample]:
            return [pb.DeviceSample(), pb.DeviceSample()]

        def energies(self) -> list[int | None]:
            return self.counters

        def processes(self) -> list[pb.Process]:
            return []

    machine = Machine(FakeHost(), [Maker(), Maker(7, None), Maker(8)])
    machine.sample()
    assert machine.energies() == [None, None, 7, None, 8, None]


def test_a_heartbeat_says_what_was_used_since_the_start() -> None:
    machine = simulated(1)
    state = node.NodeState("Node-1", "", node.make_info(machine, ""), 0.05)
    telemetry = threading.Thread(target=node.keep_sampling, args=(machine, state, 0.05))
    telemetry.start()
    eventually(lambda: state.view().summary.energy_joules > 20)  # eight H200 use 600 W when they do nothing
    state.close()
    telemetry.join(5)
    view = state.view()
    assert view.summary.energy_joules < 8 * 700 * (view.sample.taken_milliseconds / 1000 + 0.1)
