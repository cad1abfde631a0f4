"""Whether this server serves, by gRPC's own protocol (grpc.health.v1, doc/health-checking.md): for load balancers, Kubernetes, and
nodes that look whether it is back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME, aio

from edge.fleet.row import GOING_AWAY, Refused

NAME: str = SERVICE_NAME
SERVICES = ("", "node.NodeService")  # that may be asked of: the server as a whole, and what it serves
MAX_REQUEST_BYTES = 256
NO_SUCH_SERVICE = 'there is no such service: ask of node.NodeService, or of ""'


class Health:
    """The package's servicer, asked in bytes."""

    def __init__(self) -> None:
        self._servicer: Any = aio.HealthServicer()
        self._is_over = False

    async def begin(self) -> None:
        """From now on it serves."""
        for name in SERVICES:
            await self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def end(self) -> None:
        """It serves no more, for good: who watches is told, and then left."""
        self._is_over = True
        await self._servicer.enter_graceful_shutdown()

    async def check(self, raw: bytes) -> bytes:
        """How it is. Raises Refused."""
        packed: bytes = (await self._servicer.Check(request_of(raw), Context())).SerializeToString()
        return packed

    async def list(self, _raw: bytes) -> bytes:
        """How all of them are."""
        statuses = {name: await self._servicer.Check(health_pb2.HealthCheckRequest(service=name), Context()) for name in SERVICES}
        packed: bytes = health_pb2.HealthListResponse(statuses=statuses).SerializeToString()
        return packed

    async def watch(self, raw: bytes, send: Callable[[bytes], Awaitable[object]]) -> None:
        """Tell how it is, and each change, until this is cancelled. Raises Refused; at the end, too."""

        async def write(response: health_pb2.HealthCheckResponse) -> None:
            await send(response.SerializeToString())
            if self._is_over:
                raise Refused(*GOING_AWAY)

        await self._servicer.Watch(request_of(raw), Context(write))


class Context:
    """What the package asks of gRPC's."""

    def __init__(self, write: Callable[[health_pb2.HealthCheckResponse], Awaitable[None]] | None = None) -> None:
        self.write = write

    async def abort(self, code: grpc.StatusCode) -> NoReturn:
        """Of a service that is not there."""
        raise Refused(NO_SUCH_SERVICE, code)


def request_of(raw: bytes) -> health_pb2.HealthCheckRequest:
    """What came on the wire. Raises Refused."""
    if len(raw) > MAX_REQUEST_BYTES:
        raise Refused(f"a request of {len(raw)} bytes: it may have {MAX_REQUEST_BYTES}", grpc.StatusCode.RESOURCE_EXHAUSTED)
    try:
        return health_pb2.HealthCheckRequest.FromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:  # the latter of protobuf in pure Python
        raise Refused(f"this asks for no service: {error}") from error
