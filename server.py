"""The orchestrator of Edge Compute Node: takes the heartbeats of a fleet, and shows all its nodes in one live table.

     Edge fleet   6 nodes   ● 5 online  ◐ 1 late                                                            12:03:11
     13 GPUs · utilization 53% · memory 512 GiB of 1.1 TiB · power 4.1 kW · hottest 83°C Node-8821
    ╭─ Nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────╮
    │ NODE        HOSTNAME     STATE          GPUS               UTILIZATION      MEMORY            TEMP   POWER  AGE │
    │ Node-8821   gpu-07       ● ONLINE       8× NVIDIA H200     █████▎···  53%   ███▎····  36%     72°C  4.1 kW   0s │

Data flows one way:  gRPC streams -> Registry -> snapshot -> Fleet -> render()

Threads: main (screen or plain lines), and one network thread with grpc.aio's event loop and all the streams. They meet in the
Registry, under its lock. Liveness is derived from ages, by the monotonic clock of this process; no clock of a node is believed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import enum
import errno
import functools
import gc
import itertools
import json
import logging
import math
import operator
import os
import pathlib
import platform
import random
import re
import select
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, cast
from urllib.parse import unquote

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core writes to stderr, across the screen; what matters comes as errors

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError

import node_pb2 as pb
import node_pb2_grpc

# ---- The same block stands in node.py and server.py, and a test proves it: each script stays one file that runs alone. ----

VERSION = "0.1.0"
DEFAULT_PORT = 50051
FRAMES_PER_SECOND = 60  # at most; a frame is drawn only when something changed
SMALLEST_WIDTH, SMALLEST_HEIGHT = 40, 10
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")  # of a switch in the environment
HANGUP, BROKEN_PIPE = 1, 13  # signals that Windows does not name
MISSING = "—"  # what a box does not report; never shown as 0
ESCAPE_KEYS = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end", "\x1b[7~": "home", "\x1b[8~": "end",
    "\x1b": "escape", "\r": "enter", "\n": "enter",
}  # fmt: skip
KEY = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)
ASCII_ONLY = str.maketrans("█▉▊▋▌▍▎▏─│╭╮╰╯·—…°●◐○✗◌×↑↓�▁▂▃▄▅▆▇←→", "#####----|++++.-~o*o.x.x^v?___--==<>")

Span = tuple[str, str]  # text, and its style in rich's words ("bold red"); "" is the terminal's own
Line = list[Span]


class Failure(Exception):
    """What ends the program with exit code 1 and this one line: what is wrong, and what to do next."""


def writable(text: str) -> str:
    """`text` as stdout can show it: drawn with ASCII where its encoding has no blocks and borders."""
    return text if (sys.stdout.encoding or "").lower().startswith("utf") else text.translate(ASCII_ONLY)


def visible(text: str, limit: int = 200) -> str:
    """`text` from another machine, safe on a terminal: whatever is not printable (ESC, newlines, bidi overrides) becomes �."""
    return "".join(c if c.isprintable() else "�" for c in text[:limit])


def cells(text: str) -> int:
    """Width of `text` on a terminal. rich.cells knows the wide and the combining characters; ASCII needs no table."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def fit(text: str, width: int, align: str = "<") -> str:
    """`text` in exactly `width` cells: cut with an ellipsis, or padded (`<` left-aligned, `>` right-aligned)."""
    excess = cells(text) - width
    if excess > 0:
        if width <= 0:
            return ""
        from rich.cells import set_cell_size

        return set_cell_size(text, width - 1) + "…"
    return text + " " * -excess if align == "<" else " " * -excess + text


def fit_line(line: Line, width: int) -> Line:
    """`line` in exactly `width` cells."""
    used = 0
    for index, (text, style) in enumerate(line):
        length = cells(text)
        if used + length > width:
            return [*line[:index], (fit(text, width - used), style)]
        used += length
    return [*line, (" " * (width - used), "")] if used < width else line


def fit_lines(lines: list[Line], width: int, height: int) -> list[Line]:
    """Exactly `height` lines of exactly `width` cells: a frame."""
    blank: Line = [(" " * width, "")]
    return [fit_line(line, width) for line in lines[:height]] + [blank] * (height - len(lines))


def box(title: str, lines: list[Line], width: int) -> list[Line]:
    """`lines` in a dim border of `width` cells, with its title in it."""
    title = fit(title, min(cells(title), width - 6))
    top: Line = [("╭─ ", "dim"), (title, "bold"), (" " + "─" * (width - 5 - cells(title)) + "╮", "dim")]
    body = [[("│ ", "dim"), *fit_line(line, width - 4), (" │", "dim")] for line in lines]
    return [top, *body, [("╰" + "─" * (width - 2) + "╯", "dim")]]


def bar(fraction: float | None, width: int) -> str:
    """A meter of `width` cells in eighths of a cell; no fraction, no meter."""
    if fraction is None:
        return " " * width
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[rest] * (rest > 0)).ljust(width, "·")


def meter(fraction: float | None, width: int, style: str) -> Line:
    """A bar whose empty part is dim."""
    text = bar(fraction, width)
    filled = text.rstrip("·")
    return [(filled, style), (text[len(filled) :], "dim")]


def fraction(part: float | None, whole: float | None) -> float | None:
    """part / whole, where both are reported."""
    return None if part is None or not whole else part / whole


def show_bytes(count: float | None) -> str:
    """Three digits and an IEC unit: "45.2 GiB"."""
    if count is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 999.5 or unit == "PiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 99.95 or unit == "B" else f"{count:.1f} {unit}"


def show_watts(milliwatts: float | None) -> str:
    """Three digits and a unit: "412 W", "5.6 kW"."""
    if milliwatts is None:
        return MISSING
    watts = milliwatts / 1000
    for unit in ("W", "kW", "MW"):
        if watts < 999.5 or unit == "MW":
            break
        watts /= 1000
    return f"{watts:.0f} {unit}" if watts >= 99.95 or unit == "W" else f"{watts:.1f} {unit}"


def show_percent(part: float | None) -> str:
    """A fraction as a whole percentage."""
    return MISSING if part is None else f"{part * 100:.0f}%"


def show_celsius(degrees: float | None, limit: float | None) -> str:
    """Degrees, with a `!` from the limit on: colour never stands alone."""
    return MISSING if degrees is None else f"{degrees:.0f}°C" + ("!" if limit and degrees >= limit else " ")


def show_seconds(seconds: float) -> str:
    """A duration in its one or two largest units: "7s", "3m20s", "5h02m", "12d03h"."""
    whole = int(max(seconds, 0))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"


def heat_style(degrees: float | None, limit: float | None) -> str:
    """Colour of a temperature, against the device's own slowdown limit (90 °C where it names none)."""
    share = fraction(degrees, limit or 90)
    if share is None:
        return "dim"
    return "bold red" if share >= 1 else "yellow" if share >= 0.9 else "green"


class Column(NamedTuple):
    """A column of a table. Where the terminal is narrow, the columns with the highest `rank` go first."""

    title: str
    width: int
    rank: int
    align: str = "<"


def choose_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit side by side into `width` with one space between them, the lowest ranks first, in their order."""
    chosen: set[Column] = set()
    for column in sorted(columns, key=lambda column: column.rank):
        if sum(other.width + 1 for other in chosen) + column.width <= width:
            chosen.add(column)
    return [column for column in columns if column in chosen]


def align(line: Line, column: Column) -> Line:
    """What stands in a column: `line` in exactly its width."""
    if column.align == ">":
        line = [(" " * (column.width - sum(cells(text) for text, _ in line)), ""), *line]
    return fit_line(line, column.width)


class Endpoint(NamedTuple):
    """An address of the network: a name, an IPv4 or an IPv6 address without its brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """HOST[:PORT], where HOST is a name, an IPv4 address, or an IPv6 address with or without brackets.

    Raises argparse.ArgumentTypeError with what to write instead.
    """
    match = re.fullmatch(r"\[([^\[\]/\s]+)\](?::(\d+))?|([^\[\]:/\s]+)(?::(\d+))?|([^\[\]/\s]*:[^\[\]/\s]*:[^\[\]/\s]*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write HOST or HOST:PORT, like 10.0.0.5:50051 or [fd00::5]:50051")
    host = match[1] or match[3] or match[5]
    port = int(match[2] or match[4] or DEFAULT_PORT)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} has no port from 1 to 65535")
    return Endpoint(host, port)


def number_between(lowest: float, highest: float, what: str) -> Callable[[str], float]:
    """A parser of numbers in a range, which raises argparse.ArgumentTypeError saying what is wanted."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what} from {lowest:g} to {highest:g}")
        return value

    return parse


parse_seconds = number_between(0.1, 3600, "number of seconds")
parse_fps = number_between(0.1, FRAMES_PER_SECOND, "number of frames a second")


def check_node_id(text: str) -> str:
    """`text`, if it can name a node. Raises ValueError with the reason."""
    if not text.strip():
        raise ValueError("a node id must not be empty")
    if len(text) > 63:
        raise ValueError(f"a node id has at most 63 characters, this one {len(text)}")
    if not text.isprintable():
        raise ValueError(f"a node id has printable characters only: {visible(text)}")
    return text


class Options(argparse.ArgumentParser):
    """argparse, where each option also comes from the environment: --interval from EDGE_INTERVAL. A flag beats it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            usage="python3 %(prog)s.pyz [option …]",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def option(self, flag: str, about: str, **settings: Any) -> None:
        """Add an option that takes a value."""
        name = self._environment(flag)
        settings["default"] = os.environ.get(name, settings.get("default"))
        self.add_argument(flag, help=f"{about} [{name}]", **settings)

    def switch(self, flag: str, about: str) -> None:
        """Add an option that takes none."""
        name = self._environment(flag)
        value = os.environ.get(name, "").lower()
        if value not in (*YES, *NO):
            self.error(f"argument {flag}: {value!r} is neither 1 nor 0")
        self.add_argument(flag, action="store_true", default=value in YES, help=f"{about} [{name}]")

    def error(self, message: str) -> NoReturn:
        flag = message.removeprefix("argument ").partition(":")[0]
        given = any(argument.partition("=")[0] == flag for argument in sys.argv)
        if flag.startswith("--") and not given and self._environment(flag) in os.environ:
            message += f" (from {self._environment(flag)} in the environment)"
        self.exit(2, f"{self.prog}: {message}\ntry python3 {self.prog}.pyz --help\n")

    @staticmethod
    def _environment(flag: str) -> str:
        return "EDGE_" + flag.removeprefix("--").upper().replace("-", "_")


def version_text(program: str) -> str:
    """What --version says. The .pyz names its target and where its libraries lie, through the environment."""
    target, tree = os.environ.get("EDGE_TARGET"), os.environ.get("EDGE_TREE")
    where = f"target {target}, unpacked in {tree}" if tree else "from source"
    return f"{program} {VERSION} (Python {platform.python_version()}, {where})"


def abandon_stdout() -> None:
    """Its reader is gone: what is still in its buffer goes nowhere, else Python complains once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_screen() -> bool:
    """Whether stdout is a terminal that can show a full screen."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


class Inputs:
    """Keys and signals, waited for together by the main thread.

    The handlers of SIGINT, SIGTERM and SIGHUP only note their number; a second SIGINT raises KeyboardInterrupt. Everything is
    restored at the end. With `keyboard`, stdin is read key by key if it is a terminal (termios; not on Windows), and Ctrl-Z comes
    as the key "suspend": the screen has to go first.
    """

    def __init__(self, keyboard: bool) -> None:
        self.signal = 0
        self._suspended = False
        self._keyboard = keyboard and sys.stdin is not None and sys.stdin.isatty() and os.name == "posix"

    def __enter__(self) -> Inputs:
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        self._handlers = {number: signal.signal(number, self._note) for number in (getattr(signal, name) for name in names)}
        self._wakeup = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        if self._keyboard:
            self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._note_suspend)
            self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)  # that it wakes is enough
        self._take_keyboard()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_keyboard()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wake.close()
        self._woken.close()

    def suspend(self) -> None:
        """Stop this process until the shell's `fg`, with the keyboard as the shell wants it."""
        self._give_keyboard()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take_keyboard()

    def _take_keyboard(self) -> None:
        if self._keyboard:
            import termios
            import tty

            self._terminal = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)

    def _give_keyboard(self) -> None:
        if self._keyboard:
            import termios

            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)

    def _note_suspend(self, _number: int, _frame: object) -> None:
        self._suspended = True

    def _note(self, number: int, _frame: object) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def wake(self) -> None:
        """From any thread: end the wait."""
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            self._woken.send(b"\0")

    def wait(self, seconds: float) -> list[str]:
        """Wait for a key, a signal, another size, `wake`, or `seconds`; return the keys pressed, by their names."""
        watched = [self._wake, sys.stdin] if self._keyboard else [self._wake]
        ready, _, _ = select.select(watched, [], [], max(seconds, 0))
        if self._wake in ready:
            self._wake.recv(4096)
        if self._suspended:
            self._suspended = False
            return ["suspend"]
        if sys.stdin not in ready:
            return []
        with contextlib.suppress(OSError):  # EIO: the terminal was closed
            if pressed := os.read(sys.stdin.fileno(), 4096):
                return [ESCAPE_KEYS.get(key, key) for key in KEY.findall(pressed.decode(errors="replace"))]
        self.signal = self.signal or HANGUP
        return []


class Screen:
    """The terminal's alternate screen, kept by rich.Live, for frames that are lists of lines.

    rich renders a frame whole, at about 1.7 ms of processor for 45 lines; this sends only the lines that changed, inside one
    synchronized update (mode 2026), so that nothing flickers and a quiet screen costs nothing.
    """

    def __init__(self, no_color: bool) -> None:
        from rich.color import ColorSystem
        from rich.console import Console
        from rich.live import Live

        self._console = Console(no_color=no_color or None, highlight=False)
        self._colors = ColorSystem.STANDARD if self._console.color_system else None
        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._codes: dict[str, tuple[str, str]] = {"": ("", "")}
        self._drawn: list[Line] = []
        self._size = (0, 0)

    def __enter__(self) -> Screen:
        self._live.start()
        self._write("\x1b[?7l")  # a character wider than we think must not wrap into the next line
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self._write("\x1b[?7h")
            self._live.stop()

    def suspend(self, inputs: Inputs) -> None:
        """Ctrl-Z: leave the terminal to the shell, and take it again at `fg`."""
        self.__exit__()
        inputs.suspend()
        self._size = (0, 0)  # draw all of it again
        self.__enter__()

    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal now; (0, 0) where it has none."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(sys.stdout.fileno())
        return (0, 0)

    def draw(self, lines: list[Line]) -> None:
        """Show a frame. Raises OSError when the terminal is gone."""
        if (size := self.size()) != self._size:
            self._size, self._drawn = size, []
            self._write("\x1b[2J")
        before = self._drawn
        changed = [
            f"\x1b[{number};1H{self._paint(line)}"
            for number, line in enumerate(lines, 1)
            if number > len(before) or line != before[number - 1]
        ]
        if changed:
            self._write("\x1b[?2026h" + "".join(changed) + "\x1b[?2026l")
            self._drawn = lines

    def _paint(self, line: Line) -> str:
        painted = []
        for text, style in line:
            codes = self._codes.get(style)
            if codes is None:
                codes = self._codes[style] = self._codes_of(style)
            painted.append(f"{codes[0]}{text}{codes[1]}")
        return writable("".join(painted))

    def _codes_of(self, words: str) -> tuple[str, str]:
        from rich.style import Style

        style = Style.parse(words)
        if self._console.no_color:
            style = style.without_color
        before, _, after = style.render("\0", color_system=self._colors).partition("\0")
        return before, after

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def plain(lines: list[Line]) -> str:
    """A frame as text: what the tests read."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


def save_svg(lines: list[Line], title: str, path: pathlib.Path) -> None:
    """A frame as a picture: rich's own export."""
    import io

    from rich.console import Console
    from rich.text import Text

    width = sum(cells(text) for text, _ in lines[0])
    console = Console(record=True, width=width, file=io.StringIO(), color_system="standard", force_terminal=True)
    for line in lines:
        console.print(Text.assemble(*line), no_wrap=True, crop=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(console.export_svg(title=title, unique_id=path.stem), encoding="utf-8")


# ---- Panels of one node: its own screen, and its page on the server's. Pure functions of a subject and a size. ----

HISTORY_SAMPLES = 120  # two minutes at the usual cadence
NOT_REPORTED = 255  # in a history, whose frames have three bytes a row: utilization and memory in percent, temperature in °C
GAUGE_LINES = 7  # of a device's box, without its graph

# Bits of NVML's clocks event reasons (nvml.h, nvmlClocksEventReason…) that hold a device back, in words.
THROTTLE_WORDS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


class Subject(NamedTuple):
    """A node, as the panels show it."""

    info: pb.NodeInfo
    sample: pb.Sample
    processes: Sequence[pb.Process]
    history: bytes


def extend_history(history: bytes, frame: bytes) -> bytes:
    """The last HISTORY_SAMPLES frames. All have one length: a history starts anew when the devices change."""
    return (history + frame)[-HISTORY_SAMPLES * len(frame) :]


def series(subject: Subject, row: int, column: int) -> bytes:
    """One curve of a history, oldest first. Row 0 is the node, row 1 its first device."""
    return subject.history[3 * row + column :: 3 * (1 + len(subject.info.devices))]


# Bytes 0 to 100 as the eight blocks of a sparkline; 254 and less as a hundredth more; what is not reported as a space.
SPARKS = bytes(min(value * 8 // 101, 7) for value in range(255)) + b"\x08"
SPARK_CHARACTERS = dict(enumerate("▁▂▃▄▅▆▇█ "))


def sparkline(values: bytes, width: int) -> str:
    """The newest `width` values, the newest at the right, on a fixed scale from 0 to 100."""
    return values[-width:].translate(SPARKS).decode("latin-1").translate(SPARK_CHARACTERS).rjust(width)


def graph(values: bytes, width: int, height: int, style: str) -> list[Line]:
    """A curve in `height` lines, the newest at the right, on a fixed scale from 0 to 100. 0 is a thin line, nothing is nothing."""
    newest = values[-width:]
    tables = [graph_table(height, level) for level in range(height - 1, -1, -1)]
    return [[(newest.translate(table).decode("latin-1").translate(GRAPH_CHARACTERS).rjust(width), style)] for table in tables]


GRAPH_CHARACTERS = dict(enumerate(" ▁▂▃▄▅▆▇█"))


@functools.lru_cache(maxsize=1000)
def graph_table(height: int, level: int) -> bytes:
    """For each value of a history, how many eighths of a cell it fills at this level of a graph."""
    eighths = (round(min(value, 100) * height * 8 / 100) - level * 8 for value in range(NOT_REPORTED))
    return bytes(min(max(count, level == 0), 8) for count in eighths) + b"\0"


def node_panels(subject: Subject, width: int, room: int) -> list[Line]:
    """Devices, processes and host, in at most `room` lines: the devices come first where there is little."""
    host = host_panel(subject, width, room)
    room -= len(host)
    count = len(subject.info.devices)
    columns = max(min(width // 58, count), 1)
    gauge_lines = -(-count // columns) * GAUGE_LINES
    least = gauge_lines if gauge_lines <= room else count + 1
    processes = process_panel(subject.processes, width, min(room // 4, room - least))
    room -= len(processes)
    if not count:
        return [*processes, *host]
    if least == gauge_lines:
        graph_height = min((room - gauge_lines) // -(-count // columns), 15)
        return [*gauge_boxes(subject, width, columns, graph_height), *processes, *host]
    lines = device_table(subject, width)
    if len(lines) > room:
        lines = [*lines[: room - 1], [(f" and {len(lines) - room + 1} more: the terminal is too low", "dim")]]
    return [*lines, *processes, *host]


def gauge_boxes(subject: Subject, width: int, columns: int, graph_height: int) -> list[Line]:
    """A box a device, `columns` of them side by side."""
    lines: list[Line] = []
    devices = list(zip(subject.info.devices, subject.sample.devices, strict=False))
    for start in range(0, len(devices), columns):
        boxes = []
        for position, (info, sample) in enumerate(devices[start : start + columns]):
            box_width = width * (position + 1) // columns - width * position // columns
            content = gauges(info, sample, box_width - 4)
            if graph_height >= 3:
                content += graphs(subject, start + position, box_width - 4, graph_height)
            boxes.append(box(f"GPU {info.index} · {visible(info.name)}", content, box_width))
        lines += [[span for part in parts for span in part] for parts in zip(*boxes, strict=True)]
    return lines


def graphs(subject: Subject, device: int, width: int, height: int) -> list[Line]:
    """Utilization and temperature of the last minutes, side by side, each under its title."""
    half = (width - 2) // 2
    limit = subject.info.devices[device].slowdown_temperature_celsius
    reached = reported(subject.sample.devices[device], "temperature_celsius")
    left = graph(series(subject, 1 + device, 0), half, height - 1, "green")
    right = graph(series(subject, 1 + device, 2), half, height - 1, heat_style(reached, limit))
    titles: Line = [(fit("utilization, 0 to 100%", half), "dim"), ("  ", ""), (fit("temperature, 0 to 100°C", half), "dim")]
    return [titles, *([*first, ("  ", ""), *second] for first, second in zip(left, right, strict=True))]


def gauges(info: pb.DeviceInfo, sample: pb.DeviceSample, width: int) -> list[Line]:
    """Five lines: utilization, memory, temperature, power, and the rest in words."""
    if sample.error:
        return [[(fit(f"✗ {visible(sample.error)}", width), "bold red")], *[[]] * 4]
    reading = Reading(info, sample)
    memory = "memory (shared)" if info.unified_memory else "memory"
    words = [
        f"fan {reading.fan}",
        f"SM {reading.clock}",
        f"throttle: {reading.throttle}",
    ]
    return [
        gauge("utilization", reading.utilization, show_percent(reading.utilization), "green", width),
        gauge(memory, reading.memory, of(show_bytes(reading.memory_used), show_bytes(reading.memory_total)), "cyan", width),
        gauge(
            "temperature",
            reading.heat,
            of(show_celsius(reading.celsius, reading.limit), reading.limit_text),
            reading.heat_style,
            width,
        ),
        gauge("power", reading.power, of(show_watts(reading.milliwatts), show_watts(reading.limit_milliwatts)), "magenta", width),
        [("   ".join(words), "yellow" if reading.throttled else "dim")],
    ]


def of(value: str, whole: str) -> str:
    """ "45.2 GiB of 140 GiB", where the whole is known."""
    return value if MISSING in (value, whole) else f"{value} of {whole}"


def gauge(label: str, part: float | None, value: str, style: str, width: int) -> Line:
    """A labelled meter with its value at the right."""
    length = max(width - 16 - 21, 4)
    return [
        (fit(label, 16), "dim"),
        *meter(part, length, style),
        (fit(value, width - 16 - length, ">"), "" if value != MISSING else "dim"),
    ]


def reported(message: Any, field: str) -> Any:
    """An optional field's value; None where the box does not report it."""
    return getattr(message, field) if message.HasField(field) else None


class Reading:
    """A device's sample against its info, with None for what is not reported."""

    def __init__(self, info: pb.DeviceInfo, sample: pb.DeviceSample) -> None:
        percent = reported(sample, "utilization_percent")
        self.utilization = fraction(percent, 100)
        self.memory_used = reported(sample, "memory_used_bytes")
        self.memory_total = reported(info, "memory_total_bytes")
        self.memory = fraction(self.memory_used, self.memory_total)
        self.celsius = reported(sample, "temperature_celsius")
        self.limit = reported(info, "slowdown_temperature_celsius")
        self.limit_text = MISSING if self.limit is None else f"{self.limit}°C"
        self.heat = fraction(self.celsius, self.limit or 100)
        self.heat_style = heat_style(self.celsius, self.limit)
        self.milliwatts = reported(sample, "power_milliwatts")
        self.limit_milliwatts = reported(info, "power_limit_milliwatts")
        self.power = fraction(self.milliwatts, self.limit_milliwatts)
        fan = reported(sample, "fan_percent")
        self.fan = show_percent(fraction(fan, 100))
        clock = reported(sample, "sm_clock_mhz")
        self.clock = MISSING if clock is None else f"{clock} MHz"
        reasons = reported(sample, "throttle_reasons")
        held_back = [words for bit, words in THROTTLE_WORDS.items() if (reasons or 0) & bit]
        self.throttled = bool((reasons or 0) & ~0x05)  # not for idling, nor for the power limit that any busy GPU meets
        self.throttle = MISSING if reasons is None else ", ".join(held_back) or "none"


DEVICE_COLUMNS = (
    Column("GPU", 3, 0, ">"),
    Column("NAME", 24, 6),
    Column("UTILIZATION", 16, 1),
    Column("MEMORY", 16, 3),
    Column("USED", 20, 5, ">"),
    Column("TEMP", 6, 0, ">"),
    Column("POWER", 7, 2, ">"),
    Column("FAN", 4, 7, ">"),
    Column("SM CLOCK", 8, 8, ">"),
    Column("THROTTLE", 20, 4),
)


def device_table(subject: Subject, width: int) -> list[Line]:
    """A title line, then a line a device."""
    columns = choose_columns(DEVICE_COLUMNS, width - 2)
    lines: list[Line] = [[(" " + " ".join(fit(column.title, column.width, column.align) for column in columns), "bold dim")]]
    for info, sample in zip(subject.info.devices, subject.sample.devices, strict=False):
        if sample.error:
            text = f"{visible(info.name)}  ✗ {visible(sample.error)}"
            lines.append([(fit(str(info.index), 4, ">"), "bold"), (f" {text}", "bold red")])
            continue
        spans = device_spans(info, sample)
        lines.append([(" ", "")] + [span for column in columns for span in [*align(spans[column.title], column), (" ", "")]])
    return lines


def device_spans(info: pb.DeviceInfo, sample: pb.DeviceSample) -> dict[str, Line]:
    """What stands in each column for a device."""
    reading = Reading(info, sample)
    return {
        "GPU": [(str(info.index), "bold")],
        "NAME": [(visible(info.name), "")],
        "UTILIZATION": [*meter(reading.utilization, 10, "green"), (fit(show_percent(reading.utilization), 6, ">"), "")],
        "MEMORY": [*meter(reading.memory, 10, "cyan"), (fit(show_percent(reading.memory), 6, ">"), "")],
        "USED": [(of(show_bytes(reading.memory_used), show_bytes(reading.memory_total)), "")],
        "TEMP": [(show_celsius(reading.celsius, reading.limit), reading.heat_style)],
        "POWER": [(show_watts(reading.milliwatts), "")],
        "FAN": [(reading.fan, "dim")],
        "SM CLOCK": [(reading.clock, "dim")],
        "THROTTLE": [(reading.throttle, "yellow" if reading.throttled else "dim")],
    }


def host_panel(subject: Subject, width: int, room: int) -> list[Line]:
    """The host: a box of meters, or one line where there is little room."""
    readings = host_readings(subject)
    if room < 14:
        summary = "  ".join(f"{label} {show_percent(part)}" for label, part, _, _ in readings)
        return [[(f" host  {summary}  {host_words(subject)}", "")]]
    inner = width - 4
    if subject.info.devices and width >= 120:
        third = inner // 3
        spans = [
            [(fit(label, 7), "dim"), *meter(part, third - 7 - 22, style), (fit(text, 20, ">") + "  ", "")]
            for label, part, text, style in readings
        ]
        lines: list[Line] = [[span for part in spans for span in part]]
    else:
        lines = [gauge(label, part, text, style, inner) for label, part, text, style in readings]
    info, cores = subject.info.host, subject.sample.host.cpu_core_percents
    if cores and room >= 24:
        lines += core_lines(cores, inner)
    title = " · ".join(visible(text) for text in ("Host", info.model, info.operating_system) if text)
    return box(title, [*lines, [(host_words(subject), "dim")]], width)


def host_readings(subject: Subject) -> list[tuple[str, float | None, str, str]]:
    """Label, fraction, text and style of the host's three meters."""
    info, sample = subject.info.host, subject.sample.host
    cpu = fraction(reported(sample, "cpu_percent"), 100)
    memory, memory_total = reported(sample, "memory_used_bytes"), reported(info, "memory_total_bytes")
    disk, disk_total = reported(sample, "disk_used_bytes"), reported(info, "disk_total_bytes")
    return [
        ("cpu", cpu, show_percent(cpu), "green"),
        ("memory", fraction(memory, memory_total), of(show_bytes(memory), show_bytes(memory_total)), "cyan"),
        ("disk", fraction(disk, disk_total), of(show_bytes(disk), show_bytes(disk_total)), "blue"),
    ]


def host_words(subject: Subject) -> str:
    """The rest of what the host reports, in words."""
    sample = subject.sample.host
    celsius, load, uptime = (reported(sample, field) for field in ("temperature_celsius", "load_1m", "uptime_seconds"))
    cpus = reported(subject.info.host, "cpu_count")
    received = reported(sample, "network_received_bytes_per_second")
    sent = reported(sample, "network_sent_bytes_per_second")
    words = [
        "" if celsius is None else show_celsius(celsius, None).strip(),
        "" if load is None else f"load {load:.2f}",
        "" if cpus is None else f"{cpus} CPU{'s' * (cpus != 1)}",
        "" if received is None else f"↓ {show_bytes(received)}/s ↑ {show_bytes(sent)}/s",
        "" if uptime is None else f"up {show_seconds(uptime)}",
    ]
    return "  ".join(filter(None, words))


def process_panel(processes: Sequence[pb.Process], width: int, room: int) -> list[Line]:
    """Who uses the devices, those with most memory first, in `room` lines."""
    shown = min(len(processes), room - 3)
    if shown < 1:
        return []
    largest = sorted(processes, key=lambda process: -process.memory_used_bytes)
    lines: list[Line] = [[(f"{'GPU':>3} {'PID':>8} {'USER':12} {'MEMORY':>9} NAME", "bold dim")]]
    for process in largest[:shown]:
        memory = show_bytes(reported(process, "memory_used_bytes"))
        user = fit(visible(process.user) or MISSING, 12)
        lines.append([(f"{process.device_index:3} {process.pid:8} {user} {memory:>9} ", ""), (visible(process.name), "bold")])
    more = f", {len(processes) - shown} more" if len(processes) > shown else ""
    return box(f"Processes{more}", lines, width)


def core_lines(percents: bytes, width: int) -> list[Line]:
    """A spark a processor: how even the load is."""
    each = width - 7
    parts = [percents[start : start + each] for start in range(0, len(percents), each)]
    return [[("cores  ", "dim"), (sparkline(part, len(part)), "green")] for part in parts]


# ---- End of the block that stands in both scripts. ----

HEARTBEATS_PER_SECOND = 10_000  # what one process takes in; a larger fleet is told to beat more slowly
ACKNOWLEDGE_SECONDS = 9.5  # each tenth heartbeat at 1 Hz; a node gives its session up after 12 s and two intervals of silence
CHECK_SECONDS = 60.0  # of a session whose samples nobody looks at: from one that is read to the next
FIRST_MESSAGE_SECONDS = 10.0
MAX_MESSAGE_BYTES = 2**20
MAX_UNREAD_BYTES = 16 * 1024  # of a heartbeat put aside; one of 128 devices has 4 KiB
MAX_KEPT_BYTES = 2**16  # of one info, and of one sample: what a node can make this process keep
MAX_DEVICES = 128
MAX_TEXT = 256  # characters of any text that a node sends
FORGET_SECONDS = 24 * 3600.0
LOST_SECONDS = 10.0
DATA_FRAMES_PER_SECOND = 12  # heartbeats come all the time; keys are answered at once
GOODBYE_SECONDS = 2.0
WATCH_SECONDS = 1.0  # from one look at who is late to the next: for the log, since a row's state is told from its age
PRINT_SECONDS = 0.2  # from one look into the log to the next, without a screen
EVENTS_KEPT = 1000
COMPLAINTS_PER_SECOND = 10  # refusals and errors that the log takes: what a hostile sender can do to it

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server on the same port starts without an error, and takes half of the nodes
    ("grpc.http2.bdp_probe", 0),  # it answers nearly every heartbeat with a ping
    ("grpc.server.max_pending_requests", 100_000),  # else new streams are refused at random when a whole fleet comes back at once
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),  # finds the dead connections of nodes that do not beat
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),  # below any node's own, else GOAWAY too_many_pings
    ("grpc.http2.max_ping_strikes", 0),
)


# ---- Liveness: a pure function of ages ----


class State(enum.Enum):
    """What a node is. In this order they stand in the header."""

    ONLINE = "ONLINE"
    LATE = "LATE"
    DISCONNECTED = "DISCONNECTED"
    LOST = "LOST"
    LEFT = "LEFT"


class Vitals(NamedTuple):
    """What matters most of a node's devices; of its host where it has no device. None is "not reported"."""

    utilization: float | None = None  # mean of the devices, 0 to 1
    memory: float | None = None  # of the fullest device, 0 to 1
    memory_used_bytes: int = 0  # of all devices
    memory_total_bytes: int = 0
    celsius: float | None = None  # of the hottest device
    limit_celsius: int | None = None  # that device's slowdown temperature
    milliwatts: int | None = None  # of all devices
    errors: int = 0  # devices that are not read
    frame: bytes = b""  # of the history


class Limits(NamedTuple):
    """What readings are measured against: of a NodeInfo what each heartbeat needs, apart, since messages are slow to read."""

    host_memory_bytes: int = 0
    devices: tuple[tuple[int, int], ...] = ()  # memory in bytes, slowdown temperature in °C; 0 is not known


class Row(NamedTuple):
    """A node as the registry knows it. Never changed: each heartbeat puts a new row in the place of the old one.

    The node's messages are kept serialized: parsed, they take seven times the memory, and only the rows on the screen are read.
    """

    node_id: str
    address: str
    session: Session | None  # None: its stream is broken, or it said goodbye
    interval_seconds: float  # the cadence that this node was told
    sample_at: float | None = None  # by the registry's clock, as is heartbeat_at; None: it has sent none
    packed_info: bytes = b""
    packed_sample: bytes = b""
    packed_processes: bytes = b""
    limits: Limits = Limits()  # of info
    vitals: Vitals = Vitals()
    history: bytes = b""  # the frames of the last samples
    round_trip_seconds: float | None = None  # as the node measured it
    left: bool = False
    reason: str = ""  # why it has no session
    heartbeat_at: float = 0.0
    unread: bytes = b""  # the newest heartbeat, not checked yet: nobody has asked for what it says

    def beat(self, now: float, unread: bytes) -> Row:
        """The row after one more heartbeat: _replace, in a fifth of its time."""
        return Row._make((*self[:-2], now, unread))

    @property
    def info(self) -> pb.NodeInfo:
        return pb.NodeInfo.FromString(self.packed_info)

    @property
    def sample(self) -> pb.Sample:
        return pb.Sample.FromString(self.packed_sample)

    @property
    def processes(self) -> Sequence[pb.Process]:
        return pb.ProcessList.FromString(self.packed_processes).processes


def state_of(row: Row, now: float) -> State:
    """ONLINE, LATE after 3 intervals, LOST after max(10 s, 5 intervals); DISCONNECTED between a broken stream and LOST; LEFT."""
    if row.left:
        return State.LEFT
    age = now - row.heartbeat_at
    if age > max(LOST_SECONDS, 5 * row.interval_seconds):
        return State.LOST
    if row.session is None:
        return State.DISCONNECTED
    return State.LATE if age > 3 * row.interval_seconds else State.ONLINE


def reason_of(row: Row, state: State, now: float) -> str:
    """Why a node is not online, in words; empty when it is."""
    if state is State.ONLINE:
        return ""
    if state in (State.LEFT, State.DISCONNECTED):
        return row.reason
    return "; ".join(filter(None, (f"no heartbeat for {show_seconds(now - row.heartbeat_at)}", row.reason)))


# ---- What a node may send ----


class Refused(Exception):
    """A heartbeat that is not taken: gRPC's status code, and what the node's owner should do."""

    def __init__(self, reason: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> None:
        super().__init__(reason)
        self.code = code


def as_refused(error: Refused | DecodeError) -> Refused:
    """What is not even a heartbeat is refused as well."""
    return error if isinstance(error, Refused) else Refused(f"this is no heartbeat: {error}")


def taken_over(node_id: str) -> Refused:
    """Why a session ends when its node has opened another."""
    return Refused(f"another session of {node_id} has taken over", grpc.StatusCode.ABORTED)


GOING_AWAY = Refused("the server is going away: come back soon", grpc.StatusCode.UNAVAILABLE)


# What a number may be. A reading outside is no reading: a sentinel, a negative number in an unsigned field, NaN.
RANGES: dict[str, tuple[float, float]] = {
    "cpu_count": (0, 10**6),
    "memory_total_bytes": (0, 2**50),
    "disk_total_bytes": (0, 2**60),
    "power_limit_milliwatts": (0, 10**8),
    "slowdown_temperature_celsius": (-100, 500),
    "cpu_percent": (0, 100),
    "memory_used_bytes": (0, 2**50),
    "disk_used_bytes": (0, 2**60),
    "network_received_bytes_per_second": (0, 2**50),
    "network_sent_bytes_per_second": (0, 2**50),
    "temperature_celsius": (-100, 500),
    "load_1m": (0, 10**6),
    "utilization_percent": (0, 100),
    "power_milliwatts": (0, 10**8),
    "fan_percent": (0, 1000),
    "sm_clock_mhz": (0, 10**6),
    "gpu_temp": (-100, 500),
}


def is_sane_host(host: pb.HostSample) -> bool:
    """Whether all of a host is within RANGES: the question of check_fields without the words, five times as fast."""
    return (
        host.cpu_percent <= 100
        and host.memory_used_bytes <= 2**50
        and host.disk_used_bytes <= 2**60
        and host.network_received_bytes_per_second <= 2**50
        and host.network_sent_bytes_per_second <= 2**50
        and -100 <= host.temperature_celsius <= 500
        and 0 <= host.load_1m <= 10**6
    )


def check_fields(message: Any, where: str) -> None:
    """Raises Refused naming the first field of `message` that is out of its range, or too long."""
    for field, value in message.ListFields():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise Refused(f"{where}.{field.name} has {len(value)} characters: it may have {MAX_TEXT}")
        if field.name in RANGES:
            lowest, highest = RANGES[field.name]
            if not lowest <= value <= highest:
                raise Refused(f"{where}.{field.name} is {value}: it must be from {lowest:g} to {highest:g}")


def check_count(devices: Sequence[Any], where: str) -> None:
    """Raises Refused for more devices than a box can have."""
    if len(devices) > MAX_DEVICES:
        raise Refused(f"{where} has {len(devices)} devices: it may have {MAX_DEVICES}")


def packed(part: Any, where: str) -> bytes:
    """A part of a message, to be kept. Raises Refused if it is large."""
    kept: bytes = part.SerializeToString()
    if len(kept) > MAX_KEPT_BYTES:  # with fields that this version does not know
        raise Refused(f"{where} has {len(kept)} bytes: it may have {MAX_KEPT_BYTES}")
    return kept


def check_processes(processes: pb.ProcessList) -> None:
    """Raises Refused, naming the first field that is out of its range."""
    for index, process in enumerate(processes.processes):
        check_fields(process, f"processes[{index}]")


def check_identity(request: pb.HeartbeatRequest) -> None:
    """Raises Refused for an id that can't name a node."""
    try:
        check_node_id(request.node_id)
    except ValueError as error:
        raise Refused(f"{error}: see --id") from error


def check_info(info: pb.NodeInfo) -> None:
    """Raises Refused, naming the first field that is out of its range."""
    check_count(info.devices, "info")
    check_fields(info, "info")
    check_fields(info.host, "info.host")
    for index, device in enumerate(info.devices):
        check_fields(device, f"info.devices[{index}]")
    try:
        info.started_at.ToJsonString()
    except ValueError as error:
        raise Refused("info.started_at is no time from the year 1 to 9999") from error


def sample_of(request: pb.HeartbeatRequest) -> pb.Sample | None:
    """The sample of a message; the first version's nodes send one temperature and no more. Raises Refused."""
    if request.gpu_temp:
        check_fields(request, "heartbeat")
    if request.HasField("sample"):
        return request.sample
    if request.gpu_temp:
        return pb.Sample(devices=[pb.DeviceSample(temperature_celsius=round(request.gpu_temp))])
    return None


def limits_of(info: pb.NodeInfo) -> Limits:
    """What a node's readings are measured against."""
    devices = tuple((device.memory_total_bytes, device.slowdown_temperature_celsius) for device in info.devices)
    return the_same(Limits(info.host.memory_total_bytes, devices))


@functools.lru_cache(maxsize=1000)
def the_same(limits: Limits) -> Limits:
    """Boxes of one kind share theirs."""
    return limits


def vitals_of(limits: Limits, sample: pb.Sample) -> Vitals:
    """What matters most of a sample: of its devices; of the host where it has none. Raises Refused, naming the first field
    that is out of its range."""
    host = sample.host
    if not is_sane_host(host):
        check_fields(host, "sample.host")
    if sample.devices:
        return device_vitals(limits.devices, sample.devices)
    total = limits.host_memory_bytes
    utilization = host.cpu_percent / 100 if host.HasField("cpu_percent") else None
    memory = host.memory_used_bytes / total if total and host.HasField("memory_used_bytes") else None
    celsius = host.temperature_celsius if host.HasField("temperature_celsius") else None
    frame = frame_of(utilization, memory, celsius) + b"\xff\xff\xff" * len(limits.devices)
    return Vitals(utilization, memory, celsius=celsius, frame=frame)


def device_vitals(limits: Sequence[tuple[int, int]], devices: Sequence[pb.DeviceSample]) -> Vitals:
    """Checks and sums up devices in one pass, since it is run for each heartbeat: a field is read once, compared without words,
    and asked whether it is set only when it is 0. Raises Refused."""
    if len(devices) > MAX_DEVICES:
        raise Refused(f"sample has {len(devices)} devices: it may have {MAX_DEVICES}")
    utilization = readings = used = total = errors = 0
    fullest = celsius = limit = milliwatts = None
    known = len(limits)
    if len(devices) != known:
        limits = [*limits, *[(0, 0)] * (len(devices) - known)]
    rows: list[int] = []
    for device, (capacity, slowdown) in zip(devices, limits, strict=False):
        busy, part, degrees, power = (
            device.utilization_percent, device.memory_used_bytes, device.temperature_celsius, device.power_milliwatts,
        )  # fmt: skip
        if (
            busy > 100 or part > 2**50 or not -100 <= degrees <= 500 or power > 10**8
            or device.fan_percent > 1000 or device.sm_clock_mhz > 10**6 or device.error
        ):  # fmt: skip
            check_fields(device, f"sample.devices[{len(rows) // 3}]")
            errors += 1  # no number is out of its range: it is the device's own error
        full = heat = NOT_REPORTED
        if busy or device.HasField("utilization_percent"):
            utilization += busy
            readings += 1
        else:
            busy = NOT_REPORTED
        if capacity and (part or device.HasField("memory_used_bytes")):
            used += part
            total += capacity
            full = part * 100 // capacity if part < capacity else 100
            if fullest is None or part / capacity > fullest:
                fullest = part / capacity
        if degrees or device.HasField("temperature_celsius"):
            heat = 0 if degrees < 0 else degrees if degrees < NOT_REPORTED else 254
            if celsius is None or degrees > celsius:
                celsius, limit = degrees, slowdown
        if power or device.HasField("power_milliwatts"):
            milliwatts = power if milliwatts is None else milliwatts + power
        rows += busy, full, heat
    mean = utilization / readings / 100 if readings else None
    frame = frame_of(mean, fullest, celsius) + bytes(rows[: 3 * known]) + b"\xff\xff\xff" * (known - len(devices))
    return Vitals(mean, fullest, used, total, celsius, limit or None, milliwatts, errors, frame)


def frame_of(utilization: float | None, memory: float | None, celsius: float | None) -> bytes:
    """The node's own three bytes in a frame of the history."""
    busy = NOT_REPORTED if utilization is None else min(int(utilization * 100 + 0.5), 100)
    full = NOT_REPORTED if memory is None else min(int(memory * 100 + 0.5), 100)
    heat = NOT_REPORTED if celsius is None else min(max(int(celsius), 0), 254)
    return bytes((busy, full, heat))


def take(row: Row, request: pb.HeartbeatRequest) -> Row:
    """The row after what a heartbeat says. Raises Refused when a field is out of its range."""
    changes: dict[str, Any] = {"unread": b""}
    limits, history = row.limits, row.history
    if request.HasField("info"):
        changes["packed_info"] = packed(request.info, "info")  # first of all: its size bounds what the check costs
        check_info(request.info)
        limits = changes["limits"] = limits_of(request.info)
        if len(limits.devices) != len(row.limits.devices):
            history = b""
    if request.HasField("processes"):
        changes["packed_processes"] = packed(request.processes, "processes")
        check_processes(request.processes)
    if request.round_trip_microseconds:
        changes["round_trip_seconds"] = request.round_trip_microseconds / 1e6
    if request.backlog:
        newest = row.sample.sequence
        for missed in request.backlog[-HISTORY_SAMPLES:]:
            if missed.sequence > newest:  # else it came, and only its acknowledgement was lost
                history = extend_history(history, vitals_of(limits, missed).frame)
    sample = sample_of(request)
    if sample:
        vitals = vitals_of(limits, sample)
        if not (request.HasField("info") and sample.sequence and sample.sequence == row.sample.sequence):  # else it came already
            history = extend_history(history, vitals.frame)
        age_milliseconds = max(request.clock_milliseconds - sample.taken_milliseconds, 0)
        sample_at = row.heartbeat_at - age_milliseconds / 1000
        changes |= {"packed_sample": packed(sample, "sample"), "sample_at": sample_at, "vitals": vitals}
    return row._replace(**changes, history=history)


def catch_up(row: Row) -> Row:
    """The row with what its unread heartbeat says. Raises Refused."""
    return take(row, pb.HeartbeatRequest.FromString(row.unread)) if row.unread else row


def read(row: Row) -> Row:
    """The row with what its unread heartbeat says. One that is refused stays unread: its session ends soon."""
    with contextlib.suppress(Refused):
        return catch_up(row)
    return row


def is_only_a_sample(request: pb.HeartbeatRequest) -> bool:
    """Whether nothing is lost when the next heartbeat takes the place of this one."""
    return request.HasField("sample") and not (request.HasField("info") or request.HasField("processes") or request.leaving)


# ---- The registry: all nodes, under one lock ----


class Event(NamedTuple):
    """What happened to a node."""

    time: float  # wall clock, seconds
    kind: str  # a key of EVENT_STYLES
    node_id: str
    text: str


class Session:
    """One stream of one instance of a node; or, for unary heartbeats, what stands for it."""

    __slots__ = ("address", "close", "instance_id", "next_acknowledgement_at", "next_check_at", "node_id", "sequence")

    def __init__(self, request: pb.HeartbeatRequest, address: str, close: Callable[[], object] | None) -> None:
        self.node_id = request.node_id
        self.instance_id = request.info.instance_id
        self.address = address
        self.close = close  # ends the stream, from any thread; None: unary heartbeats, which have none
        self.sequence = max((sample.sequence for sample in request.backlog), default=0)  # the newest sample that came
        self.next_acknowledgement_at = self.next_check_at = 0.0


class Registry:
    """All nodes. Both threads call it; every verb takes the lock briefly, and a snapshot is a list of rows that never change.

    Where histories are kept, for a screen, each heartbeat is read as it comes. Without, only the newest one matters: it is put
    aside until someone asks for it, or the next one comes. So what is shown has been checked, and a session that sends nonsense
    to nobody is found within CHECK_SECONDS.
    """

    def __init__(
        self, interval_seconds: float, max_nodes: int, clock: Callable[[], float] = time.monotonic, keeps_history: bool = True
    ) -> None:
        self.clock = clock
        self._keeps_history = keeps_history
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._interval_seconds = interval_seconds
        self._max_nodes = max_nodes
        self._beating = 0  # nodes that are not gone, as of the last watch
        self._gone: collections.deque[Row] = collections.deque()  # the lost and left ones, longest silent first: they give way
        self._told: dict[str, State] = {}  # the worse states that the log has already told
        self.errors: collections.deque[str] = collections.deque(maxlen=100)  # written where the lock may be held
        self._events: collections.deque[Event] = collections.deque(maxlen=EVENTS_KEPT)
        self._event_count = 0
        self._complaints = (0, 0)  # second, and how many in it

    def open(self, request: pb.HeartbeatRequest, address: str, close: Callable[[], object] | None = None) -> Session:
        """Take a session's first message. Raises Refused: a bad id or field, a living holder of the id, a full server."""
        check_identity(request)
        now = self.clock()
        session = Session(request, address, close)
        with self._lock:
            holder = self._rows.get(session.node_id)
        known = holder and holder.info.instance_id == session.instance_id
        # What is costly is done outside the lock: of a node that comes back, all that it does not bring along is as it was.
        blank = Row(session.node_id, address, session, self._cadence_seconds(), heartbeat_at=now)
        row = take(self._resumed(holder, blank) if holder and known else blank, request)
        session.next_acknowledgement_at = now + random.uniform(0, ACKNOWLEDGE_SECONDS)  # spread: a fleet comes back at once
        if close and not self._keeps_history:  # a unary heartbeat is answered each time, so it is checked each time
            session.next_check_at = now + random.uniform(0, CHECK_SECONDS)
        with self._lock:
            holder = self._rows.get(session.node_id)
            self._check_free(holder, session, now)
            self._admit(session, request, holder, now)
            self._put(row, session, request)
        return session

    @staticmethod
    def _resumed(holder: Row, blank: Row) -> Row:
        """A new session's row, with what is known of the same instance."""
        holder = read(holder)
        return holder._replace(
            address=blank.address, session=blank.session, interval_seconds=blank.interval_seconds,
            heartbeat_at=blank.heartbeat_at, left=False, reason="", round_trip_seconds=None,
        )  # fmt: skip

    def _check_free(self, holder: Row | None, newcomer: Session, now: float) -> None:
        """Raises Refused when another instance lives under this id (one that is late, broken or gone gives way), or all is full."""
        if holder and holder.session and state_of(holder, now) is State.ONLINE:
            other_kind = (holder.session.close is None) != (newcomer.close is None)
            # The first version's nodes and scripts do not say which instance they are: the kind of call must do.
            if holder.session.instance_id != newcomer.instance_id or (not newcomer.instance_id and other_kind):
                where = f"{visible(holder.info.hostname) or 'a node'} at {holder.address}"
                raise Refused(f"the id {newcomer.node_id} is taken by {where}", grpc.StatusCode.ALREADY_EXISTS)
        if not holder and not self._make_room():
            reason = f"the server is full with {self._max_nodes} nodes: start it with a larger --max-nodes"
            raise Refused(reason, grpc.StatusCode.RESOURCE_EXHAUSTED)

    def _make_room(self) -> bool:
        while len(self._rows) >= self._max_nodes and self._gone:
            row = self._gone.popleft()
            if self._rows.get(row.node_id) is row:  # else it came back
                self._remove(row)
        return len(self._rows) < self._max_nodes

    def _remove(self, row: Row) -> None:
        del self._rows[row.node_id]
        self._told.pop(row.node_id, None)
        if row.session and row.session.close:
            row.session.close()

    def _admit(self, session: Session, request: pb.HeartbeatRequest, holder: Row | None, now: float) -> None:
        """Remove who held the id until now, and log who comes."""
        if holder:
            self._remove(holder)
        if holder and holder.info.instance_id == session.instance_id and not holder.left:
            self._log("back", session.node_id, f"after {show_seconds(now - holder.heartbeat_at)}")
        else:
            hostname = f"{visible(request.info.hostname)}, " if request.info.hostname else ""
            self._log("joined", session.node_id, f"{hostname}{session.address}")

    def heartbeat(self, session: Session, request: pb.HeartbeatRequest) -> None:
        """Take one more message of a session. Raises Refused for a field out of its range, or when the session is over."""
        now = self.clock()
        with self._lock:
            before = self._held(session)
            if now < session.next_check_at and is_only_a_sample(request):
                unread = request.SerializeToString()
                if len(unread) <= MAX_UNREAD_BYTES:
                    self._tell_return(before, now)
                    session.sequence = request.sample.sequence or session.sequence
                    self._rows[before.node_id] = before.beat(now, unread)
                    return
        known = read(before) if request.leaving else catch_up(before)  # a goodbye is not refused for what came before it
        row = take(known._replace(heartbeat_at=now), request)
        if not self._keeps_history:
            row = row._replace(history=b"")
            if session.close:
                session.next_check_at = now + CHECK_SECONDS
        with self._lock:
            self._held(session)
            self._tell_return(before, now)
            self._put(row, session, request)

    def _tell_return(self, row: Row, now: float) -> None:
        if self._told.pop(row.node_id, None):
            self._log("back", row.node_id, f"after {show_seconds(now - row.heartbeat_at)}")

    def take_unary(self, request: pb.HeartbeatRequest, address: str) -> Session:
        """Take a heartbeat without a stream: of the session that its row has, or of a new one. Raises Refused as `open` does."""
        with self._lock:
            row = self._rows.get(request.node_id)
        session = row.session if row else None
        if session and session.close is None and request.info.instance_id in ("", session.instance_id):
            self.heartbeat(session, request)
            return session
        return self.open(request, address)

    def _held(self, session: Session) -> Row:
        """The row that a session holds. Raises Refused when it holds none any more."""
        row = self._rows.get(session.node_id)
        if row is None or row.session is not session:
            raise taken_over(session.node_id)
        return row

    def _put(self, row: Row, session: Session, request: pb.HeartbeatRequest) -> None:
        session.sequence = request.sample.sequence or session.sequence
        if request.leaving:
            row = row._replace(left=True, session=None, reason="said goodbye")
            self._gone.appendleft(row)
            self._log("left", row.node_id, row.reason)
        self._rows[row.node_id] = row

    def end(self, session: Session, reason: str) -> None:
        """A stream is over. Only its own row knows of it: a newer session's stays as it is."""
        with self._lock:
            row = self._rows.get(session.node_id)
            if row and row.session is session:
                self._rows[session.node_id] = read(row)._replace(unread=b"", session=None, reason=reason)
                self._log("disconnected", session.node_id, reason)

    def acknowledgement(self, session: Session) -> pb.HeartbeatResponse:
        """The answer to what a session has sent so far, with the cadence of now."""
        with self._lock:
            row = self._rows.get(session.node_id)
            interval = self._cadence_seconds()
            if row and row.session is session and row.interval_seconds != interval:
                self._rows[session.node_id] = row._replace(interval_seconds=interval)
        return pb.HeartbeatResponse(
            acknowledged=True, acknowledged_sequence=session.sequence, heartbeat_interval_milliseconds=round(interval * 1000)
        )

    def _cadence_seconds(self) -> float:
        """What the user asks for; stretched, by tenths of a second, when the whole fleet would exceed the budget."""
        return max(self._interval_seconds, math.ceil(self._beating / HEARTBEATS_PER_SECOND * 10) / 10)

    def rows(self, node_ids: Iterable[str]) -> list[Row | None]:
        """These rows, as they are now; None for one that is not there."""
        with self._lock:
            rows = [self._rows.get(node_id) for node_id in node_ids]
        return [row and read(row) for row in rows]

    def forget(self, node_id: str) -> bool:
        """Remove a node that is lost or left; any other stays. Tells whether it is gone."""
        with self._lock:
            row = self._rows.get(node_id)
            if row and state_of(row, self.clock()) not in (State.LOST, State.LEFT):
                self._log("warning", node_id, "stays: it is neither lost nor left")
                return False
            if row:
                self._remove(row)
                self._log("forgotten", node_id, "by the user")
            return True

    def restore(self, row: Row) -> None:
        """Put a row as it is: for pictures and measurements."""
        with self._lock:
            self._rows[row.node_id] = row

    def newest_events(self, count: int) -> list[Event]:
        """The last `count` events."""
        with self._lock:
            return list(itertools.islice(reversed(self._events), count))[::-1]

    def snapshot(self) -> list[Row]:
        """All rows, as they are now."""
        return [read(row) if row.unread else row for row in self._all()]

    def _all(self) -> list[Row]:
        with self._lock:
            return list(self._rows.values())

    def watch(self) -> None:
        """See what only time tells: who is late or lost, and who has been silent for a day. Called now and then."""
        while self.errors:
            self.complain("error", "server", self.errors.popleft())
        now = self.clock()
        rows = self._all()
        silent = [(row, state_of(row, now)) for row in rows if row.left or now - row.heartbeat_at > 3 * row.interval_seconds]
        gone = [row for row, state in silent if state in (State.LOST, State.LEFT)]
        gone.sort(key=lambda row: (not row.left, row.heartbeat_at))  # who said goodbye gives way before who is lost
        with self._lock:
            self._beating = len(rows) - len(gone)
            self._gone = collections.deque(gone)
            for row, state in silent:
                if self._rows.get(row.node_id) is not row:
                    continue
                if now - row.heartbeat_at > FORGET_SECONDS:
                    self._remove(row)
                elif state in (State.LATE, State.LOST) and self._told.get(row.node_id) is not state:
                    self._told[row.node_id] = state
                    self._log(state.value.lower(), row.node_id, reason_of(row, state, now))

    def complain(self, kind: str, node_id: str, text: str) -> None:
        """Write into the log what a hostile sender could make come in masses: COMPLAINTS_PER_SECOND and no more."""
        second = int(self.clock())
        with self._lock:
            before = self._complaints[1] if self._complaints[0] == second else 0
            self._complaints = second, before + 1
            if before < COMPLAINTS_PER_SECOND:
                self._log(kind, visible(node_id, 63) or MISSING, visible(text, 500))

    def events_since(self, count: int) -> tuple[int, list[Event]]:
        """The number of events so far, and those after the first `count`, as far as they are kept."""
        with self._lock:
            new = min(self._event_count - count, len(self._events))
            return self._event_count, list(self._events)[len(self._events) - new :]

    def _log(self, kind: str, node_id: str, text: str) -> None:
        self._events.append(Event(time.time(), kind, node_id, text))
        self._event_count += 1


class ErrorEvents(logging.Handler):
    """What gRPC and asyncio log of exceptions in the network thread: an event, where stderr would go across the screen."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(logging.ERROR)
        self._registry = registry

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, grpc.aio.InternalError):  # a node that is gone, or does not read, could not be answered
            return
        self._registry.errors.append(record.getMessage() + (f": {error!r}" if error else ""))


# ---- The network thread ----


def peer_address(peer: str) -> str:
    """gRPC's "ipv4:10.0.0.7:41234" or "ipv6:%5Bfd00::7%5D:41234" as an address a person reads, without the port."""
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    return visible(address.removeprefix("::ffff:")) or visible(peer)


class Service(node_pb2_grpc.NodeServiceServicer):
    """The two calls of node.proto."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        # Streams by number, and why the server ends those that it ends. A stream's frames do not hold its task: the task keeps
        # the error that ended it, and that the frames. Such cycles wait for a garbage collection, with all that they hold.
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._ends: dict[int, Refused] = {}
        self._numbers = itertools.count()
        self._closing = False

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        """One heartbeat, one answer."""
        address = peer_address(context.peer())
        try:
            return self._registry.acknowledgement(self._registry.take_unary(request, address))
        except Refused as error:
            self._log_refusal(request.node_id, address, error)
            refused = error.with_traceback(None)
        abort = context.abort(refused.code, str(refused))
        del context  # it keeps the error that `abort` raises, and that this frame
        await abort
        raise AssertionError("abort raises")

    async def StreamHeartbeats(self, requests: Any, context: Any) -> None:
        """A session: one stream from its first message to its end."""
        stream = next(self._numbers)
        self._streams[stream] = cast("asyncio.Task[None]", asyncio.current_task())
        if self._closing:
            self._ends[stream] = GOING_AWAY
        refused: Refused | None = None
        try:
            await self._hold_session(context, stream)
        except (Refused, DecodeError) as error:
            refused = as_refused(error).with_traceback(None)
        except asyncio.CancelledError:
            refused = self._ends.get(stream)
            if not refused:  # the node is gone
                raise
        finally:
            del self._streams[stream]
            self._ends.pop(stream, None)
        if refused:
            abort = context.abort(refused.code, str(refused))
            del context, requests  # both hold what keeps the error that `abort` raises, and that this frame
            await abort

    async def _hold_session(self, context: Any, stream: int) -> None:
        """Until the goodbye, or the node half-closes. The first message and the goodbye are answered at once, others at times."""
        address, node_id = peer_address(context.peer()), ""
        session, reason = None, "the stream broke"
        try:
            first = await self._first_message(context)
            node_id = first.node_id
            close = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, self._end, stream, node_id)
            session = self._registry.open(first, address, close)
            del first  # what a stream holds while it waits, it holds ten thousand times
            await context.write(self._registry.acknowledgement(session))
            while (request := await context.read()) is not grpc.aio.EOF:
                self._registry.heartbeat(session, request)
                now = self._registry.clock()
                if now >= session.next_acknowledgement_at or request.leaving:
                    session.next_acknowledgement_at = now + ACKNOWLEDGE_SECONDS
                    await context.write(self._registry.acknowledgement(session))
                if request.leaving:
                    return
                del request
        except (Refused, DecodeError) as error:
            reason = str(as_refused(error))
            self._log_refusal(node_id, address, as_refused(error))
            raise
        finally:
            if session:
                self._registry.end(session, reason)

    @staticmethod
    async def _first_message(context: Any) -> pb.HeartbeatRequest:
        try:
            first = await asyncio.wait_for(context.read(), FIRST_MESSAGE_SECONDS)
        except asyncio.TimeoutError as error:
            raise Refused(f"no message within {FIRST_MESSAGE_SECONDS:g} s", grpc.StatusCode.DEADLINE_EXCEEDED) from error
        if first is grpc.aio.EOF:
            raise Refused("the stream ended before its first message")
        message: pb.HeartbeatRequest = first
        return message

    def _log_refusal(self, node_id: str, address: str, refused: Refused) -> None:
        self._registry.complain("refused", node_id, f"{address}: {refused} ({refused.code.name})")

    def _end(self, stream: int, node_id: str) -> None:
        if stream in self._streams:
            self._ends[stream] = taken_over(node_id)
            self._streams[stream].cancel()

    async def close(self) -> None:
        """End every session with a status that says: come back soon."""
        self._closing = True
        tasks = list(self._streams.values())
        self._ends = dict.fromkeys(self._streams, GOING_AWAY)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GOODBYE_SECONDS / 2)


class Watch:
    """Has the registry see what only time tells, once in WATCH_SECONDS."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._kept_at = registry.clock()

    def keep(self) -> None:
        """After a standstill what has come meanwhile is read first: it was this process that was silent."""
        now = self._registry.clock()
        elapsed, self._kept_at = now - self._kept_at, now
        if elapsed > WATCH_SECONDS + LOST_SECONDS / 2:
            reason = f"stood still for {show_seconds(elapsed)}: suspended, or without a processor"
            self._registry.complain("warning", "server", reason)
        else:
            self._registry.watch()


class Network:
    """The network thread: grpc.aio's event loop with all the streams.

    A synchronous gRPC server pins one thread a stream, and stops admitting nodes near 4,000.
    """

    def __init__(self, registry: Registry, listen: Sequence[Endpoint] | None) -> None:
        self._registry = registry
        self._service = Service(registry)
        self._listen = listen
        self._bound: concurrent.futures.Future[list[Endpoint]] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self.failure: Exception | None = None

    def start(self) -> list[Endpoint]:
        """Listen; return where, with the real ports. Raises Failure."""
        self._thread.start()
        return self._bound.result()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """End all sessions, within GOODBYE_SECONDS or so."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(GOODBYE_SECONDS + 1)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self.failure = error
            if not self._bound.done():
                self._bound.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=SERVER_OPTIONS)
        node_pb2_grpc.add_NodeServiceServicer_to_server(self._service, server)
        bound = [self._bind(server, endpoint) for endpoint in self._listen or (default_endpoint(),)]
        await server.start()
        self._bound.set_result(bound)
        watching = asyncio.create_task(self._watch())
        await self._stop.wait()
        watching.cancel()
        closing = asyncio.create_task(server.stop(GOODBYE_SECONDS / 2))  # no new connections from here on
        await self._service.close()
        await closing

    async def _watch(self) -> None:
        """Here, and not with the screen, which a full pipe or Ctrl-S stops."""
        watch = Watch(self._registry)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            watch.keep()

    @staticmethod
    def _bind(server: grpc.aio.Server, endpoint: Endpoint) -> Endpoint:
        try:
            return endpoint._replace(port=server.add_insecure_port(str(endpoint)))
        except RuntimeError as error:
            raise Failure(why_not_bound(endpoint)) from error


def default_endpoint() -> Endpoint:
    """All addresses, IPv6 and IPv4; IPv4 alone where IPv6 is off."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::", 0))
        return Endpoint("::", DEFAULT_PORT)
    return Endpoint("0.0.0.0", DEFAULT_PORT)


def why_not_bound(endpoint: Endpoint) -> str:
    """gRPC does not say why it can't listen: the system does, when asked again."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
        reason = "gRPC gives no reason"
    except socket.gaierror:
        return f"cannot resolve {endpoint.host}: give --listen an address of this machine"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno == errno.EADDRINUSE:
            other = Endpoint(endpoint.host, endpoint.port + 1 if endpoint.port < 65535 else DEFAULT_PORT)
            return f"port {endpoint.port} is in use: is a server running already? Else try --listen {other}"
    return f"cannot listen on {endpoint}: {reason}; give --listen another address or port"


def raise_open_files(max_nodes: int) -> str:
    """Raise the soft limit on open files to what `max_nodes` connections need. Returns a warning when the system allows less."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return ""
    wanted = max_nodes + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        except (OSError, ValueError):  # macOS allows less than its hard limit says
            allowed = soft
    if allowed == wanted:
        return ""
    return f"only {allowed} files may be open here, so about {allowed - 100} nodes: raise it with ulimit -Hn {wanted}"


# ---- What the user looks at: a Ui that keys change, and the part of the fleet that it asks for ----

METRICS = ("utilization", "memory", "temperature", "power")
SORTS = ("name", "hostname", "state", "hardware", *METRICS, "age")  # in the order of the columns
KEYS = (
    ("↑↓ PgUp End …", "move"),
    ("Enter Esc", "a node's page, and back"),
    ("s S", "sort by the next column; turn it round"),
    ("/", "filter: words match id, hostname, device and address,"),
    ("", "state:lost util<10 mem>90% temp>80 power>1.5kW age>2m"),
    ("g", "a row for each GPU"),
    ("v", "grid: a cell for each node or GPU; s: the next metric"),
    ("p", "freeze the picture"),
    ("f", "forget a node that is lost or left"),
    ("q", "quit"),
)


class Key(NamedTuple):
    """What a row of the table stands for: a node, or one of its devices."""

    node_id: str
    device: int = -1


class Room(NamedTuple):
    """How many entries fit on the screen."""

    lines: int  # of the table or grid
    per_line: int  # entries beside each other: one in the table

    @property
    def entries(self) -> int:
        return self.lines * self.per_line


class Ui(NamedTuple):
    """What the keys have chosen. Never changed in place: `press` makes the next one."""

    selected: Key | None = None
    first: int = 0  # the first entry on the screen
    sort: str = "name"
    descending: bool = False
    filter: str = ""
    typing: bool = False  # the filter is being typed
    by_gpu: bool = False
    grid: bool = False
    metric: str = "utilization"  # what colours the grid
    frozen: bool = False
    help: bool = False
    page: str = ""  # the node whose page is open


def natural(text: str) -> list[tuple[int, str]]:
    """Sorts Node-9 before Node-10."""
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(re.split("([0-9]+)", text))]


def vitals_at(row: Row, key: Key) -> Vitals:
    """Those of the node, or of the device that a key stands for."""
    if key.device < 0:
        return row.vitals
    one = slice(key.device, key.device + 1)
    return device_vitals(row.limits.devices[one], row.sample.devices[one])


def metric_of(vitals: Vitals, metric: str) -> float | None:
    """A number that is larger for what is busier, fuller, hotter or draws more."""
    return {
        "utilization": vitals.utilization,
        "memory": vitals.memory,
        "temperature": vitals.celsius,
        "power": vitals.milliwatts,
    }[metric]


def metric_at(row: Row, key: Key, metric: str) -> float | None:
    """The same number; of a device to the percent, since it comes from the history's newest frame: no message is parsed for it."""
    if key.device < 0 or metric == "power":
        return metric_of(vitals_at(row, key), metric)
    at = 3 + 3 * key.device + METRICS.index(metric)
    value = row.vitals.frame[at] if at < len(row.vitals.frame) else NOT_REPORTED
    if value == NOT_REPORTED:
        return None
    return value if metric == "temperature" else value / 100


def sort_value(row: Row, key: Key, sort: str, now: float) -> Any:
    """What entries are compared by; None sorts last."""
    if sort == "name":
        return natural(row.node_id)
    if sort == "hostname":
        hostname = row.info.hostname
        return natural(hostname) if hostname else None
    if sort == "hardware":
        devices = row.info.devices
        return natural(f"{re.sub('[0-9]+× ', '', device_names(row.info))} {len(devices)}")
    if sort == "state":
        return -list(State).index(state_of(row, now))
    if sort == "age":
        return now - row.heartbeat_at
    return metric_at(row, key, sort)


COMPARISON = re.compile(r"(util|mem|temp|power|age)[a-z]*(<=|>=|<|>|=)(\d+(?:\.\d+)?)(\D*)", re.IGNORECASE | re.ASCII)
UNITS = {
    "util": {"": 1, "%": 1},
    "mem": {"": 1, "%": 1},
    "temp": {"": 1, "c": 1, "°c": 1},
    "power": {"": 1, "w": 1, "kw": 1000},
    "age": {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400},
}
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq,
}  # fmt: skip
Test = Callable[[Row, Key, float], bool]


def parse_filter(text: str) -> tuple[list[Test], list[str]]:
    """What must hold of an entry, all of it: state:WORD, comparisons, and words for the rest; and the terms that are none of these.

    A term that can't be read restricts nothing, and the table says so: it may only be half typed.
    """
    tests = {term: parse_term(term) for term in text.lower().split()}
    return [test for test in tests.values() if test], [term for term, test in tests.items() if not test]


def parse_term(term: str) -> Test | None:
    """One word of a filter. None: a comparison or a state that can't be read."""
    if match := COMPARISON.fullmatch(term):
        name, compare, number, scale = match[1], COMPARE[match[2]], float(match[3]), UNITS[match[1]].get(match[4])
        if scale is None:
            return None
        limit = number * scale

        def compared(row: Row, key: Key, now: float) -> bool:
            value = measured(row, key, name, now)
            return value is not None and compare(value, limit)

        return compared
    if term.startswith("state:"):
        wanted = [state for state in State if state.value.lower().startswith(term[6:])]
        return (lambda row, _key, now: state_of(row, now) in wanted) if wanted else None
    if set("<>=") & set(term):
        return None
    return lambda row, key, _now: term in searched_text(row, key)


def measured(row: Row, key: Key, name: str, now: float) -> float | None:
    """A reading in the unit of the filter: percent, °C, watts or seconds."""
    if name == "age":
        return now - row.heartbeat_at
    metric, scale = {
        "util": ("utilization", 100.0),
        "mem": ("memory", 100.0),
        "temp": ("temperature", 1.0),
        "power": ("power", 0.001),
    }[name]
    value = metric_at(row, key, metric)
    return None if value is None else value * scale


def searched_text(row: Row, key: Key) -> str:
    """What a word of a filter is looked for in."""
    info = row.info
    devices = info.devices if key.device < 0 else info.devices[key.device : key.device + 1]
    return " ".join((row.node_id, info.hostname, row.address, info.host.model, *(device.name for device in devices))).lower()


class Totals(NamedTuple):
    """The fleet in numbers."""

    states: Mapping[State, int] = MappingProxyType({})
    gpus: int = 0
    utilization: float | None = None
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    milliwatts: int = 0
    hottest: Row | None = None


def count_totals(rows: Iterable[Row], now: float) -> Totals:
    """What the nodes that are online have and do, all together: one pass. Each GPU counts once; the processors and memory of boxes
    without any count only where no box has one."""
    states: dict[State, int] = dict.fromkeys(State, 0)
    gpus = milliwatts = 0
    sums = {True: [0.0, 0, 0, 0], False: [0.0, 0, 0, 0]}  # with GPUs and without: utilization, readings, memory used and in all
    heat, hottest = -math.inf, None
    for row in rows:
        state = state_of(row, now)
        states[state] += 1
        if state is not State.ONLINE:
            continue
        vitals, count = row.vitals, len(row.limits.devices)
        gpus += count
        part = sums[count > 0]
        part[2] += vitals.memory_used_bytes
        part[3] += vitals.memory_total_bytes
        milliwatts += vitals.milliwatts or 0
        if vitals.utilization is not None:
            part[0] += vitals.utilization * (count or 1)
            part[1] += count or 1
        if vitals.celsius is not None and vitals.celsius > heat:
            heat, hottest = vitals.celsius, row
    utilization, readings, used, total = sums[gpus > 0]
    return Totals(states, gpus, utilization / readings if readings else None, int(used), int(total), milliwatts, hottest)


class Lens:
    """The part of the fleet that the Ui asks for. What costs by the whole fleet (order, filter, totals) is done once a second, or
    less often where it would take more than a tenth of the time; a frame costs only the rows that it shows."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._frozen: dict[str, Row] | None = None
        self._frozen_events: Sequence[Event] = ()
        self._shape: tuple[object, ...] = ()  # what the order by name depends on
        self._by_name: list[Key] = []
        self._order: list[Key] = []
        self._places: dict[Key, int] = {}
        self._totals = Totals()
        self._asked: tuple[object, ...] = ()
        self._due = 0.0
        self.now = self.wall = 0.0  # the moment that is shown, by the registry's clock and by the wall's

    def order(self, ui: Ui) -> list[Key]:
        """All entries that the Ui asks for, in its order; as of the last second, or of now when it asks for others."""
        if not ui.frozen:
            self._frozen, self.now, self.wall = None, self._registry.clock(), time.time()
        elif self._frozen is None:
            self._frozen = {row.node_id: row for row in self._registry.snapshot()}
            self._frozen_events = self._registry.newest_events(EVENTS_KEPT)
        asked = (ui.sort, ui.descending, ui.filter, ui.by_gpu, ui.frozen)
        if asked != self._asked or (self.now >= self._due and not ui.frozen):
            self._asked = asked
            self._sort(ui)
            finished = self._registry.clock()
            self._due = finished + max(1.0, 10 * (finished - self.now))
        return self._order

    def expire(self) -> None:
        """Have the order made anew: the user has changed the fleet."""
        self._asked = ()

    def place(self, key: Key | None) -> int | None:
        """Where an entry stands in the order."""
        return self._places.get(key) if key else None

    def rows(self, node_ids: Iterable[str]) -> list[Row | None]:
        """These nodes as they are now; as they were, when the picture is frozen. None: forgotten meanwhile."""
        if self._frozen is not None:
            return [self._frozen.get(node_id) for node_id in node_ids]
        return self._registry.rows(node_ids)

    def events(self, count: int) -> Sequence[Event]:
        """The newest; those of then, when the picture is frozen."""
        return self._registry.newest_events(count) if self._frozen is None else self._frozen_events[-count:]

    @property
    def totals(self) -> Totals:
        return self._totals

    def _sort(self, ui: Ui) -> None:
        rows = self._registry.snapshot() if self._frozen is None else list(self._frozen.values())
        now, (tests, _) = self.now, parse_filter(ui.filter)
        self._totals = count_totals(rows, now)
        shape = (ui.by_gpu, [row.node_id for row in rows], [row.limits for row in rows])
        if shape != self._shape:
            self._shape = shape
            keys = [key for row in rows for key in keys_of(row, ui.by_gpu)]
            self._by_name = sorted(keys, key=lambda key: (natural_key(key.node_id), key.device))
        order = self._by_name
        if tests or ui.sort != "name":
            known = {row.node_id: row for row in rows}
            entries = [(known[key.node_id], key) for key in order]
            entries = [(row, key) for row, key in entries if all(test(row, key, now) for test in tests)]
            valued: list[tuple[Key, Any]] = [
                (key, None if ui.sort == "name" else sort_value(row, key, ui.sort, now)) for row, key in entries
            ]
            present = [pair for pair in valued if pair[1] is not None]
            present.sort(key=lambda pair: pair[1], reverse=ui.descending)
            missing = [key for key, value in valued if value is None]
            order = [key for key, _ in present] + (missing[::-1] if ui.sort == "name" and ui.descending else missing)
        elif ui.descending:
            order = order[::-1]
        if order != self._order:
            self._order = order
            self._places = {key: place for place, key in enumerate(order)}


natural_key = functools.lru_cache(maxsize=100_000)(natural)


def keys_of(row: Row, by_gpu: bool) -> list[Key]:
    """The entries of a node: itself, or its devices where there are any."""
    if by_gpu and row.limits.devices:
        return [Key(row.node_id, index) for index in range(len(row.limits.devices))]
    return [Key(row.node_id)]


def press(ui: Ui, key: str, lens: Lens, room: Room) -> Ui:
    """The Ui after a key."""
    if ui.typing:
        return type_filter(ui, key)
    if ui.help:
        return ui._replace(help=False)
    switches = {"g": "by_gpu", "v": "grid", "p": "frozen", "?": "help"}
    if key == "escape":
        return ui._replace(page="") if ui.page else ui._replace(filter="")
    if ui.page and key not in ("p", "?", "up", "down", "page up", "page down", "home", "end"):
        return ui  # what the page's footer does not name would change the table behind it
    if key in switches:
        turned: dict[str, Any] = {switches[key]: not getattr(ui, switches[key])}
        ui = ui._replace(**turned)
        return turn_to(ui, lens, ui.selected.node_id) if key == "g" and ui.selected else ui
    if key == "/":
        return ui._replace(typing=True, page="")
    if key == "enter":
        order = lens.order(ui)
        selected = order[ui.first] if ui.first < len(order) else None
        selected = selected if lens.place(ui.selected) is None else ui.selected
        return ui._replace(selected=selected, page=selected.node_id) if selected else ui
    if key == "s" and ui.grid:
        return ui._replace(metric=METRICS[(METRICS.index(ui.metric) + 1) % len(METRICS)])
    if key == "s":
        sort = SORTS[(SORTS.index(ui.sort) + 1) % len(SORTS)]
        return ui._replace(sort=sort, descending=sort in (*METRICS, "age"))
    if key == "S":
        return ui._replace(descending=not ui.descending)
    return move(ui, key, lens, room)


def turn_to(ui: Ui, lens: Lens, node_id: str) -> Ui:
    """The Ui with this node selected, or its first device."""
    lens.order(ui)
    keys = (Key(node_id), Key(node_id, 0))
    return ui._replace(selected=next((key for key in keys if lens.place(key) is not None), None))


def type_filter(ui: Ui, key: str) -> Ui:
    """The filter while it is typed: each key narrows the table at once."""
    if key == "enter":
        return ui._replace(typing=False)
    if key == "escape":
        return ui._replace(typing=False, filter="")
    if key in ("\x7f", "\b"):
        return ui._replace(filter=ui.filter[:-1])
    if key == "\x15":  # Ctrl-U
        return ui._replace(filter="")
    return ui._replace(filter=(ui.filter + key)[:60]) if len(key) == 1 and key.isprintable() else ui


def move(ui: Ui, key: str, lens: Lens, room: Room) -> Ui:
    """The selection moved; with a page open, the page goes to the next node."""
    order = lens.order(ui)
    steps = {"up": -room.per_line, "down": room.per_line, "left": -1, "right": 1}
    steps |= {"page up": -room.entries, "page down": room.entries, "home": -len(order), "end": len(order)}
    if key not in steps or not order or (key in ("left", "right") and not ui.grid):
        return ui
    place = lens.place(ui.selected)
    if place is None:  # the first key only shows where one is
        place, steps = ui.first, {**steps, "up": 0, "down": 0, "left": 0, "right": 0}
    place = min(max(place + steps[key], 0), len(order) - 1)
    while ui.page and order[place].node_id == ui.page and 0 < place < len(order) - 1:  # by the row of another node, not GPU by GPU
        place += 1 if steps[key] > 0 else -1
    selected = order[place]
    return ui._replace(selected=selected, page=ui.page and selected.node_id)


def follow(ui: Ui, lens: Lens, room: Room) -> Ui:
    """The Ui with its selection on the screen: the selection stays on its node when rows move."""
    order = lens.order(ui)
    if ui.page and lens.rows([ui.page]) == [None]:  # forgotten
        ui = ui._replace(page="")
    place = lens.place(ui.selected)
    first = ui.first
    if place is not None:  # else it is hidden by the filter, and may come back
        first = min(max(ui.first, place - room.entries + 1), place)
    first = max(min(first, len(order) - room.entries + room.per_line - 1), 0)
    return ui._replace(first=first - first % room.per_line)


# ---- The screen: pure functions of a fleet, a size and a time ----

STATE_STYLES = {
    State.ONLINE: ("●", "green"),
    State.LATE: ("◐", "yellow"),
    State.DISCONNECTED: ("○", "yellow"),
    State.LOST: ("✗", "bold red"),
    State.LEFT: ("◌", "dim"),
}
EVENT_STYLES = {
    "joined": "green",
    "back": "green",
    "late": "yellow",
    "disconnected": "yellow",
    "lost": "bold red",
    "refused": "bold red",
    "error": "bold red",
    "warning": "yellow",
    "left": "dim",
    "forgotten": "dim",
}

COLUMNS = (
    Column("NODE", 16, 0),
    Column("HOSTNAME", 14, 4),
    Column("STATE", 12, 6),
    Column("HARDWARE", 16, 7),
    Column("UTIL", 5, 1, ">"),
    Column("MEM", 5, 3, ">"),
    Column("TEMP", 6, 1, ">"),
    Column("POWER", 7, 5, ">"),
    Column("AGE", 6, 2, ">"),
)
METER_COLUMNS = ("UTIL", "MEM", "TEMP")  # in the order of a history's bytes
METER_CELLS = 8
MOST_SPARKS = 60


class Fleet(NamedTuple):
    """All that a frame shows, taken at one moment."""

    ui: Ui
    room: Room
    entries: Sequence[tuple[Key, Row]]  # those on the screen, from ui.first on
    matching: int  # entries in all
    totals: Totals
    page: Row | None
    now: float  # by the registry's clock
    wall: float
    listening: str
    events: Sequence[Event]


def look(lens: Lens, ui: Ui, width: int, height: int, listening: str, events: Sequence[Event]) -> Fleet:
    """What a frame needs, and no more."""
    order, room = lens.order(ui), room_of(ui, lens, width, height)
    keys = order[ui.first : ui.first + room.entries]
    rows = lens.rows(key.node_id for key in keys)
    return Fleet(
        ui=ui,
        room=room,
        entries=[(key, row) for key, row in zip(keys, rows, strict=True) if row],
        matching=len(order),
        totals=lens.totals,
        page=lens.rows([ui.page])[0] if ui.page else None,
        now=lens.now,
        wall=lens.wall,
        listening=listening,
        events=events,
    )


def render(fleet: Fleet, width: int, height: int) -> list[Line]:
    """A frame: exactly `height` lines of `width` cells."""
    if width < SMALLEST_WIDTH or height < SMALLEST_HEIGHT:
        return fit_lines([[(f"too small: {width}x{height}, needs {SMALLEST_WIDTH}x{SMALLEST_HEIGHT}", "")]], width, height)
    if fleet.ui.help:
        body = help_panel(width)
    elif fleet.page:
        body = page_panels(fleet.page, fleet.now, width, height - 3)
    else:
        panel = grid_panel if fleet.ui.grid else table_panel
        body = [*panel(fleet, width), *event_panel(fleet.events, width, event_panel_height(height))]
    return [*fit_lines([*header(fleet, width), *body], width, height - 1), footer(fleet, width)]


def event_panel_height(height: int) -> int:
    """Lines of the event log, its border counted: none on a low terminal."""
    return 0 if height < 16 else max(height // 5, 5)


def room_of(ui: Ui, lens: Lens, width: int, height: int) -> Room:
    """What header, borders, titles, log and footer leave."""
    lines = max(height - 2 - 3 - event_panel_height(height) - 1, 1)
    if not ui.grid:
        return Room(lines, 1)
    rooms = [Room(lines, max((width - 4) // cell, 1)) for cell in GRID_CELLS]
    return next((room for room in rooms if room.entries >= len(lens.order(ui))), rooms[-1])


def header(fleet: Fleet, width: int) -> list[Line]:
    """Two lines: nodes by state, and what the fleet is and does."""
    count = sum(fleet.totals.states.values())
    wide = width >= 80
    parts: list[Line] = [[(" Edge fleet ", "bold")]] * wide + [[(f" {count:,} node{'s' * (count != 1)}", "")]]
    for state, (glyph, style) in STATE_STYLES.items():
        if number := fleet.totals.states.get(state):
            parts.append([(f"  {glyph} {number:,}" + f" {state.value.lower()}" * wide, style)])
    clock = time.strftime("%H:%M:%S", time.localtime(fleet.wall))
    right: Span = (f" FROZEN at {clock} ", "bold reverse") if fleet.ui.frozen else (f" {clock} ", "dim")
    return [[*fit_parts(parts, width - len(right[0])), right], fit_parts(totals_parts(fleet), width)]


def fit_parts(parts: Iterable[Line], width: int) -> Line:
    """As many of the parts as fit whole, in exactly `width` cells: half a number is a wrong one."""
    line: Line = []
    for part in parts:
        if sum(cells(text) for text, _ in [*line, *part]) > width:
            break
        line += part
    return fit_line(line, width)


def totals_parts(fleet: Fleet) -> list[Line]:
    """What the living nodes have and do, all together: the most important first."""
    totals = fleet.totals
    if not totals.states.get(State.ONLINE):
        return [[(f" listening on {fleet.listening}", "")], [(": no node is online", "")]]
    parts: list[Line] = [[(f" {totals.gpus:,} GPU{'s' * (totals.gpus != 1)}", "")]]
    parts.append([(f" · utilization {show_percent(totals.utilization)}", "")])
    if totals.hottest:
        vitals = totals.hottest.vitals
        style = heat_style(vitals.celsius, vitals.limit_celsius)
        heat = show_celsius(vitals.celsius, vitals.limit_celsius).strip()
        parts.append([(" · hottest ", ""), (f"{heat} {totals.hottest.node_id}", style)])
    if totals.memory_total_bytes:
        parts.append([(f" · memory {show_bytes(totals.memory_used_bytes)} of {show_bytes(totals.memory_total_bytes)}", "")])
    if totals.milliwatts:
        parts.append([(f" · power {show_watts(totals.milliwatts)}", "")])
    return parts


def table_panel(fleet: Fleet, width: int) -> list[Line]:
    """The table in its border: a line an entry."""
    columns = choose_columns(COLUMNS, width - 4)
    sparks = share_out(columns, width - 4)
    titles = " ".join(fit(title_of(column, fleet.ui), sparks.get(column.title, column).width, column.align) for column in columns)
    lines: list[Line] = [[(titles, "bold dim")]]
    lines += [entry_line(key, row, [sparks[column.title] for column in columns], fleet) for key, row in fleet.entries]
    if not fleet.matching:
        lines += nothing_to_show(fleet)
    return box(panel_title(fleet), lines + [[]] * (fleet.room.lines + 1 - len(lines)), width)


def title_of(column: Column, ui: Ui) -> str:
    """A column's title, with an arrow when the table is sorted by it."""
    names = {"NODE": "name", "TEMP": "temperature", "UTIL": "utilization", "MEM": "memory"}
    if names.get(column.title, column.title.lower()) != ui.sort:
        return column.title
    return f"{column.title}{'↓' if ui.descending else '↑'}"


def share_out(columns: Sequence[Column], width: int) -> dict[str, Column]:
    """The columns with what is left over: first meters, then sparklines, then longer names."""
    wide = {column.title: column for column in columns}
    spare = width - sum(column.width + 1 for column in columns) + 1
    meters = [title for title in METER_COLUMNS if title in wide]
    for title in meters:
        if spare >= METER_CELLS + 1:
            wide[title] = wide[title]._replace(width=wide[title].width + METER_CELLS + 1)
            spare -= METER_CELLS + 1
    each = min(spare // len(meters), MOST_SPARKS + 1) if meters else 0
    if each >= 6:
        for title in meters:
            wide[title] = wide[title]._replace(width=wide[title].width + each)
        spare -= each * len(meters)
    for title in ("HARDWARE", "HOSTNAME", "NODE"):
        if title in wide:
            more = min(spare, 12)
            wide[title] = wide[title]._replace(width=wide[title].width + more)
            spare -= more
    return wide


def panel_title(fleet: Fleet) -> str:
    """What is listed, how it is sorted and filtered, and which part of it is on the screen."""
    ui = fleet.ui
    title = "GPUs" if ui.by_gpu else "Nodes"
    if len(fleet.entries) < fleet.matching:
        title += f" {ui.first + 1:,} to {ui.first + len(fleet.entries):,} of {fleet.matching:,}"
    if ui.sort != "name" or ui.descending:
        title += f" · by {ui.sort}{' ↓' if ui.descending else ' ↑'}"
    unread = " ".join(parse_filter(ui.filter)[1])
    return title + (f" · /{ui.filter}" if ui.filter else "") + (f" · not understood: {unread}" if unread else "")


def nothing_to_show(fleet: Fleet) -> list[Line]:
    """What to do first."""
    if sum(fleet.totals.states.values()):
        return [[], [("Nothing matches the filter: Esc clears it.", "")]]
    port = fleet.listening.rpartition(":")[2]
    address = "THIS-HOST" + (f":{port}" if port != str(DEFAULT_PORT) else "")
    return [[], [("No node yet. On each box:", "")], [], [(f"    python3 node.pyz --server {address}", "bold")]]


def entry_line(key: Key, row: Row, columns: Sequence[Column], fleet: Fleet) -> Line:
    """One node or device. Values of a node that is not online are grey: stale is never shown as live."""
    state = state_of(row, fleet.now)
    spans = entry_spans(key, row, state, fleet.now, {column.title: column.width for column in columns})
    if state is not State.ONLINE:
        spans = {title: grey(line) if title != "STATE" else line for title, line in spans.items()}
    line: Line = [span for column in columns for span in [*align(spans[column.title], column), (" ", "")]]
    return [(text, f"{style} reverse".strip()) for text, style in line] if key == fleet.ui.selected else line


def grey(line: Line) -> Line:
    """What is stale; the glyph of its state keeps its colour."""
    return [(text, style if text[:1] in "◐○✗" else "dim") for text, style in line]


def entry_spans(key: Key, row: Row, state: State, now: float, widths: dict[str, int]) -> dict[str, Line]:
    """What stands in each column for a node or a device."""
    vitals, info = vitals_at(row, key), row.info
    glyph, style = STATE_STYLES[state]
    devices = device_names(info if key.device < 0 else pb.NodeInfo(devices=info.devices[key.device : key.device + 1]))
    failed = f"{vitals.errors} failed " if key.device < 0 else "failed "
    heat = heat_style(vitals.celsius, vitals.limit_celsius)
    full = fraction(vitals.celsius, vitals.limit_celsius or 100)
    return {
        "NODE": [(f"{glyph} ", style), (entry_name(key), "bold")],
        "HOSTNAME": [(visible(info.hostname) or MISSING, "")],
        "STATE": [(state.value, style)],
        "HARDWARE": [(failed, "bold red")] * bool(vitals.errors) + [(devices, "")],
        "UTIL": measure(row, key, 0, vitals.utilization, show_percent(vitals.utilization), "green", widths.get("UTIL", 5), 5),
        "MEM": measure(row, key, 1, vitals.memory, show_percent(vitals.memory), "cyan", widths.get("MEM", 5), 5),
        "TEMP": measure(row, key, 2, full, show_celsius(vitals.celsius, vitals.limit_celsius), heat, widths.get("TEMP", 6), 6),
        "POWER": [(show_watts(vitals.milliwatts), "")],
        "AGE": [age_span(row, now)],
    }


def measure(row: Row, key: Key, column: int, part: float | None, text: str, style: str, width: int, digits: int) -> Line:
    """A number; before it a meter, and before that its sparkline, as far as the column is wide enough."""
    room = width - digits
    line: Line = []
    if room > METER_CELLS + 1:
        stride = 3 * (1 + len(row.limits.devices))
        values = row.history[3 * (key.device + 1) + column :: stride]
        line.append((sparkline(values[-MOST_SPARKS:], room - METER_CELLS - 2) + " ", style))
        room = METER_CELLS + 1
    if room > METER_CELLS:
        line += [*meter(part, METER_CELLS, style), (" " * (room - METER_CELLS - 1), "")]
        digits += 1
    return [*line, (fit(text, digits, ">"), style if column == 2 else "")]


def age_span(row: Row, now: float) -> Span:
    """Age of the heartbeat; of the sample, and yellow, where the box is alive and its sensors hang."""
    silence = max(LOST_SECONDS, 5 * row.interval_seconds)
    if row.sample_at is not None and row.heartbeat_at - row.sample_at > silence:
        return (f"~{show_seconds(now - row.sample_at)}", "bold yellow")
    return (show_seconds(now - row.heartbeat_at), "dim")


def device_names(info: pb.NodeInfo) -> str:
    """ "8× H200", "L4, A2", or the host's model where there is no device."""
    names = collections.Counter(device.name.removeprefix("NVIDIA ") for device in info.devices)
    shown = ", ".join(f"{count}× {name}" if count > 1 else name for name, count in names.items())
    return visible(shown) or visible(info.host.model) or MISSING


GRID_CELLS = (26, 9, 2, 1)  # widths of a cell: with name and value, with its value, apart, side by side: the widest that fits all
GRID_STEPS = "▁▂▃▄▅▆▇█"
GRID_STYLES = ("blue", "blue", "cyan", "cyan", "green", "green", "yellow", "bold red")


def grid_panel(fleet: Fleet, width: int) -> list[Line]:
    """One cell an entry: its height and colour are the metric, its glyph the state where it is not online."""
    lines_most, per_line = fleet.room
    cell_width = min((width - 4) // per_line, GRID_CELLS[0])
    shown = [grid_cell(key, row, cell_width, fleet) for key, row in fleet.entries]
    lines = [list(itertools.chain(*shown[start : start + per_line])) for start in range(0, len(shown), per_line)]
    if not fleet.matching:
        lines += nothing_to_show(fleet)
    return box(panel_title(fleet), [grid_legend(fleet, width), *lines, *[[]] * (lines_most - len(lines))], width)


def grid_legend(fleet: Fleet, width: int) -> Line:
    """The metric and its scale, and what the selected cell stands for."""
    most = {"temperature": "100°C", "power": "100% of its limit"}.get(fleet.ui.metric, "100%")
    line: Line = [(f"{fleet.ui.metric}  0 ", "dim"), *zip(GRID_STEPS, GRID_STYLES, strict=True), (f" {most}   ", "dim")]
    for key, row in fleet.entries:
        if key == fleet.ui.selected:
            vitals = vitals_at(row, key)
            glyph, style = STATE_STYLES[state_of(row, fleet.now)]
            celsius = show_celsius(vitals.celsius, vitals.limit_celsius).strip()
            numbers = f"util {show_percent(vitals.utilization)}  mem {show_percent(vitals.memory)}  {celsius}"
            name = f"{entry_name(key)}  {visible(row.info.hostname)}"
            return [
                *(line if width >= 110 else []),
                (f"{glyph} ", style),
                (name, "bold"),
                (f"  {numbers}  {show_watts(vitals.milliwatts)}", ""),
            ]
    return [*line, ("↑↓←→ choose a cell", "dim")]


def entry_name(key: Key) -> str:
    """The node's id, and the index of its device."""
    return key.node_id if key.device < 0 else f"{key.node_id} {key.device}"


def grid_cell(key: Key, row: Row, width: int, fleet: Fleet) -> Line:
    """A block of `width` cells, with as much in words as it is wide enough for."""
    state, metric = state_of(row, fleet.now), fleet.ui.metric
    glyph, style = STATE_STYLES[state]
    vitals = vitals_at(row, key)
    if state is State.ONLINE:
        part = grid_part(vitals, metric, row, key)
        step = 0 if part is None else min(max(int(part * 8), 0), 7)
        glyph, style = ("·", "dim") if part is None else (GRID_STEPS[step], GRID_STYLES[step])
    words = ""
    if width >= GRID_CELLS[1]:
        words = fit({
            "utilization": show_percent(vitals.utilization),
            "memory": show_percent(vitals.memory),
            "temperature": show_celsius(vitals.celsius, vitals.limit_celsius),
            "power": show_watts(vitals.milliwatts),
        }[metric], 7, ">")  # fmt: skip
    if width >= GRID_CELLS[0]:
        words = f" {fit(entry_name(key), 15)}{words}"
    reverse = " reverse" if key == fleet.ui.selected else ""
    spans: Line = [(glyph, style + reverse)]
    if words:
        spans.append((words, ("" if state is State.ONLINE else "dim") + reverse))
    return [*spans, (" " * (width - 1 - cells(words)), "")] if width > 1 else spans


def grid_part(vitals: Vitals, metric: str, row: Row, key: Key) -> float | None:
    """A metric from 0 to 1: of the limit, for power."""
    if metric == "power":
        devices = row.info.devices if key.device < 0 else row.info.devices[key.device : key.device + 1]
        return fraction(vitals.milliwatts, sum(device.power_limit_milliwatts for device in devices))
    return fraction(metric_of(vitals, metric), 100 if metric == "temperature" else 1)


def page_panels(row: Row, now: float, width: int, room: int) -> list[Line]:
    """A node's page: its session, and the panels of its own screen; all grey when it is not online."""
    state = state_of(row, now)
    glyph, style = STATE_STYLES[state]
    reason = reason_of(row, state, now)
    first: Line = [(f" {row.node_id}", "bold"), (f"  {visible(row.info.hostname)}  ", ""), (f"{glyph} {state.value}", style)]
    first.append((f"  {reason}" if reason else f"  {visible(row.info.notice)}", "" if reason else "dim"))
    facts = page_facts(row, now, width)[: max(room // 6, 1)]
    panels = node_panels(Subject(row.info, row.sample, row.processes, row.history), width, room - 1 - len(facts))
    if state is not State.ONLINE:
        panels = [[(text, "dim") for text, _ in line] for line in panels]
    return [first, *facts, *panels]


def page_facts(row: Row, now: float, width: int) -> list[Line]:
    """What there is to know of a session, in as many lines as it needs."""
    info = row.info
    trip = "" if row.round_trip_seconds is None else f"round trip {row.round_trip_seconds * 1000:.1f} ms"
    facts = [
        f"from {row.address}",
        f"agent {visible(info.agent_version)}" if info.agent_version else "",
        f"heartbeat {show_seconds(now - row.heartbeat_at)} ago",
        "no sample" if row.sample_at is None else f"sample {show_seconds(now - row.sample_at)} ago",
        trip,
        f"reconnected {info.session_number - 1}×" if info.session_number > 1 else "",
        f"last error: {visible(info.last_error)}" if info.last_error else "",
    ]
    unbroken = " · ".join(fact.replace(" ", "\0") for fact in facts if fact)
    return [[(f" {line}".replace("\0", " "), "dim")] for line in textwrap.wrap(unbroken, width - 1, break_long_words=False)]


def help_panel(width: int) -> list[Line]:
    """All keys and states, in few lines: a low terminal shows the keys."""
    lines: list[Line] = [[(fit(key, 15), "bold"), (about, "")] for key, about in KEYS]
    for state, (glyph, style) in STATE_STYLES.items():
        lines.append([(fit(f"{glyph} {state.value}", 15), style), (STATE_HELP[state], "")])
    return box("Help · any key goes back", lines, width)


STATE_HELP = {
    State.ONLINE: "heartbeats come",
    State.LATE: "none for 3 intervals",
    State.DISCONNECTED: "its stream broke without a goodbye",
    State.LOST: "no heartbeat for 10 s or 5 intervals, whichever is longer",
    State.LEFT: "it said goodbye",
}


def event_panel(events: Sequence[Event], width: int, height: int) -> list[Line]:
    """The newest events, the newest last."""
    if not height:
        return []
    lines = [event_line(event) for event in events[-(height - 2) :]]
    return box("Events", lines + [[]] * (height - 2 - len(lines)), width)


def event_line(event: Event) -> Line:
    """Time, what, who, and why."""
    time_of_day = time.strftime("%H:%M:%S ", time.localtime(event.time))
    return [(time_of_day, "dim"), (fit(event.kind, 13), EVENT_STYLES[event.kind]), (f"{event.node_id:16} {event.text}", "")]


def footer(fleet: Fleet, width: int) -> Line:
    """The keys, or the filter while it is typed."""
    ui = fleet.ui
    if ui.typing:
        return fit_line([(" /", "bold"), (ui.filter, ""), ("█", ""), ("  Enter keeps it, Esc clears it", "dim")], width)
    chooses = f"metric: {ui.metric}" if ui.grid else f"sort: {ui.sort}"
    keys = [("q", "quit"), ("?", "help"), ("↑↓", "move"), ("Enter", "page"), ("/", "filter"), ("s", chooses)]
    keys += [("v", "table" if ui.grid else "grid"), ("g", "nodes" if ui.by_gpu else "GPUs")]
    keys += [("p", "go on" if ui.frozen else "freeze"), ("f", "forget")]
    if ui.page:
        keys = [("q", "quit"), ("Esc", "back"), ("↑↓", "other nodes"), ("p", "go on" if ui.frozen else "freeze"), ("?", "help")]
    parts: list[Line] = [[(f" {key}", "bold"), (f" {action} ", "dim")] for key, action in keys]
    right = f" {fleet.listening} " if width > 120 else ""
    return [*fit_parts(parts, width - len(right)), (right, "dim")]


def screenshots(folder: pathlib.Path) -> None:
    """docs/server.svg: a fleet with a node in each state, drawn by the real functions."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    wall = 1_800_000_000.0
    registry = Registry(1.0, 100, clock=lambda: 1000.0)
    for row in map(example_row, range(28)):
        registry.restore(row)
    events = [
        Event(wall - 70, "joined", "Node-1004", "edge-04, 10.0.0.104"),
        Event(wall - 31, "disconnected", "Node-1011", "the stream broke"),
        Event(wall - 21, "lost", "Node-1011", "no heartbeat for 10s; the stream broke"),
        Event(wall - 9, "left", "Node-1017", "said goodbye"),
        Event(wall - 4, "late", "Node-1006", "no heartbeat for 3s"),
    ]
    lens, ui = Lens(registry), Ui(selected=Key("Node-1003"))
    pages = {"server": ui, "page": ui._replace(page="Node-1003"), "grid": ui._replace(grid=True, by_gpu=True, selected=None)}
    for name, chosen in pages.items():
        fleet = look(lens, chosen, 160, 40, "[::]:50051", events)._replace(wall=wall)
        save_svg(render(fleet, 160, 40), "server.pyz", folder / f"{name}.svg")


def example_row(index: int) -> Row:
    """A node of the README's picture."""
    kinds = (("NVIDIA H200", 8, 143771, 700, 87), ("NVIDIA GeForce RTX 4090", 1, 24564, 450, 90), ("NVIDIA L4", 2, 23034, 72, 96))
    name, count, memory_mib, watts, limit = kinds[index % 3]
    chance = random.Random(index)
    info = pb.NodeInfo(hostname=f"edge-{index:02}", instance_id=str(index), agent_version=VERSION, session_number=1)
    for number in range(count):
        info.devices.add(
            index=number,
            name=name,
            memory_total_bytes=memory_mib * 2**20,
            power_limit_milliwatts=watts * 1000,
            slowdown_temperature_celsius=limit,
        )
    limits, loads, history = limits_of(info), [chance.random() for _ in range(count)], b""
    for sequence in range(HISTORY_SAMPLES):
        sample = pb.Sample(sequence=sequence + 1, host=pb.HostSample(cpu_percent=35, load_1m=7.5, uptime_seconds=90_000))
        loads = [min(max(load + chance.gauss(0, 0.05), 0), 1) for load in loads]
        for load in loads:
            sample.devices.add(
                utilization_percent=round(100 * load),
                memory_used_bytes=round(memory_mib * 2**20 * (0.1 + 0.8 * load)),
                temperature_celsius=round(32 + 50 * load),
                power_milliwatts=round(watts * 1000 * (0.1 + 0.9 * load)),
                sm_clock_mhz=1980,
                throttle_reasons=0,
            )
        history = extend_history(history, vitals_of(limits, sample).frame)
    age = {6: 4.0, 11: 31.0, 17: 9.0}.get(index, chance.random())
    return Row(
        node_id=f"Node-{1000 + index}",
        address=f"10.0.0.{100 + index}",
        session=None if index in (11, 17) else Session(pb.HeartbeatRequest(), "", None),
        interval_seconds=1.0,
        heartbeat_at=1000 - age,
        sample_at=1000 - age,
        packed_info=info.SerializeToString(),
        packed_sample=sample.SerializeToString(),
        limits=limits,
        vitals=vitals_of(limits, sample),
        history=history,
        round_trip_seconds=0.0012,
        left=index == 17,
    )


# ---- The program ----


def show_screen(registry: Registry, network: Network, inputs: Inputs, listening: str, options: argparse.Namespace) -> None:
    """The main thread with a terminal: twelve frames a second, more while keys are pressed; only changed lines are sent."""
    ui, lens = Ui(), Lens(registry)
    frame_due = drawn = 0.0
    with Screen(options.no_color) as screen:
        while not inputs.signal and network.is_alive():
            now = registry.clock()
            width, height = screen.size()
            if now >= frame_due:
                ui = follow(ui, lens, room_of(ui, lens, width, height))
                fleet = look(lens, ui, width, height, listening, lens.events(height))
                screen.draw(render(fleet, width, height))
                drawn = max(frame_due, now - 1 / options.fps)  # when it was due: a frame that is late does not delay the next
                frame_due = drawn + 1 / min(options.fps, DATA_FRAMES_PER_SECOND)
            keys = inputs.wait(frame_due - registry.clock())
            for key in keys:
                if key == "q" and not ui.typing:
                    return
                if key == "suspend":
                    screen.suspend(inputs)
                elif key == "f" and not (ui.typing or ui.help) and lens.place(ui.selected) is not None:
                    ui = forget(ui, lens, registry)
                else:
                    ui = press(ui, key, lens, room_of(ui, lens, width, height))
            if keys:
                frame_due = min(frame_due, drawn + 1 / options.fps)  # a key is answered at once


def forget(ui: Ui, lens: Lens, registry: Registry) -> Ui:
    """The selected node goes, when it is lost or left, and the selection to its neighbour."""
    assert ui.selected
    node_id = ui.selected.node_id
    if not registry.forget(node_id):
        return ui
    moved = (move(ui._replace(page=node_id), key, lens, Room(1, 1)) for key in ("down", "up"))
    neighbour = next((other for other in moved if other.page != node_id), ui)
    lens.expire()
    return neighbour._replace(page="")


def snapshot_json(registry: Registry) -> str:
    """The fleet as one line of JSON."""
    now = registry.clock()
    return json.dumps({"time": round(time.time(), 3), "nodes": [row_json(row, now) for row in registry.snapshot()]})


def row_json(row: Row, now: float) -> dict[str, Any]:
    """One node; its messages in protobuf's JSON mapping with the proto's own field names."""
    state = state_of(row, now)
    return {
        "node_id": row.node_id,
        "hostname": row.info.hostname,
        "state": state.value,
        "reason": reason_of(row, state, now),
        "heartbeat_age_seconds": round(max(now - row.heartbeat_at, 0), 3),  # it may have come since `now`
        "sample_age_seconds": None if row.sample_at is None else round(max(now - row.sample_at, 0), 3),
        "info": json_format.MessageToDict(row.info, preserving_proto_field_name=True),
        "sample": json_format.MessageToDict(row.sample, preserving_proto_field_name=True),
    }


def run_headless(registry: Registry, network: Network, inputs: Inputs, as_json: bool) -> None:
    """The main thread without a terminal: a line an event, or with --json a snapshot of the fleet each second."""
    printed, snapshot_due = 0, registry.clock()
    while not inputs.signal and network.is_alive():
        now = registry.clock()
        if not as_json:
            printed = print_events(registry, printed)
        elif now >= snapshot_due:
            print(snapshot_json(registry), flush=True)
            snapshot_due = max(snapshot_due + 1, registry.clock())
        inputs.wait(PRINT_SECONDS)
    if not as_json:
        print_events(registry, printed)  # what came since the last look


def print_events(registry: Registry, printed: int) -> int:
    """Print the events after the first `printed`; return how many there are now."""
    count, events = registry.events_since(printed)
    if missing := count - printed - len(events):
        print(f"{time_stamp(time.time())} warning server: {missing} events came too fast to be kept", flush=True)
    for event in events:
        print(f"{time_stamp(event.time)} {event.kind} {event.node_id}: {event.text}", flush=True)
    return count


def time_stamp(wall: float) -> str:
    """A moment in the log, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


class Listed(argparse.Action):
    """An option that may be given again, or name several with commas. The first flag takes the place of the default."""

    def __call__(self, _parser: object, options: argparse.Namespace, values: Any, _flag: object = None) -> None:
        before = getattr(options, self.dest)
        setattr(options, self.dest, before + values if isinstance(before, list) else values)


def parse_endpoints(text: str) -> list[Endpoint]:
    """HOST[:PORT], and more of them after commas. Raises argparse.ArgumentTypeError."""
    return [parse_endpoint(part.strip()) for part in text.split(",")]


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 when it can't be understood."""

    def count(text: str) -> int:
        if not re.fullmatch(r"\d{1,7}", text, re.ASCII) or not int(text):
            raise argparse.ArgumentTypeError(f"{text!r} is no count from 1 to 9999999")
        return int(text)

    parser = Options(
        prog="server",
        description="The orchestrator of Edge Compute Node: one live table of all your GPU and edge boxes.",
        epilog="examples:\n"
        "  server.pyz                                 listen on port 50051 of all addresses\n"
        "  server.pyz --listen 10.0.0.5:6000          on one address, another port\n"
        "  server.pyz --json | jq '.nodes[].state'    the fleet once a second, for programs\n"
        "each option can also be set in the environment, by the name in brackets; a flag beats it",
    )
    parser.option(
        "--listen",
        "where nodes report to; may be given again (default [::]:50051, IPv4 too)",
        type=parse_endpoints,
        action=Listed,
        metavar="HOST[:PORT]",
    )
    parser.option(
        "--interval", "seconds between a node's heartbeats (default 1)", type=parse_seconds, default="1", metavar="SECONDS"
    )
    parser.option(
        "--max-nodes", "nodes at most, the lost ones counted (default 15000)", type=count, default="15000", metavar="COUNT"
    )
    parser.switch("--headless", "no screen: one plain line an event; by itself where stdout is no terminal")
    parser.switch("--json", "no screen: the whole fleet as one line of JSON each second")
    about = "frames a second at most, less for a slow line (default 60)"
    parser.option("--fps", about, type=parse_fps, default="60", metavar="RATE")
    parser.switch("--no-color", "no colours (also with NO_COLOR set)")
    parser.switch("--debug", "tracebacks")
    parser.add_argument("--version", action="version", version=version_text("server"), help="version, Python and target")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    """The program after its command line. Raises Failure."""
    screen = is_screen() and not options.headless and not options.json
    gc.set_threshold(100_000, 50, 1000)  # a pass over the objects of ten thousand nodes takes half a second, and finds nothing
    registry = Registry(options.interval, options.max_nodes, keeps_history=screen)
    network = Network(registry, options.listen)
    if options.debug:
        logging.basicConfig(level=logging.ERROR)
    logging.getLogger().addHandler(ErrorEvents(registry))
    with Inputs(keyboard=screen) as inputs:
        if warning := raise_open_files(options.max_nodes):
            registry.complain("warning", "server", warning)
        listening = ", ".join(map(str, network.start()))
        try:
            if screen:
                show_screen(registry, network, inputs, listening, options)
            else:
                said = sys.stderr if options.json else sys.stdout
                print(f"{time_stamp(time.time())} listening on {listening}", file=said, flush=True)
                run_headless(registry, network, inputs, options.json)
                if inputs.signal:
                    print(f"{time_stamp(time.time())} stopped by {signal.Signals(inputs.signal).name}", file=said, flush=True)
        except OSError as error:  # the terminal or the pipe is gone
            abandon_stdout()
            if error.errno == errno.ENOSPC:
                raise Failure("cannot write: no space left on device") from error
            inputs.signal = inputs.signal or (HANGUP if screen else BROKEN_PIPE)
        finally:
            network.stop()
    if network.failure:
        raise network.failure
    return 128 + inputs.signal if inputs.signal else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; return its exit code: 0, 1 for a failure, 2 for the command line, 128 + the signal that ended it."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that is not UTF-8 must not end the program
    options = parse_options(argv)
    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        unexpected = "" if isinstance(error, Failure) else f"{type(error).__name__} (see --debug, and please report it): "
        print(f"server: {unexpected}{error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
