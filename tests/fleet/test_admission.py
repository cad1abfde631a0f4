"""How much one peer may take of what all share."""

from __future__ import annotations

import asyncio
import itertools
import time

import grpc
import pytest

from edge.event_log import EventLog
from edge.fleet.admission import (
    COMPLAINTS_PER_SECOND,
    OWN_BYTES,
    PLENTY_OF_ONE,
    PLENTY_PER_SECOND,
    POOL_BYTES_A_NODE,
    SILENT_PER_MINUTE,
    Lines,
    Memory,
    Places,
    RateLimit,
    WaitingRoom,
    network_of,
)
from edge.fleet.row import End, Row
from tests.fixtures.sessions import refused


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:/run/edge", "unix:/run/edge"),
        ("", ""),
    ],
)
def test_an_owner_has_an_ipv4_address_or_64_bits_of_an_ipv6_network(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_rate_has_a_bound_for_each_and_one_for_all_in_each_window() -> None:
    rate = RateLimit(seconds=2, most=3, of_each=2)
    assert [rate.takes(key, 1000.0) for key in "aaabc"] == [True, True, False, True, False]
    assert not rate.takes("c", 1001.9)
    assert [rate.takes(key, 1002.0) for key in "caaab"] == [True, True, True, False, False]


def test_a_rate_holds_from_the_first_second() -> None:
    assert RateLimit(1, 1, 1).takes("a", 0.0)


# ---- The waiting room ----


def test_who_waits_longest_is_ended_where_too_many_wait_and_each_after_its_time() -> None:
    ended: list[tuple[int, str, End]] = []
    too_many = End("too many calls wait for their first message", grpc.StatusCode.RESOURCE_EXHAUSTED)
    too_long = End("no message within 0.05 s", grpc.StatusCode.DEADLINE_EXCEEDED)

    def note(call: int, address: str, end: End) -> None:
        ended.append((call, address, end))

    async def play() -> None:
        patient, room = WaitingRoom(2, 60, note), WaitingRoom(2, 0.05, note)
        entered: dict[int, float] = {}

        async def come(call: int) -> None:
            entered[call] = time.monotonic()
            room.enter(call, f"10.0.0.{call}")
            await asyncio.sleep(0.01)

        async def all_ended(count: int) -> None:
            while len(ended) < count:
                await asyncio.sleep(0.001)
            assert time.monotonic() - entered[ended[-1][0]] >= 0.05

        for call in (1, 2, 3):
            patient.enter(call, f"10.0.0.{call}")
        assert ended == [(1, "10.0.0.1", too_many)]
        patient.leave(1)  # it is over
        patient.leave(2)
        patient.enter(4, "10.0.0.4")
        assert len(ended) == 1
        room.enter(2, "10.0.0.2")
        room.leave(2)  # its message has come
        await come(3)
        await asyncio.wait_for(all_ended(2), 5)
        await come(4)  # where nobody waited any more
        await asyncio.wait_for(all_ended(3), 5)
        await come(5)
        await come(6)
        await asyncio.wait_for(all_ended(4), 5)
        await asyncio.wait_for(all_ended(5), 5)

    asyncio.run(play())
    assert ended[1:] == [(call, f"10.0.0.{call}", too_long) for call in (3, 4, 5, 6)]


def row_of(node_id: str, address: str = "10.0.0.1", kept: int = 0) -> Row:
    return Row(node_id, address, None, 1.0, packed_info=bytes(kept))


# ---- Lines ----


def lines_kept(calls: list[tuple[str, str, float, str]]) -> int:
    """How many of these lines (kind, node id, when, address) are kept; the others are counted."""
    log = EventLog(10**6)
    lines = Lines(log)
    for kind, node_id, now, address in calls:
        lines.add(kind, "text", node_id, now, address)
    count, events = log.since(0)
    assert count == len(calls)
    return len(events)


@pytest.mark.parametrize("kind", ["joined", "back", "left", "disconnected"])
def test_of_one_node_a_few_lines_a_second_are_kept_of_each_kind_that_comes_in_masses(kind: str) -> None:
    assert lines_kept([(kind, "box", 7.0, "")] * 9) == PLENTY_OF_ONE
    assert lines_kept([(kind, "box", 7.0, ""), ("joined" if kind != "joined" else "left", "box", 7.0, "")] * 9) == 2 * PLENTY_OF_ONE
    assert lines_kept([(kind, f"box-{number}", 7.0, "") for number in range(300)]) == PLENTY_PER_SECOND
    assert lines_kept([(kind, f"box-{number}", 8.0 + number // 150, "") for number in range(300)]) == 300


def test_of_silent_nodes_there_is_room_for_a_fleet_and_not_for_one_network() -> None:
    one = SILENT_PER_MINUTE // 20
    assert lines_kept([("lost", str(number), 7.0, "10.0.0.1") for number in range(2 * one)]) == one
    assert lines_kept([("lost", str(number), 60.0 * (number // one), "10.0.0.1") for number in range(2 * one)]) == 2 * one
    fleet = [(kind, str(number), 7.0, f"10.0.{number // 200}.1") for number in range(6000) for kind in ("late", "lost")]
    assert lines_kept(fleet) == 2 * SILENT_PER_MINUTE


def test_complaints_have_a_bound_whomever_they_are_about() -> None:
    assert lines_kept([("refused", str(number), 7.0, "") for number in range(100)]) == COMPLAINTS_PER_SECOND
    assert lines_kept([("refused", "box", 8.0 + number // 10, "") for number in range(20)]) == 2 * COMPLAINTS_PER_SECOND
    kinds = [(kind, "box", 7.0, "") for kind in ("refused", "warning", "error", "more") for _ in range(COMPLAINTS_PER_SECOND)]
    assert lines_kept(kinds) == 3 * COMPLAINTS_PER_SECOND


# ---- Memory ----


def test_a_large_fleet_has_a_larger_pool_and_one_network_half_of_it() -> None:
    nodes = 10_000
    half = POOL_BYTES_A_NODE * nodes // 2
    memory = Memory(nodes)
    first, second = row_of("a", kept=OWN_BYTES + half), row_of("b", "10.0.0.2", OWN_BYTES + half - 1)
    for row in (first, second):
        more = row._replace(packed_info=row.packed_info + b"xx")
        code, reason = refused(lambda more=more: memory.swap(None, more))  # type: ignore[misc]
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "19.5 MiB are there for all large ones" in reason
        memory.swap(None, row)
    memory.swap(None, row_of("small", "10.0.0.3", OWN_BYTES))
    memory.swap(None, row_of("last", "10.0.0.3", OWN_BYTES + 1))
    refused(lambda: memory.swap(None, row_of("one too many", "10.0.0.4", OWN_BYTES + 1)))
    memory.swap(first, None)
    memory.swap(None, row_of("one more", "10.0.0.4", OWN_BYTES + 1))
    memory.swap(second, second._replace(packed_info=bytes(OWN_BYTES + half)))  # it grows by the last byte that is free
    assert memory._of_network == {"10.0.0.2": half, "10.0.0.3": 1, "10.0.0.4": 1}
    assert memory._all == half + 2


def test_a_row_that_moves_takes_its_memory_along() -> None:
    memory = Memory(1)
    row = row_of("a", kept=OWN_BYTES + 100)
    memory.swap(None, row)
    memory.swap(row, row._replace(address="10.0.0.2"))
    assert (memory._all, memory._of_network) == (100, {"10.0.0.2": 100})
    memory.swap(row._replace(address="10.0.0.2"), row_of("a", "10.0.0.3"))
    assert (memory._all, memory._of_network) == (0, {})


# ---- Places ----


def places_of(most: int, *rows: Row) -> Places:
    places = Places(most)
    for row in rows:
        places.add(row)
    return places


def test_who_has_more_than_half_of_all_places_gives_one_of_them_to_another_network() -> None:
    rows = [row_of(node_id) for node_id in "abc"]
    assert places_of(4, *rows[:2]).newest_of_the_greedy("10.0.0.2") is None  # half of them is no more than half
    places = places_of(4, *rows, row_of("d", "10.0.0.2"))
    assert places.newest_of_the_greedy("10.0.0.2") == "c"
    assert places.newest_of_the_greedy("10.0.0.1") is None
    places.remove(rows[2])
    assert places.newest_of_the_greedy("10.0.0.2") is None
    five = places_of(5, *rows, row_of("d", "10.0.0.2"), row_of("e", "10.0.0.2"))
    assert five.newest_of_the_greedy("10.0.0.3") == "c"
    assert [places.count(network) for network in ("10.0.0.1", "10.0.0.2", "10.0.0.3")] == [2, 1, 0]


def test_a_network_without_a_row_takes_no_memory() -> None:
    places = places_of(4, row_of("a"))
    places.remove(row_of("of another", "10.0.0.2"))
    places.remove(row_of("a"))
    places.remove(row_of("a"))
    assert places._ids == {}


def test_who_leaves_gives_way_before_who_is_lost_in_its_network() -> None:
    lost, left = row_of("lost"), row_of("left")
    places = places_of(3, lost, left, row_of("living"))
    places.set_gone([lost])
    places.leave(left)
    assert [places.next_gone("10.0.0.2") for _ in range(3)] == [left, lost, None]
    places.leave(lost)  # the first that is gone of its network
    assert places.next_gone("10.0.0.1") == lost


def test_of_networks_that_have_as_many_the_newcomers_own_gives_way() -> None:
    rows = [row_of(f"{address}-{number}", address) for address, number in itertools.product(("10.0.0.1", "10.0.0.2"), range(2))]
    places = places_of(4, *rows)
    places.set_gone(rows)
    assert places.next_gone("10.0.0.2") == rows[2]
    assert places.next_gone("10.0.0.3") == rows[0]  # of those that have most, who has been gone for longest
    places.remove(rows[0])
    places.add(row_of("new", "10.0.0.2"))
    assert places.next_gone("10.0.0.2") == rows[3]
