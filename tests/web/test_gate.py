"""Who gets an answer by HTTP, and what each answer has. Over real sockets."""

from __future__ import annotations

import asyncio
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from edge.credentials import Role
from edge.fleet.guard import Guard
from edge.web.gate import MAX_UNDER_WAY, MAX_UNDER_WAY_OF_ONE, PIECE_BYTES, Answer, Gate, is_address, is_loopback
from tests.fixtures.pki import Authority
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import Clock, Serving
from tests.fixtures.web import ask, basic, said, site_of


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    here = Serving(http=True)
    yield here
    here.network.stop()


@pytest.fixture
def secure(tmp_path: pathlib.Path) -> Iterator[Serving]:
    here = Serving(http=True, guard=Guard(tmp_path))
    yield here
    here.network.stop()


# ---- Methods, bodies, sizes ----


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_only_get_and_head_are_answered(serving: Serving, method: str) -> None:
    answer = ask(serving.http, "/healthz", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert "ask with GET" in answer.text
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_connect_is_not_answered(serving: Serving) -> None:
    assert said(serving.http, b"CONNECT 10.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nSSH").startswith(b"HTTP/1.1 405 ")


def test_head_has_the_headers_of_get_and_nothing_more(serving: Serving) -> None:
    for path in ("/", "/healthz", "/api/match", "/nothing"):
        head, get = ask(serving.http, path, "HEAD"), ask(serving.http, path)
        del head.headers["date"], get.headers["date"]
        assert (head.status, head.headers.items(), head.text) == (get.status, get.headers.items(), "")


BODIES = {
    "length": b"Content-Length: 5\r\n\r\nhello",
    "chunks": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "both": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad chunks": b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "huge": b"Content-Length: 99999999999\r\n\r\n" + bytes(200_000),
    "announced": b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_is_refused_before_it_is_read_and_what_follows_it_is_no_request(serving: Serving, body: bytes) -> None:
    answer = said(serving.http, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + body)
    assert answer.partition(b" ")[2][:3] in (b"413", b"400")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer


def test_sizes_are_bounded(serving: Serving) -> None:
    assert ask(serving.http, "/api/match?match=" + "x" * 2000).status == 200
    long = ask(serving.http, "/api/match?match=" + "x" * 2100)
    assert (long.status, long.text) == (414, "more than 2048 bytes after the ?: give a shorter filter\n")
    for size, status in ((16 * 1024, 200), (16 * 1024 + 1, 431), (17_000, 431), (18_000, 431)):
        start, end = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: ", b"\r\n\r\n"
        answer = said(serving.http, start + b"y" * (size - len(start + end)) + end)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert (b"16 KiB of headers" in answer) == (status == 431)
    at_once = said(serving.http, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 40_000 + b"\r\n")
    assert at_once.startswith(b"HTTP/1.1 431 ")
    assert b"more than 128 headers: send fewer" in at_once


@pytest.mark.parametrize("path", ["/api/fleet", "/api/match", "/api/nodes", "/api/events", "/metrics", "/metrics/fleet", "/"])
def test_what_means_one_thing_is_given_once(serving: Serving, path: str) -> None:
    again = ask(serving.http, f"{path}?match=a&%6Datch=b")
    what_to_do = "give it once, and the terms of a filter in one, with blanks between"
    assert (again.status, again.text) == (400, f"'match' is given more than once: {what_to_do}\n")
    assert ask(serving.http, f"{path}?id=&x=1&id").text.startswith("'id' is given more than once: ")


def test_a_filter_may_have_a_term_again(serving: Serving) -> None:
    assert ask(serving.http, "/api/match?match=a+a&other=a").status == 200


# ---- Hosts ----


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.9.8.7:1", "[::1]:80", "[fe80::1%25eth0.7]", "localhost", "LOCALHOST.:8080", "a.localhost",
     "edge-compute-node", f"{socket.gethostname()}:80", f"{socket.gethostname()}.local"],
)  # fmt: skip
def test_it_answers_to_its_addresses_and_names(serving: Serving, host: str) -> None:
    assert eventually(lambda: ask(serving.http, "/readyz", Host=host).status == 200)


FOREIGN = [
    "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "1::2", "[x]", "a:b", "", "1.2.3.4%evil.com",
    "[fe80::1%25ev/il]", "evil@a.localhost", "a b.localhost", "%.localhost",
]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN)
def test_a_name_that_is_not_its_own_is_refused(serving: Serving, host: str) -> None:
    answer = ask(serving.http, "/", Host=host)
    assert answer.status == 421
    name = host.partition(":")[0] if re.fullmatch(r"[a-z0-9.]+(:\d*)?", host) else "NAME"
    assert f"ask it by its address, or give it the name: --http {name}:" in answer.text


def test_a_refused_name_is_told_once(serving: Serving) -> None:
    for _ in range(3):
        ask(serving.http, "/", Host="evil.example")
    lines = [line for line in serving.events() if "HTTP asked for as" in line]
    assert len(lines) == 1  # a network has a line a minute


def test_names_that_it_is_given_are_its_own() -> None:
    gate = Gate(PlainTextResponse("yes"), site_of(names=["Fleet.Example.", ""]), print)
    assert asyncio.run(status_of(gate, host="fleet.example:8080")) == 200
    assert asyncio.run(status_of(gate, host="another.example")) == 421


def test_the_names_of_its_certificate_are_its_own(tmp_path: pathlib.Path) -> None:
    files = Authority().write(tmp_path, "first.example", "Second.example", "*.many.example")
    gate = Gate(PlainTextResponse("yes"), site_of(guard=Guard(tmp_path / "state", *files)), print)
    for host, status in (("second.example", 401), ("a.many.example:8080", 401), ("many.example", 421), ("a.b.many.example", 421)):
        assert asyncio.run(status_of(gate, host=host, scheme="https")) == status


def test_http_1_0_needs_no_host(serving: Serving) -> None:
    assert said(serving.http, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert said(serving.http, b"GET /healthz HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_what_an_address_is() -> None:
    assert all(map(is_address, ("10.0.0.1", "[::1]", "[fe80::1%25eth0]")))
    assert not any(map(is_address, ("::1", "[10.0.0.1]", "", "10.0.0", "1.2.3.4.5", "[]")))
    assert not any(map(is_address, ("1.2.3.4%x", "[fe80::1%25]", "[fe80::1%25a b]")))


def test_what_is_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.9", "::/64")))
    assert not any(map(is_loopback, ("fe80::/64", "10.0.0.1", "")))


# ---- Pages of other sites ----


def test_no_page_of_another_site_reads_the_fleet(serving: Serving) -> None:
    for path in ("/api/match", "/metrics", "/metrics/fleet"):
        for headers in (
            {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "Cross-Site"}, {"Sec_Fetch_Site": "same-site"},
            {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": serving.http + "1"},
            {"Origin": serving.http.replace("http:", "https:")}, {"Origin": serving.http, "Sec_Fetch_Site": "cross-site"},
        ):  # fmt: skip
            answer = ask(serving.http, path, "GET", None, **headers)
            assert (answer.status, answer.text[:17]) == (403, "another site's pa")
        assert ask(serving.http, path, Origin=serving.http.upper(), Sec_Fetch_Site="same-origin").status == 200
    assert ask(serving.http, "/", Sec_Fetch_Site="cross-site").status == 200
    assert ask(serving.http, "/api/match", Sec_Fetch_Site="same-origin").status == 200


def test_every_answer_has_the_headers_that_keep_it_where_it_belongs(serving: Serving) -> None:
    for path in ("/", "/healthz", "/nothing", "/node.pyz", "/x?" + "y" * 3000):
        headers = ask(serving.http, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == ("no-cache" if path == "/" else "no-store")
        assert headers["Date"].endswith(" GMT")
        assert "Server" not in headers


# ---- Tokens ----


def test_a_view_token_lets_look_and_nothing_else_does(secure: Serving, tmp_path: pathlib.Path) -> None:
    tokens = Guard(tmp_path).tokens
    view, node = tokens.offered(Role.VIEW).text, tokens.offered(Role.NODE).text
    assert ask(secure.http, "/healthz").status == 200
    for shown in (f"Bearer {view}", f"bearer {view}", f"Bearer   {view} ", basic(view), basic(view, "anyone"), basic(f"{view} ")):
        assert ask(secure.http, "/api/match", Authorization=shown).status == 200
    for shown, status, why in (
        ("", 401, "the authorization header must be: Bearer"),
        ("Bearer x", 401, "this is no token"),
        (f"Bearer {view[:-1]}", 401, "cut off"),
        (basic(""), 401, "the token is empty"),
        ("Basic §§", 401, "the token is empty"),
        (basic(node), 401, "is one to report, not to look"),  # a browser asks again
        (f"Bearer {node}", 403, "is one to report, not to look"),
        (f"Bearer {view}, Bearer {view}", 401, "something after its end"),
    ):
        answer = ask(secure.http, "/", Authorization=shown)
        assert (answer.status, why in answer.text) == (status, True), answer
        assert ("WWW-Authenticate" in answer.headers) == (status == 401)
    for path in ("/", "/readyz", "/api/match", "/metrics", "/node.pyz", "/SHA256SUMS", "/nothing"):
        answer = ask(secure.http, path)
        assert (answer.status, answer.text[:28]) == (401, "this server wants a token: p")
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="edge-compute-node: the view token as password"'
    assert any(line.startswith("refused —: 127.0.0.1: ") for line in secure.events())
    assert "edge1-" not in "".join(secure.events())
    assert secure.registry.counters.refusals == {"unauthenticated": 13, "permission_denied": 2}


# ---- How much at once ----


def request(
    path: str = "/", host: str = "localhost", address: str = "10.0.0.7", method: str = "GET", scheme: str = "http"
) -> dict[str, Any]:
    """What uvicorn makes of one."""
    return {
        "type": "http", "scheme": scheme, "http_version": "1.1", "method": method, "path": path, "query_string": b"",
        "headers": [(b"host", host.encode())], "state": {"address": address}, "server": ("127.0.0.1", 8080),
    }  # fmt: skip


async def nothing() -> Message:
    return {"type": "http.request"}


async def status_of(gate: Gate, **about: str) -> int:
    """How it answers one."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await gate(request(**about), nothing, send)
    status: int = sent[0]["status"]
    return status


def test_requests_under_way_are_bounded_and_who_has_most_gives_a_place() -> None:
    async def play() -> None:
        over, ended = asyncio.Event(), list[Scope]()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] in ("/slow", "/api/events"):
                await over.wait()
            await PlainTextResponse("yes")(scope, receive, send)

        gate = Gate(slow, site_of(), ended.append)
        first = [asyncio.create_task(status_of(gate, path="/slow")) for _ in range(MAX_UNDER_WAY_OF_ONE)]
        await asyncio.sleep(0)
        assert await status_of(gate) == 503
        assert await status_of(gate, path="/healthz") == 200
        rest = range(MAX_UNDER_WAY - MAX_UNDER_WAY_OF_ONE)
        others = [asyncio.create_task(status_of(gate, path="/slow", address=f"10.0.1.{number // 2}")) for number in rest]
        streams = [asyncio.create_task(status_of(gate, path="/api/events", address="10.0.0.8")) for _ in range(20)]
        await asyncio.sleep(0)
        assert not ended
        for number in range(3):
            assert await status_of(gate, address="10.0.0.9") == 200
            assert await status_of(gate, address="10.0.0.9") == 200  # the place that was made is enough
            others.append(asyncio.create_task(status_of(gate, path="/slow", address=f"10.0.2.{number}")))
            await asyncio.sleep(0)
        assert [scope["state"]["address"] for scope in ended] == ["10.0.0.7"] * 3
        over.set()
        assert set(await asyncio.gather(*first[3:], *others, *streams)) == {200}
        assert {(await asyncio.wait([task]))[0].pop().exception() is not None for task in first[:3]} == {True}
        assert await status_of(gate) == 200
        assert not gate._under_way

    asyncio.run(play())


def test_requests_in_a_second_are_bounded_of_one_network_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.web.gate.REQUESTS_A_SECOND", 120)
    site = site_of()
    site.fleet.clock = clock = Clock()
    gate = Gate(PlainTextResponse("yes"), site, print)

    async def answers(count: int, address: str) -> list[int]:
        return [await status_of(gate, path="/healthz", address=address) for _ in range(count)]

    assert asyncio.run(answers(51, "10.0.0.7")) == [200] * 50 + [429]
    assert asyncio.run(answers(50, "2001:db8::1")) == [200] * 50
    assert asyncio.run(answers(1, "2001:db8::2")) == [429]
    assert asyncio.run(answers(21, "10.0.0.8")) == [200] * 20 + [429]
    assert asyncio.run(answers(200, "127.0.0.1")) == [200] * 200
    assert asyncio.run(answers(1, "127.0.0.2")) == [429]
    clock.now += 1
    assert asyncio.run(answers(1, "10.0.0.7")) == [200]
    assert site.counters.refusals == {"resource_exhausted": 4}


def test_an_answer_goes_in_pieces_and_to_head_goes_none() -> None:
    async def sent_of(method: str, *bodies: bytes) -> tuple[list[Message], str]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        answer = Answer(request(method=method), nothing, send)
        await answer.send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"no-cache")]})
        for body in bodies:
            await answer.send({"type": "http.response.body", "body": body, "more_body": True})
        await answer.send({"type": "http.response.body"})
        return sent, (await answer.receive())["type"]

    for size in (0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES):
        start, *parts = asyncio.run(sent_of("GET", bytes(size)))[0]
        assert (b"cache-control", b"no-cache") in start["headers"]
        assert [name for name, _ in start["headers"]].count(b"cache-control") == 1
        assert b"".join(part["body"] for part in parts) == bytes(size)
        assert all(len(part["body"]) <= PIECE_BYTES for part in parts)
        assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]
    sent, after = asyncio.run(sent_of("HEAD", b"stream", b"without end"))
    assert ([message.get("body") for message in sent], after) == ([None, None], "http.disconnect")
