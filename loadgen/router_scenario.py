"""Requests to a ROUTER service that is not dws's: over one DEALER a thread, several under way at once.

What lives here: the shape of such a Scenario, and the simplest one, an echo. What must not: the loop that
drives it (pipeline).

    class Question(RouterScenario):
        def request(self, number, kind):
            return [number.to_bytes(8, "big"), b"", b"what time is it?"]

        def check(self, number, reply):
            if not reply[-1]:
                raise ValueError("an empty answer")
            return Done(pages=1, bytes=len(reply[-1]))

and `runner.run_scenario(Plan(...), "mymodule:Question", "tcp://127.0.0.1:5555")` is a load test. This one is
for services that send back whatever frames come before an empty one, as REP sockets do; for others,
say by `number` which request a reply answers.
"""

from typing import Final

import zmq

from loadgen.plan import Kind
from loadgen.scenarios import Done, Scenario
from loadgen.talk import Work

NUMBER_BYTES: Final = 8


class RouterScenario(Scenario):
    """Made in the thread that uses it. `window`: requests under way at once."""

    def __init__(self, work: Work, thread: int, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.window = work.plan.window
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        # The window is the bound; the queue must never be a smaller one.
        self.socket.setsockopt(zmq.SNDHWM, max(1000, self.window + 1))
        self.socket.setsockopt(zmq.RCVHWM, max(1000, self.window + 1))
        try:
            self.socket.connect(work.endpoint)
        except zmq.ZMQError:
            self.socket.close(0)
            raise

    def request(self, number: int, kind: Kind) -> list[bytes]:
        """The frames of a request. Its number, which no other of this thread has, must be in them."""
        raise NotImplementedError

    def number(self, reply: list[bytes]) -> int:
        """Which request a reply answers; -1 if none: the reply is passed over, and the request times out."""
        first = reply[0]
        return int.from_bytes(first[:NUMBER_BYTES], "big") if len(first) >= NUMBER_BYTES else -1

    def check(self, number: int, reply: list[bytes]) -> Done:
        """What the reply to a request has moved. An exception is a failed request."""
        raise NotImplementedError

    def close(self) -> None:
        self.socket.close(0)


class EchoScenario(RouterScenario):
    """One frame of `size_bytes`, 8 at least, which must come back as it was."""

    def __init__(self, work: Work, thread: int, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        super().__init__(work, thread, context)
        self._filling = bytes(max(0, work.plan.size_bytes - NUMBER_BYTES))
        self._done = Done(1, NUMBER_BYTES + len(self._filling))

    def request(self, number: int, kind: Kind) -> list[bytes]:
        return [number.to_bytes(NUMBER_BYTES, "big") + self._filling]

    def check(self, number: int, reply: list[bytes]) -> Done:
        (frame,) = reply
        if not frame.endswith(self._filling) or len(frame) != self._done.bytes:
            raise ValueError(f"{len(frame)} bytes came back, and not those that were sent")
        return self._done
