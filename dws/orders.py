"""Jobs for all servers: one dispatcher each (patterns/jobs.py).

What lives here: which server has which order open, and the stamps that every
order carries against a wrong catalog. What must not: why a job is ordered
(placement.py, garbage.py).
"""

from dws.config import Config
from dws.effects import Effects, Push
from dws.messages import Copy, Drop, Dropped, Record, ServerRef, encode
from dws.store import CatalogHead
from patterns.jobs import Dispatcher

Key = tuple[str, int]


class Orders:
    def __init__(self, head: CatalogHead, config: Config) -> None:
        self._head = head
        self._config = config
        self._dispatchers: dict[int, Dispatcher[Key]] = {}

    def add_server(self, number: int) -> None:
        if number not in self._dispatchers:
            # At most one copy for each open batch and one drop.
            backlog_max = self._config.open_batches_max + 1
            self._dispatchers[number] = Dispatcher(
                self._head.cluster, self._head.epoch, min(self._config.job_window, backlog_max), backlog_max,
                self._config.job_reissue_s,
            )  # fmt: skip

    def worker(self, number: int, incarnation: int | None) -> None:
        """The server is reachable in this life of it, or (None) not at all."""
        self._dispatchers[number].worker(incarnation)

    def has_room(self, number: int) -> bool:
        return self._dispatchers[number].has_room()

    def copy(
        self, number: int, version: int, source: ServerRef, records: list[Record], decision: int
    ) -> None:
        job = Copy(self._head.nonce, decision, source, records)
        self._dispatchers[number].add(("copy", version), encode(job))

    def drop(self, number: int, serial: int, records: list[Dropped], decision: int) -> None:
        job = Drop(self._head.nonce, decision, records)
        self._dispatchers[number].add(("drop", serial), encode(job))

    def done(self, number: int, key: Key) -> None:
        self._dispatchers[number].done(key)

    def poll(self, now: float) -> Effects:
        return [
            Push(number, frame)
            for number, dispatcher in self._dispatchers.items()
            for frame in dispatcher.poll(now)
        ]

    def open_orders(self) -> int:
        return sum(len(dispatcher) for dispatcher in self._dispatchers.values())

    def check(self) -> None:
        for dispatcher in self._dispatchers.values():
            dispatcher.check()
