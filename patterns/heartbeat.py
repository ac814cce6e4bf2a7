"""Heartbeats over PUB/SUB: who is alive, who is suspect, who is dead.

What lives here: the beat's frame, and the watcher's table of peers. What must
not: sockets, clocks, what a beat's body says.

Guarantees
  - A peer that beats is alive; one silent for suspect_s, or whose connection is
    reported down, is suspect; one silent for dead_s, or down and silent for
    down_dead_s, is dead. Each change is told once.
  - Beats of an older incarnation, or repeated or reordered within one, never
    bring a peer back; gaps in the sequence are counted.
  - A watcher that was itself not running for a while accuses nobody for it: the
    time it slept is not counted as the peers' silence.
What it cannot promise: that a silent peer has stopped. Suspicion is a hint.

Frame, big endian:
  0  u8   signature 0xD8      4  16 B realm            44 u64 sequence
  1  u8   version 1           20 16 B peer             52     body
  2  u16  0                   36 u64  incarnation

Descends from the zguide's "Paranoid Pirate"; sequence numbers make PUB's silent
drops visible, incarnations tell a restart from a hiccup.
"""

import struct
from collections import Counter, deque
from typing import Final

from patterns.errors import LocalError, RemoteError

SIGNATURE: Final = 0xD8
VERSION: Final = 1
HEADER: Final = struct.Struct(">BBH16s16sQQ")
HEADER_BYTES: Final = HEADER.size

ALIVE, SUSPECT, DEAD = "alive", "suspect", "dead"
BEAT, SILENT, DOWN, UP, LOST = "beat", "silent", "down", "up", "lost"

#: (state, event) → state. What is not here leaves the state as it is.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (ALIVE, SILENT): SUSPECT,
    (ALIVE, DOWN): SUSPECT,
    (SUSPECT, BEAT): ALIVE,
    (SUSPECT, LOST): DEAD,
    (DEAD, BEAT): ALIVE,
}

_HISTORY: Final = 32
_GAP_MAX: Final = 1 << 20


class Beater:
    """The publishing side of one peer."""

    def __init__(self, realm: bytes, peer: bytes, incarnation: int) -> None:
        self.realm = realm
        self._peer = peer
        self._incarnation = incarnation
        self._sequence = 0

    def beat(self, body: bytes) -> bytes:
        self._sequence += 1
        header = HEADER.pack(SIGNATURE, VERSION, 0, self.realm, self._peer, self._incarnation, self._sequence)
        return header + body


def parse(frame: bytes) -> tuple[bytes, bytes, int, int, memoryview]:
    """(realm, peer, incarnation, sequence, body); RemoteError if it is no beat."""
    if len(frame) < HEADER_BYTES:
        raise RemoteError(f"a beat of {len(frame)} bytes is too short")
    signature, version, _, realm, peer, incarnation, sequence = HEADER.unpack_from(frame)
    if (signature, version) != (SIGNATURE, VERSION):
        raise RemoteError(f"not a beat: {frame[:4].hex()}")
    return realm, peer, incarnation, sequence, memoryview(frame)[HEADER_BYTES:]


class _Peer:
    __slots__ = ("down_since", "heard", "incarnation", "sequence", "state")

    def __init__(self, incarnation: int, now: float) -> None:
        self.incarnation = incarnation
        self.sequence = 0
        self.state = ALIVE
        self.heard = now
        self.down_since: float | None = None


class Watcher:
    """The subscribing side: states of all peers.

    suspect_s: silence until suspect. At least two beat intervals, or one lost
        beat accuses; smaller notices a hang sooner.
    down_dead_s: a connection reported down for this long is dead. Longer than a
        process restart, or every restart causes copying.
    dead_s: silence until dead while the connection stands (a hung process).
    asleep_s: a longer pause between two polls was the watcher's own. `wake_at`
        asks for a poll twice in that time while there are peers.
    """

    def __init__(self, suspect_s: float, down_dead_s: float, dead_s: float, asleep_s: float = 0.5) -> None:
        if not 0 < suspect_s < dead_s or not 0 < down_dead_s <= dead_s:
            raise LocalError("wanted: 0 < suspect_s < dead_s and 0 < down_dead_s <= dead_s")
        self._suspect_s = suspect_s
        self._down_dead_s = down_dead_s
        self._dead_s = dead_s
        self._asleep_s = asleep_s
        self._polled = 0.0
        # Peers in the order in which they were last heard, so that a poll looks
        # only at the silent end and costs nothing while all beat.
        self._peers: dict[bytes, _Peer] = {}
        self._suspects: dict[bytes, None] = {}
        self.counters: Counter[str] = Counter()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def state(self, peer: bytes) -> str | None:
        known = self._peers.get(peer)
        return known.state if known else None

    def heard_at(self, peer: bytes) -> float | None:
        known = self._peers.get(peer)
        return known.heard if known else None

    def join(self, peer: bytes, incarnation: int, now: float) -> list[tuple[bytes, str]]:
        """A peer introduced itself by other means: it counts as heard now.

        RemoteError if a later incarnation of it is known already.
        """
        known = self._peers.get(peer)
        if known is not None and incarnation < known.incarnation:
            self.counters["stale-incarnation"] += 1
            raise RemoteError(f"incarnation {incarnation} came after {known.incarnation}", self._history)
        if not self._peers:
            self._polled = now
        if known is None or incarnation > known.incarnation:
            fresh = _Peer(incarnation, now)
            if known is not None:
                fresh.state = known.state
            self._peers[peer] = fresh
        self._peers[peer].down_since = None
        return self._heard(peer, now)

    def beat(self, peer: bytes, incarnation: int, sequence: int, now: float) -> list[tuple[bytes, str]]:
        """State changes that this beat causes. A stranger's or a stale beat is a counted drop."""
        known = self._peers.get(peer)
        if known is None:
            self.counters["stranger"] += 1
            return []
        if incarnation != known.incarnation:
            self.counters["stale-incarnation"] += 1
            return []
        if sequence <= known.sequence:
            self.counters["repeated"] += 1
            return []
        if sequence > known.sequence + 1 and known.sequence:
            # Whatever a peer says its number is, the sum stays one that can be reported.
            self.counters["lost-beats"] += min(sequence - known.sequence - 1, _GAP_MAX)
        known.sequence = sequence
        return self._heard(peer, now)

    def down(self, peer: bytes, now: float) -> list[tuple[bytes, str]]:
        """The connection to the peer broke."""
        known = self._peers.get(peer)
        if known is None:
            return []
        if known.down_since is None:
            known.down_since = now
        return self._step(peer, known, DOWN)

    def up(self, peer: bytes) -> None:
        """The connection stands again. Not life by itself: a beat must follow."""
        known = self._peers.get(peer)
        if known is not None:
            known.down_since = None

    def forget(self, peer: bytes) -> None:
        self._peers.pop(peer, None)
        self._suspects.pop(peer, None)

    def poll(self, now: float) -> list[tuple[bytes, str]]:
        """State changes by silence. Call it only after every queued beat was handed in."""
        if self._peers and now - self._polled > self._asleep_s:
            self._excuse(now)
        self._polled = now
        changes: list[tuple[bytes, str]] = []
        for peer, known in self._peers.items():
            # The very sum of wake_at, so that a poll at that time finds what it was woken for.
            if now < known.heard + self._suspect_s:
                break
            if known.state == ALIVE:
                changes += self._step(peer, known, SILENT)
        for peer in list(self._suspects):
            if now >= self._dead_at(self._peers[peer]):
                changes += self._step(peer, self._peers[peer], LOST)
        return changes

    def wake_at(self) -> float | None:
        """When silence may next change a state, or must be looked at lest it counts as sleep."""
        if not self._peers:
            return None
        times = [self._polled + self._asleep_s / 2]
        times += [self._dead_at(self._peers[peer]) for peer in self._suspects]
        for known in self._peers.values():
            if known.state == ALIVE:
                times.append(known.heard + self._suspect_s)
                break
        return min(times)

    def _dead_at(self, known: _Peer) -> float:
        silent = known.heard + self._dead_s
        if known.down_since is None:
            return silent
        # A beat sent before the connection broke may be read after that was told.
        return min(silent, max(known.heard, known.down_since) + self._down_dead_s)

    def _excuse(self, now: float) -> None:
        slept_s = now - self._polled
        self.counters["asleep"] += 1
        self._history.append(f"slept {slept_s:.3f} s")
        # What came during or after the sleep has nothing to be excused.
        for known in self._peers.values():
            known.heard = min(now, known.heard + slept_s)
            if known.down_since is not None:
                known.down_since = min(now, known.down_since + slept_s)

    def _heard(self, peer: bytes, now: float) -> list[tuple[bytes, str]]:
        known = self._peers.pop(peer)
        self._peers[peer] = known
        known.heard = now
        return self._step(peer, known, BEAT)

    def _step(self, peer: bytes, known: _Peer, event: str) -> list[tuple[bytes, str]]:
        after = TRANSITIONS.get((known.state, event), known.state)
        if after == known.state:
            return []
        self._history.append(f"{peer.hex()[:8]} {known.state} --{event}--> {after}")
        known.state = after
        if after == SUSPECT:
            self._suspects[peer] = None
        else:
            self._suspects.pop(peer, None)
        return [(peer, after)]

    def check(self) -> None:
        """Suspects are listed, and peers stand in the order of their last beat."""
        assert set(self._suspects) == {p for p, k in self._peers.items() if k.state == SUSPECT}
        heard = [known.heard for known in self._peers.values()]
        assert heard == sorted(heard)
