"""What the balancer says of its servers and of copies, while a drill goes on.

What lives here: asking for its status again and again, and the copies over time. What must not: faults, and
what is concluded.
"""

import time
from collections.abc import Callable
from typing import Final

import dws
from dws.errors import DwsError
from dws.messages import ClusterStatus, ServerStatus
from loadgen.drill.report import Copies

_EVERY_S: Final = 0.004
#: The balancer's answer is waited for so long at a time.
_ANSWER_S: Final = 1.0
_COPIES_KEPT: Final = 10_000


class NotObserved(DwsError):
    """What the fault must lead to did not come about in time."""

    code = "not-observed"


class Watch:
    """For one thread. clock: seconds, the same that requests are timed by. trouble: why nothing more is to
    be waited for; empty while there is no reason."""

    def __init__(self, endpoint: str, clock: Callable[[], float], trouble: Callable[[], str]) -> None:
        self._client = dws.connect(endpoint, timeout_s=_ANSWER_S)
        self._clock = clock
        self._trouble = trouble
        self.copies: list[Copies] = []
        """Each change, by the clock."""
        self.last: ClusterStatus | None = None

    def close(self) -> None:
        self._client.close()

    def look(self) -> ClusterStatus | None:
        """The status now; None if the balancer does not answer."""
        try:
            told = self._client.status()
        except DwsError:
            return None
        now = Copies(self._clock(), *told.page_copies)
        if not self.copies or counts(self.copies[-1]) != counts(now):
            self.copies = [*self.copies[-_COPIES_KEPT:], now]
        self.last = told
        return told

    def until(
        self,
        condition: Callable[[ClusterStatus], bool],
        what: str,
        within_s: float,
        each: Callable[[ClusterStatus], None] = lambda told: None,
    ) -> float:
        """When the condition was first seen to hold, by the clock. Raises NotObserved."""
        give_up = self._clock() + within_s
        while True:
            told = self.look()
            now = self._clock()
            if told is not None:
                each(told)
                if condition(told):
                    return now
            if trouble := self._trouble():
                raise NotObserved(f"while waiting for {what}: {trouble}")
            if now > give_up:
                raise NotObserved(f"not seen in {within_s:g} s: {what}; {_state_text(self.last)}")
            time.sleep(_EVERY_S)


def counts(copies: Copies) -> tuple[int, int, int, int]:
    return copies.none, copies.one, copies.two, copies.more


def server_of(told: ClusterStatus, name: str) -> ServerStatus | None:
    """The latest server of this name: one whose disk was lost comes back as another one."""
    same = [server for server in told.servers if server.name == name]
    return max(same, key=lambda server: server.number) if same else None


def state_of(told: ClusterStatus, name: str) -> str:
    server = server_of(told, name)
    return server.state if server else "unknown"


def _state_text(told: ClusterStatus | None) -> str:
    if told is None:
        return "the balancer never answered"
    states = ", ".join(f"{server.name} is {server.state}" for server in told.servers)
    copies = "/".join(map(str, told.page_copies))
    waits = f", repair waits: {told.repair.text}" if told.repair.text else ""
    return f"the last that was told: {states}; pages with 0/1/2/3+ copies {copies}{waits}"
