"""Keys: what is selected, what each does, and that help and footer name them."""

from __future__ import annotations

import random
import re

import pytest

import node_pb2 as pb
from edge.fleet.entry import EntryId
from edge.fleet.keys import ANY, BINDINGS, TYPED, WHEEL, Binding, Place, change, footer_of, help_lines
from edge.fleet.lens import Ui
from edge.keyboard import CONTROLS, FINAL_NAMES, NUMBER_NAMES, PASTE, Keyboard
from tests.fixtures.examples import SECURE, example_registry, example_row
from tests.fixtures.past import Course
from tests.fixtures.screens import Screen, exact

# ---- The selection ----


def test_the_selection_moves_and_the_table_follows_it() -> None:
    screen = Screen(example_registry(100), 80, 24)
    shown = len(screen.nodes())
    assert screen.ui.selected is None
    assert screen.press("down").ui.selected == EntryId("Node-1000")
    assert screen.press("down").ui.selected == EntryId("Node-1001")
    assert screen.press("end").ui.selected == EntryId("Node-1099")
    assert screen.nodes()[-1] == "Node-1099"
    screen.press("page up")
    assert screen.ui.selected == EntryId(f"Node-{1099 - shown}")
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


def test_the_selection_stays_where_gpus_take_the_place_of_nodes_and_behind_a_filter() -> None:
    screen = Screen(example_registry()).press("down", "down", "down", "down", "g")
    assert screen.ui.selected == EntryId("Node-1003", 0)
    screen.press("/", *"edge-05", "enter").frame()
    assert screen.press("escape", "g").ui.selected == EntryId("Node-1003")


def test_the_neighbour_is_selected_when_a_node_is_forgotten() -> None:
    registry = example_registry()
    screen = Screen(registry).press("/", *"state:l", "enter", "down", "down")
    assert screen.ui.selected == EntryId("Node-1011")
    assert screen.press("f").ui.selected == EntryId("Node-1017")
    assert screen.press("f").ui.selected == EntryId("Node-1006")
    before = screen.ui
    assert screen.press("f").ui == before._replace(said="Node-1006 stays: it is neither lost nor left")  # it is only late
    assert "Node-1006 stays" in screen.text().splitlines()[-1]
    assert not screen.press("s").ui.said
    assert {row.node_id for row in registry.snapshot()}.isdisjoint({"Node-1011", "Node-1017"})


def test_the_page_of_a_node_that_is_gone_closes() -> None:
    registry = example_registry()
    screen = Screen(registry).press("/", *"1011", "enter", "enter")
    assert "GPU 0" in screen.text()
    registry.forget("Node-1011")
    screen.frame()
    assert screen.ui.page == ""


def test_a_nodes_page_and_back_and_on_to_the_next() -> None:
    screen = Screen(example_registry()).press("down", "down", "down", "down", "enter")
    text = screen.text()
    for part in ("Node-1003", "GPU 7 · NVIDIA H200", "round trip 1.2 ms", "agent 0.1.0", "from 10.0.0.103"):
        assert part in text
    assert "Node-1004" in screen.press("down").text()
    assert "GPU 7" not in screen.press("escape").text()


# ---- What keys do where ----


def test_keys_that_a_page_does_not_name_leave_the_table_behind_it_alone() -> None:
    screen = Screen(example_registry()).press("g", "down", "enter")
    before = screen.ui
    assert screen.press(*"gvsS/").ui == before
    assert screen.press("down").ui.page == "Node-1001"  # the next node, not the next GPU


def test_the_filter_narrows_as_one_types_and_keys_are_text_then() -> None:
    screen = Screen(example_registry()).press("/", "q", "g")
    assert screen.ui.filter == "qg"
    assert screen.nodes() == []
    assert "Nothing matches" in screen.text()
    assert len(screen.press("backspace", "backspace", *"1003").nodes()) == 1
    assert screen.press("enter", "escape").ui.filter == ""
    assert screen.press("/", *"x" * 200).ui.filter == "x" * 120
    assert screen.press("ctrl-u").ui.filter == ""


def test_random_keys_never_break_the_screen() -> None:
    chance = random.Random(1)
    keys = [
        *"sSgvpfFe?/qy0a>j[]{}t +-h2",
        f"{PASTE}q\nq",
        *WHEEL,
        "up",
        "down",
        "left",
        "right",
        "page up",
        "page down",
        "home",
        "end",
        "enter",
        "escape",
        "backspace",
    ]
    for size in ((160, 45), (50, 15)):
        screen = Screen(example_registry(28), *size, past=Course())
        for _ in range(400):
            frame = screen.press(chance.choice(keys)).frame()
            assert exact(frame, *size)


WAYS = {  # the keys that lead to each place, with an entry selected
    Place.TABLE: ("down",),
    Place.GRID: ("down", "v"),
    Place.PAGE: ("down", "enter"),
    Place.FILTER: ("down", "/"),
    Place.EVENTS: ("down", "e"),
    Place.USERS: ("down", "u"),
    Place.HELP: ("down", "?"),
    Place.JOIN: ("down", "j"),
    Place.TIME: ("down", "t"),
    Place.QUIT: ("down", "q"),
    Place.FORGET: ("down", "F"),
}
EXPLAINED = (Place.TABLE, Place.GRID, Place.PAGE, Place.EVENTS, Place.USERS)  # by a help of their own
NAMED = {*CONTROLS.values(), *FINAL_NAMES.values(), *NUMBER_NAMES.values(), *WHEEL}
ALL_KEYS = sorted({*NAMED, *map(chr, range(ord(" "), 0x7F))})
WORDS = {  # for the keys, in help and footer
    "up": "↑", "down": "↓", "left": "←", "right": "→", "page up": "PgUp", "page down": "…", "home": "…", "end": "End",
    "wheel up": "…", "wheel down": "…",
    "enter": "Enter", "escape": "Esc", "backspace": "Backspace", "ctrl-u": "Ctrl-U", ANY: "",
}  # fmt: skip


def bound(place: Place) -> list[Binding]:
    """The bindings that hold in a place."""
    return [binding for binding in BINDINGS if place in binding.places]


@pytest.mark.parametrize("place", [*EXPLAINED, *TYPED])
def test_a_key_without_a_binding_does_nothing(place: Place) -> None:
    keys = {key for binding in bound(place) for key in binding.keys}
    registry = example_registry()
    for key in set(ALL_KEYS) - keys:
        screen = Screen(registry, 250, past=Course()).press(*WAYS[place])
        before = screen.ui
        after = screen.press(key).ui
        if place is Place.FILTER and len(key) == 1:
            assert after == before._replace(filter=key)
        elif place is Place.TIME and len(key) == 1:
            assert after == before._replace(time=key)
        else:
            assert after == before, key


@pytest.mark.parametrize("behind", EXPLAINED)
def test_any_key_leaves_the_help_and_does_no_more(behind: Place) -> None:
    registry = example_registry()
    for key in ALL_KEYS:
        screen = Screen(registry).press(*WAYS[behind])
        before = screen.ui
        assert screen.press("?").ui == before._replace(help=True)
        assert screen.press(key).ui == before, key
    assert "any key goes back" in screen.press("?").text()


@pytest.mark.parametrize("behind", EXPLAINED)
def test_j_shows_how_a_box_joins_and_any_key_goes_back(behind: Place) -> None:
    registry = example_registry()
    for key in ALL_KEYS:
        screen = Screen(registry).press(*WAYS[behind])
        before = screen.ui
        assert screen.press("j").ui == before._replace(join=True)
        assert screen.press(key).ui == before, key
    assert "How a box joins" in screen.press("j").text()
    assert "any key goes back" in screen.text()


def test_how_a_box_joins_is_scrolled_where_it_is_cut() -> None:
    screen = Screen(example_registry(), 40, 10, SECURE).press("down", "enter", "page down", "j")
    assert screen.ui.scroll == 0
    assert screen.press("wheel down", "up", "page down").ui.scroll > 2
    assert "revoke" in screen.press("end").text()
    assert screen.press("j").ui == Ui(EntryId("Node-1000"), page="Node-1000")


@pytest.mark.parametrize("place", [*EXPLAINED, *TYPED])
def test_every_key_that_works_is_named_in_help_or_footer(place: Place) -> None:
    screen = Screen(example_registry(), 250, past=Course()).press(*WAYS[place])
    footer = screen.text().splitlines()[-1]
    named = {label for label, does in footer_of(screen.ui, place) if f"{label} {does}" in footer}
    assert len(named) == len(footer_of(screen.ui, place))  # none is cut off
    if place in EXPLAINED:
        shown = screen.press("?").text()
        for keys, does in help_lines(place):
            assert re.search(rf"│ {re.escape(keys)} +{re.escape(does)} ", shown)
            named |= {keys, *keys.split()}
    for binding in bound(place):
        assert binding.label in named or binding.keys == (ANY,)
        assert all(WORDS.get(key, key) in binding.label for key in binding.keys), binding
        assert set(binding.keys) <= {*ALL_KEYS, ANY}  # the terminal has such keys


def test_the_help_of_a_page_names_only_what_works_there() -> None:
    labels = {label for keys, _ in help_lines(Place.PAGE) for label in (keys, *keys.split())}
    assert labels >= {"Esc", "p", "f", "q"}
    assert labels.isdisjoint({"Enter", "s", "S", "/", "g", "v"})
    text = Screen(example_registry()).press(*WAYS[Place.PAGE], "?").text()
    assert not re.search("sort|filter|grid|GPU", text.split("Help")[1].split("ONLINE")[0])


def test_the_help_explains_the_signs_that_a_place_shows() -> None:
    signs = {Place.TABLE: "✗2 ~3m", Place.GRID: "~ ·", Place.PAGE: "░", Place.USERS: "", Place.EVENTS: ""}
    for place, more in signs.items():
        text = Screen(example_registry(), 160, 60).press(*WAYS[place], "?").text()
        shown = set(re.findall(r"^│ (\S+) ", text, re.MULTILINE))
        states = {"●", "?", "◐", "○", "✗", "◌"}
        assert shown & {*states, "✗2", "~3m", "~", "·", "░"} == ({*states, *more.split()} if more else set()), place


@pytest.mark.parametrize("place", EXPLAINED)
def test_q_goes_back_one_step(place: Place) -> None:
    before = Screen(example_registry()).press(*WAYS[place])
    assert before.press("?", "q").ui == Screen(example_registry()).press(*WAYS[place]).ui
    after = before.press("q").ui
    assert not after.closed
    assert (after.page, after.events) == ("", False)
    assert bool(after.question) == (place in (Place.TABLE, Place.GRID))
    assert Screen(example_registry()).press(*WAYS[Place.FILTER], "q").ui == Ui(EntryId("Node-1000"), typing=True, filter="q")


def test_back_from_a_page_s_events_is_the_page() -> None:
    screen = Screen(example_registry()).press("down", "enter", "e", "?", "q", "q")
    assert screen.ui == Screen(example_registry()).press("down", "enter").ui
    assert screen.press("e", "escape").ui.page == "Node-1000"


@pytest.mark.parametrize("key", ["q", "y"])
@pytest.mark.parametrize("size", [(160, 45), (50, 15), (40, 10)])
def test_q_asks_once_while_nodes_are_online(size: tuple[int, int], key: str) -> None:
    screen = Screen(example_registry(), *size).press("q")
    footer = screen.text().splitlines()[-1]
    assert "25 nodes" in footer
    assert "q or y ends the server" in footer
    assert ("report here" in footer and "any other key goes on" in footer) == (size[0] == 160)
    assert screen.press(key).ui.closed


@pytest.mark.parametrize("key", ["n", "x", "escape", "enter", "down", "/", "?"])
def test_any_other_key_goes_on_and_does_no_more(key: str) -> None:
    screen = Screen(example_registry()).press("q", key)
    assert screen.ui == Ui()
    assert screen.press("q").ui.question


def test_q_ends_at_once_where_no_node_is_online() -> None:
    assert Screen(example_registry(0)).press("q").ui.closed
    registry = example_registry(0)
    registry.restore(example_row(11))  # lost
    assert Screen(registry).press("q").ui.closed
    registry.restore(example_row(0))
    screen = Screen(registry).press(*"/state:lost", "enter", "q")  # whatever the filter hides
    assert "1 node reports here" in screen.text()


@pytest.mark.parametrize("place", [place for place in Place if place not in TYPED])
def test_what_is_pasted_is_never_taken_for_keys(place: Place) -> None:
    screen = Screen(example_registry()).press(*WAYS[place])
    before = screen.ui
    for text in ("q", "qq", "y", "state:online\nq\nq\n", "\x1b"):
        assert screen.press(f"{PASTE}{text}").ui == before


def test_what_is_pasted_into_the_filter_is_text() -> None:
    keys = Keyboard().feed(b"/a\x1b[200~state:online\r\nq\tq\x1b[A\n\x1b[201~b", 0.0)
    screen = Screen(example_registry()).press(*keys)
    assert screen.ui.filter == "astate:online q q [Ab"
    assert screen.ui.typing
    assert screen.press("ctrl-u", f"{PASTE}{'x' * 500}").ui.filter == "x" * 120
    assert "x█" in screen.text().splitlines()[-1]


def test_the_wheel_moves_the_selection_and_scrolls_what_stands_before_it() -> None:
    screen = Screen(example_registry(100), 80, 24).press("down", "wheel down")
    assert screen.ui.selected == EntryId("Node-1003")
    assert screen.press("wheel up", "wheel up").ui.selected == EntryId("Node-1000")
    assert screen.press("v", "wheel down").ui.selected == EntryId("Node-1024")  # by lines of eight cells
    small = Screen(example_registry(), 50, 15).press("?", "wheel down")
    assert small.ui.scroll == 3


@pytest.mark.parametrize("size", [(50, 15), (40, 10)])
@pytest.mark.parametrize("behind", EXPLAINED)
def test_all_of_the_help_is_seen_where_it_is_cut(behind: Place, size: tuple[int, int]) -> None:
    def inner(text: str) -> list[str]:
        return [line[2:-2].strip() for line in text.splitlines() if line.startswith("│")]

    whole = inner(Screen(example_registry(), size[0], 80).press(*WAYS[behind], "?").text())
    screen = Screen(example_registry(), *size).press(*WAYS[behind], "?")
    seen: dict[str, None] = {}
    for _ in range(80):
        seen |= dict.fromkeys(line for line in inner(screen.text()) if "more line" not in line)
        screen.press("down")
    assert list(seen) == list(dict.fromkeys(line for line in whole if line))
    assert screen.ui.help
    end = screen.ui.scroll
    assert screen.press("page down", "end").ui.scroll == end
    assert screen.press("up").ui.scroll == end - 1
    assert screen.press("home").ui.scroll == 0
    assert not screen.press("x").ui.help
    assert screen.ui.scroll == 0


def test_all_of_a_page_is_seen_where_it_is_cut() -> None:
    registry = example_registry()
    processes = pb.ProcessList(
        processes=[pb.Process(device_index=index % 8, pid=50_000 + index, name="python3") for index in range(40)]
    )
    registry.restore(example_row(3)._replace(packed_processes=processes.SerializeToString()))
    for size in ((160, 45), (80, 24), (50, 15), (40, 10)):
        screen = Screen(registry, *size).press(*"/1003", "enter", "down", "enter")
        seen = screen.text()
        assert re.search(r"(Processes|lines) 1 to \d+ of \d+ · PgDn", seen)
        for key in ("wheel down", *("page down",) * 60):
            seen += screen.press(key).text()
        assert all(str(50_000 + index) in seen for index in range(40))
        assert set(re.findall(r"(?:^ +|GPU )([0-7]) ", seen, re.MULTILINE)) == set("01234567")
        assert "· PgUp" in screen.text()
        assert "PgUp PgDn" not in screen.text()
        end = screen.ui.scroll
        assert screen.press("page up").ui.scroll < end
        assert screen.press("page down").ui.scroll == end
    assert screen.press("q", "enter").ui.scroll == 0
    screen = Screen(registry, 80, 24).press(*("down",) * 4, "enter", "page down")
    assert screen.ui.scroll
    assert screen.press("down").ui.page == "Node-1004"
    assert screen.ui.scroll == 0


def test_all_lost_and_left_that_the_filter_shows_are_forgotten_after_a_question() -> None:
    registry = example_registry(60)
    for index in range(200, 230):
        registry.restore(example_row(11)._replace(node_id=f"Box-{index}"))
    screen = Screen(registry).press(*"/box", "enter", "F")
    assert "forget 30 nodes, lost or left: y forgets them, any other key goes on" in screen.text()
    assert screen.press("n").ui.question is None
    assert len(registry.snapshot()) == 90
    screen.press("F")
    registry.restore(example_row(11)._replace(node_id="Box-999"))  # lost since the question, and not counted in it
    registry.restore(example_row(0)._replace(node_id="Box-200"))  # back since the question
    screen.press("y")
    assert {row.node_id for row in registry.snapshot() if row.node_id.startswith("Box")} == {"Box-200", "Box-999"}
    assert {"Node-1011", "Node-1017"} <= {row.node_id for row in registry.snapshot()}
    assert screen.press("escape", "F").ui.question
    assert screen.press("y", "F").ui.question is None  # none is left to ask about
    assert len(registry.snapshot()) == 59


def test_no_key_is_bound_twice_in_a_place() -> None:
    bound_keys = [(place, key) for binding in BINDINGS for place in binding.places for key in binding.keys]
    assert len(bound_keys) == len(set(bound_keys))


def test_an_action_sets_only_what_the_ui_has() -> None:
    with pytest.raises((TypeError, ValueError), match="helpp"):
        change(helpp=True)
