"""One thread's loop: poll, give every ready socket its share, then let time pass.

What lives here: polling and fairness between sockets. What must not: any
protocol. A handler gets a bound on the messages it may take in one round, so
that a flood on one socket starves no other.
"""

import time
from collections.abc import Callable

import zmq

#: handler(limit): its result is of no interest
Handler = Callable[[int], object]


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
        self._poller = zmq.Poller()
        self._handlers: dict[zmq.Socket[bytes] | int, tuple[Handler, int]] = {}
        self._stopped = False

    def add(self, source: "zmq.Socket[bytes] | int", handler: Handler, quantum: int) -> None:
        """Call handler(quantum) whenever the socket (or file descriptor) is readable."""
        self._poller.register(source, zmq.POLLIN)
        self._handlers[source] = (handler, quantum)

    def remove(self, source: "zmq.Socket[bytes] | int") -> None:
        self._poller.unregister(source)
        del self._handlers[source]

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        while not self._stopped:
            self.run_once()

    def run_once(self) -> None:
        wait_s = self._longest_wait_s
        wake_at = self._wake_at()
        if wake_at is not None:
            wait_s = min(wait_s, max(0.0, wake_at - self._clock()))
        if not self._handlers:
            # A poll of no sockets returns at once.
            time.sleep(wait_s)
        # Rounded up, or the loop would spin through the last millisecond.
        for source, _ in self._poller.poll(int(wait_s * 1000 + 0.999)):
            entry = self._handlers.get(source)
            if entry is not None:
                entry[0](entry[1])
        self._on_round(self._clock())
