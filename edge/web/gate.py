"""Who gets an answer: the host that is asked for, the method, the token."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from edge.web.site import Site


class Gate:
    """Stands before all routes."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app, self._site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
