"""One thread's sockets, and the loop that runs a client's operations on them.

What lives here: sending what operations want sent, and bringing them replies,
silence and time. What must not: which operations there are (nodes/client.py) and
what they do (client.py, download.py, upload.py).
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import zmq

from dws import messages
from dws.client import Directory, Operation, Send
from dws.errors import ConfigError, DwsError, Unreachable, WrongThread
from dws.limits import FRAME_MAX_BYTES
from dws.messages import encode
from dws.nodes.observed import ObservedCalls, Observer
from dws.upload import PutBatch
from patterns.request_reply import Requester
from patterns.zeromq.calls import Calls
from patterns.zeromq.readiness import Readiness
from patterns.zeromq.sockets import is_readable

_LONGEST_WAIT_S = 0.5
_SILENCE_S = 2.0
#: Replies taken from one socket before the loop's caller may use what they brought.
_REPLIES_A_ROUND = 8


#: Told once, with the seconds that an operation may take, that nothing has answered so far.
OnSilence = Callable[[float], None] | None


class Runner:
    """balancer: its clients' endpoint. rng: for request ids. observer: told of every message."""

    def __init__(
        self,
        balancer: str,
        context: "zmq.Context[zmq.Socket[bytes]] | None",
        rng: random.Random,
        observer: Observer | None = None,
        on_silence: OnSilence = None,
    ) -> None:
        self.directory = Directory()
        self._on_silence = on_silence
        self._balancer = balancer
        self._thread = threading.get_ident()
        self._owns_context = context is None
        self._context = context or zmq.Context()
        self._readiness = Readiness()
        self._calls = self._make_calls(rng.getrandbits(63), observer)
        self._running: set[Operation] = set()
        self._tick_at = inf
        """No running operation wants a tick before."""
        self._closed = False

    def _make_calls(self, first_id: int, observer: Observer | None) -> Calls[tuple[Operation, Any]]:
        context, told, used = self._context, self._socket_changed, self._readiness.used
        if observer is not None:
            return ObservedCalls(
                observer, context, first_id, told, frame_max_bytes=FRAME_MAX_BYTES, used=used
            )
        requester: Requester[tuple[Operation, Any]] = Requester(first_id, learn_realm=True)
        return Calls(context, requester, told, frame_max_bytes=FRAME_MAX_BYTES, used=used)

    def __contains__(self, operation: Operation) -> bool:
        return operation in self._running

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._calls.close()
            self._readiness.close()
            if self._owns_context:
                self._context.term()

    def forget(self, operation: Operation) -> None:
        """Run it no further; what comes for it is dropped."""
        self._running.discard(operation)

    def run(self, operation: Operation) -> Any:
        self.begin(operation)
        try:
            while not operation.finished:
                self.pump()
        finally:
            self._running.discard(operation)
        self.raise_if_failed(operation)
        return operation.result

    def begin(self, operation: Operation) -> None:
        if threading.get_ident() != self._thread:
            raise WrongThread("a client belongs to the thread that made it; call dws.connect in this thread")
        if self._closed:
            raise DwsError("the client is closed")
        now = time.monotonic()
        operation.began = now
        self._running.add(operation)
        self._go_on(operation, operation.start(now))

    def pump(self) -> None:
        """Wait for something to happen, and let all running operations know."""
        now = time.monotonic()
        wake_at = min(now + _LONGEST_WAIT_S, self._tick_at)
        expiry = self._calls.requester.wake_at()
        if expiry is not None:
            wake_at = min(wake_at, expiry)
        is_drained = True
        for socket in self._readiness.wait(max(0.0, wake_at - now)):
            is_drained &= self._receive(socket)
        now = time.monotonic()
        # Replies first, then silence: what waits in a queue is no silence.
        for _, (operation, tag) in self._calls.requester.expire(now) if is_drained else ():
            if operation in self._running:
                self._go_on(operation, operation.unanswered(tag, now))
        if now >= self._tick_at:
            self._tick_all()
        if self._on_silence is not None:
            self._mind_silence(now, self._on_silence)

    def _mind_silence(self, now: float, tell: Callable[[float], None]) -> None:
        for operation in self._running:
            if now - operation.began >= _SILENCE_S:
                self._on_silence = None
                tell(operation.ends_at - operation.began)
                return

    def _tick_all(self) -> None:
        self._tick_at = inf
        try:
            for operation in list(self._running):
                self._go_on(operation, [])
        except BaseException:
            # Those that had not their turn yet still want it.
            self._tick_at = 0.0
            raise

    def _receive(self, socket: Any) -> bool:
        """Take some replies; whether none is left. Each may ask for more, which may be here as soon: so
        the caller must get its turn to take what arrived, or it piles up."""
        for _ in range(_REPLIES_A_ROUND):
            received = self._calls.receive(socket)
            if received is None:
                # Either none is left, or there were many that nobody awaits.
                self._readiness.used(socket)
                return True
            self._on_silence = None
            (operation, tag), body, frame = received
            if operation in self._running:
                data = frame.buffer if frame is not None else b""
                now = time.monotonic()
                try:
                    message = messages.decode_reply(body)
                except messages.MalformedMessage:
                    self._go_on(operation, operation.unanswered(tag, now))
                else:
                    self._go_on(operation, operation.answered(tag, message, data, now))
            if not is_readable(socket):
                self._readiness.seen_empty(socket)
                return True
        self._readiness.used(socket)
        return False

    def _go_on(self, operation: Operation, sends: Sequence[Send]) -> None:
        """Send what it wants sent, and let it know the time after that: to read what is sent may take long.
        The others need not know before they want to."""
        if sends:
            self._send(operation, sends)
        if not operation.finished:
            late_sends = operation.tick(time.monotonic())
            if late_sends:
                self._send(operation, late_sends)
            self._tick_at = min(self._tick_at, operation.wake_at())
        if operation.finished:
            self._running.discard(operation)

    def _send(self, operation: Operation, sends: Sequence[Send]) -> None:
        now = time.monotonic()
        for send in sends:
            if send.server == 0:
                endpoint = self._balancer
            elif send.server in self.directory.servers:
                endpoint = self.directory.servers[send.server].endpoint
            else:
                self._send(operation, operation.unanswered(send.tag, now))
                continue
            deadline = now + send.timeout_s
            try:
                self._calls.call(endpoint, encode(send.message), (operation, send.tag), deadline, send.data)
            except zmq.ZMQError as error:
                if send.server == 0:
                    raise ConfigError(f"cannot connect to {endpoint!r}: {error}") from None
                self._send(operation, operation.unanswered(send.tag, now))

    def abandon(self, operation: PutBatch) -> None:
        """Tell the balancer that nobody waits for this batch any more, without waiting for its answer."""
        if not operation.finished:
            operation.fail(DwsError("given up"))
            self._send(operation, operation.abort())
        self._running.discard(operation)

    def raise_if_failed(self, operation: Operation) -> None:
        error = operation.error
        if isinstance(error, Unreachable):
            where, tried_s = f"the balancer at {self._balancer}", time.monotonic() - operation.began
            raise Unreachable(f"no answer from {where} for {tried_s:.0f} s: is it running there?")
        if error is not None:
            raise error

    def _socket_changed(self, socket: Any, added: bool) -> None:
        if added:
            self._readiness.add(socket, is_told=True)
        else:
            self._readiness.remove(socket)
