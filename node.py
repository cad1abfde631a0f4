"""The agent of Edge Compute Node: reads this box's hardware, streams heartbeats to a server, and shows both on a screen.

    Node-8821  edge-07 · NVIDIA DGX H200                    ● connected to 10.0.0.5:50051
    ╭─ GPU 0 · NVIDIA H200 ─────────────────────────────────────────────────────────────╮
    │ utilization ████████████████████████▌·····················                    53% │
    │ memory      ██████████████▎···············................   45.2 GiB of 140 GiB  │
    ╰────────────────────────────────────────────────────────────────────────────────────╯

Data flows one way:  Machine.sample() -> NodeState -> heartbeat session
                                              \\-> View -> render()

Threads: main (screen or plain lines), telemetry, heartbeat. Each session has one more, which reads the acknowledgements; and so has
each reading that may hang (base.py), while it is asked.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core writes to stderr, across the screen; what matters comes as errors

sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # asyncio, which gRPC imports, would load OpenSSL with it: 4 MB

import grpc

import node_pb2 as pb
import node_pb2_grpc
from edge import history, limits, protocol
from edge.backoff import MAX_BACKOFF_SECONDS, backoff
from edge.errors import Distrust, SessionEnded
from edge.event_log import Event, EventLog, Follower
from edge.hardware.base import SLOW_READING_SECONDS
from edge.hardware.energy import Energy
from edge.hardware.export import reading_json, reading_text
from edge.hardware.identity import Identity, machine_text, simulated_text
from edge.hardware.machine import Machine, open_machine
from edge.hardware.options import parse_options
from edge.hardware.round_trips import RoundTrips
from edge.hardware.screen import Link, View, panels_room, render, subject_of
from edge.hardware.servers import PACE, Pace, Turns, is_there
from edge.panels import Subject, reach_of, scrolled
from edge.program import FAILED, VERSION, OutputClosed, is_screen, main_of, put, time_stamp
from edge.summary import box_summary, own_frame
from edge.terminal import Inputs, Screen
from edge.text import MAX_SENTENCE, visible
from edge.trust import Metadata, Trust, trust_of

FIRST_SAMPLE_SECONDS = 2.0
LOG_LINES = 500
OWN_ID_TRIES = 4  # before another id is drawn: its holder may be this box's past, which the server takes for alive for some seconds


# ---- State: what the threads share ----


class NodeState:
    """What the threads share, under one lock held briefly: values are swapped whole, and a published message is never changed."""

    def __init__(
        self, node_id: str, server: str, info: pb.NodeInfo, interval_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self.events = EventLog(LOG_LINES)
        self.interval_seconds = interval_seconds
        self.started_at = clock()
        self.failure = ""  # what ends the program with exit code 1
        self.on_change: Callable[[], None] = lambda: None
        self._changed = threading.Condition(threading.Lock())
        self._version = 0
        self._node_id = node_id
        self._server, self._place = server, ""
        self._info = info
        self._sample, self._summary = pb.Sample(), pb.Summary()
        self._sample_at = self.started_at
        self._processes = pb.ProcessList()
        self._history = b""
        self._link = Link()
        self._unacknowledged: collections.deque[pb.Sample] = collections.deque(maxlen=protocol.BACKLOG_SAMPLES)
        self._closed = False
        self._told: set[str] = set()  # notices

    def tell(self, notices: Sequence[str]) -> None:
        """Log why something is not reported, each reason once."""
        for notice in notices:
            if notice not in self._told and len(self._told) < LOG_LINES:
                self._told.add(notice)
                self.log(notice, "warning")

    def publish(self, sample: pb.Sample, info: pb.NodeInfo | None = None, joules: int | None = None) -> None:
        """A new sample: into the history, and to the server with the next heartbeat; so what the box is, where that has changed.
        `joules`: what all devices have used."""
        summary = box_summary(info or self._info, sample)
        if joules is not None:
            summary.energy_joules = joules
        with self._changed:
            if info and info != self._info:
                if len(info.devices) != len(self._info.devices):
                    self._history = b""  # its frames are of another width
                self._info = info
            self._sample, self._summary, self._sample_at = sample, summary, self.clock()
            self._history = history.extend(self._history, own_frame(self._info, sample, summary))
            self._unacknowledged.append(sample)
            self._touch()

    def publish_processes(self, processes: pb.ProcessList) -> None:
        """What runs on the devices now."""
        with self._changed:
            if processes != self._processes:
                self._processes = processes
                self._touch()

    def rename(self, node_id: str) -> None:
        """The node has another id from the next session on."""
        with self._changed:
            self._node_id = node_id
            self._touch()

    def turn_to(self, server: str, place: str) -> None:
        """The next session is with this server; `place` says which of several it is."""
        with self._changed:
            self._server, self._place = server, place
            self._touch()

    def update_link(self, **changes: Any) -> None:
        """Fields of the Link that are new."""
        with self._changed:
            self._link = self._link._replace(**changes)
            self._touch()

    def log(self, text: str, level: str = "info") -> None:
        """A line of the log; `level` is a key of LOG_STYLES. The text may come from outside."""
        self.events.add(level, visible(text, 2 * MAX_SENTENCE))  # what a server says, and what to do about it
        with self._changed:
            self._touch()

    def acknowledge(self, sequence: int) -> None:
        """Forget the samples that are safe with the server."""
        with self._changed:
            while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
                self._unacknowledged.popleft()

    def fail(self, text: str) -> None:
        """End the program with this error."""
        self.log(text, "error")
        self.failure = text
        self.close()

    def close(self) -> None:
        """End the program: all that wait go on, and the threads end."""
        with self._changed:
            self._closed = True
            self._touch()

    def is_closed(self) -> bool:
        """Whether the program is ending."""
        with self._changed:
            return self._closed

    def unacknowledged(self) -> list[pb.Sample]:
        """The samples that no server has acknowledged, oldest first."""
        with self._changed:
            return list(self._unacknowledged)

    def wait(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait until `condition` holds (it is asked at each change, under the lock), the node is closed, or `seconds` are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or condition(), max(seconds, 0))

    def notify(self) -> None:
        """Have the waiting ask their condition again."""
        with self._changed:
            self._changed.notify_all()

    def newest_sequence(self) -> int:
        """For conditions: does not take the lock."""
        return self._sample.sequence

    def version(self) -> int:
        """Another number after each change."""
        with self._changed:
            return self._version

    def is_waiting(self) -> bool:
        """Whether a countdown to the next try is on."""
        with self._changed:
            return self._link.phase == "waiting"

    def view(self) -> View:
        """All of it, for a frame or a message."""
        with self._changed:
            return View(
                node_id=self._node_id,
                server=self._server,
                place=self._place,
                info=self._info,
                sample=self._sample,
                summary=self._summary,
                sample_age_seconds=self.clock() - self._sample_at,
                interval_seconds=self.interval_seconds,
                processes=self._processes.processes,
                history=self._history,
                link=self._link,
                log=self.events.newest(LOG_LINES),
            )

    def _touch(self) -> None:
        self._version += 1
        self._changed.notify_all()
        self.on_change()


# ---- Telemetry thread ----


def make_info(
    machine: Machine, instance_id: str, interval_seconds: float = 1.0, labels: Mapping[str, str] = MappingProxyType({})
) -> pb.NodeInfo:
    """What the box is, and this start of the agent."""
    milliseconds = round(interval_seconds * 1000)
    info = pb.NodeInfo(agent_version=VERSION, instance_id=instance_id, sampling_interval_milliseconds=milliseconds, labels=labels)
    info.started_at.GetCurrentTime()
    return machine.described(info, machine.notices())


def take_sample(machine: Machine, sequence: int, started_at: float, clock: Callable[[], float]) -> pb.Sample:
    """One reading of everything."""
    taken = clock()
    host, devices = machine.sample()
    return pb.Sample(sequence=sequence, taken_milliseconds=round((taken - started_at) * 1000), host=host, devices=devices)


def keep_sampling(machine: Machine, state: NodeState, interval_seconds: float) -> None:
    """Body of the telemetry thread: a sample each interval, whatever the link does. A reading that takes longer skips beats."""
    due = slow_due = state.clock()
    info, notices, errors = state.view().info, list[str](), list[str]()
    sequence, energy = 0, Energy()
    while not state.is_closed():
        sequence += 1
        sample = take_sample(machine, sequence, state.started_at, state.clock)
        is_slow, found = state.clock() >= slow_due, machine.notices()
        state.tell(found)
        notices = found if is_slow else list(dict.fromkeys([*notices, *found]))  # told at once, taken back with the slow readings
        info = machine.described(info, notices)
        state.publish(sample, info, energy.add(sample.taken_milliseconds / 1000, sample.devices, machine.energies()))
        if is_slow:
            state.publish_processes(pb.ProcessList(processes=machine.processes()))
            slow_due = state.clock() + SLOW_READING_SECONDS
        errors_now = [device.error for device in sample.devices]
        for index, error in enumerate(errors_now):
            before = errors[index] if index < len(errors) else ""
            if bool(error) != bool(before):
                state.log(f"GPU {index}: {error or 'answers again'}", "error" if error else "info")
        errors = errors_now
        due = max(due + interval_seconds, state.clock())
        state.wait(lambda: False, due - state.clock())


# ---- Heartbeat thread ----


class Session:
    """One round of heartbeats over one channel. Any failure ends it whole.

    Two threads: the heartbeat thread runs it, and owns what is sent (_first, _unary, _sent_…, the writing end of _outbox). The
    acknowledgements' thread (the same one, where calls are unary) owns what is heard (acknowledged, _interval_seconds, _heard_at)
    and how the stream ended (_ended, then _over). Each only reads what the other owns, values that are swapped whole; what both
    change is in RoundTrips, under its lock. Of the session, look_back() in a third thread sets `better` alone.
    """

    def __init__(
        self, state: NodeState, identity: Identity, trust: Trust, server: str, interval_seconds: float, spread_seconds: float = 0.0
    ) -> None:
        self.acknowledged = False
        self.spread_seconds = spread_seconds  # of the fleet's return, when the server is gone
        self.is_over = False
        self.better = ""  # a server that the node leaves this one for
        self._state = state
        self._identity = identity
        self._trust = trust
        self._server = server
        self._metadata: Metadata = ()  # of each call
        self._interval_seconds = interval_seconds  # until the server assigns one
        self._outbox: queue.SimpleQueue[pb.HeartbeatRequest | None] = queue.SimpleQueue()
        self._first = True
        self._unary = False
        self._number = state.view().link.sessions + 1  # of this instance's sessions
        self._sent_info: pb.NodeInfo | None = None
        self._sent_processes: Sequence[pb.Process] = ()
        self._sent_sequence = 0
        self._round_trips = RoundTrips()
        self._heard_at = state.clock()
        self._ended: SessionEnded | None = None
        self._over = False

    def run(self) -> None:
        """Send heartbeats until the node leaves, then say goodbye. Raises SessionEnded when it ends otherwise."""
        try:
            with self._trust.channel(self._server) as (channel, self._metadata):
                self._talk(node_pb2_grpc.NodeServiceStub(channel))
        finally:
            self.is_over = True
            self._state.notify()

    def _talk(self, stub: node_pb2_grpc.NodeServiceStub) -> None:
        try:
            self._stream(stub)
        except SessionEnded as ended:
            if ended.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._state.log(f"{self._server} has only the unary call: heartbeats go one by one", "warning")
            self._state.update_link(unary=True)
            self._one_by_one(stub)

    def leave_for(self, better: str) -> None:
        """End the session with a goodbye. From any thread."""
        self.better = better
        self._state.notify()

    def _is_leaving(self) -> bool:
        return bool(self.better) or self._state.is_closed()

    def _stream(self, stub: node_pb2_grpc.NodeServiceStub) -> None:
        call = stub.StreamHeartbeats(iter(self._outbox.get, None), metadata=self._metadata)
        reader = threading.Thread(target=self._read, args=(call,), name="acknowledgements", daemon=True)
        reader.start()
        try:
            while not self._over and not self._is_leaving():
                self._outbox.put(self._heartbeat())
                self._wait_for_beat(lambda: self._over or self.better)
                self._check_silence()
            if self.acknowledged and not self._over:
                self._outbox.put(pb.HeartbeatRequest(leaving=True))
                self._outbox.put(None)
                reader.join(protocol.GOODBYE_SECONDS)
            ended_by_server = self._over
        finally:
            self._outbox.put(None)  # ends gRPC's thread that reads the outbox
            call.cancel()
            reader.join(protocol.GOODBYE_SECONDS)
        if self._ended:
            raise self._ended
        if not self._is_leaving():
            raise SessionEnded(f"{self._server} ended the session")
        if self.acknowledged:
            self._state.log("goodbye acknowledged" if ended_by_server else f"{self._server} did not acknowledge the goodbye")

    def _read(self, call: Any) -> None:
        try:
            for response in call:
                self._hear(response, response.acknowledged_sequence)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self._ended = self._trust.explain(error, self._server)
        finally:
            self._over = True
            self._state.notify()

    def _one_by_one(self, stub: node_pb2_grpc.NodeServiceStub) -> None:
        """The first version's way: a call for each heartbeat."""
        self._first = self._unary = True
        self._sent_processes, self._sent_sequence = (), 0
        leaving = False
        while not leaving:
            leaving = self._is_leaving()
            request = self._heartbeat()
            request.leaving = leaving
            request.gpu_temp = self._state.view().summary.temperature_celsius
            try:
                timeout = protocol.GOODBYE_SECONDS if leaving else protocol.FIRST_ANSWER_SECONDS
                response = stub.Heartbeat(request, timeout=timeout, metadata=self._metadata)
            except grpc.RpcError as error:
                raise self._trust.explain(error, self._server) from error
            self._hear(response, self._sent_sequence)
            if not leaving:
                self._wait_for_beat(lambda: self.better)
        self._state.log("goodbye acknowledged")

    def _heartbeat(self) -> pb.HeartbeatRequest:
        """The next message: what the box is, and the backlog, with the first one; then what is new."""
        view = self._state.view()
        request = pb.HeartbeatRequest(clock_milliseconds=round((self._state.clock() - self._state.started_at) * 1000))
        if self._first:
            request.backlog.extend(newest_within(self._state.unacknowledged()[:-1], protocol.MAX_MESSAGE_BYTES // 2))
        if self._first or view.info is not self._sent_info:
            request.info.CopyFrom(view.info)
            request.info.box_id, request.info.id_is_drawn = self._identity.box_id, not self._identity.given
            request.info.session_number = self._number
            request.info.last_error = view.link.last_error[: protocol.MAX_TEXT]
            self._sent_info = view.info
        if self._first or self._unary:
            request.node_id = view.node_id
        if view.processes is not self._sent_processes:
            request.processes.processes.extend(view.processes)
            self._sent_processes = view.processes
        if view.sample.sequence > self._sent_sequence:
            request.sample.CopyFrom(view.sample)
            request.summary.CopyFrom(view.summary)
            self._sent_sequence = view.sample.sequence
            self._round_trips.sent(view.sample.sequence, self._state.clock())
        request.round_trip_microseconds = self._round_trips.take_microseconds()
        self._first = False
        return request

    def _wait_for_beat(self, over: Callable[[], object]) -> None:
        """Until the interval has passed, as it is then: the first answer may shorten it. A new sample may bring the beat a tenth
        forward or back, so that it goes out fresh."""
        began, interval = self._state.clock(), 0.0
        while interval != self._interval_seconds and not over():
            interval = self._interval_seconds
            left = began + 0.9 * interval - self._state.clock()
            self._state.wait(lambda: over() or interval != self._interval_seconds, left)  # noqa: B023  # it is asked in this wait
        self._state.wait(lambda: over() or self._state.newest_sequence() > self._sent_sequence, interval / 5)

    def _check_silence(self) -> None:
        most = protocol.first_answer_seconds(self.spread_seconds)
        if self.acknowledged:
            most = protocol.silent_after_seconds(self._interval_seconds)
        silence = self._state.clock() - self._heard_at
        if not self._over and silence > most:
            raise SessionEnded(f"{self._server} has been silent for {silence:.0f} s: the connection is half-open")

    def _hear(self, response: pb.HeartbeatResponse, sequence: int) -> None:
        now = self._state.clock()
        self._heard_at = now
        self._state.acknowledge(sequence)
        round_trip_seconds = self._round_trips.heard(sequence, now)
        if response.heartbeat_interval_milliseconds:
            assigned = max(response.heartbeat_interval_milliseconds / 1000, protocol.MIN_INTERVAL_SECONDS)
            assigned = min(assigned, protocol.MAX_UNARY_INTERVAL_SECONDS if self._unary else protocol.MAX_INTERVAL_SECONDS)
            if self.acknowledged and assigned != self._interval_seconds:
                self._state.log(f"{self._server} asks for a heartbeat every {assigned:g} s")
            self._interval_seconds = assigned
        self.spread_seconds = min(response.reconnect_spread_milliseconds / 1000, MAX_BACKOFF_SECONDS)
        changes: dict[str, Any] = {"interval_seconds": self._interval_seconds}
        if round_trip_seconds is not None:
            changes["round_trip_seconds"] = round_trip_seconds
        if not self.acknowledged:
            self.acknowledged = True
            changes |= {"phase": "connected", "reason": "", "sessions": self._state.view().link.sessions + 1}
            self._state.log(f"connected to {self._server}, a heartbeat every {self._interval_seconds:g} s")
            self._trust.accepted(self._server, self._state.log)
            self._identity.accepted()
            if reason := self._identity.may_change:
                self._state.log(f"after a restart this node may have another id: this one can't be kept ({reason})", "warning")
        self._state.update_link(**changes)


def newest_within(samples: Sequence[pb.Sample], most_bytes: int) -> Sequence[pb.Sample]:
    """The last of them, as many as take no more room: a box of 128 devices has more to tell than a message may hold."""
    for index in range(len(samples) - 1, -1, -1):
        most_bytes -= samples[index].ByteSize() + 8  # and what a message says of each part: its tag and its length
        if most_bytes < 0:
            return samples[index + 1 :]
    return samples


def look_back(state: NodeState, trust: Trust, session: Session, turns: Turns) -> None:
    """Body of a thread beside a session with a later server: has it end where an earlier one is there again."""

    def wait(condition: Callable[[], object], seconds: float) -> None:
        state.wait(lambda: session.is_over or condition(), seconds)

    wait(lambda: session.acknowledged, threading.TIMEOUT_MAX)
    for seconds in turns.looks():
        wait(lambda: False, seconds)
        if session.is_over or state.is_closed():
            return
        for server in turns.earlier():
            if is_there(server, trust, wait, state.notify, turns.pace.answer_seconds):
                session.leave_for(server)
                return


def keep_connected(
    state: NodeState,
    identity: Identity,
    trust: Trust,
    servers: Sequence[str],
    interval_seconds: float,
    new_delays: Callable[[], Iterator[float]] = backoff,
    pace: Pace = PACE,
) -> None:
    """Body of the heartbeat thread: one session after the other, until the node is closed. One that fails is followed by backoff,
    and the next server's turn; one that is left for an earlier server, by that at once."""
    turns, delays, taken, distrusted, spread_seconds = Turns(servers, state.clock, pace), new_delays(), 0, 0, 0.0
    state.wait(state.newest_sequence, FIRST_SAMPLE_SECONDS)  # a box appears with its readings, and without them if they hang
    while not state.is_closed():
        session = Session(state, identity, trust, turns.server, interval_seconds, spread_seconds)
        ended = end_of(session, state, trust, turns)
        if session.acknowledged:
            delays = new_delays()
        spread_seconds = session.spread_seconds
        if session.better:
            reason = f"left {turns.server} for {session.better}, which is there again"
            state.log(reason)
            state.update_link(last_error=reason, round_trip_seconds=None)
            turns.back_to(session.better)
            continue
        if not ended or trust.tries_another(turns.server, ended):
            continue
        reason = str(ended)
        taken = taken + 1 if ended.code is grpc.StatusCode.ALREADY_EXISTS else 0
        distrusted = distrusted + 1 if isinstance(ended, Distrust) else 0
        if taken and identity.given and not identity.is_own:
            state.fail(f"{reason}: stop the other one, or give this one another --id")
            return
        if taken and not identity.given and not trust.shows_certificate and taken > (OWN_ID_TRIES if identity.is_own else 0):
            state.rename(identity.redraw())
            reason += f": this node is {identity.node_id} now"
        elif not taken or taken > OWN_ID_TRIES:
            turns.failed(ended.code, session.acknowledged)
        delay = trust.retry_seconds() if distrusted >= len(servers) else next(delays)
        if ended.is_gone or not session.acknowledged:  # not by this node's own bad luck
            delay = max(delay, random.uniform(0, spread_seconds))
        if not state.is_closed():
            state.turn_to(turns.server, turns.place)
            state.log(f"{reason}; next try in {delay:.1f} s{f', at {turns.server}' if turns.place else ''}", "warning")
            state.update_link(
                phase="waiting", reason=reason, last_error=reason, retry_at=state.clock() + delay, round_trip_seconds=None
            )
            state.wait(lambda: False, delay)


def end_of(session: Session, state: NodeState, trust: Trust, turns: Turns) -> SessionEnded | None:
    """Run a session with the server whose turn it is, and beside it the look for an earlier one, which is over when this returns.
    Returns why it failed; None: it was left, or the node is closed."""
    state.turn_to(turns.server, turns.place)
    state.update_link(phase="connecting", unary=False)
    looking = guarded(state, False, look_back, state, trust, session, turns) if turns.has_earlier else None
    try:
        session.run()
    except SessionEnded as error:
        return error
    finally:
        if looking:
            looking.join()  # it ends with the session, so that it never tries the tokens of the next one's server
    return None


# ---- The program ----


def show_screen(state: NodeState, inputs: Inputs, no_color: bool, frames_per_second: float) -> None:
    """The main thread with a terminal: a frame is drawn only when something changed."""
    with Screen(inputs, no_color) as screen:
        drawn, due, scroll = None, 0.0, 0
        while not inputs.received and not state.is_closed():
            now = state.clock()
            tenths = 10 if state.is_waiting() else 1  # the countdown shows tenths, the clock seconds
            current = (state.version(), screen.size(), int(now * tenths), scroll)
            if current != drawn and now >= due:
                screen.draw(render(state.view(), *screen.size(), time.time(), now, scroll))
                drawn, due = current, max(due + 1 / frames_per_second, now)
            for key in screen.keys((due if current != drawn else (current[2] + 1) / tenths) - state.clock()):
                if key == "q":
                    return
                view, (width, height) = state.view(), screen.size()
                scroll = scrolled(scroll, key, reach_of(subject_of(view), width, panels_room(view, width, height)))


def print_events(events: Sequence[Event], as_json: bool) -> None:
    """Print lines of the log."""
    for event in events:
        if as_json:
            put(json.dumps({"time": round(event.time, 3), "event": event.kind, "text": event.text}))
        else:
            put(f"{time_stamp(event.time)} {event.text}")


def run_headless(state: NodeState, events: Follower, inputs: Inputs, as_json: bool) -> None:
    """The main thread without a terminal: a line an event, with --json also one a sample."""
    sequence = 0
    while not inputs.received and not state.is_closed():
        print_events(events.new()[1], as_json)
        if as_json and state.newest_sequence() != sequence:
            view = state.view()
            sequence = view.sample.sequence
            put(reading_json(view.node_id, view.info, view.sample))
        inputs.wait(1)


def print_once(machine: Machine, node_id: str, labels: Mapping[str, str], as_json: bool) -> None:
    """--once: two readings, since the processor's load and the network's rates are means between two."""
    started_at = time.monotonic()
    take_sample(machine, 1, started_at, time.monotonic)
    time.sleep(0.5)
    sample, processes = take_sample(machine, 2, started_at, time.monotonic), machine.processes()
    info = make_info(machine, os.urandom(8).hex(), labels=labels)  # with the notices of what could not be read
    put(reading_json(node_id, info, sample) if as_json else reading_text(node_id, Subject(info, sample, processes, b"")))


def guarded(state: NodeState, debug: bool, body: Callable[..., None], *arguments: Any) -> threading.Thread:
    """A started daemon thread whose death ends the program with its reason, not in silence."""

    def run() -> None:
        try:
            body(*arguments)
        except Exception as error:
            detail = traceback.format_exc() if debug else "run with --debug for more, and please report it"
            state.fail(limits.reached(error) or f"{body.__name__} failed: {type(error).__name__}: {error}; {detail}")

    thread = threading.Thread(target=run, name=body.__name__, daemon=True)
    thread.start()
    return thread


def run(options: argparse.Namespace, find_machine: Callable[[str, int, frozenset[str]], Machine] = open_machine) -> int:
    """The program after its command line. Raises Failure; OutputClosed where --once can't be printed."""
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    machine = find_machine(options.hardware, seed, options.faults)
    is_real = options.hardware != "simulated"
    with contextlib.closing(Identity(options.id, machine_text() if is_real else simulated_text(seed), keeps=is_real)) as identity:
        if options.once:
            print_once(machine, identity.node_id, options.labels, options.json)
            return 0
        return report(options, machine, identity)


def report(options: argparse.Namespace, machine: Machine, identity: Identity) -> int:
    """The program from its first reading to its last words. Raises Failure."""
    servers = list(dict.fromkeys(str(endpoint) for endpoint in options.server))
    trust = trust_of(options)
    if not options.headless and sys.stdin.isatty() and sys.stdout.isatty():
        trust.ask(servers)
    info = make_info(machine, os.urandom(8).hex(), options.interval, options.labels)
    state = NodeState(identity.node_id, servers[0], info, options.interval)
    state.log(f"this is {identity.node_id}, for the server at {', then '.join(servers)}")
    state.tell(machine.notices())
    new_delays = functools.partial(backoff, most_seconds=MAX_BACKOFF_SECONDS / len(servers))  # each is tried as often as one alone
    screen, events = is_screen() and not options.headless, state.events.follow()
    with Inputs(keyboard=screen) as inputs:
        state.on_change = inputs.wake
        threads = [
            guarded(state, options.debug, keep_sampling, machine, state, options.interval),
            guarded(state, options.debug, keep_connected, state, identity, trust, servers, options.interval, new_delays),
        ]
        try:
            if screen:
                show_screen(state, inputs, options.no_color, options.fps)
            else:
                run_headless(state, events, inputs, options.json)
        except OutputClosed as closed:
            inputs.take(closed)
        finally:
            state.close()
            for thread in threads:
                thread.join(protocol.GOODBYE_SECONDS + 0.5)
        try:
            print_events(state.events.newest(1) if screen else events.new()[1], options.json and not screen)  # the last words
        except OutputClosed as closed:
            inputs.take(closed)
    return FAILED if state.failure else inputs.exit_code()


def main(argv: Sequence[str] | None = None, find_machine: Callable[[str, int, frozenset[str]], Machine] = open_machine) -> int:
    """Run the agent; return its exit code: 0, 1 for a failure, 2 for the command line, 128 + the signal that ended it."""
    return main_of("node", parse_options, functools.partial(run, find_machine=find_machine), argv)


if __name__ == "__main__":
    sys.exit(main())
