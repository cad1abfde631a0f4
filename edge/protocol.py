"""What both ends of the wire must agree on, beside the messages of node.proto: names, bounds, and timings that fit each other.

A test holds the inequalities between the timings: whoever changes one finds there what else must move.
"""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from edge.text import INVISIBLE, visible

DEFAULT_PORT = 50051
# gRPC's health protocol (doc/health-checking.md): so a node asks, without a token, whether a server is there again.
HEALTH = "/grpc.health.v1.Health/Check"

# ---- Bounds ----

MAX_NODE_ID = 63  # characters
MAX_MESSAGE_BYTES = 2**20  # from a node to the server
MAX_AHEAD_BYTES = 2**14  # of a call that a node may send before the server comes to it
MAX_RESPONSE_BYTES = 2**16  # from the server to a node
MAX_HEADERS_BYTES = 4096  # of a call; a node sends 300, and proxies on the way add some
MAX_DEVICES = 128  # of a box
MAX_PROCESSES = 256  # that a node reports
MAX_TEXT = 256  # characters of any text that a node sends
MAX_LABELS, MAX_LABEL_NAME, MAX_LABEL_VALUE = 16, 32, 64  # of a node; characters of a name, and of a value
MAX_CORES = 24  # bytes of a heartbeat: a host with more processors reports means of groups
BACKLOG_SAMPLES = 300  # that a node keeps while no server acknowledges them
MAX_STREAMS = 128  # of one connection: a node needs one, a proxy may carry many nodes
MAX_VIEWERS, MAX_VIEWERS_ELSEWHERE = 16, 14  # that look at the fleet at once: in all, and not by this machine's own socket
MAX_OPEN_NODES = 256  # whose details a viewer may ask for in one message
MAX_NODES_A_MESSAGE = 500  # that an update has rows of, or details
MAX_WATCH_BYTES = 2**18  # of a viewer's message
MAX_GRAPH_SECONDS, MAX_GRAPH_STEPS = 31 * 24 * 3600, 1000
MAX_UPDATE_BYTES = 2**24  # from the server to a viewer; of nodes a megabyte comes at a time, and the rest is 23 bytes a node
MAX_PENDING = 9000  # calls of each kind that wait their turn, 16 KiB each: of 10,000 in a second a tenth is served meanwhile

# ---- Timings ----

ACKNOWLEDGE_SECONDS = 9.5  # from one acknowledgement of the server to the next: each tenth heartbeat at 1 Hz
SILENCE_SECONDS = 12.0  # of the server, and two intervals: then a node gives its session up, as half-open
FIRST_MESSAGE_SECONDS = 10.0  # that the server waits for the first message of a session
FIRST_ANSWER_SECONDS = 10.0  # that a node waits for the first acknowledgement of one
LONGEST_ANSWER_SECONDS = 30.0  # at most, in a fleet so large that its return takes a server longer than that
GOODBYE_SECONDS = 2.0  # that either end takes to leave
MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 0.1, 3600.0  # from one heartbeat, or reading, to the next
MAX_UNARY_INTERVAL_SECONDS = 60.0  # that a node believes without a stream, since only the next call tells whether the server lives
LATE_INTERVALS = 3  # without a heartbeat
LOST_SECONDS, LOST_INTERVALS = 10.0, 5  # without a heartbeat, whichever is longer
STALE_SAMPLE_SECONDS = 5.0  # and two intervals: then a node's own screen says that its sensors hang

NODE_PING_SECONDS, NODE_PING_TIMEOUT_SECONDS = 10, 4  # HTTP/2 keepalive of a node: finds a connection that is half-open
SERVER_PING_SECONDS, SERVER_PING_TIMEOUT_SECONDS = 20, 10  # and of the server: finds the dead connections of nodes that do not beat
MIN_PING_SECONDS = 1  # between two pings that the server bears; a node that pings more often gets GOAWAY too_many_pings


def late_after_seconds(interval_seconds: float) -> float:
    """The age of a heartbeat from which on its node is late."""
    return LATE_INTERVALS * interval_seconds


def lost_after_seconds(interval_seconds: float) -> float:
    """The age of a heartbeat from which on its node is lost."""
    return max(LOST_SECONDS, LOST_INTERVALS * interval_seconds)


def silent_after_seconds(interval_seconds: float) -> float:
    """How long a node hears nothing from its server before it gives the session up."""
    return SILENCE_SECONDS + 2 * interval_seconds


def first_answer_seconds(spread_seconds: float) -> float:
    """How long a node waits for the first answer of a server whose fleet spreads its return so: who gives up sooner makes it work
    in vain, and is there again with the next handshake."""
    return max(FIRST_ANSWER_SECONDS, min(2 * spread_seconds, LONGEST_ANSWER_SECONDS))


def hangs_after_seconds(interval_seconds: float) -> float:
    """How much older than its heartbeat a sample is before the server says that the box lives and its sensors hang."""
    return lost_after_seconds(interval_seconds)


def hangs_here_after_seconds(interval_seconds: float) -> float:
    """The age of a sample from which on the box's own screen says so: sooner than the server."""
    return STALE_SAMPLE_SECONDS + 2 * interval_seconds


# ---- Options of gRPC's two ends ----

CHANNEL_OPTIONS = (
    ("grpc.http2.bdp_probe", 0),  # it answers nearly every heartbeat with a ping
    ("grpc.keepalive_time_ms", 1000 * NODE_PING_SECONDS),
    ("grpc.keepalive_timeout_ms", 1000 * NODE_PING_TIMEOUT_SECONDS),  # this one is TCP's: for bytes that nobody acknowledges
    ("grpc.http2.ping_timeout_ms", 1000 * NODE_PING_TIMEOUT_SECONDS),  # else a ping has a minute, whatever the line above says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the backoff of the one before
    ("grpc.enable_http_proxy", 0),  # http_proxy is for the web; the server is in the local network
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
)
VIEWER_OPTIONS = (  # where a screen's differ
    ("grpc.max_receive_message_length", MAX_UPDATE_BYTES),
    ("grpc.http2.lookahead_bytes", 2**22),  # else a large fleet comes at 64 KiB a round trip
)


def server_options(max_nodes: int, max_connections: int, is_secure: bool = False) -> tuple[tuple[str, int], ...]:
    """gRPC's options for a fleet of so many nodes."""
    pending = min(max(max_nodes, 1000), MAX_PENDING)
    # Of a connection without a call: else whoever greets takes a place for as long as it answers pings. With TLS it costs nothing
    # that shows; without, the return of 10,000 nodes takes half as long again.
    idle = (("grpc.max_connection_idle_ms", round(1000 * FIRST_MESSAGE_SECONDS)),) if is_secure else ()
    return (
        *idle,
        ("grpc.so_reuseport", 0),  # else a second server on the same port starts without an error, and takes half of the nodes
        ("grpc.http2.bdp_probe", 0),  # it answers nearly every heartbeat with a ping
        ("grpc.server.max_pending_requests", pending),  # below that none is refused when a whole fleet comes back at once
        ("grpc.server.max_pending_requests_hard_limit", pending),
        ("grpc.server_max_unrequested_time_in_server", round(LONGEST_ANSWER_SECONDS)),  # a call waits: its node gives up then
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_allowed_incoming_connections", max_connections),
        # Of a connection that says nothing. One that greets an open server and makes no call ends by its pings, if it does not
        # answer them.
        ("grpc.server_handshake_timeout_ms", round(1000 * (LONGEST_ANSWER_SECONDS if is_secure else FIRST_MESSAGE_SECONDS))),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a hundred bytes could unpack to a megabyte
        ("grpc.per_message_decompression", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.lookahead_bytes", MAX_AHEAD_BYTES),
        ("grpc.max_metadata_size", MAX_HEADERS_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_HEADERS_BYTES),  # between the two, what is refused is drawn by lot
        ("grpc.keepalive_time_ms", 1000 * SERVER_PING_SECONDS),
        ("grpc.keepalive_timeout_ms", 1000 * SERVER_PING_TIMEOUT_SECONDS),
        ("grpc.http2.ping_timeout_ms", 1000 * SERVER_PING_TIMEOUT_SECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000 * MIN_PING_SECONDS),
        ("grpc.http2.max_ping_strikes", 0),
    )


# ---- What messages mean ----


class ThrottleReason(enum.IntEnum):
    """Bits of DeviceSample.throttle_reasons: NVML's clocks event reasons (nvml.h, nvmlClocksEventReason…).

    No IntFlag: Python 3.10 keeps each combination that it ever met, and nodes can send 2**64 of them.
    """

    IDLE = 0x01
    APPLICATION_CLOCKS = 0x02
    POWER_CAP = 0x04
    HARDWARE_SLOWDOWN = 0x08
    SYNC_BOOST = 0x10
    THERMAL_SOFTWARE = 0x20
    THERMAL_HARDWARE = 0x40
    POWER_BRAKE = 0x80


def reported(message: Any, field: str) -> Any:
    """An optional field's value; None where the box does not report it."""
    return getattr(message, field) if message.HasField(field) else None


def check_node_id(text: str) -> str:
    """The name of a node that `text` stands for: NFKC, trimmed, without what can't be seen, so that no two look alike by these.

    Raises ValueError with the reason.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"a node id has at most {MAX_NODE_ID} characters, this one {len(text)}")
    seen = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    seen = unicodedata.normalize("NFKC", seen)  # what stood on both sides of it may be one character now
    name = " ".join(filter(None, seen.strip().split(" ")))
    if not name:
        raise ValueError("a node id must not be empty")
    if len(name) > MAX_NODE_ID:
        raise ValueError(f"a node id has at most {MAX_NODE_ID} characters, this one {len(name)}")
    if not name.isprintable():
        raise ValueError(f"a node id has printable characters only: {visible(name)}")
    return name


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises ValueError with the reason where a node can't have these."""
    if len(labels) > MAX_LABELS:
        raise ValueError(f"a node has at most {MAX_LABELS} labels, this one {len(labels)}")
    for name, value in labels.items():
        if not re.fullmatch(rf"[A-Za-z0-9_.-]{{1,{MAX_LABEL_NAME}}}", name):
            raise ValueError(f"{visible(name, 40)!r} names no label: 1 to {MAX_LABEL_NAME} letters, digits, '_', '.' and '-' do")
        if not (0 < len(value) <= MAX_LABEL_VALUE and value.isprintable()):
            raise ValueError(f"label {name} needs a value of 1 to {MAX_LABEL_VALUE} printable characters")
