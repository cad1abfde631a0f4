"""The screens, key by key and at every size.

The golden texts lie in golden/: `UPDATE_GOLDEN=1 python3 build.py test -k golden` remakes them.
"""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import node
import node_pb2 as pb
import server
from conftest import ROOT, Program, Terminal, eventually

Start = Callable[..., Program]
Open = Callable[..., Terminal]
NOW, WALL = 1000.0, 1_800_000_000.0
SIZES = [(160, 45), (80, 24), (50, 15), (40, 10), (39, 9), (250, 70), (160, 12), (45, 60), (1, 1), (0, 0)]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def example_registry(count: int = 28) -> server.Registry:
    registry = server.Registry(1.0, 100_000, clock=lambda: NOW)
    for row in map(server.example_row, range(count)):
        registry.restore(row)
    return registry


class Screen:
    """The server's screen without a terminal: keys go in, text comes out."""

    def __init__(self, registry: server.Registry, width: int = 160, height: int = 45) -> None:
        self.lens, self.ui = server.Lens(registry), server.Ui()
        self.width, self.height = width, height

    def press(self, *keys: str) -> Screen:
        for key in keys:
            self.ui = server.press(self.ui, key, self.lens, self._room())
        return self

    def frame(self) -> list[server.Line]:
        self.ui = server.follow(self.ui, self.lens, self._room())
        event = server.Event(WALL - 31, "lost", "Node-1011", "no heartbeat for 10s; the stream broke")
        fleet = server.look(self.lens, self.ui, self.width, self.height, "[::]:50051", [event])
        return server.render(fleet._replace(wall=WALL), self.width, self.height)

    def text(self) -> str:
        return server.plain(self.frame())

    def nodes(self) -> list[str]:
        """The ids in the table, in their order."""
        return re.findall(r"^│ [●◐○✗◌] (Node-\d+(?: \d+)?) ", self.text(), re.MULTILINE)

    def _room(self) -> server.Room:
        return server.room_of(self.ui, self.lens, self.width, self.height)


SCREENS: dict[str, tuple[str, ...]] = {
    "table": (),
    "gpus": ("g", *"ssssss"),
    "page": ("down", "down", "down", "down", "enter"),
    "page-lost": (*"/1011", "enter", "enter"),
    "grid": ("g", "v"),
    "help": ("?",),
    "filter": ("/", *"h200 temp>75"),
    "frozen": ("p",),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("screen", SCREENS)
def test_a_frame_has_exactly_its_size(screen: str, size: tuple[int, int]) -> None:
    frame = Screen(example_registry(), *size).press(*SCREENS[screen]).frame()
    assert len(frame) == size[1]
    assert {sum(server.cells(text) for text, _ in line) for line in frame} <= {size[0]}


def golden_frames() -> dict[str, str]:
    """Every screen at three sizes, by file name."""
    frames = {}
    for width, height in SIZES[:3]:
        for name, keys in SCREENS.items():
            frames[f"server-{name}-{width}x{height}.txt"] = Screen(example_registry(), width, height).press(*keys).text()
        for seed, name in ((1, "8-gpus"), (2, "1-gpu"), (8, "host")):
            frames[f"node-{name}-{width}x{height}.txt"] = node.plain(node.render(node_view(seed), width, height, WALL, 0))
    return frames


def node_view(seed: int) -> node.View:
    """A simulated node after two minutes."""
    seconds = iter(range(10_000))
    hardware = node.SimulatedHardware(seed, clock=lambda: next(seconds))
    state = node.NodeState("Node-8821", "10.0.0.5:50051", node.make_info(hardware, ""), 1.0, clock=lambda: 0.0)
    for sequence in range(1, 131):
        state.publish(node.take_sample(hardware, sequence, 0, lambda: 0.0))
    state.publish_processes(pb.ProcessList(processes=hardware.processes()))
    log = (node.LogLine(WALL, "info", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),)
    return state.view()._replace(log=log, link=node.Link("connected", sessions=1, round_trip_seconds=0.0012, interval_seconds=1))


def test_golden_texts() -> None:
    folder = ROOT / "golden"
    for name, text in golden_frames().items():
        if os.environ.get("UPDATE_GOLDEN"):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text + "\n")
        assert (folder / name).read_text() == text + "\n", f"{name}: is the change meant? Then UPDATE_GOLDEN=1, see above"


def test_pictures_are_the_same_to_the_byte(tmp_path: Any) -> None:
    for module in (server, node):
        module.screenshots(tmp_path / "one")
        module.screenshots(tmp_path / "two")
    pictures = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(pictures) >= 3
    for name in pictures:
        one, two, kept = (folder / name for folder in (tmp_path / "one", tmp_path / "two", ROOT / "docs"))
        assert one.read_bytes() == two.read_bytes() == kept.read_bytes()


# ---- Keys ----


def test_the_selection_moves_and_the_table_follows_it() -> None:
    screen = Screen(example_registry(100), 80, 24)
    shown = len(screen.nodes())
    assert screen.ui.selected is None
    assert screen.press("down").ui.selected == server.Key("Node-1000")
    assert screen.press("down").ui.selected == server.Key("Node-1001")
    assert screen.press("end").ui.selected == server.Key("Node-1099")
    assert screen.nodes()[-1] == "Node-1099"
    screen.press("page up")
    assert screen.ui.selected == server.Key(f"Node-{1099 - shown}")
    screen.frame()
    assert screen.press("home").nodes()[0] == "Node-1000"
    assert "1 to 13 of 100" in screen.text()


def test_the_selection_stays_on_its_node_when_rows_move() -> None:
    screen = Screen(example_registry(60), 80, 24).press("down", "down")
    selected = screen.ui.selected
    screen.press(*"sssssS")
    assert screen.ui.sort == "memory"
    assert selected
    assert screen.ui.selected == selected
    assert selected.node_id in screen.nodes()


def test_sorting_puts_what_has_no_value_last_in_both_directions() -> None:
    registry = example_registry(5)
    registry.restore(server.example_row(5)._replace(vitals=server.Vitals()))
    screen = Screen(registry).press(*"ssssss")
    hottest = [row.vitals.celsius for row in map(server.example_row, range(5))]
    order = [f"Node-{1000 + index}" for index in sorted(range(5), key=lambda index: -(hottest[index] or 0))]
    assert screen.ui.sort == "temperature"
    assert screen.nodes() == [*order, "Node-1005"]
    assert screen.press("S").nodes() == [*order[::-1], "Node-1005"]
    assert "by temperature ↑" in screen.text()


def test_natural_order() -> None:
    names = ["Node-10", "Node-9", "box", "Node-9a", "Node-", "9"]
    assert sorted(names, key=server.natural) == ["9", "Node-", "Node-9", "Node-9a", "Node-10", "box"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("state:lost", {11}),
        ("state:l", {6, 11, 17}),
        ("edge-03", {3}),
        ("10.0.0.127", {27}),
        ("RTX edge-1", {10, 13, 16, 19}),
        ("age>20", {11}),
        ("nothing-like-this", set()),
        ("temp>", set(range(28))),
        ("state:foo edge-03", {3}),
    ],
)
def test_filters(text: str, wanted: set[int]) -> None:
    screen = Screen(example_registry()).press("/", *text, "enter")
    assert screen.nodes() == [f"Node-{1000 + index}" for index in sorted(wanted)]


def test_filters_compare_readings() -> None:
    rows = {f"Node-{1000 + index}": server.example_row(index).vitals for index in range(28)}
    cases: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("temp>=80", lambda vitals: vitals.celsius >= 80),
        ("util<10", lambda vitals: vitals.utilization * 100 < 10),
        ("mem>90", lambda vitals: vitals.memory * 100 > 90),
        ("power>3000 temp<80", lambda vitals: vitals.milliwatts > 3_000_000 and vitals.celsius < 80),
        ("power>3kW mem>=50%", lambda vitals: vitals.milliwatts > 3_000_000 and vitals.memory >= 0.5),
    )
    for text, wanted in cases:
        assert Screen(example_registry()).press("/", *text).nodes() == [name for name, vitals in rows.items() if wanted(vitals)]


def test_the_filter_narrows_as_one_types_and_keys_are_text_then() -> None:
    screen = Screen(example_registry()).press("/", "q", "g")
    assert screen.ui.filter == "qg"
    assert screen.nodes() == []
    assert "Nothing matches" in screen.text()
    assert len(screen.press("\x7f", "\x7f", *"1003").nodes()) == 1
    assert screen.press("enter", "escape").ui.filter == ""
    assert screen.press("/", *"x" * 200).ui.filter == "x" * 60
    assert screen.press("\x15").ui.filter == ""


@pytest.mark.parametrize("term", ["temp>", "power>1kg", "state:foo", "speed>3", "age>1m>2"])
def test_a_term_that_cannot_be_read_restricts_nothing_and_is_named(term: str) -> None:
    screen = Screen(example_registry()).press("/", *f"{term} edge-03", "enter")
    assert screen.nodes() == ["Node-1003"]
    assert f"not understood: {term} " in screen.text()


def test_ages_in_other_units() -> None:
    assert Screen(example_registry()).press("/", *"age>0.5m").nodes() == ["Node-1011"]
    assert Screen(example_registry()).press("/", *"age>1h").nodes() == []


def test_the_selection_stays_where_gpus_take_the_place_of_nodes_and_behind_a_filter() -> None:
    screen = Screen(example_registry()).press("down", "down", "down", "down", "g")
    assert screen.ui.selected == server.Key("Node-1003", 0)
    screen.press("/", *"edge-05", "enter").frame()
    assert screen.press("escape", "g").ui.selected == server.Key("Node-1003")


def test_the_neighbour_is_selected_when_a_node_is_forgotten() -> None:
    registry = example_registry()
    screen = Screen(registry).press("/", *"state:l", "enter", "down", "down")
    assert screen.ui.selected == server.Key("Node-1011")
    screen.ui = server.forget(screen.ui, screen.lens, registry)
    assert screen.ui.selected == server.Key("Node-1017")
    screen.ui = server.forget(screen.ui, screen.lens, registry)
    assert screen.ui.selected == server.Key("Node-1006")
    assert server.forget(screen.ui, screen.lens, registry) == screen.ui  # it is only late
    assert {row.node_id for row in registry.snapshot()}.isdisjoint({"Node-1011", "Node-1017"})


def test_the_page_of_a_node_that_is_gone_closes() -> None:
    registry = example_registry()
    screen = Screen(registry).press("/", *"1011", "enter", "enter")
    assert "GPU 0" in screen.text()
    registry.forget("Node-1011")
    screen.frame()
    assert screen.ui.page == ""


def test_the_totals_count_each_gpu_once_and_only_what_is_online() -> None:
    rows = [server.example_row(index) for index in (0, 1, 6)]  # 8 GPUs, 1 GPU; and 8 of a node that is late
    totals = server.count_totals(rows, NOW)
    eight, one = (row.vitals.utilization or 0 for row in rows[:2])
    assert totals.gpus == 9
    assert totals.utilization == pytest.approx((8 * eight + one) / 9)
    assert totals.hottest in rows[:2]


def test_a_row_for_each_gpu() -> None:
    screen = Screen(example_registry(3)).press("g")
    assert screen.nodes() == [*(f"Node-1000 {index}" for index in range(8)), "Node-1001 0", "Node-1002 0", "Node-1002 1"]


def test_the_grid_of_a_small_fleet_has_names_and_values() -> None:
    screen = Screen(example_registry(6), 80, 24).press("v")
    wide = screen.text()
    for index in range(6):
        assert re.search(rf"[▁▂▃▄▅▆▇█] Node-{1000 + index} +\d+%", wide)
    assert "↑↓←→ choose a cell" in wide
    assert re.search(r"● Node-1000  edge-00  util +\d+%", screen.press("down").text())
    assert screen.press("s").ui.metric == "memory"
    assert re.search(r"Node-1003 +[\d.]+ kW", screen.press("s", "s").text())
    assert screen.press("s").ui.metric == "utilization"
    assert screen.ui.sort == "name"  # the cells keep their places


def test_a_full_grid_has_a_cell_for_each_gpu_and_moves_by_lines() -> None:
    screen = Screen(example_registry(150), 80, 24).press("g", "v")
    cells = [line[2:-2] for line in screen.text().splitlines()[4:17]]
    assert sum(len(line.strip()) for line in cells) == sum(len(server.example_row(index).info.devices) for index in range(150))
    order = screen.lens.order(screen.ui)
    assert screen.press("down").ui.selected == order[0]
    assert screen.press("down").ui.selected == order[76]
    assert screen.press("left").ui.selected == order[75]
    assert "◐" in screen.text()


def test_a_nodes_page_and_back_and_on_to_the_next() -> None:
    screen = Screen(example_registry()).press("down", "down", "down", "down", "enter")
    text = screen.text()
    for part in ("Node-1003", "GPU 7 · NVIDIA H200", "round trip 1.2 ms", "agent 0.1.0", "from 10.0.0.103"):
        assert part in text
    assert "Node-1004" in screen.press("down").text()
    assert "GPU 7" not in screen.press("escape").text()


def test_keys_that_a_page_does_not_name_leave_the_table_behind_it_alone() -> None:
    screen = Screen(example_registry()).press("g", "down", "enter")
    before = screen.ui
    assert screen.press(*"gvsS/").ui == before
    assert screen.press("down").ui.page == "Node-1001"  # the next node, not the next GPU


def test_what_is_stale_is_grey_with_its_age_and_reason() -> None:
    screen = Screen(example_registry())
    for line in screen.frame():
        text = "".join(text for text, _ in line)
        if "Node-1011" in text and "LOST" in text:
            colours = {style for text, style in line if text.strip() and text.strip() not in ("✗", "LOST", "│")}
            assert colours == {"dim"}
            assert "31s" in text
            break
    else:
        pytest.fail("the lost node has no row")
    assert "no heartbeat for 31s" in screen.press(*"/1011", "enter", "enter").text()


def test_sensors_that_hang_are_told_from_a_box_that_is_dead() -> None:
    registry = example_registry(3)
    registry.restore(server.example_row(0)._replace(sample_at=NOW - 42))
    line = next(line for line in Screen(registry).text().splitlines() if "● Node-1000" in line)
    assert "ONLINE" in line
    assert "~42s" in line


def test_a_frozen_picture_does_not_change() -> None:
    registry = example_registry(5)
    screen = Screen(registry).press("p")
    before = screen.text()
    registry.restore(server.example_row(9))
    assert screen.text() == before
    assert "FROZEN" in before
    assert "Node-1009" in screen.press("p").text()


def test_forget_takes_only_what_is_gone() -> None:
    registry = example_registry()
    for node_id in ("Node-1000", "Node-1006", "Node-1011", "Node-1017"):
        registry.forget(node_id)
    gone = {f"Node-{1000 + index}" for index in range(28)} - {row.node_id for row in registry.snapshot()}
    assert gone == {"Node-1011", "Node-1017"}


def test_random_keys_never_break_the_screen() -> None:
    chance = random.Random(1)
    keys = [*"sSgvpf?/q0a>", "up", "down", "left", "right", "page up", "page down", "home", "end", "enter", "escape", "\x7f"]
    for size in ((160, 45), (50, 15)):
        screen = Screen(example_registry(40), *size)
        for _ in range(400):
            frame = screen.press(chance.choice(keys)).frame()
            assert len(frame) == size[1]


# ---- In a real terminal ----


@pytest.fixture
def fleet(start: Start, terminal: Open) -> Terminal:
    """A server's screen with two simulated nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    screen = terminal("server.py", "--listen", address)
    screen.shows("No node yet")
    for seed in ("1", "2"):
        start("node.py", "--server", address, "--id", f"box-{seed}", "--hardware", "simulated", "--seed", seed, "--headless")
    screen.shows("2 online")
    screen.shows("box-2 .*ONLINE .*RTX")
    return screen


def test_every_key_in_a_real_terminal(fleet: Terminal) -> None:
    for keys, wanted in (
        ("?", "any key goes back"),
        ("x", "q quit"),
        ("\x1b[B\x1b[B\r", "GPU 0 · NVIDIA GeForce RTX 4090"),
        ("\x1b[A", "GPU 7 · NVIDIA H200"),
        ("\x1b", "HOSTNAME"),
        ("g", "box-1 7"),
        ("v", "utilization  0 ▁▂▃▄▅▆▇█ 100%"),
        ("s", "memory  0 ▁▂▃▄▅▆▇█ 100%"),
        ("\x1b[C", "● box-1 0  .* util .* mem "),
        ("v", "box-1 7"),
        ("g", "8× H200"),
        ("ssss", "by utilization ↓"),
        ("S", "by utilization ↑"),
        ("p", "FROZEN"),
        ("p", "p freeze"),
        ("/rtx", "Nodes .*/rtx"),
        ("\r\x1b", "box-1"),
    ):
        fleet.press(keys)
        fleet.shows(wanted)
    fleet.press("q")
    assert fleet.wait() == 0
    assert eventually(fleet.is_restored)


def test_a_lost_node_is_forgotten_with_f(fleet: Terminal, start: Start) -> None:
    fleet.press("/box-2\r")
    fleet.shows("Nodes .*/box-2")
    fleet.press("f")  # alive: stays
    fleet.press("\x1b[B")
    fleet.shows("box-2 .*ONLINE")


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15), (40, 10)])
def test_resizing(fleet: Terminal, size: tuple[int, int]) -> None:
    fleet.resize(*size)
    eventually(lambda: fleet.text().splitlines()[-1].startswith(" q quit") and "box-1" in fleet.text())
    fleet.resize(20, 4)
    fleet.shows("too small")
    fleet.resize(160, 45)
    fleet.shows("box-2 .*ONLINE")


def test_suspend_and_resume(fleet: Terminal) -> None:
    fleet.press("\x1a")
    status = pathlib.Path(f"/proc/{fleet.process.pid}/stat")
    eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
    assert eventually(fleet.is_restored)
    start = len(fleet.raw)
    fleet.process.send_signal(signal.SIGCONT)
    eventually(lambda: b"\x1b[?1049h" in fleet.raw[start:] and b"Edge fleet" in fleet.raw[start:])


def test_a_frame_sends_only_the_lines_that_changed(fleet: Terminal) -> None:
    start = len(fleet.raw)
    eventually(lambda: fleet.raw[start:].count(b"\x1b[?2026l") >= 2)
    update = fleet.raw[start:].split(b"\x1b[?2026h")[1]
    changed = {int(number) for number in re.findall(rb"\x1b\[(\d+);1H", update)}
    assert changed <= {1, 2, 5, 6}  # the header and the two nodes


def test_a_frozen_picture_sends_nothing(fleet: Terminal) -> None:
    fleet.press("p")
    fleet.shows("FROZEN at")
    start = len(fleet.raw)
    fleet.press("?")
    fleet.shows("any key goes back")
    assert fleet.raw[start:].count(b"\x1b[?2026h") == 1
