"""The calls of node.proto as the network thread serves them: what each stream is told, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

import node_pb2 as pb
import node_pb2_grpc
from edge.credentials import Role
from edge.fleet import health
from edge.fleet.admission import RateLimit, WaitingRoom, network_of
from edge.fleet.certificates import Client
from edge.fleet.counters import Counters
from edge.fleet.guard import Guard
from edge.fleet.intake import heartbeat_of
from edge.fleet.listening import peer_address
from edge.fleet.recall import Recall, is_of_the_past
from edge.fleet.row import GOING_AWAY, End, Refused, Session
from edge.fleet.source import Past
from edge.fleet.watch import Feed, Fleet, Viewer
from edge.protocol import GOODBYE_SECONDS, MAX_NODE_ID, MAX_OPEN_NODES, MAX_VIEWERS, MAX_VIEWERS_ELSEWHERE, MAX_WATCH_BYTES

UNARY_PER_SECOND, UNARY_OF_ONE = 3000, 2500  # heartbeats without a stream that are answered: of all, and of one network
TOO_MANY_UNARY = f"over {UNARY_OF_ONE} unary heartbeats a second of one network, or {UNARY_PER_SECOND} of all: use StreamHeartbeats"
OF_TRUST = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)  # their names tell people nothing more
NO_SUCH_METHOD = End("this server has no such method", grpc.StatusCode.UNIMPLEMENTED)
LOCAL_PEER = "unix:"  # by a socket in a folder that is this user's alone
ONLY_LOOKING = End("this socket is for looking: nodes report to an address", grpc.StatusCode.PERMISSION_DENIED)
NOT_FROM_AFAR = End("nodes are forgotten on the server's own machine alone", grpc.StatusCode.PERMISSION_DENIED)
WATCHES_PER_SECOND, WATCHES_OF_ONE = 100, 50  # that begin, steps through the past among them: of all, and of one network
# The same of those that look at what comes: by another version each time, each has a sum of its own made, 30 ms of 10,000 nodes.
LOOKS_SECONDS, LOOKS, LOOKS_OF_ONE = 10.0, 60, 20
PAST_SECONDS = 60.0  # that an answer of the past may take, with all its messages
TOO_SLOW = End(f"the answer took more than {PAST_SECONDS:g} s", grpc.StatusCode.DEADLINE_EXCEEDED)
MAX_HEALTH_WATCHES, MAX_HEALTH_WATCHES_OF_ONE = 16, 8  # of all, and of one network
REQUEST_SECONDS = 0.05  # from one message of a viewer that is read to the next
MAX_WAITING = 800  # calls whose first message has not come, 26 KiB each: of a fleet that comes back some hundreds are on the way


T = TypeVar("T")


class Sessions(Fleet, Protocol):
    """What the calls need of the registry."""

    counters: Counters

    def open(
        self, request: pb.HeartbeatRequest, address: str, close: Callable[[End], object] | None = None, token_id: str = ""
    ) -> Session: ...
    def heartbeat(self, session: Session, request: pb.HeartbeatRequest) -> None: ...
    def take_unary(self, request: pb.HeartbeatRequest, address: str, token_id: str = "") -> Session: ...
    def acknowledgement(self, session: Session) -> pb.HeartbeatResponse: ...
    def stream_ended(self, session: Session, reason: str) -> None: ...
    def complain(self, kind: str, node_id: str, text: str, stranger: str = "") -> None: ...
    def forget(self, node_id: str) -> bool: ...


class Others(grpc.GenericRpcHandler):
    """Finds the handler of a method that has none of its own."""

    def __init__(self, handler: grpc.RpcMethodHandler[Any, Any]) -> None:
        self._handler = handler

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Called by gRPC at each call."""
        del handler_call_details
        return self._handler


class Service(node_pb2_grpc.NodeServiceServicer):
    """The calls of node.proto. All take bytes: what is too much is refused before it is parsed, or even read."""

    def __init__(
        self, registry: Sessions, first_message_seconds: float, guard: Guard | None = None, past: Past | None = None
    ) -> None:
        """Without a guard whoever comes may report, and look; without a past, none is told."""
        self._registry = registry
        self._guard = guard
        self._recall = Recall(past, registry.clock)
        self._recalling: set[int] = set()  # calls that ask for the past
        self.feed = Feed(registry, self._recall.status)
        self.feed.is_secure = guard is not None
        self._let_in_by: dict[str, set[int]] = {}  # calls by number, of each token's id
        self._certified: dict[int, Client] = {}  # calls by number, and the certificate that lets each in
        self._unary = RateLimit(1, UNARY_PER_SECOND, UNARY_OF_ONE)
        self._watches = RateLimit(1, WATCHES_PER_SECOND, WATCHES_OF_ONE)
        self._checks = RateLimit(1, UNARY_PER_SECOND, UNARY_OF_ONE)
        self._health = health.Health()
        self._watching_health: dict[int, str] = {}  # calls, and the networks that they come from
        self._looks = RateLimit(LOOKS_SECONDS, LOOKS, LOOKS_OF_ONE)
        # Calls by number, and why the server ends those that it ends. A call's frames do not hold its task: the task keeps
        # the error that ended it, and that the frames. Such cycles wait for a garbage collection, with all that they hold.
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._ends: dict[int, End] = {}
        self._waiting = WaitingRoom(MAX_WAITING, first_message_seconds, self._end_waiting)
        self._answering: set[int] = set()  # streams with an answer under way: gRPC takes no status beside it
        self.has_unheard = False  # an answer was broken off, and gRPC has yet to say what became of it
        self._numbers = itertools.count()
        self._closing = False

    def begin(self, server: grpc.aio.Server) -> None:
        """Have a server take the calls. What gRPC takes for a stream of requests can be refused before its first one is read."""
        serialize, unary, stream = (
            pb.HeartbeatResponse.SerializeToString, grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler,
        )  # fmt: skip
        calls: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Heartbeat": unary(self.Heartbeat, None, serialize),
            "StreamHeartbeats": stream(self.StreamHeartbeats, None, serialize),
            "Watch": stream(self.Watch),
        }
        server.add_registered_method_handlers("node.NodeService", calls)
        calls = {"Check": unary(self.CheckHealth), "List": unary(self.ListHealth), "Watch": stream(self.WatchHealth)}
        server.add_registered_method_handlers(health.NAME, calls)
        if self._guard:  # all methods that have no name here: gRPC would refuse them alone, and nobody would hear
            server.add_generic_rpc_handlers([Others(unary(self.NoSuchMethod))])

    async def CheckHealth(self, requests: object, context: Any) -> Any:
        """Whether the server is there: nodes ask for it without a token."""
        call = self._call(context, functools.partial(self._check, self._health.check), None)
        del requests, context  # see _call
        return await call

    async def ListHealth(self, requests: object, context: Any) -> Any:
        """The same of all its services."""
        call = self._call(context, functools.partial(self._check, self._health.list), None)
        del requests, context
        return await call

    async def WatchHealth(self, requests: object, context: Any) -> None:
        """The same, from now on."""
        call = self._call(context, self._watch_health, Role.VIEW)
        del requests, context
        await call

    async def NoSuchMethod(self, requests: object, context: Any) -> None:
        """Who has no token is refused as everywhere, with a line in the log."""
        call = self._call(context, self._refuse)
        del requests, context
        await call

    async def _refuse(self, context: Any, stream: int, _token_id: str) -> None:
        raise Refused(*NO_SUCH_METHOD)

    async def Heartbeat(self, requests: object, context: Any) -> pb.HeartbeatResponse | None:
        """One heartbeat, one answer."""
        call = self._call(context, self._take_one)
        del requests, context  # see _call
        return await call

    async def StreamHeartbeats(self, requests: object, context: Any) -> None:
        """A session: one stream from its first message to its end."""
        call = self._call(context, self._hold_session)
        del requests, context
        await call

    async def Watch(self, requests: object, context: Any) -> None:
        """A viewer: until it goes."""
        call = self._call(context, self._show, Role.VIEW)
        del requests, context
        await call

    async def _call(self, context: Any, body: Callable[..., Awaitable[T | None]], role: Role | None = Role.NODE) -> T | None:
        """A call, and its status where `body` is refused or the server ends it. `role`: that it needs; None: whoever comes."""
        stream = next(self._numbers)
        self._streams[stream] = cast("asyncio.Task[None]", asyncio.current_task())
        if self._closing:
            self._ends[stream] = GOING_AWAY
        token_id = ""
        try:
            if context.peer().startswith(LOCAL_PEER):
                if role is Role.NODE:
                    raise Refused(*ONLY_LOOKING)
            elif self._guard:
                token_id = self._admit(self._guard, context, role)
                if token_id:
                    self._let_in_by.setdefault(token_id, set()).add(stream)
            return await body(context, stream, token_id)
        except Refused as error:
            end = error.end
        except asyncio.CancelledError:
            if stream not in self._ends or stream in self._answering:  # the peer is gone; or does not read, and can be told nothing
                raise
            end = self._ends[stream]
        finally:
            del self._streams[stream]
            self._ends.pop(stream, None)
            self._waiting.leave(stream)
            self._answering.discard(stream)
            self._certified.pop(stream, None)
            if streams := self._let_in_by.get(token_id):
                streams.discard(stream)
        abort = context.abort(end.code, end.reason)
        del context  # it keeps the error that `abort` raises, and that this frame
        await abort
        raise AssertionError("abort raises")

    def _admit(self, guard: Guard, context: Any, role: Role | None) -> str:
        """The token's id. Nothing has been read yet of who is refused."""
        peer = context.peer()
        guard.visitors.call(peer)
        try:
            return guard.admit(context.invocation_metadata(), role) if role else ""
        except Refused as error:
            self._log_refusal("", peer_address(peer), error, is_stranger=True)
            raise

    async def _take_one(self, context: Any, stream: int, token_id: str) -> pb.HeartbeatResponse:
        address, node_id = peer_address(context.peer()), ""
        try:
            if not self._unary.takes(network_of(address), self._registry.clock()):
                raise Refused(TOO_MANY_UNARY, grpc.StatusCode.RESOURCE_EXHAUSTED)
            request = await self._first_message(context, stream, address)
            node_id = request.node_id
            return self._registry.acknowledgement(self._registry.take_unary(request, address, token_id))
        except Refused as error:
            self._log_refusal(node_id, address, error)
            raise

    async def _check(self, answer: Callable[[bytes], Awaitable[bytes]], context: Any, stream: int, _token_id: str) -> bytes:
        address = peer_address(context.peer())
        try:
            if not self._checks.takes(network_of(address), self._registry.clock()):
                raise Refused("too many ask for the server's health, in this second", grpc.StatusCode.RESOURCE_EXHAUSTED)
            return await answer(await self._first_bytes(context, stream, address))
        except Refused as error:
            self._log_refusal("", address, error, is_stranger=True)
            raise

    async def _watch_health(self, context: Any, stream: int, _token_id: str) -> None:
        address = peer_address(context.peer())
        try:
            network = network_of(address)
            most_of_one = list(self._watching_health.values()).count(network) >= MAX_HEALTH_WATCHES_OF_ONE
            if len(self._watching_health) >= MAX_HEALTH_WATCHES or most_of_one:
                raise Refused("too many watch the server's health: ask with Check", grpc.StatusCode.RESOURCE_EXHAUSTED)
            self._watching_health[stream] = network
            await self._health.watch(
                await self._first_bytes(context, stream, address), functools.partial(self._send, context, stream)
            )
        except Refused as error:
            if not self._closing:
                self._log_refusal("", address, error, is_stranger=True)
            raise
        finally:
            self._watching_health.pop(stream, None)

    async def _hold_session(self, context: Any, stream: int, token_id: str) -> None:
        """Until the goodbye, or the node half-closes. The first message and the goodbye are answered at once, others at times."""
        address, node_id = peer_address(context.peer()), ""
        session, reason = None, "the stream broke"
        try:
            first = await self._first_message(context, stream, address)
            node_id = first.node_id
            session = self._registry.open(first, address, self._closer(stream), token_id)
            del first  # what a stream holds while it waits, it holds ten thousand times
            await self._answer(context, stream, session)
            while (raw := await context.read()) is not grpc.aio.EOF:
                request = heartbeat_of(raw)
                self._registry.heartbeat(session, request)
                if request.leaving or self._registry.clock() >= session.next_acknowledgement_at:
                    await self._answer(context, stream, session)
                if request.leaving:
                    return
                del raw, request
        except Refused as error:
            reason = error.end.reason
            self._log_refusal(node_id, address, error)
            raise
        finally:
            if session:
                self._registry.stream_ended(session, self._ends[stream].reason if stream in self._ends else reason)
            if self._guard:
                self._guard.visitors.leave(context.peer())

    async def _show(self, context: Any, stream: int, _token_id: str) -> None:
        """Until the viewer goes, or has what it asked of the past."""
        peer = context.peer()
        address, is_local = peer_address(peer), peer.startswith(LOCAL_PEER)
        try:
            if not is_local and not self._watches.takes(network_of(address), self._registry.clock()):
                raise Refused("too many come to look, in this second", grpc.StatusCode.RESOURCE_EXHAUSTED)
            first = watch_request_of(await self._first_bytes(context, stream, address))
            if is_of_the_past(first):
                await self._tell_past(context, stream, first, is_local)
            elif not is_local and not self._looks.takes(network_of(address), self._registry.clock()):
                raise Refused("too many come to look, in these seconds", grpc.StatusCode.RESOURCE_EXHAUSTED)
            else:
                await self._tell(context, stream, first, is_local)
        except Refused as error:  # a screen tries again every few seconds
            self._log_refusal("", address, error, is_stranger=True)
            raise

    async def _tell_past(self, context: Any, stream: int, request: pb.WatchRequest, is_local: bool) -> None:
        if len(self._recalling) >= (MAX_VIEWERS if is_local else MAX_VIEWERS_ELSEWHERE):
            raise Refused("too many ask for the past: try again", grpc.StatusCode.RESOURCE_EXHAUSTED)
        self._recalling.add(stream)
        limit = asyncio.get_running_loop().call_later(PAST_SECONDS, self._end_stream, stream, TOO_SLOW)
        try:
            answer = self._recall.answer(request, self.feed.epoch, is_local)
            async with contextlib.aclosing(answer) as messages:  # it gives its turn back
                async for message in messages:
                    await self._send(context, stream, message)
        finally:
            limit.cancel()
            self._recalling.discard(stream)

    async def _tell(self, context: Any, stream: int, first: pb.WatchRequest, is_local: bool) -> None:
        """Until the viewer goes. One that half-closes looks on, and asks for nothing more."""
        viewer = self.feed.join(first, is_local)
        writer = asyncio.create_task(self.feed.follow(viewer, functools.partial(self._send, context, stream)))
        writer.add_done_callback(functools.partial(self._cease, stream))
        try:
            self._forget(viewer, first)
            while (raw := await context.read()) is not grpc.aio.EOF:
                request = watch_request_of(raw)
                self._forget(viewer, request)
                viewer.want(request)
                await asyncio.sleep(REQUEST_SECONDS)
            await writer
        finally:
            self.feed.leave(viewer)
            writer.cancel()

    def _forget(self, viewer: Viewer, request: pb.WatchRequest) -> None:
        if request.forget and not viewer.is_local:
            raise Refused(*NOT_FROM_AFAR)
        for node_id in request.forget:
            self._registry.forget(node_id)

    def _cease(self, stream: int, writer: asyncio.Task[None]) -> None:
        """Nothing more is sent on a stream: then it ends."""
        if not writer.cancelled() and (error := writer.exception()):
            logging.getLogger(__name__).error("a viewer was sent nothing more", exc_info=error)
        if stream in self._streams:
            self._streams[stream].cancel()

    async def _first_bytes(self, context: Any, stream: int, address: str) -> bytes:
        self._waiting.enter(stream, address)
        raw = await context.read()
        self._waiting.leave(stream)
        if raw is grpc.aio.EOF:
            raise Refused("the stream ended before its first message")
        return cast("bytes", raw)

    async def _first_message(self, context: Any, stream: int, address: str) -> pb.HeartbeatRequest:
        request = heartbeat_of(await self._first_bytes(context, stream, address))
        if self._guard and (client := self._guard.check_name(context.auth_context(), request.node_id)):
            self._certified[stream] = client
        return request

    def _end_waiting(self, stream: int, address: str, end: End) -> None:
        self._log_refusal("", address, Refused(*end))
        self._end_stream(stream, end)

    async def _answer(self, context: Any, stream: int, session: Session) -> None:
        """Acknowledge."""
        await self._send(context, stream, self._registry.acknowledgement(session))

    async def _send(self, context: Any, stream: int, message: pb.HeartbeatResponse | bytes) -> None:
        """Who does not read keeps this waiting, until the stream ends."""
        self._answering.add(stream)
        try:
            await context.write(message)
        except asyncio.CancelledError:
            self.has_unheard = True
            raise
        except grpc.aio.InternalError as error:  # the peer is gone: nothing to be said, and no news
            raise asyncio.CancelledError from error
        self._answering.discard(stream)
        if stream in self._ends:  # meanwhile
            raise asyncio.CancelledError

    def _log_refusal(self, node_id: str, address: str, refused: Refused, is_stranger: bool = False) -> None:
        self._registry.counters.refuse(refused.end.code)
        code = "" if refused.end.code in OF_TRUST else f" ({refused.end.code.name})"
        text = f"{address}: {refused.told_here}{code}"
        self._registry.complain("refused", node_id, text, address if is_stranger else "")

    def _closer(self, stream: int) -> Callable[[End], object]:
        """What ends a stream, from any thread."""
        loop = asyncio.get_running_loop()
        return lambda end: loop.call_soon_threadsafe(self._end_stream, stream, end)

    def _end_stream(self, stream: int, end: End) -> None:
        if stream in self._streams:
            self._ends[stream] = end
            if stream in self._answering:  # gRPC takes no status before that is over; a node that does not read gets none
                asyncio.get_running_loop().call_later(GOODBYE_SECONDS / 4, self._streams[stream].cancel)
            else:
                self._streams[stream].cancel()

    def calls(self) -> int:
        """How many are under way, without those who look."""
        return len(self._streams) - self.feed.viewers() - len(self._recalling)

    def tick(self) -> None:
        """Follow the tokens and certificates as they are now: called once in a second or so."""
        if not self._guard:
            return
        for kind, text in self._guard.refresh():
            self._registry.complain(kind, "server", text)
        for token_id, end in self._guard.over(list(self._let_in_by)):
            for stream in self._let_in_by.pop(token_id):
                self._end_stream(stream, end)
        for stream, client in list(self._certified.items()):
            if over := self._guard.why_over(client):
                del self._certified[stream]
                self._end_stream(stream, over)
        if silent := self._guard.visitors.tick(self._registry.clock()):
            self._registry.complain("refused", "", f"new connections that made no call: {silent:,}; {self._guard.why_silent()}")

    async def close(self) -> None:
        """End every session with a status that says: come back soon."""
        self._closing = True
        self._health.end()
        tasks = list(self._streams.values())
        for stream in self._streams.keys() - self._watching_health.keys():  # these end when they have been told
            self._end_stream(stream, GOING_AWAY)
        for stream in self._watching_health:  # if they can be
            asyncio.get_running_loop().call_later(GOODBYE_SECONDS / 4, self._end_stream, stream, GOING_AWAY)
        if tasks:
            await asyncio.wait(tasks, timeout=GOODBYE_SECONDS / 2)


def watch_request_of(raw: bytes) -> pb.WatchRequest:
    """What a viewer sent. Raises Refused."""
    if len(raw) > MAX_WATCH_BYTES:
        raise Refused(f"a message of {len(raw)} bytes: it may have {MAX_WATCH_BYTES}", grpc.StatusCode.RESOURCE_EXHAUSTED)
    try:
        request = pb.WatchRequest.FromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"this is no request to look: {error}") from error
    for field, names in (("open", request.open), ("forget", request.forget)):
        if len(names) > MAX_OPEN_NODES:
            raise Refused(f"{field} has {len(names)} nodes: it may have {MAX_OPEN_NODES}", grpc.StatusCode.RESOURCE_EXHAUSTED)
        if any(len(name) > MAX_NODE_ID for name in names):
            raise Refused(f"{field} has a name of more than {MAX_NODE_ID} characters")
    return request
