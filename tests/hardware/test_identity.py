"""The node's id."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys
import uuid

import pytest

from edge.hardware.identity import MAX_DIGITS, MULTICAST, Identity, draw_id, machine_text, simulated_text
from edge.protocol import MAX_NODE_ID
from edge.state_folder import StateFile, state_folder
from tests.fixtures.processes import ROOT

MACHINE = "4f1c9c3f0cbb4a3f8a44a2a3c9f1d2e7"


def test_ids_are_the_same_after_a_restart_and_other_for_each_attempt() -> None:
    drawn = [draw_id(MACHINE, attempt) for attempt in range(8)]
    assert drawn == [draw_id(MACHINE, attempt) for attempt in range(8)]
    assert len(set(drawn)) == 8
    assert [len(name) - len("Node-") for name in drawn] == [4, 4, 4, 5, 5, 5, 6, 6]
    assert drawn[::4] == ["Node-6288", "Node-77842"]  # whatever version of the agent draws
    assert len(draw_id(MACHINE, 5000)) == len("Node-") + MAX_DIGITS < MAX_NODE_ID  # of a server that takes none
    identity = Identity(None, MACHINE)
    assert identity.node_id == drawn[0]
    assert identity.redraw() == drawn[1]
    assert len({draw_id(simulated_text(seed), 0) for seed in range(50)}) > 40


def test_a_box_is_known_by_a_digest_of_its_machine() -> None:
    assert Identity(None, MACHINE).box_id == Identity("box-1", MACHINE).box_id == "3e778c27df960f2a"


@pytest.mark.parametrize(("given", "keeps"), [("box-1", True), (None, False)])
def test_what_is_given_or_simulated_keeps_nothing(state_home: pathlib.Path, given: str | None, keeps: bool) -> None:
    identity = Identity(given, MACHINE, keeps)
    identity.accepted()
    assert not list(state_home.iterdir())
    assert not identity.may_change


def test_the_users_own_id_is_taken_as_it_is() -> None:
    identity = Identity("box-1", MACHINE)
    assert (identity.given, identity.node_id, identity.is_own) == ("box-1", "box-1", False)
    identity.accepted()
    assert identity.is_own
    assert Identity(None, MACHINE).node_id == draw_id(MACHINE, 0)  # nothing was kept of it


def test_a_drawn_id_that_was_accepted_is_the_first_that_is_asked_for(state_home: pathlib.Path) -> None:
    first = Identity(None, MACHINE)
    second_choice = first.redraw()
    assert not first.is_own
    first.accepted()
    assert first.is_own
    assert not first.may_change
    path = state_home / "edge-compute-node/node-id"
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    first.close()
    again = Identity(None, MACHINE)
    assert (again.node_id, again.is_own) == (second_choice, True)
    assert again.redraw() not in (second_choice, draw_id(MACHINE, 0))
    again.accepted()
    assert path.read_text().count("Node-") == 1  # the longer one before left nothing behind
    kept = path.read_text()
    again.close()
    again.redraw()
    again.accepted()  # after it has let go of its file
    assert path.read_text() == kept


def test_a_second_agent_of_the_same_user_keeps_nothing(state_home: pathlib.Path) -> None:
    first = Identity(None, MACHINE)
    first.accepted()
    second = Identity(None, MACHINE)
    assert second.node_id == first.node_id
    assert not second.is_own
    second.redraw()
    second.accepted()
    assert second.may_change == "another agent of this user keeps its own"
    assert first.node_id in (state_home / "edge-compute-node/node-id").read_text()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"node_id": 7}', '{"node_id": "a\\nb", "box_id": "BOX"}', "\xff", "null", "[" * 60_000]
)
def test_a_file_that_is_damaged_is_as_if_there_were_none(state_home: pathlib.Path, content: str) -> None:
    folder = state_home / "edge-compute-node"
    folder.mkdir()
    (folder / "node-id").write_text(content.replace("BOX", Identity("x", MACHINE).box_id), encoding="latin-1")
    identity = Identity(None, MACHINE)
    assert identity.node_id == draw_id(MACHINE, 0)
    identity.accepted()
    identity.close()
    assert Identity(None, MACHINE).is_own


def test_an_image_of_a_box_takes_no_name_along(state_home: pathlib.Path) -> None:
    original = Identity(None, MACHINE)
    original.redraw()
    original.accepted()
    original.close()
    copy = Identity(None, "another machine's id")
    assert copy.node_id == draw_id("another machine's id", 0)


def test_a_folder_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/file/state:/elsewhere")
    identity = Identity(None, MACHINE)
    identity.accepted()
    assert not identity.may_change  # the first that is drawn is the same each time
    identity.redraw()
    identity.accepted()
    assert identity.may_change == f"Not a directory: {tmp_path}/file/state"


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told(state_home: pathlib.Path) -> None:
    folder = state_home / "edge-compute-node"
    folder.mkdir()
    (folder / "node-id").symlink_to("/dev/full")
    identity = Identity(None, MACHINE)
    identity.redraw()
    identity.accepted()
    assert identity.may_change == "No space left on device"


def test_a_machine_is_known_by_its_id(tmp_path: pathlib.Path) -> None:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/machine-id"
    path.write_bytes(b"abc\n")
    assert machine_text(tmp_path) == "abc"
    path.write_bytes(b"\xff\xfe\n")
    assert machine_text(tmp_path) == "\N{REPLACEMENT CHARACTER}" * 2
    without = Identity(None, "")
    assert without.box_id == ""
    # machine-id(5): of an image that has not booted yet, or that must not be; and of a disk that lost it in a power cut
    for nothing in (b"uninitialized\n", b"Uninitialized", b"\n", b"0" * 32 + b"\n", b"\0" * 33, b"\0\n"):
        path.write_bytes(nothing)
        assert machine_text(tmp_path) not in ("uninitialized", "abc")
        (tmp_path / "var/lib/dbus").mkdir(parents=True, exist_ok=True)
        (tmp_path / "var/lib/dbus/machine-id").write_text("dbus")
        assert machine_text(tmp_path) == "dbus"
        (tmp_path / "var/lib/dbus/machine-id").unlink()
    path.unlink()
    for other in ("/dev/zero", "/dev/full", "."):  # what never ends, or is no file
        path.symlink_to(other)
        assert machine_text(tmp_path) == machine_text(tmp_path / "nowhere")
        path.unlink()
    os.mkfifo(path)  # nobody writes to it
    assert machine_text(tmp_path) == machine_text(tmp_path / "nowhere")


def test_a_machine_without_an_id_is_known_by_its_mac(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uuid, "getnode", lambda: 0x001A2B3C4D5E)
    assert machine_text(tmp_path) == "001a2b3c4d5e"
    monkeypatch.setattr(uuid, "getnode", lambda: 0x001A2B3C4D5E | MULTICAST)  # made up, where it has none
    assert machine_text(tmp_path) == ""


# ---- The state folder ----


def test_where_the_state_folder_is(monkeypatch: pytest.MonkeyPatch, state_home: pathlib.Path) -> None:
    assert state_folder() == state_home / "edge-compute-node"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/of-mine")
    assert state_folder() == pathlib.Path("/home/of-mine/.local/state/edge-compute-node")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edge:/another")
    assert state_folder() == pathlib.Path("/var/lib/edge")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be another user")
def test_a_user_without_a_home_is_told_what_to_set() -> None:
    code = "import os; from edge.state_folder import state_folder; os.setuid(54321); state_folder()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={}, capture_output=True, text=True, check=False, timeout=20)
    assert done.stderr.endswith("\nOSError: this user has no home folder, and STATE_DIRECTORY is not set\n")


def test_a_state_file_holds_what_was_written_last(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a/b/state"
    file = StateFile(path)
    assert file.read() == ""
    for text in ("a long text", "short", "ü"):
        file.write(text)
        assert file.read() == text
    assert path.read_text(encoding="utf-8") == "ü"
    with pytest.raises(BlockingIOError):
        StateFile(path)
    file.close()
    path.write_bytes(b"x" * (2**16 + 1))  # of whom ever
    assert len(StateFile(path).read()) == 2**16
