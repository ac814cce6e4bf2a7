"""Virtual time: one heap of (time, sequence, action), executed in order.

What lives here: the heap, the time, and the digest over all that was executed.
What must not: what an action does. Nothing sleeps and nothing is concurrent: two
events of one time happen in the order in which they were scheduled, so a run is
the same each time, whatever machine it runs on.

A discrete-event simulation of the textbook kind; the sequence number makes the
order total.
"""

import hashlib
import struct
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any, Final

Action = Callable[..., None]

_DIGEST_BYTES: Final = 16
_PENDING_EVENTS: Final = 256
#: Of a frame only so much enters the digest: bulk data are named by digests in front of them.
_FRAME_BYTES: Final = 4096


class Clock:
    """now: where time begins, in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.executed = 0
        """How many events were executed: the number of the one that is."""
        self.trace: Trace | None = None
        """Told of every event just before it is executed."""
        self.after_event: Callable[[], None] | None = None
        """Called after every event: where invariants are checked."""
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: float, action: Action, *args: Any) -> None:
        """Execute the action at this time; if that has passed, as soon as possible."""
        self._sequence += 1
        heappush(self._heap, (when if when > self.now else self.now, self._sequence, action, args))

    def after(self, delay_s: float, action: Action, *args: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (self.now + max(0.0, delay_s), self._sequence, action, args))

    def next_at(self) -> float:
        """When the next event is; infinity if there is none."""
        return self._heap[0][0] if self._heap else inf

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Execute what is due until then. True as soon as `stop` holds after an event."""
        heap, trace, after_event = self._heap, self.trace, self.after_event
        while heap and heap[0][0] <= until:
            self.now, _, action, args = heappop(heap)
            self.executed += 1
            if trace is not None:
                trace.event(self.now, action)
            action(*args)
            if after_event is not None:
                after_event()
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return stop is not None and stop()


class Trace:
    """A digest over a run: each event's time and action, and each message.

    Two runs with one digest did the same things at the same times with the same bytes.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        # Not hashed yet: to hash much at once costs less than each alone.
        self._times: list[float] = []
        self._names: list[str] = []
        self._frames: list[bytes] = []
        self._lengths: list[int] = []

    def event(self, now: float, action: Action) -> None:
        self._times.append(now)
        self._names.append(action.__qualname__)
        if len(self._times) == _PENDING_EVENTS:
            self._flush()

    def message(self, frames: tuple[Any, ...]) -> None:
        """A message that is delivered: of each frame that is bytes its length, and its beginning."""
        for frame in frames:
            if isinstance(frame, bytes):
                self._lengths.append(len(frame))
                self._frames.append(frame if len(frame) <= _FRAME_BYTES else frame[:_FRAME_BYTES])

    def hexdigest(self) -> str:
        """Of all so far."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        counts = (len(self._times), len(self._lengths))
        self._hash.update(struct.pack(f">2Q{counts[0]}d{counts[1]}Q", *counts, *self._times, *self._lengths))
        self._hash.update("\n".join(self._names).encode())
        self._hash.update(b"".join(self._frames))
        self._times.clear()
        self._names.clear()
        self._frames.clear()
        self._lengths.clear()
