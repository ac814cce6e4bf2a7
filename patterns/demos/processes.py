"""The processes of a demo, and the one narration that they share.

What lives here: starting, killing and pausing processes, lines of narration with
one clock, and the loop of a process that ends when its parent does. What must
not: any pattern.

Processes are started anew (exec), never forked. They talk over ipc sockets in a
temporary directory, so no port can be taken. A child's standard input is a pipe
from its parent: when that breaks, the child ends, however the parent died.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final

import zmq

from patterns.zeromq.reactor import Handler, Reactor
from patterns.zeromq.sockets import make_socket

FRAME_MAX_BYTES: Final = 8 << 20
#: Messages that one socket is given in a round.
QUANTUM: Final = 100
_STDIN: Final = 0


class Narrator:
    """Says what happens, with the time since the demo began."""

    def __init__(self, who: str, began: float, *, quiet: bool = False) -> None:
        self.who = who
        self.began = began
        self._quiet = quiet

    def say(self, text: str) -> None:
        if self._quiet:
            return
        # One write a line, or lines of several processes would mix.
        sys.stdout.write(f"{time.monotonic() - self.began:6.2f} s  {self.who:<10} {text}\n")
        sys.stdout.flush()


class Parent(Narrator):
    """The process that runs the demo. As a context manager it ends all that it started."""

    def __init__(self, module: str, who: str, *, quiet: bool = False) -> None:
        super().__init__(who, time.monotonic(), quiet=quiet)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._module = module
        self._directory = TemporaryDirectory(prefix="patterns-")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Parent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            _end(process)
        # Sockets that an error left open must not keep the context from ending.
        self.context.destroy(linger=0)
        self._directory.cleanup()

    def endpoint(self, name: str) -> str:
        return f"ipc://{self._directory.name}/{name}"

    def start(self, role: str, name: str, *arguments: object) -> None:
        """A new process of this demo's module in a role; one of that name that ended is replaced."""
        words = [sys.executable, "-m", self._module, role, name, repr(self.began), *map(str, arguments)]
        self._processes[name] = subprocess.Popen(words, stdin=subprocess.PIPE)
        self.say(f"started {name}, process {self._processes[name].pid}")

    def running(self, role: str) -> int:
        """How many processes run in a role."""
        at = 3  # python -m module role
        return sum(
            process.poll() is None and isinstance(process.args, list) and process.args[at] == role
            for process in self._processes.values()
        )

    def kill(self, name: str) -> None:
        """SIGKILL: it gets no chance to say goodbye."""
        self.say(f"kills {name} (SIGKILL)")
        _end(self._processes[name])

    def pause(self, name: str) -> None:
        self.say(f"pauses {name} (SIGSTOP): it hangs, its connections stand")
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.say(f"lets {name} go on (SIGCONT)")
        self._processes[name].send_signal(signal.SIGCONT)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


class Child(Narrator):
    """A process that the demo started. Its loop ends with its parent."""

    def __init__(self, who: str, began: float) -> None:
        super().__init__(who, began)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def bound(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = make_socket(self.context, kind, frame_max_bytes=FRAME_MAX_BYTES)
        socket.bind(endpoint)
        return socket

    def connected(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = make_socket(self.context, kind, frame_max_bytes=FRAME_MAX_BYTES)
        socket.connect(endpoint)
        return socket

    def reactor(
        self, wake_at: Callable[[], float | None], on_round: Callable[[float], None] = lambda _now: None
    ) -> Reactor:
        """A loop that stops when the parent is gone."""
        loop = Reactor(wake_at, on_round)
        loop.add(_STDIN, lambda _limit: loop.stop(), 1)
        return loop

    def serve(self, socket: "zmq.Socket[bytes]", handler: Handler) -> None:
        """Run a loop of one socket and no deadlines."""
        loop = self.reactor(lambda: None)
        loop.add(socket, handler, QUANTUM)
        loop.run()


def play(roles: dict[str, Callable[..., None]]) -> None:
    """The entry of a started process: `role name began arguments...` on the command line."""
    # Ctrl-C reaches all processes of a terminal; the parent ends its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    role, name, began, *arguments = sys.argv[1:]
    child = Child(name, float(began))
    roles[role](child, *arguments)
    child.context.destroy(linger=0)


class DemoStuck(Exception):
    """A demo did not come to its next step in time."""


def run_until(loop: Reactor, condition: Callable[[], object], what: str, within_s: float = 20.0) -> None:
    """Run the loop until the condition holds; DemoStuck if it takes too long."""
    give_up = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up:
            raise DemoStuck(f"waited {within_s:g} s for: {what}")
        loop.run_once()


def run_for(loop: Reactor, seconds: float) -> None:
    """Run the loop for a while. Its wake_at must ask for rounds often enough."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        loop.run_once()
