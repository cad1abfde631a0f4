"""The section chaos: what befalls a network, a server and a clock, and what a node and its server make of it."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bench import network
from bench.figures import Failed, Figure, say
from bench.network import SERVER_ADDRESSES, SERVER_NAME, Wire
from bench.processes import CORES, ROOT, environment
from edge.backoff import MAX_BACKOFF_SECONDS
from edge.protocol import DEFAULT_PORT, FIRST_ANSWER_SECONDS, LOST_SECONDS, silent_after_seconds

GONE = "-"  # what a server shows of a node that it does not know
DAYS = 3
TIME_STAMP = re.compile(r"^\S+ \S+ ")
NOTICED_SECONDS = silent_after_seconds(1) + 2  # a node asks once a beat, and the machine is busy
PATIENCE_SECONDS = 90.0  # then a node that does not come back is taken for a fault, however busy the machine
BACK_SECONDS = FIRST_ANSWER_SECONDS + MAX_BACKOFF_SECONDS + 2  # a try under way fails, the longest wait follows, and it is shown
FAKETIME = next(iter(sorted(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class Line(NamedTuple):
    """A line of a program, and when it came by the monotonic clock."""

    at: float
    text: str


class Watched:
    """A program at one end of the wire, and what it has said."""

    def __init__(self, end: network.End, *arguments: str, **environ: str) -> None:
        self.lines: list[Line] = []
        self.process = end.call(
            lambda: subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment(**environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(Line(time.monotonic(), line.rstrip("\n")))

    def said(self, *words: str) -> list[Line]:
        """Its lines with any of these words."""
        return [line for line in self.lines.copy() if any(word in line.text for word in words)]

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout:
            self.process.stdout.close()


class Snapshot(NamedTuple):
    """What a server shows of the node."""

    at: float  # when it came by the monotonic clock
    wall: float  # the server's time of day, in seconds
    state: str
    sample_age_seconds: float


def snapshot_of(at: float, fleet: Any) -> Snapshot:
    """Of a line of --json."""
    row: dict[str, Any] = next(iter(fleet["nodes"]), {"state": GONE, "sample_age_seconds": 0.0})
    return Snapshot(at, fleet["time"], row["state"], row["sample_age_seconds"])


class Stage:
    """A server, a node that reports to it by name, and all that may befall them."""

    def __init__(self, stack: contextlib.ExitStack, sets_clock: bool) -> None:
        if sets_clock and not FAKETIME:
            raise Failed("the wall clock can't be set: install faketime")
        self._stack = stack
        self._sets_clock = sets_clock
        self.wire = stack.enter_context(contextlib.closing(Wire()))
        self._clock = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "clock"
        self._servers: list[Watched] = []
        self.set_clock(0)
        self.start_server(SERVER_ADDRESSES[0])
        self.node = self._start(
            self.wire.node, "node.py", "--headless", "--server", SERVER_NAME, "--hardware", "simulated", "--seed", "1"
        )

    @property
    def server(self) -> Watched:
        return self._servers[-1]

    def start_server(self, address: str) -> None:
        """The first one, or another one."""
        self._servers.append(self._start(self.wire.server, "server.py", "--json", "--listen", f"{address}:{DEFAULT_PORT}"))

    def set_clock(self, days: float) -> None:
        """Set the wall clock of both programs forward or back by days. What is monotonic goes on."""
        self._clock.write_text(f"{86_400 * days:+.0f}", encoding="ascii")

    def _start(self, end: network.End, *arguments: str) -> Watched:
        faked = {
            "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(self._clock), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        program = Watched(end, *arguments, **(faked if self._sets_clock else {}))
        self._stack.callback(program.stop)
        return program

    def snapshots(self, since: float) -> list[Snapshot]:
        """What the servers have printed since this moment."""
        lines = [line for server in self._servers for line in server.said('{"time"') if line.at >= since]
        return [snapshot_of(line.at, json.loads(line.text)) for line in lines]

    def is_connected(self, sessions: int) -> bool:
        """Whether both ends say so, and the node has had so many sessions."""
        connected, ended = self.node.said("connected to"), self.node.said("next try in")
        if len(connected) < sessions or (ended and ended[-1].at > connected[-1].at):
            return False
        snapshots = self.snapshots(connected[-1].at)
        return bool(snapshots) and snapshots[-1].state == "ONLINE"

    def wait_until_connected(self, sessions: int, stop: threading.Event) -> None:
        """Raises Failed, with what the node said last."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while not self.is_connected(sessions):
            if time.monotonic() > give_up_at or stop.wait(0.05):
                raise Failed(f"not connected after {PATIENCE_SECONDS:g} s: {[line.text for line in self.node.lines[-2:]]}")


# ---- What befalls them ----

Trouble = Callable[[Stage], Iterator[None]]  # each `yield` takes as long as the case says


def ruled(rule: network.Rule) -> Trouble:
    """The wire has this rule for a while."""

    def trouble(stage: Stage) -> Iterator[None]:
        stage.wire.rule = rule
        yield
        stage.wire.rule = network.all_arrive

    return trouble


def nat_forgets(stage: Stage) -> Iterator[None]:
    nat = network.Nat()
    stage.wire.rule = nat  # it has not seen this session begin: as if it had forgotten it
    yield


def server_moves(stage: Stage) -> Iterator[None]:
    stage.server.stop()
    stage.start_server(SERVER_ADDRESSES[1])
    yield
    stage.wire.node.name(SERVER_ADDRESSES[1])


def server_stands_still(stage: Stage) -> Iterator[None]:
    stage.server.process.send_signal(signal.SIGSTOP)
    yield
    stage.server.process.send_signal(signal.SIGCONT)


def clock_is_set(stage: Stage) -> Iterator[None]:
    for days in (DAYS, -DAYS):
        stage.set_clock(days)
        yield
        if abs(stage.snapshots(0.0)[-1].wall - time.time() - 86_400 * days) > 3600:
            raise Failed("the wall clock was not set")


class Case(NamedTuple):
    """A trouble, how long it lasts, and what is to become of it."""

    name: str
    trouble: Trouble
    seconds: float
    states: tuple[str, ...] = ()  # that the server is to show, in their order; empty: it is left to chance
    ends_session: bool = True


LOST = ("ONLINE", "LATE", "LOST", "ONLINE")
CASES = (
    Case("a partition, both ways", ruled(network.none_arrive), 40, LOST),
    Case("a partition, the server hears nothing", ruled(network.only_down), 40, LOST),
    Case("a partition, the node hears nothing", ruled(network.only_up), 40, LOST),
    Case("30 % of packets lost", ruled(network.Lossy(0.3, seed=1)), 40, ends_session=False),
    Case("packets over 300 bytes lost", ruled(network.at_most_300_bytes), 40, LOST),
    Case("the NAT's mapping lost", nat_forgets, 0, ("ONLINE", "LATE", "ONLINE")),
    Case("the server's address moved", server_moves, 5, ("ONLINE", GONE, "ONLINE")),
    Case("the server stopped", server_stands_still, 60, ("ONLINE",)),
    Case(f"the wall clock {DAYS} days on, then {DAYS} days back", clock_is_set, 8, ("ONLINE",), ends_session=False),
)


class Course(NamedTuple):
    """What became of a case. Times are in seconds since the trouble began."""

    states: Sequence[Line]  # that the server showed, the first one from before
    ended: Sequence[Line]  # why the node's sessions, and its tries to begin one, have ended
    over: float  # when the trouble was over
    back: float  # when both ends said that all is well
    oldest_sample: float  # that the server showed, in seconds

    def sequence(self) -> tuple[str, ...]:
        """The states in their order, but DISCONNECTED: whether a stream breaks before or after its node is late is chance."""
        return tuple(state for state, _ in itertools.groupby(line.text for line in self.states if line.text != "DISCONNECTED"))


def play(case: Case, stop: threading.Event) -> Course:
    """A case from its beginning to its end. Raises Failed when the node does not come back, or `stop` is set."""
    os.sched_setaffinity(0, CORES)  # what is started inherits it
    with contextlib.ExitStack() as stack:
        stage = Stage(stack, sets_clock=case.trouble is clock_is_set)
        stage.wait_until_connected(1, stop)
        began = time.monotonic()
        for _ in case.trouble(stage):
            stop.wait(case.seconds)
        over = time.monotonic()
        stage.wait_until_connected(1 + case.ends_session, stop)
        back = time.monotonic()
        ended = [Line(at - began, TIME_STAMP.sub("", text)) for at, text in stage.node.said("next try in") if at >= began]
        snapshots = [Snapshot(began, 0.0, "ONLINE", 0.0), *stage.snapshots(began)]
        states = [Line(next(run).at - began, state) for state, run in itertools.groupby(snapshots, lambda snapshot: snapshot.state)]
        return Course(states, ended, over - began, back - began, max(snapshot.sample_age_seconds for snapshot in snapshots))


def figures_of(case: Case, course: Course) -> Iterator[Figure]:
    """When each end noticed, and how long it took to come back."""
    shown = ", ".join(f"{line.text} {line.at:.1f}" for line in course.states)
    at = {line.text: line.at for line in course.states[1:-1]}
    if case.states and course.sequence() != case.states:
        yield Figure("chaos", f"{case.name}: shown in this order: {', '.join(case.states)}", None, "", 0, note=shown)
    elif "LOST" in case.states:
        yield Figure("chaos", f"{case.name}: LOST", at["LOST"], "s", LOST_SECONDS + 2, LOST_SECONDS - 1.5, note=shown)
    elif case.states == ("ONLINE",):
        yield Figure("chaos", f"{case.name}: shown as late or lost", 0, "times", 0, note=shown)
    else:
        yield Figure("chaos", f"{case.name}: not ONLINE", next(iter(at.values()), None), "s", note=shown)
    if course.ended:
        first, most = course.ended[0], NOTICED_SECONDS if case.ends_session else None
        yield Figure("chaos", f"{case.name}: the node notices", first.at, "s", most, note=first.text.partition(";")[0])
        yield Figure("chaos", f"{case.name}: back, once it is over", course.back - course.over, "s", BACK_SECONDS)


def chaos(_options: argparse.Namespace) -> Iterator[Figure]:
    """Partitions, loss, a lost mapping, a server that moves or stands still, a clock that is set."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(len(CASES)) as pool, contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        for case, playing in [(case, pool.submit(play, case, stop)) for case in CASES]:
            try:
                yield from figures_of(case, playing.result())
            except (Failed, OSError, subprocess.SubprocessError) as error:
                say(f"{case.name}: {error}")
                yield Figure("chaos", case.name, None, "", 0, note=str(error))
