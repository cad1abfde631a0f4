"""The node's own screen: pure functions of a view, a size and a time."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge import protocol
from edge.drawing import MIN_HEIGHT, MIN_WIDTH, Line, fit_line, fit_lines, too_small
from edge.event_log import Event
from edge.panels import Subject, log_panel, node_panels, reach_of
from edge.text import show_seconds, visible


class Link(NamedTuple):
    """The connection to the server, as the screen shows it."""

    phase: str = "connecting"  # "connecting", "connected" or "waiting"
    reason: str = ""  # why it is not connected
    retry_at: float = 0.0  # by the monotonic clock, while waiting
    sessions: int = 0
    round_trip_seconds: float | None = None
    interval_seconds: float = 0.0
    unary: bool = False
    last_error: str = ""  # why the session before this one ended


class View(NamedTuple):
    """All that the threads share, taken at one moment."""

    node_id: str
    server: str
    place: str  # which of several servers that is, in words; empty where there is one alone
    info: pb.NodeInfo
    sample: pb.Sample
    summary: pb.Summary  # of it
    sample_age_seconds: float
    interval_seconds: float
    processes: Sequence[pb.Process]
    history: bytes
    link: Link
    log: Sequence[Event]


def render(view: View, width: int, height: int, wall: float, clock: float, scroll: int = 0) -> list[Line]:
    """A frame: exactly `height` lines of `width` cells. `wall` is the time of day in seconds, `clock` the monotonic one."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return too_small(width, height)
    subject, room = subject_of(view), panels_room(view, width, height)
    panels = node_panels(subject, width, room, scroll)
    top = [*header(view, width, wall, clock), *reason_lines(view, width, height)]
    log = log_panel(view.log, width, height - 1 - len(top) - len(panels))
    frame = fit_lines([*top, *panels, *log], width, height - 1)
    keys: Line = [(" q", "bold"), (" quit", "dim")]
    if reach_of(subject, width, room).most:
        keys += [("  ↑↓ PgUp PgDn", "bold"), (" scroll", "dim")]
    return [*frame, fit_line(keys, width)]


def subject_of(view: View) -> Subject:
    """What the panels show."""
    return Subject(view.info, view.sample, view.processes, view.history)


def panels_room(view: View, width: int, height: int) -> int:
    """Lines for the panels: header and footer have theirs, and the newest of the log, in a border where there is room."""
    room = height - 3 - len(reason_lines(view, width, height))
    log_lines = min(5, room // 6)
    return room - min(log_lines, len(view.log) + 2 * (log_lines > 2))


def header(view: View, width: int, wall: float, clock: float) -> list[Line]:
    """Two lines: who this is, and how its link to the server is."""
    info = view.info
    about = " · ".join(visible(text) for text in (info.hostname, info.host.model, info.notice) if text)
    time_of_day = time.strftime(" %H:%M:%S ", time.localtime(wall))
    left = fit_line([(f" {visible(view.node_id)}", "bold"), (f"  {about}", "dim")], width - len(time_of_day))
    return [[*left, (time_of_day, "dim")], link_line(view, clock)]


def link_line(view: View, clock: float) -> Line:
    """The link's state: a glyph, a word, and what one wants to know of it."""
    link = view.link
    server = f"{view.server} ({view.place})" if view.place else view.server
    if link.phase == "connected":
        round_trip = "" if link.round_trip_seconds is None else f" · round trip {link.round_trip_seconds * 1000:.1f} ms"
        calls = " · unary calls" if link.unary else ""
        line: Line = [(" ● connected", "green"), (f" to {server}{round_trip} · every {link.interval_seconds:g} s{calls}", "")]
        if view.sample_age_seconds > protocol.hangs_here_after_seconds(view.interval_seconds):
            line.insert(0, (f" sensors silent for {show_seconds(view.sample_age_seconds)} ", "bold yellow"))
        return line
    if link.phase == "waiting":
        wait = f"{max(link.retry_at - clock, 0):.1f} s" + (f" at {view.server}" if view.place else "")
        return [(" ○ disconnected", "bold red"), (f" next try in {wait} · {link.reason}", "")]
    return [(" ◐ connecting", "yellow"), (f" to {server}", "")]


def reason_lines(view: View, width: int, height: int) -> list[Line]:
    """Why it is not connected, again and whole, where no line holds it: what to do is at its end."""
    if view.link.phase != "waiting" or len(view.link.reason) <= width:
        return []
    return [[(f"   {part}", "")] for part in textwrap.wrap(view.link.reason, width - 4)[: height // 3]]
