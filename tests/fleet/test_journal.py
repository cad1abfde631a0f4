"""The journal: what is written is what is read, whatever becomes of the file."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import random
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator

import pytest

import node_pb2 as pb
from edge import history
from edge.event_log import Event
from edge.fleet.journal import (
    FILE,
    GRACE_SECONDS,
    MOMENT_SECONDS,
    Journal,
    Store,
    journal_in,
    recording_to,
    restored,
)
from edge.fleet.moments import TREND, Kept, course_of, extent_of, frames_of_extent, highest
from edge.fleet.row import Row, State, state_of
from edge.fleet.source import Moment, NoPast, Source
from edge.program import Failure
from server import FORGET_SECONDS, Registry
from tests.fixtures.examples import EXAMPLE_EVENTS, NOW, WALL, example_registry, example_row
from tests.fixtures.processes import eventually
from tests.fixtures.sessions import Clock

WIDTH = len(history.COLUMNS) * 9  # of a frame of example_row(0), which has 8 GPUs


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / FILE


@contextlib.contextmanager
def writing(path: pathlib.Path, size_bytes: int | None = None) -> Iterator[Store]:
    store = Store(path, size_bytes)
    try:
        yield store
    finally:
        store.close()


def write(store: Store, seconds: float, rows: list[Row], events: tuple[Event, ...] = ()) -> None:
    """A moment, so many seconds after NOW and WALL."""
    store.write(NOW + seconds, WALL + seconds, MOMENT_SECONDS, rows, events, lambda: None)


def later(row: Row, frames: bytes, seconds: float) -> Row:
    """A row after so many more samples."""
    count = len(frames) // WIDTH
    kept = (row.history + frames)[-history.SAMPLES * WIDTH :]
    vitals = row.vitals._replace(frame=frames[-WIDTH:], celsius=frames[-WIDTH + history.TEMPERATURE])
    at, sample = NOW + seconds, b"\x08" + bytes([count])
    return row._replace(history=kept, vitals=vitals, packed_sample=sample, sample_at=at, heartbeat_at=at)


def course(seconds: int) -> list[bytes]:
    """A frame a second."""
    chance = random.Random(seconds)
    return [bytes(chance.randrange(101) for _ in range(WIDTH)) for _ in range(seconds)]


def test_a_course_is_read_back_moment_by_moment_as_it_was(path: pathlib.Path) -> None:
    row, frames = example_row(0)._replace(history=b"", sample_at=NOW, heartbeat_at=NOW), course(200)
    events = tuple(event._replace(time=WALL + 40 * number) for number, event in enumerate(EXAMPLE_EVENTS, 1))
    written = {}
    with writing(path) as store:
        for at in range(10, 201, 10):
            row = later(row, b"".join(frames[at - 10 : at]), at)
            others = [example_row(index) for index in range(1, at % 70 // 10 + 1)]
            write(store, at, [row, *others], events[: at // 40])
            written[at] = {row.node_id, *(other.node_id for other in others)}
        past = Kept(path)
        assert past.span() == (WALL + 10, WALL + 200)
        for at in range(200, 0, -10):
            for asked in (at, at + 9.5):
                moment = past.moment(WALL + asked)
                assert moment.wall() == WALL + at
                assert {one.node_id for one in moment.snapshot()} == written[at]
                (found,) = moment.rows(["Node-1000"])
                assert found
                assert found.vitals.celsius == frames[at - 1][history.TEMPERATURE]
                assert found.vitals.frame[3:] == frames[at - 1][3:]  # before that stand the node's own
                assert found.history == b"".join(frames[at - 10 : at])
                assert found.packed_info == row.packed_info
                assert found.version == row.version != ()
                assert found.packed_sample == b"\x08\x0a"
                assert moment.clock() - found.heartbeat_at == pytest.approx(0, abs=0.001)
                assert moment.newest_events(9) == list(events[: at // 40])
            for asked in (at - 10, at - 0.5):
                assert past.moment(WALL + asked, after=True).wall() == WALL + at
        assert past.moment(WALL - 1000).wall() == WALL + 10  # before the first one: that one
        assert past.moment(WALL + 200, after=True).wall() == WALL + 200  # after the last one: that one
        seconds = past.graph("Node-1000", WALL + 100.5, 60, 60)
        assert seconds.devices == 8
        assert seconds.lowest == seconds.highest == b"".join(frames[40:100])
        steps = past.graph("Node-1000", WALL + 100.5, 60, 6)
        for step in range(6):
            there = frames[40 + 10 * step : 50 + 10 * step]
            assert steps.lowest[step * WIDTH :][:WIDTH] == bytes(map(min, *there))
            assert steps.highest[step * WIDTH :][:WIDTH] == bytes(map(max, *there))


def test_a_spike_of_a_second_is_in_the_trend_when_its_moment_is_gone(path: pathlib.Path) -> None:
    row, frames = example_row(0)._replace(history=b"", sample_at=NOW, heartbeat_at=NOW), course(620)
    quiet = [bytes(min(value, 60) for value in frame) for frame in frames]
    quiet[77] = bytes([99]) * WIDTH
    with writing(path) as store:
        for at in range(10, 621, 10):
            row = later(row, b"".join(quiet[at - 10 : at]), at)
            write(store, at, [row])
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM moments WHERE segment <> ? AND unix_milliseconds < ?", [TREND, 1000 * (WALL + 590)])
        day = Kept(path).graph("Node-1000", WALL + 620, 24 * 3600, 288)  # a step is five minutes
        last = day.highest[-3 * WIDTH :]
        assert bytes([99]) * WIDTH in (last[:WIDTH], last[WIDTH : 2 * WIDTH])
        assert set(day.highest[: -3 * WIDTH]) == {history.NOT_REPORTED}


def test_an_orderly_end_leaves_no_hole_in_a_graph_of_trends(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        journal = keeper(tmp_path, example_registry(1), [])
        journal.start()
        journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as database:
        assert database.execute("SELECT count(*) FROM moments WHERE segment = ?", [TREND]).fetchone() == (2,)


def test_the_highest_byte_of_each_place() -> None:
    chance = random.Random(1)
    for count in (1, 2, 3, 7, 120):
        for width in (3, 27, 54):
            frames = chance.randbytes(count * width)
            assert highest(frames, width) == bytes(max(frames[place::width]) for place in range(width))
    lowest_and_highest = frames_of_extent(extent_of(bytes([7, 255, 9]) + bytes([8, 255, 255]), 3))
    assert lowest_and_highest == bytes([7, 255, 9]) + bytes([8, 255, 9])  # what is not reported is neither


def test_of_the_past_of_a_node_that_is_not_kept_there_is_nothing(path: pathlib.Path) -> None:
    with pytest.raises(NoPast, match="can't be read"):
        Kept(path).span()
    with writing(path) as store:
        with pytest.raises(NoPast, match="nothing is kept yet"):
            Kept(path).moment(WALL)
        write(store, 0, [example_row(0)])
        readings = Kept(path).graph("nobody", WALL, 60, 4)
    assert readings.devices == 0
    assert readings.lowest == readings.highest == bytes([history.NOT_REPORTED]) * 12


def test_infos_are_kept_once_a_segment_and_again_when_they_change(path: pathlib.Path) -> None:
    rows = [example_row(index) for index in range(12)]
    with writing(path) as store, contextlib.closing(sqlite3.connect(path)) as database:

        def count() -> int:
            return int(database.execute("SELECT count(*) FROM infos").fetchone()[0])

        for at in (0, 10, 20):
            write(store, at, rows)
        assert count() == 1
        rows[3] = rows[3]._replace(packed_info=example_row(6).packed_info)
        write(store, 30, rows)
        assert count() == 2
        assert Kept(path).moment(WALL + 20).rows(["Node-1003"])[0] != Kept(path).moment(WALL + 30).rows(["Node-1003"])[0]
        write(store, 10_000, rows)
        assert count() == 3
        assert {row.packed_info for row in Kept(path).newest().snapshot()} == {row.packed_info for row in rows}


def test_the_oldest_moments_go_first_and_the_file_keeps_its_size(path: pathlib.Path) -> None:
    size, chance = 2**20, random.Random(1)
    with writing(path, size) as store:
        for at in range(0, 3000, 10):
            processes = chance.randbytes(400)  # nothing makes them smaller
            rows = [example_row(index)._replace(sample_at=NOW + at, packed_processes=processes[index:]) for index in range(28)]
            write(store, at, rows, (Event(WALL + at, "joined", "box", str(at)),))
        past = Kept(path)
        first, last = past.span()
        assert last == WALL + 2990
        assert WALL < first < last - 100
        assert len(past.moment(first).snapshot()) == 28
        with contextlib.closing(sqlite3.connect(path)) as database:
            query = "SELECT unix_milliseconds / 1000 FROM moments WHERE segment <> ? ORDER BY moment"
            times = [at for (at,) in database.execute(query, [TREND])]
        steps = [after - before for before, after in itertools.pairwise(times)]
        assert set(steps[: len(steps) // 2 - 2]) == {60}  # what is older is kept a minute apart
        assert set(steps[len(steps) // 2 + 2 :]) == {10}
        assert len(past.moment(last).newest_events(1000)) == 300  # they stay
        graph = past.graph("Node-1000", WALL + 2990, 2990, 10)
        assert set(graph.highest[:WIDTH]) != {history.NOT_REPORTED}  # from the trend
    assert path.stat().st_size < 1.5 * size
    with writing(path, size // 4) as store:  # and shrinks, where it may have less
        for at in range(3000, 3300, 10):
            write(store, at, [example_row(0)])
    assert path.stat().st_size < size


def cuts(size: int, start: int) -> list[int]:
    """Where a write-ahead log is cut: at every byte near the ends of its pages, where their headers lie, and at each 397th."""
    page = 24 + 16384
    return [at for at in range(start, size) if (at - 32) % page < 28 or (at - 32) % page > page - 3 or at % 397 == 0]


def test_a_journal_that_was_cut_in_its_last_write_has_all_before_it(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy, wal = tmp_path / "copy.db", tmp_path / "copy.db-wal"
    with writing(path) as store:
        write(store, 0, [example_row(0), example_row(3)])
        before = path.with_name(f"{FILE}-wal").stat().st_size
        write(store, 10, [example_row(0), example_row(3)])
        shutil.copy(path, copy)
        whole = path.with_name(f"{FILE}-wal").read_bytes()
    assert len(whole) > before
    for cut in cuts(len(whole), before):
        wal.write_bytes(whole[:cut])
        with contextlib.closing(sqlite3.connect(copy)) as database:
            newest = database.execute("SELECT max(unix_milliseconds) FROM moments").fetchone()
            assert newest == (1000 * WALL,)
            wal.unlink()  # what is in it must not come into the file
            tmp_path.joinpath("copy.db-shm").unlink()
    wal.write_bytes(whole)
    assert Kept(copy).newest().wall() == WALL + 10


# ---- After a restart ----


def test_after_a_restart_all_are_there_greyed_with_their_ages(path: pathlib.Path) -> None:
    before = example_registry(28)
    with writing(path) as store:
        write(store, 0, before.snapshot())
        states = {row.node_id: state_of(row, NOW) for row in before.snapshot()}
        clock = Clock(50.0)
        registry = Registry(1.0, 100, clock=clock)
        registry.wall = lambda: WALL + 30
        registry.bring_back(Kept(path).newest())
    for row in before.snapshot():
        (found,) = registry.rows([row.node_id])
        assert found
        assert found.session is None
        assert clock.now - found.heartbeat_at == pytest.approx(NOW + 30 - row.heartbeat_at, abs=0.01)
        gone = states[row.node_id] in (State.LOST, State.LEFT)
        assert state_of(found, clock.now) is (states[row.node_id] if gone else State.DISCONNECTED)
        assert found.vitals.milliwatts == row.vitals.milliwatts
        assert found.left or "last heard 20" in found.reason
    registry.tick()
    (started,) = registry.log.newest(9)
    assert started[1:] == ("started", "server", "again, after 30s at most; nodes known from before: 28")
    clock.now += GRACE_SECONDS + 1
    registry.tick()
    assert {event.kind for event in registry.log.newest(99)[1:]} == {"lost"}
    assert len(registry.log.newest(99)[1:]) == 26  # but not who had been lost or left before


def test_after_a_restart_the_histories_go_back_as_far_as_there_is_no_gap(path: pathlib.Path) -> None:
    row, frames = example_row(0)._replace(history=b"", sample_at=NOW, heartbeat_at=NOW), course(200)
    with writing(path) as store:
        for at in range(10, 151, 10):
            write(store, at, [later(row, b"".join(frames[at - 10 : at]), at), example_row(1)])
        (found,) = Kept(path).newest().rows(["Node-1000"])
        assert found
        assert found.history == b"".join(frames[30:150])
        write(store, 180, [later(row, b"".join(frames[170:180]), 180)])  # those before them have not come
        (found,) = Kept(path).newest().rows(["Node-1000"])
        assert found
        assert found.history == b"".join(frames[170:180])


def test_what_hangs_or_has_failed_is_no_news_after_a_restart() -> None:
    rows = [
        example_row(0)._replace(sample_at=NOW - 42, heartbeat_at=NOW),
        example_row(1)._replace(vitals=example_row(1).vitals._replace(errors=1)),
    ]
    clock = Clock(50.0)
    registry = Registry(1.0, 100, clock=clock)
    registry.wall = lambda: WALL + 5
    registry.bring_back(Moment(NOW, WALL, rows, ()))
    for row in rows:
        sample = pb.Sample(sequence=1, taken_milliseconds=1)
        request = pb.HeartbeatRequest(
            node_id=row.node_id,
            info=row.info,
            sample=sample,
            clock_milliseconds=50_000 if row is rows[0] else 1,
            summary=pb.Summary(failed_devices=row.vitals.errors),
        )
        registry.open(request, row.address, lambda _end: None)
    registry.tick()
    assert [event.kind for event in registry.log.newest(9)] == ["started", "back", "back"]


def test_who_was_there_before_a_long_stop_is_awaited_like_others() -> None:
    rows = [example_row(0)._replace(node_id=node_id, heartbeat_at=NOW) for node_id in ("a", "b")]
    clock = Clock(50.0)
    registry = Registry(1.0, 100, clock=clock)
    registry.wall = lambda: WALL + 2 * FORGET_SECONDS
    registry.bring_back(Moment(NOW, WALL, rows, ()))
    registry.tick()
    (row, _) = registry.snapshot()
    registry.open(pb.HeartbeatRequest(node_id="a", info=row.info), row.address)
    clock.now += GRACE_SECONDS + 1
    registry.tick()
    assert [row.node_id for row in registry.snapshot()] == ["a"]
    assert "joined" not in {event.kind for event in registry.log.newest(9)}


def test_who_was_heard_last_is_brought_back_where_there_is_little_room(path: pathlib.Path) -> None:
    rows = [example_row(index)._replace(heartbeat_at=NOW - index, left=False) for index in range(10)]
    registry = Registry(1.0, 4, clock=lambda: NOW)
    registry.bring_back(Moment(NOW, registry.wall(), rows, ()))
    assert [row.node_id for row in registry.snapshot()] == [row.node_id for row in rows[:4]]


def test_who_comes_while_a_slow_disk_is_read_is_kept_with_all_that_came(tmp_path: pathlib.Path) -> None:
    with writing(tmp_path / FILE) as store:
        write(store, 0, [example_row(0)])
    registry = Registry(1.0, 100)

    def slowly(moment: Source) -> None:
        backlog = [pb.Sample(sequence=number, host=pb.HostSample(cpu_percent=number)) for number in (1, 2, 3)]
        registry.open(pb.HeartbeatRequest(node_id="box", backlog=backlog, sample=pb.Sample(sequence=4)), "10.0.0.1")
        registry.bring_back(moment)

    journal = journal_in(tmp_path, 2**30, registry, slowly, lambda _kind, _text: None)
    journal.start()
    journal.close()
    (row,) = journal.past.newest().rows(["box"])
    assert row
    assert row.history[:: len(history.COLUMNS)] == bytes([1, 2, 3, history.NOT_REPORTED])


def test_a_clock_that_was_set_back_makes_no_age_too_young() -> None:
    row = example_row(0)._replace(heartbeat_at=NOW - 5)
    (back,) = restored(Moment(NOW, WALL, [row], ()), 100.0, WALL - 3600)
    assert back.heartbeat_at == 95.0


# ---- Faults ----


def keeper(folder: pathlib.Path, registry: Registry, told: list[tuple[str, str]], size: int = 2**30) -> Journal:
    return journal_in(folder, size, registry, registry.bring_back, lambda *event: told.append(event))


def test_a_damaged_file_is_put_aside_and_a_new_one_begins(tmp_path: pathlib.Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 1000)
    told: list[tuple[str, str]] = []
    journal = keeper(tmp_path, example_registry(3), told)
    journal.start()
    journal.close()
    ((kind, line),) = told
    assert kind == "warning"
    assert line.startswith(f"journal: it was damaged: it is journal.damaged.db now, and a new one begins, in {tmp_path} (")
    assert (tmp_path / "journal.damaged.db").read_bytes().startswith(b"not a database")
    assert len(journal.past.newest().snapshot()) == 3
    assert journal.notices() == ["journal: it was damaged, and a new one began"]


def test_another_versions_file_is_put_aside(tmp_path: pathlib.Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.executescript("CREATE TABLE other (x); PRAGMA user_version = 99")
    told: list[tuple[str, str]] = []
    journal = keeper(tmp_path, example_registry(3), told)
    journal.start()
    journal.close()
    assert "another version has written it: it is journal.other-version.db now" in told[0][1]
    assert (tmp_path / "journal.other-version.db").exists()
    assert journal.past.span()


def test_a_second_server_on_the_folder_keeps_none_and_says_so(tmp_path: pathlib.Path) -> None:
    told: list[tuple[str, str]] = []
    first, second = keeper(tmp_path, example_registry(3), []), keeper(tmp_path, example_registry(1), told)
    first.start()
    second.start()
    said = f"journal: another server keeps its own in {tmp_path}: give this one another folder, by --state"
    assert told == [("warning", said)]
    assert second.notices() == [said]
    with pytest.raises(NoPast, match="nothing is kept of this fleet: another server keeps its own"):
        second.past.newest()  # which would be the first one's
    second.close()
    first.close()
    assert len(first.past.newest().snapshot()) == 3


def test_a_folder_that_others_may_write_in_gets_no_file_by_a_look_into_the_past(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o777)
    journal = keeper(tmp_path, example_registry(3), [])
    journal.start()
    journal.close()
    with pytest.raises(NoPast, match="nothing is kept of this fleet: others may write in the folder"):
        journal.past.newest()
    with pytest.raises(NoPast):
        Kept(tmp_path / FILE).newest()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named_by_a_look_into_the_past(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    journal = keeper(tmp_path / "file", example_registry(3), [])
    journal.start()
    journal.close()
    with pytest.raises(NoPast, match="nothing is kept of this fleet: "):
        journal.past.newest()


def test_a_file_that_others_could_read_is_this_users_alone_from_then_on(path: pathlib.Path) -> None:
    for ending in ("", "-wal"):
        path.with_name(path.name + ending).touch(0o644)
    with writing(path) as store:
        write(store, 0, [example_row(0)])
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_a_disk_that_gives_no_answer_stops_nothing_else(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.fleet.journal.RESTORE_SECONDS", 0.01)
    monkeypatch.setattr("edge.fleet.journal.SLOW_SECONDS", 0.05)
    monkeypatch.setattr("edge.fleet.journal.CLOSE_SECONDS", 0.01)
    answer, told = threading.Event(), list[tuple[str, str]]()

    def blocked() -> Store:
        answer.wait()
        return Store(path, None)

    journal = Journal(blocked, path, example_registry(3), MOMENT_SECONDS, tell=lambda *event: told.append(event))
    journal.start()
    assert eventually(journal.notices)[0].startswith("journal: its disk has given no answer for ")
    journal.close()
    answer.set()
    eventually(lambda: is_kept(path) and not path.with_name(f"{FILE}-wal").exists())
    assert told[0][1].startswith("journal: its disk gave no answer for ")


def test_trouble_is_told_once_and_so_is_its_end(path: pathlib.Path) -> None:
    told: list[tuple[str, str]] = []
    registry, journal_seconds = example_registry(3), 0.01
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        journal = Journal(lambda: quick(path), path, registry, journal_seconds, tell=lambda *event: told.append(event))
        journal.start()
        eventually(lambda: is_kept(path))
        other.execute("BEGIN IMMEDIATE")
        eventually(lambda: told)
        assert journal.notices() == ["journal: another program holds its file"]
        other.execute("ROLLBACK")
        eventually(lambda: not journal.notices())
        journal.close()
    assert told == [("warning", "journal: another program holds its file"), ("back", "journal: it is written again")]


def is_kept(path: pathlib.Path) -> bool:
    with contextlib.suppress(NoPast):
        return bool(Kept(path).span())
    return False


def quick(path: pathlib.Path) -> Store:
    """A store that does not wait for others."""
    store = Store(path, None)
    store._database.execute("PRAGMA busy_timeout = 1")
    return store


def test_a_thread_that_dies_says_so(path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Store:
        raise KeyError("a bug")

    journal = Journal(broken, path, example_registry(3), MOMENT_SECONDS)
    journal.start()
    journal.close()
    assert journal.notices() == ["journal: it has ended by an error of its own"]
    assert "a bug" in caplog.text


def test_an_event_with_what_is_no_text_is_kept(path: pathlib.Path) -> None:
    with writing(path) as store:
        write(store, 0, [example_row(0)], (Event(WALL, "error", "server", "no \udcff text"),))
        assert [event.text for event in Kept(path).newest().newest_events(9)] == ["no � text"]


def test_a_file_that_was_copied_there_is_this_users_alone(path: pathlib.Path) -> None:
    path.touch(0o644)
    with writing(path) as store:
        write(store, 0, [example_row(0)])
        assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}


def test_a_recording_is_one_new_file(tmp_path: pathlib.Path) -> None:
    path, registry = tmp_path / "night.edge", example_registry(3)
    recording = recording_to(path, registry, lambda _kind, _text: None)
    recording.start()
    recording.close()
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(Kept(path).newest().snapshot()) == 3
    with pytest.raises(Failure, match="is there already: give --record another name"):
        recording_to(path, registry, lambda _kind, _text: None)
    with pytest.raises(Failure, match="cannot record to /nowhere/x"):
        recording_to(pathlib.Path("/nowhere/x"), registry, lambda _kind, _text: None)


def test_a_recording_that_is_damaged_goes_on_in_a_new_file(tmp_path: pathlib.Path) -> None:
    path, told = tmp_path / "night.edge", list[tuple[str, str]]()
    recording = recording_to(path, example_registry(3), lambda *event: told.append(event))
    path.write_bytes(b"no database" * 1000)
    recording.start()
    recording.close()
    assert len(told) == 1
    assert told[0][1].startswith("recording: it was damaged")
    assert len(Kept(path).newest().snapshot()) == 3


def spoil_version(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA user_version = 2")


def spoil_parts(database: sqlite3.Connection) -> None:
    database.execute("UPDATE parts SET packed = ?", [b"\0" * 50])


def spoil_columns(database: sqlite3.Connection) -> None:
    database.execute("UPDATE parts SET packed = 'text'")


def spoil_tables(database: sqlite3.Connection) -> None:
    database.execute("DROP TABLE parts")


def test_a_time_that_is_no_number_is_refused_in_a_sentence(path: pathlib.Path) -> None:
    with writing(path) as store:
        write(store, 0, [example_row(0)])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE moments SET unix_milliseconds = 'noon'")
    with pytest.raises(NoPast, match="can't be read"):
        Kept(path).span()


@pytest.mark.parametrize("spoil", [spoil_version, spoil_parts, spoil_columns, spoil_tables])
def test_a_file_from_anywhere_is_refused_in_a_sentence(path: pathlib.Path, spoil: Callable[[sqlite3.Connection], None]) -> None:
    with writing(path) as store:
        write(store, 0, [example_row(0)])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        spoil(database)
    with pytest.raises(NoPast, match="can't be read"):
        Kept(path).newest()
    with pytest.raises(NoPast, match="can't be read"):
        Kept(path).graph("Node-1000", WALL, 60, 10)


def test_a_row_that_no_server_has_written_costs_that_row(path: pathlib.Path) -> None:
    with writing(path) as store:
        spoilt = example_row(3)._replace(packed_info=b"\xff\xff")
        write(store, 0, [example_row(0), spoilt, example_row(1)._replace(node_id=" ")])
    assert [row.node_id for row in Kept(path).newest().snapshot()] == ["Node-1000"]


@pytest.mark.parametrize(
    ("readings", "is_trend"), [(bytes(2**20), True), (bytes(8), True), (bytes(3 * 2**20), False), (bytes(3 * 121), False)]
)
def test_a_course_that_no_server_has_written_is_none(readings: bytes, is_trend: bool) -> None:
    assert course_of(pb.NodeRow(readings=readings), is_trend, WALL, 300.0) is None


def test_large_nodes_that_have_all_chosen_one_part_do_not_spoil_it(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("journal", "moments"):
        monkeypatch.setattr(f"edge.fleet.{module}.MAX_PART_BYTES", 200_000)
    large = example_row(0)._replace(packed_sample=pb.Sample(sequence=1).SerializeToString() + b"\xaa\x3e\xe0\x5d" + bytes(12_000))
    rows = [large._replace(node_id=f"n{number}", packed_info=large.packed_info + bytes([0x98, 6, number])) for number in range(50)]
    with writing(path) as store:
        write(store, 0, rows)
    read = Kept(path).newest().snapshot()
    assert {row.node_id for row in read} == {row.node_id for row in rows}
    assert 0 < sum(bool(row.packed_sample) for row in read) < 50


def test_a_node_that_changes_all_the_time_does_not_make_a_segment_grow(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.fleet.journal.MAX_PART_BYTES", 20_000)
    row = example_row(0)
    with writing(path) as store:
        for number in range(1, 41):
            write(store, 10 * number, [row._replace(packed_info=row.packed_info + b"\xaa\x3e\xe0\x5d" + bytes([number]) * 12_000)])
    with contextlib.closing(sqlite3.connect(path)) as database:
        counts = [count for (count,) in database.execute("SELECT count(*) FROM infos GROUP BY segment")]
    assert max(counts) <= 4
    assert sum(counts) == 40
    assert len(Kept(path).moment(WALL + 200).snapshot()) == 1


EMPTY_ROWS = b"\x42\x00" * 300_000


@pytest.mark.parametrize(("table", "part"), [("parts", EMPTY_ROWS), ("infos", EMPTY_ROWS), ("parts", b"\x42" + b"\xff" * 10**6)])
def test_a_small_file_that_unpacks_to_masses_is_refused(path: pathlib.Path, table: str, part: bytes) -> None:
    with writing(path) as store:
        write(store, 0, [example_row(0)])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"UPDATE {table} SET packed = ?", [zlib.compress(part)])
    with pytest.raises(NoPast, match="what it holds is no moment"):
        Kept(path).newest()


def test_frames_wider_than_any_node_has_are_not_drawn(path: pathlib.Path) -> None:
    with writing(path) as store:
        write(store, 0, [example_row(0)])
    wide = pb.WatchUpdate(rows=[pb.NodeRow(node_id="n", readings=bytes(10**5))]).SerializeToString()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE parts SET packed = ?", [zlib.compress(wide)])
        database.execute("UPDATE moments SET segment = ?", [TREND])
    assert Kept(path).graph("n", WALL, 60, 10).devices == 0


def test_a_node_is_once_in_a_part(path: pathlib.Path) -> None:
    """More of it, in each of many moments, would take any memory."""
    with writing(path) as store:
        write(store, 0, [example_row(0)])
    rows = [pb.NodeRow(node_id="n", number=1000, readings=bytes([value] * 3)) for value in (40, 90)]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE parts SET packed = ?", [zlib.compress(pb.WatchUpdate(rows=rows).SerializeToString())])
    assert set(Kept(path).graph("n", WALL + 1, 60, 10).highest) == {40, history.NOT_REPORTED}


def test_a_file_whose_table_has_no_end_is_refused_in_time(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.fleet.moments.MAX_READING_SECONDS", 0.05)
    with writing(path) as store:
        write(store, 0, [example_row(0)])
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("DROP TABLE moments")
        database.execute(f"CREATE VIEW moments AS {endless} AS unix_milliseconds, 1 AS segment FROM c")
    with pytest.raises(NoPast, match="interrupted"):
        Kept(path).span()
