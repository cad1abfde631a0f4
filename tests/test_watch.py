"""Who looks from elsewhere: real calls to a real server."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import node_pb2 as pb
import node_pb2_grpc
from edge.fleet import watch
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import LOCAL, Serving, Stream, headers_of


class Looking:
    """A viewer that the test plays."""

    def __init__(self, address: str, authorization: str | None = None, **first: Any) -> None:
        self._channel = grpc.insecure_channel(address, options=LOCAL)
        self._outbox: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        self.call = node_pb2_grpc.NodeServiceStub(self._channel).Watch(
            iter(self._outbox.get, None), timeout=30, metadata=headers_of(authorization)
        )
        self.ask(**first)

    def ask(self, **fields: Any) -> None:
        self._outbox.put(pb.WatchRequest(**fields))

    def half_close(self) -> None:
        self._outbox.put(None)

    def until(self, wanted: Callable[[pb.WatchUpdate], object]) -> pb.WatchUpdate:
        """The next message that is wanted."""
        return next(update for update in self.call if wanted(update))

    def status(self) -> tuple[grpc.StatusCode, str]:
        with contextlib.suppress(grpc.RpcError):
            for _ in self.call:
                pass
        return self.call.code(), self.call.details()

    def close(self) -> None:
        self.call.cancel()
        self.half_close()
        self._channel.close()


@pytest.fixture(autouse=True)
def many_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tenth of a second, so that no test takes long."""
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.1)


@pytest.fixture
def look() -> Iterator[Callable[..., Looking]]:
    looking: list[Looking] = []

    def start(address: str, **first: Any) -> Looking:
        looking.append(Looking(address, **first))
        return looking[-1]

    yield start
    for one in looking:
        one.close()


def test_the_fleet_whole_and_then_what_changes(
    serve: Callable[..., Serving], connect: Callable[..., Stream], look: Callable[..., Looking]
) -> None:
    serving = serve()
    stream = connect(serving.address)
    stream.answer()
    viewer = look(serving.address, clock_milliseconds=77, open=["box"])
    first = viewer.until(lambda update: update.HasField("server"))
    assert not first.server.may_forget
    assert viewer.until(lambda update: update.is_snapshot).events[0].kind == "joined"
    (row,) = viewer.until(lambda update: update.rows).rows
    assert (row.node_id, row.has_session, row.address) == ("box", True, "127.0.0.1")
    version = viewer.until(lambda update: update.version).version
    echo = viewer.until(lambda update: update.echoed_clock_milliseconds)
    assert (echo.echoed_clock_milliseconds, [one.number for one in echo.details]) == (77, [row.number])
    stream.send(sample=pb.Sample(sequence=1, host=pb.HostSample(cpu_percent=31)))
    stream.send(sample=pb.Sample(sequence=2, host=pb.HostSample(cpu_percent=35)))
    changed = viewer.until(lambda update: update.rows)
    assert changed.version > version and changed.rows[0].summary.utilization_permille in (310, 350)
    details = viewer.until(lambda update: update.details).details[0]
    assert pb.Sample.FromString(details.sample).host.cpu_percent in (31, 35)
    stream.send(leaving=True)
    assert viewer.until(lambda update: update.rows).rows[0].left
    assert serving.network._service.calls() == 0 and serving.streams() == 1  # it is no node
    viewer.close()
    eventually(lambda: serving.streams() == 0 and serving.network._service.feed.viewers() == 0)


def test_who_half_closes_looks_on(serve: Callable[..., Serving], look: Callable[..., Looking]) -> None:
    viewer = look(serve().address)
    viewer.half_close()
    versions = [viewer.until(lambda update: update.version).version for _ in range(2)]
    assert versions == [1, 2]
