"""Jobs for all servers: one dispatcher each (patterns/jobs.py).

What lives here: which server has which order open, and the stamps that every
order carries against a wrong catalog. What must not: why a job is ordered
(replication.py, repair.py, garbage.py, surplus.py).
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
        self._busy: dict[int, Dispatcher[Key]] = {}  # those that have jobs

    def add_server(self, number: int) -> None:
        if number not in self._dispatchers:
            # At most one copy for each open batch, what repair may order, and a drop of each kind.
            backlog_max = self._config.open_batches_max + self._config.repair_jobs + 2
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
        self._add(number, ("copy", version), job)

    def repair(
        self, number: int, serial: int, source: ServerRef, records: list[Record], decision: int
    ) -> None:
        job = Copy(self._head.nonce, decision, source, records, serial)
        self._add(number, ("repair", serial), job)

    def drop(self, number: int, key: Key, records: list[Dropped], decision: int) -> None:
        job = Drop(self._head.nonce, decision, records)
        self._add(number, key, job)

    def _add(self, number: int, key: Key, job: Copy | Drop) -> None:
        self._busy[number] = self._dispatchers[number]
        self._busy[number].add(key, encode(job))

    def done(self, number: int, key: Key) -> None:
        self._dispatchers[number].done(key)

    def poll(self, now: float) -> Effects:
        # After every event: with a thousand servers a walk over all would cost more than the event.
        effects: Effects = []
        for number, dispatcher in list(self._busy.items()):
            if len(dispatcher):
                effects += [Push(number, frame) for frame in dispatcher.poll(now)]
            else:
                del self._busy[number]
        return effects

    def open_orders(self) -> int:
        return sum(len(dispatcher) for dispatcher in self._dispatchers.values())

    def check(self) -> None:
        for dispatcher in self._busy.values():
            dispatcher.check()
