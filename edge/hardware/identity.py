"""The node's id: what the user says, or digits that this machine draws."""

from __future__ import annotations

import contextlib
import pathlib
import random
import socket
import uuid


def machine_digits(attempt: int) -> str:
    """Digits derived from this machine's id, the same after a restart; others for each attempt, and more of them later."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            if machine := pathlib.Path(path).read_text().strip():
                break
    else:
        machine = f"{uuid.getnode()} {socket.gethostname()}"
    return draw_digits(attempt, random.Random(f"{machine} {attempt}"))


def draw_digits(attempt: int, source: random.Random) -> str:
    """Four digits; more after some attempts, since a large fleet uses up the short ones."""
    lowest = 10 ** (3 + attempt // 3)
    return str(lowest + int(source.random() * 9 * lowest))


class Identity:
    """The node's id: the user's; or drawn from this machine's id, or by `chance` for simulated hardware, again when it is taken."""

    def __init__(self, given: str | None, chance: random.Random | None) -> None:
        self.given = given
        self._chance = chance
        self._attempt = 0
        self.node_id = given or self._draw()

    def redraw(self) -> str:
        """Another one: the one before is taken."""
        self._attempt += 1
        self.node_id = self._draw()
        return self.node_id

    def _draw(self) -> str:
        digits = draw_digits(self._attempt, self._chance) if self._chance else machine_digits(self._attempt)
        return f"Node-{digits}"
