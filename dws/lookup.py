"""The balancer's data plane: where pages are, best holder first.

What lives here: Locate and what it remembers between two changes of a server's
state. What must not: any object or call a name more than it needs; it is asked
for a hundred thousand names a second.
"""

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from random import Random
from typing import Any, Final

from dws.catalog import Catalog
from dws.choices import Choices
from dws.config import Config
from dws.entries import HEAD_BYTES, unpack_head
from dws.health import Health
from dws.load import Loads
from dws.membership import DEAD, Members
from dws.messages import Later, Locate, Located
from dws.policy import POLICIES, gather

_RETRY_S: Final = 0.1
#: Pages that a server may be behind another and still be chosen, for a request that goes there anyway: what
#: a Fetch of its own costs all that take part in it.
_GATHER_PAGES: Final = 8


def _take(pages: dict[str, bytes], names: list[str]) -> Sequence[bytes | None]:
    """The pages of these names, None where there is none.

    Among a million each step on the way to one waits for memory. After the hashes, in a loop that has
    little else to do, the processor waits for several pages at once.
    """
    if len(names) > 1:
        hash(tuple(names))
        try:
            some: tuple[bytes, ...] = itemgetter(*names)(pages)
        except KeyError:
            pass
        else:
            return some
    return [pages.get(name) for name in names]


class Lookup:
    def __init__(
        self,
        catalog: Catalog,
        members: Members,
        loads: Loads,
        health: Health,
        epoch: int,
        config: Config,
        counters: Counter[str],
        rng: Random,
    ) -> None:
        self._catalog = catalog
        self._members = members
        self._loads = loads
        self._health = health
        self._epoch = epoch
        self._policy = POLICIES[config.policy]()
        # The other policies are drawn by whoever wants to see what they do.
        self._gathers = config.policy == "least-load"
        self._counters = counters
        self._rng = rng
        self.choices = Choices(config.policy)
        self._live_of: dict[tuple[int, ...], tuple[int, ...]] = {}

    def locate(self, request: Locate, now: float) -> Located:
        """Versions and holders of pages, best holder first, each counted as an assignment."""
        pages, groups = self._catalog.packed, self._catalog.groups.numbered
        loads, far_s, per_page_s = self._loads.download, self._loads.far_s, self._loads.per_page_s
        live_of, policy, rng = self._live_of, self._policy, self._rng
        avoid = self._complaints(request.avoid, now) if request.avoid else None
        gathers, chosen = self._gathers, set[int]()
        found: list[Any] = []
        later: list[Later] = []
        for packed in _take(pages, request.names):
            if packed is None:
                found.append(None)
                continue
            version, size, digest, list_bytes, number = unpack_head(packed)
            holders = groups[number].holders
            live: Any = live_of.get(holders)
            if live is None:
                live = self.find_live(holders)
            if avoid:
                live = [number for number in live if number not in avoid] or live
            if len(live) > 1:
                live = policy(live, loads, rng)
                if gathers and chosen and live[0] not in chosen:
                    live = gather(live, chosen, loads, now, _GATHER_PAGES * per_page_s[live[0]])
            if live:
                best = live[0]
                chosen.add(best)
                ends, idle = loads[best], now + far_s[best]
                loads[best] = (ends if ends > idle else idle) + per_page_s[best]
            else:
                later.append(self._later(len(found), holders))
            list_digest = packed[HEAD_BYTES : HEAD_BYTES + list_bytes] if list_bytes else b""
            found.append((version, size, digest, list_digest, live))
        if now >= self.choices.due and found and found[-1]:
            self.choices.note(request.names[-1], found[-1], holders, avoid, self._loads, now)
        self._counters["lookups"] += 1
        self._counters["names looked up"] += len(found)
        table = self._members.table
        servers = None if request.table == table else self._members.refs()
        return Located(self._epoch, table, servers, found, later)

    def states_changed(self) -> None:
        """Some server's state may have changed, or whose copies it has."""
        self._live_of.clear()

    def find_live(self, holders: tuple[int, ...]) -> tuple[int, ...]:
        """Live holders among these, suspects only if there is no other; remembered until a state changes."""
        servers = [self._members.by_number[number] for number in holders]
        live = [server for server in servers if server.live]
        sure = [server for server in live if server.sure]
        self._live_of[holders] = found = tuple(server.number for server in sure or live)
        return found

    def _later(self, index: int, holders: tuple[int, ...]) -> Later:
        last = ", ".join(self._members.by_number[number].name for number in holders)
        if self._members.still_to_sync():
            return Later(index, _RETRY_S, last)
        gone = [server.name for server in self._members.by_id.values() if server.heard == DEAD]
        return Later(index, 0.0, last or ", ".join(gone))

    def _complaints(self, numbers: list[int], now: float) -> set[int]:
        """A client's complaints: excluded for it, and probed; they change no state."""
        for number in numbers:
            self._counters["complaints"] += self._health.complaint(number, now)
        return set(numbers)
