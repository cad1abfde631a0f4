"""A recording on a screen: played, stopped, stepped through, with all other keys."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Callable

import pytest

from edge.event_log import Event
from edge.fleet.journal import Store
from edge.fleet.times import show_time
from tests.fixtures.examples import NOW
from tests.fixtures.past import FIRST, course
from tests.fixtures.processes import Program, Terminal, eventually

Start = Callable[..., Program]
Open = Callable[..., Terminal]
SECONDS = 120


@pytest.fixture
def recording(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two minutes of a fleet, a moment each ten seconds."""
    path = tmp_path / "night.edge"
    with contextlib.closing(Store(path, None)) as store:
        for second in range(0, SECONDS + 1, 10):
            events = [Event(FIRST + 30, "lost", "Node-1011", "no heartbeat for 10s")] * (second >= 30)
            store.write(NOW, FIRST + second, 10.0, course(FIRST + second, 6), events, lambda: None)
    return path


def screen_time(terminal: Terminal) -> float:
    """Seconds of the recording that the header shows."""
    times = {show_time(FIRST + second): second for second in range(0, SECONDS + 1, 10)}
    return times[terminal.shows(r"REPLAY (?:\w+ )?(\d+-\d+-\d+ \d+:\d+:\d+)")[1]]


@pytest.mark.parametrize("size", [(160, 45), (80, 24), (50, 15)])
def test_a_recording_is_played_stopped_and_stepped_through(terminal: Open, recording: pathlib.Path, size: tuple[int, int]) -> None:
    opened = terminal("server.py", "--replay", str(recording), "--speed", "0.1", columns=size[0], lines=size[1], TZ="UTC")
    assert screen_time(opened) == 0
    opened.shows("Node-1004")
    opened.press(" ")
    eventually(lambda: "▶" not in opened.text())
    opened.press("]")
    eventually(lambda: screen_time(opened) == 10)
    opened.press("}")
    eventually(lambda: screen_time(opened) == SECONDS)
    opened.press("]")
    opened.shows("nothing is kept after")
    opened.press("t" + show_time(FIRST + 75) + "\r")
    eventually(lambda: screen_time(opened) == 70)
    opened.press("[")
    eventually(lambda: screen_time(opened) == 60)
    opened.press("/1003\r")
    eventually(lambda: "Node-1004" not in opened.text())
    opened.press("\x1b")
    opened.shows("Node-1004")
    assert screen_time(opened) == 60  # there is no now to go back to
    opened.press("e")
    opened.shows("lost +Node-1011")
    opened.press("j")
    opened.shows("this is a recording")
    opened.press("qq")
    assert opened.wait() == 0
    eventually(opened.is_restored)


def test_a_recording_that_is_played_fast_comes_to_its_end(terminal: Open, recording: pathlib.Path) -> None:
    opened = terminal("server.py", "--replay", str(recording), "--speed", "600")
    opened.shows("nothing is kept after")
    eventually(lambda: screen_time(opened) == SECONDS and "▶" not in opened.text())


def test_a_recording_lies_where_nothing_can_be_written(terminal: Open, recording: pathlib.Path) -> None:
    recording.chmod(0o400)
    recording.parent.chmod(0o500)
    before = recording.read_bytes()
    opened = terminal("server.py", "--replay", str(recording))
    opened.shows("REPLAY")
    opened.press("q")
    assert opened.wait() == 0
    assert recording.read_bytes() == before
    assert [path.name for path in recording.parent.iterdir()] == [recording.name]
    recording.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "is not there: --replay plays a file that --record has made"),
        (b"", "can't be played: nothing is kept yet|can't be played"),
        (b"garbage" * 1000, "can't be (played|read)"),
    ],
)
def test_what_is_no_recording_is_told_in_one_line(start: Start, tmp_path: pathlib.Path, made: bytes | None, said: str) -> None:
    path = tmp_path / "file"
    if made is not None:
        path.write_bytes(made)
    program = start("server.py", "--replay", str(path))
    assert re.match(rf"server: {re.escape(str(path))} .*({said})", program.line("server: ")[0] + program.lines[-1]) or program.line(
        said
    )
    assert program.wait() == 1


def test_a_recording_needs_a_screen(start: Start, recording: pathlib.Path) -> None:
    for flags in ((), ("--json",), ("--headless",)):
        program = start("server.py", "--replay", str(recording), *flags)
        program.line("server: --replay needs a terminal, and neither --headless nor --json")
        assert program.wait() == 1


def test_a_folder_is_no_recording(start: Start, tmp_path: pathlib.Path) -> None:
    program = start("server.py", "--replay", str(tmp_path))
    program.line("is a folder: name the file, like .*journal.db")
    assert program.wait() == 1


def test_a_recording_of_times_that_there_never_were_is_not_played(start: Start, tmp_path: pathlib.Path) -> None:
    with contextlib.closing(Store(tmp_path / "file", None)) as store:
        store.write(NOW, 1e15, 10.0, course(FIRST, 6), (), lambda: None)
    program = start("server.py", "--replay", str(tmp_path / "file"))
    program.line("can't be played: it has times that there never were")
    assert program.wait() == 1
