"""The journal of real servers: killed, on a disk that is full, read-only, or gives no answer."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

import pytest

import node_pb2 as pb
from edge.fleet.journal import FILE
from edge.fleet.moments import Kept
from edge.fleet.source import NoPast
from tests.fixtures.processes import EXECUTE, Program, Terminal, eventually
from tests.fixtures.sessions import Stream

Start = Callable[..., Program]
Connect = Callable[..., Stream]
HASTY = """
import sys
import edge.fleet.journal
edge.fleet.journal.MOMENT_SECONDS, edge.fleet.journal.SLOW_SECONDS = 0.1, 0.3
import server
sys.exit(server.main(sys.argv[1:]))
"""
HEADLESS = ("-c", HASTY, "--headless", "--listen")


def in_namespace(prepare: str, *argv: str) -> tuple[str, ...]:
    """A program of Python in a namespace of mounts that a shell has prepared."""
    return (*EXECUTE, "unshare", "-m", "sh", "-ec", f'{prepare}\nexec "$0" "$@"', sys.executable, *argv)


def has_namespaces() -> bool:
    unshare = shutil.which("unshare")
    return bool(unshare) and os.geteuid() == 0 and not subprocess.run([str(unshare), "-m", "true"], check=False).returncode


NAMESPACES = pytest.mark.skipif(not has_namespaces(), reason="needs root, and namespaces of Linux")


INFO = pb.NodeInfo(instance_id="a", hostname="host-a", devices=[pb.DeviceInfo(index=0, name="GPU")])


def sample(celsius: int) -> pb.Sample:
    return pb.Sample(sequence=celsius, devices=[pb.DeviceSample(temperature_celsius=celsius)])


def kept(folder: pathlib.Path, celsius: int) -> int:
    """How many nodes with this temperature are in the newest moment."""
    try:
        return sum(row.vitals.celsius == celsius for row in Kept(folder / FILE).newest().snapshot())
    except NoPast:
        return 0


def kept_there(server: Program, folder: pathlib.Path, celsius: int) -> int:
    """The same of a server in a namespace of its own. Of a copy: SQLite follows links by their text, and /proc's have none."""
    with tempfile.TemporaryDirectory() as copy:
        for name in (FILE, f"{FILE}-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(f"/proc/{server.process.pid}/root{folder}/{name}", copy)
        return kept(pathlib.Path(copy), celsius)


def test_what_was_there_before_a_kill_is_there_again(start: Start, connect: Connect, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "state"
    server = start(*HEADLESS, "127.0.0.1:0", "--state", str(folder))
    address = server.line(r"listening on (\S+)")[1]
    streams = [connect(address, f"Node-{number}", info=INFO, sample=sample(41)) for number in range(12)]
    eventually(lambda: kept(folder, 41) == 12)
    server.end(signal.SIGKILL)
    for stream in streams:
        stream.close()
    again = start("-c", HASTY, "--json", "--listen", address, "--state", str(folder))
    (*before,) = again.json_line(lambda line: True)["nodes"]
    assert len(before) == 12
    for row in before:
        assert row["state"] == "DISCONNECTED"
        assert row["reason"].startswith("last heard 20")
        assert row["heartbeat_age_seconds"] < 60
        assert row["sample"]["devices"][0]["temperature_celsius"] == 41
        assert row["info"]["hostname"] == "host-a"
    for number in range(9):
        connect(address, f"Node-{number}", info=INFO, sample=sample(42))
    again.json_line(lambda line: sum(row["state"] == "ONLINE" for row in line["nodes"]) == 9 and len(line["nodes"]) == 12)
    eventually(lambda: kept(folder, 42) == 9)
    again.end()
    kinds = collections.Counter(event.kind for event in Kept(folder / FILE).newest().newest_events(100))
    assert not kinds["lost"] + kinds["late"]
    assert (kinds["joined"], kinds["started"], kinds["back"]) == (12, 1, 9)  # those of before are there again, and kept once
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    assert not (folder / f"{FILE}-wal").exists()


def test_an_orderly_end_loses_nothing(start: Start, connect: Connect, tmp_path: pathlib.Path) -> None:
    server = start("server.py", "--headless", "--listen", "127.0.0.1:0", "--state", str(tmp_path))  # with its ten seconds
    address = server.line(r"listening on (\S+)")[1]
    connect(address, info=INFO, sample=sample(43))
    server.line("joined box")
    server.end()
    assert kept(tmp_path, 43) == 1


def test_without_a_journal_nothing_is_kept(start: Start, tmp_path: pathlib.Path) -> None:
    server = start("server.py", "--headless", "--listen", "127.0.0.1:0", "--state", str(tmp_path), "--no-journal")
    server.line("listening on")
    server.end()
    assert not list(tmp_path.glob("journal*"))


def test_a_python_without_sqlite_keeps_nothing_and_says_so(start: Start, tmp_path: pathlib.Path) -> None:
    without = "import sys; sys.modules['sqlite3'] = None; import server; sys.exit(server.main(sys.argv[1:]))"
    server = start("-c", without, "--headless", "--listen", "127.0.0.1:0")
    server.line("listening on")
    server.line("warning server: journal: this Python has no sqlite3: install it")
    recording = start("-c", without, "--headless", "--listen", "127.0.0.1:0", "--record", str(tmp_path / "x"))
    assert recording.wait() == 1
    assert recording.lines[-1].startswith("server: cannot record: this Python has no sqlite3")


def test_two_servers_on_one_folder(start: Start, tmp_path: pathlib.Path) -> None:
    one = start(*HEADLESS, "127.0.0.1:0", "--state", str(tmp_path))
    one.line("listening on")
    other = start(*HEADLESS, "127.0.0.1:0", "--state", str(tmp_path))
    other.line(r"warning server: journal: another server keeps its own in \S+: give this one another folder, by --state")
    other.line("listening on")
    one.end()
    other.line("back server: journal: it is written again")


def test_a_recording_is_made_beside_the_journal(start: Start, connect: Connect, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "night.edge"
    server = start("server.py", "--headless", "--listen", "127.0.0.1:0", "--record", str(path))
    connect(server.line(r"listening on (\S+)")[1], info=INFO, sample=sample(44))
    server.line("joined box")
    server.end()
    assert len(Kept(path).newest().snapshot()) == 1
    again = start("server.py", "--headless", "--listen", "127.0.0.1:0", "--record", str(path))
    assert again.wait() == 1
    assert again.lines == [f"server: {path} is there already: give --record another name"]


@NAMESPACES
def test_a_full_disk_is_said_and_the_server_does_its_work(start: Start, connect: Connect, tmp_path: pathlib.Path) -> None:
    mount = f"mount -t tmpfs -o size=64k,mode=700 none {tmp_path}"
    server = start(*in_namespace(mount, *HEADLESS, "127.0.0.1:0", "--state", str(tmp_path)))
    server.line("warning server: journal: the disk is full")
    connect(server.line(r"listening on (\S+)")[1], info=INFO, sample=sample(45))
    server.line("joined box")
    larger = ["nsenter", "-t", str(server.process.pid), "-m", "mount", "-o", "remount,size=20m", str(tmp_path)]
    subprocess.run(larger, check=True)
    server.line("journal: it is written again")
    eventually(lambda: kept_there(server, tmp_path, 45) == 1)


@NAMESPACES
def test_a_read_only_disk_is_said(start: Start, tmp_path: pathlib.Path) -> None:
    mount = f"mount -t tmpfs -o ro,mode=700 none {tmp_path}"
    server = start(*in_namespace(mount, *HEADLESS, "127.0.0.1:0", "--state", str(tmp_path)))
    server.line(rf"warning server: journal: {tmp_path}: [Rr]ead-only file system")
    server.line("listening on")


@NAMESPACES
@pytest.mark.skipif(not (shutil.which("fsfreeze") and shutil.which("mkfs.ext4")), reason="needs fsfreeze and mkfs.ext4")
def test_a_disk_that_gives_no_answer_is_not_waited_for(start: Start, connect: Connect, tmp_path: pathlib.Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(2**24)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["unshare", "-m", "mount", "-o", "loop", str(image), str(disk)], check=False).returncode:
        pytest.skip("needs loop devices")
    state = disk / "state"
    server = start(*in_namespace(f"mount -o loop {image} {disk}", *HEADLESS, "127.0.0.1:0", "--state", str(state)))
    address = server.line(r"listening on (\S+)")[1]
    there = pathlib.Path(f"/proc/{server.process.pid}/root{state}")
    connect(address, "first", info=INFO, sample=sample(46))
    eventually(lambda: kept_there(server, state, 46) == 1)
    subprocess.run(["fsfreeze", "-f", str(there)], check=True)
    try:
        stream = connect(address, "second", info=INFO, sample=sample(46))
        server.line("joined second")
        assert stream.answer().acknowledged
        stream.send(leaving=True, node_id="second")
        server.line("left second")
        eventually(lambda: waits_for_the_disk(server.process.pid))
    finally:
        subprocess.run(["fsfreeze", "-u", str(there)], check=True)
    eventually(lambda: kept_there(server, state, 46) == 2)
    server.end()


def waits_for_the_disk(pid: int) -> bool:
    """Whether a thread of a process stands where no signal reaches it."""
    return any(") D " in task.joinpath("stat").read_text() for task in pathlib.Path(f"/proc/{pid}/task").iterdir())


def test_trouble_with_the_journal_is_an_event_on_the_screen(terminal: Callable[..., Terminal], tmp_path: pathlib.Path) -> None:
    (tmp_path / FILE).mkdir()
    screen = terminal("server.py", "--listen", "127.0.0.1:0", "--state", str(tmp_path))
    eventually(lambda: "journal: " in screen.text())
