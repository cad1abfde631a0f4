"""A box as it is composed: its host, and accelerators of several makers."""

from __future__ import annotations

import threading

import pytest

import node_pb2 as pb
from edge.hardware.base import Accelerators, BoundedAccelerators
from edge.hardware.machine import KINDS, MAKERS, Machine, Maker, open_machine, simulated
from edge.hardware.simulated import SimulatedBox
from edge.program import Failure
from edge.protocol import MAX_PROCESSES
from tests.fixtures.processes import eventually


class FakeHost:
    """A host of 64 GiB, which knows the owner of each process."""

    backend = pb.BACKEND_HOST
    hostname = "edge-07"

    def __init__(self, *notices: str) -> None:
        self._notices = list(notices)

    def notices(self) -> list[str]:
        return self._notices

    def host_info(self) -> pb.HostInfo:
        return pb.HostInfo(model="PowerEdge", memory_total_bytes=64 * 2**30)

    def host_sample(self) -> pb.HostSample:
        return pb.HostSample(cpu_percent=7, memory_used_bytes=9 * 2**30)

    def owner(self, pid: int) -> tuple[str, str]:
        return f"user-{pid}", f"name-{pid}"


class FakeMaker:
    """A maker's devices, a message of each kind for every one; all of them have one process."""

    def __init__(self, backend: pb.Backend, *devices: str, notices: tuple[str, ...] = (), unified: bool = False) -> None:
        self.backend, self.devices, self.unified = backend, devices, unified
        self.goes = threading.Event()  # cleared: the driver hangs
        self.goes.set()
        self._notices = list(notices)

    def notices(self) -> list[str]:
        return self._notices

    def device_infos(self) -> list[pb.DeviceInfo]:
        return [pb.DeviceInfo(index=index, name=name, unified_memory=self.unified) for index, name in enumerate(self.devices)]

    def device_samples(self) -> list[pb.DeviceSample]:
        self.goes.wait(60)
        return [pb.DeviceSample(utilization_percent=10 + index) for index in range(len(self.devices))]

    def energies(self) -> list[int | None]:
        return []

    def processes(self) -> list[pb.Process]:
        self.goes.wait(60)
        return [pb.Process(device_index=index, pid=100 + index) for index in range(len(self.devices))]


def test_devices_of_all_makers_are_one_list() -> None:
    makers = FakeMaker(pb.BACKEND_NVML, "H200", "H200"), FakeMaker(pb.BACKEND_SIMULATED, "TPU", "TPU", "TPU")
    machine = Machine(FakeHost(), makers)
    host, devices = machine.info()
    assert (machine.hostname, host.model) == ("edge-07", "PowerEdge")
    assert machine.backend == pb.BACKEND_NVML  # the first one's
    assert [(device.index, device.name, device.backend) for device in devices] == [
        (0, "H200", pb.BACKEND_NVML),
        (1, "H200", pb.BACKEND_NVML),
        (2, "TPU", pb.BACKEND_SIMULATED),
        (3, "TPU", pb.BACKEND_SIMULATED),
        (4, "TPU", pb.BACKEND_SIMULATED),
    ]
    sample, readings = machine.sample()
    assert sample.cpu_percent == 7
    assert [reading.utilization_percent for reading in readings] == [10, 11, 10, 11, 12]


def test_a_sources_own_messages_are_left_as_they_are() -> None:
    maker = BoundedAccelerators(FakeMaker(pb.BACKEND_SIMULATED, "A", unified=True), 5)
    machine = Machine(FakeHost(), [FakeMaker(pb.BACKEND_NVML, "B"), maker])
    assert machine.info() == machine.info()
    assert maker.device_infos() == [pb.DeviceInfo(index=0, name="A", unified_memory=True)]


def test_a_driver_that_hangs_costs_its_own_devices_and_no_others() -> None:
    stuck, well = FakeMaker(pb.BACKEND_NVML, "H200", "H200"), FakeMaker(pb.BACKEND_SIMULATED, "TPU")
    machine = Machine(FakeHost(), [BoundedAccelerators(stuck, 0.1), BoundedAccelerators(well, 5)])
    stuck.goes.clear()
    host, devices = machine.sample()
    assert (host.cpu_percent, host.memory_used_bytes) == (7, 9 * 2**30)
    assert [device.error for device in devices] == ["no answer from the driver for 0s"] * 2 + [""]
    assert devices[2].utilization_percent == 10
    assert [(process.device_index, process.pid) for process in machine.processes()] == [(2, 100)]
    assert len(machine.info()[1]) == 3
    stuck.goes.set()
    assert eventually(lambda: [device.utilization_percent for device in machine.sample()[1]] == [10, 11, 10])
    assert eventually(lambda: len(machine.processes()) == 3)


def test_processes_have_their_devices_place_and_their_owner() -> None:
    class Named(FakeMaker):
        def processes(self) -> list[pb.Process]:
            return [pb.Process(device_index=1, pid=7, user="ada", name="vllm")]

    machine = Machine(FakeHost(), [FakeMaker(pb.BACKEND_NVML, "A", "B"), Named(pb.BACKEND_SIMULATED, "C", "D")])
    assert machine.processes() == [
        pb.Process(device_index=0, pid=100, user="user-100", name="name-100"),
        pb.Process(device_index=1, pid=101, user="user-101", name="name-101"),
        pb.Process(device_index=3, pid=7, user="ada", name="vllm"),  # who names them is not asked again
    ]


def test_processes_are_bounded() -> None:
    machine = Machine(FakeHost(), [FakeMaker(pb.BACKEND_NVML, *"A" * (MAX_PROCESSES + 1))])
    assert len(machine.processes()) == MAX_PROCESSES


def test_notices_are_a_list_and_each_is_said_once() -> None:
    first = FakeMaker(pb.BACKEND_NVML, "A", notices=("old driver", "no fan"))
    second = FakeMaker(pb.BACKEND_SIMULATED, "B", notices=("not measured", "old driver"))
    machine = Machine(FakeHost("no psutil"), [first, second], notices=["no TPU"])
    assert machine.notices() == ["no TPU", "no psutil", "old driver", "no fan", "not measured"]
    assert Machine(FakeHost()).notices() == []


def test_unified_memory_takes_the_hosts_size_and_use() -> None:
    machine = Machine(FakeHost(), [FakeMaker(pb.BACKEND_NVML, "H200"), FakeMaker(pb.BACKEND_SIMULATED, "GB10", unified=True)])
    own, unified = machine.info()[1]
    own_sample, unified_sample = machine.sample()[1]
    assert (unified.memory_total_bytes, unified_sample.memory_used_bytes) == (64 * 2**30, 9 * 2**30)
    assert not own.HasField("memory_total_bytes")
    assert not own_sample.HasField("memory_used_bytes")


def test_unified_memory_is_not_reported_where_the_host_does_not_know_it_or_the_device_fails() -> None:
    class Ignorant(FakeHost):
        def host_info(self) -> pb.HostInfo:
            return pb.HostInfo()

        def host_sample(self) -> pb.HostSample:
            return pb.HostSample()

    class Lost(FakeMaker):
        def device_samples(self) -> list[pb.DeviceSample]:
            return [pb.DeviceSample(error="GPU is lost")]

    machine = Machine(Ignorant(), [FakeMaker(pb.BACKEND_NVML, "GB10", unified=True)])
    assert not machine.info()[1][0].HasField("memory_total_bytes")
    assert not machine.sample()[1][0].HasField("memory_used_bytes")
    lost = Machine(FakeHost(), [Lost(pb.BACKEND_NVML, "GB10", unified=True)])
    assert lost.sample()[1] == [pb.DeviceSample(error="GPU is lost")]


def test_a_box_with_no_accelerator_is_its_host() -> None:
    machine = Machine(FakeHost())
    assert machine.backend == pb.BACKEND_HOST
    assert machine.info()[1] == machine.sample()[1] == machine.processes() == []
    assert machine.sample()[0].cpu_percent == 7


@pytest.mark.parametrize("seed", range(9))
def test_a_simulated_box_is_one_source_for_its_host_and_its_devices(seed: int) -> None:
    machine = simulated(seed, clock=lambda: 0.0)
    host, devices = machine.info()
    assert machine.backend == pb.BACKEND_SIMULATED
    assert {device.backend for device in devices} <= {pb.BACKEND_SIMULATED}
    assert len(machine.sample()[1]) == len(devices)
    assert host.model
    assert machine.notices() == ["simulated: nothing here is measured"]


def test_each_kind_opens_what_it_says() -> None:
    assert set(KINDS) == {"auto", *MAKERS, "host", "simulated"}
    assert open_machine("simulated", 1).backend == pb.BACKEND_SIMULATED
    assert open_machine("host", 1).backend == pb.BACKEND_HOST
    assert open_machine("auto", 1).backend != pb.BACKEND_SIMULATED


def test_auto_takes_each_maker_that_is_there_and_says_which_is_not() -> None:
    def absent() -> Accelerators:
        raise Failure("none of these")

    there = Maker(lambda: SimulatedBox(1), "plug it in")
    makers = {"one": Maker(absent, "plug it in"), "two": there, "three": there}
    found = open_machine("auto", 0, makers=makers)
    assert len(found.info()[1]) == 16
    assert found.notices()[0] == "none of these"
    assert len(open_machine("two", 0, makers=makers).info()[1]) == 8
    with pytest.raises(Failure, match=r"^none of these: plug it in$"):
        open_machine("one", 0, makers=makers)
