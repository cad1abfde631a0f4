"""What the tests share: real processes, a real pseudo-terminal read by a terminal emulator, and waiting for the thing itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyte
import pytest

ROOT = pathlib.Path(__file__).parent
T = TypeVar("T")


def eventually(condition: Callable[[], T], seconds: float = 15.0) -> T:
    """What `condition` returns as soon as it is true; fails when it is not within `seconds`, with what it was last."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {value!r}")
        time.sleep(0.02)
    return value


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change the programs' answers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "NO_COLOR"))}
    return {**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", **changes}


class Program:
    """A process whose output is read line by line while it runs."""

    def __init__(self, *argv: str, **environ: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env=environment(**environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def line(self, pattern: str, seconds: float = 15.0) -> re.Match[str]:
        """The first line that matches, as soon as it is there."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        deadline = time.monotonic() + seconds
        while not (match := found()):
            if time.monotonic() > deadline or (self.process.poll() is not None and not self._reader.is_alive() and not found()):
                pytest.fail(f"no line {pattern!r} in:\n" + "\n".join(self.lines[-30:]))
            time.sleep(0.02)
        return match

    def json_line(self, wanted: Callable[[Any], bool], seconds: float = 15.0) -> Any:
        """The first new JSON line that is wanted."""
        start = len(self.lines)

        def found() -> Any:
            lines = [json.loads(line) for line in self.lines[start:] if line.startswith("{")]
            return next((line for line in lines if wanted(line)), None)

        return eventually(found, seconds)

    def end(self, number: int = signal.SIGINT, seconds: float = 10.0) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.wait(seconds)

    def wait(self, seconds: float = 10.0) -> int:
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(10)


class Terminal:
    """A process on a pseudo-terminal of its own, read by a terminal emulator."""

    def __init__(self, *argv: str, columns: int = 160, lines: int = 45, **environ: str) -> None:
        self.master, self.slave = pty.openpty()
        self.raw = b""
        self._screen = pyte.Screen(max(columns, 1), max(lines, 1))
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._set_size(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [sys.executable, *argv],
            cwd=ROOT,
            env=environment(**environ),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # a controlling terminal: Ctrl-C is a byte there
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the test has closed it
            while data := os.read(self.master, 65536):
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self._screen.resize(lines, columns)
        self._set_size(columns, lines)

    def text(self) -> str:
        with self._lock:
            return "\n".join(self._screen.display)

    def cell(self, needle: str) -> Any:
        """The first cell of a text on the screen, with its colour."""
        with self._lock:
            for row, line in enumerate(self._screen.display):
                if needle in line:
                    return self._screen.buffer[row][line.index(needle)]
        raise AssertionError(f"{needle!r} is not on the screen")

    def shows(self, pattern: str, seconds: float = 15.0) -> re.Match[str]:
        """Wait until the screen matches."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text())):
            if time.monotonic() > deadline:
                pytest.fail(f"no {pattern!r} on the screen:\n{self.text()}")
            time.sleep(0.02)
        return match

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait(self, seconds: float = 10.0) -> int:
        return self.process.wait(seconds)

    def is_restored(self) -> bool:
        """Whether the terminal is as it was: main screen, cursor shown, line wrap, echo and line editing."""
        return (
            self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h") > -1
            and self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l") > -1
            and self.raw.rfind(b"\x1b[?7h") > self.raw.rfind(b"\x1b[?7l") > -1
            and termios.tcgetattr(self.slave)[:4] == self.before[:4]
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for end in (self.slave, self.master):
            with contextlib.suppress(OSError):
                os.close(end)


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Starts programs, and kills at the end what is left of them."""
    programs: list[Program] = []

    def run(*argv: str, **environ: str) -> Program:
        programs.append(Program(*argv, **environ))
        return programs[-1]

    yield run
    for program in programs:
        program.kill()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts programs on terminals, and kills at the end what is left of them."""
    terminals: list[Terminal] = []

    def run(*argv: str, columns: int = 160, lines: int = 45, **environ: str) -> Terminal:
        terminals.append(Terminal(*argv, columns=columns, lines=lines, **environ))
        return terminals[-1]

    yield run
    for opened in terminals:
        opened.close()
