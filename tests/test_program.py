"""What both programs are as processes: they end in one way, whatever becomes of their output."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import psutil
import pytest

from edge.program import VERSION, Failure, OutputClosed, is_screen, main_of, put, time_stamp, version_text
from tests.fixtures.processes import ROOT, Program, Terminal, environment, eventually, fill, waits_to_write
from tests.fixtures.sessions import unary

Start = Callable[..., Program]
Open = Callable[..., Terminal]

SIMULATED = ("--hardware", "simulated", "--seed", "1")
SERVER = ("server.py", "--listen", "127.0.0.1:0", "--headless")
NODE = ("node.py", "--headless", "--server", "127.0.0.1:1", *SIMULATED)
ONCE = ("node.py", "--once", *SIMULATED)
ALL = (SERVER, NODE, ONCE, (*NODE, "--json"), (*ONCE, "--json"))
TOLD = tuple((*program, option) for program in (SERVER, NODE) for option in ("--version", "--help"))  # what argparse prints
BOTH = pytest.mark.parametrize("program", [SERVER, NODE], ids=["server", "node"])
SCREENS = pytest.mark.parametrize(
    ("program", "shown"),
    [
        (("server.py", "--listen", "127.0.0.1:0"), "listening on"),
        (("node.py", "--server", "127.0.0.1:1", *SIMULATED), "disconnected"),
    ],
    ids=["server", "node"],
)
BUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])  # as containers have it


def name_of(program: tuple[str, ...]) -> str:
    return program[0].removesuffix(".py")


def ended_each(*programs: tuple[str, ...], stdout: int | IO[str]) -> list[tuple[tuple[str, ...], tuple[int, str]]]:
    """How each ends that writes there, with a buffer and, as containers have it, without. Some at a time."""
    cases = [(program, unbuffered) for program in programs for unbuffered in ("", "1")]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda case: (case[0], ended(case[0], stdout, unbuffered=case[1])), cases))


def ended(program: tuple[str, ...], stdout: int | IO[Any], *more: str, unbuffered: str = "") -> tuple[int, str]:
    """Exit code and stderr of a program that writes there."""
    done = subprocess.run(
        [sys.executable, *program, *more],
        cwd=ROOT,
        env=environment(PYTHONUNBUFFERED=unbuffered),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


# ---- Nobody can be told ----


@pytest.fixture
def full() -> Iterator[IO[str]]:
    """A file on a disk that is full."""
    with open("/dev/full", "w") as file:  # noqa: PTH123
        yield file


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_full_disk_is_one_line(full: IO[str]) -> None:
    for program, end in ended_each(*ALL, *TOLD, stdout=full):
        assert end == (1, f"{name_of(program)}: cannot write: no space left on device\n"), program


@BOTH
def test_the_command_line_is_judged_before_the_disk(program: tuple[str, ...], full: IO[str]) -> None:
    code, said = ended(program, full, "--nonsense")
    assert code == 2
    assert said.startswith(f"{name_of(program)}: unrecognized arguments: --nonsense\n")


def test_a_reader_that_is_gone_ends_it_without_a_word(unread: int) -> None:
    for program, end in ended_each(*ALL, *TOLD, stdout=unread):
        assert end == (141, ""), program


@pytest.mark.parametrize("program", [("server.py", "--listen", "127.0.0.1:0", "--json"), (*NODE, "--json")], ids=["server", "node"])
def test_a_reader_that_goes_while_it_runs(program: tuple[str, ...]) -> None:
    with closed("", *program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith("{")
        process.stdout.close()
        assert process.wait(20) == 141
        told = r"(\S+ \S+ listening on|On each box:|Open to whoever|Look at it here:|Its past is) .+\n"
        assert not re.sub(told, "", process.stderr.read())


def test_a_reader_that_goes_is_noticed_with_the_next_line() -> None:
    with closed("", *SERVER, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        address = process.stdout.readline().split()[-1]
        process.stdout.close()
        unary(address, node_id="box")
        assert process.wait(10) == 141
        assert process.stderr.read() == ""


@SCREENS
def test_a_terminal_that_is_closed_ends_it_as_a_hangup(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    screen = terminal(*program)
    screen.shows(shown)
    os.close(screen.slave)
    os.close(screen.master)
    assert screen.wait() == 129


# ---- Nobody reads ----


@pytest.fixture
def full_pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    fill(writing)
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("options", "number"), [([], signal.SIGTERM), (["--json"], signal.SIGHUP), ([], signal.SIGINT)], ids=["term", "hup", "int"]
)
def test_a_node_leaves_though_nobody_reads_its_lines(start: Start, full_pipe: int, options: list[str], number: int) -> None:
    server = start(*SERVER)
    address = server.line(r"listening on (\S+)")[1]
    node = ("node.py", "--headless", "--server", address, "--id", "box-1", *SIMULATED, *options)
    with closed("", *node, stdout=full_pipe, stderr=full_pipe) as process:
        server.line("joined box-1")
        eventually(lambda: waits_to_write(process.pid))
        process.send_signal(number)
        assert process.wait(10) == 128 + number
    server.line("left box-1")


@pytest.mark.parametrize(
    ("option", "number"),
    [("--headless", signal.SIGINT), ("--json", signal.SIGTERM), ("--headless", signal.SIGHUP)],
    ids=["int", "term", "hup"],
)
def test_a_server_says_goodbye_though_nobody_reads_its_lines(start: Start, full_pipe: int, option: str, number: int) -> None:
    with closed("", "server.py", option, "--listen", "127.0.0.1:0", stdout=full_pipe, stderr=full_pipe) as process:
        node = start("node.py", "--headless", "--server", listens(process.pid), *SIMULATED)
        node.line("connected to")
        eventually(lambda: waits_to_write(process.pid))
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        node.line("going away")


def test_one_reading_that_nobody_reads_is_interrupted(full_pipe: int) -> None:
    with closed("", *ONCE, stdout=full_pipe, stderr=full_pipe) as process:
        eventually(lambda: waits_to_write(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_who_reads_the_errors_still_has_them(full_pipe: int) -> None:
    with closed("", *SERVER[:-1], "--json", stdout=full_pipe, stderr=subprocess.PIPE) as process:
        eventually(lambda: waits_to_write(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        assert process.stderr
        assert process.stderr.read().endswith("stopped by SIGTERM\n")


@SCREENS
def test_a_terminal_that_nobody_reads_is_given_back(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    screen = terminal(*program)
    screen.shows(shown)
    with screen.unread():
        screen.process.send_signal(signal.SIGHUP)
        assert screen.wait() == 129
    assert eventually(screen.is_restored)


@SCREENS
def test_a_terminal_that_stands_still_is_given_back(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    screen = terminal(*program)
    screen.shows(shown)
    screen.press("\x13")  # Ctrl-S
    screen.resize(100, 30)
    eventually(lambda: waits_to_write(screen.process.pid))
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        screen.process.send_signal(number)
    assert screen.wait() in (143, 129)
    assert eventually(screen.is_restored)


def test_a_node_leaves_and_a_server_says_goodbye_though_nobody_reads_their_screens(terminal: Open) -> None:
    server = terminal("server.py", "--listen", "127.0.0.1:0")
    address = server.shows(r"listening on (127\.0\.0\.1:\d+)")[1]
    for number in (1, 2):
        node = terminal("node.py", "--server", address, "--id", f"box-{number}", *SIMULATED)
        node.shows("● connected")
    server.shows("● box-1")
    with node.unread():
        node.process.send_signal(signal.SIGTERM)
        assert node.wait() == 143
    server.shows("◌ box-2")
    with server.unread():
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 143


PUT_MUCH = """
import argparse, sys
from edge.program import main_of, put
from edge.terminal import Inputs
def run(_):
    with Inputs(keyboard=False):
        put("x" * 300_000)
    return 0
sys.exit(main_of("edge", lambda _: argparse.Namespace(debug=True), run, []))
"""


@BUFFERED
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "nonblocking"])
def test_a_slow_reader_gets_it_all(unbuffered: str, blocking: bool) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    with closed("", "-c", PUT_MUCH, stdout=writing, unbuffered=unbuffered) as process, os.fdopen(reading) as reader:
        os.close(writing)
        eventually(lambda: waits_to_write(process.pid))
        process.send_signal(signal.SIGALRM)  # sooner than by itself
        assert len(reader.read()) == 300_001
        assert process.wait(10) == 0


# ---- Whether there is a screen ----


@SCREENS
@pytest.mark.parametrize("environ", ["TERM=unknown", "TTY_COMPATIBLE=0"])
def test_plain_lines_where_there_can_be_no_screen(terminal: Open, program: tuple[str, ...], shown: str, environ: str) -> None:
    name, _, value = environ.partition("=")
    screen = terminal(*program, **{name: value})
    screen.shows("listening on" if shown == "listening on" else "next try in")
    screen.press("\x03")
    assert screen.wait() == 130
    assert b"\x1b" not in screen.raw


@pytest.mark.parametrize("name", ["TERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_who_forbids_a_screen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        for other in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        assert is_screen()
        for value in ("", "dumb", "unknown", "Unknown", "DUMB") if name == "TERM" else ("0",):
            monkeypatch.setenv(name, value)
            assert not is_screen()
        for value in ("linux", "vt100", "screen.xterm-256color") if name == "TERM" else ("1", ""):
            monkeypatch.setenv(name, value)
            assert is_screen()
    os.close(master)


@SCREENS
def test_a_screen_is_one_whatever_rich_thinks_of_it(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    screen = terminal(*program, FORCE_COLOR="")
    screen.shows(shown)
    assert screen.raw.startswith(b"\x1b[?1049h")
    screen.process.send_signal(signal.SIGTERM)
    assert screen.wait() == 143
    assert eventually(screen.is_restored)


@BOTH
def test_a_pipe_is_no_screen_even_if_told_so(program: tuple[str, ...]) -> None:
    environ = environment(TTY_COMPATIBLE="1", TTY_INTERACTIVE="1", FORCE_COLOR="1")
    command = [sys.executable, *(word for word in program if word != "--headless")]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        said = process.stdout.readline()
        process.terminate()
        assert b"\x1b" not in said + process.stdout.read()


@SCREENS
def test_a_terminal_of_no_size_is_waited_for(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    screen = terminal(*program, columns=0, lines=0)
    eventually(lambda: b"\x1b[?1049h" in screen.raw)
    screen.resize(80, 24)
    screen.shows(shown)
    screen.press("q")
    assert screen.wait() == 0


# ---- The terminal is given back ----


@SCREENS
@pytest.mark.parametrize(
    ("keys", "number", "code"), [("\x03", 0, 130), ("\x1c", 0, 131), ("", signal.SIGTERM, 143), ("", signal.SIGHUP, 129)]
)
def test_the_terminal_is_restored_however_it_ends(
    terminal: Open, program: tuple[str, ...], shown: str, keys: str, number: int, code: int
) -> None:
    screen = terminal(*program)
    screen.shows(shown)
    if keys:
        screen.press(keys)
    else:
        screen.process.send_signal(number)
    assert screen.wait() == code
    assert eventually(screen.is_restored)


@SCREENS
def test_the_terminal_is_restored_after_a_bug(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    name = name_of(program)
    code = f"import sys, {name}; {name}.render = lambda *_: 1 / 0; sys.exit({name}.main(sys.argv[1:]))"
    screen = terminal("-c", code, *program[1:])
    assert screen.wait() == 1
    assert eventually(screen.is_restored)
    screen.shows(f"{name}: ZeroDivisionError .*--debug")
    assert "Traceback" not in screen.text()
    assert shown not in screen.text()


@SCREENS
def test_suspend_gives_the_terminal_back_and_fg_takes_it_again(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    screen = terminal(*program)
    screen.shows(shown)
    screen.press("\x1a")
    eventually(lambda: stands_still(screen.process.pid))
    assert eventually(screen.is_restored)
    start = len(screen.raw)
    screen.process.send_signal(signal.SIGCONT)
    eventually(lambda: b"\x1b[?1049h" in screen.raw[start:] and shown.encode() in screen.raw[start:])
    screen.press("q")
    assert screen.wait() == 0
    assert eventually(screen.is_restored)


# ---- Signals that were ignored, or come twice ----


@BOTH
def test_a_signal_that_was_ignored_stays_ignored(program: tuple[str, ...]) -> None:
    command = ["sh", "-c", 'trap "" HUP INT; exec "$0" "$@"', sys.executable, *program]  # nohup; & in a script
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        for number in (signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
            eventually(lambda: not pending(process.pid))
        process.terminate()
        assert process.wait(10) == 143


def pending(pid: int) -> int:
    """Signals that wait for a process, as bits."""
    return int(re.findall(r"ShdPnd:\s+(\w+)", pathlib.Path(f"/proc/{pid}/status").read_text())[0], 16)


def test_two_interrupts_at_once_are_one(start: Start) -> None:
    server = start(*SERVER)
    address = server.line(r"listening on (\S+)")[1]
    nodes = [start("node.py", "--headless", "--server", address, "--id", f"box-{number}", *SIMULATED) for number in (1, 2, 3)]
    for node in nodes:
        node.line("connected to")
    for node, apart_seconds in zip(nodes, (0.0, 0.005, 0.03), strict=True):
        node.process.send_signal(signal.SIGINT)
        time.sleep(apart_seconds)
        assert node.end() == 130
        assert "goodbye acknowledged" in node.lines[-1]
    for number in (1, 2, 3):
        server.line(f"left box-{number}")


@SCREENS
def test_a_program_that_was_suspended_ends(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    screen = terminal(*program)
    screen.shows(shown)
    screen.press("\x1a")
    eventually(lambda: stands_still(screen.process.pid))
    eventually(screen.is_restored)
    start = len(screen.raw)
    screen.process.send_signal(signal.SIGTERM)
    screen.process.send_signal(signal.SIGCONT)  # as a shell's kill does
    assert screen.wait() == 143
    assert screen.is_restored()
    assert b"\x1b" not in screen.raw[start:]  # the screen is the shell's


# ---- Streams that were closed before the start ----


def closed(streams: str, *program: str, unbuffered: str = "", **pipes: int) -> subprocess.Popen[str]:
    """A program that a shell starts without some of its streams."""
    command = ["sh", "-c", f'exec "$0" "$@" {streams}', sys.executable, *program]
    return subprocess.Popen(command, cwd=ROOT, env=environment(PYTHONUNBUFFERED=unbuffered), text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def test_a_server_without_stdout_runs_until_it_is_stopped() -> None:
    with closed(">&-", "server.py", "--headless", "--listen", "127.0.0.1:0", stderr=subprocess.PIPE) as process:
        assert unary(listens(process.pid), node_id="box").acknowledged
        time.sleep(0.5)  # the event is printed meanwhile
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        assert process.stderr
        assert process.stderr.read() == ""


@BOTH
def test_a_signal_that_ends_the_reader_too_is_what_ended_it(program: tuple[str, ...]) -> None:
    """Ctrl-C in `server.pyz | tee log`: tee dies of it first, and the last line has no reader."""
    with closed("", *program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""


def listens(pid: int) -> str:
    """Where a process listens that can't say it, as soon as it does."""
    sockets = psutil.Process(pid)
    ports = eventually(lambda: [each.laddr.port for each in sockets.net_connections("tcp") if each.status == psutil.CONN_LISTEN])
    return f"127.0.0.1:{ports[0]}"


@pytest.mark.parametrize("streams", [">&-", "<&- >&-"])
def test_without_stdout_it_does_what_it_does(streams: str) -> None:
    programs = (ONCE, (*ONCE, "--json"), ("node.py", "--version"), ("server.py", "--help"))
    with contextlib.ExitStack() as ending:
        started = [ending.enter_context(closed(streams, *program, stderr=subprocess.PIPE)) for program in programs]
        for program, process in zip(programs, started, strict=True):
            assert process.wait(20) == 0, program
            assert process.stderr
            assert process.stderr.read() == "", program


@BOTH
def test_without_stderr_an_error_has_its_exit_code_and_goes_nowhere(program: tuple[str, ...]) -> None:
    with closed("2>&-", *program, "--nonsense", stdout=subprocess.PIPE) as process:
        assert process.wait(20) == 2
        assert process.stdout
        assert process.stdout.read() == ""


def test_without_any_stream_a_node_reports_and_leaves(start: Start) -> None:
    server = start(*SERVER)
    address = server.line(r"listening on (\S+)")[1]
    node = ("node.py", "--headless", "--server", address, "--id", "box-1", *SIMULATED)
    with closed("<&- >&- 2>&-", *node) as process:
        server.line("joined box-1")
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    server.line("left box-1")


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_is_as_if_it_led_nowhere(streams: str) -> None:
    null, started = subprocess.DEVNULL, list[subprocess.Popen[str]]()
    with contextlib.ExitStack() as ending:
        for program in (SERVER, (*SERVER[:-1], "--json"), NODE, (*NODE, "--json")):
            started.append(ending.enter_context(closed(streams, *program, stdin=null, stdout=null, stderr=null)))
            ending.callback(started[-1].kill)  # where this test fails, nobody else ends it
        for process in started:
            eventually(functools.partial(catches_terminate, process.pid))
            assert {str(pathlib.Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)} == {os.devnull}
            process.terminate()
            assert process.wait(10) == 143


def catches_terminate(pid: int) -> bool:
    """Whether a process has its own way to end."""
    caught = re.findall(r"SigCgt:\s+(\w+)", pathlib.Path(f"/proc/{pid}/status").read_text())
    return bool(caught and int(caught[0], 16) & 1 << (signal.SIGTERM - 1))


@SCREENS
def test_a_screen_without_stdin_has_no_keys(terminal: Open, program: tuple[str, ...], shown: str) -> None:
    code = f"import os, sys; os.close(0); os.execv(sys.executable, [sys.executable, *{program!r}])"
    screen = terminal("-c", code)
    screen.shows(shown)
    screen.press("q")
    screen.press("\x03")
    assert screen.wait() == 130
    assert eventually(screen.is_restored)


# ---- What is unexpected ----

FAULTY = pytest.mark.parametrize(
    ("name", "call", "argv"),
    [
        ("server", "make_registry=lambda *_, **__: 1 / 0", SERVER[1:]),
        ("node", "find_machine=lambda *_: 1 / 0", NODE[1:]),
        ("node", "find_machine=lambda *_: 1 / 0", ONCE[1:]),
    ],
    ids=["server", "node", "once"],
)


@FAULTY
def test_a_bug_is_one_line(name: str, call: str, argv: tuple[str, ...]) -> None:
    program = ("-c", f"import sys, {name}; sys.exit({name}.main(sys.argv[1:], {call}))", *argv)
    assert ended(program, subprocess.DEVNULL) == (
        1,
        f"{name}: ZeroDivisionError (see --debug, and please report it): division by zero\n",
    )


@FAULTY
def test_a_bug_has_its_traceback_with_debug(name: str, call: str, argv: tuple[str, ...]) -> None:
    program = ("-c", f"import sys, {name}; sys.exit({name}.main(sys.argv[1:], {call}))", *argv, "--debug")
    code, said = ended(program, subprocess.DEVNULL)
    assert code == 1
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith("ZeroDivisionError: division by zero\n")


def test_a_second_interrupt_does_not_wait_for_the_goodbye(start: Start) -> None:
    server = start(*SERVER)
    address = server.line(r"listening on (\S+)")[1]
    node = start("node.py", "--headless", "--server", address, *SIMULATED)
    node.line("connected to")
    server.process.send_signal(signal.SIGSTOP)
    eventually(lambda: stands_still(server.process.pid))  # it can't answer
    node.process.send_signal(signal.SIGINT)
    time.sleep(1.0)  # sooner than in half a second it would be the same one
    assert node.end() == 130
    assert "connected to" in node.lines[-1]  # no word of the goodbye, and no traceback


def stands_still(pid: int) -> bool:
    """Whether all threads of a process are stopped."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


# ---- main_of, in this process ----


def outcome(capsys: pytest.CaptureFixture[str], error: BaseException | None, code: int = 0) -> tuple[int, str]:
    """How a program ends whose `run` raises this, or returns that: its exit code and stderr."""

    def run(_options: object) -> int:
        if error:
            raise error
        return code

    ending = main_of("edge", lambda _: argparse.Namespace(debug=False), run, [])
    return ending, capsys.readouterr().err


def test_the_exit_code_is_what_run_returns_or_what_ended_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edge.program.abandon_stdout", lambda: None)  # pytest's own is still needed
    assert outcome(capsys, None) == (0, "")
    assert outcome(capsys, None, 143) == (143, "")
    assert outcome(capsys, KeyboardInterrupt()) == (130, "")
    assert outcome(capsys, OutputClosed(1)) == (129, "")
    assert outcome(capsys, Failure("port 1 is in use: try another")) == (1, "edge: port 1 is in use: try another\n")
    with pytest.raises(SystemExit, match="2"):
        outcome(capsys, SystemExit(2))


def test_a_library_that_is_missing_gets_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is damaged is for the .pyz to mend."""
    monkeypatch.setattr("edge.program.abandon_stdout", lambda: None)  # pytest's own is still needed
    for name in ("EDGE_TARGET", "EDGE_TREE"):
        monkeypatch.delenv(name, raising=False)
    absent = ModuleNotFoundError("No module named 'cryptography'", name="cryptography.x509")
    text = "edge: what was asked for needs Python's package cryptography, which {}: install python3-cryptography with the system's "
    text += f"packages, or cryptography with pip for {sys.executable}\n"
    assert outcome(capsys, absent) == (1, text.format("is not there"))
    assert outcome(capsys, ImportError("invalid ELF header"))[1].startswith("edge: ImportError (see --debug")
    monkeypatch.setenv("EDGE_TARGET", "cp313-linux-armv7l")
    monkeypatch.setenv("EDGE_TREE", "/var/cache/edge")
    assert outcome(capsys, absent) == (1, text.format("edge.pyz has not got for cp313-linux-armv7l"))
    with pytest.raises(ImportError, match="invalid ELF header"):
        outcome(capsys, ImportError("invalid ELF header"))


@pytest.mark.parametrize("number", [5, 32], ids=["EIO", "EPIPE"])
def test_a_write_that_fails_says_who_is_gone(number: int) -> None:
    class Gone:
        def write(self, _text: str) -> int:
            raise OSError(number, os.strerror(number))

        def flush(self) -> None:
            raise AssertionError("it was not written")

    gone: Any = Gone()
    with pytest.raises(OutputClosed) as closed:
        put("hello", gone)
    assert closed.value.signal_number == {5: signal.SIGHUP, 32: signal.SIGPIPE}[number]


def test_the_version_names_the_target_and_its_tree_in_a_pyz(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGE_TARGET", "EDGE_TREE"):
        monkeypatch.delenv(name, raising=False)
    assert re.fullmatch(rf"node {re.escape(VERSION)} \(Python 3\.\d+\.\d+\S*, from source\)", version_text("node"))
    monkeypatch.setenv("EDGE_TARGET", "cp311-linux-x86_64")
    monkeypatch.setenv("EDGE_TREE", "/var/cache/edge")
    assert version_text("server").endswith(", target cp311-linux-x86_64, unpacked in /var/cache/edge)")


def test_a_line_of_a_log_has_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "UTC+1")
        time.tzset()
        here = time_stamp(1_800_000_000)
    time.tzset()
    assert here == "2027-01-15 07:00:00"


@pytest.mark.parametrize("program", ["node", "server"])
def test_what_was_opened_is_closed(start: Start, tmp_path: pathlib.Path, program: str) -> None:
    arguments = ["--once"] if program == "node" else ["--headless", "--listen", "127.0.0.1:0"]
    running = start("-X", "dev", f"{program}.py", *arguments, STATE_DIRECTORY=str(tmp_path))  # in which Python tells what was not
    if program == "server":
        running.line("listening on")
        running.process.send_signal(signal.SIGTERM)
    running.wait()
    assert not [line for line in running.lines if "Warning" in line]
