"""The server's own key and certificate, or the user's."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import grpc

from edge.credentials import Role


class Pair(NamedTuple):
    """What a server presents, in PEM both."""

    key: bytes
    certificate: bytes


class OwnKey:
    """The server's own key, in the state folder. `makes`: whether it is made where there is none."""

    def __init__(self, folder: pathlib.Path, makes: bool = True) -> None:
        """Raises Failure, one sentence with the next step."""
        self.public = b""  # compressed, 33 bytes
        raise NotImplementedError

    def secret_of(self, role: Role, token_id: str) -> bytes:
        """Of a token."""
        raise NotImplementedError

    def own_certificate(self) -> Pair:
        """Made anew at each call."""
        raise NotImplementedError


class UserFiles:
    """--tls-cert, --tls-key, --client-ca."""

    def __init__(self, certificate: pathlib.Path, key: pathlib.Path, client_ca: pathlib.Path | None) -> None:
        """Raises Failure, one sentence with the next step."""
        self.warnings: list[str] = []
        raise NotImplementedError

    def server_credentials(self) -> grpc.ServerCredentials:
        """Read again when they change."""
        raise NotImplementedError
