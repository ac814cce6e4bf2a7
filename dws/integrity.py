"""What a web server does to know that its disk is right: on request, on suspicion, and by itself.

What lives here: Verify and its answer, who is told what was found, the scrubber's
turns, and the small write and read that show that the disk works. What must not:
how a doubt becomes a certainty (suspects.py), the walk (scrubbing.py), the order
of jobs (readback.py), reading.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from dws.config import Config
from dws.effects import Answer, Effects, Inspect, Write
from dws.errors import OverBound, TryAgain
from dws.limits import VERIFY_MAX_BYTES
from dws.messages import Error, Verified, Verify
from dws.readback import Job, Key, Pieces, Readback, parts_of
from dws.scrubbing import Scrubber
from dws.store import NOT_THERE, UNREADABLE, WRONG, KeepPlace, OpResult, PageStore
from dws.suspects import Suspects

#: Requests to verify that are worked on at once; the bytes of each are bounded.
_REQUESTS_MAX: Final = 16
_RETRY_S: Final = 1.0

_WHAT: Final = {WRONG: "wrong bytes", UNREADABLE: "unreadable"}


class Integrity:
    def __init__(self, store: PageStore, config: Config, counters: Counter[str], now: float) -> None:
        self.scrubber = Scrubber(store, config, store.place(), now)
        self.suspects = Suspects(store, counters)
        self._store = store
        self._counters = counters
        self._every_s = config.disk_check_s
        self._readback = Readback(config.verify_bytes_s, now)
        self._requests: dict[int, list[Key]] = {}  # token → what was asked for and is held
        self._check_at = now + config.disk_check_s
        self._owed: set[str] = set()  # small reads and writes that are not back yet

    # -- what others ask ------------------------------------------------------------------------

    def verify(self, token: int, request: Verify) -> Effects:
        """Have records read again; answered when all of them were."""
        if len(self._requests) >= _REQUESTS_MAX:
            text = f"{_REQUESTS_MAX} requests to verify are worked on, the bound"
            return [Answer(token, Error(TryAgain.code, text, _RETRY_S))]
        held = [self._store.record(*key) for key in dict.fromkeys(request.records)]
        records = [record for record in held if record is not None]
        size_bytes = sum(record.size for record in records)
        if len(records) > 1 and size_bytes > VERIFY_MAX_BYTES:
            text = f"{size_bytes:,} bytes to verify at once, over the bound of {VERIFY_MAX_BYTES:,}"
            return [Answer(token, Error(OverBound.code, text))]
        if not records:
            return [Answer(token, Verified([], []))]
        self._requests[token] = request.records
        pieces = Pieces(each for record in records for each in parts_of(record))
        self._readback.add(Job(("verify", token, {(each.name, each.version) for each in records}), pieces))
        return []

    def doubt(self, pages: Iterable[Key], why: str) -> Effects:
        """Somebody met wrong bytes of these pages, or none."""
        return [effect for key in pages for effect in self.suspects.doubt(key, why)]

    # -- time -----------------------------------------------------------------------------------

    def wake_at(self) -> float:
        waits = (self._readback.wake_at(), self.suspects.wake_at(), self.scrubber.wake_at())
        return min([self._check_at, *(each for each in waits if each is not None)])

    def poll(self, waiting: int, now: float) -> Effects:
        """What is to be read now. waiting: requests of readers, as a round of the loop found them."""
        for job in self.suspects.due(now):
            self._readback.add(job)
        effects: Effects = []
        parts = self._readback.next(now)
        if parts:
            effects.append(Inspect("asked", parts, ("asked",)))
        parts = self.scrubber.next(waiting, now)
        if parts:
            effects.append(Inspect("scrub", parts, ("scrub",)))
        if now >= self._check_at:
            self._check_at = now + self._every_s
            effects += self._check_disk()
        return effects

    def _check_disk(self) -> Effects:
        """A small write and a small read, unless the last ones are not back yet."""
        effects: Effects = []
        if "write" not in self._owed:
            effects.append(Write("drop", KeepPlace(self.scrubber.place), ("place",), 0))
        if "read" not in self._owed:
            effects.append(Inspect("probe", [], ("probe",)))
        self._owed = {"write", "read"}
        return effects

    # -- what was found ---------------------------------------------------------------------------

    def inspected(self, tag: tuple[Any, ...], verdicts: list[int], now: float) -> Effects:
        if tag[0] == "probe":
            self._owed.discard("read")
            return []
        if tag[0] == "scrub":
            effects: Effects = []
            for part, verdict in self.scrubber.found(verdicts):
                why = f"the scrubber found it: {_WHAT.get(verdict, '')}"
                effects += self.suspects.doubt((part.name, part.version), why, part, verdict, now)
            return effects
        job = self._readback.found(verdicts)
        if job is None:
            return []
        return self._verified(job) if job.tag[0] == "verify" else self.suspects.looked(job, now)

    def _verified(self, job: Job) -> Effects:
        _, token, held = job.tag
        keys = self._requests.pop(token)
        good, damaged = [], []
        effects: Effects = []
        for index, key in enumerate(keys):
            verdict, _ = job.faults.get(key, (0, 0))
            if key in held and not verdict:
                good.append(index)
            elif verdict == WRONG:
                damaged.append(index)
            if verdict not in (0, NOT_THERE):
                effects += self.suspects.doubt(key, f"a request to verify it found it: {_WHAT[verdict]}")
        return [Answer(token, Verified(good, damaged)), *effects]

    def written(self, tag: tuple[Any, ...], result: OpResult, now: float) -> Effects:
        """A page was set aside, or not; or the small write is done."""
        if tag[0] == "place":
            self._owed.discard("write")
            if result.code:
                self._counters[f"small writes: {result.code}"] += 1
            return []
        _, key, reason = tag
        return self.suspects.written(key, reason, result, now)

    def figures(self) -> dict[str, float]:
        """For a look at the counters."""
        return {
            "damaged pages set aside": self.suspects.set_aside,
            "pages in doubt": len(self.suspects),
            "scrub rounds": self.scrubber.rounds,
            "scrub parts good": self.scrubber.parts,
            "scrub place": self.scrubber.place[0] / 256 if self.scrubber.place else 0.0,
        }

    def check(self) -> None:
        assert len(self._requests) <= _REQUESTS_MAX
        self.suspects.check()
