"""What is wrong with a cluster, and what to do about it: the rules of `dws doctor`.

What lives here: from what was seen of a cluster to a list of findings. What must
not: looking (cli/doctor.py), printing, and any figure that is not in what was seen.

A *problem* wants somebody to act, or to wait for something that is named. A
*notice* is worth knowing and changes no verdict.
"""

import shlex
from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct

from dws.limits import BATCH_MAX_BYTES
from dws.membership import ALIVE, CONTESTED, DEAD, DRAINING, JOINING, SUSPECT
from dws.messages import ClusterStatus, ServerStatus

#: A server is full that uploads may fill by less than this share of what it could hold, and than a batch.
FREE_SHARE: Final = 0.05
#: More of a process's file descriptors than this share are in use.
FILES_SHARE: Final = 0.8
#: A clock that is further off makes dates of pages wrong for caches. Nothing else depends on clocks.
CLOCK_S: Final = 5.0

_REFUSALS: Final = {
    "wrong-cluster": "start the server with its own cluster's --balancer, or on an empty directory",
    "behind": "the balancer's catalog is an old copy: restore the newest, or start it with --rebuild",
    "stale": "one server's directory is in use twice: stop the copy of it",
    "refused": "another server may have its name, or it brings pages of no cluster; see the balancer's log",
    "bad-request": "what it announces is no endpoint; see its --advertise and the balancer's log",
}


class Answer(Struct):
    """What one server's endpoints said when they were asked from here. fault, http_fault: why there was no
    answer; empty if there was. files, files_max: its open file descriptors; 0: not told. clock_s: its clock
    ahead of ours."""

    fault: str = ""
    http_fault: str = ""
    files: int = 0
    files_max: int = 0
    clock_s: float = 0.0


class Seen(Struct):
    """`later` is the status a moment after `status`, so that what still happens shows. By server number."""

    status: ClusterStatus
    later: ClusterStatus
    answers: dict[int, Answer] = {}


class Finding(Struct):
    """where: a server's name, or "cluster" or "balancer"."""

    level: Literal["problem", "notice"]
    code: str
    where: str
    text: str
    next: str


def examine(seen: Seen) -> list[Finding]:
    """All findings, problems first."""
    found = [*_servers(seen), *_copies(seen.later), *_balancer(seen)]
    return sorted(found, key=lambda finding: finding.level != "problem")


def _problem(code: str, where: str, text: str, step: str) -> Finding:
    return Finding("problem", code, where, text, step)


def _notice(code: str, where: str, text: str, step: str) -> Finding:
    return Finding("notice", code, where, text, step)


# -- servers -----------------------------------------------------------------------------------


def _servers(seen: Seen) -> Iterator[Finding]:
    told = seen.later
    if not told.servers:
        yield _problem(
            "no-servers", "cluster", "no web server has ever said hello",
            f"start {told.copies} or more: dws serve webserver --name web-1 --data DIR --balancer …",
        )  # fmt: skip
        return
    names = [server.name for server in told.servers]
    before = {server.number: server for server in seen.status.servers}
    for server in told.servers:
        namesake = names.count(server.name) > 1
        yield from _state(server, namesake, told)
        yield from _figures(server)
        if answer := seen.answers.get(server.number):
            yield from _limits(server, answer)
            yield from _endpoints(server, answer, before.get(server.number))
    live = [server for server in told.servers if server.state in (ALIVE, SUSPECT)]
    if len(live) < told.copies:
        yield _problem(
            "too-few-servers", "cluster",
            f"{len(live)} web servers live, and each page is to be on {told.copies}: puts fail",
            "start the dead ones again, or more of them",
        )  # fmt: skip
    elif sum(_has_room(server) for server in live) < told.copies:
        room = sorted((server.bytes_free for server in live), reverse=True)[told.copies - 1]
        yield _problem(
            "no-room", "cluster",
            f"no more than {room:,} bytes fit on {told.copies} web servers: larger puts fail",
            "remove pages, raise quotas (--quota), free the disks, or start more web servers",
        )  # fmt: skip


def _state(server: ServerStatus, namesake: bool, told: ClusterStatus) -> Iterator[Finding]:
    name, heard = server.name, f"last heard {server.last_beat_age_s:,.0f} s ago"
    if server.state == DEAD:
        forget = f"dws node forget {shlex.quote(name)}" + (f" --number {server.number}" if namesake else "")
        if namesake:
            text = f"an earlier {name} (number {server.number}) is dead, {heard}; another one has its name"
            yield _problem("dead-namesake", name, text, f"if its disk is lost: {forget}")
        else:
            step = f"look at its log and start it again on its directory; if it will not come back: {forget}"
            yield _problem("dead", name, f"is dead, {heard}", step)
    elif server.state == CONTESTED:
        yield _problem(
            "duplicate-id", name, "two processes claim its identity; it gets no pages",
            "stop the one that runs on a copy of the directory, and never start it on that copy again",
        )  # fmt: skip
    elif server.state == SUSPECT:
        why = f": {server.note}" if server.note else f", {heard}"
        step = "see whether its process runs and its disk and network answer; it is used again when they do"
        yield _problem("suspect", name, f"is suspect{why}", step)
    elif server.state == JOINING:
        step = "wait; if it stays so, see the balancer's log and its own"
        yield _problem("not-synced", name, "is not in sync yet: its copies do not count", step)
    if server.draining:
        yield _draining(server, told)


def is_emptied(server: ServerStatus) -> bool:
    """Whether nothing on a server that is being drained would be missed. What a server holds is known only
    when it was compared: before that, nothing to move says nothing."""
    compared = bool(server.incarnation) and server.state not in (JOINING, CONTESTED)
    return server.draining and compared and not server.to_move


def _draining(server: ServerStatus, told: ClusterStatus) -> Finding:
    name = server.name
    if not server.to_move and not is_emptied(server):
        step = "wait until it is in sync, and do not stop it for good before"
        return _notice("draining", name, "is drained, and what it holds is not known yet", step)
    if server.to_move:
        waits = f", and waits: {told.repair.text}" if told.repair.text else ""
        step = f"wait for the end (`dws status`), or take it back: dws node resume {shlex.quote(name)}"
        return _notice("draining", name, f"is drained: {server.to_move:,} pages to move{waits}", step)
    quoted = shlex.quote(name)
    step = f"stop it, then: dws node forget {quoted}; or take the drain back: dws node resume {quoted}"
    return _notice("drained", name, "is drained and safe to stop", step)


def _figures(server: ServerStatus) -> Iterator[Finding]:
    if server.state in (ALIVE, SUSPECT, DRAINING) and not _has_room(server):
        yield _problem(
            "disk-full", server.name,
            f"it is full: uploads may take {server.bytes_free:,} bytes more, and larger ones pass it over",
            "free its disk, raise its --quota, or drain it after starting another server",
        )  # fmt: skip
    if server.damaged:
        yield _problem(
            "damaged", server.name, f"{server.damaged:,} damaged records were set aside since its start",
            f"they are copied again from elsewhere; check that disk, and if there are more: dws node drain"
            f" {shlex.quote(server.name)}",
        )  # fmt: skip
    if server.note and server.state != SUSPECT:
        yield _notice("note", server.name, server.note, "the balancer's log says more")


def _has_room(server: ServerStatus) -> bool:
    whole = server.bytes_free + server.bytes_stored
    return server.bytes_free > min(FREE_SHARE * whole, BATCH_MAX_BYTES)


def _endpoints(server: ServerStatus, answer: Answer, before: ServerStatus | None) -> Iterator[Finding]:
    """Of a server that the balancer does not reach either its state says more."""
    if not (answer.fault or answer.http_fault) or server.state not in (ALIVE, DRAINING):
        return
    name = server.name
    if before is None or before.state != server.state or before.incarnation != server.incarnation:
        was = "" if before is None or before.state == server.state else f" ({before.state} before)"
        text = f"came back while it was looked at{was}: that it did not answer from here says nothing"
        yield _notice("came-back", name, text, "run `dws doctor` again; why it was gone is in its log")
        return
    if answer.fault:
        step = "the balancer reaches it: see its --advertise, and firewalls between here and there"
        yield _problem(
            "unreachable", name, f"{server.endpoint} does not answer from here: {answer.fault}", step
        )
    if answer.http_fault:
        text = f"its HTTP endpoint {server.http_endpoint} does not answer from here: {answer.http_fault}"
        step = "browsers are sent there: see its log, its --advertise, and firewalls"
        yield _problem("http-unreachable", name, text, step)


def _limits(server: ServerStatus, answer: Answer) -> Iterator[Finding]:
    name = server.name
    if answer.files_max and answer.files > FILES_SHARE * answer.files_max:
        text = f"{answer.files:,} of {answer.files_max:,} file descriptors are in use"
        yield _problem(
            "file-limit", name, text, "raise the limit (ulimit -n, LimitNOFILE=) and start it again"
        )
    if abs(answer.clock_s) > CLOCK_S:
        ahead = "ahead of" if answer.clock_s > 0 else "behind"
        text = f"its clock is {abs(answer.clock_s):,.0f} s {ahead} the one here"
        yield _notice("clock", name, text, "set it (NTP): dates that browsers get are wrong; nothing else is")


# -- copies --------------------------------------------------------------------------------------


def _copies(told: ClusterStatus) -> Iterator[Finding]:
    none, few = told.page_copies[0], told.repair.missing
    if any(server.draining for server in told.servers):
        # Copies on a server that is being drained are not lost: that they move has a notice of its own.
        few = min(few, sum(told.page_copies[1 : min(3, told.copies)]))
    absent = [server.name for server in told.servers if server.state in (DEAD, JOINING, CONTESTED)]
    where = f"; not here: {', '.join(absent)}" if absent else ""
    if none:
        yield _problem(
            "no-copy", "cluster", f"{none:,} pages have no live copy and cannot be read{where}",
            "bring back the servers that are not here: `dws stat NAME` tells who held a page",
        )  # fmt: skip
    if few:
        yield _problem(
            "too-few-copies", "cluster", f"{few:,} pages have fewer live copies than wanted{where}",
            _repair_step(told),
        )  # fmt: skip


def _repair_step(told: ClusterStatus) -> str:
    repair = told.repair
    if repair.text:
        return f"repair waits: {repair.text}"
    if repair.left_s >= 0:
        return f"wait: repair copies them, {repair.pages_s:,.0f} pages/s, about {repair.left_s:,.0f} s left"
    return "wait: repair begins"


# -- the balancer ------------------------------------------------------------------------------------


def _balancer(seen: Seen) -> Iterator[Finding]:
    before, after = seen.status.counters, seen.later.counters
    for name, count in sorted(after.items()):
        kind, colon, what = name.partition(": ")
        rising = count > before.get(name, 0)
        if not colon or not count:
            continue
        if kind == "hello refused":
            step = _REFUSALS.get(what, "the balancer's log says which server, and why")
            yield _counted(
                "hello-refused", f"{count:,} hellos of servers were refused ({what})", step, rising
            )
        elif kind in ("refused servers", "refused clients"):
            who = kind.removeprefix("refused ")
            text = f"{count:,} frames of {who} were no requests ({what})"
            step = f"some {who} speak another version, belong to another cluster, or have the wrong port"
            yield _counted("frames-refused", text, step, rising)
        elif kind == "impossible":
            text = f"servers told {count:,} times of {what}, which was passed over"
            yield _counted("impossible", text, "the balancer's log names them; update or drain them", rising)
    asleep = after.get("heartbeat asleep", 0)
    if asleep:
        text = f"it was without CPU for a while, {asleep:,} times; nobody was declared dead for it"
        yield _notice("starved", "balancer", text, "give it more CPU, or fewer neighbours")


def _counted(code: str, text: str, step: str, rising: bool) -> Finding:
    """What still happens is a problem; what happened once since the balancer's start is worth knowing."""
    if rising:
        return _problem(code, "balancer", f"{text}, and there are more", step)
    return _notice(code, "balancer", f"{text} since its start", step)
