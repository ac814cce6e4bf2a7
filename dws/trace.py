"""What a client says and hears, message by message, as steps that a person can follow.

What lives here: which reply belongs to which request, who the peer is, what is on
the way, and why something is asked a second time: all found in the messages alone,
so that a trace shows what crossed the sockets and not what an operation says of
itself. What must not: sockets and clocks (nodes/observed.py), which steps of a long
trace are shown (elision.py), layout (cli/trace.py).

Feed it every event of one client's calls in order; each gives one Step.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from dws.errors import TryAgain
from dws.messages import (
    NO_ROOM,
    Await,
    ClientRequest,
    Commit,
    Digests,
    Error,
    Fetch,
    Fetched,
    Locate,
    Located,
    MalformedMessage,
    PageRequest,
    Ping,
    Read,
    Reserve,
    Reserved,
    ServerRef,
    Stage,
    Staged,
    decode_reply,
)
from patterns.request_reply import HEADER_BYTES

SENT, NOT_SENT = "sent", "not sent"
REPLY, UNREADABLE, LATE, EXPIRED = "reply", "unreadable", "late", "expired"

BALANCER: Final = "balancer"
#: Requests whose reply may still come late; what failed, and what came, and may be asked for again.
_REMEMBERED_MAX: Final = 10_000

#: Requests of which a long operation sends any number.
_OF_MANY: Final = (Read, Stage, Fetch)
#: Those whose reply brings what was asked for, so that nobody asks again unless it was no good.
_BRINGS: Final = (Locate, Reserve, Fetch, Read, Digests)
#: Why they are asked again all the same, where it is not the reply's fault.
_NOT_RIGHT: Final[dict[Any, str]] = {
    Locate: "no holder was good, so all names are looked up anew",
    Reserve: "the batch is placed anew",
}

_decode_request = msgspec.msgpack.Decoder(ClientRequest | PageRequest).decode


class Step(Struct):
    """One line of a trace. `request` counts from 1, 0 is none of ours; `content` is the decoded message,
    None if it cannot be read.

    took_s: from the request until now; None for the request itself. outstanding_bytes: of a transfer,
    asked for (or sent) and not answered yet; None where no chunk is concerned. is_routine: one of many
    like it, which a short trace may leave out.
    """

    kind: str
    at_s: float
    request: int
    id: int
    peer: str
    endpoint: str
    message: str
    content: Any
    control_bytes: int
    data_bytes: int
    took_s: float | None = None
    outstanding_bytes: int | None = None
    note: str = ""
    is_new_peer: bool = False
    is_routine: bool = False


class Leg(Struct):
    """All requests of one kind to one peer. Times are since the trace began."""

    message: str
    peer: str
    requests: int = 0
    replies: int = 0
    expired: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    shortest_s: float = 0.0
    longest_s: float = 0.0
    total_s: float = 0.0
    first_at_s: float = 0.0
    last_at_s: float = 0.0

    @property
    def mean_s(self) -> float:
        return self.total_s / self.replies if self.replies else 0.0


class _Request(Struct):
    step: Step
    sent_at: float
    patience_s: float
    depth: int
    chunk_bytes: int | None
    leg: Leg


class Trace:
    """began: when the operation was begun. balancer: the endpoint that its lookups go to."""

    def __init__(self, began: float, balancer: str) -> None:
        self.legs: dict[tuple[str, str], Leg] = {}
        self.counters: Counter[str] = Counter()
        self.names: dict[int, str] = {}
        """Server number → name, as far as the balancer has told."""
        self.deepest = 0
        """The longest row of requests of which each waited for the reply to the one before."""
        self.peak_bytes = 0
        """The most that was outstanding at once."""
        self.began = began
        self._peers = {balancer: BALANCER}
        self._met: set[str] = set()
        self._outstanding_bytes = 0
        self._depth = 0
        self._pending: dict[int, _Request] = {}
        self._gone: dict[int, _Request] = {}
        self._first_id, self._last_id = 1 << 64, -1
        # What did not come: of whom, and why. What came, and of whom: asked for again, it was not right.
        self._failed: dict[Hashable, tuple[str, str]] = {}
        self._came: dict[Hashable, str] = {}
        self._last_note = ""

    # -- events ------------------------------------------------------------------------------

    def sent(
        self, now: float, request_id: int, endpoint: str, body: bytes, data_bytes: int, patience_s: float,
        *, is_on_the_way: bool = True,
    ) -> Step:  # fmt: skip
        """A request was handed to its socket, or (is_on_the_way=False) found the socket's queue full."""
        content = _decoded(_decode_request, body)
        peer = self._peers.get(endpoint, endpoint)
        self._first_id, self._last_id = min(self._first_id, request_id), max(self._last_id, request_id)
        step = self._step(SENT if is_on_the_way else NOT_SENT, now, request_id, endpoint, content)
        step.control_bytes, step.data_bytes = HEADER_BYTES + len(body), data_bytes
        step.note = self._why_again(content, peer)
        step.is_new_peer = endpoint not in self._met
        self._met.add(endpoint)
        chunk_bytes = content.length if type(content) is Read else None
        chunk_bytes = data_bytes if type(content) is Stage else chunk_bytes
        step.is_routine = is_on_the_way and self._is_like_before(step)
        leg = self._leg(step)
        leg.requests += 1
        leg.sent_bytes += step.control_bytes + data_bytes
        leg.last_at_s = step.at_s
        self._pending[request_id] = _Request(step, now, patience_s, self._depth + 1, chunk_bytes, leg)
        self.deepest = max(self.deepest, self._depth + 1)
        self._outstand(step, chunk_bytes, 1)
        return step

    def received(self, now: float, request_id: int, body: Any, data_bytes: int) -> Step:
        """The reply to a request that was waiting."""
        content = _decoded(decode_reply, body)
        request = self._pending.pop(request_id)
        step = self._about(request, UNREADABLE if content is None else REPLY, now, content)
        step.control_bytes, step.data_bytes = HEADER_BYTES + len(body), data_bytes
        self._outstand(step, request.chunk_bytes, -1)
        self._learn(content)
        failed = self._failures(request.step.content, content, step.peer)
        asked = request.step
        _remember(self._failed, failed)
        if type(asked.content) in _BRINGS:
            came = [subject for subject in _subjects(asked.content) if subject not in failed]
            _remember(self._came, dict.fromkeys(came, step.peer))
        step.is_routine = asked.is_routine and bool(asked.note) if failed else type(asked.content) in _OF_MANY
        self._add_reply(request.leg, step)
        self.counters["errors"] += type(content) is Error
        self._depth = request.depth
        return step

    def expired(self, now: float, request_id: int) -> Step:
        """Its deadline passed: nobody waits for its reply any more."""
        request = self._pending.pop(request_id)
        step = self._about(request, EXPIRED, now, request.step.content)
        self._outstand(step, request.chunk_bytes, -1)
        why = f"{_who(step.peer)} did not answer in {request.patience_s:.3g} s"
        _remember(self._failed, dict.fromkeys(_subjects(request.step.content), (step.peer, why)))
        _remember(self._gone, {request_id: request})
        step.is_routine = request.step.is_routine and bool(request.step.note)
        request.leg.expired += 1
        request.leg.last_at_s = step.at_s
        self.counters[EXPIRED] += 1
        self._depth = request.depth
        return step

    def late(self, now: float, request_id: int, endpoint: str, body: Any) -> Step:
        """A reply that nobody waits for any more; it is dropped."""
        content = _decoded(decode_reply, body)
        request = self._gone.get(request_id)
        if request is None:
            step = self._step(LATE, now, request_id, endpoint, content)
        else:
            step = self._about(request, LATE, now, content)
        step.control_bytes = HEADER_BYTES + len(body)
        self.counters[LATE] += 1
        return step

    # -- at the end ----------------------------------------------------------------------------

    def unanswered(self) -> list[Step]:
        """Requests that still wait: what the operation ended without."""
        return [request.step for request in self._pending.values()]

    def total(self, field: str) -> int:
        """A figure of all legs together."""
        return sum(getattr(leg, field) for leg in self.legs.values())

    def check(self) -> None:
        """What is outstanding is what is pending; legs and counters agree."""
        waiting = [request.chunk_bytes or 0 for request in self._pending.values()]
        assert self._outstanding_bytes == sum(waiting) <= self.peak_bytes
        assert self.total("requests") == self.total("replies") + self.total(EXPIRED) + len(waiting)
        assert self.total(EXPIRED) == self.counters[EXPIRED]
        assert max(len(self._gone), len(self._failed), len(self._came)) <= _REMEMBERED_MAX

    # -- parts ---------------------------------------------------------------------------------

    def _step(self, kind: str, now: float, request_id: int, endpoint: str, content: Any) -> Step:
        # What no request of ours has been called is not counted: a peer may make up any id.
        number = request_id - self._first_id + 1 if self._first_id <= request_id <= self._last_id else 0
        peer = self._peers.get(endpoint, endpoint)
        tag = _tag(content)
        return Step(kind, now - self.began, number, request_id, peer, endpoint, tag, content, 0, 0)

    def _about(self, request: _Request, kind: str, now: float, content: Any) -> Step:
        """A step about a request that was seen before."""
        step = self._step(kind, now, request.step.id, request.step.endpoint, content)
        step.took_s = now - request.sent_at
        return step

    def _leg(self, step: Step) -> Leg:
        leg = self.legs.get((step.message, step.endpoint))
        if leg is None:
            leg = self.legs[step.message, step.endpoint] = Leg(step.message, step.peer)
            leg.first_at_s = step.at_s
        return leg

    def _add_reply(self, leg: Leg, step: Step) -> None:
        took_s = step.took_s or 0.0
        leg.shortest_s = min(leg.shortest_s, took_s) if leg.replies else took_s
        leg.longest_s = max(leg.longest_s, took_s)
        leg.total_s += took_s
        leg.replies += 1
        leg.received_bytes += step.control_bytes + step.data_bytes
        leg.last_at_s = step.at_s

    def _outstand(self, step: Step, chunk_bytes: int | None, sign: int) -> None:
        if chunk_bytes is not None:
            self._outstanding_bytes += sign * chunk_bytes
            self.peak_bytes = max(self.peak_bytes, self._outstanding_bytes)
            step.outstanding_bytes = self._outstanding_bytes

    def _learn(self, content: Any) -> None:
        """Names of servers, which lookups and placements bring."""
        servers: Iterable[ServerRef] = ()
        if type(content) is Located:
            servers = content.servers or ()
        elif type(content) is Reserved and content.primary is not None:
            servers = (content.primary, *content.backups)
        for server in servers:
            self.names[server.number] = server.name
            self._peers[server.endpoint] = server.name

    # -- why again -------------------------------------------------------------------------------

    def _failures(self, asked: Any, content: Any, peer: str) -> dict[Hashable, tuple[str, str]]:
        """What of a request its reply does not bring, with who failed and why."""
        subjects = _subjects(asked)
        if content is None:
            return dict.fromkeys(subjects, (peer, f"what {_who(peer)} said cannot be read"))
        if type(content) is Error:
            wait = f" in {content.retry_s:g} s" if content.code == TryAgain.code and content.retry_s else ""
            return dict.fromkeys(subjects, (peer, f"{_who(peer)} said {content.code}{wait}"))
        if type(content) is Fetched:
            pairs = zip(subjects, content.sizes, strict=False)
            return {subject: (peer, _why_not(peer, size)) for subject, size in pairs if size < 0}
        if type(content) is Located and content.later:
            return dict.fromkeys(subjects, (peer, "no holder was ready"))
        if type(content) is Staged and type(asked) is Stage and asked.parts:
            last = asked.parts[-1]
            if content.have < last.offset + last.length:
                return dict.fromkeys(subjects, (peer, f"{peer} has less so far"))
        return {}

    def _why_again(self, content: Any, peer: str) -> str:
        """Why this was asked for before and is again; empty if it was not."""
        for subject in _subjects(content):
            if subject in self._failed:
                other, why = self._failed.pop(subject)
            elif subject in self._came:
                other = self._came.pop(subject)
                why = _NOT_RIGHT.get(type(content), f"what {_who(other)} sent was not right")
            else:
                continue
            is_moved = other not in (peer, BALANCER)
            self.counters["moved" if is_moved else "repeated"] += 1
            return f"now of {peer}: {why}" if is_moved else f"again: {why}"
        return ""

    def _is_like_before(self, step: Step) -> bool:
        """One of many requests, or what was asked for again, for the same reason as the time before."""
        before, self._last_note = self._last_note, step.note
        return step.note == before if step.note else type(step.content) in _OF_MANY


def _decoded(decode: Any, body: Any) -> Any:
    try:
        return decode(body)
    except MalformedMessage:
        return None


def _tag(content: Any) -> str:
    return "?" if content is None else str(content.__struct_config__.tag)


def _remember(table: dict[Any, Any], more: dict[Any, Any]) -> None:
    """Into a table that forgets its oldest."""
    table |= more
    while len(table) > _REMEMBERED_MAX:
        del table[next(iter(table))]


def _who(peer: str) -> str:
    return f"the {peer}" if peer == BALANCER else peer


def _why_not(peer: str, size: int) -> str:
    return f"no room in {peer}'s reply" if size == NO_ROOM else f"{peer} does not hold it"


def _subjects(content: Any) -> list[Hashable]:
    """What a request asks for: the same subject in a later request is the same thing asked for again."""
    match content:
        case Fetch():
            return [("page", name, version) for name, version in content.pages]
        case Read():
            return [("chunk", content.name, content.version, content.offset)]
        case Digests():
            return [("digests", content.name, content.version)]
        case Stage():
            return [("part", content.batch, part.page, part.offset) for part in content.parts]
        case Reserve() | Commit() | Await():
            return [(_tag(content), content.batch)]
        case Locate():
            return [("locate", *content.names)]
        case Ping():
            return [("ping",)]
    return []
