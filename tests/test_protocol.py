"""What both ends must agree on. The timings of edge/protocol.py fit each other: whoever changes one finds here what must move."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import pytest

import node_pb2 as pb
from edge.protocol import (
    ACKNOWLEDGE_SECONDS,
    CHANNEL_OPTIONS,
    FIRST_ANSWER_SECONDS,
    FIRST_MESSAGE_SECONDS,
    GOODBYE_SECONDS,
    LONGEST_ANSWER_SECONDS,
    MAX_AHEAD_BYTES,
    MAX_DEVICES,
    MAX_MESSAGE_BYTES,
    MAX_NODE_ID,
    MAX_OPEN_NODES,
    MAX_PENDING,
    MAX_RESPONSE_BYTES,
    MAX_STREAMS,
    MAX_VIEWERS,
    MAX_VIEWERS_ELSEWHERE,
    MAX_WATCH_BYTES,
    MIN_PING_SECONDS,
    NODE_PING_SECONDS,
    NODE_PING_TIMEOUT_SECONDS,
    SERVER_PING_SECONDS,
    SERVER_PING_TIMEOUT_SECONDS,
    check_node_id,
    first_answer_seconds,
    hangs_after_seconds,
    hangs_here_after_seconds,
    late_after_seconds,
    lost_after_seconds,
    reported,
    server_options,
    silent_after_seconds,
)

INTERVALS = [tenths / 10 for tenths in range(1, 36_001)]  # all that --interval takes, to the tenth
HALF_OPEN_SECONDS = 15.0  # at 1 Hz a connection that is half-open is found within this time: the README says so


def failing(holds: Iterable[tuple[float, bool]]) -> list[float]:
    """The intervals at which something does not hold."""
    return [interval for interval, does in holds if not does]


# ---- Timings ----


def test_a_server_that_lives_is_never_taken_for_silent() -> None:
    """It acknowledges with the first heartbeat after ACKNOWLEDGE_SECONDS, and a beat may come a tenth late: both, and there is
    still something left for the network."""
    rhythm = ((interval, ACKNOWLEDGE_SECONDS + 1.1 * interval) for interval in INTERVALS)
    assert not failing((interval, silence + 1 <= silent_after_seconds(interval)) for interval, silence in rhythm)


def test_an_acknowledgement_is_each_tenth_heartbeat_at_1_hz() -> None:
    assert 9 < ACKNOWLEDGE_SECONDS < 10, "between the ninth beat and the tenth: a beat that is a little early must not miss it"


def test_a_node_does_not_give_up_while_the_server_still_waits_for_its_first_message() -> None:
    assert FIRST_ANSWER_SECONDS >= FIRST_MESSAGE_SECONDS


def test_a_half_open_connection_is_found_in_time_at_1_hz() -> None:
    assert NODE_PING_SECONDS + NODE_PING_TIMEOUT_SECONDS <= HALF_OPEN_SECONDS, "one that breaks without a word, by a ping"
    assert silent_after_seconds(1) <= HALF_OPEN_SECONDS, "a server that stands still, whose system still answers pings"
    assert FIRST_ANSWER_SECONDS + 2 <= HALF_OPEN_SECONDS, "one that never said a word, asked once a beat"


def test_the_server_bears_the_nodes_pings() -> None:
    assert MIN_PING_SECONDS < NODE_PING_SECONDS, "else it answers GOAWAY too_many_pings"
    assert NODE_PING_TIMEOUT_SECONDS < NODE_PING_SECONDS, "a ping is given up before the next"
    assert SERVER_PING_TIMEOUT_SECONDS < SERVER_PING_SECONDS


def test_a_node_that_lives_is_never_late_by_its_rhythm() -> None:
    assert not failing((interval, 1.2 * interval < late_after_seconds(interval)) for interval in INTERVALS)


def test_a_node_is_late_before_it_is_lost() -> None:
    assert not failing((interval, late_after_seconds(interval) < lost_after_seconds(interval)) for interval in INTERVALS)


def test_a_box_says_that_its_sensors_hang_before_the_server_does() -> None:
    assert not failing((interval, hangs_here_after_seconds(interval) <= hangs_after_seconds(interval)) for interval in INTERVALS)


def test_a_goodbye_takes_less_than_it_takes_to_be_late() -> None:
    assert late_after_seconds(1) > GOODBYE_SECONDS


# ---- Options of gRPC's two ends ----


def test_the_nodes_channel_has_its_timings_and_bounds() -> None:
    options = dict(CHANNEL_OPTIONS)
    assert len(options) == len(CHANNEL_OPTIONS)
    assert options["grpc.keepalive_time_ms"] == 1000 * NODE_PING_SECONDS
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 1000 * NODE_PING_TIMEOUT_SECONDS
    assert options["grpc.keepalive_permit_without_calls"] == 1, "between two unary heartbeats there is no call"
    assert options["grpc.http2.max_pings_without_data"] == 0, "no bound: a node pings while it waits for its next beat"
    assert options["grpc.max_receive_message_length"] == MAX_RESPONSE_BYTES


def test_the_server_has_its_timings_and_bounds() -> None:
    options = dict(server_options(15_000, 16_500))
    assert len(options) == len(server_options(15_000, 16_500))
    assert options["grpc.keepalive_time_ms"] == 1000 * SERVER_PING_SECONDS
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 1000 * SERVER_PING_TIMEOUT_SECONDS
    assert options["grpc.keepalive_permit_without_calls"] == 1, "a connection that began no call may be dead as well"
    assert options["grpc.http2.min_recv_ping_interval_without_data_ms"] == 1000 * MIN_PING_SECONDS
    assert options["grpc.http2.max_ping_strikes"] == 0, "0 is no bound: a clock that is a little off must not cost a session"
    assert options["grpc.max_receive_message_length"] == MAX_MESSAGE_BYTES
    assert options["grpc.http2.lookahead_bytes"] == MAX_AHEAD_BYTES
    assert options["grpc.server_max_unrequested_time_in_server"] == LONGEST_ANSWER_SECONDS
    assert options["grpc.max_concurrent_streams"] == MAX_STREAMS
    assert options["grpc.max_allowed_incoming_connections"] == 16_500
    assert options["grpc.compression_enabled_algorithms_bitset"] == 1, "identity alone: what is packed small unpacks large"
    assert options["grpc.server_handshake_timeout_ms"] == 1000 * FIRST_MESSAGE_SECONDS, "silence is worth no more than such a call"


@pytest.mark.parametrize(("max_nodes", "pending"), [(1, 1000), (5000, 5000), (15_000, MAX_PENDING)])
def test_as_many_calls_may_wait_as_a_fleet_makes_at_once(max_nodes: int, pending: int) -> None:
    options = dict(server_options(max_nodes, 100))
    assert options["grpc.server.max_pending_requests"] == options["grpc.server.max_pending_requests_hard_limit"] == pending


def test_options_are_what_grpc_takes() -> None:
    assert all(type(value) is int for _, value in (*CHANNEL_OPTIONS, *server_options(1, 1))), "a float is no option of gRPC's"
    with grpc.insecure_channel("127.0.0.1:1", options=CHANNEL_OPTIONS) as channel:
        assert channel


# ---- What messages mean ----


def test_what_is_not_reported_is_none_and_0_is_a_reading() -> None:
    sample = pb.DeviceSample(utilization_percent=0)
    assert reported(sample, "utilization_percent") == 0
    assert reported(sample, "temperature_celsius") is None


def test_a_heartbeat_of_the_largest_box_is_taken() -> None:
    device = pb.DeviceSample(
        utilization_percent=100, memory_used_bytes=2**50, temperature_celsius=500, power_milliwatts=10**8, fan_percent=1000,
        sm_clock_mhz=10**6, throttle_reasons=2**63, error="x" * 256,
    )  # fmt: skip
    assert pb.HeartbeatRequest(sample=pb.Sample(devices=[device] * MAX_DEVICES)).ByteSize() < MAX_MESSAGE_BYTES


@pytest.mark.parametrize("text", ["Node-1234", "Müller 機", "[red]", "a b", "x" * MAX_NODE_ID])
def test_a_name_is_taken_as_it_is(text: str) -> None:
    assert check_node_id(text) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" x ", "x"),
        ("a\u00a0 b", "a b"),  # blanks that are as wide
        ("\uff42ox", "box"),
        ("e\u0301", "\u00e9"),
        ("e\u034f\u0301", "\u00e9"),  # what was invisible stood between
        ("\u1100\u115f\u1161", "\uac00"),
        ("box\u3164", "box"),
        ("\u115fbo\u2800x\uffa0", "box"),
        ("\u2764\ufe0f", "\u2764"),
        ("\ufdfa" * 3, "\u0635\u0644\u0649 \u0627\u0644\u0644\u0647 \u0639\u0644\u064a\u0647 \u0648\u0633\u0644\u0645" * 3),
    ],
)
def test_names_that_look_alike_are_one(text: str, name: str) -> None:
    assert check_node_id(text) == name
    assert check_node_id(name) == name  # and stays so


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\u3164", "must not be empty"),
        ("\ufdfa" * 4, "at most 63 characters, this one 72"),
        ("x" * 10**6, "at most 63 characters, this one 1000000"),
        ("", "must not be empty"),
        (" \t", "must not be empty"),
        ("x" * (MAX_NODE_ID + 1), "at most 63 characters, this one 64"),
        ("a\x1b[2J", "printable characters only: a�"),
        ("a\nb", "printable"),
        ("a\u202eb", "printable"),
    ],
)
def test_what_can_not_name_a_node_is_said_in_words(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        check_node_id(text)
    assert str(error.value).isprintable()


def test_who_belongs_to_a_large_fleet_is_patient_within_bounds() -> None:
    assert [first_answer_seconds(spread) for spread in (0, 1, 5, 10, 15, 1000)] == [10, 10, 10, 20, 30, 30]
    assert first_answer_seconds(1000) == LONGEST_ANSWER_SECONDS


def test_a_viewer_can_ask_for_all_that_it_may_in_one_message() -> None:
    names = ["\N{GRINNING FACE}" * MAX_NODE_ID] * MAX_OPEN_NODES
    assert len(pb.WatchRequest(open=names, forget=names, clock_milliseconds=2**63).SerializeToString()) <= MAX_WATCH_BYTES
    assert MAX_WATCH_BYTES <= MAX_MESSAGE_BYTES
    assert MAX_VIEWERS_ELSEWHERE < MAX_VIEWERS
