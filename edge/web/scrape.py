"""What Prometheus reads, and how it is told to."""

from __future__ import annotations

from starlette.routing import Route

from edge.web.site import Site


def routes(site: Site) -> list[Route]:
    """`/metrics`, `/metrics/fleet`."""
    del site
    return []
