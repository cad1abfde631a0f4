"""Keys: what is selected, what each does, and that help and footer name them."""

from __future__ import annotations

import random
import re

import pytest

from edge.fleet.entry import EntryId
from edge.fleet.keys import ANY, BINDINGS, Binding, Place, change, footer_of, help_lines
from edge.fleet.lens import Ui
from edge.terminal import KEY_NAMES
from tests.fixtures.examples import example_registry
from tests.fixtures.screens import Screen

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
    assert screen.press("f").ui == before  # it is only late
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
    assert screen.press("/", *"x" * 200).ui.filter == "x" * 60
    assert screen.press("ctrl-u").ui.filter == ""


def test_random_keys_never_break_the_screen() -> None:
    chance = random.Random(1)
    keys = [*"sSgvpf?/q0a>", "up", "down", "left", "right", "page up", "page down", "home", "end", "enter", "escape", "backspace"]
    for size in ((160, 45), (50, 15)):
        screen = Screen(example_registry(40), *size)
        for _ in range(400):
            frame = screen.press(chance.choice(keys)).frame()
            assert len(frame) == size[1]


WAYS = {  # the keys that lead to each place, with an entry selected
    Place.TABLE: ("down",),
    Place.GRID: ("down", "v"),
    Place.PAGE: ("down", "enter"),
    Place.FILTER: ("down", "/"),
    Place.HELP: ("down", "?"),
}
EXPLAINED = (Place.TABLE, Place.GRID, Place.PAGE)  # by a help of their own
ALL_KEYS = sorted({*KEY_NAMES.values(), *map(chr, range(ord(" "), 0x7F))})
WORDS = {  # for the keys, in help and footer
    "up": "↑", "down": "↓", "left": "←", "right": "→", "page up": "PgUp", "page down": "…", "home": "…", "end": "End",
    "enter": "Enter", "escape": "Esc", "backspace": "Backspace", "ctrl-u": "Ctrl-U", ANY: "",
}  # fmt: skip


def bound(place: Place) -> list[Binding]:
    """The bindings that hold in a place."""
    return [binding for binding in BINDINGS if place in binding.places]


@pytest.mark.parametrize("place", [*EXPLAINED, Place.FILTER])
def test_a_key_without_a_binding_does_nothing(place: Place) -> None:
    keys = {key for binding in bound(place) for key in binding.keys}
    registry = example_registry()
    for key in set(ALL_KEYS) - keys:
        screen = Screen(registry, 250).press(*WAYS[place])
        before = screen.ui
        after = screen.press(key).ui
        if place is Place.FILTER and len(key) == 1:
            assert after == before._replace(filter=key)
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


@pytest.mark.parametrize("place", [*EXPLAINED, Place.FILTER])
def test_every_key_that_works_is_named_in_help_or_footer(place: Place) -> None:
    screen = Screen(example_registry(), 250).press(*WAYS[place])
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


@pytest.mark.parametrize("place", EXPLAINED)
def test_q_quits_and_in_the_help_it_only_goes_back(place: Place) -> None:
    screen = Screen(example_registry()).press(*WAYS[place], "?", "q")
    assert (screen.ui.help, screen.ui.closed) == (False, False)
    assert screen.press("q").ui.closed
    assert Screen(example_registry()).press(*WAYS[Place.FILTER], "q").ui == Ui(EntryId("Node-1000"), typing=True, filter="q")


def test_no_key_is_bound_twice_in_a_place() -> None:
    bound_keys = [(place, key) for binding in BINDINGS for place in binding.places for key in binding.keys]
    assert len(bound_keys) == len(set(bound_keys))


def test_an_action_sets_only_what_the_ui_has() -> None:
    with pytest.raises((TypeError, ValueError), match="helpp"):
        change(helpp=True)
