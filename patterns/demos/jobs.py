"""Jobs: a dispatcher and two workers, over PUSH and PULL; each job is done, or done again.

With a fault a worker is killed with jobs in its hands and comes back in a new life,
and one report is lost, so that its job is issued, and done, twice.
"""

import time
from typing import Final

import zmq

from patterns.demos.processes import FRAME_MAX_BYTES, QUANTUM, Child, Parent, play, run_until
from patterns.jobs import Dispatcher, Gate
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.sockets import make_socket

REALM: Final = b"demo of patterns"
EPOCH: Final = 1
JOBS: Final = 8
WINDOW: Final = 3
WORK_S: Final = 0.1
REISSUE_S: Final = 1.0
_HELLO, _DONE = b"hello", b"done"


def worker(child: Child, jobs: str, reports: str, incarnation: str, forgotten: str) -> None:
    """Does jobs of its epoch and incarnation; forgets once to report the job of that name."""
    incoming, outgoing = child.bound(zmq.PULL, jobs), child.connected(zmq.PUSH, reports)
    gate = Gate(REALM, int(incarnation))
    gate.welcome(REALM, EPOCH)
    forgets = [forgotten]
    outgoing.send_multipart([child.who.encode(), _HELLO, incarnation.encode()])

    def work(_limit: int) -> None:
        body = gate.accept(incoming.recv())
        if body is None:
            child.say(f"refuses a job: {dict(gate.counters)}")
            return
        job = bytes(body).decode()
        child.say(f"works on {job}")
        time.sleep(WORK_S)
        if job in forgets:
            forgets.remove(job)
            child.say(f"did {job}; its report is lost")
        else:
            outgoing.send_multipart([child.who.encode(), _DONE, job.encode()], zmq.NOBLOCK)

    child.serve(incoming, work)


class Dispatching:
    """One dispatcher and one PUSH for each worker; reports come in over one PULL."""

    def __init__(self, parent: Parent) -> None:
        self.reports = parent.endpoint("reports")
        self.done: list[str] = []
        self.dispatchers: dict[str, Dispatcher[str]] = {}
        self.loop = Reactor(self._wake_at, self._push)
        self._parent = parent
        self._pushes: dict[str, zmq.Socket[bytes]] = {}
        self._pull = make_socket(parent.context, zmq.PULL, frame_max_bytes=FRAME_MAX_BYTES)
        self._pull.bind(self.reports)
        self.loop.add(self._pull, self._drain, QUANTUM)

    def start(self, name: str, incarnation: int, forgotten: str = "-") -> None:
        """A process for the worker; it gets jobs once it has said hello."""
        jobs = self._parent.endpoint(f"{name}-{incarnation}")
        self._parent.start("worker", name, jobs, self.reports, incarnation, forgotten)
        if name not in self.dispatchers:
            self.dispatchers[name] = Dispatcher(REALM, EPOCH, WINDOW, 100, REISSUE_S)
        push = make_socket(self._parent.context, zmq.PUSH, frame_max_bytes=FRAME_MAX_BYTES)
        push.connect(jobs)
        self._pushes[name] = push

    def lose(self, name: str) -> None:
        """The worker is gone, and with its socket all that was queued there."""
        self.dispatchers[name].worker(None)
        self._pushes.pop(name).close(0)

    def close(self) -> None:
        for push in self._pushes.values():
            push.close(0)
        self._pull.close(0)

    def _wake_at(self) -> float | None:
        times = [dispatcher.wake_at() for dispatcher in self.dispatchers.values()]
        return min((at for at in times if at is not None), default=None)

    def _push(self, now: float) -> None:
        for name, dispatcher in self.dispatchers.items():
            overdue = dispatcher.counters["overdue"]
            for frame in dispatcher.poll(now):
                self._pushes[name].send(frame, zmq.NOBLOCK)
            if dispatcher.counters["overdue"] > overdue:
                self._parent.say(f"a job of {name} is overdue: issued again under a new number")

    def _drain(self, limit: int) -> None:
        for _ in range(limit):
            try:
                who, what, value = self._pull.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            name, job = who.decode(), value.decode()
            if what == _HELLO:
                self.dispatchers[name].worker(int(value))
                self._parent.say(f"{name} says hello as incarnation {int(value)}")
            elif self.dispatchers[name].done(job):
                self.done.append(job)
                self._parent.say(f"{job} is done, {len(self.done)} in all")


def run(fault: bool) -> None:
    with Parent(__name__, "dispatcher") as parent:
        dispatching = Dispatching(parent)
        dispatching.start("left", 1)
        dispatching.start("right", 1, forgotten="job-5" if fault else "-")
        for number in range(JOBS):
            name = "right" if number % 2 else "left"
            dispatching.dispatchers[name].add(f"job-{number}", b"job-%d" % number)
        parent.say(f"{JOBS} jobs, at most {WINDOW} on the way to each worker")
        if fault:
            run_until(dispatching.loop, lambda: dispatching.done, "a first report")
            parent.kill("left")
            dispatching.lose("left")
            parent.say("what left had in its hands waits again; a PUSH alone would have lost it")
            dispatching.start("left", 2)
        run_until(dispatching.loop, lambda: len(dispatching.done) == JOBS, "all reports")
        issued = sum(each.counters["issued"] for each in dispatching.dispatchers.values())
        parent.say(f"{JOBS} jobs done; issued {issued} times")
        dispatching.close()


if __name__ == "__main__":
    play({"worker": worker})
