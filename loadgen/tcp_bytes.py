"""How many bytes the TCP connections of processes have carried, on Linux; elsewhere nobody knows.

What lives here: asking the kernel (sock_diag(7)), and adding up per process. What must not: which processes.

The kernel counts by connection and forgets one that is closed: what a connection carried between the last
look and its end is missing. Connections of a ZeroMQ socket live as long as its peer.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_INET_DIAG_INFO: Final = 2
_ALL_STATES: Final = 0xFFFF_FFFF
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI48x")
#: The answer's own part is 72 bytes, the last four of which are the socket's inode.
_DIAG_BYTES: Final = 72
_INODE: Final = struct.Struct("=I")
_ATTRIBUTE: Final = struct.Struct("=HH")
#: struct tcp_info: bytes_acked and bytes_received.
_TCP_BYTES: Final = struct.Struct("=QQ")
_TCP_BYTES_AT: Final = 120
_BUFFER_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 1.0


class Carried(Struct, frozen=True):
    sent: int = 0
    received: int = 0

    def __add__(self, other: "Carried") -> "Carried":
        return Carried(self.sent + other.sent, self.received + other.received)


class TcpBytes:
    """Sums of what the connections of some processes carried since they began."""

    def __init__(self) -> None:
        #: Process → its connections of the last look, by inode; and the sum of those that are closed.
        self._open: dict[int, dict[int, Carried]] = {}
        self._closed: dict[int, Carried] = {}

    def look(self, pids: Iterable[int]) -> dict[int, Carried]:
        """By process, each with all its connections, those that are closed since an earlier look too."""
        wanted = set(pids)
        carried = _connections() if wanted else {}
        return {pid: self._look(pid, carried) for pid in wanted}

    def _look(self, pid: int, carried: dict[int, Carried]) -> Carried:
        found = {inode: carried[inode] for inode in _sockets(pid) if inode in carried}
        gone = [one for inode, one in self._open.get(pid, {}).items() if inode not in found]
        closed = self._closed[pid] = sum(gone, self._closed.get(pid, Carried()))
        self._open[pid] = found
        return sum(found.values(), closed)


def _connections() -> dict[int, Carried]:
    """Inode → bytes sent and received, of every TCP socket; nothing where the kernel cannot be asked."""
    if not hasattr(socket, "AF_NETLINK"):
        return {}
    found: dict[int, Carried] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            for inode, sent, received in _ask(family):
                found[inode] = Carried(sent, received)
        except OSError:
            return {}
    return found


def _ask(family: int) -> Iterator[tuple[int, int, int]]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), _ALL_STATES)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT_S)
        kernel.send(header + request)
        while True:
            data = kernel.recv(_BUFFER_BYTES)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                    return
                yield from _read(data[at + _HEADER.size : at + length])
                at += (length + 3) & ~3


def _read(answer: bytes) -> Iterator[tuple[int, int, int]]:
    """One socket's (inode, sent, received); none if it is not told, as of those that wait for their end."""
    if len(answer) < _DIAG_BYTES:
        return
    (inode,) = _INODE.unpack_from(answer, _DIAG_BYTES - _INODE.size)
    at = _DIAG_BYTES
    while inode and at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _INET_DIAG_INFO and length >= _ATTRIBUTE.size + _TCP_BYTES_AT + _TCP_BYTES.size:
            sent, received = _TCP_BYTES.unpack_from(answer, at + _ATTRIBUTE.size + _TCP_BYTES_AT)
            yield inode, sent, received
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)


def _sockets(pid: int) -> Iterator[int]:
    """The inodes of a process's sockets; none if it has ended or is another user's."""
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(entry.path)
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                yield int(target[8:-1])
    except OSError:
        return
