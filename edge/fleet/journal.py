"""The journal: what a server sees, kept on disk by a thread of its own, so that a restart forgets nothing and one can look back.

Every ten seconds a moment (edge/fleet/moments.py), every five minutes a trend; the oldest moments go where there is no more room.
The network never waits for the disk: the thread takes a snapshot as a screen does, and packs it piece by piece.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge.event_log import Event
from edge.fleet.moments import (
    ROWS_A_PART,
    SCHEMA,
    TREND,
    Kept,
    OtherLayout,
    check_layout,
    extent_of,
    frames_of_extent,
    kept_row,
    packed,
    part_of,
    spacing_seconds,
)
from edge.fleet.row import Row, State, state_of
from edge.fleet.source import EVENTS_KEPT, NoPast, Source
from edge.history import COLUMNS
from edge.program import time_stamp
from edge.state_folder import StateFile, make_folder

FILE = "journal.db"
MOMENT_SECONDS = 10.0
RECORD_SECONDS = 1.0  # the same in a recording
SEGMENT_SECONDS = 600.0  # in which infos are kept once
TREND_SECONDS = 300.0
TRENDS_KEPT_SECONDS = 7 * 24 * 3600.0  # and events; as long as moments are kept in any case
FOLDED_FRAMES = 100  # of the 120 of a history
EVENTS_IN_FILE = 100_000
MAX_PARTS = 1000
PAUSE_SECONDS = 0.005  # after each part: other threads wait for the interpreter meanwhile
GRACE_SECONDS = 45.0  # for nodes to come back after a restart; more for a large fleet, which spreads its return
RESTORE_SECONDS = 3.0  # that a start waits for what is kept
CLOSE_SECONDS = 5.0  # that an end waits for the last moment
SLOW_SECONDS = 15.0  # after which a disk is said to give no answer


class Known(NamedTuple):
    """What the file has of a node already."""

    packed_info: bytes
    segment: int  # where its info is kept, under this number
    info_number: int
    sample_at: float | None  # its frames up to there
    folded_at: float | None  # those up to there are in its extent
    extent: bytes  # of its readings since the last trend; empty: none yet


UNKNOWN = Known(b"", 0, 0, None, None, b"")


class Store:
    """The file, as its one writer sees it. Not for several threads. Raises sqlite3.Error, OSError or OtherLayout."""

    def __init__(self, path: pathlib.Path, size_bytes: int | None) -> None:
        """`size_bytes`: what it may take; None: as much as it needs."""
        self._size_bytes = size_bytes
        self._known: dict[str, Known] = {}
        self._segment, self._segment_ends, self._infos = 0, 0.0, 0
        self._trend_began = 0.0
        self._seen: set[Event] = set()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # what runs on a fleet is nobody else's business
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        execute = self._database.execute
        if not execute("PRAGMA user_version").fetchone()[0] and not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            execute("PRAGMA page_size = 16384")  # moments are large: fewer pages in a row
            execute("PRAGMA auto_vacuum = INCREMENTAL")  # where --journal-size has become smaller
        execute("PRAGMA journal_mode = WAL")  # whoever reads does not stop who writes
        execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing; without power, the last moments at most
        execute("PRAGMA journal_size_limit = 67108864")
        if not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._database.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        check_layout(self._database)
        (self._segment,) = execute("SELECT coalesce(max(segment), 0) FROM moments").fetchone()

    def know(self, rows: Iterable[Row]) -> None:
        """These rows are in the file already, with their frames."""
        self._known = {row.node_id: UNKNOWN._replace(sample_at=row.sample_at, folded_at=row.sample_at) for row in rows}

    def write(
        self, now: float, wall: float, seconds: float, rows: Sequence[Row], events: Sequence[Event], pause: Callable[[], object]
    ) -> None:
        """Keep a moment, and a trend when it is due. All of it is in the file when this returns; else nothing.

        `now`: by the clock of the rows' times; `seconds`: since the moment before; `pause` is called between two pieces.
        """
        if now >= self._segment_ends:
            self._segment, self._segment_ends, self._infos = self._segment + 1, now + SEGMENT_SECONDS, 0
        if not self._trend_began:
            self._trend_began = now - seconds
        is_due = now - self._trend_began >= TREND_SECONDS
        parts, infos, known = self._pack(now, rows, is_due, pause)
        new = [event for event in events if event not in self._seen]
        execute = self._database.execute
        with self._transaction():
            self._insert(wall, seconds, self._segment, parts)
            if infos:
                execute("INSERT INTO infos (segment, packed) VALUES (?, ?)", [self._segment, packed(infos)])
            lines = [(round(1000 * event.time), *event[1:]) for event in new]
            self._database.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", lines)
            if is_due:
                self._insert(wall, now - self._trend_began, TREND, trend_of(known))
        if is_due:
            known = {node_id: one._replace(extent=b"") for node_id, one in known.items()}
            self._trend_began = now
        self._known, self._seen = known, set(events)
        self._make_room(wall)

    def _pack(
        self, now: float, rows: Sequence[Row], is_due: bool, pause: Callable[[], object]
    ) -> tuple[list[bytes], list[pb.NodeRow], dict[str, Known]]:
        """The parts of a moment, the infos that are not kept in its segment yet, and what is known then."""
        count = parts_for(len(rows))
        groups: list[list[Row]] = [[] for _ in range(count)]
        for row in rows:
            groups[part_of(row.node_id, count)].append(row)
        parts: list[bytes] = []
        infos: list[pb.NodeRow] = []
        all_known: dict[str, Known] = {}
        for group in groups:
            messages = []
            for row in group:
                known = self._known.get(row.node_id, UNKNOWN)
                number = known.info_number
                if known.packed_info is not row.packed_info or known.segment != self._segment:
                    number = self._infos = self._infos + 1
                    infos.append(pb.NodeRow(node_id=row.node_id, info=row.packed_info, info_number=number))
                messages.append(kept_row(row, now, frames_since(row, known.sample_at), number))
                known = folded(known, row, is_due)
                all_known[row.node_id] = known._replace(
                    packed_info=row.packed_info, segment=self._segment, info_number=number, sample_at=row.sample_at
                )
            parts.append(packed(messages))
            pause()
        return parts, infos, all_known

    def _insert(self, wall: float, seconds: float, segment: int, parts: Sequence[bytes]) -> None:
        values = [round(1000 * wall), round(1000 * seconds), segment, len(parts), sum(map(len, parts))]
        columns = "unix_milliseconds, milliseconds, segment, parts, bytes"
        moment = self._database.execute(f"INSERT INTO moments ({columns}) VALUES (?, ?, ?, ?, ?)", values).lastrowid
        self._database.executemany("INSERT INTO parts VALUES (?, ?, ?)", [(moment, *part) for part in enumerate(parts)])

    @contextlib.contextmanager
    def _transaction(self):  # type: ignore[no-untyped-def]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    def _make_room(self, wall: float) -> None:
        """The ring."""

    def close(self) -> None:
        """Let go of it: one file, with nothing beside it."""
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.close()


def parts_for(rows: int) -> int:
    """In how many parts so many rows lie."""
    return min(max(-(-rows // ROWS_A_PART), 1), MAX_PARTS)


def width_of(row: Row) -> int:
    """Of a frame of its history."""
    return len(COLUMNS) * (1 + len(row.capacities.devices))


def frames_since(row: Row, sample_at: float | None) -> bytes:
    """The frames of a row's history that are newer than the sample which was taken then; None: all."""
    if sample_at is None or row.sample_at is None:
        return row.history
    count = round((row.sample_at - sample_at) / spacing_seconds(row))
    return row.history[-count * width_of(row) :] if count > 0 else b""


def folded(known: Known, row: Row, is_due: bool) -> Known:
    """What is known after the row's newer frames went into its extent: many at once, which takes less time; all when it is due."""
    if row.sample_at is None:
        return known
    if not is_due and known.folded_at and (row.sample_at - known.folded_at) / spacing_seconds(row) < FOLDED_FRAMES:
        return known
    frames = frames_since(row, known.folded_at)
    extent = extent_of(frames, width_of(row), known.extent) if frames else known.extent
    return known._replace(folded_at=row.sample_at, extent=extent)


def trend_of(known: Mapping[str, Known]) -> list[bytes]:
    """The parts of a trend."""
    with_extent = [(node_id, one.extent) for node_id, one in known.items() if one.extent]
    count = parts_for(len(with_extent))
    groups: list[list[pb.NodeRow]] = [[] for _ in range(count)]
    for node_id, extent in with_extent:
        groups[part_of(node_id, count)].append(pb.NodeRow(node_id=node_id, readings=frames_of_extent(extent)))
    return list(map(packed, groups))


class Journal:
    """The thread that writes, and what is wrong with it."""

    def __init__(
        self,
        path: pathlib.Path,
        source: Source,
        size_bytes: int | None = None,
        seconds: float = MOMENT_SECONDS,
        restore: Callable[[Source], object] | None = None,
        complain: Callable[[str], object] = lambda _text: None,
    ) -> None:
        """`restore`: takes the newest moment of before, if there is one; `complain`: tells of trouble, once."""
        self.past = Kept(path)
        self._path, self._source, self._size_bytes, self._seconds = path, source, size_bytes, seconds
        self._restore, self._complain = restore, complain
        self._store: Store | None = None
        self._lock: StateFile | None = None
        self._stop, self._is_read = threading.Event(), threading.Event()
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Returns when what was kept has been read, or the disk is too slow."""
        self._thread.start()
        self._is_read.wait(RESTORE_SECONDS)

    def close(self) -> None:
        """Write the last moment; a disk that gives no answer is not waited for."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)

    def notices(self) -> Sequence[str]:
        """What is wrong, for the header."""
        return [self._trouble] if self._trouble else ()

    def _run(self) -> None:
        try:
            self._read()
        finally:
            self._is_read.set()
        taken_at = self._source.clock()
        wait = self._seconds
        while True:
            is_over = self._stop.wait(wait)
            now = self._source.clock()
            self._take(now, now - taken_at)
            taken_at, spent = now, self._source.clock() - now
            wait = max(self._seconds - spent, self._seconds / 2)  # so that what is not on disk yet is never older than that
            if is_over:
                break
        if self._store:
            self._store.close()

    def _read(self) -> None:
        if not self._open() or not self._restore or not self._store:
            return
        try:
            moment = self.past.newest()
        except NoPast:
            return
        self._restore(moment)
        self._store.know(self._source.snapshot())

    def _open(self) -> bool:
        try:
            make_folder(self._path.parent)
            self._lock = self._lock or StateFile(self._path.with_suffix(".lock"))
            self._store = Store(self._path, self._size_bytes)
        except (sqlite3.Error, OSError, OtherLayout) as error:
            self._fail(str(error))
        return self._store is not None

    def _take(self, now: float, seconds: float) -> None:
        if not self._store and not self._open():
            return
        assert self._store
        try:
            wall, rows, events = self._source.wall(), self._source.snapshot(), self._source.newest_events(EVENTS_KEPT)
            self._store.write(now, wall, seconds, rows, events, lambda: self._stop.wait(PAUSE_SECONDS))
        except (sqlite3.Error, OSError) as error:
            self._fail(str(error))
        else:
            self._trouble = ""

    def _fail(self, why: str) -> None:
        trouble = f"journal: {why}"
        if trouble != self._trouble:
            self._complain(trouble)
        self._trouble = trouble


def restored(moment: Source, now: float, wall: float) -> list[Row]:
    """The rows of a moment as they are after a restart; `now` by the new clock of their times. Who was heard last is first."""
    rows, then = moment.snapshot(), moment.clock()
    elapsed = max(wall - moment.wall(), 0.0)
    shift = now - elapsed - then
    awaited_until = now + GRACE_SECONDS + len(rows) / 700
    back = []
    for row in sorted(rows, key=lambda row: row.heartbeat_at, reverse=True):
        is_gone = state_of(row, then) in (State.LOST, State.LEFT)
        heard = time_stamp(moment.wall() - (then - row.heartbeat_at))
        back.append(
            row._replace(
                session=None,
                reason=row.reason if row.left else f"last heard {heard}, before this server's start",
                sample_at=None if row.sample_at is None else row.sample_at + shift,
                heartbeat_at=row.heartbeat_at + shift,
                awaited_until=0.0 if is_gone else awaited_until,
            )
        )
    return back
