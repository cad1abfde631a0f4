"""What both programs are as processes: their version, what they print, and the one way in which they end."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import argparse

VERSION = "0.1.0"
FRAMES_PER_SECOND = 60  # at most; a frame is drawn only when something changed
FAILED = 1  # exit codes; 2 is argparse's, for a command line that can't be understood
SIGNALLED = 128  # and the number of the signal
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
    open_missing_streams()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that is not UTF-8 must not end the program
    debug = False
    try:
        try:
            options = parse_options(argv)
            debug = options.debug
            return run(options)
        finally:
            with writing():
                sys.stdout.flush()
    except KeyboardInterrupt:
        return SIGNALLED + INTERRUPT
    except OutputClosed as closed:
        abandon_stdout()
        return SIGNALLED + closed.signal_number
    except Exception as error:
        abandon_stdout()
        if debug:
            raise
        unexpected = "" if isinstance(error, Failure) else f"{type(error).__name__} (see --debug, and please report it): "
        print(f"{program}: {unexpected}{error}", file=sys.stderr)
        return FAILED


def open_missing_streams() -> None:
    """A stream that was closed before the start (`>&-`) is None: what goes there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # for as long as we live


def put(text: str, file: TextIO | None = None) -> None:
    """Print a line, to stdout if not to `file`, at once. Raises OutputClosed when its reader is gone, Failure when it is full."""
    with writing():
        print(text, file=file, flush=True)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around each write to a terminal, pipe or file: makes OutputClosed or Failure of the system's errors."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed(BROKEN_PIPE) from error
    except OSError as error:
        if error.errno == errno.EIO:  # the terminal was closed
            raise OutputClosed(HANGUP) from error
        raise Failure(f"cannot write: {(error.strerror or str(error)).lower()}") from error


def abandon_stdout() -> None:
    """What is still in stdout's buffer goes nowhere, else Python complains of it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_screen() -> bool:
    """Whether stdout is a terminal that can show a full screen."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def time_stamp(wall: float) -> str:
    """A moment (wall clock, seconds) in a line of a log, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


def version_text(program: str) -> str:
    """What --version says. The .pyz names its target and where its libraries lie, through the environment."""
    target, tree = os.environ.get("EDGE_TARGET"), os.environ.get("EDGE_TREE")
    where = f"target {target}, unpacked in {tree}" if tree else "from source"
    return f"{program} {VERSION} (Python {platform.python_version()}, {where})"
