"""Pages with more copies than wanted: one too many is dropped, after the others were verified.

What lives here: which copy goes, the proof that those which stay are good, and
the drops on the way (rule 6). What must not: copies too few (repair.py), records
that the catalog does not name (garbage.py).

First the servers whose copies stay read them again from their disks. Only when
all of them have said that theirs are good, and nothing has changed meanwhile, the
copy too many is disowned and its drop ordered; from that moment it does not
count, until the drop is reported. A new life of its server ends the order, which
named the life before; whether it was carried out only that life's manifest says:
what is still there counts again once it was compared.

There is no hurry: it begins when nothing was missing and no server's state
changed for garbage_s, with one check at a time for each server.
"""

from typing import Final

from msgspec import Struct

from dws.catalog import Catalog
from dws.config import Config
from dws.decisions import Decisions
from dws.effects import Ask, Effects
from dws.groups import GroupKey
from dws.limits import BATCH_MAX_PAGES, VERIFY_MAX_BYTES
from dws.load import Loads
from dws.membership import ALIVE, Members
from dws.messages import Dropped, Verified, Verify
from dws.orders import Orders
from dws.repair import VERIFY_BYTES_S, VERIFY_TIMEOUT_S
from dws.shortage import Shortage

_REVIEW_S: Final = 1.0

VERIFYING: Final = "verifying"
DROPPING: Final = "dropping"

#: (state, event) → state; None: it is over.
TRANSITIONS: Final[dict[tuple[str, str], str | None]] = {
    (VERIFYING, "all are good"): DROPPING,
    (VERIFYING, "no proof"): None,
    (DROPPING, "reported"): None,
    (DROPPING, "new life"): None,
}


class _Check(Struct):
    """One server's copies, which are too many. asked: those whose copies stay → their incarnation;
    `good`: of each that has answered, the pages whose bytes it found right."""

    serial: int
    server: int
    key: GroupKey
    records: dict[str, int]  # name → version
    asked: dict[int, int]
    good: dict[int, set[str]] = {}
    state: str = VERIFYING


class Surplus:
    def __init__(
        self,
        catalog: Catalog,
        members: Members,
        loads: Loads,
        orders: Orders,
        shortage: Shortage,
        decisions: Decisions,
        config: Config,
        now: float,
    ) -> None:
        self._catalog = catalog
        self._members = members
        self._loads = loads
        self._orders = orders
        self._shortage = shortage
        self._decisions = decisions
        self._config = config
        self._checks: dict[int, _Check] = {}
        self._serial = 0
        self._quiet_since = now
        self._review_at = now
        self._resting: dict[GroupKey, float] = {}  # groups that gave no proof, and until when
        self.dropped = 0

    def _groups(self) -> list[GroupKey]:
        wanted, found = self._shortage.wanted, self._shortage.found
        return [key for key in self._catalog.groups if found(key[1]) > wanted(key[0])]

    def count(self) -> int:
        """Pages with more copies than wanted."""
        return sum(self._catalog.groups[key].pages for key in self._groups())

    def disturbed(self, now: float) -> None:
        """Some server's state changed, or something is missing: no copy is one too many for now."""
        self._quiet_since = now
        for check in list(self._checks.values()):
            if check.state == VERIFYING:
                self._step(check, "no proof")

    def tick(self, now: float) -> Effects:
        if now < self._quiet_since + self._config.garbage_s or now < self._review_at:
            return []
        self._review_at = now + _REVIEW_S
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        effects: Effects = []
        busy = {check.server for check in self._checks.values()}
        for key in self._groups():
            if key in self._resting:
                continue
            server = self._one_too_many(key)
            if server in busy or self._members.by_number[server].state != ALIVE:
                continue
            if not self._orders.has_room(server):
                continue
            busy.add(server)
            effects += self._begin(key, server)
        return effects

    def _one_too_many(self, key: GroupKey) -> int:
        """Whose copies go: the fullest server's, of those that count."""
        counting = [number for number in key[1] if number in self._shortage.counting]
        loads = self._loads.upload(counting)
        return max(counting, key=lambda number: (loads[number], number))

    def _begin(self, key: GroupKey, server: int) -> Effects:
        """Have the copies that stay verified."""
        records: dict[str, int] = {}
        size_bytes = 0
        for name in self._catalog.groups.names(key):
            entry = self._catalog.pages[name]
            if (records and size_bytes + entry.size > VERIFY_MAX_BYTES) or len(records) == BATCH_MAX_PAGES:
                break
            records[name] = entry.version
            size_bytes += entry.size
        stay = [number for number in key[1] if number in self._shortage.counting and number != server]
        asked = {number: self._members.by_number[number].incarnation for number in stay}
        self._serial += 1
        self._checks[self._serial] = _Check(self._serial, server, key, records, asked)
        timeout_s = VERIFY_TIMEOUT_S + size_bytes / VERIFY_BYTES_S
        return [
            Ask(
                number,
                Verify(incarnation, list(records.items())),
                ("surplus", number, self._serial),
                timeout_s,
            )
            for number, incarnation in asked.items()
        ]

    # -- what becomes of it ------------------------------------------------------------------------

    def verified(self, number: int, serial: int, answer: object, now: float) -> None:
        """One of those whose copies stay has looked at them; or did not answer, or not so."""
        check = self._checks.get(serial)
        if check is None or check.state != VERIFYING or number not in check.asked:
            return
        if not isinstance(answer, Verified):
            self._give_up(check, now)
            return
        names = list(check.records)
        check.good[number] = {names[index] for index in answer.good if index < len(names)}
        if len(check.good) == len(check.asked):
            self._drop(check, now)

    def _drop(self, check: _Check, now: float) -> None:
        """All have answered: what is proven, and as it was, is dropped."""
        proven = [
            name
            for name, version in check.records.items()
            if all(name in good for good in check.good.values()) and self._is_as_it_was(check, name, version)
        ]
        if not proven or not self._are_as_they_were(check):
            self._give_up(check, now)
            return
        if len(proven) < len(check.records):
            self._resting[check.key] = now + self._config.garbage_s
        check.records = {name: check.records[name] for name in proven}
        self._step(check, "all are good")
        drops = []
        for name, version in check.records.items():
            self._catalog.disown(check.server, name, version, now)
            drops.append(Dropped(name, version))
        self._orders.drop(check.server, ("surplus", check.serial), drops, self._decisions.durable)

    def _is_as_it_was(self, check: _Check, name: str, version: int) -> bool:
        entry = self._catalog.pages.get(name)
        return entry is not None and entry.version == version and (entry.copies, entry.holders) == check.key

    def _are_as_they_were(self, check: _Check) -> bool:
        """Whether those who gave their proof live on, and their copies count and are enough."""
        same = all(
            number in self._shortage.counting and self._members.by_number[number].incarnation == incarnation
            for number, incarnation in check.asked.items()
        )
        server = self._members.by_number[check.server]
        return same and server.live and len(check.asked) >= self._shortage.wanted(check.key[0])

    def _give_up(self, check: _Check, now: float) -> None:
        self._resting[check.key] = now + self._config.garbage_s
        self._step(check, "no proof")

    def reported(self, number: int) -> None:
        """A server's picture changed: drops that it shows as done are done."""
        for check in list(self._checks.values()):
            if check.server != number or check.state != DROPPING:
                continue
            if not any(self._catalog.holds(number, name, version) for name, version in check.records.items()):
                self.dropped += len(check.records)
                self._step(check, "reported")

    def restarted(self, number: int) -> None:
        """A new life of a server: drops that the life before was told reach it no more. They may have been
        carried out unreported: the picture has none of these copies until the manifest shows them."""
        for check in list(self._checks.values()):
            if check.server == number and check.state == DROPPING:
                self._step(check, "new life")
                for name, version in check.records.items():
                    self._catalog.release(number, name, version)

    def _step(self, check: _Check, event: str) -> None:
        after = TRANSITIONS[check.state, event]
        if after is not None:
            check.state = after
            return
        del self._checks[check.serial]
        if event in ("reported", "new life"):
            self._orders.done(check.server, ("surplus", check.serial))
            for name, version in check.records.items():
                self._catalog.drop_over(check.server, name, version)

    def check(self) -> None:
        """One check for each server; a copy under drop counts for nothing."""
        servers = [check.server for check in self._checks.values()]
        assert len(servers) == len(set(servers))
        for check in self._checks.values():
            for name, version in check.records.items():
                entry = self._catalog.pages.get(name)
                if check.state == DROPPING and entry is not None and entry.version == version:
                    assert check.server not in entry.holders
