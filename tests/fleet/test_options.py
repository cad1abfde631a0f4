"""The server's command line as a whole."""

from __future__ import annotations

import pytest

from edge.fleet.options import parse_options


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--speed 4", "argument --speed: it is for a recording: give --replay as well"),
        ("--attach a --no-journal", "argument --no-journal: it is for a server here, and --attach looks at one elsewhere"),
        ("--attach a --max-nodes=7", "argument --max-nodes: it is for a server here"),
        ("--attach --journal-size 5MB", "argument --journal-size: it is for a server here"),
        ("--attach --interval 2", "argument --interval: it is for a server here"),
        ("--attach --speed 2", "argument --speed: it is for a recording"),
        ("--token-file /nope --headless", "argument --token-file: it is for looking at a server elsewhere: give --attach as well"),
        ("--ca x", "argument --ca: it is for looking at a server elsewhere: give --attach as well"),
        ("--no-journal --journal-size 5MB", "argument --journal-size: --no-journal keeps none: give one of them"),
        ("--replay x --listen a:5", "argument --listen: "),
        ("--replay x --record y", "argument --record: it is for a server, and --replay plays a file: give one of them"),
        ("--replay x --state y", "argument --state: it is for a server, and --replay plays a file"),
        ("--warning 0", "argument --warning: it is for --check: give that as well"),
        ("--attach a --critical 3", "argument --critical: it is for --check: give that as well"),
        ("--check --headless", "argument --headless: --check tells how the fleet is in one line: give one of them"),
        ("--check --replay x", "argument --replay: --check tells how the fleet is in one line"),
        ("--check --secure", "argument --secure: it is for a server here, and --check looks at one that runs: give one of them"),
        ("--check --ca x", "argument --ca: it is for looking at a server elsewhere: give --attach as well"),
        ("--check --attach a --http 80", "argument --http: it is for a server here, and --attach looks at one elsewhere"),
    ],
)
def test_what_another_option_makes_void_is_refused(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        parse_options(line.split())
    assert ending.value.code == 2
    assert said in capsys.readouterr().err


def test_what_the_environment_says_for_all_programs_stands_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("EDGE_CA", "x"), ("EDGE_CHECK", "x"), ("EDGE_WARNING", "0"), ("EDGE_JSON", "1"), ("EDGE_INTERVAL", "2"),
        ("EDGE_SPEED", "3"), ("EDGE_JOURNAL_SIZE", "5MB"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert parse_options([]).interval == 2
    assert parse_options(["--no-journal"]).no_journal
    assert parse_options(["--attach", "a"]).attach
    assert parse_options(["--attach", "a"]).check is None
    assert parse_options(["--check"]).warning == 0
    assert str(parse_options(["--replay", "x"]).replay) == "x"


def test_what_fits_is_taken() -> None:
    assert parse_options(["--attach", "a", "--token-file", "x", "--ca", "y", "--record", "z"]).record
    assert parse_options(["--check", "--attach", "a", "--token-file", "x", "--ca", "y", "--warning", "0"]).check == ""
    assert parse_options(["--check", "state:lost", "--state", "x"]).check == "state:lost"
    assert parse_options(["--replay", "x", "--speed", "4", "--no-color", "--fps", "5"]).speed == 4
    assert parse_options(["--secure", "--interval", "2", "--max-nodes", "7", "--no-journal", "--record", "z"]).secure
