"""Disks in memory: the interfaces of dws/store.py, and what real disks do besides.

What lives here: the disk of a page store, of a catalog. What must not: when a write begins
and ends (nodes do), what fails (faults.py).

A commit is `write`, then `sync`. Until `sync` returned nothing of it can be read, and a crash
keeps what chance has it: of a page store its first operations, any number, each whole; of a
catalog all or nothing. Staged bytes end with the process. Disks can be full, slow, and rot.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from random import Random
from typing import Final

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from dws.effects import Rebuilt
from dws.errors import Full, Stale
from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES, MANIFEST_BUCKETS
from dws.messages import Change, Dropped, Record
from dws.names import bucket_of, page_key, record_hash
from dws.store import (
    GOOD,
    NOT_THERE,
    WRONG,
    CatalogHead,
    Decision,
    DiscardStaged,
    DropRecords,
    Identity,
    KeepPlace,
    KnownServer,
    OpResult,
    PageStoreOp,
    Part,
    Remember,
    RememberedBatch,
    SetAside,
    StoreBatch,
    WriteStaged,
)

MASK_64: Final = (1 << 64) - 1
BIG_BYTES: Final = 1 << 40


class Held(Struct):
    record: Record
    data: bytes
    digests: bytes


class PageDisk:
    """dws.store.PageStore. log_max: how many changes `changes` reaches back."""

    def __init__(self, rng: Random, quota_bytes: int = BIG_BYTES, log_max: int = 1000) -> None:
        self.rng = rng
        self.identity = Identity(rng.randbytes(16), 0)
        self.quota_bytes = quota_bytes
        self.log_max = log_max
        self.fsync_factor = 1.0
        self.held: dict[tuple[str, int], Held] = {}
        self.rotten: set[tuple[str, int]] = set()
        self.aside: dict[tuple[str, int], Held] = {}
        """Pages that were found damaged, and are pages no more."""
        self._place = b""
        self.log: list[Change] = []
        self.staged: dict[int, bytearray] = {}
        self._number = 0
        self._bytes = 0
        self._sums = [0] * MANIFEST_BUCKETS
        self._buckets: dict[int, dict[bytes, tuple[str, int]]] = {}
        """Bucket → cursor (key and version) → record."""
        self._unsynced: list[PageStoreOp] = []
        self.restart()

    def restart(self) -> None:
        """A new life: staged bytes are gone, committed ones are here."""
        self.staged.clear()
        incarnation = ((self.identity.incarnation >> 32) + 1) << 32 | self.rng.getrandbits(32)
        self.identity = replace(self.identity, incarnation=incarnation)

    def crash(self) -> None:
        """In the middle of whatever it writes."""
        unsynced, self._unsynced = self._unsynced, []
        if unsynced:
            self._apply_all(unsynced[: self.rng.randint(0, len(unsynced))])
        self.staged.clear()

    def close(self) -> None:
        pass

    @property
    def number(self) -> int:
        return self._number

    # -- reading ---------------------------------------------------------------------

    def get(self, name: str, version: int) -> bytes | None:
        return held.data if (held := self.held.get((name, version))) else None

    def get_each(self, pages: Iterable[tuple[str, int]]) -> Iterator[bytes | None]:
        return (self.get(name, version) for name, version in pages)

    def read(self, name: str, version: int, offset: int, length: int) -> bytes | None:
        return held.data[offset : offset + length] if (held := self.held.get((name, version))) else None

    def record(self, name: str, version: int) -> Record | None:
        return held.record if (held := self.held.get((name, version))) else None

    def digest_list(self, name: str, version: int) -> bytes | None:
        held = self.held.get((name, version))
        return held.digests if held else None

    def summary(self) -> tuple[int, list[int]]:
        return self._number, list(self._sums)

    def manifest(self, bucket: int, after: bytes, limit: int) -> tuple[list[Record], bytes]:
        held = self._buckets.get(bucket)
        if not held:
            return [], b""
        rest = sorted(cursor for cursor in held if cursor > after)
        records = [self.held[held[cursor]].record for cursor in rest[:limit]]
        return records, rest[limit - 1] if len(rest) > limit else b""

    def changes(self, since: int, limit: int) -> list[Change] | None:
        first = self._number - min(self.log_max, len(self.log))
        if since < first:
            return None
        begin = len(self.log) - (self._number - since)
        return self.log[begin : begin + limit]

    def usage(self) -> tuple[int, int, int]:
        staged = sum(len(data) for data in self.staged.values())
        return len(self.held), self._bytes, max(0, self.quota_bytes - self._bytes - staged)

    def place(self) -> bytes:
        return self._place

    # -- reading back (dws.store.PageChecker) --------------------------------------------

    def check(self, parts: Sequence[Part]) -> list[int]:
        return [self._check(part) for part in parts]

    def _check(self, part: Part) -> int:
        held = self.held.get((part.name, part.version))
        if held is None:
            return NOT_THERE
        for chunk in range(part.chunk, part.chunk + part.chunks):
            data = held.data[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            wanted = held.digests[32 * chunk : 32 * chunk + 32] or held.record.digest
            if blake3(data).digest() != wanted:
                return WRONG
        return GOOD

    def read_back(self) -> None:
        """Always well: a disk that cannot be read is no fault of this simulation."""

    # -- writing ---------------------------------------------------------------------

    def commit(self, ops: Sequence[PageStoreOp]) -> list[OpResult]:
        self.write(ops)
        return self.sync()

    def write(self, ops: Sequence[PageStoreOp]) -> None:
        """Begin a commit."""
        self._unsynced = list(ops)

    def sync(self) -> list[OpResult]:
        """All that was begun is durable."""
        unsynced, self._unsynced = self._unsynced, []
        return self._apply_all(unsynced)

    def _apply_all(self, ops: list[PageStoreOp]) -> list[OpResult]:
        return [self._apply(op) for op in ops]

    def _apply(self, op: PageStoreOp) -> OpResult:
        match op:
            case Remember():
                decision = max(op.decision, self.identity.decision)
                self.identity = replace(
                    self.identity, cluster=op.cluster, start_epoch=op.start_epoch,
                    start_nonce=op.start_nonce, decision=decision,
                )  # fmt: skip
                return OpResult()
            case WriteStaged():
                return self._stage(op)
            case DiscardStaged():
                for handle in op.handles:
                    self.staged.pop(handle, None)
                return OpResult()
            case KeepPlace():
                self._place = op.place
                return OpResult()
            case SetAside():
                return self._set_aside(op)
        if (op.incarnation, op.epoch) != (self.identity.incarnation, self.identity.start_epoch):
            return OpResult(code="stale", text="of a time that has passed")
        result = self._store(op) if isinstance(op, StoreBatch) else self._drop(op)
        if not result.code:
            self.identity = replace(self.identity, decision=max(op.decision, self.identity.decision))
        return result

    def _stage(self, op: WriteStaged) -> OpResult:
        staged = self.staged.setdefault(op.handle, bytearray())
        if op.offset > len(staged):
            return OpResult(code="bad-request", text="a gap in a staged file")
        if len(op.data) > self.usage()[2]:
            return OpResult(code="full", text="over the quota")
        if op.offset == len(staged):
            staged += op.data
        else:
            staged[op.offset : op.offset + len(op.data)] = op.data
        return OpResult()

    def _store(self, op: StoreBatch) -> OpResult:
        missing = [blob for blob in op.blobs if (blob.record.name, blob.record.version) not in self.held]
        if sum(len(blob.data) for blob in missing if blob.data is not None) > self.usage()[2]:
            return OpResult(code="full", text="over the quota")
        found = []
        for blob in missing:
            record = blob.record
            data = self.staged.get(blob.staged) if blob.data is None else blob.data
            chunks = -(-record.size // CHUNK_BYTES) if record.size > CHUNK_BYTES else 0
            if data is None or len(data) != record.size or len(blob.digest_list) != 32 * chunks:
                return OpResult(code="bad-request", text=f"{record.name}: not the bytes of its record")
            if blob.data is not None and record.size > INLINE_MAX_BYTES:
                return OpResult(code="over-bound", text=f"{record.name}: must be staged")
            found.append(Held(record, bytes(data), blob.digest_list))
        for blob in op.blobs:
            self.staged.pop(blob.staged, None)
        return self._change(found, [])

    def _drop(self, op: DropRecords) -> OpResult:
        return self._change([], [each for each in op.records if (each.name, each.version) in self.held])

    def _set_aside(self, op: SetAside) -> OpResult:
        gone = []
        for page in op.pages:
            key = (page.name, page.version)
            if self._check(Part(page.name, page.version, page.chunk, 1)) == WRONG:
                self.aside[key] = self.held[key]
                gone.append(Dropped(page.name, page.version))
        return self._change([], gone)

    def _change(self, added: list[Held], dropped: list[Dropped]) -> OpResult:
        if not added and not dropped:
            return OpResult()
        for held in added:
            self._hold(held)
        for each in dropped:
            self._release(each.name, each.version)
        self._number += 1
        self.log.append(Change(self._number, [held.record for held in added], dropped))
        del self.log[: -self.log_max]
        return OpResult(self.log[-1])

    def _hold(self, held: Held) -> None:
        record = held.record
        self.held[record.name, record.version] = held
        self._bytes += record.size
        key = page_key(record.name)
        bucket = bucket_of(record.version)
        self._sums[bucket] = (self._sums[bucket] + record_hash(key, record.version)) & MASK_64
        cursor = record.version.to_bytes(8, "big") + key
        self._buckets.setdefault(bucket, {})[cursor] = (record.name, record.version)

    def _release(self, name: str, version: int) -> None:
        held = self.held.pop((name, version))
        self.rotten.discard((name, version))
        self._bytes -= held.record.size
        key = page_key(name)
        bucket = bucket_of(version)
        self._sums[bucket] = (self._sums[bucket] - record_hash(key, version)) & MASK_64
        del self._buckets[bucket][version.to_bytes(8, "big") + key]

    # -- what goes wrong, and what was there before ------------------------------------

    def rot(self, name: str, version: int) -> None:
        """One byte of a page changes where it lies; an empty page cannot."""
        held = self.held[name, version]
        if held.data:
            place = self.rng.randrange(len(held.data))
            flipped = bytes([held.data[place] ^ 1 << self.rng.randrange(8)])
            held.data = held.data[:place] + flipped + held.data[place + 1 :]
            self.rotten.add((name, version))

    def load(self, pages: Sequence[Held]) -> None:
        """What the disk held before the simulation begins."""
        self._change(list(pages), [])


class CatalogDisk:
    """dws.store.CatalogStore. `open` is a start of a balancer; clock tells when batches are forgotten."""

    def __init__(self, rng: Random, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.rng = rng
        self.clock = clock
        self.cluster = rng.randbytes(16)
        self.epoch = 0
        self.rebuilt = False
        self.full = False
        self.decision = 0
        self.starts: set[tuple[int, int]] = set()
        self.pages: dict[str, Record] = {}
        self.batches: dict[bytes, RememberedBatch] = {}
        self.servers: list[KnownServer] = []
        self.last_number = 0
        self.decisions: list[Decision] = []
        """All of this catalog, the first in front."""
        self.head: CatalogHead
        self._unsynced: tuple[list[Decision], int] = ([], 0)

    def open(self) -> CatalogHead:
        self.epoch += 1
        nonce = self.rng.getrandbits(63)
        self.starts.add((self.epoch, nonce))
        self.head = CatalogHead(
            self.cluster, self.epoch, nonce, self.decision, list(self.servers), self.rebuilt,
            self.last_number,
        )  # fmt: skip
        return self.head

    def backup(self) -> "CatalogDisk":
        """A copy of what is durable now, as somebody may put it back later."""
        copied = copy(self)
        copied._unsynced = ([], 0)
        copied.starts = set(self.starts)
        copied.pages, copied.batches = dict(self.pages), dict(self.batches)
        copied.servers, copied.decisions = list(self.servers), list(self.decisions)
        return copied

    @classmethod
    def rebuilt_from(cls, effect: Rebuilt, rng: Random, clock: Callable[[], float]) -> "CatalogDisk":
        """What --rebuild writes of what it gathered."""
        disk = cls(rng, clock)
        disk.cluster = effect.cluster
        disk.epoch = effect.epoch
        disk.rebuilt = True
        disk.decision = effect.decision
        disk.starts = set(effect.starts)
        disk.servers = list(effect.servers)
        disk.last_number = max((known.number for known in disk.servers), default=0)
        disk.pages = {record.name: record for record in effect.records}
        return disk

    def load(self) -> Iterator[Record]:
        return iter(list(self.pages.values()))

    def outcome(self, batch: bytes) -> RememberedBatch | None:
        remembered = self.batches.get(batch)
        return remembered if remembered is not None and remembered.forget_at > self.clock() else None

    def knows_start(self, epoch: int, nonce: int) -> bool:
        return (epoch, nonce) in self.starts

    def commit(self, decisions: Sequence[Decision], epoch: int) -> None:
        self.write(decisions, epoch)
        self.sync()

    def write(self, decisions: Sequence[Decision], epoch: int) -> None:
        """Begin a commit. Raises Stale, or Full: then nothing was done."""
        if epoch != self.epoch:
            raise Stale(f"the last start is of epoch {self.epoch}, not {epoch}")
        if self.full:
            raise Full("no room for the catalog's entries")
        self._unsynced = (list(decisions), epoch)

    def sync(self) -> None:
        """All that was begun is durable."""
        (decisions, _), self._unsynced = self._unsynced, ([], 0)
        for decision in decisions:
            assert decision.number == self.decision + 1, "decision numbers rise one by one"
            self.decision = decision.number
            self.decisions.append(decision)
            self.pages |= {record.name: record for record in decision.puts}
            for name in decision.removes:
                self.pages.pop(name, None)
            if decision.batch != bytes(16):
                self.batches[decision.batch] = RememberedBatch(decision.version, decision.forget_at)
            known = decision.server
            changed = {decision.forget, known.number if known else 0}
            self.servers = [each for each in self.servers if each.number not in changed]
            self.servers += [known] if known else []
            self.last_number = max([self.last_number, *(each.number for each in self.servers)])

    def crash(self) -> list[Decision]:
        """In the middle of a commit: the decisions that it made durable all the same, all or none."""
        unsynced = self._unsynced[0]
        if self.rng.random() < 0.5:
            self.sync()
            return unsynced
        self._unsynced = ([], 0)
        return []

    def close(self) -> None:
        pass
