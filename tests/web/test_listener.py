"""The HTTP listener: what clients may take, and that heartbeats do not notice. A real network, and real connections to it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import logging
import pathlib
import shutil
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edge.command_line import Endpoint
from edge.credentials import Role
from edge.fleet.guard import Guard
from edge.fleet.listening import HTTP_CONNECTIONS
from edge.program import Failure
from edge.web.gate import REQUESTS_A_SECOND_OF_THIS_MACHINE
from edge.web.listener import CONNECTIONS_OF_THIS_MACHINE, Connection, Listener
from edge.web.site import Site
from tests.fixtures.pki import Authority
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import Clock, Serving, Stream
from tests.fixtures.web import ask, connected, heard, said, site_of, trusting

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
BIG = b"x" * (32 * 2**20)  # more than the system keeps of a connection that nobody reads


def routes(_site: Site) -> list[Route]:
    """In the place of the JSON's."""

    async def big(_request: Request) -> Response:
        return Response(BIG)

    async def stream(_request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            while True:
                yield "tick\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(parts())

    async def silent(_request: Request) -> Response:
        await asyncio.sleep(600)
        return Response()

    async def fails(_request: Request) -> Response:
        raise ValueError("of its own")

    async def fails_later(_request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            yield "one part"
            raise ValueError("too late")

        return StreamingResponse(parts())

    async def count(request: Request) -> Response:
        return PlainTextResponse(f"<{request.path_params['number']}>")

    found = {"/big": big, "/stream": stream, "/silent": silent, "/fails": fails, "/fails-later": fails_later}
    return [Route(path, answer) for path, answer in {**found, "/count/{number}": count}.items()]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Serving]]:
    """A network with these routes, and other bounds in seconds if they are given."""
    started: list[Serving] = []
    monkeypatch.setattr("edge.web.api.routes", routes)
    monkeypatch.setattr("server.TICK_SECONDS", 0.05)  # from one look at tokens and certificates to the next

    def start(guard: Guard | None = None, **seconds: float) -> Serving:
        for name, value in seconds.items():
            monkeypatch.setattr(f"edge.web.listener.{name}", value)
        started.append(Serving(http=True, guard=guard))
        return started[-1]

    yield start
    for serving in started:
        serving.network.stop()


def connections(serving: Serving) -> list[Connection]:
    assert serving.network.listener
    return list(serving.network.listener.connections)


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed it: it says so as soon as it has."""
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        return client.recv(1) == b""
    return True


def get(url: str, path: str) -> socket.socket:
    """A connection that has asked, and has read nothing."""
    client = connected(url)
    client.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
    return client


# ---- What slow clients may take ----


def test_a_client_that_does_not_ask_in_time_is_cut(serve: Callable[..., Serving]) -> None:
    serving = serve(FIRST_REQUEST_SECONDS=0.5, KEEP_ALIVE_SECONDS=0.5, LOOK_SECONDS=0.05)
    silent, slow, second = connected(serving.http), connected(serving.http), connected(serving.http)
    slow.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
    second.sendall(HEALTH)
    assert second.recv(9) == b"HTTP/1.1 "
    second.sendall(HEALTH[:20])  # and never the rest
    for client in (silent, slow):
        assert is_closed(client)
        client.close()
    assert heard(second).endswith(b"ok\n")
    eventually(lambda: not connections(serving))
    second.close()


def test_a_client_that_takes_nothing_is_cut_and_one_that_waits_for_an_answer_is_not(serve: Callable[..., Serving]) -> None:
    serving = serve(FIRST_REQUEST_SECONDS=0.5, KEEP_ALIVE_SECONDS=0.5, STUCK_SECONDS=0.3, LOOK_SECONDS=0.05)
    stuck, waiting, reading = (get(serving.http, path) for path in ("/big", "/silent", "/stream"))
    eventually(lambda: len(connections(serving)) == 2)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert reading.recv(1000)
    assert len(connections(serving)) == 2
    for client in (stuck, waiting, reading):
        client.close()
    eventually(lambda: not connections(serving))


def test_who_reads_slowly_makes_a_place_for_others(
    serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge.web.gate.MAX_UNDER_WAY", 5)
    serving = serve()
    port = int(serving.http.rpartition(":")[2])
    slow = []
    for path, number in (("/big", 3), ("/silent", 2), ("/big", 2), ("/stream", 2), ("/big", 2)):
        client = socket.create_connection(("127.0.0.1", port), 10, (f"127.0.0.{number}", 0))
        client.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        slow.append(client)
        eventually(lambda: sum(not connection.is_idle for connection in connections(serving)) == len(slow))
    for number in range(3):
        assert ask(serving.http, f"/count/{number}").status == 200
        eventually(lambda: len(connections(serving)) == 4)  # one was ended, and one is enough for all these
    assert is_closed(slow[1])  # of the address that has most, the first
    waiting = [get(serving.http, "/silent")]
    for client in slow[2], slow[3]:
        eventually(lambda: sum(not connection.is_idle for connection in connections(serving)) == 5)
        waiting.append(get(serving.http, "/silent"))
        assert b"HTTP/1.1 200 " in heard(client)[:20]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for client in (*slow, *waiting):
        client.close()


def test_a_client_that_takes_little_at_a_time_is_cut_without_a_word(
    serve: Callable[..., Serving], caplog: pytest.LogCaptureFixture
) -> None:
    serving = serve(PATIENCE_SECONDS=1.0, TAKEN_SECONDS=0.001, LOOK_SECONDS=0.05)
    client, taken = get(serving.http, "/big"), 0
    with contextlib.suppress(ConnectionError):
        while part := client.recv(2**20):  # a megabyte a tenth of a second: it never waits for STUCK_SECONDS
            taken += len(part)
            time.sleep(0.1)
    assert 0 < taken < len(BIG)
    client.close()
    assert not caplog.records
    assert len(ask(serving.http, "/big").text) == len(BIG)  # who reads as it comes has all of it
    eventually(lambda: not connections(serving))


def test_idle_and_slow_clients_take_no_place_from_others_and_heartbeats_are_taken(serve: Callable[..., Serving]) -> None:
    serving = serve()
    idle = [connected(serving.http) for _ in range(200)]
    slow = [get(serving.http, "/big") for _ in range(20)]
    writers = [connected(serving.http) for _ in range(20)]
    node = Stream(serving.address)
    node.answer()
    for number in range(1, 101):
        for writer in writers[number % 20 :: 20]:
            with contextlib.suppress(OSError):
                writer.sendall(b"GET / HTTP/1.1\r\n"[number // 20 : number // 20 + 1])
        node.send(sample={"sequence": number})
    assert ask(serving.http, "/healthz").text == "ok\n"
    node.send(leaving=True)
    eventually(lambda: node.answer().acknowledged_sequence == 100)  # one more may come before it
    assert len(connections(serving)) <= CONNECTIONS_OF_THIS_MACHINE
    for client in (*idle, *slow, *writers):
        client.close()
    node.close()
    eventually(lambda: not connections(serving))


def test_who_has_been_idle_longest_makes_a_place_and_who_is_answered_keeps_it(
    serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.web.listener.HTTP_CONNECTIONS", 6)
    monkeypatch.setattr("edge.web.listener.CONNECTIONS_OF_THIS_MACHINE", 4)
    serving = serve()
    busy, first, second = get(serving.http, "/stream"), connected(serving.http), connected(serving.http)
    assert busy.recv(9) == b"HTTP/1.1 "
    third = connected(serving.http)
    eventually(lambda: len(connections(serving)) == 4)
    assert ask(serving.http, "/healthz").status == 200  # the first has made place
    assert is_closed(first)
    second.sendall(HEALTH)
    assert second.recv(9) == b"HTTP/1.1 "
    more = [get(serving.http, "/stream") for _ in range(3)]
    assert [client.recv(9) for client in more] == [b"HTTP/1.1 "] * 3
    assert is_closed(third)
    refused = connected(serving.http)
    assert is_closed(refused)  # who is answered does not give way
    elsewhere = socket.create_connection(("127.0.0.1", int(serving.http.rpartition(":")[2])), 10, ("127.0.0.2", 0))
    elsewhere.sendall(HEALTH)
    assert elsewhere.recv(9) == b"HTTP/1.1 "
    for client in (busy, first, second, third, *more, refused, elsewhere):
        client.close()


def test_connections_are_bounded_in_all(serve: Callable[..., Serving]) -> None:
    serving = serve()
    port = int(serving.http.rpartition(":")[2])
    small = connected(serving.http)
    many = [socket.create_connection(("127.0.0.1", port), 10, (f"127.0.0.{number % 4 + 2}", 0)) for number in range(300)]
    assert ask(serving.http, "/healthz").status == 200
    small.sendall(HEALTH)  # the oldest of all, and of a network that has few
    assert small.recv(9) == b"HTTP/1.1 "
    assert len(connections(serving)) <= HTTP_CONNECTIONS
    for client in (small, *many):
        client.close()


def test_who_asks_again_and_again_is_told_so_and_then_is_not_let_in() -> None:
    async def play() -> None:
        site = site_of(is_ready=lambda: True)
        site.fleet.clock = Clock()
        listener = Listener(site)
        endpoint = await listener.start(Endpoint("127.0.0.1", 0))

        async def asks() -> bytes:
            reader, writer = await asyncio.open_connection(*endpoint)
            writer.write(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            with contextlib.suppress(ConnectionResetError), contextlib.closing(writer):
                return (await reader.read())[9:12]
            return b""

        most = REQUESTS_A_SECOND_OF_THIS_MACHINE
        assert collections.Counter([await asks() for _ in range(2 * most + 5)]) == {b"200": most, b"429": most, b"": 5}
        site.fleet.clock.now += 1
        assert await asks() == b"200"
        await listener.stop()

    asyncio.run(play())


def test_many_who_come_at_once_are_taken_one_by_one() -> None:
    async def play() -> list[int]:
        listener = Listener(site_of())
        endpoint = await listener.start(Endpoint("127.0.0.1", 0))
        clients = [socket.create_connection(endpoint) for _ in range(50)]
        counts: list[int] = []
        while len(counts) < 3 or counts[-1] > counts[-2]:
            for _ in range(3):  # of the loop: heartbeats come between
                await asyncio.sleep(0)
            counts.append(len(listener.connections))
        for client in clients:
            client.close()
        await listener.stop()
        return counts

    counts = asyncio.run(play())
    assert max(counts) == 50
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= 3


@pytest.mark.parametrize("is_secure", [False, True])
def test_a_connection_that_is_over_leaves_no_cycle(serve: Callable[..., Serving], tmp_path: pathlib.Path, is_secure: bool) -> None:
    """Of what asyncio leaves, no bytes hang on it; else each that comes would cost 30 KB until the garbage collector does."""
    serving = serve(Guard(tmp_path) if is_secure else None)
    gc.collect()
    gc.disable()
    try:
        ask(serving.http, "/healthz")
        for part in (b"", HEALTH, bytes(500), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)):
            with connected(serving.http) as client:
                client.sendall(part)
        eventually(lambda: not connections(serving))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = {type(one).__name__ for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kept & {"Connection", "SSLProtocol", "SSLObject", "bytearray", "frame", "traceback"}


# ---- What no client should send ----


def test_many_requests_at_once_are_answered_one_by_one(serve: Callable[..., Serving]) -> None:
    serving = serve()
    numbers = range(150)
    asked = b"".join(b"GET /count/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in numbers)
    with connected(serving.http) as client:
        sender = threading.Thread(target=client.sendall, args=(asked,))
        sender.start()
        answer = b""
        while b"<149>" not in answer:
            answer += client.recv(65536)
        sender.join()
    assert [b"<%d>" % number in answer for number in numbers] == [True] * len(numbers)
    assert answer.count(b"HTTP/1.1 200 OK") == len(numbers)


def test_an_empty_line_before_a_request_is_nothing_and_two_are_no_request(serve: Callable[..., Serving]) -> None:
    serving = serve()
    answer = said(serving.http, b"\r\n" + HEALTH + b"\r\n" + HEALTH, b"\r\n", HEALTH, b"\r\n\r\n" + HEALTH)
    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert answer.count(b"HTTP/1.1 ") == 4
    assert b"HTTP/1.1 400 " in answer


STRANGE = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "nul": b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "nul in a header": b"GET / HTTP/1.1\r\nHost: local\0host\r\n\r\n",
    "bare line ends": b"GET / HTTP/1.1\nHost: localhost\n\nGET /evil HTTP/1.1\n\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    "two lengths": b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length : 3\r\n\r\nabc",
    "an unknown coding": b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a proxy's": b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no path": b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "http 0.9": b"GET /\r\n\r\n",
    "http 3": b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n",
    "random": bytes(range(256)) * 40,
    "no line's end": b"A" * 300_000,
    "empty lines": b"\r\n" * 100_000,
}


@pytest.mark.parametrize("bytes_", STRANGE.values(), ids=STRANGE)
def test_what_is_no_request_is_refused_in_a_sentence_and_is_no_news(
    serve: Callable[..., Serving], bytes_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    serving = serve()
    answer = said(serving.http, bytes_)
    if bytes_ != STRANGE["bare line ends"]:  # they may stand for others (RFC 9112, 2.2), and what follows is a request
        assert answer[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b"HTTP/1.1 431 ", b"HTTP/1.1 501 ", b"HTTP/1.1 505 ")
    assert ask(serving.http, "/healthz").text == "ok\n"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not serving.events()


@pytest.mark.parametrize(
    "path",
    ["/nothing\0", "/%00", "/../../etc/passwd", "//evil.example/", "/%2e%2e/node.pyz", "/healthz/", "/healthz%0a", "/metrics%0A"],
)
def test_odd_paths_lead_nowhere(serve: Callable[..., Serving], path: str) -> None:
    answer = said(serve().http, b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())
    assert answer[:12] in (b"HTTP/1.1 404", b"HTTP/1.1 400")


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_nothing_but_http_1_is_spoken(serve: Callable[..., Serving], protocol: bytes) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: %b\r\n\r\n" % protocol
    answer = said(serve().http, asked)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"ok\n")


def test_garbage_after_a_request_does_not_break_its_answer(serve: Callable[..., Serving], caplog: pytest.LogCaptureFixture) -> None:
    serving = serve()
    answer = said(serving.http, HEALTH + b"\x00\x01garbage\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"ok\nHTTP/1.1 400 " in answer
    with get(serving.http, "/stream") as client:
        client.sendall(b"\x00\x01garbage\r\n\r\n")
        assert b"tick" in client.recv(1000) + client.recv(1000)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# ---- Errors of its own ----


def test_a_fault_is_one_event_and_a_sentence(serve: Callable[..., Serving], caplog: pytest.LogCaptureFixture) -> None:
    serving = serve()
    answer = ask(serving.http, "/fails")
    assert (answer.status, answer.text[:48]) == (500, "this can't be answered, by a fault of the server")
    cut = said(serving.http, b"GET /fails-later HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"one part" in cut
    assert not cut.endswith(b"0\r\n\r\n")  # so the client knows that it is not whole
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 2
    assert told[0] == "GET /fails failed"
    assert ask(serving.http, "/healthz").status == 200


# ---- The end ----


def test_it_says_that_it_goes_away() -> None:
    async def play() -> bytes:
        listener = Listener(site_of(is_ready=lambda: False))
        endpoint = await listener.start(Endpoint("127.0.0.1", 0))
        reader, writer = await asyncio.open_connection(*endpoint)
        writer.write(HEALTH.replace(b"healthz", b"readyz"))
        answer = await reader.readuntil(b"away\n")
        writer.close()
        await listener.stop()
        return answer

    assert asyncio.run(play()).startswith(b"HTTP/1.1 503 ")


def test_it_ends_whoever_is_connected(serve: Callable[..., Serving], caplog: pytest.LogCaptureFixture) -> None:
    serving = serve()
    clients = [get(serving.http, path) for path in ("/stream", "/big", "/silent", "/healthz")] + [connected(serving.http)]
    eventually(lambda: len(connections(serving)) == len(clients))
    assert clients[0].recv(9) == b"HTTP/1.1 "
    began = time.monotonic()
    serving.network.stop()
    assert time.monotonic() - began < 4  # 2 s, and the machine may be busy
    assert not serving.network.is_alive()
    for client in clients:
        heard(client)  # to its end
        client.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# ---- Where it listens ----


@pytest.mark.parametrize("host", ["::1", "::", "localhost", "0.0.0.0"])
def test_it_listens_where_it_is_told(host: str) -> None:
    async def play() -> tuple[int, bytes]:
        listener = Listener(site_of())
        endpoint = await listener.start(Endpoint(host, 0))
        near = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(host, host)
        reader, writer = await asyncio.open_connection(near, endpoint.port)
        writer.write(HEALTH)
        answer = await reader.readuntil(b"ok\n")
        writer.close()
        await listener.stop()
        return endpoint.port, answer

    port, answer = asyncio.run(play())
    assert port
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_port_in_use_and_a_name_that_is_none_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Failure, match=rf"^port {port} is in use: .* Else try --http 127.0.0.1:{port + 1}$"):
            asyncio.run(Listener(site_of()).start(Endpoint("127.0.0.1", port)))
    with pytest.raises(Failure, match=r"^cannot resolve no.such.name.invalid: give --http an address of this machine$"):
        asyncio.run(Listener(site_of()).start(Endpoint("no.such.name.invalid", 0)))
    with pytest.raises(Failure, match=r"^cannot listen on 192.0.2.1:80: .*; give --http another address or port$"):
        asyncio.run(Listener(site_of()).start(Endpoint("192.0.2.1", 80)))


# ---- TLS ----


@pytest.fixture
def tls(serve: Callable[..., Serving], tmp_path: pathlib.Path) -> Callable[..., Serving]:
    return lambda **seconds: serve(Guard(tmp_path), **seconds)


def handshake(url: str, **settings: Any) -> ssl.SSLSocket:
    context = trusting()
    for name, value in settings.items():
        setattr(context, name, value)
    return context.wrap_socket(connected(url), server_hostname="edge-compute-node")


def test_tls_is_1_2_or_newer(tls: Callable[..., Serving]) -> None:
    serving = tls()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with handshake(serving.http, minimum_version=version, maximum_version=version) as client:
            client.sendall(HEALTH)
            assert client.recv(9) == b"HTTP/1.1 "
    with pytest.warns(DeprecationWarning), pytest.raises(ssl.SSLError):
        handshake(serving.http, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)


def test_a_handshake_that_breaks_costs_nothing_and_is_no_news(
    tls: Callable[..., Serving], caplog: pytest.LogCaptureFixture
) -> None:
    serving = tls(FIRST_REQUEST_SECONDS=0.3, LOOK_SECONDS=0.05)
    said(serving.http, bytes(range(256)) * 10)
    for part in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
        with connected(serving.http) as client:
            client.sendall(part)
            assert is_closed(client)  # in time
    for _ in range(20):
        connected(serving.http).close()
    with handshake(serving.http) as silent:
        assert is_closed(silent)
    eventually(lambda: not connections(serving))
    assert ask(serving.http, "/healthz").text == "ok\n"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not serving.events()


def test_a_connection_of_tls_costs_little_memory(tls: Callable[..., Serving]) -> None:
    serving = tls()
    with contextlib.ExitStack() as held:

        def connect(count: int) -> None:
            for _ in range(count):
                client = held.enter_context(handshake(serving.http))
                client.sendall(HEALTH)
                assert client.recv(9) == b"HTTP/1.1 "

        connect(3)
        tracemalloc.start()
        connect(10)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert kept < 10 * 100_000  # both ends


def test_who_speaks_no_tls_is_told_so_and_nothing_else(tls: Callable[..., Serving], tmp_path: pathlib.Path) -> None:
    serving = tls(FIRST_REQUEST_SECONDS=0.3, LOOK_SECONDS=0.05)
    token = Guard(tmp_path).tokens.offered(Role.VIEW).text
    for path in ("/healthz", "/", "/api/match"):
        answer = ask(serving.http.replace("https:", "http:"), path, Authorization=f"Bearer {token}")
        assert (answer.status, answer.text) == (400, "this server speaks TLS: write https:// before its address\n")
    with connected(serving.http) as slow:
        slow.sendall(b"GET")
        assert is_closed(slow)


def test_slow_clients_of_tls_are_bounded_as_well(tls: Callable[..., Serving], tmp_path: pathlib.Path) -> None:
    serving = tls(STUCK_SECONDS=0.5, LOOK_SECONDS=0.05)
    token = Guard(tmp_path).tokens.offered(Role.VIEW).text
    with handshake(serving.http) as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n" % token.encode())
        assert client.recv(9) == b"HTTP/1.1 "
        eventually(lambda: not connections(serving))
    assert len(ask(serving.http, "/big", Authorization=f"Bearer {token}").text) == len(BIG)


def test_a_stream_ends_with_its_token(tls: Callable[..., Serving], tmp_path: pathlib.Path) -> None:
    serving = tls()
    tokens = Guard(tmp_path).tokens
    token = tokens.offered(Role.VIEW)
    with handshake(serving.http) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n" % token.text.encode())
        assert client.recv(9) == b"HTTP/1.1 "
        tokens.revoke(token.name[:6])
        began = time.monotonic()
        heard(client)
        assert time.monotonic() - began < 10  # at the next look, and the machine may be busy; else it would go on for ever
    eventually(lambda: not connections(serving))
    assert ask(serving.http, "/stream", Authorization=f"Bearer {token.text}").status == 401


def test_a_new_certificate_is_for_new_connections(serve: Callable[..., Serving], tmp_path: pathlib.Path) -> None:
    authority = Authority()
    certificate, key = authority.write(tmp_path, "localhost")
    serving = serve(Guard(tmp_path / "state", certificate, key))

    def presented() -> bytes | None:
        with handshake(serving.http) as client:
            return client.getpeercert(binary_form=True)

    first = presented()
    old = handshake(serving.http)
    for new, path in zip(authority.write(tmp_path / "..", "localhost"), (certificate, key), strict=True):
        shutil.move(new, path)
    eventually(lambda: presented() != first)
    old.sendall(HEALTH)
    assert old.recv(9) == b"HTTP/1.1 "
    old.close()
    certificate.write_text("no certificate")
    eventually(lambda: any("stays in use" in line for line in serving.events()))
    assert presented() not in (None, first)
