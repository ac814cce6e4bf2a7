"""Where a node is and what a server is called: what is legal, and what is wrong with what is not.

What lives here: the one check of an endpoint, whoever it comes from: a flag, a
file, the caller of `dws.connect`, a server's hello. The sockets of libzmq take
more than is meant and say nothing where they resolve it later, and a number
that is no port raises in each library as that one likes. What must not:
resolving names, sockets, and what follows from a fault.
"""

import re
from typing import Final

PORT_MAX: Final = 65_535
EXAMPLE: Final = "tcp://127.0.0.1:5600"

_PLACE: Final = re.compile(r"([a-z]+)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,9})", re.ASCII)


def endpoint_fault(text: str, schemes: tuple[str, ...] = ("tcp",), ports: int = 1) -> str | None:
    """What is wrong with an endpoint SCHEME://HOST:PORT, in words that name it; None if nothing is.

    ports: how many in a row, from that one, are to be ports.
    """
    place = _PLACE.fullmatch(text)
    if place is None or place[1] not in schemes:
        return f"{text!r} is not an endpoint, such as {EXAMPLE.replace('tcp', schemes[0])}"
    most = PORT_MAX + 1 - ports
    if not 1 <= int(place[3]) <= most:
        why = f", since the next {ports - 1} belong to it" if ports > 1 else ""
        return f"{text!r} has no possible port: wanted 1 to {most}{why}"
    return None


def parts_of(endpoint: str) -> tuple[str, int]:
    """Host and port of an endpoint without fault."""
    _, _, place = endpoint.partition("://")
    host, _, port = place.rpartition(":")
    return host, int(port)
