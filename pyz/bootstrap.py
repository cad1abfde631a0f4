"""The first thing in server.pyz and node.pyz: finds this Python's libraries in the cache and starts the program.

A C extension can't be imported from a zip, so the libraries are unpacked once, by unpack.py, and found again at each later start.
This file is compiled at each start: it holds what a warm one needs, and nothing else.
"""

from __future__ import annotations

import _imp
import os
import stat
import sys
import time
import zipimport

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

ARCHIVE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAME = os.path.basename(ARCHIVE)
# All unpacked files have this time, in seconds since 1970: whatever writes to one later changes it.
FILE_TIME = 946684800
DAY_SECONDS = 86400
# What a box may set for other programs, up to an abort (GRPC_POLL_STRATEGY). Only what shows what gRPC does is left.
STEERING, SHOWING = ("PROTOCOL_BUFFERS_", "GRPC_", "OPENSSL_"), ("GRPC_VERBOSITY", "GRPC_TRACE")
# What damage neither size nor time tells shows when an import fails. Then all is read and mended, and started again, once.
REPAIR = bool(os.environ.pop("EDGE_REPAIR", ""))
Files = list[list[str]]  # each [part, size in bytes, CRC-32, path]


def find_key() -> str:
    """Names what this Python can load (which is not what the machine is called), like cpython-312-aarch64-linux-gnu."""
    key = _imp.extension_suffixes()[0].split(".")[1]
    if key.endswith("-darwin"):
        return f"{key}-{os.uname().machine}"
    if key.endswith("-linux-gnu"):
        try:
            libc = os.confstr("CS_GNU_LIBC_VERSION")
        except (OSError, ValueError):
            libc = None
        if not libc:  # a Python 3.10 on musl calls itself gnu all the same
            return key.removesuffix("gnu") + "musl"
    return key


def find_places() -> list[str]:
    """Lists the folders where the cache may lie, best first. EDGE_CACHE leaves no other choice."""
    if os.environ.get("EDGE_CACHE"):
        return [os.path.join(os.path.abspath(os.environ["EDGE_CACHE"]), "edge-compute-node")]
    if sys.platform == "win32":
        return [os.path.join(os.environ[name], "edge-compute-node") for name in ("LOCALAPPDATA", "TEMP") if name in os.environ]
    places = []
    home = os.path.expanduser("~")
    if os.environ.get("XDG_CACHE_HOME"):
        places.append(os.environ["XDG_CACHE_HOME"] + "/edge-compute-node")
    elif os.path.isdir(home) and home != "/":  # a service may have none; then it is not for us to make one
        places.append(home + "/.cache/edge-compute-node")
    shared = ("/var/tmp", os.environ.get("TMPDIR", "/tmp"), "/dev/shm")
    places += [f"{folder}/edge-compute-node-{os.geteuid()}" for folder in shared]
    return [place for place in places if os.path.isabs(place)]


def refuse(place: str) -> str:
    """Says why code can't be loaded from this folder, or must not be; an empty string if nothing speaks against it."""
    if os.name != "posix":
        return ""
    folder = os.path.dirname(place)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    status = os.stat(folder)
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return f"anyone can replace what lies in {folder}"
    if os.path.lexists(place):
        folder, status = place, os.lstat(place)
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is not a folder"
    if folder == place and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write to {folder}"
    if status.st_uid not in (0, os.geteuid()):  # its owner could run code as this user; under sudo, as root
        return f"{folder} belongs to another user"
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        return f"{folder} is mounted noexec"
    return ""


def read_index(key: str) -> dict[str, Files]:
    """Returns the trees that this Python needs, the program's last. build.py's make_index describes the format."""
    trees: dict[str, Files] = {}
    wanted: dict[str, Files] = {}
    for line in zipimport.zipimporter(ARCHIVE).get_data("index").decode().splitlines():
        words = line.split(" ", 3)
        if words[0] in wanted:
            wanted[words[0]].append(words)
        elif words[0] == "tree" and words[1] in (key, "any"):
            trees[words[2]] = []
            wanted.update(dict.fromkeys(words[3].split(), trees[words[2]]))
    return trees


def lock(descriptor: int, *, exclusive: bool, wait: bool) -> None:
    """Locks an open file until it is closed. Raises BlockingIOError if another process has it and this one does not wait.

    Does nothing on Windows: no folder with an open file in it can be renamed there, so what is in use is safe without.
    """
    if fcntl:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))


def is_whole(path: str, size: str) -> bool:
    """Tells whether a file is as it was unpacked, without reading it."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size == int(size) and status.st_mtime == FILE_TIME


def take(tree: str, files: Files) -> bool:
    """Takes a tree into use if it is whole: a module that was cut off would be a SIGBUS, which nothing can catch.

    The lock on its mark is held as long as this process lives, so that no other one sweeps the tree away.
    """
    try:
        mark = os.open(f"{tree}/.in-use", os.O_RDONLY)
        lock(mark, exclusive=False, wait=False)
        if not all(is_whole(f"{tree}/{path}", size) for _, size, _, path in files):
            return False
        if time.time() - os.fstat(mark).st_mtime > DAY_SECONDS:
            os.utime(f"{tree}/.in-use")
            from pyz import unpack

            unpack.sweep(os.path.dirname(tree))
    except (OSError, ValueError):
        return False
    return True


def open_trees(trees: dict[str, Files]) -> str:
    """Returns the folder that holds these trees, in use from now on; unpacks what is missing or damaged."""
    for place in [] if REPAIR else find_places():
        if not refuse(place) and all(take(f"{place}/{tree}", files) for tree, files in trees.items()):
            return place
    from pyz import unpack

    place = unpack.unpack(trees, REPAIR)
    if not all(take(f"{place}/{tree}", files) for tree, files in trees.items()):
        sys.exit(f"{NAME}: something else changed what was just unpacked into {place}; start it again")
    return place


def shut_out() -> None:
    """Whatever this box has: our libraries and Python's own come first, with no environment that steers them, and no hooks.

    What PYTHONPATH names goes to the end: psutil may be there, where we have none.
    """
    os.umask(os.umask(0o022) | 0o022)  # what is written from here on, bytecode too, no one else can change
    named = {os.path.abspath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    sys.path[1:] = sorted(sys.path[1:], key=named.__contains__)
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__module__", "").startswith("_frozen_importlib")]
    for name in [name for name in os.environ if name.startswith(STEERING) and name not in SHOWING]:
        del os.environ[name]


def forget(folders: list[str]) -> None:
    """Drops what a .pth file or sitecustomize imported before us, where these folders have a module of that name."""
    ours = {name.partition(".")[0] for folder in folders for name in os.listdir(folder)}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]


def load() -> object:
    """Imports the program and returns its module."""
    while None in (sys.stdin, sys.stdout, sys.stderr):  # closed before the start: no file that is opened here may take its number
        if os.open(os.devnull, os.O_RDWR) > 2:
            break
    shut_out()
    key = find_key()
    trees = read_index(key)
    if len(trees) < 2:
        from pyz import unpack

        unpack.report_missing_target(key)
    place = open_trees(trees)
    *libraries, program = trees
    ours = [f"{place}/{tree}" for tree in (program, *libraries)]
    sys.path[:1] = ours
    sys.dont_write_bytecode, sys.pycache_prefix = False, None  # containers often turn it off: a start takes three times as long
    forget(ours)
    os.environ.update(EDGE_TREE=ours[1], EDGE_TARGET=libraries[0].rpartition("-")[0])
    try:
        return __import__(program.rpartition("-")[0])
    except Exception as error:
        sys.exit(mend(error))


def mend(error: Exception) -> str:
    """Starts again and mends the trees; returns what to say if that has been done, and to no end."""
    if not REPAIR:
        os.environ["EDGE_REPAIR"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if "--debug" in sys.argv:
        raise error
    return f"{NAME}: its libraries can't be loaded here: {error} (--debug says more)"
