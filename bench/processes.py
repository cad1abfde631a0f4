"""The measured processes: each on a core of its own, some on a terminal of their own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import pty
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Mapping

import psutil

from bench.figures import Failed

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
SCREEN_SIZE = (160, 50)
FRAME_MARK = b"\x1b[?2026h"  # each frame is one synchronized update


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change the programs' answers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "PYTHON", "NO_COLOR"))} | changes


class Terminal:
    """A pseudo-terminal with a reader that counts frames as they come."""

    def __init__(self, columns: int, lines: int) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._changed = threading.Condition()
        self._watched: bytes | None = None  # what was drawn since the last key, while someone waits for it
        self._frames = self._bytes = 0
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        tail = b""
        with contextlib.suppress(OSError):  # EIO: the program has ended
            while data := os.read(self._master, 65_536):
                with self._changed:
                    self._frames += (tail + data).count(FRAME_MARK)
                    self._bytes += len(data)
                    tail = data[-len(FRAME_MARK) + 1 :]
                    if self._watched is not None:
                        self._watched += data
                    self._changed.notify_all()

    def counts(self) -> tuple[int, int]:
        """Frames and bytes until now."""
        with self._changed:
            return self._frames, self._bytes

    def press(self, key: bytes, answer: bytes, seconds: float) -> float | None:
        """Press a key; return after how many seconds the answer was drawn, None if it was not."""
        with self._changed:
            self._watched = b""
        started = time.monotonic()
        os.write(self._master, key)
        with self._changed:
            answered = self._changed.wait_for(lambda: answer in (self._watched or b""), seconds)
            self._watched = None
        return time.monotonic() - started if answered else None

    def type(self, key: bytes) -> None:
        """Press a key, and look for nothing."""
        os.write(self._master, key)


class Program:
    """A process whose cost is measured, on a core of its own. It has this process's environment, and `variables`."""

    def __init__(
        self, *arguments: str, terminal: Terminal | None = None, core: int | None = None, variables: Mapping[str, str] = {}
    ) -> None:
        self.name = arguments[-1] if arguments[0] == "-c" else arguments[0]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with this object
        self._state = tempfile.TemporaryDirectory()  # of its own: neither the user's, nor that of the program before
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {SERVER_CORE if core is None else core})  # the child inherits it
        try:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment(TERM="xterm-256color", STATE_DIRECTORY=self._state.name, **variables),
                stdin=terminal.slave if terminal else subprocess.DEVNULL,
                stdout=terminal.slave if terminal else subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, before)
        self._psutil = psutil.Process(self.process.pid)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it as a user would; after ten seconds, with force."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._state.cleanup()

    def cpu_seconds(self) -> float:
        """User and system time so far of the whole process: Linux has a clock for it, to the nanosecond."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def main_thread_seconds(self) -> float:
        """The same of its main thread alone, which draws."""
        path = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/schedstat")
        return int(path.read_text().split()[0]) / 1e9

    def megabytes(self) -> float:
        return self._psutil.memory_info().rss / 1e6

    def threads(self) -> int:
        return self._psutil.num_threads()

    def is_connected(self) -> bool:
        return any(connection.status == psutil.CONN_ESTABLISHED for connection in self._psutil.net_connections())

    def wait_until_listening(self, port: int, seconds: float = 20) -> float:
        """Wait until it takes connections; return when. Raises Failed with its last words when it does not."""
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return time.monotonic()
            time.sleep(0.02)
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        raise Failed(f"{self.name} does not listen: {''.join(words)}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def role(function: Callable[..., None], *arguments: object) -> tuple[str, ...]:
    """The command line that calls a function of a module in a process of its own."""
    module = function.__module__
    return ("-c", f"import {module}; {module}.{function.__name__}(*{arguments!r})")


def headless(port: int, *options: str) -> tuple[str, ...]:
    return ("server.py", "--headless", "--listen", f"127.0.0.1:{port}", *options)


def raise_open_files() -> None:
    """A connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
