"""Who gets into a secure server, and who does not: real sockets, real certificates, raw peers and gRPC's own clients."""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from cryptography import x509

import node_pb2 as pb
from bench.http2 import END_HEADERS, END_STREAM, FRAME_HEADER, GREETING, HEADERS, data_frame, frame, request_headers, status_of
from edge.command_line import Endpoint
from edge.credentials import AUTHORIZATION, SERVER_NAME, Role, Token, authority_of, parse_token
from edge.event_log import EventLog
from edge.fleet.admission import STRANGERS_PER_MINUTE, Lines
from edge.fleet.certificates import OwnKey
from edge.fleet.export import snapshot_json
from edge.fleet.guard import TOLD_SECONDS, Guard, Visitors
from edge.fleet.listening import CROWD_SECONDS, Crowd
from edge.fleet.options import parse_options
from edge.fleet.tokens import Tokens
from edge.protocol import FIRST_MESSAGE_SECONDS, HEALTH, server_options
from server import TICK_SECONDS
from tests.fixtures.garbage import collected
from tests.fixtures.peers import Peer
from tests.fixtures.pki import Authority
from tests.fixtures.processes import Program, Terminal, eventually
from tests.fixtures.sessions import LOCAL, Clock, Serving, Stream, headers_of, unary

Open = Callable[..., Terminal]
Start = Callable[..., Program]
Serve = Callable[..., Serving]
Connect = Callable[..., Stream]
Dial = Callable[..., Peer]

SECRET_IN_A_LINE = r"edge1-[\w-]{20}"


@pytest.fixture(autouse=True)
def ticks_come_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.TICK_SECONDS", 0.05)


@pytest.fixture
def guard(tmp_path: pathlib.Path) -> Guard:
    return Guard(tmp_path / "state")


def elsewhere(guard: Guard) -> Tokens:
    """The tokens as another process has them: `server.pyz token`."""
    return Tokens(guard.folder, OwnKey(guard.folder))


def bearer(guard: Guard, role: Role = Role.NODE) -> str:
    """Of the token that a first start has made."""
    return token_of(guard, role).bearer()


def token_of(guard: Guard, role: Role = Role.NODE) -> Token:
    return next(guard.tokens.token_of(issued) for issued in guard.tokens.issued() if issued.role is role)


def channel_to(address: str, key: bytes) -> grpc.Channel:
    """As a node opens it."""
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(authority_of(key)),
        options=(*LOCAL, ("grpc.ssl_target_name_override", SERVER_NAME)),
    )


def certified_channel(serving: Serving, authority: Authority, own: tuple[bytes, bytes] | None = None) -> grpc.Channel:
    """As a node with --ca opens it, and with --tls-cert where it has files of its own."""
    certificate, key = own or (None, None)
    return grpc.secure_channel(
        serving.address,
        grpc.ssl_channel_credentials(authority.pem, key, certificate),
        options=(*LOCAL, ("grpc.ssl_target_name_override", "server.example")),
    )


def key_of(guard: Guard) -> bytes:
    return token_of(guard).key


def ended(stream: Stream) -> tuple[str, str]:
    code, reason = stream.status()
    return code.name, reason


# ---- Tokens ----


def test_who_has_a_token_is_let_in_by_stream_and_by_single_calls(serve: Serve, connect: Connect, guard: Guard) -> None:
    serving = serve(guard=guard)
    stream = connect(serving.address, channel=channel_to(serving.address, key_of(guard)), authorization=bearer(guard))
    assert stream.answer().acknowledged
    assert unary(serving.address, channel_to(serving.address, key_of(guard)), bearer(guard), node_id="script").acknowledged
    assert set(serving.rows()) == {"box", "script"}


def test_each_node_says_which_token_let_it_in(serve: Serve, connect: Connect, guard: Guard) -> None:
    serving = serve(guard=guard)
    first, other = token_of(guard), guard.tokens.token_of(guard.tokens.issue(Role.NODE, "rack 7", None))
    stream = connect(serving.address, "a", channel=channel_to(serving.address, first.key), authorization=first.bearer())
    assert stream.answer().acknowledged
    script = {"node_id": "b", "info": pb.NodeInfo(instance_id="b")}
    assert unary(serving.address, channel_to(serving.address, first.key), first.bearer(), **script).acknowledged
    assert unary(serving.address, channel_to(serving.address, first.key), other.bearer(), **script).acknowledged
    assert {name: row.token_id for name, row in serving.rows().items()} == {"a": first.id, "b": other.id}
    guard.refresh()
    assert serving.rows()["a"].token_id is guard.tokens.issued()[0].id  # one text, however often the file is read
    elsewhere(guard).revoke(first.id)
    eventually(lambda: serving.rows()["a"].session is None)
    assert serving.rows()["a"].token_id == first.id  # it may come back by it
    again = connect(serving.address, "a", channel=channel_to(serving.address, first.key), authorization=other.bearer())
    assert again.answer().acknowledged
    assert serving.rows()["a"].token_id == other.id
    assert [node["token"] for node in json.loads(snapshot_json(serving.registry))["nodes"]] == [other.id] * 2
    assert "token" not in "".join(event for event in serving.events() if event.startswith("joined"))


def changed(token: Token, **fields: object) -> str:
    return token._replace(**fields).bearer()  # type: ignore[arg-type]


def revoked(guard: Guard) -> str:
    text = bearer(guard)
    elsewhere(guard).revoke(token_of(guard).id)
    guard.tokens.refresh()
    return text


def expired(guard: Guard) -> str:
    issued = guard.tokens.issue(Role.NODE, "", time.time() - 1)
    return guard.tokens.token_of(issued).bearer()


NOT_KNOWN = r"the token \w+ is not known here: .*token new"
REFUSED: dict[str, tuple[Callable[[Guard], str | None], str, str]] = {
    "no token": (lambda _: None, "UNAUTHENTICATED", "this server wants a token: .*token list"),
    "another scheme": (lambda _: "Basic YTpi", "UNAUTHENTICATED", "must be: Bearer, a blank, and the token"),
    "nothing in it": (lambda _: "Bearer ", "UNAUTHENTICATED", "the token is empty"),
    "cut off": (lambda guard: bearer(guard)[:-5], "UNAUTHENTICATED", "cut off: .* copy it again"),
    "mistyped": (lambda guard: bearer(guard)[:-1] + "!", "UNAUTHENTICATED", "copy it again"),
    "given twice": (lambda guard: f"{bearer(guard)}, {bearer(guard)}", "UNAUTHENTICATED", "something after its end"),
    "long": (lambda guard: bearer(guard) + "A" * 3000, "UNAUTHENTICATED", "something after its end"),
    "unknown": (lambda guard: changed(token_of(guard), id="abcdef"), "UNAUTHENTICATED", NOT_KNOWN),
    "another secret": (lambda guard: changed(token_of(guard), secret=bytes(15)), "UNAUTHENTICATED", NOT_KNOWN),
    "to look": (lambda guard: bearer(guard, Role.VIEW), "PERMISSION_DENIED", "is one to look, not to report: .*token list"),
    "to look, made one to report": (
        lambda guard: changed(token_of(guard, Role.VIEW), role=Role.NODE), "UNAUTHENTICATED", NOT_KNOWN,
    ),
    "revoked": (revoked, "UNAUTHENTICATED", "was revoked at 20[\\d: -]+: .*token new"),
    "expired": (expired, "UNAUTHENTICATED", "expired at 20[\\d: -]+: .*token new"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_who_has_none_is_refused_before_anything_is_read_and_both_ends_say_why(
    serve: Serve, connect: Connect, guard: Guard, what: str
) -> None:
    make, code, words = REFUSED[what]
    serving = serve(guard=guard)
    authorization = make(guard)
    channel = channel_to(serving.address, key_of(guard))
    silent = connect(serving.address, "", "", channel=channel, authorization=authorization)  # it never sends a message
    found, reason = ended(silent)
    assert found == code
    assert re.search(words, reason)
    with pytest.raises(grpc.RpcError) as error:
        unary(serving.address, channel_to(serving.address, key_of(guard)), authorization, node_id="script")
    assert error.value.code().name == code
    assert re.search(words, error.value.details() or "")
    assert not serving.rows()
    (line,) = [event for event in serving.events() if event.startswith("refused")]  # one a minute
    assert "127.0.0.1: " in line
    assert code not in line  # the sentence says it
    assert not authorization or authorization[-20:] not in line + reason


def test_the_log_names_the_token_and_never_its_secret(serve: Serve, connect: Connect, guard: Guard) -> None:
    serving = serve(guard=guard)
    revoked(guard)
    token = token_of(guard)
    ended(connect(serving.address, channel=channel_to(serving.address, token.key), authorization=token.bearer()))
    (line,) = serving.events()
    assert token.id in line
    assert token.text()[-20:] not in line


def test_an_open_server_asks_for_nothing_and_ignores_a_token(serve: Serve, connect: Connect) -> None:
    serving = serve()
    stream = connect(serving.address, authorization="Bearer edge1-nonsense")
    assert stream.answer().acknowledged
    assert serving.events() == ["joined box: host-a, 127.0.0.1"]


def test_sessions_of_a_token_that_is_revoked_end_with_the_reason_and_no_others(
    serve: Serve, connect: Connect, guard: Guard
) -> None:
    other = guard.tokens.token_of(guard.tokens.issue(Role.NODE, "other", None))
    serving = serve(guard=guard)
    streams = [
        connect(serving.address, name, channel=channel_to(serving.address, key_of(guard)), authorization=authorization)
        for name, authorization in (("a", bearer(guard)), ("b", bearer(guard)), ("c", other.bearer()))
    ]
    for stream in streams:
        assert stream.answer().acknowledged
    elsewhere(guard).revoke(token_of(guard).id)
    for stream in streams[:2]:
        code, reason = ended(stream)
        assert code == "UNAUTHENTICATED"
        assert "revoked" in reason
    assert "revoked" in serving.rows()["a"].reason
    streams[2].send(sample=pb.Sample(sequence=7))
    eventually(lambda: serving.rows()["c"].sample.sequence == 7)
    assert set(serving.network._service._let_in_by) == {other.id}


def test_names_that_were_taken_by_a_token_which_is_over_are_free_again(serve: Serve, connect: Connect, guard: Guard) -> None:
    stolen = guard.tokens.token_of(guard.tokens.issue(Role.NODE, "stolen", None))
    serving = serve(guard=guard)

    def come(token: Token, box: str) -> Stream:
        info = pb.NodeInfo(instance_id=box, box_id=box, id_is_drawn=True)
        channel = channel_to(serving.address, token.key)
        return connect(serving.address, "rack-7", channel=channel, authorization=token.bearer(), info=info)

    thief = come(stolen, "a thief's")
    assert thief.answer().acknowledged
    thief.close()
    eventually(lambda: not serving.streams())
    assert "the id rack-7 belongs to another box" in ended(come(token_of(guard), "its own"))[1]
    elsewhere(guard).revoke(stolen.id)
    eventually(lambda: guard.tokens.why_over(stolen.id))
    assert come(token_of(guard), "its own").answer().acknowledged
    assert "belongs to another box" in ended(come(token_of(guard), "another's"))[1]


def test_a_token_that_expires_ends_its_sessions_too(serve: Serve, connect: Connect, guard: Guard) -> None:
    wall = Clock(time.time())
    guard.tokens = Tokens(guard.folder, OwnKey(guard.folder), True, wall)
    token = guard.tokens.token_of(guard.tokens.issue(Role.NODE, "", wall.now + 60))
    serving = serve(guard=guard)
    stream = connect(serving.address, channel=channel_to(serving.address, token.key), authorization=token.bearer())
    assert stream.answer().acknowledged
    wall.now += 61
    code, reason = ended(stream)
    assert code == "UNAUTHENTICATED"
    assert "expired" in reason


def test_a_token_that_is_made_elsewhere_lets_in_at_once(serve: Serve, connect: Connect, guard: Guard) -> None:
    serving = serve(guard=guard)
    tokens = elsewhere(guard)
    token = tokens.token_of(tokens.issue(Role.NODE, "later", None))
    stream = connect(serving.address, channel=channel_to(serving.address, token.key), authorization=token.bearer())
    assert stream.answer().acknowledged


def test_a_damaged_file_of_tokens_is_told_and_those_of_before_stay(serve: Serve, connect: Connect, guard: Guard) -> None:
    serving = serve(guard=guard)
    stream = connect(serving.address, channel=channel_to(serving.address, key_of(guard)), authorization=bearer(guard))
    assert stream.answer().acknowledged
    (guard.folder / "tokens.json").write_text("{")
    eventually(lambda: [event for event in serving.events() if event.startswith("warning server: ")])
    assert unary(serving.address, channel_to(serving.address, key_of(guard)), bearer(guard), node_id="script").acknowledged
    assert not stream.call.done()


def test_whatever_lies_in_the_files_the_clock_of_the_server_goes_on(
    serve: Serve, guard: Guard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticks = []

    def breaks() -> list[str]:
        ticks.append(1)
        raise RuntimeError("never seen before")

    monkeypatch.setattr(guard, "refresh", breaks)
    serve(guard=guard)
    eventually(lambda: len(ticks) > 2)
    assert "were not read again" in caplog.text
    caplog.clear()


def test_sessions_and_refusals_leave_nothing_to_the_garbage_collector(serve: Serve, guard: Guard) -> None:
    other = guard.tokens.token_of(guard.tokens.issue(Role.NODE, "other", None))
    serving = serve(guard=guard)

    def call(name: str, authorization: str | None) -> Stream:
        return Stream(serving.address, name, channel=channel_to(serving.address, key_of(guard)), authorization=authorization)

    with collected() as found:
        leaving, losing = call("a", bearer(guard)), call("b", other.bearer())
        refused = [call("c", authorization) for authorization in (None, bearer(guard, Role.VIEW), bearer(guard)[:-3])]
        assert leaving.answer().acknowledged
        assert losing.answer().acknowledged
        elsewhere(guard).revoke(other.id)
        for stream in (losing, *refused):
            assert ended(stream)[0] in ("UNAUTHENTICATED", "PERMISSION_DENIED")
        leaving.send(leaving=True)
        assert ended(leaving)[0] == "OK"
        for stream in (leaving, losing, *refused):
            stream.close()
        eventually(lambda: serving.streams() == 0)
    assert found == []


def asked(serving: Serving, guard: Guard, method: str, authorization: str | None = None) -> tuple[str, str]:
    with channel_to(serving.address, key_of(guard)) as channel:
        with pytest.raises(grpc.RpcError) as error:
            call: Any = channel.unary_unary(method)
            call(b"", timeout=20, metadata=headers_of(authorization))
    return error.value.code().name, error.value.details() or ""


def test_who_asks_for_a_method_that_is_not_there_is_refused_as_any_stranger(serve: Serve, guard: Guard) -> None:
    serving = serve(guard=guard)
    for _ in range(3):
        assert asked(serving, guard, "/node.NodeService/Watch")[0] == "UNAUTHENTICATED"
    assert asked(serving, guard, "/x", bearer(guard)) == ("UNIMPLEMENTED", "this server has no such method")
    (line,) = serving.events()
    assert line.startswith("refused —: 127.0.0.1: no token")
    assert not serving.streams()


def test_a_node_that_looks_whether_the_server_is_there_is_no_silent_connection_and_no_stranger(serve: Serve, guard: Guard) -> None:
    serving = serve(guard=guard)
    with channel_to(serving.address, key_of(guard)) as channel:
        check: Any = channel.unary_unary(HEALTH)
        assert check(b"", timeout=20) == b"\x08\x01"  # SERVING
    assert (guard.visitors._came, guard.visitors._called) == (1, 1)
    assert not serving.events()


# ---- Peers that speak something else, or nothing ----


def test_a_plain_node_gets_nowhere_and_disturbs_nobody(serve: Serve, connect: Connect, guard: Guard) -> None:
    serving = serve(guard=guard)
    code, _ = ended(connect(serving.address, authorization=bearer(guard)))
    assert code == "UNAVAILABLE"
    assert (
        connect(serving.address, channel=channel_to(serving.address, key_of(guard)), authorization=bearer(guard))
        .answer()
        .acknowledged
    )


def test_a_node_with_tls_gets_nowhere_at_an_open_server(serve: Serve, connect: Connect, guard: Guard) -> None:
    serving = serve()
    code, _ = ended(connect(serving.address, channel=channel_to(serving.address, key_of(guard)), authorization=bearer(guard)))
    assert code == "UNAVAILABLE"
    assert connect(serving.address).answer().acknowledged


def test_a_node_that_expects_another_key_says_nothing(serve: Serve, connect: Connect, guard: Guard, tmp_path: pathlib.Path) -> None:
    another = Guard(tmp_path / "another")
    serving = serve(guard=guard)
    code, reason = ended(
        connect(serving.address, channel=channel_to(serving.address, key_of(another)), authorization=bearer(another))
    )
    assert code == "UNAVAILABLE"
    assert "CERTIFICATE_VERIFY_FAILED" in reason
    assert not [event for event in serving.events() if event.startswith("refused")]  # no call has come
    assert guard.visitors._came >= 1
    assert guard.visitors._called == 0


@contextlib.contextmanager
def greeted(serving: Serving, guard: Guard, *frames: bytes) -> Iterator[ssl.SSLSocket]:
    """A raw connection with TLS, as HTTP/2."""
    context = ssl.create_default_context(cadata=authority_of(key_of(guard)).decode())
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", serving.port), timeout=20) as plain:
        with context.wrap_socket(plain, server_hostname=SERVER_NAME) as peer:
            peer.sendall(b"".join((GREETING, *frames)))
            yield peer


def call_with(authorization: bytes) -> bytes:
    """What opens a stream, with this header."""
    block = request_headers()[FRAME_HEADER:] + b"\0" + bytes([len(AUTHORIZATION)]) + AUTHORIZATION.encode()
    return frame(HEADERS, END_HEADERS, 1, block + bytes([len(authorization)]) + authorization)


def test_a_header_that_is_no_text_comes_into_no_log(
    serve: Serve, guard: Guard, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    serving = serve(guard=guard)
    caplog.set_level(logging.ERROR)
    secret = bearer(guard).encode()
    with greeted(serving, guard, call_with(secret[:-1] + b"\xff")):
        (line,) = eventually(serving.events)
    assert "UNAUTHENTICATED" not in line
    told = line + caplog.text + "".join(capfd.readouterr()) + "".join(serving.registry.errors)
    assert secret.decode()[-20:-1] not in told
    assert "Invalid encoding" not in told


def test_a_connection_that_makes_no_call_gives_up_its_place(serve: Serve, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("grpc.max_connection_idle_ms", 1000 * FIRST_MESSAGE_SECONDS) in server_options(10, 10, is_secure=True)
    assert "grpc.max_connection_idle_ms" not in dict(server_options(10, 10))
    monkeypatch.setattr("edge.protocol.FIRST_MESSAGE_SECONDS", 0.2)
    serving = serve(guard=guard)
    with greeted(serving, guard) as peer, contextlib.suppress(ConnectionError):
        while peer.recv(1000):  # it would answer pings for ever
            pass


def test_strangers_get_a_line_a_minute_of_each_network_and_so_many_of_all() -> None:
    log = EventLog(10_000, time.time, ())
    lines, follower = Lines(log), log.follow()
    for second in range(60):
        for number in range(200):
            lines.add("refused", "no token", "—", second, f"10.0.0.{number}")
    assert len(log.newest(10_000)) == STRANGERS_PER_MINUTE
    assert follower.new()[0] == 0  # none is missed
    lines.add("refused", "no token", "—", 60, "10.0.0.1")
    assert log.newest(1)[0].text == f"no token; {60 * 200 - STRANGERS_PER_MINUTE:,} more were refused since the last such line"
    lines.add("refused", "no token", "—", 61, "10.0.0.1")
    lines.add("refused", "a bad reading", "box", 61)  # of who is known
    assert len(log.newest(10_000)) == STRANGERS_PER_MINUTE + 2


def told(visitors: Visitors, seconds: int, start: int = 0) -> list[int]:
    return [count for second in range(seconds) if (count := visitors.tick(start + second))]


def test_connections_without_a_call_are_told_once_a_minute() -> None:
    visitors = Visitors()
    assert told(visitors, 1) == []
    for number in range(50):
        visitors.come()
        if number < 43:
            visitors.call(f"ipv4:10.0.0.7:{number}")
    assert told(visitors, 120, 1) == [7]
    assert told(visitors, 180, 121) == []  # and no more came


def test_a_storm_of_nodes_that_come_back_is_no_silent_connection() -> None:
    visitors = Visitors()
    visitors.tick(0)
    for second in range(1, 300):
        if second % 100 < 20:
            for _ in range(500):
                visitors.come()
        if second >= 5 and (second - 5) % 100 < 20:  # their calls come five seconds later
            for number in range(500):
                visitors.call(f"ipv4:10.0.0.7:{second}.{number}")
                visitors.leave(f"ipv4:10.0.0.7:{second}.{number}")
        assert visitors.tick(second) == 0
    assert not visitors._recent
    assert not visitors._before


def test_many_calls_of_one_connection_hide_no_other() -> None:
    visitors = Visitors()
    visitors.tick(0)
    visitors.come()
    found = []
    for second in range(1, 600):
        visitors.call("ipv4:10.0.0.7:1")  # a unary node
        if second % 60 == 30:
            visitors.come()  # and a silent connection each minute
        found.append(visitors.tick(second))
    assert sum(found) in (8, 9)
    assert max(found) == 1


def test_silent_connections_come_into_the_log_as_one_line(serve: Serve, dial: Dial, guard: Guard) -> None:
    clock = Clock()
    serving = serve(guard=guard, clock=clock)
    for _ in range(3):
        dial(serving, greeting=b"GET / HTTP/1.1\r\n\r\n").is_closed_within(20)
    eventually(lambda: guard.visitors._came == 3 and guard.visitors._tell_at)
    for _ in range(2):
        before = guard.visitors._tell_at
        clock.now += TOLD_SECONDS
        eventually(lambda before=before: guard.visitors._tell_at != before)  # type: ignore[misc]
    (line,) = [event for event in serving.events() if event.startswith("refused")]
    assert "made no call: 3;" in line


def test_that_strangers_take_nearly_all_connections_is_told(
    serve: Serve, dial: Dial, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.most_connections", lambda *_: 10)
    clock = Clock()
    serving = serve(guard=guard, clock=clock)
    unary(serving.address, channel_to(serving.address, key_of(guard)), bearer(guard), node_id="script")
    peers = [dial(serving, greeting=b"") for _ in range(9)]
    eventually(lambda: guard.visitors._came >= 10)
    clock.now += CROWD_SECONDS
    (line,) = eventually(lambda: [event for event in serving.events() if "are taken" in event])  # both ends are in this process
    assert re.search(r"^warning server: \d+ of 10 connections are taken, 0 of them by nodes: .* --max-nodes; .* firewall", line)
    assert len(peers) == 9


def test_a_crowd_is_told_once_a_minute_and_not_before_it_is_one() -> None:
    files = [20]
    crowd = Crowd(1000, lambda: files[0])
    files[0] = 919
    assert not crowd.tick(0, 400)
    files[0] = 920
    assert [second for second in range(1, 200) if crowd.tick(second, 400)] == [60, 120, 180]
    assert crowd.tick(240, 400).startswith("900 of 1,000 connections are taken, 400 of them by nodes: ")
    assert not crowd.tick(300, 400, others=240)  # browsers are none of them
    assert not Crowd(10, lambda: 0).tick(0, 0)  # where the system does not say


# ---- Certificates of the user's own ----


@pytest.fixture
def authority() -> Authority:
    return Authority()


def certified(
    tmp_path: pathlib.Path, authority: Authority, with_clients: bool = False, wall: Callable[[], float] = time.time
) -> Guard:
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(authority.pem)
    return Guard(tmp_path / "state", *authority.write(tmp_path, "server.example"), client_ca if with_clients else None, wall)


def test_under_the_users_own_certificate_a_token_is_needed_as_before(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority
) -> None:
    guard = certified(tmp_path, authority)
    serving = serve(guard=guard)
    channel = certified_channel(serving, authority)
    assert connect(serving.address, channel=channel, authorization=bearer(guard)).answer().acknowledged
    assert ended(connect(serving.address, "", "", channel=certified_channel(serving, authority)))[0] == "UNAUTHENTICATED"
    assert guard.joining(["here"]).needs_ca
    assert guard.visitors._came == guard.visitors._called == 2


@pytest.mark.parametrize("names", [("box",), ("rack-7", "box")])
def test_a_certificate_that_names_the_node_lets_it_in_with_no_token(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority, names: tuple[str, ...]
) -> None:
    serving = serve(guard=certified(tmp_path, authority, with_clients=True))
    channel = certified_channel(serving, authority, authority.issue(*names))
    assert connect(serving.address, "box", channel=channel).answer().acknowledged
    assert unary(serving.address, channel, node_id="box ", info=pb.NodeInfo(instance_id="a")).acknowledged


def test_a_certificate_for_another_node_does_not(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority
) -> None:
    guard = certified(tmp_path, authority, with_clients=True)
    serving = serve(guard=guard)
    other = authority.issue("other", "*")
    channel = certified_channel(serving, authority, other)
    code, reason = ended(connect(serving.address, "box", channel=channel, authorization=bearer(guard)))
    assert code == "PERMISSION_DENIED"
    assert "the certificate is for other, *: not for a node box" in reason
    with pytest.raises(grpc.RpcError, match="the certificate is for other"):
        unary(serving.address, certified_channel(serving, authority, other), node_id="box")
    assert not serving.rows()


def test_who_has_no_certificate_or_one_of_another_authority_does_not_come_to_a_call(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority
) -> None:
    guard = certified(tmp_path, authority, with_clients=True)
    serving = serve(guard=guard)
    for own in (None, Authority("foreign").issue("box")):
        channel = certified_channel(serving, authority, own)
        assert ended(connect(serving.address, channel=channel, authorization=bearer(guard)))[0] == "UNAVAILABLE"
    assert guard.visitors._called == 0
    joining = guard.joining(["here"])
    assert (joining.needs_certificate, joining.node_token) == (True, "")


def test_a_box_is_told_the_name_that_stands_in_the_users_certificate(tmp_path: pathlib.Path, authority: Authority) -> None:
    guard = certified(tmp_path, authority)
    for address, shown in (("10.0.0.5", "server.example"), ("[fd00::5]:6000", "server.example:6000")):
        assert guard.joining([address, "10.0.0.6"]).addresses == [shown]
    guard.set_listening([Endpoint("::", 6000)])
    assert elsewhere(guard).listening() == (("server.example", 6000),)  # as `token list` tells it
    for http, shown in ((Endpoint("::", 8080), "server.example"), (Endpoint("127.0.0.1", 8080), "127.0.0.1")):
        guard.set_listening([Endpoint("::", 6000)], http)
        assert elsewhere(guard).http() == (shown, 8080)
    for names, shown in ((("fd00::7", "new.example"), "[fd00::7]:6000"), (("*.example",), "10.0.0.5:6000")):
        for ending, content in zip((".pem", "-key.pem"), authority.issue(*names), strict=True):
            (tmp_path / f"server.example{ending}").write_bytes(content)
        for _ in range(2):
            guard.refresh()
        assert guard.joining(["10.0.0.5:6000"]).addresses == [shown]
        assert elsewhere(guard).listening() == ((("fd00::7", 6000),) if "fd00" in shown else (("::", 6000),))


def test_certificates_are_replaced_while_nodes_are_connected(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority
) -> None:
    guard = certified(tmp_path, authority)
    serving = serve(guard=guard)
    streams = [
        connect(serving.address, f"box-{n}", channel=certified_channel(serving, authority), authorization=bearer(guard))
        for n in range(50)
    ]
    assert all(stream.answer().acknowledged for stream in streams)
    newer = Authority("newer")
    newer.write(tmp_path, "server.example")

    def is_new() -> bool:
        stream = connect(serving.address, "late", channel=certified_channel(serving, newer), authorization=bearer(guard))
        with contextlib.suppress(grpc.RpcError):
            return stream.answer().acknowledged
        return False

    eventually(is_new)
    for stream in streams:
        stream.send(sample=pb.Sample(sequence=7))
    eventually(lambda: [row.sample.sequence for name, row in serving.rows().items() if name != "late"] == [7] * 50)
    assert not [event for event in serving.events() if event.startswith("disconnected box")]


OTHER_NAMES = (x509.RFC822Name("box"), x509.UniformResourceIdentifier("box"), x509.RegisteredID(x509.ObjectIdentifier("1.2.3")))


@pytest.mark.parametrize("node_id", ["box", "other", "OTHER.example", "box\0.evil", "", "uri:box"])
def test_only_a_subjects_and_dns_names_count_each_as_a_whole(
    serve: Serve, tmp_path: pathlib.Path, authority: Authority, node_id: str
) -> None:
    serving = serve(guard=certified(tmp_path, authority, with_clients=True))
    own = authority.issue("box\0.evil", "other.example", "*", others=OTHER_NAMES)
    with pytest.raises(grpc.RpcError) as error:
        unary(serving.address, certified_channel(serving, authority, own), node_id=node_id)
    assert error.value.code().name in ("PERMISSION_DENIED", "INVALID_ARGUMENT")
    assert not serving.rows()
    assert unary(serving.address, certified_channel(serving, authority, own), node_id="other.example").acknowledged


def test_a_certificate_below_one_that_the_node_shows_along_lets_it_in(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority
) -> None:
    serving = serve(guard=certified(tmp_path, authority, with_clients=True))
    between = Authority("between", above=authority)
    certificate, key = between.issue("box")
    channel = certified_channel(serving, authority, (certificate + between.pem, key))
    assert connect(serving.address, "box", channel=channel).answer().acknowledged


def test_a_certificate_that_expires_ends_its_session_and_starts_no_other_by_its_connection(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority
) -> None:
    wall = Clock()
    wall.now = time.time()
    serving = serve(guard=certified(tmp_path, authority, True, wall))
    channel = certified_channel(serving, authority, authority.issue("box", lasts_days=20))
    lasting = connect(serving.address, "rack-7", channel=certified_channel(serving, authority, authority.issue("rack-7")))
    stream = connect(serving.address, "box", channel=channel)
    assert stream.answer().acknowledged
    assert lasting.answer().acknowledged
    wall.now += 25 * 24 * 3600
    code, reason = ended(stream)
    assert code == "UNAUTHENTICATED"
    assert re.search(r"the certificate expired at \d{4}-.*--tls-cert", reason)
    assert ended(connect(serving.address, "box", channel=channel)) == (code, reason)
    assert not lasting.call.done()
    assert len(serving.network._service._certified) == 1


def test_a_session_of_tls_that_is_resumed_does_not_outlive_its_certificate(
    serve: Serve, tmp_path: pathlib.Path, authority: Authority
) -> None:
    wall = Clock()
    wall.now = time.time()
    serving = serve(guard=certified(tmp_path, authority, True, wall))
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(*authority.write(tmp_path, "box"))
    heartbeat = pb.HeartbeatRequest(node_id="box").SerializeToString()
    session, found = None, []
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", serving.port), timeout=20) as plain:
            with context.wrap_socket(plain, server_hostname="server.example", session=session) as peer:
                peer.sendall(GREETING + request_headers(path=b"/node.NodeService/Heartbeat") + data_frame(heartbeat, END_STREAM))
                received = b""
                while b"grpc-status" not in received:
                    received += peer.recv(10_000)
                session = peer.session
                found.append((peer.session_reused, status_of(received)))
        wall.now += 40 * 24 * 3600
    assert found == [(False, "OK"), (True, "UNAUTHENTICATED")]


def test_whose_authority_is_gone_is_ended_and_no_other(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path, authority: Authority
) -> None:
    guard = certified(tmp_path, authority, with_clients=True)
    newer = Authority("newer")
    (tmp_path / "clients.pem").write_bytes(authority.pem + newer.pem)
    guard = Guard(guard.folder, tmp_path / "server.example.pem", tmp_path / "server.example-key.pem", tmp_path / "clients.pem")
    serving = serve(guard=guard)
    channel, lasting = (certified_channel(serving, authority, by.issue(name)) for by, name in ((authority, "box"), (newer, "new")))
    stream, other = connect(serving.address, "box", channel=channel), connect(serving.address, "new", channel=lasting)
    assert stream.answer().acknowledged
    assert other.answer().acknowledged
    (tmp_path / "clients.pem").write_bytes(newer.pem)
    code, reason = ended(stream)
    assert code == "UNAUTHENTICATED"
    assert "of no authority that this server knows now" in reason
    assert ended(connect(serving.address, "box", channel=channel)) == (code, reason)  # by the connection of before
    assert connect(serving.address, "new", "b", channel=lasting).status()[0].name == "ALREADY_EXISTS"
    assert not other.call.done()


# ---- The program ----


def test_a_first_start_tells_what_to_do_on_a_box_and_the_token_gets_in(start: Start, tmp_path: pathlib.Path) -> None:
    program = start("server.py", "--secure", "--listen", "127.0.0.1:0", "--headless", "--state", str(tmp_path / "state"))
    address = program.line(r"listening on (\S+)")[1]
    token = program.line(r"^(edge1-\S+)$")[1]
    program.line(rf"python3 node\.pyz --server {address}$")
    program.line(rf"EDGE_TOKEN={token} python3 node\.pyz --server {address}$")
    key = OwnKey(tmp_path / "state").public
    assert unary(address, channel_to(address, key), f"Bearer {token}", node_id="box").acknowledged
    program.line("joined box")
    assert program.end() == 130


def test_an_open_server_says_so_and_how_to_close_it(start: Start) -> None:
    program = start("server.py", "--listen", "127.0.0.1:0", "--headless")
    program.line(r"^Open to whoever reaches it\. To close it: server\.pyz --secure$")


def test_the_screen_says_as_it_is_now_how_a_box_joins(terminal: Open, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "state"
    screen = terminal("server.py", "--secure", "--listen", "127.0.0.1:0", "--state", str(folder))
    shown = screen.shows(r"edge1-[\w-]+")[0]
    screen.shows("secure")
    tokens = Tokens(folder, OwnKey(folder))
    assert shown == tokens.offered(Role.NODE).text
    tokens.revoke(next(issued.id for issued in tokens.issued() if issued.role is Role.NODE))
    screen.shows("No node token is valid")
    screen.press("q")
    assert screen.wait() == 0


def test_tokens_do_not_go_into_the_journal_nor_a_file_nor_among_json(start: Start, tmp_path: pathlib.Path) -> None:
    arguments = ("--secure", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"))
    into_journal = "import os, sys; status = os.fstat(1); os.environ['JOURNAL_STREAM'] = f'{status.st_dev}:{status.st_ino}'; "
    become = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    program = start("-c", into_journal + become, "server.py", *arguments)
    program.line(rf"token list --state {tmp_path}")
    assert not [line for line in program.lines if "edge1-" in line]
    assert program.end() == 130
    out = tmp_path / "out"
    into_a_file = f"import os, sys; os.dup2(os.open({str(out)!r}, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1); "
    program = start("-c", into_a_file + become, "server.py", "--headless", *arguments)
    eventually(lambda: out.exists() and f"token list --state {tmp_path}" in out.read_text())
    assert program.end() == 130
    assert "edge1-" not in out.read_text()
    program = start("-c", into_a_file + become, "server.py", "--json", *arguments)
    program.line("^edge1-")  # on stderr
    eventually(lambda: out.exists() and out.read_text().startswith('{"'))
    assert "edge1-" not in out.read_text()


@pytest.mark.parametrize("folder", ["/proc/edge", "/dev/null/edge"])
def test_a_state_folder_that_cannot_be_written_is_refused(start: Start, folder: str) -> None:
    program = start("server.py", "--secure", "--listen", "127.0.0.1:0", "--headless", "--state", folder)
    assert program.wait() == 1
    (line,) = program.lines
    assert line.startswith("server: ")
    assert folder in line
    assert "--state" in line


def test_a_state_folder_that_is_read_only_serves_once_the_key_and_the_tokens_are_there(start: Start, guard: Guard) -> None:
    mount = f"mount --bind {guard.folder} {guard.folder} && mount -o remount,ro,bind {guard.folder}"
    server = f"exec {sys.executable} server.py --secure --listen 127.0.0.1:0 --headless --state {guard.folder}"
    isolated = "import os, sys; os.execvp('unshare', ['unshare', '-m', 'sh', '-c', sys.argv[1]])"
    program = start("-c", isolated, f"{mount} && {server}")
    program.line("listening on")
    program.line("^edge1-")
    program.line(r"warning server: token list can't tell where this server listens: .*read-only file system")
    assert program.end() == 130


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls-cert", "a.pem"), "argument --tls-cert: --tls-key is missing\n"),
        (("--tls-key", "a.key"), "argument --tls-key: --tls-cert is missing\n"),
        (("--client-ca", "ca.pem"), "argument --client-ca: --tls-cert and --tls-key are missing\n"),
        (("--client-ca", "ca.pem", "--tls-key", "a.key"), "--tls-cert is missing\n"),
        (("--secure", "token", "list"), "server: token comes first: python3 server.pyz token new|list|revoke [option …]\n"),
        (("--state", "x", "token", "new", "--note", "x"), "server: token comes first: "),
        (("tokens",), "server: unrecognized arguments: tokens\n"),
        (("--state", ""), "--state: it is empty"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        parse_options(arguments)
    assert ending.value.code == 2
    assert words in capsys.readouterr().err


def test_options_come_from_the_environment_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not parse_options([]).secure
    monkeypatch.setenv("EDGE_SECURE", "1")
    monkeypatch.setenv("EDGE_STATE", "/srv/edge")
    options = parse_options([])
    assert (options.secure, options.state) == (True, pathlib.Path("/srv/edge"))
    monkeypatch.delenv("EDGE_SECURE")
    assert parse_options(["--tls-cert", "a", "--tls-key", "b"]).secure


def test_the_commands_of_tokens_come_before_the_options(start: Start, tmp_path: pathlib.Path) -> None:
    program = start("server.py", "token", "list", "--state", str(tmp_path / "nothing"))
    assert program.wait() == 1
    assert "--secure" in program.lines[-1]
    assert start("server.py", "--help").line("server.pyz token list")


def test_a_running_server_follows_the_commands(start: Start, connect: Connect, tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path / "state")
    server = start("server.py", "--secure", "--listen", "127.0.0.1:0", "--headless", "--state", folder)
    address = server.line(r"listening on (\S+)")[1]
    token = parse_token(start("server.py", "token", "new", "--note", "rack 7", "--state", folder).line("^edge1-.*")[0])
    assert connect(address, "early", channel=channel_to(address, token.key), authorization=bearer_of_first(server)).answer()

    def joined() -> Stream | None:
        stream = connect(address, channel=channel_to(address, token.key), authorization=token.bearer())
        with contextlib.suppress(grpc.RpcError):
            return stream if stream.answer().acknowledged else None
        return None

    stream = eventually(joined)
    assert start("server.py", "token", "revoke", token.id, "--state", folder).wait() == 0
    assert TICK_SECONDS < 2  # people are promised an end within so many
    assert stream
    code, reason = ended(stream)
    assert code == "UNAUTHENTICATED"
    assert f"the token {token.id} was revoked" in reason
    server.line(f"disconnected box: the token {token.id} was revoked")
    assert not [line for line in server.lines if token.text() in line]


def bearer_of_first(server: Program) -> str:
    """Of the token that a server's first lines tell."""
    return f"Bearer {server.line('^edge1-.*$')[0]}"
