"""Who looks from elsewhere: real calls to a real server."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import node_pb2 as pb
import node_pb2_grpc
from edge import history
from edge.credentials import SERVER_NAME, Role, Token, authority_of
from edge.event_log import Event
from edge.fleet import recall, service, watch
from edge.fleet.certificates import OwnKey
from edge.fleet.guard import Guard
from edge.fleet.listening import socket_path, socket_target
from edge.fleet.source import Moment, NoPast, Readings, Source
from edge.fleet.tokens import Tokens
from edge.protocol import MAX_OPEN_NODES, MAX_VIEWERS, MAX_VIEWERS_ELSEWHERE, MAX_WATCH_BYTES
from tests.fixtures.examples import example_row
from tests.fixtures.garbage import collected
from tests.fixtures.processes import Program, eventually
from tests.fixtures.sessions import LOCAL, Clock, Serving, Stream, headers_of, unary

Serve = Callable[..., Serving]
Connect = Callable[..., Stream]
Start = Callable[..., Program]


class Looking:
    """A viewer that the test plays."""

    def __init__(self, address: str, authorization: str | None = None, channel: grpc.Channel | None = None, **first: Any) -> None:
        self._channel = channel or grpc.insecure_channel(address, options=LOCAL)
        self._outbox: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        self.call = node_pb2_grpc.NodeServiceStub(self._channel).Watch(
            iter(self._outbox.get, None), timeout=30, metadata=headers_of(authorization)
        )
        self.ask(**first)

    def ask(self, **fields: Any) -> None:
        self._outbox.put(pb.WatchRequest(**fields))

    def half_close(self) -> None:
        self._outbox.put(None)

    def until(self, wanted: Callable[[pb.WatchUpdate], object]) -> pb.WatchUpdate:
        """The next message that is wanted."""
        update: pb.WatchUpdate
        for update in self.call:
            if wanted(update):
                return update
        raise AssertionError("the stream is over")

    def whole(self) -> tuple[list[pb.NodeRow], list[pb.FleetEvent]]:
        """What comes until the first version is complete."""
        rows: list[pb.NodeRow] = []
        events: list[pb.FleetEvent] = []
        while True:
            update = self.until(lambda update: not update.HasField("server"))
            rows += update.rows
            events += update.events
            if update.version:
                return rows, events

    def status(self) -> tuple[grpc.StatusCode, str]:
        with contextlib.suppress(grpc.RpcError):
            for _ in self.call:
                pass
        return self.call.code(), self.call.details()

    def close(self) -> None:
        self.call.cancel()
        self.half_close()
        self._channel.close()


Look = Callable[..., Looking]


@pytest.fixture(autouse=True)
def many_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tenth of a second, so that no test takes long."""
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.1)
    monkeypatch.setattr("server.TICK_SECONDS", 0.1)


@pytest.fixture
def guard(tmp_path: pathlib.Path) -> Guard:
    return Guard(tmp_path / "state")


@pytest.fixture
def look() -> Iterator[Look]:
    looking: list[Looking] = []

    def start(address: str, **first: Any) -> Looking:
        looking.append(Looking(address, **first))
        return looking[-1]

    yield start
    for one in looking:
        one.close()


# ---- The fleet ----


def test_the_fleet_whole_and_then_what_changes(serve: Serve, connect: Connect, look: Look) -> None:
    serving = serve()
    stream = connect(serving.address)
    stream.answer()
    viewer = look(serving.address, clock_milliseconds=77, open=["box"])
    first = viewer.until(lambda update: update.HasField("server"))
    assert not first.server.may_forget
    assert viewer.until(lambda update: update.is_snapshot).events[0].kind == "joined"
    (row,) = viewer.until(lambda update: update.rows).rows
    assert (row.node_id, row.has_session, row.address) == ("box", True, "127.0.0.1")
    version = viewer.until(lambda update: update.version).version
    echo = viewer.until(lambda update: update.echoed_clock_milliseconds)
    assert (echo.echoed_clock_milliseconds, [one.number for one in echo.details]) == (77, [row.number])
    stream.send(sample=pb.Sample(sequence=1, host=pb.HostSample(cpu_percent=31)))
    stream.send(sample=pb.Sample(sequence=2, host=pb.HostSample(cpu_percent=35)))
    changed = viewer.until(lambda update: update.rows)
    assert changed.version > version and changed.rows[0].summary.utilization_permille in (310, 350)
    details = viewer.until(lambda update: update.details).details[0]
    assert pb.Sample.FromString(details.sample).host.cpu_percent in (31, 35)
    stream.send(leaving=True)
    assert viewer.until(lambda update: update.rows).rows[0].left
    assert serving.network._service.calls() == 0 and serving.streams() == 1  # it is no node
    viewer.close()
    eventually(lambda: serving.streams() == 0 and serving.network._service.feed.viewers() == 0)


def test_who_half_closes_looks_on(serve: Serve, look: Look) -> None:
    viewer = look(serve().address)
    viewer.half_close()
    versions = [viewer.until(lambda update: update.version).version for _ in range(2)]
    assert versions == [1, 2]


def test_who_reads_nothing_for_a_while_goes_on_with_the_sum_and_sees_no_age_that_is_too_young(serve: Serve, look: Look) -> None:
    serving = serve(max_nodes=2000)
    feed, beats = serving.network._service.feed, set[int]()

    def beat() -> None:
        now = serving.registry.clock()
        beats.add(int(1000 * now))
        for index in range(2000):
            serving.registry.restore(example_row(0)._replace(node_id=f"node-{index}", heartbeat_at=now, sample_at=now))

    beat()
    viewer = look(serving.address, channel=grpc.insecure_channel(serving.address, options=(*LOCAL, ("grpc.http2.bdp_probe", 0))))
    first = viewer.until(lambda update: update.version).version
    for version in range(first + 1, first + 13):
        beat()
        eventually(lambda version=version: feed.version >= version)  # type: ignore[misc]
    told = [first]
    while told[-1] < feed.version - 1:
        update = viewer.until(lambda update: update.version)
        told.append(update.version)
        assert update.clock_milliseconds <= 1000 * serving.registry.clock()
        for age in set(update.beats.heartbeat_age_milliseconds):
            at = update.clock_milliseconds - age
            assert min(abs(at - beat) for beat in beats) <= 1
    assert told == sorted(set(told))
    assert len(told) < told[-1] - first  # it missed some, and got their sum


# ---- Who may ----


def local(serving: Serving, folder: pathlib.Path) -> str:
    return socket_target(socket_path(folder, serving.port))


def secure_channel(serving: Serving, token: Token) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(authority_of(token.key))
    return grpc.secure_channel(serving.address, credentials, options=(*LOCAL, ("grpc.ssl_target_name_override", SERVER_NAME)))


def token_of(guard: Guard, role: Role) -> Token:
    return next(guard.tokens.token_of(issued) for issued in guard.tokens.issued() if issued.role is role)


def test_this_machines_own_user_looks_without_a_token_and_may_forget(
    serve: Serve, look: Look, guard: Guard, tmp_path: pathlib.Path
) -> None:
    serving = serve(guard=guard, socket_folder=tmp_path / "a b%20c")
    serving.registry.restore(example_row(17))
    viewer = look(local(serving, tmp_path / "a b%20c"))
    status = viewer.until(lambda update: update.HasField("server")).server
    assert (status.may_forget, status.is_secure, list(status.addresses)) == (True, True, [serving.address])
    viewer.until(lambda update: update.rows)
    viewer.ask(forget=["Node-1017", "no such node"])
    assert viewer.until(lambda update: update.removed).removed == [0]
    assert serving.rows() == {}


def test_the_socket_takes_no_heartbeats(serve: Serve, tmp_path: pathlib.Path) -> None:
    serving = serve(socket_folder=tmp_path)
    with pytest.raises(grpc.RpcError) as error:
        unary(local(serving, tmp_path), node_id="box")
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert serving.rows() == {}


def test_the_socket_lies_in_a_folder_of_this_user_alone_or_there_is_none(serve: Serve, tmp_path: pathlib.Path) -> None:
    serving = serve(socket_folder=tmp_path)
    folder = socket_path(tmp_path, serving.port).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o711)
    other = serve(socket_folder=tmp_path)
    assert not socket_path(tmp_path, other.port).exists()
    assert other.events() == [
        f"warning server: --attach on this machine needs an address: {folder} is not this user's alone: chmod 700 {folder}"
    ]


def test_a_link_in_the_place_of_that_folder_is_not_followed(serve: Serve, tmp_path: pathlib.Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "watch").symlink_to(tmp_path / "own")
    serving = serve(socket_folder=tmp_path)
    assert not list((tmp_path / "own").iterdir())
    assert "is not this user's alone" in serving.events()[0]


def test_a_server_that_was_killed_leaves_a_socket_that_the_next_one_takes(
    start: Start, look: Look, state_home: pathlib.Path
) -> None:
    def begin(port: str) -> tuple[Program, str]:
        program = start("server.py", "--headless", "--listen", f"127.0.0.1:{port}")
        return program, program.line(r"listening on 127.0.0.1:(\d+)")[1]

    first, port = begin("0")
    path = socket_path(state_home / "edge-compute-node", int(port))
    first.end(signal.SIGKILL)
    assert path.exists()
    second, _ = begin(port)
    assert look(socket_target(path)).until(lambda update: update.version).version == 1
    assert second.end() == 130
    assert not path.exists()


def test_from_elsewhere_nobody_forgets(serve: Serve, look: Look) -> None:
    serving = serve()
    serving.registry.restore(example_row(17))
    viewer = look(serving.address, forget=["Node-1017"])
    assert viewer.status() == (grpc.StatusCode.PERMISSION_DENIED, "nodes are forgotten on the server's own machine alone")
    assert set(serving.rows()) == {"Node-1017"}


def test_a_secure_server_shows_its_fleet_to_who_has_a_token_for_looking(serve: Serve, look: Look, guard: Guard) -> None:
    serving = serve(guard=guard)
    view, node = token_of(guard, Role.VIEW), token_of(guard, Role.NODE)
    for bearer, code in ((None, "UNAUTHENTICATED"), (node.bearer(), "PERMISSION_DENIED"), (view.bearer()[:-3], "UNAUTHENTICATED")):
        refused = look(serving.address, channel=secure_channel(serving, view), authorization=bearer)
        assert refused.status()[0].name == code
    viewer = look(serving.address, channel=secure_channel(serving, view), authorization=view.bearer())
    assert viewer.until(lambda update: update.HasField("server")).server.is_secure
    Tokens(guard.folder, OwnKey(guard.folder)).revoke(view.id)
    ended, reason = viewer.status()
    assert ended is grpc.StatusCode.UNAUTHENTICATED
    assert "revoked" in reason


def test_there_are_so_many_viewers_and_the_last_places_are_this_machines(serve: Serve, look: Look, tmp_path: pathlib.Path) -> None:
    serving = serve(socket_folder=tmp_path)
    for _ in range(MAX_VIEWERS_ELSEWHERE):
        look(serving.address).until(lambda update: update.version)
    code, reason = look(serving.address).status()
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "14 look already: that is all there may be")
    assert look(serving.address).status() == (code, reason)
    assert len([event for event in serving.events() if "look already" in event]) == 1  # however often it tries
    for _ in range(MAX_VIEWERS - MAX_VIEWERS_ELSEWHERE):
        look(local(serving, tmp_path)).until(lambda update: update.version)
    assert look(local(serving, tmp_path)).status()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_comes_again_and_again_is_refused_for_a_second(serve: Serve, look: Look) -> None:
    serving = serve(clock=Clock())
    statuses = [look(serving.address, open=["x" * 64]).status() for _ in range(service.WATCHES_OF_ONE + 1)]
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many come to look, in this second") in statuses


def test_who_looks_and_goes_again_and_again_is_refused_for_some_seconds(serve: Serve, look: Look) -> None:
    serving = serve(clock=Clock())
    for _ in range(service.LOOKS_OF_ONE):
        viewer = look(serving.address)
        viewer.until(lambda update: update.version)
        viewer.close()
    refused = look(serving.address)
    assert refused.status() == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many come to look, in these seconds")


@pytest.mark.parametrize(
    ("first", "code", "told"),
    [
        ({"open": ["x"] * (MAX_OPEN_NODES + 1)}, "RESOURCE_EXHAUSTED", "open has 257 nodes: it may have 256"),
        ({"forget": ["x" * 64]}, "INVALID_ARGUMENT", "forget has a name of more than 63 characters"),
        ({"open": ["x" * MAX_WATCH_BYTES]}, "RESOURCE_EXHAUSTED", "bytes: it may have 262144"),
        ({"graph": pb.GraphRequest(seconds=1)}, "INVALID_ARGUMENT", "graph.steps is 0: it must be from 1 to 1000"),
        ({"graph": pb.GraphRequest(seconds=2**32 - 1, steps=1)}, "INVALID_ARGUMENT", "it must be from 1 to 2678400"),
        ({"graph": pb.GraphRequest(seconds=1, steps=1, end_unix_milliseconds=2**63 - 1)}, "INVALID_ARGUMENT", "is no time"),
        ({"moment_unix_milliseconds": -1}, "INVALID_ARGUMENT", "is no time"),
        ({"moment_unix_milliseconds": 1}, "FAILED_PRECONDITION", "this server keeps no journal, so there is no past to see"),
    ],
)
def test_what_a_viewer_may_ask_is_bounded(serve: Serve, look: Look, first: dict[str, Any], code: str, told: str) -> None:
    given, reason = look(serve().address, **first).status()
    assert given.name == code
    assert told in reason


def test_who_asks_all_the_time_is_heard_twenty_times_a_second(serve: Serve, look: Look) -> None:
    serving = serve()
    started = serving.registry.clock()
    viewer = look(serving.address)
    for clock in range(1, 9):
        viewer.ask(clock_milliseconds=clock)
    viewer.until(lambda update: update.echoed_clock_milliseconds == 8)
    assert serving.registry.clock() - started >= 7 * service.REQUEST_SECONDS


def test_a_server_that_goes_tells_those_who_look(serve: Serve, look: Look) -> None:
    serving = serve()
    viewer = look(serving.address)
    viewer.until(lambda update: update.version)
    serving.network.stop()
    assert viewer.status()[0] is grpc.StatusCode.UNAVAILABLE


def test_viewers_leave_nothing_to_the_garbage_collector(serve: Serve, look: Look) -> None:
    serving = serve()
    with collected() as found:
        going, refused = look(serving.address, open=["box"]), look(serving.address)
        going.until(lambda update: update.version)
        refused.until(lambda update: update.version)
        refused.ask(forget=["box"])
        assert refused.status()[0] is grpc.StatusCode.PERMISSION_DENIED
        going.close()
        refused.close()
        eventually(lambda: serving.streams() == 0)
    assert found == []


# ---- The past ----


class OneDay:
    """A past of one moment."""

    def __init__(self, gate: threading.Event | None = None, nodes: int = 2) -> None:
        self._gate, self._rows = gate, [example_row(0)._replace(node_id=f"node-{index}") for index in range(nodes)]

    def span(self) -> tuple[float, float]:
        return 1000.0, 2000.0

    def moment(self, wall: float, after: bool = False) -> Source:
        if self._gate:
            self._gate.wait()
        if wall < 1000:
            raise NoPast("nothing is kept of that time")
        return Moment(1000.0, wall, self._rows, [Event(wall, "joined", "node-0", "x")])

    def graph(self, node_id: str, end: float, seconds: float, steps: int) -> Readings:
        return Readings(1, node_id.encode(), f"{end:g} {seconds:g} {steps}".encode())


def test_the_fleet_as_it_was_comes_whole_and_ends_the_stream(serve: Serve, look: Look) -> None:
    serving = serve(past=OneDay())
    viewer = look(serving.address, moment_unix_milliseconds=1_500_000)
    rows, events = viewer.whole()
    assert [row.node_id for row in rows] == ["node-0", "node-1"]
    assert rows[0].sample == example_row(0).packed_sample
    assert len(rows[0].readings) == history.SAMPLES * 3 * 9
    assert [event.unix_milliseconds for event in events] == [1_500_000]
    assert viewer.status()[0] is grpc.StatusCode.OK
    early = look(serving.address, moment_unix_milliseconds=1)
    assert early.status() == (grpc.StatusCode.NOT_FOUND, "nothing is kept of that time")
    asked = pb.GraphRequest(node_id="box", end_unix_milliseconds=2_000_000, seconds=60, steps=30)
    graph = look(serving.address, graph=asked).until(lambda update: update.version).graph
    assert (graph.devices, graph.lowest, graph.highest) == (1, b"box", b"2000 60 30")
    told = look(serving.address).until(lambda update: update.server.past_unix_milliseconds).server
    assert (told.has_past, told.past_unix_milliseconds) == (True, 1_000_000)


def test_a_past_that_does_not_answer_keeps_nobody_else(serve: Serve, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAST_SECONDS", 0.2)
    gate = threading.Event()
    serving = serve(past=OneDay(gate))
    stuck = [look(serving.address, moment_unix_milliseconds=1_500_000) for _ in range(6)]
    look(serving.address).until(lambda update: update.version == 2)
    assert {one.status()[0] for one in stuck} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    gate.set()
    assert len(look(serving.address, moment_unix_milliseconds=1_500_000).whole()[0]) == 2


def test_who_goes_before_the_answer_is_whole_takes_nobodys_turn(serve: Serve, look: Look) -> None:
    serving = serve(past=OneDay(nodes=3000))
    for _ in range(recall.ANSWERS_AT_ONCE + 1):
        viewer = look(serving.address, moment_unix_milliseconds=1_500_000)
        viewer.until(lambda update: update.rows)
        viewer.close()
        eventually(lambda: serving.streams() == 0)
    assert len(look(serving.address, moment_unix_milliseconds=1_500_000).whole()[0]) == 3000


def test_who_never_reads_the_past_keeps_no_turn_of_this_machines_own_user() -> None:
    async def turns() -> None:
        kept = recall.Recall(OneDay(), Clock())
        asked = pb.WatchRequest(moment_unix_milliseconds=1_500_000)
        unread = [kept.answer(asked, 1, is_local=False) for _ in range(recall.ANSWERS_AT_ONCE)]
        for answer in unread:
            await anext(answer)
        own = kept.answer(asked, 1, is_local=True)
        assert await asyncio.wait_for(anext(own), 10)
        for answer in (*unread, own):
            await answer.aclose()

    asyncio.run(turns())
