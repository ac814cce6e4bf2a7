#!/usr/bin/env python3
"""Run a cluster on this machine: flags in, dws.nodes.supervisor does the rest."""

import signal
import sys
from pathlib import Path
from typing import Any

try:
    import click

    from dws.cli import exits
    from dws.cli.serve import config_of, config_options
    from dws.cli.settings import Settings, parse_port
    from dws.nodes.cluster_options import ClusterOptions
    from dws.nodes.supervisor import Interrupted, Supervisor
except KeyboardInterrupt:
    print("run_cluster.py: interrupted", file=sys.stderr)
    sys.exit(130)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  python run_cluster.py                                  four web servers, pages in ./dws-data
  python run_cluster.py --webservers 8 --copies 3 --data /srv/dws
  python run_cluster.py --port 0 --site examples/site    free ports, and a site to begin with
  python run_cluster.py --host 0.0.0.0 --advertise 192.0.2.10
""",
)
@click.option("--webservers", default=4, show_default=True, metavar="N", help="How many web servers.")
@click.option("--data", default="./dws-data", show_default=True, metavar="DIR",
              type=click.Path(path_type=Path),
              help="Where everything is kept: pages, catalog, logs, cluster.json.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Listen on this address.")
@click.option("--advertise", default="", metavar="ADDRESS", help="Announce this one, if it is not --host.")
@click.option("--port", default="5600", show_default=True, metavar="PORT",
              help="The first of the balancer's three ports; 0 takes free ones.")
@click.option("--http-port", default="8080", show_default=True, metavar="PORT",
              help="The gateway's, for browsers; 0 takes a free one.")
@click.option("--no-http", is_flag=True, help="Start no gateway, and web servers without HTTP endpoints.")
@click.option("--site", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Upload this directory at the first start.")
@click.option("--restart", type=click.Choice(["always", "never"]), default="always", show_default=True,
              help="Whether to start again a node that dies: after 3 s, doubling to 60 s.")
@click.option("--rebuild", is_flag=True,
              help="Make the catalog anew from what the web servers hold; see `dws serve balancer --help`.")
@click.option("--record", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Record in this directory all that happens to the nodes, for `dws sim replay`.")
@click.option("--log-level", metavar="LEVEL", help="Of the nodes: debug, info, warning or error.")
@config_options
def run(
    webservers: int, data: Path, host: str, advertise: str, port: str, http_port: str, no_http: bool,
    site: Path | None, restart: str, rebuild: bool, record: Path | None, log_level: str | None,
    pairs: tuple[str, ...], **flags: Any,
) -> int:  # fmt: skip
    """Run a balancer, web servers and a gateway for browsers on this machine, until Ctrl-C or SIGTERM.

    Pages stay in the data directory: the next start on it serves them again. Exit codes are those of `dws`.
    """
    settings = Settings.load()
    supervisor = Supervisor(
        ClusterOptions(
            data=data,
            webservers=webservers,
            host=host,
            advertise=advertise,
            port=_port("--port", port),
            http_port=None if no_http else _port("--http-port", http_port),
            config=config_of(settings, flags, pairs),
            site=site,
            restart=restart == "always",
            rebuild=rebuild,
            record=record,
            log_level=settings.get("log_level", log_level),
        ),
        say=lambda line: print(line, flush=True),
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: supervisor.request_stop())
    try:
        supervisor.start()
    except Interrupted as error:
        print(error, file=sys.stderr)
        return exits.INTERRUPTED
    _show(supervisor)
    supervisor.wait()
    print("stopping", flush=True)
    return exits.OK if supervisor.stop() else exits.FAILED


def _port(flag: str, text: str) -> int:
    try:
        return parse_port(text)
    except ValueError as error:
        raise click.UsageError(f"{flag} {error}") from None


def _show(supervisor: Supervisor) -> None:
    for node in supervisor.nodes:
        print(f"{node.name:<10} pid {node.pid:<8} {node.endpoint}")
    if supervisor.url:
        print(f"site       {supervisor.url}/")
        print(f"dashboard  {supervisor.url}/_dws/")
    print(f"up: try `dws -b {supervisor.endpoint} status`; Ctrl-C stops it", flush=True)


def main() -> None:
    sys.exit(exits.guarded(lambda: run.main(standalone_mode=False), "run_cluster.py"))


if __name__ == "__main__":
    main()
