"""What every fault is made of: strike, and wait for what must follow, taking times.

What lives here: one round's steps on a loaded cluster. What must not: which steps a fault has (faults.py),
what becomes of the rounds (drill.py).
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dws.limits import MIB
from dws.membership import ALIVE, DEAD
from dws.messages import ClusterStatus
from loadgen.drill.cluster import DrillCluster
from loadgen.drill.report import Copies, Goal, Round
from loadgen.drill.watch import NotObserved, Watch, server_of, state_of
from loadgen.drill.workload import LARGE, READ, WRITE, Workload

#: Time for what must follow, on a slow machine: more than any figure that is wanted.
WITHIN_S: Final = 60.0
#: On top of that, a second for each of these bytes that are to be copied.
_SLOW_BYTES_S: Final = 2 * MIB
#: Requests that must have been answered before the next fault, and after it.
_PROGRESS: Final = 150
#: … and while a disk stalls, when threads that write wait for it, one after the other.
STALLED_PROGRESS: Final = 15

#: What a killed, and a silent, server's detection and the begin of its repair should take.
ROUTED_S: Final = 0.25
SILENT_ROUTED_S: Final = 1.5
BEGUN_S: Final = 5.0


class Stage:
    """The running cluster, its load, and the round that is on."""

    def __init__(
        self,
        cluster: DrillCluster,
        workload: Workload,
        watch: Watch,
        rng: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self.cluster = cluster
        self.workload = workload
        self.watch = watch
        self.rng = rng
        self.say = say
        self.round = Round(0)
        self._first_struck = self._struck = 0.0
        self._copied = (0, 0)

    # -- a round -----------------------------------------------------------------------------

    def begin(self, number: int) -> None:
        self.round = Round(number)
        self.await_requests("before the fault")
        self._first_struck = self._struck = self.workload.now()
        self.workload.mark()

    def strike(self, what: str) -> None:
        """The fault comes now. Of several in one round clients' figures are of all, times of the last."""
        told = self.watch.look()
        self._copied = (told.repair.copied, told.repair.copied_bytes) if told else (0, 0)
        self.say(f"round {self.round.number}: {what}")
        if not self.round.what:
            self._first_struck = self.workload.now()
            self.workload.mark()
        self.round.what += f", then {what}" if self.round.what else what
        self._struck = self.workload.now()

    def end(self) -> Round:
        """Take the figures of what clients saw since the fault."""
        found, seen = self.round, self.workload.mark()
        found.requests = seen.requests
        found.slowest_write_s = seen.slowest_s.get(WRITE, 0.0)
        found.slowest_read_s = seen.slowest_s.get(READ, 0.0)
        found.slowest_download_s = seen.slowest_s.get(LARGE, 0.0)
        found.failed_writes = seen.failed[WRITE]
        found.failed_reads = seen.failed[READ] + seen.failed[LARGE]
        found.errors = seen.errors
        changes = [each for each in self.watch.copies if each.at_s >= self._first_struck]
        found.copies = [
            Copies(each.at_s - self._first_struck, each.none, each.one, each.two, each.more)
            for each in changes
        ]
        if found.failed_reads:
            found.problems.append(
                f"{found.failed_reads:,} reads failed, which another copy could have served"
            )
        return found

    # -- whom -------------------------------------------------------------------------------------

    def victim(self) -> str:
        """A web server, of those that hold so much that it matters."""
        told = self.watch.look()
        if told is None:
            raise NotObserved("the balancer does not answer")
        pages = {name: server.pages for name in self.cluster.webservers if (server := server_of(told, name))}
        return self.rng.choice(
            [name for name in pages if 2 * pages[name] * len(pages) >= sum(pages.values())]
        )

    def data(self, name: str) -> Path:
        return self.cluster.data(name)

    # -- what must follow -------------------------------------------------------------------------

    def since_strike(self, at_s: float) -> float:
        return max(0.0, at_s - self._struck)

    def await_requests(self, when: str, count: int = _PROGRESS) -> None:
        """The load goes on: so many requests more are answered."""
        load = self.workload
        wanted = load.answered + count
        self.watch.until(lambda _: load.answered >= wanted, f"requests answered {when}", WITHIN_S)

    def await_time(self, seconds: float) -> None:
        """So long."""
        until = self.workload.now() + seconds
        self.watch.until(lambda _: self.workload.now() >= until, "the time to pass", seconds + WITHIN_S)

    def await_settled(self, within_s: float = 2 * WITHIN_S) -> None:
        """No copy is one too few or too many. Raises NotObserved."""
        within_s += 4 * self.cluster.config.garbage_s
        self.watch.until(is_settled, "no copy too few or too many", within_s)

    def await_routed_away(self, name: str, at_most_s: float = ROUTED_S) -> None:
        at = self.watch.until(
            lambda told: state_of(told, name) != ALIVE, f"{name} is not chosen any more", WITHIN_S
        )
        self.round.detected_s = self.since_strike(at)
        self.round.goals.append(Goal("routed away after", self.round.detected_s, at_most_s))

    def await_dead(self, name: str) -> None:
        at = self.watch.until(lambda told: state_of(told, name) == DEAD, f"{name} is declared dead", WITHIN_S)
        self.round.dead_s = self.since_strike(at)

    def await_repaired(self, *, goal: bool = True) -> None:
        """Every page has as many live copies as wanted."""
        told = self.watch.look()
        size_bytes = told.bytes_visible if told else 0
        within_s = WITHIN_S + size_bytes / _SLOW_BYTES_S
        try:
            at = self.watch.until(is_repaired, "copies of everything as wanted", within_s, self._note_repair)
        except NotObserved as error:
            self.round.problems.append(str(error))
            raise
        self.round.repaired_s = self.since_strike(at)
        if self.round.began_s < 0 or not goal:
            return
        dead_s = max(self.round.dead_s, 0.0)
        self.round.goals.append(Goal("repair begun, after death,", self.round.began_s - dead_s, BEGUN_S))

    def _note_repair(self, told: ClusterStatus) -> None:
        pages, size_bytes = self._copied
        # A balancer that was started again counts from nothing.
        if told.repair.copied < pages:
            self._copied = pages, size_bytes = 0, 0
        if self.round.began_s < 0 and (told.repair.moving or told.repair.copied > pages):
            self.round.began_s = self.since_strike(self.workload.now())
        self.round.repaired_pages = told.repair.copied - pages
        self.round.repaired_bytes = told.repair.copied_bytes - size_bytes

    def bring_back(self, *names: str) -> None:
        """Start nodes again, and wait until all is as before."""
        began = self.workload.now()
        self.cluster.start(*names)
        self.await_alive(began)

    def await_alive(self, began_s: float) -> None:
        """All web servers are in sync and take pages."""

        def are_alive(told: ClusterStatus) -> bool:
            found = [server_of(told, name) for name in self.cluster.webservers]
            return all(server is not None and server.state == ALIVE and server.bytes_free for server in found)

        at = self.watch.until(are_alive, "all web servers in sync", WITHIN_S)
        self.round.back_s = max(self.round.back_s, at - began_s)


def is_repaired(told: ClusterStatus) -> bool:
    return not told.repair.missing and not sum(told.page_copies[: told.copies])


def is_settled(told: ClusterStatus) -> bool:
    return is_repaired(told) and not told.repair.surplus
