"""One thread's loop: poll, give every ready socket its share, then let time pass.

What lives here: polling and fairness between sockets. What must not: any
protocol. A handler gets a bound on the messages it may take in one round, so
that a flood on one socket starves no other.
"""

import time
from collections.abc import Callable

from patterns.zeromq.readiness import Readiness, Source

#: handler(limit): how many messages it took. Fewer than the limit means that none was left when it looked
#: last, and that it did not use the socket since; None, that it did not look.
Handler = Callable[[int], int | None]


class Reactor:
    """wake_at: the machine's next deadline, or None. on_round: called after each
    round with the time; effects that came up in the round are carried out there.

    longest_wait_s bounds a poll, so that a forgotten deadline costs a second, not
    for ever.
    """

    def __init__(
        self,
        wake_at: Callable[[], float | None],
        on_round: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
        longest_wait_s: float = 1.0,
    ) -> None:
        self._wake_at = wake_at
        self._on_round = on_round
        self._clock = clock
        self._longest_wait_s = longest_wait_s
        self._readiness = Readiness()
        self.used = self._readiness.used
        """To be told of each use, outside its handler, of a socket that was added as told."""
        self._handlers: dict[Source, tuple[Handler, int]] = {}
        self._stopped = False

    def add(self, source: Source, handler: Handler, quantum: int, *, is_told: bool = False) -> None:
        """Call handler(quantum) whenever the socket (or descriptor that epoll takes: no file) is readable.
        is_told: see Readiness; the handler of such a socket may find nothing to read."""
        self._readiness.add(source, is_told=is_told)
        self._handlers[source] = (handler, quantum)

    def remove(self, source: Source) -> None:
        self._readiness.remove(source)
        del self._handlers[source]

    def stop(self) -> None:
        self._stopped = True

    def close(self) -> None:
        """The sockets are not touched."""
        self._readiness.close()

    def run(self) -> None:
        while not self._stopped:
            self.run_once()

    def run_once(self) -> None:
        wait_s = self._longest_wait_s
        wake_at = self._wake_at()
        if wake_at is not None:
            wait_s = min(wait_s, max(0.0, wake_at - self._clock()))
        readiness = self._readiness
        for source in readiness.wait(wait_s):
            entry = self._handlers.get(source)
            if entry is None:
                # Removed by a handler before it.
                continue
            handler, quantum = entry
            taken = handler(quantum)
            if taken is None or taken >= quantum:
                readiness.used(source)
            else:
                readiness.seen_empty(source)
        self._on_round(self._clock())
