"""A transfer: 24 MiB in chunks of 1 MiB under a credit of 4 MiB, from either of two sources.

With a fault the first source is killed half-way. Chunks that were on the way from it
fail and come from the second one; nothing is fetched twice that had arrived.
"""

import time
from hashlib import blake2b
from random import Random
from typing import Final

import zmq

from patterns.demos.asking import Asker
from patterns.demos.processes import Child, Parent, play, run_until
from patterns.request_reply import Replier
from patterns.transfer import Transfer
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service

SIZE_BYTES: Final = (24 << 20) - 1000
CHUNK_BYTES: Final = 1 << 20
CREDIT_BYTES: Final = 4 << 20
#: What a source takes for a chunk, so that a reader can follow.
CHUNK_S: Final = 0.02
CHUNK_TIMEOUT_S: Final = 0.5


def large_object() -> bytes:
    """The same bytes in every process."""
    return Random(7).randbytes(SIZE_BYTES)


def source(child: Child, endpoint: str) -> None:
    held = memoryview(large_object())

    def answer(peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        time.sleep(CHUNK_S)
        offset, length = map(int, bytes(body).split())
        service.reply(peer, frame, b"", held[offset : offset + length])

    service = Service(child.bound(zmq.ROUTER, endpoint), Replier[bytes](), answer, lambda *_refused: None)
    child.say("holds the object")
    child.serve(service.socket, service.drain)


class Fetch:
    """Asks for what the credit allows; hashes what is handed on."""

    def __init__(self, parent: Parent, sources: list[str]) -> None:
        self.transfer = Transfer(SIZE_BYTES, CHUNK_BYTES, CREDIT_BYTES)
        self.asker = Asker(parent.context, self._arrived, self._failed)
        self.loop = Reactor(self.asker.requester.wake_at, self._round)
        self.asker.join(self.loop)
        self.digest = blake2b()
        self.asked = 0
        self.most_bytes = 0
        self._parent = parent
        self._sources = sources
        self._held: dict[int, bytes] = {}
        self._told = 0

    def begin(self) -> None:
        self._ask()

    def _round(self, now: float) -> None:
        self.asker.expire(now)
        self._ask()

    def _ask(self) -> None:
        for offset, length in self.transfer.ask():
            self.asked += 1
            # The source travels with the request: a late failure blames the one that was asked.
            tag = (offset, self._sources[0])
            self.asker.ask(self._parent.endpoint(tag[1]), b"%d %d" % (offset, length), tag, CHUNK_TIMEOUT_S)
        bytes_out = CHUNK_BYTES * self.transfer.outstanding + sum(map(len, self._held.values()))
        self.most_bytes = max(self.most_bytes, bytes_out)

    def _arrived(self, tag: tuple[int, str], _body: bytes, data: bytes) -> None:
        self._held[tag[0]] = data
        for offset in self.transfer.arrive(tag[0]):
            self.digest.update(self._held.pop(offset))
        if self.transfer.position >= self._told + SIZE_BYTES // 4:
            self._told = self.transfer.position
            self._parent.say(f"has the first {self._told / 1e6:.1f} MB, from {tag[1]} last")

    def _failed(self, tag: tuple[int, str]) -> None:
        offset, asked = tag
        self.transfer.fail(offset)
        self._parent.say(f"no answer from {asked} to the chunk at {offset}: wanted again, before any new one")
        if asked == self._sources[0] and len(self._sources) > 1:
            del self._sources[0]
            self._parent.say(f"leaves {asked} for {self._sources[0]}")


def run(fault: bool) -> None:
    with Parent(__name__, "reader") as parent:
        for name in ("first", "second"):
            parent.start("source", name, parent.endpoint(name))
        # Until both have made the object, which takes longer than the deadline of a chunk may allow.
        fetch = Fetch(parent, ["first", "second"])
        _wait_for_sources(parent)
        fetch.begin()
        if fault:
            run_until(fetch.loop, lambda: fetch.transfer.position > SIZE_BYTES // 2, "half of it")
            parent.kill("first")
        run_until(fetch.loop, lambda: fetch.transfer.done, "all of it")
        right = fetch.digest.digest() == blake2b(large_object()).digest()
        parent.say(f"has it all; the digest is {'right' if right else 'WRONG'}")
        parent.say(
            f"{-(-SIZE_BYTES // CHUNK_BYTES)} chunks, {fetch.asked} requests, "
            f"at most {fetch.most_bytes >> 20} MiB on the way or held, of {CREDIT_BYTES >> 20} MiB credit"
        )
        fetch.asker.close()


def _wait_for_sources(parent: Parent) -> None:
    """Ask each for no bytes, with patience."""
    ready: list[str] = []
    asker = Asker(parent.context, lambda tag, _body, _data: ready.append(tag), lambda _tag: None)
    loop = Reactor(asker.requester.wake_at, asker.expire)
    asker.join(loop)
    for name in ("first", "second"):
        asker.ask(parent.endpoint(name), b"0 0", name, within_s=20)
    run_until(loop, lambda: len(ready) == 2, "both sources")
    asker.close()


if __name__ == "__main__":
    play({"source": source})
