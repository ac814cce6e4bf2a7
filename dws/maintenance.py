"""Drain, resume, forget: what an operator tells of a server.

What lives here: when each is refused, and what it changes, durably before it is
answered. What must not: the copying that a drain leads to, which is repair's.

A drained server serves on, gets no new pages, and its copies do not count; so
everything on it is copied to others. A forgotten one is taken out of the picture
a bounded number of pages a tick.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from dws.batch import Batch
from dws.catalog import Catalog
from dws.decisions import Decisions
from dws.effects import Answer, Effects, Log
from dws.errors import DwsError, Refused, TooFewServers
from dws.membership import DEAD, DRAINING, Members, Server
from dws.messages import Drain, Error, Forget, Maintained, Resume
from dws.replication import Replication
from dws.shortage import Shortage
from dws.store import Decision, KnownServer

#: Pages that a forgotten server is taken from in one tick: some milliseconds.
_FORGET_PAGES: Final = 5_000

Request = Drain | Resume | Forget


class Maintenance:
    """open_batches: those that are not decided, at any time. changed(server, now), forgotten(number): to be
    told of a server whose drain began or ended, and of one of which nothing is left in the picture."""

    def __init__(
        self,
        catalog: Catalog,
        members: Members,
        shortage: Shortage,
        decisions: Decisions,
        default_copies: int,
        replication: Replication,
        open_batches: Collection[Batch],
        changed: Callable[[Server, float], Effects],
        forgotten: Callable[[int], None],
    ) -> None:
        self._catalog = catalog
        self._members = members
        self._shortage = shortage
        self._decisions = decisions
        self._default_copies = default_copies
        self._replication = replication
        self._open_batches = open_batches
        self._changed = changed
        self._tell_forgotten = forgotten
        self._forgotten: list[int] = []  # still in the picture

    def asked(self, token: int, request: Request, now: float) -> Effects:
        server = self._members.named(request.server, request.number)
        if isinstance(server, DwsError):
            return [Answer(token, Error(server.code, str(server)))]
        refusal = self._refusal(server, request)
        if refusal is not None:
            return [Answer(token, Error(refusal.code, str(refusal)))]
        if isinstance(request, Forget):
            decision = _decision(None, server.number)
            return self._decisions.hand(decision, partial(self._forget, token, server))[1]
        draining = isinstance(request, Drain)
        if server.draining == draining:
            return [Answer(token, self._maintained(server))]
        known = KnownServer(server.number, server.id, server.name, draining)
        decision = _decision(known, 0)
        return self._decisions.hand(decision, partial(self._drain, token, server, draining))[1]

    def _refusal(self, server: Server, request: Request) -> DwsError | None:
        if isinstance(request, Drain) and not server.draining:
            others = [
                each
                for each in self._members.by_id.values()
                if each is not server and each.live and not each.draining
            ]
            if len(others) < self._default_copies:
                return TooFewServers(
                    f"without {server.name} there are {len(others)} live servers for {self._default_copies}"
                    f" copies; start another one first"
                )
        if isinstance(request, Forget):
            return self._refusal_to_forget(server, request)
        return None

    def _refusal_to_forget(self, server: Server, request: Forget) -> DwsError | None:
        if server.heard != DEAD:
            return Refused(f"{server.name} is {server.state}: stop it first, and wait until it is dead")
        if request.force:
            return None
        joining = self._members.still_to_sync()
        last = sum(
            group.pages
            for (_, holders), group in self._catalog.groups.items()
            # Since a start of the balancer it is not known what a server holds that was not compared.
            if not self._shortage.live(holders) and (server.number in holders or not server.compared)
        )
        if not last:
            return None
        which = "; other servers are still to be compared" if joining else ""
        return Refused(
            f"{last:,} pages have no live copy, and {server.name} may have one{which}. Bring it back, or"
            f" give these pages up and forget it with force"
        )

    def _drain(self, token: int, server: Server, draining: bool, number: int, now: float) -> Effects:
        server.draining = draining
        effects = self._changed(server, now)
        what = "is being drained" if draining else "is drained no more"
        return [*effects, Log("info", f"{server.name} {what}"), Answer(token, self._maintained(server))]

    def _forget(self, token: int, server: Server, number: int, now: float) -> Effects:
        if self._members.by_id.get(server.id) is not server:
            return [Answer(token, self._maintained(server))]  # asked twice
        self._members.forget(server)
        self._forgotten.append(server.number)
        answer = Answer(token, Maintained(server.number, server.name, "forgotten", False, 0, 0))
        return [Log("info", f"{server.name} is forgotten"), answer, *self._changed(server, now)]

    def _maintained(self, server: Server) -> Maintained:
        state = DRAINING if server.draining and server.live else server.state
        return Maintained(server.number, server.name, state, server.draining, *self.to_move(server))

    def to_move(self, server: Server) -> tuple[int, int]:
        """(pages, bytes) that would be missed if a server that is being drained were stopped now."""
        if not server.draining:
            return 0, 0
        visible = self._shortage.on_server(server.number)
        found = self._shortage.found
        undecided = self._replication.undecided_on(server.number, self._open_batches, found)
        return visible[0] + undecided[0], visible[1] + undecided[1]

    def tick(self, now: float) -> None:
        """Take what forgotten servers held out of the picture, by and by."""
        if self._forgotten and self._catalog.forget(self._forgotten[0], _FORGET_PAGES):
            self._tell_forgotten(self._forgotten.pop(0))


def _decision(server: KnownServer | None, forget: int) -> Decision:
    return Decision(0, bytes(16), 0, [], [], 0.0, server, forget)
