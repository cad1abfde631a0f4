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
import json
import logging
import math
import os
import pathlib
import platform
import random
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn
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
ASCII_ONLY = str.maketrans("█▉▊▋▌▍▎▏─│╭╮╰╯·—…°●◐○✗◌×↑↓�▁▂▃▄▅▆▇", "#####----|++++.-~o*o.x.x^v?___--==")

Span = tuple[str, str]  # text, and its style in rich's words ("bold red"); "" is the terminal's own
Line = list[Span]


class Failure(Exception):
    """What ends the program with exit code 1 and this one line: what is wrong, and what to do next."""


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
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def option(self, flag: str, about: str, **settings: Any) -> None:
        """Add an option that takes a value."""
        name = self._environment(flag)
        settings["default"] = os.environ.get(name, settings.get("default"))
        self.add_argument(flag, help=f"{about} [{name}]", **settings)

    def switch(self, flag: str, about: str) -> None:
        """Add an option that takes none."""
        name = self._environment(flag)
        on = os.environ.get(name, "").lower() not in ("", "0", "false", "no")
        self.add_argument(flag, action="store_true", default=on, help=f"{about} [{name}]")

    def error(self, message: str) -> NoReturn:
        flag = message.removeprefix("argument ").partition(":")[0]
        given = any(argument.partition("=")[0] == flag for argument in sys.argv)
        if flag.startswith("--") and not given and self._environment(flag) in os.environ:
            message += f" (from {self._environment(flag)} in the environment)"
        self.exit(2, f"{self.prog}: {message}\ntry {self.prog} --help\n")

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

    def wait(self, seconds: float) -> list[str]:
        """Wait until a key is pressed, a signal comes, or `seconds` have passed; return the keys by their names."""
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
        self._ascii = not (sys.stdout.encoding or "").lower().startswith("utf")
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
        return "".join(painted).translate(ASCII_ONLY) if self._ascii else "".join(painted)

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
NOT_REPORTED = 255  # in a history
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


def history_frame(head: tuple[float | None, float | None, float | None], info: pb.NodeInfo, sample: pb.Sample) -> bytes:
    """A sample, three bytes a row: utilization and memory in percent, temperature in °C. The node's row, then each device's."""
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


def extend_history(history: bytes, frame: bytes) -> bytes:
    """The last HISTORY_SAMPLES frames. All have one length: a history starts anew when the devices change."""
    return (history + frame)[-HISTORY_SAMPLES * len(frame) :]


def series(subject: Subject, row: int, column: int) -> bytes:
    """One curve of a history, oldest first. Row 0 is the node, 1 its first device; columns are utilization, memory, temperature."""
    return subject.history[3 * row + column :: 3 * (1 + len(subject.info.devices))]


# Bytes 0 to 100 as the eight blocks of a sparkline; 254 and less as a hundredth more; what is not reported as a space.
SPARKS = bytes(min(value * 8 // 101, 7) for value in range(255)) + b"\x08"
SPARK_CHARACTERS = dict(enumerate("▁▂▃▄▅▆▇█ "))


def sparkline(values: bytes, width: int) -> str:
    """The newest `width` values, the newest at the right, on a fixed scale from 0 to 100."""
    return values[-width:].translate(SPARKS).decode("latin-1").translate(SPARK_CHARACTERS).rjust(width)


def graph(values: bytes, width: int, height: int, style: str) -> list[Line]:
    """A curve in `height` lines, the newest at the right, on a fixed scale from 0 to 100."""
    newest = values[-width:]
    lines: list[Line] = []
    for level in range(height - 1, -1, -1):
        eighths = [
            0 if value == NOT_REPORTED else min(max(round(min(value, 100) * height * 8 / 100) - level * 8, 0), 8)
            for value in newest
        ]
        lines.append([("".join(" ▁▂▃▄▅▆▇█"[eighth] for eighth in eighths).rjust(width), style)])
    return lines


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
        graph_height = min((room - gauge_lines) // -(-count // columns), 10)
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
    received = reported(sample, "network_received_bytes_per_second")
    sent = reported(sample, "network_sent_bytes_per_second")
    words = [
        "" if celsius is None else show_celsius(celsius, None).strip(),
        "" if load is None else f"load {load:.2f} on {subject.info.host.cpu_count} CPUs",
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
ACKNOWLEDGE_SECONDS = 8.0  # a node gives its session up after 12 s and two intervals of silence
FIRST_MESSAGE_SECONDS = 10.0
MAX_MESSAGE_BYTES = 2**20
MAX_KEPT_BYTES = 2**16  # of one info, and of one sample: what a node can make this process keep
MAX_DEVICES = 128
MAX_TEXT = 256  # characters of any text that a node sends
FORGET_SECONDS = 24 * 3600.0
LOST_SECONDS = 10.0
DATA_FRAMES_PER_SECOND = 10  # heartbeats come all the time; keys are answered at once
GOODBYE_SECONDS = 2.0
WATCH_SECONDS = 0.2  # from one look at who is late to the next
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


class Row(NamedTuple):
    """A node as the registry knows it. Never changed: each heartbeat puts a new row in the place of the old one."""

    node_id: str
    address: str
    session: Session | None  # None: its stream is broken, or it said goodbye
    interval_seconds: float  # the cadence that this node was told
    heartbeat_at: float  # by the registry's clock, as is sample_at
    sample_at: float | None = None  # None: it has sent none
    info: pb.NodeInfo = pb.NodeInfo()
    sample: pb.Sample = pb.Sample()
    vitals: Vitals = Vitals()
    left: bool = False
    reason: str = ""  # why it has no session


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


def is_sane_device(device: pb.DeviceSample) -> bool:
    """Whether all of a device is within RANGES."""
    return (
        device.utilization_percent <= 100
        and device.memory_used_bytes <= 2**50
        and -100 <= device.temperature_celsius <= 500
        and device.power_milliwatts <= 10**8
        and device.fan_percent <= 1000
        and device.sm_clock_mhz <= 10**6
        and len(device.error) <= MAX_TEXT
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


def kept(part: Any, where: str) -> Any:
    """A copy of a part of a message, since the part alone would keep the whole message in memory. Raises Refused if it is large."""
    if part.ByteSize() > MAX_KEPT_BYTES:  # with fields that this version does not know
        raise Refused(f"{where} has {part.ByteSize()} bytes: it may have {MAX_KEPT_BYTES}")
    copy = type(part)()
    copy.CopyFrom(part)
    return copy


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


def check_sample(sample: pb.Sample) -> None:
    """Raises Refused, naming the first field that is out of its range."""
    check_count(sample.devices, "sample")
    if is_sane_host(sample.host) and all(map(is_sane_device, sample.devices)):
        return
    check_fields(sample.host, "sample.host")
    for index, device in enumerate(sample.devices):
        check_fields(device, f"sample.devices[{index}]")


def sample_of(request: pb.HeartbeatRequest) -> pb.Sample | None:
    """The checked sample of a message; the first version's nodes send one temperature and no more. Raises Refused."""
    if request.gpu_temp:
        check_fields(request, "heartbeat")
    if request.HasField("sample"):
        check_sample(request.sample)
        large = request.ByteSize() > MAX_KEPT_BYTES  # a backlog came along
        return kept(request.sample, "sample") if large else request.sample
    if request.gpu_temp:
        return pb.Sample(devices=[pb.DeviceSample(temperature_celsius=round(request.gpu_temp))])
    return None


UNKNOWN_DEVICE = pb.DeviceInfo()


def vitals_of(info: pb.NodeInfo, sample: pb.Sample) -> Vitals:
    """One pass over the devices: what matters most of them."""
    if not sample.devices:
        return host_vitals(info, sample)
    utilization = utilization_count = used = total = errors = 0
    fullest = celsius = limit = milliwatts = None
    infos = list(info.devices)
    for index, device in enumerate(sample.devices):
        reported = device.HasField
        known = infos[index] if index < len(infos) else UNKNOWN_DEVICE
        if device.error:
            errors += 1
        if reported("utilization_percent"):
            utilization += device.utilization_percent
            utilization_count += 1
        if reported("memory_used_bytes") and (capacity := known.memory_total_bytes):
            part = device.memory_used_bytes
            used += part
            total += capacity
            fullest = max(fullest or 0.0, part / capacity)
        if reported("temperature_celsius") and (celsius is None or device.temperature_celsius > celsius):
            celsius, limit = device.temperature_celsius, known.slowdown_temperature_celsius
        if reported("power_milliwatts"):
            milliwatts = (milliwatts or 0) + device.power_milliwatts
    mean = utilization / utilization_count / 100 if utilization_count else None
    return Vitals(mean, fullest, used, total, celsius, limit or None, milliwatts, errors)


def host_vitals(info: pb.NodeInfo, sample: pb.Sample) -> Vitals:
    """Of a box without devices: a Raspberry Pi has a processor and memory to watch."""
    host, total = sample.host, info.host.memory_total_bytes
    return Vitals(
        utilization=host.cpu_percent / 100 if host.HasField("cpu_percent") else None,
        memory=host.memory_used_bytes / total if total and host.HasField("memory_used_bytes") else None,
        celsius=host.temperature_celsius if host.HasField("temperature_celsius") else None,
    )


def changes_of(request: pb.HeartbeatRequest, info: pb.NodeInfo, now: float) -> dict[str, Any]:
    """What a message changes in its node's row, whose info was `info`. Raises Refused when a field is out of its range."""
    changes: dict[str, Any] = {"heartbeat_at": now}
    if request.HasField("info"):
        check_info(request.info)
        changes["info"] = info = kept(request.info, "info")
    sample = sample_of(request)
    if sample:
        age_milliseconds = max(request.clock_milliseconds - sample.taken_milliseconds, 0)
        changes |= {"sample": sample, "sample_at": now - age_milliseconds / 1000, "vitals": vitals_of(info, sample)}
    return changes


# ---- The registry: all nodes, under one lock ----


class Event(NamedTuple):
    """What happened to a node."""

    time: float  # wall clock, seconds
    kind: str  # a key of EVENT_STYLES
    node_id: str
    text: str


class Session:
    """One stream of one instance of a node; or, for unary heartbeats, what stands for it."""

    __slots__ = ("address", "close", "instance_id", "next_acknowledgement_at", "node_id", "sequence")

    def __init__(self, request: pb.HeartbeatRequest, address: str, close: Callable[[], object] | None) -> None:
        self.node_id = request.node_id
        self.instance_id = request.info.instance_id
        self.address = address
        self.close = close  # ends the stream, from any thread; None: unary heartbeats, which have none
        self.sequence = max((sample.sequence for sample in request.backlog), default=0)  # the newest sample that came
        self.next_acknowledgement_at = 0.0


class Registry:
    """All nodes. Both threads call it; every verb takes the lock briefly, and a snapshot is a list of rows that never change."""

    def __init__(self, interval_seconds: float, max_nodes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._interval_seconds = interval_seconds
        self._max_nodes = max_nodes
        self._beating = 0  # nodes that are not gone, as of the last watch
        self._gone: collections.deque[Row] = collections.deque()  # the lost and left ones, longest silent first: they give way
        self._told: dict[str, State] = {}  # the worse states that the log has already told
        self._events: collections.deque[Event] = collections.deque(maxlen=EVENTS_KEPT)
        self._event_count = 0
        self._complaints = (0, 0)  # second, and how many in it

    def open(self, request: pb.HeartbeatRequest, address: str, close: Callable[[], object] | None = None) -> Session:
        """Take a session's first message. Raises Refused: a bad id or field, a living holder of the id, a full server."""
        check_identity(request)
        now = self.clock()
        changes = changes_of(request, pb.NodeInfo(), now)
        session = Session(request, address, close)
        session.next_acknowledgement_at = now + random.uniform(0, ACKNOWLEDGE_SECONDS)  # spread: a fleet comes back at once
        with self._lock:
            holder = self._rows.get(session.node_id)
            self._check_free(holder, session, now)
            row = self._admit(session, request, holder, now)
            self._put(row._replace(**changes), session, request)
        return session

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

    def _admit(self, session: Session, request: pb.HeartbeatRequest, holder: Row | None, now: float) -> Row:
        """The row to start with: what the same instance does not bring along again is as it was."""
        row = Row(session.node_id, session.address, session, self._cadence_seconds(), now)
        back = False
        if holder:
            if holder.info.instance_id == session.instance_id:
                row = row._replace(info=holder.info, sample=holder.sample, sample_at=holder.sample_at, vitals=holder.vitals)
                back = not holder.left
            self._remove(holder)
        if holder and back:
            self._log("back", session.node_id, f"after {show_seconds(now - holder.heartbeat_at)}")
        else:
            hostname = f"{visible(request.info.hostname)}, " if request.info.hostname else ""
            self._log("joined", session.node_id, f"{hostname}{session.address}")
        return row

    def heartbeat(self, session: Session, request: pb.HeartbeatRequest) -> None:
        """Take one more message of a session. Raises Refused for a field out of its range, or when the session is over."""
        now = self.clock()
        with self._lock:
            info = self._held(session).info
        changes = changes_of(request, info, now)
        with self._lock:
            row = self._held(session)
            if self._told.pop(session.node_id, None):
                self._log("back", session.node_id, f"after {show_seconds(now - row.heartbeat_at)}")
            self._put(row._replace(**changes), session, request)

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
            raise Refused(f"another session of {session.node_id} has taken over", grpc.StatusCode.ABORTED)
        return row

    def _put(self, row: Row, session: Session, request: pb.HeartbeatRequest) -> None:
        session.sequence = request.sample.sequence or session.sequence
        if request.leaving:
            row = row._replace(left=True, session=None, reason="said goodbye")
            self._gone.append(row)
            self._log("left", row.node_id, row.reason)
        self._rows[row.node_id] = row

    def end(self, session: Session, reason: str) -> None:
        """A stream is over. Only its own row knows of it: a newer session's stays as it is."""
        with self._lock:
            row = self._rows.get(session.node_id)
            if row and row.session is session:
                self._rows[session.node_id] = row._replace(session=None, reason=reason)
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

    def snapshot(self) -> list[Row]:
        """All rows, as they are now."""
        with self._lock:
            return list(self._rows.values())

    def watch(self) -> None:
        """See what only time tells: who is late or lost, and who has been silent for a day. Called now and then."""
        now = self.clock()
        rows = self.snapshot()
        silent = [(row, state_of(row, now)) for row in rows if row.left or now - row.heartbeat_at > 3 * row.interval_seconds]
        gone = sorted((row for row, state in silent if state in (State.LOST, State.LEFT)), key=lambda row: row.heartbeat_at)
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
        self._registry.complain("error", "server", record.getMessage() + (f": {error!r}" if error else ""))


# ---- The network thread ----


def peer_address(peer: str) -> str:
    """gRPC's "ipv4:10.0.0.7:41234" or "ipv6:%5Bfd00::7%5D:41234" as an address a person reads, without the port."""
    address = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    return visible(address.removeprefix("::ffff:")) or visible(peer)


class Service(node_pb2_grpc.NodeServiceServicer):
    """The two calls of node.proto."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._streams: dict[asyncio.Task[None], Refused | None] = {}  # and why the server ends it, when it does
        self._closing = False

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        """One heartbeat, one answer."""
        address = peer_address(context.peer())
        try:
            return self._registry.acknowledgement(self._registry.take_unary(request, address))
        except Refused as refused:
            self._log_refusal(request.node_id, address, refused)
            await context.abort(refused.code, str(refused))
            raise AssertionError("abort raises") from refused

    async def StreamHeartbeats(self, _: Any, context: Any) -> None:
        """A session: one stream from its first message to its end."""
        task = asyncio.current_task()
        assert task
        self._streams[task] = GOING_AWAY if self._closing else None
        try:
            await self._hold_session(context, task)
        except Refused as refused:
            await context.abort(refused.code, str(refused))
        except asyncio.CancelledError:
            refusal = self._streams[task]
            if not refusal:  # the node is gone
                raise
            await context.abort(refusal.code, str(refusal))
        finally:
            del self._streams[task]

    async def _hold_session(self, context: Any, task: asyncio.Task[None]) -> None:
        address, node_id = peer_address(context.peer()), ""
        session, reason = None, "the stream broke"
        try:
            first = await self._first_message(context)
            node_id = first.node_id
            taken_over = Refused(f"another session of {node_id} has taken over", grpc.StatusCode.ABORTED)
            close = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, self._end, task, taken_over)
            session = self._registry.open(first, address, close)
            await self._take_heartbeats(session, context)
        except (Refused, DecodeError) as error:
            refused = error if isinstance(error, Refused) else Refused(f"this is no heartbeat: {error}")
            reason = str(refused)
            self._log_refusal(node_id, address, refused)
            raise refused from error
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

    async def _take_heartbeats(self, session: Session, context: Any) -> None:
        """Until the goodbye, or the node half-closes. The first message and the goodbye are answered at once, others at times."""
        registry = self._registry
        await context.write(registry.acknowledgement(session))
        while (request := await context.read()) is not grpc.aio.EOF:
            registry.heartbeat(session, request)
            now = registry.clock()
            if now >= session.next_acknowledgement_at or request.leaving:
                session.next_acknowledgement_at = now + ACKNOWLEDGE_SECONDS
                await context.write(registry.acknowledgement(session))
            if request.leaving:
                return

    def _log_refusal(self, node_id: str, address: str, refused: Refused) -> None:
        self._registry.complain("refused", node_id, f"{address}: {refused} ({refused.code.name})")

    def _end(self, task: asyncio.Task[None], refusal: Refused) -> None:
        if task in self._streams:
            self._streams[task] = refusal
            task.cancel()

    async def close(self) -> None:
        """End every session with a status that says: come back soon."""
        self._closing = True
        streams = list(self._streams)
        for task in streams:
            self._end(task, GOING_AWAY)
        if streams:
            await asyncio.wait(streams, timeout=GOODBYE_SECONDS / 2)


class Network:
    """The network thread: grpc.aio's event loop with all the streams.

    A synchronous gRPC server pins one thread a stream, and stops admitting nodes near 4,000.
    """

    def __init__(self, registry: Registry, listen: Sequence[Endpoint] | None) -> None:
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
        await self._stop.wait()
        closing = asyncio.create_task(server.stop(GOODBYE_SECONDS / 2))  # no new connections from here on
        await self._service.close()
        await closing

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
}

COLUMNS = (
    Column("NODE", 14, 0),
    Column("HOSTNAME", 16, 5),
    Column("STATE", 14, 1),
    Column("GPUS", 26, 7),
    Column("UTILIZATION", 16, 3),
    Column("MEMORY", 16, 4),
    Column("USED", 21, 9, ">"),
    Column("TEMP", 6, 1, ">"),
    Column("POWER", 7, 6, ">"),
    Column("AGE", 6, 2, ">"),
    Column("ADDRESS", 16, 10),
)


class Fleet(NamedTuple):
    """All that a frame shows, taken at one moment."""

    rows: list[Row]  # in the order of the screen
    now: float  # by the registry's clock
    wall: float
    listening: str
    events: list[Event]
    first: int = 0  # the first row on the screen


def natural(row: Row) -> list[tuple[int, str]]:
    """Sorts Node-9 before Node-10."""
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(re.split("([0-9]+)", row.node_id))]


def render(fleet: Fleet, width: int, height: int) -> list[Line]:
    """A frame: exactly `height` lines of `width` cells."""
    if width < SMALLEST_WIDTH or height < SMALLEST_HEIGHT:
        return fit_lines([[(f"too small: {width}x{height}, needs {SMALLEST_WIDTH}x{SMALLEST_HEIGHT}", "")]], width, height)
    log_height = event_panel_height(height)
    shown = rows_shown(height)
    table = table_panel(fleet, width, shown)
    events = event_panel(fleet.events, width, log_height)
    return [*fit_lines([*header(fleet, width), *table, *events], width, height - 1), footer(fleet, width, shown)]


def event_panel_height(height: int) -> int:
    """Lines of the event log, its border counted: none on a low terminal."""
    return 0 if height < 16 else max(height // 5, 5)


def rows_shown(height: int) -> int:
    """Rows of the table: what header, borders, titles, log and footer leave."""
    return max(height - 2 - 3 - event_panel_height(height) - 1, 1)


def header(fleet: Fleet, width: int) -> list[Line]:
    """Two lines: nodes by state, and what the fleet is and does."""
    counts = collections.Counter(state_of(row, fleet.now) for row in fleet.rows)
    line: Line = [(" Edge fleet", "bold"), (f"  {len(fleet.rows):,} node{'s' * (len(fleet.rows) != 1)}", "")]
    for state, (glyph, style) in STATE_STYLES.items():
        if counts[state]:
            line.append((f"  {glyph} {counts[state]:,} {state.value.lower()}", style))
    time_of_day = time.strftime(" %H:%M:%S ", time.localtime(fleet.wall))
    return [[*fit_line(line, width - len(time_of_day)), (time_of_day, "dim")], totals(fleet)]


def totals(fleet: Fleet) -> Line:
    """What the living nodes have and do, all together."""
    living = [row for row in fleet.rows if state_of(row, fleet.now) in (State.ONLINE, State.LATE)]
    if not living:
        return [(f" listening on {fleet.listening}: waiting for nodes", "")]
    gpus = sum(len(row.info.devices) for row in living)
    busy = [row.vitals.utilization for row in living if row.vitals.utilization is not None]
    used, total = sum(row.vitals.memory_used_bytes for row in living), sum(row.vitals.memory_total_bytes for row in living)
    watts = [row.vitals.milliwatts for row in living if row.vitals.milliwatts is not None]
    hottest = max(living, key=lambda row: -math.inf if row.vitals.celsius is None else row.vitals.celsius)
    line: Line = [(f" {gpus:,} GPU{'s' * (gpus != 1)} · utilization {show_percent(sum(busy) / len(busy) if busy else None)}", "")]
    if total:
        line.append((f" · memory {show_bytes(used)} of {show_bytes(total)}", ""))
    if watts:
        line.append((f" · power {show_watts(sum(watts))}", ""))
    if hottest.vitals.celsius is not None:
        heat = show_celsius(hottest.vitals.celsius, hottest.vitals.limit_celsius).strip()
        style = heat_style(hottest.vitals.celsius, hottest.vitals.limit_celsius)
        line += [(" · hottest ", ""), (f"{heat} {hottest.node_id}", style)]
    return line


def table_panel(fleet: Fleet, width: int, shown: int) -> list[Line]:
    """The table in its border: a line a node."""
    columns = widen(choose_columns(COLUMNS, width - 4), width - 4)
    lines: list[Line] = [[(" ".join(fit(column.title, column.width, column.align) for column in columns), "bold dim")]]
    lines += [row_line(row, columns, fleet.now) for row in fleet.rows[fleet.first : fleet.first + shown]]
    if not fleet.rows:
        lines += empty_table(fleet.listening)
    return box(f"Nodes {position(fleet, shown)}".strip(), lines + [[]] * (shown + 1 - len(lines)), width)


def position(fleet: Fleet, shown: int) -> str:
    """Which rows are on the screen, when not all are."""
    if len(fleet.rows) <= shown:
        return ""
    return f"{fleet.first + 1:,} to {min(fleet.first + shown, len(fleet.rows)):,} of {len(fleet.rows):,}"


def empty_table(listening: str) -> list[Line]:
    """What to do first."""
    port = listening.rpartition(":")[2]
    address = "THIS-HOST" + (f":{port}" if port != str(DEFAULT_PORT) else "")
    return [[], [("No node yet. On each box:", "")], [], [(f"    python3 node.pyz --server {address}", "bold")]]


def widen(columns: list[Column], width: int) -> list[Column]:
    """Give the names what is left over."""
    spare = width - sum(column.width + 1 for column in columns) + 1
    names = [column.title for column in columns if column.title in ("NODE", "HOSTNAME", "GPUS")]
    each = min(spare // max(len(names), 1), 20)
    return [column._replace(width=column.width + each) if column.title in names else column for column in columns]


def row_line(row: Row, columns: Sequence[Column], now: float) -> Line:
    """One node. Values of a node that is not online are grey: stale is never shown as live."""
    state = state_of(row, now)
    spans = row_spans(row, state, now)
    line: Line = []
    for column in columns:
        line += [*align(spans[column.title], column), (" ", "")]
    if state is not State.ONLINE:
        line = [(text, style if text[:1] in "◐○✗◌" else "dim") for text, style in line]
    return line


def row_spans(row: Row, state: State, now: float) -> dict[str, Line]:
    """What stands in each column for a node."""
    vitals, info = row.vitals, row.info
    glyph, style = STATE_STYLES[state]
    used = (
        f"{show_bytes(vitals.memory_used_bytes)} of {show_bytes(vitals.memory_total_bytes)}"
        if vitals.memory_total_bytes
        else MISSING
    )
    return {
        "NODE": [(row.node_id, "bold")],
        "HOSTNAME": [(visible(info.hostname) or MISSING, "")],
        "STATE": [(f"{glyph} {state.value}", style)],
        "GPUS": [(f"{vitals.errors} failed ", "bold red")] * bool(vitals.errors) + [(device_names(info), "")],
        "UTILIZATION": [*meter(vitals.utilization, 10, "green"), (fit(show_percent(vitals.utilization), 6, ">"), "")],
        "MEMORY": [*meter(vitals.memory, 10, "cyan"), (fit(show_percent(vitals.memory), 6, ">"), "")],
        "USED": [(used, "")],
        "TEMP": [(show_celsius(vitals.celsius, vitals.limit_celsius), heat_style(vitals.celsius, vitals.limit_celsius))],
        "POWER": [(show_watts(vitals.milliwatts), "")],
        "AGE": [age_span(row, now)],
        "ADDRESS": [(row.address, "dim")],
    }


def age_span(row: Row, now: float) -> Span:
    """Age of the heartbeat; of the sample, and yellow, where the box is alive and its sensors hang."""
    silence = max(LOST_SECONDS, 5 * row.interval_seconds)
    if row.sample_at is not None and row.heartbeat_at - row.sample_at > silence:
        return (f"~{show_seconds(now - row.sample_at)}", "bold yellow")
    return (show_seconds(now - row.heartbeat_at), "dim")


def device_names(info: pb.NodeInfo) -> str:
    """ "8× NVIDIA H200", "NVIDIA L4, NVIDIA A2", or the host's model where there is no device."""
    names = collections.Counter(visible(device.name, 64) for device in info.devices)
    return (
        ", ".join(f"{count}× {name}" if count > 1 else name for name, count in names.items()) or visible(info.host.model) or MISSING
    )


def event_panel(events: Sequence[Event], width: int, height: int) -> list[Line]:
    """The newest events, the newest last."""
    if not height:
        return []
    lines = [event_line(event) for event in events[-(height - 2) :]]
    return box("Events", lines + [[]] * (height - 2 - len(lines)), width)


def event_line(event: Event) -> Line:
    """Time, what, who, and why."""
    time_of_day = time.strftime("%H:%M:%S ", time.localtime(event.time))
    return [(time_of_day, "dim"), (fit(event.kind, 13), EVENT_STYLES[event.kind]), (f"{event.node_id}  {event.text}", "")]


def footer(fleet: Fleet, width: int, shown: int) -> Line:
    """The keys."""
    keys = [("q", "quit")]
    if len(fleet.rows) > shown:
        keys += [("↑↓ PgUp PgDn Home End", "scroll")]
    line: Line = [span for key, action in keys for span in ((f" {key}", "bold"), (f" {action} ", "dim"))]
    right = f"{fleet.listening} "
    return [*fit_line(line, width - len(right)), (right, "dim")] if width > 70 else fit_line(line, width)


def scroll(first: int, keys: Iterable[str], rows: int, shown: int) -> int:
    """The first row on the screen after some keys."""
    for key in keys:
        steps = {"up": -1, "down": 1, "page up": -shown, "page down": shown, "home": -rows, "end": rows}
        first = min(max(first + steps.get(key, 0), 0), max(rows - shown, 0))
    return min(first, max(rows - shown, 0))


def screenshots(folder: pathlib.Path) -> None:
    """docs/server.svg: a fleet with a node in each state, drawn by the real functions."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    rows = [example_row(index) for index in range(24)]
    wall = 1_800_000_000.0
    events = [
        Event(wall - 70, "joined", "Node-1004", "edge-04, 10.0.0.104"),
        Event(wall - 31, "disconnected", "Node-1011", "the stream broke"),
        Event(wall - 21, "lost", "Node-1011", "no heartbeat for 10s; the stream broke"),
        Event(wall - 9, "left", "Node-1017", "said goodbye"),
        Event(wall - 4, "late", "Node-1006", "no heartbeat for 3s"),
    ]
    fleet = Fleet(sorted(rows, key=natural), 1000.0, wall, "[::]:50051", events)
    save_svg(render(fleet, 140, 36), "server.pyz", folder / "server.svg")


def example_row(index: int) -> Row:
    """A node of the README's picture."""
    kinds = (("NVIDIA H200", 8, 143771, 700, 87), ("NVIDIA GeForce RTX 4090", 1, 24564, 450, 90), ("NVIDIA L4", 2, 23034, 72, 96))
    name, count, memory_mib, watts, limit = kinds[index % 3]
    chance = random.Random(index)
    info = pb.NodeInfo(hostname=f"edge-{index:02}", instance_id=str(index))
    sample = pb.Sample(sequence=1)
    for number in range(count):
        load = chance.random()
        info.devices.add(index=number, name=name, memory_total_bytes=memory_mib * 2**20, slowdown_temperature_celsius=limit)
        sample.devices.add(
            utilization_percent=round(100 * load),
            memory_used_bytes=round(memory_mib * 2**20 * (0.1 + 0.8 * load)),
            temperature_celsius=round(32 + 50 * load),
            power_milliwatts=round(watts * 1000 * (0.1 + 0.9 * load)),
        )
    age = {6: 4.0, 11: 31.0, 17: 9.0}.get(index, chance.random())
    return Row(
        node_id=f"Node-{1000 + index}",
        address=f"10.0.0.{100 + index}",
        session=None if index in (11, 17) else Session(pb.HeartbeatRequest(), "", None),
        interval_seconds=1.0,
        heartbeat_at=1000 - age,
        sample_at=1000 - age,
        info=info,
        sample=sample,
        vitals=vitals_of(info, sample),
        left=index == 17,
    )


# ---- The program ----


def show_screen(registry: Registry, network: Network, inputs: Inputs, listening: str, no_color: bool) -> None:
    """The main thread with a terminal: ten frames a second, and one at once for each key; only changed lines are sent."""
    first, watch_due = 0, registry.clock()
    with Screen(no_color) as screen:
        while not inputs.signal and network.is_alive():
            if registry.clock() >= watch_due:
                registry.watch()
                watch_due = registry.clock() + WATCH_SECONDS
            rows = sorted(registry.snapshot(), key=natural)
            width, height = screen.size()
            first = scroll(first, (), len(rows), rows_shown(height))
            events = registry.events_since(0)[1]
            screen.draw(render(Fleet(rows, registry.clock(), time.time(), listening, events, first), width, height))
            keys = inputs.wait(1 / DATA_FRAMES_PER_SECOND)
            if "q" in keys:
                return
            if "suspend" in keys:
                screen.suspend(inputs)
            first = scroll(first, keys, len(rows), rows_shown(height))


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
        "heartbeat_age_seconds": round(now - row.heartbeat_at, 3),
        "sample_age_seconds": None if row.sample_at is None else round(now - row.sample_at, 3),
        "info": json_format.MessageToDict(row.info, preserving_proto_field_name=True),
        "sample": json_format.MessageToDict(row.sample, preserving_proto_field_name=True),
    }


def run_headless(registry: Registry, network: Network, inputs: Inputs, as_json: bool) -> None:
    """The main thread without a terminal: a line an event, or with --json a snapshot of the fleet each second."""
    printed, snapshot_due = 0, registry.clock()
    while not inputs.signal and network.is_alive():
        registry.watch()
        if not as_json:
            printed = print_events(registry, printed)
        elif registry.clock() >= snapshot_due:
            print(snapshot_json(registry), flush=True)
            snapshot_due = max(snapshot_due + 1, registry.clock())
        inputs.wait(WATCH_SECONDS)


def print_events(registry: Registry, printed: int) -> int:
    """Print the events after the first `printed`; return how many there are now."""
    count, events = registry.events_since(printed)
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
        print(f"{when} {event.kind} {event.node_id}: {event.text}", flush=True)
    return count


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
        "--max-nodes", "nodes at most, the lost ones counted (default 25000)", type=count, default="25000", metavar="COUNT"
    )
    parser.switch("--headless", "no screen: one plain line an event; by itself where stdout is no terminal")
    parser.switch("--json", "no screen: the whole fleet as one line of JSON each second")
    parser.switch("--no-color", "no colours (also with NO_COLOR set)")
    parser.switch("--debug", "tracebacks")
    parser.add_argument("--version", action="version", version=version_text("server"), help="version, Python and target")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    """The program after its command line. Raises Failure."""
    registry = Registry(options.interval, options.max_nodes)
    network = Network(registry, options.listen)
    if options.debug:
        logging.basicConfig(level=logging.ERROR)
    logging.getLogger().addHandler(ErrorEvents(registry))
    screen = is_screen() and not options.headless and not options.json
    with Inputs(keyboard=screen) as inputs:
        if warning := raise_open_files(options.max_nodes):
            registry.complain("warning", "server", warning)
        listening = ", ".join(map(str, network.start()))
        try:
            if screen:
                show_screen(registry, network, inputs, listening, options.no_color)
            else:
                print(f"listening on {listening}", file=sys.stderr if options.json else sys.stdout, flush=True)
                run_headless(registry, network, inputs, options.json)
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
