"""What a client knows, and how it asks.

What lives here: the client's picture of the cluster, and the shape of an
operation. What must not: sockets and clocks (nodes/client.py runs operations),
what is read (download.py) or written (upload.py).

An operation is a machine: `start`, then `answered`, `unanswered` and `tick`,
each returning what to send, until `result` or `error` is set.
"""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from dws.errors import DwsError, TimedOut, Unreachable, from_code
from dws.messages import Error, Located, ServerRef

#: A holder that did not answer for this long is left for the other one.
HOLDER_TIMEOUT_S: Final = 1.0
#: A balancer that did not answer for this long is asked again.
BALANCER_TIMEOUT_S: Final = 1.0
#: A server that failed us is avoided for this long.
_COMPLAINT_S: Final = 2.0


class Send(Struct, gc=False):
    """To the balancer (server 0) or a server, by number. The answer or its absence comes with `tag`."""

    server: int
    message: Any
    tag: Any
    timeout_s: float
    data: Any = None


class Directory:
    """What one client knows of the cluster: epoch, servers, and whom it complains about."""

    def __init__(self) -> None:
        self.epoch = 0
        self.table = 0
        self.servers: dict[int, ServerRef] = {}
        self._complaints: dict[int, float] = {}

    def learn(self, located: Located) -> None:
        self.epoch = located.epoch
        if located.servers is not None:
            self.table = located.table
            self.servers = {server.number: server for server in located.servers}

    def complain(self, server: int, now: float) -> None:
        self._complaints[server] = now + _COMPLAINT_S

    def avoid(self, now: float) -> list[int]:
        if not self._complaints:
            return []
        self._complaints = {server: until for server, until in self._complaints.items() if until > now}
        return list(self._complaints)

    def name(self, server: int) -> str:
        known = self.servers.get(server)
        return known.name if known else f"server {server}"


def timed_out(names: list[str], directory: Directory, servers: Iterable[int]) -> TimedOut:
    """The deadline passed while these pages were read; `servers` were asked and gave no answer."""
    others = f" and {len(names) - 1:,} more were" if len(names) > 1 else " was"
    silent = ", ".join(dict.fromkeys(map(directory.name, servers)))
    text = f"the deadline passed while {names[0] if names else 'the table of servers'}{others} read"
    return TimedOut(f"{text}: no answer from {silent}" if silent else text)


class Operation:
    """The base: one deadline, calls to the balancer that are repeated until it, one way to fail."""

    def __init__(self, directory: Directory, deadline: float) -> None:
        self.directory = directory
        self.deadline = deadline
        self.began = 0.0
        self.result: Any = None
        self.error: DwsError | None = None
        self.finished = False
        self._pause_until: float | None = None
        self._heard_balancer = True
        """False once the balancer left a request unanswered, until it answers one."""
        self._asked_balancer = False
        """Whether a request to it is on the way."""

    def start(self, now: float) -> list[Send]:
        raise NotImplementedError

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        raise NotImplementedError

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        raise NotImplementedError

    def resume(self, now: float) -> list[Send]:
        """Called when a pause is over."""
        return self.start(now)

    def tick(self, now: float) -> list[Send]:
        if self.finished:
            return []
        if now >= self.ends_at:
            self.fail(self.late())
            return []
        if self._pause_until is not None and now >= self._pause_until:
            self._pause_until = None
            return self.resume(now)
        return []

    @property
    def ends_at(self) -> float:
        return self.deadline

    def wake_at(self) -> float:
        return self.ends_at if self._pause_until is None else min(self.ends_at, self._pause_until)

    def late(self) -> DwsError:
        """What the deadline's passing means at this point."""
        if not self._heard_balancer or self._asked_balancer:
            return Unreachable("the balancer did not answer")
        return TimedOut("the deadline passed")

    def check(self) -> None:
        """Invariants, for tests and simulators; AssertionError if one does not hold."""

    def finish(self, result: Any) -> None:
        self.result = result
        self.finished = True

    def fail(self, error: DwsError) -> None:
        self.error = error
        self.finished = True

    def pause(self, now: float, wait_s: float) -> list[Send]:
        self._pause_until = now + wait_s
        return []

    def heard_balancer(self) -> None:
        self._heard_balancer = True
        self._asked_balancer = False

    def to_balancer(self, message: Any, tag: Any, timeout_s: float = BALANCER_TIMEOUT_S) -> Send:
        self._asked_balancer = True
        return Send(0, message, tag, timeout_s)


class Call(Operation):
    """One request to one node that is safe to repeat; its answer is the result."""

    def __init__(self, directory: Directory, deadline: float, message: Any, server: int = 0) -> None:
        super().__init__(directory, deadline)
        self._message = message
        self._server = server

    def start(self, now: float) -> list[Send]:
        if not self._server:
            return [self.to_balancer(self._message, "call")]
        return [Send(self._server, self._message, "call", BALANCER_TIMEOUT_S)]

    def late(self) -> DwsError:
        if not self._server:
            return super().late()
        return TimedOut(f"{self.directory.name(self._server)} did not answer")

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        self.heard_balancer()
        if isinstance(message, Error):
            if message.retry_s:
                return self.pause(now, message.retry_s)
            self.fail(from_code(message.code, message.text))
        else:
            self.finish(message)
        return []

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        self._heard_balancer = False
        return self.start(now)
