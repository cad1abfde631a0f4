"""What one peer can do to all: small attacks by raw HTTP/2 and by real clients. `bench abuse` runs large ones, with a clock."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import node_pb2 as pb
from bench.http2 import (
    CANCEL,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    STREAM_CALL,
    UNARY_CALL,
    data_frame,
    frame,
    request_headers,
    status_of,
)
from edge.fleet.admission import (
    COMPLAINTS_PER_SECOND,
    MIN_POOL_BYTES,
    OWN_BYTES,
    PLENTY_OF_ONE,
    SILENT_PER_MINUTE,
    Memory,
    Places,
    WaitingRoom,
    network_of,
)
from edge.fleet.row import Refused, Row, State, state_of
from edge.protocol import BACKLOG_SAMPLES, MAX_DEVICES, MAX_PROCESSES, MAX_STREAMS
from server import Registry
from tests.fixtures.peers import Peer
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import LOCAL, Clock, Serving, Stream, opened, refusal, refused, unary

Serve = Callable[..., Serving]
Connect = Callable[..., Stream]
Dial = Callable[..., Peer]


def beat(**fields: Any) -> bytes:
    return pb.HeartbeatRequest(**fields).SerializeToString()


# ---- Streams and calls ----


def test_a_connection_has_so_many_streams_and_no_more(serve: Serve, connect: Connect, dial: Dial) -> None:
    serving = serve()
    peer = dial(serving)
    peer.send(*(request_headers(2 * number + 1) for number in range(MAX_STREAMS + 50)))
    refused_streams = peer.count(RST_STREAM, 50)
    assert [stream for _, _, stream, _ in refused_streams] == [2 * number + 1 for number in range(MAX_STREAMS, MAX_STREAMS + 50)]
    assert {int.from_bytes(payload, "big") for *_, payload in refused_streams} == {7}  # REFUSED_STREAM: may be tried again
    eventually(lambda: serving.streams() == MAX_STREAMS)
    assert connect(serving.address).answer().acknowledged


def test_streams_opened_and_reset_over_and_over_stay_within_that(serve: Serve, connect: Connect, dial: Dial) -> None:
    serving = serve()
    peer = dial(serving)
    peer.send(*(request_headers(stream) + frame(RST_STREAM, 0, stream, CANCEL) for stream in range(1, 6001, 2)))
    assert connect(serving.address).answer().acknowledged
    eventually(lambda: serving.streams() == 1)
    assert set(serving.rows()) == {"box"}


def test_of_those_that_wait_with_their_first_message_the_longest_waiting_ends(
    serve: Serve, connect: Connect, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.fleet.service.MAX_WAITING", 20)
    serving = serve()
    peer = dial(serving)
    peer.send(*(request_headers(2 * number + 1) for number in range(30)))
    ended = peer.count(HEADERS, 10)
    assert [stream for _, _, stream, _ in ended] == [2 * number + 1 for number in range(10)]
    assert status_of(ended[0][3]) == "RESOURCE_EXHAUSTED"
    assert connect(serving.address).answer().acknowledged
    assert serving.streams() == 20  # the newcomer, while it waited, cost one more


def test_calls_that_come_and_go_have_one_timer_together(monkeypatch: pytest.MonkeyPatch) -> None:
    timers, ended = [], list[int]()

    async def wait() -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda *arguments: timers.append(call_later(*arguments)))
        room = WaitingRoom(20, 0.05, lambda call, _address, _end: ended.append(call))
        for number in range(100):
            room.enter(number, "10.0.0.9")
            room.leave(number)
        room.enter(100, "10.0.0.9")
        while not ended:
            await asyncio.sleep(0)
        room.enter(101, "10.0.0.9")
        while len(ended) < 2:
            await asyncio.sleep(0)

    asyncio.run(wait())
    assert ended == [100, 101]
    assert len(timers) < 10


def test_a_call_that_says_nothing_is_ended_whichever_it_is(serve: Serve, dial: Dial) -> None:
    serving = serve(first_message_seconds=0.1)
    for path in (STREAM_CALL, UNARY_CALL):
        silent, empty = dial(serving), dial(serving)
        silent.send(request_headers(1, path))
        empty.send(request_headers(1, path), frame(DATA, END_STREAM, 1))
        assert (silent.status(), empty.status()) == ("DEADLINE_EXCEEDED", "INVALID_ARGUMENT")


def test_unary_calls_beyond_the_budget_are_refused_at_once_and_streams_go_on(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.fleet.service.UNARY_OF_ONE", 10)
    clock = Clock()
    serving = serve(clock=clock)
    stream = connect(serving.address)
    stream.answer()
    for number in range(10):  # all from one network
        assert unary(serving.address, node_id=f"box-{number}").acknowledged
    code, reason = refusal(serving.address, node_id="box-10")
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "unary heartbeats a second" in reason
    assert "StreamHeartbeats" in reason
    stream.send(sample=pb.Sample(sequence=7))
    eventually(lambda: serving.rows()["box"].sample.sequence == 7)
    assert "box-10" not in serving.rows()
    clock.now += 1
    assert unary(serving.address, node_id="box-10").acknowledged


def test_headers_that_are_large_are_refused(serve: Serve, dial: Dial) -> None:
    serving = serve()
    for count, status in ((20, "OK"), (60, "RESOURCE_EXHAUSTED")):
        peer = dial(serving)
        peer.send(with_headers(count), data_frame(beat(node_id=f"box-{count}"), END_STREAM))
        assert peer.status() == status
    assert set(serving.rows()) == {"box-20"}


def with_headers(count: int) -> bytes:
    """A call with so many headers more, of 82 bytes each by HTTP/2's count."""
    block = request_headers()[FRAME_HEADER:]
    return frame(HEADERS, END_HEADERS, 1, block + b"".join(b"\0\4x%03d\x2e" % number + b"v" * 46 for number in range(count)))


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"", b"identity", b"nonsense"])
@pytest.mark.parametrize("path", [STREAM_CALL, UNARY_CALL])
def test_what_is_compressed_is_refused_before_it_is_unpacked(serve: Serve, dial: Dial, encoding: bytes, path: bytes) -> None:
    serving = serve()
    bomb = gzip.compress(beat(node_id="box", processes=pb.ProcessList(processes=[pb.Process()] * 32_766)))
    assert len(bomb) < 200
    peer = dial(serving)
    peer.send(request_headers(1, path, encoding), data_frame(bomb, END_STREAM, compressed=True))
    assert peer.status() in ("UNIMPLEMENTED", "INVALID_ARGUMENT", "INTERNAL")
    assert serving.rows() == {}


def send_raw(address: str, raw: bytes) -> tuple[grpc.StatusCode, str]:
    """How the server refuses bytes in a unary call."""
    with grpc.insecure_channel(address, options=LOCAL) as channel:
        heartbeat: Any = channel.unary_unary("/node.NodeService/Heartbeat")
        with pytest.raises(grpc.RpcError) as error:
            heartbeat(raw, timeout=20)
    return error.value.code(), error.value.details() or ""


def test_a_client_that_compresses_is_told_so(serve: Serve) -> None:
    serving = serve()
    with grpc.insecure_channel(serving.address, options=LOCAL, compression=grpc.Compression.Gzip) as channel:
        heartbeat: Any = channel.unary_unary("/node.NodeService/Heartbeat")
        with pytest.raises(grpc.RpcError) as error:
            heartbeat(beat(node_id="box", info=pb.NodeInfo(hostname="h" * 200)), timeout=20)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "gzip" in (error.value.details() or "")
    assert serving.rows() == {}


@pytest.mark.parametrize("garbage", [b"\x0a\x03\xff\xfe\xfd", b"\xff" * 50])
def test_bytes_that_are_no_heartbeat_are_an_invalid_argument_in_a_unary_call_too(serve: Serve, garbage: bytes) -> None:
    serving = serve()
    code, reason = send_raw(serving.address, garbage)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason.startswith("this is no heartbeat: ")


# ---- Connections ----


@pytest.mark.parametrize("greeting", [b"", b"PRI", PREFACE + frame(SETTINGS, 0, 0)], ids=["silence", "half a greeting", "no call"])
def test_a_connection_without_a_call_is_closed(
    serve: Serve, dial: Dial, connect: Connect, monkeypatch: pytest.MonkeyPatch, greeting: bytes
) -> None:
    monkeypatch.setattr("edge.protocol.FIRST_MESSAGE_SECONDS", 0.2)
    monkeypatch.setattr("edge.protocol.SERVER_PING_SECONDS", 1)
    monkeypatch.setattr("edge.protocol.SERVER_PING_TIMEOUT_SECONDS", 1)
    serving = serve()
    stream = connect(serving.address)
    stream.answer()
    assert dial(serving, greeting=greeting).is_closed_within(10)
    stream.send(sample=pb.Sample(sequence=1))
    eventually(lambda: serving.rows()["box"].sample.sequence == 1)


def test_there_are_so_many_connections_and_a_newcomer_gets_in_when_the_silent_are_gone(
    serve: Serve, dial: Dial, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.protocol.FIRST_MESSAGE_SECONDS", 0.5)
    monkeypatch.setattr("server.most_connections", lambda *_: 10)
    serving = serve()
    holder = connect(serving.address, "holder")
    holder.answer()
    silent = [dial(serving, greeting=b"") for _ in range(30)]
    assert all(peer.is_closed_within(10) for peer in silent)
    assert connect(serving.address, "newcomer").answer().acknowledged
    holder.send(sample=pb.Sample(sequence=1))
    eventually(lambda: serving.rows()["holder"].sample.sequence == 1)


# ---- Counts, before anything is looked at ----


EMPTY = {  # what half a million of each is called when it is refused
    b"\x42" + b"\xfc\xff\x03" + b"\x0a\x00" * 32_766: f"heartbeat has 32766 processes: it may have {MAX_PROCESSES}",
    b"\x2a\x00" * 524_000: f"heartbeat has 524000 samples in its backlog: it may have {BACKLOG_SAMPLES}",
    beat(backlog=[pb.Sample(sequence=1, devices=[pb.DeviceSample()] * 50_000)]): "sample has 50000 devices: it may have 128",
    beat(sample=pb.Sample(devices=[pb.DeviceSample()] * 50_001)): "sample has 50001 devices: it may have 128",
    beat(info=pb.NodeInfo(devices=[pb.DeviceInfo()] * 30_000)): f"info has 30000 devices: it may have {MAX_DEVICES}",
    beat(info=pb.NodeInfo.FromString(b"\xfa\x7f\x00" * 30_000)): "info has 90000 bytes: it may have 65536",
}


@pytest.mark.parametrize("tail", EMPTY, ids=["processes", "backlog", "its devices", "devices", "devices of an info", "unknown"])
def test_half_a_million_empty_things_are_counted_and_refused(serve: Serve, tail: bytes) -> None:
    serving = serve()
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert send_raw(serving.address, beat(node_id="box") + tail) == (invalid, EMPTY[tail])
    assert serving.rows() == {}
    assert unary(serving.address, node_id="box").acknowledged
    assert send_raw(serving.address, beat(node_id="box") + tail) == (invalid, EMPTY[tail])  # of a session that goes on, too


def test_what_a_real_box_sends_at_most_is_taken() -> None:
    device: dict[str, Any] = {"uuid": "GPU-" + "0" * 36, "name": "NVIDIA H200 MIG 1g.18gb", "memory_total_bytes": 2**37}
    registry = Registry(1.0, 10)
    session = opened(registry, "box", "")
    registry.heartbeat(
        session,
        pb.HeartbeatRequest(
            info=pb.NodeInfo(hostname="h" * 64, devices=[pb.DeviceInfo(index=i, **device) for i in range(MAX_DEVICES)]),
            processes=pb.ProcessList(
                processes=[pb.Process(pid=2**22, user="u" * 32, name="n" * 64, memory_used_bytes=2**37)] * MAX_PROCESSES
            ),
            sample=pb.Sample(sequence=1, devices=[pb.DeviceSample(utilization_percent=99, memory_used_bytes=2**36)] * MAX_DEVICES),
            backlog=[pb.Sample(devices=[pb.DeviceSample(utilization_percent=9)] * MAX_DEVICES)] * BACKLOG_SAMPLES,
        ),
    )
    assert len(registry.snapshot()[0].processes) == MAX_PROCESSES


# ---- What is kept ----


def large(size: int) -> pb.ProcessList:
    return pb.ProcessList(processes=[pb.Process(name="x" * 250)] * (size // 255))


def test_all_that_is_kept_is_bounded_and_who_is_small_is_never_refused() -> None:
    registry = Registry(1.0, 1500)
    message = large(60_000)
    taken, reasons = 0, set()
    for number in range(400):
        try:
            request = pb.HeartbeatRequest(node_id=f"large-{number}", processes=message)
            registry.open(request, f"10.0.{number % 4}.1")
            taken += 1
        except Refused as error:
            assert error.end.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            reasons.add(error.end.reason)
    kept = sum(row.kept_bytes() for row in registry.snapshot())
    assert 200 < taken < 400
    assert kept < MIN_POOL_BYTES + taken * OWN_BYTES
    (reason,) = reasons
    assert reason == (
        "58.8 KiB are too much to keep of one node: 16.0 MiB are there for all large ones, half of it for those of one network; "
        "start the server with a larger --max-nodes"
    )
    small = opened(registry, "small", processes=large(OWN_BYTES - 500))
    registry.heartbeat(small, pb.HeartbeatRequest(processes=large(OWN_BYTES - 300)))
    refused(lambda: registry.heartbeat(small, pb.HeartbeatRequest(processes=large(60_000))))
    for row in registry.snapshot()[:taken]:
        registry._remove(row, "")
    assert (registry._memory._all, registry._memory._of_network) == (0, {})
    registry.heartbeat(small, pb.HeartbeatRequest(processes=large(60_000)))  # there is room again


def test_one_network_takes_half_of_it() -> None:
    memory = Memory(1)
    row = Row("box", "10.0.0.1", None, 1.0, packed_processes=bytes(OWN_BYTES + MIN_POOL_BYTES // 2))
    memory.swap(None, row)
    memory.swap(row, row._replace(heartbeat_at=1.0))
    more = row._replace(packed_processes=bytes(OWN_BYTES + 1))
    assert refused(lambda: memory.swap(None, more))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    memory.swap(None, more._replace(address="10.0.0.2"))
    memory.swap(row, more)  # who takes less is never refused
    assert memory._all == 2


def test_a_row_has_a_bound_of_its_own() -> None:
    sample = pb.Sample(devices=[pb.DeviceSample(error="x" * 250)] * 30)
    code, reason = refused(lambda: opened(Registry(1.0, 10), "box", processes=large(60_000), sample=sample))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "bytes together: they may have 65536" in reason


# ---- The log ----


def test_joins_and_goodbyes_of_one_id_push_nothing_out_of_the_log() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    opened(registry, "lost")
    clock.now += 11
    registry.tick()
    follower = registry.log.follow()
    for number in range(3000):
        clock.now += 0.001
        registry.take_unary(pb.HeartbeatRequest(node_id="busy", leaving=number % 2 > 0), "10.0.0.9")
    for count in (7, 1000):
        newest = registry.log.newest(count)
        assert ("lost", "lost") in [(event.kind, event.node_id) for event in newest]
        assert newest == sorted(newest, key=lambda event: event.time)
    missed, events = follower.new()
    assert missed + len(events) == 3002  # none goes uncounted
    assert len(events) <= 2 + 4 * 2 * PLENTY_OF_ONE


def test_the_log_has_room_for_a_whole_fleet_that_is_lost_and_one_network_does_not_take_it() -> None:
    clock = Clock()
    registry = Registry(1.0, 2000, clock)
    for number in range(1000):
        registry.take_unary(pb.HeartbeatRequest(node_id=f"cheap-{number}"), "10.0.0.9")
    for number in range(100):
        registry.take_unary(pb.HeartbeatRequest(node_id=f"honest-{number}"), f"10.1.0.{number}")
    clock.now += 11
    registry.tick()
    lost = [event.node_id for event in registry.log.newest(5000) if event.kind == "lost"]
    assert sum(node_id.startswith("honest") for node_id in lost) == 100
    assert sum(node_id.startswith("cheap") for node_id in lost) == SILENT_PER_MINUTE // 20


def test_refusals_leave_room_for_warnings() -> None:
    registry = Registry(1.0, 10, Clock())
    for _ in range(500):
        registry.complain("refused", "box", "no")
    registry.complain("warning", "server", "look")
    kinds_now = [event.kind for event in registry.log.newest(1000)]
    assert (kinds_now.count("refused"), kinds_now[-1]) == (COMPLAINTS_PER_SECOND, "warning")


# ---- Rows ----


def come(registry: Registry, node_id: str, address: str) -> None:
    registry.take_unary(pb.HeartbeatRequest(node_id=node_id), address)


def test_cheap_ids_of_one_address_cost_their_own_kind_alone() -> None:
    clock = Clock()
    registry = Registry(1.0, 200, clock)
    for number in range(20):
        come(registry, f"honest-{number}", f"10.1.0.{number}")
    clock.now += 20
    registry.tick()  # they are lost
    for number in range(600):
        clock.now += 0.01
        with contextlib.suppress(Refused):
            come(registry, f"cheap-{number}", "10.0.0.9")
        if number % 100 == 0:
            registry.tick()
    ids = {row.node_id for row in registry.snapshot()}
    assert len(ids) == 200
    assert {node_id for node_id in ids if node_id.startswith("honest")} == {f"honest-{number}" for number in range(20)}
    come(registry, "newcomer", "10.2.0.1")  # though all that are not lost live
    assert "newcomer" in {row.node_id for row in registry.snapshot()}
    assert refused(lambda: come(registry, "cheap", "10.0.0.9"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_is_too_large_is_refused_and_pushes_out_nobody() -> None:
    clock = Clock()
    registry = Registry(1.0, 3, clock)
    registry._memory._most = 0  # bytes for large ones
    for number in range(3):
        come(registry, f"lost-{number}", f"10.0.0.{number}")
    clock.now += 20
    registry.tick()
    request = pb.HeartbeatRequest(node_id="large", processes=large(60_000))
    assert refused(lambda: registry.take_unary(request, "10.0.0.9"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(registry.snapshot()) == 3


def test_who_finds_no_place_leaves_its_room_to_others() -> None:
    registry = Registry(1.0, 1, Clock())
    come(registry, "box", "10.0.0.1")
    request = pb.HeartbeatRequest(node_id="large", processes=large(60_000))
    assert refused(lambda: registry.take_unary(request, "10.0.0.1"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert registry._memory._all == 0


def test_a_fleet_behind_one_address_uses_all_places_as_long_as_nobody_else_wants_one() -> None:
    clock = Clock()
    registry = Registry(1.0, 20, clock)
    for number in range(20):
        come(registry, f"box-{number}", "10.0.0.9")
    assert len(registry.snapshot()) == 20
    assert refused(lambda: come(registry, "box-20", "10.0.0.9"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    for number in range(15):
        with contextlib.suppress(Refused):
            come(registry, f"other-{number}", f"10.1.0.{number}")
    ids = [row.node_id for row in registry.snapshot()]
    assert ids == [f"box-{number}" for number in range(10)] + [f"other-{number}" for number in range(10)]  # half of them, then


def test_of_the_gone_the_largest_network_gives_way_first_then_the_newcomers_own() -> None:
    places = Places(10)
    rows = [Row(node_id, address, None, 1.0) for node_id, address in
            [("one", "10.0.0.1"), ("two", "10.0.0.2"), ("a", "fd00::1"), ("b", "fd00::2"), ("c", "fd00:0:0:1::1")]]  # fmt: skip
    for row in rows:
        places.add(row)
    places.set_gone(rows)
    assert network_of("fd00::1") == network_of("fd00::2%eth0") != network_of("fd00:0:0:1::1")
    assert places.next_gone(network_of("10.0.0.9")) == rows[2]  # it has two
    places.remove(rows[2])
    places.set_gone([rows[0], rows[1], rows[3]])
    assert places.next_gone("10.0.0.2") == rows[1]
    assert places.next_gone("10.0.0.2") == rows[0]
    places.add(rows[1]._replace(node_id="three"))
    places.add(rows[1]._replace(node_id="four"))
    assert places.next_gone("10.0.0.2") is None  # never one of who has fewer


# ---- Who is who ----


def test_a_unary_node_is_ended_and_changed_by_its_own_address_or_instance_alone() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    exists = grpc.StatusCode.ALREADY_EXISTS
    come(registry, "old", "10.0.0.1")
    for fields in ({"leaving": True}, {"gpu_temp": 90}, {"info": pb.NodeInfo(instance_id="b")}):
        request = pb.HeartbeatRequest(node_id="old", **fields)
        assert refused(lambda request=request: registry.take_unary(request, "10.0.0.2"))[0] is exists  # type: ignore[misc]
    (row,) = registry.snapshot()
    assert (state_of(row, clock.now), row.vitals.celsius) == (State.ONLINE, None)
    registry.take_unary(pb.HeartbeatRequest(node_id="ours", info=pb.NodeInfo(instance_id="a")), "10.0.0.1")
    assert refused(lambda: registry.take_unary(pb.HeartbeatRequest(node_id="ours", leaving=True), "10.0.0.2"))[0] is exists
    moved = pb.HeartbeatRequest(node_id="ours", info=pb.NodeInfo(instance_id="a"), leaving=True)
    registry.take_unary(moved, "10.0.0.2")
    registry.take_unary(pb.HeartbeatRequest(node_id="old", leaving=True), "10.0.0.1")
    assert [state_of(row, clock.now) for row in registry.snapshot()] == [State.LEFT] * 2


def test_a_goodbye_of_another_leaves_a_node_that_is_lost_as_it_is() -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)
    exists = grpc.StatusCode.ALREADY_EXISTS
    opened(registry, "stream", "a")  # at 10.0.0.7
    come(registry, "old", "10.0.0.1")
    clock.now += 60
    for node_id in ("stream", "old"):
        for info in (None, pb.NodeInfo(instance_id="b")):
            goodbye = pb.HeartbeatRequest(node_id=node_id, info=info, leaving=True)
            assert refused(lambda goodbye=goodbye: registry.take_unary(goodbye, "10.0.0.2"))[0] is exists  # type: ignore[misc]
            assert refused(lambda goodbye=goodbye: registry.open(goodbye, "10.0.0.2"))[0] is exists  # type: ignore[misc]
    assert [state_of(row, clock.now) for row in registry.snapshot()] == [State.LOST] * 2
    opened(registry, "stream", "a", leaving=True)
    registry.take_unary(pb.HeartbeatRequest(node_id="old", leaving=True), "10.0.0.1")
    assert [state_of(row, clock.now) for row in registry.snapshot()] == [State.LEFT] * 2


@pytest.mark.parametrize(("drawn", "box_id"), [(False, ""), (False, "evil"), (True, "evil"), (True, "")])
def test_a_drawn_id_stays_its_boxs_while_its_row_is_there(drawn: bool, box_id: str) -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)

    def come_with(instance: str, address: str, **info: Any) -> None:
        registry.open(pb.HeartbeatRequest(node_id="Node-1000", info=pb.NodeInfo(instance_id=instance, **info)), address)

    come_with("a", "10.0.0.1", box_id="box", id_is_drawn=True)
    clock.now += 3600
    code, reason = refused(lambda: come_with("b", "10.0.0.2", box_id=box_id, id_is_drawn=drawn))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "the id Node-1000 belongs to another box")
    come_with("c", "10.0.0.3", box_id="box", id_is_drawn=True)  # the rightful one, restarted, elsewhere
    clock.now += 3600
    come_with("d", "10.0.0.3", box_id="box")  # its owner has given it the same
    clock.now += 3600
    registry.forget("Node-1000")
    come_with("e", "10.0.0.2", box_id=box_id, id_is_drawn=drawn)


def test_who_holds_an_id_is_told_at_its_own_address_and_in_the_servers_events_alone(serve: Serve, connect: Connect) -> None:
    serving = serve()
    opened(serving.registry, "box", "a")  # at 10.0.0.7
    code, reason = connect(serving.address, instance="b").status()
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert reason == "the id box is taken by another living node (the server's events name it)"
    assert "127.0.0.1: the id box is taken by host-a at 10.0.0.7 (ALREADY_EXISTS)" in serving.events()[-1]
    opened(serving.registry, "near", "a")
    info = pb.NodeInfo(instance_id="b")
    _, reason = refused(lambda: serving.registry.open(pb.HeartbeatRequest(node_id="near", info=info), "10.0.0.7"))
    assert reason == "the id near is taken by host-a at 10.0.0.7"


@pytest.mark.parametrize("how", ["living", "broken", "lost", "left"])
def test_a_drawn_id_stays_with_its_box(how: str) -> None:
    clock = Clock()
    registry = Registry(1.0, 10, clock)

    def come_as(instance: str, box: str, drawn: bool = True) -> Any:
        info = pb.NodeInfo(instance_id=instance, box_id=box, id_is_drawn=drawn)
        return registry.open(pb.HeartbeatRequest(node_id="Node-1234", info=info), "10.0.0.7", lambda _end: None)

    session = come_as("a", "box-a")
    if how == "broken":
        registry.stream_ended(session, "the stream broke")
    elif how == "left":
        registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    elif how == "lost":
        clock.now += 20
    for box in ("box-b", ""):
        code, reason = refused(lambda box=box: come_as("b", box))  # type: ignore[misc]
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert reason == "the id Node-1234 belongs to another box"
    if how != "living":
        come_as("c", "box-a")  # the same box, started again
        clock.now += 20
        registry.forget("Node-1234")
        come_as("d", "box-b", drawn=False)  # who was given the id
        clock.now += 20
        assert refused(lambda: come_as("e", "box-a"))[0] is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("alike", ["box ", " box", "box\u3164", "b\u034fox", "\uff42ox", "box\ufe0f", "\u2800box"])
def test_ids_that_look_alike_are_one(serve: Serve, connect: Connect, alike: str) -> None:
    serving = serve()
    connect(serving.address, "box", "a").answer()
    assert connect(serving.address, alike, "b").status()[0] is grpc.StatusCode.ALREADY_EXISTS
    assert connect(serving.address, alike, "a").answer().acknowledged  # the same instance
    assert set(serving.rows()) == {"box"}
    assert unary(serving.address, node_id=alike + "2").acknowledged
    assert unary(serving.address, node_id=alike + "2", leaving=True).acknowledged
    assert len(serving.rows()) == 2
