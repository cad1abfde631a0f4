"""The server's screen at every size, and in real terminals.

The golden texts lie in tests/golden/: `UPDATE_GOLDEN=1 python3 build.py test -k golden` remakes them.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import node_pb2 as pb
from edge.command_line import Endpoint
from edge.drawing import cells, plain
from edge.event_log import Event
from edge.fleet.joining import Web, fetching, web_of
from edge.fleet.row import Row
from edge.fleet.source import MayNot
from edge.hardware.screen import Link
from edge.hardware.screen import View as NodeView
from edge.hardware.screen import render as render_node
from server import Registry
from tests.fixtures.examples import (
    OPEN,
    OPEN_WEB,
    SECURE,
    SECURE_WEB,
    WALL,
    example_registry,
    example_row,
    example_view,
    shared_registry,
)
from tests.fixtures.past import Course, now_of
from tests.fixtures.processes import ROOT, Program, Terminal, eventually
from tests.fixtures.screens import Screen, exact, frame_of
from tests.fixtures.sessions import Stream, unary
from tests.pictures import draw_all

Start = Callable[..., Program]
Open = Callable[..., Terminal]
SIZES = [(160, 45), (80, 24), (50, 15), (40, 10), (39, 9), (250, 70), (160, 12), (45, 60), (1, 1), (0, 0)]
# Clears the screen, paints, sets the title, moves up, turns the writing direction, breaks lines; and rich's markup.
NASTY = "\x1b[2J\x1b[41m\x1b]0;owned\x07\x9b5A\u202e\u2066evil\n\r\t\x00\x7f\x85[red]x[/red][/][bold"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


SCREENS: dict[str, tuple[str, ...]] = {
    "table": (),
    "gpus": ("g", *"ssssss"),
    "page": ("down", "down", "down", "down", "enter"),
    "page-lost": (*"/1011", "enter", "enter"),
    "grid": ("g", "v"),
    "help": ("?",),
    "filter": ("/", *"h200 temp>75"),
    "frozen": ("p",),
    "events": ("e",),
    "question": ("q",),
    "join": ("j",),
    "past": (*"t-90m", "enter"),
    "past-page": ("down", *"t-90m", "enter", "enter", "h"),
    "time": ("t", *"yes"),
}
SHARED: dict[str, tuple[str, ...]] = {  # of a fleet with labels and users
    "users": ("u", "down"),
    "groups": ("b", "s", "down"),
}


# ---- Frames ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("screen", SCREENS)
def test_a_frame_has_exactly_its_size(screen: str, size: tuple[int, int]) -> None:
    frame = Screen(now_of(), *size, past=Course()).press(*SCREENS[screen]).frame()
    assert len(frame) == size[1]
    assert {sum(cells(text) for text, _ in line) for line in frame} <= {size[0]}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("screen", SHARED)
def test_a_frame_of_a_shared_fleet_has_exactly_its_size(screen: str, size: tuple[int, int]) -> None:
    assert exact(Screen(shared_registry(), *size).press(*SHARED[screen]).frame(), *size)


def examples(count: int = 24) -> list[Row]:
    return list(map(example_row, range(count)))


@pytest.mark.parametrize(
    "size", [(160, 45), (120, 36), (80, 24), (60, 16), (50, 15), (40, 10), (39, 9), (40, 9), (1, 1), (7, 0), (0, 7), (0, 0)]
)
@pytest.mark.parametrize("count", [0, 1, 24, 300])
def test_a_table_has_exactly_its_size(size: tuple[int, int], count: int) -> None:
    rows = examples(count)
    wide = [
        row._replace(node_id="机" * 40, address="a" * 300, packed_info=pb.NodeInfo(hostname="机" * 200).SerializeToString())
        for row in rows[:1]
    ]
    assert exact(frame_of(rows, *size), *size)
    assert exact(frame_of(wide + rows[1:], *size), *size)


def test_too_small_a_screen_says_so() -> None:
    assert "too small: 39x9, needs 40x10" in plain(frame_of(examples(), 39, 9))
    assert frame_of(examples(), 0, 0) == []


@pytest.mark.parametrize("keys", [(), ("v",)])
@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15), (40, 10)])
def test_an_empty_fleet_says_what_to_do_and_how_to_close_it(size: tuple[int, int], keys: tuple[str, ...]) -> None:
    text = Screen(example_registry(0), *size).press(*keys).text()
    assert "No node yet" in text
    assert "python3 node.pyz --server 10.0.0.5\n" in re.sub(" +\n", "\n", text)
    assert "To close it: server.pyz --secure" in " ".join(text.split())


# ---- How a box joins ----


@pytest.mark.parametrize("keys", [("j",), ("v", "j"), ("down", "enter", "j"), ("e", "j")])
@pytest.mark.parametrize("width", [78, 80, 160])
def test_a_token_is_alone_in_its_line(width: int, keys: tuple[str, ...]) -> None:
    lines = Screen(example_registry(), width, 24, SECURE).press(*keys).text().splitlines()
    shown = [line.rstrip() for line in lines if "edge1-" in line]
    assert shown == [SECURE.node_token, SECURE.view_token]
    empty = Screen(example_registry(0), width, 24, SECURE).text().splitlines()
    assert [line.rstrip() for line in empty if "edge1-" in line] == [SECURE.node_token]


@pytest.mark.parametrize("size", [(77, 24), (50, 15), (40, 10)])
def test_half_a_token_is_never_shown(size: tuple[int, int]) -> None:
    for screen in (Screen(example_registry(0), *size, SECURE), Screen(example_registry(), *size, SECURE).press("j")):
        text = screen.text()
        assert "edge1-" not in text
        assert "Too narrow for its 78 columns: python3 server.pyz token list" in " ".join(text.split())


def test_half_a_command_is_never_shown() -> None:
    """A key can't be wrapped, and a shell would wait for the quote that ends it."""
    wide = "http://[fd00:1111:2222:3333:4444:5555:6666:7777]:8080/"
    for width in (50, 55, 56, 57, 80):
        for joining, way in (
            (SECURE_WEB, "Too narrow for its 57 columns: python3 server.pyz token list"),
            (OPEN._replace(web=Web(wide, has_agent=True)), "Too narrow for its 65 columns: make the window wider"),
        ):
            text = Screen(example_registry(), width, 90, joining).press("j").text()
            words = " ".join(re.sub(r" \\\s+", " ", text).split())
            commands = [fetching(joining, joining.web, name) for name in ("node.pyz", "SHA256SUMS")] if joining.web else []
            is_narrow = width < int(re.findall(r"\d+", way)[0])
            assert [command in words for command in commands] == [not is_narrow] * 2
            assert (way in words) == is_narrow
            assert ("sha256//" in text) == (joining.is_secure and not is_narrow)


def test_how_a_box_joins_says_why_none_gets_its_agent_here() -> None:
    web = web_of(Endpoint("127.0.0.1", 8080), has_agent=True)
    words = " ".join(Screen(example_registry(), 80, 45, OPEN._replace(web=web)).press("j").text().split())
    assert "No box gets node.pyz from it: this machine alone reaches 127.0.0.1:8080. For boxes: --http 0.0.0.0:8080" in words
    assert "curl" not in words


def test_how_a_box_joins_has_all_that_there_is_to_know() -> None:
    addresses = ("10.0.0.5", *(f"10.0.{number}.5:6000" for number in range(1, 9)), "[fd00::5]:6000")
    for size in ((160, 45), (80, 24), (50, 15), (40, 10)):
        screen = Screen(example_registry(), *size, SECURE._replace(addresses=addresses)).press("j")
        seen, most = screen.text(), screen.room().reach.most
        for _ in range(most):
            seen += screen.press("down").text()
        words = " ".join(seen.replace("\\", "").split())
        assert bool(most) == (size[1] < 24)
        assert all(re.search(rf"(?m)(^|\s){re.escape(address)}(,|\s)", seen) for address in addresses)
        assert "lets a box report" in words
        assert "lets a person see the fleet" in words
        assert "EDGE_TOKEN=TOKEN python3 node.pyz --server 10.0.0.5" in words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"node_token": "", "view_token": ""}, "No node token is valid. Make one here: python3 server.pyz token new --role node"),
        ({"needs_ca": True}, "node.pyz --server 10.0.0.5 --ca FILE Paste this token (0a1b2c, first start) at its prompt: edge1-"),
        (
            {"needs_ca": True, "needs_certificate": True, "node_token": ""},
            "NAME is one that stands in that certificate: the server takes no other. j shows this",
        ),
        ({"node_token": "", "state_folder": "/a b"}, "python3 server.pyz token new --role node --state '/a b'"),
    ],
)
def test_what_to_do_without_a_token_and_with_certificates(changes: dict[str, Any], said: str) -> None:
    assert said in " ".join(Screen(example_registry(0), 80, 24, SECURE._replace(**changes)).text().split())


@pytest.mark.parametrize("width", [40, 50, 79, 80, 160])
@pytest.mark.parametrize("keys", [(), ("p",), ("e",), ("down", "enter"), ("j",), ("/", "x")])
def test_the_header_says_who_gets_in(width: int, keys: tuple[str, ...]) -> None:
    for joining, word, style in ((OPEN, " open ", "yellow"), (SECURE, " secure ", "green")):
        registry = example_registry(400)
        screen = Screen(registry, width, 24, joining).press(*keys)
        registry.restore(example_row(11)._replace(node_id="another"))
        assert (word, style) in screen.frame()[0]


def test_a_command_that_is_too_wide_goes_on_in_the_next_line() -> None:
    address = "[2001:db8:1234:5678:9abc:def0:1234:5678]"
    text = Screen(example_registry(0), 50, 15, OPEN._replace(addresses=(address,))).text()
    assert re.search(rf" python3 node.pyz --server \\ *\n {re.escape(address)}  ", text)


def test_the_screen_at_160_by_45_has_all_columns_and_states() -> None:
    text = plain(frame_of(examples(), 160, 45))
    assert re.search(r"NODE↑ +HOSTNAME +STATE +HARDWARE +UTIL +MEM +TEMP +POWER +AGE", text)
    assert "24 nodes  ● 21 online  ◐ 1 late  ✗ 1 lost  ◌ 1 left" in text
    assert re.search(r"\d+ GPUs · utilization \d+% · hottest \d+°C Node-10\d\d · memory \S+ \wiB of \S+ \wiB · power \S+ kW", text)
    assert re.search(r"● Node-1000 +edge-00 +ONLINE +8× H200 +[▁▂▃▄▅▆▇█]+ [█▏▎▍▌▋▊▉·]+ +\d+% .* \d+°C +\S+ kW +0s", text)
    assert re.search(r"◐ Node-1006 .* LATE", text)
    assert re.search(r"✗ Node-1011 .* LOST .* 31s", text)
    assert re.search(r"◌ Node-1017 .* LEFT", text)
    assert "joined" in text.split("Events")[1]


LONG = "gpu-rack07-eu-west-1.cluster.example.com-node-"


@pytest.mark.parametrize("keys", [("g",), (), ("g", "v"), ("v",)])
@pytest.mark.parametrize("size", [(200, 60), (160, 45), (80, 24), (50, 15)])
def test_a_long_name_keeps_what_tells_it_from_the_next(size: tuple[int, int], keys: tuple[str, ...]) -> None:
    rows = [example_row(0)._replace(node_id=f"{LONG}{number:04}") for number in (1, 2)]
    registry = example_registry(0)
    for row in rows:
        registry.restore(row)
    text = Screen(registry, *size).press(*keys).text()
    if "v" in keys and size[0] == 50 and "g" in keys:
        return  # cells without names
    for number in (1, 2):
        names = re.findall(rf"[●▁▂▃▄▅▆▇█] (g[^ ]*node-{number:04}|g[^ ]*…[^ ]*{number:04})( \d)?", text)
        assert names, text
        assert bool(names[0][1]) == ("g" in keys)
        if size[0] == 200 and "v" not in keys:
            assert names[0][0] == f"{LONG}{number:04}"  # whole, before any graph


@pytest.mark.parametrize("width", [40, 50, 80, 100, 120])
@pytest.mark.parametrize("keys", [(), ("g",)])
def test_names_that_differ_in_their_middle_are_told_apart(width: int, keys: tuple[str, ...]) -> None:
    registry = example_registry(2)
    info = example_row(1).info
    for rack in range(1, 9):
        info.hostname = name = f"cluster-of-eu-west-1a-rack{rack:02}-n2"
        registry.restore(example_row(1)._replace(node_id=name, packed_info=info.SerializeToString()))
    text = Screen(registry, width, 30).press(*keys, "end").text()
    names = re.findall(r"^│ ● ([^ ]*n2)(?: 0)? +([^ ]*n2)?", text, re.MULTILINE)
    assert len(names) == 8
    assert len({name for name, _ in names}) == 8
    assert len({hostname for _, hostname in names}) == (8 if "HOSTNAME" in text else 1)


def test_names_get_their_width_before_graphs_and_by_cells() -> None:
    registry = example_registry(3)
    registry.restore(example_row(3)._replace(node_id="計算節点" * 6 + "🚀1"))
    info = example_row(4).info
    info.hostname = "edge-of-the-world.some.long.domain.example.com"
    registry.restore(example_row(4)._replace(packed_info=info.SerializeToString()))
    for width in range(40, 240, 7):
        screen = Screen(registry, width, 30)
        assert exact(screen.frame(), width, 30)
        assert "🚀1 " in screen.text()
    assert "計算節点" * 6 + "🚀1 " in screen.text()
    assert info.hostname in screen.text()


def test_sparklines_stay_as_long_as_there_is_room_for_one() -> None:
    def sparks(width: int) -> int:
        line = next(line for line in Screen(example_registry(), width, 30).text().splitlines() if "Node-1000" in line)
        return len(re.findall(r"[▁▂▃▄▅▆▇█]{5,} ", line))

    assert [sparks(width) for width in (160, 147, 140, 133)] == [3, 3, 2, 1]


def test_a_filter_shows_its_count_and_its_own_sums() -> None:
    screen = Screen(example_registry(209)).press("/", *"h200 -state:late", "enter")
    matching = [index for index in range(0, 209, 3) if index != 6]
    first, second, title = screen.text().splitlines()[:3]
    assert f"{len(matching)} of 209 nodes match" in first
    assert second.startswith(f" matching: {8 * len(matching)} GPUs · utilization")
    assert f"Nodes {len(matching)} of 209, 1 to " in title
    few = Screen(example_registry(28)).press("/", *"node-1003|node-1004").text()
    assert "Nodes 2 of 28 · /" in few
    assert "2 of 28 nodes match " in few
    assert " matching: 9 GPUs · " in few
    none = Screen(example_registry(28)).press("/", *"no such").text()
    assert "0 of 28 nodes match " in none
    assert "\n nothing matches the filter " in none
    assert "is online" not in none
    assert " matching: no node is online" in Screen(example_registry(28)).press("/", *"state:lost").text()
    assert "1 of 28 nodes matches  ✗ 1 lost" in Screen(example_registry(28)).press("/", *"state:lost").text()
    half_typed = Screen(example_registry(28)).press("/", *"util<").text()
    assert "28 nodes  ●" in half_typed
    assert "matching" not in half_typed


def test_the_sums_of_gpus_are_of_those_that_match() -> None:
    registry = example_registry(9)
    screen = Screen(registry).press("g", "/", *"util<50")
    devices = [device for row in registry.snapshot() if row.node_id != "Node-1006" for device in row.sample.devices]
    matching = [device for device in devices if device.utilization_percent < 50]
    assert screen.lens.totals.gpus == len(matching) < len(devices)
    assert screen.lens.totals.milliwatts == sum(device.power_milliwatts for device in matching)
    assert screen.lens.totals.memory_used_bytes == sum(device.memory_used_bytes for device in matching)
    assert f"matching: {len(matching)} GPUs" in screen.text()


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_fact_of_a_page_is_parted_and_no_dot_stands_alone(width: int) -> None:
    info = example_row(0).info
    info.session_number, info.last_error, info.agent_version = 4, "the server took too long to answer, twice", " "
    registry = example_registry(1)
    registry.restore(example_row(0)._replace(packed_info=info.SerializeToString(), token_id="d8d213"))
    lines = [line.strip() for line in Screen(registry, width, 40).press("enter").text().splitlines()[2:8]]
    assert not [line for line in lines if line.startswith("·") or line.endswith("·") or "·  ·" in line]
    assert "reconnected 3×" in " ".join(lines)
    assert "token d8d213" in " ".join(lines)
    assert "agent" not in " ".join(lines)


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
    assert sum(len(line.strip()) for line in cells) == sum(len(example_row(index).info.devices) for index in range(150))
    order = screen.lens.order
    assert screen.press("down").ui.selected == order[0]
    assert screen.press("down").ui.selected == order[76]
    assert screen.press("left").ui.selected == order[75]
    assert "◐" in screen.text()


@pytest.mark.parametrize("keys", [("g",), ("g", "v"), ("g", "v", "down")])
def test_a_frame_parses_each_message_of_a_node_once(keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: collections.Counter[tuple[str, str]] = collections.Counter()

    def counted(part: str, parse: Callable[[Row], Any]) -> property:
        def count(row: Row) -> Any:
            parsed[part, row.node_id] += 1
            return parse(row)

        return property(count)

    screen = Screen(example_registry(40)).press(*keys)
    for part in ("info", "sample"):
        monkeypatch.setattr(Row, part, counted(part, getattr(Row, part).fget))
    screen.frame()
    assert set(parsed.values()) == {1}
    room = screen.room()
    assert {node_id for part, node_id in parsed if part == "sample"} == {
        entry_id.node_id for entry_id in screen.lens.order[: room.entries]
    }


# ---- Golden texts and pictures ----


def golden_frames() -> dict[str, str]:
    """Every screen at three sizes, by file name."""
    frames = {}
    for width, height in SIZES[:3]:
        for name, keys in SCREENS.items():
            screen = Screen(now_of(), width, height, past=Course())
            frames[f"server-{name}-{width}x{height}.txt"] = screen.press(*keys).text()
        for name, keys in SHARED.items():
            frames[f"server-{name}-{width}x{height}.txt"] = Screen(shared_registry(), width, height).press(*keys).text()
        for joining, name in ((OPEN, "open"), (SECURE, "secure"), (OPEN_WEB, "open-web")):
            frames[f"server-empty-{name}-{width}x{height}.txt"] = Screen(example_registry(0), width, height, joining).text()
        frames[f"server-join-secure-{width}x{height}.txt"] = Screen(example_registry(), width, height, SECURE).press("j").text()
        frames[f"server-join-web-{width}x{height}.txt"] = Screen(example_registry(), width, height, SECURE_WEB).press("j").text()
        frames[f"server-several-{width}x{height}.txt"] = Screen(several_servers(), width, height).text()
        for seed, name in ((1, "8-gpus"), (2, "1-gpu"), (8, "host")):
            frames[f"node-{name}-{width}x{height}.txt"] = plain(render_node(node_view(seed), width, height, WALL, 0))
    return frames


def several_servers() -> Registry:
    """What --attach shows of two servers, the second of which is gone."""
    registry = Registry(1.0, 100, clock=lambda: 1000.0)
    for index in range(6):
        row = example_row(index)._replace(server="rack-a.example")
        registry.restore(row if index % 2 else row._replace(server="10.0.0.6:6000", known_until=990.0))
    notice = "nothing listens on 10.0.0.6:6000 (is the server running?); next try in 7s"
    registry.notices = lambda: [notice]  # type: ignore[method-assign]
    return registry


def test_of_a_server_that_is_gone_nothing_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes are as they were, grey, and of no sum."""
    screen = Screen(several_servers(), 160, 45)
    lines = {text: style for line in screen.frame() for text, style in line if text.strip() in ("rack-a.example", "10.0.0.6:6000")}
    assert {text.strip(): style for text, style in lines.items()} == {"rack-a.example": "", "10.0.0.6:6000": "dim"}
    assert re.search("6 nodes +● 3 online +[?] 3 unheard", screen.text())
    styles = {style for _, style in screen.frame()[4][1:-1]}
    assert styles == {"", "dim", "bold yellow"}  # no number is as if it were live
    assert screen.text().count(" UNHEARD ") == 3
    assert "? UNHEARD" in screen.press("?").text()
    screen.press("?")
    assert screen.lens.totals.gpus == sum(len(example_row(index).info.devices) for index in (1, 3, 5))
    assert "its server has not been heard for 10s" in screen.press("enter").text()
    assert " at 10.0.0.6:6000" in screen.text()


def test_who_may_not_forget_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = example_registry(14)

    def refuse(_node_id: str) -> bool:
        raise MayNot("10.0.0.5 forgets a node only for its own user")

    monkeypatch.setattr(registry, "forget", refuse)
    screen = Screen(registry)
    assert "10.0.0.5 forgets a node only for its own user" in screen.press("down", "f").text()
    assert "forgets a node" not in screen.press("F").text()
    assert "10.0.0.5 forgets a node only for its own user" in screen.press("y").text()
    assert len(screen.nodes()) == 14


def test_one_sorts_by_the_server_only_where_there_are_several() -> None:
    sorts = {name: [Screen(registry).press(*"s" * count).ui.sort for count in range(12)] for name, registry in (
        ("one", example_registry(3)), ("several", several_servers()),
    )}  # fmt: skip
    assert "server" not in sorts["one"]
    assert "server" in sorts["several"]


@pytest.mark.parametrize("width", [40, 50, 80, 120, 160, 240])
def test_what_is_wrong_is_said_first_in_as_much_room_as_there_is(width: int) -> None:
    frame = Screen(several_servers(), width, 24).frame()
    assert exact(frame, width, 24)
    assert plain(frame[1:2]).startswith(" nothing listens on 10.0.0.6:6000")
    assert ("GPUs" in plain(frame[1:2])) == (width >= 120)


def node_view(seed: int) -> NodeView:
    """A simulated node after two minutes."""
    log = (Event(WALL, "info", "", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),)
    link = Link("connected", sessions=1, round_trip_seconds=0.0012, interval_seconds=1)
    return example_view(seed, samples=130, with_processes=True)._replace(log=log, link=link)


def test_golden_texts() -> None:
    folder = ROOT / "tests" / "golden"
    for name, text in golden_frames().items():
        if os.environ.get("UPDATE_GOLDEN"):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text + "\n")
        assert (folder / name).read_text() == text + "\n", f"{name}: is the change meant? Then UPDATE_GOLDEN=1, see above"


def test_pictures_are_the_same_to_the_byte(tmp_path: Any) -> None:
    for folder in ("one", "two"):
        draw_all(tmp_path / folder)
    pictures = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(pictures) >= 3
    for name in pictures:
        one, two, kept = (folder / name for folder in (tmp_path / "one", tmp_path / "two", ROOT / "docs"))
        assert one.read_bytes() == two.read_bytes() == kept.read_bytes()


# ---- What a node says is text, and nothing else ----


def spoil(message: Any) -> Any:
    """NASTY in every text of a message, and of the messages in it."""
    for field in message.DESCRIPTOR.fields:
        if field.name == "labels":  # of which such are refused
            continue
        repeated = isinstance(getattr(message, field.name), type(pb.HeartbeatRequest().backlog)) or field.is_repeated
        if field.type == field.TYPE_STRING:
            setattr(message, field.name, NASTY)
        elif field.type == field.TYPE_MESSAGE and repeated:
            spoil(getattr(message, field.name).add())
        elif field.type == field.TYPE_MESSAGE and field.name != "started_at":
            spoil(getattr(message, field.name))
    return message


def nasty_heartbeat() -> pb.HeartbeatRequest:
    request: pb.HeartbeatRequest = spoil(pb.HeartbeatRequest())
    request.node_id = "[red]box[/] [bold"  # what has control characters is refused
    del request.backlog[:]
    request.leaving = False
    device = request.sample.devices[0]
    device.utilization_percent, device.temperature_celsius = 50, 60
    return request


def is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")


def test_every_text_is_spoilt() -> None:
    texts = str(nasty_heartbeat())
    for name in ("hostname", "agent_version", "instance_id", "notice", "model", "operating_system", "uuid", "name", "error"):
        assert re.search(rf"\b{name}: .*owned", texts), name


def test_nothing_a_node_sends_moves_the_operators_cursor_or_colour(terminal: Open) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0")
    address = screen.shows(r"listening on (127\.0\.0\.1:\d+)")[1]
    stream = Stream(address, "", "")
    try:
        stream.outbox.put(nasty_heartbeat())
        stream.answer()
        Stream(address, "box\x1b[2J\x07", "").status()
        Stream(address, "clone", NASTY, sample=pb.Sample(devices=[pb.DeviceSample(error="x" * 300)])).status()
        screen.shows(r"\[red\]box\[/\] \[bold")
        screen.shows("refused")
        screen.press("\x1b[B\x1b[A")
        screen.shows("�")
        eventually(lambda: {line[0] for line in screen.text().splitlines()[2:-1]} <= set("╭│╰"))  # the whole table is drawn
        lines = screen.text().splitlines()
        assert lines[0].startswith(" Edge fleet")
        assert lines[2].startswith("╭─ Nodes ─")
        assert lines[-1].startswith(" q quit")
        panel = lines[2:-1]
        assert {line[159] for line in panel} <= set("╮│╯")  # nothing wrapped, nothing moved
        assert screen.cell("�").bg == "default"
        assert screen.cell("evil").bg == "default"
        for stolen in (
            b"owned\x07",
            b"\x1b]",
            b"\x1b[41m",
            b"\x9b5A",
            b"\x07",
            "\u202e".encode(),
            "\u2066".encode(),
            "\x85".encode(),
        ):
            assert stolen not in screen.raw
        screen.press("qq")
        assert screen.wait() == 0
        assert screen.is_restored()
    finally:
        stream.close()


@pytest.mark.parametrize("option", ["--headless", "--json"])
def test_no_control_character_reaches_a_line_or_json(start: Start, option: str) -> None:
    program = start("server.py", "--listen", "127.0.0.1:0", option)
    address = program.line(r"listening on (\S+:\d+)")[1]
    stream = Stream(address, "", "")
    try:
        stream.outbox.put(nasty_heartbeat())
        stream.answer()
        Stream(address, "box\x1b[2J\x07", "").status()
        if option == "--json":
            (row,) = program.json_line(lambda line: line["nodes"])["nodes"]
            assert row["hostname"] == NASTY  # a program gets what was sent, in JSON's own escapes
            assert row["info"]["devices"][0]["name"] == NASTY
        else:
            program.line(r"joined \[red\]box\[/\] \[bold: �\[2J�\[41m�")
            program.line(r"refused box�\[2J�: 127\.0\.0\.1: a node id has printable characters only")
    finally:
        stream.close()
    assert program.end() == 130
    assert not [line for line in program.lines if any(map(is_control, line))]


# ---- In a real terminal ----


def test_the_screen_follows_a_fleet_and_its_keys(terminal: Open) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0", columns=100, lines=24)
    address = screen.shows(r"listening on (127\.0\.0\.1:\d+)")[1]
    for number in range(30):
        unary(address, node_id=f"box-{number}", gpu_temp=40 + number)
    screen.shows("30 nodes  ● 30 online")
    screen.shows(r"Nodes 1 to 1\d of 30")
    screen.shows("69°C box-29")
    assert "box-29 " not in screen.text().split("Events")[0].split("Nodes")[1]
    screen.press("\x1b[B\x1b[F")
    screen.shows(r"Nodes \d\d to 30 of 30")
    screen.press("\x1b[H")
    screen.shows(r"Nodes 1 to \d\d of 30")
    screen.resize(60, 15)
    eventually(lambda: screen.text().splitlines()[14].startswith(" q quit"))
    screen.resize(20, 5)
    screen.shows("too small: 20x5")
    screen.resize(100, 24)
    screen.shows(r"◐ 30 late")
    assert screen.cell("◐ 30 late").fg == "brown"  # pyte's word for yellow
    screen.press("q")
    assert screen.wait() == 0
    assert screen.is_restored()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A server's screen with two simulated nodes. Each test leaves it as it was, and the last one ends it."""
    screen = Terminal("server.py", "--listen", "127.0.0.1:0", "--state", str(tmp_path_factory.mktemp("fleet")))
    with contextlib.ExitStack() as ending:
        ending.callback(screen.close)
        address = screen.shows(r"listening on (127\.0\.0\.1:\d+)")[1]
        for seed in ("1", "2"):
            options = ("--hardware", "simulated", "--seed", seed, "--label", f"rack=a{seed}", "--headless")
            ending.callback(Program("node.py", "--server", address, "--id", f"box-{seed}", *options).kill)
        screen.shows("2 online")
        screen.shows("box-2 .*ONLINE .*RTX")
        yield screen


def test_a_node_that_is_alive_is_not_forgotten_with_f(fleet: Terminal) -> None:
    fleet.press("/box-2\r")
    fleet.shows("Nodes .*/box-2")
    fleet.press("f")
    fleet.press("\x1b[B")
    fleet.shows("box-2 .*ONLINE")
    fleet.press("\x1b")
    fleet.shows("box-1 .*ONLINE")


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15), (40, 10)])
def test_resizing(fleet: Terminal, size: tuple[int, int]) -> None:
    fleet.resize(*size)
    eventually(lambda: fleet.text().splitlines()[-1].startswith(" q quit") and "box-1" in fleet.text())
    fleet.resize(20, 4)
    fleet.shows("too small")
    fleet.resize(160, 45)
    fleet.shows("box-2 .*ONLINE")


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
    fleet.press("qp")
    fleet.shows("p freeze")


def test_every_key_in_a_real_terminal(fleet: Terminal) -> None:
    for keys, wanted in (
        ("?", "any key goes back"),
        ("q", "q quit"),
        ("j", r"── How a box joins ─+\s+On each box:\s+python3 node.pyz --server 127.0.0.1:\d+ "),
        ("j", "q quit"),
        ("e", "Events ─"),
        ("/kind:joined box-1\r", r"Events ─|Events · /kind:joined box-1"),
        ("q", "q quit"),
        ("\x1b[B\x1b[B\r", "GPU 0 · NVIDIA GeForce RTX 4090"),
        ("\x1b[A", "GPU 7 · NVIDIA H200"),
        ("\x1b", "HOSTNAME"),
        ("g", "box-1 7"),
        ("v", "utilization  0 ▁▂▃▄▅▆▇█ 100%"),
        ("s", "memory  0 ▁▂▃▄▅▆▇█ 100%"),
        ("\x1b[C", "● box-1 1  .* util .* mem "),
        ("v", "box-1 7"),
        ("g", "8× H200"),
        ("ssss", "by utilization ↓"),
        ("S", "by utilization ↑"),
        ("b", r"── rack=a1  ● 1  8 GPUs · .*\n.* box-1 .*\n.*── rack=a2  ● 1  1 GPU · "),
        ("\r", r"agent .* energy \d+ Wh · rack=a\d"),
        ("\x1b", "Nodes · by utilization ↑ · in groups by rack"),
        ("b", "Nodes · by utilization ↑ ─"),
        ("u", "USER +GPUS↓ +IDLE"),
        ("\x1b[B\r", r"/user=\w+ "),
        ("\x1b", "Nodes ·"),
        ("/rack=a2\r", "Nodes 1 of 2 .*/rack=a2 "),
        ("\x1b", "Nodes ·"),
        ("p", "FROZEN"),
        ("p", "p freeze"),
        ("/rtx", "Nodes .*/rtx"),
        ("\r\x1b", "● box-1"),
    ):
        fleet.press(keys)
        fleet.shows(wanted)
    fleet.press("q")
    fleet.shows("2 nodes report here: q or y ends the server, any other key goes on")
    fleet.press("n")
    fleet.shows("q quit")
    fleet.press("qy")
    assert fleet.wait() == 0
    assert eventually(fleet.is_restored)
