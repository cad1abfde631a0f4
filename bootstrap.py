"""What runs first in server.pyz and node.pyz: finds this Python's libraries in the cache and starts the program.

A C extension can't be imported from a zip, so the libraries are unpacked once (unpack.py) and found again at each later start. This
file becomes __main__.py of both and is compiled at each start: it holds what a warm start needs, and nothing else. Python 2.7 must
be able to parse it, so that an old Python gets a sentence and not a SyntaxError.
"""

import os
import sys

ARCHIVE = os.path.dirname(os.path.abspath(__file__))
NAME = os.path.basename(ARCHIVE)

if sys.version_info < (3, 10):
    sys.exit("%s needs Python 3.10 or newer; this is Python %d.%d (%s)" % ((NAME,) + sys.version_info[:2] + (sys.executable,)))

import _imp  # noqa: E402
import stat  # noqa: E402
import time  # noqa: E402

try:
    import fcntl
except ImportError:  # Windows: a folder with loaded DLLs can't be renamed there, so a tree in use needs no other lock
    fcntl = None  # type: ignore[assignment]

DAY_SECONDS = 86400


def find_key():
    # type: () -> str
    """Names what this Python can load (not what the machine is called), like cpython-312-aarch64-linux-gnu."""
    key = _imp.extension_suffixes()[0].split(".")[1]
    if key.endswith("-darwin"):
        return key + "-" + os.uname()[4]
    if key.endswith("-linux-gnu"):
        try:
            os.confstr("CS_GNU_LIBC_VERSION")
        except (OSError, ValueError):  # a Python 3.10 built on musl calls itself gnu all the same
            return key[:-3] + "musl"
    return key


def find_places():
    # type: () -> list[str]
    """Lists the folders where the cache may lie, best first. EDGE_CACHE leaves no other choice."""
    if os.environ.get("EDGE_CACHE"):
        return [os.path.join(os.path.abspath(os.environ["EDGE_CACHE"]), "edge-compute-node")]
    if sys.platform == "win32":
        return [os.path.join(os.environ[name], "edge-compute-node") for name in ("LOCALAPPDATA", "TEMP") if name in os.environ]
    home = os.path.expanduser("~")  # a service's may not exist, and then it's not for us to make it
    own = os.environ.get("XDG_CACHE_HOME") or (os.path.isdir(home) and home + "/.cache")
    shared = ["/var/tmp", os.environ.get("TMPDIR", "/tmp"), "/dev/shm"]
    places = [own and own + "/edge-compute-node"] + ["%s/edge-compute-node-%d" % (folder, os.geteuid()) for folder in shared]
    return [place for place in places if place and os.path.isabs(place)]


def refuse(place):
    # type: (str) -> str
    """Says why code can't be loaded from this folder, or must not be; an empty string if nothing speaks against it."""
    if os.name != "posix":
        return ""
    folder = os.path.dirname(place)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    status = os.stat(folder)
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return "anyone can replace what lies in %s" % folder
    if os.path.lexists(place):
        folder, status = place, os.lstat(place)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "%s can be written to by others" % folder
    if not stat.S_ISDIR(status.st_mode):
        return "%s is not a folder" % folder
    if status.st_uid not in (0, os.geteuid()):  # its owner could run code as this user; under sudo, as root
        return "%s belongs to another user" % folder
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        return "%s is mounted noexec" % folder
    return ""


def read_index(key):
    # type: (str) -> dict[str, list[list[str]]]
    """Returns the two trees that this Python needs, libraries and program, each with its files as [part, size, CRC-32, path].

    build.py's make_index describes the format."""
    trees, wanted = {}, {}  # type: dict[str, list[list[str]]], dict[str, list[list[str]]]
    for line in __loader__.get_data(os.path.join(ARCHIVE, "index")).decode().splitlines():  # type: ignore[name-defined]
        words = line.split(" ", 3)
        if words[0] in wanted:
            wanted[words[0]].append(words)
        elif words[0] == "tree" and words[1] in (key, "any"):
            trees[words[2]] = []
            wanted.update(dict.fromkeys(words[3].split(), trees[words[2]]))
    return trees


def take(tree, files):
    # type: (str, list[list[str]]) -> bool
    """Takes a tree into use if it is whole: a truncated extension module would be a SIGBUS, which nothing can catch.

    The lock on its mark is held as long as this process lives, so that no other one sweeps the tree away."""
    try:
        mark = os.open(tree + "/.in-use", os.O_RDONLY)
        if fcntl:
            fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if any(os.stat(tree + "/" + path).st_size != int(size) for _, size, _, path in files):
            return False
        if time.time() - os.fstat(mark).st_mtime > DAY_SECONDS:
            os.utime(tree + "/.in-use")
            import unpack

            unpack.sweep(os.path.dirname(tree))
    except OSError:
        return False
    return True


def open_trees(trees, repair):
    # type: (dict[str, list[list[str]]], bool) -> str
    """Returns the folder that holds both trees, in use from now on; unpacks what is missing or damaged."""
    places = find_places()
    for place in places:
        if not repair and not refuse(place) and all(take(place + "/" + tree, files) for tree, files in trees.items()):
            return place
    import unpack

    place = unpack.unpack(ARCHIVE, places, refuse, trees, repair)
    if not all(take(place + "/" + tree, files) for tree, files in trees.items()):
        sys.exit("%s: something else changed what was just unpacked into %s; start it again" % (NAME, place))
    return place


def main():
    # type: () -> int
    """Starts the program and returns its exit status."""
    key = find_key()
    trees = read_index(key)
    if len(trees) < 2:
        import unpack

        unpack.report_missing_target(ARCHIVE, key)
    # Sizes don't tell what only reading each file would. So if the import fails, all is read and repaired, and started again, once.
    repairing = os.environ.pop("EDGE_REPAIR", "")
    place = open_trees(trees, bool(repairing))
    libraries, program = trees
    sys.path[:1] = [os.path.join(place, program), os.path.join(place, libraries)]
    sys.dont_write_bytecode = False  # without its cache of bytecode a start takes three times as long; containers often turn it off
    sys.pycache_prefix = None
    for name in [name for name in sys.modules if name.partition(".")[0] == "google"]:
        del sys.modules[name]  # another package's .pth file may have put its own there at start
    os.environ.update(EDGE_TREE=sys.path[1], EDGE_TARGET=libraries.rpartition("-")[0])
    try:
        module = __import__(program.rpartition("-")[0])
    except Exception as error:
        if not repairing:
            os.environ["EDGE_REPAIR"] = "1"
            os.execv(sys.executable, [sys.executable] + sys.orig_argv[1:])
        if "--debug" in sys.argv:
            raise
        sys.exit("%s: its libraries can't be loaded here: %s (--debug says more)" % (NAME, error))
    return int(module.main())


if __name__ == "__main__":
    sys.exit(main())
