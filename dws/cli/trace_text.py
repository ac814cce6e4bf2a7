"""How the steps of a trace are told: a row each, what a message says in a few words, the sums, the legend.

What lives here: layout. What must not: what the steps mean (dws.trace), which are
shown (dws.elision).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from dws import messages
from dws.cli import output
from dws.elision import Elided
from dws.limits import MIB
from dws.names import format_version
from dws.trace import BALANCER, EXPIRED, LATE, NOT_SENT, REPLY, SENT, Step, Trace

_ARROWS: Final = {SENT: "→", REPLY: "←", LATE: "←", EXPIRED: "✗", NOT_SENT: "✗"}
_NAMES_SHOWN: Final = 3
_TEXT_SHOWN: Final = 100
#: More copies than there can be: how a client says that it wants to hear of the end alone.
_COPIES_MAX: Final = 16

#: Mark in the rows, file, pattern.
_LEGEND: Final = (
    (
        "#n",
        "patterns/request_reply.py",
        "request/reply: each request has an id and gets one reply, or expires and is asked again",
    ),
    (
        "on the way",
        "patterns/transfer.py",
        "transfer: chunks under a credit of bytes; one that did not come is asked for first, of any holder",
    ),
    (
        "copies",
        "patterns/jobs.py",
        "not seen here: jobs, by which the balancer has a backup copy what the primary stored",
    ),
    (
        "who lives",
        "patterns/heartbeat.py",
        "not seen here: heartbeats, by which the balancer knows the servers and their loads",
    ),
)

HEADINGS: Final = f"{'ms':>9}  {'sockets':<25} {'request':<16} {'frames':<18} {'pattern':<20} what it says"


def row(step: Step, names: Mapping[int, str]) -> str:
    """One message, or one silence."""
    arrow = _ARROWS.get(step.kind, "←")
    sockets = f"DEALER {arrow} ROUTER {output.printable(step.peer)}"
    request = f"#{step.request} {step.message}"
    said = _said(step, names) + (f"  ! {step.note}" if step.note else "")
    line = f"{_ms(step.at_s):>9}  {sockets:<25} {request:<16} {_frames(step):<18} {_pattern(step):<20} {said}"
    return output.printable(line).rstrip()


def new_peer(step: Step) -> str:
    where = "the balancer's ROUTER for clients" if step.peer == BALANCER else f"{step.peer}'s ROUTER"
    return output.printable(f"{'':>9}  · a DEALER of its own for {where}, {step.endpoint}")


def elided(left_out: Elided) -> str:
    data = f", {output.bytes_text(left_out.data_bytes)} of data" if left_out.data_bytes else ""
    return (
        f"{'':>9}  … {left_out.steps:,} more of these{data}, until {_ms(left_out.at_s)} ms (--all shows them)"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.2f}"


def _frames(step: Step) -> str:
    """The bytes of the message's frames: control, and data if there is any."""
    if step.kind in (EXPIRED, NOT_SENT):
        return "-"
    data = f" + {output.bytes_text(step.data_bytes)}" if step.data_bytes else ""
    return f"{step.control_bytes:,} B{data}"


def _pattern(step: Step) -> str:
    """Where the message stands in its pattern."""
    if step.kind == EXPIRED:
        return "expired"
    if step.kind == LATE:
        return "late: dropped"
    if step.kind == NOT_SENT:
        return "queue full"
    if step.outstanding_bytes is not None:
        return f"{output.bytes_text(step.outstanding_bytes)} on the way"
    return "request" if step.took_s is None else f"reply: {step.took_s * 1000:,.2f} ms"


def _said(step: Step, names: Mapping[int, str]) -> str:
    if step.content is None:
        return "cannot be read"
    text = says(step.content, names)
    if step.kind == EXPIRED:
        return f"no reply in {step.took_s or 0:.2f} s: {text}"
    if step.kind == LATE:
        return f"{text}; nobody waits for it any more"
    if step.kind == REPLY and step.outstanding_bytes is not None:
        return f"{text}, after {(step.took_s or 0) * 1000:,.2f} ms"
    return text


# -- what a message says --------------------------------------------------------------------------


def says(message: Any, names: Mapping[int, str]) -> str:
    """Its main figures. Messages that clients do not exchange here give nothing."""
    match message:
        case messages.Error():
            again = f"; again in {message.retry_s:g} s" if message.retry_s else ""
            return f"{message.code}: {_cut(message.text)}{again}"
        case messages.Locate():
            avoid = f", not of {_servers(message.avoid, names)} if it can be" if message.avoid else ""
            return f"where is {_some(message.names)}?{avoid}"
        case messages.Located():
            return _located(message, names)
        case messages.Fetch():
            return _some([f"{_cut(name)} {format_version(version)}" for name, version in message.pages])
        case messages.Fetched():
            return _fetched(message)
        case messages.Read():
            return f"{output.bytes_text(message.length)} from {_place(message.offset)}"
        case messages.ReadData():
            return f"{output.bytes_text(message.size)} from {_place(message.offset)}"
        case messages.Digests():
            return f"digests of the chunks of {_cut(message.name)} {format_version(message.version)}"
        case messages.DigestList():
            return f"{message.chunks:,} digests"
        case messages.Doubt():
            pages = [f"{_cut(name)} {format_version(version)}" for name, version in message.pages]
            return f"what you sent of {_some(pages)} is wrong: look yourself"
        case messages.Ping():
            return "which epoch is it?"
        case messages.Pong():
            return f"epoch {message.epoch}"
    return _says_of_put(message, names)


def _says_of_put(message: Any, names: Mapping[int, str]) -> str:
    match message:
        case messages.Reserve():
            size_bytes = sum(max(0, page.size) for page in message.pages)
            copies = f", {message.copies} copies" if message.copies else ""
            avoid = f", not on {_servers(message.avoid, names)}" if message.avoid else ""
            pages = _some([page.name for page in message.pages])
            return f"place for {pages}, {output.bytes_text(size_bytes)}{copies}{avoid}"
        case messages.Reserved():
            skip = f", {len(message.skip)} stored already" if message.skip else ""
            primary = f"primary {message.primary.name}" if message.primary else "nothing to send"
            backups = f", backup {', '.join(one.name for one in message.backups)}" if message.backups else ""
            version = format_version(message.version)
            return f"version {version}, {primary}{backups}, {message.copies} copies{skip}"
        case messages.Stage():
            first = message.parts[0] if message.parts else messages.StagePart(0, 0, 0)
            size_bytes = sum(part.length for part in message.parts)
            many = (
                f", {len(message.parts)} pages" if len(message.parts) > 1 else f" at {_place(first.offset)}"
            )
            return f"{output.bytes_text(size_bytes)}{many}"
        case messages.Staged():
            return f"has {_place(message.have)}"
        case messages.Commit():
            bytes_too = ", bytes and all" if message.with_bytes else ""
            return f"make {output.pages_text(len(message.pages))} durable{bytes_too}"
        case messages.Committed():
            return f"fsynced, as its change {message.number:,}"
        case messages.Await():
            if message.seen > _COPIES_MAX:
                return f"tell me when it is decided, or in {message.patience_s:g} s"
            return f"tell me of copy {message.seen + 1} or of the decision, or in {message.patience_s:g} s"
        case messages.Outcome():
            text = f": {_cut(message.text)}" if message.text else ""
            lost = ", the primary is lost" if message.lost else ""
            copies = f", {message.stored} of {message.copies} copies" if message.copies else ""
            return f"{message.state}{copies}{lost}{text}"
    return ""


def _located(message: messages.Located, names: Mapping[int, str]) -> str:
    pages = [page for page in message.pages if page is not None]
    table = "" if message.servers is None else f"; {len(message.servers)} servers in all"
    missing = len(message.pages) - len(pages)
    if len(message.pages) > 1:
        total = output.bytes_text(sum(page[1] for page in pages))
        text = f"{output.pages_text(len(pages))}, {total}" + (f", {missing} not there" if missing else "")
    elif pages:
        version, size, _, _, holders = pages[0]
        on = f"on {_servers(holders, names)}" if holders else "on no live server"
        text = f"version {format_version(version)}, {output.bytes_text(size)}, {on}"
    else:
        text = "there is no such page"
    for later in message.later[:1]:
        last = f", last on {later.last}" if later.last else ""
        text += f"; try again in {later.retry_s:g} s" if later.retry_s else last
    return text + table


def _fetched(message: messages.Fetched) -> str:
    good = [size for size in message.sizes if size >= 0]
    not_held = message.sizes.count(messages.NOT_HELD)
    no_room = message.sizes.count(messages.NO_ROOM)
    return (
        f"{output.pages_text(len(good))}, {output.bytes_text(sum(good))}"
        + (f", {not_held} not held" if not_held else "")
        + (f", {no_room} did not fit" if no_room else "")
    )


def _place(offset: int) -> str:
    """A round number of MiB, as most are, or the bytes."""
    return f"{offset // MIB:,} MiB" if offset and not offset % MIB else f"{offset:,} B"


def _servers(numbers: list[int], names: Mapping[int, str]) -> str:
    return ", ".join(names.get(number, f"server {number}") for number in numbers)


def _some(texts: list[str]) -> str:
    shown = ", ".join(map(_cut, texts[:_NAMES_SHOWN]))
    more = len(texts) - _NAMES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else f"{text[: _TEXT_SHOWN - 1]}…"


# -- at the end -----------------------------------------------------------------------------------


def summary(trace: Trace) -> Iterator[str]:
    """Sums, trouble, and a row for each leg."""
    requests = trace.total("requests")
    asked = output.counted(requests, "request")
    answered = output.counted(trace.total("replies"), "reply")
    sent = output.bytes_text(trace.total("sent_bytes"))
    received = output.bytes_text(trace.total("received_bytes"))
    yield f"messages   {asked}, {sent}; {answered}, {received}"
    beside = requests - trace.deepest
    yield (
        f"in a row   {output.counted(trace.deepest, 'round trip')}, each begun when the one before had ended"
        + (f"; {beside:,} more beside them" if beside else "")
        + (f"; up to {output.bytes_text(trace.peak_bytes)} on the way" if trace.peak_bytes else "")
    )
    yield f"trouble    {_trouble(trace)}"
    yield ""
    yield output.table(
        (
            "request", "to", ">sent", ">replies", ">expired", ">bytes out", ">bytes in", ">fastest ms",
            ">mean ms", ">slowest ms", ">from ms", ">to ms",
        ),
        (
            (
                leg.message, leg.peer, f"{leg.requests:,}", f"{leg.replies:,}", f"{leg.expired:,}",
                output.bytes_text(leg.sent_bytes), output.bytes_text(leg.received_bytes),
                *(map(_ms, (leg.shortest_s, leg.mean_s, leg.longest_s)) if leg.replies else "---"),
                _ms(leg.first_at_s), _ms(leg.last_at_s),
            )
            for leg in trace.legs.values()
        ),
    )  # fmt: skip


def _trouble(trace: Trace) -> str:
    told = {
        EXPIRED: "without a reply in time",
        "moved": "asked of another server then",
        "repeated": "asked again",
        "errors": "answered with an error",
        LATE: "replied too late",
    }
    parts = [f"{trace.counters[key]:,} {text}" for key, text in told.items() if trace.counters[key]]
    waiting = [f"#{step.request} {step.message}" for step in trace.unanswered()]
    if waiting:
        parts.append(f"{len(waiting):,} not answered when it ended ({_some(waiting)})")
    return ", ".join(parts) or "none"


def legend(trace: Trace, operation: str) -> Iterator[str]:
    """What the columns mean, and which file holds each pattern."""
    for mark, file, told in _LEGEND:
        is_seen = {"on the way": bool(trace.peak_bytes), "copies": operation == "put"}.get(mark, True)
        if is_seen:
            yield f"{mark:<11}{told}"
            yield f"{'':<11}{file}"
