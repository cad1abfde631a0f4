"""/metrics over HTTP: a real server, whose answers are made once for all who ask, and let go of."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import pathlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from email.message import Message
from typing import Any

import pytest

import node_pb2 as pb
from edge.fleet.counters import Counters
from edge.fleet.journal import journal_in
from edge.fleet.row import Row
from edge.fleet.watch import Feed
from edge.web.scrape import MAX_BODIES, Body, NotUnderstood, Question, Scrapes
from edge.web.selection import Busy
from edge.web.site import Site
from server import Registry
from tests.fixtures.examples import example_registry, example_row
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import Clock, Serving, Stream, refusal
from tests.fixtures.web import heard
from tests.web.test_exposition import line, of, readings_of

ALL = Question("", True)


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    """With the nodes of the README's picture, which stay as they are."""
    serving = Serving(http=True, clock=lambda: 1000.0)
    for index in range(28):
        serving.registry.restore(example_row(index))
    yield serving
    serving.network.stop()


def get(serving: Serving, path: str, encoding: str = "identity", method: str = "GET") -> tuple[int, Message, bytes]:
    request = urllib.request.Request(f"{serving.http}{path}", headers={"Accept-Encoding": encoding}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_it_is_prometheus_text_packed_where_that_is_asked_for(serving: Serving) -> None:
    status, headers, plain = get(serving, "/metrics")
    assert status == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Encoding"] is None and headers["Vary"] == "Accept-Encoding"
    _, headers, packed = get(serving, "/metrics", "gzip, deflate")
    assert headers["Content-Encoding"] == "gzip" and len(packed) < len(plain) / 5
    assert gzip.decompress(packed) == plain  # within a second, it is the same answer
    assert len(of(readings_of(plain.decode()), "edge_node_up")) == 28
    status, headers, none = get(serving, "/metrics", method="HEAD")
    assert status == 200 and not none and headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_a_filter_chooses_the_nodes_as_on_the_screen(serving: Serving) -> None:
    found = readings_of(get(serving, "/metrics?match=h200%20state:online")[2].decode())
    assert found[line("edge_fleet_gpus")] == 8 * len(of(found, "edge_node_up")) > 0
    assert set(of(found, "edge_node_up").values()) == {1}
    assert found[line("edge_server_sessions")] == 26  # the server's own is not filtered
    sums = readings_of(get(serving, "/metrics/fleet?match=h200%20state:online")[2].decode())
    assert sums[line("edge_fleet_gpus")] == found[line("edge_fleet_gpus")] and not of(sums, "edge_node_up")
    nobody = readings_of(get(serving, "/metrics?match=nobody")[2].decode())
    assert nobody[line("edge_fleet_gpus")] == 0 and not of(nobody, "edge_node_up")


def test_a_filter_that_can_not_be_read_is_refused_in_a_sentence(serving: Serving) -> None:
    status, headers, text = get(serving, "/metrics?match=util%3C")
    assert status == 400 and headers["Content-Type"].startswith("text/plain")
    assert text.decode().startswith("the filter can't be read at: util<") and text.count(b"\n") == 1


def test_what_the_server_counts_of_itself() -> None:
    serving = Serving(http=True, max_nodes=50, interval=0.5)
    try:
        stream = Stream(serving.address, "box", sample=pb.Sample(sequence=1))
        stream.answer()
        stream.send(sample=pb.Sample(sequence=2))
        eventually(lambda: serving.registry.counters.heartbeats == 2)
        refusal(serving.address, node_id="")
        found = readings_of(get(serving, "/metrics/fleet")[2].decode())
        assert found[line("edge_server_heartbeats_total")] == 2
        assert found[line("edge_server_sessions")] == found[line("edge_server_sessions_opened_total")] == 1
        assert of(found, "edge_server_refusals_total") == {line("", reason="invalid_argument")[1]: 1}
        assert found[line("edge_server_viewers")] == 0
        assert found[line("edge_server_nodes_limit")] == 50
        assert found[line("edge_server_heartbeat_interval_seconds")] == 0.5
        assert not of(found, "edge_server_journal_up")
        assert found[line("process_open_fds")] > 3 and found[line("process_resident_memory_bytes")] > 2**20
        assert found[line("process_cpu_seconds_total")] > 0
        assert abs(found[line("process_start_time_seconds")] - serving.registry.counters.started) < 1e-3
        stream.close()
    finally:
        serving.network.stop()


def test_the_lag_is_the_worst_of_a_minute() -> None:
    counters = Counters()
    assert counters.lag_seconds() == 0
    counters.tick(-0.001)
    counters.tick(0.4)
    for _ in range(59):
        counters.tick(0.01)
    assert counters.lag_seconds() == 0.4
    counters.tick(0.01)
    assert counters.lag_seconds() == 0.01


def test_the_journal_says_what_it_has(tmp_path: pathlib.Path) -> None:
    registry = example_registry()
    journal = journal_in(tmp_path, 2**30, registry, registry.bring_back, lambda _kind, _text: None)
    registry.counters.journal = journal.state
    before = read(lambda scrapes: scrapes.body(Question("", False)), registry)
    assert not of(before, "edge_server_journal_size_bytes")  # not known yet
    journal.start()
    journal.close()  # with a moment
    found = read(lambda scrapes: scrapes.body(Question("", False)), registry)
    assert found[line("edge_server_journal_up")] == 1 and found[line("edge_server_journal_size_limit_bytes")] == 2**30
    assert 10_000 < found[line("edge_server_journal_size_bytes")] < 2**30
    assert found[line("edge_server_journal_first_timestamp_seconds")] == pytest.approx(registry.wall(), abs=60)


def test_a_journal_that_can_not_be_written_is_down(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    registry = example_registry()
    journal = journal_in(tmp_path / "file" / "folder", 2**30, registry, registry.bring_back, lambda _kind, _text: None)
    journal.start()
    journal.close()
    registry.counters.journal = journal.state
    assert read(lambda scrapes: scrapes.body(Question("", False)), registry)[line("edge_server_journal_up")] == 0


# ---- Made once, for all who ask ----


class Counted(Registry):
    """A registry that counts how often it was looked at."""

    looks = 0

    def snapshot(self) -> list[Row]:
        self.looks += 1
        return super().snapshot()


def counted() -> Counted:
    registry = Counted(1.0, 100, clock=Clock())
    for index in range(5):
        registry.restore(example_row(index))
    return registry


def with_scrapes(registry: Registry, action: Callable[[Scrapes], Coroutine[Any, Any, Any]], kept_seconds: float = 60) -> Any:
    async def run() -> Any:
        site = Site(registry, Feed(registry), registry.counters)
        return await action(Scrapes(site, kept_seconds))

    return asyncio.run(run())


def read(action: Callable[[Scrapes], Coroutine[Any, Any, Body]], registry: Registry) -> dict[Any, float]:
    return readings_of(gzip.decompress(b"".join(with_scrapes(registry, action).packed)).decode())


def test_all_who_ask_at_once_share_one_answer_and_so_do_those_of_the_next_second() -> None:
    registry = counted()

    async def ask(scrapes: Scrapes) -> None:
        bodies = await asyncio.gather(*(scrapes.body(ALL) for _ in range(20)))
        assert len(set(map(id, bodies))) == 1 and registry.looks == 1
        assert await scrapes.body(ALL) is bodies[0] and registry.looks == 1
        assert await scrapes.body(Question("", False)) is not bodies[0] and registry.looks == 2

    with_scrapes(registry, ask)


def test_after_a_second_it_is_let_go_of() -> None:
    registry = counted()

    async def ask(scrapes: Scrapes) -> None:
        first = await scrapes.body(ALL)
        while scrapes._bodies:
            await asyncio.sleep(0.01)
        assert not scrapes._tasks
        assert await scrapes.body(ALL) is not first and registry.looks == 2

    with_scrapes(registry, ask, kept_seconds=0.02)


def test_of_many_filters_a_few_answers_are_kept() -> None:
    async def ask(scrapes: Scrapes) -> None:
        for index in range(3 * MAX_BODIES):
            await scrapes.body(Question(f"node-{index}", True))
        assert len(scrapes._bodies) == len(scrapes._tasks) == MAX_BODIES

    with_scrapes(counted(), ask)


async def sent_to(scrapes: Scrapes, match: str, network: str) -> asyncio.Task[None]:
    """To one who reads nothing."""

    async def stall(_piece: bytes) -> None:
        await asyncio.sleep(600)

    body = await scrapes.body(Question(match, True), network)
    sending = asyncio.create_task(scrapes.tell(body, True, stall))
    await asyncio.sleep(0)
    return sending


def test_where_all_are_still_being_sent_the_oldest_of_the_network_that_has_most_gives_way() -> None:
    async def ask(scrapes: Scrapes) -> None:
        other = await sent_to(scrapes, "node-9", "other")
        sending = [await sent_to(scrapes, f"node-{index}", "greedy") for index in range(6)]
        await asyncio.sleep(0)
        assert [one.cancelled() for one in sending] == [True] * 3 + [False] * 3 and not other.done()
        assert len(scrapes._bodies) == len(scrapes._tasks) == MAX_BODIES

    with_scrapes(counted(), ask)


def test_who_asks_with_a_filter_takes_no_place_from_who_asks_without() -> None:
    async def ask(scrapes: Scrapes) -> None:
        plain = [await sent_to(scrapes, "", "other")]
        sending = [await sent_to(scrapes, f"node-{index}", "greedy") for index in range(6)]
        assert not plain[0].done()
        scrapes._forget(await scrapes.body(ALL))  # a second has gone by
        plain.append(await sent_to(scrapes, "", "other"))
        assert [one.cancelled() for one in sending] == [True] * 4 + [False] * 2
        await sent_to(scrapes, "node-6", "greedy")
        assert not plain[0].done() and not plain[1].done()

    with_scrapes(counted(), ask)


def test_who_asks_without_a_filter_again_and_again_and_reads_nothing_gives_way_to_all() -> None:
    async def ask(scrapes: Scrapes) -> None:
        sending = []
        for _ in range(MAX_BODIES + 1):
            sending.append(await sent_to(scrapes, "", "greedy"))
            scrapes._forget(await scrapes.body(ALL))
        await sent_to(scrapes, "node-1", "other")
        await asyncio.sleep(0)
        assert [one.cancelled() for one in sending] == [True] * 2 + [False] * 3

    with_scrapes(counted(), ask)


def test_who_asks_without_a_filter_does_not_wait_for_those_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    async def ask(scrapes: Scrapes) -> None:
        async def body(match: str) -> None:
            await scrapes.body(Question(match, True), f"network-{match}")
            order.append(match)

        await asyncio.gather(*(body(f"node-{index}") for index in range(8)), body(""))
        assert order.index("") < 3

    monkeypatch.setattr("edge.web.slices.SLICE_SECONDS", 0)
    with_scrapes(counted(), ask)


def test_who_goes_away_stops_nothing_for_the_others() -> None:
    registry = counted()

    async def ask(scrapes: Scrapes) -> None:
        gone, waits = asyncio.create_task(scrapes.body(ALL)), asyncio.create_task(scrapes.body(ALL))
        await asyncio.sleep(0)
        gone.cancel()
        assert (await waits).packed and registry.looks == 1

    with_scrapes(registry, ask)


def test_while_the_server_goes_away_nothing_is_made() -> None:
    registry = counted()

    async def ask() -> None:
        site = Site(registry, Feed(registry), registry.counters, is_ready=lambda: False)
        with pytest.raises(Busy, match="going away"):
            await Scrapes(site).body(ALL)

    asyncio.run(ask())


def test_an_error_is_told_to_all_who_wait_and_not_kept() -> None:
    registry = counted()

    async def ask(scrapes: Scrapes) -> None:
        bad = Question("util<", True)
        answers = await asyncio.gather(*(scrapes.body(bad) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [NotUnderstood] * 3
        await asyncio.sleep(0)
        assert not scrapes._tasks and not scrapes._bodies

    with_scrapes(registry, ask)


def test_a_crowd_is_answered_or_told_to_come_back(serving: Serving) -> None:
    """Over real connections; some of them go away with the answer on its way."""
    statuses: list[int] = []

    def ask(index: int) -> None:
        status, headers, text = get(serving, f"/metrics?match=node-10{index % 20:02}")
        assert status == 200 or (headers["Retry-After"] in "12" and text.startswith(b"too many "))
        statuses.append(status)

    leaving = [socket.create_connection(serving.network.http or ("", 0)) for _ in range(5)]
    for connection in leaving:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    crowd = [threading.Thread(target=ask, args=(index,)) for index in range(40)]
    for thread in crowd:
        thread.start()
    for connection in leaving:
        connection.close()
    for thread in crowd:
        thread.join(20)
    assert len(statuses) == 40 and set(statuses) <= {200, 503} and 200 in statuses
    assert eventually(lambda: get(serving, "/metrics")[0] == 200)


# ---- Of those who read slowly ----


@pytest.fixture
def large() -> Iterator[Serving]:
    """Its answer is more than the system keeps of a connection that nobody reads."""
    serving = Serving(http=True, clock=lambda: 1000.0)
    for index in range(200):
        serving.registry.restore(example_row(0)._replace(node_id=f"{'a-long-name' * 20}-{index}"))
    yield serving
    serving.network.stop()


def begun(serving: Serving, path: str) -> socket.socket:
    """A client that has asked, and has read no more than the beginning of the answer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(serving.network.http or ("", 0))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    return client


def test_who_leaves_in_the_middle_of_an_answer_leaves_nothing_behind(large: Serving) -> None:
    gc.collect()
    gc.disable()
    try:
        for index in range(MAX_BODIES + 1):
            begun(large, f"/metrics?match=long-{'|'.join(['long'] * (index + 1))}").close()
        eventually(lambda: not [one for one in gc.get_objects() if isinstance(one, Body)])
    finally:
        gc.enable()
    assert get(large, "/metrics", "gzip")[0] == 200


def test_slow_clients_give_way_to_who_reads(large: Serving, caplog: pytest.LogCaptureFixture) -> None:
    slow = [begun(large, f"/metrics?match={'|'.join(['long'] * (index + 1))}") for index in range(MAX_BODIES)]
    for path in ("/metrics", "/metrics/fleet", "/metrics?match=name"):
        assert get(large, path, "gzip")[0] == 200
    for client in slow[:1]:  # it is left, in the middle
        text = heard(client)
        assert text and not text.endswith(b"0\r\n\r\n")
    for client in slow:
        client.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
