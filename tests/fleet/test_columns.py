"""The columns of the table."""

from __future__ import annotations

import pytest

from edge.drawing import plain
from edge.fleet.columns import METER_CELLS, metric_spans, natural
from edge.fleet.entry import EntryId, make_entries
from edge.fleet.intake import capacities_of
from edge.fleet.metrics import METRICS
from tests.fixtures.examples import NOW, example_registry, example_row
from tests.fixtures.screens import Screen, frame_of


def test_order_is_by_name_as_people_count() -> None:
    ids = ["Node-10", "10", "0", "9", "node-2", "Node-9", "box", "²", "Node-9b", "Node-", "Node-008", "Node", "Node-9-2"]
    assert sorted(ids, key=natural) == [
        "0", "9", "10", "Node", "Node-", "Node-008", "Node-9", "Node-9-2", "Node-9b", "Node-10", "box", "node-2", "²",
    ]  # fmt: skip


def test_what_names_are_sorted_by_takes_little_more_than_they_do() -> None:
    """The keys of a hundred thousand names are kept, whoever has sent these."""
    assert len(natural("1a" * 31)) < 100


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((80, 24), ("NODE", "HOSTNAME", "UTIL", "MEM", "TEMP", "POWER", "AGE")),
        ((50, 15), ("NODE", "UTIL", "MEM", "TEMP", "AGE")),
        ((40, 10), ("NODE", "UTIL", "TEMP")),
    ],
)
def test_a_narrow_screen_keeps_what_matters_most(size: tuple[int, int], kept: tuple[str, ...]) -> None:
    text = plain(frame_of(list(map(example_row, range(24))), *size))
    (titles,) = [line for line in text.splitlines() if "NODE↑" in line]
    assert all(title in titles for title in kept)
    assert "● Node-1000" in text
    assert text.splitlines()[-1].startswith(" q quit")
    assert ("Events" in text) == (size[1] >= 16)


def test_sensors_that_hang_are_told_from_a_box_that_is_dead() -> None:
    registry = example_registry(3)
    registry.restore(example_row(0)._replace(sample_at=NOW - 42))
    line = next(line for line in Screen(registry).text().splitlines() if "● Node-1000" in line)
    assert "ONLINE" in line
    assert "~42s" in line


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15)])
def test_an_age_of_minutes_is_whole(size: tuple[int, int]) -> None:
    registry = example_registry(3)
    registry.restore(example_row(0)._replace(sample_at=NOW - 605))
    assert "~10m05s │" in Screen(registry, *size).text()


@pytest.mark.parametrize(("interval_seconds", "shown"), [(0, "~42s"), (1, "~42s"), (60, " 0s"), (8, "~42s"), (9, " 0s")])
def test_sensors_hang_by_the_cadence_that_the_box_was_set_to(interval_seconds: int, shown: str) -> None:
    row = example_row(0)
    info = row.info
    info.sampling_interval_milliseconds = 1000 * interval_seconds
    registry = example_registry(1)
    registry.restore(row._replace(sample_at=NOW - 42, capacities=capacities_of(info)))
    line = next(line for line in Screen(registry).text().splitlines() if "● Node-1000" in line)
    assert shown in line


def test_readings_of_sensors_that_hang_are_grey_and_not_added_up() -> None:
    registry = example_registry(2)
    screen = Screen(registry, 80, 24)
    known = screen.lens.totals.gpus
    hung = example_row(0)._replace(sample_at=NOW - 42)
    registry.restore(hung)
    screen = Screen(registry, 80, 24)
    assert screen.lens.totals.gpus == known - len(hung.capacities.devices)
    for keys, said in (((), "Node-1000"), (("down", "enter"), "its sensors are silent for 42s"), (("v",), "~ Node-1000")):
        shown = Screen(registry, 160, 45).press(*keys)
        assert said in shown.text()
        styles = {style for line in shown.frame()[4:] for text, style in line if "%" in text and "│" not in text}
        assert keys != ("down", "enter") or styles <= {"dim"}
    line = next(line for line in Screen(registry).frame() if any("Node-1000" in text for text, _ in line))
    assert {style for text, style in line if "%" in text} == {"dim"}
    assert Screen(registry).press("/", *"sample>30s", "enter").nodes() == ["Node-1000"]


def test_a_device_that_cannot_be_read_is_told_beside_the_name_however_narrow_it_is() -> None:
    registry = example_registry(2)
    row = example_row(0)
    registry.restore(row._replace(vitals=row.vitals._replace(errors=2)))
    for size in ((160, 45), (80, 24), (50, 15), (40, 10)):
        assert "Node-1000 ✗2" in Screen(registry, *size).text()
    assert Screen(registry).press("/", *"failed>0", "enter").nodes() == ["Node-1000"]


def test_sorted_by_age_those_that_are_well_keep_their_places() -> None:
    registry = example_registry(20)
    registry.restore(example_row(3)._replace(sample_at=NOW - 42))  # its sensors hang
    screen = Screen(registry).press("S", *"sssssssss")
    while screen.ui.sort != "age":
        screen.press("s")
    well = [f"Node-{1000 + index}" for index in range(20) if index not in (3, 6, 11, 17)]
    assert screen.nodes() == ["Node-1003", "Node-1011", "Node-1017", "Node-1006", *well]
    for index in (0, 9):
        registry.restore(example_row(index)._replace(heartbeat_at=NOW - 0.99 + index / 10))
    assert Screen(registry).press(*"ssssssss").ui.sort == "age"
    assert Screen(registry).press(*"ssssssss").nodes() == ["Node-1003", "Node-1011", "Node-1017", "Node-1006", *well]


def test_a_metric_without_a_history_has_its_meter_and_its_colour() -> None:
    registry = example_registry(1)
    (row,) = registry.snapshot()
    (entry,) = make_entries([(EntryId(row.node_id), row)], NOW)
    (power,) = (metric for metric in METRICS if metric.name == "power")
    metric = power._replace(meter=lambda _: 0.5, style=lambda _: "bold red", colours_number=True)
    spans = metric_spans(metric, entry, power.column.width + METER_CELLS + 1)
    assert plain([spans]).startswith("████····")
    assert spans[-1][1] == "bold red"
    assert metric_spans(power, entry, power.column.width) == [(power.text(row.vitals), "")]
