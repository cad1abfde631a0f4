"""The HTTP listener: uvicorn's protocol in the loop that takes the heartbeats, within bounds of its own.

Connections are accepted here, since uvicorn knows of none before its handshake is over, and closes none that is slow.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import math
import re
import socket
import sys
import time
from asyncio.sslproto import SSLProtocol
from typing import Any, cast

import h11
import uvicorn
from starlette.routing import Router
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from edge.command_line import Endpoint
from edge.fleet.admission import network_of
from edge.fleet.joining import Web, web_of
from edge.fleet.listening import HTTP_CONNECTIONS, listening_socket
from edge.web import api, files, scrape
from edge.web.files import status_of
from edge.web.gate import ALWAYS, PIECE_BYTES, Gate, Pace, is_loopback, nothing_here, sentence
from edge.web.site import Site

CONNECTIONS_OF_ONE, CONNECTIONS_OF_THIS_MACHINE = 64, 128  # of a network; of HTTP_CONNECTIONS in all
CONNECTIONS_A_REQUEST = 2  # in a second: who has asked too often is told so, and beyond that he is not
MAX_REQUEST_BYTES = 16 * 1024  # of a request's line and headers
MAX_REQUEST_LINES = 128  # each costs more than its bytes do
HEAD_END = re.compile(rb"\n\r?\n")  # of a request's line and headers, as h11 has it
READ_BYTES = 1024  # read at once of what has come
TLS_BYTES = 16 * 1024  # that asyncio holds for each connection of TLS, to read into: 256 KiB, where it is not told
FIRST_REQUEST_SECONDS = 10.0  # from the connection to a request that is whole, TLS included
KEEP_ALIVE_SECONDS = 30.0  # from an answer to the next request that is whole
STUCK_SECONDS = 30.0  # that a client may take nothing of what was written; and
PATIENCE_SECONDS = 60.0  # that it may be waited for in all, while
TAKEN_SECONDS = 5.0  # of these it has back with each buffer that it takes: so it may be as slow as 10 kB/s
LOOK_SECONDS = 1.0  # from one look at all connections to the next
LEAVING_SECONDS = 0.3  # that answers under way have when the server goes
LOST_SECONDS = 1.0  # till the next try, where a connection can't be accepted: no file may be opened


class Connection(H11Protocol):
    """One client's, from its TCP connection on."""

    def __init__(self, config: uvicorn.Config, state: ServerState, address: str) -> None:
        super().__init__(config, state, {"address": address})
        self.network = network_of(address)
        self.idle_since = time.monotonic()  # when it was accepted, or answered last
        self._request_due = self.idle_since + FIRST_REQUEST_SECONDS
        self._stuck_since = math.inf
        self._patience_seconds = PATIENCE_SECONDS
        self._unread = b""
        self.opening: asyncio.Task[None] | None = None  # until its handshake is over

    # ---- What the listener asks ----

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request; or has been given up."""
        return self.cycle is None or self.cycle.response_complete or self.transport.is_closing()

    @property
    def token_id(self) -> str:
        """That let in what is under way; empty where none is."""
        return "" if self.is_idle else self.cycle.scope["state"].get("token_id", "")

    def is_over(self, now: float) -> bool:
        """Whether it has taken more time than it has; or its answer was given up."""
        if self.is_idle:
            return now > min(self._request_due, self._stuck_since + STUCK_SECONDS)
        state = self.cycle.scope["state"]
        patience = STUCK_SECONDS if "is_endless" in state else min(STUCK_SECONDS, self._patience_seconds)
        return "is_left" in state or now > self._stuck_since + patience

    def end(self) -> None:
        """At once: what was not sent is not."""
        if self.transport:
            self.transport.abort()
        elif self.opening:
            self.opening.cancel()

    # ---- What asyncio and uvicorn call ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(PIECE_BYTES)

    def data_received(self, data: bytes) -> None:
        """h11 takes a request of any size, if it comes at once, and all that was sent after it: so it is given one at a time."""
        self._unread += data
        self._read()

    def _read(self) -> None:
        while self._unread and self.is_idle and not self.transport.is_closing():
            begun = self.conn.trailing_data[0]  # what h11 has of it
            if not begun and self._unread.startswith(b"\r\n"):  # an empty line may come before a request (RFC 9112, 2.2)
                self._unread = self._unread[2:]
            head = begun + self._unread[:READ_BYTES]
            if end := HEAD_END.search(head):
                head = head[: end.end()]
            if len(head) > MAX_REQUEST_BYTES:
                kib = MAX_REQUEST_BYTES // 1024
                self._refuse(431, f"the request has more than {kib} KiB of headers: send fewer, or shorter ones")
                return
            if head.rstrip().count(b"\n") > MAX_REQUEST_LINES:
                self._refuse(431, f"more than {MAX_REQUEST_LINES} headers: send fewer")
                return
            data, self._unread = head[len(begun) :], self._unread[len(head) - len(begun) :]
            if data:  # to h11, nothing is the end
                super().data_received(data)
        if self._unread:
            self.flow.pause_reading()

    def on_response_complete(self) -> None:
        self.idle_since = time.monotonic()
        self._request_due = self.idle_since + KEEP_ALIVE_SECONDS
        self._patience_seconds = PATIENCE_SECONDS
        super().on_response_complete()
        if not self.transport.is_closing():
            self.loop.call_soon(self._read)

    def pause_writing(self) -> None:
        self._stuck_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        waited = time.monotonic() - self._stuck_since
        self._patience_seconds = min(self._patience_seconds - waited + TAKEN_SECONDS, PATIENCE_SECONDS)
        self._stuck_since = math.inf
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        del msg
        error = sys.exc_info()[1]
        if error:
            error.__traceback__ = None  # its frames hold it, and this connection
        self._refuse(400, "this is no request of HTTP/1.1: is it meant for this port, or for https?")

    def _refuse(self, status: int, text: str) -> None:
        """Of what can't be read: no route is asked, and nothing more is heard."""
        if not self.is_idle:
            self.cycle.disconnected = True
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun
            answer = sentence(status, text, {"connection": "close", **ALWAYS})
            for event in (h11.Response(status_code=status, headers=answer.raw_headers), h11.Data(data=bytes(answer.body))):
                self.transport.write(self.conn.send(event))
        self.transport.close()


class Listener:
    """Serves a site, from `start` to `stop`, in the loop that calls them."""

    web: Web  # what is told of it, once it has started

    def __init__(self, site: Site) -> None:
        self._guard, self._agent = site.guard, site.agent
        self._pace = Pace(site, CONNECTIONS_A_REQUEST)
        routes = [*files.routes(site), *api.routes(site), *scrape.routes(site)]
        app = Gate(Router(routes, redirect_slashes=False, default=nothing_here), site, self._end)
        self._config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_REQUEST_BYTES,
            timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what clients do wrong is no news
        self._state = ServerState()
        self.connections = cast("set[Connection]", self._state.connections)

    def _end(self, scope: Scope) -> None:
        """Of a request that is under way, the connection."""
        for connection in self.connections:
            if connection.cycle and connection.cycle.scope is scope:
                connection.cycle.disconnected = True
                connection.end()
                return

    async def start(self, endpoint: Endpoint) -> Endpoint:
        """Listen; returns where, with the real port. Raises Failure."""
        if self._guard:
            self._guard.tls_context()
            SSLProtocol.max_size = TLS_BYTES  # type: ignore[attr-defined]  # of all, and there are no others; from 3.11 on
        self._socket = listening_socket(endpoint, "--http")
        self._socket.setblocking(False)
        bound = endpoint._replace(port=self._socket.getsockname()[1])
        name, pin = (self._guard.name, self._guard.pin) if self._guard else ("", "")
        self._webs = [web_of(bound, has_agent, self._guard is not None, name, pin) for has_agent in (False, True)]
        await self._look_for_agent()
        self._tasks = [asyncio.create_task(work) for work in (self._accept(), self._look(), self._follow_agent())]
        return bound

    async def stop(self) -> None:
        """Take no more requests, and end those that go on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._socket.close()
        for connection in list(self.connections):
            if connection.is_idle:
                connection.end()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=LEAVING_SECONDS)
        for connection in list(self.connections):
            connection.end()
        await asyncio.sleep(0)  # they are told
        for request in list(self._state.tasks):
            request.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(self._socket)
            except OSError:
                await asyncio.sleep(LOST_SECONDS)
                continue
            try:
                self._take(client, str(address[0]).removeprefix("::ffff:"))
            except Exception:  # the others must be taken
                client.close()
                logging.getLogger(__name__).exception("a connection was not taken")
            await asyncio.sleep(0)  # where more wait, asyncio would take them all before it looks for anything else

    def _take(self, client: socket.socket, address: str) -> None:
        network = network_of(address)
        if not self._pace.takes(network) or not self._has_place(network):
            client.close()
            return
        connection = Connection(self._config, self._state, address)
        self.connections.add(connection)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # one that is gone without a word would keep its place for a quarter of an hour
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * STUCK_SECONDS))
        connection.opening = asyncio.create_task(self._open(connection, client))
        connection.opening.add_done_callback(lambda _: self._opened(connection, client))

    async def _open(self, connection: Connection, client: socket.socket) -> None:
        settings: dict[str, Any] = {}
        try:
            if self._guard and not await speaks_plainly(client):  # else the gate says what to do
                settings = {"ssl": self._guard.tls_context(), "ssl_handshake_timeout": FIRST_REQUEST_SECONDS}
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client, **settings)
        except OSError as error:  # a handshake that failed is one, too
            error.__traceback__ = None  # its frames hold the buffer of TLS, and are held by it

    def _opened(self, connection: Connection, client: socket.socket) -> None:
        connection.opening = None
        if not connection.transport:
            self.connections.discard(connection)
            client.close()

    def _has_place(self, network: str) -> bool:
        """Whether one more may come from there: where there is no place, one that is idle makes it, of the network that has most
        the one that has been idle longest."""
        counts = collections.Counter(connection.network for connection in self.connections)
        most = CONNECTIONS_OF_THIS_MACHINE if is_loopback(network) else CONNECTIONS_OF_ONE
        if counts[network] < most and len(self.connections) < HTTP_CONNECTIONS:
            return True
        rivals = [one for one in self.connections if one.is_idle and (counts[network] < most or one.network == network)]
        if not rivals:
            return False
        longest = min(rivals, key=lambda one: (-counts[one.network], one.idle_since))
        self.connections.discard(longest)
        longest.end()
        return True

    async def _look(self) -> None:
        """Who takes too long, and whose token lets in no more."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for connection in list(self.connections):
                try:
                    token_id = connection.token_id
                    if connection.is_over(now) or (self._guard and token_id and self._guard.tokens.why_over(token_id)):
                        connection.end()
                except Exception:  # the others must be looked at
                    logging.getLogger(__name__).exception("a connection was not looked at")

    async def _follow_agent(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._look_for_agent()

    async def _look_for_agent(self) -> None:
        self.web = self._webs[await asyncio.to_thread(status_of, self._agent) is not None]


async def speaks_plainly(client: socket.socket) -> bool:
    """Whether a client begins as HTTP does: with a letter, where TLS begins with another byte. Raises OSError."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(client, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(client)
    return client.recv(1, socket.MSG_PEEK).isalpha()
