"""The columns of the table."""

from __future__ import annotations

import pytest

from edge.drawing import plain
from edge.fleet.columns import METER_CELLS, metric_spans, natural
from edge.fleet.entry import EntryId, make_entries
from edge.fleet.metrics import METRICS
from tests.fixtures.examples import NOW, example_registry, example_row
from tests.fixtures.screens import Screen, frame_of


def test_order_is_by_name_as_people_count() -> None:
    ids = ["Node-10", "node-2", "Node-9", "²", "10", "9", "Node-9b", "Node"]
    assert sorted(ids, key=natural) == ["9", "10", "Node", "Node-9", "Node-9b", "Node-10", "node-2", "²"]


def test_natural_order() -> None:
    names = ["Node-10", "Node-9", "box", "Node-9a", "Node-", "9"]
    assert sorted(names, key=natural) == ["9", "Node-", "Node-9", "Node-9a", "Node-10", "box"]


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
