"""The terminal: keys and signals that come in, frames that go out."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import sys

from edge.drawing import Line
from edge.program import HANGUP, SIGNALLED, OutputClosed, abandon_stdout, writing

KEY_NAMES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end", "\x1b[7~": "home", "\x1b[8~": "end",
    "\x1b": "escape", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x15": "ctrl-u",
}  # fmt: skip
KEY = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)
ASCII_ONLY = str.maketrans("█▉▊▋▌▍▎▏─│╭╮╰╯·—…°●◐○✗◌×↑↓�▁▂▃▄▅▆▇←→", "#####----|++++.-~o*o.x.x^v?___--==<>")


def writable(text: str) -> str:
    """`text` as stdout can show it: drawn with ASCII where its encoding has no blocks and borders."""
    return text if (sys.stdout.encoding or "").lower().startswith("utf") else text.translate(ASCII_ONLY)


class Inputs:
    """Keys and signals, waited for together by the main thread.

    The handlers of SIGINT, SIGTERM and SIGHUP only note their number; a second SIGINT raises KeyboardInterrupt. Everything is
    restored at the end. With `keyboard`, stdin is read key by key if it is a terminal (termios; not on Windows), and Ctrl-Z only
    sets `wants_suspend`: the screen has to go first.
    """

    def __init__(self, keyboard: bool) -> None:
        self.received = 0  # the number of the signal that ends the program; 0: none has come
        self.wants_suspend = False
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
        self.wants_suspend = False
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
        self.wants_suspend = True

    def _note(self, number: int, _frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

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
        watched = [self._wake, sys.stdin] if self._keyboard else [self._wake]
        ready, _, _ = select.select(watched, [], [], max(seconds, 0))
        if self._wake in ready:
            self._wake.recv(4096)
        if sys.stdin not in ready:
            return []
        with contextlib.suppress(OSError):  # EIO: the terminal was closed
            if pressed := os.read(sys.stdin.fileno(), 4096):
                return [KEY_NAMES.get(key, key) for key in KEY.findall(pressed.decode(errors="replace"))]
        self.received = self.received or HANGUP
        return []


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
        self._console = Console(no_color=no_color or None, highlight=False)
        self._colors = ColorSystem.STANDARD if self._console.color_system else None
        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._codes: dict[str, tuple[str, str]] = {"": ("", "")}
        self._drawn: list[Line] = []
        self._size = (0, 0)

    def __enter__(self) -> Screen:
        with writing():
            self._live.start()
        self._write("\x1b[?7l")  # a character wider than we think must not wrap into the next line
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self._console.file.write("\x1b[?7h")
            self._console.file.flush()
            self._live.stop()

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
        self.draw(lines)

    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal now; (0, 0) where it has none."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(sys.stdout.fileno())
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
