"""One batch: the unit of upload, and the states it passes through.

What lives here: the record of a batch and the table of its transitions. What
must not: who stores it (replication.py), when it is decided (placement.py).
"""

import itertools
from typing import Final

from msgspec import Struct

from dws.limits import DIRECT_MAX_BYTES
from dws.messages import PutPage, Record

OPEN: Final = "open"
DECIDING: Final = "deciding"
DOOMED: Final = "doomed"
VISIBLE: Final = "visible"
CONFLICT: Final = "conflict"
NEVER: Final = "never"

#: What a batch, and each name of it, takes beside the name's own characters: counted high.
_BATCH_BYTES: Final = 2_000
_NAME_BYTES: Final = 1_000

#: (state, event) → state. An abort or a deadline in DECIDING or DOOMED waits for the write's result.
TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (OPEN, "enough copies"): DECIDING,
    (OPEN, "condition fails"): CONFLICT,
    (OPEN, "condition fails on an unwritten decision"): DOOMED,
    (OPEN, "deadline"): NEVER,
    (OPEN, "abort"): NEVER,
    (OPEN, "copies differ"): NEVER,
    (DECIDING, "persisted"): VISIBLE,
    (DOOMED, "persisted"): CONFLICT,
}


class Batch(Struct):
    id: bytes
    version: int
    pages: dict[str, PutPage]  # what is to be stored: skipped pages are not in it
    conditions: dict[str, int]  # name → version it must have (0: none)
    removes: list[str]
    copies: int
    deadline: float
    copies_asked: int = 0  # 0: as many as the cluster is set to
    targets: list[int] = []  # primary first
    state: str = OPEN
    records: dict[str, Record] = {}
    found: dict[int, set[str]] = {}  # server → names of this batch that it reported
    ordered: dict[int, int] = {}  # backup → the source it was told to copy from
    failed: dict[int, float] = {}  # backup that could not copy → when it may be asked again
    direct_until: float = 0.0  # until then the client is expected to bring it to all targets itself
    waiters: list[tuple[int, int, float]] = []  # token, seen, until
    after: int = 0  # decision whose fsync ends DECIDING or DOOMED
    text: str = ""
    names: list[str] = []

    @property
    def size_bytes(self) -> int:
        """As far as sizes were told."""
        return sum(max(0, page.size) for page in self.pages.values())

    @property
    def may_be_direct(self) -> bool:
        """Whether it is small enough for the client to send it to each target."""
        sizes = [page.size for page in self.pages.values()]
        return bool(sizes) and min(sizes) >= 0 and sum(sizes) <= DIRECT_MAX_BYTES

    @property
    def memory_bytes(self) -> int:
        """About what it takes in memory; does not change while it is open."""
        names = itertools.chain(self.pages, self.conditions, self.removes)
        return _BATCH_BYTES + sum(_NAME_BYTES + len(name) for name in names)

    def step(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]
