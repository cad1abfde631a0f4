"""The language of `/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import node_pb2 as pb
from edge.fleet import extremes
from edge.fleet.filters import parse_filter
from edge.fleet.intake import after
from edge.fleet.row import Row
from server import Registry
from tests.fixtures.examples import NOW, example_registry, example_row
from tests.fixtures.screens import Screen


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("state:lost", {11}),
        ("state:l", {6, 11, 17}),
        ("edge-03", {3}),
        ("10.0.0.127", {27}),
        ("RTX edge-1", {10, 13, 16, 19}),
        ("age>20", {11}),
        ("nothing-like-this", set()),
        ("temp>", set(range(28))),
        ("state:foo edge-03", {3}),
        ("edge-03|edge-05|10.0.0.127", {3, 5, 27}),
        ("edge-03 | edge-05 state:online", {3, 5}),
        ("edge-03 | ", {3}),
        ("state:lost,left", {11, 17}),
        ("s:lost|edge-03", {3, 11}),
        ("-state:online", {6, 11, 17}),
        ("!state:online -state:late", {11, 17}),
        ("-h200|l4", {1, 4, 7, 10, 13, 16, 19, 22, 25}),  # RTX: what remains
        ('"RTX 4090" edge-1', {10, 13, 16, 19}),
        ("age > 20", {11}),
        ("age> 20 s", {11}),
        ("gpus>2 edge-0", {0, 3, 6, 9}),
        ("gpu = 2 edge-0", {2, 5, 8}),
        ("cpu>40", set()),
        ("cpu >= 35% edge-0", set(range(10))),
        ("version:0.1 edge-03", {3}),
        ("v:9.9", set()),
        ("version=0.1 edge-03", {3}),  # by its numbers, which are those of 0.1.0
        ("version=0.1.0 edge-03", {3}),
        ("version=0,0.2", set()),
        ("state=lost", {11}),
        ("temp>-40", set(range(28))),
        ("fe80::1", set()),  # a word: no such name before its colons
    ],
)
def test_filters(text: str, wanted: set[int]) -> None:
    screen = Screen(example_registry()).press("/", *text, "enter")
    assert screen.nodes() == [f"Node-{1000 + index}" for index in sorted(wanted)]


def test_nodes_of_a_server_that_is_not_heard_are_found() -> None:
    registry = Registry(1.0, 100, clock=lambda: NOW)
    for index in range(3):
        registry.restore(example_row(index)._replace(known_until=NOW - index))
    screen = Screen(registry).press("/", *"state:unh")
    assert sorted(entry_id.node_id for entry_id in screen.lens.order) == [example_row(index).node_id for index in (1, 2)]


def test_a_token_finds_the_nodes_that_came_by_it() -> None:
    registry = example_registry(3)
    registry.restore(example_row(1)._replace(token_id="d8d213"))
    registry.restore(example_row(2)._replace(token_id="0a1b2c"))
    for text, index in (("token:d8d213", 1), ("TOK:d8d", 1), ("-token:d8d213,0a1b2c", 0), ("t:0a1b2c", 2)):
        assert Screen(registry).press("/", *text).nodes() == [f"Node-{1000 + index}"]
    assert "not understood: token:" in Screen(registry).press("/", *"token:").text()


def test_memory_is_compared_in_bytes_or_in_percent() -> None:
    def matching(text: str, registry: Registry) -> list[str]:
        return Screen(registry).press("/", *text).nodes()

    registry = example_registry()
    used = {row.node_id: row.vitals.memory_used_bytes for row in registry.snapshot()}
    for text, least in (("mem>10GiB", 10 * 2**30), ("mem > 20 GB", 20 * 10**9), ("memory>0.5T", 2**39)):
        assert matching(text, registry) == [name for name, count in used.items() if count > least]
    registry = example_registry(0)
    registry.restore(host_row("Node-1", memory_used_bytes=12 * 2**30))
    registry.restore(host_row("Node-2"))
    assert matching("mem>10gib", registry) == ["Node-1"]  # of a host without GPUs
    assert matching("mem<13gib", registry) == ["Node-1"]  # what is not reported is not little
    assert matching("cpu>=0", registry) == []


def host_row(node_id: str, memory_used_bytes: int | None = None) -> Row:
    """A box without GPUs."""
    info = pb.NodeInfo(host=pb.HostInfo(memory_total_bytes=2**34))
    sample = pb.Sample(host=pb.HostSample(memory_used_bytes=memory_used_bytes))
    return after(Row(node_id, "10.0.0.1", None, 1.0, heartbeat_at=NOW), pb.HeartbeatRequest(info=info, sample=sample), NOW)


def test_processes_and_their_users() -> None:
    registry = example_registry(3)
    for index, users in enumerate((("ada", "root"), ("bob",))):
        processes = [pb.Process(device_index=7 * number, user=user, name=f"python3 of {user}") for number, user in enumerate(users)]
        registry.restore(example_row(index)._replace(packed_processes=pb.ProcessList(processes=processes).SerializeToString()))
    for text, wanted in (
        ("user:ada", ["Node-1000"]),
        ("user:Ada,bob", ["Node-1000", "Node-1001"]),
        ("process:python", ["Node-1000", "Node-1001"]),
        ('proc:"of root"', ["Node-1000"]),
        ("-proc:python", ["Node-1002"]),
        ("user:", ["Node-1000", "Node-1001", "Node-1002"]),
    ):
        assert Screen(registry).press("/", *text).nodes() == wanted, text
    assert Screen(registry).press("g", "/", *"user:root").nodes() == ["Node-1000 7"]  # on this device


def test_filters_compare_readings() -> None:
    rows = {f"Node-{1000 + index}": example_row(index).vitals for index in range(28)}
    cases: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("temp>=80", lambda vitals: vitals.celsius >= 80),
        ("util<10", lambda vitals: vitals.utilization * 100 < 10),
        ("mem>90", lambda vitals: vitals.memory * 100 > 90),
        ("power>3000 temp<80", lambda vitals: vitals.milliwatts > 3_000_000 and vitals.celsius < 80),
        ("power > 3 kW  util < 60", lambda vitals: vitals.milliwatts > 3_000_000 and vitals.utilization * 100 < 60),
        ("power>3kW|util<10", lambda vitals: vitals.milliwatts > 3_000_000 or vitals.utilization * 100 < 10),
        ("power>3kW mem>=50%", lambda vitals: vitals.milliwatts > 3_000_000 and vitals.memory >= 0.5),
    )
    for text, wanted in cases:
        assert Screen(example_registry()).press("/", *text).nodes() == [name for name, vitals in rows.items() if wanted(vitals)]


def labelled(index: int, **labels: str) -> Row:
    return example_row(index)._replace(labels=tuple(sorted(labels.items())))


def test_labels_are_asked_for_whole_or_in_part() -> None:
    registry = example_registry(6)
    registry.restore(labelled(0, rack="a3", Team="ML"))
    registry.restore(labelled(1, rack="a31", Team="ml vision"))
    registry.restore(labelled(2, rack="b1", **{"x.y-z_1": "q:r=s"}))
    for text, wanted in (
        ("rack=a3", [0]),
        ("rack:a3", [0, 1]),
        ("RACK=A3,b1", [0, 2]),
        ("team:ml", [0, 1]),
        ("team=ml", [0]),
        ('team="ml vision"', [1]),
        ("rack=a3|rack=b1", [0, 2]),
        ("-rack:a", [2, 3, 4, 5]),
        ("x.y-z_1=q:r=s", [2]),
        ("rack=nothing", []),
        ("rack=", range(6)),
        ("shelf=a3 edge-03", [3]),
        ("shelf:a3 edge-03", [3]),
    ):
        assert Screen(registry).press("/", *text).nodes() == [f"Node-{1000 + index}" for index in wanted], text
    assert "not understood: shelf=a3 " in Screen(registry).press("/", *"shelf=a3").text()
    assert Screen(registry).press("g", "/", *"rack=a3").nodes() == [f"Node-1000 {device}" for device in range(8)]


def test_a_label_can_be_called_like_the_beginning_of_a_word() -> None:
    registry = example_registry(3)
    registry.restore(labelled(1, st="lost"))
    assert Screen(registry).press("/", *"st=lost").nodes() == ["Node-1001"]
    assert Screen(registry).press("/", *"sta:lost").nodes() == []


def test_a_label_takes_no_words_place() -> None:
    """Whoever may report could else take away what all others look for."""
    registry, processes = example_registry(3), pb.ProcessList(processes=[pb.Process(device_index=0, user="ada")])
    registry.restore(example_row(0)._replace(packed_processes=processes.SerializeToString()))
    registry.restore(labelled(1, user="ada"))
    assert Screen(registry).press("/", *"user:ada").nodes() == ["Node-1000", "Node-1001"]


def test_energy_is_compared_in_kilowatt_hours() -> None:
    registry = example_registry(3)
    for index, joules in ((0, 7_200_000), (1, 90_000)):
        registry.restore(example_row(index)._replace(vitals=example_row(index).vitals._replace(energy_joules=joules)))
    for text, wanted in (
        ("energy>1kWh", [0]), ("energy >= 2", [0]), ("energy<30 Wh", [1]), ("energy>80kJ", range(3)), ("energy>80000J", [0, 1]),
    ):  # fmt: skip
        assert Screen(registry).press("/", *text).nodes() == [f"Node-{1000 + index}" for index in wanted], text


def watched(index: int, minutes: int, utilization: int, celsius: int, before: int = 100) -> Row:
    """A node of which this has been seen for so long, after an hour of something else."""
    packed = b""
    for minute in range(60 + minutes):
        now = utilization if minute >= 60 else before
        packed = extremes.after(packed, 1000 + minute, bytes([now, 50, celsius]), 3)
    row = example_row(index)
    return row._replace(extremes=packed, vitals=row.vitals._replace(utilization=utilization / 100, memory=0.5, celsius=celsius))


def test_what_has_held_for_a_while() -> None:
    registry = example_registry(9)
    rows = [watched(0, 31, 3, 70), watched(1, 20, 3, 85), watched(2, 31, 0, 81), watched(3, 61, 97, 82, before=50)]
    rows += [watched(6, 31, 3, 70)]  # late
    now_busy = watched(4, 31, 3, 70)
    rows += [now_busy._replace(vitals=now_busy.vitals._replace(utilization=0.9))]  # since its last minute
    for row in rows:
        registry.restore(row)
    for text, wanted in (
        ("util<5 for 30m", [0, 2]),
        ("util < 5 % for 30 m", [0, 2]),
        ("util<5 for 0.5h", [0, 2]),
        ("util<=3 for 1800s", [0, 2]),
        ("UTIL<5 FOR 19m", [0, 1, 2]),
        ("util>=97 for 1h", [3]),
        ("util>95for1d", []),
        ("util=0 for 30m", [2]),
        ("temp>80 for 10m", [1, 2, 3]),
        ("mem>=50 for 1h", [0, 1, 2, 3, 4]),
        ("util<5 for 30m|temp>81 for 10m", [0, 1, 2, 3]),
        ("-util<5 for 30m", [1, 3, 4, 5, 6, 7, 8]),
        ("util<5 for 30m gpus=8", [0]),
        ("state:online util<5 for 30m", [0, 2]),
    ):
        assert Screen(registry).press("/", *text).nodes() == [f"Node-{1000 + index}" for index in wanted], text


@pytest.mark.parametrize(
    "text", ["util<5 for", "util<5 for 30", "util<5 for 30x", "mem>1GiB for 5m", "age>3 for 5m", "util!=5 for 5m"]
)
def test_a_while_that_cannot_be_read_restricts_nothing(text: str) -> None:
    screen = Screen(example_registry()).press("/", *f"{text} edge-03")
    assert screen.nodes() == ["Node-1003"], text
    assert "not understood: " in screen.text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("power>1 for 1m", "not understood: power>1 for 1m (for works with util, mem, temp) "),
        ("-age>3 for 5m", "not understood: -age>3 for 5m (for works with util, mem, temp) "),
        ("util<95 for 60d", "not understood: util<95 for 60d (for goes back 45d12h at most) "),
        ("util<5 for", "not understood: util<5 for "),
        ("util>0 for 0m", "not understood: util>0 for 0m "),
        ("util>0 for -5m", "not understood: util>0 for -5m "),
        ("util<5kg for 30m", "not understood: util<5kg for 30m "),
        ("util<95 for 30d", "`for` asks of nodes that are online, and have been observed all that time."),
    ],
)
def test_a_while_that_is_asked_in_vain_says_why(text: str, said: str) -> None:
    assert said in Screen(example_registry()).press("/", *text).text()


UNREAD = (
    "temp>", "power>1kg", "state:foo", "speed>3", "age>1m>2", "cpu>", "cpus>8", "state:lost,foo", "user:", "-", "util<|h200",
    "version<", "version>new",
)  # fmt: skip


@pytest.mark.parametrize("term", UNREAD)
def test_a_term_that_cannot_be_read_restricts_nothing_and_is_named(term: str) -> None:
    screen = Screen(example_registry()).press("/", *f"{term} edge-03", "enter")
    assert screen.nodes() == ["Node-1003"]
    assert f"not understood: {term} " in screen.text()


def aged(index: int, version: str) -> Row:
    info = example_row(index).info
    info.agent_version = version
    return after(example_row(index), pb.HeartbeatRequest(info=info), NOW)


VERSIONS = ("0.1.0", "0.2", "0.10.1", "v0.9.9-rc1", "", "nightly", "1" * 40, "3.0.0.0")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("version<0.2", [0]),
        ("version < 0.9.9", [0, 1]),
        ("version<=0.2.0", [0, 1]),
        ("version>=0.10", [2, 7]),
        ("version>0.9.9", [2, 7]),
        ("version==0.2.0", [1]),
        ("version=0.2|version=3", [1, 7]),
        ("version!=0.2", [0, 2, 3, 7]),  # what does not say it is none of these
        ("-version<0.10", [2, 4, 5, 6, 7]),
        ("version:0.9", [3]),
        ("version:night", [5]),
    ],
)
def test_versions_are_compared_by_their_numbers(text: str, wanted: list[int]) -> None:
    registry = example_registry(0)
    for index, version in enumerate(VERSIONS):
        registry.restore(aged(index, version))
    assert Screen(registry).press("/", *text).nodes() == [f"Node-{1000 + index}" for index in wanted]


def test_a_label_called_version_can_be_asked_for() -> None:
    registry = example_registry(2)
    registry.restore(labelled(1, version="7.1"))
    assert Screen(registry).press("/", *"version=7.1").nodes() == ["Node-1001"]
    assert Screen(registry).press("/", *"version>1").nodes() == []  # which is the agent's


def test_the_help_counts_the_agents_that_are_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.fleet.lens.OWN_VERSION", (0, 9))
    registry = example_registry(8)  # one of them is late
    screen = Screen(registry).press("?")
    assert "7 agents that are online are older than this server (0.1.0): / version<0.1.0" in screen.text()
    for row in registry.snapshot()[1:]:
        registry.restore(row._replace(version=(1,)))
    assert "an agent that is online is older than this server" in Screen(registry).press("?").text()
    registry.restore(registry.snapshot()[0]._replace(version=()))
    assert "older" not in Screen(registry).press("?").text()


def test_ages_in_other_units() -> None:
    assert Screen(example_registry()).press("/", *"age>0.5m").nodes() == ["Node-1011"]
    assert Screen(example_registry()).press("/", *"age>1h").nodes() == []


def test_a_name_with_a_colon_that_is_none_is_not_understood() -> None:
    for text in ("status:lost", "gpu:h200", "foo:"):
        assert parse_filter(text) == ([], [text])
    assert not parse_filter("fe80::5 fd::5 10.0.0.7:50051")[1]  # addresses are words
