"""gRPC's health protocol, asked by the package's own client of real servers."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import queue
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from edge.credentials import Role
from edge.fleet.guard import Guard
from edge.fleet.health import MAX_REQUEST_BYTES, Health
from edge.fleet.service import MAX_HEALTH_WATCHES_OF_ONE
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import LOCAL, Serving, headers_of
from tests.test_trust import bearer, channel_to, elsewhere, key_of

Serve = Callable[..., Serving]
Answer = health_pb2.HealthCheckResponse
NAMES = ("", "node.NodeService")


def asked(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


@contextlib.contextmanager
def stub_of(serving: Serving) -> Iterator[Any]:
    with grpc.insecure_channel(serving.address, options=LOCAL) as channel:
        yield HealthStub(channel)


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code().name, error.value.details() or ""


def test_a_server_says_that_it_serves(serve: Serve) -> None:
    serving = serve()
    with stub_of(serving) as stub:
        assert [stub.Check(asked(name), timeout=20).status for name in NAMES] == [Answer.SERVING] * 2
        statuses = stub.List(health_pb2.HealthListRequest(), timeout=20).statuses
        assert {name: answer.status for name, answer in statuses.items()} == dict.fromkeys(NAMES, Answer.SERVING)
        code, told = refused(lambda: stub.Check(asked("node.Nothing"), timeout=20))
        assert (code, told) == ("NOT_FOUND", 'there is no such service: ask of node.NodeService, or of ""')
        assert refused(lambda: stub.Check(asked("x" * MAX_REQUEST_BYTES), timeout=20))[0] == "RESOURCE_EXHAUSTED"
    assert len(serving.events()) == 1  # of a stranger, a line a minute
    assert not serving.streams()


def test_what_is_no_request_is_refused(serve: Serve) -> None:
    with grpc.insecure_channel(serve().address, options=LOCAL) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert refused(lambda: check(b"\xff\xff", timeout=20))[0] == "INVALID_ARGUMENT"


def test_who_watches_is_told_when_it_goes_away(serve: Serve) -> None:
    serving = serve()
    with stub_of(serving) as stub:
        watches = [stub.Watch(asked(name), timeout=30) for name in (*NAMES, "node.Nothing")]
        assert [next(watch).status for watch in watches] == [Answer.SERVING, Answer.SERVING, Answer.SERVICE_UNKNOWN]
        with futures.ThreadPoolExecutor(len(watches)) as pool:  # what has come when a call ends, gRPC tells those alone who wait
            waiting = [pool.submit(list, told(watch)) for watch in watches]
            serving.network.stop()
            assert [[answer.status for answer in one.result()] for one in waiting] == [[Answer.NOT_SERVING]] * 2 + [[]]
        assert {watch.code() for watch in watches} == {grpc.StatusCode.UNAVAILABLE}
    assert not serving.network.is_alive()


def told(watch: Any) -> Iterator[Any]:
    with contextlib.suppress(grpc.RpcError):
        yield from watch


def test_who_asks_while_it_goes_away_is_told_so() -> None:
    health = Health()
    health.end()
    raw = asyncio.run(health.check(asked().SerializeToString()))
    assert Answer.FromString(raw).status == Answer.NOT_SERVING


def test_only_so_many_watch(serve: Serve) -> None:
    serving = serve()
    with stub_of(serving) as stub:
        watches = [stub.Watch(asked(), timeout=30) for _ in range(MAX_HEALTH_WATCHES_OF_ONE)]
        assert [next(watch).status for watch in watches] == [Answer.SERVING] * MAX_HEALTH_WATCHES_OF_ONE
        code, reason = refused(lambda: next(stub.Watch(asked(), timeout=20)))
        assert (code, reason) == ("RESOURCE_EXHAUSTED", "too many watch the server's health: ask with Check")
        watches[0].cancel()
        eventually(lambda: serving.streams() == MAX_HEALTH_WATCHES_OF_ONE - 1)
        assert next(stub.Watch(asked(), timeout=20)).status == Answer.SERVING
        for watch in watches:
            watch.cancel()
    eventually(lambda: not serving.streams())


def test_a_call_without_a_message_waits_in_vain(serve: Serve) -> None:
    serving = serve(first_message_seconds=0.2)
    with grpc.insecure_channel(serving.address, options=LOCAL) as channel:
        for method in ("Check", "Watch", "List"):
            outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            ask: Any = channel.stream_stream(f"/grpc.health.v1.Health/{method}")
            call = ask(iter(outbox.get, None), timeout=20)
            assert refused(lambda: next(call)) == ("DEADLINE_EXCEEDED", "no message within 0.2 s")  # noqa: B023  # asked now
            outbox.put(None)
    eventually(lambda: not serving.streams())


def test_a_secure_server_is_asked_without_a_token_and_watched_with_one(serve: Serve, tmp_path: pathlib.Path) -> None:
    guard = Guard(tmp_path / "server")
    serving = serve(guard=guard)
    with channel_to(serving.address, key_of(guard)) as channel:
        stub: Any = HealthStub(channel)
        assert stub.Check(asked(), timeout=20).status == Answer.SERVING
        assert refused(lambda: next(stub.Watch(asked(), timeout=20)))[0] == "UNAUTHENTICATED"
        report, look = (headers_of(bearer(guard, role)) for role in (Role.NODE, Role.VIEW))
        assert refused(lambda: next(stub.Watch(asked(), timeout=20, metadata=report)))[0] == "PERMISSION_DENIED"
        watch = stub.Watch(asked(), timeout=20, metadata=look)
        assert next(watch).status == Answer.SERVING
        elsewhere(guard).revoke(next(one.id for one in guard.tokens.issued() if one.role is Role.VIEW))
        assert [answer.status for answer in told(watch)] == []
        assert watch.code() is grpc.StatusCode.UNAUTHENTICATED
