"""The README's pictures, drawn by the programs' own screens: `build.py screenshots` remakes them."""

from __future__ import annotations

import io
import os
import pathlib
import time

from rich.console import Console
from rich.text import Text

import node
from edge.drawing import Line, cells
from edge.event_log import Event
from edge.fleet.entry import EntryId
from edge.fleet.lens import Lens, Ui
from edge.fleet.screen import look, render
from tests.fixtures.examples import EXAMPLE_EVENTS, WALL, example_registry, example_view


def draw_all(folder: pathlib.Path) -> None:
    """All of them, into a folder."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    draw_server(folder)
    draw_node(folder)


def draw_server(folder: pathlib.Path) -> None:
    """server.svg, page.svg, grid.svg: a fleet with a node in each state."""
    ui = Ui(selected=EntryId("Node-1003"))
    screens = {"server": ui, "page": ui._replace(page="Node-1003"), "grid": ui._replace(grid=True, by_gpu=True, selected=None)}
    lens = Lens(example_registry())
    for name, chosen in screens.items():
        lens.refresh(chosen)
        view = look(lens, chosen, 160, 40, "[::]:50051", EXAMPLE_EVENTS)._replace(wall=WALL)
        save_svg(render(view, 160, 40), "server.pyz", folder / f"{name}.svg")


def draw_node(folder: pathlib.Path) -> None:
    """node.svg: a simulated box after some minutes."""
    log = (
        Event(WALL, "info", "", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),
        Event(WALL + 311, "warning", "", "10.0.0.5:50051 broke the connection; next try in 0.7 s"),
        Event(WALL + 313, "info", "", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),
    )
    link = node.Link(phase="connected", sessions=2, round_trip_seconds=0.0012, interval_seconds=1)
    save_svg(node.render(example_view()._replace(log=log, link=link), 150, 45, WALL + 400, 0), "node.pyz", folder / "node.svg")


def save_svg(lines: list[Line], title: str, path: pathlib.Path) -> None:
    """A frame as a picture: rich's own export."""
    width = sum(cells(text) for text, _ in lines[0])
    console = Console(record=True, width=width, file=io.StringIO(), color_system="standard", force_terminal=True)
    for line in lines:
        console.print(Text.assemble(*line), no_wrap=True, crop=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(console.export_svg(title=title, unique_id=path.stem), encoding="utf-8")


if __name__ == "__main__":
    draw_all(pathlib.Path("docs"))
