"""The state folder: what must outlive a program lies there, a small file each."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import stat
import struct
import time
from collections.abc import Iterator

MAX_PRIVATE_BYTES = 2**20
LOCK_PATIENCE_SECONDS = 5.0  # for another process that writes there


def state_folder() -> pathlib.Path:
    """$STATE_DIRECTORY (systemd sets it for a service with StateDirectory=), else edge-compute-node in $XDG_STATE_HOME or
    ~/.local/state.

    It need not be there. Raises OSError where this user has no home.
    """
    if given := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return pathlib.Path(given)
    if home := os.environ.get("XDG_STATE_HOME"):
        return pathlib.Path(home) / "edge-compute-node"
    try:
        return pathlib.Path.home() / ".local/state/edge-compute-node"
    except RuntimeError as error:
        raise OSError("this user has no home folder, and STATE_DIRECTORY is not set") from error


class NotPrivate(PermissionError):
    """A file with a secret is not this user's alone; the text says what to do."""


def make_folder(folder: pathlib.Path) -> None:
    """Make it where it is not there, and those above it, for this user alone. Raises OSError."""
    missing = itertools.takewhile(lambda one: not one.exists(), (folder, *folder.parents))
    for one in reversed(list(missing)):
        one.mkdir(mode=0o700, exist_ok=True)


def check_folder(folder: pathlib.Path) -> None:
    """Raises NotPrivate where another user than this one or root could put files in the place of ours. Raises OSError."""
    with naming(folder, "read"):
        status = folder.stat()
    if os.name == "posix" and status.st_uid not in (os.geteuid(), 0):
        owner = user_name(status.st_uid)
        raise NotPrivate(f"the folder {folder} belongs to another user, {owner}: run as {owner}, or give another folder")
    if os.name == "posix" and status.st_mode & 0o022:
        raise NotPrivate(f"others may write in the folder {folder}, which holds secrets: chmod go-w {folder}")


def read_private(path: pathlib.Path) -> str:
    """What a file with a secret holds; what is no UTF-8 becomes �.

    Raises OSError, with a sentence that names the file: FileNotFoundError, NotPrivate where others may read it, or where it is
    neither this user's nor root's (whoever owns it can change it).
    """
    with naming(path, "read"):
        # A FIFO must not be waited for. What is looked at is what is read: a path may lead elsewhere a moment later.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{path} is no file")
            if os.name == "posix":  # what Windows tells of a mode says nothing
                if status.st_uid not in (os.geteuid(), 0):
                    owner = user_name(status.st_uid)
                    raise NotPrivate(f"{path} belongs to another user, {owner}: run as {owner}, or give another file")
                if others_may(file.fileno(), status.st_mode):
                    raise NotPrivate(f"others may read {path}, which holds a secret: chmod 600 {path}")
            content = file.read(MAX_PRIVATE_BYTES + 1)
        if len(content) > MAX_PRIVATE_BYTES:
            raise OSError(f"{path} is larger than any such file: over {MAX_PRIVATE_BYTES // 1024} KiB")
    return content.decode(errors="replace")


def others_may(descriptor: int, mode: int) -> bool:
    """Whether another user may read or change an open file: by its mode, and by its access list where it has one.

    systemd hands credentials over so: root's file, and the service's user in its list. The mode's bits of the group are then what
    any in the list may at most (acl(5)), and the list says who.
    """
    if mode & 0o007 or not mode & 0o070:
        return bool(mode & 0o007)
    try:
        entries = struct.iter_unpack("<HHI", os.getxattr(descriptor, "system.posix_acl_access")[4:])
    except (OSError, AttributeError):  # it has none, or the system knows of none
        return True
    own, user, mask, others = 0x01, 0x02, 0x10, 0x20  # kinds of entries; the rest are of groups
    ours = {(user, os.geteuid()), (user, 0)}
    return any(may and kind not in (own, mask, others) and (kind, who) not in ours for kind, may, who in entries)


def write_private(path: pathlib.Path, text: str) -> None:
    """Put this in the place of a file, for this user alone (0600). It is on the disk when this returns; else nothing has changed.

    Makes the folder. A link is replaced, not followed. Raises OSError, with a sentence that names the file.
    """
    aside = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    with naming(path, "write"):
        make_folder(path.parent)
        try:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # the new name, too; Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):  # some network file systems can't, and keep it as well as they can
                os.fsync(folder)
            os.close(folder)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Hold a folder against other processes that change it. Makes it where it is not there. Raises OSError, with a sentence."""
    path = folder / "lock"  # a file for it: network file systems lock no folder
    with naming(folder, "write in"):
        make_folder(folder)
        check_folder(folder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(descriptor):
        with naming(path, "lock"):
            wait_for_lock(descriptor, path)
        yield


def wait_for_lock(descriptor: int, path: pathlib.Path) -> None:
    """Raises OSError; BlockingIOError after LOCK_PATIENCE_SECONDS."""
    try:
        import fcntl
    except ImportError:  # Windows: two who write at once there lose what one of them wrote
        return
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BlockingIOError(f"another process holds {path}, and does not end: try again; fuser {path} says who") from None
        time.sleep(0.02)


@contextlib.contextmanager
def naming(path: pathlib.Path, verb: str) -> Iterator[None]:
    """Gives the system's errors a text that people can use, and leaves their type as it is."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        raise type(error)(f"cannot {verb} {path}: {(error.strerror or str(error)).lower()}") from error


def user_name(number: int) -> str:
    """Of a user of this machine."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


class StateFile:
    """A small file that one process holds: another that opens it meanwhile is refused. Every error is an OSError."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens it, or makes it, and its folder, for this user alone."""
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            import fcntl
        except ImportError:  # Windows: two agents of one user may meet there
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def read(self) -> str:
        """What it holds; empty for a new one. What is no UTF-8 becomes �."""
        self._file.seek(0)
        return self._file.read(2**16).decode(errors="replace")

    def write(self, text: str) -> None:
        """Put this in its place: it is on the disk when this returns."""
        content = text.encode()
        self._file.seek(0)
        self._file.write(content)
        self._file.truncate(len(content))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of it."""
        self._file.close()
