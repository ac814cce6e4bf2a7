"""A client's process in virtual time: the loop of dws/nodes/runner.py around production operations.

What lives here: sending what operations want sent, and bringing them replies,
silence and time. What must not: which operations there are (workload.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

from dws import messages
from dws.client import Directory, Operation, Send
from dws.messages import encode
from dws.sim.nodes import CLIENTS_ENDPOINT, Calls, Node

Finished = Callable[[Any], None]


class ClientNode(Node):
    """Runs operations, any number at once. finished(operation): called when one has a result or an error."""

    def begin(self) -> None:
        self.directory = Directory()
        self.running: dict[Operation, Finished] = {}
        self.calls = Calls(self, self._answered, learn_realm=True)

    def run(self, operation: Operation, finished: Finished) -> None:
        operation.began = self.now
        self.running[operation] = finished
        self._send(operation, operation.start(self.now))
        self.arm()

    def wake_at(self) -> float:
        wake_at = self.calls.wake_at()
        for operation in self.running:
            wake_at = min(wake_at, operation.wake_at())
        return wake_at

    def woken(self) -> None:
        for operation, tag in self.calls.expire(self.now):
            if operation in self.running:
                self._send(operation, operation.unanswered(tag, self.now))
        for operation in list(self.running):
            if operation in self.running:
                self._send(operation, operation.tick(self.now))

    def _answered(self, tag: Any, body: memoryview, data: memoryview) -> None:
        operation, tag = tag
        if operation in self.running:
            self._send(operation, operation.answered(tag, messages.decode_reply(body), data, self.now))

    def _send(self, operation: Operation, sends: Sequence[Send]) -> None:
        self.world.acted()
        for send in sends:
            if send.server == 0:
                endpoint = CLIENTS_ENDPOINT
            elif send.server in self.directory.servers:
                endpoint = self.directory.servers[send.server].endpoint
            else:
                self._send(operation, operation.unanswered(send.tag, self.now))
                continue
            deadline = self.now + send.timeout_s
            self.calls.call(endpoint, encode(send.message), (operation, send.tag), deadline, send.data)
        if operation.finished:
            finished = self.running.pop(operation, None)
            if finished is not None:
                finished(operation)
