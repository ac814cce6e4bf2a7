"""The TCP proxy: what passes, what does not, and when."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from loadgen.drill.proxy import BACK, FORWARD, TcpProxy
from tests import waiting

WITHIN_S = 10.0
until = partial(waiting.until, within_s=WITHIN_S)
#: How long is waited for what must not come.
SILENCE_S = 0.15


class Echo:
    """A server that sends back what it gets, each connection in a thread."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    @property
    def place(self) -> tuple[str, int]:
        host, port = self.listener.getsockname()
        return host, port

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(one,))
            self.threads.append(thread)
            thread.start()

    def _serve(self, one: socket.socket) -> None:
        with one:
            try:
                while data := one.recv(65536):
                    one.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(WITHIN_S)


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    echo = Echo()
    with TcpProxy(echo.place) as proxy:
        yield proxy
    echo.close()


@pytest.fixture
def near(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection((proxy.host, proxy.port), timeout=WITHIN_S) as near:
        yield near


def receive(near: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (data := near.recv(size - len(got))):
        got += data
    return got


def is_silent(near: socket.socket) -> bool:
    near.settimeout(SILENCE_S)
    try:
        return not near.recv(1)
    except TimeoutError:
        return True
    finally:
        near.settimeout(WITHIN_S)


def test_bytes_pass_unchanged_and_are_counted(proxy: TcpProxy, near: socket.socket, seed: int) -> None:
    body = random.Random(seed).randbytes(3_000_000)
    sender = threading.Thread(target=near.sendall, args=(body,))
    sender.start()
    assert receive(near, len(body)) == body
    sender.join()
    # A piece is counted after it was sent: whoever has it may be ahead of the count.
    until(lambda: proxy.passed_bytes() == 2 * len(body), "every byte is counted")


@pytest.mark.parametrize("way", [FORWARD, BACK])
def test_what_is_cut_one_way_comes_when_it_is_healed(proxy: TcpProxy, near: socket.socket, way: str) -> None:
    near.sendall(b"before")
    assert receive(near, 6) == b"before"
    proxy.cut(way)
    near.sendall(b"while")
    assert is_silent(near)
    # The other way is open: with only the answers cut, the question arrives.
    until(lambda: proxy.ways[FORWARD].passed_bytes == (6 if way == FORWARD else 11), "the question")
    proxy.heal()
    assert receive(near, 5) == b"while"


def test_a_new_connection_through_a_cut_waits(proxy: TcpProxy) -> None:
    proxy.cut()
    with socket.create_connection((proxy.host, proxy.port), timeout=WITHIN_S) as near:
        near.sendall(b"hello")
        assert is_silent(near)
        proxy.heal()
        assert receive(near, 5) == b"hello"


def test_that_the_peer_has_closed_is_not_told_through_a_cut(proxy: TcpProxy, near: socket.socket) -> None:
    near.sendall(b"x")
    assert receive(near, 1) == b"x"
    proxy.cut()
    near.shutdown(socket.SHUT_WR)
    until(lambda: proxy.connections == 1, "the connection stands")
    assert is_silent(near)
    proxy.heal()
    assert near.recv(1) == b""
    until(lambda: proxy.connections == 0, "both ends are closed")


def test_a_delay_is_added_each_way(proxy: TcpProxy, near: socket.socket) -> None:
    proxy.delay(0.1)
    began = time.monotonic()
    near.sendall(b"x")
    assert receive(near, 1) == b"x"
    assert time.monotonic() - began >= 0.2


def test_a_slow_way_takes_its_time(proxy: TcpProxy, near: socket.socket) -> None:
    proxy.slow(100_000, BACK)
    began = time.monotonic()
    near.sendall(bytes(30_000))
    assert receive(near, 30_000) == bytes(30_000)
    # All but the first part has to wait for the parts before it.
    assert time.monotonic() - began >= 0.27


def test_a_reset_ends_what_there_is_and_lets_new_ones_in(proxy: TcpProxy, near: socket.socket) -> None:
    near.sendall(b"x")
    assert receive(near, 1) == b"x"
    proxy.reset()
    try:
        assert near.recv(1) == b""
    except ConnectionResetError:
        pass
    with socket.create_connection((proxy.host, proxy.port), timeout=WITHIN_S) as again:
        again.sendall(b"y")
        assert receive(again, 1) == b"y"


def test_where_nobody_listens_the_connection_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        place = gone.getsockname()
    with (
        TcpProxy(place) as proxy,
        socket.create_connection((proxy.host, proxy.port), timeout=WITHIN_S) as near,
    ):
        try:
            assert near.recv(1) == b""
        except ConnectionResetError:
            pass
