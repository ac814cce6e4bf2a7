"""Reading: lookups, small pages many at once, a large one chunk by chunk.

The balancer and the holders are played by hand: `Library` knows which page is where and what it holds, and a
test says who answers, who is silent, and who lies.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from dws import errors
from dws.client import Call, Directory, Operation, Send
from dws.download import LocatePages, Page, ReadPages, StreamPage
from dws.limits import CHUNK_BYTES, KIB, MIB
from dws.messages import (
    NO_ROOM,
    NOT_HELD,
    DigestList,
    Digests,
    Doubt,
    Error,
    Fetch,
    Fetched,
    Later,
    Locate,
    Located,
    Ping,
    Pong,
    Read,
    ReadData,
    ServerRef,
)
from tests.dws.test_copying import digest_list

LARGE = Random(1).randbytes(11 * MIB + 3)
SERVERS = [ServerRef(number, f"web-{number}", f"tcp://web-{number}:1", number) for number in (1, 2, 3)]


def spoilt(data: bytes) -> bytes:
    """Other bytes in each chunk."""
    changed = bytearray(data)
    for offset in range(0, len(data), CHUNK_BYTES):
        changed[offset] ^= 1
    return bytes(changed)


class Library:
    """What is where. pages: name → (version, bytes, holders)."""

    def __init__(self, **pages: tuple[bytes, list[int]]) -> None:
        self.pages = {f"/{name}": (1, data, holders) for name, (data, holders) in pages.items()}
        self.silent: set[int] = set()
        self.lying: set[int] = set()
        self.empty: set[int] = set()
        self.later: list[Later] = []
        self.doubted: set[tuple[int, str, int]] = set()

    def answer(self, send: Send) -> tuple[Any, bytes] | None:
        """The answer to a request; None: silence."""
        match send.message:
            case Locate(names, table):
                return self._located(names, table), b""
            case _ if send.server in self.silent:
                return None
            case Fetch(pages):
                found = [self._bytes(send.server, name, version) for name, version in pages]
                sizes = [NOT_HELD if data is None else len(data) for data in found]
                return Fetched(sizes), b"".join(data or b"" for data in found)
            case Digests(name, version):
                data = self._bytes(send.server, name, version)
                joined = digest_list(data or b"")
                return (DigestList(len(joined) // 32), joined) if data else (Error("not-held", ""), b"")
            case Read(name, version, offset, length):
                data = self._bytes(send.server, name, version)
                if data is None:
                    return Error("not-held", "gone"), b""
                return ReadData(offset, length), data[offset : offset + length]
            case Doubt(pages):
                self.doubted |= {(send.server, name, version) for name, version in pages}
                return Pong("", 0, 5), b""
        raise AssertionError(send)

    def _located(self, names: list[str], table: int) -> Located:
        found: list[Any] = []
        for name in names:
            if name not in self.pages:
                found.append(None)
                continue
            version, data, holders = self.pages[name]
            listed = blake3(digest_list(data)).digest() if len(data) > CHUNK_BYTES else b""
            found.append((version, len(data), blake3(data).digest(), listed, list(holders)))
        return Located(5, 9, None if table == 9 else SERVERS, found, self.later)

    def _bytes(self, server: int, name: str, version: int) -> bytes | None:
        known, data, _ = self.pages[name]
        if server in self.empty or version != known:
            return None
        return spoilt(data) if server in self.lying else data


class Hand:
    """An operation and a library that answers it. order: takes out the request that is answered next."""

    def __init__(self, make: Callable[[Directory, float], Operation], library: Library) -> None:
        self.now = 100.0
        self.library = library
        self.directory = Directory()
        self.operation = make(self.directory, self.now)
        self.open: list[Send] = []
        self.asked: list[Send] = []
        self.order: Callable[[list[Send]], Send] = lambda sends: sends.pop(0)
        self.most_open = 0
        self.give_up_at: dict[int, float] = {}
        self.keep(self.operation.start(self.now))

    def keep(self, sends: list[Send]) -> None:
        self.open += sends
        self.asked += sends
        self.give_up_at |= {id(send): self.now + send.timeout_s for send in sends}
        self.most_open = max(self.most_open, len(self.open))

    def step(self) -> None:
        """One answer or silence; else time passes."""
        if not self.open:
            self.now = max(self.now, self.operation.wake_at())
            self.keep(self.operation.tick(self.now))
            return
        send = self.order(self.open)
        answer = self.library.answer(send)
        if answer is None:
            self.now = max(self.now, self.give_up_at[id(send)])
            self.keep(self.operation.unanswered(send.tag, self.now))
        else:
            self.keep(self.operation.answered(send.tag, answer[0], memoryview(answer[1]), self.now))
        self.keep(self.operation.tick(self.now))

    def run(self, steps: int = 2_000) -> "Hand":
        for _ in range(steps):
            if self.operation.finished:
                return self
            self.step()
        raise AssertionError("it does not come to an end")

    def kinds(self, kind: type[Any]) -> list[Send]:
        return [send for send in self.asked if isinstance(send.message, kind)]


def read(library: Library, *names: str, deadline_s: float = 10.0) -> Hand:
    return Hand(lambda directory, now: ReadPages(directory, now + deadline_s, list(names)), library)


def stream(library: Library, name: str = "/a", page: Page | None = None, patience_s: float = 10.0) -> Hand:
    return Hand(lambda directory, now: StreamPage(directory, now, patience_s, name, page), library)


def text(hand: Hand) -> str:
    assert hand.operation.error is not None
    return str(hand.operation.error)


# -- lookups ---------------------------------------------------------------------------


def test_a_page_that_the_catalog_does_not_name_is_not_found_at_once() -> None:
    hand = read(Library(a=(b"x", [1])), "/a", "/none").run()
    assert isinstance(hand.operation.error, errors.NotFound) and "/none" in text(hand)
    assert len(hand.asked) == 1


def test_servers_are_learned_once_and_asked_for_by_table() -> None:
    library = Library(a=(b"x", [1]))
    hand = read(library, "/a").run()
    assert (hand.directory.epoch, hand.directory.table, hand.directory.name(2)) == (5, 9, "web-2")
    operation = LocatePages(hand.directory, hand.now + 9, ["/a"])
    (send,) = operation.start(hand.now)
    assert send.message.table == 9
    operation.answered(send.tag, *library.answer(send), hand.now)  # type: ignore[misc]
    assert operation.result[0].holders == [1] and hand.directory.name(2) == "web-2"


def test_without_a_live_holder_it_waits_while_one_may_come_and_else_says_who_had_it() -> None:
    library = Library(a=(b"x", []))
    library.later = [Later(0, 0.1, "web-3")]
    hand = read(library, "/a")
    for _ in range(6):
        hand.step()
    assert not hand.operation.finished and len(hand.kinds(Locate)) >= 2
    library.pages["/a"], library.later = (1, b"x", [1]), []
    assert hand.run().operation.result == ({"/a": b"x"}, [])
    library.pages["/a"], library.later = (1, b"x", []), [Later(0, 0.0, "web-3")]
    hand = read(library, "/a").run()
    assert isinstance(hand.operation.error, errors.Unavailable) and "last on web-3" in text(hand)


@pytest.mark.parametrize("wrong", ["too few pages", "no holders", "an index out of range", "another message"])
def test_an_answer_that_makes_no_sense_is_an_error(wrong: str) -> None:
    hand = read(Library(), "/a")
    page = (1, 1, b"d" * 32, b"", [1])
    answers: dict[str, Any] = {
        "too few pages": Located(5, 9, SERVERS, []),
        "no holders": Located(5, 9, SERVERS, [(*page[:4], [])]),
        "an index out of range": Located(5, 9, SERVERS, [page], [Later(7, 0.1, "")]),
        "another message": Pong("balancer", 0, 1),
    }
    hand.operation.answered(hand.open[0].tag, answers[wrong], b"", hand.now)
    assert isinstance(hand.operation.error, errors.BadRequest)


def test_a_balancer_that_is_silent_is_asked_until_the_deadline() -> None:
    hand = read(Library(), "/a", deadline_s=4.5)
    for _ in range(4):
        send = hand.open.pop(0)
        hand.now += send.timeout_s
        hand.keep(hand.operation.unanswered(send.tag, hand.now))
    assert not hand.operation.finished
    hand.now += 1
    hand.operation.tick(hand.now)
    assert isinstance(hand.operation.error, errors.Unreachable)


@pytest.mark.parametrize("make", [read, stream])
def test_the_page_and_the_servers_that_gave_no_answer_are_named_at_the_deadline(
    make: Callable[..., Hand],
) -> None:
    library = Library(a=(b"x", [1, 2]))
    library.silent = {1, 2}
    hand = make(library, "/a", **{"deadline_s" if make is read else "patience_s": 1.5})
    hand.step()
    hand.step()
    hand.now += 0.6
    hand.operation.tick(hand.now)
    assert isinstance(hand.operation.error, errors.TimedOut)
    assert text(hand) == "the deadline passed while /a was read: no answer from web-1, web-2"


def test_a_call_is_repeated_until_it_is_answered() -> None:
    hand = Hand(lambda directory, now: Call(directory, now + 5, Ping()), Library())
    send = hand.open.pop()
    hand.keep(hand.operation.unanswered(send.tag, hand.now))
    hand.keep(hand.operation.answered(hand.open.pop().tag, Error("try-again", "soon", 0.1), b"", hand.now))
    assert not hand.open and not hand.operation.finished
    hand.now += 0.2
    hand.keep(hand.operation.tick(hand.now))
    hand.operation.answered(hand.open.pop().tag, Pong("balancer", 0, 5), b"", hand.now)
    assert hand.operation.result == Pong("balancer", 0, 5)
    refused = Call(Directory(), 5.0, Ping())
    refused.start(0.0)
    refused.answered("call", Error("bad-request", "no"), b"", 0.0)
    assert isinstance(refused.error, errors.BadRequest)


# -- small pages -----------------------------------------------------------------------


def test_pages_come_from_their_best_holders_many_to_a_request() -> None:
    pages = {f"p{number}": (bytes([number]) * number, [1 + number % 2, 3]) for number in range(200)}
    library = Library(**pages)
    hand = read(library, *library.pages).run()
    got, large = hand.operation.result
    assert got == {name: data for name, (_, data, _) in library.pages.items()} and not large
    assert sorted(send.server for send in hand.kinds(Fetch)) == [1, 2]
    assert hand.operation.sources == {1: 100, 2: 100}  # type: ignore[attr-defined]


def test_large_pages_are_named_and_left_to_be_streamed() -> None:
    library = Library(small=(b"x", [1]), large=(bytes(CHUNK_BYTES + 1), [2]))
    got, (page,) = read(library, "/small", "/large").run().operation.result
    assert list(got) == ["/small"] and (page.name, page.size, page.holders) == (
        "/large",
        CHUNK_BYTES + 1,
        [2],
    )


def test_a_credit_of_bytes_bounds_what_is_on_the_way() -> None:
    library = Library(**{f"p{number}": (bytes(900 * KIB), [1]) for number in range(40)})
    hand = read(library, *library.pages)
    hand.run()
    assert len(hand.kinds(Fetch)) == 40 and hand.most_open <= 10


def test_a_page_that_did_not_fit_a_reply_is_asked_for_alone() -> None:
    library = Library(a=(b"one", [1]), b=(b"two", [1]))
    hand = read(library, "/a", "/b")
    hand.step()
    fetch = hand.open.pop()
    hand.keep(hand.operation.answered(fetch.tag, Fetched([3, NO_ROOM]), memoryview(b"one"), hand.now))
    assert hand.open[0].message.pages == [("/b", 1)]
    assert hand.run().operation.result[0] == {"/a": b"one", "/b": b"two"}


@pytest.mark.parametrize("fault", ["silent", "lying", "empty"])
def test_a_bad_holder_is_left_for_the_other_one(fault: str) -> None:
    library = Library(**{f"p{number}": (f"page {number}".encode(), [1, 2]) for number in range(5)})
    getattr(library, fault).add(1)
    hand = read(library, *library.pages).run()
    assert hand.operation.error is None and len(hand.operation.result[0]) == 5
    assert [send.server for send in hand.kinds(Fetch)] == [1, 2]
    assert hand.now - 100 <= 1.0, "at once, or after one second of silence"
    assert hand.directory.avoid(hand.now) == [1], "the next lookup complains"
    assert hand.directory.avoid(hand.now + 10) == []
    # One that lied is to look at its disk.
    assert library.doubted == ({(1, name, 1) for name in library.pages} if fault == "lying" else set())


def test_with_no_good_holder_all_names_are_looked_up_again() -> None:
    """So that a call never mixes two decisions: what it has got of the first is thrown away."""
    library = Library(a=(b"a1", [1]), b=(b"b1", [2]))
    library.silent.add(2)
    hand = read(library, "/a", "/b")
    while len(hand.kinds(Locate)) < 2:
        hand.step()
    library.silent.clear()
    library.pages = {"/a": (2, LARGE, [1]), "/b": (2, b"b2", [2])}
    got, (large,) = hand.run().operation.result
    assert (got, large.name, large.version) == ({"/b": b"b2"}, "/a", 2), "nothing is left of the first"
    assert all(send.message.names == ["/a", "/b"] for send in hand.kinds(Locate))


def test_answers_of_an_earlier_round_are_late() -> None:
    library = Library(a=(b"a1", [1]), b=(b"b1", [2]))
    hand = read(library, "/a", "/b")
    hand.step()
    first_a, first_b = hand.open
    hand.open.clear()
    hand.keep(hand.operation.unanswered(first_b.tag, hand.now))
    hand.keep(hand.operation.answered(first_a.tag, *late(b"a1"), hand.now))
    hand.keep(hand.operation.unanswered(first_a.tag, hand.now))
    library.pages = {"/a": (2, b"a2", [1]), "/b": (2, b"b2", [2])}
    assert hand.run().operation.result[0] == {"/a": b"a2", "/b": b"b2"}


def late(data: bytes) -> tuple[Fetched, memoryview]:
    return Fetched([len(data)]), memoryview(data)


def test_wrong_digests_on_every_copy_are_an_integrity_error_in_the_end() -> None:
    library = Library(a=(b"right", [1, 2]))
    library.lying = {1, 2}
    hand = read(library, "/a", deadline_s=3.0).run()
    assert isinstance(hand.operation.error, errors.IntegrityError) and "/a" in text(hand)


def test_a_page_nobody_gives_is_unavailable_in_the_end_and_says_why() -> None:
    library = Library(a=(b"x", [1]))
    library.silent = {1}
    hand = read(library, "/a", deadline_s=3.0).run()
    assert isinstance(hand.operation.error, errors.Unavailable) and "web-1" in text(hand)


def test_no_names_are_no_pages() -> None:
    assert read(Library()).run().operation.result == ({}, [])


@pytest.mark.parametrize("sizes", [[], [3, 3], [99]])
def test_a_reply_with_other_sizes_is_not_believed(sizes: list[int]) -> None:
    library = Library(a=(b"one", [1, 2]))
    hand = read(library, "/a")
    hand.step()
    hand.keep(hand.operation.answered(hand.open.pop().tag, Fetched(sizes), memoryview(b"one"), hand.now))
    assert [send.server for send in hand.open] == [2]
    assert hand.run().operation.result[0] == {"/a": b"one"}


# -- a stream --------------------------------------------------------------------------


def chunks_of(hand: Hand) -> bytes:
    assert hand.operation.error is None, hand.operation.error
    return b"".join(hand.operation.ready)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 11 * MIB + 3])
def test_a_page_of_any_size_comes_in_order(size: int) -> None:
    data = LARGE[:size]
    hand = stream(Library(a=(data, [1, 2])))
    rng = Random(size)
    hand.order = lambda sends: sends.pop(rng.randrange(len(sends)))
    assert chunks_of(hand.run()) == data
    assert hand.most_open <= 8, "the credit"


def test_a_page_that_was_located_already_is_not_looked_up() -> None:
    library = Library(a=(LARGE[: 2 * MIB], [2]))
    located = read(library, "/a").run().operation.result[1][0]
    hand = stream(library, page=located)
    hand.directory.servers = {server.number: server for server in SERVERS}
    assert chunks_of(hand.run()) == LARGE[: 2 * MIB] and not hand.kinds(Locate)


@pytest.mark.parametrize("fault", ["silent", "lying", "empty"])
@pytest.mark.parametrize("after", range(0, 9, 2))
def test_a_holder_that_turns_bad_is_left_at_the_chunk_where_it_stands(fault: str, after: int) -> None:
    library = Library(a=(LARGE, [1, 2]))
    hand = stream(library)
    for _ in range(after):
        hand.step()
    getattr(library, fault).add(1)
    assert chunks_of(hand.run()) == LARGE
    position = min((send.message.offset for send in hand.kinds(Read) if send.server == 2), default=0)
    assert position >= max(0, after - 2) * CHUNK_BYTES, "what came before is not read again"
    assert library.doubted == ({(1, "/a", 1)} if fault == "lying" else set())
    assert hand.now - 100 < 2.5


def test_a_wrong_digest_list_is_not_believed() -> None:
    library = Library(a=(LARGE, [1, 2]))
    hand = stream(library)
    hand.step()
    send = hand.open.pop()
    assert isinstance(send.message, Digests)
    hand.keep(hand.operation.answered(send.tag, DigestList(12), memoryview(bytes(32 * 12)), hand.now))
    assert chunks_of(hand.run()) == LARGE
    assert {send.server for send in hand.kinds(Read)} == {2}


def test_when_both_holders_fail_the_stream_goes_on_after_another_lookup() -> None:
    library = Library(a=(LARGE, [1, 2]))
    hand = stream(library)
    for _ in range(5):
        hand.step()
    library.silent = {1, 2}
    while len(hand.kinds(Locate)) < 2:
        hand.step()
    library.silent = set()
    library.pages["/a"] = (1, LARGE, [3])
    assert chunks_of(hand.run()) == LARGE
    assert hand.kinds(Locate)[-1].message.avoid, "it complains of those that failed"


def test_a_stream_never_mixes_two_versions() -> None:
    """It was replaced while it was read, and its holders are gone: an error, if any of it was handed on."""
    library = Library(a=(LARGE, [1]))
    hand = stream(library)
    for _ in range(6):
        hand.step()
    assert hand.operation.ready  # type: ignore[attr-defined]
    library.pages["/a"] = (2, LARGE[::-1], [2])
    hand.run()
    assert isinstance(hand.operation.error, errors.Unavailable) and "replaced" in text(hand)


def test_a_version_of_which_nothing_was_handed_on_gives_way_to_the_new_one() -> None:
    library = Library(a=(LARGE, [1]))
    library.silent = {1}
    hand = stream(library)
    while not hand.kinds(Digests):
        hand.step()
    library.pages["/a"] = (2, LARGE[::-1], [2])
    assert chunks_of(hand.run()) == LARGE[::-1]
    assert hand.operation.page.version == 2  # type: ignore[attr-defined]


def test_late_chunks_of_an_earlier_version_are_passed_over() -> None:
    library = Library(a=(LARGE, [1]))
    hand = stream(library)
    hand.step()
    hand.step()
    early = [send for send in hand.open if isinstance(send.message, Read)]
    assert len(early) == 8
    hand.open.clear()
    library.pages["/a"] = (2, LARGE[::-1], [2])
    hand.keep(hand.operation.unanswered(early[0].tag, hand.now))
    while not any(send.server == 2 for send in hand.kinds(Read)):
        hand.step()
    for send in early[1:]:
        offset = send.message.offset
        old = memoryview(LARGE)[offset : offset + CHUNK_BYTES]
        hand.keep(hand.operation.answered(send.tag, ReadData(offset, len(old)), old, hand.now))
        hand.keep(hand.operation.unanswered(send.tag, hand.now))
    assert chunks_of(hand.run()) == LARGE[::-1]


def test_a_stream_waits_as_long_as_there_is_progress() -> None:
    library = Library(a=(LARGE, [1]))
    hand = stream(library, patience_s=1.5)
    while not hand.operation.finished:
        hand.now += 0.4
        hand.step()
    assert chunks_of(hand) == LARGE and hand.now - 100 > 3.0


def test_a_stream_without_progress_ends() -> None:
    library = Library(a=(LARGE, [1]))
    hand = stream(library, patience_s=3.0)
    for _ in range(4):
        hand.step()
    library.silent = {1}
    hand.run()
    assert isinstance(hand.operation.error, errors.Unavailable)
