"""The client: connect, put, get and the rest, over real sockets.

What lives here: one thread's sockets and the loop that runs operations
(client.py, download.py, upload.py) on them. What must not: retries, failover and
grouping, which are those operations' business.
"""

import io
import random
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import zmq
from blake3 import blake3
from msgspec import Struct

from dws import messages
from dws.client import Call
from dws.download import Page, ReadPages, StreamPage
from dws.errors import NotFound, OverBound
from dws.limits import (
    BATCH_MAX_BYTES,
    BATCH_MAX_PAGES,
    CHUNK_BYTES,
    GET_MAX_BYTES,
    LIST_MAX_ENTRIES,
    LOCATE_MAX_NAMES,
    MIB,
)
from dws.messages import ANY, Drain, Forget, List, NodeStats, Ping, Resume, Stat, Status, Why
from dws.names import check_name
from dws.nodes.arguments import (
    check_is_directory_path,
    check_is_name,
    check_pages,
    check_target,
    checked_names,
)
from dws.nodes.content_types import content_type
from dws.nodes.endpoints import with_offset
from dws.nodes.observed import Observer
from dws.nodes.runner import OnSilence, Runner
from dws.nodes.sources import BytesSource, FileSource, SizedStream, StreamSource
from dws.nodes.trees import scan_tree
from dws.outbox import PutItem
from dws.upload import PutBatch, RemovePages, Stored

Source = bytes | Path | BinaryIO | SizedStream

#: As many copies as the cluster is set to.
_DEFAULT_COPIES = 0
#: A stream, which comes at its sender's pace, has this long on top of that.
_STREAM_S = 3600.0
#: What a large upload is given on top of its time-out, so that a slow disk does not end it.
_SLOW_BYTES_S = 8 * MIB
_UPLOAD_WINDOW = 4
_UPLOAD_BATCH_BYTES = 8 * MIB
_LONGEST_WAIT_S = 0.5


class Progress(Struct):
    """How far a long call has got. `bytes` is None where the total is not known; `copies` is 0 until
    the balancer has told how many it will be."""

    pages_done: int
    pages: int
    bytes_done: int
    bytes: int | None
    copies_stored: int
    copies: int
    text: str


class PutResult(Struct):
    version: int
    pages: int
    bytes: int
    skipped: list[str]
    copies: int


class UploadResult(Struct):
    pages: int
    bytes: int
    skipped: int
    batches: int
    copies: int


class RemoveResult(Struct):
    removed: int


# Named here, since inside Client the name `list` is its method.
_PageStats = list[messages.PageStat | None]

OnProgress = Callable[[Progress], None] | None


def connect(
    balancer: str = "tcp://127.0.0.1:5600",
    *,
    timeout_s: float = 10.0,
    context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    seed: int | None = None,
    observer: Observer | None = None,
    on_silence: OnSilence = None,
) -> "Client":
    """A client of the cluster behind this balancer. Connecting happens on first use.

    timeout_s: how long a call may take without progress before it raises.
    seed: makes request ids and batch ids repeatable, for tests.
    observer: told of every message as it is sent or received; `dws trace` is one.
    on_silence: called once, with the seconds a call may take, if nothing has answered for the first two.
    Raises ConfigError if `balancer` is no endpoint of the form tcp://HOST:PORT.
    """
    with_offset(balancer, 0)
    return Client(
        balancer, timeout_s=timeout_s, context=context, seed=seed, observer=observer, on_silence=on_silence
    )


class Client:
    """Calls block until they are done or raise a dws.errors.DwsError.

    One client belongs to the thread that made it; others make their own.
    """

    def __init__(
        self,
        balancer: str,
        *,
        timeout_s: float = 10.0,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
        seed: int | None = None,
        observer: Observer | None = None,
        on_silence: OnSilence = None,
    ) -> None:
        self.balancer = balancer
        self.timeout_s = timeout_s
        self.served: Counter[str] = Counter()
        """Web server → pages (or chunks of large pages) that it delivered to this client."""
        self._rng = random.Random(seed) if seed is not None else random.Random(secrets.randbits(64))
        self._runner = Runner(balancer, context, self._rng, observer, on_silence)
        self._directory = self._runner.directory

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._runner.close()

    # -- reading -------------------------------------------------------------------------

    def get(self, name: str) -> bytes:
        """The page's bytes, up to 64 MiB; NotFound if there is no such page."""
        check_is_name(name)
        return self.get_many([name])[name]

    def get_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Pages by name. Up to 1,000 names are one lookup, so one moment of the catalog."""
        names = checked_names(names)
        pages: dict[str, bytes] = {}
        try:
            for start in range(0, len(names), LOCATE_MAX_NAMES):
                pages |= self._get_some(list(dict.fromkeys(names[start : start + LOCATE_MAX_NAMES])))
        except NotFound:
            # Looked at only now, so that names that are right cost nothing.
            for name in names:
                check_name(name)
            raise
        return pages

    def _get_some(self, names: list[str]) -> dict[str, bytes]:
        reading = ReadPages(self._directory, self._deadline(), names)
        small, large = self._runner.run(reading)
        self._count(reading.sources)
        for page in large:
            if page.size > GET_MAX_BYTES:
                raise OverBound(
                    f"{page.name} has {page.size:,} bytes, get returns up to {GET_MAX_BYTES:,}: "
                    f"use download or open"
                )
            small[page.name] = b"".join(self._chunks(self._stream(page.name, page)))
        result: dict[str, bytes] = small
        return result

    def open(self, name: str) -> "PageReader":
        """A readable stream of a page of any size, in constant memory, digests checked."""
        check_is_name(name)
        stream = self._stream(name)
        self._runner.begin(stream)
        while stream.page is None:
            self._runner.pump()
            self._runner.raise_if_failed(stream)
        return PageReader(self, stream)

    def download(self, name: str, target: Path | BinaryIO, on_progress: OnProgress = None) -> Page:
        """Write a page of any size to a file or stream. A file appears whole or not at all; a stream's
        `write` is given bytes or memoryviews of them."""
        check_is_name(name)
        check_target(target)
        if isinstance(target, Path):
            return self._download_file(name, target, on_progress)
        stream = self._stream(name)
        done = 0
        for chunk in self._chunks(stream):
            target.write(chunk)
            done += len(chunk)
            if on_progress is not None and stream.page is not None:
                on_progress(Progress(0, 1, done, stream.page.size, 0, 0, name))
        page: Page = stream.result
        return page

    def _download_file(self, name: str, path: Path, on_progress: OnProgress) -> Page:
        if path.exists() and not path.is_file():
            # A device or a pipe is written to; to rename over it would put a file in its place.
            with path.open("wb") as file:
                return self.download(name, file, on_progress)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as file:
                page = self.download(name, file, on_progress)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return page

    def _stream(self, name: str, page: Page | None = None) -> StreamPage:
        return StreamPage(self._directory, time.monotonic(), self.timeout_s, name, page)

    def _chunks(self, stream: StreamPage) -> Iterator[bytes | memoryview]:
        if stream not in self._runner and not stream.finished:
            self._runner.begin(stream)
        while True:
            while stream.ready:
                yield stream.ready.popleft()
            if stream.finished:
                self._count(stream.sources)
                self._runner.raise_if_failed(stream)
                return
            self._runner.pump()

    # -- writing ----------------------------------------------------------------------------

    def put(
        self,
        pages: Mapping[str, Source],
        *,
        copies: int | None = None,
        conditions: Mapping[str, int] | None = None,
        content_types: Mapping[str, str] | None = None,
        modified: Mapping[str, float] | None = None,
        timeout_s: float = 60.0,
        on_progress: OnProgress = None,
    ) -> PutResult:
        """Store pages, all or none, and return once `copies` servers have them on disk.

        One call is one batch: at most 1,000 pages and 64 MiB, or one page of any
        size. conditions: name → messages.ABSENT, or the version it must have.
        """
        check_pages(pages)
        self._check_batch(pages)
        items = [self._item(name, source, len(pages) == 1) for name, source in pages.items()]
        for item in items:
            item.condition = (conditions or {}).get(item.name, ANY)
            item.content_type = (content_types or {}).get(item.name) or content_type(item.name)
            item.modified = (modified or {}).get(item.name, time.time())
        try:
            return self._put_items(items, copies or _DEFAULT_COPIES, timeout_s, on_progress)
        finally:
            for item in items:
                item.source.close()

    def _put_items(
        self, items: list[PutItem], copies: int, timeout_s: float, on_progress: OnProgress
    ) -> PutResult:
        operation, progress = self._put_operation(items, copies, timeout_s, on_progress)
        try:
            stored: Stored = self._runner.run(operation)
        except BaseException:
            self._runner.abandon(operation)
            raise
        return PutResult(stored.version, len(items), progress.bytes_done, stored.skipped, stored.copies)

    def _put_operation(
        self, items: list[PutItem], copies: int, timeout_s: float, on_progress: OnProgress
    ) -> tuple[PutBatch, Progress]:
        known = sum(item.size for item in items) if all(item.size >= 0 for item in items) else None
        text = items[0].name if len(items) == 1 else f"{len(items)} pages"
        progress = Progress(0, len(items), 0, known, 0, copies, text)

        def staged(size_bytes: int) -> None:
            progress.bytes_done = size_bytes
            if on_progress is not None:
                on_progress(progress)

        def stored(count: int, wanted: int) -> None:
            progress.copies_stored, progress.copies = count, wanted
            if on_progress is not None:
                on_progress(progress)

        # Nobody watches: one answer at the end is enough.
        on_stored = None if on_progress is None else stored

        limit_s = timeout_s + (known or 0) / _SLOW_BYTES_S
        if not all(item.source.rereadable for item in items):
            limit_s += _STREAM_S
        deadline = time.monotonic() + limit_s
        operation = PutBatch(
            self._directory, deadline, self._new_id, items, copies, staged, on_stored, timeout_s
        )
        return operation, progress

    def upload(
        self,
        directory: Path,
        to: str = "/",
        *,
        copies: int | None = None,
        if_absent: bool = False,
        timeout_s: float = 60.0,
        on_progress: OnProgress = None,
    ) -> UploadResult:
        """Put every file below a directory; its contents go under the prefix `to`.

        Cut into batches: atomic a batch, not a tree. Files whose page has the same
        bytes already are skipped. Symbolic links and file names that are not UTF-8
        are listed in the error, before anything is sent.
        """
        check_is_directory_path(directory)
        files = scan_tree(directory, to)
        return self.upload_files(
            files, copies=copies, if_absent=if_absent, timeout_s=timeout_s, on_progress=on_progress
        )

    def upload_files(
        self,
        files: Sequence[tuple[str, Path, int]],
        *,
        copies: int | None = None,
        if_absent: bool = False,
        timeout_s: float = 60.0,
        on_progress: OnProgress = None,
    ) -> UploadResult:
        """As `upload`, of (page name, file, size) given one by one; several batches at a time."""
        size_bytes = sum(size for _, _, size in files)
        total = Progress(0, len(files), 0, size_bytes, 0, copies or _DEFAULT_COPIES, "")
        result = UploadResult(0, 0, 0, 0, total.copies)
        waiting = deque(_cut(files))
        running: dict[PutBatch, list[PutItem]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < _UPLOAD_WINDOW:
                    items = self._file_items(waiting.popleft(), if_absent)
                    operation, _ = self._put_operation(items, total.copies, timeout_s, None)
                    running[operation] = items
                    self._runner.begin(operation)
                self._runner.pump()
                for operation in [each for each in running if each.finished]:
                    items = running.pop(operation)
                    self._finish_batch(operation, items, result)
                    total.pages_done, total.bytes_done = result.pages, result.bytes
                    total.text = items[-1].name
                    if on_progress is not None:
                        on_progress(total)
        except BaseException:
            for operation, items in running.items():
                self._runner.abandon(operation)
                for item in items:
                    item.source.close()
            raise
        return result

    def _file_items(self, files: list[tuple[str, Path, int]], if_absent: bool) -> list[PutItem]:
        items = []
        for name, path, _ in files:
            item = self._item(name, path, len(files) == 1)
            item.condition = messages.ABSENT if if_absent else ANY
            item.content_type = content_type(name)
            item.modified = path.stat().st_mtime
            items.append(item)
        return items

    def _finish_batch(self, operation: PutBatch, items: list[PutItem], result: UploadResult) -> None:
        for item in items:
            item.source.close()
        self._runner.raise_if_failed(operation)
        result.pages += len(items)
        result.bytes += sum(max(0, item.size) for item in items)
        result.skipped += len(operation.result.skipped)
        result.copies = operation.result.copies
        result.batches += 1

    def _check_batch(self, pages: Mapping[str, Source]) -> None:
        if not pages:
            raise OverBound("a batch has at least one page")
        if len(pages) > BATCH_MAX_PAGES:
            raise OverBound(f"a batch has at most {BATCH_MAX_PAGES:,} pages, this one {len(pages):,}")
        for name in pages:
            check_name(name)

    def _item(self, name: str, source: Source, alone: bool) -> PutItem:
        """Small sources are read at once, so that their digests are known when the batch is placed."""
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            return PutItem(name, BytesSource(data), len(data), blake3(data).digest())
        if isinstance(source, Path):
            file = FileSource(source)
            if alone and file.size > CHUNK_BYTES:
                return PutItem(name, file, file.size)
            try:
                if file.size > BATCH_MAX_BYTES:
                    raise OverBound(f"{name} has {file.size:,} bytes: a page of over 64 MiB is a batch alone")
                data = file.read(0, file.size)
            finally:
                file.close()
            return PutItem(name, BytesSource(data), len(data), blake3(data).digest())
        if not alone:
            raise OverBound(f"{name}: a stream is a batch by itself")
        if isinstance(source, SizedStream):
            return PutItem(name, StreamSource(source.stream), source.size)
        return PutItem(name, StreamSource(source))

    def remove(
        self, names: Sequence[str], *, conditions: Mapping[str, int] | None = None, timeout_s: float = 30.0
    ) -> RemoveResult:
        """Take pages out of the catalog; up to 1,000 names are one decision. Missing ones are no error."""
        removed = 0
        unique = list(dict.fromkeys(checked_names(names)))
        for start in range(0, len(unique), BATCH_MAX_PAGES):
            some = {
                name: (conditions or {}).get(name, ANY) for name in unique[start : start + BATCH_MAX_PAGES]
            }
            deadline = time.monotonic() + timeout_s
            removed += self._runner.run(RemovePages(self._directory, deadline, self._new_id, some))
        return RemoveResult(removed)

    # -- asking ----------------------------------------------------------------------------

    def list(self, prefix: str = "/") -> Iterator[messages.Record]:
        """Records of all pages whose name starts with `prefix`, in order."""
        after = ""
        while True:
            listing = self._call(List(prefix, after, LIST_MAX_ENTRIES))
            yield from listing.records
            if not listing.more:
                return
            after = listing.records[-1].name

    def stat(self, names: Iterable[str]) -> _PageStats:
        """Record and holders of each page, None where there is no such page."""
        wanted = checked_names(names)
        stats: _PageStats = []
        for start in range(0, len(wanted), LOCATE_MAX_NAMES):
            stats += self._call(Stat(wanted[start : start + LOCATE_MAX_NAMES])).pages
        return stats

    def status(self) -> messages.ClusterStatus:
        status: messages.ClusterStatus = self._call(Status())
        return status

    def drain(self, server: str, number: int = 0) -> messages.Maintained:
        """Have everything copied off a web server; `status` tells how much is left to move. number: of its
        namesakes, this one. Raises Refused, TooFewServers."""
        return self._maintain(Drain(server, number))

    def resume(self, server: str, number: int = 0) -> messages.Maintained:
        """Take a drain back. Raises Refused."""
        return self._maintain(Resume(server, number))

    def forget(self, server: str, number: int = 0, *, force: bool = False) -> messages.Maintained:
        """A dead web server will not come back. force: though a page's last copy may lie there.
        Raises Refused."""
        return self._maintain(Forget(server, number, force))

    def _maintain(self, request: Drain | Resume | Forget) -> messages.Maintained:
        maintained: messages.Maintained = self._call(request)
        return maintained

    def why(self, name: str) -> messages.Because:
        check_is_name(name)
        because: messages.Because = self._call(Why(name))
        if not because.version:
            raise NotFound(f"no such page: {name}")
        return because

    def node_stats(self, server: str, top: int = 20) -> messages.NodeStatsAre:
        """A web server's own counters and its most visited pages."""
        self._runner.run(ReadPages(self._directory, self._deadline(), []))
        for number, known in self._directory.servers.items():
            if known.name == server:
                stats: messages.NodeStatsAre = self._call(NodeStats(top), number)
                return stats
        raise NotFound(f"no web server named {server}")

    def ping(self) -> int:
        """The balancer's epoch."""
        epoch: int = self._call(Ping()).epoch
        return epoch

    def _call(self, message: Any, server: int = 0) -> Any:
        return self._runner.run(Call(self._directory, self._deadline(), message, server))

    # -- the loop --------------------------------------------------------------------------

    def _count(self, sources: dict[int, int]) -> None:
        for number, pages in sources.items():
            self.served[self._directory.name(number)] += pages

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout_s

    def _new_id(self) -> bytes:
        return self._rng.randbytes(16)


class PageReader(io.RawIOBase):
    """A page as a readable stream. It belongs to its client's thread."""

    def __init__(self, client: Client, stream: StreamPage) -> None:
        self._client = client
        self._stream = stream
        self._chunks = client._chunks(stream)
        self._rest: memoryview = memoryview(b"")

    @property
    def page(self) -> Page:
        assert self._stream.page is not None
        return self._stream.page

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._client._runner.forget(self._stream)
        super().close()


def _cut(files: Sequence[tuple[str, Path, int]]) -> Iterator["list[tuple[str, Path, int]]"]:
    """Files in batches; a large one is a batch by itself."""
    batch: list[tuple[str, Path, int]] = []
    size_bytes = 0
    for file in files:
        if file[2] > CHUNK_BYTES:
            yield [file]
            continue
        if batch and (len(batch) == BATCH_MAX_PAGES or size_bytes + file[2] > _UPLOAD_BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(file)
        size_bytes += file[2]
    if batch:
        yield batch
