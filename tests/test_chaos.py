"""What befalls a network, a server and a clock, and what the two programs make of it: the cases of `bench chaos`, shorter.

All are played side by side, each with programs of its own, most with a network too, and each test waits for its own: the whole file
takes as long as the longest, in which a node is silent until it is lost.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.chaos import CASES, FAKETIME, Case, Course, clock_is_set, play, server_stands_still
from bench.network import Lossy, Nat, Wire, at_most_300_bytes
from edge.protocol import LOST_SECONDS, silent_after_seconds
from tests.fixtures.processes import Program, eventually, starting

SIMULATED = ("--hardware", "simulated", "--seed", "1")
UNTIL_LOST_SECONDS = LOST_SECONDS + 2
UNTIL_SILENT_SECONDS = silent_after_seconds(1) + 2


def shorter(case: Case) -> Case:
    """As long as it takes to be noticed."""
    enough = UNTIL_SILENT_SECONDS if case.trouble is server_stands_still else UNTIL_LOST_SECONDS
    return case._replace(seconds=min(case.seconds, enough))


def started(start: Callable[..., Program], *options: str) -> tuple[Program, Program]:
    """A server, and a node that is connected to it."""
    server = start("server.py", "--no-journal", "--listen", "127.0.0.1:0", *options)
    node = start("node.py", "--server", server.line(r"listening on (\S+:\d+)")[1], *SIMULATED)
    node.line("connected to")
    return server, node


def events_of_a_standstill(stop: threading.Event) -> list[str]:
    """What a server says that is stopped for a while, and goes on."""
    with starting() as start:
        server, node = started(start, "--headless")
        server.process.send_signal(signal.SIGSTOP)
        stop.wait(UNTIL_LOST_SECONDS)
        server.process.send_signal(signal.SIGCONT)
        server.line("stood still")
        node.end()
        server.line("left")
        return server.lines


def find_half_open_connections() -> None:
    """Of nodes whose servers fall silent: one in a session, one that seldom hears of its server, one that has just come."""
    with starting() as start, socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never says a word
        server, frozen = started(start, "--headless")
        seldom, pinging = started(start, "--headless", "--interval", "5")  # silence counts after 22 s: a ping is before
        mute = start("node.py", "--server", f"127.0.0.1:{silent.getsockname()[1]}", *SIMULATED)
        server.process.send_signal(signal.SIGSTOP)
        seldom.process.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        mute.line("half-open.*next try in", 20)
        pinging.line("does not answer: the connection is half-open; next try in", 20)
        frozen.line("half-open.*next try in", 20)
        assert time.monotonic() - frozen_at < 20  # 15 s, and 5 for a busy machine; by gRPC's own settings it takes a minute
        server.process.send_signal(signal.SIGCONT)
        eventually(lambda: sum("connected to" in line for line in frozen.lines) >= 2, 40)


def rows_of_a_kill() -> list[dict[str, Any]]:
    """How a server has a node that was killed: at first, and once it has another state."""
    with starting() as start:
        server, node = started(start, "--json")
        server.json_line(lambda line: any(row["state"] == "ONLINE" for row in line["nodes"]))
        node.kill()
        lines = [server.json_line(lambda line: line["nodes"][0]["state"] != "ONLINE")]
        lines += [server.json_line(lambda line: line["nodes"][0]["state"] != "DISCONNECTED", 30)]
        return [line["nodes"][0] for line in lines]


@pytest.fixture(scope="module")
def playing() -> Iterator[dict[str, concurrent.futures.Future[Any]]]:
    """All cases by their names, on their way: those that can be played here."""
    known = [case for case in CASES if FAKETIME or case.trouble is not clock_is_set]
    try:
        Wire().close()
    except OSError:
        known = []
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(len(known) + 3) as pool, contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        courses = {case.name: pool.submit(play, shorter(case), stop) for case in known}
        standstill, kill = pool.submit(events_of_a_standstill, stop), pool.submit(rows_of_a_kill)
        yield {**courses, "standstill": standstill, "kill": kill, "half-open": pool.submit(find_half_open_connections)}


def course_of(playing: dict[str, concurrent.futures.Future[Any]], name: str) -> Course:
    if name not in playing:
        pytest.skip("needs root, and a TUN device; where the wall clock is set, faketime too")
    course: Course = playing[name].result()
    return course


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_states_stand_in_their_order_and_the_node_comes_back(playing: dict[str, Any], case: Case) -> None:
    course = course_of(playing, case.name)
    if case.states:
        assert course.sequence() == case.states, course
    if case.ends_session:
        assert course.ended
    if case.trouble is clock_is_set:
        assert course.oldest_sample < 3600, "a clock that was set by days is in no age"


def test_a_cut_is_explained(playing: dict[str, Any]) -> None:
    first, *later = (line.text for line in course_of(playing, "a partition, both ways").ended)
    assert "orchestrator:50051 does not answer: the connection is half-open; next try in" in first
    assert later
    assert all("does not answer (is it on, and its port open in the firewall?); next try in" in text for text in later)
    (silent, *_) = course_of(playing, "the server stopped").ended
    assert "the connection is half-open" in silent.text


def test_a_server_that_stood_still_says_so_and_takes_nobody_for_lost(playing: dict[str, Any]) -> None:
    events = playing["standstill"].result()
    assert sum("stood still" in line for line in events) == 1
    assert not [line for line in events if " late " in line or " lost " in line]


def test_a_killed_node_is_lost_after_ten_seconds(playing: dict[str, Any]) -> None:
    disconnected, lost = playing["kill"].result()
    assert (disconnected["state"], disconnected["reason"]) == ("DISCONNECTED", "the stream broke")
    assert lost["state"] == "LOST"
    assert 10 < lost["heartbeat_age_seconds"] < 13
    assert re.fullmatch(r"no heartbeat for 1\ds; the stream broke", lost["reason"])
    assert lost["sample"]["devices"]  # the last values stay


def test_half_open_connections_are_found_within_15_seconds(playing: dict[str, Any]) -> None:
    playing["half-open"].result()


# ---- The network itself ----


def packet(size: int, port: int, flags: int = 0) -> bytes:
    """A TCP packet from this port to itself."""
    return b"\x45".ljust(20, b"\0") + struct.pack("!HH8xBB", port, port, 0, flags).ljust(size - 20, b"\0")


def test_rules_lose_what_they_say() -> None:
    assert at_most_300_bytes(packet(300, 1), True)
    assert not at_most_300_bytes(packet(301, 1), True)
    lossy, same = Lossy(0.3, seed=1), Lossy(0.3, seed=1)
    arrived = [lossy(b"", True) for _ in range(1000)]
    assert 650 < sum(arrived) < 750
    assert arrived == [same(b"", True) for _ in range(1000)]


def test_a_nat_carries_what_it_has_seen_begin() -> None:
    nat, syn = Nat(), 0x02
    assert not nat(packet(40, 5), True)
    assert not nat(packet(40, 5, syn), False)  # from outside nothing begins
    assert nat(packet(40, 5, syn), True)
    assert nat(packet(40, 5), False)
    assert not nat(packet(40, 6), False)
