"""A large object moved in chunks, under a credit of bytes, resumable at any offset.

What lives here: which chunks to ask for next, which are on the way, which may
be handed on. What must not: sockets, the bytes themselves, digests.

Guarantees
  - Never more than credit_bytes between the first byte not yet handed on and the
    last byte asked for: that bounds the memory of both ends, and a slow consumer
    slows its producer.
  - Chunks are handed on in order, each once, however they arrive.
  - A chunk that failed is asked for again before any new one, of whoever can
    serve it: the machine does not know its sources.
  - Chunks asked for before the size was known, and past it, are let go: their
    replies are no errors.
What it cannot promise: that anybody serves the chunk. The caller bounds retries.

Descends from the zguide's file transfer "model three", which counts messages;
a credit of bytes bounds memory whatever the chunk size.
"""

from collections import deque
from typing import Final

from patterns.errors import LocalError, RemoteError

WANTED, ON_THE_WAY, ARRIVED = "wanted", "on the way", "arrived"
HANDED_ON, PAST_THE_END = "handed on", "past the end"

#: (state of a chunk, event) → state. `resume` starts over: all chunks from its offset on are wanted.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (WANTED, "ask"): ON_THE_WAY,
    (ON_THE_WAY, "fail"): WANTED,
    (ON_THE_WAY, "arrive"): ARRIVED,
    (ARRIVED, "all before arrived"): HANDED_ON,
    (WANTED, "end before it"): PAST_THE_END,
    (ON_THE_WAY, "end before it"): PAST_THE_END,
    (ARRIVED, "end before it"): PAST_THE_END,
    (PAST_THE_END, "fail"): PAST_THE_END,
    (PAST_THE_END, "arrive"): PAST_THE_END,
}

_HISTORY: Final = 32


class Transfer:
    """One object of `size` bytes, or of unknown size (None) until `ends_at`.

    chunk_bytes: what one request moves. Larger saves requests, smaller notices a
        slow source sooner.
    credit_bytes: at least one chunk. Enough to cover bandwidth times delay;
        more only costs memory.
    """

    def __init__(self, size: int | None, chunk_bytes: int, credit_bytes: int, start: int = 0) -> None:
        if chunk_bytes < 1 or credit_bytes < chunk_bytes or start < 0 or start % chunk_bytes:
            raise LocalError("wanted: 1 <= chunk_bytes <= credit_bytes and start at a chunk's edge")
        if size is not None and size < start:
            raise LocalError(f"size {size} is below the start {start}")
        self.size = size
        self.position = start
        """All before this offset was handed on."""
        self._chunk_bytes = chunk_bytes
        self._credit_bytes = credit_bytes
        self._next = start
        # Chunks between position and next, each in the table of its state. Those
        # wanted are wanted again, in the order in which they failed.
        self._places: dict[str, dict[int, None]] = {WANTED: {}, ON_THE_WAY: {}, ARRIVED: {}}
        self._history: deque[str] = deque(maxlen=_HISTORY)

    @property
    def done(self) -> bool:
        return self.size is not None and self.position >= self.size

    @property
    def outstanding(self) -> int:
        """Chunks on the way."""
        return len(self._places[ON_THE_WAY])

    def ask(self, limit: int = 1 << 30) -> list[tuple[int, int]]:
        """At most `limit` (offset, length) to ask for now. They count as on the way."""
        offsets = list(self._places[WANTED])[:limit]
        while len(offsets) < limit and self._has_credit():
            offsets.append(self._next)
            self._next += self._chunk_bytes
        for offset in offsets:
            self._step(offset, "ask")
        return [(offset, self._length(offset)) for offset in offsets]

    def arrive(self, offset: int) -> list[int]:
        """The chunk at `offset` is here: offsets that may now be handed on, in order.

        RemoteError if it was not on the way.
        """
        self._step(offset, "arrive")
        ready = []
        while self.position in self._places[ARRIVED]:
            self._step(self.position, "all before arrived")
            ready.append(self.position)
            self.position += self._length(self.position)
        return ready

    def fail(self, offset: int) -> None:
        """The chunk will not come from where it was asked; RemoteError if it was not on the way."""
        self._step(offset, "fail")

    def ends_at(self, size: int) -> None:
        """The size is known now; to be told before the last chunk arrives.

        LocalError if more was already handed on, or if it was known to be another.
        """
        if size < self.position:
            raise LocalError(f"size {size} is below the position {self.position}", self._history)
        if self.size not in (None, size):
            raise LocalError(f"size {size}, but it was {self.size} before", self._history)
        for offset in [offset for place in self._places.values() for offset in place if offset >= size]:
            self._step(offset, "end before it")
        self.size = size

    def resume(self, offset: int) -> None:
        """Forget what is on the way and go on from `offset`, a chunk's edge or the end."""
        at_edge = offset >= 0 and not offset % self._chunk_bytes
        if offset != self.size and not (at_edge and (self.size is None or offset < self.size)):
            raise RemoteError(f"offset {offset} is no chunk's edge", self._history)
        self.position = self._next = offset
        for place in self._places.values():
            place.clear()
        self._history.append(f"resumed at {offset}")

    def _has_credit(self) -> bool:
        if self.size is None:
            return self._next + self._chunk_bytes <= self.position + self._credit_bytes
        # The last chunk may be short: its missing bytes need no credit.
        end = min(self._next + self._chunk_bytes, self.size)
        return self._next < self.size and end <= self.position + self._credit_bytes

    def _length(self, offset: int) -> int:
        return self._chunk_bytes if self.size is None else min(self._chunk_bytes, self.size - offset)

    def _state(self, offset: int) -> str:
        for state, place in self._places.items():
            if offset in place:
                return state
        if offset < self.position:
            return HANDED_ON
        if self.size is not None and self.size <= offset < self._next and not offset % self._chunk_bytes:
            return PAST_THE_END
        return WANTED

    def _step(self, offset: int, event: str) -> None:
        before = self._state(offset)
        after = TRANSITIONS.get((before, event))
        if after is None:
            raise RemoteError(f"{event} of the chunk at {offset}, which is {before}", self._history)
        self._history.append(f"{offset} {before} --{event}--> {after}")
        if before in self._places:
            self._places[before].pop(offset, None)
        if after in self._places:
            self._places[after][offset] = None

    def check(self) -> None:
        """Credit holds, and each chunk from position to next is in exactly one place."""
        places = [offset for place in self._places.values() for offset in place]
        end = self._next if self.size is None else min(self._next, self.size)
        assert end - self.position <= self._credit_bytes
        assert sorted(places) == list(range(self.position, end, self._chunk_bytes))
