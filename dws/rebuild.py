"""A catalog made anew from what the servers hold, when the balancer's disk is lost.

What lives here: reading every server's manifest, and the rule: the highest
version of each name is visible; for whom it waits, and for how long. What must
not: disks and sockets; the same shell as the balancer's runs this machine in its
place.

A server's records count when all of them were read: half a manifest may show half
a batch. One that falls silent is waited for by name, then left out like one that
never came; what it holds stays on its disk (garbage.py). A catalog is never made
of nothing.

What it cannot know, and says: pages that were removed may return, and a put that
failed or was overtaken may stand in place of the visible one where its record
was not dropped yet.
"""

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any, Final

from msgspec import Struct

from dws.config import Config
from dws.effects import Answer, Ask, Connect, Effects, Log, Rebuilt
from dws.errors import TryAgain, WrongCluster
from dws.events import Answered, ClientAsked, Event, ServerAsked, Tick, Unanswered
from dws.limits import MANIFEST_BUCKETS, MANIFEST_MAX_RECORDS, REBUILD_EPOCH_STEP
from dws.messages import Error, Hello, Locate, Manifest, ManifestPage, Record
from dws.store import KnownServer

_TICK_S: Final = 0.1
_ANSWER_S: Final = 5.0
_RETRY_S: Final = 0.5
#: How often it says how far it is, and for whom it waits.
PROGRESS_S: Final = 5.0
#: Decision numbers jump, too, past every number that an absent server may have been told.
_DECISION_STEP: Final = 1 << 32


class _Source(Struct):
    """One life of a server, being read."""

    number: int
    hello: Hello
    heard_at: float
    """When it came, or sent the last page."""
    bucket: int = 0
    cursor: bytes = b""
    asked: int = 0
    retry_at: float = inf
    records: list[Record] = []
    absent: bool = False
    fault: str = ""
    """Why it is not read at all in this life."""

    @property
    def done(self) -> bool:
        return self.bucket == MANIFEST_BUCKETS

    @property
    def awaited(self) -> bool:
        return not (self.done or self.absent or self.fault)


class Rebuild:
    """epoch, expected: of the catalog that is to be replaced, if there is one (0 and none else)."""

    def __init__(
        self, epoch: int, expected: list[KnownServer], config: Config, new_cluster: bytes, now: float
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._epoch = epoch
        self._expected = {known.server: known for known in expected}
        self._config = config
        self._new_cluster = new_cluster
        self._cluster = b""
        self._sources: dict[bytes, _Source] = {}
        self._records: dict[str, Record] = {}
        self._news_at = now
        self._next_tick = now
        self._progress_at = now + PROGRESS_S
        self._finished = False
        self._handlers: dict[type[Any], Callable[[Any, float], Effects]] = {
            ClientAsked: self._client_asked,
            ServerAsked: self._server_asked,
            Answered: self._answered,
            Unanswered: self._unanswered,
            Tick: self._tick,
        }

    def handle(self, event: Event, now: float) -> Effects:
        handler = self._handlers.get(type(event))
        return handler(event, now) if handler else []

    def wake_at(self) -> float:
        return self._next_tick

    def locate(self, request: Locate, now: float) -> Error:
        return _not_yet()

    def _client_asked(self, event: ClientAsked, now: float) -> Effects:
        return [Answer(event.token, _not_yet())]

    def _server_asked(self, event: ServerAsked, now: float) -> Effects:
        hello = event.message
        if not isinstance(hello, Hello):
            return [Answer(event.token, _not_yet())]
        if hello.cluster and self._cluster and hello.cluster != self._cluster:
            text = f"left out: {hello.name} is of cluster {hello.cluster.hex()}, not {self._cluster.hex()}"
            return [Answer(event.token, Error(WrongCluster.code, text, 1.0)), Log("error", text)]
        self._cluster = self._cluster or hello.cluster
        effects: Effects = [Answer(event.token, _not_yet())]
        source = self._sources.get(hello.server)
        if source is not None and source.hello.incarnation == hello.incarnation:
            return effects
        number = source.number if source else self._number_of(hello)
        source = self._sources[hello.server] = _Source(number, hello, now)
        self._news_at = now
        effects.append(Log("info", f"reading {hello.pages} records of {hello.name}"))
        effects.append(Connect(number, hello.pages_endpoint, hello.jobs_endpoint))
        return [*effects, self._ask(source)]

    def _number_of(self, hello: Hello) -> int:
        known = self._expected.get(hello.server)
        if known is not None:
            return known.number
        taken = [known.number for known in self._expected.values()]
        taken += [source.number for source in self._sources.values()]
        return max(taken, default=0) + 1

    def _ask(self, source: _Source) -> Ask:
        source.asked += 1
        question = Manifest(source.hello.incarnation, source.bucket, source.cursor, MANIFEST_MAX_RECORDS)
        return Ask(source.number, question, ("manifest", source.number, source.asked), _ANSWER_S)

    def _by_tag(self, tag: tuple[Any, ...]) -> _Source | None:
        _, number, asked = tag
        for source in self._sources.values():
            if source.number == number and source.asked == asked and not (source.done or source.fault):
                return source
        return None

    def _answered(self, event: Answered, now: float) -> Effects:
        source = self._by_tag(event.tag)
        if source is None:
            return []
        answer = event.message
        if not isinstance(answer, ManifestPage) or answer.bucket != source.bucket:
            # A server that has just started again says so by its hello.
            source.retry_at = now + _RETRY_S
            return []
        if answer.after and answer.after <= source.cursor:
            source.fault = f"the cursor of its manifest does not rise in bucket {answer.bucket}"
            source.records = []
            text = f"left out: {source.hello.name}: {source.fault}. Start it again, or mend it"
            return [Log("error", text)]
        source.heard_at = self._news_at = now
        source.absent = False
        source.records += answer.records
        source.cursor = answer.after
        if not answer.after:
            source.bucket += 1
        if source.done:
            self._take_in(source)
            return []
        return [self._ask(source)]

    def _take_in(self, source: _Source) -> None:
        for record in source.records:
            best = self._records.get(record.name)
            if best is None or record.version > best.version:
                self._records[record.name] = record
        source.records = []

    def _unanswered(self, event: Unanswered, now: float) -> Effects:
        source = self._by_tag(event.tag)
        return [self._ask(source)] if source else []

    # -- time ------------------------------------------------------------------------------

    def _tick(self, event: Tick, now: float) -> Effects:
        self._next_tick = now + _TICK_S
        if self._finished:
            return []
        effects: Effects = []
        for source in self._sources.values():
            effects += self._look_after(source, now)
        awaited = any(source.awaited for source in self._sources.values())
        quiet = now - self._news_at >= self._config.rebuild_quiet_s
        if awaited or not quiet or not self._read():
            return effects + self._progress(now)
        self._finished = True
        return [*effects, *self._summary(), self._result()]

    def _look_after(self, source: _Source, now: float) -> Effects:
        effects: Effects = []
        if now >= source.retry_at:
            source.retry_at = inf
            effects.append(self._ask(source))
        silent_s = now - source.heard_at
        if source.awaited and silent_s >= self._config.rebuild_absent_s:
            source.absent = True
            text = f"{source.hello.name} has sent nothing of its manifest for {silent_s:.0f} s: "
            effects.append(Log("warning", f"{text}it is left out, unless it answers before the end"))
        return effects

    def _read(self) -> list[_Source]:
        return [source for source in self._sources.values() if source.done]

    def _progress(self, now: float) -> Effects:
        if now < self._progress_at:
            return []
        self._progress_at = now + PROGRESS_S
        awaited = [source for source in self._sources.values() if source.awaited]
        text = f"{len(self._read())} servers read, {len(self._records)} pages"
        if awaited:
            each = [f"{source.hello.name} ({self._standing(source, now)})" for source in awaited]
            bound_s = self._config.rebuild_absent_s
            text += f"; waits for {', '.join(each)}: one that is dead, start it again; after {bound_s:.0f} s "
            text += "of silence it is left out"
        if not awaited and not self._read():
            missing = ", ".join([*self._left_out(), *self._never_came()]) or "web servers"
            text = f"no server could be read; waits for {missing}: start them"
        elif self._never_came():
            text += f"; not here: {', '.join(self._never_came())}"
        return [Log("info", f"{text}. Ctrl-C ends the rebuild and changes nothing")]

    def _standing(self, source: _Source, now: float) -> str:
        silent_s = now - source.heard_at
        silence = f", silent for {silent_s:.0f} s" if silent_s >= 1 else ""
        return f"{source.bucket} of {MANIFEST_BUCKETS} parts{silence}"

    def _left_out(self) -> list[str]:
        return [source.hello.name for source in self._sources.values() if source.absent or source.fault]

    def _never_came(self) -> list[str]:
        return [known.name for key, known in self._expected.items() if key not in self._sources]

    def _summary(self) -> Effects:
        absent = [*self._left_out(), *self._never_came()]
        effects: Effects = [
            Log("info", f"rebuilt from {len(self._read())} servers: {len(self._records)} pages"),
            Log("warning", "pages that were removed may have returned, and a put that failed or was"),
            Log("warning", "overtaken may stand in place of the visible one: mend by rm or put"),
        ]
        if absent:
            text = f"not read, since absent: {', '.join(absent)}; what only they hold is kept and reported"
            effects.append(Log("warning", text))
        return effects

    def _result(self) -> Rebuilt:
        hellos = [source.hello for source in self._sources.values()]
        epoch = max(self._epoch, *(hello.start_epoch for hello in hellos))
        servers = dict(self._expected)
        for source in self._sources.values():
            servers[source.hello.server] = KnownServer(source.number, source.hello.server, source.hello.name)
        return Rebuilt(
            self._cluster or self._new_cluster,
            epoch + REBUILD_EPOCH_STEP,
            max(hello.decision for hello in hellos) + _DECISION_STEP,
            [(hello.start_epoch, hello.start_nonce) for hello in hellos if hello.cluster],
            list(servers.values()),
            list(self._records.values()),
        )


def _not_yet() -> Error:
    return Error(TryAgain.code, "the catalog is being rebuilt", _RETRY_S)
