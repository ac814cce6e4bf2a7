"""The whole protocol, many times over: random work and random faults, then calm, then what must be true.

Every seed is a cluster of its own (miniature.py): clients put, get, stream and remove pages, some with
conditions, some with bytes that a page has already, while nodes crash, pause and come back, messages
are late or lost, disks are slow, full, and one of them may be lost with all that it had. After every
event the machines check themselves. Besides:

- A decision names batches whole, of bytes that enough disks have, on conditions that hold at that
  moment; versions, batch ids and decision numbers are used once, and epochs rise.
- A client that was told "stored" finds the decision on the catalog's disk; one that was told anything
  but "outcome unknown" finds that there is none, then and for ever.
- A read is the catalog as it was at one moment between the question and the answer, all names of it.
- No drop is ordered of what the catalog names, or of what an open batch may yet make it name.
- No request is answered twice, and in the end every one is answered.
- In the end every visible page is on two disks (on one, if a disk was lost) and is read there byte by
  byte; nothing else is on any disk; nothing waits.

A failure names its seed. DWS_MINIATURE_SEEDS runs more of them, DWS_MINIATURE_FIRST begins elsewhere.
"""

import os
from functools import partial
from random import Random
from typing import Any

import pytest
from blake3 import blake3
from msgspec.structs import replace

from dws.client import Call, Operation
from dws.download import Page, ReadPages, StreamPage
from dws.errors import Conflict, NotFound, OutcomeUnknown
from dws.limits import KIB, MIB
from dws.messages import ABSENT, ANY, Copy, Drop, List, Reserved, Stat, Status
from dws.names import epoch_of
from dws.outbox import PutItem
from dws.policy import POLICIES
from dws.store import Decision
from dws.upload import PutBatch, RemovePages
from tests.dws.memory_store import MemoryPageStore
from tests.dws.miniature import HASTY, BalancerNode, ClientNode, ServerNode, Weather, World

SEEDS = int(os.environ.get("DWS_MINIATURE_SEEDS", "200"))
FIRST = int(os.environ.get("DWS_MINIATURE_FIRST", "0"))
GROUP = 25

NAMES = [f"/page-{number}" for number in range(6)]
COPIES = 2


class Bytes:
    def __init__(self, data: bytes, rereadable: bool) -> None:
        self.data = data
        self.rereadable = rereadable
        self.read_to = 0

    def read(self, offset: int, length: int) -> bytes:
        assert self.rereadable or offset >= self.read_to
        self.read_to = offset + 1
        return self.data[offset : offset + length]


class Deed:
    """A put or a removal: what is wanted, under which batch ids it was tried, and what was told of it."""

    def __init__(self, pages: dict[str, bytes], removes: list[str], conditions: dict[str, int]) -> None:
        self.pages = pages
        self.removes = removes
        self.conditions = conditions
        self.decided: Decision | None = None
        self.refused = ""


class Run(World):
    def __init__(self, seed: int) -> None:
        rng = Random(seed)
        config = replace(HASTY, policy=rng.choice(sorted(POLICIES)))
        super().__init__(seed, servers=rng.choice([3, 3, 4]), clients=3, config=config)
        self.disks = [server.store for server in self.servers]
        self.lost_disk = False
        self.deeds: dict[bytes, Deed] = {}
        self.content: dict[tuple[str, int], bytes] = {}
        self.batch_of: dict[int, bytes] = {}
        self.dropped: set[tuple[str, int]] = set()
        self.working = True
        self.busy = 0
        self.done = 0

    # -- what is checked all the time ------------------------------------------------------

    def told(self, message: Any) -> None:
        if isinstance(message, Reserved):
            assert epoch_of(message.version) <= self.catalog.epoch

    def handed(self, decision: Decision) -> None:
        """Enough disks have the batch before its decision is as much as begun."""
        for record in decision.puts:
            disks = sum((record.name, record.version) in disk.held for disk in self.disks)
            assert disks >= COPIES, f"{record.name} is decided on the word of {disks} disks"

    def decided(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            deed = self.deeds.get(decision.batch)
            if deed is not None:
                self._check(decision, deed)
            super().decided([decision])

    def _check(self, decision: Decision, deed: Deed) -> None:
        truth = self.truths[-1]
        assert deed.decided is None, "a put or removal is decided twice"
        if decision.puts or decision.removes:
            assert not deed.refused, f"it is decided after its client was told: {deed.refused}"
        assert self.batch_of.setdefault(decision.version, decision.batch) == decision.batch
        deed.decided = decision
        for name, wanted in deed.conditions.items():
            assert truth.get(name, 0) == wanted, f"{name}: a condition does not hold when it is decided"
        for record in decision.puts:
            key = record.name, decision.version
            assert record.digest == blake3(deed.pages[record.name]).digest()
            assert key not in self.content and key not in self.dropped
            self.content[key] = deed.pages[record.name]
        for name in deed.pages.keys() - {record.name for record in decision.puts}:
            assert self.content.get((name, truth.get(name, 0))) == deed.pages[name], f"{name} was skipped"
        assert decision.removes == deed.removes

    def ordered(self, balancer: BalancerNode, server: ServerNode, job: Drop | Copy) -> None:
        if isinstance(job, Drop):
            for each in job.records:
                assert self.truths[-1].get(each.name) != each.version, "a drop of what the catalog names"
                assert not balancer.machine.placement.is_open(each.version), "a drop of an open batch's page"
                self.dropped.add((each.name, each.version))

    # -- the work --------------------------------------------------------------------------

    def work(self, client: ClientNode) -> None:
        if self.working:
            wait_s = self.rng.random() * 0.4
            client.schedule(wait_s, self._begin, client)

    def _begin(self, client: ClientNode) -> None:
        if self.working:
            self.busy += 1
            kind = self.rng.choices(
                [self._put, self._remove, self._get, self._stream, self._call], [8, 2, 5, 2, 1]
            )
            kind[0](client)

    def _ended(self, client: ClientNode) -> None:
        self.busy -= 1
        self.done += 1
        self.work(client)

    def _new_id(self, deed: Deed) -> bytes:
        batch = self.rng.randbytes(16)
        self.deeds[batch] = deed
        return batch

    def _condition(self, name: str) -> int:
        return self.rng.choices([ANY, ABSENT, self.truths[-1].get(name, 0)], [6, 1, 2])[0]

    def _put(self, client: ClientNode) -> None:
        rng = self.rng
        names = rng.sample(NAMES, rng.randint(1, 4))
        sizes = rng.choice([[0, 5], [5, 100], [100 * KIB, 300 * KIB]])
        if rng.random() < 0.04:
            names, sizes = names[:1], [MIB, MIB + 1, 3 * MIB - 1]
        # Bytes come from few seeds, so that pages are put again with the bytes that they have.
        pages = {name: bytes([rng.randint(1, 3)]) * rng.choice(sizes) for name in names}
        alone = len(names) == 1 and rng.random() < 0.5
        rereadable = not alone or rng.random() < 0.5
        items = []
        for name, data in pages.items():
            known = () if alone else (len(data), blake3(data).digest())
            items.append(PutItem(name, Bytes(data, rereadable), *known, condition=self._condition(name)))
        deed = Deed(pages, [], {item.name: item.condition for item in items if item.condition != ANY})
        deadline = self.now + rng.uniform(1, 10)
        watch = rng.choice([None, lambda stored, wanted: None])
        new_id = partial(self._new_id, deed)
        operation = PutBatch(client.directory, deadline, new_id, items, COPIES, on_stored=watch)
        client.run(operation, lambda _: self._told(client, deed, operation))

    def _remove(self, client: ClientNode) -> None:
        names = self.rng.sample(NAMES, self.rng.randint(1, 2))
        conditions = {name: self._condition(name) for name in names}
        deed = Deed({}, names, {name: wanted for name, wanted in conditions.items() if wanted != ANY})
        deadline = self.now + self.rng.uniform(1, 10)
        operation = RemovePages(client.directory, deadline, lambda: self._new_id(deed), conditions)
        client.run(operation, lambda _: self._told(client, deed, operation))

    def _told(self, client: ClientNode, deed: Deed, operation: Operation) -> None:
        if operation.error is None:
            assert deed.decided is not None, "its client was told that it is stored; it is not"
        elif not isinstance(operation.error, OutcomeUnknown):
            deed.refused = repr(operation.error)
            # A decision of nothing, since every page was skipped, takes no effect either.
            nothing = deed.decided is None or not (deed.decided.puts or deed.decided.removes)
            assert nothing, f"it is decided, and its client was told: {deed.refused}"
            if isinstance(operation.error, Conflict):
                assert deed.conditions, "a conflict, of a put or removal without a condition"
        self._ended(client)

    def _get(self, client: ClientNode) -> None:
        names = self.rng.sample(NAMES, self.rng.randint(1, 4))
        operation = ReadPages(client.directory, self.now + self.rng.uniform(1, 10), names)
        since = self.handled
        client.run(operation, lambda _: self._read(client, operation, names, since))

    def _read(self, client: ClientNode, operation: Operation, names: list[str], since: int) -> None:
        """The answer fits at least one moment between question and answer."""
        moments = self.truths[since:]
        if operation.error is None:
            got, large = operation.result
            versions: dict[str, Page] = {page.name: page for page in large}
            assert any(
                all(
                    moment.get(name) == versions[name].version
                    if name in versions
                    else self.content.get((name, moment.get(name, 0))) == got[name]
                    for name in names
                )
                for moment in moments
            ), f"{names} were never like this at one moment"
        elif isinstance(operation.error, NotFound):
            assert any(any(name not in moment for name in names) for moment in moments)
        self._ended(client)

    def _stream(self, client: ClientNode) -> None:
        name = self.rng.choice(NAMES)
        operation = StreamPage(client.directory, self.now, self.rng.uniform(1, 10), name)
        since = self.handled
        client.run(operation, lambda _: self._streamed(client, operation, name, since))

    def _streamed(self, client: ClientNode, operation: StreamPage, name: str, since: int) -> None:
        moments = self.truths[since:]
        if operation.error is None:
            version = operation.result.version
            assert any(moment.get(name) == version for moment in moments)
            assert b"".join(operation.ready) == self.content[name, version]
        elif isinstance(operation.error, NotFound):
            assert any(name not in moment for moment in moments)
        self._ended(client)

    def _call(self, client: ClientNode) -> None:
        message = self.rng.choice([Status(), Stat(NAMES), List("/", "", 100)])
        operation = Call(client.directory, self.now + 5, message)
        client.run(operation, lambda _: self._ended(client))

    # -- the faults ------------------------------------------------------------------------

    def trouble(self) -> None:
        """One fault now, another one soon."""
        if not self.working:
            return
        rng = self.rng
        node = rng.choice([self.balancer, *self.servers, *self.servers, rng.choice(self.clients)])
        if node.up and node.paused_until <= self.now and rng.random() < 0.3:
            node.paused_until = self.now + rng.choice([0.1, 1.0, 3.0])
        elif node.up:
            if isinstance(node, ClientNode):
                self.busy -= len(node.running)
            node.crash()
            if isinstance(node, ServerNode) and not self.lost_disk and rng.random() < 0.1:
                self._lose_disk(node)
            self.at(rng.choice([0.01, 0.3, 1.5, 4.0]), self.nobody, self._return, node)
        self.at(rng.expovariate(self.fault_rate), self.nobody, self.trouble)

    def _lose_disk(self, server: ServerNode) -> None:
        """It comes back as a new server, under another name; its old self never."""
        self.lost_disk = True
        server.store = MemoryPageStore(self.rng)
        server.name += "-again"
        self.disks.append(server.store)

    def _return(self, node: Any) -> None:
        if not node.up:
            node.start()
            if isinstance(node, ClientNode):
                self.work(node)

    # -- the run ---------------------------------------------------------------------------

    def play(self) -> None:
        rng = self.rng
        self.run(1.0)
        for client in self.clients:
            self.work(client)
        self.weather = Weather(
            delay_s=rng.choice([0.001, 0.01]),
            late_s=rng.choice([0, 0, 0.3, 3.0]),
            loss=rng.choice([0, 0, 0.01, 0.1]),
            fsync_s=rng.choice([0.001, 0.02, 0.5]),
        )
        quota_bytes = rng.choice([1 << 40, 1 << 40, 4 * MIB])
        for server in self.servers:
            server.store.quota_bytes = quota_bytes
        self.fault_rate = rng.choice([0.01, 0.5, 2.0])
        self.at(rng.expovariate(self.fault_rate), self.nobody, self.trouble)
        self.run(rng.uniform(2, 8))
        self.working = False
        self.weather = Weather()
        for node in self.nodes:
            self._return(node)
        for _ in range(240):
            self.run(0.5)
            if not self.unrest():
                break
        else:
            raise AssertionError(f"after two minutes of calm: {self.unrest()}")
        self.check_the_end()
        self.read_all()

    def unrest(self) -> str:
        """What is not done yet."""
        balancer = self.balancer.machine
        if self.busy:
            return f"{self.busy} operations go on"
        if self.balancer.owed or any(server.owed for server in self.servers):
            return "requests are owed an answer"
        if balancer.placement.open_batches:
            return f"{balancer.placement.open_batches} batches are open"
        for server in self.servers:
            known = balancer.members.by_id.get(server.store.identity.server)
            if known is None or not known.live:
                return f"{server.name} is not live"
            picture = balancer.catalog.pictures[known.number]
            if picture.sums != server.store.summary()[1]:
                return f"the picture of {server.name} is not what its disk has"
            if picture.strays or server.store.staged:
                return f"there is garbage on {server.name}"
        if balancer.orders.open_orders() and not self.lost_disk:
            return f"{balancer.orders.open_orders()} orders are open"
        return ""

    def check_the_end(self) -> None:
        self.balancer.machine.catalog.check()
        wanted = dict.fromkeys(self.truths[-1].items(), 0)
        for server in self.servers:
            for key, held in server.store.held.items():
                assert key in wanted, f"{server.name} keeps {key}, which the catalog does not name"
                assert held.data == self.content[key]
                wanted[key] += 1
        assert all(copies >= COPIES - self.lost_disk for copies in wanted.values()), wanted
        pages = self.balancer.machine.catalog.pages
        assert {name: entry.version for name, entry in pages.items()} == self.truths[-1]

    def read_all(self) -> None:
        """And readers get all of it."""
        client = self.clients[0]
        names = sorted(self.truths[-1])
        ended: list[Any] = []
        read = ReadPages(client.directory, self.now + 5, names)
        client.run(read, ended.append)
        streams = [StreamPage(client.directory, self.now, 5, name) for name in names]
        for stream in streams:
            client.run(stream, ended.append)
        assert self.run(6, until=lambda: len(ended) == 1 + len(streams))
        got, large = read.result
        assert got.keys() | {page.name for page in large} == set(names)
        for name, stream in zip(names, streams, strict=True):
            content = self.content[name, self.truths[-1][name]]
            assert got.get(name, content) == b"".join(stream.ready) == content


def play(seed: int) -> Run:
    run = Run(seed)
    try:
        run.play()
    except BaseException as error:
        error.add_note(f"DWS_MINIATURE_FIRST={seed}, at {run.now:.3f}, after:\n" + "\n".join(run.log[-30:]))
        raise
    return run


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, GROUP))
def test_nothing_promised_is_broken_and_all_comes_to_rest(first: int) -> None:
    for seed in range(first, min(first + GROUP, FIRST + SEEDS)):
        play(seed)
