"""Time travel in a real server: what was kept before a restart is gone back to, and played from its file."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from tests.fixtures.processes import Program, Terminal
from tests.fixtures.sessions import unary

Open = Callable[..., Terminal]
Start = Callable[..., Program]


def test_a_restarted_server_shows_what_was_before_it(terminal: Open, start: Start, tmp_path: pathlib.Path) -> None:
    options = ("server.py", "--listen", "127.0.0.1:0", "--state", str(tmp_path))
    before = start(*options)
    unary(before.line(r"listening on (\S+)")[1], node_id="Node-1", sample={"host": {"cpu_percent": 42}})
    before.line("joined Node-1")
    assert before.end() == 130
    opened = terminal(*options)
    opened.shows("Node-1 .*DISCONNECTED")
    opened.press("t1s\r")
    opened.shows(r" PAST \w+ \d+-\d+-\d+ \d+:\d+:\d+, \d+s ago")
    opened.shows("● Node-1 .*ONLINE")
    assert opened.cell("PAST").reverse
    opened.press("[")
    opened.shows("nothing is kept before")
    opened.press("\x1b")
    opened.shows("Edge fleet")
    opened.shows("Node-1 .*DISCONNECTED")
    opened.press("q")
    assert opened.wait() == 0
    played = terminal("server.py", "--replay", str(tmp_path / "journal.db"))
    played.shows("REPLAY")
    played.shows("● Node-1 .*ONLINE")


def test_without_a_journal_the_keys_say_so(terminal: Open) -> None:
    opened = terminal("server.py", "--listen", "127.0.0.1:0", "--no-journal")
    opened.shows("No node yet")
    opened.press("[")
    opened.shows("nothing is kept of this fleet: it has no journal")
