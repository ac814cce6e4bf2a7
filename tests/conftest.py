"""What every test gets: a check that it leaves nothing behind, a seed, and ZeroMQ sockets of its own.

- Every test fails that leaves a thread (daemon threads aside) or a process behind, or another scheduling
  policy than it found. Fixtures of a wider scope are set up before the check looks for the first time, so
  their threads and processes, and those processes' children, are no leaks. A fixture of wider scope that a
  test asks for by `request.getfixturevalue` would be.
- `context` fails a test whose sockets are still open at its end; `sockets` makes ones that close themselves.
- `seed` is DWS_TEST_SEED or random, and printed, so that a failure can be run again.
- HYPOTHESIS_PROFILE is `dev` (the default) or `ci` (more examples; the default where CI is set).
"""

import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import hypothesis
import psutil
import pytest
import zmq

THREADS_END_WITHIN_S = 2.0
PROCESSES_END_WITHIN_S = 2.0
TERM_WITHIN_S = 5.0
SOCKET_TIMEOUT_MS = 5000

hypothesis.settings.register_profile("dev", deadline=None, derandomize=False, print_blob=True)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("dev"), max_examples=200)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
hypothesis.settings.load_profile(PROFILE)

# Handed down through the environment: it finds a descendant whose parent has died; psutil's tree does not.
FAMILY_VARIABLE = "DWS_TEST_FAMILY"
FAMILY = f"{os.getpid()}-{secrets.token_hex(8)}"
os.environ[FAMILY_VARIABLE] = FAMILY


# Threads


def leaked_threads(before: set[threading.Thread], timeout_s: float) -> list[threading.Thread]:
    """The threads that are still alive after the time out, which are neither daemons nor of those before."""
    deadline = monotonic() + timeout_s
    leaked = []
    for thread in threading.enumerate():
        if thread in before or thread.daemon:
            continue
        thread.join(max(0.0, deadline - monotonic()))
        if thread.is_alive():
            leaked.append(thread)
    return leaked


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    leaked = leaked_threads(before, THREADS_END_WITHIN_S)
    if leaked:
        pytest.fail("threads left running: " + ", ".join(thread.name for thread in leaked), pytrace=False)


# Processes


def processes() -> set[psutil.Process]:
    """This process's descendants, orphans among them included."""
    found = set(psutil.Process().children(recursive=True))
    if sys.platform == "linux":
        mark = f"{FAMILY_VARIABLE}={FAMILY}".encode()
        for pid in psutil.pids():
            try:
                with open(f"/proc/{pid}/environ", "rb") as environ:
                    marked = pid != os.getpid() and mark in environ.read().split(b"\0")
                if marked:
                    found.add(psutil.Process(pid))
            except (OSError, psutil.NoSuchProcess):
                pass  # it has ended, or is another user's
    return found


def leaked_processes(before: set[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """The descendants still running after the time out, but for those before, and their children."""
    deadline = monotonic() + timeout_s
    leaked = []
    for process in processes() - before:
        try:
            if before.intersection(process.parents()) or "multiprocessing.resource_tracker" in " ".join(
                process.cmdline()
            ):
                continue
            psutil.wait_procs([process], timeout=max(0.0, deadline - monotonic()))
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                leaked.append(process)
        except psutil.NoSuchProcess:
            pass
    return leaked


def described(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({' '.join(process.cmdline()) or process.name()})"
    except psutil.Error:
        return str(process.pid)


@pytest.fixture(autouse=True)
def no_leaked_processes() -> Iterator[None]:
    before = processes()
    yield
    leaked = leaked_processes(before, PROCESSES_END_WITHIN_S)
    if leaked:
        names = ", ".join(map(described, leaked))
        for process in leaked:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(leaked, timeout=PROCESSES_END_WITHIN_S)
        pytest.fail(f"processes left running, now killed: {names}", pytrace=False)


# Scheduling


@pytest.fixture(autouse=True)
def no_changed_scheduling() -> Iterator[None]:
    """A program that runs inside a test must not change how all later tests, and their children, run."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getscheduler(0)
    yield
    after = os.sched_getscheduler(0)
    if after != before:
        # From others the way back may be forbidden.
        stays = after != os.SCHED_BATCH
        if not stays:
            os.sched_setscheduler(0, before, os.sched_param(0))
        text = ", and stays for the tests after this one" if stays else ""
        pytest.fail(f"scheduling policy changed from {before} to {after}{text}", pytrace=False)


# ZeroMQ


def terminate(context: zmq.Context[zmq.Socket[bytes]], timeout_s: float) -> str | None:
    """Terminates the context and says what kept it from ending in time, if anything did.

    term() blocks for as long as a socket is open, or closed with messages that its LINGER still keeps, and
    cannot be broken off; hence a daemon thread, the only one.
    """
    term = threading.Thread(target=context.term, name="context.term", daemon=True)
    term.start()
    term.join(timeout_s)
    if not term.is_alive():
        return None
    left = [socket for socket in context._sockets or () if not socket.closed]
    kinds = ", ".join(sorted(zmq.SocketType(socket.type).name for socket in left))
    for socket in left:
        socket.close(linger=0)
    term.join(timeout_s)
    return f"sockets left open: {kinds}" if left else "closed sockets linger with unsent messages"


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context of the test's own. The test closes its sockets; one left open fails it."""
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    reason = terminate(made, TERM_WITHIN_S)
    if reason:
        pytest.fail(reason, pytrace=False)


@pytest.fixture
def sockets(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """Makes sockets on `context`: `sockets(zmq.DEALER, connect=endpoint)`, `sockets(zmq.SUB, SUBSCRIBE=b"")`.

    Options are given by name and set before it binds or connects; the endpoint bound, with its port, is
    `socket.last_endpoint`. Sends and receives give up after 5 s; all are closed at the end with LINGER 0.
    """
    made: list[zmq.Socket[bytes]] = []

    def make(kind: int, *, bind: str = "", connect: str = "", **options: Any) -> zmq.Socket[bytes]:
        socket = context.socket(kind)
        made.append(socket)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, SOCKET_TIMEOUT_MS)
        socket.setsockopt(zmq.RCVTIMEO, SOCKET_TIMEOUT_MS)
        for name, value in options.items():
            socket.set(zmq.SocketOption[name], value)
        if bind:
            socket.bind(bind)
        if connect:
            socket.connect(connect)
        return socket

    yield make
    for socket in made:
        socket.close(linger=0)


# Randomness


@pytest.fixture
def seed() -> int:
    """Seeds the randomness of a test; run a failed one again with DWS_TEST_SEED set to what it printed."""
    value = int(os.environ.get("DWS_TEST_SEED") or secrets.randbits(32))
    print(f"DWS_TEST_SEED={value}")
    return value
