"""Panels of one node, on its own screen and on its page on the server's."""

from __future__ import annotations

import pytest

import node_pb2 as pb
from edge import history
from edge.drawing import cells, plain
from edge.hardware.machine import Machine, simulated
from edge.hardware.simulated import CATALOGUE, SimulatedBox
from edge.panels import (
    GAUGE_LINES,
    Reading,
    Subject,
    device_table,
    gauges,
    host_words,
    node_panels,
    process_panel,
)
from edge.protocol import ThrottleReason


def subject_of(machine: Machine) -> Subject:
    """A box as it is now, with a minute behind it."""
    host, devices = machine.info()
    info = pb.NodeInfo(host=host, devices=devices)
    frames = b""
    for _ in range(60):
        sample = pb.Sample()
        host_sample, device_samples = machine.sample()
        sample.host.CopyFrom(host_sample)
        sample.devices.extend(device_samples)
        frames = history.extend(frames, history.frame_of(info, sample))
    return Subject(info, sample, machine.processes(), frames)


SUBJECTS = [subject_of(simulated(seed, clock=lambda: 0.0)) for seed in range(len(CATALOGUE))]


@pytest.mark.parametrize("subject", SUBJECTS, ids=[model.hostname for model in CATALOGUE])
def test_panels_keep_to_their_width_and_to_their_room(subject: Subject) -> None:
    for width in (40, 57, 80, 116, 160, 250):
        for room in (6, 7, 12, 13, 14, 20, 24, 41, 66):
            lines = node_panels(subject, width, room)
            assert len(lines) <= room
            boxed = [line for line in lines if line[0][0][0] in "╭│╰"]
            assert {sum(cells(text) for text, _ in line) for line in boxed} <= {width}


@pytest.mark.parametrize("subject", SUBJECTS, ids=[model.hostname for model in CATALOGUE])
def test_each_device_is_named_where_there_is_room(subject: Subject) -> None:
    text = plain(node_panels(subject, 160, 42))
    for device in subject.info.devices:
        assert f"GPU {device.index} · {device.name}" in text
    assert "Host" in text
    assert "cores" in text


def test_devices_become_a_table_where_their_boxes_do_not_fit_and_the_rest_is_counted() -> None:
    eight = next(subject for subject in SUBJECTS if len(subject.info.devices) == 8)
    boxes = plain(node_panels(eight, 160, 4 * GAUGE_LINES + 14))
    assert "╭─ GPU 7" in boxes
    table = plain(node_panels(eight, 160, 20))
    assert "╭─ GPU" not in table
    assert table.count("NVIDIA H200") == 8
    low = plain(node_panels(eight, 160, 6))
    assert " and 5 more: the terminal is too low" in low
    assert low.count("NVIDIA H200") == 3


def test_what_is_not_reported_is_a_dash() -> None:
    silent = pb.DeviceSample()
    assert plain(gauges(pb.DeviceInfo(), silent, 60)).count("—") == 7
    words = plain(device_table(Subject(pb.NodeInfo(devices=[pb.DeviceInfo()]), pb.Sample(devices=[silent]), (), b""), 160))
    assert words.splitlines()[1].count("—") == 8
    assert host_words(Subject(pb.NodeInfo(), pb.Sample(), (), b"")) == ""


def test_a_failing_device_says_why_in_its_box_and_in_the_table() -> None:
    lost = pb.DeviceSample(error="GPU is lost\x1b[2J")
    subject = Subject(pb.NodeInfo(devices=[pb.DeviceInfo(name="L4\x1b")]), pb.Sample(devices=[lost]), (), b"")
    box = gauges(subject.info.devices[0], lost, 60)
    assert len(box) == GAUGE_LINES - 2  # as tall as any other
    for text in (plain(box), plain(device_table(subject, 100))):
        assert "✗ GPU is lost�[2J" in text
        assert "\x1b" not in text


@pytest.mark.parametrize(
    ("reasons", "words", "is_held_back"),
    [
        (0, "none", False),
        (ThrottleReason.IDLE, "none", False),
        (ThrottleReason.POWER_CAP, "power cap", False),  # any busy GPU meets it
        (ThrottleReason.POWER_CAP | ThrottleReason.THERMAL_SOFTWARE, "power cap, thermal (software)", True),
        (ThrottleReason.HARDWARE_SLOWDOWN | ThrottleReason.POWER_BRAKE, "hardware slowdown, power brake", True),
        (2**40, "none", True),  # a reason that this version does not know
    ],
)
def test_what_holds_a_device_back_is_in_words(reasons: int, words: str, is_held_back: bool) -> None:
    reading = Reading(pb.DeviceInfo(), pb.DeviceSample(throttle_reasons=reasons))
    assert (reading.throttle, reading.throttled) == (words, is_held_back)


def test_processes_with_most_memory_come_first_and_the_rest_is_counted() -> None:
    processes = [pb.Process(pid=pid, user="ada", name=f"job-{pid}", memory_used_bytes=pid * 2**30) for pid in range(1, 9)]
    text = plain(process_panel(processes, 80, 6))
    assert "Processes, 5 more" in text
    assert [line.split()[2] for line in text.splitlines()[2:-1]] == ["8", "7", "6"]
    assert "8.0 GiB job-8" in text
    assert process_panel(processes, 80, 3) == process_panel([], 80, 20) == []
    assert "more" not in plain(process_panel(processes, 80, 11))
    nameless = plain(process_panel([pb.Process(pid=1, user="a\x1b", name="b\x1b")], 80, 5))
    assert "\x1b" not in nameless
    assert "—" in nameless  # its memory


def test_the_hosts_rest_is_in_words() -> None:
    sample = pb.HostSample(
        temperature_celsius=61, load_1m=7.5, uptime_seconds=90_000, network_received_bytes_per_second=2**20,
        network_sent_bytes_per_second=512,
    )  # fmt: skip
    subject = Subject(pb.NodeInfo(host=pb.HostInfo(cpu_count=8)), pb.Sample(host=sample), (), b"")
    assert host_words(subject) == "61°C  load 7.50  8 CPUs  ↓ 1.0 MiB/s ↑ 512 B/s  up 1d01h"


def test_a_box_without_devices_has_its_host_and_its_processes() -> None:
    box = SimulatedBox(8, clock=lambda: 0.0)
    subject = subject_of(Machine(box))._replace(processes=[pb.Process(pid=1, name="init")])
    text = plain(node_panels(subject, 100, 30))
    assert text.index("Processes") < text.index("Host · Raspberry Pi 5 Model B")
    assert "GPU 0" not in text


def test_reasons_that_nodes_send_are_not_kept() -> None:
    """On Python 3.10 an enum.IntFlag would keep each combination for ever."""
    kept = len(ThrottleReason.__members__), len(ThrottleReason._value2member_map_)
    for reasons in range(2**40, 2**40 + 100):
        Reading(pb.DeviceInfo(), pb.DeviceSample(throttle_reasons=reasons))
    assert (len(ThrottleReason.__members__), len(ThrottleReason._value2member_map_)) == kept
