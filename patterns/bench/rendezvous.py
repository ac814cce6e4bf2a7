"""Rendezvous hashing: lookups a second by number of groups, how even, and what moves.

It uses no sockets; beside it stands one hash of the key, the least that any scheme
by hash must do.
"""

import time
from collections import Counter
from functools import partial
from hashlib import blake2b
from typing import Final

from patterns.bench.measure import beside
from patterns.rendezvous import Rendezvous

KEYS: Final = [f"/site/page-{number}.html".encode() for number in range(20_000)]
GROUPS: Final = (3, 10, 40)


def hashes() -> float:
    began = time.perf_counter()
    for key in KEYS:
        blake2b(key, digest_size=8).digest()
    return len(KEYS) / (time.perf_counter() - began)


def lookups(rendezvous: Rendezvous) -> float:
    keys = KEYS[: len(KEYS) // len(rendezvous)]
    began = time.perf_counter()
    for key in keys:
        rendezvous.owner(key)
    return len(keys) / (time.perf_counter() - began)


def run() -> None:
    print("rendezvous: owners a second; bare is one hash of the key")
    for count in GROUPS:
        rendezvous = Rendezvous({f"group-{number}": 1.0 for number in range(count)})
        beside(f"{count:2} groups", hashes, partial(lookups, rendezvous), "keys/s")
    for count in GROUPS:
        rendezvous = Rendezvous({f"group-{number}": 1.0 for number in range(count)})
        before = [rendezvous.owner(key) for key in KEYS]
        counts, even = Counter(before), len(KEYS) / count
        rendezvous.set_weight("one more", 1.0)
        moved = sum(rendezvous.owner(key) != owner for key, owner in zip(KEYS, before, strict=True))
        print(
            f"  {count:2} groups: the fullest has {max(counts.values()) / even:.3f} of the mean, "
            f"the emptiest {min(counts.values()) / even:.3f}; one more group moves {moved / len(KEYS):.1%} "
            f"(the least possible: {1 / (count + 1):.1%})"
        )
