"""Jobs over PUSH/PULL that are issued again until their effect is reported.

What lives here: the job's frame, the dispatcher's table of jobs for one worker,
the worker's gate. What must not: sockets, clocks, what a job does.

Guarantees
  - A job stays with the dispatcher until `done`; lost on the way, it is issued
    again after reissue_s, under a new number.
  - The worker's gate lets numbers through only in rising order, and only for
    its own epoch and incarnation: no late or repeated frame takes effect.
  - At most window jobs are on the way; the rest wait in a bounded backlog.
What it cannot promise: that a job runs once. A job whose report was lost runs
again, so jobs must be safe to repeat.
What it needs: one dispatcher for each worker as long as the epoch lasts, since
numbers must not begin anew within it, and epochs that rise.

Frame, big endian:
  0  u8   signature 0xD9      4  16 B realm            28 u64 target's incarnation
  1  u8   version 1           20 u64  epoch            36 u64 number
  2  u16  0                                            44     body

Descends from the zguide's "ventilator, worker, sink", whose PUSH forgets what it
sent to a worker that dies.
"""

import struct
from collections import Counter, deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from patterns.errors import LocalError, RemoteError

SIGNATURE: Final = 0xD9
VERSION: Final = 1
HEADER: Final = struct.Struct(">BBH16sQQQ")
HEADER_BYTES: Final = HEADER.size

WAITING, ISSUED = "waiting", "issued"

#: (state, event) → state. A job that is added waits; None: it is gone.
TRANSITIONS: Final[dict[tuple[str, str], str | None]] = {
    (WAITING, "issue"): ISSUED,
    (WAITING, "done"): None,
    (ISSUED, "overdue"): WAITING,
    (ISSUED, "worker changed"): WAITING,
    (ISSUED, "done"): None,
}

_HISTORY: Final = 32

Key = TypeVar("Key", bound=Hashable)


class _Job:
    __slots__ = ("body", "overdue_at")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.overdue_at = 0.0


class Dispatcher(Generic[Key]):
    """Jobs for one worker.

    window: jobs on the way at once. More hides the round trip, fewer leave less
        to do twice after a loss.
    backlog_max: jobs in all; one more is a LocalError.
    reissue_s: how long a report may take before the job is issued again. Longer
        than a job's usual duration, or work is done twice.
    """

    def __init__(self, realm: bytes, epoch: int, window: int, backlog_max: int, reissue_s: float) -> None:
        if window < 1 or backlog_max < window or reissue_s <= 0:
            raise LocalError("wanted: 1 <= window <= backlog_max and reissue_s > 0")
        self._realm = realm
        self._epoch = epoch
        self._window = window
        self._backlog_max = backlog_max
        self._reissue_s = reissue_s
        self._incarnation: int | None = None
        self._number = 0
        self._waiting: dict[Key, _Job] = {}
        # In the order of issue, which is the order in which they become overdue.
        self._issued: dict[Key, _Job] = {}
        # A job's state is the table it is in.
        self._places = {WAITING: self._waiting, ISSUED: self._issued}
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._issued)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting or key in self._issued

    def has_room(self) -> bool:
        return len(self) < self._backlog_max

    def add(self, key: Key, body: bytes) -> None:
        """Take a job in; a key that is in already is one job."""
        if key in self:
            return
        if not self.has_room():
            raise LocalError(f"backlog of {self._backlog_max} jobs is full", self._history)
        self._waiting[key] = _Job(body)

    def done(self, key: Key) -> bool:
        """The job's effect was reported (or it is no longer wanted). False if it was not known."""
        if key not in self:
            return False
        self._step(key, "done")
        return True

    def worker(self, incarnation: int | None) -> None:
        """The worker is this incarnation now (None: gone); what was on the way is issued again."""
        if incarnation == self._incarnation:
            return
        self._incarnation = incarnation
        behind = list(self._waiting)
        for key in list(self._issued):
            self._step(key, "worker changed")
        for key in behind:
            self._waiting[key] = self._waiting.pop(key)
        self._history.append(f"worker is {incarnation}")

    def poll(self, now: float) -> list[bytes]:
        """Frames to push now."""
        if self._incarnation is None:
            return []
        self._take_back_overdue(now)
        frames = []
        while self._waiting and len(self._issued) < self._window:
            job = self._step(next(iter(self._waiting)), "issue")
            job.overdue_at = now + self._reissue_s
            self._number += 1
            self.counters["issued"] += 1
            frames.append(self._frame(job.body))
        return frames

    def wake_at(self) -> float | None:
        """When an issued job becomes overdue."""
        for job in self._issued.values():
            return job.overdue_at
        return None

    def _step(self, key: Key, event: str) -> _Job:
        before = WAITING if key in self._waiting else ISSUED
        after = TRANSITIONS[before, event]
        job = self._places[before].pop(key)
        self._history.append(f"{key!r} {before} --{event}--> {after or 'gone'}")
        if after is not None:
            self._places[after][key] = job
        return job

    def _take_back_overdue(self, now: float) -> None:
        overdue = []
        for key, job in self._issued.items():
            if job.overdue_at > now:
                break
            overdue.append(key)
        for key in overdue:
            self._step(key, "overdue")
            self.counters["overdue"] += 1

    def _frame(self, body: bytes) -> bytes:
        assert self._incarnation is not None
        header = HEADER.pack(SIGNATURE, VERSION, 0, self._realm, self._epoch, self._incarnation, self._number)
        return header + body

    def check(self) -> None:
        """A job is in one place; bounds hold; overdue times rise."""
        assert not self._waiting.keys() & self._issued.keys()
        assert len(self._issued) <= self._window
        assert len(self) <= self._backlog_max
        times = [job.overdue_at for job in self._issued.values()]
        assert times == sorted(times)


class Gate:
    """The worker's side: lets through what is meant for it, once.

    All that it knows is its epoch and the highest number let through, so it has no table of transitions.
    """

    def __init__(self, realm: bytes, incarnation: int) -> None:
        self.realm = realm
        self._incarnation = incarnation
        self._epoch: int | None = None
        self._passed = 0
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def welcome(self, realm: bytes, epoch: int) -> None:
        """Jobs of this epoch only are let through from now on; in a new one numbers begin anew."""
        self.realm = realm
        if epoch != self._epoch:
            self._epoch = epoch
            self._passed = 0
            self._history.append(f"epoch {epoch}")

    def accept(self, frame: bytes) -> memoryview | None:
        """The job's body, or None (counted) if it is not for this life of this worker.

        Raises RemoteError if the frame is no job.
        """
        if len(frame) < HEADER_BYTES:
            raise RemoteError(f"a job of {len(frame)} bytes is too short", self._history)
        signature, version, _, realm, epoch, incarnation, number = HEADER.unpack_from(frame)
        if (signature, version) != (SIGNATURE, VERSION):
            raise RemoteError(f"not a job: {frame[:4].hex()}", self._history)
        if realm != self.realm or epoch != self._epoch or incarnation != self._incarnation:
            self.counters["not-for-us"] += 1
            self._history.append(f"not for us: epoch {epoch} incarnation {incarnation} number {number}")
            return None
        if number <= self._passed:
            self.counters["passed"] += 1
            self._history.append(f"passed before: {number}")
            return None
        self._passed = number
        self._history.append(f"let through {number}")
        return memoryview(frame)[HEADER_BYTES:]
