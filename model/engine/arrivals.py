"""When requests are sent: one after the other, several at a time, or as a schedule has them."""

from __future__ import annotations

import asyncio
import heapq
import time

WATCH_S = 0.01  # between two looks at how late this process wakes


class Lateness:
    """How late this process itself is, while it waits for a server's events.

    A process that gets no processor, or is busy, stamps what has come only when it wakes: times of
    chunks are late by as much. Sleeps of WATCH_S tell by how much.
    """

    def __init__(self):
        self.late_s: list[float] = []

    async def __aenter__(self):
        self.task = asyncio.ensure_future(self._watch())
        return self

    async def __aexit__(self, *exception):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(WATCH_S)
            self.late_s.append(time.perf_counter() - begin - WATCH_S)

    def facts(self) -> dict:
        """{"p50", "p99", "max"} in seconds; empty where nothing was seen."""
        found = sorted(self.late_s)
        if not found:
            return {}
        places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        last = len(found) - 1
        return {name: round(found[round(share * last)], 5) for name, share in places.items()}


async def answer_all(serve, queue, num_slots: int) -> None:
    """Send all requests of a queue.ServedQueue; serve(request, slot, queue) answers one of them."""
    schedule = queue.schedule
    if schedule is None:
        await _together([_worker(serve, queue, slot) for slot in range(num_slots)])
        return
    queue.began_s = queue.now()
    if schedule.clients:
        clients = range(min(schedule.clients, schedule.num_requests))
        await _together([_client(serve, queue, slot) for slot in clients])
    else:
        await _open_loop(serve, queue, schedule.arrivals)


async def _together(tasks: list) -> None:
    """All of them; where one raises, the others end."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _worker(serve, queue, slot: int) -> None:
    """A question's turns and then the next question, until there are none."""
    while (request := queue.take(slot)) is not None:
        await serve(request, slot, queue)


async def _client(serve, queue, slot: int) -> None:
    """A client of a closed loop: the next request arrives when its last one has ended.

    What the client does with an answer then, its text and its record, makes the next one late.
    """
    arrival_s = queue.began_s
    while queue.waiting:
        request = queue.arrived(slot, arrival_s)
        if request is not None:
            await serve(request, slot, queue)
        arrival_s = queue.ended_s[slot]


async def _open_loop(serve, queue, arrivals) -> None:
    """Requests at their times, whether or not others have been answered; slots are reused."""
    free, running = [], []

    async def one(request, slot):
        await serve(request, slot, queue)
        heapq.heappush(free, slot)

    try:
        for number, arrival in enumerate(arrivals):
            await asyncio.sleep(max(queue.began_s + arrival - queue.now(), 0))
            running = still_running(running)
            slot = heapq.heappop(free) if free else number
            request = queue.arrived(slot, queue.began_s + arrival)
            if request is None:
                heapq.heappush(free, slot)
            else:
                running.append(asyncio.ensure_future(one(request, slot)))
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def still_running(tasks: list) -> list:
    """Those that have not ended. Raises what one that has ended has raised."""
    for task in tasks:
        if task.done():
            task.result()
    return [task for task in tasks if not task.done()]
