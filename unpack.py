"""Unpacks the libraries of server.pyz and node.pyz: the cold start, once for each Python and version. bootstrap.py calls it.

The cache, a folder for one user:

    edge-compute-node/
      lock                           held while something is unpacked or swept
      cp312-linux-aarch64-3f2a…/     libraries: both programs share them, and so do their versions until a library changes
      node-91c0…/                    the program itself
        .in-use                      locked by each process that runs from here; its time is that of the last start, to the day
      new-…/                         being unpacked, or left there by one that was killed
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

try:
    import fcntl
except ImportError:  # Windows: two at once both unpack, and the first to rename wins
    fcntl = None  # type: ignore[assignment]

UNUSED_SECONDS = 30 * 86400
Files = list[list[str]]  # each [part, size, CRC-32, path]


def unpack(archive: str, places: list[str], refuse: Callable[[str], str], trees: dict[str, Files], repair: bool) -> str:
    """Puts the trees into the first place that takes them and returns it; exits with a sentence when none does."""
    check(archive)
    reasons = ""
    for place in places:
        reason = refuse(place)
        try:
            if not reason:
                os.makedirs(place, 0o700, exist_ok=True)
                reason = refuse(place)  # again, now that it is there: in a shared folder someone may have been quicker
            if not reason:
                with locked(place, wait=True):
                    for tree, files in trees.items():
                        restore(archive, Path(place, tree), files, repair)
                    remove_unused(Path(place))
                return place
        except OSError as error:
            reason = error.strerror or str(error)
        reasons += f"\n  {place}: {reason}"
    sys.exit(
        f"{Path(archive).name} found no folder to unpack its libraries into:{reasons}\n"
        "Set EDGE_CACHE to a folder of this user on a disk with 50 MB free and not mounted noexec."
    )


def check(archive: str) -> None:
    """Exits with a sentence when the file is damaged, or when this Python can't decompress it."""
    name = Path(archive).name
    try:
        import lzma  # noqa: F401
    except ImportError:
        sys.exit(f"{name} can't unpack its libraries: this Python ({sys.executable}) was built without lzma; use another one")
    try:
        with zipfile.ZipFile(archive) as pack:
            damaged = pack.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        damaged = str(error)
    if damaged:
        sys.exit(f"{name} is damaged ({damaged}): copy it again, and compare its SHA-256 with the one in SHA256SUMS")


def report_missing_target(archive: str, key: str) -> NoReturn:
    """Exits with a sentence that names the targets in the file, and the command that builds the one for this Python."""
    with zipfile.ZipFile(archive) as pack:
        lines = [line.split() for line in pack.read("index").decode().splitlines()]
    targets = [line[2].rpartition("-")[0] for line in lines if line[0] == "tree" and line[1] != "any"]
    command = [f"; build it: python3 build.py --target {line[2]}" for line in lines if line[:2] == ["known", key]]
    sys.exit(
        f"{Path(archive).name} has no libraries for this Python ({key}), only for {', '.join(targets)}"
        + (command[0] if command else "; use one of these")
    )


@contextlib.contextmanager
def locked(place: str, wait: bool) -> Iterator[None]:
    """Holds the place's lock. Raises BlockingIOError if another process has it and this one does not wait."""
    with open(place + "/lock", "ab") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def restore(archive: str, tree: Path, files: Files, repair: bool) -> None:
    """Puts in place what is missing, has another size or, when repairing, another content; under the lock.

    All is written aside and synced first, then renamed: a kill or a power cut leaves the tree as it was.
    """
    damaged = [row for row in files if not is_whole(tree / row[3], int(row[1]), row[2] if repair else None)]
    mark = tree / ".in-use"
    if repair:
        for folder in list(tree.rglob("__pycache__")):
            shutil.rmtree(folder)
    if not damaged and mark.exists():
        return
    if len(damaged) > 10 and sys.stderr and sys.stderr.isatty():
        print(f"{Path(archive).name}: unpacking into {tree} (once)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="new-", dir=tree.parent, ignore_cleanup_errors=True) as new:
        aside = Path(new, "tree")
        aside.mkdir()
        (aside / ".in-use").touch()
        extract(archive, damaged, aside)
        if hasattr(os, "sync"):
            os.sync()
        if not tree.exists():
            aside.rename(tree)
            return
        for row in damaged:
            (tree / row[3]).parent.mkdir(parents=True, exist_ok=True)
            (aside / row[3]).replace(tree / row[3])
        mark.touch()


def is_whole(path: Path, size: int, crc: str | None) -> bool:
    """Compares a file with its size and, unless None, its CRC-32."""
    try:
        return path.stat().st_size == size and (crc is None or f"{zlib.crc32(path.read_bytes()):08x}" == crc)
    except FileNotFoundError:
        return False


def extract(archive: str, files: Files, folder: Path) -> None:
    """Writes these files of the archive into the folder."""
    import lzma

    wanted = {f"{part}/{path}": folder / path for part, _, _, path in files}
    with zipfile.ZipFile(archive) as pack:
        for blob in sorted({part.partition("/")[0] for part, *_ in files}):
            with pack.open(blob + ".tar.xz") as packed, lzma.open(packed) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    path, content = wanted.pop(member.name, None), tar.extractfile(member)
                    if path and content:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with path.open("wb") as out:
                            shutil.copyfileobj(content, out, 1 << 20)
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
            if fcntl or time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), open(folder / ".in-use", "rb+") as mark:
            if time.time() - os.fstat(mark.fileno()).st_mtime > UNUSED_SECONDS:
                if fcntl:
                    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                old = folder.rename(place / f"new-{folder.name}")
                shutil.rmtree(old, ignore_errors=True)
