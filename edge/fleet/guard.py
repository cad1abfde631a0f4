"""The guard of a secure server: who may come in. Every way in asks it, before it reads anything."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import grpc

from edge.command_line import Endpoint, parse_endpoint
from edge.credentials import Role
from edge.fleet.certificates import Client, OwnKey, Told, UserFiles, chosen_folder
from edge.fleet.joining import Joining, is_near, own_addresses
from edge.fleet.row import End, Refused
from edge.fleet.tokens import Tokens, authorization_of
from edge.program import Failure
from edge.protocol import check_node_id
from edge.text import visible

if TYPE_CHECKING:
    import ssl

NAMES_TOLD = 5  # of a certificate
TOLD_SECONDS = 60.0  # from one line about silent connections to the next


class Guard:
    """A server's key and tokens, or its user's certificates, and who may come in by them."""

    def __init__(
        self,
        folder: pathlib.Path | None = None,
        certificate: pathlib.Path | None = None,
        key: pathlib.Path | None = None,
        client_ca: pathlib.Path | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Makes a key and tokens where there are none. Raises Failure where that, or a file, can't be used."""
        self.folder = chosen_folder(folder)
        self._is_named = bool(folder or os.environ.get("STATE_DIRECTORY"))  # else a shell of the same user finds it by itself
        self._key = OwnKey(self.folder)
        self._files = UserFiles(certificate, key, client_ca, wall) if certificate and key else None
        self._wants_certificates = client_ca is not None
        self.tokens = Tokens(self.folder, self._key, names_key=not self._files, by_certificates=self._wants_certificates, wall=wall)
        self.visitors = Visitors()
        self._own_tls: ssl.SSLContext | None = None  # of the server's own key, for HTTP
        self._bound: Sequence[Endpoint] = ()
        self._http: Endpoint | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What the server presents. Each connection asks for it, and is counted so."""
        return (self._files or self._key).server_credentials(self.visitors.come)

    def tls_context(self) -> ssl.SSLContext:
        """The same for HTTP, for one connection. Raises Failure at the first call, if ever."""
        if self._files:
            return self._files.tls_context()
        if not self._own_tls:
            self._own_tls = self._key.tls_context()
        return self._own_tls

    def admit(self, metadata: Iterable[tuple[str, str | bytes]] | None, role: Role) -> str:
        """The id of the token that lets a call in, by its headers; empty where its certificate does. Raises Refused."""
        if self._wants_certificates and role is Role.NODE:  # the handshake has checked it
            return ""
        return self.tokens.check(authorization_of(metadata), role)

    def check_name(self, identity: Mapping[str, Iterable[bytes]], node_id: str) -> Client | None:
        """The peer's certificate, as gRPC tells it; None where none is wanted. Raises Refused where it does not name this node."""
        if not (self._files and self._wants_certificates):
            return None
        try:
            client = self._files.client_of(identity)
        except ValueError as error:
            raise Refused(str(error), grpc.StatusCode.UNAUTHENTICATED) from error
        with contextlib.suppress(ValueError):  # of an id that can't be: the registry says what is wrong with it
            if check_node_id(node_id) not in client.names:  # what it has can all be printed, so no other name is cut to it
                told = ", ".join(dict.fromkeys(visible(name, 63) for name in client.names[:NAMES_TOLD]))
                reason = f"the certificate is for {told or 'no name'}: not for a node {visible(node_id)}; see --id"
                raise Refused(reason, grpc.StatusCode.PERMISSION_DENIED)
        return client

    def why_over(self, client: Client) -> End | None:
        """Why a certificate that was accepted would not be any longer; None while it would."""
        why = self._files.why_over(client) if self._files else ""
        return End(why, grpc.StatusCode.UNAUTHENTICATED) if why else None

    def refresh(self) -> list[Told]:
        """Follow the files as they are now, which costs a look at each while they have not changed. Returns what is to be told."""
        told = [Told("warning", trouble)] if (trouble := self.tokens.refresh()) else []
        if self._files and (news := self._files.refresh()):
            told += news
            if self._bound:
                try:
                    self.set_listening(self._bound, self._http)  # a new certificate may have another name
                except Failure as error:
                    told.append(Told("warning", str(error)))
        return told

    @property
    def name(self) -> str:
        """That the user's certificate is for; empty where it is the server's own."""
        return self._files.name if self._files else ""

    @property
    def names(self) -> Sequence[str]:
        """All that the user's certificate is for, wildcards among them."""
        return self._files.names if self._files else ()

    @property
    def pin(self) -> str:
        """Of the server's own key, as curl's --pinnedpubkey has it."""
        return self._key.pin

    def why_silent(self) -> str:
        """What connections without a call may be."""
        certificate = "showed no certificate of your authority, or " * self._wants_certificates
        return f"they spoke no TLS, or {certificate}do not trust this server (then the node says so)"

    def over(self, token_ids: Iterable[str]) -> Iterator[tuple[str, End]]:
        """Those of these tokens that let nobody in any more, and why."""
        for token_id in token_ids:
            if end := self.tokens.why_over(token_id):
                yield token_id, end

    def set_listening(self, bound: Sequence[Endpoint], http: Endpoint | None = None) -> None:
        """Keep where the server is reached, by nodes and by HTTP, for `token list` to tell. Raises Failure."""
        self._bound, self._http = bound, http
        told = [Endpoint(self.name, bound[0].port)] if self.name else bound  # another address would not be in the certificate
        self.tokens.set_listening(told, http._replace(host=self.name) if self.name and http and not is_near(http.host) else http)

    def joining(self, addresses: Sequence[str]) -> Joining:
        """How a box gets in, as of now: tokens come and go. `addresses`: this machine's, for a certificate that names none."""
        if self.name:
            addresses = own_addresses([Endpoint(self.name, parse_endpoint(addresses[0]).port)])
        return self.tokens.joining(addresses, str(self.folder.absolute()) if self._is_named else "")


class Visitors:
    """Counts connections that make no call.

    gRPC says nothing of them: but it asks for the certificate at each that it accepts, and each call says by which it came. Some
    calls are always on their way, and most in the storm in which a fleet comes back: what counts is the smallest difference of a
    minute. It may be too small, where one connection makes many calls; too large only where a storm lasts longer than that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = self._called = 0  # connections
        self._recent: set[str] = set()  # that made a call in this minute
        self._before: set[str] = set()  # and in the one before: so a unary node counts once
        self._least = self._told = 0
        self._tell_at: float | None = None

    def come(self) -> None:
        """A connection comes. Called by gRPC, in any thread."""
        with self._lock:
            self._came += 1

    def call(self, peer: str) -> None:
        """A call comes by this connection. In the network thread, as all below."""
        if peer not in self._recent:
            self._recent.add(peer)
            self._called += peer not in self._before

    def leave(self, peer: str) -> None:
        """A stream is over, and most often its connection: another may have its port next."""
        self._recent.discard(peer)
        self._before.discard(peer)

    def tick(self, now: float) -> int:
        """How many more connections made no call; once a minute, else 0. `now`: seconds of any steady clock."""
        silent = self._came - self._called
        if self._tell_at is None:
            self._tell_at, self._least = now + TOLD_SECONDS, silent
        self._least = min(self._least, silent)
        if now < self._tell_at:
            return 0
        more, self._told = self._least - self._told, self._least
        self._tell_at, self._least = now + TOLD_SECONDS, silent
        self._recent, self._before = set(), self._recent
        return max(more, 0)
