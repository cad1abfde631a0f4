"""The messages of the fleet: serialized once, and patched in what changes with each heartbeat."""

from __future__ import annotations

import time

import node_pb2 as pb
from bench.http2 import DATA_OVERHEAD, data_frame
from edge.hardware.machine import simulated
from edge.hardware.simulated import CATALOGUE
from edge.summary import box_summary
from node import make_info, take_sample

DAY = 86_400  # the nodes are a day old: their counters have the length they will keep
SEEDS = {1: 2, 8: 1}  # of simulated boxes with so many GPUs
BOXES, BEATS = 16, 16  # so many different boxes, and messages of each
STAMP = 2**27  # a heartbeat carries when it was sent, in µs modulo this, in place of a network rate
# A varint of four bytes is LOW of its 14 lower bits and HIGH of the rest; one of three, LOW and a byte. No loop a heartbeat.
LOW = [bytes((value & 127 | 128, value >> 7 | 128)) for value in range(2**14)]
HIGH = [bytes((value & 127 | 128, value >> 7)) for value in range(2**14)]
SEQUENCE_MARK, CLOCK_MARK, STAMP_MARK = 0x1A5A5A, 0xA5A5A5A, 0xB5B5B5B  # replaced in each message; found once


def stamp_microseconds() -> int:
    """Now, by the clock that all processes of this machine share."""
    return time.monotonic_ns() // 1000 % STAMP


class Beat:
    """A heartbeat's bytes on the wire, from the HTTP/2 frame's header on, and where in them lies what changes."""

    __slots__ = ("clock_at", "frame", "sequence_at", "stamp_at", "taken_at")

    def __init__(self, sample: pb.Sample, summary: pb.Summary) -> None:
        request = pb.HeartbeatRequest(sample=sample, summary=summary, clock_milliseconds=CLOCK_MARK)
        request.sample.sequence, request.sample.taken_milliseconds = SEQUENCE_MARK, CLOCK_MARK
        request.sample.host.network_received_bytes_per_second = STAMP_MARK
        self.frame = bytearray(data_frame(request.SerializeToString()))
        self.sequence_at = self._find(LOW[SEQUENCE_MARK & 0x3FFF] + bytes([SEQUENCE_MARK >> 14]))
        self.stamp_at = self._find(LOW[STAMP_MARK & 0x3FFF] + HIGH[STAMP_MARK >> 14])
        clock = LOW[CLOCK_MARK & 0x3FFF] + HIGH[CLOCK_MARK >> 14]
        self.taken_at, self.clock_at = self.frame.index(clock), self.frame.rindex(clock)
        assert self.taken_at < self.clock_at

    def _find(self, mark: bytes) -> int:
        assert self.frame.count(mark) == 1, "a mark must stand once in a message"
        return self.frame.index(mark)

    def patch(self, sequence: int, seconds: float) -> bytearray:
        """The frame of a heartbeat so long after the start: valid until the next call."""
        frame = self.frame
        milliseconds = int(seconds * 1000) + DAY * 1000
        clock = LOW[milliseconds & 0x3FFF] + HIGH[milliseconds >> 14]
        stamp = stamp_microseconds() + STAMP
        sequence += DAY
        frame[self.sequence_at : self.sequence_at + 3] = LOW[sequence & 0x3FFF] + bytes((sequence >> 14,))
        frame[self.taken_at : self.taken_at + 4] = clock
        frame[self.clock_at : self.clock_at + 4] = clock
        frame[self.stamp_at : self.stamp_at + 4] = LOW[stamp & 0x3FFF] + HIGH[stamp >> 14]
        return frame


def course(gpus: int, seed: int) -> list[pb.HeartbeatRequest]:
    """Some seconds in the life of a simulated box with so many GPUs, 1 or 8; the first message has its info."""
    now = 0.0

    def clock() -> float:
        return now

    machine, requests = simulated(SEEDS[gpus] + seed * len(CATALOGUE), clock), []
    info = make_info(machine, "0" * 16)
    for sequence in range(BEATS):
        now = 20.0 * sequence
        request = pb.HeartbeatRequest(sample=take_sample(machine, DAY + sequence, 0, clock))
        request.summary.CopyFrom(box_summary(info, request.sample))
        request.summary.energy_joules = DAY * request.summary.power_milliwatts // 1000
        requests.append(request)
    requests[0].info.CopyFrom(info)
    return requests


class Box:
    """What a kind of node says: its first message, and its heartbeats in turn."""

    def __init__(self, gpus: int, seed: int, backlog: int = 0) -> None:
        requests = course(gpus, seed)
        self._info = requests[0].info
        self.beats = [Beat(request.sample, request.summary) for request in requests]
        self._backlog = pb.HeartbeatRequest(backlog=[request.sample for request in requests[:backlog]]).SerializeToString()

    def opening(self, name: str, instance: str, beat: bytearray) -> bytes:
        """The first message of a session. Parts of a message, one after the other, are the message."""
        info = pb.NodeInfo()
        info.CopyFrom(self._info)
        info.hostname, info.instance_id = name, instance
        request = pb.HeartbeatRequest(node_id=name, info=info)
        return data_frame(request.SerializeToString() + self._backlog + beat[DATA_OVERHEAD:])
