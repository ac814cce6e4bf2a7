"""Rendezvous hashing: which groups own a key, agreed on by everybody without asking anybody.

What lives here: groups, their weights, and the order in which they would own a
key. What must not: sockets, who is alive, where the key's data lies now.

Guarantees
  - Equal groups and weights give equal owners, on every machine and in every run:
    the order of groups is the order of scores, hashes of group and key.
  - A group owns its weight's share of keys, up to chance.
  - Minimal movement. A new group takes keys and moves none between others; the
    keys of a group that leaves go to each one's next owner; a weight that rises
    only draws keys to its group, one that falls only sends them away.
  - The first n owners of a key are n different groups, in the order in which they
    take over from each other.
What it cannot promise: equal load, since keys differ in how often they are asked
for; and agreement between those who know different groups: give the list of
groups a version, and compare that.

There are no states here, so no table of transitions: an owner is a function of
groups and key. One lookup hashes once for each group, 2 µs or so; tens of groups
are fine, for thousands put groups into groups.

Source: Thaler and Ravishankar 1998, "Using name-based mappings to increase hit
rates"; the score -weight / ln(hash) from Schindelhauer and Schomaker 2005. The
zguide has no such pattern: its brokers keep a table of who serves what.
"""

import heapq
from collections import deque
from collections.abc import Mapping
from hashlib import blake2b
from math import inf, isfinite, log
from typing import Final

from patterns.errors import LocalError

#: Bits of a hash that a float holds exactly.
_HASH_BITS: Final = 53
_HISTORY: Final = 32


class Rendezvous:
    """weights: group → weight, finite and above 0. Twice the weight, twice the keys."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights: dict[str, float] = {}
        # Hashes that have taken in the group's name, to be copied for each key.
        self._seeds = {group: _seed(group) for group in weights}
        self._history: deque[str] = deque(maxlen=_HISTORY)
        for group, weight in weights.items():
            self.set_weight(group, weight)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def weights(self) -> dict[str, float]:
        """A copy: group → weight."""
        return dict(self._weights)

    def set_weight(self, group: str, weight: float) -> None:
        """Add a group, or give it another weight. LocalError unless the weight is finite and above 0."""
        if not isfinite(weight) or weight <= 0:
            raise LocalError(f"group {group!r} of weight {weight}: wanted above 0", self._history)
        self._seeds.setdefault(group, _seed(group))
        self._weights[group] = weight
        self._history.append(f"{group} weighs {weight:g}")

    def remove(self, group: str) -> None:
        """The group owns nothing any more. LocalError if it is not known."""
        if group not in self._weights:
            raise LocalError(f"no group {group!r}", self._history)
        del self._weights[group], self._seeds[group]
        self._history.append(f"{group} removed")

    def owner(self, key: bytes) -> str:
        """The group that owns the key. LocalError if there are no groups."""
        return self.owners(key, 1)[0]

    def owners(self, key: bytes, count: int) -> list[str]:
        """The first `count` owners, all groups if there are fewer. LocalError if there are none."""
        if count < 1 or not self._weights:
            raise LocalError(f"{count} owners of {len(self._weights)} groups", self._history)
        if count == 1:
            return [max(self._weights, key=lambda group: (self.score(group, key), group))]
        return heapq.nlargest(count, self._weights, key=lambda group: (self.score(group, key), group))

    def score(self, group: str, key: bytes) -> float:
        """What the group bids for the key; the highest bid owns it."""
        seed = self._seeds[group].copy()
        seed.update(key)
        uniform = (int.from_bytes(seed.digest(), "big") >> (64 - _HASH_BITS)) / (1 << _HASH_BITS)
        return -self._weights[group] / log(uniform) if uniform else 0.0

    def check(self) -> None:
        """Each group has a weight that can bid, and a hash to bid with."""
        assert self._weights.keys() == self._seeds.keys()
        assert all(0 < weight < inf for weight in self._weights.values())


def _seed(group: str) -> "blake2b":
    """The name's length goes first, or group "a" and key "bc" would be group "ab" and key "c"."""
    name = group.encode()
    return blake2b(len(name).to_bytes(4, "big") + name, digest_size=8)
