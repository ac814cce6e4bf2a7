"""Staging: bytes that are no pages yet. What is taken in, what is refused, what a Commit makes of it.

`Staging` is asked directly; a dict of bytearrays stands for the staged files.
"""

from random import Random
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dws.config import Config
from dws.errors import BadName, BadRequest, IntegrityError, NotHeld, OverBound, TryAgain
from dws.limits import BATCH_MAX_BYTES, CHUNK_BYTES, INLINE_MAX_BYTES, MIB, PAGE_MAX_BYTES
from dws.messages import Commit, CommitPage, Record, Stage, StagePart
from dws.names import make_version
from dws.staging import Staging
from tests.dws.desk import batch_id

VERSION = make_version(3, 1)


class Bench:
    def __init__(self, config: Config | None = None) -> None:
        self.staging = Staging(config or Config())
        self.files: dict[int, bytearray] = {}
        self.now = 10.0

    def stage(
        self, *parts: tuple[int, int, bytes], batch: int = 1, version: int = VERSION, peer: bytes = b"p"
    ) -> tuple[int, int]:
        """Parts as (page, offset, data): (page, bytes that it has now)."""
        request = Stage(batch_id(batch), version, 7, [StagePart(p, offset, len(d)) for p, offset, d in parts])
        data = memoryview(b"".join(d for _, _, d in parts))
        page, have, writes = self.staging.stage(peer, request, data, self.now)
        for write in writes:
            file = self.files.setdefault(write.handle, bytearray())
            assert len(file) == write.offset, "files grow from end to end"
            file += write.data
        self.staging.check()
        return page, have

    def commit(
        self, *pages: tuple[int, str, bytes], batch: int = 1, **changed: Any
    ) -> dict[str, tuple[Record, bytes]]:
        """Pages as (page, name, what the client says it has): name → (record, the bytes that are there)."""
        said = [CommitPage(p, name, len(d), blake3(d).digest(), "text/css", 5.0) for p, name, d in pages]
        for each in said:
            for field, value in changed.items():
                setattr(each, field, value)
        blobs = self.staging.blobs(Commit(batch_id(batch), VERSION, 7, said))
        found = {}
        for blob in blobs:
            data = bytes(self.files[blob.staged] if blob.data is None else blob.data)
            assert blake3(blob.digest_list).digest() == blob.record.list_digest or not blob.digest_list
            found[blob.record.name] = (blob.record, data)
        return found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def chunks(data: bytes) -> list[bytes]:
    return [data[begin : begin + CHUNK_BYTES] for begin in range(0, len(data), CHUNK_BYTES)]


# -- what is taken in ------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * MIB]
)
def test_a_page_of_any_size_becomes_a_record_with_its_digests(bench: Bench, size: int) -> None:
    data = Random(size).randbytes(size)
    for number, chunk in enumerate(chunks(data) or [b""]):
        assert bench.stage((0, number * CHUNK_BYTES, chunk)) == (0, number * CHUNK_BYTES + len(chunk))
    record, stored = bench.commit((0, "/a", data))["/a"]
    assert stored == data
    assert (record.size, record.digest, record.version) == (size, blake3(data).digest(), VERSION)
    assert (record.batch, record.content_type, record.modified) == (batch_id(1), "text/css", 5.0)
    assert bool(record.list_digest) == (size > CHUNK_BYTES)
    assert bool(bench.files) == (size > INLINE_MAX_BYTES), "small pages stay in memory"


def test_many_small_pages_come_in_one_message(bench: Bench) -> None:
    pages = {number: bytes([number]) * number for number in range(20)}
    assert bench.stage(*((number, 0, data) for number, data in pages.items())) == (19, 19)
    found = bench.commit(*((number, f"/{number}", data) for number, data in pages.items()))
    assert {name: stored for name, (_, stored) in found.items()} == {f"/{n}": d for n, d in pages.items()}


def test_a_page_that_was_never_sent_is_empty_if_the_client_says_so(bench: Bench) -> None:
    bench.stage((0, 0, b"x"))
    assert bench.commit((0, "/a", b"x"), (1, "/empty", b""))["/empty"][1] == b""


def test_a_chunk_that_comes_again_is_acknowledged_and_changes_nothing(bench: Bench) -> None:
    data = bytes(range(256)) * (2 * CHUNK_BYTES // 256)
    first, second = chunks(data)
    bench.stage((0, 0, first))
    assert bench.stage((0, 0, b"!" * CHUNK_BYTES)) == (0, CHUNK_BYTES)
    bench.stage((0, CHUNK_BYTES, second))
    assert bench.stage((0, CHUNK_BYTES, second)) == (0, 2 * CHUNK_BYTES)
    assert bench.commit((0, "/a", data))["/a"][1] == data


def test_a_chunk_from_the_future_is_answered_with_what_is_there(bench: Bench) -> None:
    assert bench.stage((0, CHUNK_BYTES, b"later")) == (0, 0)
    bench.stage((0, 0, bytes(CHUNK_BYTES)))
    assert bench.stage((0, CHUNK_BYTES, b"later")) == (0, CHUNK_BYTES + 5)


def test_nothing_follows_a_short_chunk(bench: Bench) -> None:
    bench.stage((0, 0, bytes(CHUNK_BYTES)), (0, CHUNK_BYTES, b"end"))
    assert bench.stage((0, 2 * CHUNK_BYTES, b"more")) == (0, CHUNK_BYTES + 3)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 3), max_size=15))
def test_whatever_comes_again_or_out_of_turn_the_page_is_the_one_that_was_sent(order: list[int]) -> None:
    bench = Bench()
    data = Random(1).randbytes(INLINE_MAX_BYTES) * 12 + b"end"
    parts = chunks(data)
    for number in [*order, *range(len(parts))]:
        bench.stage((0, number * CHUNK_BYTES, parts[number]))
    assert bench.commit((0, "/a", data))["/a"][1] == data


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([StagePart(0, 1, 3)], BadRequest),
        ([StagePart(0, CHUNK_BYTES, 0)], BadRequest),
        ([StagePart(0, 0, 4)], BadRequest),
        ([StagePart(0, 0, CHUNK_BYTES + 1)], BadRequest),
        ([StagePart(0, PAGE_MAX_BYTES, 3)], OverBound),
    ],
)
def test_a_faulty_message_leaves_no_trace(
    bench: Bench, parts: list[StagePart], kind: type[Exception]
) -> None:
    sizes = sum(part.length for part in parts)
    data = memoryview(bytes(sizes if sizes > 4 else 3))
    with pytest.raises(kind):
        bench.staging.stage(b"p", Stage(batch_id(1), VERSION, 7, parts), data, 1.0)
    assert len(bench.staging) == 0


def test_a_message_that_is_refused_in_part_is_refused_whole() -> None:
    """A large part in front of one for which there is no room: its bytes must not be taken for written."""
    config = Config(staged_memory_peer_bytes=BATCH_MAX_BYTES, staged_memory_bytes=2 * BATCH_MAX_BYTES)
    bench = Bench(config)
    filler = bytes(INLINE_MAX_BYTES)
    for page in range(BATCH_MAX_BYTES // INLINE_MAX_BYTES):
        bench.stage((page, 0, filler), batch=2)
    large, small = bytes(INLINE_MAX_BYTES + 1), b"small"
    with pytest.raises(TryAgain):
        bench.stage((0, 0, large), (1, 0, small))
    assert not bench.files
    bench.staging.end(batch_id(2))
    assert bench.stage((0, 0, large), (1, 0, small)) == (1, len(small))
    assert bench.commit((0, "/a", large), (1, "/b", small))["/a"][1] == large


def test_memory_is_bounded_for_a_batch_a_peer_and_all() -> None:
    bench = Bench(Config())
    filler = bytes(INLINE_MAX_BYTES)
    full = BATCH_MAX_BYTES // INLINE_MAX_BYTES
    for page in range(full):
        bench.stage((page, 0, filler), batch=1, peer=b"one")
    with pytest.raises(OverBound):
        bench.stage((full, 0, filler), batch=1, peer=b"one")
    with pytest.raises(TryAgain):
        bench.stage((0, 0, filler), batch=2, peer=b"one")
    for page in range(full):
        bench.stage((page, 0, filler), batch=3, peer=b"two")
    with pytest.raises(TryAgain):
        bench.stage((0, 0, filler), batch=4, peer=b"three")
    bench.staging.end(batch_id(1))
    bench.stage((0, 0, filler), batch=4, peer=b"three")


def test_another_version_under_the_same_batch_id_is_refused(bench: Bench) -> None:
    bench.stage((0, 0, b"one"))
    with pytest.raises(BadRequest):
        bench.stage((0, 0, b"two"), version=VERSION + 1)
    assert bench.commit((0, "/a", b"one"))["/a"][1] == b"one"


def test_uploads_are_bounded_in_number(bench: Bench) -> None:
    for batch in range(1024):
        bench.stage((0, 0, b""), batch=batch)
    with pytest.raises(TryAgain):
        bench.stage((0, 0, b""), batch=2000)
    bench.stage((0, 0, b""), batch=5)


# -- Commit, checked -------------------------------------------------------------------


def test_a_commit_of_what_is_not_all_here_says_so(bench: Bench) -> None:
    with pytest.raises(NotHeld):
        bench.commit((0, "/a", b"x"))
    bench.stage((0, 0, bytes(CHUNK_BYTES)))
    with pytest.raises(NotHeld, match="of 1048577"):
        bench.commit((0, "/a", bytes(CHUNK_BYTES + 1)))
    with pytest.raises(NotHeld):
        bench.commit((1, "/b", b"x"))


def test_a_commit_with_another_digest_is_refused(bench: Bench) -> None:
    bench.stage((0, 0, b"sent"), (1, 0, bytes(INLINE_MAX_BYTES + 1)))
    with pytest.raises(IntegrityError):
        bench.commit((0, "/a", b"said"))
    with pytest.raises(IntegrityError):
        bench.commit((1, "/b", b"x" * (INLINE_MAX_BYTES + 1)))


def test_a_commit_of_a_name_or_type_that_is_none_is_refused(bench: Bench) -> None:
    bench.stage((0, 0, b"x"))
    with pytest.raises(BadName):
        bench.commit((0, "/a/../b", b"x"))
    with pytest.raises(BadRequest):
        bench.commit((0, "/a", b"x"), content_type="text/html\r\nX: y")


# -- ends ------------------------------------------------------------------------------


def test_an_upload_without_progress_expires(bench: Bench) -> None:
    bench.stage((0, 0, b"x"), batch=1)
    bench.now += 20
    bench.stage((0, 0, b"x"), batch=2)
    assert bench.staging.expired(bench.now + 10, 3) == [batch_id(1)]
    bench.stage((1, 0, b"x"), batch=1)
    assert bench.staging.expired(bench.now + 10, 3) == []


def test_uploads_of_another_epoch_expire_at_once(bench: Bench) -> None:
    bench.stage((0, 0, b"x"))
    assert bench.staging.expired(bench.now, 4) == [batch_id(1)]


def test_an_end_names_the_files_to_discard_once(bench: Bench) -> None:
    bench.stage((0, 0, bytes(INLINE_MAX_BYTES + 1)), (1, 0, b"small"))
    (handle,) = bench.files
    assert bench.staging.end_of(batch_id(1), handle + 1) == [], "of an earlier upload under this id"
    assert bench.staging.end_of(batch_id(1), handle) == [handle]
    assert bench.staging.end(batch_id(1)) == []
    bench.staging.check()
    with pytest.raises(NotHeld):
        bench.commit((1, "/b", b"small"))


def test_handles_are_never_used_again(bench: Bench) -> None:
    taken = {bench.staging.new_handle()}
    for batch in range(5):
        bench.stage((0, 0, bytes(INLINE_MAX_BYTES + 1)), batch=batch)
        taken |= set(bench.staging.end(batch_id(batch)))
    assert len(taken) == 6
