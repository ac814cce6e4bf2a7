"""What the runner and its client processes say to each other: lines of JSON over the pipes.

What lives here: the messages, and reading lines with a bound. What must not: what either side does.

To the worker: its Work; `go T`, when T is the moment on the monotonic clock at which
all clients start to count; `stop`. From the worker: Ready or Fault, then a Progress
now and then, then Finished.
"""

import os
import select
import time

from msgspec import Struct

from loadgen.measured import ClientResult
from loadgen.plan import Plan


class Work(Struct):
    """What one client process is to do."""

    plan: Plan
    client: int
    endpoint: str
    """The balancer's, or that of the service which `scenario` is about."""
    timeout_s: float
    names: list[str]
    """What downloads choose from, the most popular first."""
    files: list[tuple[str, str]]
    """What uploads send: (path below the prefix, path on disk). Empty: made-up pages."""
    prefix: str
    http: str = ""
    """Ask at this URL, over HTTP, instead of `endpoint`."""
    scenario: str = ""
    """`package.module:name` or `path/to/file.py:name` of something that makes a Scenario from this Work, a
    thread's number and a zmq.Context. Empty: pages."""
    options: dict[str, str] = {}
    """For such a scenario's own use."""
    rounds: list[list[str]] = []
    """What downloads ask for in turn, instead of choosing."""
    record: str = ""
    """A directory to record the requests in; empty: they are not recorded. See traces."""


class Ready(Struct, tag="ready"):
    pass


class Fault(Struct, tag="fault"):
    """The worker cannot start. `kind` is the name of the exception."""

    kind: str
    text: str


class Progress(Struct, tag="progress"):
    requests: int
    pages: int
    failed: int


class Finished(Struct, tag="finished"):
    result: ClientResult


Said = Ready | Fault | Progress | Finished


class Lines:
    """Lines from a pipe, waited for with a bound."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = bytearray()
        self._searched = 0
        self.ended = False

    def next(self, timeout_s: float) -> bytes | None:
        """The next line; None if none came in time, or if the pipe has `ended`."""
        deadline = time.monotonic() + timeout_s
        while (line := self.buffered()) is None and not self.ended:
            left_s = max(0.0, deadline - time.monotonic())
            if not select.select([self._fd], [], [], left_s)[0]:
                return None
            self.feed()
        return line

    def buffered(self) -> bytes | None:
        """A whole line that has been read already, without its end."""
        end = self._rest.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._rest)  # a line comes in many parts: look at each once
            return None
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        self._searched = 0
        return line

    def feed(self) -> None:
        """Read what is there; blocks only if nothing is."""
        data = os.read(self._fd, 1 << 20)
        self._rest += data
        self.ended = not data
