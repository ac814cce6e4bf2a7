"""For the tests over real sockets: sockets as the patterns make them, addresses, and bounded waiting."""

from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic, sleep

import pytest
import zmq

from patterns.zeromq.sockets import DEFAULT_HWM, make_socket

WITHIN_S = 10.0


@pytest.fixture
def make(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """`make_socket` on the test's context; a forgotten message fails a receive after a while."""
    made: list[zmq.Socket[bytes]] = []

    def make_one(kind: int, *, frame_max_bytes: int = 1 << 20, hwm: int = DEFAULT_HWM) -> zmq.Socket[bytes]:
        made.append(make_socket(context, kind, frame_max_bytes=frame_max_bytes, hwm=hwm))
        made[-1].setsockopt(zmq.RCVTIMEO, int(WITHIN_S * 1000))
        return made[-1]

    yield make_one
    for socket in made:
        socket.close(0)


@pytest.fixture(params=["inproc", "tcp"])
def address(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Addresses to bind: each test that uses it runs over both transports."""
    numbers = count()
    return lambda: "tcp://127.0.0.1:*" if request.param == "tcp" else f"inproc://bound-{next(numbers)}"


@pytest.fixture
def until() -> Callable[..., None]:
    """until(condition, step, ...): takes the steps again and again until the condition holds."""

    def wait(condition: Callable[[], object], *steps: Callable[[], object]) -> None:
        give_up = monotonic() + WITHIN_S
        while not condition():
            assert monotonic() < give_up, "it did not come to pass"
            for step in steps:
                step()
            sleep(0.0005)

    return wait
