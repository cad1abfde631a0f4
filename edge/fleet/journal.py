"""The journal: what a server sees, kept on disk by a thread of its own, so that a restart forgets nothing and one can look back.

Every ten seconds a moment (edge/fleet/moments.py), every five minutes a trend; the oldest moments go where there is no more room.
The network never waits for the disk: the thread takes a snapshot as a screen does, and packs it piece by piece.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import node_pb2 as pb
from edge.event_log import Event
from edge.files import reason
from edge.fleet.counters import JournalState
from edge.fleet.moments import (
    MAX_PART_BYTES,
    NO_SQLITE,
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
    sqlite3,
)
from edge.fleet.row import Row, State, state_of
from edge.fleet.source import EVENTS_KEPT, NoPast, Source
from edge.program import Failure, time_stamp
from edge.state_folder import NotPrivate, StateFile, check_folder, make_folder, state_folder
from edge.text import encodable, show_seconds

FILE = "journal.db"
MOMENT_SECONDS = 10.0
RECORD_SECONDS = 1.0  # the same in a recording
SEGMENT_SECONDS = 600.0  # in which infos are kept once
TREND_SECONDS = 300.0
TRENDS_KEPT_SECONDS = 7 * 24 * 3600.0  # and events; as long as moments are kept in any case
FOLDED_FRAMES = 100  # of the 120 of a history
EVENTS_IN_FILE = 100_000
MAX_PARTS = 1000
ROOM_AT_ONCE = 10  # moments that go at most when one comes
PAUSE_SECONDS = 0.005  # after each part: other threads wait for the interpreter meanwhile
GRACE_SECONDS = 45.0  # for nodes to come back after a restart; more for a large fleet, which spreads its return
RESTORE_SECONDS = 3.0  # that a start waits for what is kept
CLOSE_SECONDS = 5.0  # that an end waits for the last moment
NEWS_SECONDS = 600.0  # that the header says what has happened to what was kept
SLOW_SECONDS = 15.0  # after which a disk is said to give no answer
# The first moment in the minute of the one before it, and that one.
SAME_MINUTE = """
SELECT before, moment FROM (
    SELECT moment, unix_milliseconds / 60000 AS minute, lag(moment) OVER by_number AS before,
        lag(unix_milliseconds / 60000) OVER by_number AS minute_before
    FROM moments WHERE segment <> ? AND moment BETWEEN ? AND ? WINDOW by_number AS (ORDER BY moment)
) WHERE minute = minute_before LIMIT 1
"""
WORDS = {  # SQLite's, for people
    "database or disk is full": "the disk is full",
    "attempt to write a readonly database": "the disk is read-only",
    "database is locked": "another program holds its file",
}


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
        self._changed_bytes = 0  # infos in it that were not there when it began
        self._trend_began = 0.0
        self._thinned = 0  # up to this moment, there is one a minute
        self._seen: set[Event] = set()
        make_private(path)
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

    def is_empty(self) -> bool:
        """Whether it has no moment."""
        return not self._number("SELECT count(*) FROM moments WHERE segment <> ?", TREND)

    def know(self, rows: Iterable[Row], events: Iterable[Event]) -> None:
        """These rows are in the file already, with their frames, and these events."""
        self._seen = set(events)
        self._known = {row.node_id: UNKNOWN._replace(sample_at=row.sample_at, folded_at=row.sample_at) for row in rows}

    def write(
        self,
        now: float,
        wall: float,
        seconds: float,
        rows: Sequence[Row],
        events: Sequence[Event],
        pause: Callable[[], object],
        is_last: bool = False,
    ) -> None:
        """Keep a moment, and a trend when it is due. All of it is in the file when this returns; else nothing.

        `now`: by the clock of the rows' times; `seconds`: since the moment before; `pause` is called between two pieces; `is_last`:
        of this start of the server, so that a trend tells of what is left.
        """
        is_new = now >= self._segment_ends or self._changed_bytes > MAX_PART_BYTES  # all of a segment's are read for a moment
        if is_new:
            self._segment, self._segment_ends, self._infos = self._segment + 1, now + SEGMENT_SECONDS, 0
        if not self._trend_began:
            self._trend_began = now - seconds
        is_due = is_last or now - self._trend_began >= TREND_SECONDS
        parts, infos, known = self._pack(now, rows, is_due, pause)
        self._changed_bytes = 0 if is_new else self._changed_bytes
        new = [event for event in events if event not in self._seen]
        execute_many = self._database.executemany
        with self._transaction():
            self._insert(wall, seconds, self._segment, parts)
            execute_many("INSERT INTO infos (segment, packed) VALUES (?, ?)", [(self._segment, part) for part in infos])
            lines = [(round(1000 * event.time), *map(encodable, event[1:])) for event in new]
            execute_many("INSERT INTO events VALUES (?, ?, ?, ?)", lines)
            if is_due:
                self._insert(wall, now - self._trend_began, TREND, trend_of(known))
        if is_due:
            known = {node_id: one._replace(extent=b"") for node_id, one in known.items()}
            self._trend_began = now
        self._known, self._seen = known, set(events)
        if self._size_bytes is not None:
            self._make_room(wall, self._size_bytes, is_due)

    def _pack(
        self, now: float, rows: Sequence[Row], is_due: bool, pause: Callable[[], object]
    ) -> tuple[list[bytes], list[bytes], dict[str, Known]]:
        """The parts of a moment, the infos that are not kept in its segment yet, and what is known then."""
        count = parts_for(len(rows))
        groups: list[list[Row]] = [[] for _ in range(count)]
        for row in rows:
            groups[part_of(row.node_id, count)].append(row)
        parts, infos = [], []
        all_known: dict[str, Known] = {}
        for group in groups:
            messages, new = [], []
            size = new_size = 0
            for row in group:
                known = self._known.get(row.node_id, UNKNOWN)
                number = known.info_number
                if known.packed_info != row.packed_info or known.segment != self._segment:
                    number = self._infos = self._infos + 1
                    new.append(pb.NodeRow(node_id=row.node_id, info=row.packed_info, info_number=number))
                    new_size += len(row.packed_info)
                    self._changed_bytes += len(row.packed_info)
                if new_size > MAX_PART_BYTES // 4:
                    infos.append(packed(new))
                    new, new_size = [], 0
                message = kept_row(row, now, frames_since(row, known.sample_at), number)
                size += message.ByteSize()
                if size > MAX_PART_BYTES // 2:  # ids can be chosen such that all lie here: what can't be read again is worth less
                    for field in ("sample", "processes", "readings"):
                        message.ClearField(field)
                messages.append(message)
                extent = folded(known, row, is_due)
                all_known[row.node_id] = Known(row.packed_info, self._segment, number, row.sample_at, *extent)
            parts.append(packed(messages))
            if new:
                infos.append(packed(new))
            pause()
        return parts, infos, all_known

    def _insert(self, wall: float, seconds: float, segment: int, parts: Sequence[bytes]) -> None:
        values = [round(1000 * wall), round(1000 * seconds), segment, len(parts), sum(map(len, parts))]
        columns = "unix_milliseconds, milliseconds, segment, parts, bytes"
        moment = self._database.execute(f"INSERT INTO moments ({columns}) VALUES (?, ?, ?, ?, ?)", values).lastrowid
        self._database.executemany("INSERT INTO parts VALUES (?, ?, ?)", [(moment, *part) for part in enumerate(parts)])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    def _make_room(self, wall: float, size_bytes: int, with_trends: bool) -> None:
        """Old moments go, a few at a time, since this must not take long. Trends and events stay longer."""
        execute = self._database.execute
        with self._transaction():
            for _ in range(ROOM_AT_ONCE):
                if self._used_bytes() <= size_bytes or not (victim := self._next_to_go()):
                    break
                self._remove("moment = ?", victim)
            if with_trends:
                self._forget(wall, size_bytes // 4)
        if self._number("PRAGMA page_count") * self._number("PRAGMA page_size") > size_bytes:
            execute("PRAGMA incremental_vacuum(1000)").fetchall()  # it was larger once

    def _next_to_go(self) -> int | None:
        """Of the older half of all moments, one a minute is kept; where that is done, the oldest goes. So a file of one size
        reaches back three times as far. None: there is but one."""
        count, last, first = self._database.execute(
            "SELECT count(*), max(moment), min(moment) FROM moments WHERE segment <> ?", [TREND]
        ).fetchone()
        older = last - count // 2  # the newer half has all its numbers, or nearly so
        found = self._database.execute(SAME_MINUTE, [TREND, self._thinned, older]).fetchone()
        if found:
            self._thinned, victim = found
            return int(victim)
        self._thinned = self._number(
            "SELECT coalesce(max(moment), 0) FROM moments WHERE segment <> ? AND moment <= ?", TREND, older
        )
        return int(first) if count > 1 else None

    def _forget(self, wall: float, trend_bytes: int) -> None:
        """Trends that are older than any moment, and old, or too many; and events."""
        first = self._number("SELECT min(unix_milliseconds) FROM moments WHERE segment <> ?", TREND)
        since = min(1000 * (wall - TRENDS_KEPT_SECONDS), first)
        self._remove("segment = ? AND unix_milliseconds < ?", TREND, since)
        while self._number("SELECT coalesce(sum(bytes), 0) FROM moments WHERE segment = ?", TREND) > trend_bytes:
            self._remove("moment = ?", self._number("SELECT min(moment) FROM moments WHERE segment = ?", TREND))
        too_many = "rowid <= (SELECT max(rowid) FROM events) - ?"
        self._database.execute(f"DELETE FROM events WHERE unix_milliseconds < ? OR {too_many}", [since, EVENTS_IN_FILE])
        self._database.execute("DELETE FROM infos WHERE segment NOT IN (SELECT segment FROM moments)")

    def _remove(self, which: str, *values: float) -> None:
        self._database.execute(f"DELETE FROM parts WHERE moment IN (SELECT moment FROM moments WHERE {which})", values)
        self._database.execute(f"DELETE FROM moments WHERE {which}", values)

    def extent(self) -> tuple[int, float | None]:
        """What it takes on disk, in bytes; and the first moment that is kept, in seconds by the wall clock."""
        first = self._number("SELECT coalesce(min(unix_milliseconds), 0) FROM moments WHERE segment <> ?", TREND)
        return self._used_bytes(), first / 1000 if first else None

    def _used_bytes(self) -> int:
        free = self._number("PRAGMA freelist_count")
        return (self._number("PRAGMA page_count") - free) * self._number("PRAGMA page_size")

    def _number(self, query: str, *values: float) -> int:
        (number,) = self._database.execute(query, values).fetchone()
        return int(number)

    def close(self) -> None:
        """Let go of it: one file, with nothing beside it."""
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.close()


def is_there(path: pathlib.Path) -> bool:
    """Whether this user can see it."""
    try:
        return path.exists()
    except OSError:
        return False


def make_private(path: pathlib.Path) -> None:
    """Make it where it is not there. What runs on a fleet is nobody else's business, whoever has made the file. Raises OSError."""
    nofollow = getattr(os, "O_NOFOLLOW", 0)
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            flags = os.O_RDWR | nofollow | (0 if ending else os.O_CREAT)
            descriptor = os.open(path.with_name(path.name + ending), flags, 0o600)
            try:
                if os.name == "posix" and os.fstat(descriptor).st_mode & 0o077:
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)


def parts_for(rows: int) -> int:
    """In how many parts so many rows lie."""
    return min(max(-(-rows // ROWS_A_PART), 1), MAX_PARTS)


def frames_since(row: Row, sample_at: float | None) -> bytes:
    """The frames of a row's history that are newer than the sample which was taken then; None: all."""
    if sample_at is None or row.sample_at is None:
        return row.history
    count = round((row.sample_at - sample_at) / spacing_seconds(row))
    return row.history[-count * row.capacities.frame_bytes :] if count > 0 else b""


def folded(known: Known, row: Row, is_due: bool) -> tuple[float | None, bytes]:
    """`folded_at` and `extent` after a row: many frames go into it at once, which takes less time; all of them when it is due."""
    at, since = row.sample_at, known.folded_at
    if at is None or (not is_due and since is not None and at - since < FOLDED_FRAMES * spacing_seconds(row)):
        return since, known.extent
    frames = frames_since(row, since)
    return at, extent_of(frames, row.capacities.frame_bytes, known.extent) if frames else known.extent


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
        store: Callable[[], Store],
        path: pathlib.Path,
        source: Source,
        seconds: float,
        restore: Callable[[Source], object] | None = None,
        tell: Callable[[str, str], object] = lambda _kind, _text: None,
        name: str = "journal",
        held: Sequence[StateFile] = (),
        limit_bytes: int | None = None,
    ) -> None:
        """`store` opens the file; `restore` takes the newest moment of before, if there is one; `tell` is given each trouble
        once, and its end: an event's kind and text. `name`: what people call it; `held`: what it lets go of at its end;
        `limit_bytes`: what it may take on disk; None: as much as it needs."""
        self.limit_bytes = limit_bytes
        self.past = Kept(path, is_own=True)
        self._open, self._path, self._source, self._seconds = store, path, source, seconds
        self._restore, self._tell_of, self._name, self._held = restore, tell, name, held
        self._store: Store | None = None
        self._size_bytes: int | None = None  # as of the last moment
        self._first: float | None = None  # moment that is kept
        self._stop, self._is_read = threading.Event(), threading.Event()
        self._trouble, self._busy_since = "", 0.0
        self._news, self._news_until = "", 0.0  # no trouble any more, and yet what people should know
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Returns when what was kept has been read, or the disk is too slow for a start to wait."""
        self._thread.start()
        self._is_read.wait(RESTORE_SECONDS)

    def close(self) -> None:
        """Write the last moment. A disk that gives no answer is not waited for."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)

    def notices(self) -> Sequence[str]:
        """What is wrong, for the header."""
        began = self._busy_since  # the thread may end it meanwhile
        silent = time.monotonic() - began if began else 0.0
        if silent > SLOW_SECONDS:
            return [f"{self._name}: its disk has given no answer for {show_seconds(silent)}"]
        said = self._trouble or (self._news if time.monotonic() < self._news_until else "")
        return [f"{self._name}: {said}"] if said else ()

    def state(self) -> JournalState:
        """As its last moment left it: the disk is not asked."""
        is_silent = self._busy_since and time.monotonic() - self._busy_since > SLOW_SECONDS
        return JournalState(not (self._trouble or is_silent), self.limit_bytes, self._size_bytes, self._first)

    def _tell(self, text: str, kind: str = "warning") -> None:
        self._tell_of(kind, f"{self._name}: {text}")

    def _run(self) -> None:
        """A thread that dies says so."""
        try:
            self._work()
        except Exception:
            logging.getLogger(__name__).exception(f"the {self._name} has ended by an error of its own")
            self._trouble = "it has ended by an error of its own"
        finally:
            self._busy_since = 0.0
            self._is_read.set()
            for file in self._held:
                file.close()

    def _work(self) -> None:
        self._guarded(self._read)
        self._is_read.set()
        taken_at, wait = self._source.clock(), self._seconds
        is_over = False
        while not is_over:
            is_over = self._stop.wait(wait)
            now = self._source.clock()
            self._guarded(functools.partial(self._take, now, now - taken_at, is_over))
            taken_at, spent = now, self._source.clock() - now
            wait = max(self._seconds - spent, self._seconds / 2)  # so that what is not on the disk yet is never older than that
        if self._store:
            self._store.close()

    def _guarded(self, action: Callable[[], object]) -> None:
        """The one boundary of what a disk, and what lies there, may do."""
        self._busy_since = began = time.monotonic()
        trouble, is_refused = "", False
        try:
            self._store = self._store or self._open()
            action()
        except (BlockingIOError, NotPrivate) as error:  # what lies there is another server's, or anyone's
            trouble, is_refused = str(error), True
        except OtherLayout as error:
            trouble = self._put_aside("other-version", "another version has written it", error)
        except sqlite3.OperationalError as error:
            trouble = WORDS.get(str(error), str(error))
        except sqlite3.DatabaseError as error:
            trouble = self._put_aside("damaged", "it was damaged", error)
        except OSError as error:
            trouble = str(error) if error.errno is None else f"{self._path.parent}: {reason(error)}"
        is_withheld = is_refused or (trouble and not self._store and not is_there(self._path))
        self._busy_since, self.past.withheld = 0.0, trouble if is_withheld else ""
        spent = time.monotonic() - began
        if spent > SLOW_SECONDS:
            self._tell(f"its disk gave no answer for {show_seconds(spent)}")
        if trouble and trouble != self._trouble:
            self._tell(trouble)
        elif self._trouble and not trouble:
            self._tell("it is written again", "back")
        self._trouble = trouble

    def _put_aside(self, name: str, why: str, error: Exception) -> str:
        """Begin a new file, and keep one of such old ones; returns what is wrong then."""
        aside = self._path.with_name(f"{self._path.stem}.{name}{self._path.suffix}")
        if self._store:
            self._store.close()
            self._store = None
        try:
            for ending in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    self._path.with_name(self._path.name + ending).replace(aside.with_name(aside.name + ending))
            self.past.clear()
            self._tell(f"{why}: it is {aside.name} now, and a new one begins, in {aside.parent} ({error})")
            self._news, self._news_until = f"{why}, and a new one began", time.monotonic() + NEWS_SECONDS
            self._store = self._open()
        except (OSError, sqlite3.Error) as failure:
            return f"{why}, and no new one can begin: {failure}"
        return ""

    def _read(self) -> None:
        if self._restore and self._store and not self._store.is_empty():
            events: Sequence[Event] = ()
            try:
                moment = self.past.newest()
                self._restore(moment)
                events = moment.newest_events(EVENTS_KEPT)
            except NoPast as error:
                if type(error.__cause__) is sqlite3.DatabaseError:  # the file itself is spoilt, and not this moment alone
                    raise error.__cause__ from error
                self._tell(f"what was before this start is not known: {error}")
            came_back = (row for row in self._source.snapshot() if row.session is None)  # others have come while it was read
            self._store.know(came_back, events)

    def _take(self, now: float, seconds: float, is_last: bool) -> None:
        if self._store:
            wall, rows, events = self._source.wall(), self._source.snapshot(), self._source.newest_events(EVENTS_KEPT)
            self._store.write(now, wall, seconds, rows, events, lambda: self._stop.wait(PAUSE_SECONDS), is_last)
            self._size_bytes, self._first = self._store.extent()


def keep(
    options: argparse.Namespace,
    source: Source,
    tell: Callable[[str, str], object],
    ending: contextlib.ExitStack,
    restore: Callable[[Source], object] | None = None,
) -> list[Journal]:
    """What writes of a fleet, until `ending`, what the command line asks for. `restore`: of a server's own fleet, which alone has a
    journal; takes what there was of it before. Raises Failure."""
    if not sqlite3:
        if options.record:
            raise Failure(f"cannot record: {NO_SQLITE}")
        if not options.no_journal:
            tell("warning", f"journal: {NO_SQLITE}")
        return []
    kept = []
    if restore and not options.no_journal:
        kept.append(journal_in(options.state, options.journal_size, source, restore, tell))
    if options.record:
        kept.append(recording_to(options.record, source, tell))
    for journal in kept:
        journal.start()
        ending.callback(journal.close)
    return kept


def journal_in(
    given: pathlib.Path | None,
    size_bytes: int,
    source: Source,
    restore: Callable[[Source], object],
    tell: Callable[[str, str], object],
) -> Journal:
    """The journal of a server, in its state folder, which no other server may use meanwhile; a folder may be given."""
    folder, nowhere = given, ""
    if not folder:
        try:
            folder = state_folder()
        except OSError as error:
            folder, nowhere = pathlib.Path(), str(error)
    path, held = folder / FILE, list[StateFile]()

    def opened() -> Store:
        if nowhere:
            raise OSError(nowhere)
        if not held:
            make_folder(folder)
            check_folder(folder)
            held.append(lock_of(path))
        return Store(path, size_bytes)

    return Journal(opened, path, source, MOMENT_SECONDS, restore, tell, held=held, limit_bytes=size_bytes)


def lock_of(path: pathlib.Path) -> StateFile:
    """Raises OSError; BlockingIOError where another server has it."""
    try:
        return StateFile(path.with_suffix(".lock"))
    except BlockingIOError:
        raise BlockingIOError(f"another server keeps its own in {path.parent}: give this one another folder, by --state") from None


def recording_to(path: pathlib.Path, source: Source, tell: Callable[[str, str], object]) -> Journal:
    """A recording: a moment a second, in a new file. Raises Failure."""
    if path.exists():
        raise Failure(f"{path} is there already: give --record another name")
    try:
        Store(path, None).close()
    except (OSError, sqlite3.Error) as error:
        raise Failure(f"cannot record to {path}: {error}") from error
    return Journal(functools.partial(Store, path, None), path, source, RECORD_SECONDS, tell=tell, name="recording")


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
