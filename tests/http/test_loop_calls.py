"""The bridge between request/reply sockets and an asyncio loop, against a ROUTER of the test's own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import zmq

from dws.errors import NotFound, Unreachable
from dws.http.calls import LoopCalls
from dws.limits import FRAME_MAX_BYTES
from dws.messages import Error, Ping, Pong, encode
from patterns.request_reply import Replier
from patterns.zeromq.sockets import make_socket

Answer = Callable[[int], bytes | None]


class Answering:
    """A ROUTER in a thread; `answer` gets the request's count and returns a body, or None for silence."""

    def __init__(self) -> None:
        self.answer: Answer = lambda number: encode(Pong("it", number, 1))
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = make_socket(self._context, zmq.ROUTER, frame_max_bytes=FRAME_MAX_BYTES)
        port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        replier: Replier[bytes] = Replier()
        number = 0
        while not self._ends.is_set():
            if self._router.poll(20):
                peer, frame = self._router.recv_multipart()
                replier.receive(frame)
                number += 1
                body = self.answer(number)
                if body is not None:
                    self._router.send_multipart([peer, replier.reply(frame, body)])

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        self._router.close(0)
        self._context.term()


@pytest.fixture
def peer() -> Iterator[Answering]:
    answering = Answering()
    yield answering
    answering.close()


def run(use: Callable[[LoopCalls], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        calls = LoopCalls(asyncio.get_running_loop())
        try:
            return await use(calls)
        finally:
            calls.close()

    return asyncio.run(main())


def test_a_reply_comes_back_to_whoever_asked(peer: Answering) -> None:
    async def use(calls: LoopCalls) -> Any:
        return [await calls.ask(peer.endpoint, Ping(), 5.0) for _ in range(3)]

    assert run(use) == [Pong("it", number, 1) for number in (1, 2, 3)]


def test_many_at_once_are_all_answered(peer: Answering) -> None:
    # More than one round of the loop takes off the socket.
    async def use(calls: LoopCalls) -> Any:
        return await asyncio.gather(*(calls.ask(peer.endpoint, Ping(), 10.0) for _ in range(900)))

    assert sorted(pong.waiting for pong in run(use)) == list(range(1, 901))


def test_an_error_reply_is_raised_as_what_it_says(peer: Answering) -> None:
    peer.answer = lambda number: encode(Error("not-found", "no such page"))

    async def use(calls: LoopCalls) -> None:
        await calls.ask(peer.endpoint, Ping(), 5.0)

    with pytest.raises(NotFound, match="no such page"):
        run(use)


@pytest.mark.parametrize("body", [None, b"\xc1 no message"])
def test_silence_and_nonsense_are_unreachable(peer: Answering, body: bytes | None) -> None:
    peer.answer = lambda number: body

    async def use(calls: LoopCalls) -> None:
        await calls.ask(peer.endpoint, Ping(), 0.1)

    with pytest.raises(Unreachable):
        run(use)


def test_what_is_no_endpoint_is_told_at_once() -> None:
    async def use(calls: LoopCalls) -> None:
        await calls.ask("nonsense", Ping(), 5.0)

    with pytest.raises(Unreachable, match="nonsense"):
        run(use)


def test_requests_over_the_bound_are_refused(peer: Answering) -> None:
    peer.answer = lambda number: None

    async def main() -> None:
        calls = LoopCalls(asyncio.get_running_loop(), pending_max=2)
        waiting = [calls.ask(peer.endpoint, Ping(), 0.1) for _ in range(2)]
        with pytest.raises(Unreachable, match="too many"):
            calls.ask(peer.endpoint, Ping(), 0.1)
        for each in waiting:
            with pytest.raises(Unreachable, match="no answer"):
                await each
        calls.close()

    asyncio.run(main())


def test_an_answer_that_nobody_awaits_any_more_is_passed_over(peer: Answering) -> None:
    async def use(calls: LoopCalls) -> Any:
        given_up = calls.ask(peer.endpoint, Ping(), 5.0)
        given_up.cancel()
        return await calls.ask(peer.endpoint, Ping(), 5.0)

    assert run(use).waiting == 2
