"""The fleet as Prometheus reads it: each value is that of the registry, whatever a node is called and whatever it sends."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import node_pb2 as pb
from edge.fleet.lens import count_totals
from edge.fleet.row import Row, State, hanging_seconds, state_of
from edge.fleet.watch import Feed
from edge.panels import THROTTLE_WORDS
from edge.program import VERSION
from edge.protocol import ThrottleReason, reported
from edge.web.exposition import Faces
from edge.web.scrape import nodes_and_fleet
from edge.web.site import Site
from server import Registry
from tests.fixtures.examples import NOW, example_registry, shared_registry
from tests.fixtures.sessions import Clock, opened

Readings = dict[tuple[str, frozenset[tuple[str, str]]], float]
GIB = 2**30


def text_of(registry: Registry, with_nodes: bool = True, faces: Faces | None = None) -> str:
    """/metrics of a registry."""
    site = Site(registry, Feed(registry), registry.counters)

    async def read() -> str:
        return "".join([text async for text in nodes_and_fleet(site, None, with_nodes, faces or Faces())])

    return asyncio.run(read())


def readings_of(text: str) -> Readings:
    """By the official parser. No line stands twice."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(one.name, frozenset(one.labels.items())): one.value for one in samples}
    assert len(found) == len(samples)
    return found


def line(name: str, /, **labels: object) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset((label, str(value)) for label, value in labels.items())


def of(readings: Readings, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """All of one name."""
    return {labels: value for (one, labels), value in readings.items() if one == name}


def full_sample() -> pb.Sample:
    host = pb.HostSample(
        cpu_percent=7, memory_used_bytes=3 * GIB, disk_used_bytes=5 * GIB, network_received_bytes_per_second=2**49,
        network_sent_bytes_per_second=0, temperature_celsius=-4, load_1m=0.1, uptime_seconds=86_400,
    )  # fmt: skip
    reasons = ThrottleReason.POWER_CAP | ThrottleReason.THERMAL_HARDWARE | ThrottleReason.IDLE
    device = pb.DeviceSample(
        utilization_percent=57, memory_used_bytes=GIB + 1, temperature_celsius=71, power_milliwatts=512_345, fan_percent=105,
        sm_clock_mhz=1980, throttle_reasons=reasons,
    )  # fmt: skip
    return pb.Sample(sequence=1, host=host, devices=[device, pb.DeviceSample(error="GPU is lost")])


def full_info(**fields: Any) -> pb.NodeInfo:
    """A box that says all there is to say: of its second GPU, which is not NVIDIA's, less."""
    host = pb.HostInfo(model="T7", operating_system="Debian 12", cpu_count=16, memory_total_bytes=8 * GIB, disk_total_bytes=9 * GIB)
    devices = [
        pb.DeviceInfo(
            index=0, uuid="GPU-1", name="NVIDIA L4", memory_total_bytes=4 * GIB, power_limit_milliwatts=700_000,
            slowdown_temperature_celsius=87, backend=pb.BACKEND_NVML,
        ),
        pb.DeviceInfo(index=1, uuid="PCI-2", name="Radeon", backend=pb.BACKEND_HOST),
    ]  # fmt: skip
    said = {"hostname": "gpu-07", "instance_id": "a", "agent_version": "0.0.1", "labels": {"rack": "a3"}, **fields}
    return pb.NodeInfo(host=host, devices=devices, **said)


def full_registry(clock: Clock, node_id: str = "box", **fields: Any) -> Registry:
    """One such box."""
    registry = Registry(1.0, 100, clock=clock)
    request = pb.HeartbeatRequest(node_id=node_id, info=full_info(**fields), sample=full_sample(), round_trip_microseconds=3)
    request.summary.energy_joules = 2**40
    request.summary.failed_devices = 1
    request.processes.processes.add(device_index=0, pid=7, user="ada", name="python3")
    registry.open(request, "10.0.0.7", lambda _end: None)
    return registry


def test_each_name_has_the_value_that_the_node_sent() -> None:
    clock = Clock()
    registry = full_registry(clock)
    clock.now += 0.25
    found = readings_of(text_of(registry))
    node, gpu = {"node": "box"}, {"node": "box", "gpu": 0}
    dcgm = {
        "gpu": 0, "UUID": "GPU-1", "device": "nvidia0", "modelName": "NVIDIA L4", "hostname": "gpu-07", "instance": "box",
    }  # fmt: skip
    box = {
        line("edge_node_up", **node): 1,
        line("edge_node_state", **node, state="online"): 1,
        line("edge_node_heartbeat_age_seconds", **node): 0.25,
        line("edge_node_sample_age_seconds", **node): 0.25,
        line("edge_node_round_trip_seconds", **node): 0.000003,
        line(
            "edge_node_info", **node, hostname="gpu-07", address="10.0.0.7", version="0.0.1", model="T7", os="Debian 12",
            label_rack="a3",
        ): 1,
        line("edge_node_gpus", **node): 2,
        line("edge_node_failed_gpus", **node): 1,
        line("edge_node_cpus", **node): 16,
        line("edge_node_cpu_utilization_ratio", **node): 0.07,
        line("edge_node_memory_used_bytes", **node): 3 * GIB,
        line("edge_node_memory_size_bytes", **node): 8 * GIB,
        line("edge_node_disk_used_bytes", **node): 5 * GIB,
        line("edge_node_disk_size_bytes", **node): 9 * GIB,
        line("edge_node_network_received_bytes_per_second", **node): 2**49,
        line("edge_node_network_sent_bytes_per_second", **node): 0,
        line("edge_node_temperature_celsius", **node): -4,
        line("edge_node_load1", **node): 0.1,
        line("edge_node_uptime_seconds", **node): 86_400,
        line("edge_node_energy_joules_total", **node): 2**40,
        line("edge_gpu_info", **gpu, uuid="GPU-1", name="NVIDIA L4"): 1,
        line("edge_gpu_info", node="box", gpu=1, uuid="PCI-2", name="Radeon"): 1,
        line("edge_gpu_failed", **gpu): 0,
        line("edge_gpu_failed", node="box", gpu=1): 1,
        line("edge_gpu_utilization_ratio", **gpu): 0.57,
        line("edge_gpu_memory_used_bytes", **gpu): GIB + 1,
        line("edge_gpu_memory_size_bytes", **gpu): 4 * GIB,
        line("edge_gpu_temperature_celsius", **gpu): 71,
        line("edge_gpu_slowdown_temperature_celsius", **gpu): 87,
        line("edge_gpu_power_watts", **gpu): 512.345,
        line("edge_gpu_power_limit_watts", **gpu): 700,
        line("edge_gpu_fan_ratio", **gpu): 1.05,
        line("edge_gpu_sm_clock_hertz", **gpu): 1.98e9,
        line("edge_gpu_throttled", **gpu, reason="power cap"): 1,
        line("edge_gpu_throttled", **gpu, reason="thermal (hardware)"): 1,
        line("edge_gpu_processes", **gpu): 1,
        line("edge_gpu_processes", node="box", gpu=1): 0,
        line("DCGM_FI_DEV_GPU_UTIL", **dcgm): 57,
        line("DCGM_FI_DEV_FB_USED", **dcgm): 1024,
        line("DCGM_FI_DEV_FB_FREE", **dcgm): 3071,
        line("DCGM_FI_DEV_GPU_TEMP", **dcgm): 71,
        line("DCGM_FI_DEV_POWER_USAGE", **dcgm): 512.345,
        line("DCGM_FI_DEV_SM_CLOCK", **dcgm): 1980,
    }  # fmt: skip
    assert {one: value for one, value in found.items() if re.match("edge_node_|edge_gpu_|DCGM_", one[0])} == box
    assert found[line("edge_fleet_outdated_agents")] == 1


def test_all_values_are_those_of_the_rows() -> None:
    registry = shared_registry()
    found = readings_of(text_of(registry))
    fields = {
        "edge_gpu_utilization_ratio": ("utilization_percent", 0.01),
        "edge_gpu_memory_used_bytes": ("memory_used_bytes", 1),
        "edge_gpu_temperature_celsius": ("temperature_celsius", 1),
        "edge_gpu_power_watts": ("power_milliwatts", 0.001),
        "edge_gpu_sm_clock_hertz": ("sm_clock_mhz", 1e6),
    }
    read = [row for row in registry.snapshot() if state_of(row, NOW) is State.ONLINE and hanging_seconds(row, NOW) is None]
    for name, (field, unit) in fields.items():
        there = {
            line(name, node=row.node_id, gpu=index)[1]: pytest.approx(unit * value)
            for row in read
            for index, device in enumerate(row.sample.devices)
            if (value := reported(device, field)) is not None
        }
        assert len(there) > 80 and of(found, name) == there
    for row in registry.snapshot():
        state = state_of(row, NOW)
        assert found[line("edge_node_up", node=row.node_id)] == (state is State.ONLINE)
        assert found[line("edge_node_state", node=row.node_id, state=state.value.lower())] == 1
        assert found[line("edge_node_heartbeat_age_seconds", node=row.node_id)] == pytest.approx(NOW - row.heartbeat_at, abs=1e-6)


def test_the_sums_are_those_of_the_header() -> None:
    registry = example_registry()
    row = next(row for row in registry.snapshot() if state_of(row, NOW) is State.ONLINE)
    registry.restore(row._replace(vitals=row.vitals._replace(errors=2)))
    found, totals = readings_of(text_of(registry, with_nodes=False)), count_totals(registry.snapshot(), NOW)
    assert not of(found, "edge_node_up")
    assert {dict(labels)["state"]: value for labels, value in of(found, "edge_fleet_nodes").items()} == {
        state.value.lower(): count for state, count in totals.states.items()
    }
    assert found[line("edge_fleet_gpus")] == totals.gpus
    assert found[line("edge_fleet_failed_gpus")] == totals.failed == 2 and found[line("edge_fleet_outdated_agents")] == 0
    assert found[line("edge_fleet_utilization_ratio")] == pytest.approx(totals.utilization, abs=1e-6)
    assert found[line("edge_fleet_memory_used_bytes")] == totals.memory_used_bytes
    assert found[line("edge_fleet_memory_size_bytes")] == totals.memory_total_bytes
    assert found[line("edge_fleet_power_watts")] == (totals.milliwatts or 0) / 1000
    assert totals.hottest and found[line("edge_fleet_hottest_celsius")] == totals.hottest.vitals.celsius
    nobody = readings_of(text_of(Registry(1.0, 10, clock=Clock()), with_nodes=False))
    assert nobody[line("edge_fleet_gpus")] == 0 and not of(nobody, "edge_fleet_utilization_ratio")
    assert nobody[line("edge_server_info", version=VERSION)] == 1


def test_a_family_stands_together_under_one_head() -> None:
    clock = Clock()
    registry = full_registry(clock)
    for row in shared_registry().snapshot():
        registry.restore(row._replace(node_id=f"more-{row.node_id}"))
    names = [re.split("[ {]", one)[2 if one.startswith("#") else 0] for one in text_of(registry).splitlines()]
    assert len([name for name, before in zip(names, ["", *names], strict=False) if name != before]) == len(set(names))
    heads = [one.split()[1:3] for one in text_of(registry).splitlines() if one.startswith("#")]
    assert heads == [[word, name] for name in dict.fromkeys(names) for word in ("HELP", "TYPE")]


def test_no_number_has_an_exponent_or_is_none() -> None:
    for registry in (full_registry(Clock(2e9)), shared_registry()):
        values = [one.rpartition(" ")[2] for one in text_of(registry).splitlines() if not one.startswith("#")]
        assert not [value for value in values if not re.fullmatch(r"-?\d+(\.\d+)?", value)]


def test_promtool_finds_nothing_but_a_label_of_dcgm() -> None:
    """Its exporter calls it so, and the dashboards read it: promtool would have model_name."""
    if not (promtool := shutil.which("promtool")):
        pytest.skip("needs promtool, of Debian's package prometheus")
    registry = full_registry(Clock(), hostname='a"b\\c\nd\x1b[31m')
    for row in shared_registry().snapshot():
        registry.restore(row)
    registry.counters.refusals["unauthenticated"] += 1
    done = subprocess.run([promtool, "check", "metrics"], input=text_of(registry), capture_output=True, text=True, check=False)
    complaints = {one for one in (done.stdout + done.stderr).splitlines() if not one.startswith("DCGM_FI_DEV_")}
    assert complaints == set()
    assert done.returncode == 3  # by that label alone


HOSTILE = (
    'a "quoted" \\ name', "\\n", '"} 1', "機械-07", "Узел №7", "علي", "{node}", "# HELP edge_node_up", "a b", "e\u0301", "🤖",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_node_may_be_called_anything(name: str) -> None:
    registry = full_registry(Clock(), name)
    (row,) = registry.snapshot()
    found = readings_of(text_of(registry))
    assert found[line("edge_node_up", node=row.node_id)] == 1
    assert found[line("edge_gpu_utilization_ratio", node=row.node_id, gpu=0)] == 0.57
    assert [dict(labels)["instance"] for labels in of(found, "DCGM_FI_DEV_GPU_UTIL")] == [row.node_id]


def test_what_a_box_says_of_itself_is_text_as_on_the_screen() -> None:
    hostname = 'x"} 1\nedge_node_up{node="evil"} 0\r\0\x1b[31m\u202e\\'
    labels = {"rack-1": "a", "rack.1": "b", "9": 'q"\\', "__name__": "x"}
    registry = full_registry(Clock(), hostname=hostname, labels=labels, agent_version="")
    found = readings_of(text_of(registry))
    ((info, value),) = of(found, "edge_node_info").items()
    shown = dict(info)
    assert value == 1 and shown["hostname"] == 'x"} 1�edge_node_up{node="evil"} 0���[31m�\\'
    assert {name: value for name, value in shown.items() if name.startswith("label_")} == {
        "label_rack_1": "a", "label_9": 'q"\\', "label___name__": "x",
    }  # fmt: skip
    assert "version" not in shown  # an empty label is none
    assert list(of(found, "edge_node_up").values()) == [1]


def test_what_is_not_reported_has_no_line_and_zero_has_one() -> None:
    registry = Registry(1.0, 100, clock=Clock())
    info = pb.NodeInfo(instance_id="a", devices=[pb.DeviceInfo(name="x", backend=pb.BACKEND_NVML)] * 2)
    sample = pb.Sample(sequence=1, devices=[pb.DeviceSample(utilization_percent=0, memory_used_bytes=0), pb.DeviceSample()])
    registry.open(pb.HeartbeatRequest(node_id="box", info=info, sample=sample), "10.0.0.7", lambda _end: None)
    opened(registry, "silent", "b")
    found = readings_of(text_of(registry))
    gpus = {name: len(of(found, name)) for name, _ in found if name.startswith(("edge_gpu", "DCGM"))}
    assert gpus == {
        "edge_gpu_info": 2, "edge_gpu_failed": 2, "edge_gpu_utilization_ratio": 1, "edge_gpu_memory_used_bytes": 1,
        "DCGM_FI_DEV_GPU_UTIL": 1, "DCGM_FI_DEV_FB_USED": 1,
    }  # fmt: skip
    assert found[line("edge_gpu_utilization_ratio", node="box", gpu=0)] == 0
    of_silent = {name for name, labels in found if ("node", "silent") in labels}
    assert of_silent == {
        "edge_node_up", "edge_node_state", "edge_node_info", "edge_node_heartbeat_age_seconds", "edge_node_gpus",
    }  # fmt: skip


@pytest.mark.parametrize("stale", ["late", "disconnected", "lost", "left", "hanging"])
def test_a_node_that_is_stale_loses_its_readings(stale: str) -> None:
    clock = Clock()
    registry = full_registry(clock)
    (row,) = registry.snapshot()
    assert row.session
    if stale == "left":
        registry.heartbeat(row.session, pb.HeartbeatRequest(leaving=True))
    if stale == "disconnected":
        registry.stream_ended(row.session, "the stream broke")
    clock.now += {"late": 4, "lost": 11, "hanging": 12}.get(stale, 0)
    if stale == "hanging":
        registry.heartbeat(row.session, pb.HeartbeatRequest())
    found = readings_of(text_of(registry))
    assert {name for name, labels in found if dict(labels).keys() & {"node", "UUID"}} == {
        "edge_node_up", "edge_node_state", "edge_node_info", "edge_node_heartbeat_age_seconds", "edge_node_sample_age_seconds",
        "edge_gpu_info",
    }  # fmt: skip
    assert found[line("edge_node_up", node="box")] == (stale == "hanging")
    assert found[line("edge_node_state", node="box", state="online" if stale == "hanging" else stale)] == 1
    assert found[line("edge_fleet_gpus")] == 0


def test_a_sample_that_can_not_be_is_as_if_nothing_had_been_reported() -> None:
    registry = full_registry(Clock())
    (row,) = registry.snapshot()
    assert row.session
    forged = pb.Sample(devices=[pb.DeviceSample(fan_percent=10**6)] * 128, host=pb.HostSample(load_1m=float("nan")))
    for packed in (forged.SerializeToString(), b"\xff", pb.Sample(devices=[pb.DeviceSample()] * 200).SerializeToString()):
        registry.restore(row._replace(packed_sample=packed, packed_processes=b"\xff"))
        found = readings_of(text_of(registry))
        assert found[line("edge_node_up", node="box")] == 1
        assert not of(found, "edge_node_load1") and not of(found, "edge_gpu_fan_ratio") and not of(found, "edge_gpu_failed")
        assert found[line("edge_gpu_memory_size_bytes", node="box", gpu=0)] == 4 * GIB


def test_the_first_versions_nodes_and_others_that_do_not_say_what_they_have() -> None:
    registry = Registry(1.0, 100, clock=Clock())
    registry.take_unary(pb.HeartbeatRequest(node_id="old", gpu_temp=54.6), "10.0.0.7")
    found = readings_of(text_of(registry))
    assert found[line("edge_gpu_temperature_celsius", node="old", gpu=0)] == 55
    assert not of(found, "DCGM_FI_DEV_GPU_TEMP") and not of(found, "edge_gpu_info")


def test_a_box_that_has_changed_says_so() -> None:
    registry, faces = full_registry(Clock()), Faces()
    text_of(registry, faces=faces)
    (row,) = registry.snapshot()
    assert row.session
    registry.heartbeat(row.session, pb.HeartbeatRequest(info=full_info(hostname="gpu-08")))
    ((info, _),) = of(readings_of(text_of(registry, faces=faces)), "edge_node_info").items()
    assert ("hostname", "gpu-08") in info


def test_what_was_kept_of_nodes_that_are_gone_is_forgotten() -> None:
    def row(index: int) -> Row:
        return Row(f"n{index}", "", None, 1.0)

    faces = Faces()
    for index in range(1000):
        faces.of(row(index))
    faces.keep([row(index) for index in range(1000)])
    assert len(faces._faces) == 1000
    faces.keep([row(7)])
    assert set(faces._faces) == {"n7"}


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (ThrottleReason.IDLE, []),
        (2**40, ["other"]),
        (sum(ThrottleReason), list(THROTTLE_WORDS.values())),
    ],
)
def test_what_holds_a_gpu_back_is_named_as_on_its_page(reasons: int, words: list[str]) -> None:
    registry = full_registry(Clock())
    (row,) = registry.snapshot()
    sample = pb.Sample(devices=[pb.DeviceSample(throttle_reasons=reasons)])
    registry.restore(row._replace(packed_sample=sample.SerializeToString()))
    found = of(readings_of(text_of(registry)), "edge_gpu_throttled")
    assert sorted(dict(labels)["reason"] for labels in found) == sorted(words)
