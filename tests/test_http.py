"""server.py with --http, as its user runs it: a real process, real TLS, and curl as the other end."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from edge.credentials import SERVER_NAME, Role, authority_of
from edge.fleet.certificates import OwnKey
from edge.fleet.guard import Guard
from tests.fixtures.pki import Authority
from tests.fixtures.processes import EXECUTE, ROOT, Program, Terminal, eventually
from tests.fixtures.web import ask, basic, connected, heard

Start = Callable[..., Program]
Open = Callable[..., Terminal]
AGENT = bytes(range(256)) * 500
PORT = r"http://\S+:(\d+)/"


@pytest.fixture
def serve(start: Start, tmp_path: pathlib.Path) -> Callable[..., Program]:
    """Starts servers that have a node.pyz beside them."""
    (tmp_path / "server.py").symlink_to(ROOT / "server.py")
    (tmp_path / "node.pyz").write_bytes(AGENT)

    def run(*options: str) -> Program:
        common = ("--headless", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"), "--no-journal")
        return start(str(tmp_path / "server.py"), *common, *options)

    return run


def test_a_port_alone_is_for_this_machine_and_its_page_is_told(serve: Callable[..., Program]) -> None:
    program = serve("--http", "0")
    page = program.line(r"^In a browser: (http://127\.0\.0\.1:\d+/)$")[1]
    assert ask(page).text.startswith("<!doctype html>")
    assert not [line for line in program.lines if "curl" in line]
    assert program.end() == 130


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_a_box_fetches_its_agent_by_the_line_that_is_told(serve: Callable[..., Program], tmp_path: pathlib.Path) -> None:
    program = serve("--http", "0.0.0.0:0")
    command = program.line(r"^To get node.pyz on a box: (curl -fO http://\S+/node.pyz)$")[1]
    box = tmp_path / "box"
    box.mkdir()
    subprocess.run(shlex.split(command), cwd=box, check=True, capture_output=True)
    assert (box / "node.pyz").read_bytes() == AGENT
    with urllib.request.urlopen(command.split()[-1].replace("node.pyz", "api/events"), timeout=10) as events:
        told = next(line for line in events if line.startswith(b"data:"))
    assert json.loads(told[5:])["server"]["has_agent"]  # the page tells it too
    command = program.line(r"^To check that it came whole: (curl -fO http://\S+/SHA256SUMS && sha256sum --check SHA256SUMS)$")[1]
    subprocess.run(["sh", "-c", command], cwd=box, check=True, capture_output=True)


def test_an_agent_that_is_put_there_later_is_told_on_the_screen_and_to_pages(terminal: Open, tmp_path: pathlib.Path) -> None:
    (tmp_path / "server.py").symlink_to(ROOT / "server.py")
    options = ("--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"), "--no-journal", "--http", "0.0.0.0:0")
    screen = terminal(str(tmp_path / "server.py"), *options)
    screen.shows("No node yet")
    page = screen.shows(r"http://\S+:(\d+)/")
    assert "curl" not in screen.text()
    url = f"http://127.0.0.1:{page[1]}"
    (tmp_path / "node.pyz").write_bytes(AGENT)
    screen.shows(r"curl -fO http://\S+/node\.pyz")
    with urllib.request.urlopen(f"{url}/api/events", timeout=10) as events:
        told = next(line for line in events if line.startswith(b"data:"))
    assert json.loads(told[5:])["server"]["has_agent"]
    (tmp_path / "node.pyz").unlink()
    eventually(lambda: "curl" not in screen.text())


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_of_a_secure_server_it_is_fetched_by_its_key_and_the_view_token(
    serve: Callable[..., Program], terminal: Open, tmp_path: pathlib.Path
) -> None:
    program = serve("--http", "0.0.0.0:0", "--secure")
    command = program.line(r"^To get node.pyz on a box \(its password is the view token\): (curl .*/node.pyz)$")[1]
    assert program.line(r"^In a browser \(any user name, the view token as password\): https://")
    listed = [sys.executable, str(ROOT / "server.py"), "token", "list", "--state", str(tmp_path / "state")]
    assert f": {command}\n" in subprocess.run(listed, check=True, capture_output=True, text=True).stdout  # where a log has none
    token = view_token(tmp_path)
    box = tmp_path / "box"
    box.mkdir()
    shell = terminal(*EXECUTE, "sh", "-c", f"cd {box} && {command}")
    shell.shows("Enter host password for user 'view':")
    shell.press(f"{token}\n")
    assert shell.wait() == 0
    assert (box / "node.pyz").read_bytes() == AGENT
    other = re.sub("sha256//.", lambda match: "sha256//" + ("B" if match[0][-1] == "A" else "A"), command)
    refused = subprocess.run(
        ["sh", "-c", other.replace("-u view", f"-u view:{token}")], cwd=box, check=False, capture_output=True, text=True
    )
    assert (refused.returncode, "public key" in refused.stderr) == (90, True)  # someone in between gets no token


def view_token(folder: pathlib.Path) -> str:
    """Of the server that has this state folder."""
    return Guard(folder / "state").tokens.offered(Role.VIEW).text


def test_its_certificate_is_proved_by_its_key_as_nodes_prove_it(serve: Callable[..., Program], tmp_path: pathlib.Path) -> None:
    program = serve("--http", "0", "--secure")
    port = int(program.line(r"https://127\.0\.0\.1:(\d+)/$")[1])
    authority = authority_of(OwnKey(tmp_path / "state").public).decode()
    context = ssl.create_default_context(cadata=authority)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=SERVER_NAME) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: edge-compute-node\r\nConnection: close\r\n\r\n")
        assert heard(client).endswith(b"ok\n")
        assert client.version() == "TLSv1.3"
    url = f"https://127.0.0.1:{port}"
    assert ask(url, "/").status == 401
    program.line(r"refused —: 127.0.0.1: no token")
    assert ask(url, "/", Authorization=basic(view_token(tmp_path))).status == 200
    assert not [line for line in program.lines if "Traceback" in line or " error " in line]


def test_with_a_certificate_of_ones_own_it_goes_by_its_name(serve: Callable[..., Program], tmp_path: pathlib.Path) -> None:
    authority = Authority()
    certificate, key = authority.write(tmp_path, "fleet.example", "localhost")
    program = serve("--http", "0.0.0.0:0", "--tls-cert", str(certificate), "--tls-key", str(key))
    match = program.line(r"curl -f --cacert FILE -u view -O https://fleet\.example:(\d+)/node\.pyz$")
    context = ssl.create_default_context(cadata=authority.pem.decode())
    with context.wrap_socket(socket.create_connection(("127.0.0.1", int(match[1])), 10), server_hostname="localhost") as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: fleet.example\r\nConnection: close\r\n\r\n")
        assert heard(client).endswith(b"ok\n")


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("{port}", 1, "server: port {port} is in use: is a server running already? Else try --http 127.0.0.1:{next}"),
        ("no.such.name.invalid:80", 1, "server: cannot resolve no.such.name.invalid: give --http an address of this machine"),
        ("127.0.0.1", 2, "'127.0.0.1' has no port: write PORT or HOST:PORT, like 8080 or 0.0.0.0:8080"),
        ("::1", 2, "'::1' has no port: write PORT or HOST:PORT, like 8080 or 0.0.0.0:8080"),
        ("70000", 2, "has no port from 1 to 65535"),
    ],
)
def test_what_it_cannot_listen_on(serve: Callable[..., Program], given: str, code: int, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port: dict[str, Any] = {"port": other.getsockname()[1], "next": other.getsockname()[1] + 1}
        program = serve("--http", given.format(**port))
        assert program.wait() == code
        told = "\n".join(program.lines)
        assert said.format(**port) in told
        assert "Traceback" not in told and "never awaited" not in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--secure",)])
def test_it_ends_at_once_whoever_is_connected(serve: Callable[..., Program], options: tuple[str, ...], number: int) -> None:
    program = serve("--http", "0", *options)
    url = program.line(r"(https?://127\.0\.0\.1:\d+)/$")[1]
    silent = [connected(url) for _ in range(50)]
    asking = [connected(url) for _ in range(20)]
    for client in asking:
        client.sendall(b"GET / HTTP/1.1\r\n")
    ask(url, "/healthz")
    began = time.monotonic()
    assert program.end(number) == 128 + number
    assert time.monotonic() - began < 4  # 2 s, and the machine may be busy
    assert not [line for line in program.lines if "Traceback" in line or " error " in line or "warning" in line]
    for client in (*silent, *asking):
        client.close()


def test_what_clients_do_wrong_leaves_the_screen_alone(terminal: Open, tmp_path: pathlib.Path) -> None:
    screen = terminal("server.py", "--listen", "127.0.0.1:0", "--state", str(tmp_path), "--no-journal", "--http", "0", "--secure")
    screen.shows("No node yet")
    screen.press("j")
    url = screen.shows(r"(https://127\.0\.0\.1:\d+)/")[1]
    for part in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)), b""):
        with connected(url) as client, contextlib.suppress(OSError):
            client.sendall(part)
    assert ask(url, "/nothing").status == 401
    screen.press("q")
    screen.shows(r"refused .*127\.0\.0\.1: no token")
    for word in ("Traceback", "SSL", "Invalid HTTP", "uvicorn"):
        assert word not in screen.text()
    screen.press("q")
    assert screen.wait() == 0
    assert screen.is_restored()
