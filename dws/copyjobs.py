"""Copy jobs of one server: how many at a time, and what becomes of each.

What lives here: the queue of jobs, and the way from an answer of a source to a
stored batch or a report of failure. What must not: how one copy is fetched and
checked (copying.py).
"""

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from dws.config import Config
from dws.copying import CopyFault, Copying
from dws.effects import Effects, Log, Report, Write
from dws.following import REPORT_TIMEOUT_S
from dws.messages import Copy, CopyFailed, DigestList, Error, Fetched, ReadData
from dws.store import DiscardStaged, OpResult, StoreBatch

_WAITING_MAX: Final = 64


class CopyJobs:
    """new_handle: a name for a staged file."""

    def __init__(self, incarnation: int, config: Config, new_handle: Callable[[], int]) -> None:
        self.failed = 0
        self._incarnation = incarnation
        self._config = config
        self._new_handle = new_handle
        self._epoch = 0
        self._running: dict[int, Copying] = {}
        self._keys = itertools.count(1)
        self._waiting: deque[Copy] = deque()

    def begin_epoch(self, epoch: int) -> Effects:
        """Orders of an earlier balancer are dropped: their batches will never be decided."""
        effects: Effects = []
        for copying in self._running.values():
            effects += _discard(copying.handles)
        self._running.clear()
        self._waiting.clear()
        self._epoch = epoch
        return effects

    def add(self, job: Copy) -> Effects:
        """Take a job; one too many is issued again later. One that runs or waits already is one job, but
        from another source it begins anew: the balancer has given up the first."""
        same = _identity(job)
        for waiting in self._waiting:
            if _identity(waiting) == same:
                waiting.source = job.source
                return []
        running = next((each for each in self._running.values() if _identity(each.job) == same), None)
        if running is not None and running.source == job.source:
            return []
        if len(self._waiting) >= _WAITING_MAX:
            return []
        dropped = self._drop(running) if running is not None else []
        self._waiting.append(job)
        return dropped + self._start()

    def _start(self) -> Effects:
        effects: Effects = []
        config = self._config
        while self._waiting and len(self._running) < config.copies_at_once:
            job = self._waiting[0]
            copying = Copying(next(self._keys), job, self._new_handle, config.copy_credit_bytes)
            memory_bytes = sum(each.memory_bytes for each in self._running.values()) + copying.memory_bytes
            if self._running and memory_bytes > config.staged_memory_bytes:
                break
            self._waiting.popleft()
            self._running[copying.key] = copying
            effects += copying.ask()
        return effects

    def answered(self, tag: tuple[Any, ...], message: Any, data: memoryview) -> Effects:
        _, key, what, detail = tag
        copying = self._running.get(key)
        if copying is None:
            return []
        effects: Effects = []
        try:
            if what == "fetch" and isinstance(message, Fetched):
                effects = copying.fetched(detail, message, data)
            elif what == "digests" and isinstance(message, DigestList):
                copying.digests(data)
            elif what == "read" and isinstance(message, ReadData):
                effects = copying.chunk(detail, data)
            else:
                raise CopyFault(message.text if isinstance(message, Error) else "unexpected answer")
        except CopyFault as fault:
            return self._fail(copying, fault.code, str(fault))
        return effects + self._go_on(copying)

    def unanswered(self, tag: tuple[Any, ...]) -> Effects:
        _, key, what, detail = tag
        copying = self._running.get(key)
        if copying is None:
            return []
        try:
            return copying.unanswered(what, detail)
        except CopyFault as fault:
            return self._fail(copying, fault.code, str(fault))

    def written(self, key: int, result: OpResult) -> Effects:
        """A chunk was written to a staged file."""
        copying = self._running.get(key)
        if copying is None:
            return []
        copying.written()
        return self._fail(copying, result.code, result.text) if result.code else self._go_on(copying)

    def stored(self, key: int, result: OpResult) -> Effects:
        """The batch was stored, or refused."""
        copying = self._running.get(key)
        if copying is None:
            return []
        if result.code:
            return self._fail(copying, result.code, result.text)
        del self._running[key]
        return self._start()

    def _go_on(self, copying: Copying) -> Effects:
        if not copying.done:
            return copying.ask()
        op = StoreBatch(copying.all_blobs, self._incarnation, self._epoch, copying.job.decision)
        return [Write("copy", op, ("copied", copying.key), copying.memory_bytes)]

    def _fail(self, copying: Copying, code: str, text: str) -> Effects:
        self.failed += 1
        job = copying.job
        first = job.records[0]
        report = CopyFailed(
            self._incarnation, first.batch, first.version, text, job.source.number, job.job, code
        )
        effects: Effects = [Report(report, ("copy-failed",), REPORT_TIMEOUT_S), Log("warning", text)]
        return effects + self._drop(copying) + self._start()

    def _drop(self, copying: Copying) -> Effects:
        """What still comes for it is late from now on."""
        del self._running[copying.key]
        return _discard(copying.handles)

    def check(self) -> None:
        assert len(self._running) <= self._config.copies_at_once
        assert len(self._waiting) <= _WAITING_MAX
        for copying in self._running.values():
            copying.check()


def _identity(job: Copy) -> tuple[int, int]:
    """What makes two orders one job: a batch's version, or the number that repair gave it."""
    return (job.job, 0) if job.job else (0, job.records[0].version)


def _discard(handles: list[int]) -> Effects:
    return [Write("copy", DiscardStaged(handles), ("discarded",), 0)] if handles else []
