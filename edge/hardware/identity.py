"""Who this box is: the node's id that the user says, or one that the box draws, and keeps once it was accepted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import random
import socket
import uuid

from edge.files import read_text, reason
from edge.protocol import check_node_id
from edge.state_folder import StateFile, state_folder
from edge.text import encodable

MAX_DIGITS = 12
MULTICAST = 1 << 40  # a bit of a MAC: uuid.getnode() sets it in the number that it makes up where there is none (RFC 9562, 6.10)


def machine_text(root: pathlib.Path = pathlib.Path("/")) -> str:
    """What is this machine's own, and the same at each start: its id (machine-id(5)), else its MAC; empty where it has neither."""
    for path in ("etc/machine-id", "var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            text = read_text(root / path)
            if text.strip("0-") and text.lower() != "uninitialized":  # of an image that has not booted; of a disk that lost it
                return text
    node = uuid.getnode()
    return "" if node & MULTICAST else f"{node:012x}"


def simulated_text(seed: int) -> str:
    """The same of a box that does not exist."""
    return f"simulated {seed}"


def draw_id(machine: str, attempt: int) -> str:
    """ "Node-" and four digits, derived from the machine; others for each attempt, and more of them later, since a large fleet uses
    up the short ones."""
    lowest = 10 ** min(3 + attempt // 3, MAX_DIGITS - 1)
    return f"Node-{lowest + int(random.Random(f'{machine} {attempt}').random() * 9 * lowest)}"


class Identity:
    """The node's id.

    A drawn one may be another box's, and then the next is drawn. One that was accepted is this box's from then on: it is kept in
    the state folder, and is the first that the node asks for after a restart. It counts for the same machine alone, so that an
    image of a box takes no name along.
    """

    def __init__(self, given: str | None, machine: str, keeps: bool = True) -> None:
        """`given`: what the user says. `machine`: what the digits are drawn from; `keeps`: and kept, in the state folder."""
        self.given = given
        self.box_id = hashlib.sha256(machine.encode()).hexdigest()[:16] if machine else ""
        self.unkept = ""  # why the id will not be known after a restart
        self._machine = machine or encodable(socket.gethostname())
        self._attempt = 0
        self._file: StateFile | None = None
        kept = ""
        if not given and keeps:
            try:
                self._file = StateFile(state_folder() / "node-id")
                kept = self._read()
            except BlockingIOError:
                self.unkept = "another agent of this user keeps its own"
            except OSError as error:
                self.unkept = f"{reason(error)}{f': {error.filename}' if error.filename else ''}"
        self._kept = kept
        self.node_id = given or kept or draw_id(self._machine, 0)

    @property
    def is_own(self) -> bool:
        """Whether a server has accepted this id before."""
        return self.node_id == self._kept

    def close(self) -> None:
        """Let another agent of this user keep its id."""
        if self._file:
            self._file.close()
            self._file = None

    def redraw(self) -> str:
        """Another one: the one before is taken."""
        taken = self.node_id
        while self.node_id == taken:  # the one that was kept may be the next in turn
            self._attempt += 1
            self.node_id = draw_id(self._machine, self._attempt)
        return self.node_id

    def accepted(self) -> None:
        """A server has taken the node under this id: it is kept, if it was drawn."""
        if self.is_own:
            return
        self._kept = self.node_id
        if self._file:
            try:
                self._file.write(json.dumps({"node_id": self.node_id, "box_id": self.box_id}) + "\n")
            except OSError as error:
                self.unkept = reason(error)

    @property
    def may_change(self) -> str:
        """Why the node may have another id after a restart; empty when it can't: the first that a box draws is always the same."""
        drawn_again = not self.given and self.node_id != draw_id(self._machine, 0)
        return self.unkept if drawn_again else ""

    def _read(self) -> str:
        """The id that was kept; empty where there is none, it is damaged, or another box's. Raises OSError."""
        assert self._file
        try:
            kept = json.loads(self._file.read() or "{}")
            same = kept.get("box_id") == self.box_id
            return check_node_id(kept.get("node_id", "")) if same else ""
        except (ValueError, TypeError, AttributeError, RecursionError):
            return ""
