"""--attach: the screen of servers elsewhere, over real connections, some of which drop, delay and cut."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import random
import re
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

import node_pb2 as pb
import node_pb2_grpc
from edge.credentials import parse_token
from edge.drawing import plain
from edge.event_log import Event
from edge.fleet.attach import RETRY_SECONDS, Attached, own_server
from edge.fleet.guard import Guard
from edge.fleet.keys import Room, press
from edge.fleet.lens import Lens, Ui
from edge.fleet.listening import socket_path, socket_target
from edge.fleet.row import Row, State, state_of
from edge.fleet.screen import About, render
from edge.fleet.screen import look as look_at
from edge.fleet.source import MayNot, Moment, NoPast, Readings, Source, Wants
from edge.program import Failure
from edge.trust import VIEWER, Trust, saved_path
from tests.fixtures.examples import example_row
from tests.fixtures.processes import Program, Terminal, eventually
from tests.fixtures.proxy import Proxy
from tests.fixtures.sessions import Serving, Stream, opened

Serve = Callable[..., Serving]
Connect = Callable[..., Stream]
Look = Callable[..., Attached]


def soon() -> Iterator[float]:
    return itertools.repeat(0.1)


@pytest.fixture
def look() -> Iterator[Look]:
    """Looks at servers, each by its address."""
    looking: list[Attached] = []

    def start(*addresses: str) -> Attached:
        looking.append(Attached([(address, address) for address in addresses], Trust(holder=VIEWER), new_delays=soon))
        return looking[-1].__enter__()

    yield start
    for attached in looking:
        attached.__exit__()


@pytest.fixture
def between() -> Iterator[Callable[[Serving], Proxy]]:
    """Stands between a viewer and a server."""
    proxies: list[Proxy] = []

    def start(serving: Serving) -> Proxy:
        proxies.append(Proxy(serving.port))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


def rows(attached: Attached) -> dict[str, Row]:
    return {row.node_id: row for row in attached.snapshot()}


def texts(attached: Attached) -> list[str]:
    return [f"{event.kind} {event.node_id}: {event.text}" for event in attached.newest_events(100)]


def test_what_reports_there_is_seen_here(serve: Serve, connect: Connect, look: Look) -> None:
    serving = serve()
    stream = connect(serving.address, "box", sample=pb.Sample(sequence=1, host=pb.HostSample(cpu_percent=42)))
    attached = look(serving.address)
    eventually(lambda: "box" in rows(attached))
    row = rows(attached)["box"]
    assert row.vitals.utilization == 0.42
    assert state_of(row, attached.clock()) is State.ONLINE
    assert not row.server  # there is but one
    stream.send(sample=pb.Sample(sequence=2, host=pb.HostSample(cpu_percent=77)))
    eventually(lambda: rows(attached)["box"].vitals.utilization == 0.77)
    assert not rows(attached)["box"].packed_sample  # nobody looks at it
    attached.want(Wants(open=frozenset({"box"})))
    eventually(lambda: rows(attached)["box"].sample.host.cpu_percent == 77)
    assert attached.notices() == []
    assert "joined box: host-a, 127.0.0.1" in texts(attached)


def test_two_servers_are_one_table_and_what_is_there_twice_says_where(serve: Serve, connect: Connect, look: Look) -> None:
    servings = [serve(), serve()]
    for serving, node_id in itertools.product(servings, ("twice", f"once-{servings[0].port}")):
        connect(serving.address, node_id if node_id == "twice" else f"once-{serving.port}")
    attached, (first, second) = look(*(serving.address for serving in servings)), servings
    eventually(lambda: len(rows(attached)) == 4)
    assert {row.node_id: row.server for row in attached.snapshot()} == {
        "twice": first.address,
        f"twice ({second.address})": second.address,
        f"once-{first.port}": first.address,
        f"once-{second.port}": second.address,
    }
    found = attached.rows(["twice", f"twice ({second.address})", "nowhere"])
    assert [row and (row.node_id, row.server) for row in found] == [
        ("twice", first.address), (f"twice ({second.address})", second.address), None,
    ]  # fmt: skip
    attached.want(Wants(open=frozenset({f"twice ({second.address})"})))
    assert [sorted(link._wants.open) for link in attached.links] == [[], ["twice"]]


def test_a_server_that_is_gone_greys_its_rows_and_counts_down_and_all_is_well_when_it_is_back(
    serve: Serve, connect: Connect, look: Look, between: Callable[[Serving], Proxy]
) -> None:
    servings = [serve(), serve()]
    proxy = between(servings[0])
    for serving in servings:
        connect(serving.address, f"box-{serving.port}")
    attached, gone = look(proxy.address, servings[1].address), f"box-{servings[0].port}"
    eventually(lambda: len(rows(attached)) == 2)
    proxy.port, port = 1, proxy.port  # where nothing listens
    proxy.cut()
    (notice,) = eventually(attached.notices)
    assert proxy.address in notice
    eventually(lambda: rows(attached)[gone].known_until < attached.clock())
    assert rows(attached)[f"box-{servings[1].port}"].known_until > attached.clock()
    assert state_of(rows(attached)[gone], attached.clock()) is State.UNHEARD
    proxy.port = port
    eventually(lambda: not attached.notices())
    assert rows(attached)[gone].known_until > attached.clock()
    assert [text for text in texts(attached) if text.startswith(f"joined {gone}")] == [f"joined {gone}: host-a, 127.0.0.1"]


def test_a_server_that_stays_away_is_told_of_once_and_so_is_its_return(
    serve: Serve, look: Look, between: Callable[[Serving], Proxy]
) -> None:
    serving = serve()
    proxy = between(serving)
    attached = look(proxy.address)
    eventually(attached.is_known)
    proxy.port = 1
    proxy.cut()
    tries = [0.0]

    def another() -> bool:
        if attached.links[0]._retry_at > tries[-1]:
            tries.append(attached.links[0]._retry_at)
        return len(tries) > 4

    eventually(another)
    proxy.port = serving.port
    eventually(lambda: not attached.notices())
    told = [text for text in texts(attached) if proxy.address in text]
    assert [text.split()[0] for text in told] == ["attached", "warning", "attached"]
    assert told[1] == f"warning {proxy.address}: broke the connection"
    assert re.fullmatch(rf"attached {proxy.address}: again, after \d+s: version \S+", told[2])


def test_what_keeps_it_away_is_told_again_where_it_is_something_else(
    serve: Serve, look: Look, between: Callable[[Serving], Proxy], tmp_path: pathlib.Path
) -> None:
    is_open, secure = serve(), serve(guard=Guard(tmp_path / "server"))
    proxy = between(is_open)
    attached = look(proxy.address)
    eventually(attached.is_known)
    proxy.port = 1
    proxy.cut()
    eventually(attached.notices)
    proxy.port = secure.port
    eventually(lambda: [text for text in texts(attached) if text.startswith(f"warning {proxy.address}: wants a token: ")])


def test_a_viewer_tries_again_within_seconds() -> None:
    assert max(itertools.islice(Attached([("a", "a")], Trust(holder=VIEWER)).links[0]._new_delays(), 200)) <= RETRY_SECONDS


def test_a_connection_that_stands_still_makes_nobody_late(
    serve: Serve, connect: Connect, look: Look, between: Callable[[Serving], Proxy]
) -> None:
    """The nodes are there: it is their server that is not heard."""
    serving = serve(interval=0.2)
    proxy = between(serving)
    stream = connect(serving.address)
    attached = look(proxy.address)
    eventually(lambda: "box" in rows(attached))
    proxy.flows.clear()
    eventually(attached.notices)
    assert "is silent for" in attached.notices()[0]
    eventually(lambda: rows(attached)["box"].known_until < attached.clock())
    stream.send(sample=pb.Sample(sequence=1, host=pb.HostSample(cpu_percent=1)))
    proxy.flows.set()
    eventually(lambda: not attached.notices() and rows(attached)["box"].vitals.cpu_percent == 1)
    assert serving.rows()["box"].heartbeat_at >= rows(attached)["box"].heartbeat_at - 0.002  # one clock here: never too young


def test_over_a_slow_line_ages_are_too_old_by_a_round_trip_at_most_and_never_too_young(
    serve: Serve, connect: Connect, look: Look, between: Callable[[Serving], Proxy]
) -> None:
    """Both ends have one clock here."""
    serving = serve()
    proxy = between(serving)
    proxy.delay_seconds = 0.1
    stream = connect(serving.address)
    attached = look(proxy.address)
    eventually(lambda: "box" in rows(attached))
    for number in range(1, 4):
        stream.send(sample=pb.Sample(sequence=number, host=pb.HostSample(cpu_percent=number)))
        eventually(lambda: rows(attached)["box"].vitals.cpu_percent == number)  # noqa: B023  # it is asked now
        here, there = rows(attached)["box"].heartbeat_at, serving.rows()["box"].heartbeat_at
        assert there - 2.0 < here <= there + 0.002  # the greeting of a connection takes some round trips


def test_however_often_the_line_breaks_what_is_seen_is_what_is_there(
    serve: Serve, look: Look, between: Callable[[Serving], Proxy]
) -> None:
    chance, serving = random.Random(1), serve()
    proxy = between(serving)
    attached, registry = look(proxy.address), serving.registry
    for number in range(12):
        for node_id in chance.sample("abcdefgh", 4):
            session = opened(registry, node_id, sample=pb.Sample(sequence=number + 1, host=pb.HostSample(cpu_percent=number)))
            if chance.random() < 0.4:
                registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
        registry.forget(chance.choice("abcdefgh"))
        proxy.delay_seconds = chance.choice((0.0, 0.0, 0.05))
        attached.links[0]._wait(lambda: False, chance.uniform(0.0, 0.4))
        proxy.cut()

    def seen(rows: list[Row]) -> dict[str, tuple[bool, bool, int | None, str]]:
        return {row.node_id: (row.left, row.session is None, row.vitals.cpu_percent, row.reason) for row in rows}

    proxy.delay_seconds = 0.0
    eventually(lambda: seen(attached.snapshot()) == seen(registry.snapshot()))
    eventually(lambda: not attached.notices())
    assert [event for event in texts(attached) if event.startswith("joined")] == [
        event for event in serving.events() if event.startswith("joined")
    ]


def test_from_elsewhere_nobody_forgets(serve: Serve, connect: Connect, look: Look) -> None:
    serving = serve()
    stream = connect(serving.address)
    stream.answer()
    stream.send(leaving=True)
    attached = look(serving.address)
    eventually(lambda: "box" in rows(attached) and rows(attached)["box"].left)
    assert "only for its own user" in attached.why_not_forget()
    lens = Lens(attached, None, is_here=False)
    room, ui = Room(10, 1), Ui()
    lens.refresh(ui)
    assert "only for its own user" in press(ui, "F", lens, room).said  # and nothing is asked first
    about = About("there", attached.joining(), is_here=False)
    assert "forget" not in plain(render(look_at(lens, ui, about, 160, 24), 160, 24)[-1:])
    with pytest.raises(MayNot, match="only for its own user"):
        attached.forget("box")
    assert attached.forget("nobody")


def test_a_past_that_is_not_kept_is_said(serve: Serve, look: Look) -> None:
    serving = serve()
    attached = look(serving.address)
    with pytest.raises(NoPast, match="not connected"):
        attached.moment(1.0)
    eventually(attached.is_known)
    with pytest.raises(NoPast, match="journal"):
        attached.span()
    with pytest.raises(NoPast):
        attached.moment(1.0)
    with pytest.raises(NoPast):
        attached.graph("box", 1.0, 60.0, 60)


class OneDay:
    """A past of one moment."""

    def __init__(self, node_id: str) -> None:
        self.row = example_row(0)._replace(node_id=node_id)

    def span(self) -> tuple[float, float]:
        return 1_000.0, 2_000.0

    def moment(self, wall: float, after: bool = False) -> Source:
        return Moment(1000.0, wall - 3, [self.row], [Event(wall, "joined", self.row.node_id, "x")])

    def graph(self, node_id: str, end: float, seconds: float, steps: int) -> Readings:
        if node_id != self.row.node_id:
            raise NoPast(f"nothing is kept of {node_id}")
        return Readings(1, bytes([1] * 6 * steps), bytes([2] * 6 * steps))


def test_the_past_of_several_servers_is_one_fleet(serve: Serve, look: Look) -> None:
    servings = [serve(past=OneDay("a")), serve(past=OneDay("b")), serve()]
    attached = look(*(serving.address for serving in servings))
    eventually(
        lambda: all(link.mirror.is_known for link in attached.links) and attached.links[0].mirror.status.past_unix_milliseconds
    )
    assert attached.span()[0] == 1_000
    then = attached.moment(1_500.0)
    assert {row.node_id: row.server for row in then.snapshot()} == {"a": servings[0].address, "b": servings[1].address}
    assert then.wall() == 1_497
    attached.moment(900.0)
    assert attached.span()[0] == 897  # it has been there
    row, other = then.rows(["a", "b"])
    assert row
    assert other
    assert row.heartbeat_at == other.heartbeat_at  # one server answers after the other, and no age is the younger for that
    assert then.clock() - row.heartbeat_at == pytest.approx(1000 - example_row(0).heartbeat_at, abs=0.002)
    assert row.sample == example_row(0).sample
    assert row.history == example_row(0).history
    assert sorted(event.node_id for event in then.newest_events(10)) == ["a", "b"]
    assert not then.forget("a")


class Course(OneDay):
    """A past of some moments."""

    def __init__(self, node_id: str, *kept: float) -> None:
        super().__init__(node_id)
        self.kept = kept

    def moment(self, wall: float, after: bool = False) -> Source:
        up_to, later = [at for at in self.kept if at <= wall], [at for at in self.kept if at > wall]
        return super().moment(3 + ((later or self.kept[-1:])[0] if after else (up_to or self.kept[:1])[-1]))


def test_the_next_moment_of_several_servers_is_the_first_that_any_has(serve: Serve, look: Look) -> None:
    servings = [serve(past=Course("a", 1_000, 1_010.037, 1_020)), serve(past=Course("b", 1_015, 1_400))]
    alone, both = look(servings[0].address), look(*(serving.address for serving in servings))
    eventually(lambda: alone.is_known() and all(link.mirror.is_known for link in both.links))

    def course(attached: Attached) -> Iterator[tuple[float, list[str]]]:
        at = 990.0
        while (moment := attached.moment(at, after=True)).wall() > at:
            at = moment.wall()
            yield at, sorted(row.node_id for row in moment.snapshot())

    assert list(course(alone)) == [(1_000, ["a"]), (1_010.037, ["a"]), (1_020, ["a"])]
    assert list(course(both)) == [
        (1_000, ["a"]), (1_010.037, ["a"]), (1_015, ["a", "b"]), (1_020, ["a", "b"]), (1_400, ["a", "b"]),
    ]  # fmt: skip
    assert both.moment(1_012).wall() == 1_010.037
    assert both.moment(900).wall() == 1_000


def test_a_graph_is_asked_of_the_server_that_has_the_node(serve: Serve, connect: Connect, look: Look) -> None:
    servings = [serve(past=OneDay("a")), serve(past=OneDay("b"))]
    for serving, node_id in zip(servings, "ab", strict=True):
        connect(serving.address, node_id)
    connect(servings[1].address, "c")
    attached = look(*(serving.address for serving in servings))
    eventually(lambda: len(rows(attached)) == 3)
    assert attached.graph("b", 1_500.0, 60.0, 4) == Readings(1, bytes([1] * 24), bytes([2] * 24))
    with pytest.raises(NoPast, match="nothing is kept of c"):
        attached.graph("c", 1_500.0, 60.0, 4)
    with pytest.raises(NoPast, match="x is not known any more"):
        attached.graph("x", 1_500.0, 60.0, 4)
    alone = look(serve(past=OneDay("gone")).address)
    eventually(lambda: alone.is_known() and alone.links[0].mirror.status.has_past)
    assert alone.graph("gone", 1_500.0, 60.0, 4).devices == 1  # it was there then


# ---- Hostile servers ----


class Liar(node_pb2_grpc.NodeServiceServicer):
    """A server that tells what the test wants."""

    def __init__(self, *updates: pb.WatchUpdate) -> None:
        self.updates = updates

    def Watch(self, requests: Iterator[pb.WatchRequest], context: Any) -> Iterator[pb.WatchUpdate]:
        yield from self.updates
        for _ in requests:
            pass


@pytest.fixture
def lie() -> Iterator[Callable[..., str]]:
    """Starts liars; each has an address."""
    servers = []

    def start(*updates: pb.WatchUpdate) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        node_pb2_grpc.add_NodeServiceServicer_to_server(Liar(*updates), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


def test_who_lies_is_left_with_a_sentence(look: Look, lie: Callable[..., str]) -> None:
    attached = look(lie(pb.WatchUpdate(epoch=1, version=1, is_snapshot=True, rows=[pb.NodeRow(number=1, node_id="\n")])))
    (notice,) = eventually(lambda: [text for text in attached.notices() if "sends what" in text])
    assert "no server of this version would: a node that can't be" in notice
    assert not attached.is_known()


def test_no_address_of_a_server_is_a_command(look: Look, lie: Callable[..., str]) -> None:
    addresses = ["10.0.0.5;reboot", "$(reboot)", "10.0.0.5 -x", "[fd00::5]:6000", "x" * 101]
    attached = look(lie(pb.WatchUpdate(epoch=1, version=1, is_snapshot=True, server=pb.ServerStatus(addresses=addresses))))
    eventually(attached.is_known)
    assert attached.joining().addresses == ["[fd00::5]:6000"]


def test_a_server_that_does_not_know_the_call_is_older(look: Look) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    attached = look(f"127.0.0.1:{port}")
    eventually(lambda: [text for text in attached.notices() if "is older than this screen" in text])
    server.stop(0).wait()


def test_a_server_that_says_nothing_any_more_is_left(
    serve: Serve, look: Look, between: Callable[[Serving], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.fleet.attach.SILENCE_SECONDS", 1.5)
    proxy = between(serve())
    attached = look(proxy.address)
    eventually(attached.is_known)
    proxy.flows.clear()
    eventually(lambda: [text for text in attached.notices() if "the connection is half-open" in text])
    proxy.flows.set()
    eventually(lambda: not attached.notices())


# ---- Who may ----


def test_a_secure_server_shows_itself_to_who_has_the_token_for_looking(
    serve: Serve, connect: Connect, tmp_path: pathlib.Path
) -> None:
    guard = Guard(tmp_path / "server")
    serving = serve(guard=guard)
    joining = guard.joining([serving.address])
    for text, sees in ((joining.node_token, False), (joining.view_token, True), ("", True)):  # the last: it was saved
        tokens = [parse_token(text)] if text else []
        with Attached([(serving.address, "there")], Trust(tokens, holder=VIEWER), new_delays=soon) as attached:
            eventually(attached.is_known if sees else attached.notices)
            if not sees:
                assert (
                    "there refuses this screen" in eventually(lambda: [text for text in attached.notices() if "refuses" in text])[0]
                )
    assert eventually(lambda: saved_path(VIEWER).read_text().split()) == [joining.view_token, "#", serving.address]
    assert not saved_path().exists()


def test_a_token_is_kept_for_the_server_that_took_it_and_no_other_is_locked_out(
    serve: Serve, between: Callable[[Serving], Proxy], look: Look, tmp_path: pathlib.Path
) -> None:
    guard = Guard(tmp_path / "server")
    secure, is_open = serve(guard=guard), serve()
    proxy, token = between(secure), guard.joining(["there"]).view_token
    with Attached([(proxy.address, "there")], Trust([parse_token(token)], holder=VIEWER), new_delays=soon) as first:
        eventually(first.is_known)
        eventually(lambda: saved_path(VIEWER).read_text() == f"{token}  # {proxy.address}\n")
    attached = look(is_open.address, proxy.address)
    eventually(lambda: all(link.mirror.is_known for link in attached.links))
    proxy.port = is_open.port  # someone stands there who speaks plainly
    proxy.cut()
    eventually(lambda: [text for text in attached.notices() if f"{proxy.address} speaks no TLS" in text])
    assert attached.links[0].is_connected()


def test_who_has_no_token_is_told_which_one_and_pastes_it(
    serve: Serve, terminal: Callable[..., Terminal], tmp_path: pathlib.Path
) -> None:
    guard = Guard(tmp_path / "server")
    serving, other = serve(guard=guard), serve()
    joining = guard.joining([serving.address])
    opened(serving.registry, "in-secret")
    opened(other.registry, "in-public")
    both = ("server.py", "--attach", other.address, "--attach", serving.address)
    screen = terminal(*both)
    screen.shows("wants a token: its screen shows the one for looking")
    screen.press(f"{joining.node_token}\r")
    screen.shows("this token is for nodes: a screen needs the one for looking")
    screen.press(f"{joining.view_token}\r")
    for node_id in ("in-secret", "in-public"):
        screen.shows(f"{node_id} +host-a")
    screen.press("q")
    assert screen.wait() == 0
    again = terminal(*both)
    for node_id in ("in-secret", "in-public"):
        again.shows(f"{node_id} +host-a")
    assert b"Paste" not in again.raw
    again.press("q")
    assert again.wait() == 0
    screen = terminal("server.py", "--attach", serving.address)
    screen.shows(" secure .*1 node")
    screen.press("j")
    screen.shows("Its prompt wants a token, which that server's machine tells")
    assert "edge1-" not in screen.text()
    screen.press("jq")
    assert screen.wait() == 0


# ---- This machine's own server ----


def test_the_own_user_looks_with_no_token_and_forgets(serve: Serve, connect: Connect, tmp_path: pathlib.Path) -> None:
    serving = serve(guard=Guard(tmp_path / "server"), socket_folder=tmp_path)
    opened(serving.registry, "gone")
    opened(serving.registry, "here")
    session = opened(serving.registry, "gone")
    serving.registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    target = socket_target(socket_path(tmp_path, serving.port))
    with Attached([(target, "this machine")], Trust(holder=VIEWER), new_delays=soon) as attached:
        eventually(lambda: len(rows(attached)) == 2)
        assert not attached.why_not_forget()
        assert not attached.forget("here")
        assert attached.forget("gone")
        eventually(lambda: rows(attached).keys() == {"here"})
    assert serving.rows().keys() == {"here"}


def test_a_service_and_its_screen(start: Callable[..., Program], connect: Connect, tmp_path: pathlib.Path) -> None:
    """--attach alone finds the server that runs headless here, also when it was killed and is there again."""
    folder = {"XDG_RUNTIME_DIR": str(tmp_path)}
    service = start("server.py", "--headless", "--listen", "127.0.0.1:0", **folder)
    address = service.line(r"listening on (\S+:\d+)")[1]
    service.line("Look at it here: python3 server.pyz --attach$")
    service.line("Its past is kept in /.*/journal.db")
    connect(address)
    screen = start("server.py", "--attach", "--json", **folder)
    lines = start("server.py", "--attach", "--headless", **folder)
    screen.json_line(lambda line: [node["node_id"] for node in line["nodes"]] == ["box"])
    lines.line("joined box")
    service.process.kill()
    (node,) = screen.json_line(lambda line: line["nodes"][0]["state"] == "UNHEARD")["nodes"]
    assert "its server has not been heard" in node["reason"]
    lines.line("warning this machine: has no server any more$")
    again = start("server.py", "--headless", "--listen", address, **folder)
    again.line("listening on")
    connect(address, "another")
    screen.json_line(lambda line: [node["node_id"] for node in line["nodes"]] == ["another"])
    for program in (screen, lines):  # --json says it on stderr
        program.line("attached this machine: again, after ")
        assert len([line for line in program.lines if " warning this machine: " in line]) == 1
    assert not [line for line in screen.lines if "joined" in line and not line.startswith("{")]
    assert (screen.end(), lines.end(), again.end()) == (130, 130, 130)


# ---- Processes ----

Start = Callable[..., Program]


def test_json_and_lines_go_through_it(serve: Serve, connect: Connect, start: Start) -> None:
    serving = serve()
    connect(serving.address, sample=pb.Sample(sequence=1, host=pb.HostSample(cpu_percent=42)))
    as_json = start("server.py", "--attach", serving.address, "--json")
    lines = start("server.py", "--attach", serving.address, "--headless")
    snapshot = as_json.json_line(lambda line: True)
    assert [(node["node_id"], node["state"]) for node in snapshot["nodes"]] == [("box", "ONLINE")]
    lines.line(f"looking at {serving.address}")
    lines.line("joined box: host-a")
    assert (as_json.end(), lines.end()) == (130, 130)


def test_an_exception_in_a_thread_is_an_event_and_not_on_the_screen(serve: Serve, start: Start, tmp_path: pathlib.Path) -> None:
    broken = (
        "import sys, server\n"
        "from edge.fleet.attach import Attached\n"
        "Attached.snapshot = lambda _: 1 / 0  # the recording asks for it\n"
        "sys.exit(server.main())"
    )
    program = start("-c", broken, "--attach", serve().address, "--headless", "--record", str(tmp_path / "night.edge"))
    program.line(r"error server: .*ZeroDivisionError")
    assert program.end() == 130
    assert not any("Traceback" in line for line in program.lines)


def test_json_says_on_stderr_what_keeps_it_from_its_server(start: Start, serve: Serve) -> None:
    proxy = Proxy(1)
    as_json = start("server.py", "--attach", proxy.address, "--json")
    as_json.line(f"looking at {proxy.address}")
    as_json.line(f"warning {proxy.address}: broke the connection")
    assert not any(line.startswith("{") for line in as_json.lines)
    proxy.port = serve().port
    as_json.line(f"attached {proxy.address}: version ")
    as_json.json_line(lambda line: line["nodes"] == [])
    assert as_json.end() == 130
    proxy.close()


def test_json_tells_samples_too(serve: Serve, connect: Connect, start: Start) -> None:
    serving = serve()
    connect(serving.address, sample=pb.Sample(sequence=1, host=pb.HostSample(cpu_percent=42)))
    as_json = start("server.py", "--attach", serving.address, "--json")
    as_json.json_line(lambda line: line["nodes"] and line["nodes"][0]["sample"].get("host") == {"cpu_percent": 42})


def test_the_screen_of_a_server_elsewhere_is_left_at_once_and_its_nodes_stay(
    serve: Serve, connect: Connect, terminal: Callable[..., Terminal]
) -> None:
    serving = serve()
    connect(serving.address)
    screen = terminal("server.py", "--attach", serving.address)
    screen.shows("box .*ONLINE")
    screen.press("q")
    assert screen.wait() == 0
    assert serving.state("box") is State.ONLINE
    assert screen.is_restored()


def test_the_screen_counts_down_where_no_server_is(terminal: Callable[..., Terminal], serve: Serve) -> None:
    serving = serve()
    proxy = Proxy(1)
    screen = terminal("server.py", "--attach", proxy.address)
    screen.shows(r"next try in \d+s")
    screen.shows(f"Connecting to {proxy.address} …")
    assert not re.search(r" open |On each box|No node yet| 0 nodes", screen.text())
    proxy.port = serving.port
    screen.shows("No node yet")
    screen.shows("looking at")
    proxy.close()


def test_two_servers_have_a_column(serve: Serve, connect: Connect, terminal: Callable[..., Terminal]) -> None:
    servings = [serve(), serve()]
    for serving in servings:
        connect(serving.address, f"box-{serving.port}")
    screen = terminal("server.py", "--attach", servings[0].address, "--attach", servings[1].address)
    for serving in servings:
        screen.shows(rf"box-{serving.port} +host-a +{serving.address}")


def test_alone_it_says_where_no_server_of_this_user_is(start: Start, tmp_path: Any) -> None:
    program = start("server.py", "--attach", XDG_RUNTIME_DIR=str(tmp_path), XDG_STATE_HOME=str(tmp_path))
    assert program.wait() == 1
    assert f"no server of this user answers in {tmp_path}/edge-compute-node/watch, " in program.lines[0]
    assert "--attach localhost:PORT" in program.lines[0]


def test_what_is_for_a_server_here_is_refused_beside_it(start: Start) -> None:
    program = start("server.py", "--attach", "10.0.0.5", "--secure")
    assert program.wait() == 2
    assert "argument --secure: it is for a server here, and --attach looks at one elsewhere" in program.lines[0]


def test_a_node_that_calls_itself_like_another_servers_hides_nobody() -> None:
    attached = Attached([("a", "a"), ("b", "b")], Trust(holder=VIEWER))
    for link, names in zip(attached.links, (["n", "n (b)", "m (a)"], ["n", "m"]), strict=True):
        rows = [pb.NodeRow(number=number, node_id=name, address=link.name) for number, name in enumerate(names)]
        link.mirror.begin()
        link.mirror.take(pb.WatchUpdate(epoch=1, version=1, is_snapshot=True, rows=rows))
    shown = {row.node_id: row.address for row in attached.snapshot()}
    assert shown == {"n": "a", "n (b) (a)": "a", "m (a) (a)": "a", "n (b)": "b", "m": "b"}
    assert {row.node_id: row.address for row in attached.rows(shown) if row} == shown


def test_a_socket_that_another_user_has_laid_there_is_not_looked_at(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    path = socket_path(tmp_path, 50051)
    path.parent.mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))
        listening.listen()
        assert own_server(tmp_path) == (socket_target(path), "this machine")
        monkeypatch.setattr("os.geteuid", lambda: path.parent.stat().st_uid + 1)
        with pytest.raises(Failure, match="no server of this user answers in"):
            own_server(tmp_path)
