"""The stream of events: what a page that follows it knows is what the registry knows, value by value."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import pathlib
import random
import shutil
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from starlette.requests import Request as Asked
from starlette.types import Message

import node_pb2 as pb
from edge.credentials import Role
from edge.fleet import watch
from edge.fleet.counters import Counters
from edge.fleet.guard import Guard
from edge.fleet.row import Refused, Row
from edge.fleet.source import EVENTS_KEPT
from edge.fleet.watch import Feed
from edge.program import VERSION
from edge.protocol import MAX_VIEWERS_ELSEWHERE, hangs_after_seconds, late_after_seconds, lost_after_seconds
from edge.text import visible
from edge.web.packing import Piece
from edge.web.site import Site
from edge.web.stream import MAX_PAGES, MAX_PAGES_OF_ONE, Pages, Stream, columns_of
from server import Registry
from tests.fixtures.examples import example_row
from tests.fixtures.garbage import collected
from tests.fixtures.pages import EventSource, Page
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import Clock, Serving
from tests.fixtures.web import ask

Serve = Callable[..., Serving]
Open = Callable[..., EventSource]
AHEAD = 5000.0  # of the page's clock, before the server's


class Looking:
    """A server without a network, and a page. Time passes, and messages are taken, when the test says so."""

    def __init__(self) -> None:
        self.server_clock, self.clock = Clock(), Clock(1000.0 + AHEAD)
        self.registry = Registry(1.0, 100_000, clock=self.server_clock)
        self.registry.wall = lambda: 1_800_000_000.0 + self.server_clock.now
        self.feed = Feed(self.registry)
        self.site = Site(self.registry, self.feed, Counters())
        self.pages = Pages(self.site)
        self.page = Page(self.clock)
        self.begin()

    def begin(self) -> None:
        """A new stream, from what the page knows."""
        self.page.open()
        epoch, _, version = self.page.last_id.partition("-")
        self.viewer = self.feed.join(pb.WatchRequest(epoch=int(epoch or 0), version=int(version or 0)), is_local=False)

    def pass_time(self, seconds: float = 1.0) -> None:
        self.server_clock.now += seconds
        self.clock.now += seconds

    def publish(self) -> None:
        asyncio.run(self.feed.publish())

    def take(self, message: bytes) -> None:
        fields = dict(line.split(": ", 1) for line in asyncio.run(self.pages.event(message)).plain.decode().splitlines() if line)
        self.page.take(fields.get("id", ""), fields["data"])

    def look(self) -> None:
        self.publish()
        for message in self.feed._news(self.viewer):
            self.take(message)


def expected(row: Row, beats: bool) -> dict[str, Any]:
    """What a page should know of a row. `beats`: with its readings in the units of beats, which are coarser."""
    vitals, info, trip = row.vitals, row.info, row.round_trip_seconds
    usual = max(row.interval_seconds, row.capacities.sampling_seconds)
    coarse = (2**20, 100, 1000) if beats else (1, 1, 1)

    def rounded(value: int | None, unit: int) -> int | None:
        return None if value is None else value // unit * unit

    return {
        "node_id": row.node_id, "address": row.address, "hostname": info.hostname, "model": info.host.model,
        "agent_version": info.agent_version, "labels": dict(row.labels), "devices": len(info.devices),
        "failed_devices": vitals.errors, "has_session": row.session is not None, "left": row.left, "reason": row.reason,
        "token_id": row.token_id, "interval_milliseconds": 1000 * row.interval_seconds,
        "late_after_milliseconds": 1000 * late_after_seconds(row.interval_seconds),
        "lost_after_milliseconds": 1000 * lost_after_seconds(row.interval_seconds),
        "hangs_after_milliseconds": 1000 * hangs_after_seconds(usual),
        "memory_total_bytes": vitals.memory_total_bytes, "limit_celsius": vitals.limit_celsius,
        "utilization_permille": None if vitals.utilization is None else round(1000 * vitals.utilization),
        "memory_permille": None if vitals.memory is None else round(1000 * vitals.memory),
        "memory_used_bytes": rounded(vitals.memory_used_bytes, coarse[0]),
        "temperature_celsius": None if vitals.celsius is None else round(vitals.celsius),
        "power_milliwatts": rounded(vitals.milliwatts, coarse[1]),
        "cpu_percent": vitals.cpu_percent,
        "energy_joules": rounded(vitals.energy_joules, coarse[2]),
        "round_trip_microseconds": None if trip is None else round(1e6 * trip),
    }  # fmt: skip


def check(looking: Looking) -> None:
    """That the page knows what the registry knows; and that no age is too young, or older than a clock tells."""
    known = looking.page.by_id()
    assert known.keys() == {row.node_id for row in looking.registry.snapshot()}
    for row in looking.registry.snapshot():
        node = known[row.node_id]
        told = {key: node[key] for key in expected(row, beats=False)}
        assert told in (expected(row, beats=False), expected(row, beats=True))
        for key in ("heartbeat_at", "sample_at"):
            true = getattr(row, key)
            assert (node[key] is None) == (true is None)
            if true is not None:
                assert true + AHEAD - 0.02 <= node[key] <= true + AHEAD + 1e-6


def some_row(chance: random.Random, node_id: str, now: float) -> Row:
    """A row of any kind, some of whose values are not reported."""

    def some(value: Any) -> Any:
        return value if chance.random() < 0.8 else None

    row = example_row(chance.randrange(28))
    heard_at = now - chance.random()
    vitals = row.vitals._replace(
        utilization=some(chance.random()), memory=some(chance.random()), memory_used_bytes=chance.randrange(2**40),
        celsius=some(chance.randrange(-100, 500)), milliwatts=some(chance.randrange(10**6)),
        cpu_percent=some(chance.randrange(101)), energy_joules=some(chance.randrange(10**9)),
        limit_celsius=some(chance.randrange(80, 100)),
    )  # fmt: skip
    return row._replace(
        node_id=node_id, vitals=vitals, round_trip_seconds=some(chance.random()), heartbeat_at=heard_at,
        sample_at=some(heard_at - 2 * chance.random()), labels=(("rack", f"a{chance.randrange(3)}"),),
    )  # fmt: skip


def beaten(chance: random.Random, row: Row, now: float) -> Row:
    """The same node a heartbeat later."""
    other = some_row(chance, row.node_id, now)
    keys = ("utilization", "memory", "memory_used_bytes", "celsius", "milliwatts", "cpu_percent", "energy_joules", "limit_celsius")
    vitals = row.vitals._replace(**{key: getattr(other.vitals, key) for key in keys})
    sample_at = other.heartbeat_at if row.sample_at is not None else None
    return row.beat(other.round_trip_seconds, row.packed_sample, vitals, row.history, sample_at, other.heartbeat_at)


@pytest.mark.parametrize("seed", range(3))
def test_a_page_knows_what_the_registry_knows_also_after_it_lagged_or_came_back(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(watch, "ROWS_A_MESSAGE", 4)
    monkeypatch.setattr(watch, "CHANGES_A_MESSAGE", 5)
    chance, looking, names = random.Random(seed), Looking(), itertools.count()
    coming: Iterator[bytes] = iter(())
    for turn in range(60):
        looking.pass_time(chance.random())
        now = looking.server_clock.now
        for row in looking.registry.snapshot():
            if (event := chance.random()) < 0.7:
                looking.registry.restore(beaten(chance, row, now))
            elif event < 0.8:
                looking.registry.restore(row._replace(session=None, reason=f"turn {turn}"))
            elif event < 0.84:
                looking.registry.restore(row._replace(left=True, session=None))
                looking.registry.forget(row.node_id)
        if turn < 10 or chance.random() < 0.5:
            looking.registry.restore(some_row(chance, f"node-{next(names)}", now))
        looking.publish()
        for _ in range(chance.randrange(4)):  # it takes some of what there is, or nothing for a while
            if message := next(coming, None) or next(coming := looking.feed._news(looking.viewer), None):
                looking.take(message)
        if chance.random() < 0.2:  # its connection breaks, in the middle of what was coming
            looking.feed.leave(looking.viewer)
            looking.begin()
            coming = looking.feed._news(looking.viewer)
            looking.take(next(coming))
        if turn % 10 == 9:
            for message in itertools.chain(coming, looking.feed._news(looking.viewer)):
                looking.take(message)
            looking.look()
            check(looking)
            events = looking.registry.log.newest(EVENTS_KEPT)
            assert [text for *_, text in looking.page.events] == [event.text for event in events]
    assert looking.page.version > 60


def test_no_age_is_too_young_whatever_the_network_does() -> None:
    """The page's clock is ahead, and not quite as fast; a message may take seconds, the first one 0.3 s to be asked for."""
    looking, chance, row = Looking(), random.Random(2), example_row(1)
    looking.pass_time(0.3)
    for _ in range(200):
        at = looking.server_clock.now
        looking.registry.restore(row._replace(heartbeat_at=at, sample_at=at))
        looking.publish()
        for message in looking.feed._news(looking.viewer):
            delay = chance.choice((0.0, 2.0)) * chance.random()  # the next one is made when this one has been taken
            looking.pass_time(delay)
            looking.take(message)
        looking.pass_time(chance.random())
        looking.clock.now -= 5e-5 * (looking.server_clock.now - at)
        (node,) = looking.page.nodes.values()
        true = at + looking.clock.now - looking.server_clock.now
        assert true - 0.4 <= node["heartbeat_at"] <= true + 1e-6


# ---- Over HTTP ----


@pytest.fixture(autouse=True)
def ticks_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all servers here."""
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.02)


@pytest.fixture
def follow() -> Iterator[Open]:
    """Opens a stream of a server; it ends with the test."""
    with contextlib.ExitStack() as ending:

        def start(serving: Serving, page: Page | None = None, **settings: Any) -> EventSource:
            source = EventSource(serving.http, page or Page(time.monotonic), **settings)
            ending.callback(source.close)
            return source

        yield start


@pytest.fixture
def serving(serve: Serve) -> Serving:
    return serve(http=True, max_nodes=10_000)


def put(serving: Serving, node_id: str, percent: int, **changes: Any) -> None:
    """A node as it is now, with a reading; it is not late before the test is over."""
    now, row = serving.registry.clock(), example_row(0)._replace(interval_seconds=60)
    vitals = row.vitals._replace(utilization=percent / 100)
    serving.registry.restore(
        row._replace(**{"node_id": node_id, "vitals": vitals, "heartbeat_at": now, "sample_at": now, **changes})
    )


def test_a_stream_says_what_it_is_and_who_the_server_is(serving: Serving, follow: Open) -> None:
    source = follow(serving)
    assert source.response.getheader("content-type") == "text/event-stream; charset=utf-8"
    assert source.response.readline() == b"retry: 2000\n"
    source.read()
    source.read_until(lambda: source.page.server)
    assert source.page.server == {
        "version": VERSION, "is_secure": False, "journal": "", "addresses": [serving.address], "has_agent": False,
    }  # fmt: skip


def test_a_page_that_comes_back_goes_on_from_where_it_was(serving: Serving, follow: Open) -> None:
    put(serving, "a", 5)
    serving.registry.log.add("joined", "first", "a")
    source = follow(serving)
    page = source.page
    source.read_until(lambda: page.version)
    source.close()
    serving.registry.log.add("late", "meanwhile", "a")
    put(serving, "a", 7)
    put(serving, "b", 9)
    source = follow(serving, page)
    source.read_until(lambda: len(page.nodes) == 2)
    assert page.snapshots == 1
    assert {node["node_id"]: node["utilization_permille"] for node in page.nodes.values()} == {"a": 70, "b": 90}
    assert [text for *_, text in page.events] == ["first", "meanwhile"]


def test_a_script_can_say_where_it_was_in_the_address(serving: Serving, follow: Open) -> None:
    source = follow(serving)
    source.read_until(lambda: source.page.version)
    page = Page()
    follow(serving, page, query=f"?since={source.page.last_id}").read_until(lambda: page.version)
    assert page.snapshots == 0


@pytest.mark.parametrize("last_id", ["1-1", "nonsense", f"{2**70}-1", "-", "9" * 19 + "-" + "9" * 19])
def test_what_is_not_known_as_a_place_gets_the_fleet_anew(serving: Serving, follow: Open, last_id: str) -> None:
    page = Page()
    page.last_id = last_id
    follow(serving, page).read_until(lambda: page.version)
    assert page.snapshots == 1


def test_after_the_server_started_anew_all_comes_anew(serve: Serve, follow: Open) -> None:
    page = Page()
    for number, node_id in enumerate(("before", "after"), 1):
        serving = serve(http=True)
        put(serving, node_id, 5)
        serving.registry.log.add("joined", node_id, node_id)
        source = follow(serving, page)
        while page.snapshots < number:
            source.read()
        source.close()
    assert page.by_id().keys() == {"after"}
    assert [text for *_, text in page.events] == ["after"]


def test_one_who_does_not_read_is_kept_one_message_and_then_told_the_sum(serving: Serving, follow: Open) -> None:
    names = [f"node-{number}" for number in range(5000)]
    for node_id in names:
        put(serving, node_id, 1, reason="x" * 500)  # 6 MB in all: more than a socket takes
    feed = serving.network._service.feed
    source = follow(serving, receive_bytes=4096)
    (viewer,) = eventually(lambda: feed._viewers)

    def passed(versions: int) -> None:
        end = feed.version + versions
        eventually(lambda: feed.version >= end)

    def grown() -> int:
        before, _ = tracemalloc.get_traced_memory()
        passed(5)
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    eventually(lambda: abs(grown()) < 20_000)  # nothing more is taken of what is sent
    gc.collect()  # Python keeps tuples that are free by the thousand, until then
    kept, _ = tracemalloc.get_traced_memory()
    for percent in range(2, 12):
        for node_id in names[::50]:
            put(serving, node_id, percent, reason="x" * 500)
        serving.registry.log.add("late", f"{percent}")
        passed(2)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - kept
    tracemalloc.stop()
    assert viewer.version == 0
    assert kept < 500_000  # what changes are made of; the fleet is 6 MB
    source.read_until(lambda: len(source.page.events) == 10)
    assert {node_id: node["utilization_permille"] for node_id, node in source.page.by_id().items()} == {
        node_id: 10 if place % 50 else 110 for place, node_id in enumerate(names)
    }
    assert source.page.snapshots == 1


def test_pages_have_some_of_the_places_of_viewers_elsewhere(serving: Serving, follow: Open) -> None:
    feed = serving.network._service.feed
    sources = [follow(serving) for _ in range(MAX_PAGES)]
    with pytest.raises(HTTPError) as error:
        urlopen(f"{serving.http}/api/events")
    assert (error.value.code, error.value.headers["retry-after"]) == (503, "2")
    assert error.value.read() == b"10 pages look already: that is all there may be: try again in 2 s\n"
    sources[0].close()
    eventually(lambda: feed.viewers() == MAX_PAGES - 1)
    follow(serving).read()
    for _ in range(MAX_VIEWERS_ELSEWHERE - MAX_PAGES):
        feed.join(pb.WatchRequest(), is_local=False)
    with pytest.raises(Refused, match="14 look already"):
        feed.join(pb.WatchRequest(), is_local=False)


def test_pages_of_one_network_have_some_of_the_places_of_pages() -> None:
    async def play() -> None:
        looking = Looking()
        looking.feed.leave(looking.viewer)

        async def never() -> Message:
            await asyncio.Event().wait()
            return {}

        def comes(address: str) -> asyncio.Task[None] | bytes:
            scope = {"type": "http", "headers": [], "query_string": b"", "state": {"address": address}}
            answer = looking.pages.answer(Asked(scope))
            return asyncio.create_task(answer({}, never, said.put)) if isinstance(answer, Stream) else bytes(answer.body)

        said = asyncio.Queue[Message]()
        streams = [comes("10.0.0.7") for _ in range(MAX_PAGES_OF_ONE)]
        full = b"6 pages of 10.0.0.7 look already: that is all there may be of one network: try again in 2 s\n"
        assert comes("10.0.0.7") == full
        other = comes("10.0.0.8")
        assert isinstance(other, asyncio.Task)
        for stream in (*streams, other):
            assert isinstance(stream, asyncio.Task)
            assert await said.get()  # each has begun
            stream.cancel()
        while looking.pages._pages:
            await asyncio.sleep(0)
        assert looking.feed.viewers() == 0

    asyncio.run(play())


def test_pages_that_come_again_and_again_are_held_up(serving: Serving, follow: Open) -> None:
    serving.registry.clock = Clock()

    def comes() -> int:
        try:
            follow(serving).close()
        except AssertionError:
            return 503
        return 200

    assert [comes() for _ in range(21)] == [200] * 20 + [503]


def test_a_page_that_goes_leaves_its_place(serving: Serving, follow: Open) -> None:
    source = follow(serving)
    source.read()
    feed = serving.network._service.feed
    assert feed.viewers() == 1
    source.close()
    eventually(lambda: feed.viewers() == 0)


def test_a_page_that_goes_leaves_nothing_to_the_garbage_collector(serving: Serving, follow: Open) -> None:
    put(serving, "a", 5)
    feed = serving.network._service.feed
    with collected() as found:
        for _ in range(2):
            source = follow(serving)
            source.read()
            source.close()
            eventually(lambda: feed.viewers() == 0)
        assert ask(serving.http, "/api/fleet").status == 200
        ask(serving.http, "/healthz")
    assert not found


def test_who_wants_the_headers_alone_takes_no_place(serving: Serving) -> None:
    with urlopen(Request(f"{serving.http}/api/events", method="HEAD")) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.read() == b""
    eventually(lambda: serving.network._service.feed.viewers() == 0)


def test_a_token_that_is_revoked_ends_its_streams(serve: Serve, follow: Open, tmp_path: pathlib.Path) -> None:
    guard = Guard(tmp_path)
    serving = serve(http=True, guard=guard)
    first, second = (guard.tokens.token_of(guard.tokens.issue(Role.VIEW, name, None)) for name in ("one", "other"))
    with pytest.raises(AssertionError, match="token"):
        follow(serving)
    stays, ends = (follow(serving, authorization=token.bearer()) for token in (first, second))
    stays.read_until(lambda: stays.page.version)
    guard.tokens.revoke(second.id)
    with pytest.raises(AssertionError, match="the stream has ended"):
        ends.read_until(lambda: False)
    version = stays.page.version
    stays.read_until(lambda: stays.page.version > version)
    eventually(lambda: serving.network._service.feed.viewers() == 1)


def test_a_server_that_goes_ends_its_streams_also_of_those_who_read_nothing(serving: Serving, follow: Open) -> None:
    for number in range(3000):
        put(serving, f"node-{number}", 1, reason="x" * 500)
    source = follow(serving)
    follow(serving, receive_bytes=4096)
    source.read_until(lambda: source.page.version)
    serving.network.stop()
    assert not serving.network.is_alive()
    with pytest.raises(AssertionError, match="the stream has ended"):
        source.read_until(lambda: False)


def test_texts_of_nodes_can_not_break_the_stream(serving: Serving, follow: Open) -> None:
    evil = "\n\ndata: {}\r\x1b[31m\u2028</script>"
    put(serving, "a", 5, address=evil, reason=evil, token_id=evil, labels=(("rack", evil),),
        packed_info=pb.NodeInfo(hostname=evil, agent_version=evil, host=pb.HostInfo(model=evil)).SerializeToString())  # fmt: skip
    serving.registry.log.add("joined", evil, "a")
    source = follow(serving)
    source.read_until(lambda: source.page.version)
    (node,) = source.page.nodes.values()
    shown = visible(evil)
    assert {node[key] for key in ("address", "reason", "token_id", "hostname", "agent_version", "model", "hardware")} == {shown}
    assert node["labels"] == {"rack": shown}
    assert source.page.events[0][3] == shown


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_a_stream_is_packed_where_that_is_asked_for_and_comes_as_it_is_made(serve: Serve) -> None:
    serving = serve(http=True)
    command = ["curl", "-fsSNi", "--compressed", f"{serving.http}/api/events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout
        head = list(itertools.takewhile(str.strip, curl.stdout))
        assert "content-encoding: gzip\n" in head
        page = Page()
        for node_id in ("first", "second"):  # each is there before the stream ends
            serving.registry.restore(example_row(2)._replace(node_id=node_id))
            while node_id not in page.by_id():
                fields = dict(line.rstrip().split(": ", 1) for line in itertools.takewhile(str.strip, curl.stdout))
                if "data" in fields:
                    page.take(fields.get("id", ""), fields["data"])
        curl.kill()


def test_what_is_told_to_many_is_made_once() -> None:
    looking = Looking()
    looking.registry.restore(example_row(1))
    looking.publish()
    message = list(looking.feed._news(looking.viewer))[-1]

    async def ask() -> list[Piece]:
        return await asyncio.gather(*(looking.pages.event(message) for _ in range(3)), looking.pages.event(bytes(message)))

    first, *others = asyncio.run(ask())
    assert all(other is first for other in others)


def test_columns_say_what_is_not_reported() -> None:
    beats = pb.Beats(
        number_steps=[3, 2], heartbeat_age_milliseconds=[1, 2], sample_lag_milliseconds=[0, 0], utilization_permille=[0, 1],
        memory_permille=[1001, 0], memory_used_mebibytes=[0, 7], temperature_celsius=[1, 0], power_deciwatts=[0, 5],
        cpu_percent=[101, 0], energy_kilojoules=[0, 2**33], round_trip_microseconds=[1, 0], hottest_device=[0, 0],
    )  # fmt: skip
    feed = Feed(Registry(1.0, 100))
    assert json.loads("{" + ",".join(columns_of(beats, feed)) + "}") == {
        "number": [3, 5], "heartbeat_age_milliseconds": [1, 2], "sample_lag_milliseconds": [0, 0],
        "utilization_permille": [None, 0], "memory_permille": [1000, None], "memory_used_mebibytes": [0, 7],
        "temperature_celsius": [-100, None], "power_deciwatts": [None, 4], "cpu_percent": [100, None],
        "energy_kilojoules": [None, 2**33 - 1], "round_trip_microseconds": [0, None],
        "limit_celsius": [None, None],
    }  # fmt: skip
