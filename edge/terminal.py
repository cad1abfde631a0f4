"""The terminal: keys and signals that come in, frames that go out."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from edge.drawing import Line
from edge.keyboard import Keyboard
from edge.program import HANGUP, SIGNALLED, Failure, OutputClosed, abandon_stdout, turn_to_nowhere, writing

MAX_COLUMNS, MAX_LINES = 2000, 1000  # that are drawn: a terminal of 65535 x 65535, as some say, would take all memory
SAME_SECONDS = 0.5  # a second SIGINT that comes sooner is the first: npm, uv and other wrappers send two
# Ours in the alternate screen: a character wider than we think must not wrap into the next line; what others left on is off, mouse
# (1000 to 1003, its encodings 1005, 1006 and 1015) and focus (1004); a paste is marked as one (2004).
TAKE_TERMINAL = "\x1b[?7l\x1b[?1000;1002;1003;1004;1005;1006;1015l\x1b[?2004h"
GIVE_TERMINAL = "\x1b[?2026l\x1b[?2004l\x1b[?7h"
GIVE_UP_TERMINAL = f"{GIVE_TERMINAL}\x1b[m\x1b[?25h\x1b[?1049l".encode()  # and what rich would do
ASCII_ONLY = str.maketrans("█▉▊▋▌▍▎▏─│╭╮╰╯·—…°●◐○✗◌×↑↓�▁▂▃▄▅▆▇←→≥", "#####----|++++.-~o*o.x.x^v?___--==<>>")


def writable(text: str) -> str:
    """`text` as stdout can show it: drawn with ASCII where its encoding has no blocks and borders."""
    return text if (sys.stdout.encoding or "").lower().startswith("utf") else text.translate(ASCII_ONLY)


class Inputs:
    """Keys and signals, waited for together by the main thread.

    The handlers of SIGINT, SIGTERM, SIGHUP and SIGQUIT only note their number; a second SIGINT raises KeyboardInterrupt. A signal
    that was ignored at the start (nohup, `&` in a script) stays so. All is restored at the end; when a signal ended the program,
    SIGINT is ignored from then on. With `keyboard`, stdin is read key by key if it is a terminal (termios; not on Windows), and
    Ctrl-Z only sets `wants_suspend`: the screen has to go first.

    A write that nobody reads (a full pipe, Ctrl-S) must not keep a signal waiting, and Python takes up each write again after it.
    So, when a write waits, an alarm comes each LOOK_SECONDS; once a signal has come, it turns what takes no more to nowhere: the
    write is taken up there, and all goes on to its ordinary end. Windows has no such alarm.
    """

    def __init__(self, keyboard: bool) -> None:
        self.received = 0  # the number of the signal that ends the program; 0: none has come
        self.wants_suspend = False
        self.last_words = b""  # what a terminal that is given up has to be told
        self._received_at = -math.inf
        self._reads_keys = keyboard and sys.stdin is not None and sys.stdin.isatty() and os.name == "posix"
        self._keyboard = Keyboard()
        self._before: list[Any] | None = None  # the terminal's attributes, while the keyboard is ours
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Inputs:
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        wanted = dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"), self._note) | {"SIGALRM": self._look_for_readers}
        if self._reads_keys:
            wanted |= {"SIGTSTP": self._note_suspend, "SIGWINCH": lambda *_: None}  # that it wakes is enough
        for name, handler in wanted.items():
            number = getattr(signal, name, None)  # Windows has not all of them
            if number and (signal.getsignal(number) is not signal.SIG_IGN or name == "SIGALRM"):
                self._handlers[number] = signal.signal(number, handler)
        self._take_keyboard()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_keyboard()
        with contextlib.suppress(OutputClosed, Failure), writing():  # main_of meets them too, but then there is no alarm
            sys.stdout.flush()
        signal.set_wakeup_fd(self._wakeup)
        if self.received:  # the program ends: the second SIGINT of a wrapper must not end it once more
            self._handlers[signal.SIGINT] = signal.SIG_IGN
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._wake.close()
        self._woken.close()

    def suspend(self) -> None:
        """Stop this process until the shell's `fg`, with the keyboard as the shell wants it."""
        self.wants_suspend = False
        self._give_keyboard()
        self._stop_here()
        self._take_keyboard()

    def _stop_here(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        select.select([self._wake], [], [], 0.1)  # a signal that another thread was woken by is known here too by now

    def _take_keyboard(self) -> None:
        """Without waiting until the terminal has taken what was written: it may stand still."""
        # In the background (`bg`) this would stop us, where a signal does not end it.
        while self._reads_keys and not self.received and not is_in_foreground():
            self._stop_here()
        if self._reads_keys and not self.received:
            import termios
            import tty

            with contextlib.suppress(termios.error):  # the terminal is gone
                before = termios.tcgetattr(sys.stdin)
                tty.setcbreak(sys.stdin, termios.TCSANOW)
                self._before = before
                termios.tcflush(sys.stdin, termios.TCIFLUSH)  # typed before there was something to see

    def _give_keyboard(self) -> None:
        if self._before:
            import termios

            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)
            self._before = None

    def _note_suspend(self, _number: int, _frame: object) -> None:
        self.wants_suspend = True

    def _note(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
        elif number == signal.SIGINT and now > self._received_at + SAME_SECONDS:
            raise KeyboardInterrupt

    def _look_for_readers(self, _number: int, _frame: object) -> None:
        for stream in (sys.stdout, sys.stderr) if self.received else ():
            with contextlib.suppress(OSError, ValueError):
                if not takes_more(stream.fileno()):
                    if self.last_words and stream is sys.stdout:
                        words, self.last_words = self.last_words, b""  # once: they may wait as well, until the next alarm
                        give_up_terminal(stream.fileno(), words)
                    turn_to_nowhere(stream)

    def take(self, closed: OutputClosed) -> None:
        """Nobody reads stdout any more: that ends the program as a signal does, if none has come before."""
        self.received = self.received or closed.signal_number
        abandon_stdout()

    def exit_code(self) -> int:
        """128 + the signal that came; 0 without one."""
        return SIGNALLED + self.received if self.received else 0

    def wake(self) -> None:
        """From any thread: end the wait."""
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            self._woken.send(b"\0")

    def wait(self, seconds: float) -> list[str]:
        """Wait for a key, a signal, another size, `wake`, or `seconds`; return the keys pressed, by their names."""
        watched = [self._wake, sys.stdin] if self._reads_keys else [self._wake]
        seconds = min(seconds, self._keyboard.due - time.monotonic())  # an unfinished key is finished by the wait itself
        ready, _, _ = select.select(watched, [], [], max(seconds, 0))
        if self._wake in ready:
            self._wake.recv(4096)
        if sys.stdin not in ready:
            return self._keyboard.rest(time.monotonic())
        with contextlib.suppress(OSError):  # EIO: the terminal was closed
            if sent := os.read(sys.stdin.fileno(), 4096):
                return self._keyboard.feed(sent, time.monotonic())
        self.received = self.received or HANGUP
        return []


def is_in_foreground() -> bool:
    """Whether the shell has given us the terminal."""
    with contextlib.suppress(OSError):  # no shell rules it
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    return True


def takes_more(descriptor: int) -> bool:
    """Whether a write would not wait."""
    return bool(select.select([], [descriptor], [], 0)[1])


def give_up_terminal(descriptor: int, words: bytes) -> None:
    """Have a terminal that stands still (Ctrl-S, a line that is too slow) forget what it was told, and tell it these last words."""
    import termios

    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # in the background, this would stop us
    with contextlib.suppress(termios.error):
        termios.tcflush(descriptor, termios.TCOFLUSH)
        termios.tcflow(descriptor, termios.TCOOFF)  # TCOON alone goes on only after this
        termios.tcflow(descriptor, termios.TCOON)
    if takes_more(descriptor):
        os.write(descriptor, words)


class Screen:
    """The terminal's alternate screen, kept by rich.Live, for frames that are lists of lines.

    rich renders a frame whole, at about 1.7 ms of processor for 45 lines; this sends only the lines that changed, inside one
    synchronized update (mode 2026), so that nothing flickers and a quiet screen costs nothing.
    """

    def __init__(self, inputs: Inputs, no_color: bool) -> None:
        from rich.color import ColorSystem
        from rich.console import Console
        from rich.live import Live

        self._inputs = inputs
        # That this is a screen is_screen has said: by rich's own rules it may not be, and then it keeps no alternate screen.
        self._console = Console(force_terminal=True, no_color=no_color or None, highlight=False)
        self._colors = ColorSystem.STANDARD if self._console.color_system else None
        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._codes: dict[str, tuple[str, str]] = {"": ("", "")}
        self._drawn: list[Line] = []
        self._size = (0, 0)

    def __enter__(self) -> Screen:
        if self._inputs.received:  # it ended before it had the terminal, or while the shell had it
            return self
        self._inputs.last_words = GIVE_UP_TERMINAL
        with writing():
            self._live.start()
        self._write(TAKE_TERMINAL)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._live.is_started:
            return
        with contextlib.suppress(OutputClosed, Failure), writing():  # the terminal is gone
            self._console.file.write(GIVE_TERMINAL)
            self._console.file.flush()
            self._live.stop()
        self._inputs.last_words = b""

    def keys(self, seconds: float) -> list[str]:
        """Wait for a key, a signal, another size, `wake`, or `seconds`; return the keys pressed. Ctrl-Z is done here."""
        keys = self._inputs.wait(seconds)
        if self._inputs.wants_suspend:
            self._suspend()
        return keys

    def _suspend(self) -> None:
        """Leave the terminal to the shell, and take it again at `fg`."""
        self.__exit__()
        self._inputs.suspend()
        lines, self._size = self._drawn, (0, 0)
        self.__enter__()
        if self._live.is_started:
            self.draw(lines)

    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal now; (0, 0) where it has none."""
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
            return min(columns, MAX_COLUMNS), min(lines, MAX_LINES)
        return (0, 0)

    def draw(self, lines: list[Line]) -> None:
        """Show a frame. Raises OutputClosed when the terminal is gone."""
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
        with writing():
            self._console.file.write(text)
            self._console.file.flush()
