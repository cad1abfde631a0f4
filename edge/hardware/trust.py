"""How a node knows its servers, and what it proves itself by: tokens, certificates, and the channels that they open."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import grpc

from edge.command_line import target_of
from edge.credentials import Token
from edge.hardware.errors import SessionEnded, explain
from edge.protocol import CHANNEL_OPTIONS

Metadata = tuple[tuple[str, str], ...]


def slowly() -> float:
    """Seconds before the next try of who was refused: the slow end of the backoff, jittered as it is."""
    return random.uniform(15, 30)


class Trust:
    """A node's tokens and files, and the channels that they open. One session after the other: the heartbeat thread's own."""

    def __init__(self, tokens: Sequence[Token] = (), retry_seconds: Callable[[], float] = slowly) -> None:
        self._given = tokens
        self.retry_seconds = retry_seconds

    @contextlib.contextmanager
    def channel(self, server: str) -> Iterator[tuple[grpc.Channel, Metadata]]:
        """A channel to the server, and what each call on it must bring along. Raises SessionEnded where there can be none."""
        with grpc.insecure_channel(target_of(server), options=CHANNEL_OPTIONS) as channel:
            yield channel, ()

    def explain(self, error: grpc.RpcError, server: str) -> SessionEnded:
        """gRPC's error, on the channel that was opened last, in words that say what to do."""
        return explain(error, server)

    def tries_another(self, server: str, ended: SessionEnded) -> bool:
        """Whether the next session with this server, with another token, should follow at once."""
        return False

    def accepted(self, server: str) -> str:
        """The server took the token: it is saved. Returns why it can't be, once."""
        return ""


