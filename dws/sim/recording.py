"""The format of a recording of what happened to a node.

What lives here: what is written of a machine's start, of every event and of what
the machine did. What must not: writing it (recorder.py), files
(nodes/recording.py), and playing it back (incident.py).

A recording is a sequence of frames: u32 length, 8 bytes of checksum over the frame
and all before it, then a msgpack array: first the start, then records of the
catalog if it is a balancer's, `Happened` for each event, and `Ended`.

Whatever a machine is given is recorded, so that it can be given again:
  - events, with their times. An answer's tag is the machine's own; recorded is
    which of the tags that it gave out it was;
  - what it read of its store meanwhile, in order;
  - what lookups and reads changed since the event before. These are the data plane:
    they are methods, not events, and recording each would cost more than itself.
    Of lookups that is the loads, of reads the load book's tallies. A lookup that
    complains of a server is recorded as itself.
What the machine did is recorded as a digest of its effects. Left out of it are
figures that the shell's sockets and the data plane count, which only reports show.
"""

from collections.abc import Callable, Iterable
from struct import Struct as Layout
from typing import Any, Final, Protocol, get_args, get_type_hints

import msgspec
from blake3 import blake3
from msgspec import Raw, Struct
from msgspec.structs import replace

from dws import events, messages, webserver
from dws.balancer import Balancer
from dws.config import Config
from dws.effects import Effect, Effects
from dws.following import Endpoints
from dws.messages import ClusterStatus, NodeStatsAre, Record
from dws.store import CatalogHead, CatalogStore, PageStore
from dws.webserver import WebServer

VERSION: Final = 1
PREFIX: Final = Layout(">I8s")
#: Over the largest event: a message and its data frame.
FRAME_MAX_BYTES: Final = 64 << 20
_DIGEST_BYTES: Final = 8


# -- frames ------------------------------------------------------------------------------


class _Frame(Struct, array_like=True):
    pass


class BalancerStart(_Frame, tag="balancer"):
    """How a balancer began; the catalog's records follow. code: a digest over the machines' sources."""

    version: int
    software: str
    code: str
    started: float  # wall clock
    now: float
    seed: bytes
    config: Config
    head: CatalogHead


class WebServerStart(_Frame, tag="webserver"):
    version: int
    software: str
    code: str
    started: float
    now: float
    name: str
    endpoints: Endpoints
    config: Config


class Records(_Frame, tag="records"):
    records: list[Record]


class Happened(_Frame, tag="event"):
    """kind: the event's class; empty: the machine was made. changed: what its data plane changed before.

    reads: (what, value) of each read of a store; a value of nil is that of the last read of the same.
    raised: how the machine failed at it, if it did; then there are no effects.
    """

    kind: str
    now: float
    fields: list[Raw]
    changed: Raw
    reads: list[tuple[str, Raw]]
    effects: int
    digest: bytes
    raised: str = ""


class Ended(_Frame, tag="end"):
    reason: str


Frame = BalancerStart | WebServerStart | Records | Happened | Ended
decode_frame = msgspec.msgpack.Decoder(Frame).decode
encode: Final = msgspec.msgpack.Encoder().encode
NOTHING: Final = Raw(encode(None))


class Chain:
    """Checksums, each over its frame and all before it: a frame that was changed or moved is found."""

    def __init__(self) -> None:
        self.last = bytes(8)

    def next(self, body: bytes) -> bytes:
        self.last = blake3(self.last + body).digest(length=8)
        return self.last


# -- what is in an event -----------------------------------------------------------------------


class Shape(Struct):
    """An event class and how each of its fields is read back."""

    make: Callable[..., Any]
    names: tuple[str, ...]
    decoders: tuple[Callable[[bytes], Any], ...]


def _tagged() -> Any:
    """All wire messages that say what they are, whoever sends them to whom."""
    found = [each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, Struct)]
    union: Any = None
    for each in found:
        if each.__struct_config__.tag is not None:
            union = each if union is None else union | each
    return union


_decode_message = msgspec.msgpack.Decoder(_tagged()).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode


def _decoder(name: str, kind: Any) -> Callable[[bytes], Any]:
    if name == "tag":
        return msgspec.msgpack.Decoder(int).decode
    if name == "message":
        return _decode_message
    if kind is memoryview:
        return lambda raw: memoryview(_decode_bytes(raw))
    return msgspec.msgpack.Decoder(kind).decode


def _shapes(union: Any) -> dict[str, Shape]:
    shapes = {}
    for kind in get_args(union):
        hints = get_type_hints(kind)
        names = kind.__struct_fields__
        shapes[kind.__name__] = Shape(kind, names, tuple(_decoder(name, hints[name]) for name in names))
    return shapes


#: A lookup that complained of servers: no event, but it leads to probes.
COMPLAINT: Final = "Complaint"
BALANCER_EVENTS: Final = _shapes(events.Event)
WEBSERVER_EVENTS: Final = _shapes(webserver.Event)


# -- what is read of a store ----------------------------------------------------------------------


def _reads(store: Any, names: Iterable[str]) -> dict[str, Callable[[bytes], Any]]:
    decoders: dict[str, Callable[[bytes], Any]] = {}
    for name in names:
        member = getattr(store, name)
        hints = get_type_hints(member.fget if isinstance(member, property) else member)
        decoders[name] = msgspec.msgpack.Decoder(hints["return"]).decode
    return decoders


#: Nor those of the data plane, which no event leads to.
_NO_READS: Final = ("commit", "close", "get_each")
PAGE_STORE_NAMES: Final = tuple(
    name for name in vars(PageStore) if not name.startswith("_") and name not in _NO_READS
)
READS: Final = _reads(PageStore, PAGE_STORE_NAMES) | _reads(CatalogStore, ("outcome", "knows_start"))
#: Properties, read at almost every event and mostly the same.
STEADY: Final = ("identity", "number")


# -- what a machine did --------------------------------------------------------------------------


def digest_of(effects: Effects) -> bytes:
    """Of all effects in their order; empty if there are none."""
    if not effects:
        return b""
    plain = [(type(effect).__name__, _without_counts(effect)) for effect in effects]
    return blake3(encode(plain)).digest(length=_DIGEST_BYTES)


def _without_counts(effect: Effect) -> Effect:
    message = getattr(effect, "message", None)
    if isinstance(message, ClusterStatus):
        return replace(effect, message=replace(message, counters={}, choices=[], lookups=0))
    if isinstance(message, NodeStatsAre):
        bare = replace(message, counters={}, hot=[], hot_last=[], response=[])
        return replace(effect, message=bare)
    return effect


# -- what the data plane changes ---------------------------------------------------------------


class Changes(Protocol):
    """What is changed between two events by methods that are no events."""

    def take(self) -> Raw:
        """What changed since `settle`; nil if nothing did."""

    def settle(self) -> None:
        """An event was handled: what it changed follows from it."""

    def put(self, changed: Raw) -> None:
        """Change the same, in another machine."""


class LoadChanges:
    """Lookups assign: download loads that changed, by server number."""

    _decode = staticmethod(msgspec.msgpack.Decoder(list[tuple[int, float]] | None).decode)

    def __init__(self, machine: Balancer) -> None:
        self._loads = machine.loads
        self._known = list(machine.loads.download)

    def take(self) -> Raw:
        now, known = self._loads.download, self._known
        if now == known:
            return NOTHING
        pairs = enumerate(zip(now, known, strict=True))
        return Raw(encode([(number, load) for number, (load, before) in pairs if load != before]))

    def settle(self) -> None:
        if self._known != self._loads.download:
            self._known = list(self._loads.download)

    def put(self, changed: Raw) -> None:
        for number, load in self._decode(changed) or []:
            self._loads.download[number] = load


class BookChanges:
    """Reads are counted: the book's tallies, if they changed."""

    _decode = staticmethod(msgspec.msgpack.Decoder(list[float] | None).decode)

    def __init__(self, machine: WebServer) -> None:
        self._book = machine.book
        self._known = machine.book.tallies()

    def take(self) -> Raw:
        tallies = self._book.tallies()
        return NOTHING if tallies == self._known else Raw(encode(tallies))

    def settle(self) -> None:
        self._known = self._book.tallies()

    def put(self, changed: Raw) -> None:
        tallies = self._decode(changed)
        if tallies is not None:
            self._book.set_tallies(tallies)
