"""Uploads on their way into a server: bytes that are no pages yet.

What lives here: what was staged under which batch id, its digests, its bounds,
and what a Commit is checked for. What must not: disks (operations go out as
values), and what a batch means to the cluster.

A page arrives as chunks of CHUNK_BYTES in rising order, the last one shorter.
One of at most INLINE_MAX_BYTES stays in memory until the commit, a larger one
goes to a staged file chunk by chunk. Chunks that come again are acknowledged,
chunks from the future are answered with what is there, so that the client goes
on from there.
"""

from typing import Any, Final

from blake3 import blake3
from msgspec import Struct

from dws.config import Config
from dws.errors import BadRequest, IntegrityError, NotHeld, OverBound, TryAgain
from dws.limits import BATCH_MAX_BYTES, CHUNK_BYTES, INLINE_MAX_BYTES, PAGE_MAX_BYTES, RECORD_FORMAT
from dws.messages import Commit, CommitPage, Record, Stage, StagePart
from dws.names import check_name, epoch_of, is_content_type
from dws.store import Blob, WriteStaged

#: Uploads open on one server at once.
_UPLOADS_MAX: Final = 1024


class _Page(Struct):
    have: int = 0
    data: bytes = b""
    handle: int = 0
    whole: Any = None  # BLAKE3 over all, for a page in a file
    digest: bytes = b""
    chunks: list[bytes] = []
    ended: bool = False  # a short chunk came: nothing may follow


class Upload(Struct):
    batch: bytes
    version: int
    peer: bytes
    touched: float
    pages: dict[int, _Page] = {}
    memory_bytes: int = 0


class Staging:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._uploads: dict[bytes, Upload] = {}
        self._memory_by_peer: dict[bytes, int] = {}
        self._memory_bytes = 0
        self._next_handle = 1

    def __len__(self) -> int:
        return len(self._uploads)

    def new_handle(self) -> int:
        """A name for a staged file, never used before in this life of the server."""
        self._next_handle += 1
        return self._next_handle

    def stage(
        self, peer: bytes, request: Stage, data: memoryview, now: float
    ) -> tuple[int, int, list[WriteStaged]]:
        """Take parts in: (page, bytes it has now, writes to staged files).

        Raises BadRequest, OverBound or TryAgain; then nothing of the request is taken in.
        """
        for part in request.parts:
            _check_part(part)
        if sum(part.length for part in request.parts) != len(data):
            raise BadRequest("the data frame is not as long as its parts")
        upload = self._upload(peer, request, now)
        self._charge(upload, _new_memory_bytes(upload, request.parts))
        writes: list[WriteStaged] = []
        begin = 0
        page = _Page()
        for part in request.parts:
            page = upload.pages.setdefault(part.page, _Page())
            writes += self._take(page, part, data[begin : begin + part.length])
            begin += part.length
        upload.touched = now
        return (request.parts[-1].page, page.have, writes) if request.parts else (0, 0, [])

    def _upload(self, peer: bytes, request: Stage, now: float) -> Upload:
        upload = self._uploads.get(request.batch)
        if upload is not None and upload.version != request.version:
            raise BadRequest("under this batch id another version is being staged")
        if upload is None:
            if len(self._uploads) >= _UPLOADS_MAX:
                raise TryAgain(f"{_UPLOADS_MAX} uploads are open here, the bound")
            upload = Upload(request.batch, request.version, peer, now)
            self._uploads[request.batch] = upload
        return upload

    def _take(self, page: _Page, part: StagePart, data: memoryview) -> list[WriteStaged]:
        if part.offset != page.have or page.ended:
            return []
        writes: list[WriteStaged] = []
        if _is_for_memory(part):
            page.data = bytes(data)
        else:
            page.handle = page.handle or self.new_handle()
            page.whole = page.whole or blake3()
            page.whole.update(data)
            page.chunks.append(blake3(data).digest())
            writes.append(WriteStaged(page.handle, part.offset, data))
        page.have += part.length
        page.ended = part.length < CHUNK_BYTES
        return writes

    def _charge(self, upload: Upload, size_bytes: int) -> None:
        config = self._config
        peer_bytes = self._memory_by_peer.get(upload.peer, 0)
        if upload.memory_bytes + size_bytes > BATCH_MAX_BYTES:
            raise OverBound(f"a batch has at most {BATCH_MAX_BYTES:,} bytes")
        if peer_bytes + size_bytes > config.staged_memory_peer_bytes:
            raise TryAgain("too many bytes are staged by this peer")
        if self._memory_bytes + size_bytes > config.staged_memory_bytes:
            raise TryAgain("too many bytes are staged here")
        upload.memory_bytes += size_bytes
        self._memory_bytes += size_bytes
        self._memory_by_peer[upload.peer] = peer_bytes + size_bytes

    def blobs(self, request: Commit) -> list[Blob]:
        """What to store for a Commit. Raises NotHeld (stage it again), IntegrityError, BadName."""
        upload = self._uploads.get(request.batch)
        if upload is None or upload.version != request.version:
            raise NotHeld("nothing is staged under this batch")
        return [self._blob(upload, said) for said in request.pages]

    def _blob(self, upload: Upload, said: CommitPage) -> Blob:
        check_name(said.name)
        if not is_content_type(said.content_type):
            raise BadRequest(f"{said.name}: a content type is printable ASCII")
        page = upload.pages.get(said.page)
        if page is None and said.size == 0:
            page = _Page()
        if page is None or page.have != said.size:
            have = page.have if page else 0
            raise NotHeld(f"{said.name}: {have} of {said.size} bytes are staged")
        if not page.digest:
            page.digest = page.whole.digest() if page.whole else blake3(page.data).digest()
        if page.digest != said.digest:
            raise IntegrityError(f"{said.name}: staged bytes have another digest, {page.digest.hex()}")
        joined = b"".join(page.chunks) if said.size > CHUNK_BYTES else b""
        record = Record(
            said.name, upload.version, upload.batch, said.size, page.digest,
            blake3(joined).digest() if joined else b"", said.content_type, said.modified, RECORD_FORMAT,
        )  # fmt: skip
        return Blob(record, None if page.handle else page.data, page.handle, joined)

    def end(self, batch: bytes) -> list[int]:
        """Forget an upload: the handles of its staged files, to discard unless a commit moved them."""
        upload = self._uploads.pop(batch, None)
        if upload is None:
            return []
        self._memory_bytes -= upload.memory_bytes
        left = self._memory_by_peer.get(upload.peer, 0) - upload.memory_bytes
        if left > 0:
            self._memory_by_peer[upload.peer] = left
        else:
            self._memory_by_peer.pop(upload.peer, None)
        return [page.handle for page in upload.pages.values() if page.handle]

    def end_of(self, batch: bytes, handle: int) -> list[int]:
        """`end`, if this staged file is of the upload that is open under this batch id now."""
        upload = self._uploads.get(batch)
        if upload is None or all(page.handle != handle for page in upload.pages.values()):
            return []
        return self.end(batch)

    def expired(self, now: float, keep_epoch: int) -> list[bytes]:
        """Uploads without progress for stage_idle_s, or of another epoch."""
        idle = now - self._config.stage_idle_s
        return [
            upload.batch
            for upload in self._uploads.values()
            if upload.touched <= idle or epoch_of(upload.version) != keep_epoch
        ]

    def check(self) -> None:
        assert self._memory_bytes == sum(upload.memory_bytes for upload in self._uploads.values())
        assert self._memory_bytes == sum(self._memory_by_peer.values())
        assert self._memory_bytes <= self._config.staged_memory_bytes


def _check_part(part: StagePart) -> None:
    empty_tail = part.offset > 0 and part.length == 0
    if part.offset % CHUNK_BYTES or part.length > CHUNK_BYTES or empty_tail:
        raise BadRequest(f"parts are chunks of {CHUNK_BYTES} bytes at multiples of that")
    if part.offset + part.length > PAGE_MAX_BYTES:
        raise OverBound(f"a page has at most {PAGE_MAX_BYTES:,} bytes")


def _is_for_memory(part: StagePart) -> bool:
    return part.offset == 0 and part.length <= INLINE_MAX_BYTES


def _new_memory_bytes(upload: Upload, parts: list[StagePart]) -> int:
    """What these parts will add to the upload's memory: what has come before adds nothing."""
    first: dict[int, int] = {}
    for part in parts:
        page = upload.pages.get(part.page)
        if part.offset == 0 and (page is None or (page.have == 0 and not page.ended)):
            first.setdefault(part.page, part.length if _is_for_memory(part) else 0)
    return sum(first.values())
