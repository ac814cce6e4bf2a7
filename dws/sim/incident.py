"""A recording played back: the production machine does again what it did, event by event.

What lives here: reading frames, giving a machine what it was given, and comparing
what it does with what is recorded. What must not: files, and the machine.

    player = Player(read)            read(n) returns up to n bytes, fewer only at the end
    for step in player: ...          an event was handled; player.machine can be looked at
    player.verdict                   what became of it

Reproduced is every effect, and with them the machine's whole state but for what
recording.py says is left out: replies to lookups and reads, and counters.
"""

from collections import deque
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from dws.balancer import Balancer
from dws.effects import Effects
from dws.errors import ConfigError
from dws.messages import Locate, Record
from dws.sim.recording import (
    BALANCER_EVENTS,
    COMPLAINT,
    FRAME_MAX_BYTES,
    PREFIX,
    READS,
    STEADY,
    VERSION,
    WEBSERVER_EVENTS,
    BalancerStart,
    BookChanges,
    Chain,
    Changes,
    Ended,
    Frame,
    Happened,
    LoadChanges,
    Records,
    WebServerStart,
    decode_frame,
    digest_of,
)
from dws.webserver import WebServer

_decode_list: Final = msgspec.msgpack.Decoder(list[int]).decode
_DECODE_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Differs(Exception):
    """The machine did something else than is recorded, or the recording is damaged."""


class Step(Struct):
    """One event, handled. number counts from 1; kind is the event's class."""

    number: int
    now: float
    kind: str
    event: Any
    effects: Effects
    raised: str = ""


class Verdict(Struct):
    """What became of a replay.

    fault: how it differs from the recording, at event `number`; empty if it does not.
    crash: how the machine failed at the last event, then and now; empty if it did not.
    end: why there is no more.
    """

    events: int = 0
    effects: int = 0
    seconds: float = 0.0
    end: str = ""
    crash: str = ""
    fault: str = ""
    number: int = 0


class _Reads:
    """What the machine reads while an event is handled, in the recorded order."""

    def __init__(self) -> None:
        self._due: deque[tuple[str, Raw]] = deque()
        self._steady: dict[str, Any] = {}

    def prepare(self, reads: list[tuple[str, Raw]]) -> None:
        self._due = deque(reads)

    def next(self, name: str) -> Any:
        if not self._due:
            raise Differs(f"it reads {name} of its store, which it did not then")
        recorded, value = self._due.popleft()
        if recorded != name:
            raise Differs(f"it reads {name} of its store, where it read {recorded} then")
        decoded = msgspec.msgpack.decode(value)
        if name in STEADY:
            if decoded is not None:
                self._steady[name] = READS[name](bytes(value))
            return self._steady[name]
        return READS[name](bytes(value))

    def check(self) -> None:
        if self._due:
            raise Differs(f"it does not read {self._due[0][0]} of its store, which it did then")


class _ReplayStore:
    """A page store that answers from the recording."""

    def __init__(self, reads: _Reads) -> None:
        self._reads = reads

    def __getattr__(self, name: str) -> Any:
        if name not in READS:
            raise AttributeError(name)
        return self._reads.next(name) if name in STEADY else lambda *_: self._reads.next(name)


class Player:
    """Iterate it once. Raises ConfigError if there is no recording to read at all."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.verdict = Verdict()
        self.last: Step | None = None
        """The event that was handled last, also where it led to something else than is recorded."""
        self._frames = _frames(read)
        self._reads = _Reads()
        self._tags: list[tuple[Any, ...]] = []
        try:
            first = next(self._frames, None)
        except Differs as error:
            raise ConfigError(f"this is no recording of a node: {error}") from None
        if not isinstance(first, BalancerStart | WebServerStart):
            raise ConfigError("this is no recording of a node: it does not say how one started")
        if first.version != VERSION:
            raise ConfigError(f"a recording of version {first.version}; this program reads version {VERSION}")
        self.start: BalancerStart | WebServerStart = first
        self.machine: Balancer | WebServer
        self._changes: Changes
        self._shapes = BALANCER_EVENTS if isinstance(first, BalancerStart) else WEBSERVER_EVENTS

    def __iter__(self) -> Iterator[Step]:
        verdict = self.verdict
        try:
            self._make()
            for frame in self._frames:
                if isinstance(frame, Ended):
                    verdict.end = frame.reason
                    return
                if not isinstance(frame, Happened):
                    raise Differs(f"a {type(frame).__name__} is recorded where an event should be")
                verdict.number += 1
                yield self._step(frame)
                if verdict.crash:
                    verdict.end = "the machine failed"
                    return
            verdict.end = "cut off: the node was killed, or is still running"
        except Differs as error:
            verdict.fault = str(error)
            verdict.number = verdict.events + 1

    # -- the start ------------------------------------------------------------------------------

    def _make(self) -> None:
        records: list[Record] = []
        for frame in self._frames:
            if isinstance(frame, Happened) and not frame.kind:
                self._reads.prepare(frame.reads)
                try:
                    self.machine = self._machine(self.start, records)
                except Exception as error:
                    raise Differs(f"the machine cannot be made: {type(error).__name__}: {error}") from error
                self._reads.check()
                break
            if not isinstance(frame, Records):
                raise Differs("the recording does not tell how the machine was made")
            records += frame.records
        else:
            raise Differs("the recording ends before the machine was made")
        machine = self.machine
        self._changes = LoadChanges(machine) if isinstance(machine, Balancer) else BookChanges(machine)

    def _machine(self, start: BalancerStart | WebServerStart, records: list[Record]) -> Balancer | WebServer:
        reads = self._reads
        if isinstance(start, BalancerStart):
            return Balancer(
                start.head, records, lambda _: reads.next("outcome"), lambda *_: reads.next("knows_start"),
                start.config, Random(start.seed), start.now,
            )  # fmt: skip
        store: Any = _ReplayStore(reads)
        return WebServer(start.name, store, start.endpoints, start.config, start.now)

    # -- an event --------------------------------------------------------------------------------

    def _step(self, frame: Happened) -> Step:
        verdict = self.verdict
        self._reads.prepare(frame.reads)
        event, effects, raised = self._handle(frame)
        step = self.last = Step(verdict.number, frame.now, frame.kind, event, effects, raised)
        if raised != frame.raised:
            now_did = f"fails: {raised}" if raised else "does not fail"
            raise Differs(f"it {now_did}, and then {f'it failed: {frame.raised}' if frame.raised else 'not'}")
        if not raised:
            self._compare(frame, effects)
        verdict.events += 1
        verdict.effects += len(effects)
        verdict.seconds = frame.now - self.start.now
        verdict.crash = raised
        tags = (getattr(effect, "tag", None) for effect in effects)
        self._tags += [tag for tag in tags if tag is not None]
        return step

    def _handle(self, frame: Happened) -> tuple[Any, Effects, str]:
        """The event, what the machine does at it, and how it fails, if it does."""
        try:
            event = self._event(frame)
            self._changes.put(frame.changed)
        except (*_DECODE_FAULTS, ValueError, IndexError) as error:
            raise Differs(f"this {frame.kind} cannot be read: {error}") from None
        machine = self.machine
        try:
            if isinstance(machine, Balancer) and isinstance(event, Locate):
                machine.locate(event, frame.now)
                return event, [], ""
            return event, machine.handle(event, frame.now), ""
        except Differs:
            raise
        except Exception as error:
            # Whatever it is, then and now it must be the same.
            return event, [], f"{type(error).__name__}: {error}"

    def _event(self, frame: Happened) -> Any:
        if frame.kind == COMPLAINT and isinstance(self.machine, Balancer):
            return Locate([], avoid=_decode_list(frame.fields[0]))
        shape = self._shapes.get(frame.kind)
        if shape is None or len(frame.fields) != len(shape.names):
            raise ValueError("there is no such event")
        values = [decode(bytes(raw)) for decode, raw in zip(shape.decoders, frame.fields, strict=True)]
        if "tag" in shape.names:
            place = shape.names.index("tag")
            if values[place] < 1:
                raise ValueError("it answers what was never asked")
            values[place] = self._tags[values[place] - 1]
        return shape.make(*values)

    def _compare(self, frame: Happened, effects: Effects) -> None:
        self._reads.check()
        if (len(effects), digest_of(effects)) != (frame.effects, frame.digest):
            did = ", ".join(type(effect).__name__ for effect in effects) or "nothing"
            raise Differs(f"a {frame.kind} led to {frame.effects} effects then, and now to others: {did}")


def _frames(read: Callable[[int], bytes]) -> Iterator[Frame]:
    """All frames; the last may be missing or cut off. Differs: what is there is not as it was written."""
    chain = Chain()
    while True:
        prefix = read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            return
        length, checksum = PREFIX.unpack(prefix)
        if length > FRAME_MAX_BYTES:
            raise Differs(f"the recording is damaged: a frame of {length:,} bytes")
        body = read(length)
        if len(body) < length:
            return
        if chain.next(body) != checksum:
            raise Differs("the recording is damaged or was changed: a checksum does not fit")
        try:
            frame: Frame = decode_frame(body)
        except _DECODE_FAULTS as error:
            raise Differs(f"the recording is damaged: {error}") from None
        yield frame
