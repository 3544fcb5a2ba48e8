"""Each turn of the loop has one, and whoever leaves the line costs the others nothing."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from router.server.one_by_one import OneByOne


async def served(count: int, leaving: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """In which turn each was served."""
    loop, line = asyncio.get_running_loop(), OneByOne()
    turn = 0
    said: list[tuple[int, int]] = []

    def beat() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(beat)

    async def one(number: int) -> None:
        await line.turn()
        said.append((turn, number))

    beat()
    tasks = [asyncio.ensure_future(one(number)) for number in range(count)]
    await asyncio.sleep(0)
    for number in leaving:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    while turn < 100:
        await asyncio.sleep(0)
    await one(count)  # long after, nobody waits
    said.append((turn, -1))
    return said


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("leaving", [(), (1,), (1, 2, 3), (4,)])
def test_one_a_turn_in_their_order(run, leaving):
    said = run(served(5, leaving))
    *turns, (last, late), (now, _) = said
    assert [number for _, number in turns] == [n for n in range(5) if n not in leaving]
    assert len({turn for turn, _ in turns}) == len(turns)
    assert (late, last) == (5, now)
