"""The command line of both programs: what each kind of value may be, and what is said of others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from edge.command_line import (
    Endpoint,
    Listed,
    Options,
    number_between,
    one_of,
    parse_count,
    parse_endpoint,
    parse_endpoints,
    parse_labels,
    parse_node_id,
    parse_seconds,
    parse_server,
    some_of,
    target_of,
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 50051),
        ("10.0.0.5", "10.0.0.5", 50051),
        ("10.0.0.5:6000", "10.0.0.5", 6000),
        ("::1", "::1", 50051),
        ("[::1]", "::1", 50051),
        ("[fd00::5]:6000", "fd00::5", 6000),
        ("fe80::1%eth0", "fe80::1%eth0", 50051),
        ("[fe80::1%12]:6000", "fe80::1%12", 6000),
        ("gpu-07.lab.example:1", "gpu-07.lab.example", 1),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_endpoint(text) == Endpoint(host, port)
    assert parse_endpoint(str(Endpoint(host, port))) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":50051", "a b", "http://host:50051", "host:port", "host:70000", "[::1", "[::1]x", "host:", "a/b",
        "host#x", "host?x", "a@b", "a,b", "*", "1.2.3.4:5:6", "[1:2]:3", ":::", "1::2::3",  # gRPC makes something else of these
    ],
)  # fmt: skip
def test_bad_addresses_say_what_to_write(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"HOST:PORT|no port"):
        parse_endpoint(text)


def test_grpc_gets_a_zone_escaped() -> None:
    """Else it takes %be for the escape of one byte."""
    assert target_of(str(parse_endpoint("fe80::1%be0"))) == "[fe80::1%25be0]:50051"
    assert target_of("10.0.0.5:6000") == "10.0.0.5:6000"


def test_several_addresses_and_port_0() -> None:
    assert parse_endpoints("[::]:1, 10.0.0.5") == [Endpoint("::", 1), Endpoint("10.0.0.5", 50051)]
    assert parse_endpoint("host:0").port == 0  # any that is free
    with pytest.raises(argparse.ArgumentTypeError, match="no port from 1"):
        parse_server("host:0")  # nobody listens there


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_seconds, "0.1", 0.1),
        (parse_seconds, "3600", 3600),
        (parse_count, "1", 1),
        (parse_count, "9999999", 9_999_999),
        (parse_node_id, "Müller 機", "Müller 機"),
        (parse_node_id, "x" * 63, "x" * 63),
        (one_of(("auto", "host")), "host", "host"),
        (parse_labels, "", []),
        (parse_labels, "rack=a3", [("rack", "a3")]),
        (parse_labels, "rack = a3,team=ml=x 機", [("rack", "a3"), ("team", "ml=x 機")]),
        (parse_labels, f"{'N' * 32}={'v' * 64}", [("N" * 32, "v" * 64)]),
    ],
)
def test_values_are_taken_up_to_their_bounds(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_seconds, "0.09", "no number of seconds from 0.1 to 3600"),
        (parse_seconds, "3601", "from 0.1 to 3600"),
        (parse_seconds, "nan", "from 0.1 to 3600"),
        (parse_seconds, "inf", "from 0.1 to 3600"),
        (number_between(1, 2, "weight"), "x", "'x' is no weight from 1 to 2"),
        (parse_count, "0", "no count from 1"),
        (parse_count, "-1", "no count from 1"),
        (parse_count, "1.5", "no count from 1"),
        (parse_count, "١٢", "no count from 1"),  # digits, but not ours
        (parse_count, "10000000", "to 9999999"),
        (parse_node_id, " ", "must not be empty"),
        (parse_node_id, "x" * 64, "at most 63"),
        (parse_node_id, "a\x1b[2J", "printable"),
        (one_of(("auto", "host")), "cuda", "'cuda' is none of auto, host"),
        (parse_labels, "rack", "'rack' is no label: write NAME=VALUE, like rack=a3"),
        (parse_labels, "rack=a3,", "'' is no label"),
        (parse_labels, "State=lost", "state asks for ONLINE, LOST and so on in the server's filters: give the label another name"),
        (parse_labels, "=a3", "'' names no label: 1 to 32 letters"),
        (parse_labels, "ra[ck=a3", "'ra.ck' names no label"),
        (parse_labels, f"{'N' * 33}=a3", "names no label: 1 to 32 letters"),
        (parse_labels, "räck=a3", "names no label"),
        (parse_labels, "rack=", "label rack needs a value of 1 to 64 printable characters"),
        (parse_labels, f"rack={'v' * 65}", "label rack needs a value of 1 to 64"),
        (parse_labels, "rack=a\x1b[2J", "label rack needs a value"),
        (parse_labels, "rack=\udcff", "label rack needs a value"),  # bytes that are no UTF-8
    ],
)
def test_other_values_are_refused_in_words(parse: Callable[[str], Any], text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said) as error:
        parse(text)
    assert str(error.value).isprintable()


def options_of(*argv: str) -> argparse.Namespace:
    """What a small program makes of its command line."""
    parser = Options(prog="server", description="")
    parser.option("--listen", "where", type=parse_endpoints, action=Listed)
    parser.option("--max-nodes", "how many", type=parse_count, default="15000")
    parser.switch("--headless", "no screen")
    parser.common()
    return parser.parse_args(argv)


def test_a_list_is_given_with_commas_or_again_and_takes_the_place_of_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of().listen is None
    assert [str(endpoint) for endpoint in options_of("--listen", "a:1,b:2", "--listen", "c:3").listen] == ["a:1", "b:2", "c:3"]
    monkeypatch.setenv("EDGE_LISTEN", "d:4,e:5")
    assert [str(endpoint) for endpoint in options_of().listen] == ["d:4", "e:5"]
    assert [str(endpoint) for endpoint in options_of("--listen", "a:1").listen] == ["a:1"]


def test_a_flag_beats_the_environment_and_that_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of().max_nodes == 15_000
    monkeypatch.setenv("EDGE_MAX_NODES", "7")
    assert options_of().max_nodes == 7
    assert options_of("--max-nodes", "8").max_nodes == 8


def test_what_means_one_thing_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_of("--max-nodes", "8", "--max-nodes", "8").max_nodes == 8
    with pytest.raises(SystemExit) as error:
        options_of("--max-nodes", "8", "--max-nodes", "9")
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("server: argument --max-nodes: give it once, not as 8 and 9\n")


@pytest.mark.parametrize(("value", "is_on"), [("1", True), ("Yes", True), ("0", False), ("off", False), ("", False)])
def test_a_switch_from_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, is_on: bool) -> None:
    monkeypatch.setenv("EDGE_HEADLESS", value)
    assert options_of().headless is is_on


def test_an_error_names_the_environment_only_where_it_comes_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_MAX_NODES", "many")
    for argv in ((), ("--max-nodes", "none")):
        monkeypatch.setattr("sys.argv", ["server.py", *argv])
        with pytest.raises(SystemExit) as error:
            options_of(*argv)
        assert error.value.code == 2
    from_environment, hint, from_flag, _ = capsys.readouterr().err.splitlines()
    assert from_environment.endswith("'many' is no count from 1 to 9999999 (from EDGE_MAX_NODES in the environment)")
    assert from_flag == "server: argument --max-nodes: 'none' is no count from 1 to 9999999"
    assert hint == "try python3 server.pyz --help"


def test_some_of_a_list_of_words_with_commas() -> None:
    parse = some_of(("hot", "cold"))
    assert [sorted(parse(text)) for text in ("", "hot", "cold, hot")] == [[], ["hot"], ["cold", "hot"]]
    for text in ("warm", "hot,", "hot warm"):
        with pytest.raises(argparse.ArgumentTypeError, match="none of hot, cold"):
            parse(text)


def test_a_number_alone_is_taken_for_a_port_that_lacks_its_host() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'50052' is no address: write HOST:50052 if it is a port"):
        parse_endpoint("50052")
