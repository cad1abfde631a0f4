"""Several servers: whose turn it is, when an earlier one is looked for, and whether it is there."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

import node
import node_pb2 as pb
import node_pb2_grpc
from edge.backoff import backoff
from edge.drawing import plain
from edge.errors import Distrust
from edge.hardware.identity import Identity, draw_id
from edge.hardware.screen import link_line
from edge.hardware.servers import PACE, SERVING, Pace, Turns, is_there, ordinal
from edge.protocol import HEALTH
from edge.trust import Metadata, Trust
from tests.fixtures.processes import Program, Terminal, eventually
from tests.fixtures.secure import Guarded, own_server, start_guarded
from tests.fixtures.sessions import Clock, Serving

GONE, BROKE = (grpc.StatusCode.UNAVAILABLE, False), (grpc.StatusCode.UNAVAILABLE, True)
REFUSED, SILENT = (grpc.StatusCode.RESOURCE_EXHAUSTED, False), (None, False)


def test_backoff_is_exponential_with_full_jitter() -> None:
    ceilings = list(itertools.islice(backoff(lambda lowest, highest: highest), 12))
    assert ceilings[:4] == pytest.approx([1, 1.6, 2.56, 4.096])
    assert ceilings[-1] == 30
    assert list(itertools.islice(backoff(lambda lowest, highest: lowest), 12)) == [0] * 12
    assert max(itertools.islice(backoff(max, 15), 20)) == 15
    assert len({next(backoff()) for _ in range(20)}) == 20


def test_servers_take_turns_in_their_order() -> None:
    turns, seen = Turns(["a:1", "b:2", "c:3"]), []
    for _ in range(4):
        seen.append((turns.server, turns.place))
        turns.failed(*GONE)
    assert seen == [
        ("a:1", "1st of 3"),
        ("b:2", "2nd of 3; first: a:1"),
        ("c:3", "3rd of 3; first: a:1"),
        ("a:1", "1st of 3"),
    ]
    turns.back_to("c:3")
    assert (turns.server, turns.earlier()) == ("c:3", ["a:1", "b:2"])


def test_one_server_has_no_place_and_always_the_turn() -> None:
    turns = Turns(["a:1"])
    turns.failed(*REFUSED)
    assert (turns.server, turns.place, turns.earlier()) == ("a:1", "", [])


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"), (21, "21st"), (111, "111th")],
)
def test_an_ordinal_number(number: int, said: str) -> None:
    assert ordinal(number) == said


def test_a_server_that_refuses_is_not_gone_back_to_for_ten_minutes() -> None:
    clock = Clock()
    turns = Turns(["a", "b", "c"], clock)
    turns.failed(*REFUSED)
    turns.failed(*GONE)
    assert (turns.server, turns.earlier()) == ("c", ["b"])
    clock.now += 599
    assert turns.earlier() == ["b"]
    clock.now += 1
    assert turns.earlier() == ["a", "b"]


@pytest.mark.parametrize("since", [GONE, BROKE, SILENT, (None, True), (grpc.StatusCode.ABORTED, True)])
def test_a_refusal_is_forgotten_where_the_server_was_away_since_or_took_the_node(since: tuple[Any, bool]) -> None:
    turns = Turns(["a", "b"], Clock())
    turns.failed(*REFUSED)
    assert turns.earlier() == []
    turns.failed(*GONE)
    turns.failed(*since)
    assert (turns.server, turns.earlier()) == ("b", ["a"])


def test_a_server_that_was_there_and_then_does_not_answer_holds_the_node_once() -> None:
    turns = Turns(["a", "b"], Clock())
    turns.failed(*SILENT)  # nobody knows that it was there: it may be off
    assert turns.earlier() == ["a"]
    turns.back_to("a")
    turns.failed(*SILENT)
    assert turns.earlier() == []
    for end in (GONE, BROKE):  # it restarts
        turns.back_to("a")
        turns.failed(*end)
        assert turns.earlier() == ["a"]


def test_an_earlier_server_is_gone_back_to_within_a_minute_and_not_before_one() -> None:
    assert PACE.settled_seconds == 60
    # It came back just after it was looked for, and three more were.
    assert PACE.pause_seconds[1] + 3 * (PACE.answer_seconds + 1) < 60
    for pick in (min, max):
        first, *others = itertools.islice(Turns(["a", "b"], random_between=pick).looks(), 5)
        assert 60 <= first <= 70
        assert all(20 <= other <= 40 for other in others)
    assert len({next(Turns(["a", "b"]).looks()) for _ in range(20)}) == 20  # a fleet does not move in step


# ---- Whether a server is there ----


def there(server: str, seconds: float = 10.0, trust: Trust | None = None) -> bool:
    state = node.NodeState("box-1", "", pb.NodeInfo(), 1.0)
    return is_there(server, trust or Trust(), state.wait, state.notify, seconds)


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address where nobody listens, and nobody else can meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_is_there_and_records_nothing(serve: Callable[..., Serving]) -> None:
    serving = serve()
    assert there(serving.address)
    assert (serving.rows(), serving.events()) == ({}, [])


def test_a_server_where_nobody_listens_or_that_says_nothing_is_not_there(closed_port: str, silent: socket.socket) -> None:
    assert not there(closed_port)
    assert not there(address_of(silent), 0.1)


class Health(grpc.GenericRpcHandler):
    """gRPC's health service, with the given answer or status."""

    def __init__(self, answer: bytes | grpc.StatusCode) -> None:
        self.answer = answer
        self.metadata: list[str] = []

    def service(self, handler_call_details: Any) -> Any:
        self.metadata += [key for key, _ in handler_call_details.invocation_metadata]
        return grpc.unary_unary_rpc_method_handler(self.check) if handler_call_details.method == HEALTH else None

    def check(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        if isinstance(self.answer, grpc.StatusCode):
            context.abort(self.answer, "no")
        assert isinstance(self.answer, bytes)
        return self.answer


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        (SERVING, True),
        (b"\x08\x02", False),
        (b"", False),
        (grpc.StatusCode.UNIMPLEMENTED, True),
        (grpc.StatusCode.UNAUTHENTICATED, True),
        (grpc.StatusCode.PERMISSION_DENIED, True),
        (grpc.StatusCode.UNAVAILABLE, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False),
        (grpc.StatusCode.INTERNAL, False),
    ],
)
def test_a_server_or_a_proxy_before_it_says_whether_it_is_there(answer: bytes | grpc.StatusCode, answers: bool) -> None:
    server, health = grpc.server(futures.ThreadPoolExecutor(1)), Health(answer)
    server.add_generic_rpc_handlers((health,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    assert there(address) == answers
    assert "authorization" not in health.metadata
    server.stop(0).wait()


class Distrusting(Trust):
    """A node that has nothing for these servers."""

    def __init__(self, *servers: str, retry_seconds: float = 0.01) -> None:
        super().__init__(retry_seconds=lambda: retry_seconds)
        self.servers = servers

    @contextlib.contextmanager
    def channel(self, server: str) -> Iterator[tuple[grpc.Channel, Metadata]]:
        if server in self.servers:
            raise Distrust(f"nothing here is for {server}")
        with super().channel(server) as opened:
            yield opened


def test_a_server_that_is_not_trusted_is_not_asked(serve: Callable[..., Serving]) -> None:
    serving = serve()
    assert not there(serving.address, trust=Distrusting(serving.address))


def test_a_server_proves_itself_by_one_of_the_tokens_and_is_told_none() -> None:
    (own, key, certificate), (other, *_) = own_server(), own_server()
    servicer = Guarded()
    server, address = start_guarded(servicer, key, certificate)
    assert there(address, trust=Trust([other.token(), own.token()]))
    assert not there(address, trust=Trust([other.token()]))
    assert not there(address)  # a node without a token speaks plainly
    assert servicer.brought == []
    server.stop(0).wait()


# ---- The link ----

FAST = Pace(settled_seconds=0.05, spread_seconds=0.01, pause_seconds=(0.01, 0.02), answer_seconds=5.0, refused_seconds=1000.0)
Refusal = tuple[grpc.StatusCode, str]
FULL, TAKEN = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full"), (grpc.StatusCode.ALREADY_EXISTS, "taken")
GOING = (grpc.StatusCode.UNAVAILABLE, "the server is going away: come back soon")


class Station(node_pb2_grpc.NodeServiceServicer):
    """A server that can go, and come back to its address. It acknowledges the first message of each session and the goodbye."""

    def __init__(self, *refusals: Refusal, is_there: bool = True) -> None:
        self.refusals = list(refusals)  # of the next sessions
        self.refuses: Refusal | None = None  # all the others
        self.sessions: list[list[pb.HeartbeatRequest]] = []
        self.began_at: list[float] = []
        self.answered_at: list[float] = []
        self.port = 0
        self.start()
        self.address = f"127.0.0.1:{self.port}"
        if not is_there:
            self.stop()

    def start(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        node_pb2_grpc.add_NodeServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def StreamHeartbeats(self, requests: Iterator[pb.HeartbeatRequest], context: Any) -> Iterator[pb.HeartbeatResponse]:
        self.began_at.append(time.monotonic())
        self.sessions.append([])
        session = self.sessions[-1]
        if refusal := self.refusals.pop(0) if self.refusals else self.refuses:
            context.abort(*refusal)
        for request in requests:
            session.append(request)
            if len(session) == 1:
                self.answered_at.append(time.monotonic())
            if len(session) == 1 or request.leaving:
                yield pb.HeartbeatResponse(
                    acknowledged=True, acknowledged_sequence=session[0].sample.sequence, heartbeat_interval_milliseconds=100
                )
            if request.leaving:
                return


@pytest.fixture
def station() -> Iterator[Callable[..., Station]]:
    """Starts stations."""
    stations: list[Station] = []

    def make(*refusals: Refusal, **settings: Any) -> Station:
        stations.append(Station(*refusals, **settings))
        return stations[-1]

    yield make
    for made in stations:
        made.stop()


class Running:
    """A node of this process."""

    def __init__(
        self,
        *servers: str,
        pace: Pace = FAST,
        identity: Identity | None = None,
        trust: Trust | None = None,
        delay_seconds: float = 0.01,
    ) -> None:
        identity = identity or Identity("box-1", "machine")
        self.state = node.NodeState(identity.node_id, servers[0], pb.NodeInfo(), 0.1)
        self.state.publish(pb.Sample(sequence=1))
        arguments = (self.state, identity, trust or Trust(), servers, 0.1, lambda: itertools.repeat(delay_seconds), pace)
        self.thread = node.guarded(self.state, False, node.keep_connected, *arguments)

    def log(self) -> list[str]:
        return [line.text for line in self.state.view().log]

    def line(self) -> str:
        return plain([link_line(self.state.view(), self.state.clock())])

    def is_at(self, server: str) -> bool:
        view = self.state.view()
        return (view.server, view.link.phase) == (server, "connected")

    def close(self) -> None:
        self.state.close()
        self.thread.join(5)
        assert not self.thread.is_alive()
        assert not self.state.failure
        eventually(lambda: "look_back" not in {thread.name for thread in threading.enumerate()})


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Starts nodes that keep connected."""
    nodes: list[Running] = []

    def start(*servers: str, **settings: Any) -> Running:
        nodes.append(Running(*servers, **settings))
        return nodes[-1]

    yield start
    for started in nodes:
        started.close()


Run = Callable[..., Running]
Stations = Callable[..., Station]


def beats(server: Station, more: int = 5) -> None:
    """Wait for some more heartbeats there, each a tenth of a second after the other: some looks for an earlier server."""
    before = len(server.sessions[-1])
    eventually(lambda: len(server.sessions[-1]) >= before + more)


def test_where_the_first_is_gone_the_next_has_the_node_and_the_screen_says_which(station: Stations, run: Run) -> None:
    first, second = station(), station()
    agent = run(first.address, second.address)
    eventually(lambda: agent.is_at(first.address))
    assert f"connected to {first.address} (1st of 2)" in agent.line()
    first.stop()
    eventually(lambda: agent.is_at(second.address))
    assert f"connected to {second.address} (2nd of 2; first: {first.address})" in agent.line()
    assert re.search(rf"{first.address}.*; next try in 0.0 s, at {second.address}$", agent.log()[1])
    (session,) = second.sessions
    assert session[0].info.session_number == 2
    assert first.address in session[0].info.last_error


def test_a_server_that_refuses_as_going_away_is_followed_by_the_next(station: Stations, run: Run) -> None:
    first, second = station(GOING), station()
    agent = run(first.address, second.address, pace=PACE)
    eventually(lambda: agent.is_at(second.address))
    assert "come back soon" in agent.log()[0]
    assert len(first.sessions) == 1


def test_an_earlier_server_that_is_back_gets_the_node_and_what_was_not_acknowledged(station: Stations, run: Run) -> None:
    first, second = station(is_there=False), station()
    agent = run(first.address, second.address)
    eventually(lambda: agent.is_at(second.address))
    for sequence in (2, 3):
        agent.state.publish(pb.Sample(sequence=sequence))
        eventually(lambda: second.sessions[0][-1].sample.sequence == sequence)  # noqa: B023
    beats(second)  # while it is looked for in vain
    first.start()
    eventually(lambda: agent.is_at(first.address))
    assert [request.leaving for request in second.sessions[0][-2:]] == [False, True]
    request = first.sessions[0][0]
    assert [sample.sequence for sample in (*request.backlog, request.sample)] == [2, 3]
    left = f"left {second.address} for {first.address}, which is there again"
    assert (request.node_id, request.info.last_error) == ("box-1", left)
    assert agent.log()[-3:] == ["goodbye acknowledged", left, f"connected to {first.address}, a heartbeat every 0.1 s"]
    assert len(agent.log()) == 5  # looking says nothing


def test_the_server_that_was_left_shows_it(station: Stations, serve: Callable[..., Serving], run: Run) -> None:
    first, second = station(is_there=False), serve(interval=0.1)
    agent = run(first.address, second.address)
    eventually(lambda: agent.is_at(second.address))
    first.start()
    eventually(lambda: agent.is_at(first.address))
    assert eventually(lambda: [event.partition(":")[0] for event in second.events()]) == ["joined box-1", "left box-1"]


def test_a_session_is_not_left_before_it_has_lasted(station: Stations, run: Run) -> None:
    first, second = station(GOING), station()
    agent = run(first.address, second.address, pace=FAST._replace(settled_seconds=0.4))
    eventually(lambda: agent.is_at(first.address))
    assert first.answered_at[0] - second.answered_at[0] >= 0.4


def test_the_best_that_is_there_is_gone_back_to(station: Stations, run: Run) -> None:
    first, second, third = station(is_there=False), station(is_there=False), station()
    agent = run(first.address, second.address, third.address)
    eventually(lambda: agent.is_at(third.address))
    second.start()
    eventually(lambda: agent.is_at(second.address))
    first.start()
    eventually(lambda: agent.is_at(first.address))


def test_a_server_that_refuses_the_node_does_not_make_it_flap(station: Stations, run: Run) -> None:
    first, second = station(), station()
    first.refuses = FULL
    agent = run(first.address, second.address)
    eventually(lambda: agent.is_at(second.address))
    beats(second)
    assert (len(first.sessions), len(second.sessions)) == (1, 1)
    assert agent.is_at(second.address)


def test_a_server_that_is_back_and_refuses_the_node_is_tried_once(station: Stations, run: Run) -> None:
    first, second = station(is_there=False), station()
    agent = run(first.address, second.address)
    eventually(lambda: agent.is_at(second.address))
    first.refuses = FULL
    first.start()
    eventually(lambda: len(second.sessions) == 2 and second.sessions[1])
    beats(second)
    assert (len(first.sessions), len(second.sessions)) == (1, 2)


def test_a_first_server_that_flaps_has_the_node_once_in_a_while(station: Stations, run: Run) -> None:
    first, second = station(), station()
    first.refuses = GOING
    agent = run(first.address, second.address, pace=FAST._replace(settled_seconds=0.2))
    eventually(lambda: len(first.sessions) == 4)
    lasted = [end - start for start, end in zip(second.answered_at, first.began_at[1:], strict=False)]
    assert len(lasted) == 3
    assert min(lasted) >= 0.2
    agent.close()


def test_a_server_that_refused_is_gone_back_to_after_its_time(station: Stations, run: Run) -> None:
    first, second = station(FULL), station()
    agent = run(first.address, second.address, pace=FAST._replace(refused_seconds=0.2))
    eventually(lambda: agent.is_at(first.address))
    assert len(second.sessions) == 1


def test_where_all_are_down_they_are_tried_in_turn_until_one_is_back(station: Stations, run: Run) -> None:
    first, second = station(is_there=False), station(is_there=False)
    agent = run(first.address, second.address)
    eventually(lambda: len(agent.log()) >= 4)
    assert [re.findall(r"at (\S+)$", text)[0] for text in agent.log()[:4]] == [second.address, first.address] * 2
    second.start()
    eventually(lambda: agent.is_at(second.address))


def test_a_wait_says_for_whom(station: Stations, run: Run) -> None:
    first, second = station(is_there=False), station(is_there=False)
    agent = run(first.address, second.address, delay_seconds=1000.0)
    eventually(agent.state.is_waiting)
    assert re.search(rf"next try in \d+\.\d s at {second.address} · nothing listens on {first.address} ", agent.line())


def test_a_first_server_that_is_a_black_hole_costs_its_time_once_and_heartbeats_go_on(
    silent: socket.socket, station: Stations, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.protocol.FIRST_ANSWER_SECONDS", 0.1)
    second = station()
    agent = run(address_of(silent), second.address)
    eventually(lambda: agent.is_at(second.address))
    silent.accept()[0].close()  # the session's
    with silent.accept()[0]:  # a look's, which is not over
        beats(second)
    assert len(second.sessions) == 1
    assert agent.is_at(second.address)


def open_files() -> int:
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def test_looking_leaves_nothing_open(closed_port: str, station: Stations, run: Run) -> None:
    second = station()
    before = open_files()
    agent = run(closed_port, second.address, pace=FAST._replace(pause_seconds=(0.001, 0.001)))
    eventually(lambda: agent.is_at(second.address))
    beats(second)
    assert open_files() < before + 20
    agent.close()


def test_one_server_costs_no_thread(station: Stations, run: Run) -> None:
    server = station(GOING)
    agent = run(server.address)
    eventually(lambda: agent.is_at(server.address))
    assert "look_back" not in {thread.name for thread in threading.enumerate()}
    assert f"connected to {server.address} ·" in agent.line()
    assert agent.log()[0].endswith("; next try in 0.0 s")


def test_a_server_with_only_the_unary_call_is_left_with_a_goodbye(station: Stations, run: Run) -> None:
    class UnaryOnly(node_pb2_grpc.NodeServiceServicer):
        def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
            heard.append(request.leaving)
            return pb.HeartbeatResponse(acknowledged=True)

    heard: list[bool] = []
    server = grpc.server(futures.ThreadPoolExecutor(4))
    node_pb2_grpc.add_NodeServiceServicer_to_server(UnaryOnly(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    first = station(is_there=False)
    agent = run(first.address, address)
    eventually(lambda: agent.is_at(address))
    first.start()
    eventually(lambda: agent.is_at(first.address))
    assert heard == [False, True]
    first.stop()
    eventually(lambda: agent.is_at(address))
    agent.close()
    server.stop(0).wait()


def test_an_id_that_is_taken_is_asked_for_again_at_the_same_server(station: Stations, run: Run) -> None:
    first, second = station(TAKEN), station()
    identity = Identity(None, "machine", keeps=False)
    agent = run(first.address, second.address, identity=identity)
    eventually(lambda: agent.is_at(first.address))
    assert identity.node_id == draw_id("machine", 1)
    assert second.sessions == []


def test_a_given_id_of_its_own_that_is_taken_at_one_server_is_asked_for_at_the_next(station: Stations, run: Run) -> None:
    first, second = station(), station()
    identity = Identity("box-1", "machine")
    identity.accepted()
    first.refuses = TAKEN
    agent = run(first.address, second.address, identity=identity)
    eventually(lambda: agent.is_at(second.address))
    assert len(first.sessions) == node.OWN_ID_TRIES + 1
    beats(second)
    assert len(second.sessions) == 1


def test_who_is_distrusted_by_all_waits_at_the_slow_end_and_by_one_does_not(station: Stations, run: Run) -> None:
    second = station(GOING, GOING)
    agent = run("a:1", second.address, trust=Distrusting("a:1", retry_seconds=1000.0), pace=PACE)
    eventually(lambda: agent.is_at(second.address))
    assert "next try in 1000.0 s" not in "\n".join(agent.log())
    lonely = run("a:1", "b:2", trust=Distrusting("a:1", "b:2", retry_seconds=1000.0))
    eventually(lambda: len(lonely.log()) == 2)
    assert lonely.log() == [
        "nothing here is for a:1; next try in 0.0 s, at b:2",
        "nothing here is for b:2; next try in 1000.0 s, at a:1",
    ]


@pytest.mark.parametrize("phase", ["session", "look", "wait"])
def test_the_end_comes_at_once_in_each_phase(phase: str, silent: socket.socket, closed_port: str, station: Stations) -> None:
    second = station(is_there=phase != "wait")
    first = address_of(silent) if phase == "look" else closed_port
    refusing = Distrusting(*[first] * (phase == "look"))  # a session with it would take long
    agent = Running(first, second.address, trust=refusing, delay_seconds=1000.0 if phase == "wait" else 0.01)
    if phase == "look":
        eventually(lambda: agent.is_at(second.address))
        refusing.servers = ()
        silent.settimeout(10)
        silent.accept()
    eventually(lambda: agent.state.is_waiting() if phase == "wait" else agent.is_at(second.address))
    agent.close()
    assert phase == "wait" or second.sessions[0][-1].leaving


def test_each_server_is_shown_its_own_token_and_the_one_that_is_back_is_known_by_it(run: Run) -> None:
    (own, key, certificate), (other, other_key, other_certificate) = own_server(), own_server()
    first, second = Guarded(own.token()), Guarded(other.token())
    server, address = start_guarded(first, key, certificate)
    server.stop(0).wait()
    second_server, second_address = start_guarded(second, other_key, other_certificate)
    agent = run(address, second_address, trust=Trust([other.token(), own.token()]))
    eventually(lambda: agent.is_at(second_address))
    server, _ = start_guarded(first, key, certificate, port=int(address.rpartition(":")[2]))
    eventually(lambda: agent.is_at(address))
    agent.close()
    assert (first.brought, second.brought) == ([own.token().bearer()], [other.token().bearer()])
    for each in (server, second_server):
        each.stop(0).wait()


def test_another_server_under_the_address_of_the_first_is_not_gone_back_to(run: Run) -> None:
    (own, *_), (other, other_key, other_certificate), (_, key, certificate) = own_server(), own_server(), own_server()
    stranger, second = Guarded(refusal=""), Guarded(other.token())
    server, address = start_guarded(stranger, key, certificate)
    second_server, second_address = start_guarded(second, other_key, other_certificate)
    agent = run(address, second_address, trust=Trust([own.token(), other.token()]))
    eventually(lambda: agent.is_at(second_address))
    before = agent.state.view().sample.sequence
    for sequence in range(before + 1, before + 6):
        agent.state.publish(pb.Sample(sequence=sequence))
        eventually(lambda: agent.state.unacknowledged() == [])
    assert agent.is_at(second_address)
    assert (stranger.brought, len(second.brought)) == ([], 1)
    agent.close()
    for each in (server, second_server):
        each.stop(0).wait()


def test_a_fleet_of_several_servers_end_to_end(start: Callable[..., Program], terminal: Callable[..., Terminal]) -> None:
    servers = [start("server.py", "--headless", "--listen", "127.0.0.1:0") for _ in range(2)]
    first, second = [server.line(r"listening on (\S+:\d+)")[1] for server in servers]
    simulated = ("--hardware", "simulated", "--seed", "1")
    headless = start("node.py", "--id", "box-1", *simulated, EDGE_SERVER=f"{first}, {second}")
    screen = terminal("node.py", "--server", first, "--server", second, "--id", "box-2", *simulated)
    headless.line(f"this is box-1, for the server at {first}, then {second}")
    headless.line(f"connected to {first}")
    screen.shows(rf"● connected to {first} \(1st of 2\)")
    servers[0].kill()
    headless.line(f"connected to {second}")
    screen.shows(rf"● connected to {second} \(2nd of 2; first: {first}\)")
    servers[1].line("joined box-2")
    screen.press("q")
    assert (screen.wait(), headless.end()) == (0, 130)
    headless.line("goodbye acknowledged")
