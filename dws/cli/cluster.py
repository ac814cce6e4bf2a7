"""status and why: what the balancer knows, and how it would choose.

What lives here: the layout of both reports, and the watch that redraws the first.
What must not: any figure that is not the balancer's own.
"""

import re
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import click

from dws.cli import exits, output
from dws.cli.session import Session, client_options, json_option, pass_session
from dws.diagnosis import is_emptied
from dws.errors import DwsError
from dws.membership import DEAD
from dws.messages import Because, Choice, ClusterStatus, ServerStatus, to_plain
from dws.names import check_name, format_version

if TYPE_CHECKING:
    from dws.nodes.client import Client

_EVERY_S: Final = 1.0
# A watch that waits for its timeout shows nothing new meanwhile: it asks again rather soon.
_WATCH_TIMEOUT_S: Final = 2.0


# -- status ------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  dws status
  dws status --watch                  redraw every second, until Ctrl-C
  dws status --json | jq '.servers[] | {name, state, pages}'
"""
)
@click.option("-w", "--watch", is_flag=True, help="Go on, every second; with --json a line each.")
@json_option
@client_options
@pass_session
def status(session: Session, /, watch: bool) -> int:
    """Show the cluster's pages, copies and servers.

    `free` is what uploads may still take: the disk's free space, or the rest of the quota, less the
    share that stays free (free_reserve, 5 %).

    Exit code 4 if the balancer does not answer. The watch says so and goes on.
    """
    if watch:
        return Watch(session).run()
    with session.client() as client:
        told = client.status()
    if session.json:
        output.emit_json(_plain(told))
    else:
        output.data(status_text(told))
    return exits.OK


def _plain(told: ClusterStatus) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(told)
    return plain


def status_text(told: ClusterStatus) -> str:
    """The report of `dws status`."""
    copies = ", ".join(
        f"{output.pages_text(count)} with {label} {'copy' if label == '1' else 'copies'}"
        for label, count in zip(("no live", "1", "2", "3 or more"), told.page_copies, strict=True)
        if count
    )
    states = [server.state for server in told.servers]
    summary = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none known"
    return "\n".join(
        (
            f"cluster   {told.cluster.hex() or 'none yet'}, epoch {told.epoch}, decision {told.decision:,},"
            f" up {output.duration_text(told.uptime_s)}",
            f"pages     {output.pages_text(told.pages)}, {output.bytes_text(told.bytes_visible)}"
            + (f": {copies}" if copies else ""),
            f"work      policy {told.policy}, {told.lookups:,} lookups, {told.open_batches:,} uploads open,"
            f" {told.garbage:,} records to drop",
            f"servers   {summary}",
            *([f"repair    {repair}"] if (repair := _repair_text(told)) else []),
            "",
            *([_servers(told.servers)] if told.servers else ["no web server has ever said hello"]),
            *(f"note      {server.name}: {note}" for server in told.servers if (note := _note(server))),
        )
    )


def _repair_text(told: ClusterStatus) -> str:
    """Copies wanted and not there, and how fast they come; empty if there is nothing to tell."""
    repair = told.repair
    parts = []
    if repair.missing:
        parts.append(
            f"{output.pages_text(repair.missing)}, {output.bytes_text(repair.missing_bytes)} to copy"
        )
        if repair.moving or repair.bytes_s:
            parts.append(f"{repair.moving:,} on the way")
            parts.append(f"{repair.pages_s:,.0f} pages/s, {output.bytes_text(repair.bytes_s)}/s")
        if repair.left_s >= 0:
            parts.append(f"{output.duration_text(repair.left_s)} left")
        if repair.text:
            parts.append(f"waits: {repair.text}")
    elif repair.copied:
        parts.append(f"done, {output.pages_text(repair.copied)} copied since the balancer's start")
    if repair.surplus:
        parts.append(f"{output.pages_text(repair.surplus)} with a copy too many")
    if repair.damaged:
        parts.append(f"{repair.damaged:,} damaged records set aside")
    return ", ".join(parts)


def _note(server: ServerStatus) -> str:
    notes = [server.note] if server.note else []
    if server.draining and server.to_move:
        left = f"{output.pages_text(server.to_move)}, {output.bytes_text(server.to_move_bytes)}"
        notes.append(f"drained: {left} left to move")
    elif is_emptied(server):
        notes.append("drained: " + ("not needed any more" if server.state == DEAD else "safe to stop"))
    elif server.draining:
        notes.append("drained: what it holds is not known yet")
    if server.damaged:
        notes.append(f"{server.damaged:,} damaged records set aside")
    return "; ".join(notes)


def _servers(servers: list[ServerStatus]) -> str:
    """One line a server; --json has the rest of the figures."""
    return output.table(
        (
            "server", "state", ">pages", ">stored", ">free", ">visits", ">served", ">failed", ">waiting",
            ">rtt", ">load", ">upload", ">cpu", ">beat",
        ),
        (
            (
                server.name,
                server.state,
                f"{server.pages:,}",
                output.bytes_text(server.bytes_stored),
                output.bytes_text(server.bytes_free),
                f"{server.visits:,}",
                f"{server.served:,}",
                f"{server.failed:,}",
                f"{server.waiting:,}",
                output.duration_text(server.rtt_s),
                "-" if server.download_load_s < 0 else output.duration_text(server.download_load_s),
                "-" if server.upload_load < 0 else f"{server.upload_load:.2f}",
                f"{server.cpu_share:.0%}",
                output.duration_text(server.last_beat_age_s),
            )
            for server in sorted(servers, key=_by_name)
        ),
    )  # fmt: skip


def _by_name(server: ServerStatus) -> list[tuple[int, str]]:
    """web-10 comes after web-9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", server.name)]


class Watch:
    """Asks every second and shows the answer; where none comes, says since when, over the last one."""

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._last: ClusterStatus | None = None
        self._answered_at: float | None = None
        self._begun = clock()

    def run(self) -> int:
        """Until Ctrl-C."""
        # The watch says itself when it has lost touch.
        options: dict[str, Any] = {"timeout_s": self._session.timeout_s or _WATCH_TIMEOUT_S}
        options["on_silence"] = None
        # On a terminal, one screen that changes; otherwise one report after the other.
        if sys.stdout.isatty() and not self._session.json:
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            live = Live(console=Console(), auto_refresh=False, screen=False, vertical_overflow="crop")
            with live, self._session.client(**options) as client:
                return self._loop(client, lambda text: live.update(Text(text, no_wrap=True), refresh=True))
        with nullcontext(), self._session.client(**options) as client:
            return self._loop(client, output.data)

    def _loop(self, client: "Client", show: Callable[[str], None]) -> int:
        while True:
            asked_at = self._clock()
            show(self.report(client))
            time.sleep(max(0.0, asked_at + _EVERY_S - self._clock()))

    def report(self, client: "Client") -> str:
        """The next thing to show."""
        try:
            self._last = client.status()
            self._answered_at = self._clock()
        except DwsError as error:
            return self._lost(error)
        if self._session.json:
            return _json_line(_plain(self._last))
        return f"{self._session.balancer}\n{status_text(self._last)}"

    def _lost(self, error: DwsError) -> str:
        since = self._clock() - (self._begun if self._answered_at is None else self._answered_at)
        if self._session.json:
            return _json_line({"lost_touch_s": round(since, 3), "error": error.code, "text": str(error)})
        text = (
            f"LOST TOUCH with {self._session.balancer} for {output.duration_text(since)}: {error}\n"
            "still trying; Ctrl-C ends this"
        )
        if self._last is None:
            return text
        return f"{text}\n\nwhat it said last, no longer certain:\n{status_text(self._last)}"


def _json_line(value: Any) -> str:
    import json

    return json.dumps(value)


# -- why -----------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  dws why /index.html
  dws why --json /index.html | jq .chosen
"""
)
@click.argument("name")
@json_option
@client_options
@pass_session
def why(session: Session, /, name: str) -> None:
    """Show which server would serve a page, and why.

    The download load is rtt + (waiting + assigned) × service time / workers; among the page's live holders
    the policy least-load chooses the one with the least, where an rtt under 10 ms counts as none, and of idle
    ones the one that has been idle longest. Waiting and assigned are what should be left of them by now. The
    upload load decides where new pages go.
    """
    check_name(name)
    with session.client() as client:
        told = client.why(name)
    if session.json:
        output.emit_json(to_plain(told) | {"name": name, "version": format_version(told.version)})
    else:
        output.data(_why_text(name, told))


def _why_text(name: str, told: Because) -> str:
    version = format_version(told.version)
    chosen = f"{told.chosen} would serve it" if told.chosen else "no server can serve it now"
    return (
        f"{output.printable(name)} version {version}: {chosen} (policy {told.policy})\n\n"
        + output.table(
            (
                "server", "state", "holds it", ">load", ">rtt", ">waiting", ">assigned", ">service",
                ">workers", ">upload load", "note",
            ),
            (_choice_row(choice, chosen=choice.server == told.chosen) for choice in told.choices),
        )
    )  # fmt: skip


def _choice_row(choice: Choice, *, chosen: bool) -> tuple[str, ...]:
    return (
        choice.server,
        choice.state,
        "yes" if choice.holds else "no",
        "-" if choice.download_load_s is None else output.duration_text(choice.download_load_s),
        output.duration_text(choice.rtt_s),
        f"{choice.waiting:g}",
        f"{choice.assigned:g}",
        output.duration_text(choice.service_s),
        str(choice.workers),
        "-" if choice.upload_load is None else f"{choice.upload_load:.2f}",
        ", ".join(filter(None, ("chosen" if chosen else "", choice.reason))),
    )
