"""The HTTP listener: uvicorn in the loop that takes the heartbeats, with bounds of its own."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.routing import Router

from edge.command_line import Endpoint
from edge.program import Failure
from edge.web import api, files, scrape
from edge.web.gate import Gate
from edge.web.site import Site


class Listener:
    """Serves a site, from `start` to `stop`, in the loop that calls them."""

    def __init__(self, site: Site) -> None:
        app = Gate(Router([*files.routes(site), *api.routes(site), *scrape.routes(site)]), site)
        config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False)
        self._server = uvicorn.Server(config)

    async def start(self, endpoint: Endpoint) -> Endpoint:
        """Listen; returns where, with the real port. Raises Failure."""
        try:
            bound = socket.create_server((endpoint.host, endpoint.port))
        except OSError as error:
            raise Failure(f"cannot listen on {endpoint}: {error}; give --http another port") from error
        self._serving = asyncio.create_task(self._server.serve([bound]))
        return endpoint._replace(port=bound.getsockname()[1])

    async def stop(self) -> None:
        """Take no more requests, and end those that go on."""
        self._server.should_exit = True
        await self._serving
