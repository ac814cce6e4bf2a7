"""The two stores in memory: obviously correct, so that tests can ask them what is true.

What a commit did is durable: it outlives `restart`, which stands for a crash or an end of the
process alike. Staged bytes are not. Nothing here is fast, bounded or shared between threads.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from random import Random
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from dws.errors import Stale
from dws.limits import CHUNK_BYTES, INLINE_MAX_BYTES
from dws.messages import Change, Record
from dws.names import bucket_of, page_key, record_hash
from dws.store import (
    CatalogHead,
    Decision,
    DiscardStaged,
    DropRecords,
    Identity,
    KnownServer,
    OpResult,
    PageStoreOp,
    Remember,
    RememberedBatch,
    StoreBatch,
    WriteStaged,
)

MASK_64 = (1 << 64) - 1


class Held(Struct):
    record: Record
    data: bytes
    digests: bytes


class MemoryPageStore:
    """dws.store.PageStore. log_max: how many changes `changes` reaches back."""

    def __init__(self, rng: Random, quota_bytes: int = 1 << 40, log_max: int = 1000) -> None:
        self.rng = rng
        self.identity = Identity(rng.randbytes(16), 0)
        self.quota_bytes = quota_bytes
        self.log_max = log_max
        self.held: dict[tuple[str, int], Held] = {}
        self.log: list[Change] = []
        self.staged: dict[int, bytearray] = {}
        self._summary = (-1, [0])
        self.restart()

    def restart(self) -> None:
        """A new life: staged bytes are gone, committed ones are here."""
        self.staged.clear()
        incarnation = ((self.identity.incarnation >> 32) + 1) << 32 | self.rng.getrandbits(32)
        self.identity = replace(self.identity, incarnation=incarnation)

    def close(self) -> None:
        pass

    @property
    def number(self) -> int:
        return len(self.log)

    # -- reading ---------------------------------------------------------------------

    def get(self, name: str, version: int) -> bytes | None:
        held = self.held.get((name, version))
        return held.data if held else None

    def read(self, name: str, version: int, offset: int, length: int) -> bytes | None:
        held = self.held.get((name, version))
        return held.data[offset : offset + length] if held else None

    def record(self, name: str, version: int) -> Record | None:
        held = self.held.get((name, version))
        return held.record if held else None

    def digest_list(self, name: str, version: int) -> bytes | None:
        held = self.held.get((name, version))
        return held.digests if held else None

    def summary(self) -> tuple[int, list[int]]:
        if self._summary[0] != self.number:
            sums = [0] * 256
            for name, version in self.held:
                key = page_key(name)
                sums[bucket_of(key)] = (sums[bucket_of(key)] + record_hash(key, version)) & MASK_64
            self._summary = (self.number, sums)
        return self.number, list(self._summary[1])

    def manifest(self, bucket: int, after: bytes, limit: int) -> tuple[list[Record], bytes]:
        found = sorted(
            (key + version.to_bytes(8, "big"), name, version)
            for name, version in self.held
            if bucket_of(key := page_key(name)) == bucket
        )
        rest = [each for each in found if each[0] > after]
        records = [self.held[name, version].record for _, name, version in rest[:limit]]
        return records, rest[limit - 1][0] if len(rest) > limit else b""

    def changes(self, since: int, limit: int) -> list[Change] | None:
        if since < self.number - self.log_max:
            return None
        return self.log[since : since + limit]

    def usage(self) -> tuple[int, int, int]:
        stored = sum(held.record.size for held in self.held.values())
        staged = sum(len(data) for data in self.staged.values())
        return len(self.held), stored, max(0, self.quota_bytes - stored - staged)

    # -- writing ---------------------------------------------------------------------

    def commit(self, ops: Sequence[PageStoreOp]) -> list[OpResult]:
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
                return self._write(op)
            case DiscardStaged():
                for handle in op.handles:
                    self.staged.pop(handle, None)
                return OpResult()
        if (op.incarnation, op.epoch) != (self.identity.incarnation, self.identity.start_epoch):
            return OpResult(code="stale", text="of a time that has passed")
        result = self._store(op) if isinstance(op, StoreBatch) else self._drop(op)
        if not result.code:
            self.identity = replace(self.identity, decision=max(op.decision, self.identity.decision))
        return result

    def _write(self, op: WriteStaged) -> OpResult:
        staged = self.staged.setdefault(op.handle, bytearray())
        if op.offset > len(staged):
            return OpResult(code="bad-request", text="a gap in a staged file")
        if len(op.data) > self.usage()[2]:
            return OpResult(code="full", text="over the quota")
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

    def _change(self, added: list[Held], dropped: list[Any]) -> OpResult:
        if not added and not dropped:
            return OpResult()
        for held in added:
            self.held[held.record.name, held.record.version] = held
        for each in dropped:
            del self.held[each.name, each.version]
        self.log.append(Change(self.number + 1, [held.record for held in added], dropped))
        return OpResult(self.log[-1])


class MemoryCatalogStore:
    """dws.store.CatalogStore. `open` is a start of a balancer; clock tells when batches are forgotten."""

    def __init__(self, rng: Random, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.rng = rng
        self.clock = clock
        self.cluster = rng.randbytes(16)
        self.epoch = 0
        self.rebuilt = False
        self.starts: set[tuple[int, int]] = set()
        self.pages: dict[str, Record] = {}
        self.batches: dict[bytes, RememberedBatch] = {}
        self.servers: list[KnownServer] = []
        self.decisions: list[Decision] = []
        self.head: CatalogHead

    def open(self) -> CatalogHead:
        self.epoch += 1
        nonce = self.rng.getrandbits(63)
        self.starts.add((self.epoch, nonce))
        self.head = CatalogHead(
            self.cluster, self.epoch, nonce, len(self.decisions), list(self.servers), self.rebuilt
        )
        return self.head

    def backup(self) -> "MemoryCatalogStore":
        """A copy of what is durable now, as somebody may restore it later."""
        copied = MemoryCatalogStore(self.rng, self.clock)
        for field in ("cluster", "epoch", "rebuilt", "starts", "pages", "batches", "servers", "decisions"):
            setattr(copied, field, deepcopy(getattr(self, field)))
        return copied

    def load(self) -> Iterator[Record]:
        return iter(list(self.pages.values()))

    def outcome(self, batch: bytes) -> RememberedBatch | None:
        remembered = self.batches.get(batch)
        return remembered if remembered is not None and remembered.forget_at > self.clock() else None

    def knows_start(self, epoch: int, nonce: int) -> bool:
        return (epoch, nonce) in self.starts

    def commit(self, decisions: Sequence[Decision], epoch: int) -> None:
        if epoch != self.epoch:
            raise Stale(f"the last start is of epoch {self.epoch}, not {epoch}")
        for decision in decisions:
            assert decision.number == len(self.decisions) + 1, "decision numbers rise one by one"
            self.decisions.append(decision)
            self.pages |= {record.name: record for record in decision.puts}
            for name in decision.removes:
                self.pages.pop(name, None)
            if decision.batch != bytes(16):
                self.batches[decision.batch] = RememberedBatch(decision.version, decision.forget_at)
            if decision.server is not None:
                self.servers.append(decision.server)

    def close(self) -> None:
        pass
