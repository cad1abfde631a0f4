"""Long work in the loop of the heartbeats: its items are all there, and what else there is to do comes in between."""

from __future__ import annotations

import asyncio
import itertools

from edge.web.slices import sliced


def test_however_many_are_at_work_all_else_comes_between_two_slices() -> None:
    done: list[str] = []

    async def work(name: str) -> None:
        async for number in sliced(range(4), seconds=0):
            done.append(f"{name}{number}")

    async def run() -> None:
        working = asyncio.gather(*map(work, "abc"))
        while not working.done():
            done.append("-")
            await asyncio.sleep(0)
        await working

    asyncio.run(run())
    assert sorted(one for one in done if one != "-") == [f"{name}{number}" for name in "abc" for number in range(4)]
    assert not [(one, after) for one, after in itertools.pairwise(done) if one != "-" and after != "-"]


def test_who_gives_up_keeps_nobody_waiting() -> None:
    async def work() -> list[int]:
        return [number async for number in sliced(range(3), seconds=0)]

    async def run() -> list[int]:
        given_up, going_on = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        given_up.cancel()
        return await going_on

    assert asyncio.run(run()) == [0, 1, 2]


def test_what_is_short_is_one_slice() -> None:
    async def run() -> int:
        rounds, working = 0, asyncio.create_task(collect())
        while not working.done():
            rounds += 1
            await asyncio.sleep(0)
        return rounds

    async def collect() -> None:
        async for _ in sliced(range(50), seconds=10):
            pass

    assert asyncio.run(run()) < 10
