"""Virtual clients: they put, remove, get and stream pages, and record what they were told.

What lives here: which calls are made, and the record of each. What must not:
whether what they were told is right (oracle.py).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from dws.client import Call as Request
from dws.client import Operation
from dws.download import ReadPages, StreamPage
from dws.errors import Conflict, NotFound, OutcomeUnknown
from dws.limits import KIB, MIB
from dws.messages import ABSENT, ANY, Drain, Forget, List, Resume, Stat, Status
from dws.outbox import PutItem
from dws.sim.client_node import ClientNode
from dws.sim.observer import (
    ASK,
    CONFLICT,
    CRASHED,
    DONE,
    FAILED,
    GET,
    MISSING,
    PUT,
    REMOVE,
    STREAM,
    UNKNOWN,
    Call,
)  # fmt: skip
from dws.upload import PutBatch, RemovePages

if TYPE_CHECKING:
    from dws.sim.world import World

_KINDS: Final = (PUT, REMOVE, GET, STREAM, ASK)
_WEIGHTS: Final = (8, 2, 5, 2, 1)
#: Bytes of the pages of one put, and how often: below and above what lies inside a record store, too.
_SIZES: Final = ((0, 5), (5, 100), (100 * KIB, 300 * KIB))
_SIZE_WEIGHTS: Final = (4, 8, 1)
#: Of a large page: at the edge of what moves in one chunk, and beyond.
_LARGE_SIZES: Final = (MIB, MIB + 1, 3 * MIB - 1)
_STAT_NAMES: Final = 100
_ASK_S: Final = 5.0
#: Few contents, so that pages are put again with the bytes that they have.
_CONTENTS: Final = 3


class Bytes:
    """A put's source (dws.outbox.Source)."""

    def __init__(self, data: bytes, rereadable: bool = True) -> None:
        self.data = data
        self.rereadable = rereadable
        self.read_to = 0

    def read(self, offset: int, length: int) -> bytes:
        assert self.rereadable or offset >= self.read_to, "it cannot be read again"
        self.read_to = offset + 1
        return self.data[offset : offset + length]


class Workload:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = world.rng_work
        self.names = [f"/page-{number}" for number in range(world.options.pages)]
        self.calls: dict[bytes, Call] = {}
        """Batch id → the put or removal that used it."""
        self.open: dict[Call, ClientNode] = {}
        self.ended = 0
        self.large_sizes: tuple[int, ...] = _LARGE_SIZES
        self._working = False
        self._make: dict[str, Callable[[ClientNode, Call], Operation]] = {
            PUT: self._put, REMOVE: self._remove, GET: self._get, STREAM: self._stream, ASK: self._ask,
        }  # fmt: skip

    def begin(self) -> None:
        self._working = True
        for client in self._world.clients:
            self.go_on(client)

    def stop(self) -> None:
        """No new calls; those that run go on."""
        self._working = False

    def go_on(self, client: ClientNode) -> None:
        if self._working and client.up:
            wait_s = self._rng.random() * 2 * self._world.options.think_s
            client.host.after(wait_s, self._begin, client)

    def crashed(self, client: ClientNode) -> None:
        """Nobody will be told what became of its calls."""
        for call in [call for call, caller in self.open.items() if caller is client]:
            self._end(call, CRASHED, "the client crashed")

    # -- calls -----------------------------------------------------------------------------

    def _begin(self, client: ClientNode) -> None:
        if self._working:
            kind = self._rng.choices(_KINDS, _WEIGHTS)[0]
            call = self._new(client, kind, [])
            operation = self._make[kind](client, call)
            self._run(client, call, operation, self.go_on)

    def _run(
        self, client: ClientNode, call: Call, operation: Operation, then: Callable[[ClientNode], None]
    ) -> None:
        self.open[call] = client
        self._world.observer.called(call)
        client.run(operation, lambda _: self._told(client, call, operation, then))

    def _new(self, client: ClientNode, kind: str, names: list[str]) -> Call:
        return Call(client.name, kind, names, self._world.clock.now, self._world.known)

    def _told(
        self, client: ClientNode, call: Call, operation: Operation, then: Callable[[ClientNode], None]
    ) -> None:
        error = operation.error
        if error is None:
            self._note_result(call, operation)
            self._end(call, DONE)
        elif isinstance(error, OutcomeUnknown):
            self._end(call, UNKNOWN, repr(error))
        elif isinstance(error, Conflict):
            self._end(call, CONFLICT, repr(error))
        elif isinstance(error, NotFound):
            self._end(call, MISSING, repr(error))
        else:
            self._end(call, FAILED, repr(error))
        then(client)

    def _note_result(self, call: Call, operation: Operation) -> None:
        if call.kind == PUT:
            call.versions = dict.fromkeys(call.names, operation.result.version)
        elif call.kind == GET:
            small, large = operation.result
            call.got = dict(small)
            call.versions = {page.name: page.version for page in large}
        elif isinstance(operation, StreamPage):
            call.got = {call.names[0]: b"".join(operation.ready)}
            call.versions = {call.names[0]: operation.result.version}

    def _end(self, call: Call, outcome: str, error: str = "") -> None:
        del self.open[call]
        self.ended += 1
        call.ended = self._world.clock.now
        call.outcome = outcome
        call.error = error
        self._world.observer.returned(call)

    def new_id(self, call: Call) -> bytes:
        batch = self._rng.randbytes(16)
        call.batches.append(batch)
        self.calls[batch] = call
        return batch

    def _deadline_s(self) -> float:
        return self._rng.uniform(1, 10)

    def _condition(self, name: str) -> int:
        return self._rng.choices([ANY, ABSENT, self._world.truth.get(name, 0)], [6, 1, 2])[0]

    def _put(self, client: ClientNode, call: Call) -> Operation:
        rng = self._rng
        call.names = rng.sample(self.names, rng.randint(1, 4))
        sizes: tuple[int, ...] = rng.choices(_SIZES, _SIZE_WEIGHTS)[0]
        if rng.random() < self._world.options.large:
            call.names, sizes = call.names[:1], self.large_sizes
        call.pages = {name: bytes([rng.randint(1, _CONTENTS)]) * rng.choice(sizes) for name in call.names}
        alone = len(call.names) == 1 and rng.random() < 0.5
        return self.put(client, call, known=not alone, rereadable=not alone or rng.random() < 0.5)

    def put(self, client: ClientNode, call: Call, known: bool = True, rereadable: bool = True) -> Operation:
        """The operation of a call that says its pages."""
        rng = self._rng
        items = []
        for name, data in call.pages.items():
            size, digest = (len(data), blake3(data).digest()) if known else (-1, b"")
            items.append(PutItem(name, Bytes(data, rereadable), size, digest, self._condition(name)))
        call.conditions = {item.name: item.condition for item in items if item.condition != ANY}
        call.copies = self._world.options.copies
        deadline = self._world.clock.now + self._deadline_s()
        watch = rng.choice([None, lambda stored, wanted: None])
        new_id = partial(self.new_id, call)
        return PutBatch(
            client.directory, deadline, new_id, items, call.copies, on_stored=watch, direct=rng.random() < 0.5
        )

    def _remove(self, client: ClientNode, call: Call) -> Operation:
        call.names = self._rng.sample(self.names, self._rng.randint(1, 2))
        conditions = {name: self._condition(name) for name in call.names}
        call.conditions = {name: wanted for name, wanted in conditions.items() if wanted != ANY}
        deadline = self._world.clock.now + self._deadline_s()
        return RemovePages(client.directory, deadline, partial(self.new_id, call), conditions)

    def _get(self, client: ClientNode, call: Call) -> Operation:
        call.names = self._rng.sample(self.names, self._rng.randint(1, 4))
        return ReadPages(client.directory, self._world.clock.now + self._deadline_s(), call.names)

    def _stream(self, client: ClientNode, call: Call) -> Operation:
        call.names = [self._rng.choice(self.names)]
        return StreamPage(client.directory, self._world.clock.now, self._deadline_s(), call.names[0])

    def _ask(self, client: ClientNode, call: Call) -> Operation:
        server = self._rng.choice(self._world.server_names)
        message = self._rng.choice([
            Status(), Stat(self.names[:_STAT_NAMES]), List("/", "", 100),
            Drain(server), Resume(server), Forget(server, force=True),
        ])  # fmt: skip
        return Request(client.directory, self._world.clock.now + _ASK_S, message)

    def resume_drained(self, server: str, number: int) -> None:
        """Take a drain back: at rest no server is being emptied."""
        client = self._world.clients[0]
        call = self._new(client, ASK, [])
        deadline = self._world.clock.now + _ASK_S
        self._run(client, call, Request(client.directory, deadline, Resume(server, number)), _rest)

    # -- at the end ------------------------------------------------------------------------

    def read_all(self, names: list[str]) -> list[Call]:
        """Have the first client read every page, all small ones at once and each by itself."""
        client = self._world.clients[0]
        now = self._world.clock.now
        calls = []
        if names:
            call = self._new(client, GET, list(names))
            calls.append(call)
            self._run(client, call, ReadPages(client.directory, now + 5, call.names), _rest)
        for name in names:
            call = self._new(client, STREAM, [name])
            calls.append(call)
            self._run(client, call, StreamPage(client.directory, now, 5, name), _rest)
        return calls


def _rest(client: ClientNode) -> None:
    """What follows the last call: nothing."""
