"""Readiness: whoever took the news of a socket along must have told, and then nothing is missed.

Asking a socket for its events takes its news as a send or a receive may, but for certain.
"""

import os
import select
from collections.abc import Callable

import pytest
import zmq

from patterns.zeromq.readiness import Readiness
from patterns.zeromq.sockets import is_readable

Socket = zmq.Socket[bytes]
Make = Callable[..., Socket]

WITHIN_S = 10.0


@pytest.fixture
def pair(make: Make) -> tuple[Socket, Socket]:
    near, far = make(zmq.PAIR), make(zmq.PAIR)
    near.bind("inproc://pair")
    far.connect("inproc://pair")
    # Of the connection itself there is news too.
    assert not is_readable(near)
    return near, far


def take_the_news(socket: Socket) -> None:
    """Once there is any."""
    assert select.select([socket.getsockopt(zmq.FD)], [], [], WITHIN_S)[0]
    assert is_readable(socket)


def test_a_closed_socket_is_not_asked(pair: tuple[Socket, Socket]) -> None:
    near, _ = pair
    near.close()
    with pytest.raises(zmq.ZMQError, match="non-socket"):
        is_readable(near)


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "not told"])
def test_a_message_is_waited_for(pair: tuple[Socket, Socket], is_told: bool) -> None:
    near, far = pair
    readiness = Readiness()
    readiness.add(near, is_told=is_told)
    assert readiness.wait(0) == []
    far.send(b"")
    assert readiness.wait(WITHIN_S) == [near]


def test_what_a_use_took_the_news_of_is_found_if_it_was_told(pair: tuple[Socket, Socket]) -> None:
    near, far = pair
    readiness = Readiness(clock=lambda: 0.0)
    readiness.add(near, is_told=True)
    readiness.wait(0)
    far.send(b"")
    take_the_news(near)
    assert readiness.wait(0) == [], "nobody told"
    readiness.used(near)
    assert readiness.wait(0) == [near]
    readiness.used(near)
    readiness.seen_empty(near)
    assert readiness.wait(0) == []


def test_a_use_that_nobody_told_of_costs_a_second(pair: tuple[Socket, Socket]) -> None:
    near, far = pair
    now_s = 100.0
    readiness = Readiness(clock=lambda: now_s)
    readiness.add(near, is_told=True)
    readiness.wait(0)
    far.send(b"")
    take_the_news(near)
    now_s += 0.9
    assert readiness.wait(0) == []
    now_s += 0.2
    assert readiness.wait(0) == [near]


def test_all_that_have_news_are_named_at_once(make: Make) -> None:
    readiness = Readiness()
    pairs = []
    for number in range(300):
        near, far = make(zmq.PAIR), make(zmq.PAIR)
        near.bind(f"inproc://pair-{number}")
        far.connect(f"inproc://pair-{number}")
        readiness.add(near, is_told=True)
        pairs.append((near, far))
    readiness.wait(0)
    for _, far in pairs:
        far.send(b"")
    assert len(readiness.wait(WITHIN_S)) == len(pairs)
    readiness.close()


def test_a_forked_process_leaves_the_parents_sockets_watched(
    pair: tuple[Socket, Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = pair
    readiness = Readiness()
    readiness.add(near, is_told=True)
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    readiness.remove(near)
    far.send(b"")
    assert readiness._epoll.poll(WITHIN_S), "it is the parent's as well"


def test_of_a_socket_whose_use_nobody_tells_nothing_is_missed(pair: tuple[Socket, Socket]) -> None:
    near, far = pair
    readiness = Readiness()
    readiness.add(near)
    far.send(b"")
    take_the_news(near)
    assert [readiness.wait(0) for _ in range(3)] == [[near]] * 3
    near.recv()
    assert readiness.wait(0) == []


def test_what_had_come_before_the_socket_was_added_is_found(pair: tuple[Socket, Socket]) -> None:
    near, far = pair
    far.send(b"")
    take_the_news(near)
    readiness = Readiness()
    readiness.add(near, is_told=True)
    assert readiness.wait(0) == [near]


def test_a_socket_that_was_removed_is_named_no_more_used_or_not(pair: tuple[Socket, Socket]) -> None:
    near, far = pair
    readiness = Readiness()
    readiness.add(near, is_told=True)
    far.send(b"")
    readiness.remove(near)
    readiness.used(near)
    assert readiness.wait(0) == []


def test_a_descriptor_is_named_for_as_long_as_it_is_readable() -> None:
    reading, writing = os.pipe()
    readiness = Readiness()
    readiness.add(reading)
    assert readiness.wait(0) == []
    os.write(writing, b"x")
    assert [readiness.wait(WITHIN_S) for _ in range(2)] == [[reading]] * 2
    readiness.remove(reading)
    os.close(reading)
    os.close(writing)
