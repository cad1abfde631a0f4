"""Why a session with a server ended, in words that say what to do: gRPC's errors come through here. And what is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc
import grpc.aio

from edge.credentials import without_tokens
from edge.text import MAX_SENTENCE, visible


class SessionEnded(Exception):
    """A session is over and another may follow. `code` is gRPC's, or None where the node ended it; the text says why. `is_gone`:
    the server goes, or is not there, for all its nodes."""

    def __init__(self, reason: str, code: grpc.StatusCode | None = None, is_gone: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.is_gone = is_gone


class Distrust(SessionEnded):
    """One end does not trust the other: people have to mend it. `of_token`: another token may fit."""

    def __init__(self, reason: str, code: grpc.StatusCode | None = None, of_token: bool = False) -> None:
        super().__init__(reason, code)
        self.of_token = of_token


def explain(error: grpc.RpcError, server: str, flag: str = "--server") -> SessionEnded:
    """gRPC's error, the one kind that a session meets, in words that say what to do. The details come from outside."""
    code, details = error.code(), without_tokens(visible(error.details() or "", MAX_SENTENCE))
    known = {
        "Connection refused": f"nothing listens on {server} (is the server running?)",
        "address lookup failed": f"cannot resolve {server} (check the name, or give {flag} an address)",
        "No route to host": f"no route to {server} (is it in reach of this network?)",
        "Network is unreachable": f"no route to {server} (is this box's network up?)",
        "Failed parsing HTTP/2": f"{server} is no gRPC server (is the port right?)",
        "http1.x server": f"{server} is no gRPC server (is the port right?)",
        "Connection reset": f"{server} broke the connection",
        "Socket closed": f"{server} broke the connection",
        "ping timeout": f"{server} does not answer: the connection is half-open",
        "recvmsg:Connection timed out": f"{server} does not answer: the connection is half-open",
        "Connection timed out": f"{server} does not answer (is it on, and its port open in the firewall?)",
    }
    if code is grpc.StatusCode.UNAVAILABLE:
        for part, reason in known.items():
            if part.lower() in details.lower():
                return SessionEnded(reason, code, is_gone=part == "Connection refused")
    reason = f"{server}: {details or 'no reason given'} ({code.name})"
    return SessionEnded(reason, code, is_gone=code is grpc.StatusCode.UNAVAILABLE)


class ErrorEvents(logging.Handler):
    """What is logged of exceptions in a thread, by gRPC, asyncio or us: an event, where stderr would go across the screen."""

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, grpc.aio.InternalError):  # a node that is gone, or does not read, could not be answered
            return
        self._tell(record.getMessage().strip() + (f": {error!r}" if error else ""))


def tells_no_header(record: logging.LogRecord) -> bool:
    """gRPC logs a header that is no UTF-8, whole: it may be a token, and whoever comes can send masses of them."""
    return not str(record.msg).startswith("Invalid encoding on")
