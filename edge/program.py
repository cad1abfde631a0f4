"""What both programs are as processes: their version, what they print, and the one way in which they end."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import platform
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from edge import limits

if TYPE_CHECKING:
    import argparse

VERSION = "0.1.0"
FRAMES_PER_SECOND = 60  # at most; a frame is drawn only when something changed
FAILED = 1  # exit codes; 2 is argparse's, for a command line that can't be understood
SIGNALLED = 128  # and the number of the signal
LOOK_SECONDS = 0.5  # after which a write that still waits is looked at; and again
HANGUP, INTERRUPT, BROKEN_PIPE = 1, 2, 13  # signals, by number: Windows does not name them all


class Failure(Exception):
    """What ends the program with exit code 1 and this one line: what is wrong, and what to do next."""


class OutputClosed(Exception):
    """Nobody reads stdout any more: the program ends without a word, as by the signal that goes with it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def main_of(
    program: str,
    parse_options: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Run a program; return its exit code: what `run` returns, 1 for a failure, 128 + the signal that ended it.

    Raises SystemExit as argparse does: with 0 after --help and --version, with 2 for the command line.
    """
    prepare_streams()
    debug = False
    try:
        try:
            options = parse_options(argv)
            debug = options.debug
            if lacking := limits.lacking():
                raise Failure(lacking)
            return run(options)
        except KeyboardInterrupt:
            abandon_stdout()
            raise
        finally:
            with writing():
                sys.stdout.flush()
    except KeyboardInterrupt:
        return SIGNALLED + INTERRUPT
    except OutputClosed as closed:
        abandon_stdout()
        return SIGNALLED + closed.signal_number
    except Exception as error:
        if isinstance(error, (ImportError, SyntaxError)) and not isinstance(error, ModuleNotFoundError) and is_packed():
            raise  # a .pyz mends its libraries (pyz/bootstrap.py)
        abandon_stdout()
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError):
            error = Failure(missing(program, error))
        elif reached := limits.reached(error):
            error = Failure(reached)
        unexpected = "" if isinstance(error, Failure) else f"{type(error).__name__} (see --debug, and please report it): "
        print(f"{program}: {unexpected}{error}", file=sys.stderr)
        return FAILED


def is_packed() -> bool:
    """Whether this runs from a .pyz: it tells its target and where its libraries lie through the environment."""
    return "EDGE_TREE" in os.environ


def missing(program: str, error: ModuleNotFoundError) -> str:
    """What to do where a library is not there: a .pyz has not each of them for each target, but the system may."""
    package = str(error.name).partition(".")[0]
    where = f"{program}.pyz has not got for {os.environ.get('EDGE_TARGET')}" if is_packed() else "is not there"
    how = f"install python3-{package} with the system's packages, or {package} with pip for {sys.executable}"
    return f"what was asked for needs Python's package {package}, which {where}: {how}"


def prepare_streams() -> None:
    """Whatever was done to stdin, stdout and stderr before the start, they can be used."""
    if None in (sys.stdin, sys.stdout, sys.stderr):  # closed (`>&-`): as if it led to /dev/null
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # what is opened next must not have its number: libraries of C write to 1 and 2
        os.close(descriptor)
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  # for as long as we live
    for stream in (sys.stdout, sys.stderr) if os.name == "posix" else ():
        with contextlib.suppress(OSError):  # where a write that would wait fails instead: others have left it so
            os.set_blocking(stream.fileno(), True)
    if isinstance(sys.stdout.buffer, io.RawIOBase):  # PYTHONUNBUFFERED: what a signal cuts off would be lost there, and we flush
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.buffer), sys.stdout.encoding)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that is not UTF-8 must not end the program


def put(text: str, file: TextIO | None = None) -> None:
    """Print a line, to stdout if not to `file`, at once. Raises OutputClosed when its reader is gone, Failure when it is full."""
    with writing():
        print(text, file=file, flush=True)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around each write to a terminal, pipe or file: makes OutputClosed or Failure of the system's errors.

    While it waits for a reader, SIGALRM comes each LOOK_SECONDS, if it has a handler.
    """
    set_alarm(LOOK_SECONDS)
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed(BROKEN_PIPE) from error
    except OSError as error:
        if error.errno == errno.EIO:  # the terminal was closed
            raise OutputClosed(HANGUP) from error
        raise Failure(f"cannot write: {(error.strerror or str(error)).lower()}") from error
    finally:
        set_alarm(0)


def set_alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer") and callable(signal.getsignal(signal.SIGALRM)):  # Windows has neither
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def abandon_stdout() -> None:
    """What is still in stdout's buffer goes nowhere, else Python complains of it once more when it ends, or waits for a reader."""
    with contextlib.suppress(OSError, ValueError):
        turn_to_nowhere(sys.stdout)


def turn_to_nowhere(stream: TextIO) -> None:
    """What is written there from now on is lost, a write that a signal interrupts included. Raises OSError."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def is_screen() -> bool:
    """Whether stdout is a terminal that can show a full screen, and may: 0 in TTY_COMPATIBLE or TTY_INTERACTIVE forbids it."""
    forbidden = "0" in (os.environ.get("TTY_COMPATIBLE"), os.environ.get("TTY_INTERACTIVE"))
    return sys.stdout.isatty() and not forbidden and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def is_kept(stream: TextIO) -> bool:
    """Whether what is written there stays where others may read it later: in a file, or systemd's journal (systemd.exec,
    $JOURNAL_STREAM)."""
    with contextlib.suppress(OSError, ValueError):
        status = os.fstat(stream.fileno())
        return stat.S_ISREG(status.st_mode) or os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def time_stamp(wall: float) -> str:
    """A moment (wall clock, seconds) in a line of a log, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


@functools.lru_cache(maxsize=1000)
def version_numbers(text: str) -> tuple[int, ...]:
    """What a version is compared by: (0, 2) of "0.2.0" and "v0.2-rc1". () where it begins with no number."""
    match = re.match(r"v?(\d{1,9}(?:\.\d{1,9}){0,7})(?!\d)", text.strip().lower(), re.ASCII)
    numbers = [int(part) for part in match[1].split(".")] if match else []
    while numbers[1:] and not numbers[-1]:
        del numbers[-1]
    return tuple(numbers)


def version_text(program: str) -> str:
    """What --version says."""
    where = "target {EDGE_TARGET}, unpacked in {EDGE_TREE}".format_map(os.environ) if is_packed() else "from source"
    return f"{program} {VERSION} (Python {platform.python_version()}, {where})"
