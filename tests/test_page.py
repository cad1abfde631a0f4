"""The page in a real Chromium, of a real server: what it shows, what is typed, and what becomes of it without news."""

from __future__ import annotations

import itertools
import math
import pathlib
import random
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

import node_pb2 as pb
from edge.credentials import Role
from edge.event_log import Event
from edge.fleet.columns import natural
from edge.fleet.events import newest_lines, parse_event_filter
from edge.fleet.guard import Guard
from edge.fleet.lens import count_totals
from edge.fleet.row import Row, Session, State, hanging_seconds, reason_of, state_of
from edge.protocol import hangs_after_seconds, late_after_seconds, lost_after_seconds
from edge.text import MISSING, show_bytes, show_energy, show_percent, show_seconds, show_watts
from tests.fixtures.browser import Browser
from tests.fixtures.examples import NOW, example_row
from tests.fixtures.processes import Program, eventually
from tests.fixtures.sessions import Serving, Stream, opened

HOSTILE = "<img src=x onerror=document.title='owned'> \N{PILE OF POO} </script>"  # as long as a node's name may be, or nearly
SESSION = Session(pb.HeartbeatRequest(), "", None)
PHONE, DESK = (390, 844), (1280, 800)
YELLOW = "return makePalette().yellow.fill.replaceAll(',', ', ')"
CUT = """
const parts = [...document.querySelectorAll(".row .number, .row .metered, .sum dd, .sum small")];
return parts.filter(part => part.getClientRects().length && part.scrollWidth > part.clientWidth).map(part => part.textContent);
"""
SHOWN = """
const rows = [...document.querySelectorAll("#table .row")].filter(row => !row.hidden && row.offsetParent);
rows.sort((one, other) => one.getAttribute("aria-rowindex") - other.getAttribute("aria-rowindex"));
return rows.map(row => [...row.children].map(cell => cell.textContent).concat(row.classList.contains("stale")));
"""


class Page:
    """The page in its browser, as a person sees and uses it."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    def open(self, address: str) -> None:
        self.browser.open("about:blank")
        self.browser.open(address)

    def rows(self) -> dict[str, list[Any]]:
        """By the name with its glyph: what stands in the other columns, and whether it is grey."""
        return {row[0]: row[1:] for row in self.browser.run(SHOWN)}

    def text(self, selector: str) -> str:
        """As it can be read: nothing of what is hidden."""
        script = "const one = document.querySelector(arguments[0]); return one.getClientRects().length ? one.innerText : ''"
        return str(self.browser.run(script, selector))

    def shows(self, selector: str, *words: str, seconds: float = 15) -> str:
        """Waits for words."""

        def found() -> str:
            text = self.text(selector)
            return text if all(word in text for word in words) else ""

        try:
            return eventually(found, seconds)
        except pytest.fail.Exception:
            pytest.fail(f"{words} are not in {selector}, which has: {self.text(selector)}")

    def hears_nothing(self) -> None:
        """As if as long as the page is patient had gone by without news."""
        self.browser.run("fleet.newsAt -= QUIET_MILLISECONDS; changed()")

    def colour(self, selector: str, name: str = "color") -> str:
        return str(self.browser.run("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name))

    def focus(self) -> str:
        """What has it, and whether one sees that."""
        script = "const e = document.activeElement; return `${e.id || e.textContent} ${getComputedStyle(e).outlineStyle}`"
        return str(self.browser.run(script))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """At a desk, in the dark. Whatever a test does, the console stays empty: no error, and nothing that its policy forbids."""
    browser.size(*DESK)
    browser.prefer("dark")
    browser.log("browser")
    browser.log("performance")
    yield Page(browser)
    complaints = [
        entry["message"] for entry in browser.log("browser") if "net::ERR_" not in entry["message"]
    ]  # a server that is gone
    assert complaints == []


def gpu(utilization: int | None, memory_gib: int, celsius: int, watts: int) -> pb.DeviceSample:
    memory, power = memory_gib * 2**30, watts * 1000
    return pb.DeviceSample(
        utilization_percent=utilization, memory_used_bytes=memory, temperature_celsius=celsius, power_milliwatts=power
    )


class Fleet:
    """A server, and three boxes: one with GPUs, one that reports as good as nothing, one that means harm."""

    def __init__(self) -> None:
        self.serving = Serving(interval=60.0, http=True)  # they are heard once: that lasts
        self.http = self.serving.http
        device = {"name": "NVIDIA H200", "memory_total_bytes": 140 * 2**30, "power_limit_milliwatts": 700_000}
        limits = enumerate((95, 87))
        devices = [pb.DeviceInfo(index=at, slowdown_temperature_celsius=limit, **device) for at, limit in limits]  # type: ignore[arg-type]
        info = pb.NodeInfo(instance_id="a", hostname="edge-01", agent_version="0.0.9", devices=devices, labels={"rack": "a3"})
        info.host.cpu_count = 96
        self.full = self.open("Box-9", info)
        self.send_devices(self.full, gpu(50, 70, 61, 350), gpu(91, 105, 80, 650))
        process = pb.Process(device_index=0, pid=4711, user="ada", name="train", memory_used_bytes=2**30)
        self.send(self.full, processes=pb.ProcessList(processes=[process]))
        self.open("Box-10", pb.NodeInfo(instance_id="b", hostname="host-b"))
        hostile = pb.NodeInfo(
            instance_id="c", hostname="<b>bold</b>\N{RIGHT-TO-LEFT OVERRIDE}evil", last_error="<script>alert(1)</script>",
            labels={"x": "<i>"}, devices=[pb.DeviceInfo(index=0, name="<u>GPU</u>")],
        )  # fmt: skip
        self.send_devices(self.open(HOSTILE, hostile), pb.DeviceSample(error="<img src=x onerror=alert(2)>"))

    def open(self, node_id: str, info: pb.NodeInfo) -> Session:
        return self.serving.registry.open(pb.HeartbeatRequest(node_id=node_id, info=info), "127.0.0.1", lambda _end: None)

    def send(self, session: Session, **fields: Any) -> None:
        self.serving.registry.heartbeat(session, pb.HeartbeatRequest(**fields))

    def send_devices(self, session: Session, *devices: pb.DeviceSample) -> None:
        """What a box with these sends each second."""
        host = pb.HostSample(cpu_percent=7, load_1m=0.5, uptime_seconds=90_000, cpu_core_percents=bytes(24))
        self.send(session, sample=pb.Sample(sequence=time.monotonic_ns(), host=host, devices=devices))


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge.web.stream.LOOKS_OF_ONE", 1000)  # these tests come one upon the other, as no person does
        patch.setattr("edge.web.stream.LOOKS", 1000)
        fleet = Fleet()
    yield fleet
    fleet.serving.network.stop()


def test_shows_what_nodes_report(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#states", "● 3 online")
    rows = page.rows()
    assert rows["●Box-9"][:7] == ["edge-01", "ONLINE", "2× H200", "71%", "75%", "80°C", "1.0 kW"]
    assert rows["●Box-10"][:7] == ["host-b", "ONLINE", "—", "—", "—", "—", "—"]  # what is not reported is no zero
    assert [name.lstrip("●")[:6] for name in rows] == [HOSTILE[:6], "Box-9", "Box-10"]  # as people count
    assert not any(row[-1] for row in rows.values())
    sums = page.shows("#sums", "GPUS\n3\n1 failed", "UTILIZATION\n71%", "MEMORY\n175 GiB\nof 280 GiB", "POWER\n1.0 kW", "80°C")
    assert "Box-9" in sums
    assert page.browser.run("return stateButtons.ONLINE.className") == "green"
    page.shows("header", "open", "● live")
    page.shows("#latest", "joined", "Box-9")
    assert page.browser.requests()
    page.browser.press("?")
    page.shows("dialog", "1 agent is older than the server: version<", "LOST", "server.pyz --attach")
    page.browser.press("Esc")


def test_asks_no_other_host(page: Page, fleet: Fleet) -> None:
    page.browser.requests()
    page.open(f"{fleet.http}/#node=Box-9")
    page.shows("#node", "GPU 1")
    asked = [address for address in page.browser.requests() if not address.startswith(("data:", "about:"))]
    assert {address[: len(fleet.http)] for address in asked} == {fleet.http}


def test_filters_in_the_servers_language_and_keeps_it_in_the_address(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    page.browser.press("/", *"temp>70", "Enter")
    eventually(lambda: list(page.rows()) == ["●Box-9"])
    page.shows("#matching", "1 of 3")
    page.shows("#sums", "NODES\n1\nof 3")
    page.browser.press("/", *"temp>hot -b", "Enter")
    page.shows("#matching", "not understood: temp>hot")
    assert page.colour("#matching") == page.browser.run(YELLOW)
    page.browser.press("/", *"rack=a3", "Enter")
    eventually(lambda: list(page.rows()) == ["●Box-9"])
    address = page.browser.run("return location.href")
    page.open(address)  # as a bookmark
    page.shows("#matching", "1 of 3")
    assert list(page.rows()) == ["●Box-9"]
    page.browser.press("Esc")
    eventually(lambda: len(page.rows()) == 3)
    page.browser.run("document.querySelector('[data-state=ONLINE]').click()")
    page.shows("#matching", "3 of 3")
    assert page.browser.run("return document.querySelector('#filter').value") == "state:online"
    page.browser.press("/", *"nothing is like this", "Enter")
    page.shows("#empty", "Nothing matches the filter")
    page.browser.press("/", "Enter", "e")  # the focus has left the field, although there is no list
    page.shows("#events", "Box-10")


def test_opens_a_node_by_the_keyboard_alone(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    page.browser.press("Down", "Down", "Enter")
    text = page.shows("#node", "GPU 0 · NVIDIA H200", "70.0 GiB of 140 GiB", "80°C of 87°C", "650 W of 700 W", "last 1m00s")
    assert "Box-9" in text and "rack=a3" in text and "load 0.50" in text and "node.py 0.0.9" in text and "127.0.0.1" in text
    assert "96 CPUs, each bar the mean of 4" in text
    assert "4711\tada\t1.0 GiB\t1%\ttrain" in text
    assert page.browser.run("return location.hash") == "#node=Box-9"
    throttled = gpu(None, 70, 87, 350)
    throttled.throttle_reasons = 0x40
    fleet.send_devices(fleet.full, throttled, gpu(91, 105, 80, 650))
    page.shows("#node", "87°C of 95°C", "utilization\n—", "throttle: thermal (hardware)")  # it goes on
    assert page.colour(".foot") == page.browser.run(YELLOW)
    page.browser.press("Esc")
    page.shows("#table", "Box-10")
    assert page.focus().startswith("table")
    assert page.rows()["●Box-9"][5] == "87°C"  # the other device is the hottest now, whose limit is higher
    fleet.send_devices(fleet.full, gpu(50, 70, 61, 350), gpu(91, 105, 80, 650))
    page.browser.press("s", "s")
    assert page.browser.run("return location.hash") == "#sort=state"
    page.browser.press("v")
    page.shows("#grid", "100%")
    page.browser.press("End")
    page.shows("#cell", "● ", "ONLINE", "util")
    page.browser.press("s")
    page.shows("#metric", "by memory")
    page.browser.press("e", "/", *"box-10 joined")
    assert page.shows("#events", "Box-10").count("joined") == 1
    page.browser.press("Esc", "Esc")
    page.shows("#grid", "100%")  # where the events were opened


def test_events_are_chosen_and_their_nodes_opened_by_the_keyboard(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    page.shows("footer", "Enter opens   ", "v grid")
    page.browser.press("e", "/", *"box-9 kind:jo", "Enter")
    page.shows("#matching", "1 line")
    page.shows("footer", "Esc back")
    chosen = "return [...document.querySelectorAll('#events [aria-selected=true]')].map(line => line.textContent)"
    (line,) = page.browser.run(chosen)
    assert "Box-9" in line
    assert page.browser.run("return document.getElementById(eventsBox.getAttribute('aria-activedescendant')).textContent") == line
    page.browser.press("Enter")
    page.shows("#node", "GPU 1", "edge-01")  # its host beside its name
    page.browser.run("history.back()")
    page.shows("#events", "Box-9")
    page.browser.press("/", *"kind:never", "Enter")
    page.shows("#matching", "not understood: kind:never")
    page.browser.press("/", *"nothing is like this", "Enter")
    page.shows("#empty", "Nothing matches the filter")
    page.browser.run("history.back()")  # it leads to what was before, not out of the page
    page.shows("#table", "Box-10")


def test_a_node_that_is_opened_and_closed_is_one_step_back(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    steps = page.browser.run("return history.length")
    for _ in range(3):
        page.browser.press("Down", "Enter")
        page.shows("#node", "← Back")
        page.browser.press("Esc")
        page.shows("#table", "Box-10")
        assert page.focus().startswith("table")
    assert page.browser.run("return history.length") == steps + 1
    page.open(f"{fleet.http}/#node=Box-9")  # a bookmark: there is nothing to go back to
    page.shows("#node", "GPU 1")
    assert page.focus().startswith("← Back")
    page.browser.press("Enter")
    page.shows("#table", "Box-10")


def test_an_address_may_say_anything(page: Page, fleet: Fleet) -> None:
    page.open(f"{fleet.http}/#sort=constructor&metric=toString&view=__proto__")
    page.shows("#table", "Box-10")
    assert page.browser.run("return location.hash") == ""  # what can't be read goes
    page.open(f"{fleet.http}/?match=rack%3Da3#view=grid&metric=constructor")  # as programs ask
    page.shows("#metric", "by utilization")
    page.shows("#matching", "1 of 3")
    assert page.browser.run("return location.search + location.hash") == "#match=rack%3Da3&view=grid"


def test_all_that_can_be_pressed_is_reached_by_tab_and_seen(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    reached = []
    for _ in range(10):
        page.browser.press("Tab")
        reached.append(page.focus())
    for wanted in ("theme", "help", "filter", "to-table", "to-grid", "to-events", "table", "● 3 online"):
        (found,) = {one for one in reached if one.startswith(f"{wanted} ")}
        assert not found.endswith(" none")


def test_hostile_names_are_text(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    (name,) = (name for name in page.rows() if "onerror" in name)
    assert HOSTILE.replace("\N{PILE OF POO}", "") in name.replace("\N{PILE OF POO}", "")
    assert "<b>bold</b>�evil" in page.rows()[name][0]
    page.browser.run("document.querySelector('#to-grid').click()")
    page.browser.press("Home")
    page.shows("#cell", "onerror", "✗1 failed")
    page.browser.press("Enter")
    page.shows("#node", HOSTILE, "<script>alert(1)</script>", "x=<i>", "GPU 0 · <u>GPU</u>", "✗ <img src=x onerror=alert(2)>")
    assert page.browser.run("return document.querySelectorAll('img, u, #node dd *, #node h2 *, #node h3 *').length") == 0
    assert "owned" not in page.browser.run("return document.title")
    assert not any(address.endswith("/x") for address in page.browser.requests())


@pytest.mark.parametrize("view", ["", "view=grid", "view=events", "node=Box-9", f"node={HOSTILE.replace('%', '%25')}"])
def test_nothing_is_wider_than_a_phone(page: Page, fleet: Fleet, view: str) -> None:
    page.browser.size(*PHONE)
    page.open(f"{fleet.http}/#{view}")
    page.shows("#states", "3 online")
    widths = "const root = document.documentElement; return [root.scrollWidth, document.body.scrollWidth, innerWidth]"
    assert page.browser.run(widths) == [PHONE[0]] * 3
    assert not page.browser.run("const node = document.querySelector('#node'); return node.scrollWidth > node.clientWidth")
    assert not [text for text in page.browser.run(CUT) if "onerror" not in text]  # a name may be of any length


def test_what_a_phone_has_no_keys_for_has_buttons(page: Page, fleet: Fleet) -> None:
    page.browser.size(*PHONE)
    page.open(f"{fleet.http}/#view=events&events=box-9+joined")
    page.shows("#events", "joined\nBox-9\nedge-01")  # and why
    page.browser.run("document.querySelector('#clear').click()")
    page.shows("#events", "Box-10")
    assert not page.text("#clear")
    page.browser.run("document.querySelector('#help').click()")
    script = "const box = document.querySelector('dialog button').getBoundingClientRect(); return [box.top, box.bottom]"
    assert all(0 < edge < PHONE[1] for edge in page.browser.run(script))


def test_a_low_window_is_for_the_table(page: Page, fleet: Fleet) -> None:
    page.browser.size(1280, 400)
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    assert page.browser.run("return document.querySelector('#table').clientHeight") > 200


def test_dark_light_and_a_button_that_overrides(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    dark = page.colour("body", "backgroundColor")
    page.browser.prefer("light")
    light = eventually(lambda: page.colour("body", "backgroundColor").replace(dark, ""))
    page.browser.run("document.querySelector('#theme').click()")  # light
    page.browser.run("document.querySelector('#theme').click()")  # dark
    assert page.colour("body", "backgroundColor") == dark
    page.open(fleet.http)
    assert page.colour("body", "backgroundColor") == dark  # it is kept
    page.browser.run("document.querySelector('#theme').click()")
    assert page.colour("body", "backgroundColor") == light


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_colours_can_be_read(page: Page, fleet: Fleet, scheme: str) -> None:
    page.browser.prefer(scheme)
    page.open(f"{fleet.http}/#view=grid")
    page.shows("#states", "3 online")
    palette = page.browser.run("return makePalette()")
    for ramp in palette["ramps"].values():
        assert len({look["ink"] for look in ramp}) == 1  # neighbours look alike
        assert min(contrast(look["fill"], look["ink"]) for look in ramp) >= 4.5
    assert contrast(palette["red"]["fill"], palette["red"]["ink"]) >= 4.5
    panel = page.colour("#grid", "backgroundColor")
    for name in ("green", "cyan", "blue", "violet", "yellow", "red", "dim", "grey"):
        assert contrast(page.browser.run(f"return `rgb(${{colourOf('{name}')}})`"), panel) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG has it."""

    def luminance(colour: str) -> float:
        values = [int(colour[at : at + 2], 16) for at in (1, 3, 5)] if colour[0] == "#" else map(int, re.findall(r"\d+", colour))
        linear = [part / 12.92 if (part := value / 255) <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for value in values]
        return sum(map(float.__mul__, linear, (0.2126, 0.7152, 0.0722))) + 0.05

    darker, lighter = sorted(map(luminance, (one, other)))
    return lighter / darker


def test_the_grid_tells_what_the_mouse_is_on_and_names_by_their_ends(page: Page, fleet: Fleet) -> None:
    page.open(f"{fleet.http}/#view=grid&match=box-9")
    page.shows("#matching", "1 of 3")
    page.browser.run("canvas.dispatchEvent(new MouseEvent('mousemove', {clientX: 100, clientY: 250}))")
    page.shows("#cell", "Box-9", "util 71%")
    page.browser.run("fleet.version = 0; stream.reopen()")  # another snapshot, of other objects
    fleet.send_devices(fleet.full, gpu(50, 70, 61, 350), gpu(60, 105, 80, 650))
    page.shows("#cell", "Box-9", "util 55%")
    fleet.send_devices(fleet.full, gpu(50, 70, 61, 350), gpu(91, 105, 80, 650))
    page.shows("#cell", "Box-9", "util 71%")
    script = "const paint = canvas.getContext('2d'); paint.font = '12px monospace'; return fitName(paint, arguments[0], 60)"
    name = page.browser.run(script, "Cluster-West-00092")
    assert name.startswith("…")
    assert "Cluster-West-00092".endswith(name[1:])
    assert name.endswith("0092")
    assert page.browser.run(script, "Box-9") == "Box-9"


def test_events_are_grouped_as_on_the_screen(page: Page, fleet: Fleet) -> None:
    chance = random.Random(1)
    kinds, texts, names = ("late", "lost", "joined"), ("why", "other"), [f"Box-{number}" for number in range(9)]
    events = [Event(1e9 + at // 9 + at % 9 / 10, *map(chance.choice, (kinds, names, texts))) for at in range(200)]
    events += [Event(1e9 + 50, "refused", "Box-1", "wrong token") for _ in range(5)]  # one node, that says the same
    page.open(f"{fleet.http}/#view=events")
    page.shows("#events", "Box-10")
    script = "fleet.events = arguments[0]; return shownEvents()"
    lines = page.browser.run(script, [in_the_pages_words(event) for event in events])
    wanted = list(newest_lines(events))
    assert any(line.node_ids for line in wanted)
    for line, told in zip(wanted, lines, strict=True):
        first, nodes = line.first, len(line.node_ids)
        assert (told["unix_milliseconds"], told["kind"]) == (round(1000 * first.time), first.kind)
        assert told.get("count", 1) == line.number
        assert told["node_id"] == (f"{nodes} nodes" if nodes > 1 else first.node_id)
        said = [line.said] * bool(line.said) + [", ".join(line.node_ids)] * (nodes > 1)
        assert told["text"] == (" · ".join(said) if nodes else first.text)


def test_events_are_filtered_in_the_language_of_the_screen(page: Page, fleet: Fleet) -> None:
    kinds, texts = ("joined", "hung", "failed", "lost"), ("GPU 1 of 4 is lost", "it's a-l4", "")
    events = [Event(1e9 + at, *said) for at, said in enumerate(itertools.product(kinds, ("l4-1", "Box-2"), texts))]
    filters = [
        "", "kind:joined", "kind:hung,failed", "-l4", "!joined", "joined|hung", "joined | hung", '"1 of 4"', "1 of 4", '-"1 of',
        "k:j,h -kind:jo", "--l4", "-", "|", "kind:", "kind:no", "kind:j,no l4", "kind:jo|box", "box:2", ":", "kinds:joined",
        "-kind:no|l4",
    ]  # fmt: skip
    page.open(fleet.http)
    script = """
        return arguments[0].map((text) => {
            const { tests, notUnderstood } = parseEvents(text);
            return [arguments[1].map((event) => tests.every((test) => test(event))), notUnderstood];
        });
    """
    told = page.browser.run(script, filters, [in_the_pages_words(event) for event in events])
    for text, (matches, not_understood) in zip(filters, told, strict=True):
        tests, wanted = parse_event_filter(text)
        assert (text, not_understood) == (text, wanted)
        assert (text, matches) == (text, [all(test(event) for test in tests) for event in events])


def in_the_pages_words(event: Event) -> dict[str, Any]:
    words = f"{event.kind} {event.node_id} {event.text}".lower()
    return {**event._asdict(), "unix_milliseconds": round(1000 * event.time), "words": words}


def test_what_is_read_of_the_events_stays_where_it_is(page: Page, fleet: Fleet) -> None:
    page.open(f"{fleet.http}/#view=events")
    page.shows("#events", "Box-10")
    script = """
        const made = (at) => ({unix_milliseconds: 1000 * at, kind: "late", node_id: `n${at}`, text: "", words: `late n${at}`});
        const top = () => read[Math.floor(eventsBox.scrollTop / eventList.height)].node_id;
        fleet.events = Array.from({length: EVENTS_KEPT}, (_, at) => made(at));
        draw();
        eventsBox.scrollTop = 2605;
        const before = top();
        fleet.events = [...fleet.events.slice(3), made(9001), made(9002), made(9003)]; // as many are kept as before
        draw();
        return [before, top()];
    """
    before, after = page.browser.run(script)
    assert before == after == "n1899"


def test_an_empty_fleet_says_how_a_box_joins(page: Page) -> None:
    serving = Serving(http=True)
    try:
        page.open(serving.http)
        page.shows("#empty", "No node reports here yet", "python3 node.pyz --server ")
        assert page.browser.run("return stateButtons.ONLINE.className") == "dim"  # none is well
        page.shows("footer", "/ filter   e events")
        page.browser.run("fleet.server.has_agent = true; changed()")  # as where node.pyz lies beside server.pyz
        page.shows("#empty", f"curl -fO {serving.http}/node.pyz")
        stream = Stream(serving.address, "..")  # any name: a browser must not take it for a way
        page.shows("#table", "..", "ONLINE")
        page.browser.press("Down", "Enter")
        page.shows("#node", "ONLINE", "Address\n127.0.0.1")
        stream.close()
    finally:
        serving.network.stop()


def test_of_ten_thousand_nodes_only_those_in_sight_are_there(page: Page) -> None:
    serving = Serving(http=True, max_nodes=10_000)
    row = example_row(0)
    for number in range(10_000):
        serving.registry.restore(row._replace(node_id=f"Node-{number}", heartbeat_at=serving.registry.clock() + 60))
    try:
        page.open(serving.http)
        page.shows("#states", "10,000 online", seconds=40)
        page.browser.press("End")
        eventually(lambda: "●Node-9999" in page.rows())
        page.browser.press("v", "End")
        page.shows("#cell", "Node-9999")
        assert page.browser.run("return document.querySelectorAll('.row').length") < 200
        assert page.browser.run("return document.querySelectorAll('*').length") < 2000
    finally:
        serving.network.stop()


def test_states_and_ages_are_the_servers_own(page: Page, fleet: Fleet) -> None:
    now, rows = 1000.0, []
    ages, lags, awaited, known = (0.0, 2.9, 3.1, 9.9, 10.1), (0.0, 40.0), (0.0, 1005.0), (math.inf, 995.0)
    both = (False, True), (None, SESSION)
    for age, lag, awaited_until, known_until, left, session in itertools.product(ages, lags, awaited, known, *both):
        times = {
            "heartbeat_at": now - age,
            "sample_at": now - age - lag,
            "awaited_until": awaited_until,
            "known_until": known_until,
        }
        rows.append(Row("box", "", session, 1.0, left=left, reason="why", **times))  # type: ignore[arg-type]
    page.open(fleet.http)
    script = """
        return arguments[0].map((row) => {
            fleet.knownUntil = row.knownUntil ?? Infinity;
            row.state = stateOf(row, 1e6);
            return [row.state, hangingFor(row, 1e6), reasonOf(row, 1e6)];
        });
    """
    for row, (state, hanging, reason) in zip(rows, page.browser.run(script, list(map(in_the_page, rows))), strict=True):
        wanted, seconds = state_of(row, now), hanging_seconds(row, now)
        assert state == wanted.value
        assert hanging == (None if seconds is None else pytest.approx(1000 * seconds))
        assert reason.replace("the server has", "its server has") == reason_of(row, wanted, now)


def in_the_page(row: Row) -> dict[str, Any]:
    """What it makes of a row that it is told."""
    assert row.sample_at
    return {
        "left": row.left,
        "has_session": row.session is not None,
        "reason": row.reason,
        "heartbeatAt": 1000 * row.heartbeat_at,
        "sampleAt": 1000 * row.sample_at,
        "awaitedUntil": 1000 * row.awaited_until,
        "knownUntil": None if math.isinf(row.known_until) else 1000 * row.known_until,
        "late_after_milliseconds": 1000 * late_after_seconds(row.interval_seconds),
        "lost_after_milliseconds": 1000 * lost_after_seconds(row.interval_seconds),
        "hangs_after_milliseconds": 1000 * hangs_after_seconds(row.interval_seconds),
    }


def test_sums_are_the_screens_own(page: Page) -> None:
    serving = Serving(http=True)
    rows = [
        row._replace(heartbeat_at=row.heartbeat_at + 60, sample_at=row.heartbeat_at + 60) for row in map(example_row, range(28))
    ]
    shift = serving.registry.clock() - NOW
    for row in rows:
        serving.registry.restore(row._replace(heartbeat_at=row.heartbeat_at + shift, sample_at=row.heartbeat_at + shift))
    try:
        page.open(serving.http)
        page.shows("#states", "◌ 1 left", "○ 1 disconnected")
        told = page.browser.run("return {...derived.totals, hottest: derived.totals.hottest.node_id}")
    finally:
        serving.network.stop()
    wanted = count_totals(rows, NOW)
    assert wanted.hottest
    assert (told["gpus"], told["total"], told["hottest"]) == (wanted.gpus, wanted.memory_total_bytes, wanted.hottest.node_id)
    assert told["used"] == pytest.approx(wanted.memory_used_bytes, rel=1e-3)  # told in mebibytes
    assert told["known"] == sum(len(row.capacities.devices) for row in rows if state_of(row, NOW) is not State.LEFT)
    assert told["milliwatts"] == pytest.approx(wanted.milliwatts, rel=1e-3)
    assert told["utilization"] == pytest.approx(wanted.utilization, abs=1e-3)


def test_what_hangs_is_said_to_be_old_and_has_room(page: Page) -> None:
    serving = Serving(http=True)
    now = serving.registry.clock()
    serving.registry.restore(example_row(0)._replace(node_id="Box-1", heartbeat_at=now + 60, sample_at=now - 659))
    try:
        page.open(serving.http)
        page.shows("#sums", "GPUS\n0\nof 8")
        page.shows("#table", "~1", "m")
        for width in (320, 390, 860, 1280, 1600):
            page.browser.size(width, 568)
            assert page.browser.run(CUT) == [], width
        page.browser.press("Down", "Enter")
        page.shows("#node", "% · until 1", "°C · until 1", " ago")
    finally:
        serving.network.stop()


def test_a_page_that_nobody_looks_at_rests(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#link", "● live")
    page.browser.run("stream.rest(true)")  # as after a minute in a hidden tab
    page.shows("#link", "○ ")
    since = page.browser.run("return fleet.version")
    page.browser.run("stream.rest(false)")
    page.shows("#link", "● live")
    eventually(lambda: page.browser.run("return fleet.version") > since)


def test_a_page_that_is_opened_in_the_background_rests_too(page: Page, fleet: Fleet) -> None:
    script = """
        Object.defineProperty(document, "hidden", {configurable: true, get: () => true});
        const set = setTimeout;
        setTimeout = (does, milliseconds) => set(does, milliseconds === 60000 ? 300 : milliseconds);
        window.show = () => { delete document.hidden; document.dispatchEvent(new Event("visibilitychange")); };
    """
    added = page.browser.command("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        page.open(fleet.http)
        eventually(lambda: page.browser.run("return stream.isIdle"))
        page.browser.run("show()")
        page.shows("#link", "● live")
    finally:
        page.browser.command("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])


def test_what_does_not_fit_is_said_and_locks_nobody_out(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#link", "● live")
    page.browser.run("window.taken = take; take = () => { throw new Error('why') }; stream.reopen()")
    page.hears_nothing()
    page.shows("#stale", "this page and its server do not fit: reload this page (why)", "asked again in ")
    assert page.browser.run("return document.title") == "? Edge fleet"
    viewers = f"{fleet.http}/metrics/fleet"
    eventually(lambda: b"\nedge_server_viewers 0\n" in urllib.request.urlopen(viewers).read())  # it holds no place
    page.browser.run("take = taken; stream.wake()")
    page.shows("#link", "● live")
    page.browser.run("fleet.server = {...fleet.server, version: '9.9.9'}; changed()")  # as of a server that starts anew
    page.shows("footer", "do not fit any more: reload this page")


def test_values_are_written_as_on_the_screen(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    numbers = [
        0,
        1,
        9,
        59,
        60,
        99.4,
        99.94,
        99.96,
        100,
        999,
        999.4,
        999.6,
        1023,
        3599,
        3600,
        65_000,
        86_399,
        86_400,
        1e6,
        123456789,
        2e12,
        3e17,
    ]
    script = (
        "return arguments[0].map(n => [showBytes(n), showWatts(n), showEnergy(n), showSeconds(1000 * n), showPercent(n / 1000)])"
    )
    wanted = [[show_bytes(n), show_watts(n), show_energy(n), show_seconds(n), show_percent(n / 1000)] for n in numbers]
    assert page.browser.run(script, numbers) == wanted
    assert page.browser.run("return [showBytes(null), showWatts(null), showPercent(null), showCelsius(null)]") == [MISSING] * 4
    names = ["Node-10", "Node-9", "node-1", "Node-009", "a2b10", "a2b9", "", "7"]
    assert page.browser.run("return arguments[0].map(natural)", names) == [natural(name) for name in names]


def test_what_is_put_into_the_page_does_not_run(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#table", "Box-10")
    page.browser.run("""
        const script = document.createElement("script"), image = document.createElement("div");
        script.textContent = "document.title = 'owned'";
        image.innerHTML = `<img src=/healthz onerror="document.title = 'owned'"><p style="color: red">`;
        document.body.append(script, image);
    """)
    blocked = eventually(lambda: page.browser.log("browser"))
    assert all("Content Security Policy" in entry["message"] for entry in blocked)
    assert page.browser.run("return document.title") == "Edge fleet"


def test_a_secure_server_is_looked_at_by_its_view_token(page: Page, tmp_path: pathlib.Path) -> None:
    guard = Guard(tmp_path)
    serving, token = Serving(http=True, guard=guard), guard.tokens.offered(Role.VIEW)
    try:
        opened(serving.registry, "Box-1")
        page.open(serving.http.replace("https://", f"https://me:{token.text}@"))
        page.shows("#table", "Box-1")
        page.shows("#server", "secure")
        (issued,) = (issued for issued in guard.tokens.issued() if issued.role is Role.VIEW)
        guard.tokens.revoke(issued.id)  # its stream ends, and the browser asks for another one
        page.hears_nothing()
        page.shows("#stale", "the server wants another view token: reload this page", "what is shown is old")
    finally:
        serving.network.stop()


# ---- A server that is silent, or gone, and a clock that stood still ----


def serve(address: str = "127.0.0.1:0", http: str = "0") -> tuple[Program, str, str]:
    """A server, where nodes report to it, and where its page is."""
    server = Program("server.py", "--headless", "--no-journal", "--listen", address, "--http", http)
    return server, server.line(r"listening on (\S+)")[1], server.line(r"http://(127\.0\.0\.1:\d+)/$")[1]


def test_what_is_old_is_grey_and_a_restart_is_a_clean_beginning(page: Page) -> None:
    server, address, http = serve()
    simulated = ("--server", address, "--hardware", "simulated", "--seed")
    nodes = [Program("node.py", *simulated, seed, "--id", f"Box-{seed}") for seed in ("1", "2")]
    programs = [server, *nodes]
    try:
        page.open(f"http://{http}")
        page.shows("#states", "● 2 online")
        page.browser.run("window.isTheSame = true")

        nodes[1].kill()  # a node that dies
        page.shows("#table", "DISCONNECTED")
        assert page.rows()["○Box-2"][-1] is True
        assert page.rows()["●Box-1"][-1] is False

        server.process.send_signal(signal.SIGSTOP)  # no byte comes, and no connection breaks
        page.hears_nothing()
        page.shows("#stale", "no news from the server for ", "what is shown is old")
        page.shows("#states", "? 2 unheard")
        assert [row[-1] for row in page.rows().values()] == [True, True]
        page.shows("#link", "no news")
        page.browser.press("/", *"box", "Enter")  # nobody knows what this matches, and that is said; asked anew once it is late
        page.shows("#matching", "asking …")
        eventually(lambda: page.browser.run("return matching.aborter !== null"))
        assert page.browser.run("const was = matching.aborter; matching.tick(clock() + 11000); return was.signal.aborted")
        page.browser.press("Enter")
        page.browser.run("opened.wantedAt -= 2000")
        page.shows("#node", "the server has not answered for ")
        page.browser.press("Esc")
        page.shows("#table", "Box-1")
        page.browser.press("Esc")
        age = seconds_of(page.rows()["?Box-1"][-2])
        eventually(lambda: seconds_of(page.rows()["?Box-1"][-2]) > age)
        server.process.send_signal(signal.SIGCONT)
        page.shows("#states", "● 1 online")
        eventually(lambda: not page.text("#stale"))

        sparks = page.browser.run("return derived.shown[0].sparks.length")
        server.kill()  # and one that starts again: another epoch, and other numbers
        page.hears_nothing()
        page.shows("#stale", "no news from the server for ", "the server does not answer; ask")
        programs.append(serve(address, http)[0])
        page.shows("#states", "● 1 online", seconds=30)
        eventually(lambda: list(page.rows()) == ["●Box-1"])
        assert page.browser.run("return window.isTheSame") is True
        assert page.browser.run("return derived.shown[0].sparks.length") >= sparks > 1
        page.shows("#link", "● live")
    finally:
        for program in programs:
            program.kill()


def test_ages_are_right_again_after_a_sleep(page: Page, fleet: Fleet) -> None:
    page.open(fleet.http)
    page.shows("#states", "● 3 online")
    opened_at = page.browser.run("return stream.openedAt")
    page.browser.run("const now = Date.now; Date.now = () => now() + 3600_000")  # as if the clock that ages are told by had slept
    eventually(lambda: page.browser.run("return stream.openedAt") > opened_at + 3600_000)  # it asks anew, and at once
    page.shows("#states", "● 3 online")
    assert all(seconds_of(row[-2]) < 600 for row in page.rows().values())


def seconds_of(age: str) -> int:
    """ "7s", "1m02s"."""
    minutes, _, seconds = age.rstrip("s").rpartition("m")
    return 60 * int(minutes or 0) + int(seconds)
