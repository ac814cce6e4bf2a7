"""A catalog made anew from what the servers hold, when the balancer's disk is lost.

What lives here: reading every server's manifest, and the rule: the highest
version of each name is visible. What must not: disks and sockets; the same shell
as the balancer's runs this machine in its place.

What it cannot know, and says: pages that were removed may return, and a put that
failed or was overtaken may stand in place of the visible one where its record
was not dropped yet.
"""

from collections import Counter
from collections.abc import Callable
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
#: Decision numbers jump, too, past every number that an absent server may have been told.
_DECISION_STEP: Final = 1 << 32


class _Source(Struct):
    number: int
    hello: Hello
    bucket: int = 0
    cursor: bytes = b""
    asked: int = 0

    @property
    def done(self) -> bool:
        return self.bucket == MANIFEST_BUCKETS


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
        source = self._sources[hello.server] = _Source(number, hello)
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
            if source.number == number and source.asked == asked and not source.done:
                return source
        return None

    def _answered(self, event: Answered, now: float) -> Effects:
        source = self._by_tag(event.tag)
        if source is None:
            return []
        answer = event.message
        if not isinstance(answer, ManifestPage) or answer.bucket != source.bucket:
            return [self._ask(source)]
        for record in answer.records:
            best = self._records.get(record.name)
            if best is None or record.version > best.version:
                self._records[record.name] = record
        source.cursor = answer.after
        if not answer.after:
            source.bucket += 1
        self._news_at = now
        return [] if source.done else [self._ask(source)]

    def _unanswered(self, event: Unanswered, now: float) -> Effects:
        source = self._by_tag(event.tag)
        return [self._ask(source)] if source else []

    def _tick(self, event: Tick, now: float) -> Effects:
        self._next_tick = now + _TICK_S
        waiting = [source for source in self._sources.values() if not source.done]
        quiet = now - self._news_at >= self._config.rebuild_quiet_s
        if self._finished or not self._sources or waiting or not quiet:
            return []
        self._finished = True
        return [*self._summary(), self._result()]

    def _summary(self) -> Effects:
        absent = [known.name for key, known in self._expected.items() if key not in self._sources]
        effects: Effects = [
            Log("info", f"rebuilt from {len(self._sources)} servers: {len(self._records)} pages"),
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
