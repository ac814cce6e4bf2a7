"""Strict request/reply over DEALER-ROUTER: every request has an id and gets one reply, or none in time.

What lives here: the frame that carries a request or a reply, the requester's
table of what it waits for, and the replier's table of what it owes. What must
not: sockets, clocks, what a body means.

Guarantees
  - `Requester.receive` hands out exactly one reply for each request, or
    `expire` hands out the request once; never both, never twice.
  - A late, repeated or foreign reply is a counted drop.
  - `Replier.resolve` answers what `defer` took in exactly once; a second answer
    is a LocalError. What is owed is bounded, in all and for each peer.
What it cannot promise: that a request was not executed because no reply came,
or that a request sent again is executed once. Requests must be safe to repeat.

Frame 0 of every message, big endian, then the body in the same frame (one frame
less to receive is 1 µs less); frames after it are bulk data:

  0  u8   signature 0xD7
  1  u8   version 1
  2  u8   kind: 1 request, 2 reply
  3  u8   0
  4  u64  request id, chosen by the requester
  12 16 B realm: which service or cluster is meant; zeros: not known yet
  28      body

Descends from the zguide's "Lazy Pirate" and "asynchronous client/server"; ids and
deadlines replace REQ's lock-step, so that a lost reply costs one deadline.
"""

import heapq
import struct
from collections import Counter, deque
from typing import Any, Final, Generic, TypeVar

from patterns.errors import LocalError, RemoteError

SIGNATURE: Final = 0xD7
VERSION: Final = 1
REQUEST: Final = 1
REPLY: Final = 2
HEADER: Final = struct.Struct(">BBBBQ16s")
HEADER_BYTES: Final = HEADER.size
NO_REALM: Final = bytes(16)

_REQUEST_PREFIX: Final = bytes((SIGNATURE, VERSION, REQUEST, 0))
_REPLY_PREFIX: Final = bytes((SIGNATURE, VERSION, REPLY, 0))
_ID_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
_HISTORY: Final = 32
#: Deadlines of requests that were answered are kept until they outnumber the others by this.
_STALE_MAX: Final = 64

AWAITED = "awaited"
ANSWERED, EXPIRED, CANCELLED = "answered", "expired", "cancelled"

#: (state of a request, event) → state, on the asking side. Its table holds what is awaited; the other
#: states are ends, after which a reply under this id is a counted drop.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (AWAITED, "reply"): ANSWERED,
    (AWAITED, "deadline"): EXPIRED,
    (AWAITED, "cancel"): CANCELLED,
}

Tag = TypeVar("Tag")
Peer = TypeVar("Peer")


class Requester(Generic[Tag]):
    """The asking side, for any number of sockets of one thread.

    first_id: ids rise from here; random, so that a restarted process does not
        take its predecessor's late replies for its own.
    realm: named in every request; zeros are replaced by the realm of the first
        reply if learn_realm is set.
    pending_max: requests awaited at once; one more is a LocalError, since the
        caller is expected to hold its work back.
    """

    def __init__(
        self, first_id: int, realm: bytes = NO_REALM, pending_max: int = 65_536, *, learn_realm: bool = False
    ) -> None:
        if not 0 <= first_id <= _ID_MAX:
            raise LocalError(f"first_id {first_id} has more than 64 bits")
        self.realm = realm
        self.counters: Counter[str] = Counter()
        self._learns = learn_realm and realm == NO_REALM
        self._next_id = first_id
        self._pending_max = pending_max
        self._pending: dict[int, tuple[float, Tag]] = {}
        self._deadlines: list[tuple[float, int]] = []
        # (what happened, id): made into text only when an error wants it.
        self._recent: deque[tuple[str, int]] = deque(maxlen=_HISTORY)

    def __len__(self) -> int:
        return len(self._pending)

    def request(self, body: bytes, tag: Tag, deadline: float) -> tuple[int, bytes]:
        """(id, frame 0) of a new request. `tag` comes back with its reply or its expiry."""
        if len(self._pending) >= self._pending_max:
            raise LocalError(f"more than {self._pending_max} requests pending", self._history())
        request_id = self._next_id
        self._next_id = (request_id + 1) & _ID_MAX
        self._pending[request_id] = (deadline, tag)
        heapq.heappush(self._deadlines, (deadline, request_id))
        if len(self._deadlines) > 2 * len(self._pending) + _STALE_MAX:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._pending]
            heapq.heapify(self._deadlines)
        return request_id, _REQUEST_PREFIX + request_id.to_bytes(8, "big") + self.realm + body

    def receive(self, frame: bytes) -> tuple[int, Tag, memoryview] | None:
        """(id, tag, body) of an awaited reply. None for one that nobody waits for any more.

        Raises RemoteError if the frame is no reply at all.
        """
        if len(frame) < HEADER_BYTES or frame[:4] != _REPLY_PREFIX:
            self.counters["malformed"] += 1
            raise RemoteError(f"not a reply: {frame[:HEADER_BYTES].hex()}", self._history())
        request_id = int.from_bytes(frame[4:12], "big")
        pending = self._end(request_id, "reply")
        if pending is None:
            self.counters["unawaited"] += 1
            self._recent.append(("unawaited reply", request_id))
            return None
        if self._learns:
            self.realm = frame[12:HEADER_BYTES]
            self._learns = self.realm == NO_REALM
        return request_id, pending[1], memoryview(frame)[HEADER_BYTES:]

    def cancel(self, request_id: int) -> None:
        """Wait no longer for this request; its reply becomes a counted drop."""
        self._end(request_id, "cancel")

    def expire(self, now: float) -> list[tuple[int, Tag]]:
        """Requests whose deadline has passed, each handed out once."""
        expired = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            request_id = heapq.heappop(deadlines)[1]
            waiting = self._end(request_id, "deadline")
            if waiting is not None:
                expired.append((request_id, waiting[1]))
        return expired

    def wake_at(self) -> float | None:
        """When `expire` next has something to say."""
        deadlines, pending = self._deadlines, self._pending
        while deadlines and deadlines[0][1] not in pending:
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def _end(self, request_id: int, event: str) -> tuple[float, Tag] | None:
        """Take an awaited request off the table; None if it is awaited no longer."""
        if request_id not in self._pending:
            return None
        self._recent.append((TRANSITIONS[AWAITED, event], request_id))
        return self._pending.pop(request_id)

    def _history(self) -> list[str]:
        return [f"{event} {request_id}" for event, request_id in self._recent]

    def check(self) -> None:
        """Every awaited request has a deadline; the tables keep their bounds."""
        assert len(self._pending) <= self._pending_max
        assert len(self._deadlines) <= 2 * self._pending_max + _STALE_MAX
        assert set(self._pending) <= {request_id for _, request_id in self._deadlines}


class Replier(Generic[Peer]):
    """The answering side of one ROUTER. A deferred request is owed an answer until it is resolved, and that
    is all: what is answered at once leaves no trace, so there is no table of transitions.

    owed_max, owed_max_peer: deferred answers kept at once, in all and for each
        peer. Past that `defer` raises RemoteError, and the request is answered
        with an error at once.
    """

    def __init__(self, realm: bytes = NO_REALM, owed_max: int = 65_536, owed_max_peer: int = 4_096) -> None:
        self.realm = realm
        self.counters: Counter[str] = Counter()
        self._owed_max = owed_max
        self._owed_max_peer = owed_max_peer
        self._owed: dict[int, tuple[Peer, bytes]] = {}
        self._owed_by: Counter[Peer] = Counter()
        self._next_token = 1
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def __len__(self) -> int:
        return len(self._owed)

    def receive(self, frame: bytes) -> memoryview:
        """The body of a request; RemoteError if the frame is none of this version."""
        if len(frame) < HEADER_BYTES or frame[:4] != _REQUEST_PREFIX:
            self.counters["malformed"] += 1
            raise RemoteError(f"not a request: {frame[:HEADER_BYTES].hex()}", self._history)
        return memoryview(frame)[HEADER_BYTES:]

    def realm_matches(self, frame: bytes) -> bool:
        """False if the request names another realm than ours; zeros on either side match."""
        realm = frame[12:HEADER_BYTES]
        return realm == self.realm or NO_REALM in (realm, self.realm)

    def reply(self, request: bytes, body: bytes) -> bytes:
        """Frame 0 of the answer to a request that is answered at once."""
        return _REPLY_PREFIX + request[4:12] + self.realm + body

    def defer(self, peer: Peer, request: bytes) -> int:
        """Owe this request an answer; the token for `resolve`. RemoteError over a bound."""
        if len(self._owed) >= self._owed_max or self._owed_by[peer] >= self._owed_max_peer:
            self.counters["over-bound"] += 1
            raise RemoteError("too many requests await an answer", self._history)
        token = self._next_token
        self._next_token += 1
        self._owed[token] = (peer, request[4:12])
        self._owed_by[peer] += 1
        self._history.append(f"deferred {token}")
        return token

    def resolve(self, token: int, body: bytes) -> tuple[Peer, bytes]:
        """(peer, frame 0) of the answer. LocalError if the token was resolved before."""
        owed = self._owed.pop(token, None)
        if owed is None:
            raise LocalError(f"token {token} is not owed an answer", self._history)
        peer, request_id = owed
        self._owed_by[peer] -= 1
        if not self._owed_by[peer]:
            del self._owed_by[peer]
        self._history.append(f"resolved {token}")
        return peer, _REPLY_PREFIX + request_id + self.realm + body

    def check(self) -> None:
        """Counts by peer agree with what is owed, within the bounds."""
        assert len(self._owed) <= self._owed_max
        by_peer: Counter[Any] = Counter(peer for peer, _ in self._owed.values())
        assert by_peer == +self._owed_by


def request_id_of(frame: bytes) -> int | None:
    """The id in any version's frame: its place is fixed for ever, so that even an
    unreadable request can be told why. None if the frame is too short to have one."""
    if len(frame) < 12 or frame[0] != SIGNATURE:
        return None
    return int.from_bytes(frame[4:12], "big")
