"""The README's pictures: a text stands in its columns in every viewer."""

from __future__ import annotations

import pathlib
import xml.etree.ElementTree as ET

from edge.drawing import Line, box
from tests.pictures import BLOCKS, BORDERS, CELL_HEIGHT, CELL_WIDTH, MARGIN, TITLE_HEIGHT, draw_all, save_svg

SVG = "{http://www.w3.org/2000/svg}"


def texts(path: pathlib.Path) -> list[tuple[str, list[int], int]]:
    """Text, column of each character, and line of all texts of a picture but its title."""
    found = []
    for element in ET.parse(path).getroot().iter(f"{SVG}text"):
        if element.get("text-anchor") != "middle":
            columns = [(int(x) - MARGIN) // CELL_WIDTH for x in str(element.get("x")).split()]
            found.append((str(element.text), columns, (int(str(element.get("y"))) - TITLE_HEIGHT) // CELL_HEIGHT))
    return found


def test_each_character_has_its_own_place(tmp_path: pathlib.Path) -> None:
    lines: list[Line] = [[("a <機械> e\u0301x", "bold"), ("█▌▄─ red", "red reverse")]]
    save_svg(lines, "<title>", tmp_path / "one.svg")
    assert texts(tmp_path / "one.svg") == [
        ("a", [0], 0),
        ("<機械>", [2, 3, 5, 7], 0),
        ("e\u0301x", [9, 9, 10], 0),
        ("red", [16, 17, 18], 0),
    ]


def test_blocks_and_borders_are_shapes_that_fill_their_cells(tmp_path: pathlib.Path) -> None:
    save_svg(box("Log", [[("██▌▁", "green")]], 12), "node.pyz", tmp_path / "one.svg")
    root = ET.parse(tmp_path / "one.svg").getroot()
    places = [[shape.get(name) for name in ("x", "y", "width", "height")] for shape in root.iter(f"{SVG}rect")]
    rectangles = [[float(str(number)) for number in place] for place in places[1:]]  # the first is the window
    left, top = MARGIN + 2 * CELL_WIDTH, TITLE_HEIGHT + CELL_HEIGHT
    assert rectangles == [
        [left, top, 2 * CELL_WIDTH, CELL_HEIGHT],
        [left + 2 * CELL_WIDTH, top, CELL_WIDTH / 2, CELL_HEIGHT],
        [left + 3 * CELL_WIDTH, top + CELL_HEIGHT * 7 / 8, CELL_WIDTH, CELL_HEIGHT / 8],
    ]
    assert len(list(root.iter(f"{SVG}path"))) == 9  # corners, sides, and lines: two above, one below


def test_the_pictures_show_graphs_processes_and_a_full_host(tmp_path: pathlib.Path) -> None:
    draw_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.svg", "node.svg", "page.svg", "server.svg"]
    for name in ("page", "node"):
        words = {word for word, _, _ in texts(tmp_path / f"{name}.svg")}
        assert {"Processes", "Host", "cores", "last"} <= words
    for path in tmp_path.iterdir():
        for word, columns, _ in texts(path):
            assert len(columns) == len(word)
            assert not set(word) & {*BLOCKS, *BORDERS}
