"""A file of moments: a fleet as it was, again and again, in SQLite. How it is laid out and read. A journal is such a file, and so
is a recording.

A moment is whole in itself but for the nodes' infos, which are kept once a segment. Its rows lie in parts of some hundred, each a
compressed WatchUpdate; a node's part follows from its id, so that one node's course is read without the others'. A trend is a
moment whose rows have two frames alone: the lowest and the highest of each reading in the time before it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import google.protobuf.message

import node_pb2 as pb
from edge import history
from edge.event_log import Event
from edge.fleet.checks import check_info
from edge.fleet.intake import capacities_of, labels_of
from edge.fleet.row import Refused, Row
from edge.fleet.source import EVENTS_KEPT, Moment, NoPast, Readings, Source
from edge.fleet.wire import node_row, row_of
from edge.program import version_numbers
from edge.protocol import MAX_DEVICES, MAX_NODE_ID
from edge.text import MAX_SENTENCE, visible

try:
    import sqlite3 as sqlite3  # noqa: PLC0414  # the journal has it from here
except ImportError:  # a Python can be built without it
    sqlite3 = None  # type: ignore[assignment]

NO_SQLITE = "this Python has no sqlite3: install it with the system's packages, or run another Python"
LAYOUT = 1  # of the file: what another version has is not read
TREND = 0  # in the place of a segment
ROWS_A_PART = 100
MAX_PART_BYTES = 2**26  # unpacked: a file may come from anywhere
MAX_ROWS, MAX_MOMENT_BYTES = 2**17, 2**29  # of a moment, and of the infos of a segment
MAX_READING_SECONDS = 30.0  # that a file from elsewhere may take to answer: it may have views without an end
ROW_TAG = pb.WatchUpdate.ROWS_FIELD_NUMBER << 3 | 2  # what stands before each row
SMALL_FLEET = 1000  # nodes whose histories a start has the time to read
HISTORY_SECONDS = 120.0  # that these go back
FINE_SECONDS = 2 * 3600.0  # that a graph is drawn from moments at most: each is read whole, which takes half a millisecond
SCHEMA = f"""
CREATE TABLE moments (
    moment INTEGER PRIMARY KEY,  -- in the order in which they were written: a wall clock may be set back
    unix_milliseconds INTEGER NOT NULL,
    milliseconds INTEGER NOT NULL,  -- of which its readings are, up to there
    segment INTEGER NOT NULL,  -- whose infos its rows have; {TREND} is a trend
    parts INTEGER NOT NULL,
    bytes INTEGER NOT NULL  -- of its parts
);
CREATE INDEX moments_by_time ON moments (unix_milliseconds);
CREATE TABLE parts (moment INTEGER NOT NULL, part INTEGER NOT NULL, packed BLOB NOT NULL, PRIMARY KEY (moment, part));
CREATE TABLE infos (info INTEGER PRIMARY KEY, segment INTEGER NOT NULL, packed BLOB NOT NULL);
CREATE INDEX infos_by_segment ON infos (segment);
CREATE TABLE events (unix_milliseconds INTEGER NOT NULL, kind TEXT NOT NULL, node_id TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX events_by_time ON events (unix_milliseconds);
PRAGMA user_version = {LAYOUT};
"""


class OtherLayout(Exception):
    """A file that another version has written."""


def part_of(node_id: str, parts: int) -> int:
    """Where a node's row lies."""
    return zlib.crc32(node_id.encode()) % parts


def packed(rows: Iterable[pb.NodeRow]) -> bytes:
    """Rows as a part."""
    return zlib.compress(pb.WatchUpdate(rows=rows).SerializeToString(), 1)


def unpacked(parts: Iterable[bytes]) -> Iterator[pb.NodeRow]:
    """The rows of these parts, one at a time: a megabyte can hold half a million empty ones. Raises ValueError for what is none,
    and where there are more than a moment has."""
    count = size = 0
    for part in parts:
        try:
            raw, at = zlib.decompressobj().decompress(part, MAX_PART_BYTES), 0
            size += len(raw)
            while at < len(raw):
                length, digits, count = 0, at + 1, count + 1
                while raw[digits] & 0x80 and digits <= at + 4:
                    digits += 1
                for byte in raw[digits:at:-1]:
                    length = length << 7 | byte & 0x7F
                begin, end = digits + 1, digits + 1 + length
                if raw[at] != ROW_TAG or end > len(raw) or count > MAX_ROWS or size > MAX_MOMENT_BYTES:
                    raise ValueError("what it holds is no moment")
                yield pb.NodeRow.FromString(raw[begin:end])
                at = end
        except (zlib.error, google.protobuf.message.DecodeError, IndexError) as error:
            raise ValueError(f"a part can't be read: {error}") from error


def check_layout(database: sqlite3.Connection) -> None:
    """Raises OtherLayout, or sqlite3.Error."""
    (layout,) = database.execute("PRAGMA user_version").fetchone()
    if layout != LAYOUT:
        raise OtherLayout(f"its layout is {layout}, and this version reads {LAYOUT}")


def spacing_seconds(row: Row) -> float:
    """From one frame of its history to the next."""
    return max(row.interval_seconds, row.capacities.sampling_seconds) or 1.0


def kept_row(row: Row, now: float, frames: bytes, info_number: int) -> pb.NodeRow:
    """A row of a moment. `frames`: those since the moment before. Its number, which nothing else needs here, is the time from
    one of them to the next, in milliseconds."""
    message = node_row(round(1000 * spacing_seconds(row)), row, now, before=row, details=True, processes=True)
    message.readings, message.info_number = frames, info_number
    return message


# The lowest and the highest are looked for at once: a reading as what it lacks to 255, and as one more than it is. So what is not
# reported is 0 in both.
LACKING = bytes(255 - value for value in range(256))
RAISED = bytes((value + 1) % 256 for value in range(256))
LOWERED = bytes((value - 1) % 256 for value in range(256))


def extent_of(frames: bytes, width: int, before: bytes = b"") -> bytes:
    """The lowest and the highest reading of each place, of one frame of this width at least; `before`: of those before them."""
    both = highest(frames.translate(LACKING), width) + highest(frames.translate(RAISED), width)
    return highest(before + both, 2 * width) if len(before) == 2 * width else both


def frames_of_extent(extent: bytes) -> bytes:
    """A frame of the lowest readings, and one of the highest."""
    width = len(extent) // 2
    return extent[:width].translate(LACKING) + extent[width:].translate(LOWERED)


def highest(frames: bytes, width: int) -> bytes:
    """The highest byte of each place. As whole numbers, two bytes a place, of which one half is compared with the other until one
    frame is left: max() takes three times as long, and this is done for each second of each device of a fleet."""
    count = len(frames) // width
    wide = bytearray(2 * len(frames))
    wide[::2] = frames
    number = int.from_bytes(wide, "little")
    while count > 1:
        count = (count + 1) // 2
        bits = 16 * width * count
        ones, carry = masks(width * count)
        one, other = number & ones, number >> bits
        wins = ((one | carry) - other) & carry  # the ninth bit of a place stays where it has no less than the other's
        number = other ^ ((one ^ other) & (wins - (wins >> 8)))
    return number.to_bytes(2 * width, "little")[::2]


@functools.lru_cache(maxsize=1000)
def masks(places: int) -> tuple[int, int]:
    """The byte of each place, and the bit above it."""
    return int.from_bytes(b"\xff\0" * places, "little"), int.from_bytes(b"\0\1" * places, "little")


def lower(one: bytes, other: bytes) -> bytes:
    """The lower reading of each place of two frames."""
    return bytes(map(min, one, other))


def higher(one: bytes, other: bytes) -> bytes:
    """The higher one."""
    return bytes(map(max, one.translate(RAISED), other.translate(RAISED))).translate(LOWERED)


class Kept:
    """The Past that a file has. Any thread asks; another process may be writing meanwhile."""

    def __init__(self, path: pathlib.Path, is_own: bool = False) -> None:
        """`is_own`: this server has written it, of what it had checked; what comes from anywhere is checked again, which takes
        half a second for ten thousand nodes."""
        self.path, self._is_own = path, is_own
        self.withheld = ""  # why it is not to be read: what lies there is of another fleet
        self._lock = threading.Lock()
        self._infos: dict[int, dict[int, Row]] = {}  # by where they lie in the file: rows by number that have nothing but an info
        self._known: dict[bytes, Row] = {}  # the same by info

    def clear(self) -> None:
        """Another file lies there now."""
        with self._lock:
            self._infos, self._known = {}, {}

    def span(self) -> tuple[float, float]:
        """The first and the last moment that are kept, in seconds by the wall clock. Raises NoPast."""
        with self._reading() as database:
            query = "SELECT unix_milliseconds FROM moments WHERE segment <> ? ORDER BY unix_milliseconds {} LIMIT 1"
            ends = [database.execute(query.format(order), [TREND]).fetchone() for order in ("ASC", "DESC")]
            if not all(ends):
                raise NoPast("nothing is kept yet")
            (first,), (last,) = ends
            return first / 1000, last / 1000

    def moment(self, wall: float, after: bool = False) -> Source:
        """The fleet as it was then: the last moment that was kept up to that time, or the first one. `after`: the first moment
        after that time, or the last one. Raises NoPast."""
        query = "SELECT moment, unix_milliseconds, segment, parts FROM moments WHERE segment <> ? {} LIMIT 1"
        newest, oldest = "ORDER BY unix_milliseconds DESC, moment DESC", "ORDER BY unix_milliseconds"
        wanted, other = (f"> ? {oldest}", newest) if after else (f"<= ? {newest}", oldest)
        with self._reading() as database:
            at = [TREND, math.floor(1000 * wall + 0.5)]
            found = database.execute(query.format(f"AND unix_milliseconds {wanted}"), at).fetchone()
            return self._read(database, found or database.execute(query.format(other), [TREND]).fetchone())

    def newest(self) -> Source:
        """The moment that was written last; in a small fleet with what the moments before it say of the last minutes. Raises
        NoPast."""
        query = "SELECT moment, unix_milliseconds, segment, parts FROM moments WHERE segment <> ? ORDER BY moment DESC LIMIT 1"
        with self._reading() as database:
            moment = self._read(database, database.execute(query, [TREND]).fetchone())
            rows = {row.node_id: row for row in moment.snapshot()}
            if len(rows) <= SMALL_FLEET:
                with contextlib.suppress(sqlite3.Error, ValueError):  # what lies there may be damaged where the newest is not
                    self._lengthen(database, rows, moment.wall())
            return Moment(moment.clock(), moment.wall(), rows.values(), moment.newest_events(EVENTS_KEPT))

    @staticmethod
    def _lengthen(database: sqlite3.Connection, rows: dict[str, Row], wall: float) -> None:
        """Give these rows, of a moment of that time, the frames of the moments before it, as far as there is no gap."""
        query = (
            "SELECT unix_milliseconds, packed FROM moments JOIN parts USING (moment) WHERE segment <> ?"
            " AND unix_milliseconds >= ? AND unix_milliseconds < ? ORDER BY unix_milliseconds DESC"
        )
        for at, part in database.execute(query, [TREND, round(1000 * (wall - HISTORY_SECONDS)), round(1000 * wall)]):
            for message in unpacked([part]):
                row, course = rows.get(message.node_id), course_of(message, False, at / 1000, 0)
                if not row or not course or row.sample_at is None or len(course.frames[0]) != row.capacities.frame_bytes:
                    continue
                begins_at = row.sample_at - len(row.history) // row.capacities.frame_bytes * course.seconds
                if abs(begins_at - course.until) < course.seconds:
                    frames = b"".join(course.frames) + row.history
                    rows[row.node_id] = row._replace(history=frames[-history.SAMPLES * row.capacities.frame_bytes :])

    def _read(self, database: sqlite3.Connection, found: tuple[int, int, int, int] | None) -> Source:
        if not found:
            raise NoPast("nothing is kept yet")
        moment, milliseconds, segment, _ = found
        made_at, infos = milliseconds / 1000, self._infos_of(database, segment)
        rows = []
        parts = (part for (part,) in database.execute("SELECT packed FROM parts WHERE moment = ?", [moment]))
        for message in unpacked(parts):
            known = infos.get(message.info_number)
            with contextlib.suppress(ValueError, Refused):  # a row that no server of ours has written costs that row
                if known:
                    rows.append(row_of(message, made_at, known))
        query = "SELECT * FROM events WHERE unix_milliseconds <= ? ORDER BY unix_milliseconds DESC, rowid DESC LIMIT ?"
        events = [
            Event(at / 1000, visible(str(kind), 20), visible(str(node_id), MAX_NODE_ID), visible(str(text), MAX_SENTENCE))
            for at, kind, node_id, text in database.execute(query, [milliseconds, EVENTS_KEPT])
        ]
        return Moment(made_at, made_at, rows, events[::-1])

    def _infos_of(self, database: sqlite3.Connection, segment: int) -> dict[int, Row]:
        """Rows by number that have an info, and what follows from it, alone."""
        found: dict[int, Row] = {}
        size = 0
        with self._lock:
            places = [place for (place,) in database.execute("SELECT info FROM infos WHERE segment = ?", [segment])]
            self._infos = {place: known for place, known in self._infos.items() if place in places}
            for place in places:
                if place not in self._infos:
                    (part,) = database.execute("SELECT packed FROM infos WHERE info = ?", [place]).fetchone()
                    self._infos[place] = dict(self._with_info(unpacked([part])))
                found |= self._infos[place]
                size += sum(len(row.packed_info) for row in self._infos[place].values())
                if len(found) > MAX_ROWS or size > MAX_MOMENT_BYTES:
                    raise ValueError("it has more infos than any fleet")
            self._known = {row.packed_info: row for row in found.values()}
        return found

    def _with_info(self, messages: Iterable[pb.NodeRow]) -> Iterator[tuple[int, Row]]:
        for message in messages:
            if row := self._known.get(message.info):
                yield message.info_number, row
                continue
            with contextlib.suppress(Refused, google.protobuf.message.DecodeError):
                info = pb.NodeInfo.FromString(message.info)
                if not self._is_own:
                    check_info(info)
                blank = Row(message.node_id, "", None, 0, packed_info=message.info, version=version_numbers(info.agent_version))
                yield message.info_number, blank._replace(capacities=capacities_of(info), labels=labels_of(info))

    def graph(self, node_id: str, end: float, seconds: float, steps: int) -> Readings:
        """Readings of the `seconds` before `end` (by the wall clock), NOT_REPORTED where nothing is kept. Raises NoPast."""
        start, crc, courses = end - seconds, zlib.crc32(node_id.encode()), list[Course]()
        query = (
            "SELECT unix_milliseconds, milliseconds, packed FROM moments JOIN parts USING (moment) WHERE unix_milliseconds > ?"
            " AND unix_milliseconds <= ? AND (segment = ?) = ? AND part = ? % parts ORDER BY unix_milliseconds"
        )
        with self._reading() as database:
            fine_from = start if seconds <= FINE_SECONDS else max(self._trends_until(database, end), start)
            for is_trend, since in ((True, start), (False, fine_from)):
                for at, span, part in database.execute(query, [1000 * since, 1000 * end, TREND, is_trend, crc]):
                    found = next((message for message in unpacked([part]) if message.node_id == node_id), None)
                    if found and (course := course_of(found, is_trend, at / 1000, span / 1000)):
                        courses.append(course)
        return readings_of(courses, start, seconds / steps, steps)

    @staticmethod
    def _trends_until(database: sqlite3.Connection, end: float) -> float:
        """Up to when trends tell all."""
        query = "SELECT max(unix_milliseconds) FROM moments WHERE segment = ? AND unix_milliseconds <= ?"
        (last,) = database.execute(query, [TREND, 1000 * end]).fetchone()
        return (last or 0) / 1000

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Raises NoPast."""
        if not sqlite3:
            raise NoPast(NO_SQLITE)
        if self.withheld:
            raise NoPast(f"nothing is kept of this fleet: {self.withheld}")
        try:
            with contextlib.closing(opened_to_read(self.path)) as database:
                until = time.monotonic() + MAX_READING_SECONDS
                if not self._is_own:
                    database.set_progress_handler(lambda: time.monotonic() > until, 1000)
                database.execute("BEGIN")  # what the ring takes away meanwhile is still there
                check_layout(database)
                yield database
        except (sqlite3.Error, OtherLayout, ValueError, TypeError, OverflowError) as error:  # a column may hold anything
            raise NoPast(f"{self.path} can't be read: {error}") from error


def opened_to_read(path: pathlib.Path) -> sqlite3.Connection:
    """Makes no file. Raises sqlite3.Error."""
    last: sqlite3.Error | None = None
    for how in ("mode=ro", "mode=ro&immutable=1"):  # the second: in a folder where nothing may be written, beside the file
        try:
            database = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, check_same_thread=False)
            database.execute("PRAGMA user_version").fetchone()
            database.execute("PRAGMA trusted_schema = OFF")
        except sqlite3.OperationalError as error:
            last = last or error
        else:
            return database
    raise last or sqlite3.OperationalError("it can't be opened")


class Course(NamedTuple):
    """One node's readings in a moment or a trend."""

    is_trend: bool
    until: float  # wall clock, seconds; of a moment, when its newest sample was taken
    seconds: float  # of a trend: all its time; of a moment: from one frame to the next
    frames: list[bytes]  # oldest first; of a trend the lowest and the highest


def course_of(message: pb.NodeRow, is_trend: bool, until: float, seconds: float) -> Course | None:
    """What a row of a moment or trend says of a node's course, if it does, and a server of ours can have written it."""
    readings, count = message.readings, 2
    if not is_trend:
        until -= message.sample_age_milliseconds / 1000
        seconds = max(message.number, 1) / 1000
        count = len(readings) // (len(message.summary.readings) + len(history.COLUMNS))
    if not readings or not 0 < count <= history.SAMPLES or len(readings) % count:
        return None
    width = len(readings) // count
    if width % len(history.COLUMNS) or width > len(history.COLUMNS) * (1 + MAX_DEVICES):
        return None
    return Course(is_trend, until, seconds, [readings[at : at + width] for at in range(0, len(readings), width)])


def readings_of(courses: Sequence[Course], start: float, step_seconds: float, steps: int) -> Readings:
    """The lowest and the highest of each step, of as many devices as the node had last."""
    width = len(courses[-1].frames[0]) if courses else len(history.COLUMNS)
    blank = bytes([history.NOT_REPORTED]) * width
    lowest, highest = [blank] * steps, [blank] * steps
    spans: Sequence[tuple[int, bytes, bytes]]
    for course in courses:
        if len(course.frames[0]) != width:
            continue
        if course.is_trend:
            first, last = (math.floor((at - start) / step_seconds) for at in (course.until - course.seconds, course.until - 0.001))
            spans = [(step, course.frames[0], course.frames[1]) for step in range(max(first, 0), min(last + 1, steps))]
        else:
            spans = [
                (math.floor((course.until - back * course.seconds - start) / step_seconds), frame, frame)
                for back, frame in enumerate(reversed(course.frames))
            ]
        for step, low, high in spans:
            if 0 <= step < steps:
                lowest[step], highest[step] = lower(lowest[step], low), higher(highest[step], high)
    return Readings(width // len(history.COLUMNS) - 1, b"".join(lowest), b"".join(highest))
