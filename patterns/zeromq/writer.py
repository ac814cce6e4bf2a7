"""A thread that executes jobs in batches, for a loop that must not wait.

What lives here: the thread, its queue, and the inproc doorbells between it and
the loop. What must not: what a job does. Jobs that wait together are executed
together (group commit); classes of jobs share the thread fairly.

The loop calls `submit` and, when `socket` is readable, `results`. An exception
in `execute` ends the thread and is raised in the loop by `results`, or at the
latest by `close`: a failed fsync must end the process, not be hidden in a thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import zmq

from patterns.fair import FairQueue
from patterns.zeromq.readiness import nobody_to_tell
from patterns.zeromq.sockets import is_readable

Job = TypeVar("Job")
Result = TypeVar("Result")

_RING = b""
_STOP = b"stop"


class Writer(Generic[Job, Result]):
    """execute: takes a batch of jobs, returns a result for each, in order.

    classes: as in FairQueue, in bytes. batch_bytes: the most that one batch takes.
    used: told of the loop's socket when the loop has sent on it (Readiness.used).
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        name: str,
        execute: Callable[[Sequence[Job]], Sequence[Result]],
        classes: dict[str, tuple[int, int]],
        batch_bytes: int,
        used: "Callable[[zmq.Socket[bytes]], None]" = nobody_to_tell,
    ) -> None:
        endpoint = f"inproc://{name}-{id(self)}"
        self.socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._inner: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        for pair in (self.socket, self._inner):
            # Unbounded, which is safe: one ring at most is under way to the thread, and one to
            # the loop for each batch whose results it has not fetched.
            pair.set_hwm(0)
            pair.setsockopt(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self._inner.connect(endpoint)
        self._execute = execute
        self._batch_bytes = batch_bytes
        self._used = used
        self._lock = threading.Lock()
        self._queue: FairQueue[Job] = FairQueue(classes)
        self._rung = False
        self._done: deque[tuple[Job, Result]] = deque()
        self._failure: BaseException | None = None
        self._failure_told = False
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def submit(self, name: str, job: Job, cost_bytes: int) -> bool:
        """Queue a job; False if its class is at its bound."""
        with self._lock:
            accepted = self._queue.offer(name, job, cost_bytes)
            ring = accepted and not self._rung
            self._rung = self._rung or accepted
        if ring:
            self._used(self.socket)
            self.socket.send(_RING)
        return accepted

    def results(self) -> list[tuple[Job, Result]]:
        """Jobs executed since the last call. Raises what `execute` raised."""
        while is_readable(self.socket):
            self.socket.recv()
        finished = []
        while self._done:
            finished.append(self._done.popleft())
        if self._failure is not None:
            self._failure_told = True
            raise self._failure
        return finished

    def close(self) -> None:
        """Execute what is queued, join the thread. Results not fetched are lost.

        Raises what `execute` raised, if `results` has not.
        """
        if self._thread.is_alive():
            self.socket.send(_STOP)
            self._thread.join()
        self.socket.close(0)
        self._inner.close(0)
        if self._failure is not None and not self._failure_told:
            self._failure_told = True
            raise self._failure

    def _run(self) -> None:
        try:
            stopping = False
            while not stopping:
                stopping = self._inner.recv() == _STOP
                self._work_off()
        except BaseException as failure:  # handed to the loop, which raises it
            self._failure = failure
            self._inner.send(_RING)

    def _work_off(self) -> None:
        while True:
            with self._lock:
                jobs = self._queue.take(self._batch_bytes)
                if not jobs:
                    self._rung = False
                    return
            self._done.extend(zip(jobs, self._execute(jobs), strict=True))
            self._inner.send(_RING)
