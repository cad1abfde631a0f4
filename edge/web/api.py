"""JSON for programs, and for the page."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge.web.selection import select
from edge.web.site import Site


def routes(site: Site) -> list[Route]:
    """`/api/match`."""

    async def match(request: Request) -> Response:
        chosen = await select(site.fleet, request.query_params.get("match", ""))
        return JSONResponse({"node_ids": [row.node_id for row in chosen.rows], "not_understood": chosen.not_understood})

    return [Route("/api/match", match)]
