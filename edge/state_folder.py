"""The state folder: what must outlive a program lies there, a small file each."""

from __future__ import annotations

import os
import pathlib


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


class StateFile:
    """A small file that one process holds: another that opens it meanwhile is refused. Every error is an OSError."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens it, or makes it, and its folder, for this user alone."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
