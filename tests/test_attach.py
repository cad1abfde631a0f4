"""--attach: the screen of servers elsewhere, over real connections, some of which drop, delay and cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import node_pb2 as pb
from edge.fleet.attach import Attached
from edge.fleet.row import Row, State, state_of
from edge.fleet.source import MayNot, NoPast, Wants
from edge.trust import VIEWER, Trust
from tests.fixtures.processes import Program, Terminal, eventually
from tests.fixtures.proxy import Proxy
from tests.fixtures.sessions import Serving, Stream

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
    assert state_of(rows(attached)[gone], attached.clock()) is State.ONLINE  # as far as anyone knows
    proxy.port = port
    eventually(lambda: not attached.notices())
    assert rows(attached)[gone].known_until > attached.clock()
    assert [text for text in texts(attached) if text.startswith(f"joined {gone}")] == [f"joined {gone}: host-a, 127.0.0.1"]


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


def test_from_elsewhere_nobody_forgets(serve: Serve, connect: Connect, look: Look) -> None:
    serving = serve()
    stream = connect(serving.address)
    stream.answer()
    stream.send(leaving=True)
    attached = look(serving.address)
    eventually(lambda: "box" in rows(attached) and rows(attached)["box"].left)
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
    assert "no server of this user runs on this machine: start one" in program.lines[0]


def test_what_is_for_a_server_here_is_refused_beside_it(start: Start) -> None:
    program = start("server.py", "--attach", "10.0.0.5", "--secure")
    assert program.wait() == 2
    assert "argument --secure: it is for a server here, and --attach looks at one elsewhere" in program.lines[0]
