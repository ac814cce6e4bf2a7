"""What a cluster on one machine is to be, and whether it can be.

What lives here: `ClusterOptions`, the checks that come before any process is
started, and the flags by which nodes get their settings. What must not: running
anything (supervisor.py).
"""

import importlib.util
import re
import socket
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from dws.config import Config
from dws.errors import ConfigError, DwsError

#: The balancer's ports follow one another: clients, servers, heartbeats.
BALANCER_PORTS: Final = 3


class ClusterOptions(Struct, frozen=True, kw_only=True):
    """What cluster to run.

    host: what nodes bind and, unless `advertise` says otherwise, announce.
    site: a directory to upload at the first start.
    rebuild: make the catalog anew from what the web servers hold, once, at this start.
    record: a directory in which the balancer and the web servers record all that happens to them.
    http_port: the gateway's; 0 takes a free one; None: no gateway, and web servers without HTTP endpoints.
    """

    data: Path
    webservers: int = 4
    host: str = "127.0.0.1"
    advertise: str = ""
    port: int = 5600
    http_port: int | None = None
    config: Config = Config()
    site: Path | None = None
    rebuild: bool = False
    record: Path | None = None
    restart: bool = True
    restart_first_s: float = 3.0
    restart_most_s: float = 60.0
    start_timeout_s: float = 120.0
    log_level: str = "info"


def check(options: ClusterOptions) -> None:
    """Raise ConfigError if no such cluster can run."""
    if not 1 <= options.webservers <= 1000:
        raise ConfigError(f"{options.webservers} web servers: wanted 1 to 1000")
    if options.config.copies > options.webservers:
        raise ConfigError(
            f"{options.config.copies} copies of each page need as many web servers, and there would be"
            f" {options.webservers}: start more, or ask for fewer copies"
        )
    if not 0 <= options.port <= 65_536 - BALANCER_PORTS:
        raise ConfigError(f"port {options.port}: wanted 0 (free ones) to {65_536 - BALANCER_PORTS}")
    if options.http_port is not None:
        _check_http(options.http_port)
    announced = options.advertise or options.host
    if announced in ("0.0.0.0", "*", "::"):
        raise ConfigError(
            f"{announced} is no address to announce: say --advertise with the one that clients connect to"
        )
    # Any free port: what is found is that the address is none of this machine's.
    if fault := _taken(options.host, 0):
        raise ConfigError(f"host {options.host}: {fault}; --host wants an address of this machine")
    if options.site is not None and not options.site.is_dir():
        raise ConfigError(f"{options.site} is not a directory to upload")
    if options.record is not None and options.record.exists() and not options.record.is_dir():
        raise ConfigError(
            f"{options.record} is not a directory to record into: each start makes a file in it"
        )


def _check_http(port: int) -> None:
    if not 0 <= port <= 65_535:
        raise ConfigError(f"HTTP port {port}: wanted 0 (a free one) to 65535")
    if importlib.util.find_spec("granian") is None:
        raise ConfigError(
            'HTTP needs the extra "http": pip install "dws-cluster[http]", or start no gateway with --no-http'
        )


def check_http_port(host: str, port: int) -> None:
    """Raise, naming it, if the gateway's port is taken."""
    fault = _taken(host, port)
    if fault:
        raise DwsError(
            f"port {port} on {host}: {fault}. The gateway needs it: stop what uses it, or choose another"
            " --http-port (0 takes a free one; --no-http starts no gateway)"
        )


def check_ports(host: str, port: int) -> None:
    """Raise, naming it, if a port of the balancer's is taken. The balancer itself finds later takers."""
    for number in range(port, port + BALANCER_PORTS):
        fault = _taken(host, number)
        if fault:
            raise DwsError(
                f"port {number} on {host}: {fault}. The balancer needs"
                f" {port} to {port + BALANCER_PORTS - 1}: stop what uses them, or choose another --port"
                " (0 takes free ones)"
            )


def _taken(host: str, port: int) -> str:
    """Why this port cannot be bound; empty if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address(host), port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return ""


def address(host: str) -> str:
    """The IPv4 address to bind: ZeroMQ resolves names where it connects, not where it binds."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError(f"host {host}: {error.strerror or error}") from None


def webservers_in(data: Path) -> list[str]:
    """The names of the web servers that have a data directory here, in order."""
    if not data.is_dir():
        return []
    names = (path.name for path in data.iterdir() if path.is_dir())
    return sorted(filter(number_of, names), key=number_of)


def number_of(name: str) -> int:
    """3 for web-3; 0 for what is no web server's name."""
    match = re.fullmatch(r"web-([1-9]\d*)", name)
    return int(match[1]) if match else 0


def config_flags(config: Config) -> list[str]:
    """What differs from the defaults, as flags of `dws serve`."""
    flags = []
    for field in msgspec.structs.fields(Config):
        value = getattr(config, field.name)
        if value != field.default:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            flags += ["--set", f"{field.name}={text}"]
    return flags
