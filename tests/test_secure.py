"""Both programs under --secure, as a company runs them: real processes, and what a third party on the network sees of them."""

from __future__ import annotations

import contextlib
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import psutil
import pytest

from bench.chaos import FAKETIME
from edge.credentials import SERVER_NAME, parse_token
from edge.fleet.certificates import OwnKey
from tests.fixtures.processes import ROOT, Program, eventually
from tests.fixtures.secure import Between

Start = Callable[..., Program]
SIMULATED = ("--headless", "--hardware", "simulated", "--seed", "7")


class Server(NamedTuple):
    """A secure server in a process of its own."""

    program: Program
    address: str
    folder: pathlib.Path
    token: str  # for nodes, as its first lines say it

    def command(self, *words: str) -> str:
        """What `server.py token …` prints."""
        command = [sys.executable, "server.py", "token", *words, "--state", str(self.folder)]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def secure(start: Start, tmp_path: pathlib.Path) -> Callable[..., Server]:
    """Starts secure servers."""

    def run(*options: str, name: str = "server", port: int = 0) -> Server:
        folder = tmp_path / name
        program = start("server.py", "--secure", "--headless", "--state", str(folder), "--listen", f"127.0.0.1:{port}", *options)
        address = program.line(r"listening on (\S+:\d+)")[1]
        return Server(program, address, folder, program.line(r"^(edge1-\S+)$")[1])

    return run


@pytest.fixture
def join(start: Start, tmp_path: pathlib.Path) -> Callable[..., Program]:
    """Starts nodes, each on a box of its own: with a state folder that nobody else has."""

    def run(address: str, *options: str, box: str = "box", **environ: str) -> Program:
        return start("node.py", "--server", address, *SIMULATED, *options, XDG_STATE_HOME=str(tmp_path / box), **environ)

    return run


def test_a_token_is_pasted_once_and_the_second_start_needs_only_the_server(
    secure: Callable[..., Server], join: Callable[..., Program], tmp_path: pathlib.Path
) -> None:
    server = secure()
    node = join(server.address, EDGE_TOKEN=server.token)
    node.line("connected to")
    saved = tmp_path / "box/edge-compute-node/tokens"
    eventually(saved.exists)
    assert (saved.stat().st_mode & 0o777, saved.read_text().split()) == (0o600, [server.token])
    assert node.end() == 130
    again = join(server.address)
    again.line("connected to")
    assert again.end() == 130
    join(server.address, box="another").line("wants a token: its screen shows the one for nodes")


@pytest.mark.skipif(not FAKETIME, reason="the wall clock can't be set: install faketime")
@pytest.mark.parametrize("when", ["1970-01-01 00:00:30", "2199-12-31 23:00:00"])
def test_a_board_whose_clock_is_wrong_joins(secure: Callable[..., Server], join: Callable[..., Program], when: str) -> None:
    server = secure()
    clock = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"@{when}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    node = join(server.address, **clock, EDGE_TOKEN=server.token)
    assert node.line("connected to").string.startswith(when[:4])  # so says its own log
    server.program.line("joined Node-")
    assert node.end() == 130


# ---- A third party ----


class Relay:
    """Hands each connection on to the server, byte for byte, and keeps what went by."""

    def __init__(self, address: str) -> None:
        self.server = address.rpartition(":")
        self.seen = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._hand_on, args=(connection,), daemon=True).start()

    def _hand_on(self, near: socket.socket) -> None:
        with near, socket.create_connection((self.server[0], int(self.server[2]))) as far:
            others = {near: far, far: near}
            with contextlib.suppress(OSError):
                while True:
                    for end in select.select([near, far], [], [])[0]:
                        if not (data := end.recv(65_536)):
                            return
                        self.seen += data
                        others[end].sendall(data)


def test_who_listens_on_the_way_reads_no_secret_and_no_reading(secure: Callable[..., Server], join: Callable[..., Program]) -> None:
    server = secure()
    relay = Relay(server.address)
    node = join(relay.address, "--id", "a-box-with-a-name", EDGE_TOKEN=server.token)
    server.program.line("joined a-box-with-a-name")
    assert node.end() == 130
    secret = parse_token(server.token).secret
    assert SERVER_NAME.encode() in relay.seen  # whom the node asks for, and no more
    for hidden in (b"edge1-", server.token[60:70].encode(), secret, b"a-box-with-a-name", b"authorization"):
        assert hidden not in relay.seen


def test_who_stands_in_between_gets_no_secret_and_is_found_out(
    secure: Callable[..., Server], join: Callable[..., Program], tmp_path: pathlib.Path
) -> None:
    server = secure()
    between = Between(tmp_path, *OwnKey(tmp_path / "another").own_certificate())
    node = join(between.address, EDGE_TOKEN=server.token)
    said = node.line("is not the server this token is for").string
    assert "another one, or someone in between" in said
    assert "not sent" in said
    assert re.search(r"next try in (\d\d\.\d) s", said)  # goes on trying, slowly
    assert node.end() == 130
    between.close()
    assert between.wire
    assert between.heard == b""


# ---- What happens to fleets ----


def test_a_box_that_is_imaged_anew_takes_its_name_back(secure: Callable[..., Server], join: Callable[..., Program]) -> None:
    server = secure()
    old = join(server.address, "--id", "box-7", EDGE_TOKEN=server.token)
    server.program.line("joined box-7")
    cloned = join(server.address, "--id", "box-7", box="clone", EDGE_TOKEN=server.token)
    cloned.line("the id box-7 is taken")  # a living holder is never displaced, whoever has the token
    assert cloned.wait() == 1
    old.process.kill()
    server.program.line("disconnected box-7")
    new = join(server.address, "--id", "box-7", box="new disk", EDGE_TOKEN=server.token)
    new.line("connected to")
    eventually(lambda: sum("joined box-7" in line for line in server.program.lines) == 2)  # and the log tells of it
    assert new.end() == 130


def test_a_revoked_token_ends_its_sessions_with_the_reason_and_a_new_one_lets_in(
    secure: Callable[..., Server], join: Callable[..., Program], tmp_path: pathlib.Path
) -> None:
    server = secure()
    lasting = join(server.address, box="lasting", EDGE_TOKEN=server.command("new", "--note", "rack a3").strip())
    node = join(server.address, "--id", "box-7", EDGE_TOKEN=server.token)
    for joined in (lasting, node):
        joined.line("connected to")
    server.command("revoke", parse_token(server.token).id)
    assert "revoked" in node.line("refuses this node").string
    server.program.line(r"(disconnected|refused) box-7.*revoked")
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(f"# rack a3\n{server.command('new')}")
    assert node.end() == 130
    again = join(server.address, "--id", "box-7", "--token-file", str(file))
    again.line("connected to")
    assert not [line for line in lasting.lines if "refuses" in line]
    assert again.end() == lasting.end() == 130


def test_the_servers_restart_asks_nothing_of_anybody(secure: Callable[..., Server], join: Callable[..., Program]) -> None:
    server = secure()
    node = join(server.address, EDGE_TOKEN=server.token)
    node.line("connected to")
    server.program.end()
    again = secure(port=int(server.address.rpartition(":")[2]))
    assert again.token == server.token
    again.program.line("back Node-")
    assert node.end() == 130


def test_another_server_on_the_same_address_is_told_nothing(secure: Callable[..., Server], join: Callable[..., Program]) -> None:
    server = secure()
    node = join(server.address, EDGE_TOKEN=server.token)
    node.line("connected to")
    server.program.end()
    port = int(server.address.rpartition(":")[2])
    other = secure(name="other", port=port)
    node.line("is not the server this token is for: another one, or someone in between")
    other.program.end()
    node.end()
    assert not [line for line in other.program.lines if "joined" in line]


# ---- Where a secret must not be ----


def test_no_secret_is_in_a_log_a_process_list_or_a_childs_environment(
    secure: Callable[..., Server], join: Callable[..., Program]
) -> None:
    server = secure("--debug")
    view = next(line for line in server.command("list").split() if parse_role(line) == "view")
    node = join(server.address, "--debug", "--id", "box-7", EDGE_TOKEN=server.token)
    node.line("connected to")
    wrong = join(server.address, "--debug", "--id", "box-8", box="8", EDGE_TOKEN=view)
    wrong.line("refuses this node")
    ours = [program.process.pid for program in (node, wrong, server.program)]
    seen = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            seen.append(" ".join(process.cmdline()))
            if process.ppid() in ours:
                seen.append(str(process.environ()))
    node.process.send_signal(signal.SIGTERM)
    wrong.process.send_signal(signal.SIGTERM)
    assert (node.wait(), wrong.wait()) == (143, 143)
    server.program.end()
    told = [line for line in server.program.lines if not re.search(r"^edge1-|EDGE_TOKEN=", line)]  # which are there to be pasted
    assert [line for line in told if "joined" in line]
    assert [line for line in told if "refused" in line]
    for token in (server.token, view):
        for line in (*node.lines, *wrong.lines, *told, *seen):
            assert token[40:60] not in line
            assert token[60:] not in line


def parse_role(text: str) -> str:
    try:
        return parse_token(text).role.value
    except ValueError:
        return ""
