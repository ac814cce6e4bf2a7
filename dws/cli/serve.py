"""serve: one node, in the foreground, until it is told to stop.

What lives here: from flags and settings to the nodes' own settings, and where
their log goes. What must not: what a node does (dws/nodes).
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from dws.cli.session import Session, balancer_option, pass_session
from dws.cli.settings import Settings, parse_bytes
from dws.config import Config
from dws.errors import ConfigError

if TYPE_CHECKING:
    from dws.nodes.recording import RecordSettings

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Named flags for what people set most; --set reaches every field. Flag → field of Config.
NAMED = {"copies": "copies", "policy": "policy", "period": "period_s", "quota": "quota_bytes"}


def config_options(command: _Command) -> _Command:
    """--copies, --policy, --period, --quota and --set: they fill a Config (see `config_of`)."""
    for flag, metavar, meaning in (
        ("--quota", "SIZE", "The most a web server stores, such as 10GiB.  [env DWS_QUOTA_BYTES]"),
        ("--period", "SECONDS", "The statistics period.  [env DWS_PERIOD_S; default 30]"),
        ("--policy", "NAME", "How a holder is chosen.  [env DWS_POLICY; default least-load]"),
        ("--copies", "N", "Servers that store a page.  [env DWS_COPIES; default 2]"),
    ):
        command = click.option(flag, metavar=metavar, help=meaning)(command)
    return click.option(
        "--set", "pairs", metavar="KEY=VALUE", multiple=True,
        help="Any field of dws.config.Config, such as beat_s=0.5; repeatable.",
    )(command)  # fmt: skip


def config_of(settings: Settings, flags: dict[str, Any], pairs: tuple[str, ...]) -> Config:
    """Takes the named flags out of `flags`; what is left is the command's own."""
    return settings.config({field: flags.pop(flag) for flag, field in NAMED.items()}, pairs)


def node_options(command: _Command) -> _Command:
    for flag, metavar, meaning in (
        ("--log-level", "LEVEL", "debug, info, warning or error.  [env DWS_LOG_LEVEL; default info]"),
        ("--port", "PORT", "0 takes free ones.  [env DWS_PORT]"),
        ("--advertise", "ADDRESS", "Announce this one, if it is not --bind.  [env DWS_ADVERTISE]"),
        ("--bind", "ADDRESS", "Listen on this address.  [env DWS_BIND; default 127.0.0.1]"),
        ("--data", "DIR", "Where it keeps its data.  [env DWS_DATA]"),
    ):
        command = click.option(flag, metavar=metavar, help=meaning)(command)
    # A pipe whose other end the starter holds: the node ends with it.
    command = click.option("--lifeline", metavar="FD", type=int, hidden=True)(command)
    return config_options(command)


def record_options(command: _Command) -> _Command:
    """--record and --record-max: they fill `record_of`'s settings."""
    command = click.option(
        "--record-max", metavar="SIZE", help="Where a recording ends, at the latest.  [default: 1GiB]"
    )(command)
    return click.option(
        "--record", metavar="PATH", type=click.Path(path_type=Path),
        help="Record what happens, for `dws sim replay`: a new file, or a directory for one each start.",
    )(command)  # fmt: skip


def record_of(flags: dict[str, Any]) -> "RecordSettings | None":
    """Takes its flags out of `flags`; what is left is the command's own."""
    path, size = flags.pop("record"), flags.pop("record_max")
    if path is None:
        if size is not None:
            raise click.UsageError("--record-max without --record: there is no recording to bound")
        return None
    from dws.nodes.recording import BYTES_MAX, RecordSettings

    try:
        return RecordSettings(path, BYTES_MAX if size is None else parse_bytes(size))
    except ValueError as error:
        raise click.UsageError(f"--record-max: {error}") from None


@click.group()
def serve() -> None:
    """Start one node by hand.

    For a whole cluster on one machine there is run_cluster.py.
    """


@serve.command(
    epilog="""\b
Examples:
  dws serve balancer --data /var/lib/dws/balancer
  dws serve balancer --data ./balancer --bind 192.0.2.10 --copies 3 --set dead_s=30
  dws serve balancer --data ./balancer --rebuild     after the catalog was lost
"""
)
@click.option("--rebuild", is_flag=True, help="Make the catalog anew from what the web servers hold.")
@record_options
@node_options
@pass_session
def balancer(
    session: Session, /, rebuild: bool, lifeline: int | None, pairs: tuple[str, ...], **flags: Any
) -> int:
    """Start the balancer. It takes three ports in a row: clients, servers, heartbeats.

    Its data directory keeps the catalog. If it is lost, or an old copy of it was put back, the web servers
    refuse the balancer until it is started with --rebuild; pages that were removed may then return.
    """
    settings = session.settings
    config = config_of(settings, flags, pairs)
    record = record_of(flags)
    data = _data(settings, flags)
    bind = settings.get("serve.bind", flags["bind"])
    # It announces itself to nobody, so unlike a web server it may leave this open.
    advertise = settings.get("serve.advertise", flags["advertise"])
    check_announced(advertise)
    port = settings.get("serve.port", flags["port"])
    _begin(settings, lifeline, flags)
    from dws.nodes.balancer import BalancerSettings
    from dws.nodes.balancer import serve as run

    port = 5600 if port is None else port
    return run(
        BalancerSettings(
            data=data,
            bind=bind,
            port=port,
            advertise=advertise,
            config=config,
            rebuild=rebuild,
            record=record,
        )
    )


@serve.command(
    epilog="""\b
Examples:
  dws serve webserver --name web-1 --data /var/lib/dws/web-1
  dws serve webserver --name web-2 --data ./web-2 --bind 0.0.0.0 \\
      --advertise 192.0.2.12 --balancer tcp://192.0.2.10:5600 --quota 200GiB
  dws serve webserver --name web-3 --data ./web-3 --http-port 8081 --gateway http://192.0.2.10:8080
"""
)
@click.option(
    "--gateway",
    metavar="URL",
    default="",
    help="Where its HTTP endpoint sends browsers for pages that it does not hold.",
)
@click.option(
    "--http-port",
    metavar="PORT",
    type=click.IntRange(-1, 65_535),
    default=-1,
    help="Serve HTTP beside it, on this port; 0 takes a free one.  [default: no HTTP]",
)
@click.option("--name", metavar="NAME", help="What it is called in reports.  [env DWS_NAME]")
@record_options
@node_options
@balancer_option
@pass_session
def webserver(
    session: Session,
    /,
    http_port: int,
    gateway: str,
    lifeline: int | None,
    pairs: tuple[str, ...],
    **flags: Any,
) -> int:
    """Start a web server. It stores pages in its data directory, by which it is known ever after."""
    settings = session.settings
    config = config_of(settings, flags, pairs)
    record = record_of(flags)
    name = settings.get("serve.name", flags["name"])
    if not name:
        raise click.UsageError("a web server needs a name: --name web-1, or DWS_NAME")
    bind = settings.get("serve.bind", flags["bind"])
    advertise = settings.get("serve.advertise", flags["advertise"])
    check_announced(advertise or bind)
    data = _data(settings, flags)
    port = settings.get("serve.port", flags["port"]) or 0
    check_gateway(gateway)
    balancer = session.balancer
    _begin(settings, lifeline, flags)
    from dws.nodes.endpoint_process import HttpSettings
    from dws.nodes.webserver import WebServerSettings
    from dws.nodes.webserver import serve as run

    return run(
        WebServerSettings(
            name=name,
            data=data,
            balancer=balancer,
            bind=bind,
            advertise=advertise,
            port=port,
            config=config,
            http=HttpSettings(http_port, gateway),
            record=record,
        )
    )


@serve.command(hidden=True)
@click.option("--name", required=True)
@click.option("--server", required=True)
@click.option("--gateway", default="")
@node_options
@balancer_option
@pass_session
def http(
    session: Session,
    /,
    name: str,
    server: str,
    gateway: str,
    lifeline: int | None,
    pairs: tuple[str, ...],
    **flags: Any,
) -> int:
    """Start a web server's HTTP endpoint. The web server itself does that: see --http-port there."""
    settings = session.settings
    data = _data(settings, flags)
    balancer = session.balancer
    bind = settings.get("serve.bind", flags["bind"])
    advertise = settings.get("serve.advertise", flags["advertise"])
    port = settings.get("serve.port", flags["port"]) or 0
    _begin(settings, lifeline, flags)
    from dws.nodes.endpoint_process import EndpointProcessSettings, serve_endpoint

    return serve_endpoint(
        EndpointProcessSettings(
            name=name,
            data=data,
            server=server,
            balancer=balancer,
            gateway=gateway,
            bind=bind,
            advertise=advertise,
            port=port,
        )
    )


@serve.command(
    epilog="""\b
Examples:
  dws serve gateway
  dws serve gateway --port 80 --bind 0.0.0.0 --advertise www.example.org --balancer tcp://192.0.2.10:5600
"""
)
@click.option("--name", metavar="NAME", help="What it is called in reports.  [env DWS_NAME; default gateway]")
@node_options
@balancer_option
@pass_session
def gateway(session: Session, /, lifeline: int | None, pairs: tuple[str, ...], **flags: Any) -> int:
    """Start a gateway: a page's URL there redirects to the best web server's own HTTP endpoint.

    Port 8080 unless told otherwise; the dashboard is at /_dws/. A gateway keeps nothing: any number may run.
    With --data it writes there where it is, in node.json.
    """
    settings = session.settings
    config_of(settings, flags, pairs)
    bind = settings.get("serve.bind", flags["bind"])
    advertise = settings.get("serve.advertise", flags["advertise"])
    check_announced(advertise or bind)
    port = settings.get("serve.port", flags["port"])
    name = settings.get("serve.name", flags["name"]) or "gateway"
    data = settings.get("serve.data", flags["data"])
    balancer = session.balancer
    _begin(settings, lifeline, flags)
    from dws.http.gateway import GatewaySettings
    from dws.http.gateway import serve as run

    return run(
        GatewaySettings(
            name=name,
            balancer=balancer,
            bind=bind,
            advertise=advertise,
            port=8080 if port is None else port,
            data=data,
        )
    )


def check_announced(address: str) -> None:
    """Refuse to tell others an address that means every machine itself."""
    if address in ("0.0.0.0", "*", "::"):
        raise ConfigError(f"{address} is no address to announce: say --advertise with one that others reach")


def check_gateway(url: str) -> None:
    """Refuse what browsers could not be sent to."""
    try:
        parts = urlsplit(url)
        usable = not url or (parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1))
    except ValueError:
        usable = False
    if not usable or not url.isascii() or any(each in url for each in " ?#"):
        raise ConfigError(f"--gateway {url!r} is no URL of the form http://HOST:PORT")


def _data(settings: Settings, flags: dict[str, Any]) -> Path:
    directory: Path | None = settings.get("serve.data", flags["data"])
    if directory is None:
        raise click.UsageError("a node needs a data directory: --data DIR, or DWS_DATA")
    return directory


def _begin(settings: Settings, lifeline: int | None, flags: dict[str, Any]) -> None:
    """What comes before a node's own start: its tie to whoever started it, its log and its scheduling.

    Called once nothing can be wrong with the arguments any more: it changes the process for good.
    """
    level = settings.get("log_level", flags["log_level"])
    if lifeline is not None:
        from dws.nodes.lifeline import tie

        tie(lifeline)
    from patterns.zeromq.process import prepare_process

    prepare_process()
    log_to_stderr(level)


def log_to_stderr(level: str) -> None:
    """One line an event, UTC time first."""
    handler = logging.StreamHandler(sys.stderr)
    line = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
    formatter = logging.Formatter(line, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
