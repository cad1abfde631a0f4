"""The README's pictures, drawn by the programs' own screens: `build.py screenshots` remakes them.

Each character has its own place, and blocks and borders are shapes, so that columns hold in every viewer, whatever its fonts.
"""

from __future__ import annotations

import functools
import html
import itertools
import os
import pathlib
import re
import shutil
import ssl  # noqa: F401  # before node, which does without: the server needs it
import tempfile
import time
from collections.abc import Iterator

from rich.color import blend_rgb
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME as THEME

import node
import node_pb2 as pb
from edge import history
from edge.drawing import Line, cells
from edge.event_log import Event
from edge.fleet import watch
from edge.fleet.entry import EntryId
from edge.fleet.intake import capacities_of, vitals_of
from edge.fleet.lens import Lens, Ui
from edge.fleet.row import Row, Session
from edge.fleet.screen import About, look, render
from edge.hardware.machine import simulated
from edge.hardware.screen import Link
from edge.hardware.screen import render as render_node
from tests.fixtures.browser import PROGRAMS, Browser
from tests.fixtures.examples import EXAMPLE_EVENTS, OPEN, WALL, example_registry, example_row, example_view
from tests.fixtures.sessions import Serving

CELL_WIDTH, CELL_HEIGHT, MARGIN, TITLE_HEIGHT = 9, 18, 12, 34  # in pixels
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
FONT_SIZE = 15  # such fonts are about 0.6 of it wide
# Parts of a cell that are drawn as shapes: where a block begins from above, how wide it is, how high; and paths.
BLOCKS: dict[str, tuple[float, float, float]] = {}
BLOCKS |= {block: (1 - eighths / 8, 1, eighths / 8) for eighths, block in enumerate("▁▂▃▄▅▆▇█", 1)}
BLOCKS |= {block: (0, eighths / 8, 1) for eighths, block in enumerate("▏▎▍▌▋▊▉", 1)}
BORDERS = {"─": "m0 9h9", "│": "m4.5 0v18", "╭": "m4.5 18v-4q0-5 4.5-5", "╮": "m0 9q4.5 0 4.5 5v4"}
BORDERS |= {"╰": "m4.5 0v4q0 5 4.5 5", "╯": "m0 9q4.5 0 4.5-5v-4"}
PAGE_EVENTS = (
    ("started", "server", "listening on [::]:50051"),
    ("joined", "Node-1033", "l4-33, 10.0.0.133"),
    ("left", "Node-1021", "said goodbye"),
    ("failed", "Node-1005", "GPU 1: GPU is lost"),
)
PIECE = re.compile("█+|─+|([{0}])|[^\\s{0}]+".format("".join((*BLOCKS, *BORDERS))))


def draw_all(folder: pathlib.Path) -> None:
    """All of them, into a folder."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    draw_server(folder)
    draw_node(folder)


def draw_server(folder: pathlib.Path) -> None:
    """server.svg, page.svg, grid.svg: a fleet with a node in each state, and the page of one with processes and a full host."""
    ui = Ui(selected=EntryId("Node-1003"))
    screens = {"server": ui, "page": ui._replace(page="Node-1003"), "grid": ui._replace(grid=True, by_gpu=True, selected=None)}
    registry = example_registry()
    registry.restore(full_row())
    lens = Lens(registry)
    for name, chosen in screens.items():
        lens.refresh(chosen)
        height = 58 if chosen.page else 40
        view = look(lens, chosen, About("[::]:50051", OPEN), 160, height)._replace(wall=WALL, events=EXAMPLE_EVENTS)
        save_svg(render(view, 160, height), "server.pyz", folder / f"{name}.svg")


def full_row() -> Row:
    """Node-1003, with all that a simulated box reports."""
    seconds = itertools.count()
    machine = simulated(1, clock=lambda: next(seconds))
    info = node.make_info(machine, "")
    info.hostname, info.sampling_interval_milliseconds, info.session_number = "edge-03", 1000, 1
    capacities, frames = capacities_of(info), b""
    for sequence in range(1, history.SAMPLES + 1):
        sample = node.take_sample(machine, sequence, 0, lambda: 0.0)
        frames = history.extend(frames, vitals_of(capacities, sample).frame)
    return example_row(3)._replace(
        packed_info=info.SerializeToString(),
        packed_sample=sample.SerializeToString(),
        packed_processes=pb.ProcessList(processes=machine.processes()).SerializeToString(),
        capacities=capacities,
        vitals=vitals_of(capacities, sample),
        history=frames,
    )


def draw_node(folder: pathlib.Path) -> None:
    """node.svg: a simulated box after some minutes."""
    log = (
        Event(WALL, "info", "", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),
        Event(WALL + 311, "warning", "", "10.0.0.5:50051 broke the connection; next try in 0.7 s"),
        Event(WALL + 313, "info", "", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),
    )
    link = Link(phase="connected", sessions=2, round_trip_seconds=0.0012, interval_seconds=1)
    view = example_view(5, with_processes=True)
    view.info.sampling_interval_milliseconds = 1000
    save_svg(render_node(view._replace(log=log, link=link), 150, 45, WALL + 400, 0), "node.pyz", folder / "node.svg")


def draw_browser(folder: pathlib.Path) -> None:
    """browser.png: the page in a browser, of a fleet of simulated boxes, a minute after it was opened."""
    if not all(map(shutil.which, PROGRAMS)):
        print("browser.png stays as it is: it needs Debian's packages chromium and chromium-driver")
        return
    watch.TICK_SECONDS, usual = 0.1, watch.TICK_SECONDS  # a minute in some seconds
    serving, boxes = Serving(http=True), [SimulatedNode(seed) for seed in range(34)]
    for kind, node_id, text in PAGE_EVENTS:
        serving.registry.log.add(kind, text, node_id)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(pathlib.Path(profile))
        try:
            browser.size(1280, 800)
            browser.prefer("dark")
            browser.open(serving.http)
            for _ in range(70):
                for box in boxes:
                    serving.registry.restore(box.next_row(serving.registry.clock()))
                time.sleep(0.12)
            time.sleep(0.5)  # the last ones are drawn
            (folder / "browser.png").write_bytes(browser.picture())
        finally:
            browser.close()
            serving.network.stop()
            watch.TICK_SECONDS = usual


class SimulatedNode:
    """A simulated box as a server would know it, some of them in trouble."""

    def __init__(self, seed: int) -> None:
        self._seed, seconds = seed, itertools.count()
        faults = {5: ["failed-gpu"], 9: ["hot"]}.get(seed, [])
        self._machine = simulated(seed, lambda: next(seconds), frozenset(faults))
        info = node.make_info(self._machine, "")
        info.sampling_interval_milliseconds, info.session_number = 1000, 1
        self._capacities, now = capacities_of(info), time.monotonic()
        self._row = Row(
            node_id=f"Node-{1000 + seed}",
            address=f"10.0.0.{100 + seed}",
            session=Session(pb.HeartbeatRequest(), "", None),
            interval_seconds=1.0,
            packed_info=info.SerializeToString(),
            packed_processes=pb.ProcessList(processes=self._machine.processes()).SerializeToString(),
            capacities=self._capacities,
            heartbeat_at=now,
        )
        for _ in range(history.SAMPLES):
            self.next_row(now)

    def next_row(self, now: float) -> Row:
        """A second later."""
        sample = node.take_sample(self._machine, 1, 0, lambda: 0.0)
        vitals = vitals_of(self._capacities, sample)
        ages = {7: 4, 13: 200, 21: 95}
        at = now - ages.get(self._seed, 0)
        self._row = self._row._replace(
            session=None if self._seed in (13, 21) else self._row.session,
            left=self._seed == 21,
            reason="the stream broke" if self._seed == 13 else "",
            packed_sample=sample.SerializeToString(),
            vitals=vitals,
            history=history.extend(self._row.history, vitals.frame),
            round_trip_seconds=0.0012,
            sample_at=at,
            heartbeat_at=at,
        )
        return self._row


def save_svg(lines: list[Line], title: str, path: pathlib.Path) -> None:
    """A frame as a picture, in a window with a title."""
    columns = sum(cells(text) for text, _ in lines[0])
    width, height = columns * CELL_WIDTH + 2 * MARGIN, len(lines) * CELL_HEIGHT + TITLE_HEIGHT + MARGIN
    paper, ink = THEME.background_color.hex, THEME.foreground_color.hex
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="{FONTS}" font-size="{FONT_SIZE}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{paper}"/>',
        "<style>rect{shape-rendering:crispEdges}</style>",
        *(f'<circle cx="{20 + 20 * at}" cy="17" r="6" fill="{dot}"/>' for at, dot in enumerate(("#f55", "#fb2", "#2c4"))),
        f'<text x="{width // 2}" y="22" text-anchor="middle" fill="{ink}">{html.escape(title)}</text>',
    ]
    for number, line in enumerate(lines):
        column, top = 0, TITLE_HEIGHT + number * CELL_HEIGHT
        for text, style in line:
            parts += shapes(text, style, MARGIN + column * CELL_WIDTH, top)
            column += cells(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def shapes(text: str, style: str, left: int, top: int) -> Iterator[str]:
    """A span whose first cell has this corner: its background, blocks, borders, and its characters, each at its own place."""
    ink, paper, bold = colours(style)
    if paper:
        yield f'<rect x="{left}" y="{top}" width="{cells(text) * CELL_WIDTH}" height="{CELL_HEIGHT}" fill="{paper}"/>'
    for match in PIECE.finditer(text):
        piece, x = match[0], left + cells(text[: match.start()]) * CELL_WIDTH
        width = len(piece) * CELL_WIDTH
        if piece[0] in BLOCKS:
            lower, part, high = BLOCKS[piece[0]]
            y, tall = top + lower * CELL_HEIGHT, high * CELL_HEIGHT
            yield f'<rect x="{x}" y="{y:g}" width="{part * width:g}" height="{tall:g}" fill="{ink}"/>'
        elif piece[0] in BORDERS:
            shape = f"m0 9h{width}" if piece[0] == "─" else BORDERS[piece]
            yield f'<path d="M{x} {top}{shape}" stroke="{ink}" fill="none"/>'
        else:
            places = " ".join(str(x + (cells(piece[: at + 1]) - (cells(c) or 1)) * CELL_WIDTH) for at, c in enumerate(piece))
            weight = ' font-weight="bold"' if bold else ""
            yield f'<text x="{places}" y="{top + 14}" fill="{ink}"{weight}>{html.escape(piece)}</text>'


@functools.cache
def colours(words: str) -> tuple[str, str, bool]:
    """Of a style in rich's words: the ink, the background if it has one of its own, and whether it is bold."""
    style = Style.parse(words)
    ink = style.color.get_truecolor(THEME) if style.color else THEME.foreground_color
    if style.dim:
        ink = blend_rgb(ink, THEME.background_color, 0.4)
    if style.reverse:
        return THEME.background_color.hex, ink.hex, bool(style.bold)
    return ink.hex, "", bool(style.bold)


if __name__ == "__main__":
    draw_all(pathlib.Path("docs"))
    draw_browser(pathlib.Path("docs"))
