"""`server.pyz --check`: one line and an exit code of real servers."""

from __future__ import annotations

import contextlib
import pathlib
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest

import node_pb2 as pb
from edge.credentials import Role
from edge.fleet import check_command
from edge.fleet.guard import Guard
from edge.fleet.listening import socket_folders, socket_path
from edge.fleet.row import State
from edge.protocol import DEFAULT_PORT
from tests.fixtures.examples import example_row
from tests.fixtures.processes import EXECUTE, Program
from tests.fixtures.sessions import Serving, Stream, opened
from tests.test_trust import token_of

Serve = Callable[..., Serving]
Connect = Callable[..., Stream]
Check = Callable[..., tuple[int, str]]
# The Monitoring Plugins' guidelines: 'label'=value[UOM];[warn];[crit];[min];[max]
FIGURE = re.compile(r"[a-z]+=\d+(%|B|W|C)?(;\d*){0,4}")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs it in this process; returns its exit code and its line."""

    def run(*options: str) -> tuple[int, str]:
        argv = options if any(word.startswith("--check") for word in options) else ("--check", *options)
        try:
            code = check_command.run([], check_command.parse(argv))
        except SystemExit as ending:
            code = int(ending.code or 0)
        out, err = capsys.readouterr()
        (line,) = out.splitlines()
        assert not err
        return code, line

    return run


@pytest.fixture
def hung() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def address_of(listening: socket.socket) -> str:
    return f"127.0.0.1:{listening.getsockname()[1]}"


def fleet(serving: Serving, *states: State) -> None:
    """A fleet in which Node-1000 and those after it are that."""
    now = serving.registry.clock()
    for index, state in enumerate(states):
        row = example_row(index)
        row = row._replace(heartbeat_at=now, sample_at=now, session=row.session or opened(serving.registry, "x"), left=False)
        if state is State.LOST:
            row = row._replace(heartbeat_at=now - 60, sample_at=now - 60, session=None)
        serving.registry.restore(row._replace(left=state is State.LEFT))
    serving.registry.forget("x")


def test_all_is_well(serve: Serve, check: Check) -> None:
    serving = serve()
    fleet(serving, State.ONLINE, State.ONLINE, State.LEFT)
    code, line = check("--attach", serving.address)
    assert (code, line.partition(" | ")[0]) == (0, "EDGE OK - 2 of 3 nodes online")
    figures = line.partition(" | ")[2].split(" ")
    assert all(FIGURE.fullmatch(figure) for figure in figures)
    assert figures[:2] == ["matching=0;;0;0;3", "online=2;;;0;3"]
    assert {figure.partition("=")[0] for figure in figures} == {
        "matching", *(state.value.lower() for state in State), "gpus", "utilization", "memory", "power", "hottest",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ("", 2, "CRITICAL - 7 of 9 nodes match state:lost: Node-1002, Node-1003, Node-1004, Node-1005, Node-1006 and 2 more; 2 on"),
        ("--critical 7", 0, "OK - 7 of 9 nodes match state:lost: "),
        ("--warning 0", 1, "WARNING - 7 of 9 nodes match state:lost: "),
        ("--warning 6 --critical 7", 1, "WARNING - "),
        ("--warning 3 --critical 6", 2, "CRITICAL - "),
        ("--check Node-1003", 2, "CRITICAL - 1 of 9 nodes matches Node-1003: Node-1003; 2 online"),
        ("--check temp>500", 0, "OK - 2 of 9 nodes online; none matches temp>500"),
        ("--check version>=0.0.1 --critical 9", 0, "OK - 9 of 9 nodes match version>=0.0.1: "),
        ("--check Node-1001|Node-1002", 2, "CRITICAL - 2 of 9 nodes match Node-1001¦Node-1002: Node-1001, Node-1002; "),
    ],
)
def test_what_the_thresholds_make_of_it(serve: Serve, check: Check, options: str, code: int, text: str) -> None:
    serving = serve()
    fleet(serving, State.ONLINE, State.ONLINE, *[State.LOST] * 7)
    status, line = check(*options.split(), "--attach", serving.address)
    assert (status, line[: len(f"EDGE {text}")]) == (code, f"EDGE {text}")
    assert line.count("|") == 1


def test_a_filter_of_what_runs_on_the_nodes(serve: Serve, connect: Connect, check: Check) -> None:
    """It comes behind the fleet."""
    serving = serve()
    info = pb.NodeInfo(instance_id="a", devices=[pb.DeviceInfo(name="L4")])
    processes = pb.ProcessList(processes=[pb.Process(device_index=0, user="ada", name="vllm")])
    connect(serving.address, "box", info=info, processes=processes).answer()
    code, line = check("--check", "user:ada", "--attach", serving.address)
    assert (code, line[:54]) == (2, "EDGE CRITICAL - 1 of 1 nodes matches user:ada: box; 1 ")


def test_of_a_server_without_a_node_nothing_can_be_told(serve: Serve, check: Check) -> None:
    serving = serve()
    for thresholds in ((), ("--warning", "3"), ("--critical", "3"), ("--check", "state:online")):
        code, line = check(*thresholds, "--attach", serving.address)
        assert (code, line.partition(" | ")[0]) == (3, "EDGE UNKNOWN - 0 of 0 nodes: no node has reported to this server yet")


def test_a_server_that_has_just_started(serve: Serve, check: Check) -> None:
    serving = serve()
    serving.registry.restore(example_row(0)._replace(session=None, awaited_until=serving.registry.clock() + 60))
    code, line = check("--attach", serving.address)
    assert (code, line.partition(" | ")[0]) == (0, "EDGE OK - 0 of 1 nodes online; 1 not back yet after the server's restart")
    assert " disconnected=1;" in line


def test_names_are_text_alone(serve: Serve, connect: Connect, check: Check) -> None:
    serving = serve()
    connect(serving.address, "a|lost=99;0;0").answer()
    connect(serving.address, "'b' x=1").answer()
    code, line = check("--check", "state:online", "--attach", serving.address)
    assert code == 2
    assert line.startswith("EDGE CRITICAL - 2 of 2 nodes match state:online: 'b' x=1, a¦lost=99;0;0; 2 online | matching=2;")


def test_what_to_do_is_told_to_its_end(serve: Serve, check: Check, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands behind the reason, which may be long; and what is cut all the same ends in a sign."""
    monkeypatch.setenv("EDGE_TOKEN", token_of(Guard(tmp_path / "other"), Role.VIEW).text())
    address = serve(guard=Guard(tmp_path / "server")).address
    code, line = check("--attach", address)
    assert (code, len(line) > 220) == (3, True)
    assert line.endswith("(if that server was set up anew, take a new token from its own screen, key j; if it has certificates of "
                         "your own now, add --ca FILE)")  # fmt: skip
    for length in (799, 800, 801, 5000):
        said = check_command.Answer(check_command.UNKNOWN, "x" * length).line().removeprefix("EDGE UNKNOWN - ")
        assert said == ("x" * length if length <= 800 else "x" * 799 + "…")


def test_a_line_has_bounds(serve: Serve, check: Check) -> None:
    code, line = check("--check", "x" * 5000, "--attach", serve().address)
    assert (code, len(line) < 1000) == (3, True)
    assert len(check("--check", "state:" + "\n|\x1b" * 3000, "--attach", serve().address)[1]) < 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temp>", "not understood: temp>"),
        ("rack=a3", "not understood: rack=a3 (no node has a label rack)"),
        ("-user:", "not understood: -user:"),
    ],
)
def test_a_filter_that_cannot_be_read(serve: Serve, check: Check, text: str, said: str) -> None:
    assert check(f"--check={text}", "--attach", serve().address) == (3, f"EDGE UNKNOWN - {said}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--warning x", "argument --warning: 'x' is no count from 0 to 9999999"),
        ("--critical -1", "argument --critical: '-1' is no count from 0 to 9999999"),
        ("--warning 5 --critical 2", "argument --warning: 5 is never reached, since more than 2 are critical: give"),
        ("--check -h200", "argument --check: -h200 reads as an option there: write --check=-h200"),
        ("--json", "argument --json: --check tells how the fleet is in one line: give one of them"),
        ("--record x", "argument --record: --check tells how the fleet is in one line: give one of them"),
        ("--listen a", "argument --listen: it is for a server here, and --check looks at one that runs: give one of them"),
        ("--token-file x", "argument --token-file: it is for looking at a server elsewhere: give --attach as well"),
        ("--check a b", "unrecognized arguments: b"),
        ("--check a --check b", "argument --check: give it once, not as a and b"),
        ("--token edge1-xyz", "argument --token: a token in a command can be seen by all on this box"),
    ],
)
def test_an_option_that_cannot_be_read(check: Check, options: str, said: str) -> None:
    code, line = check(*options.split())
    assert (code, line[: 15 + len(said)]) == (3, f"EDGE UNKNOWN - {said}")


def test_what_the_environment_says_is_named(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CRITICAL", "many")
    code, line = check()
    assert (code, line[15:]) == (
        3, "argument --critical: 'many' is no count from 0 to 9999999 (from EDGE_CRITICAL in the environment)",
    )  # fmt: skip


def test_who_does_not_answer(check: Check, hung: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    address = address_of(hung)
    with monkeypatch.context() as hasty:
        hasty.setattr("edge.fleet.check_command.PATIENCE_SECONDS", 0.3)
        assert check("--attach", address) == (3, f"EDGE UNKNOWN - {address}: no answer within 0.3 s")
    hung.close()
    code, line = check("--attach", address)
    assert (code, line) == (3, f"EDGE UNKNOWN - {address}: nothing listens on {address} (is the server running?)")
    code, line = check()
    assert (code, line[:47]) == (3, "EDGE UNKNOWN - no server of this user answers i")


def test_a_server_that_is_too_old(check: Check) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    code, line = check("--attach", address)
    assert (code, line) == (3, f"EDGE UNKNOWN - {address}: is older than this screen, and can't be looked at: update it")
    server.stop(0).wait()


def test_a_secure_server_wants_a_view_token(
    serve: Serve, check: Check, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, other = Guard(tmp_path / "server"), Guard(tmp_path / "other")
    address = serve(guard=guard).address
    for token, code, said in (
        ("", 3, f"UNKNOWN - {address}: wants a token: "),
        (token_of(guard, Role.NODE).text(), 3, f"UNKNOWN - {address}: "),
        (token_of(other, Role.VIEW).text(), 3, f"UNKNOWN - {address}: "),
        (token_of(guard, Role.VIEW).text(), 3, "UNKNOWN - 0 of 0 nodes: no node has reported"),
    ):
        monkeypatch.setenv("EDGE_TOKEN", token)
        assert (code, said) == ((found := check("--attach", address))[0], found[1][5 : 5 + len(said)]), found


def test_several_servers(serve: Serve, connect: Connect, check: Check, hung: socket.socket) -> None:
    first, second = serve(), serve()
    connect(first.address, "a").answer()
    connect(second.address, "b").answer()
    both = ("--attach", first.address, "--attach", second.address)
    assert check(*both)[1].startswith("EDGE OK - 2 of 2 nodes online | matching=0;;0;0;2 ")
    gone = address_of(hung)
    hung.close()
    code, line = check(*both, "--attach", gone)
    assert (code, line) == (
        3, f"EDGE UNKNOWN - {gone}: nothing listens on {gone} (is the server running?); elsewhere 2 of 2 nodes online",
    )  # fmt: skip
    code, line = check("--check", "state:online", *both, "--attach", gone)
    assert (code, line[:63]) == (2, "EDGE CRITICAL - 2 of 2 nodes match state:online: a, b; 2 online")
    assert gone in line
    assert "|" not in line  # sums of a part of the fleet


def test_this_machines_own_server_by_a_real_process(start: Callable[..., Program]) -> None:
    """EDGE_CHECK turns no server into a check."""
    server = start("server.py", "--listen", "127.0.0.1:0", "--headless", "--no-journal", EDGE_CHECK="state:lost")
    server.line("listening on")
    asked = start("server.py", "--check", "--warning", "0")
    assert asked.wait() == 3
    assert [line.partition(" | ")[0] for line in asked.lines] == [
        "EDGE UNKNOWN - 0 of 0 nodes: no node has reported to this server yet"
    ]
    assert server.process.poll() is None


def test_whatever_hangs_it_ends(start: Callable[..., Program]) -> None:
    """A socket whose server stands still takes no more connections."""
    path = socket_path(next(socket_folders(None)), DEFAULT_PORT)
    path.parent.mkdir(parents=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        patched = "import sys, server, edge.fleet.check_command as one; one.PATIENCE_SECONDS = -0.7; "
        asked = start("-c", f"{patched}sys.exit(server.main(['--check']))")
        assert asked.wait() == 3
    assert asked.lines == ["EDGE UNKNOWN - this machine gave no answer within 0.3 s"]


def test_an_answer_that_cannot_be_written_is_none(start: Callable[..., Program]) -> None:
    command = f"exec {sys.executable} server.py --check >/dev/full"
    asked = start(*EXECUTE, "sh", "-c", command)
    assert asked.wait() == 3
    assert asked.lines == ["server: cannot write: no space left on device"]


def test_a_signal_ends_it_as_unknown(start: Callable[..., Program], hung: socket.socket) -> None:
    asked = start("server.py", "--check", "--attach", address_of(hung))
    hung.settimeout(20)
    with hung.accept()[0]:
        assert asked.end(signal.SIGTERM) == 3
    assert asked.lines == ["EDGE UNKNOWN - stopped by SIGTERM"]
