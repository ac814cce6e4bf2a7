"""What stands between a shell and its machine while what happens is recorded.

What lives here: `Recorder`. What must not: the format (recording.py), and files:
frames go to a `Sink` (nodes/recording.py).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw, Struct

from dws.balancer import Balancer
from dws.effects import Effects
from dws.messages import Locate, Located, Record
from dws.sim.recording import (
    COMPLAINT,
    FRAME_MAX_BYTES,
    NOTHING,
    PAGE_STORE_NAMES,
    PREFIX,
    STEADY,
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
    digest_of,
    encode,
)
from dws.store import PageStore
from dws.webserver import WebServer

_RECORDS_A_FRAME: Final = 1_000
_TEXT_MAX: Final = 2_000


class Sink(Protocol):
    def write(self, frame: bytes) -> bool:
        """False: it was not written, and only the last frame will be."""

    def finish(self, frame: bytes, reason: str) -> None:
        """The last frame, for which there is always room."""

    def flush(self) -> None: ...


class Recorder:
    """Between a shell and its machine: `handle` instead of the machine's own.

    1. Make one with the start.
    2. Make the machine of `records(…)`, `noting(…)` or `reading(…)` of its store.
    3. `begin(machine)`; from then on `handle`, and a balancer's `locate`.
    4. `end(reason)`.
    Once the sink takes no more, only the machine is left.
    """

    def __init__(self, sink: Sink, start: BalancerStart | WebServerStart) -> None:
        self._sink = sink
        self._chain = Chain()
        self._recording = True
        self._machine: Any = None
        self._inside = True  # so that what the machine reads while it is made is noted
        self._reads: list[tuple[str, Raw]] = []
        self._steady: dict[str, Any] = {}
        self._tags: dict[int, _Tag] = {}
        self._tags_given = 0
        self._changes: Changes | None = None
        self._start = start
        self._write(start)

    # -- what the machine is made of -----------------------------------------------------

    def records(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same, recorded on their way into the machine."""
        group: list[Record] = []
        for record in records:
            group.append(record)
            if len(group) == _RECORDS_A_FRAME:
                self._write(Records(group))
                group = []
            yield record
        if group:
            self._write(Records(group))

    def noting(self, name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        """The same reading method, its answers recorded while an event is handled."""

        def noted(*arguments: Any) -> Any:
            value = read(*arguments)
            if self._inside:
                self._reads.append((name, Raw(encode(value))))
            return value

        return noted

    def reading(self, store: PageStore) -> PageStore:
        """The same store, what the machine reads of it recorded while an event is handled."""
        recorded: Any = _ReadStore(self, store)
        return recorded  # type: ignore[no-any-return]

    def note_steady(self, name: str, value: Any) -> None:
        if self._inside:
            known = self._steady.get(name, self)
            self._steady[name] = value
            self._reads.append((name, NOTHING if known == value else Raw(encode(value))))

    def begin(self, machine: Balancer | WebServer) -> None:
        self._machine = machine
        self._inside = False
        self._changes = LoadChanges(machine) if isinstance(machine, Balancer) else BookChanges(machine)
        self._note("", self._start.now, [], NOTHING, [])
        self._sink.flush()

    # -- what happens to it ----------------------------------------------------------------

    def handle(self, event: Any, now: float) -> Effects:
        """The machine's, and noted."""
        if not self._recording:
            effects: Effects = self._machine.handle(event, now)
            return effects
        assert self._changes is not None
        changed = self._changes.take()
        fields = self._fields(event)
        kind = type(event).__name__
        self._inside = True
        try:
            effects = self._machine.handle(event, now)
        except BaseException as error:
            self._note(kind, now, fields, changed, [], f"{type(error).__name__}: {error}"[:_TEXT_MAX])
            self._sink.flush()
            raise
        finally:
            self._inside = False
        self._changes.settle()
        self._note(kind, now, fields, changed, effects)
        for effect in effects:
            tag = getattr(effect, "tag", None)
            if tag is not None:
                self._give(tag)
        if kind == "Tick":
            self._sink.flush()
        return effects

    def locate(self, request: Locate, now: float) -> Located:
        """A balancer's, which is not noted unless it complains."""
        if request.avoid and self._recording:
            assert self._changes is not None
            changed = self._changes.take()
            self._note(COMPLAINT, now, [Raw(encode(request.avoid))], changed, [])
        located: Located = self._machine.locate(request, now)
        return located

    def end(self, reason: str) -> None:
        """Nothing is recorded any more, for a reason that the recording tells."""
        if self._recording:
            self._recording = False
            self._tags.clear()
            body = encode(Ended(reason))
            self._sink.finish(PREFIX.pack(len(body), self._chain.next(body)) + body, reason)

    def _fields(self, event: Any) -> list[Raw]:
        """Before the event is handled, since the machine may keep and change what is in it."""
        return [
            Raw(encode(self._take_back(value) if name == "tag" else value))
            for name, value in zip(event.__struct_fields__, msgspec.structs.astuple(event), strict=True)
        ]

    def _note(
        self, kind: str, now: float, fields: list[Raw], changed: Raw, effects: Effects, raised: str = ""
    ) -> None:
        reads, self._reads = self._reads, []
        self._write(Happened(kind, now, fields, changed, reads, len(effects), digest_of(effects), raised))

    def _write(self, frame: Frame) -> None:
        if not self._recording:
            return
        body = encode(frame)
        if len(body) > FRAME_MAX_BYTES:
            self.end(f"an event of {len(body):,} bytes, over the bound of {FRAME_MAX_BYTES:,}")
            return
        before = self._chain.last
        if not self._sink.write(PREFIX.pack(len(body), self._chain.next(body)) + body):
            self._chain.last = before
            self.end("the recording is as long as it may be")

    # -- tags ------------------------------------------------------------------------------

    def _give(self, tag: tuple[Any, ...]) -> None:
        self._tags_given += 1
        # Several effects may carry one and the same tuple; which of them is answered makes no difference.
        given = self._tags.setdefault(id(tag), _Tag(tag, 0, 0))
        given.number = self._tags_given
        given.open += 1

    def _take_back(self, tag: tuple[Any, ...]) -> int:
        given = self._tags.get(id(tag))
        if given is None:
            self.end("an answer came to nothing that the machine had asked")
            return 0
        given.open -= 1
        if not given.open:
            del self._tags[id(tag)]
        return given.number


class _Tag(Struct):
    tag: tuple[Any, ...]  # keeps the tuple, and so its id, alive
    number: int
    open: int


class _ReadStore:
    """A page store, every read of which is noted."""

    def __init__(self, recorder: Recorder, store: PageStore) -> None:
        self._recorder = recorder
        self._store = store
        for name in PAGE_STORE_NAMES:
            if name not in STEADY:
                setattr(self, name, recorder.noting(name, getattr(store, name)))

    @property
    def identity(self) -> Any:
        value = self._store.identity
        self._recorder.note_steady("identity", value)
        return value

    @property
    def number(self) -> int:
        value = self._store.number
        self._recorder.note_steady("number", value)
        return value

    def get_each(self, pages: Iterable[tuple[str, int]]) -> Iterator[bytes | None]:
        return self._store.get_each(pages)
