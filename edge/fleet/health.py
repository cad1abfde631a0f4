"""Whether this server serves, by gRPC's own protocol (grpc.health.v1, doc/health-checking.md): for load balancers, Kubernetes, and
nodes that look whether it is back. What is told changes once, when it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from edge.fleet.row import GOING_AWAY, Refused

NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVICES = ("", "node.NodeService")  # that may be asked of: the server as a whole, and what it serves
MAX_REQUEST_BYTES = 256
NO_SUCH_SERVICE = 'there is no such service: ask of node.NodeService, or of ""'


class Health:
    """Answers in bytes to questions in bytes."""

    def __init__(self) -> None:
        self._is_over = asyncio.Event()

    def end(self) -> None:
        """It serves no more, for good: who watches is told, and then left."""
        self._is_over.set()

    async def check(self, raw: bytes) -> bytes:
        """How a service is. Raises Refused."""
        if service_of(raw) not in SERVICES:
            raise Refused(NO_SUCH_SERVICE, grpc.StatusCode.NOT_FOUND)
        return packed(self._response())

    async def list(self, _raw: bytes) -> bytes:
        """How all of them are."""
        return packed(health_pb2.HealthListResponse(statuses=dict.fromkeys(SERVICES, self._response())))

    async def watch(self, raw: bytes, send: Callable[[bytes], Awaitable[object]]) -> None:
        """Tell how a service is, and the change. Raises Refused, at the latest when it is over."""
        if service_of(raw) in SERVICES:
            if not self._is_over.is_set():
                await send(packed(self._response()))
            await self._is_over.wait()
            await send(packed(self._response()))
        else:  # there might be one later
            await send(packed(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)))
            await self._is_over.wait()
        raise Refused(*GOING_AWAY)

    def _response(self) -> health_pb2.HealthCheckResponse:
        answers = health_pb2.HealthCheckResponse
        return answers(status=answers.NOT_SERVING if self._is_over.is_set() else answers.SERVING)


def packed(message: health_pb2.HealthCheckResponse | health_pb2.HealthListResponse) -> bytes:
    """A message as it is sent."""
    raw: bytes = message.SerializeToString()
    return raw


def service_of(raw: bytes) -> str:
    """What is asked of. Raises Refused."""
    if len(raw) > MAX_REQUEST_BYTES:
        raise Refused(f"a request of {len(raw)} bytes: it may have {MAX_REQUEST_BYTES}", grpc.StatusCode.RESOURCE_EXHAUSTED)
    try:
        service: str = health_pb2.HealthCheckRequest.FromString(raw).service
    except (DecodeError, UnicodeDecodeError) as error:  # the latter of protobuf in pure Python
        raise Refused(f"this asks for no service: {error}") from error
    return service
