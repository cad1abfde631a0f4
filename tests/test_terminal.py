"""The terminal: keys by their names, signals, and what a terminal without Unicode gets."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edge.terminal import ASCII_ONLY, MAX_COLUMNS, MAX_LINES, Inputs, Screen, writable
from tests.fixtures.processes import Terminal, eventually

Open = Callable[..., Terminal]


# ---- Keys ----


READ_KEYS = """
import sys
from edge.terminal import Inputs
with Inputs(keyboard=True) as inputs:
    print("ready", flush=True)
    while not inputs.received:
        for key in inputs.wait(60):
            print(f"<{key}>", flush=True)
sys.exit(inputs.exit_code())
"""


def test_keys_and_signals_of_a_real_terminal(terminal: Open) -> None:
    screen = terminal("-c", READ_KEYS)
    screen.shows("ready")
    for pressed, name in (("a", "<a>"), ("\x1b[5~", "<page up>"), ("\x1b", "<escape>"), ("機", "<機>"), ("\x15", "<ctrl-u>")):
        screen.press(pressed)
        screen.shows(name)
    assert "a<a>" not in screen.text()  # no echo
    screen.press("\x03")
    assert screen.wait() == 130
    assert termios.tcgetattr(screen.slave)[:4] == screen.before[:4]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A pseudo-terminal as this process's stdin; its other end."""
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield master
    with contextlib.suppress(OSError):  # the test has closed it
        os.close(master)


def test_keys_that_come_at_once_are_read_at_once(typed: int) -> None:
    with Inputs(keyboard=True) as inputs:
        assert inputs.wait(0) == []
        os.write(typed, b"j\x1b[B\r")
        assert inputs.wait(10) == ["j", "down", "enter"]
        assert not inputs.received


def test_what_is_unfinished_is_waited_for_by_the_wait_itself(typed: int) -> None:
    with Inputs(keyboard=True) as inputs:
        os.write(typed, b"\x1b")
        assert inputs.wait(10) == []
        assert inputs.wait(10) == ["escape"]
        os.write(typed, b"\xe6")
        assert inputs.wait(10) == []
        os.write(typed, b"\xa9\x9f\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\q")
        assert inputs.wait(10) == ["機", "q"]


def test_what_is_no_key_does_nothing(terminal: Open) -> None:
    screen = terminal("-c", READ_KEYS)
    screen.shows("ready")
    screen.press("\x1b]11;rgb:1e1e/1e1e/1e1e\x1b\\\x1b[<35;81;7M\x1b[M#q!\x1b[?1;2c\0")  # a late answer, the mouse
    screen.press("\x1b[<65;81;7M\x1b[200~state:online\rq\rq\x1b[201~z")
    screen.shows("<z>")
    assert re.findall(r"<.*>", screen.text()) == ["<wheel down>", "<paste:state:online q q>", "<z>"]


def test_the_mouse_is_switched_off_and_pastes_are_marked(terminal: Open) -> None:
    screen = terminal("node.py", "--server", "127.0.0.1:1", "--hardware", "simulated")
    screen.shows("connecting|disconnected")
    assert b"\x1b[?1000;1002;1003;1004;1005;1006;1015l\x1b[?2004h" in screen.raw
    screen.press("q")
    assert screen.wait() == 0
    assert eventually(screen.is_restored)


def test_bytes_that_come_apart_are_one_key(terminal: Open) -> None:
    screen = terminal("-c", READ_KEYS)
    screen.shows("ready")
    most_seconds = 1.0
    while most_seconds > 0.03:  # a machine under load may not write so fast; then it was Escape, and two letters
        most_seconds = 0.0
        for byte in ("\x1b", "[", "B"):
            begun = time.monotonic()
            screen.press(byte)
            time.sleep(0.005)
            most_seconds = max(most_seconds, time.monotonic() - begun)
    screen.shows("<down>")


def test_without_the_keyboard_what_is_typed_stays_for_the_shell(typed: int) -> None:
    with Inputs(keyboard=False) as inputs:
        os.write(typed, b"ls\n")
        assert inputs.wait(0.1) == []
    assert sys.stdin.readline() == "ls\n"


def test_a_terminal_that_was_closed_is_a_hangup(typed: int) -> None:
    with Inputs(keyboard=True) as inputs:
        os.close(typed)
        assert inputs.wait(10) == []
        assert inputs.exit_code() == 129


def test_ctrl_z_is_only_noted_while_the_screen_is_there(typed: int) -> None:
    before = signal.getsignal(signal.SIGTSTP)
    with Inputs(keyboard=True) as inputs:
        os.kill(os.getpid(), signal.SIGTSTP)
        assert inputs.wait(0.1) == []
        assert inputs.wants_suspend
        assert not inputs.received
    assert signal.getsignal(signal.SIGTSTP) is before


# ---- Signals ----


@pytest.fixture(autouse=True)
def interrupt_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_signals_are_noted_and_the_handlers_are_restored() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    with Inputs(keyboard=False):
        assert not {*map(signal.getsignal, numbers)} & {*before}
    assert [signal.getsignal(number) for number in numbers] == before
    for number in numbers:
        with Inputs(keyboard=False) as inputs:
            assert inputs.exit_code() == 0
            begun = time.monotonic()
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
            assert inputs.wait(30) == []
            assert time.monotonic() - begun < 15  # a signal ends the wait
            assert inputs.received == number
            assert inputs.exit_code() == 128 + number
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN, *before[1:]]  # it ends


def test_a_second_interrupt_is_the_same_for_a_moment_and_then_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with Inputs(keyboard=False) as inputs:
        monkeypatch.setattr("edge.terminal.SAME_SECONDS", 60.0)
        os.kill(os.getpid(), signal.SIGTERM)
        eventually(lambda: inputs.received)
        os.kill(os.getpid(), signal.SIGINT)
        assert inputs.wait(0) == []
        monkeypatch.setattr("edge.terminal.SAME_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert inputs.received == signal.SIGTERM


def test_any_thread_ends_the_wait_and_may_do_so_too_late() -> None:
    with Inputs(keyboard=False) as inputs:
        begun = time.monotonic()
        threading.Timer(0.1, inputs.wake).start()
        assert inputs.wait(30) == []
        assert time.monotonic() - begun < 15
        for _ in range(100_000):  # more than the socket holds
            inputs.wake()
        assert inputs.wait(0) == []
    inputs.wake()  # nobody waits any more


# ---- Without Unicode ----


def test_every_block_and_border_has_a_character_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = "".join(map(chr, ASCII_ONLY))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert writable(drawn).isascii()
    assert len(writable(drawn)) == len(drawn)
    assert writable("█▌··│ 12°C") == "##..| 12oC"
    for encoding in ("utf-8", "UTF-8", "utf-16"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert writable(drawn) == drawn


def test_a_terminal_that_says_it_is_huge_is_drawn_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    with Inputs(keyboard=False) as inputs:
        screen = Screen(inputs, no_color=True)
        for said, drawn in (((65535, 65535), (MAX_COLUMNS, MAX_LINES)), ((65535, 1), (MAX_COLUMNS, 1)), ((80, 24), (80, 24))):
            monkeypatch.setattr("os.get_terminal_size", lambda *_, said=said: said)
            assert screen.size() == drawn
