"""Panels of one node, on its own screen and on its page on the server's."""

from __future__ import annotations

import re

import pytest

import node_pb2 as pb
from edge import history
from edge.drawing import Line, cells, plain
from edge.hardware.machine import Machine, simulated
from edge.hardware.simulated import CATALOGUE, SimulatedBox
from edge.panels import (
    GAUGE_LINES,
    Reach,
    Reading,
    Subject,
    device_table,
    gauges,
    host_words,
    node_panels,
    process_lines,
    reach_of,
    scrolled,
)
from edge.protocol import ThrottleReason
from edge.summary import box_summary, own_frame


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
        frames = history.extend(frames, own_frame(info, sample, box_summary(info, sample)))
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


EIGHT = next(subject for subject in SUBJECTS if len(subject.info.devices) == 8)


def processes_of(count: int, devices: int = 8) -> list[pb.Process]:
    """Processes job-1, job-2, …; the one with the highest number has most memory."""
    return [
        pb.Process(device_index=number % devices, pid=number, user="ada", name=f"job-{number}", memory_used_bytes=number * 2**30)
        for number in range(1, count + 1)
    ]


def shown_jobs(lines: list[Line]) -> list[int]:
    """The numbers of the jobs on a page, in their order."""
    return [int(number) for number in re.findall(r"job-(\d+)", plain(lines))]


def test_devices_become_a_table_where_their_boxes_leave_too_little_to_the_processes() -> None:
    crowded = EIGHT._replace(processes=processes_of(8))
    boxes = plain(node_panels(crowded, 160, 3 * GAUGE_LINES + 12))
    assert "╭─ GPU 7" in boxes
    assert shown_jobs(node_panels(crowded, 160, 3 * GAUGE_LINES + 12)) == [8, 7, 6, 5, 4, 3, 2, 1]
    table = plain(node_panels(crowded, 160, 20))
    assert "╭─ GPU" not in table
    assert table.count("NVIDIA H200") == 8


@pytest.mark.parametrize("count", [0, 1, 8, 23])
@pytest.mark.parametrize("subject", SUBJECTS[:4], ids=[model.hostname for model in CATALOGUE][:4])
def test_a_page_scrolls_to_all_that_it_has_and_leaves_no_room_while_something_is_hidden(subject: Subject, count: int) -> None:
    subject = subject._replace(processes=processes_of(count, max(len(subject.info.devices), 1)))
    indexes = {str(device.index) for device in subject.info.devices}
    for width, room in ((160, 42), (120, 36), (100, 26), (80, 20), (80, 18), (50, 11), (40, 6), (40, 4)):
        reach = reach_of(subject, width, room)
        seen_jobs: set[int] = set()
        seen_devices: set[str] = set()
        for scroll in range(reach.most + 1):
            lines = node_panels(subject, width, room, scroll)
            assert len(lines) <= room
            if reach.most:
                assert len(lines) == room
                assert all(text.strip("│ ") for text in plain(lines).splitlines())
            seen_jobs |= set(shown_jobs(lines))
            seen_devices |= set(re.findall(r"^ +(\d+) ", plain(lines), re.MULTILINE))
            seen_devices |= set(re.findall(r"╭─ GPU (\d+)", plain(lines)))
        assert seen_jobs == set(range(1, count + 1))
        assert indexes <= seen_devices


def test_a_page_is_kept_within_its_reach_and_says_where_the_rest_is() -> None:
    crowded = EIGHT._replace(processes=processes_of(23))
    assert reach_of(crowded, 80, 18) == Reach(most=18, page=5)
    first, middle, last = (node_panels(crowded, 80, 18, scroll) for scroll in (-5, 4, 1000))
    assert "╭─ Processes 1 to 5 of 23 · PgDn ─" in plain(first)
    assert "╭─ Processes 5 to 9 of 23 · PgUp PgDn ─" in plain(middle)
    assert "╭─ Processes 19 to 23 of 23 · PgUp ─" in plain(last)
    assert [shown_jobs(lines)[0] for lines in (first, middle, last)] == [23, 19, 5]
    low = node_panels(crowded, 40, 6, 1)  # not even the table fits: devices and processes are one list
    assert "lines 2 to 4 of 32 · PgUp PgDn" in plain(low)
    assert "host  cpu" in plain(low)
    whole = plain(node_panels(crowded, 80, 60))
    assert "╭─ Processes ─" in whole
    assert "Pg" not in whole


def test_keys_scroll_a_page_and_stop_at_its_ends() -> None:
    reach = Reach(most=18, page=5)
    steps = [
        ("page down", 4), ("down", 5), ("wheel down", 8), ("wheel up", 5), ("up", 4), ("end", 18), ("page down", 18), ("down", 18),
        ("page up", 14), ("x", 14), ("paste:G", 14), ("home", 0), ("up", 0), ("page up", 0),
    ]  # fmt: skip
    scroll = 0
    for key, expected in steps:
        scroll = scrolled(scroll, key, reach)
        assert (key, scroll) == (key, expected)
    assert scrolled(18, "up", Reach(most=3, page=5)) == 2  # the terminal has grown meanwhile
    assert scrolled(5, "down", Reach(most=0, page=23)) == 0


def over(subject: Subject, past: str = "1h") -> Subject:
    """The same with the graphs of a longer time."""
    width, spike = 3 + 3 * len(subject.info.devices), 100
    lowest = b"".join(bytes([step % 40]) * width for step in range(360))
    highest = lowest[: 90 * width] + bytes([spike]) * width + lowest[91 * width :]
    return subject._replace(history=lowest, highest=highest, past=past, ends=("07:00", "08:00"), graphs_first=True)


@pytest.mark.parametrize("subject", SUBJECTS[:4], ids=[model.hostname for model in CATALOGUE][:4])
@pytest.mark.parametrize(("width", "room"), [(160, 40), (120, 36), (80, 18), (50, 9)])
def test_graphs_that_are_asked_for_take_the_room_of_the_processes(subject: Subject, width: int, room: int) -> None:
    crowded = over(subject._replace(processes=processes_of(60, max(len(subject.info.devices), 1))))
    lines = node_panels(crowded, width, room)
    text = plain(lines)
    assert len(lines) <= room
    if len(subject.info.devices) > 2 and width == 50:
        assert text.startswith(" no room for the graphs of the last 1h: a larger")
        assert "GPU UTILIZATION" in text
    else:
        assert "░" in text
        assert text.count(", 1h") + text.count("last 1h") >= len(subject.info.devices)
    assert reach_of(crowded, width, room).most in (0, *range(40, 80))


def test_graphs_of_a_longer_time_say_when_it_was_and_their_lowest_and_highest() -> None:
    one = next(subject for subject in SUBJECTS if len(subject.info.devices) == 1)
    text = plain(node_panels(over(one), 160, 40))
    assert "utilization, 0 to 100% · last 1h · lowest 0, highest 100" in text
    assert re.search("│ 07:00 +08:00  07:00 +08:00 │", text)
    assert "utilization: 0–100, 1h" in plain(node_panels(over(EIGHT), 160, 40))
    assert "mean" not in text


def test_where_nothing_is_kept_of_a_longer_time_it_says_so() -> None:
    for subject in SUBJECTS[:4]:
        nothing = over(subject)._replace(history=b"", highest=b"")
        assert plain(node_panels(nothing, 80, 18)).startswith(" nothing is kept of it in the last 1h")


def test_room_that_a_page_leaves_shows_more_of_the_host_and_graphs() -> None:
    crowded = EIGHT._replace(processes=processes_of(8))
    forms = [plain(node_panels(crowded, 120, room)) for room in (22, 24, 25, 36)]
    assert ["host  cpu" in form for form in forms] == [True, False, False, False]
    assert ["cores" in form for form in forms] == [False, False, True, True]
    assert ["Utilization, 0 to 100%" in form for form in forms] == [False, False, False, True]
    narrow = [plain(node_panels(crowded, 100, 20 + lines)) for lines in (1, 4, 5, 6, 7)]
    assert ["host  cpu" in form for form in narrow] == [True, False, False, False, False]
    assert [re.search(r"│ cpu \d+%   memory [^█]* TiB   disk", form) is not None for form in narrow] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert ["cores" in form for form in narrow] == [False, False, True, False, True]
    pi = next(subject for subject in SUBJECTS if not subject.info.devices)
    assert "temperature, 0 to 100°C" in plain(node_panels(pi, 160, 30))
    silent = Subject(pb.NodeInfo(), pb.Sample(), (), b"")
    assert "History" not in plain(node_panels(silent, 120, 30))


def test_a_graph_says_how_far_it_goes_back() -> None:
    one = next(subject for subject in SUBJECTS if len(subject.info.devices) == 1)
    assert "utilization, 0 to 100% · last 55 samples" in plain(node_panels(one, 116, 30))  # as wide as it is, and not timed
    one.info.sampling_interval_milliseconds = 2000
    assert "utilization, 0 to 100% · last 1m50s" in plain(node_panels(one, 116, 30))
    assert "temperature · last 44s" in plain(node_panels(one._replace(processes=()), 50, 24))
    assert "utilization, 0 to 100% · last 2m00s" in plain(node_panels(one, 250, 30))  # no further than the history
    eight = EIGHT.info
    eight.sampling_interval_milliseconds = 60_000
    assert "│ GPU 0 · last 27m00s " in plain(node_panels(EIGHT._replace(processes=processes_of(8)), 120, 36))


def test_nothing_and_zero_and_below_are_told_apart() -> None:
    """A box outdoors: 0 °C is a reading, and a device's limit of 0 is no limit that is missing."""
    device = pb.DeviceInfo(memory_total_bytes=2**30, power_limit_milliwatts=70_000, slowdown_temperature_celsius=90)
    zero = pb.DeviceSample(
        utilization_percent=0, memory_used_bytes=0, temperature_celsius=0, power_milliwatts=0, fan_percent=0, sm_clock_mhz=0,
        throttle_reasons=0,
    )  # fmt: skip
    text = plain(gauges(device, zero, 70))
    assert "—" not in text
    for words in ("0% ", "0 B of 1.0 GiB", "0°C  of 90°C", "0 W of 70 W", "fan 0%", "SM 0 MHz", "throttle: none"):
        assert words in f"{text} "
    frost = pb.DeviceSample(temperature_celsius=-12)
    assert "-12°C  of 90°C" in plain(gauges(device, frost, 70))
    host = pb.HostSample(
        cpu_percent=0, memory_used_bytes=0, temperature_celsius=0, load_1m=0, uptime_seconds=0,
        network_received_bytes_per_second=0, network_sent_bytes_per_second=0,
    )  # fmt: skip
    subject = Subject(pb.NodeInfo(host=pb.HostInfo(memory_total_bytes=2**30)), pb.Sample(host=host), (), b"")
    assert host_words(subject) == "0°C  load 0.00  ↓ 0 B/s ↑ 0 B/s  up 0s"
    assert "0 B of 1.0 GiB" in plain(node_panels(subject, 80, 20))
    half = Subject(pb.NodeInfo(), pb.Sample(host=pb.HostSample(network_sent_bytes_per_second=3)), (), b"")
    assert host_words(half) == "↓ —/s ↑ 3 B/s"
    idle, unknown = pb.Process(pid=1, name="idle", memory_used_bytes=0), pb.Process(pid=2, name="unknown")
    rows = plain(process_lines(subject._replace(processes=[unknown, idle]), 80, 0, 2)).splitlines()[1:]
    assert [row.split()[-1] for row in rows] == ["idle", "unknown"]
    assert "0 B" in rows[0]
    assert "0 B" not in rows[1]


def test_a_device_without_a_name_has_no_lone_dot_and_one_without_a_sample_is_there() -> None:
    subject = Subject(pb.NodeInfo(devices=[pb.DeviceInfo(index=0)]), pb.Sample(), (), b"")
    text = plain(node_panels(subject, 80, 20))
    assert "╭─ GPU 0 ─" in text
    assert text.count("—") >= 7


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
        (ThrottleReason.APPLICATION_CLOCKS, "application clocks", False),  # its owner has set them
        (ThrottleReason.POWER_CAP | ThrottleReason.THERMAL_SOFTWARE, "power cap, thermal (software)", True),
        (ThrottleReason.HARDWARE_SLOWDOWN | ThrottleReason.POWER_BRAKE, "hardware slowdown, power brake", True),
        (2**40, "other", True),  # a reason that this version does not know
    ],
)
def test_what_holds_a_device_back_is_in_words(reasons: int, words: str, is_held_back: bool) -> None:
    reading = Reading(pb.DeviceInfo(), pb.DeviceSample(throttle_reasons=reasons))
    assert (reading.throttle, reading.throttled) == (words, is_held_back)


def test_processes_with_most_memory_come_first_with_their_share_of_the_device() -> None:
    subject = Subject(
        pb.NodeInfo(devices=[pb.DeviceInfo(index=0, memory_total_bytes=16 * 2**30)]), pb.Sample(), processes_of(8, 1), b""
    )
    rows = plain(process_lines(subject, 80, 0, 3)).splitlines()
    assert rows[0].split() == ["GPU", "PID", "USER", "MEMORY", "SHARE", "NAME"]
    assert rows[1].split() == ["0", "8", "ada", "8.0", "GiB", "█████·····", "50%", "job-8"]
    assert [row.split()[1] for row in rows[1:]] == ["8", "7", "6"]
    assert [row.split()[1] for row in plain(process_lines(subject, 80, 3, 2)).splitlines()[1:]] == ["5", "4"]
    narrow = plain(process_lines(subject, 36, 0, 1)).splitlines()
    assert narrow[0].split() == ["GPU", "MEMORY", "NAME"]
    nameless = plain(process_lines(subject._replace(processes=[pb.Process(pid=1, user="a\x1b", name="b\x1b")]), 80, 0, 1))
    assert "\x1b" not in nameless
    assert nameless.splitlines()[1].split() == ["0", "1", "a�", "—", "—", "b�"]


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
