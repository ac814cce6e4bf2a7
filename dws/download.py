"""Reading pages: retries, failover, grouping.

What lives here: lookups, batches of small pages, and one page chunk by chunk. A
holder that is slow, gone or wrong is left for the other one; when no holder is
left, the call looks up all its names again, so that it never mixes two
decisions. What must not: sockets and clocks (nodes/client.py runs operations).
"""

from collections import deque
from typing import Any, Final

from blake3 import blake3
from msgspec import Struct

from dws.client import HOLDER_TIMEOUT_S, Directory, Operation, Send, timed_out
from dws.errors import BadRequest, DwsError, IntegrityError, NotFound, Unavailable, from_code
from dws.limits import CHUNK_BYTES, MIB
from dws.messages import (
    NO_ROOM,
    DigestList,
    Digests,
    Doubt,
    Error,
    Fetch,
    Fetched,
    Locate,
    Located,
    Read,
    ReadData,
)
from patterns.transfer import Transfer

_FETCH_BYTES: Final = MIB
_FETCH_PAGES: Final = 500
_CREDIT_BYTES: Final = 8 * MIB
#: Waits between two lookups of one call that found no good holder.
_AGAIN_S: Final = 0.05
_AGAIN_MAX_S: Final = 1.0


class Page(Struct, gc=False):
    """A located page: exactly one version of it, and who holds it, best first."""

    name: str
    version: int
    size: int
    digest: bytes
    list_digest: bytes
    holders: list[int]


class LocatePages(Operation):
    """Locate names, waiting while a holder may yet come. Subclasses go on in `located`."""

    def __init__(self, directory: Directory, deadline: float, names: list[str]) -> None:
        super().__init__(directory, deadline)
        self._names = names
        self._round = 0
        """Rises with each lookup: answers to requests of an earlier round are late."""
        self._why = ""
        self._silent: dict[int, None] = {}  # servers that were asked in vain

    def start(self, now: float) -> list[Send]:
        self._round += 1
        avoid = self.directory.avoid(now)
        request = Locate(self._names, self.directory.table, avoid)
        return [self.to_balancer(request, ("located", self._round))]

    def located(self, pages: list[Page], now: float) -> list[Send]:
        self.finish(pages)
        return []

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        self.heard_balancer()
        if tag[1] != self._round:
            return []
        if isinstance(message, Error):
            if message.retry_s:
                self._why = message.text
                return self.pause(now, message.retry_s)
            self.fail(from_code(message.code, message.text))
            return []
        if not self._is_answer(message):
            self.fail(BadRequest("the balancer answered a lookup with something else"))
            return []
        self.directory.learn(message)
        if None in message.pages:
            missing = [name for name, page in zip(self._names, message.pages, strict=True) if page is None]
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            self.fail(NotFound(f"no such page: {', '.join(missing[:5])}{more}"))
            return []
        for later in message.later:
            if not later.retry_s:
                where = f"; last on {later.last}" if later.last else ""
                self.fail(Unavailable(f"{self._names[later.index]}: no live server holds it{where}"))
                return []
            self._why = "servers that may hold the page are not in sync yet"
            return self.pause(now, later.retry_s)
        found: Any = message.pages
        return self.located([Page(name, *each) for name, each in zip(self._names, found, strict=True)], now)

    def _is_answer(self, message: Any) -> bool:
        if not isinstance(message, Located) or len(message.pages) != len(self._names):
            return False
        if message.later:
            return all(later.index < len(self._names) for later in message.later)
        return all(page is None or page[4] for page in message.pages)

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        if tag[1] != self._round:
            return []
        self._heard_balancer = False
        return self.start(now)

    def again(self, now: float, why: str) -> list[Send]:
        """No holder was good: look everything up again, so that two decisions are never mixed."""
        self._why = why
        self._round += 1
        return self.pause(now, min(_AGAIN_MAX_S, _AGAIN_S * self._round))

    def late(self) -> DwsError:
        if not self._heard_balancer:
            return super().late()
        if self._why.startswith("wrong"):
            return IntegrityError(self._why)
        if self._why:
            return Unavailable(self._why)
        return timed_out(self._names, self.directory, [*self._silent, *self._waits_for()])

    def _waits_for(self) -> list[int]:
        return []


class ReadPages(LocatePages):
    """Whole small pages of different names, many at once. Result: (name → bytes, pages too large for it)."""

    def __init__(self, directory: Directory, deadline: float, names: list[str]) -> None:
        super().__init__(directory, deadline, names)
        self._got: dict[str, bytes] = {}
        self._large: list[Page] = []
        self._groups: deque[tuple[int, list[Page], int]] = deque()
        """Server, pages and their bytes of each request that is to be sent."""
        self._asked: dict[int, tuple[int, list[Page], int]] = {}
        self._serial = 0
        self._outstanding_bytes = 0
        self.sources: dict[int, int] = {}
        """Server → pages that it delivered."""

    def located(self, pages: list[Page], now: float) -> list[Send]:
        self._got.clear()
        self._asked.clear()
        self._groups.clear()
        self._outstanding_bytes = 0
        self._large = []
        by_server: dict[int, list[Page]] = {}
        for page in pages:
            if page.size > CHUNK_BYTES:
                self._large.append(page)
                continue
            held = by_server.get(page.holders[0])
            if held is None:
                by_server[page.holders[0]] = [page]
            else:
                held.append(page)
        for server, held in by_server.items():
            self._enqueue(server, held)
        return self._go_on()

    def _enqueue(self, server: int, pages: list[Page]) -> None:
        """Cut pages of one server into requests."""
        group: list[Page] = []
        size_bytes = 0
        for page in pages:
            if group and (size_bytes + page.size > _FETCH_BYTES or len(group) == _FETCH_PAGES):
                self._groups.append((server, group, size_bytes))
                group, size_bytes = [], 0
            group.append(page)
            size_bytes += page.size
        if group:
            self._groups.append((server, group, size_bytes))

    def _go_on(self) -> list[Send]:
        sends = []
        while self._groups and (not self._asked or self._outstanding_bytes < _CREDIT_BYTES):
            server, group, size_bytes = asked = self._groups.popleft()
            self._serial += 1
            self._asked[self._serial] = asked
            self._outstanding_bytes += size_bytes
            request = Fetch([(page.name, page.version) for page in group])
            sends.append(Send(server, request, ("fetched", self._round, self._serial), HOLDER_TIMEOUT_S))
        if not sends and not self._asked and not self._groups:
            self.finish((self._got, self._large))
        return sends

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        if tag[0] == "located":
            return super().answered(tag, message, data, now)
        if tag[1] != self._round:
            return []
        server, group = self._take(tag[2])
        if not isinstance(message, Fetched) or len(message.sizes) != len(group):
            return self._elsewhere(server, group, now, "an unexpected answer")
        begin = delivered = 0
        got = self._got
        bad: list[Page] = []
        wrong: list[Page] = []
        for page, size in zip(group, message.sizes, strict=True):
            if size == page.size:
                body = bytes(data[begin : begin + size])
                if blake3(body).digest() == page.digest:
                    got[page.name] = body
                    delivered += 1
                else:
                    self._why = f"wrong digest: {page.name} from {self.directory.name(server)}"
                    bad.append(page)
                    wrong.append(page)
            elif size == NO_ROOM:
                self._enqueue(server, [page])
            else:
                bad.append(page)
            if size > 0:
                begin += size
        if delivered:
            self.sources[server] = self.sources.get(server, 0) + delivered
        if bad:
            why = self._why or f"not held by {self.directory.name(server)}"
            return _doubt(server, wrong) + self._elsewhere(server, bad, now, why)
        return self._go_on()

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        if tag[0] == "located":
            return super().unanswered(tag, now)
        if tag[1] != self._round:
            return []
        server, group = self._take(tag[2])
        self._silent[server] = None
        return self._elsewhere(server, group, now, f"no answer from {self.directory.name(server)}")

    def _waits_for(self) -> list[int]:
        return [server for server, _, _ in self._asked.values()]

    def _take(self, serial: int) -> tuple[int, list[Page]]:
        server, group, size_bytes = self._asked.pop(serial)
        self._outstanding_bytes -= size_bytes
        return server, group

    def _elsewhere(self, server: int, pages: list[Page], now: float, why: str) -> list[Send]:
        """Ask the next holder of each page; where there is none, look up everything again."""
        self.directory.complain(server, now)
        by_server: dict[int, list[Page]] = {}
        for page in pages:
            page.holders = [holder for holder in page.holders if holder != server]
            if not page.holders:
                return self.again(now, f"{why} for {page.name}" if "wrong" not in why else why)
            by_server.setdefault(page.holders[0], []).append(page)
        for other, moved in by_server.items():
            self._enqueue(other, moved)
        return self._go_on()


class StreamPage(LocatePages):
    """One page of any size, chunk by chunk, in order, digests checked.

    `ready` fills with chunks, as they came: nobody copies them; the runner takes them out and runs on until
    `finished`. The size is known once `page` is set. patience_s: the longest time without progress.
    """

    def __init__(
        self, directory: Directory, now: float, patience_s: float, name: str, page: Page | None = None
    ) -> None:
        super().__init__(directory, now + patience_s, [name])
        self.page = page
        self.ready: deque[bytes | memoryview] = deque()
        self.sources: dict[int, int] = {}
        self._patience_s = patience_s
        self._digests = b""
        self._transfer: Transfer | None = None
        self._held: dict[int, bytes | memoryview] = {}
        self._since_round = 0  # chunks asked for before it are of another version

    def start(self, now: float) -> list[Send]:
        if self.page is not None and self._round == 0:
            return self.located([self.page], now)
        return super().start(now)

    def located(self, pages: list[Page], now: float) -> list[Send]:
        page = pages[0]
        if self._transfer is not None and self.page is not None and page.version != self.page.version:
            if self._transfer.position:
                text = "was replaced while it was read, and no server has the old version"
                self.fail(Unavailable(f"{page.name} {text}"))
                return []
            self._transfer, self._digests, self._since_round = None, b"", self._round
            self._held.clear()
        self.page = page
        if self._transfer is None:
            self._transfer = Transfer(page.size, CHUNK_BYTES, _CREDIT_BYTES)
        if page.size > CHUNK_BYTES and not self._digests:
            request = Digests(page.name, page.version)
            return [Send(page.holders[0], request, ("digests", self._round), HOLDER_TIMEOUT_S)]
        return self._read_on()

    def check(self) -> None:
        if self._transfer is not None:
            self._transfer.check()

    def _read_on(self) -> list[Send]:
        assert self.page is not None and self._transfer is not None
        if self._transfer.done:
            self.finish(self.page)
            return []
        page = self.page
        holder = page.holders[0]
        return [
            Send(
                holder, Read(page.name, page.version, offset, length),
                ("chunk", self._round, holder, offset), HOLDER_TIMEOUT_S,
            )
            for offset, length in self._transfer.ask()
        ]  # fmt: skip

    def answered(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        if tag[0] == "located":
            return super().answered(tag, message, data, now)
        if tag[0] == "digests":
            return self._take_digests(tag, message, data, now)
        assert self._transfer is not None
        _, round_, holder, offset = tag
        if round_ < self._since_round:
            return []
        if isinstance(message, ReadData) and self._is_right(offset, data):
            self.deadline = now + self._patience_s
            self._held[offset] = data
            for ready in self._transfer.arrive(offset):
                self.ready.append(self._held.pop(ready))
            self.sources[holder] = self.sources.get(holder, 0) + 1
            return self._read_on() if round_ == self._round else []
        is_wrong = isinstance(message, ReadData)
        doubt = _doubt(holder, [self.page] if is_wrong and self.page is not None else [])
        why = "wrong digest" if is_wrong else "not held"
        return doubt + self._elsewhere(holder, offset, round_, now, why)

    def _is_right(self, offset: int, data: Any) -> bool:
        assert self.page is not None
        digest = blake3(data).digest()
        if self.page.size <= CHUNK_BYTES:
            return digest == self.page.digest
        begin = offset // CHUNK_BYTES * 32
        return digest == self._digests[begin : begin + 32]

    def _take_digests(self, tag: Any, message: Any, data: Any, now: float) -> list[Send]:
        assert self.page is not None
        if tag[1] != self._round:
            return []
        if isinstance(message, DigestList) and blake3(data).digest() == self.page.list_digest:
            self._digests = bytes(data)
            return self._read_on()
        holder = self.page.holders[0]
        doubt = _doubt(holder, [self.page] if isinstance(message, DigestList) else [])
        return doubt + self._leave(holder, now, "wrong digest list")

    def unanswered(self, tag: Any, now: float) -> list[Send]:
        if tag[0] == "located":
            return super().unanswered(tag, now)
        assert self.page is not None
        if tag[0] == "digests":
            return self._leave(self.page.holders[0], now, "no answer") if tag[1] == self._round else []
        if tag[1] < self._since_round:
            return []
        return self._elsewhere(tag[2], tag[3], tag[1], now, "no answer")

    def _waits_for(self) -> list[int]:
        return self.page.holders[:1] if self.page is not None else []

    def _elsewhere(self, holder: int, offset: int, round_: int, now: float, why: str) -> list[Send]:
        """A chunk did not come: it is asked for again, of another holder from here on."""
        assert self._transfer is not None and self.page is not None
        self._transfer.fail(offset)
        if round_ != self._round:
            return []
        if holder in self.page.holders:
            return self._leave(holder, now, why)
        return self._read_on()

    def _leave(self, holder: int, now: float, why: str) -> list[Send]:
        assert self.page is not None
        self._silent |= {holder: None} if why == "no answer" else {}
        self.directory.complain(holder, now)
        self.page.holders = [each for each in self.page.holders if each != holder]
        if not self.page.holders:
            return self.again(now, f"{why}: {self.page.name} from {self.directory.name(holder)}")
        return self.located([self.page], now)


def _doubt(server: int, pages: list[Page]) -> list[Send]:
    """Have a server look at what it delivered wrong. Its answer is of no round, and so passed over."""
    if not pages:
        return []
    doubt = Doubt([(page.name, page.version) for page in pages])
    return [Send(server, doubt, ("doubted", -1, 0, 0), HOLDER_TIMEOUT_S)]
