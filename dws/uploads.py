"""Uploads into one server: Stage and Commit, and when each is answered.

What lives here: the way from a request to the writer and back, and the fence
against requests of a time that has passed. What must not: what is staged so far
and whether it is right (staging.py).

A Stage is answered when its bytes are written, so that the sender keeps the
disk's pace; a Commit when its batch is durable. A part that could not be written
ends its upload, since what follows would not join what is on the disk.
"""

from collections.abc import Callable
from typing import Any, Final

from dws.config import Config
from dws.effects import Answer, Effects, Write
from dws.errors import DwsError, NotHeld, OverBound, Stale, TryAgain
from dws.limits import INLINE_MAX_BYTES
from dws.messages import Commit, Committed, Error, Stage, Staged, StagePart, Unstage, Unstaged
from dws.names import epoch_of
from dws.staging import Staging
from dws.store import DiscardStaged, OpResult, PageStore, StoreBatch

_RETRY_S: Final = 0.1


class Uploads:
    """epoch: tells that of the balancer that this server follows."""

    def __init__(self, name: str, store: PageStore, config: Config, epoch: Callable[[], int]) -> None:
        self.expired = 0
        self._name = name
        self._store = store
        self._config = config
        self._epoch = epoch
        self._staging = Staging(config)
        self._committing: dict[bytes, list[int]] = {}  # batch → tokens that wait for its commit
        self._writing_bytes = 0  # handed to the writer, not yet written
        self._faults: dict[int, Error] = {}  # token → what befell a part of its message

    def new_handle(self) -> int:
        return self._staging.new_handle()

    # -- requests ------------------------------------------------------------------------

    def stage(self, peer: bytes, token: int, request: Stage, data: memoryview, now: float) -> Effects:
        try:
            self._fence(request.version, request.incarnation)
            if self._writing_bytes + len(data) > self._config.write_queue_bytes:
                raise TryAgain("the disk is behind")
            page, have, writes = self._staging.stage(peer, request, data, now)
        except DwsError as error:
            return [Answer(token, Error(error.code, str(error), _RETRY_S))]
        if not writes:
            return [Answer(token, Staged(page, have))]
        effects: Effects = []
        for write in writes:
            self._writing_bytes += len(write.data)
            answer = Staged(page, have) if write is writes[-1] else None
            tag = ("staged", token, answer, request.batch, write.handle, len(write.data))
            effects.append(Write("upload", write, tag, len(write.data)))
        return effects

    def commit(self, peer: bytes, token: int, request: Commit, data: memoryview, now: float) -> Effects:
        waiting = self._committing.get(request.batch)
        if waiting is not None:
            waiting.append(token)
            return []
        try:
            self._fence(request.version, request.incarnation)
            if all(self._store.record(page.name, request.version) for page in request.pages):
                return [Answer(token, Committed(self._store.number))]
            if request.with_bytes:
                self._staging.stage(peer, _stage_of(request), data, now)
            blobs = self._staging.blobs(request)
        except DwsError as error:
            effects: Effects = [Answer(token, Error(error.code, str(error), _RETRY_S))]
            return effects if isinstance(error, NotHeld) else effects + self._end(request.batch)
        self._committing[request.batch] = [token]
        op = StoreBatch(blobs, request.incarnation, epoch_of(request.version))
        cost = sum(len(blob.data) for blob in blobs if blob.data is not None)
        return [Write("upload", op, ("commit", request.batch), cost)]

    def unstage(self, token: int, request: Unstage) -> Effects:
        return [Answer(token, Unstaged()), *self._end(request.batch)]

    def _fence(self, version: int, incarnation: int) -> None:
        epoch = self._epoch()
        if incarnation != self._store.identity.incarnation:
            raise Stale(f"{self._name} has restarted since this batch was placed here")
        if epoch_of(version) != epoch:
            raise Stale(f"the batch is of epoch {epoch_of(version)}, {self._name} is in {epoch}")

    # -- what the writer did ---------------------------------------------------------------

    def written(self, tag: tuple[Any, ...], result: OpResult) -> Effects:
        """A part was written; the tag has an answer if it was the last of its message."""
        _, token, answer, batch, handle, size_bytes = tag
        self._writing_bytes -= size_bytes
        effects: Effects = []
        if result.code:
            self._faults.setdefault(token, Error(result.code, result.text, _RETRY_S))
            effects += _discard(self._staging.end_of(batch, handle))
        if answer is not None:
            effects.append(Answer(token, self._faults.pop(token, None) or answer))
        return effects

    def committed(self, batch: bytes, result: OpResult) -> Effects:
        error = Error(result.code, result.text, _RETRY_S) if result.code else None
        tokens = self._committing.pop(batch)
        answers: Effects = [Answer(token, error or Committed(self._store.number)) for token in tokens]
        if result.code == TryAgain.code:
            # It never got to the disk: what is staged is there for the next attempt.
            return answers
        handles = self._staging.end(batch)
        return answers + (_discard(handles) if error else [])

    # -- time --------------------------------------------------------------------------------

    def expire(self, now: float) -> Effects:
        """Drop uploads without progress, and those of another epoch."""
        effects: Effects = []
        for batch in self._staging.expired(now, self._epoch()):
            if batch not in self._committing:
                self.expired += 1
                effects += self._end(batch)
        return effects

    def _end(self, batch: bytes) -> Effects:
        return _discard(self._staging.end(batch))

    def check(self) -> None:
        self._staging.check()
        assert self._writing_bytes >= 0


def _stage_of(request: Commit) -> Stage:
    """What a Commit that brings the bytes would have been preceded by."""
    for page in request.pages:
        if page.size > INLINE_MAX_BYTES:
            text = f"{page.size:,} bytes, over the bound of {INLINE_MAX_BYTES:,}, must be staged"
            raise OverBound(f"{page.name[:200]!r}: {text}")
    parts = [StagePart(page.page, 0, page.size) for page in request.pages]
    return Stage(request.batch, request.version, request.incarnation, parts)


def _discard(handles: list[int]) -> Effects:
    return [Write("upload", DiscardStaged(handles), ("discarded",), 0)] if handles else []
