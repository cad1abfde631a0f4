"""`server.pyz token new|list|revoke`: who may come in."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the command with what follows `token`; return its exit code."""
    raise NotImplementedError
