"""The agent of Edge Compute Node: reads this box's hardware, streams heartbeats to a server, and shows both on a screen.

    Node-8821  edge-07 · NVIDIA DGX H200                    ● connected to 10.0.0.5:50051
    ╭─ GPU 0 · NVIDIA H200 ─────────────────────────────────────────────────────────────╮
    │ utilization ████████████████████████▌·····················                    53% │
    │ memory      ██████████████▎···············................   45.2 GiB of 140 GiB  │
    ╰────────────────────────────────────────────────────────────────────────────────────╯

Data flows one way:  Hardware.sample() -> NodeState -> heartbeat session
                                               \\-> View -> render()

Threads: main (screen or plain lines), telemetry, heartbeat. Each session has one more, which reads the acknowledgements.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import json
import math
import os
import pathlib
import platform
import queue
import random
import re
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core writes to stderr, across the screen; what matters comes as errors

sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # asyncio, which gRPC imports, would load OpenSSL with it: 4 MB

import grpc
from google.protobuf import json_format

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

MAX_BACKOFF_SECONDS = 30.0
SESSION_PATIENCE_SECONDS = 10.0  # for the first acknowledgement of a session
SILENCE_SECONDS = 12.0  # a server acknowledges every 9.5 s; silence of this and two intervals is a half-open connection
GOODBYE_SECONDS = 2.0
FIRST_SAMPLE_SECONDS = 2.0
NVML_PATIENCE_SECONDS = 2.0  # a driver call that takes longer hangs
SLOW_READING_SECONDS = 5.0  # disk and temperature change slowly, and their files are many on a large host
SHORTEST_MEAN_SECONDS = 0.05  # the kernel counts a processor's time in ticks of 10 ms
MAX_CORES = 24  # bytes of a heartbeat: a host with more processors reports means of groups
MAX_PROCESSES = 256
BACKLOG_SAMPLES = 300
LOG_LINES = 500

CHANNEL_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),  # it answers nearly every heartbeat with a ping
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the backoff of the one before
    ("grpc.enable_http_proxy", 0),  # http_proxy is for the web; the server is in the local network
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 64 * 1024),
)

# ---- Hardware: what this box has (info), and how it is now (sample) ----


class Hardware(Protocol):
    """A source of readings. `sample` is called by the telemetry thread alone, once an interval."""

    backend: pb.Backend
    hostname: str
    notice: str  # why something is not reported; "" when all is well

    def info(self) -> tuple[pb.HostInfo, list[pb.DeviceInfo]]:
        """What does not change."""

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        """What does: the devices in the order of `info`."""

    def processes(self) -> list[pb.Process]:
        """What runs on the devices."""


def within(value: float | None, lowest: float, highest: float) -> int | None:
    """`value` as an integer, if it is a number in the range; else None: drivers answer with sentinels such as 2**63 - 14."""
    return round(value) if value is not None and lowest <= value <= highest else None


class HostHardware:
    """The host alone, through psutil. Without psutil (it has no wheel for 32-bit ARM), what os and shutil know."""

    backend = pb.BACKEND_HOST

    def __init__(self, clock: Callable[[], float] = time.monotonic, root: pathlib.Path = pathlib.Path("/")) -> None:
        self.hostname = socket.gethostname()
        self.notice = ""
        self._clock = clock
        self._root = root
        self._slow_at = -math.inf
        self._disk_used = 0
        self._temperature: int | None = None
        self._network: tuple[float, int, int] | None = None
        self._processors_at: float | None = None
        try:
            import psutil
        except ImportError:
            self._psutil = None
            self.notice = "psutil is not there: no CPU, memory, network; install python3-psutil"
        else:
            self._psutil = psutil

    def info(self) -> tuple[pb.HostInfo, list[pb.DeviceInfo]]:
        host = pb.HostInfo(model=self._model(), operating_system=self._operating_system(), cpu_count=os.cpu_count())
        if self._psutil:
            host.memory_total_bytes = self._psutil.virtual_memory().total
        host.disk_total_bytes = self._disk()[0]
        return host, []

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        now = self._clock()
        if now - self._slow_at >= SLOW_READING_SECONDS:
            self._slow_at = now
            self._disk_used = self._disk()[1]
            self._temperature = self._hottest()
        host = pb.HostSample(disk_used_bytes=self._disk_used, temperature_celsius=self._temperature)
        if hasattr(os, "getloadavg"):
            host.load_1m = os.getloadavg()[0]
        if self._psutil:
            memory = self._psutil.virtual_memory()
            self._add_processors(host, now)
            host.memory_used_bytes = memory.total - memory.available
            host.uptime_seconds = max(round(time.time() - self._psutil.boot_time()), 0)
            self._add_network(host, now)
        return host, []

    def processes(self) -> list[pb.Process]:
        return []

    def owner(self, pid: int) -> tuple[str, str]:
        """User and name of a process; empty where it is gone, or not ours to ask."""
        if not self._psutil:
            return "", ""
        user = name = ""
        with contextlib.suppress(self._psutil.Error, KeyError):
            process = self._psutil.Process(pid)
            name = process.name()
            user = process.username()
        return user[:64], name[:64]

    def _add_processors(self, host: pb.HostSample, now: float) -> None:
        assert self._psutil
        before = self._processors_at
        if before is not None and now - before < SHORTEST_MEAN_SECONDS:
            return  # psutil would say 0
        self._processors_at = now
        percents = self._psutil.cpu_percent(percpu=True) or [0.0]
        if before is None:
            return  # the mean since this thread's call before, which there was none
        host.cpu_percent = min(round(sum(percents) / len(percents)), 100)
        group = -(-len(percents) // MAX_CORES)
        groups = [percents[start : start + group] for start in range(0, len(percents), group)]
        host.cpu_core_percents = bytes(min(round(sum(part) / len(part)), 100) for part in groups)

    def _disk(self) -> tuple[int, int]:
        usage = shutil.disk_usage(self._root)
        return usage.total, usage.used

    def _add_network(self, host: pb.HostSample, now: float) -> None:
        """Rates since the sample before, over the physical interfaces; over all but loopback where none is (a container)."""
        assert self._psutil
        counters = {name: counter for name, counter in self._psutil.net_io_counters(pernic=True).items() if name != "lo"}
        physical = [counters[name] for name in counters if (self._root / "sys/class/net" / name / "device").exists()]
        used = physical or list(counters.values())
        received, sent = sum(counter.bytes_recv for counter in used), sum(counter.bytes_sent for counter in used)
        if self._network and now > self._network[0]:
            seconds = now - self._network[0]
            host.network_received_bytes_per_second = round(max(received - self._network[1], 0) / seconds)
            host.network_sent_bytes_per_second = round(max(sent - self._network[2], 0) / seconds)
        self._network = now, received, sent

    def _hottest(self) -> int | None:
        """Of the processor's own sensors, else of the board's zones, in °C. None in most virtual machines."""
        if not self._psutil or not hasattr(self._psutil, "sensors_temperatures"):
            return None
        sensors = self._psutil.sensors_temperatures()
        processor = [name for name in sensors if re.search(r"core|cpu|k10|zen|soc|package", name, re.IGNORECASE)]
        readings = [reading.current for name in processor or sensors for reading in sensors[name]]
        return max(filter(None, (within(reading, -60, 200) for reading in readings)), default=None)

    def _model(self) -> str:
        for path in ("sys/class/dmi/id/product_name", "proc/device-tree/model"):
            with contextlib.suppress(OSError):
                if text := (self._root / path).read_text(errors="replace").strip("\0 \n"):
                    return text[:128]
        return platform.machine()

    @staticmethod
    def _operating_system() -> str:
        with contextlib.suppress(OSError):
            return platform.freedesktop_os_release()["PRETTY_NAME"]
        return platform.platform(terse=True)


class Patience:
    """Calls what may hang: on a daemon thread, one call at a time, waited for `seconds` at most."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread: threading.Thread | None = None
        self._started_at = 0.0
        self._outcome: Callable[[], Any]

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` returns or raises. TimeoutError when it, or the call before it, has not come back yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(function,), name="driver", daemon=True)
            self._started_at = time.monotonic()
            self._thread.start()
        self._thread.join(self._seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"no answer from the driver for {show_seconds(time.monotonic() - self._started_at)}")
        self._thread = None
        return self._outcome()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            value = function()
        except Exception as error:  # carried over to the thread that waits for it
            self._outcome = _raiser(error)
        else:
            self._outcome = lambda: value


def _raiser(error: Exception) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise error

    return fail


class NvmlHardware:
    """NVIDIA GPUs through NVML, and the host beside them.

    Every call to NVML goes through `_ask`, and every reading of all devices through one Patience: a hung driver costs the GPUs'
    readings, not the host's and not the heartbeat.
    """

    backend = pb.BACKEND_NVML

    def __init__(self, host: HostHardware, patience_seconds: float = NVML_PATIENCE_SECONDS) -> None:
        """Raises Failure when NVML's library is absent, its driver does not answer, or there is no GPU."""
        try:
            import pynvml  # 44 ms: only where it is asked for
        except ImportError as error:  # a Python that was built without _ctypes
            raise Failure(f"no NVIDIA GPU is read ({error})") from error

        self._nvml = pynvml
        self._host = host
        self.hostname, self.notice = host.hostname, host.notice
        self._patience, self._processes_patience = Patience(patience_seconds), Patience(patience_seconds)
        self._devices: list[Any] = []
        self._infos: list[pb.DeviceInfo] = []
        try:
            Patience(5 * patience_seconds).call(self._open)  # loading the driver can take seconds
        except (pynvml.NVMLError, TimeoutError) as error:
            raise Failure(f"no NVIDIA GPU is read ({error})") from error
        if not self._devices:
            raise Failure("no NVIDIA GPU is read (NVML counts none)")

    def info(self) -> tuple[pb.HostInfo, list[pb.DeviceInfo]]:
        return self._host.info()[0], self._infos

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        host, _ = self._host.sample()
        try:
            devices = self._patience.call(self._sample_devices)
        except TimeoutError as error:
            devices = [pb.DeviceSample(error=str(error)) for _ in self._devices]
        for info, device in zip(self._infos, devices, strict=True):
            if info.unified_memory and not device.error and host.HasField("memory_used_bytes"):
                device.memory_used_bytes = host.memory_used_bytes
        return host, devices

    def processes(self) -> list[pb.Process]:
        try:
            found: list[pb.Process] = self._processes_patience.call(self._processes)
        except TimeoutError:
            return []
        for process in found:
            process.user, process.name = self._host.owner(process.pid)
        return found

    def _processes(self) -> list[pb.Process]:
        return [process for index, handle in enumerate(self._devices) if handle for process in self._processes_of(index, handle)]

    def _processes_of(self, index: int, handle: Any) -> list[pb.Process]:
        """Compute and graphics; a process that does both is named once."""
        nvml, found = self._nvml, {}
        try:
            for kind in ("Compute", "Graphics"):
                for version in ("v3", "v2"):
                    running = self._ask(getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}"), handle)
                    if running is not None:
                        found.update({process.pid: process.usedGpuMemory for process in running})
                        break
        except nvml.NVMLError:
            return []  # the sample says what is wrong with this device
        return [pb.Process(device_index=index, pid=pid, memory_used_bytes=within(used, 0, 2**50)) for pid, used in found.items()]

    def _open(self) -> None:
        self._nvml.nvmlInit()
        for index in range(self._nvml.nvmlDeviceGetCount()):
            info = pb.DeviceInfo(index=index, name=f"GPU {index}")
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                info = self._info(index, handle)
            except self._nvml.NVMLError:
                handle = None  # told by each sample, which asks again
            self._devices.append(handle)
            self._infos.append(info)

    def _info(self, index: int, handle: Any) -> pb.DeviceInfo:
        nvml = self._nvml
        memory = self._memory(handle)
        total = memory.total if memory else self._host.info()[0].memory_total_bytes
        slowdown = self._ask(nvml.nvmlDeviceGetTemperatureThreshold, handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        return pb.DeviceInfo(
            index=index,
            uuid=self._ask(nvml.nvmlDeviceGetUUID, handle) or "",
            name=self._ask(nvml.nvmlDeviceGetName, handle) or f"GPU {index}",
            memory_total_bytes=within(total, 1, 2**50),
            power_limit_milliwatts=within(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1, 10**7),
            slowdown_temperature_celsius=within(slowdown, 1, 200),
            unified_memory=memory is None,
        )

    def _sample_devices(self) -> list[pb.DeviceSample]:
        return [self._sample_device(index) for index in range(len(self._devices))]

    def _sample_device(self, index: int) -> pb.DeviceSample:
        nvml = self._nvml
        try:
            handle = self._devices[index] = self._devices[index] or nvml.nvmlDeviceGetHandleByIndex(index)
            utilization = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
            memory = self._memory(handle)
            return pb.DeviceSample(
                utilization_percent=within(utilization and utilization.gpu, 0, 100),
                memory_used_bytes=within(memory and memory.used, 0, 2**50),
                temperature_celsius=within(self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU), -60, 200),
                power_milliwatts=within(self._ask(nvml.nvmlDeviceGetPowerUsage, handle), 0, 10**7),
                fan_percent=within(self._ask(nvml.nvmlDeviceGetFanSpeed, handle), 0, 200),
                sm_clock_mhz=within(self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM), 0, 10_000),
                throttle_reasons=self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
            )
        except nvml.NVMLError as error:
            return pb.DeviceSample(error=str(error))

    def _memory(self, handle: Any) -> Any:
        """Version 2 leaves out what the driver reserves, as nvidia-smi does; old drivers have only version 1."""
        nvml = self._nvml
        return self._ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2) or self._ask(
            nvml.nvmlDeviceGetMemoryInfo, handle
        )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call to NVML. None for what this device or driver does not support. Raises NVMLError for a device that fails."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in (
                self._nvml.NVML_ERROR_NOT_SUPPORTED,
                self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                self._nvml.NVML_ERROR_NO_PERMISSION,
                self._nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
            ):
                return None
            raise


# ---- Simulated hardware: a physical model, not noise ----


class Model(NamedTuple):
    """A device of the catalogue, with its data sheet's figures; thermal ones are what such devices show in use."""

    hostname: str
    host: str
    device: str
    device_count: int
    memory_mib: int
    idle_watts: float
    limit_watts: float
    full_load_celsius: float  # at the power limit, in 25 °C, with all its cooling
    slowdown_celsius: int
    time_constant_seconds: float  # of the heat sink: temperature covers 63 % of a step in this time
    has_fan: bool
    sm_clock_mhz: int
    unified: bool
    cpu_count: int
    host_memory_gib: int


CATALOGUE = (
    Model("orin", "NVIDIA Jetson AGX Orin", "Orin (nvgpu)", 1, 62841, 9, 60, 72, 99, 55, True, 1300, True, 12, 64),
    Model("h200", "Supermicro SYS-821GE-TNHR", "NVIDIA H200", 8, 143771, 76, 700, 72, 87, 28, False, 1980, False, 192, 2048),
    Model("rtx4090", "Workstation", "NVIDIA GeForce RTX 4090", 1, 24564, 22, 450, 73, 90, 35, True, 2520, False, 32, 128),
    Model("l4", "Dell PowerEdge XR4000", "NVIDIA L4", 2, 23034, 13, 72, 76, 96, 45, False, 2040, False, 64, 256),
    Model("spark", "NVIDIA DGX Spark", "NVIDIA GB10", 1, 122570, 10, 100, 78, 95, 60, True, 2418, True, 20, 128),
    Model(
        "a100", "HPE Apollo 6500 Gen10 Plus", "NVIDIA A100-SXM4-80GB", 4, 81920, 58, 400, 66, 89, 30, False, 1410, False, 128, 1024
    ),
    Model("h100", "NVIDIA DGX H100", "NVIDIA H100 80GB HBM3", 8, 81559, 70, 700, 70, 87, 28, False, 1980, False, 224, 2048),
    Model("orin-nano", "NVIDIA Jetson Orin Nano", "Orin (nvgpu)", 1, 7620, 4, 25, 75, 99, 50, True, 1020, True, 6, 8),
    Model("pi", "Raspberry Pi 5 Model B", "", 0, 0, 3, 12, 68, 85, 60, True, 0, False, 4, 8),
)


class SimulatedDevice:
    """One device's physics.

    Power follows load and clock; temperature follows power with the heat sink's time constant, towards ambient; the fan follows
    temperature; the clock drops at the slowdown temperature, and with it the power. `step` is exact for constant power, so that
    the step's length does not matter.
    """

    STEP_SECONDS = 0.5

    def __init__(self, model: Model, ambient_celsius: float) -> None:
        self.model = model
        self.ambient_celsius = ambient_celsius
        self.load = 0.0  # of the device, 0 to 1
        self.memory = 0.02  # of its memory
        self.clock = 1.0  # of its highest
        self.fan = 0.3
        self.watts = model.idle_watts
        self.celsius = self.equilibrium()

    def equilibrium(self) -> float:
        """Temperature that the power of now leads to, °C. Less air, more thermal resistance: half as much again with no fan."""
        kelvin_per_watt = (self.model.full_load_celsius - 25) / self.model.limit_watts
        return self.ambient_celsius + self.watts * kelvin_per_watt * (1.5 - 0.5 * self.fan)

    def step(self, seconds: float, load: float, memory: float) -> None:
        """Let `seconds` pass under a load (0 to 1) with so much of the memory wanted (0 to 1)."""
        model = self.model
        self.load = load
        self.memory += (memory - self.memory) * -math.expm1(-seconds / 4)
        if self.celsius >= model.slowdown_celsius + 3:
            self.clock = 0.3  # what the hardware does by itself
        elif self.celsius >= model.slowdown_celsius:
            self.clock = max(self.clock - 0.05 * seconds, 0.3)
        else:
            self.clock = min(self.clock + 0.02 * seconds, 1.0)
        self.watts = model.idle_watts + (model.limit_watts - model.idle_watts) * load**0.8 * self.clock**2
        self.celsius += (self.equilibrium() - self.celsius) * -math.expm1(-seconds / model.time_constant_seconds)
        wanted = min(max((self.celsius - 40) / 35, 0.3), 1.0)
        self.fan += (wanted - self.fan) * -math.expm1(-seconds / 6)

    def info(self, index: int, uuid_text: str) -> pb.DeviceInfo:
        return pb.DeviceInfo(
            index=index,
            uuid=uuid_text,
            name=self.model.device,
            memory_total_bytes=self.model.memory_mib * 2**20,
            power_limit_milliwatts=round(self.model.limit_watts * 1000),
            slowdown_temperature_celsius=self.model.slowdown_celsius,
            unified_memory=self.model.unified,
        )

    def sample(self) -> pb.DeviceSample:
        throttle = 0x20 if self.clock < 0.999 else 0x04 if self.watts > 0.98 * self.model.limit_watts else 0
        idle = self.load < 0.01
        return pb.DeviceSample(
            utilization_percent=round(100 * self.load),
            memory_used_bytes=round(self.memory * self.model.memory_mib * 2**20),
            temperature_celsius=round(self.celsius),
            power_milliwatts=round(self.watts * 1000),
            fan_percent=round(100 * self.fan) if self.model.has_fan else None,
            sm_clock_mhz=round(self.model.sm_clock_mhz * (0.15 if idle else self.clock)),
            throttle_reasons=0x01 if idle and not throttle else throttle,
        )


class Job(NamedTuple):
    """What runs on some devices of a host until a time."""

    ends_at: float
    devices: frozenset[int]
    load: float
    memory: float
    checkpoint_seconds: float  # now and then all of it waits for the disk
    pid: int
    user: str
    name: str


class SimulatedHardware:
    """A box of the catalogue. The same seed makes the same box, and on the same clock the same course of events."""

    backend = pb.BACKEND_SIMULATED
    HISTORY_SECONDS = 600.0  # a new box is not a cold one: so much has passed when it is first looked at

    def __init__(self, seed: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.notice = "simulated: nothing here is measured"
        self.model = CATALOGUE[seed % len(CATALOGUE)]
        self.hostname = f"{self.model.hostname}-{seed % 1000:02}"
        self._random = random.Random(seed)
        self._clock = clock
        self._born_at = clock()
        self._seconds = 0.0  # of simulated time
        ambient = self._random.gauss(25, 4)
        if self._random.random() < 0.15:
            ambient += 22  # a box in a cupboard: these throttle
        self._ambient_celsius = min(max(ambient, 10), 50)
        self.devices = [SimulatedDevice(self.model, self._ambient_celsius) for _ in range(self.model.device_count)]
        self._processor = SimulatedDevice(self.model._replace(limit_watts=60, idle_watts=15), self._ambient_celsius)
        self._jobs: list[Job] = []
        self._noise = [0.0] * self.model.device_count
        self._uuids = [str(uuid.UUID(int=self._random.getrandbits(128), version=4)) for _ in self.devices]
        self._disk_fraction = self._random.uniform(0.2, 0.9)

    def info(self) -> tuple[pb.HostInfo, list[pb.DeviceInfo]]:
        host = pb.HostInfo(
            model=self.model.host,
            operating_system="simulated",
            cpu_count=self.model.cpu_count,
            memory_total_bytes=self.model.host_memory_gib * 2**30,
            disk_total_bytes=2**40,
        )
        devices = zip(self.devices, self._uuids, strict=True)
        return host, [device.info(index, f"GPU-{name}") for index, (device, name) in enumerate(devices)]

    def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
        target = self._clock() - self._born_at + self.HISTORY_SECONDS
        self._seconds = max(self._seconds, target - 3600)  # a box that slept for days need not catch up
        while self._seconds + SimulatedDevice.STEP_SECONDS <= target:  # whole steps: the course does not depend on when we look
            self._seconds += SimulatedDevice.STEP_SECONDS
            self._step(SimulatedDevice.STEP_SECONDS)
        return self._host_sample(), [device.sample() for device in self.devices]

    def processes(self) -> list[pb.Process]:
        memory = self.model.memory_mib * 2**20
        return [
            pb.Process(device_index=index, pid=job.pid, user=job.user, name=job.name, memory_used_bytes=round(job.memory * memory))
            for job in self._jobs
            for index in sorted(job.devices)
        ]

    def _step(self, seconds: float) -> None:
        self._jobs = [job for job in self._jobs if job.ends_at > self._seconds]
        busy = frozenset().union(*(job.devices for job in self._jobs))
        free = [index for index in range(len(self.devices)) if index not in busy]
        if free and self._random.random() < seconds / 40:  # a job comes every 40 s or so, while there is room
            self._jobs.append(self._new_job(free))
        for index, device in enumerate(self.devices):
            load, memory = 0.0, 0.02
            for job in self._jobs:
                if index in job.devices:
                    load, memory = job.load, job.memory
                    if self._seconds % job.checkpoint_seconds < 4:
                        load = 0.1
            # an Ornstein-Uhlenbeck process: noise with a memory of 5 s
            self._noise[index] += -self._noise[index] * min(seconds / 5, 1) + self._random.gauss(0, 0.03) * math.sqrt(seconds)
            device.step(seconds, min(max(load + self._noise[index], 0), 1) if load else 0.0, memory)
        self._processor.step(seconds, 0.05 + 0.5 * self._mean_load(), 0.3)

    def _new_job(self, free: list[int]) -> Job:
        width = self._random.choice([1, max(len(free) // 2, 1), len(free)])
        return Job(
            ends_at=self._seconds + self._random.expovariate(1 / 300) + 30,
            devices=frozenset(self._random.sample(free, width)),
            load=self._random.choice([self._random.uniform(0.3, 0.8), self._random.uniform(0.9, 1.0)]),
            memory=self._random.uniform(0.25, 0.95),
            checkpoint_seconds=self._random.uniform(60, 180),
            pid=self._random.randrange(1000, 4_000_000),
            user=self._random.choice(["ada", "grace", "alan"]),
            name=self._random.choice(["python3", "torchrun", "vllm", "ollama"]),
        )

    def _mean_load(self) -> float:
        if not self.devices:
            return 0.5 + 0.4 * math.sin(self._seconds / 47)
        return sum(device.load for device in self.devices) / len(self.devices)

    def _core_percent(self, core: int, load: float) -> int:
        wave = math.sin(self._seconds / (7 + core % 5) + core)
        return min(max(round(100 * load + 30 * load * wave), 0), 100)

    def _host_sample(self) -> pb.HostSample:
        load = self._processor.load
        memory = sum(device.memory for device in self.devices) / len(self.devices) if self.devices else 0.3
        return pb.HostSample(
            cpu_percent=round(100 * load),
            memory_used_bytes=round((0.08 + 0.6 * memory) * self.model.host_memory_gib * 2**30),
            disk_used_bytes=round(self._disk_fraction * 2**40),
            network_received_bytes_per_second=round(load * 40e6),
            network_sent_bytes_per_second=round(load * 9e6),
            temperature_celsius=round(self._processor.celsius),
            load_1m=round(load * self.model.cpu_count, 2),
            uptime_seconds=round(self._seconds),
            cpu_core_percents=bytes(self._core_percent(core, load) for core in range(min(self.model.cpu_count, MAX_CORES))),
        )


def open_hardware(kind: str, seed: int) -> Hardware:
    """What --hardware asks for. `auto` is never simulated. Raises Failure when `nvml` is asked for and is not there."""
    if kind == "simulated":
        return SimulatedHardware(seed)
    host = HostHardware()
    if kind == "host":
        return host
    try:
        return NvmlHardware(host)
    except Failure as failure:
        if kind == "nvml":
            raise Failure(f"{failure}: is the NVIDIA driver installed and loaded? Try nvidia-smi, or --hardware host") from failure
        host.notice = "; ".join(filter(None, (str(failure), host.notice)))
        return host


def history_frame(head: tuple[float | None, float | None, float | None], info: pb.NodeInfo, sample: pb.Sample) -> bytes:
    """A sample's frame of the history: a row for the node, then one for each device."""
    frame = bytearray(percent_byte(part) for part in head[:2])
    frame.append(NOT_REPORTED if head[2] is None else min(max(round(head[2]), 0), 254))
    for index, known in enumerate(info.devices):
        if index >= len(sample.devices):
            frame += b"\xff\xff\xff"
            continue
        device, total = sample.devices[index], known.memory_total_bytes
        frame.append(min(device.utilization_percent, 100) if device.HasField("utilization_percent") else NOT_REPORTED)
        used = device.HasField("memory_used_bytes") and total
        frame.append(min(device.memory_used_bytes * 100 // total, 100) if used else NOT_REPORTED)
        frame.append(min(max(device.temperature_celsius, 0), 254) if device.HasField("temperature_celsius") else NOT_REPORTED)
    return bytes(frame)


def percent_byte(part: float | None) -> int:
    """A fraction as a byte of a history."""
    return NOT_REPORTED if part is None else min(max(round(part * 100), 0), 100)


# ---- State: what the threads share ----


class LogLine(NamedTuple):
    """A line of the log."""

    time: float  # wall clock, seconds
    level: str  # "info", "warning", "error" or "debug"
    text: str


class Link(NamedTuple):
    """The connection to the server, as the screen shows it."""

    phase: str = "connecting"  # "connecting", "connected" or "waiting"
    reason: str = ""  # why it is not connected
    retry_at: float = 0.0  # by the monotonic clock, while waiting
    sessions: int = 0
    round_trip_seconds: float | None = None
    interval_seconds: float = 0.0
    acknowledged_at: float = 0.0  # by the monotonic clock
    unary: bool = False
    last_error: str = ""  # why the session before this one ended


class View(NamedTuple):
    """All that the threads share, taken at one moment."""

    version: int
    node_id: str
    server: str
    info: pb.NodeInfo
    sample: pb.Sample
    sample_age_seconds: float
    interval_seconds: float
    processes: Sequence[pb.Process]
    history: bytes
    link: Link
    log: tuple[LogLine, ...]


class NodeState:
    """What the threads share, under one lock held briefly: values are swapped whole, and a published message is never changed."""

    def __init__(
        self, node_id: str, server: str, info: pb.NodeInfo, interval_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self.interval_seconds = interval_seconds
        self.started_at = clock()
        self.failure = ""  # what ends the program with exit code 1
        self.on_change: Callable[[], None] = lambda: None
        self._changed = threading.Condition(threading.Lock())
        self._version = 0
        self._node_id = node_id
        self._server = server
        self._info = info
        self._sample = pb.Sample()
        self._sample_at = self.started_at
        self._processes = pb.ProcessList()
        self._history = b""
        self._link = Link()
        self._log: collections.deque[LogLine] = collections.deque(maxlen=LOG_LINES)
        self._log_count = 0
        self._unacknowledged: collections.deque[pb.Sample] = collections.deque(maxlen=BACKLOG_SAMPLES)
        self._closed = False

    def publish(self, sample: pb.Sample) -> None:
        with self._changed:
            self._sample, self._sample_at = sample, self.clock()
            host_memory = fraction(reported(sample.host, "memory_used_bytes"), self._info.host.memory_total_bytes)
            cpu = fraction(reported(sample.host, "cpu_percent"), 100)
            head = (cpu, host_memory, reported(sample.host, "temperature_celsius"))
            self._history = extend_history(self._history, history_frame(head, self._info, sample))
            self._unacknowledged.append(sample)
            self._touch()

    def publish_processes(self, processes: pb.ProcessList) -> None:
        with self._changed:
            if processes != self._processes:
                self._processes = processes
                self._touch()

    def rename(self, node_id: str) -> None:
        with self._changed:
            self._node_id = node_id
            self._touch()

    def update_link(self, **changes: Any) -> None:
        with self._changed:
            self._link = self._link._replace(**changes)
            self._touch()

    def log(self, text: str, level: str = "info") -> None:
        with self._changed:
            self._log.append(LogLine(time.time(), level, visible(text, 300)))
            self._log_count += 1
            self._touch()

    def acknowledge(self, sequence: int) -> None:
        """Forget the samples that are safe with the server."""
        with self._changed:
            while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
                self._unacknowledged.popleft()

    def fail(self, text: str) -> None:
        """End the program with this error."""
        self.log(text, "error")
        self.failure = text
        self.close()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._touch()

    def is_closed(self) -> bool:
        with self._changed:
            return self._closed

    def unacknowledged(self) -> list[pb.Sample]:
        """The samples that no server has acknowledged, oldest first."""
        with self._changed:
            return list(self._unacknowledged)

    def wait(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait until `condition` holds (it is asked at each change, under the lock), the node is closed, or `seconds` are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or condition(), max(seconds, 0))

    def notify(self) -> None:
        """Have the waiting ask their condition again."""
        with self._changed:
            self._changed.notify_all()

    def newest_sequence(self) -> int:
        """For conditions: does not take the lock."""
        return self._sample.sequence

    def version(self) -> int:
        """Another number after each change."""
        with self._changed:
            return self._version

    def is_waiting(self) -> bool:
        """Whether a countdown to the next try is on."""
        with self._changed:
            return self._link.phase == "waiting"

    def view(self) -> View:
        with self._changed:
            return View(
                version=self._version,
                node_id=self._node_id,
                server=self._server,
                info=self._info,
                sample=self._sample,
                sample_age_seconds=self.clock() - self._sample_at,
                interval_seconds=self.interval_seconds,
                processes=self._processes.processes,
                history=self._history,
                link=self._link,
                log=tuple(self._log),
            )

    def log_since(self, count: int) -> tuple[int, list[LogLine]]:
        """The number of lines logged so far, and those after the first `count`, as far as they are kept."""
        with self._changed:
            new = min(self._log_count - count, len(self._log))
            return self._log_count, list(self._log)[len(self._log) - new :]

    def _touch(self) -> None:
        self._version += 1
        self._changed.notify_all()
        self.on_change()


# ---- Telemetry thread ----


def make_info(hardware: Hardware, instance_id: str) -> pb.NodeInfo:
    """All that is static."""
    host, devices = hardware.info()
    info = pb.NodeInfo(
        hostname=hardware.hostname,
        agent_version=VERSION,
        instance_id=instance_id,
        backend=hardware.backend,
        host=host,
        devices=devices,
        notice=hardware.notice,
    )
    info.started_at.GetCurrentTime()
    return info


def take_sample(hardware: Hardware, sequence: int, started_at: float, clock: Callable[[], float]) -> pb.Sample:
    """One reading of everything."""
    taken = clock()
    host, devices = hardware.sample()
    return pb.Sample(sequence=sequence, taken_milliseconds=round((taken - started_at) * 1000), host=host, devices=devices)


def keep_sampling(hardware: Hardware, state: NodeState, interval_seconds: float) -> None:
    """Body of the telemetry thread: a sample each interval, whatever the link does. A reading that takes longer skips beats."""
    due = processes_due = state.clock()
    errors: list[str] = []
    sequence = 0
    while not state.is_closed():
        sequence += 1
        sample = take_sample(hardware, sequence, state.started_at, state.clock)
        state.publish(sample)
        if state.clock() >= processes_due:
            state.publish_processes(pb.ProcessList(processes=hardware.processes()[:MAX_PROCESSES]))
            processes_due = state.clock() + SLOW_READING_SECONDS
        errors_now = [device.error for device in sample.devices]
        for index, error in enumerate(errors_now):
            before = errors[index] if errors else ""
            if bool(error) != bool(before):
                state.log(f"GPU {index}: {error or 'answers again'}", "error" if error else "info")
        errors = errors_now
        due = max(due + interval_seconds, state.clock())
        state.wait(lambda: False, due - state.clock())


# ---- Heartbeat thread ----


def backoff(random_between: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Delays before the next try, in seconds: exponential (1 s, x1.6, at most 30 s) with full jitter. Never sleeps.

    Full jitter: a fleet that lost its server must not come back in step.
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = 1.0
    while True:
        yield random_between(0, ceiling)
        ceiling = min(ceiling * 1.6, MAX_BACKOFF_SECONDS)


def machine_digits(attempt: int) -> str:
    """Digits derived from this machine's id, the same after a restart; others for each attempt, and more of them later."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            if machine := pathlib.Path(path).read_text().strip():
                break
    else:
        machine = f"{uuid.getnode()} {socket.gethostname()}"
    return draw_digits(attempt, random.Random(f"{machine} {attempt}"))


def draw_digits(attempt: int, source: random.Random) -> str:
    """Four digits; more after some attempts, since a large fleet uses up the short ones."""
    lowest = 10 ** (3 + attempt // 3)
    return str(lowest + int(source.random() * 9 * lowest))


class Identity:
    """The node's id: the user's; or drawn from this machine's id, or by `chance` for simulated hardware, again when it is taken."""

    def __init__(self, given: str | None, chance: random.Random | None) -> None:
        self.given = given
        self._chance = chance
        self._attempt = 0
        self.node_id = given or self._draw()

    def redraw(self) -> str:
        self._attempt += 1
        self.node_id = self._draw()
        return self.node_id

    def _draw(self) -> str:
        digits = draw_digits(self._attempt, self._chance) if self._chance else machine_digits(self._attempt)
        return f"Node-{digits}"


class SessionEnded(Exception):
    """A session is over and another may follow. `code` is gRPC's, or None where the node ended it; the text says why."""

    def __init__(self, reason: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(reason)
        self.code = code


def explain(error: grpc.RpcError, server: str) -> SessionEnded:
    """gRPC's error, the one kind this file meets, in words that say what to do. The details come from outside."""
    code, details = error.code(), visible(error.details() or "")
    known = {
        "Connection refused": f"nothing listens on {server} (is the server running?)",
        "address lookup failed": f"cannot resolve {server} (check the name, or give --server an address)",
        "No route to host": f"no route to {server} (is it in reach of this network?)",
        "Network is unreachable": f"no route to {server} (is this box's network up?)",
        "http1.x server": f"{server} is no gRPC server (is the port right?)",
        "Connection reset": f"{server} broke the connection",
        "Socket closed": f"{server} broke the connection",
        "ping timeout": f"{server} does not answer: the connection is half-open",
    }
    if code is grpc.StatusCode.UNAVAILABLE:
        for part, reason in known.items():
            if part.lower() in details.lower():
                return SessionEnded(reason, code)
    return SessionEnded(f"{server}: {details or 'no reason given'} ({code.name})", code)


class Session:
    """One round of heartbeats over one channel. Any failure ends it whole."""

    def __init__(self, state: NodeState, server: str, fallback_interval_seconds: float) -> None:
        self.acknowledged = False
        self._state = state
        self._server = server
        self._interval_seconds = fallback_interval_seconds  # until the server assigns one
        self._outbox: queue.SimpleQueue[pb.HeartbeatRequest | None] = queue.SimpleQueue()
        self._first = True
        self._unary = False
        self._sent_processes: Sequence[pb.Process] = ()
        self._sent_sequence = 0
        self._measured_microseconds = 0  # round trip to tell the server
        self._sent_at: dict[int, float] = {}  # sequence -> time, of what is not acknowledged yet
        self._heard_at = state.clock()
        self._ended: SessionEnded | None = None
        self._over = False

    def run(self) -> None:
        """Send heartbeats until the node is closed, then say goodbye. Raises SessionEnded when it ends otherwise."""
        with grpc.insecure_channel(self._server, options=CHANNEL_OPTIONS) as channel:
            stub = node_pb2_grpc.NodeServiceStub(channel)
            try:
                self._stream(stub)
            except SessionEnded as ended:
                if ended.code is not grpc.StatusCode.UNIMPLEMENTED:
                    raise
                self._state.log(f"{self._server} has only the unary call: heartbeats go one by one", "warning")
                self._state.update_link(unary=True)
                self._one_by_one(stub)

    def _stream(self, stub: node_pb2_grpc.NodeServiceStub) -> None:
        call = stub.StreamHeartbeats(iter(self._outbox.get, None))
        reader = threading.Thread(target=self._read, args=(call,), name="acknowledgements", daemon=True)
        reader.start()
        try:
            while not self._over and not self._state.is_closed():
                self._outbox.put(self._heartbeat())
                self._wait_for_beat(lambda: self._over)
                self._check_silence()
            if self.acknowledged and not self._over:
                self._outbox.put(pb.HeartbeatRequest(leaving=True))
                self._outbox.put(None)
                reader.join(GOODBYE_SECONDS)
            ended_by_server = self._over
        finally:
            self._outbox.put(None)  # ends gRPC's thread that reads the outbox
            call.cancel()
            reader.join(GOODBYE_SECONDS)
        if self._ended:
            raise self._ended
        if not self._state.is_closed():
            raise SessionEnded(f"{self._server} ended the session")
        if self.acknowledged:
            self._state.log("goodbye acknowledged" if ended_by_server else f"{self._server} did not acknowledge the goodbye")

    def _read(self, call: Any) -> None:
        try:
            for response in call:
                self._hear(response, response.acknowledged_sequence)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self._ended = explain(error, self._server)
        finally:
            self._over = True
            self._state.notify()

    def _one_by_one(self, stub: node_pb2_grpc.NodeServiceStub) -> None:
        """The first version's way: a call for each heartbeat."""
        self._first = self._unary = True
        self._sent_processes, self._sent_sequence = (), 0
        leaving = False
        while not leaving:
            leaving = self._state.is_closed()
            request = self._heartbeat()
            request.leaving = leaving
            sample = self._state.view().sample
            request.gpu_temp = max(
                (device.temperature_celsius for device in sample.devices), default=sample.host.temperature_celsius
            )
            try:
                response = stub.Heartbeat(request, timeout=GOODBYE_SECONDS if leaving else SESSION_PATIENCE_SECONDS)
            except grpc.RpcError as error:
                raise explain(error, self._server) from error
            self._hear(response, self._sent_sequence)
            if not leaving:
                self._wait_for_beat(lambda: False)
        self._state.log("goodbye acknowledged")

    def _heartbeat(self) -> pb.HeartbeatRequest:
        """The next message: all that is static and the backlog with the first one, then what is new."""
        view = self._state.view()
        request = pb.HeartbeatRequest(clock_milliseconds=round((self._state.clock() - self._state.started_at) * 1000))
        if self._first:
            request.info.CopyFrom(view.info)
            request.info.session_number = view.link.sessions + 1
            request.info.last_error = view.link.last_error[:200]
            request.backlog.extend(self._state.unacknowledged()[:-1])
        if self._first or self._unary:
            request.node_id = view.node_id
        if view.processes is not self._sent_processes:
            request.processes.processes.extend(view.processes)
            self._sent_processes = view.processes
        if view.sample.sequence > self._sent_sequence:
            request.sample.CopyFrom(view.sample)
            self._sent_sequence = view.sample.sequence
            self._sent_at[view.sample.sequence] = self._state.clock()
        request.round_trip_microseconds, self._measured_microseconds = self._measured_microseconds, 0
        self._first = False
        return request

    def _wait_for_beat(self, over: Callable[[], bool]) -> None:
        """Until the interval has passed; a new sample may bring the beat a tenth forward or back, so that it goes out fresh."""
        slack = self._interval_seconds / 10
        self._state.wait(over, self._interval_seconds - slack)
        self._state.wait(lambda: over() or self._state.newest_sequence() > self._sent_sequence, 2 * slack)

    def _check_silence(self) -> None:
        patience = SILENCE_SECONDS + 2 * self._interval_seconds if self.acknowledged else SESSION_PATIENCE_SECONDS
        silence = self._state.clock() - self._heard_at
        if not self._over and silence > patience:
            raise SessionEnded(f"{self._server} has been silent for {silence:.0f} s: the connection is half-open")

    def _hear(self, response: pb.HeartbeatResponse, sequence: int) -> None:
        now = self._state.clock()
        self._heard_at = now
        self._state.acknowledge(sequence)
        sent_at = self._sent_at.pop(sequence, None)
        self._sent_at = {other: at for other, at in list(self._sent_at.items()) if other > sequence}
        if response.heartbeat_interval_milliseconds:
            assigned = min(max(response.heartbeat_interval_milliseconds / 1000, 0.1), 3600)
            if self.acknowledged and assigned != self._interval_seconds:
                self._state.log(f"{self._server} asks for a heartbeat every {assigned:g} s")
            self._interval_seconds = assigned
        changes: dict[str, Any] = {"acknowledged_at": now, "interval_seconds": self._interval_seconds}
        if sent_at is not None:
            changes["round_trip_seconds"] = now - sent_at
            self._measured_microseconds = max(round((now - sent_at) * 1e6), 1)
        if not self.acknowledged:
            self.acknowledged = True
            changes |= {"phase": "connected", "reason": "", "sessions": self._state.view().link.sessions + 1}
            self._state.log(f"connected to {self._server}, a heartbeat every {self._interval_seconds:g} s")
        self._state.update_link(**changes)


def keep_connected(state: NodeState, identity: Identity, server: str, interval_seconds: float) -> None:
    """Body of the heartbeat thread: one session after the other, with backoff between them, until the node is closed."""
    delays = backoff()
    state.wait(state.newest_sequence, FIRST_SAMPLE_SECONDS)  # a box appears with its readings, and without them if they hang
    while not state.is_closed():
        state.update_link(phase="connecting", unary=False)
        session = Session(state, server, interval_seconds)
        try:
            session.run()
            return
        except SessionEnded as ended:
            reason, taken = str(ended), ended.code is grpc.StatusCode.ALREADY_EXISTS
        if session.acknowledged:
            delays = backoff()
        if taken and identity.given:
            state.fail(f"{reason}: stop the other one, or give this one another --id")
            return
        if taken:
            state.rename(identity.redraw())
            reason += f": this node is {identity.node_id} now"
        delay = next(delays)
        if not state.is_closed():
            state.log(f"{reason}; next try in {delay:.1f} s", "warning")
            state.update_link(
                phase="waiting", reason=reason, last_error=reason, retry_at=state.clock() + delay, round_trip_seconds=None
            )
            state.wait(lambda: False, delay)


# ---- The screen: pure functions of a view, a size and a time ----


def render(view: View, width: int, height: int, wall: float, clock: float) -> list[Line]:
    """A frame: exactly `height` lines of `width` cells. `wall` is the time of day in seconds, `clock` the monotonic one."""
    if width < SMALLEST_WIDTH or height < SMALLEST_HEIGHT:
        return fit_lines([[(f"too small: {width}x{height}, needs {SMALLEST_WIDTH}x{SMALLEST_HEIGHT}", "")]], width, height)
    room = height - 3  # without header and footer
    panels = node_panels(Subject(view.info, view.sample, view.processes, view.history), width, room - min(7, room // 6))
    log = log_panel(view.log, width, room - len(panels))
    frame = fit_lines([*header(view, width, wall, clock), *panels, *log], width, height - 1)
    return [*frame, fit_line([(" q", "bold"), (" quit", "dim")], width)]


def header(view: View, width: int, wall: float, clock: float) -> list[Line]:
    """Two lines: who this is, and how its link to the server is."""
    info = view.info
    about = " · ".join(visible(text) for text in (info.hostname, info.host.model, info.notice) if text)
    time_of_day = time.strftime(" %H:%M:%S ", time.localtime(wall))
    left = fit_line([(f" {view.node_id}", "bold"), (f"  {about}", "dim")], width - len(time_of_day))
    return [[*left, (time_of_day, "dim")], link_line(view, clock)]


def link_line(view: View, clock: float) -> Line:
    """The link's state: a glyph, a word, and what one wants to know of it."""
    link = view.link
    if link.phase == "connected":
        round_trip = "" if link.round_trip_seconds is None else f" · round trip {link.round_trip_seconds * 1000:.1f} ms"
        calls = " · unary calls" if link.unary else ""
        line: Line = [(" ● connected", "green"), (f" to {view.server}{round_trip} · every {link.interval_seconds:g} s{calls}", "")]
        if view.sample_age_seconds > SLOW_READING_SECONDS + 2 * view.interval_seconds:
            line.insert(0, (f" sensors silent for {show_seconds(view.sample_age_seconds)} ", "bold yellow"))
        return line
    if link.phase == "waiting":
        wait = f"{max(link.retry_at - clock, 0):.1f} s"
        return [(" ○ disconnected", "bold red"), (f" next try in {wait} · {link.reason}", "")]
    return [(" ◐ connecting", "yellow"), (f" to {view.server}", "")]


LOG_STYLES = {"info": "", "warning": "yellow", "error": "bold red", "debug": "dim"}


def log_panel(log: Sequence[LogLine], width: int, room: int) -> list[Line]:
    """The newest lines of the log that fit, the newest last."""
    if room < 3:
        return log_lines(log, room)
    lines = log_lines(log, room - 2)
    return box("Log", lines + [[]] * (room - 2 - len(lines)), width)


def log_lines(log: Sequence[LogLine], count: int) -> list[Line]:
    """The last `count` lines."""
    newest = log[-count:] if count > 0 else ()
    return [
        [(time.strftime("%H:%M:%S ", time.localtime(line.time)), "dim"), (line.text, LOG_STYLES[line.level])] for line in newest
    ]


def screenshots(folder: pathlib.Path) -> None:
    """docs/node.svg: a simulated box after some minutes, drawn by the real functions."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    seconds = itertools.count()
    hardware = SimulatedHardware(seed=1, clock=lambda: next(seconds))
    state = NodeState("Node-8821", "10.0.0.5:50051", make_info(hardware, ""), 1.0, clock=lambda: 0.0)
    for sequence in range(1, HISTORY_SAMPLES + 1):
        state.publish(take_sample(hardware, sequence, 0, lambda: 0.0))
    log = (
        LogLine(1_800_000_000, "info", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),
        LogLine(1_800_000_311, "warning", "10.0.0.5:50051 broke the connection; next try in 0.7 s"),
        LogLine(1_800_000_313, "info", "connected to 10.0.0.5:50051, a heartbeat every 1 s"),
    )
    link = Link(phase="connected", sessions=2, round_trip_seconds=0.0012, interval_seconds=1)
    view = state.view()._replace(log=log, link=link)
    save_svg(render(view, 150, 45, 1_800_000_400, 0), "node.pyz", folder / "node.svg")


# ---- The program ----


def show_screen(state: NodeState, inputs: Inputs, no_color: bool, frames_per_second: float) -> None:
    """The main thread with a terminal: a frame is drawn only when something changed."""
    with Screen(no_color) as screen:
        drawn, due = None, 0.0
        while not inputs.signal and not state.is_closed():
            now = state.clock()
            tenths = 10 if state.is_waiting() else 1  # the countdown shows tenths, the clock seconds
            current = (state.version(), screen.size(), int(now * tenths))
            if current != drawn and now >= due:
                screen.draw(render(state.view(), *screen.size(), time.time(), now))
                drawn, due = current, max(due + 1 / frames_per_second, now)
            keys = inputs.wait((due if current != drawn else (current[2] + 1) / tenths) - state.clock())
            if "q" in keys:
                return
            if "suspend" in keys:
                screen.suspend(inputs)
                drawn = None


def print_lines(state: NodeState, printed: int, as_json: bool) -> int:
    """Print what the log has after the first `printed` lines; return how many it has now."""
    count, lines = state.log_since(printed)
    for line in lines:
        if as_json:
            print(json.dumps({"time": round(line.time, 3), "event": line.level, "text": line.text}), flush=True)
        else:
            print(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time)), line.text, flush=True)
    return count


def reading_json(node_id: str, info: pb.NodeInfo, sample: pb.Sample) -> str:
    """A reading as one line of JSON, in protobuf's JSON mapping with the proto's own field names."""
    info_json, sample_json = (json_format.MessageToDict(message, preserving_proto_field_name=True) for message in (info, sample))
    return json.dumps({"time": round(time.time(), 3), "node_id": node_id, "info": info_json, "sample": sample_json})


def run_headless(state: NodeState, inputs: Inputs, as_json: bool) -> int:
    """The main thread without a terminal: a line an event, with --json also one a sample. Returns the lines printed."""
    printed = sequence = 0
    while not inputs.signal and not state.is_closed():
        printed = print_lines(state, printed, as_json)
        if as_json and state.newest_sequence() != sequence:
            view = state.view()
            sequence = view.sample.sequence
            print(reading_json(view.node_id, view.info, view.sample), flush=True)
        inputs.wait(1)
    return printed


def print_once(hardware: Hardware, node_id: str, as_json: bool) -> None:
    """--once: two readings, since the processor's load and the network's rates are means between two."""
    started_at = time.monotonic()
    info = make_info(hardware, os.urandom(8).hex())
    take_sample(hardware, 1, started_at, time.monotonic)
    time.sleep(0.5)
    sample = take_sample(hardware, 2, started_at, time.monotonic)
    if as_json:
        print_whole(reading_json(node_id, info, sample))
        return
    subject = Subject(info, sample, hardware.processes(), b"")
    texts = (info.hostname, info.host.model, info.host.operating_system, info.notice)
    about = " · ".join(visible(text) for text in texts if text)
    lines: list[Line] = [[(f"{node_id}  {about}", "")]]
    if info.devices:
        lines += device_table(subject, 140)
    lines += [[(f" {label:8}{text}", "")] for label, _, text, _ in host_readings(subject)]
    lines.append([(f" {host_words(subject)}", "")])
    print_whole(writable(re.sub(r" +$", "", plain(lines), flags=re.MULTILINE)))


def print_whole(text: str) -> None:
    """Print, and be sure of it. Raises Failure where there is no room."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        raise Failure(f"cannot write: {(error.strerror or str(error)).lower()}") from error


def guarded(state: NodeState, debug: bool, body: Callable[..., None], *arguments: Any) -> threading.Thread:
    """A started daemon thread whose death ends the program with its reason, not in silence."""

    def run() -> None:
        try:
            body(*arguments)
        except Exception as error:
            detail = traceback.format_exc() if debug else "run with --debug for more, and please report it"
            state.fail(f"{body.__name__} failed: {type(error).__name__}: {error}; {detail}")

    thread = threading.Thread(target=run, name=body.__name__, daemon=True)
    thread.start()
    return thread


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Exits with 2 when it can't be understood."""

    def node_id(text: str) -> str:
        try:
            return check_node_id(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    def server(text: str) -> Endpoint:
        endpoint = parse_endpoint(text)
        if not endpoint.port:
            raise argparse.ArgumentTypeError(f"{text!r} has no port from 1 to 65535")
        return endpoint

    def hardware(text: str) -> str:
        if text not in ("auto", "nvml", "host", "simulated"):
            raise argparse.ArgumentTypeError(f"{text!r} is none of auto, nvml, host, simulated")
        return text

    parser = Options(
        prog="node",
        description="The agent of Edge Compute Node: shows this box's hardware, and reports it to a server.",
        epilog="examples:\n"
        "  node.pyz --server 10.0.0.5                      report to a server, with a screen here\n"
        "  node.pyz --server 10.0.0.5 --headless           the same without a screen, for a service\n"
        "  node.pyz --once --json                          one reading as JSON; no server needed\n"
        "  node.pyz --hardware simulated --seed 3          a box that does not exist\n"
        "each option can also be set in the environment, by the name in brackets; a flag beats it",
    )
    parser.option("--server", "where to report (default localhost:50051)", type=server, default="localhost", metavar="HOST[:PORT]")
    parser.option("--id", "name of this node, up to 63 characters (default Node-1234, from the machine's id)", type=node_id)
    parser.option(
        "--hardware", "auto, nvml, host or simulated (default auto: NVIDIA GPUs if there are any)", type=hardware, default="auto"
    )
    parser.option("--seed", "of simulated hardware: which box, its id and its course (default random)", type=int, metavar="NUMBER")
    parser.option(
        "--interval", "seconds from one reading to the next (default 1)", type=parse_seconds, default="1", metavar="SECONDS"
    )
    parser.switch("--headless", "no screen: one plain line an event; by itself where stdout is no terminal")
    parser.switch("--once", "read the hardware once, print it, and exit")
    parser.switch("--json", "with --once and --headless: JSON, one object a line")
    parser.option(
        "--fps", "frames a second at most, less for a slow line (default 60)", type=parse_fps, default="60", metavar="RATE"
    )
    parser.switch("--no-color", "no colours (also with NO_COLOR set)")
    parser.switch("--debug", "tracebacks, and more in the log")
    parser.add_argument("--version", action="version", version=version_text("node"), help="version, Python and target")
    options = parser.parse_args(argv)
    if options.json and not (options.once or options.headless or not is_screen()):
        parser.error("--json needs --once or --headless")
    if options.seed is not None and options.hardware != "simulated":
        parser.error("--seed is for --hardware simulated")
    return options


def run(options: argparse.Namespace) -> int:
    """The program after its command line. Raises Failure."""
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    hardware = open_hardware(options.hardware, seed)
    identity = Identity(options.id, random.Random(seed) if options.hardware == "simulated" else None)
    if options.once:
        print_once(hardware, identity.node_id, options.json)
        return 0
    server = str(options.server)
    state = NodeState(identity.node_id, server, make_info(hardware, os.urandom(8).hex()), options.interval)
    state.log(f"this is {identity.node_id}, for the server at {server}")
    if hardware.notice:
        state.log(hardware.notice, "warning")
    screen = is_screen() and not options.headless
    printed = 0
    with Inputs(keyboard=screen) as inputs:
        state.on_change = inputs.wake
        threads = [
            guarded(state, options.debug, keep_sampling, hardware, state, options.interval),
            guarded(state, options.debug, keep_connected, state, identity, server, options.interval),
        ]
        try:
            try:
                if screen:
                    show_screen(state, inputs, options.no_color, options.fps)
                else:
                    printed = run_headless(state, inputs, options.json)
            finally:
                state.close()
                for thread in threads:
                    thread.join(GOODBYE_SECONDS + 0.5)
            if screen:
                printed = state.log_since(0)[0] - 1  # the last word
            print_lines(state, printed, options.json and not screen)
        except OSError:  # the terminal or the pipe is gone
            abandon_stdout()
            inputs.signal = inputs.signal or (HANGUP if screen else BROKEN_PIPE)
    if state.failure:
        return 1
    return 128 + inputs.signal if inputs.signal else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent; return its exit code: 0, 1 for a failure, 2 for the command line, 128 + the signal that ended it."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that is not UTF-8 must not end the program
    options = parse_options(argv)
    try:
        return run(options)
    except Failure as failure:
        if options.debug:
            raise
        print(f"node: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        abandon_stdout()
        return 128 + BROKEN_PIPE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
