"""Which entries are shown, in which order, what they add up to; and a picture that is frozen."""

from __future__ import annotations

import pytest

from edge.fleet.lens import EVENTS_KEPT, Lens, Ui, count_totals
from edge.fleet.row import Vitals
from server import Registry
from tests.fixtures.examples import NOW, example_registry, example_row
from tests.fixtures.screens import Screen
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
