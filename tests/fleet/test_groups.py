"""The table in groups by a label."""

from __future__ import annotations

import re

import pytest

from edge.fleet.entry import EntryId
from edge.fleet.groups import is_head
from edge.fleet.lens import Ui, count_totals
from tests.fixtures.examples import NOW, example_registry, shared_registry
from tests.fixtures.screens import Screen


def lines_of(screen: Screen) -> list[str]:
    """The groups and nodes on the screen, in their order."""
    return re.findall(r"^│ (?:── (.*?)  |[●◐○✗◌] (Node-\d+(?: \d)?) )", screen.text(), re.MULTILINE)


def shown(screen: Screen) -> list[str]:
    return ["".join(pair) for pair in lines_of(screen)]


def test_nodes_with_the_same_label_stand_together_and_those_without_come_last() -> None:
    screen = Screen(shared_registry(), 160, 70).press("b")
    lines = shown(screen)
    assert [line for line in lines if "Node" not in line] == ["rack=a9", "rack=a10", "rack=a11", "no rack"]  # as people count
    assert lines[:4] == ["rack=a9", "Node-1003", "Node-1006", "Node-1009"]
    assert lines[-4:] == ["no rack", "Node-1000", "Node-1013", "Node-1026"]
    assert len(lines) == 28 + 4
    assert "Nodes · in groups by rack" in screen.text()
    assert [line for line in shown(screen.press("b")) if "Node" not in line] == ["team=ml", "team=vision", "no team"]
    assert screen.press("b").ui.group == ""
    assert screen.nodes() == [f"Node-{1000 + index}" for index in range(28)]


def test_a_group_adds_up_what_it_has() -> None:
    screen = Screen(shared_registry(), 160, 70).press("b", *"sssssss")  # whatever the order
    rows = [row for row in shared_registry().snapshot() if ("rack", "a11") in row.labels]
    totals = dict(screen.lens.groups)["a11"]
    assert totals == count_totals(rows, NOW)
    assert re.search(
        r"── rack=a11  ● 6  ✗ 1  ◌ 1  12 GPUs · utilization 56% · hottest 76°C Node-1020 · .* · power 524 W", screen.text()
    )
    by_gpu = screen.press("g", "/", *"util>50")
    totals = dict(by_gpu.lens.groups)["a11"]
    busy = [one for one in by_gpu.lens.order if not is_head(one) and one.node_id in {row.node_id for row in rows}]
    assert totals.gpus == len([one for one in busy if one.node_id not in ("Node-1011", "Node-1017")])
    assert sum(group.gpus for _, group in by_gpu.lens.groups) == by_gpu.lens.totals.gpus


def test_within_a_group_the_order_is_the_one_that_was_asked_for() -> None:
    registry = shared_registry()
    screen = Screen(registry, 160, 70).press("b", *"ssss")
    rank = [line for line in shown(screen) if "Node" in line]
    loads = {row.node_id: row.vitals.utilization or 0 for row in registry.snapshot()}
    first = rank[:9]
    assert first == sorted(first, key=lambda node_id: -loads[node_id])
    assert [line for line in shown(screen.press("S")) if "Node" in line][:9] == first[::-1]


@pytest.mark.parametrize("height", [70, 24, 15, 10])
@pytest.mark.parametrize("keys", [(), ("g",), ("s", "s", "s", "s")])
def test_keys_go_over_all_entries_and_never_stand_on_a_line_of_a_group(keys: tuple[str, ...], height: int) -> None:
    screen = Screen(shared_registry(), 80, height).press("b", *keys)
    entries = [one for one in screen.lens.order if not is_head(one)]
    seen: list[EntryId | None] = []
    for _ in entries:
        screen.frame()
        seen.append(screen.press("down").ui.selected)
    assert seen == entries
    back: list[EntryId | None] = [entries[-1]]
    for _ in entries[1:]:
        screen.frame()
        back.append(screen.press("up").ui.selected)
    assert back == entries[::-1]
    assert not shown(screen)[0].startswith("Node")  # the first group's line is there again
    for key in ("end", "page up", "page down", "home", "wheel down", "wheel up"):
        screen.press(key).frame()
        assert screen.ui.selected in entries
    assert screen.press("home", "enter").ui.page == entries[0].node_id
    assert screen.press("down").ui.page not in ("", entries[0].node_id)


def test_the_title_counts_entries_and_not_the_lines_of_groups() -> None:
    screen = Screen(shared_registry(), 80, 24).press("b")
    assert "Nodes 1 to 11 of 28 · in groups" in screen.text()
    assert "Nodes 18 to 28 of 28 · in groups" in screen.press("end", "end").text()
    assert "Nodes 8 of 28 · in groups by rack · /rack=a10" in screen.press("/", *"rack=a10").text()
    assert "Nothing matches" in screen.press(*"999").text()


def test_the_first_entry_is_what_enter_opens() -> None:
    assert Screen(shared_registry()).press("b", "enter").ui.page == "Node-1003"


def test_a_grid_has_no_groups_and_the_table_has_them_again() -> None:
    screen = Screen(shared_registry()).press("b", "v")
    assert not screen.lens.groups
    assert "groups" not in screen.text()
    assert screen.press("v").lens.groups


def test_a_fleet_without_labels_says_how_to_get_them() -> None:
    screen = Screen(example_registry(3)).press("b")
    assert "node.pyz --label NAME=VALUE" in screen.text()
    assert screen.ui.group == ""


def test_f_forgets_the_selected_node_and_asks_for_all_of_them_in_groups_too() -> None:
    screen = Screen(shared_registry(), 160, 70).press("b", "F")
    assert "forget 2 nodes" in screen.text()
    screen.press("x").ui = Ui(group="rack", selected=EntryId("Node-1011"))
    screen.lens.refresh(screen.ui)
    assert screen.press("f").ui.selected == EntryId("Node-1014")
    assert "Node-1011" not in shown(screen)
