"""Unpacks the libraries of server.pyz and node.pyz: the cold start, once for each Python and version. bootstrap.py calls it.

The cache, a folder for one user:

    edge-compute-node/
      lock                           held while something is unpacked or swept
      cp312-linux-aarch64-3f2a…/     libraries: both programs share them, and so do their versions until a library changes
      cp312-linux-aarch64-b07c…/     those that the server alone has
      node-91c0…/                    the program itself
        .in-use                      locked by each process that runs from here; its time is that of the last start, to the day
      new-…/                         being unpacked, or left there by one that was killed
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from pyz.bootstrap import ARCHIVE, DAY_SECONDS, FILE_TIME, NAME, Files, find_places, is_whole, lock, refuse

UNUSED_SECONDS = 30 * DAY_SECONDS


def unpack(trees: dict[str, Files], repair: bool) -> str:
    """Puts the trees into the first place that takes them and returns it; exits with a sentence when none does."""
    check()
    reasons = ""
    for place in find_places():
        reason = ""
        try:
            take_back(place)
            reason = refuse(place)
            if not reason:
                before = os.umask(0o077)  # the folders above it, too, are this user's alone
                os.makedirs(place, exist_ok=True)
                os.umask(before)
                reason = refuse(place)  # again, now that it is there: in a shared folder someone may have been quicker
            if not reason:
                with locked(place, wait=True):
                    for tree, files in trees.items():
                        restore(Path(place, tree), files, repair)
                    remove_unused(Path(place))
                return place
        except OSError as error:
            reason = error.strerror or str(error)
        reasons += f"\n  {place}: {reason}"
    sys.exit(
        f"{NAME} found no folder to unpack its libraries into:{reasons}\n"
        "Set EDGE_CACHE to a folder of this user on a disk with 50 MB free and not mounted noexec."
    )


def take_back(place: str) -> None:
    """Closes what an umask of 000 left open to everyone, where it is this user's own. Windows has no such thing.

    Nothing is kept of a place that others could write to. Above it only the user's own cache is closed: another folder may be
    meant for more than one.
    """
    above = os.path.dirname(place)
    if above in (os.path.expanduser("~/.cache"), os.environ.get("XDG_CACHE_HOME")) and is_open(above, stat.S_IWOTH):
        os.chmod(above, 0o700)
    if is_open(place, stat.S_IWGRP | stat.S_IWOTH):
        with tempfile.TemporaryDirectory(dir=above, ignore_cleanup_errors=True) as aside:
            os.rename(place, f"{aside}/old")


def is_open(folder: str, to: int) -> bool:
    """Tells whether it is a folder of this user's, and its mode has one of these bits."""
    if os.name != "posix" or not os.path.isdir(folder) or os.path.islink(folder):
        return False
    status = os.lstat(folder)
    return status.st_uid == os.geteuid() and bool(status.st_mode & to)


def check() -> None:
    """Exits with a sentence when the file is damaged, or when this Python can't decompress it."""
    try:
        import lzma  # noqa: F401
    except ImportError:
        sys.exit(f"{NAME} can't unpack its libraries: this Python ({sys.executable}) was built without lzma; use another one")
    try:
        with zipfile.ZipFile(ARCHIVE) as pack:
            damaged = pack.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        damaged = str(error)
    if damaged:
        sys.exit(f"{NAME} is damaged ({damaged}): copy it again, and compare its SHA-256 with the one in SHA256SUMS")


def report_missing_target(key: str) -> NoReturn:
    """Exits with a sentence that names the targets in the file, and the command that builds the one for this Python."""
    with zipfile.ZipFile(ARCHIVE) as pack:
        lines = [line.split() for line in pack.read("index").decode().splitlines()]
    targets = dict.fromkeys(line[2].rpartition("-")[0] for line in lines if line[0] == "tree" and line[1] != "any")
    command = [f"; build it: python3 build.py --target {line[2]}" for line in lines if line[:2] == ["known", key]]
    sys.exit(
        f"{NAME} has no libraries for this Python ({key}), only for {', '.join(targets)}"
        + (command[0] if command else "; use one of these")
    )


@contextlib.contextmanager
def locked(place: str, wait: bool) -> Iterator[None]:
    """Holds the place's lock."""
    with open(f"{place}/lock", "ab") as file:
        lock(file.fileno(), exclusive=True, wait=wait)
        yield


def restore(tree: Path, files: Files, repair: bool) -> None:
    """Puts in place what is missing or was changed; under the lock. Only a repair reads the files to find that out.

    All is written aside and synced first, then renamed: a kill or a power cut leaves the tree as it was.
    """
    damaged = [row for row in files if not is_whole(f"{tree}/{row[3]}", row[1]) or (repair and find_crc(tree / row[3]) != row[2])]
    mark = tree / ".in-use"
    if repair:
        for folder in list(tree.rglob("__pycache__")):
            shutil.rmtree(folder)
    if not damaged and mark.exists():
        return
    if len(damaged) > 10 and sys.stderr and sys.stderr.isatty():
        print(f"{NAME}: unpacking into {tree} (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="new-", dir=tree.parent, ignore_cleanup_errors=True) as new:
        aside = Path(new, "tree")
        aside.mkdir()
        (aside / ".in-use").touch()
        extract(damaged, aside)
        if hasattr(os, "sync"):
            os.sync()
        if tree.exists():
            for *_, path in damaged:
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (aside / path).replace(tree / path)
        else:
            aside.rename(tree)
    mark.touch()
    if not all(is_whole(f"{tree}/{path}", size) for _, size, _, path in files):
        raise OSError("files do not keep their size or time there")


def find_crc(path: Path) -> str:
    """Reads a file and returns its CRC-32, as the index has it."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def extract(files: Files, folder: Path) -> None:
    """Writes these files of the archive into the folder."""
    import lzma

    wanted = {f"{part}/{path}": folder / path for part, _, _, path in files}
    with zipfile.ZipFile(ARCHIVE) as pack:
        for blob in sorted({part.partition("/")[0] for part, *_ in files}):
            with pack.open(blob + ".tar.xz") as packed, lzma.open(packed) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    path, content = wanted.pop(member.name, None), tar.extractfile(member)
                    if path and content:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with path.open("wb") as out:
                            shutil.copyfileobj(content, out, 1 << 20)
                        os.utime(path, (FILE_TIME, FILE_TIME))
                    if not wanted:
                        break


def sweep(place: str) -> None:
    """Removes what no one has used for long, unless another process is unpacking or sweeping."""
    with contextlib.suppress(OSError), locked(place, wait=False):
        remove_unused(Path(place))


def remove_unused(place: Path) -> None:
    """Removes trees that no process has used for 30 days, and what a killed process left; under the lock."""
    for folder in place.iterdir():
        if folder.name.startswith("new-"):
            if os.name == "posix" or time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), open(folder / ".in-use", "rb+") as mark:
            if time.time() - os.fstat(mark.fileno()).st_mtime > UNUSED_SECONDS:
                lock(mark.fileno(), exclusive=True, wait=False)
                old = folder.rename(place / f"new-{folder.name}")
                shutil.rmtree(old, ignore_errors=True)
