"""What is sent as it lies there: the page, the agent; and whether the server lives."""

from __future__ import annotations

import pathlib

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from edge.web.site import Site

PAGE = pathlib.Path(__file__).with_name("page.html")


def routes(site: Site) -> list[Route]:
    """`/`, `/node.pyz`, `/SHA256SUMS`, `/healthz`, `/readyz`."""

    async def page(_request: Request) -> Response:
        return HTMLResponse(PAGE.read_bytes())

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        return PlainTextResponse("ready\n") if site.is_ready() else PlainTextResponse("going away\n", 503)

    async def agent(request: Request) -> Response:
        if not site.agent:
            return PlainTextResponse("there is no node.pyz beside server.pyz: put it there\n", 404)
        return FileResponse(site.agent.with_name(request.url.path[1:]))

    return [
        Route("/", page),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/node.pyz", agent),
        Route("/SHA256SUMS", agent),
    ]
