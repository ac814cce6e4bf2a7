"""What the balancer believes, held against what is durable: its catalog, and its picture of each disk.

What lives here: the rules about that belief. What must not: all others
(oracle.py). Belief that rests on an old copy of the catalog is not judged, but
that no server shares it; nor what needs every state that the catalog was in,
where a world does not remember them.
"""

from collections import Counter
from typing import TYPE_CHECKING, Final

from dws.balancer import Balancer
from dws.messages import Located
from dws.sim.rules import require
from dws.store import Decision

if TYPE_CHECKING:
    from dws.sim.world import World

#: A word of one server has all compared; with more than these that would cost more than the event.
_COMPARED_SERVERS: Final = 20
#: And so for the holders of pages, of which there may be many more.
_COMPARED_PAGES: Final = 100


class Belief:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._changes: dict[int, dict[str, int]] = {}
        """Number of a truth that the balancer does not know → what its decision changes (0: removes)."""
        self._followed: dict[int, tuple[tuple[int, int], int]] = {}
        """Server → the balancer's epoch and what it takes the server's incarnation to be, and the last change
        applied."""
        self._named: Counter[int] = Counter()
        """Versions that a lookup may name."""
        self._named_at = 0
        self._named_truth: dict[str, int] = {}

    @property
    def balancer(self) -> Balancer | None:
        """The machine, if one runs on the right catalog."""
        node = self._world.balancer
        if not node.up or self._world.faults.is_catalog_old or not isinstance(node.machine, Balancer):
            return None
        return node.machine

    def decided(self, decision: Decision) -> None:
        """It makes the next truth."""
        changes = {record.name: record.version for record in decision.puts}
        self._changes[len(self._world.truths)] = changes | dict.fromkeys(decision.removes, 0)

    def check_following(self) -> None:
        """What the balancer has of each server, after it has heard of one."""
        machine = self.balancer
        if machine is None or len(self._world.servers) > _COMPARED_SERVERS:
            return
        for server in self._world.servers:
            known = machine.members.by_id.get(server.disk.identity.server)
            if known is None:
                continue
            life, applied = self._followed.get(known.number, ((0, 0), 0))
            now = (self._world.catalog.epoch, known.incarnation)
            text = f"{known.name} is taken for incarnation {now[1]}, after {life[1]}"
            require(now[0] != life[0] or now[1] >= life[1], "incarnation", text)
            change = machine.sync.applied(known.number)
            text = f"of {known.name} change {change} is applied after change {applied}"
            require(now != life or change >= applied or change < 0, "picture", text)
            if change == server.disk.number:
                sums = machine.catalog.pictures[known.number].sums
                text = f"at change {change} the picture of {known.name} is not what its disk has"
                require(sums == server.disk.summary()[1], "picture", text)
            self._followed[known.number] = (now, change)
        if len(machine.catalog.pages) <= _COMPARED_PAGES:
            self._check_holders(machine)

    def check_located(self, located: Located) -> None:
        if not self._world.remembers:
            return
        self._follow()
        for page in located.pages:
            if page is not None:
                text = f"a lookup names version {page[0]}, which is not visible"
                require(self._named[page[0]], "located", text)

    def check_shown(self) -> None:
        """What the balancer has heard to be durable is what its picture shows."""
        if self._world.remembers and self._world.known != self._named_at:
            changed, machine = self._follow(), self.balancer
            if machine is not None:
                for name in changed:
                    self._check_entry(machine, name)

    def _follow(self) -> set[str]:
        """Bring `_named` to what the balancer has heard to be durable: the names that changed."""
        world = self._world
        begin, self._named_at = self._named_at, world.known
        changes = [self._changes.pop(number, None) for number in range(begin + 1, world.known + 1)]
        if world.known < begin or None in changes:
            # A catalog made anew, or put back.
            self._named_truth = dict(world.truths[world.known])
            self._named = Counter(self._named_truth.values())
            return set(self._named_truth)
        changed = {name: version for each in changes if each for name, version in each.items()}
        for name, version in changed.items():
            self._named[self._named_truth.pop(name, 0)] -= 1
            if version:
                self._named_truth[name] = version
                self._named[version] += 1
        return set(changed)

    def _check_entry(self, machine: Balancer, name: str) -> None:
        """The balancer's picture of a page is what the catalog names."""
        entry, version = machine.catalog.pages.get(name), self._named_truth.get(name)
        text = f"{name} is not in the catalog, and the balancer has it"
        require(entry is None or version is not None, "revived", text)
        text = f"{name} is {version}, and the balancer has {entry and entry.version}"
        require(entry is None or entry.version == version, "located", text)
        text = f"{name} is visible, and the balancer has it not"
        require(entry is not None or version is None, "located", text)

    def check_alone(self) -> None:
        """Of a balancer on an old copy of the catalog, which every server can see to be old: none follows."""
        if not self._world.faults.is_catalog_old:
            return
        machine = self._world.balancer.machine
        if isinstance(machine, Balancer):
            led = [server.name for server in machine.members.by_number.values() if server.incarnation]
            text = f"a balancer on an old copy of the catalog counts on {', '.join(led)}"
            require(not led, "wrong-catalog", text)

    def check_catalog(self) -> None:
        """The whole picture."""
        machine = self.balancer
        if machine is None or not self._world.remembers:
            return
        self._follow()
        for name in machine.catalog.pages.keys() | self._named_truth.keys():
            self._check_entry(machine, name)
        self._check_holders(machine)

    def _check_holders(self, machine: Balancer) -> None:
        """Who counts as a holder is one, by its disk."""
        disks = {disk.identity.server: disk for disk in self._world.disks}
        members = machine.members.by_number
        for name, entry in machine.catalog.pages.items():
            require(len(set(entry.holders)) == len(entry.holders), "twice", f"{name} lies on {entry.holders}")
            for number in entry.holders:
                disk, key = disks[members[number].id], (name, entry.version)
                if key in disk.held:
                    continue
                # A disk drops nothing that counts, but sets aside by itself what it finds damaged. That is a
                # change like all others: until it is applied the balancer cannot know of it.
                is_aside = key in disk.aside and machine.sync.applied(number) != disk.number
                text = f"{members[number].name} counts as a holder of {name} {entry.version} and has it not"
                require(is_aside, "presence", text)
