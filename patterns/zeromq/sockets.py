"""The one place where sockets get their options.

What lives here: the factory, and connection monitors. What must not: any
protocol. One thread owns a socket; whoever makes it closes it.
"""

from typing import Final

import zmq
from zmq import zmq_poll
from zmq.utils.monitor import parse_monitor_message

#: Messages queued for one peer before a send is refused (or, on PUB, dropped).
DEFAULT_HWM: Final = 1000
HANDSHAKE_MS: Final = 5_000
#: ZMTP pings: a vanished host (no FIN, no RST) is noticed after the timeout.
HEARTBEAT_MS: Final = 2_000
HEARTBEAT_TIMEOUT_MS: Final = 6_000
RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 500
#: Larger data frames are sent from where they lie. Up to here a copy is cheaper: pyzmq has a thread that lets
#: go of what was not copied, and it is woken for each.
COPIED_MAX_BYTES: Final = 256 * 1024

#: As a plain int: an enum costs as much again as the question.
_READABLE: Final = int(zmq.POLLIN)


def make_socket(
    context: "zmq.Context[zmq.Socket[bytes]]", kind: int, *, frame_max_bytes: int, hwm: int = DEFAULT_HWM
) -> "zmq.Socket[bytes]":
    """A socket that bounds its queues and frames and never blocks at close.

    LINGER is 0: what must survive is sent again by its pattern, not by a queue.
    """
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, hwm)
    socket.setsockopt(zmq.RCVHWM, hwm)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_max_bytes)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    if kind == zmq.ROUTER:
        # Without it a reply to a peer that left vanishes unnoticed.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    return socket


def is_readable(socket: "zmq.Socket[bytes]") -> bool:
    """Whether a message waits. Raises ZMQError of a closed socket.

    A third of what a receive in vain costs, which makes an exception; to get the option EVENTS costs half as
    much again, most of it in Python's enums.
    """
    if socket.closed:
        # Without a handle zmq_poll would ask the file descriptor 0 instead.
        raise zmq.ZMQError(zmq.ENOTSOCK)
    return bool(zmq_poll([(socket, _READABLE)], 0))


class Monitor:
    """Tells when a socket's connection came up or went down."""

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        self._watched = socket
        self.socket: zmq.Socket[bytes] = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )

    def drain(self) -> list[bool]:
        """Events since the last call, in order: True came up, False went down."""
        events = []
        while is_readable(self.socket):
            message = parse_monitor_message(self.socket.recv_multipart(zmq.NOBLOCK))
            events.append(message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED)
        return events

    def close(self) -> None:
        """Before the watched socket is closed."""
        self._watched.disable_monitor()
        self.socket.close(0)
