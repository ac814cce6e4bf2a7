"""Pages read back in pieces, at a bounded rate: what a checker thread is to read next.

What lives here: how pages are cut into parts, and a queue of jobs, each some
pages, that take turns. What must not: reading (the shell's thread, by
store.PageChecker), and what follows from what is found.

A part costs its bytes, and RECORD_BYTES for finding them, so that a store of
tiny pages is not read at a million pages a second. One group of parts is on its
way at a time; the next one may go when the first has come back and its cost is
worked off.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

from dws.limits import CHUNK_BYTES, KIB, MIB
from dws.messages import Record
from dws.store import GOOD, Part

#: Read by one order to the thread: a few milliseconds of work.
GROUP_BYTES: Final = 2 * MIB
RECORD_BYTES: Final = 4 * KIB

#: A page: its name and version.
Key = tuple[str, int]


def parts_of(record: Record, step: int = GROUP_BYTES // CHUNK_BYTES) -> Iterator[tuple[Part, int]]:
    """A whole page as parts of `step` chunks at most, each with its cost."""
    last = max(1, -(-record.size // CHUNK_BYTES))
    for chunk in range(0, last, step):
        chunks = min(step, last - chunk)
        size_bytes = min(record.size - chunk * CHUNK_BYTES, chunks * CHUNK_BYTES)
        yield Part(record.name, record.version, chunk, chunks), size_bytes + RECORD_BYTES


class Pieces:
    """Pages, or parts of them with their costs, given out a group at a time."""

    def __init__(self, parts: Iterable[tuple[Part, int]]) -> None:
        self._parts = iter(parts)
        self._next = next(self._parts, None)

    @property
    def done(self) -> bool:
        return self._next is None

    def group(self) -> tuple[list[Part], int]:
        """The next parts, one at least, and their cost."""
        assert self._next is not None
        parts: list[Part] = []
        cost = 0
        while self._next is not None and (not parts or cost + self._next[1] <= GROUP_BYTES):
            parts.append(self._next[0])
            cost += self._next[1]
            self._next = next(self._parts, None)
        return parts, cost


class Pace:
    """So many bytes a second, and nothing saved up."""

    def __init__(self, bytes_s: float, now: float) -> None:
        self.free_at = now
        self._bytes_s = bytes_s

    def spend(self, cost: int, now: float, share: float = 1.0) -> None:
        self.free_at = now + cost / (self._bytes_s * share)


class Job(Struct):
    """tag: whose it is. faults: pages of which some part is not good → (the worst found, its chunk)."""

    tag: tuple[Any, ...]
    pieces: Pieces
    faults: dict[Key, tuple[int, int]] = {}

    def found(self, parts: list[Part], verdicts: list[int]) -> None:
        for part, verdict in zip(parts, verdicts, strict=True):
            if verdict != GOOD:
                key = part.name, part.version
                # WRONG is certain; the others only say that nothing is proven.
                self.faults[key] = min(self.faults.get(key, (verdict, part.chunk)), (verdict, part.chunk))


class Readback:
    """Jobs that take turns, group by group, so that one large page holds up no other."""

    def __init__(self, bytes_s: float, now: float) -> None:
        self._pace = Pace(bytes_s, now)
        self._jobs: deque[Job] = deque()
        self._running: tuple[Job, list[Part]] | None = None

    def __len__(self) -> int:
        return len(self._jobs) + (self._running is not None)

    def add(self, job: Job) -> None:
        """One without pieces must not come here: it is done."""
        self._jobs.append(job)

    def wake_at(self) -> float | None:
        return self._pace.free_at if self._jobs and self._running is None else None

    def next(self, now: float) -> list[Part]:
        """Parts that are to be read now, if any."""
        if self._running is not None or not self._jobs or now < self._pace.free_at:
            return []
        job = self._jobs.popleft()
        parts, cost = job.pieces.group()
        self._pace.spend(cost, now)
        self._running = (job, parts)
        return parts

    def found(self, verdicts: list[int]) -> Job | None:
        """What was found of the parts given out last. The job, if that was all of it."""
        assert self._running is not None
        (job, parts), self._running = self._running, None
        job.found(parts, verdicts)
        if job.pieces.done:
            return job
        self._jobs.append(job)
        return None
