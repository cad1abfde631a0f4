"""Who holds which GPUs."""

from __future__ import annotations

import re

import pytest

import node_pb2 as pb
from edge import history
from edge.drawing import plain
from edge.fleet.joining import Joining
from edge.fleet.lens import Lens, Ui
from edge.fleet.row import Row
from edge.fleet.screen import About, look, render
from edge.fleet.source import Moment
from edge.fleet.users import User
from server import Registry
from tests.fixtures.examples import WALL, example_registry, example_row
from tests.fixtures.screens import Screen

GIB = 2**30


def used(index: int, *processes: tuple[str, int, float | None]) -> Row:
    """An example node on which these run: user, device, and GiB of its memory."""
    listed = [
        pb.Process(device_index=device, user=user, memory_used_bytes=None if gib is None else round(gib * GIB))
        for user, device, gib in processes
    ]
    return example_row(index)._replace(packed_processes=pb.ProcessList(processes=listed).SerializeToString())


def registry_of_users() -> Registry:
    """Ada has half of the first box and shares a GPU with Bob, who has another box; of one process nobody knows whose it is."""
    registry = example_registry(12)
    registry.restore(used(0, *(("ada", device, 10) for device in range(4)), ("bob", 3, 2.5), ("ada", 3, 1)))
    registry.restore(used(1, ("bob", 0, None)))
    registry.restore(used(2, ("", 1, 3), ("ada", 7, 1)))  # no such device
    registry.restore(used(10, ("ada", 0, 4)))
    registry.restore(used(11, ("ada", 0, 4), ("eve", 1, 4)))  # lost
    return registry


def percents(index: int, *devices: int) -> list[int]:
    frame = example_row(index).vitals.frame
    return [history.newest(frame, device, history.UTILIZATION) or 0 for device in devices]


def test_users_are_added_up_over_nodes_and_each_gpu_once_for_each() -> None:
    screen = Screen(registry_of_users()).press("u")
    ada, bob, unknown = screen.lens.users
    loads = percents(0, 0, 1, 2, 3) + percents(10, 0)
    idle = sum(load < 5 for load in loads)
    assert ada.utilization == pytest.approx(sum(loads) / 500)
    assert ada == User("ada", 5, 45 * GIB, ada.utilization, idle, (("Node-1000", 4), ("Node-1010", 1), ("Node-1011", None)))
    assert bob[:3] == ("bob", 2, round(2.5 * GIB))
    assert bob.nodes == (("Node-1000", 1), ("Node-1001", 1))
    assert unknown[:2] == ("", 1)
    text = screen.text()
    assert re.search(r"USER +GPUS↓ +IDLE +UTIL +MEMORY +NODES ON", text)
    assert re.search(r"│ ada +5 +\d .* \d+% +45.0 GiB +3 Node-1000 \(4\), Node-1010 \(1\), Node-1011 \(—\) ", text)
    assert re.search(r"│ — +1 ", text)
    assert "eve" not in text  # what is not online is not known to be held
    listed = screen.press("home", "enter").nodes()
    assert listed == ["Node-1000", "Node-1002", "Node-1010", "Node-1011"]  # the second names a GPU that it has not


def test_a_gpu_whose_use_is_not_reported_is_held_and_neither_busy_nor_idle() -> None:
    row = used(1, ("ada", 0, None))
    registry = example_registry(0)
    registry.restore(row._replace(vitals=row.vitals._replace(frame=bytes([history.NOT_REPORTED] * 6))))
    (ada,) = Screen(registry).press("u").lens.users
    assert ada == User("ada", 1, None, None, 0, (("Node-1001", 1),))


def test_the_filter_holds_for_users_too() -> None:
    screen = Screen(registry_of_users()).press("u", "/", *"rtx", "enter")
    assert [(user.name, user.gpus) for user in screen.lens.users] == [("ada", 1), ("bob", 1)]
    assert "Users · by GPUs ↓ · /rtx" in screen.text()
    assert screen.press("escape", "g", "u").ui.by_gpu  # of GPUs that match, where the table has a row for each
    assert [user.name for user in screen.press("/", "ctrl-u", *"user=bob", "enter").lens.users] == ["bob", "ada"]
    assert screen.lens.users[0].gpus == 2
    assert "No process on a GPU is known of what the filter matches" in screen.press("/", "ctrl-u", *"user=eve", "enter").text()


def test_a_server_elsewhere_is_asked_who_the_users_are() -> None:
    now = [50.0]

    class Elsewhere(Moment):
        def clock(self) -> float:
            return now[0]

    lens, ui = Lens(Elsewhere(50.0, WALL, [example_row(0)], ()), is_here=False), Ui(users=True)
    about = About("10.0.0.5", Joining(is_secure=False, addresses=()), is_here=False)

    def text() -> str:
        lens.refresh(ui)
        return plain(render(look(lens, ui, about, 100, 30), 100, 30))

    assert "The server is asked what runs on its nodes …" in text()
    now[0] += 4
    assert "No process on a GPU is known" in text()


def test_enter_shows_what_a_user_holds() -> None:
    screen = Screen(registry_of_users()).press("/", *"node-10", "enter", "u", "down", "down")
    assert screen.ui.user == "bob"
    assert screen.press("enter").nodes() == ["Node-1000", "Node-1001"]
    assert screen.ui.filter == "node-10 user=bob"
    assert screen.press("u", "home", "enter").ui.filter == "node-10 user=ada"  # one after the other, not both
    assert "do not tell" in screen.press("escape", "u", "end", "enter").text()
    assert screen.ui.users
    registry = example_registry(0)
    registry.restore(used(0, ("x y", 0, 1)))
    registry.restore(used(1, ("x", 0, 1)))
    screen = Screen(registry).press("u", "end", "enter")
    assert screen.ui.filter == 'user="x y"'
    assert screen.nodes() == ["Node-1000"]
    assert screen.press("u", "home", "enter").ui.filter == 'user="x y"'
    for name in ("a|b", "a,b", "a\x1b[2J", "a" * 200):
        registry = example_registry(0)
        registry.restore(used(2, (name, 0, 1)))
        assert "no filter can say this name" in Screen(registry).press("u", "enter").text()


def test_users_are_sorted_and_scrolled() -> None:
    registry = example_registry(0)
    for index in range(18, 138, 3):
        registry.restore(used(index, *((f"user{index}", device, index) for device in range(index % 7 + 1))))
    screen = Screen(registry, 80, 24).press("u")
    assert "Users 1 to 18 of 40 · by GPUs ↓" in screen.text()
    most = screen.lens.users[0]
    assert most.gpus == 7
    assert screen.press("S").lens.users[0].gpus == 1
    for sort in ("idle GPUs", "utilization", "memory", "nodes", "user"):
        assert screen.press("s").ui.users_sort == sort
    assert [user.name for user in screen.lens.users[27:31]] == ["user99", "user102", "user105", "user108"]  # as people count
    screen.press("end", "end")
    assert "Users 23 to 40 of 40 · by user ↑" in screen.text()
    assert "user135" in screen.text()
    assert screen.press(*["up"] * 20).ui.user == "user75"
    assert "Users 20 to 37 of 40" in screen.text()
    assert screen.press("S").text()
    assert screen.ui.user == "user75"
    assert "user75" in screen.text()
    assert "user75" in screen.press("?", "x").text()
    assert screen.press("q").ui.users is False
