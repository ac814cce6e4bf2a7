"""Endpoints, and the file by which a node says that it is up.

What lives here: the three ports of a balancer, binding to a given or a free
port with an error that helps, and node.json. What must not: protocol.
"""

import json
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Final

import zmq

from dws.addresses import endpoint_fault, parts_of
from dws.errors import ConfigError, Refused

#: The balancer's ports: clients on the first, servers on the next, heartbeats on the third.
SERVERS_OFFSET: Final = 1
BEATS_OFFSET: Final = 2
_TRIES: Final = 50


def with_offset(endpoint: str, offset: int) -> str:
    """The endpoint `offset` ports further; ConfigError if it is none."""
    if fault := endpoint_fault(endpoint, ports=1 + offset):
        raise ConfigError(fault)
    host, port = parts_of(endpoint)
    return f"tcp://{host}:{port + offset}"


def advertised(bind: str, advertise: str) -> str:
    """The host that others are told; a wildcard is never told."""
    host = advertise or bind
    if host in ("0.0.0.0", "*", "::"):
        raise ConfigError(f"bound to {bind}, so others cannot know the address: give --advertise HOST")
    return host


def bind(socket: "zmq.Socket[bytes]", host: str, port: int) -> int:
    """Bind to a port (0: a free one) and return it."""
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            text = f"port {port} on {host} is taken: stop what listens there, or choose another --port"
            raise Refused(text) from None
        raise ConfigError(f"cannot bind to {host}:{port}: {error}") from None
    return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])


def bind_in_a_row(sockets: "list[zmq.Socket[bytes]]", host: str, port: int) -> int:
    """Bind sockets to consecutive ports from `port` (0: wherever that many are free); the first one."""
    if port:
        for offset, socket in enumerate(sockets):
            bind(socket, host, port + offset)
        return port
    for _ in range(_TRIES):
        # Below what Linux gives to outgoing connections: one of those could take the port of a balancer that
        # is being started again.
        first = random.randrange(20_000, 32_000, 4)
        bound = []
        try:
            for offset, socket in enumerate(sockets):
                bind(socket, host, first + offset)
                bound.append(socket)
            return first
        except Refused:
            for offset, socket in enumerate(bound):
                socket.unbind(f"tcp://{host}:{first + offset}")
    raise Refused(f"found no {len(sockets)} free ports in a row on {host} in {_TRIES} tries: give --port")


def announce(data: Path, role: str, name: str, endpoint: str) -> None:
    """Write node.json: this process is up and can be reached there."""
    said = {"schema": 1, "role": role, "name": name, "pid": os.getpid(), "endpoint": endpoint}
    data.mkdir(parents=True, exist_ok=True)
    part = data / ".node.json.part"
    part.write_text(json.dumps(said) + "\n")
    part.replace(data / "node.json")


def withdraw(data: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        (data / "node.json").unlink()
