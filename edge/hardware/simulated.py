"""Simulated boxes: a physical model, not noise."""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import node_pb2 as pb
from edge.protocol import MAX_CORES, ThrottleReason


class Model(NamedTuple):
    """A device of the catalogue, with its data sheet's figures; thermal ones are what such devices show in use."""

    hostname: str
    host: str
    device: str
    device_count: int
    memory_mib: int
    idle_watts: float
    limit_watts: float
    full_load_celsius: float  # at the power limit, in 25 °C, with all its cooling
    slowdown_celsius: int
    time_constant_seconds: float  # of the heat sink: temperature covers 63 % of a step in this time
    has_fan: bool
    sm_clock_mhz: int
    unified: bool
    cpu_count: int
    host_memory_gib: int


CATALOGUE = (
    Model("orin", "NVIDIA Jetson AGX Orin", "Orin (nvgpu)", 1, 62841, 9, 60, 72, 99, 55, True, 1300, True, 12, 64),
    Model("h200", "Supermicro SYS-821GE-TNHR", "NVIDIA H200", 8, 143771, 76, 700, 72, 87, 28, False, 1980, False, 192, 2048),
    Model("rtx4090", "Workstation", "NVIDIA GeForce RTX 4090", 1, 24564, 22, 450, 73, 90, 35, True, 2520, False, 32, 128),
    Model("l4", "Dell PowerEdge XR4000", "NVIDIA L4", 2, 23034, 13, 72, 76, 96, 45, False, 2040, False, 64, 256),
    Model("spark", "NVIDIA DGX Spark", "NVIDIA GB10", 1, 122570, 10, 100, 78, 95, 60, True, 2418, True, 20, 128),
    Model(
        "a100", "HPE Apollo 6500 Gen10 Plus", "NVIDIA A100-SXM4-80GB", 4, 81920, 58, 400, 66, 89, 30, False, 1410, False, 128, 1024
    ),
    Model("h100", "NVIDIA DGX H100", "NVIDIA H100 80GB HBM3", 8, 81559, 70, 700, 70, 87, 28, False, 1980, False, 224, 2048),
    Model("orin-nano", "NVIDIA Jetson Orin Nano", "Orin (nvgpu)", 1, 7620, 4, 25, 75, 99, 50, True, 1020, True, 6, 8),
    Model("pi", "Raspberry Pi 5 Model B", "", 0, 0, 3, 12, 68, 85, 60, True, 0, False, 4, 8),
)


FAULTS = ("hot", "failed-gpu", "hung-sensors")  # that a box can have: to see what becomes of them, and to test alerts
HUNG_AFTER_SECONDS = 5.0  # of the box's life: "hung-sensors" answer until then


class SimulatedDevice:
    """One device's physics.

    Power follows load and clock; temperature follows power with the heat sink's time constant, towards ambient; the fan follows
    temperature; the clock drops at the slowdown temperature, and with it the power. `step` is exact for constant power, so that
    the step's length does not matter.
    """

    STEP_SECONDS = 0.5
    LOWEST_CLOCK = 0.3  # of its highest

    def __init__(self, model: Model, ambient_celsius: float) -> None:
        self.model = model
        self.ambient_celsius = ambient_celsius
        self.load = 0.0  # of the device, 0 to 1
        self.memory = 0.02  # of its memory
        self.clock = 1.0  # of its highest
        self.fan = 0.3
        self.watts = model.idle_watts
        self.celsius = self.equilibrium()

    def equilibrium(self) -> float:
        """Temperature that the power of now leads to, °C. Less air, more thermal resistance: half as much again with no fan."""
        kelvin_per_watt = (self.model.full_load_celsius - 25) / self.model.limit_watts
        return self.ambient_celsius + self.watts * kelvin_per_watt * (1.5 - 0.5 * self.fan)

    def block_air(self) -> None:
        """Take so much of its cooling that under full load not even the lowest clock brings it below its slowdown limit."""
        self.watts = self._watts_at(load=1.0, clock=self.LOWEST_CLOCK)
        self.fan = 1.0
        self.ambient_celsius += self.model.slowdown_celsius + 1 - self.equilibrium()
        self.celsius = self.equilibrium()

    def step(self, seconds: float, load: float, memory: float) -> None:
        """Let `seconds` pass under a load (0 to 1) with so much of the memory wanted (0 to 1)."""
        model = self.model
        self.load = load
        self.memory += (memory - self.memory) * -math.expm1(-seconds / 4)
        if self.celsius >= model.slowdown_celsius + 3:
            self.clock = self.LOWEST_CLOCK  # what the hardware does by itself
        elif self.celsius >= model.slowdown_celsius:
            self.clock = max(self.clock - 0.05 * seconds, self.LOWEST_CLOCK)
        else:
            self.clock = min(self.clock + 0.02 * seconds, 1.0)
        self.watts = self._watts_at(load, self.clock)
        self.celsius += (self.equilibrium() - self.celsius) * -math.expm1(-seconds / model.time_constant_seconds)
        wanted = min(max((self.celsius - 40) / 35, 0.3), 1.0)
        self.fan += (wanted - self.fan) * -math.expm1(-seconds / 6)

    def _watts_at(self, load: float, clock: float) -> float:
        share: float = load**0.8 * clock**2  # of what it takes beyond idling
        return self.model.idle_watts + (self.model.limit_watts - self.model.idle_watts) * share

    def info(self, index: int, uuid_text: str) -> pb.DeviceInfo:
        """What the catalogue says of it."""
        return pb.DeviceInfo(
            index=index,
            uuid=uuid_text,
            name=self.model.device,
            memory_total_bytes=self.model.memory_mib * 2**20,
            power_limit_milliwatts=round(self.model.limit_watts * 1000),
            slowdown_temperature_celsius=self.model.slowdown_celsius,
            unified_memory=self.model.unified,
        )

    def sample(self) -> pb.DeviceSample:
        """As it is now."""
        throttle, idle = 0, self.load < 0.01
        if self.clock < 0.999:
            throttle = ThrottleReason.THERMAL_SOFTWARE
        elif self.watts > 0.98 * self.model.limit_watts:
            throttle = ThrottleReason.POWER_CAP
        elif idle:
            throttle = ThrottleReason.IDLE
        return pb.DeviceSample(
            utilization_percent=round(100 * self.load),
            memory_used_bytes=round(self.memory * self.model.memory_mib * 2**20),
            temperature_celsius=round(self.celsius),
            power_milliwatts=round(self.watts * 1000),
            fan_percent=round(100 * self.fan) if self.model.has_fan else None,
            sm_clock_mhz=round(self.model.sm_clock_mhz * (0.15 if idle else self.clock)),
            throttle_reasons=throttle,
        )


class Job(NamedTuple):
    """What runs on some devices of a host until a time."""

    ends_at: float
    devices: frozenset[int]
    load: float
    memory: float
    checkpoint_seconds: float  # now and then all of it waits for the disk
    pid: int
    user: str
    name: str


class SimulatedBox:
    """A box of the catalogue: a host and its accelerators. The same seed makes the same box, and on the same clock the same course
    of events. Time passes in `host_sample`; the devices are read as they are then.

    Of FAULTS it can have: "hot", a first device (the processor, where there is none) that can't be cooled; "failed-gpu", a last
    device that answers with an error; "hung-sensors", which answer no more after HUNG_AFTER_SECONDS.
    """

    backend = pb.BACKEND_SIMULATED
    HISTORY_SECONDS = 600.0  # a new box is not a cold one: so much has passed when it is first looked at

    def __init__(self, seed: int, clock: Callable[[], float] = time.monotonic, faults: frozenset[str] = frozenset()) -> None:
        self.model = CATALOGUE[seed % len(CATALOGUE)]
        self.hostname = f"{self.model.hostname}-{seed % 1000:02}"
        self._random = random.Random(seed)
        self._clock = clock
        self._born_at = clock()
        self._seconds = 0.0  # of simulated time
        ambient = self._random.gauss(25, 4)
        if self._random.random() < 0.15:
            ambient += 22  # a box in a cupboard: these throttle
        self._ambient_celsius = min(max(ambient, 10), 50)
        self.devices = [SimulatedDevice(self.model, self._ambient_celsius) for _ in range(self.model.device_count)]
        self._processor = SimulatedDevice(self.model._replace(limit_watts=60, idle_watts=15), self._ambient_celsius)
        self._jobs: list[Job] = []
        self._noise = [0.0] * self.model.device_count
        self._uuids = [str(uuid.UUID(int=self._random.getrandbits(128), version=4)) for _ in self.devices]
        self._disk_fraction = self._random.uniform(0.2, 0.9)
        self._is_processor_hot = "hot" in faults and not self.devices
        if "hot" in faults:
            (self.devices or [self._processor])[0].block_air()
            endless = Job(math.inf, frozenset(range(len(self.devices))[:1]), 1.0, 0.8, math.inf, 4242, "ada", "torchrun")
            self._jobs.append(endless)
        self._failed = len(self.devices) - 1 if "failed-gpu" in faults else None
        self._is_hanging = "hung-sensors" in faults

    def notices(self) -> list[str]:
        return ["simulated: nothing here is measured"]

    def host_info(self) -> pb.HostInfo:
        return pb.HostInfo(
            model=self.model.host,
            cpu_count=self.model.cpu_count,
            memory_total_bytes=self.model.host_memory_gib * 2**30,
            disk_total_bytes=2**40,
        )

    def device_infos(self) -> list[pb.DeviceInfo]:
        devices = zip(self.devices, self._uuids, strict=True)
        return [device.info(index, f"GPU-{name}") for index, (device, name) in enumerate(devices)]

    def host_sample(self) -> pb.HostSample:
        age = self._clock() - self._born_at
        while self._is_hanging and age >= HUNG_AFTER_SECONDS:
            time.sleep(3600)
        target = age + self.HISTORY_SECONDS
        self._seconds = max(self._seconds, target - 3600)  # a box that slept for days need not catch up
        while self._seconds + SimulatedDevice.STEP_SECONDS <= target:  # whole steps: the course does not depend on when we look
            self._seconds += SimulatedDevice.STEP_SECONDS
            self._step(SimulatedDevice.STEP_SECONDS)
        return self._host_sample()

    def device_samples(self) -> list[pb.DeviceSample]:
        samples = [device.sample() for device in self.devices]
        if samples and self._failed is not None:
            samples[self._failed] = pb.DeviceSample(error="GPU is lost (simulated)")
        return samples

    def energies(self) -> list[int | None]:
        return []  # it adds up from the power

    def owner(self, pid: int) -> tuple[str, str]:
        return "", ""  # `processes` names them

    def processes(self) -> list[pb.Process]:
        return [
            pb.Process(
                device_index=index,
                pid=job.pid,
                user=job.user,
                name=job.name,
                memory_used_bytes=round(min(job.memory, self.devices[index].memory) * self.model.memory_mib * 2**20),
            )
            for job in self._jobs
            for index in sorted(job.devices)
            if index != self._failed
        ]

    def _step(self, seconds: float) -> None:
        self._jobs = [job for job in self._jobs if job.ends_at > self._seconds]
        busy = frozenset().union(*(job.devices for job in self._jobs))
        free = [index for index in range(len(self.devices)) if index not in busy]
        if free and self._random.random() < seconds / 40:  # a job comes every 40 s or so, while there is room
            self._jobs.append(self._new_job(free))
        for index, device in enumerate(self.devices):
            load, memory = 0.0, 0.02
            for job in self._jobs:
                if index in job.devices:
                    load, memory = job.load, job.memory
                    if self._seconds % job.checkpoint_seconds < 4:
                        load = 0.1
            # an Ornstein-Uhlenbeck process: noise with a memory of 5 s
            self._noise[index] += -self._noise[index] * min(seconds / 5, 1) + self._random.gauss(0, 0.03) * math.sqrt(seconds)
            device.step(seconds, min(max(load + self._noise[index], 0), 1) if load else 0.0, memory)
        self._processor.step(seconds, 1.0 if self._is_processor_hot else 0.05 + 0.5 * self._mean_load(), 0.3)

    def _new_job(self, free: list[int]) -> Job:
        width = self._random.choice([1, max(len(free) // 2, 1), len(free)])
        return Job(
            ends_at=self._seconds + self._random.expovariate(1 / 300) + 30,
            devices=frozenset(self._random.sample(free, width)),
            load=self._random.choice([self._random.uniform(0.3, 0.8), self._random.uniform(0.9, 1.0)]),
            memory=self._random.uniform(0.25, 0.95),
            checkpoint_seconds=self._random.uniform(60, 180),
            pid=self._random.randrange(1000, 4_000_000),
            user=self._random.choice(["ada", "grace", "alan"]),
            name=self._random.choice(["python3", "torchrun", "vllm", "ollama"]),
        )

    def _mean_load(self) -> float:
        if not self.devices:
            return 0.5 + 0.4 * math.sin(self._seconds / 47)
        return sum(device.load for device in self.devices) / len(self.devices)

    def _core_percent(self, core: int, load: float) -> int:
        wave = math.sin(self._seconds / (7 + core % 5) + core)
        return min(max(round(100 * load + 30 * load * wave), 0), 100)

    def _host_sample(self) -> pb.HostSample:
        load = self._processor.load
        memory = sum(device.memory for device in self.devices) / len(self.devices) if self.devices else 0.3
        return pb.HostSample(
            cpu_percent=round(100 * load),
            memory_used_bytes=round((0.08 + 0.6 * memory) * self.model.host_memory_gib * 2**30),
            disk_used_bytes=round(self._disk_fraction * 2**40),
            network_received_bytes_per_second=round(load * 40e6),
            network_sent_bytes_per_second=round(load * 9e6),
            temperature_celsius=round(self._processor.celsius),
            load_1m=round(load * self.model.cpu_count, 2),
            uptime_seconds=round(self._seconds),
            cpu_core_percents=bytes(self._core_percent(core, load) for core in range(min(self.model.cpu_count, MAX_CORES))),
        )
