"""Who gets an answer: the host that is asked for, the method, the sizes, the token. And what each answer has."""

from __future__ import annotations

import asyncio
import base64
import binascii
import collections
import contextlib
import email.utils
import functools
import ipaddress
import logging
import re
import socket
import threading
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, unquote

import grpc
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.command_line import Endpoint
from edge.credentials import AUTHORIZATION, SERVER_NAME, Role
from edge.fleet.admission import RateLimit, network_of
from edge.fleet.row import Refused
from edge.fleet.tokens import authorization_of
from edge.text import MAX_SENTENCE, visible
from edge.web.site import Site

MAX_QUERY_BYTES = 2048
MAX_UNDER_WAY = 32  # requests of all; and of one network,
MAX_UNDER_WAY_OF_ONE, MAX_UNDER_WAY_OF_THIS_MACHINE = 12, 24
REQUESTS_A_SECOND, REQUESTS_A_SECOND_OF_ONE, REQUESTS_A_SECOND_OF_THIS_MACHINE = 400, 50, 200  # as cheap as they may be
PIECE_BYTES = 64 * 1024  # of an answer: what a client has not taken yet is not copied for it
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}  # of each answer that does not say otherwise
CHALLENGE = {"www-authenticate": f'Basic realm="{SERVER_NAME}: the view token as password"'}
CLOSING = {"connection": "close"}
FREE = ("/healthz",)  # without a token
PLACELESS = ("/healthz", "/readyz", "/api/events")  # answered at once, whatever else is under way; streams have places of their own
OWN = ("/api/", "/metrics")  # no page of another site reads these
NOTHING_HERE = "there is nothing here: the page is at /, the fleet as JSON at /api/fleet, Prometheus reads /metrics"
REFUSED_CODES = {grpc.StatusCode.PERMISSION_DENIED: 403}  # of a token; else 401


def sentence(status: int, text: str, headers: Mapping[str, str] | None = None) -> PlainTextResponse:
    """An answer that says what is wrong, and what to do."""
    return PlainTextResponse(f"{visible(text, MAX_SENTENCE)}\n", status, headers)


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer where no route fits."""
    await sentence(404, NOTHING_HERE)(scope, receive, send)


class Pace:
    """How many there may be in a second: of all networks elsewhere, and of each; and of this machine, whose addresses are one."""

    def __init__(self, site: Site, times: int = 1) -> None:
        """`times`: as many as requests."""
        self._clock = site.fleet.clock
        self._others = RateLimit(1, times * REQUESTS_A_SECOND, times * REQUESTS_A_SECOND_OF_ONE)
        self._own = RateLimit(1, times * REQUESTS_A_SECOND_OF_THIS_MACHINE, times * REQUESTS_A_SECOND_OF_THIS_MACHINE)

    def takes(self, network: str) -> bool:
        """Whether there may be one more; then it counts."""
        return (self._own if is_loopback(network) else self._others).takes(network, self._clock())


class Gate:
    """Stands before all routes. In the event loop."""

    def __init__(self, app: ASGIApp, site: Site, end: Callable[[Scope], object]) -> None:
        """`end`: closes the connection of a request, whatever has not been sent."""
        self._app, self._site, self._end = app, site, end
        self._host = socket.gethostname().lower()
        own = (SERVER_NAME, self._host, f"{self._host}.local", *site.names)
        self._names = frozenset(name.lower().rstrip(".") for name in own if name)
        self._pace = Pace(site)
        self._under_way: dict[asyncio.Task[object], tuple[str, Scope]] = {}  # with the network; who came first is first
        threading.Thread(target=self._learn_names, name="names", daemon=True).start()

    def _learn_names(self) -> None:
        """What this machine is called in its network. The system may ask others for it, and wait for them."""
        with contextlib.suppress(UnicodeError):  # of a name that DNS can't have
            self._names = self._names | {socket.getfqdn(self._host).lower().rstrip(".")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: as the routes do, or with a refusal."""
        answer = Answer(scope, receive, send)
        network = network_of(address_of(scope))
        app = self._refusal(scope, network) or self._app
        try:
            await app(scope, answer.receive, answer.send)
        except asyncio.CancelledError:  # the server goes away, or another has its place; and the connection is closed
            return
        except Exception as error:
            if answer.is_begun:  # uvicorn tells of it, and closes the connection
                raise
            logging.getLogger(__name__).error("GET %s failed", visible(scope["path"], 100), exc_info=error)
            text = "this can't be answered, by a fault of the server: its events say what it is (please report it)"
            await sentence(500, text)(scope, receive, answer.send)
        finally:
            self._under_way.pop(own_task(), None)

    def _refusal(self, scope: Scope, network: str) -> ASGIApp | None:
        """Instead of an answer; None where there is to be one. Then the request's state has the `token_id` that let it in."""
        if not self._pace.takes(network):
            self._site.counters.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)
            return sentence(429, "too many requests in a second: ask less often", {"retry-after": "1", **CLOSING})
        method, path = scope["method"], scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self._site.guard and scope["scheme"] != "https":  # whatever it shows, others have read it as well
            return sentence(400, "this server speaks TLS: write https:// before its address", CLOSING)
        if scope["http_version"] not in ("1.0", "1.1"):
            return sentence(505, "this server speaks HTTP/1.1 and 1.0", CLOSING)
        if method not in ("GET", "HEAD"):
            text = f"{method} is not answered here: ask with GET; nothing can be changed by HTTP"
            return sentence(405, text, {"allow": "GET, HEAD", **CLOSING})
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return sentence(413, "a request with a body is not taken here: write a filter into the address, as ?match=…", CLOSING)
        if not path.startswith("/"):
            return sentence(400, "this server is no proxy: ask it for a path, like /metrics", CLOSING)
        if path.endswith("\n"):  # where a route's pattern ends, one more line may
            return nothing_here
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            return sentence(414, f"more than {MAX_QUERY_BYTES} bytes after the ?: give a shorter filter")
        if (name := repeated(scope["query_string"])) is not None:  # or the last would be taken in silence
            told = f"{visible(name, 40)!r} is given more than once"
            return sentence(400, f"{told}: give it once, and the terms of a filter in one, with blanks between")
        if "host" in headers and (refusal := self._why_not_host(scope, headers["host"])):
            return refusal
        if path.startswith(OWN) and is_foreign(scope["scheme"], headers):
            return sentence(403, "another site's page may not ask for this: write the address where addresses are written")
        if self._site.guard and path not in FREE and (refusal := self._why_not_let_in(scope)):
            return refusal
        if path not in PLACELESS and not self._takes_place(scope, network):
            self._site.counters.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)
            return sentence(503, "too many requests are under way: try again in a second", {"retry-after": "1"})
        return None

    def _takes_place(self, scope: Scope, network: str) -> bool:
        """Whether one more may be under way from there, and then it is. Where all places are taken, the network that has most
        gives one: who reads slowly shuts nobody out."""
        counts = collections.Counter(network for network, _ in self._under_way.values())
        if counts[network] >= (MAX_UNDER_WAY_OF_THIS_MACHINE if is_loopback(network) else MAX_UNDER_WAY_OF_ONE):
            return False
        if len(self._under_way) >= MAX_UNDER_WAY:
            longest, (_, its_scope) = max(self._under_way.items(), key=lambda one: counts[one[1][0]])
            del self._under_way[longest]
            self._end(its_scope)
            longest.cancel()
        self._under_way[own_task()] = network, scope
        return True

    def _why_not_host(self, scope: Scope, asked: str) -> ASGIApp | None:
        """Of a page elsewhere whose name leads here (DNS rebinding), the browser tells that name: it must be one of ours."""
        match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]*)(:\d*)?", asked)
        name = match[1].lower().rstrip(".") if match else ""
        certified = self._site.guard.names if self._site.guard else ()
        is_name = re.fullmatch(r"[\w.-]+", name, re.ASCII) is not None
        known = {"localhost", *self._names, *certified}
        if is_address(name) or name in known or (is_name and (name.endswith(".localhost") or wildcard_of(name) in certified)):
            return None
        self._log(scope, f"HTTP asked for as {visible(asked, 63)}, which this server is not known as")
        address = Endpoint(visible(name, 63) if is_name else "NAME", scope["server"][1] if scope["server"] else 0)
        text = f"this server is not known by this name: ask it by its address, or give it the name: --http {address}"
        return sentence(421, text)

    def _why_not_let_in(self, scope: Scope) -> ASGIApp | None:
        """Who shows no token for looking."""
        assert self._site.guard
        given = [value.decode("latin-1") for name, value in scope["headers"] if name.decode("latin-1") == AUTHORIZATION]
        try:
            shown = authorization_of((AUTHORIZATION, bearer_of(value)) for value in given)
            scope["state"]["token_id"] = self._site.guard.admit([(AUTHORIZATION, shown)] if shown is not None else [], Role.VIEW)
        except Refused as refused:
            end = refused.end
            self._site.counters.refuse(end.code)
            self._log(scope, refused.told_here)
            is_basic = given != [bearer_of(value) for value in given]  # a browser: it asks again
            status = 401 if is_basic else REFUSED_CODES.get(end.code, 401)
            return sentence(status, end.reason, CHALLENGE if status == 401 else None)
        return None

    def _log(self, scope: Scope, text: str) -> None:
        address = address_of(scope)
        self._site.complain("refused", "", f"{address}: {text}", address)


class Answer:
    """What is sent of one: with the headers that all have, and in pieces between which others come first. To HEAD, no body."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._is_head = scope["method"] == "HEAD"
        self._is_over = False
        self.is_begun = False

    async def receive(self) -> Message:
        """A stream looks here whether its client is gone: one who wants no more than the headers is."""
        return {"type": "http.disconnect"} if self._is_over else await self._receive()

    async def send(self, message: Message) -> None:
        """One part of it."""
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            self.is_begun = True
            headers = list(message.get("headers", ()))
            has = {name for name, _ in headers}
            more = {"date": email.utils.formatdate(usegmt=True), **ALWAYS}
            headers += [(name.encode(), value.encode()) for name, value in more.items() if name.encode() not in has]
            await self._send({**message, "headers": headers})
            if self._is_head:
                self._is_over = True
                await self._send({"type": "http.response.body"})
            return
        body, more_body = memoryview(message.get("body", b"")), message.get("more_body", False)
        for start in range(0, max(len(body), 1), PIECE_BYTES):
            end = start + PIECE_BYTES
            await self._send({**message, "body": bytes(body[start:end]), "more_body": more_body or end < len(body)})
            if end < len(body):
                await asyncio.sleep(0)


def is_foreign(scheme: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks for a page of another site, or of another port or scheme of this one."""
    own = f"{scheme}://{headers.get('host', '')}".lower()
    return headers.get("sec-fetch-site", "").lower() in ("cross-site", "same-site") or headers.get("origin", own).lower() != own


def repeated(query: bytes) -> str | None:
    """A parameter that is given again; None where each is given once."""
    counts = collections.Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    return next((name for name, count in counts.items() if count > 1), None)


def own_task() -> asyncio.Task[object]:
    """That which runs."""
    task = asyncio.current_task()
    assert task
    return task


@functools.lru_cache(maxsize=1000)
def is_loopback(address: str) -> bool:
    """Whether it is of this machine; an IPv6 network of one is not."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address.partition("/")[0]).is_loopback or address == "::/64"
    return False


def address_of(scope: Scope) -> str:
    """Of who asks, without the port; as a gRPC call's is told."""
    return str(scope["state"]["address"])


@functools.lru_cache(maxsize=1000)
def is_address(host: str) -> bool:
    """Whether this is an address rather than a name, an IPv6 one in brackets: it leads to who has it, whoever wrote it."""
    in_brackets = re.fullmatch(r"\[([^%]+)(?:%[\w.-]+)?\]", unquote(host), re.ASCII)  # with the zone that it may have
    try:
        ip = ipaddress.ip_address(in_brackets[1] if in_brackets else host)
    except ValueError:
        return False
    return ip.version == (6 if in_brackets else 4)


def wildcard_of(name: str) -> str:
    """By which a certificate has a name and those beside it."""
    return f"*.{name.partition('.')[2]}"


def bearer_of(value: str) -> str:
    """An authorization header in the way that a token is shown: of Basic (RFC 7617), as browsers have it, the password is one."""
    scheme, _, credentials = value.partition(" ")
    if scheme.lower() != "basic":
        return value
    try:
        text = base64.b64decode(credentials.strip(), validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        text = ""
    return f"Bearer {text.partition(':')[2].strip()}"
