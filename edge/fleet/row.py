"""A node as the server knows it: its row, its session, and what the time makes of them. Rows are never changed, only replaced."""

from __future__ import annotations

import contextlib
import enum
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc
from google.protobuf.message import DecodeError

import node_pb2 as pb
from edge import history
from edge.fleet.checks import check_processes, check_sample
from edge.protocol import hangs_after_seconds, late_after_seconds, lost_after_seconds
from edge.text import show_seconds

DEVICE_BYTES, LABEL_BYTES = 100, 250  # that the capacities of a device take, and a label


class State(enum.Enum):
    """What a node is. In this order they stand in the header."""

    ONLINE = "ONLINE"
    LATE = "LATE"
    DISCONNECTED = "DISCONNECTED"
    UNHEARD = "UNHEARD"
    LOST = "LOST"
    LEFT = "LEFT"


class Vitals(NamedTuple):
    """What matters most of a node's devices; of its host where it has no device. None is "not reported"."""

    utilization: float | None = None  # mean of the devices, 0 to 1
    memory: float | None = None  # of the fullest device, 0 to 1
    memory_used_bytes: int = 0  # of all devices that report it
    memory_total_bytes: int = 0
    celsius: float | None = None  # of the hottest device
    limit_celsius: int | None = None  # that device's slowdown temperature
    milliwatts: int | None = None  # of all devices that report it
    errors: int = 0  # devices that are not read
    frame: bytes = b""  # what this sample adds to the history
    devices: int = 0  # in all; 0: the host stands for the node
    with_utilization: int = 0  # those that the mean is of; 1 of a host
    with_memory: int = 0  # those whose memory is added up; 1 of a host
    with_power: int = 0
    hottest: int = 0  # its place among the devices
    cpu_percent: int | None = None  # of the host
    energy_joules: int | None = None  # of all devices since the agent started


class Capacities(NamedTuple):
    """What readings are measured against: of a NodeInfo what each heartbeat needs, apart, since messages are slow to read."""

    host_memory_bytes: int = 0
    devices: tuple[tuple[int, int], ...] = ()  # memory in bytes, slowdown temperature in °C; 0 is not known
    sampling_seconds: float = 0  # from one sample to the next, as the box's owner set it; 0 is not known

    @property
    def frame_bytes(self) -> int:
        """Of a frame of the history of such a node."""
        return len(history.COLUMNS) * (1 + len(self.devices))


class End(NamedTuple):
    """Why the server ends a session, or refuses to begin one: what the node is told."""

    reason: str  # what the node's owner should know
    code: grpc.StatusCode


GOING_AWAY = End("the server is going away: come back soon", grpc.StatusCode.UNAVAILABLE)


class Refused(Exception):
    """A heartbeat that is not taken."""

    def __init__(self, reason: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT, told_here: str = "") -> None:
        super().__init__(reason)
        self.end = End(reason, code)
        self.told_here = told_here or reason  # what the server's own log says of it


class Session:
    """One stream of one instance of a node; or, for unary heartbeats, what stands for it."""

    __slots__ = ("address", "close", "ended_for", "instance_id", "next_acknowledgement_at", "node_id", "sequence")

    def __init__(self, request: pb.HeartbeatRequest, address: str, close: Callable[[End], object] | None) -> None:
        self.node_id = request.node_id
        self.instance_id = request.info.instance_id
        self.address = address
        self.close = close  # ends the stream for a reason, from any thread; None: unary heartbeats, which have no stream
        self.ended_for: End | None = None  # why the server has ended it
        self.sequence = max((sample.sequence for sample in request.backlog), default=0)  # the newest sample that came
        self.next_acknowledgement_at = 0.0

    def is_the_same_as(self, newcomer: Session) -> bool:
        """Whether a newcomer is the same node again: one instance. The first version's nodes and scripts do not say which they
        are: the kind of call and the address must do."""
        if self.instance_id != newcomer.instance_id:
            return False
        is_one_kind = (self.close is None) == (newcomer.close is None)
        return bool(self.instance_id) or (is_one_kind and self.address == newcomer.address)

    def takes_unary(self, instance_id: str, address: str) -> bool:
        """Whether one more unary heartbeat is this session's. Only its first one need say which instance sends it."""
        if instance_id:
            return instance_id == self.instance_id
        return address == self.address

    def finish(self, end: End) -> None:
        """The server ends it: the stream gets this answer, and so does what still comes of the session."""
        self.ended_for = end
        if self.close:
            self.close(end)


class Row(NamedTuple):
    """A node as the registry knows it. Never changed: each heartbeat puts a new row in the place of the old one.

    The node's messages are kept serialized: parsed, they take seven times the memory, and only the rows on the screen are read.
    """

    node_id: str
    address: str
    session: Session | None  # None: its stream is broken, or it said goodbye
    interval_seconds: float  # the cadence that this node was told
    packed_info: bytes = b""
    packed_processes: bytes = b""
    capacities: Capacities = Capacities()  # of info
    left: bool = False
    reason: str = ""  # why it has no session
    token_id: str = ""  # of the token that let its last session in; empty: none was needed
    labels: tuple[tuple[str, str], ...] = ()  # of info, by name
    version: tuple[int, ...] = ()  # of its agent, by numbers; () is not known
    extremes: bytes = b""  # since when its readings have not been above or below a value
    server: str = ""  # where it is known, if elsewhere than here
    known_until: float = math.inf  # when that server was last heard, where it is not heard any more
    awaited_until: float = 0.0  # it was here before this server's restart, and may be back by then
    # From here on: what changes with each heartbeat.
    round_trip_seconds: float | None = None  # as the node measured it
    packed_sample: bytes = b""  # as it came: it is checked when it is read
    vitals: Vitals = Vitals()
    history: bytes = b""  # the frames of the last samples
    sample_at: float | None = None  # by the registry's clock, as is heartbeat_at; None: it has sent none
    heartbeat_at: float = 0.0

    def beat(
        self, trip: float | None, packed_sample: bytes, vitals: Vitals, history: bytes, sample_at: float | None, now: float
    ) -> Row:
        """The row after one more heartbeat: _replace, in a fifth of its time."""
        return Row._make((*self[:-6], trip, packed_sample, vitals, history, sample_at, now))

    def kept_bytes(self) -> int:
        """What it takes here, by what the node has chosen to send."""
        return (
            len(self.packed_info) + len(self.packed_sample) + len(self.packed_processes) + len(self.history)
            + DEVICE_BYTES * len(self.capacities.devices) + LABEL_BYTES * len(self.labels)
        )  # fmt: skip

    @property
    def info(self) -> pb.NodeInfo:
        """Parsed at each call."""
        return pb.NodeInfo.FromString(self.packed_info)

    @property
    def sample(self) -> pb.Sample:
        """Parsed and checked at each call; what can't be is as if nothing had been reported."""
        with contextlib.suppress(DecodeError, ValueError):
            sample = pb.Sample.FromString(self.packed_sample)
            check_sample(sample)
            return sample
        return pb.Sample()

    @property
    def processes(self) -> Sequence[pb.Process]:
        """The same."""
        with contextlib.suppress(DecodeError, ValueError):
            processes = pb.ProcessList.FromString(self.packed_processes)
            check_processes(processes)
            return processes.processes
        return ()


def state_of(row: Row, now: float) -> State:
    """ONLINE; LATE and LOST by the age of the last heartbeat; DISCONNECTED between a broken stream and LOST; LEFT. Where its server
    is not heard any more: UNHEARD, but for a node that was lost or left by then."""
    if now > row.known_until:
        state = state_of(row, row.known_until)
        return state if state in (State.LOST, State.LEFT) else State.UNHEARD
    if row.left:
        return State.LEFT
    if row.session is None and now < row.awaited_until:
        return State.DISCONNECTED
    age = now - row.heartbeat_at
    if age > lost_after_seconds(row.interval_seconds):
        return State.LOST
    if row.session is None:
        return State.DISCONNECTED
    return State.LATE if age > late_after_seconds(row.interval_seconds) else State.ONLINE


def hanging_seconds(row: Row, now: float) -> float | None:
    """Age of the newest sample where heartbeats come and readings do not: the sensors hang. None: they do not."""
    if row.sample_at is None:
        return None
    usual = max(row.interval_seconds, row.capacities.sampling_seconds)
    return now - row.sample_at if row.heartbeat_at - row.sample_at > hangs_after_seconds(usual) else None


def reason_of(row: Row, state: State, now: float) -> str:
    """Why a node is not online, in words; empty when it is. Of a server that is not heard any more, that comes first."""
    unheard = f"its server has not been heard for {show_seconds(now - row.known_until)}" if now > row.known_until else ""
    silent = f"no heartbeat for {show_seconds(now - row.heartbeat_at)}" if state in (State.LATE, State.LOST) else ""
    return "; ".join(filter(None, (unheard, silent, row.reason if state is not State.ONLINE else "")))
