"""Web servers as queues, and what a balancer hears of them.

What lives here: the model of a server that serves reads, its heartbeats and its
answers to probes. What must not: whom requests are sent to, and how loads are made
of what is heard: that is dws.load and dws.policy themselves.

The model
  - A server is one queue, first come, first served, of `workers` workers; a request
    is one page and takes a service time that was drawn with it.
  - Its heartbeat comes every beat_s, at moments of its own: pages served so far,
    requests in it at that moment, and the mean service time that its LoadBook, the
    production's, makes of what it served. Between beats nothing is heard of it, so
    that what the balancer knows is as old as in reality.
  - A probe every probe_s waits in the queue like a request: its round trip is
    `rtt_s` and that wait.
  - The network takes no time otherwise: a constant delay would shift all alike.
"""

from array import array
from collections import deque
from heapq import heapreplace
from typing import Final

from dws.balancer import TICK_S
from dws.config import Config
from dws.load import Loads
from dws.loadbook import LoadBook
from dws.messages import Beat
from patterns.sim.clock import Clock

#: What a probe takes through an idle server.
RTT_S: Final = 0.5e-3
_ROOM_BYTES: Final = 1 << 50


class _Server:
    __slots__ = ("begins", "book", "ends", "free_at", "serving", "stored_bytes", "stored_pages")

    def __init__(self, workers: int, period_s: float) -> None:
        self.free_at = [0.0] * workers  # a heap: when each worker has done what it was given
        # Requests that had not begun at the last beat, in the order in which they begin.
        self.begins: deque[float] = deque()
        self.ends: deque[float] = deque()
        self.serving: list[tuple[float, float]] = []  # (begin, end) of those that had, and were not done
        self.book = LoadBook(period_s, 0.0)
        self.stored_pages = 0
        self.stored_bytes = 0


class Farm:
    """Servers 0 … count - 1, heard of through `loads`. phases: where in its period each begins, 0 to 1."""

    def __init__(self, workers: int, loads: Loads, config: Config, phases: list[float]) -> None:
        self.workers = workers
        self.clock = Clock()
        self._loads = loads
        self._config = config
        self._servers = [_Server(workers, config.period_s) for _ in phases]
        for number, phase in enumerate(phases):
            loads.add(number)
            loads.open(number, True, 0.0)
            self._beat(number)
            self.clock.at(phase * config.beat_s, self._beat_on, number)
            self.clock.at(phase * config.probe_s, self._probe_on, number)
        self.clock.at(TICK_S, self._tick_on)

    def holds(self, number: int, pages: int, size_bytes: int) -> None:
        """What lies on the server; its beats tell it from now on."""
        server = self._servers[number]
        server.stored_pages += pages
        server.stored_bytes += size_bytes

    def serve(self, number: int, at: float, service_s: float) -> float:
        """A request comes in; how long it will wait before a worker begins with it."""
        server = self._servers[number]
        free = server.free_at
        begin = free[0] if free[0] > at else at
        end = begin + service_s
        heapreplace(free, end)
        server.begins.append(begin)
        server.ends.append(end)
        return begin - at

    def backlog_s(self, number: int, at: float) -> float:
        """How long a request that came now would wait."""
        return max(0.0, self._servers[number].free_at[0] - at)

    def _beat_on(self, number: int) -> None:
        self._beat(number)
        self.clock.after(self._config.beat_s, self._beat_on, number)

    def _beat(self, number: int) -> None:
        """As WebServer's: figures of the book, then the beat."""
        server, now = self._servers[number], self.clock.now
        book = server.book
        served, busy_s = self._settle(server, now)
        book.served += served
        book.visits += served
        book.round(len(server.ends) + len(server.serving), served, busy_s)
        book.turn(now)
        waiting, service_s = book.sample()
        self._loads.beat(
            number,
            Beat(
                0, 0, book.served, 0, waiting, service_s, self.workers,
                server.stored_bytes, _ROOM_BYTES, server.stored_pages, book.visits, book.visits_last,
                book.left_s(now), 0.0, 0, -1.0, -1.0,
            ),
            now,
        )  # fmt: skip

    def _settle(self, server: _Server, now: float) -> tuple[int, float]:
        """(requests, work in s) that were done since the last beat."""
        begins, ends, serving = server.begins, server.ends, server.serving
        while begins and begins[0] <= now:
            serving.append((begins.popleft(), ends.popleft()))
        done = [end - begin for begin, end in serving if end <= now]
        server.serving = [each for each in serving if each[1] > now]
        return len(done), sum(done)

    def _tick_on(self) -> None:
        """As Balancer's."""
        self._loads.settle(self.clock.now)
        self.clock.after(TICK_S, self._tick_on)

    def _probe_on(self, number: int) -> None:
        self._loads.probed(number, RTT_S + self.backlog_s(number, self.clock.now))
        self.clock.after(self._config.probe_s, self._probe_on, number)


def percentile(rising: "array[float]", share: float) -> float:
    """The least value that this share of all is not above; 0 of nothing."""
    if not rising:
        return 0.0
    return rising[min(len(rising) - 1, int(share * len(rising)))]
