"""node drain, resume, forget: a web server is emptied, kept after all, or given up.

What lives here: the commands, and the progress of a drain. What must not: when a
server is safe to stop, which the balancer says.

A drain is the balancer's, not this command's: it goes on when the command ends.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Final

import click

from dws.cli import exits, output
from dws.cli.session import Session, client_options, json_option, pass_session
from dws.diagnosis import is_emptied
from dws.errors import Refused, TimedOut, Unreachable
from dws.membership import DEAD
from dws.messages import ClusterStatus, Maintained, ServerStatus, to_plain

_EVERY_S: Final = 0.5

_number_option = click.option(
    "--number", type=click.IntRange(1, 65_535), default=None, metavar="N",
    help="Which of several servers of that name; `dws status --json` tells their numbers.",
)  # fmt: skip


@click.group(
    epilog="""\b
Examples:
  dws node drain web-3        empty it, then it is safe to stop
  dws node resume web-3       keep it after all
  dws node forget web-3       it will not come back
"""
)
def node() -> None:
    """Take a web server out of service, or back."""


@node.command(
    epilog="""\b
Examples:
  dws node drain web-3              wait until it is safe to stop
  dws node drain web-3 --no-wait    only begin
  dws node drain web-3 --json       a line of JSON each half second
"""
)
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Return as soon as the drain has begun.")
@_number_option
@json_option
@client_options
@pass_session
def drain(session: Session, /, name: str, no_wait: bool, number: int | None) -> int:
    """Copy everything off a web server, then say that it is safe to stop.

    It serves its pages meanwhile, and gets no new ones. Ctrl-C ends the waiting, not the drain: the same
    command again waits on, and `dws node resume` takes it back. Exit code 1 if the server dies before.
    """
    with session.client() as client:
        begun = client.drain(name, number or 0)
        if no_wait:
            _tell(session, begun, f"{begun.name} is being drained; `dws status` shows what is left")
            return exits.OK
        try:
            return _Drain(session, begun).wait(client.status)
        except KeyboardInterrupt:
            output.say(f"the drain of {begun.name} goes on; `dws node resume {begun.name}` takes it back")
            raise


class _Drain:
    """Looks twice a second how much is left to move."""

    def __init__(self, session: Session, begun: Maintained) -> None:
        self._session = session
        self._begun = begun
        self._line = ""

    def wait(self, status: Callable[[], ClusterStatus]) -> int:
        while True:
            try:
                told = status()
            except (Unreachable, TimedOut) as error:
                # A balancer that starts again goes on with it.
                self._say(f"still trying: {error}")
                continue
            server = next((each for each in told.servers if each.number == self._begun.number), None)
            if server is None or not server.draining:
                raise Refused(f"the drain of {self._begun.name} was taken back, or it was forgotten")
            self._show(told, server)
            if server.state == DEAD:
                raise Refused(_dead(server))
            if is_emptied(server):
                self._end(server)
                return exits.OK
            time.sleep(_EVERY_S)

    def _show(self, told: ClusterStatus, server: ServerStatus) -> None:
        if self._session.json:
            left = {"server": server.name, "to_move": server.to_move, "to_move_bytes": server.to_move_bytes}
            output.data(json.dumps(left | {"state": server.state, "repair": to_plain(told.repair)}))
            return
        line = (
            f"{server.name}: {output.pages_text(server.to_move)}, {output.bytes_text(server.to_move_bytes)}"
        )
        line += f" left to move, {output.bytes_text(int(told.repair.bytes_s))}/s"
        if told.repair.text:
            line += f" ({told.repair.text})"
        self._say(line)

    def _say(self, line: str) -> None:
        if line != self._line:
            # On a terminal one line that changes, else a line for each change.
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{line:<79}", end=end, file=sys.stderr, flush=True)
        self._line = line

    def _end(self, server: ServerStatus) -> None:
        if not self._session.json:
            if sys.stderr.isatty():
                print(" " * 79, end="\r", file=sys.stderr)
            output.data(
                f"{server.name} is safe to stop: all it holds is on other servers. Then"
                f" `dws node forget {server.name}` if it is not to come back"
            )


def _dead(server: ServerStatus) -> str:
    if server.to_move:
        return f"{server.name} died, with {server.to_move:,} pages that were not moved; start it again"
    if not is_emptied(server):
        return f"{server.name} is dead, and what it holds was not known yet; start it again"
    return f"{server.name} is dead; all it held is on other servers"


@node.command(epilog="\b\nExamples:\n  dws node resume web-3\n")
@click.argument("name")
@_number_option
@json_option
@client_options
@pass_session
def resume(session: Session, /, name: str, number: int | None) -> None:
    """Take a drain back: the server's copies count, and it gets new pages again."""
    with session.client() as client:
        told = client.resume(name, number or 0)
    _tell(session, told, f"{told.name} is {told.state}, and not drained")


@node.command(
    epilog="""\b
Examples:
  dws node forget web-3
  dws node forget web-3 --force     though a page's last copy may lie there
"""
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Though pages have no live copy, and it may have one.")
@_number_option
@json_option
@client_options
@pass_session
def forget(session: Session, /, name: str, force: bool, number: int | None) -> None:
    """Give up a dead web server: the cluster waits for it no more.

    If it comes back all the same it joins as a new server, with what it holds.
    """
    with session.client() as client:
        told = client.forget(name, number or 0, force=force)
    _tell(session, told, f"{told.name} is forgotten")


def _tell(session: Session, told: Maintained, text: str) -> None:
    if session.json:
        output.emit_json(to_plain(told))
    else:
        output.data(text)
