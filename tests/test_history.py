"""The history of a node: one encoder for both programs."""

from __future__ import annotations

import math
import random

import pytest

import node_pb2 as pb
from edge import history
from edge.fleet.intake import capacities_of, vitals_of
from edge.history import MEMORY, NOT_REPORTED, SAMPLES, TEMPERATURE, UTILIZATION, encode, extend, newest, series
from edge.summary import box_summary, own_frame


def test_readings_are_rounded_half_up_and_kept_within_a_byte() -> None:
    assert list(encode([0, 0.4, 0.5, 12.4, 12.5, 13.5, 100])) == [0, 0, 1, 12, 13, 14, 100]
    assert list(encode([-0.1, -5, -math.inf])) == [0, 0, 0]
    assert list(encode([253.4, 253.5, 254, 254.5, 255, 1e300, math.inf])) == [253, *[254] * 6]
    assert list(encode([None])) == [NOT_REPORTED]
    assert encode([math.nan, math.inf, -math.inf]) == bytes([NOT_REPORTED, 254, 0])
    assert encode([]) == b""


def frame_of(info: pb.NodeInfo, sample: pb.Sample) -> bytes:
    """What a node's own screen shows of a sample."""
    return own_frame(info, sample, box_summary(info, sample))


def box(used: int, total: int) -> tuple[pb.NodeInfo, pb.Sample]:
    """A box whose memory, and whose one device's, is as full."""
    info = pb.NodeInfo(host=pb.HostInfo(memory_total_bytes=total), devices=[pb.DeviceInfo(memory_total_bytes=total)])
    return info, pb.Sample(host=pb.HostSample(memory_used_bytes=used), devices=[pb.DeviceSample(memory_used_bytes=used)])


def test_half_a_percent_is_rounded_up_on_both_ends_of_the_wire() -> None:
    """12.5 % is 13: the node's own reading, and its device's; on its own screen, and on the server's."""
    wrong = {}
    for halves in range(201):
        info, sample = box(used=5 * halves, total=1000)
        alone_info, alone = pb.NodeInfo(host=info.host), pb.Sample(host=sample.host)
        here, there = frame_of(info, sample), vitals_of(capacities_of(info), sample).frame
        here_alone, there_alone = frame_of(alone_info, alone), vitals_of(capacities_of(alone_info), alone).frame
        frames = [here[:3], here[3:], there[:3], there[3:], here_alone, there_alone]
        if frames != [bytes([NOT_REPORTED, (halves + 1) // 2, NOT_REPORTED])] * len(frames):
            wrong[halves / 2] = [frame[MEMORY] for frame in frames]
    assert not wrong


def test_the_mean_of_two_devices_is_rounded_up_too() -> None:
    info, wrong = pb.NodeInfo(devices=[pb.DeviceInfo(), pb.DeviceInfo()]), {}
    for halves in range(201):
        devices = [pb.DeviceSample(utilization_percent=percent) for percent in (halves // 2, halves - halves // 2)]
        mean = vitals_of(capacities_of(info), pb.Sample(devices=devices)).frame[UTILIZATION]
        if mean != (halves + 1) // 2:
            wrong[halves / 2] = mean
    assert not wrong


def test_a_frame_of_history_has_bytes_for_the_node_and_each_device() -> None:
    host = pb.HostSample(cpu_percent=1, temperature_celsius=81)
    info = pb.NodeInfo(devices=[pb.DeviceInfo(memory_total_bytes=1000), pb.DeviceInfo(), pb.DeviceInfo()])
    full = pb.DeviceSample(utilization_percent=50, memory_used_bytes=250, temperature_celsius=-5)
    frame = frame_of(info, pb.Sample(host=host, devices=[full, pb.DeviceSample()]))
    assert list(frame) == [1, 255, 81, 50, 25, 0, 255, 255, 255, 255, 255, 255]


def test_frames_have_one_length_whatever_a_sample_brings() -> None:
    info = pb.NodeInfo(devices=[pb.DeviceInfo(memory_total_bytes=1000)] * 2)
    samples = [pb.Sample(), *(pb.Sample(devices=[pb.DeviceSample(utilization_percent=7)] * count) for count in (1, 2, 3))]
    for sample in samples:
        for frame in (frame_of(info, sample), vitals_of(capacities_of(info), sample).frame):
            assert len(frame) == len(history.COLUMNS) * 3
            busy = [newest(frame, device, UTILIZATION) for device in range(2)]
            assert busy == ([7] * len(sample.devices) + [None] * 2)[:2]


def test_memory_is_a_share_only_where_its_size_is_known() -> None:
    assert newest(frame_of(pb.NodeInfo(), box(500, 1000)[1]), -1, MEMORY) is None
    assert newest(frame_of(box(0, 1000)[0], pb.Sample()), -1, MEMORY) is None
    assert newest(frame_of(*box(0, 1000)), -1, MEMORY) == 0
    assert newest(frame_of(*box(5000, 1000)), -1, MEMORY) == 100


def test_history_is_a_window() -> None:
    frames = b""
    for value in range(SAMPLES + 5):
        frames = extend(frames, bytes([value % 100, 1, 2]))
    assert len(frames) == 3 * SAMPLES
    assert frames[0] == 5


@pytest.mark.parametrize("devices", [0, 1, 8, 128])
def test_a_curve_is_what_was_encoded(devices: int) -> None:
    chance = random.Random(devices)
    width = len(history.COLUMNS) * (devices + 1)
    rows = [[chance.choice([None, chance.uniform(-20, 300)]) for _ in range(width)] for _ in range(SAMPLES + 30)]
    frames = b""
    for row in rows:
        frames = extend(frames, encode(row))
    for device in range(-1, devices):
        for column in (UTILIZATION, MEMORY, TEMPERATURE):
            values = [row[len(history.COLUMNS) * (device + 1) + column] for row in rows[-SAMPLES:]]
            assert series(frames, devices, device, column) == encode(values)
            last = encode(values)[-1]
            assert newest(encode(rows[-1]), device, column) == (None if last == NOT_REPORTED else last)


def test_no_such_device_has_no_reading() -> None:
    frame = encode([1, 2, 3, 4, None, 0])
    assert [newest(frame, 0, column) for column in history.COLUMNS] == [4, None, 0]
    assert newest(frame, 1, UTILIZATION) is None
    assert newest(b"", -1, UTILIZATION) is None


@pytest.mark.parametrize("used", [1006, 2500])
def test_a_memory_that_is_more_than_full_is_full(used: int) -> None:
    info, sample = box(used, total=1000)
    alone_info, alone = pb.NodeInfo(host=info.host), pb.Sample(host=sample.host)
    assert frame_of(info, sample) == bytes([255, 100, 255, 255, 100, 255])
    vitals = vitals_of(capacities_of(info), sample)
    assert vitals.frame == bytes([255, 100, 255, 255, 100, 255])
    assert vitals.memory == used / 1000  # and what is shown is what was reported
    assert vitals_of(capacities_of(alone_info), alone).frame == bytes([255, 100, 255])


def test_a_history_without_its_devices_and_with_nothing_of_them_again() -> None:
    frames = bytes(range(18))  # two frames of two devices
    own = history.without_devices(frames, 2)
    assert own == bytes([0, 1, 2, 9, 10, 11])
    assert history.with_devices(own, 2) == bytes([0, 1, 2, *[255] * 6, 9, 10, 11, *[255] * 6])
    assert history.with_devices(history.without_devices(frames, 0), 0) == frames
