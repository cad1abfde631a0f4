"""Time travel: what is stepped to is what was, and nobody takes it for now."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import re
import time
from collections.abc import Iterator

import pytest

import node_pb2 as pb
from edge.drawing import plain
from edge.event_log import Event
from edge.fleet.journal import Store
from edge.fleet.keys import MAX_FILTER
from edge.fleet.lens import NO_JOURNAL, RANGES, Lens, Ui
from edge.fleet.moments import Kept
from edge.fleet.row import State, state_of
from edge.fleet.screen import About, look, render
from edge.fleet.source import EVENTS_KEPT, Moment, NoPast, Readings, Source
from edge.fleet.times import show_time
from edge.keyboard import PASTE
from server import Registry
from tests.fixtures.examples import OPEN, WALL, example_row
from tests.fixtures.past import FIRST, LAST, Amnesia, Course, course, now_of
from tests.fixtures.processes import eventually
from tests.fixtures.screens import Screen, exact
from tests.fixtures.sessions import Clock

SIZES = [(160, 45), (80, 24), (50, 15), (40, 10)]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def screen_of(width: int = 160, height: int = 45) -> Screen:
    return Screen(now_of(), width, height, past=Course())


def go(screen: Screen, *keys: str) -> str:
    """The frame after these keys; what is out of what is kept has been put right."""
    for key in keys:
        screen.press(key).frame()
    return screen.text()


def shown(screen: Screen) -> dict[str, float | None]:
    """The utilization that the screen has of each node."""
    rows = screen.lens.rows(entry_id.node_id for entry_id in screen.lens.order)
    return {row.node_id: row.vitals.utilization for row in rows if row}


def known(wall: float) -> dict[str, float | None]:
    return {row.node_id: row.vitals.utilization for row in course(wall)}


# ---- Steps ----


def test_a_fleet_whose_course_is_known_is_stepped_back_and_forth_through() -> None:
    screen = screen_of()
    now = shown(screen)
    at = LAST - 10 * -(-(WALL - LAST) // 10)
    go(screen, "[")
    moments = []
    for _ in range(60):
        moments.append(screen.lens.wall)
        assert shown(screen) == known(screen.lens.wall) != now
        go(screen, "[")
    assert [late - early for late, early in itertools.pairwise(moments)] == [10] * 59
    assert abs(moments[0] - at) < 10
    go(screen, "]")
    assert screen.lens.wall == moments[-1]
    assert shown(screen) == known(moments[-1])
    go(screen, "{")
    assert screen.lens.wall == moments[-1] - 600
    assert shown(screen) == known(moments[-1] - 600)
    go(screen, "}", "]")
    assert screen.lens.wall == moments[-1] + 10
    go(screen, "escape")
    assert screen.ui.at is None
    assert shown(screen) == now


def test_the_whole_screen_is_as_it_was_then() -> None:
    screen = screen_of()
    go(screen, *"t-90m", "enter")
    then = screen.lens.wall
    assert then == FIRST + (WALL - 5400 - FIRST) // 10 * 10
    text = screen.text()
    assert "Node-1026" in text
    assert "Node-1027" not in text  # it joined later
    assert f"joined        Node-1004  {then:.0f}" in re.sub("  +", lambda gap: gap[0], text) or f"{then:.0f}" in text
    mean = sum(value or 0 for value in known(then).values())
    assert mean
    assert [row.node_id for row in [screen.lens.rows(["Node-1003"])[0]] if row] == ["Node-1003"]
    ids = sorted(known(then), key=lambda node_id: -(known(then)[node_id] or 0))
    go(screen, *"ssss")
    assert screen.ui.sort == "utilization"
    assert screen.lens.order[0].node_id == ids[0]
    go(screen, "/", *"util>50", "enter")
    assert set(shown(screen)) == {node_id for node_id, value in known(then).items() if value and value > 0.5}
    assert f"{len(shown(screen))} of 27" in screen.text()
    go(screen, "v")
    assert "utilization  0" in screen.text()
    go(screen, "v", "e")
    assert f"{then:.0f}" in screen.text()
    go(screen, "escape")
    assert screen.ui.at is None
    assert screen.ui.events  # Esc is now, and nothing else


def test_a_page_follows_through_time() -> None:
    screen = screen_of()
    go(screen, "/", *"1027", "enter", "enter")
    assert "Node-1027" in go(screen, *"t-30m", "enter")
    text = go(screen, *"t-90m", "enter")
    assert "Node-1027 was not here then" in text
    assert "Node-1027" in go(screen, *"t-30m", "enter")
    assert "GPU 0" in screen.text()
    go(screen, "escape")
    assert (screen.ui.page, screen.ui.at) == ("Node-1027", None)
    assert not go(screen, "escape").startswith(" PAST")
    assert screen.ui.page == ""


def test_before_the_first_moment_and_after_the_last_it_says_so() -> None:
    screen = screen_of(160)
    assert f"nothing is kept before {show_time(FIRST)}" in go(screen, *"t-3h", "enter").splitlines()[-1]
    assert screen.lens.wall == FIRST
    for key in "[[{{":
        assert f"nothing is kept before {show_time(FIRST)}" in go(screen, key).splitlines()[-1]
        assert screen.lens.wall == screen.lens.position(screen.ui) == FIRST
    go(screen, "]")
    assert screen.lens.wall == FIRST + 10
    go(screen, *"t1s", "enter")
    assert screen.lens.wall == LAST
    go(screen, "[")
    assert screen.lens.wall < LAST


@pytest.mark.parametrize("key", [*"]}"])
def test_a_step_forth_beyond_the_last_moment_is_now(key: str) -> None:
    screen = screen_of()
    go(screen, *"t1s", "enter", key)
    assert screen.ui == Ui()
    past = screen.lens.past
    assert isinstance(past, Course)
    past.only = [FIRST, FIRST + 20]  # a journal that has stopped
    go(screen, *"t-1h", "enter")
    assert screen.lens.wall == FIRST + 20
    assert screen.ui.at is not None
    go(screen, key)
    assert screen.ui == Ui()


def test_now_has_no_step_forth() -> None:
    screen = screen_of()
    assert "this is now: [ steps back" in go(screen, "]").splitlines()[-1]
    assert screen.ui.at is None
    go(screen, *"tnow", "enter")
    assert (screen.ui.at, screen.ui.time) == (None, None)


def test_a_step_back_over_a_hole_is_one_step() -> None:
    screen = screen_of()
    past = screen.lens.past
    assert isinstance(past, Course)
    past.hole = FIRST + 600, FIRST + 3000
    go(screen, *"t-1h15m", "enter")
    assert screen.lens.wall == FIRST + 3000  # the nearest
    assert f"nothing is kept of {show_time(FIRST + 2700)}: this is the nearest" in screen.text().splitlines()[-1]
    go(screen, "[")
    assert screen.lens.wall == FIRST + 600
    assert "nothing kept until " in screen.text().splitlines()[0]
    go(screen, "[")
    assert screen.lens.wall == FIRST + 590
    go(screen, "]", "]")
    assert screen.lens.wall == FIRST + 3000


def test_a_time_that_is_typed_leads_to_the_nearest_moment() -> None:
    screen = screen_of()
    past = screen.lens.past
    assert isinstance(past, Course)
    past.only = [FIRST + number * 10 + 0.05 for number in range(700)]
    go(screen, *"t06:30", "enter")
    assert screen.lens.wall == FIRST + 1800.05
    go(screen, *"t06:30:07", "enter")
    assert screen.lens.wall == FIRST + 1810.05
    go(screen, *"t06:30:04", "enter")
    assert screen.lens.wall == FIRST + 1800.05


def test_moments_that_are_a_little_later_than_each_10_s_are_all_stepped_to() -> None:
    screen = screen_of()
    past = screen.lens.past
    assert isinstance(past, Course)
    past.only = kept = [FIRST + 10.04 * number + 0.01 * (number % 3) for number in range(700)]
    go(screen, *"t-3h", "enter")
    place = 0
    assert screen.lens.wall == kept[place]
    for _ in range(20):
        go(screen, "]")
        place += 1
        assert screen.lens.wall == kept[place]
    for _ in range(20):
        go(screen, "[")
        place -= 1
        assert screen.lens.wall == kept[place]


def test_a_step_reads_one_moment() -> None:
    screen = screen_of()
    past = screen.lens.past
    assert isinstance(past, Course)
    go(screen, *"t-1h", "enter")
    past.asked.clear()
    go(screen, "[", "[", "]")
    assert len(past.asked) == 3


def test_where_moments_are_a_minute_apart_each_step_is_one_of_them() -> None:
    screen = screen_of()
    past = screen.lens.past
    assert isinstance(past, Course)
    past.only = kept = [FIRST + minute * 60 + 5 * (minute % 3) for minute in range(60)]
    go(screen, *"t-75m", "enter")
    place = kept.index(screen.lens.wall)
    for _ in range(10):
        go(screen, "]")
        place += 1
        assert screen.lens.wall == kept[place]
    for _ in range(12):
        go(screen, "[")
        place -= 1
        assert screen.lens.wall == kept[place]
    assert "nothing kept" not in screen.text().splitlines()[0]


# ---- Where it does not go ----


@pytest.mark.parametrize("key", [*"[{t"])
def test_without_a_journal_the_keys_say_why(key: str) -> None:
    screen = Screen(now_of())
    assert NO_JOURNAL in go(screen, key).splitlines()[-1]
    assert screen.ui._replace(said="") == Ui()


def test_a_past_that_is_not_kept_says_why_and_now_goes_on() -> None:
    screen = Screen(now_of(), past=Amnesia())
    assert "the journal was put aside: it is from a newer version" in go(screen, "[").splitlines()[-1]
    assert screen.ui.at is None
    assert "the journal was put aside" in go(screen, "[").splitlines()[-1]  # it is asked each time


def test_a_moment_that_can_t_be_read_leaves_one_where_one_was() -> None:
    class Torn(Course):
        def moment(self, wall: float, after: bool = False) -> Source:  # type: ignore[override]
            if wall < WALL - 100:
                raise NoPast("this moment is damaged")
            return super().moment(wall, after)

    screen = Screen(now_of(), past=Torn())
    go(screen, "[", "[")
    before = screen.lens.wall
    assert "this moment is damaged" in go(screen, "{").splitlines()[-1]
    assert screen.lens.wall == before
    assert screen.ui.at == before
    assert "PAST" in screen.text()


@pytest.mark.parametrize("time_of_event", [-1e18, 1e18, float("nan")])
def test_times_that_there_never_were_are_not_gone_to(time_of_event: float) -> None:
    class Foreign(Course):
        def moment(self, wall: float, after: bool = False) -> Source:  # type: ignore[override]
            moment = super().moment(wall, after)
            return Moment(moment.clock(), moment.wall(), moment.snapshot(), [Event(time_of_event, "lost", "box", "why")])

    screen = Screen(now_of(), past=Foreign())
    assert "times that there never were" in go(screen, "[").splitlines()[-1]
    assert screen.ui.at is None


@pytest.mark.parametrize("key", ["q", "escape"])
def test_from_the_past_q_and_esc_lead_to_now_first(key: str) -> None:
    screen = screen_of()
    go(screen, "down", "[", key)
    assert (screen.ui.at, screen.ui.question, screen.ui.closed) == (None, None, False)
    go(screen, "enter", "[", "q")
    assert (screen.ui.at is None, screen.ui.page) == (False, "")
    assert go(screen, "q").startswith(" Edge fleet")
    go(screen, "q")
    assert screen.ui.question


def test_the_footer_of_the_past_names_what_works_there() -> None:
    for width, height in SIZES[:2]:
        footer = go(screen_of(width, height), "down", "[").splitlines()[-1]
        assert footer.startswith(" Esc now  p play  [ ] 10 s  { } 10 min  t time  q back ")
        assert "forget" not in footer
        assert "join" not in footer
        assert "[ past" in screen_of(width, height).text().splitlines()[-1]


def test_nothing_is_forgotten_in_the_past() -> None:
    screen = screen_of()
    go(screen, "down", "[")
    for key in "fF":
        assert "nothing can be forgotten in the past" in go(screen, key).splitlines()[-1]
    assert screen.ui.question is None


# ---- The time that is typed ----


def test_a_time_that_can_t_be_read_is_said_and_stays() -> None:
    for width, height in SIZES:
        screen = screen_of(width, height)
        go(screen, *"t03:62", "enter")
        assert "03:62█  no clock shows 03:62" in screen.text().splitlines()[-1]
        assert screen.ui.time == "03:62"
        assert "03:6█" in go(screen, "backspace").splitlines()[-1]
        go(screen, "ctrl-u", f"{PASTE}-1h", "enter")
        assert screen.lens.wall == FIRST + (WALL - 3600 - FIRST) // 10 * 10


def test_keys_are_text_while_a_time_is_typed_and_esc_leaves_all_as_it_was() -> None:
    screen = screen_of()
    assert "03:12, -2h, yesterday 18:00" in go(screen, "t").splitlines()[-1]
    go(screen, *"q[] /p")
    assert screen.ui == Ui(time="q[] /p")
    assert go(screen, "escape")
    assert screen.ui == Ui()
    go(screen, "/", *"h200", "enter", *"t-1h", "enter")
    assert screen.ui.filter == "h200"
    assert len(go(screen, "t", *"9" * 300)) and len(screen.ui.time or "") == MAX_FILTER


# ---- The header ----


@pytest.mark.parametrize("size", SIZES)
def test_the_first_line_says_that_it_is_the_past_and_is_reversed(size: tuple[int, int]) -> None:
    for keys in ([], ["v"], ["down", "enter"], ["e"], ["?"], ["j"], ["/", "x"], ["t", "x"]):
        screen = screen_of(*size)
        go(screen, *"t-90m", "enter", *keys)
        frame = screen.frame()
        assert exact(frame, *size)
        assert all("reverse" in style for _, style in frame[0])
        assert re.match(rf" PAST (\w+ )?(2027-)?{show_time(screen.lens.wall)[5:]}, 1h30m ago", plain(frame))


@pytest.mark.parametrize("size", SIZES)
def test_what_happens_now_is_told_in_the_past(size: tuple[int, int]) -> None:
    clock, registry = Clock(), now_of(0)
    registry.clock = clock
    for index in range(4):
        registry.restore(example_row(index)._replace(heartbeat_at=clock.now))
    screen = Screen(registry, *size, past=Course())
    go(screen, "[")
    assert "NOW" not in screen.text()
    clock.now += 20
    lost = "lost" if size[0] >= 80 else "✗"
    assert f"NOW 4 {lost}" in screen.text().splitlines()[0]
    go(screen, "escape")
    assert "NOW" not in screen.text().splitlines()[0]
    registry.restore(example_row(4)._replace(heartbeat_at=clock.now))
    assert f"NOW 4 {lost}" in go(screen, "[").splitlines()[0]  # all that is wrong, and not only what came since
    clock.now += 20
    assert f"NOW 5 {lost}" in screen.text().splitlines()[0]


# ---- Frozen, and played ----


def test_a_step_from_a_frozen_picture_begins_at_it_and_p_plays_the_past() -> None:
    screen = screen_of()
    go(screen, "p")
    screen.lens._live.wall = lambda: WALL + 600  # type: ignore[method-assign]
    go(screen, "[")
    assert not screen.ui.frozen
    assert 0 < WALL - screen.lens.wall < 20
    go(screen, "escape")
    assert (screen.ui.at, screen.ui.frozen) == (None, False)


def test_the_past_is_played_faster_and_slower_and_ends_where_it_ends() -> None:
    clock, registry = Clock(), now_of()
    registry.clock = clock
    screen = Screen(registry, past=Course())
    assert "only the past is played" in go(screen, "+").splitlines()[-1]
    go(screen, *"t-1h", "enter")
    start = screen.lens.wall

    def later(seconds: float) -> float:
        clock.now += seconds
        eventually(
            lambda: bool(screen.frame()) and screen.lens.wall == FIRST + (screen.lens.position(screen.ui) - FIRST) // 10 * 10
        )
        return screen.lens.wall - start

    go(screen, " ")
    assert "▶ 1×" in screen.text().splitlines()[0]
    assert later(10) == 10
    go(screen, "+", "+", "+")
    assert "▶ 10×" in screen.text().splitlines()[0]
    assert later(10) == 110
    go(screen, "-", "p")
    clock.now += 100
    assert "▶" not in screen.text().splitlines()[0]
    assert screen.lens.wall - start == 110
    go(screen, "p", "]")
    assert later(4) == 140  # it goes on after a step
    clock.now += 10_000
    eventually(lambda: bool(screen.frame()) and screen.lens.wall == LAST)
    assert screen.ui.playing_since is None
    assert f"nothing is kept after {show_time(LAST)}" in screen.text().splitlines()[-1]


def test_what_is_played_fast_is_no_hole() -> None:
    clock, registry = Clock(), now_of()
    registry.clock = clock
    screen = Screen(registry, past=Course())
    screen.lens = Lens(registry, slow := Slow(), patience_seconds=10)
    slow.is_held = False
    go(screen, *"t-1h", "enter", *"++++++", " ")
    assert "▶ 300×" in screen.text().splitlines()[0]
    slow.is_held = True
    clock.now += 2
    assert "nothing kept" not in screen.text()  # it is on its way
    slow.is_held = False
    eventually(lambda: bool(screen.frame()) and screen.lens.wall > WALL - 3100)
    assert "nothing kept" not in screen.text()


def test_keys_go_on_while_a_slow_past_is_read() -> None:
    screen = Screen(now_of(), past=Course())
    screen.lens = Lens(now_of(), slow := Slow(), patience_seconds=0)
    screen.frame()
    for _ in range(5):
        screen.press("[").frame()
    text = screen.text()
    assert text.startswith(" PAST · this is still now · going to 2027-01-15 07:59:10 …")
    assert all("reverse" in style for _, style in screen.frame()[0])
    slow.is_held = False
    eventually(lambda: screen.text().startswith(" PAST Fri 2027-01-15 07:59:10"))
    assert len(slow.asked) <= 3  # of those that waited, the newest alone


class Slow(Course):
    """Answers when it is let go."""

    is_held = True

    def moment(self, wall: float, after: bool = False) -> Source:  # type: ignore[override]
        eventually(lambda: not self.is_held)
        return super().moment(wall, after)


# ---- The graphs of a page ----


def test_a_page_shows_its_graphs_over_longer_times() -> None:
    screen = screen_of(160, 60)
    go(screen, "down", "down", "enter")
    assert "░" not in screen.text()
    for name in ("1h", "24h", "7d"):
        text = go(screen, "h")
        assert f"graphs: {name}" in text.splitlines()[-1]
        assert re.search(f"(, |last ){name}", text)
        assert "░" in text  # the spike, of one step of three hundred
    assert "samples" in go(screen, "h")
    assert NO_JOURNAL in go(Screen(now_of()), "down", "enter", "h").splitlines()[-1]


def test_the_graphs_of_a_page_in_the_past_end_then() -> None:
    class Ends(Course):
        ends: list[tuple[float, float]] = []  # noqa: RUF012

        def graph(self, node_id: str, end: float, seconds: float, steps: int) -> Readings:
            self.ends.append((end, seconds))
            return super().graph(node_id, end, seconds, steps)

    screen = Screen(now_of(), past=(past := Ends()))
    go(screen, "down", "enter", *"t-1h", "enter")
    assert past.ends[-1] == (screen.lens.wall, 120)
    go(screen, "h")
    assert past.ends[-1] == (screen.lens.wall, RANGES[1].seconds)


def test_graphs_that_are_not_kept_say_why() -> None:
    screen = Screen(now_of(), past=Amnesia())
    text = go(screen, "down", "enter", "h")
    assert "the journal was put aside: it is from a newer version" in text.splitlines()[-1]


# ---- A recording: there is no now ----


def test_a_recording_has_no_now() -> None:
    lens, ui = Lens(None, Course(), patience_seconds=10), Ui(at=FIRST)
    lens.refresh(ui)
    text = plain(render(look(lens, ui, About("", OPEN, is_here=False), 80, 24), 80, 24))
    assert text.startswith(f" REPLAY {show_time(FIRST)}, ")
    assert "Esc" not in text
    assert "Node-1000" in text
    assert re.search(r"^ p play .* q quit", text.splitlines()[-1])
    assert "join" not in text.splitlines()[-1]
    screen = screen_of()
    screen.lens, screen.ui = lens, ui._replace(at=LAST - 5)
    screen.frame()
    assert "nothing is kept" not in go(screen, "]").splitlines()[-1]  # it is the last
    for key in "]]}}":
        text = go(screen, key)
        assert screen.lens.wall == LAST
        assert f"nothing is kept after {show_time(LAST)}" in text.splitlines()[-1]
    go(screen, "]", "[")
    assert screen.lens.wall == FIRST + (LAST - 10 - FIRST) // 10 * 10


# ---- With what was sent ----


def test_what_was_sent_is_what_is_stepped_back_to_value_by_value(tmp_path: pathlib.Path) -> None:
    """Three nodes of one GPU at 1 Hz for three minutes: one is there all the time, one comes late, one falls silent."""
    clock = Clock()
    registry = Registry(1.0, 100, clock)
    start = clock.now
    registry.wall = lambda: WALL - 300 + clock.now - start
    registry.log._wall = registry.wall
    info = pb.NodeInfo(devices=[pb.DeviceInfo(name="GPU", memory_total_bytes=1000)])
    lives = {"always": (0, 181), "late": (90, 181), "silent": (0, 61)}
    sent: dict[int, dict[str, int]] = {}  # what each node was last heard to have, by the second
    path = tmp_path / "journal.db"
    with contextlib.closing(Store(path, None)) as store:
        for second in range(181):
            clock.now = start + second
            sent[second] = dict(sent.get(second - 1, {}))
            for number, (node_id, (first, end)) in enumerate(lives.items()):
                if first <= second < end:
                    sent[second][node_id] = (37 * second + 11 * number) % 101
                    device = pb.DeviceSample(utilization_percent=sent[second][node_id], temperature_celsius=second % 90)
                    process = pb.Process(device_index=0, pid=1 + second, name="job")
                    request = pb.HeartbeatRequest(
                        node_id=node_id, info=pb.NodeInfo(instance_id=node_id, devices=info.devices),
                        sample=pb.Sample(sequence=second + 1, devices=[device]), processes=pb.ProcessList(processes=[process]),
                    )  # fmt: skip
                    registry.take_unary(request, "10.0.0.7")
            registry.tick()
            if second % 10 == 0:
                now = clock.now
                store.write(now, registry.wall(), 10.0, registry.snapshot(), registry.newest_events(EVENTS_KEPT), lambda: None)
    screen = Screen(registry, past=Kept(path))
    go(screen, "]", "[")
    for second in range(170, -1, -10):
        assert round(screen.lens.wall - (WALL - 300)) == second
        rows = {row.node_id: row for row in screen.lens.rows(lives) if row}
        assert {node_id: round(100 * (row.vitals.utilization or 0)) for node_id, row in rows.items()} == sent[second]
        for node_id, row in rows.items():
            silent = max(second - lives[node_id][1] + 1, 0)
            heard = second - silent
            assert screen.lens.now - row.heartbeat_at == pytest.approx(silent, abs=0.002)
            assert state_of(row, screen.lens.now) is (State.LOST if silent > 10 else State.LATE if silent > 3 else State.ONLINE)
            assert row.sample.devices[0].utilization_percent == sent[second][node_id]
            assert row.sample.devices[0].temperature_celsius == row.vitals.celsius == heard % 90
            assert [process.pid for process in row.processes] == [1 + heard]
        kinds = [(event.kind, event.node_id) for event in screen.lens.events(EVENTS_KEPT)]
        assert kinds.count(("joined", "always")) == 1
        assert (("joined", "late") in kinds) == (second >= 90)
        assert (("lost", "silent") in kinds) == (second > 70)
        assert screen.lens.totals.states[State.ONLINE] == sum(first <= second < end + 3 for first, end in lives.values())
        go(screen, "[")
    assert "nothing is kept before" in screen.text().splitlines()[-1]
