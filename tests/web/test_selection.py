"""Nodes by a filter: the language of the screen's `/`, and what it says of what it can't read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence

import pytest

import node_pb2 as pb
from edge import history
from edge.fleet.extremes import after
from edge.fleet.lens import Lens, Ui
from edge.web.selection import Busy, Selection, select
from server import Registry
from tests.fixtures.examples import shared_registry


def chosen(registry: Registry, text: str) -> tuple[list[str], Sequence[str]]:
    selection = asyncio.run(select(registry, text))
    return [row.node_id for row in selection.rows], selection.not_understood


@pytest.mark.parametrize(
    "text",
    [
        "", "h200", "H200|l4", "-h200", "state:online", "!state:online", "util > 50", "mem>20% temp<70", "gpus=8", "rack=a9",
        "team:ml -rack:a10", "user:ada", "user=ada|bob", "process:python", "version<0.2", '"rtx 4090"', "node-1003", "age > 5s",
        "power>1kw", "nothing-has-this", "wat<", "util<", "rack= h200", "--h200", "-" * 2001 + "h200",
    ],
)  # fmt: skip
def test_it_chooses_what_the_screen_does(text: str) -> None:
    registry, screen = shared_registry(), Ui()
    lens = Lens(registry, None)
    lens.refresh(screen._replace(filter=text))
    node_ids, not_understood = chosen(registry, text)
    assert node_ids == sorted(entry_id.node_id for entry_id in lens.order)
    assert list(not_understood) == list(lens.not_understood)


def test_what_runs_on_a_node_is_looked_into() -> None:
    registry = shared_registry()
    row = registry.snapshot()[3]
    runs = pb.ProcessList(processes=[pb.Process(device_index=0, pid=7, user="zoe", name="train.py")])
    registry.restore(row._replace(packed_processes=runs.SerializeToString()))
    assert chosen(registry, "user:zoe") == chosen(registry, "process=train.py") == ([row.node_id], [])
    assert chosen(registry, "user:zoe process:other") == ([], [])


def test_what_has_held_for_a_while_is_looked_up() -> None:
    registry = shared_registry()
    row = registry.snapshot()[0]
    frame = history.encode((3, 10, 40))
    row = row._replace(vitals=row.vitals._replace(utilization=0.03))
    for minute in range(100, 110):
        row = row._replace(extremes=after(row.extremes, minute, frame, len(frame)))
    registry.restore(row)
    assert chosen(registry, "util<5 for 5m") == ([row.node_id], [])
    assert chosen(registry, "util<5 for 30m") == ([], [])
    assert chosen(registry, "age<5 for 5m")[1] == ["age<5 for 5m (for works with util, mem, temp)"]


def test_the_nodes_come_by_their_names_whatever_order_they_came_in() -> None:
    registry, rows = Registry(1.0, 100), shared_registry().snapshot()
    random.Random(1).shuffle(rows)
    for row in rows:
        registry.restore(row)
    assert chosen(registry, "")[0] == sorted(row.node_id for row in rows)


# ---- In turn ----


class Processor:
    """A filter is said to take this much of it, for each ten nodes; and what was slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.slept, sleep = 0.0, list[float](), asyncio.sleep

        def thread_time() -> float:
            self.now += seconds
            return self.now

        async def note(wanted: float) -> None:
            self.slept.append(wanted)
            await sleep(0)

        monkeypatch.setattr("time.thread_time", thread_time)
        monkeypatch.setattr("edge.web.selection.asyncio.sleep", note)
        monkeypatch.setattr("edge.web.selection.sliced", all_at_once)
        monkeypatch.setattr("time.monotonic", lambda: 1000.0)


async def all_at_once(items: Iterable[int]) -> AsyncIterator[int]:
    for item in items:
        yield item


@pytest.mark.parametrize(("seconds", "rest"), [(0.01, 0.6), (0.2, 10.0)])  # the fleet of the tests is three times ten nodes
def test_filters_take_a_twentieth_of_the_processor_all_together(
    monkeypatch: pytest.MonkeyPatch, seconds: float, rest: float
) -> None:
    registry, processor = shared_registry(), Processor(monkeypatch, seconds)

    async def run() -> list[float]:
        await asyncio.gather(*(select(registry, f"x{number}", f"network-{number % 3}") for number in range(12)))
        await select(registry, "")
        return processor.slept

    waits = [round(max(one, 0.0), 3) for one in asyncio.run(run())]
    assert waits == [round(max(number * rest - 10, 0.0), 3) for number in range(13)]  # ten seconds of it are saved up


def test_those_who_wait_for_their_turn_are_so_many_at_most_and_of_one_network_fewer() -> None:
    registry = shared_registry()

    async def run() -> None:
        async def ask(number: int, network: str) -> Selection:
            return await select(registry, f"x{number}", network)

        asked = [asyncio.create_task(ask(number, "greedy")) for number in range(8)]
        asked += [asyncio.create_task(ask(number, "other")) for number in range(8)]
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(one, Busy) for one in done] == 2 * ([False] * 6 + [True] * 2)
        assert not (await ask(0, "greedy")).not_understood

    asyncio.run(run())


@pytest.mark.parametrize("text", [" ".join("abcde" * 21), "a|" * 100, f"user:{'a,' * 100}"])
def test_a_filter_without_end_is_not_looked_for(text: str) -> None:
    assert chosen(shared_registry(), text) == ([], ("a filter of more than 100 words",))
