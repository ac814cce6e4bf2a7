"""dws trace: an operation on the running cluster, every message of it shown.

What lives here: the commands, and the observer that prints steps as they happen.
What must not: what the steps mean (dws.trace), their layout (trace_text.py).
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dws.cli import output, trace_text
from dws.cli.session import Session, client_options, json_option, pass_session
from dws.elision import Elided, Elision
from dws.messages import to_plain
from dws.names import check_name
from dws.trace import EXPIRED, LATE, NOT_SENT, SENT, Step, Trace

if TYPE_CHECKING:
    from dws.nodes.client import Client

_ENDED: Final = "end"


class Tracing:
    """The client's observer: a row a message, as it happens. is_whole: leave none out."""

    def __init__(self, balancer: str, *, is_json: bool, is_whole: bool) -> None:
        self.trace = Trace(time.monotonic(), balancer)
        self._elision: Elision[Step] | None = None if is_whole else Elision()
        self._show = self._show_json if is_json else self._show_text
        self._last_shown = 0.0

    def sent(
        self, now: float, request_id: int, endpoint: str, body: bytes, data_bytes: int, patience_s: float,
        *, is_on_the_way: bool,
    ) -> None:  # fmt: skip
        trace = self.trace
        self._take(
            trace.sent(now, request_id, endpoint, body, data_bytes, patience_s, is_on_the_way=is_on_the_way)
        )

    def received(self, now: float, request_id: int, body: memoryview, data_bytes: int) -> None:
        self._take(self.trace.received(now, request_id, body, data_bytes))

    def expired(self, now: float, request_id: int) -> None:
        self._take(self.trace.expired(now, request_id))

    def late(self, now: float, request_id: int, endpoint: str, body: memoryview) -> None:
        self._take(self.trace.late(now, request_id, endpoint, body))

    def begin(self) -> None:
        """Time counts from here: what came before was loading of modules."""
        self.trace.began = time.monotonic()

    def end(self) -> None:
        """Show what was held back."""
        for step in self._elision.rest() if self._elision is not None else ():
            self._show(step)

    def _take(self, step: Step) -> None:
        for shown in (step,) if self._elision is None else self._elision.take(step):
            self._show(shown)

    def _show_text(self, step: Step | Elided) -> None:
        if isinstance(step, Elided):
            return output.data(trace_text.elided(step))
        if step.is_new_peer:
            output.data(trace_text.new_peer(step))
        output.data(trace_text.row(step, self.trace.names))

    def _show_json(self, step: Step | Elided) -> None:
        output.emit_json_line(_plain(step))


def _plain(step: Step | Elided) -> dict[str, Any]:
    """A step as a line of JSON tells it."""
    plain: dict[str, Any] = to_plain(step)
    if isinstance(step, Elided):
        return {"event": "elided"} | plain
    ends = ("DEALER client", f"ROUTER {step.peer}")
    sender, receiver = ends if step.kind in (SENT, NOT_SENT, EXPIRED) else ends[::-1]
    patterns = ["request_reply"] + (["transfer"] if step.outstanding_bytes is not None else [])
    del plain["is_routine"], plain["is_new_peer"]
    return {"event": plain.pop("kind"), "from": sender, "to": receiver, "patterns": patterns} | plain


def _traced(
    session: Session, operation: str, subject: str, is_whole: bool, run: "Callable[[Client], str]"
) -> None:
    """Run the operation under a trace. However it ends, what was seen of it is told to the end."""
    tracing = Tracing(session.balancer, is_json=session.json, is_whole=is_whole)
    with session.client(observer=tracing) as client:
        if not session.json:
            output.data(f"{operation} {output.printable(subject)}, by the balancer at {session.balancer}\n")
            output.data(trace_text.HEADINGS)
        tracing.begin()
        try:
            result = run(client)
        except BrokenPipeError:
            raise
        except BaseException as error:
            _conclude(session, tracing, operation, "", f"{type(error).__name__}: {error}".rstrip(": "))
            raise
    _conclude(session, tracing, operation, result, "")


def _conclude(session: Session, tracing: Tracing, operation: str, result: str, failure: str) -> None:
    took_s = time.monotonic() - tracing.trace.began
    tracing.end()
    trace = tracing.trace
    if session.json:
        return output.emit_json_line(_plain_end(trace, took_s, result, failure))
    outcome, what = ("failed", failure) if failure else ("done", result)
    output.data(f"\n{outcome:<10} after {output.duration_text(took_s)}: {output.printable(what)}")
    for line in trace_text.summary(trace):
        output.data(line)
    output.data("")
    for line in trace_text.legend(trace, operation):
        output.data(line)


def _plain_end(trace: Trace, took_s: float, result: str, failure: str) -> dict[str, Any]:
    told = {"event": _ENDED, "took_s": took_s, "result": result, "error": failure}
    sums = {field: trace.total(field) for field in ("requests", "replies", "sent_bytes", "received_bytes")}
    counters = {key: trace.counters[key] for key in (EXPIRED, LATE, "moved", "repeated", "errors")}
    unanswered = [step.request for step in trace.unanswered()]
    return (
        told | sums | counters
        | {"in_a_row": trace.deepest, "outstanding_bytes_max": trace.peak_bytes, "unanswered": unanswered}
        | {"legs": [to_plain(leg) for leg in trace.legs.values()]}
    )  # fmt: skip


# -- the commands -----------------------------------------------------------------------------------


@click.group(
    epilog="""\b
Examples:
  dws trace get /index.html
  dws trace put index.html --to /
"""
)
def trace() -> None:
    """Run an operation and show each message that it sends and receives."""


def _all_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--all", "is_whole", is_flag=True, help="Leave no message out, of however long a transfer."
    )(command)


@trace.command(
    epilog="""\b
Examples:
  dws trace get /index.html
  dws trace get /video.mp4                 chunks under a credit; the middle is left out
  dws trace get /video.mp4 --all | less -S
  dws trace get /a.css /b.css /c.css       one lookup, many pages to a request
  dws trace get --json /index.html | jq '{event, to, message, took_s}'

\b
Times are this client's: a message is sent when ZeroMQ has it, and received when
this program takes it. docs/trace.md reads one line by line.
"""
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_all_option
@json_option
@client_options
@pass_session
def get(session: Session, /, names: tuple[str, ...], is_whole: bool) -> None:
    """Read pages as `dws get` does, throw them away, and show every message.

    Retries, time-outs and the change to another server are shown where they happen. The exit code is that
    of `dws get`.
    """
    for name in names:
        check_name(name)
    names = tuple(dict.fromkeys(names))

    def read(client: "Client") -> str:
        if len(names) == 1:
            page = client.download(names[0], Path(os.devnull))
            return f"{output.bytes_text(page.size)}, digests right"
        pages = client.get_many(names)
        total = output.bytes_text(sum(map(len, pages.values())))
        return f"{output.pages_text(len(pages))}, {total}, digests right"

    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    _traced(session, "get", names[0] + more, is_whole, read)


@trace.command(
    epilog="""\b
Examples:
  dws trace put index.html
  dws trace put video.mp4 --to /media
"""
)
@click.argument("file", metavar="FILE")
@click.option("--to", default="/", metavar="PREFIX", help="Where the page goes.  [default: /]")
@_all_option
@json_option
@client_options
@pass_session
def put(session: Session, /, file: str, to: str, is_whole: bool) -> None:
    """Store a file as `dws put` does, and show every message.

    The page is stored, on as many servers as the cluster is set to.
    """
    from dws.nodes.trees import scan

    plan = scan([file], to)
    if len(plan) != 1:
        raise click.UsageError(f"one file at a time is traced, and {file} has {len(plan):,}")
    [page] = plan

    def store(client: "Client") -> str:
        # As `dws put` does: with somebody to tell, the client asks for each copy.
        told = client.put(
            {page.name: page.path}, modified={page.name: page.path.stat().st_mtime},
            on_progress=lambda _: None, **session.patience(),
        )  # fmt: skip
        skipped = ", which was stored already" if told.skipped else ""
        return f"{page.name}{skipped}, copies {told.copies}/{told.copies}"

    _traced(session, "put", page.name, is_whole, store)
