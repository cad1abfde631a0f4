"""A recording, or another server's journal, on a screen: a past without a now, which is played from its beginning."""

from __future__ import annotations

import pathlib
import time

from edge.fleet.lens import Ui
from edge.fleet.moments import Kept
from edge.fleet.source import NoPast, Past
from edge.fleet.times import is_time
from edge.program import Failure


def opened(path: pathlib.Path, speed: float) -> tuple[Past, Ui]:
    """What is kept in a file, and a Ui that plays it from its first moment on. Raises Failure."""
    if path.is_dir():
        raise Failure(f"{path} is a folder: name the file, like {path / 'journal.db'}")
    if not path.exists():
        raise Failure(f"{path} is not there: --replay plays a file that --record has made, or a journal")
    past = Kept(path)
    try:
        first, last = past.span()
    except NoPast as error:
        raise Failure(f"{path} can't be played: {error}") from error
    if not is_time(first) or not is_time(last):
        raise Failure(f"{path} can't be played: it has times that there never were")
    return past, Ui(at=first, playing_since=time.monotonic(), speed=speed)
