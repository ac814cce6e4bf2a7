"""A TCP proxy that delays, slows and cuts, one way or both.

What lives here: the proxy and its thread. What must not: which nodes it stands between (cluster.py), and
anything of the bytes that pass.

A cut is what a broken network is to TCP: connections stand, and bytes neither come nor get lost; they come
when the cut is healed. That a peer closed is not noticed through a cut, either. `reset` ends connections, as
a router does that has lost its state.
"""

import selectors
import socket
import threading
import time
from collections import deque
from types import TracebackType
from typing import Final, Self

#: What is held for one way of one connection; beyond it the sender is not read from.
_HELD_MAX_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
_CONNECTIONS_MAX: Final = 1024
_LONGEST_WAIT_S: Final = 0.5

FORWARD: Final = "forward"
BACK: Final = "back"


class Way:
    """One direction of all connections. delay_s: added to every byte; bytes_s: at most; 0: unbounded."""

    def __init__(self) -> None:
        self.cut = False
        self.delay_s = 0.0
        self.bytes_s = 0.0
        self.passed_bytes = 0


class _Flow:
    """Bytes of one connection, one way."""

    def __init__(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        self.source = source
        self.sink = sink
        self.way = way
        self.held: deque[tuple[float, memoryview]] = deque()  # (when it may go on, bytes)
        self.held_bytes = 0
        self.next_at = 0.0
        self.ended = False  # the source sends no more
        self.closed = False  # … and the sink was told

    def wants_read(self) -> bool:
        return not (self.way.cut or self.ended) and self.held_bytes < _HELD_MAX_BYTES

    def due_at(self) -> float | None:
        if self.way.cut or self.closed:
            return None
        if self.held:
            return max(self.held[0][0], self.next_at)
        return 0.0 if self.ended else None

    def read(self, now: float) -> None:
        data = self.source.recv(_READ_BYTES)
        if not data:
            self.ended = True
            return
        self.held.append((now + self.way.delay_s, memoryview(data)))
        self.held_bytes += len(data)

    def write(self, now: float) -> None:
        if not self.held:
            self.sink.shutdown(socket.SHUT_WR)
            self.closed = True
            return
        due, data = self.held.popleft()
        # At a bounded rate a small part at a time, or the first one would wait for nothing.
        size = len(data) if not self.way.bytes_s else max(1, min(len(data), int(self.way.bytes_s / 50)))
        try:
            sent = self.sink.send(data[:size])
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.held.appendleft((due, data[sent:]))
        self.held_bytes -= sent
        self.way.passed_bytes += sent
        if self.way.bytes_s:
            self.next_at = max(now, self.next_at) + sent / self.way.bytes_s


class TcpProxy:
    """Listens on `host:port` (0: a free one) and joins each connection with one to `target`.

    forward: from those who connect to the target; back: from the target to them.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1", port: int = 0) -> None:
        self.target = target
        self.ways = {FORWARD: Way(), BACK: Way()}
        self._listener = socket.create_server((host, port), backlog=256)
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self._guard = threading.Lock()
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._flows: list[_Flow] = []
        self._reset = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}")
        self._thread.start()

    @property
    def connections(self) -> int:
        return len(self._flows) // 2

    def passed_bytes(self) -> int:
        return sum(way.passed_bytes for way in self.ways.values())

    # -- faults ------------------------------------------------------------------------------

    def cut(self, *ways: str) -> None:
        """From now on nothing passes these ways; both, if none is named."""
        self._set("cut", True, ways)

    def heal(self, *ways: str) -> None:
        self._set("cut", False, ways)

    def delay(self, delay_s: float, *ways: str) -> None:
        self._set("delay_s", delay_s, ways)

    def slow(self, bytes_s: float, *ways: str) -> None:
        """0: as fast as it goes."""
        self._set("bytes_s", bytes_s, ways)

    def reset(self) -> None:
        """End all connections that there are."""
        self._reset = True
        self._ring()

    def _set(self, name: str, value: float, ways: tuple[str, ...]) -> None:
        with self._guard:
            for way in ways or (FORWARD, BACK):
                setattr(self.ways[way], name, value)
        self._ring()

    def _ring(self) -> None:
        self._bell.send(b"!")

    # -- the thread ------------------------------------------------------------------------------

    def close(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._ring()
            self._thread.join()
            self._bell.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._round()
        finally:
            self._end(self._flows)
            self._listener.close()
            self._ear.close()

    def _round(self) -> None:
        now = time.monotonic()
        with selectors.DefaultSelector() as selector:
            wake_at = self._register(selector, now)
            ready = selector.select(max(0.0, wake_at - now))
        now = time.monotonic()
        if self._reset:
            self._reset = False
            self._end(self._flows)
            return
        broken: list[_Flow] = []
        for key, _ in ready:
            if key.data is not None:
                broken += self._move(key.data, now)
            elif key.fileobj is self._listener:
                self._accept()
            else:
                self._ear.recv(4096)
        self._end(broken)
        self._end([flow for flow in self._flows if flow.closed and self._other(flow).closed])

    def _register(self, selector: selectors.BaseSelector, now: float) -> float:
        """Tell the selector what is waited for; when to look again at the latest."""
        selector.register(self._ear, selectors.EVENT_READ)
        if len(self._flows) < 2 * _CONNECTIONS_MAX:
            selector.register(self._listener, selectors.EVENT_READ)
        wake_at = now + _LONGEST_WAIT_S
        wanted: dict[socket.socket, list[tuple[_Flow, bool]]] = {}
        for flow in self._flows:
            due_at = flow.due_at()
            if flow.wants_read():
                wanted.setdefault(flow.source, []).append((flow, False))
            if due_at is not None and due_at <= now:
                wanted.setdefault(flow.sink, []).append((flow, True))
            elif due_at is not None:
                wake_at = min(wake_at, due_at)
        for each, tasks in wanted.items():
            events = 0
            for _, is_write in tasks:
                events |= selectors.EVENT_WRITE if is_write else selectors.EVENT_READ
            selector.register(each, events, tasks)
        return wake_at

    def _move(self, tasks: list[tuple[_Flow, bool]], now: float) -> list[_Flow]:
        """Move what can be moved; the flows whose connection broke."""
        broken = []
        for flow, is_write in tasks:
            try:
                if is_write:
                    flow.write(now)
                else:
                    flow.read(now)
            except BlockingIOError:
                continue
            except OSError:
                broken.append(flow)
        return broken

    def _accept(self) -> None:
        try:
            near, _ = self._listener.accept()
        except OSError:
            return  # it was gone before it was taken
        try:
            far = socket.create_connection(self.target, timeout=1.0)
        except OSError:
            near.close()  # as if nobody listened here
            return
        for each in (near, far):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._flows += [_Flow(near, far, self.ways[FORWARD]), _Flow(far, near, self.ways[BACK])]

    def _other(self, flow: _Flow) -> _Flow:
        return next(each for each in self._flows if each.source is flow.sink)

    def _end(self, flows: list[_Flow]) -> None:
        """Close the connections of these flows, both ways."""
        sockets = {each for flow in flows for each in (flow.source, flow.sink)}
        for each in sockets:
            each.close()
        self._flows = [flow for flow in self._flows if flow.source not in sockets]
