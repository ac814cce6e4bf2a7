"""The invariants of a cluster, by name.

What lives here: what must hold, in words, and how a breach is told. What must
not: the judging (oracle.py).
"""

from typing import Final

from dws.sim.observer import BrokenInvariant

#: Invariant → what must hold.
RULES: Final = {
    "acknowledged": "what is told to be visible is on the catalog's disk, and as it was asked for",
    "told-failed": "a put or removal whose client was told that it failed never takes effect",
    "decided-once": "a put or removal takes effect once, however often it was tried",
    "copies": "a decision rests on as many disks as it promises",
    "lost": "what the catalog names is on as many unspoilt disks as was promised, less what was damaged",
    "bytes": "what a disk stores, and what a reader gets, are the bytes that were put",
    "condition": "a condition holds at the moment of the decision",
    "conflict": "a conflict that is told rests on a condition that did not hold",
    "skipped": "a page that a put leaves alone has these very bytes at that moment",
    "earlier-epoch": "a batch of an earlier epoch is never decided",
    "epoch-reused": "epochs rise with every start on a catalog",
    "version-reused": "a version names one batch, and is decided once",
    "located": "a lookup names what is visible, and nothing else",
    "revived": "a page that was removed stays away until it is put again",
    "linearizable": "a reader sees a page as it was at one moment between question and answer",
    "batch-whole": "a reader of several pages sees all of them as they were at one moment",
    "history": "the whole history, judged by what clients saw alone, is linearizable",
    "one-reply": "a request is answered at most once, and only what was asked is answered",
    "credit": "bytes on the way of a transfer stay under its credit",
    "twice": "the copies of a page are on different servers",
    "presence": "a holder that the catalog counts has the version on its disk",
    "last-copy": "a copy of what is visible is dropped only where enough unspoilt ones are elsewhere",
    "drop-open": "nothing of a batch that may still become visible is dropped",
    "incarnation": "of a server's incarnations the balancer follows the last that it has heard of",
    "picture": "changes of a disk are applied in order, and the picture made of them is what the disk has",
    "stale-job": "a server carries out jobs in the order of their numbers, and each number once",
    "wrong-catalog": "a balancer on an old catalog drops nothing, decides nothing, and leads nobody",
    "deadline": "a call ends, however it ends",
}


def require(holds: object, rule: str, text: str) -> None:
    """Raises BrokenInvariant unless it holds."""
    if not holds:
        assert rule in RULES
        raise BrokenInvariant(rule, text)
