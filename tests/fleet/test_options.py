"""The server's command line as a whole."""

from __future__ import annotations

import shlex

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
        ("--prometheus-config", "argument --prometheus-config: Prometheus reads a server by HTTP: give --http PORT as well, as"),
        ("--prometheus-config --attach a", "argument --prometheus-config: it is for a server here"),
        ("--check --warning 5 --critical 2", "argument --warning: 5 is never reached, since more than 2 are critical: give --crit"),
        ("--listen 127.0.0.1:80 --http 127.0.0.1:80", "argument --http: --listen has 127.0.0.1:80, for the nodes: give one of th"),
        ("--listen a:5,10.0.0.5:80 --http 0.0.0.0:80", "argument --http: --listen has 10.0.0.5:80, for the nodes"),
        ("--listen 0.0.0.0:80 --http 80", "argument --http: --listen has 0.0.0.0:80, for the nodes"),
        ("--listen 10.0.0.5:80 --http [::]:80", "argument --http: --listen has 10.0.0.5:80, for the nodes"),
        ("--listen localhost:80 --http 80", "argument --http: --listen has localhost:80, for the nodes"),
        ("--http 50051", ":50051, for the nodes: give one of them another port"),
        ("--check -h200", "argument --check: -h200 reads as an option there: write --check=-h200"),
        ("--attach a --check '-user:ada for 3m'", "argument --check: -user:ada for 3m reads as an option there: write --check='-u"),
        ("--check --attach a --http 80", "argument --http: it is for a server here, and --attach looks at one elsewhere"),
    ],
)
def test_what_another_option_makes_void_is_refused(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        parse_options(shlex.split(line))
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
    assert parse_options(["--check=-h200", "--warning", "2", "--critical", "2"]).check == "-h200"
    for line in ("127.0.0.1:80 10.0.0.5:80", "127.0.0.1:0 127.0.0.1:0", "0.0.0.0:80 [::1]:80", "[::]:80 81", "localhost:80 a:80"):
        listen, http = line.split()
        assert parse_options(["--listen", listen, "--http", http]).http
    assert parse_options(["--attach", "a", "--check", "--warning", "2", "--critical", "2"]).attach
    assert parse_options(["--attach", "a", "--token-file", "x", "--ca", "y", "--record", "z"]).record
    assert parse_options(["--check", "--attach", "a", "--token-file", "x", "--ca", "y", "--warning", "0"]).check == ""
    assert parse_options(["--check", "state:lost", "--state", "x"]).check == "state:lost"
    assert parse_options(["--replay", "x", "--speed", "4", "--no-color", "--fps", "5"]).speed == 4
    assert parse_options(["--secure", "--interval", "2", "--max-nodes", "7", "--no-journal", "--record", "z"]).secure
