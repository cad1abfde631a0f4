"""Which entries are shown, in which order, what they add up to; and a picture that is frozen."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import node_pb2 as pb
from edge.drawing import plain
from edge.fleet.intake import after
from edge.fleet.lens import Lens, Ui, count_totals
from edge.fleet.row import Row, Session, Vitals
from edge.fleet.source import EVENTS_KEPT, Wants
from server import Registry
from tests.fixtures.examples import NOW, example_registry, example_row
from tests.fixtures.screens import Screen, frame_of
from tests.fixtures.sessions import Clock

# ---- Order and totals ----


def test_sorting_puts_what_has_no_value_last_in_both_directions() -> None:
    registry = example_registry(5)
    registry.restore(example_row(5)._replace(vitals=Vitals()))
    screen = Screen(registry).press(*"ssssss")
    hottest = [row.vitals.celsius for row in map(example_row, range(5))]
    order = [f"Node-{1000 + index}" for index in sorted(range(5), key=lambda index: -(hottest[index] or 0))]
    assert screen.ui.sort == "temperature"
    assert screen.nodes() == [*order, "Node-1005"]
    assert screen.press("S").nodes() == [*order[::-1], "Node-1005"]
    assert "by temperature ↑" in screen.text()


def test_a_row_for_each_gpu() -> None:
    screen = Screen(example_registry(3)).press("g")
    assert screen.nodes() == [*(f"Node-1000 {index}" for index in range(8)), "Node-1001 0", "Node-1002 0", "Node-1002 1"]


def test_the_totals_count_each_gpu_once_and_only_what_is_online() -> None:
    rows = [example_row(index) for index in (0, 1, 6)]  # 8 GPUs, 1 GPU; and 8 of a node that is late
    totals = count_totals(rows, NOW)
    eight, one = (row.vitals.utilization or 0 for row in rows[:2])
    assert totals.gpus == 9
    assert totals.utilization == pytest.approx((8 * eight + one) / 9)
    assert totals.hottest in rows[:2]


def node_of(node_id: str, *devices: pb.DeviceSample, **host: Any) -> Row:
    """A node of these devices, of 100 bytes each, or of a host of 40."""
    info = pb.NodeInfo(host=pb.HostInfo(memory_total_bytes=40), devices=[pb.DeviceInfo(memory_total_bytes=100)] * len(devices))
    sample = pb.Sample(host=pb.HostSample(**host), devices=devices)
    blank = Row(node_id, "10.0.0.7", Session(pb.HeartbeatRequest(node_id=node_id), "10.0.0.7", None), 1.0, heartbeat_at=NOW)
    return after(blank, pb.HeartbeatRequest(node_id=node_id, info=info, sample=sample), NOW)


def text_of(*rows: Row) -> str:
    return plain(frame_of(list(rows), 160, 20, NOW))


def test_a_sum_says_of_how_many_it_is_where_others_do_not_report() -> None:
    full = pb.DeviceSample(utilization_percent=100, memory_used_bytes=50, power_milliwatts=400_000)
    idle, silent, lost = pb.DeviceSample(power_milliwatts=0), pb.DeviceSample(), pb.DeviceSample(error="GPU is lost")
    assert "2 GPUs · utilization 100% · memory 100 B of 200 B · power 800 W " in text_of(node_of("a", full, full))
    text = text_of(node_of("a", full, full, silent), node_of("b", full, lost), node_of("c", cpu_percent=0, memory_used_bytes=1))
    assert "5 GPUs · utilization 100% · memory 150 B of 300 B (3 of 5) · power 1.2 kW (3 of 5) " in text
    assert "≥800W" in text  # of the node, too
    assert "≥400W" in text
    assert " · power 0 W " in text_of(node_of("a", idle, idle))  # reported, and nothing
    assert "power" not in text_of(node_of("a", silent))
    assert "≥" not in text_of(node_of("a", silent), node_of("b", full))


def test_the_mean_of_a_fleet_is_of_the_gpus_that_report() -> None:
    full, idle = (pb.DeviceSample(utilization_percent=percent) for percent in (100, 0))
    totals = count_totals([node_of("a", full, *[pb.DeviceSample()] * 7), node_of("b", idle)], NOW)
    assert (totals.gpus, totals.utilization) == (9, 0.5)


def test_energy_is_added_up_over_the_nodes_that_report_it() -> None:
    used = pb.DeviceSample(utilization_percent=100, memory_used_bytes=50, power_milliwatts=400_000)
    one, other, silent = node_of("a", used), node_of("b", used), node_of("c", used)
    one = one._replace(vitals=one.vitals._replace(energy_joules=7_200_000))
    other = other._replace(vitals=other.vitals._replace(energy_joules=0))
    assert " · energy 2.0 kWh " in text_of(one, other)
    assert " · energy 2.0 kWh (2 of 3 nodes) " in text_of(one, other, silent, node_of("d", cpu_percent=1))
    assert "energy" not in text_of(silent)
    gone = one._replace(session=None, heartbeat_at=NOW - 1000)
    assert " · energy 2.0 kWh " in text_of(gone, other)
    assert " no node is online · energy 2.0 kWh " in text_of(gone)


def test_a_fleet_without_gpus_adds_up_its_hosts() -> None:
    one, other = (node_of(name, cpu_percent=50, memory_used_bytes=10) for name in "ab")
    assert "0 GPUs · utilization 50% · memory 20 B of 80 B " in text_of(one, other)
    assert "memory 20 B of 80 B (2 of 3) " in text_of(one, other, node_of("c", cpu_percent=50))


# ---- What is wanted ----


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ((), Wants()),
        (("down", "enter"), Wants(frozenset({"Node-1000"}))),
        (("g",), Wants(frozenset({"Node-1000", "Node-1001", "Node-1002"}), details=True)),
        (("g", "down", "enter", "q", "v", "g"), Wants()),
        (("u",), Wants(details=True, processes=True)),
        (("u", "u"), Wants()),
        (("/", *"user=ada"), Wants(processes=True)),
        (("/", *"rtx -proc:python|h200"), Wants(processes=True)),
        (("/", *"edge user-1 proc"), Wants()),
        (("p", "u", "e"), Wants(details=True, processes=True)),  # for when it goes on
    ],
)
def test_a_source_is_told_what_is_looked_at(keys: tuple[str, ...], wanted: Wants, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, told = example_registry(3), [Wants(processes=True)]
    monkeypatch.setattr(registry, "want", told.append)
    screen = Screen(registry)
    for key in keys:
        screen.press(key).frame()
    screen.frame()
    screen.frame()
    assert told[-1] == wanted
    assert all(before != after for before, after in itertools.pairwise(told))  # and only when that has changed


def test_no_more_nodes_are_opened_than_a_viewer_may(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, told = example_registry(400), [Wants()]
    monkeypatch.setattr(registry, "want", told.append)
    screen = Screen(registry, 160, 500).press("g")
    screen.frame()
    screen.frame()
    assert 0 < len(told[-1].open) <= 256


# ---- Frozen ----


def test_a_frozen_picture_does_not_change() -> None:
    registry = example_registry(5)
    screen = Screen(registry).press("p")
    before = screen.text()
    registry.restore(example_row(2)._replace(vitals=Vitals()))
    assert screen.text() == before
    registry.restore(example_row(9))
    assert "FROZEN" in before
    assert "Node-1009" in screen.press("p").text()


def test_a_frozen_picture_tells_what_happens_behind_it() -> None:
    clock = Clock()
    registry = Registry(1.0, 100, clock)
    for index in range(4):
        registry.restore(example_row(index)._replace(heartbeat_at=clock.now))
    lens, frozen = Lens(registry), Ui(frozen=True)

    def later(seconds: float, alive: int) -> list[tuple[str, int]]:
        clock.now += seconds
        for index in range(alive):
            registry.restore(example_row(index)._replace(heartbeat_at=clock.now))
        lens.refresh(frozen)
        return lens.since

    lens.refresh(frozen)
    assert later(1, 4) == []
    assert later(4, 3) == [("late", 1)]
    assert later(8, 3) == [("lost", 1)]
    assert later(4, 5) == [("joined", 1)]  # the fourth is back
    assert later(4, 2) == [("late", 2), ("joined", 1)]
    registry.restore(example_row(2)._replace(left=True))
    assert later(20, 1) == [("lost", 2), ("left", 1), ("joined", 1)]
    lens.refresh(Ui())
    assert lens.since == []
    lens.refresh(frozen)
    assert later(1, 1) == []


@pytest.mark.parametrize(("width", "shown"), [(160, "FROZEN · 2 lost, 1 joined since 08:00:00 "), (60, " FROZEN · 2 lost since ")])
def test_the_header_of_a_frozen_picture(width: int, shown: str) -> None:
    registry = example_registry(5)
    screen = Screen(registry, width, 20).press("p")
    for index in (1, 2):
        registry.restore(example_row(11)._replace(node_id=f"Node-{1000 + index}"))
    registry.restore(example_row(9))
    screen.lens._since_due = 0
    first = screen.text().splitlines()[0]
    assert first.rstrip().endswith(shown.strip())
    assert "● 5" in first  # the picture itself stands


def picture(lens: Lens, ui: Ui) -> tuple[object, ...]:
    """All that a lens tells of its source."""
    lens.refresh(ui)
    rows = lens.rows([f"Node-{1000 + index}" for index in range(20)])
    return lens.order, lens.totals, lens.now, lens.wall, rows, lens.events(EVENTS_KEPT)


def test_a_frozen_picture_is_a_source_of_its_own_until_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    registry = Registry(1.0, 100, clock)
    for index in range(18):
        registry.restore(example_row(index))
    registry.log.add("joined", "why", "Node-1000")
    lens, frozen = Lens(registry), Ui(frozen=True)
    before = picture(lens, frozen)
    assert lens.events(EVENTS_KEPT)
    clock.now += 100
    registry.restore(example_row(0)._replace(vitals=Vitals(), heartbeat_at=clock.now))
    registry.restore(example_row(18))
    registry.log.add("joined", "why", "Node-1018")
    assert picture(lens, frozen) == before
    assert lens.forget("Node-1011")  # from the fleet, not from its picture
    assert registry.rows(["Node-1011"]) == [None]
    assert not lens.forget("Node-1000")  # alive by now, whatever the picture shows
    assert picture(lens, frozen) == before
    monkeypatch.setattr(registry, "wall", lambda: 7.0)
    live = picture(lens, Ui())
    assert live == picture(Lens(registry), Ui()) != before
    assert (lens.now, lens.wall) == (clock.now, 7.0)
    assert {entry_id.node_id for entry_id in lens.order} == {row.node_id for row in registry.snapshot()}
