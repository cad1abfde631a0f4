"""The tokens of a server: who may come in, to report or to look."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from edge.command_line import Endpoint
from edge.credentials import Role, Token
from edge.fleet.certificates import OwnKey
from edge.fleet.row import End


class Issued(NamedTuple):
    """What the file keeps of a token: no secret. Times are unix seconds."""

    id: str
    role: Role
    note: str
    created: float
    expires: float | None
    revoked: float | None


class Tokens:
    """tokens.json in the state folder, and who may come in by it. Any thread may call it."""

    def __init__(
        self, folder: pathlib.Path, key: OwnKey, names_key: bool | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        """Reads the file, or makes it with a node and a view token. Raises Failure.

        `names_key`: whether tokens name the server's own key; None: as the last server that was started with this folder.
        """
        raise NotImplementedError

    def issue(self, role: Role, note: str, expires: float | None) -> Issued:
        """Make a token. Raises Failure."""
        raise NotImplementedError

    def revoke(self, token_id: str) -> Issued:
        """By its id, or the first digits of it. Raises Failure."""
        raise NotImplementedError

    def issued(self) -> list[Issued]:
        """All of them, the oldest first."""
        raise NotImplementedError

    def token_of(self, issued: Issued) -> Token:
        """With its secret."""
        raise NotImplementedError

    def newest(self, role: Role) -> str:
        """The line to paste of the newest valid token of a role; empty where there is none."""
        raise NotImplementedError

    def set_listening(self, bound: Sequence[Endpoint]) -> None:
        """Where the server listens, for `token list` to tell. Raises Failure."""
        raise NotImplementedError

    def refresh(self) -> str:
        """Read the file again if it has changed. Returns what is wrong with it, once: the old one stays in force. Empty else."""
        raise NotImplementedError

    def check(self, authorization: str | None, role: Role) -> str:
        """The id of the token that lets a call in. Raises Refused."""
        raise NotImplementedError

    def why_over(self, token_id: str) -> End | None:
        """Why a token that let a call in would no longer."""
        raise NotImplementedError


def authorization_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The value for `check` from a call's metadata; None where it has none."""
    raise NotImplementedError
