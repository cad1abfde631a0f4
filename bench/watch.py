"""The section watch: what those cost who look at the fleet, and that one who stalls costs nothing more."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

import node_pb2 as pb
from bench.figures import WINDOW_SECONDS, Figure, say
from bench.generator import Load, Plan
from bench.processes import Program, free_port, headless
from bench.scale import Cost, measure, measure_fleet
from edge.protocol import MAX_UPDATE_BYTES

STALL_SECONDS = 60.0
SETTLE_SECONDS = 3.0  # until all have the whole fleet


class Looker:
    """One who looks at the fleet, and counts what comes."""

    def __init__(self) -> None:
        self.bytes = self.whole_bytes = 0
        self.started, self.whole_at = time.monotonic(), 0.0

    def wait_until_whole(self, seconds: float = 60) -> None:
        """Until it knows the fleet, and what changes."""
        give_up_at = time.monotonic() + seconds
        while not self.whole_at and time.monotonic() < give_up_at:
            time.sleep(0.05)


class Watcher(Looker):
    """A viewer that counts what comes, and may stop to read."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.versions = 0
        self.reads = threading.Event()
        self.reads.set()
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.http2.bdp_probe", 0),  # else gRPC itself reads megabytes ahead, and no server is held up
            ("grpc.max_receive_message_length", MAX_UPDATE_BYTES),
        )
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        call: Any = self._channel.stream_stream("/node.NodeService/Watch", pb.WatchRequest.SerializeToString)
        self._call = call(iter([pb.WatchRequest(clock_milliseconds=1)]))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for raw in self._call:
                self.reads.wait()
                self.bytes += len(raw)
                if not self.whole_at and pb.WatchUpdate.FromString(raw).beats.number_steps:
                    self.whole_at, self.whole_bytes = time.monotonic(), self.bytes
                self.versions += 1

    def close(self) -> None:
        self.reads.set()
        self._call.cancel()
        self._thread.join(5)
        self._channel.close()


def watch(options: argparse.Namespace) -> Iterator[Figure]:
    """Viewers of the whole fleet, 8 GPUs a node at 1 Hz: what each costs the server, and one that reads nothing for a minute."""
    port, nodes, watchers = free_port(), options.nodes, list[Watcher]()
    costs: dict[int, Cost] = {}
    say(f"watch: {nodes:,} nodes, no journal, and nobody looks")
    alone, lost_alone = measure_fleet(nodes, 8, lambda port: headless(port, "--no-journal"))
    yield Figure("watch", "no journal, no viewer: a heartbeat", alone.microseconds, "µs", note=alone.sent.warning())
    with Program(*headless(port)) as program:
        program.wait_until_listening(port)
        with Load(Plan(port, nodes, reconnect=True)) as load:
            lost = lost_alone + sum(report.lost() for report in load.connect())
            for count in dict.fromkeys((0, 1, options.viewers)):
                while len(watchers) < count:
                    watchers.append(Watcher(port))
                    watchers[-1].wait_until_whole()
                say(f"watch: {nodes:,} nodes, {count} viewers")
                time.sleep(SETTLE_SECONDS)
                before, load_before = sum(one.bytes for one in watchers), load.report()
                costs[count] = measure(program, load)
                lost += costs[count].sent.lost() + load_before.lost()
                came = sum(one.bytes for one in watchers) - before
                yield Figure(
                    "watch", f"{count} viewers: a heartbeat", costs[count].microseconds, "µs", note=costs[count].sent.warning()
                )
                if count:
                    yield Figure("watch", f"{count} viewers: to each", came / count / WINDOW_SECONDS / 1000, "kB/s", 250)
            none, one, all_of_them = costs[0], costs[1], costs[options.viewers]
            yield Figure("watch", "a heartbeat with one viewer, of that with none", one.microseconds / none.microseconds, "x")
            yield Figure("watch", "and with a journal, of that with neither", one.microseconds / alone.microseconds, "x", 1.3)
            each = max(all_of_them.cpu_percent - none.cpu_percent, 0.0) / options.viewers
            yield Figure("watch", "a viewer: processor", each, "% of a core", 2)
            first = watchers[0]
            took = first.whole_at - first.started
            yield Figure("watch", "the whole fleet", took, "s", note=f"{first.whole_bytes / 1e6:.1f} MB")
            yield from stall(program, watchers)
            for watcher in watchers:
                watcher.close()
            yield Figure("watch", "lost or refused", lost + load.leave().lost(), "", 0)


def stall(program: Program, watchers: list[Watcher]) -> Iterator[Figure]:
    """The first viewer reads nothing for a minute, and then goes on."""
    say(f"watch: a viewer that reads nothing for {STALL_SECONDS:g} s")
    stalled, before, most = watchers[0], program.megabytes(), 0.0
    stalled.reads.clear()
    end = time.monotonic() + STALL_SECONDS
    while time.monotonic() < end:
        most = max(most, program.megabytes())
        time.sleep(1)
    seen, came = stalled.versions, stalled.bytes
    stalled.reads.set()
    time.sleep(SETTLE_SECONDS)
    yield Figure("watch", "a stalled viewer: memory", max(most, program.megabytes()) - before, "MB RSS", 20)
    note = f"{stalled.versions - seen} messages, {(stalled.bytes - came) / 1e6:.1f} MB"
    yield Figure("watch", "a stalled viewer: goes on", float(stalled.versions > seen), "", at_least=1, note=note)
