"""The scrubber: walks a server's whole store, again and again, to find damage before a reader does.

What lives here: where it is, and how fast it goes. What must not: what becomes
of a page that it finds wrong (suspects.py).

The walk is in the order of record keys, so a place in it stays one while pages
come and go. It is kept on disk (store.KeepPlace), and a new life of the server
goes on from there. A round begins scrub_every_s after the one before began, or
when it ends, if that is later (and a second after). Rate: scrub_bytes_s, and an eighth of it while
readers wait, since they come first and still must not stop it for ever.
"""

from typing import Final

from dws.config import Config
from dws.limits import MANIFEST_BUCKETS
from dws.readback import Pace, Pieces, parts_of
from dws.store import GOOD, PageStore, Part

#: Records looked up at once, in the thread that serves: a fraction of a millisecond.
_RECORDS: Final = 64
#: Requests found waiting in one round of the server's loop that make the scrubber yield, and to what share.
_WAITING: Final = 4
_YIELDING: Final = 1 / 8
#: Between two rounds at the least: an empty store is walked in no time.
_REST_S: Final = 1.0


class Scrubber:
    """place: how far an earlier life had got."""

    def __init__(self, store: PageStore, config: Config, place: bytes, now: float) -> None:
        self.rounds = 0
        """Walks that were finished, in this life."""
        self.parts = 0
        """Parts of pages found good."""
        self.place = place
        """How far it has got: what lies before it was read."""
        self._store = store
        self._config = config
        self._bucket = place[0] if place else 0
        self._after = place[1:]
        self._pieces = Pieces([])
        self._reading: list[Part] = []
        self._began = now
        self._is_resting = False
        self._pace = Pace(config.scrub_bytes_s, now)

    def wake_at(self) -> float | None:
        if self._reading or not self._config.scrub_bytes_s:
            return None
        return self._began if self._is_resting else self._pace.free_at

    def next(self, waiting: int, now: float) -> list[Part]:
        """Parts that are to be read now, if any. waiting: requests of readers, as a round found them."""
        wake_at = self.wake_at()
        if wake_at is None or now < wake_at:
            return []
        if self._is_resting:
            self._is_resting = False
            self._began = now
        if self._pieces.done and not self._refill():
            self._rest(now)
            return []
        self._reading, cost = self._pieces.group()
        self._pace.spend(cost, now, _YIELDING if waiting >= _WAITING else 1.0)
        return self._reading

    def _refill(self) -> bool:
        """The next records of the walk; False at its end."""
        if self._bucket == MANIFEST_BUCKETS:
            return False
        self.place = bytes((self._bucket,)) + self._after if self._bucket or self._after else b""
        while self._bucket < MANIFEST_BUCKETS:
            records, self._after = self._store.manifest(self._bucket, self._after, _RECORDS)
            if not self._after:
                self._bucket += 1
            if records:
                self._pieces = Pieces(each for record in records for each in parts_of(record))
                return True
        return False

    def _rest(self, now: float) -> None:
        self.rounds += 1
        self.place = self._after = b""
        self._bucket = 0
        self._is_resting = True
        self._began = max(now + _REST_S, self._began + self._config.scrub_every_s)

    def found(self, verdicts: list[int]) -> list[tuple[Part, int]]:
        """What was found of the parts given out last: those that are not good."""
        parts, self._reading = self._reading, []
        faults = [pair for pair in zip(parts, verdicts, strict=True) if pair[1] != GOOD]
        self.parts += len(parts) - len(faults)
        return faults
