"""Pages that somebody doubts: looked at, looked at again, and set aside if their bytes are wrong.

What lives here: how a doubt becomes a certainty. What must not: reading
(readback.py's jobs), and the disk's part of setting aside (store.SetAside, which
reads once more).

A page is set aside when two looks in a row, AGAIN_S apart, found its bytes wrong,
or when _UNREAD_MAX in a row could not read them, each twice as long after the
one before: what a disk refuses once may pass. A page that is set aside is held no
longer; that is a change, so the balancer learns of it and has it copied again.
Nothing here deletes what is left of its bytes: they may be the last there are.
"""

from collections import Counter
from typing import Final

from msgspec import Struct

from dws.effects import Effects, Log, Write
from dws.limits import CHUNK_BYTES
from dws.names import format_version
from dws.readback import Job, Key, Pieces, parts_of
from dws.store import NOT_THERE, UNREADABLE, WRONG, Damaged, OpResult, PageStore, Part, SetAside

#: Pages doubted at once; more are found again, by the next reader or the scrubber.
SUSPECTS_MAX: Final = 1000
AGAIN_S: Final = 0.5
_UNREAD_MAX: Final = 5
#: When a page that could not be set aside, since the disk is full, is tried again.
_FULL_S: Final = 60.0

LOOKING, RESTING, GOING = "looking", "resting", "going"

#: (state, event) → state; None: it is a suspect no longer.
TRANSITIONS: Final[dict[tuple[str, str], str | None]] = {
    (LOOKING, "right"): None,
    (LOOKING, "not held"): None,
    (LOOKING, "in doubt"): RESTING,
    (LOOKING, "certain"): GOING,
    (RESTING, "rested"): LOOKING,
    (GOING, "settled"): None,
    (GOING, "refused"): RESTING,
}


class _Suspect(Struct):
    parts: list[tuple[Part, int]]  # what is to be looked at, each with its cost
    why: str
    state: str = LOOKING
    wrong: int = 0  # looks in a row
    unread: int = 0
    again_at: float = 0.0


class Suspects:
    def __init__(self, store: PageStore, counters: Counter[str]) -> None:
        self.set_aside = 0
        """Pages, in this life."""
        self._store = store
        self._counters = counters
        self._all: dict[Key, _Suspect] = {}

    def __len__(self) -> int:
        return len(self._all)

    def doubt(
        self, key: Key, why: str, part: Part | None = None, verdict: int = 0, now: float = 0.0
    ) -> Effects:
        """Somebody doubts a page; or a part of it, of which this was found just now."""
        if key in self._all or verdict == NOT_THERE:
            return []
        record = self._store.record(*key)
        if record is None:
            return []
        if len(self._all) >= SUSPECTS_MAX:
            self._counters["doubts passed over"] += 1
            return []
        self._counters["doubts"] += 1
        parts = list(parts_of(record, 1)) if part is None else _singly(part)
        suspect = self._all[key] = _Suspect(parts, why)
        if verdict:
            self._in_doubt(suspect, verdict, now)
        return [Log("warning", f"{_title(key)} is looked at: {why}")]

    def due(self, now: float) -> list[Job]:
        """Looks that are to be taken now."""
        jobs = []
        for key, suspect in self._all.items():
            if suspect.state == RESTING and suspect.again_at <= now:
                self._step(key, suspect, "rested")
                suspect.again_at = 0.0
            if suspect.state == LOOKING and suspect.again_at <= now:
                suspect.again_at = float("inf")
                jobs.append(Job(("suspect", key), Pieces(suspect.parts)))
        return jobs

    def wake_at(self) -> float | None:
        if not self._all:
            return None
        waiting = [each.again_at for each in self._all.values() if each.state != GOING]
        return min(waiting, default=None)

    def looked(self, job: Job, now: float) -> Effects:
        """What a look has found."""
        _, key = job.tag
        suspect = self._all[key]
        verdict, chunk = job.faults.get(key, (0, 0))
        if verdict == NOT_THERE:
            self._step(key, suspect, "not held")
            return []
        if not verdict:
            # It was misread, or somebody was wrong.
            self._counters["doubts without reason"] += 1
            self._step(key, suspect, "right")
            return [Log("info", f"{_title(key)} is as it should be")]
        suspect.parts = [each for each in suspect.parts if each[0].chunk == chunk]
        if self._in_doubt(suspect, verdict, now):
            return []
        what = "cannot be read" if suspect.unread >= _UNREAD_MAX else "does not have its digest"
        reason = f"chunk {chunk} {what}; {suspect.why}"
        op = SetAside([Damaged(key[0], key[1], chunk, reason)])
        return [Write("drop", op, ("set aside", key, reason), 0)]

    def _in_doubt(self, suspect: _Suspect, verdict: int, now: float) -> bool:
        """Whether it must be looked at again."""
        suspect.wrong = suspect.wrong + 1 if verdict == WRONG else 0
        suspect.unread = suspect.unread + 1 if verdict == UNREADABLE else 0
        certain = suspect.wrong >= 2 or suspect.unread >= _UNREAD_MAX
        suspect.state = TRANSITIONS[suspect.state, "certain" if certain else "in doubt"] or RESTING
        # Bounded: a page that cannot be set aside is looked at for as long as its disk is full.
        doublings = min(max(0, suspect.unread - 1), _UNREAD_MAX)
        suspect.again_at = now + AGAIN_S * 2.0**doublings
        return not certain

    def written(self, key: Key, reason: str, result: OpResult, now: float) -> Effects:
        """It was set aside; or its bytes were right after all, or there was no room for them."""
        suspect = self._all[key]
        if result.code:
            self._counters[f"not set aside: {result.code}"] += 1
            self._step(key, suspect, "refused")
            suspect.again_at = now + _FULL_S
            return [Log("error", f"{_title(key)} is damaged and cannot be set aside: {result.text}")]
        self._step(key, suspect, "settled")
        if result.change is None:
            self._counters["doubts without reason"] += 1
            return []
        self.set_aside += 1
        return [Log("error", f"{_title(key)} is damaged and was set aside: {reason}")]

    def _step(self, key: Key, suspect: _Suspect, event: str) -> None:
        after = TRANSITIONS[suspect.state, event]
        if after is None:
            del self._all[key]
        else:
            suspect.state = after

    def check(self) -> None:
        assert len(self._all) <= SUSPECTS_MAX


def _singly(part: Part) -> list[tuple[Part, int]]:
    chunks = range(part.chunk, part.chunk + part.chunks)
    return [(Part(part.name, part.version, chunk, 1), CHUNK_BYTES) for chunk in chunks]


def _title(key: Key) -> str:
    return f"{key[0]} (version {format_version(key[1])})"
