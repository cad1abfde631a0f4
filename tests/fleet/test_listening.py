"""Where the server listens: addresses with an IPv6 zone, on a real link of a network of their own."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from edge.fleet.listening import SERVICE_FOLDER, bind_socket, peer_address, socket_folders
from tests.fixtures.processes import EXECUTE, Program

NETWORK = ("unshare", "--net", "sh", "-c")
# Two ends of a cable. Both ways to write its zone begin with two hexadecimal digits, as an escape in a URI does.
CABLE = "ip link add name be0 index 12 type veth peer name be1 && ip link set be1 up && ip link set be0 up && "
CABLE += "ip link set lo up && ip address add fe80::1/64 dev be0 nodad"


@pytest.fixture(scope="module")
def needs_network() -> None:
    laid = os.geteuid() == 0 and shutil.which("ip") and subprocess.run([*NETWORK, CABLE], check=False).returncode == 0
    if not laid:
        pytest.skip("needs root, iproute2, and a network namespace with a veth in it")


@pytest.mark.usefixtures("needs_network")
@pytest.mark.parametrize(
    ("listen", "shown", "server"),
    [
        ("fe80::1%be0", "[fe80::1%be0]:50051", "fe80::1%12"),
        ("[fe80::1%12]:6000", "[fe80::1%12]:6000", "[fe80::1%be0]:6000"),
        ("[::]:6000", "[::]:6000", "[fe80::1%be0]:6000"),
    ],
)
def test_a_zone(start: Callable[..., Program], listen: str, shown: str, server: str) -> None:
    """It is shown as it was written; of a node, the interface's name."""
    alone = (*NETWORK, f'{CABLE} && exec "$0" "$@"', sys.executable)
    orchestrator = start(*EXECUTE, *alone, "server.py", "--headless", "--listen", listen)
    assert orchestrator.line(r"listening on (.*)")[1] == shown
    inside = ("nsenter", "--net", "--target", str(orchestrator.process.pid), sys.executable)
    node = start(*EXECUTE, *inside, "node.py", "--server", server, "--hardware", "simulated", "--seed", "1", "--headless")
    orchestrator.line(r" joined Node-\d+: h200-01, fe80::1%be0$")
    assert server.strip("[]").partition("]")[0] in node.line(r"connected to (\S+),")[1]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:41234", "10.0.0.7"),
        ("ipv6:%5Bfd00::7%5D:41234", "fd00::7"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:41234", "10.0.0.7"),
        ("ipv6:%5Bfe80::7%251%5D:41234", f"fe80::7%{socket.if_indextoname(1)}"),
        ("ipv6:%5Bfe80::7%25999999%5D:41234", "fe80::7%999999"),
        ("ipv6:%5Bfe80::7%25be0%5D:41234", "fe80::7%be0"),
        ("unix:", "unix:"),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def test_the_socket_of_a_server_lies_where_what_runs_lies(monkeypatch: pytest.MonkeyPatch, state_home: pathlib.Path) -> None:
    kept = state_home / "edge-compute-node"
    assert list(socket_folders(None)) == [kept, SERVICE_FOLDER]
    assert list(socket_folders(pathlib.Path("/given"))) == [pathlib.Path("/given"), SERVICE_FOLDER]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert next(socket_folders(None)) == pathlib.Path("/run/user/7/edge-compute-node")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/edge:/run/other")
    assert list(map(str, socket_folders(None))) == ["/run/edge", "/run/user/7/edge-compute-node", str(kept), str(SERVICE_FOLDER)]


def test_a_socket_that_cannot_be_made_is_a_warning(tmp_path: pathlib.Path) -> None:
    def refuses(_target: str) -> None:
        raise RuntimeError("no")

    start = "--attach on this machine needs an address: "
    assert bind_socket(refuses, tmp_path, 7) == f"{start}no socket can be made at {tmp_path}/watch/7.sock: no"
    (tmp_path / "file").touch()
    assert bind_socket(refuses, tmp_path / "file", 7).endswith("7.sock: Not a directory")
    assert bind_socket(refuses, tmp_path / ("x" * 100), 7).endswith("is too long for a socket")
