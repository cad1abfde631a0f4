"""What is sent as it lies there: the page, the agent; and whether the server lives."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from edge.web.packing import Packing, Piece, piece_of
from edge.web.site import Site

PAGE = pathlib.Path(__file__).with_name("page.html")
SUMS = "SHA256SUMS"
MAX_SUMS = 64 * 1024  # characters of it that are read
BEST = 9  # level of zlib, for what is packed once
OF_CONTENT = ("content-length", "content-type", "content-encoding")
ASK_AGAIN = {"cache-control": "no-cache"}  # what is kept elsewhere is used only after asking whether it is still the same
NO_AGENT = PlainTextResponse("there is no node.pyz beside server.pyz: put it there, and ask again\n", 404)
# What the page may do: run its own script, look as its own style says, and ask this server. No frame around it.
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def routes(site: Site) -> list[Route]:
    """`/`, `/node.pyz`, `/SHA256SUMS`, `/healthz`, `/readyz`."""
    made = Made()

    async def page(request: Request) -> Response:
        return conditional(request, await asyncio.to_thread(made.page, request))

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        return PlainTextResponse("ready\n") if site.is_ready() else PlainTextResponse("going away\n", 503)

    async def agent(request: Request) -> Response:
        return await asyncio.to_thread(sent, request, site.agent, "application/octet-stream") or NO_AGENT

    async def sums(_request: Request) -> Response:
        return await asyncio.to_thread(made.sums, site.agent) or NO_AGENT

    return [
        Route("/", page),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/node.pyz", agent),
        Route(f"/{SUMS}", sums),
    ]


class Made:
    """What is made of files that may change, once for each state of theirs. For threads: two may make it twice."""

    def __init__(self) -> None:
        self._page: tuple[tuple[int, ...], Piece, Mapping[str, str]] = ((), Piece(b"", b""), {})
        self._sums: tuple[tuple[int, ...], str] = ((), "")

    def page(self, request: Request) -> Response:
        """The page, with the policy that lets it do what it has to, and no more. Raises OSError."""
        stamp = stamp_of(PAGE.stat())
        if self._page[0] != stamp:
            content = PAGE.read_bytes()
            self._page = stamp, piece_of(content, BEST), page_headers(content)
        _, page, headers = self._page
        packing = Packing(request)
        tag = f'"{headers["etag"]}{"-gzip" * packing.is_wanted}"'
        return Response(packing.whole(page), headers={**headers, **packing.headers, "etag": tag}, media_type="text/html")

    def sums(self, path: pathlib.Path | None) -> Response | None:
        """The line of a file for sha256sum: that in the sums beside it, which tells of a damaged copy; else of what lies there.
        None where there is none that this user may read."""
        status = status_of(path)
        if not path or not status:
            return None
        stamp = stamp_of(status)
        try:
            if kept := kept_line(path):
                return PlainTextResponse(kept, headers=ASK_AGAIN)
            if self._sums[0] != stamp:
                digest = hashlib.sha256()
                with path.open("rb") as file:
                    while part := file.read(2**20):
                        digest.update(part)
                self._sums = stamp, f"{digest.hexdigest()}  {path.name}\n"
        except OSError:
            return None
        return PlainTextResponse(self._sums[1], headers=ASK_AGAIN)


def kept_line(path: pathlib.Path) -> str:
    """That of a file in the sums beside it; empty where there is none. Those of other files are of what is not served."""
    sums = path.with_name(SUMS)
    try:
        if not sums.is_file():  # a pipe would be waited for
            return ""
        with sums.open(errors="replace") as file:
            found = re.search(rf"(?m)^[0-9a-f]{{64}} [ *]{re.escape(path.name)}$", file.read(MAX_SUMS))
    except OSError:
        return ""
    return f"{found[0]}\n" if found else ""


def page_headers(content: bytes) -> dict[str, str]:
    """Of the page: what it may do is told by what it has."""
    policy = POLICY.format(script=sources_of(content, b"script"), style=sources_of(content, b"style"))
    tag = hashlib.sha256(content).hexdigest()[:32]
    return {"content-security-policy": policy, "x-frame-options": "DENY", "etag": tag, **ASK_AGAIN}


def sources_of(content: bytes, element: bytes) -> str:
    """The elements of this kind in the page, each by its hash, for a content security policy."""
    found = re.findall(rb"<%b(?:\s[^>]*)?>(.*?)</%b>" % (element, element), content, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found) or "'none'"


def sent(request: Request, path: pathlib.Path | None, kind: str) -> Response | None:
    """A file as it is; None where there is none that this user may read."""
    status = status_of(path)
    if not path or not status:
        return None
    return conditional(request, FileResponse(path, headers=ASK_AGAIN, media_type=kind, stat_result=status))


def status_of(path: pathlib.Path | None) -> os.stat_result | None:
    """Of a file that this user may read; None where there is none. For threads."""
    try:
        status = path.stat() if path and os.access(path, os.R_OK) else None
    except OSError:
        return None
    return status if status and stat.S_ISREG(status.st_mode) else None


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Tells whether a file has changed."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def conditional(request: Request, response: Response) -> Response:
    """Nothing but its headers where who asks has it already (RFC 9110, 13.1.2)."""
    tag = response.headers.get("etag", "")
    given = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if not tag or (tag not in given and "*" not in given):
        return response
    kept = {name: value for name, value in response.headers.items() if name not in OF_CONTENT}
    return Response(status_code=304, headers=kept)
