"""Files with secrets: who may read them, and that none is ever half written."""

from __future__ import annotations

import os
import pathlib
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from edge.state_folder import MAX_PRIVATE_BYTES, NotPrivate, StateFile, check_folder, locked, read_private, write_private
from tests.fixtures.processes import ROOT


def mode_of(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def as_nobody(code: str, *arguments: object) -> str:
    """What a program of the user nobody prints."""
    prepared = "import os, pathlib, sys; from edge.state_folder import *; os.setgid(65534); os.setuid(65534)"
    argv = [sys.executable, "-c", f"{prepared}\n{code}", *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout.strip()


@pytest.fixture
def open_folder() -> Iterator[pathlib.Path]:
    """A folder that other users can look into, as none below tmp_path is."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        yield pathlib.Path(folder)


def test_what_is_written_is_read_and_for_this_user_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a/b/secret"
    before = os.umask(0)
    try:
        write_private(path, "one")
        write_private(path, "two, °C")
        StateFile(tmp_path / "c/d/id").close()
    finally:
        os.umask(before)
    assert read_private(path) == "two, °C"
    assert mode_of(path) == 0o600
    assert {mode_of(tmp_path / folder) for folder in ("a", "a/b", "c", "c/d")} == {0o700}  # and none of them is open to all
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: pathlib.Path, mode: int) -> None:
    path = tmp_path / "secret"
    write_private(path, "x")
    path.chmod(mode)
    with pytest.raises(PermissionError, match=f"others may read {path}, which holds a secret: chmod 600 {path}"):
        read_private(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(PermissionError, match="chmod 600"):  # what it leads to is what counts
        read_private(link)
    path.chmod(0o400)
    assert read_private(link) == "x"


@pytest.mark.parametrize(
    ("entries", "is_ours"),
    [
        ([(2, 4, 65534)], True),
        ([(2, 4, 65534), (2, 4, 0)], True),
        ([(2, 4, 65534), (2, 4, 1000)], False),
        ([(2, 4, 65534), (8, 4, 1000)], False),
        ([(2, 4, 65534), (8, 0, 1000)], True),
        ([(4, 4, 2**32 - 1), (2, 4, 65534)], False),
    ],
)
def test_an_access_list_for_this_user_alone_is_no_one_elses(
    open_folder: pathlib.Path, entries: list[tuple[int, int, int]], is_ours: bool
) -> None:
    """As systemd hands over a credential: root's file, 0440 to look at, with the service's user in its access list."""
    path = open_folder / "edge-token"
    write_private(path, "x")
    path.chmod(0o400)
    nobody = 2**32 - 1
    base = {1: (1, 4, nobody), 4: (4, 0, nobody), 16: (16, 4, nobody), 32: (32, 0, nobody)}
    named = [entry for entry in entries if entry[0] in (2, 8)]
    base |= {entry[0]: entry for entry in entries if entry[0] == 4}
    ordered = sorted([*base.values(), *named], key=lambda entry: (entry[0], entry[2]))
    blob = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in ordered)
    os.setxattr(path, "system.posix_acl_access", blob)
    assert mode_of(path) == 0o440
    code = "try: print(read_private(pathlib.Path(sys.argv[1])))\nexcept NotPrivate as error: print(error)"
    assert as_nobody(code, path) == ("x" if is_ours else f"others may read {path}, which holds a secret: chmod 600 {path}")


def test_a_file_of_another_user_is_refused_and_one_of_root_is_not(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "secret"
    write_private(path, "x")
    os.chown(path, 65534, 65534)
    with pytest.raises(PermissionError, match=f"{path} belongs to another user, nobody: run as nobody"):
        read_private(path)
    os.chown(path, 54321, 54321)
    with pytest.raises(PermissionError, match="another user, 54321"):
        read_private(path)


def test_what_is_no_such_file_costs_a_sentence_and_no_time(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot read {tmp_path}/none: no such file"):
        read_private(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="cannot read /dev/null/x"):
        read_private(pathlib.Path("/dev/null/x"))
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, pathlib.Path("/dev/null")):
        with pytest.raises(OSError, match=f"{path}( is no file|: is a directory)"):
            read_private(path)
    write_private(tmp_path / "large", "x" * MAX_PRIVATE_BYTES)
    assert len(read_private(tmp_path / "large")) == MAX_PRIVATE_BYTES
    write_private(tmp_path / "large", "x" * MAX_PRIVATE_BYTES + "x")
    with pytest.raises(OSError, match="larger than any such file: over 1024 KiB"):
        read_private(tmp_path / "large")
    (tmp_path / "secret").write_bytes(b"\xff\0a")
    (tmp_path / "secret").chmod(0o600)
    assert read_private(tmp_path / "secret") == "�\0a"


def test_a_link_is_replaced_and_what_it_leads_to_is_not_touched(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").write_text("theirs")
    (tmp_path / "secret").symlink_to(tmp_path / "other")
    write_private(tmp_path / "secret", "ours")
    assert (tmp_path / "other").read_text() == "theirs"
    assert read_private(tmp_path / "secret") == "ours"


def test_what_cannot_be_written_says_so_and_changes_nothing(open_folder: pathlib.Path) -> None:
    folder = open_folder / "state"
    write_private(folder / "secret", "old")
    folder.chmod(0o755)
    code = (
        "for act in (lambda p: write_private(p, 'new'), lambda p: locked(p.parent).__enter__()):\n"
        "  try: act(pathlib.Path(sys.argv[1]))\n"
        "  except OSError as error: print(type(error).__name__, error)"
    )
    said = as_nobody(code, folder / "secret").splitlines()
    assert said == [
        f"PermissionError cannot write {folder}/secret: permission denied",
        f"PermissionError cannot write in {folder}: permission denied",
    ]
    assert [entry.name for entry in folder.iterdir()] == ["secret"]
    assert read_private(folder / "secret") == "old"
    with pytest.raises(OSError, match="cannot write /dev/null/secret"):
        write_private(pathlib.Path("/dev/null/secret"), "x")
    with pytest.raises(OSError, match="cannot write /proc/state/secret"):
        write_private(pathlib.Path("/proc/state/secret"), "x")
    (folder / "taken").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*taken: is a directory"):
        write_private(folder / "taken", "x")
    assert sorted(entry.name for entry in folder.iterdir()) == ["secret", "taken"]


def test_a_disk_that_is_full_changes_nothing(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "state"
    code = (
        "import resource\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "write_private(path, 'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5))\n"
        "try: write_private(path, 'much that is new')\n"
        "except OSError as error: os.write(2, str(error).encode())\n"
        "os.write(2, b' ' + path.read_bytes())"
    )
    argv = [sys.executable, "-c", f"import os, pathlib, sys; from edge.state_folder import *\n{code}", str(folder / "secret")]
    said = subprocess.run(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=30, check=True).stderr
    assert said == f"cannot write {folder}/secret: file too large old"
    assert [entry.name for entry in folder.iterdir()] == ["secret"]


def test_a_held_folder_is_waited_for_but_not_for_ever(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.state_folder.LOCK_PATIENCE_SECONDS", 0.05)
    with locked(tmp_path / "state"):
        with pytest.raises(BlockingIOError, match=f"another process holds {tmp_path}/state/lock, and does not end: try again"):
            with locked(tmp_path / "state"):
                raise AssertionError
    with locked(tmp_path / "state"):
        assert mode_of(tmp_path / "state/lock") == 0o600


def test_a_folder_in_which_others_may_write_is_refused(tmp_path: pathlib.Path) -> None:
    for mode in (0o777, 0o770, 0o702, 0o1777):
        tmp_path.chmod(mode)
        with pytest.raises(NotPrivate, match=f"others may write in the folder {tmp_path}, which holds secrets: chmod go-w"):
            check_folder(tmp_path)
        with pytest.raises(NotPrivate, match="others may write"), locked(tmp_path):
            pass
    tmp_path.chmod(0o755)  # systemd makes them so
    check_folder(tmp_path)
    os.chown(tmp_path, 54321, -1)
    with pytest.raises(NotPrivate, match="belongs to another user, 54321: run as 54321"):
        check_folder(tmp_path)


def test_a_lock_that_leads_elsewhere_makes_nothing_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "nologin")
    with pytest.raises(OSError, match="cannot write in"), locked(tmp_path):
        pass
    assert not (tmp_path / "nologin").exists()
