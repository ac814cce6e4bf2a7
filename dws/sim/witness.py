"""What clients saw of a simulated cluster, as a history for dws/history.py.

What lives here: a call of the workload as an operation. What must not: the
judging of it.
"""

from collections.abc import Mapping
from typing import Literal

from dws.operations import Operation
from dws.sim.observer import ASK, CONFLICT, DONE, GET, MISSING, PUT, STREAM, Call
from dws.store import Decision

Truth = Mapping[str, int]


def seen(
    call: Call,
    decision: Decision | None,
    before: Truth,
    moments: list[dict[str, int]],
    contents: Mapping[tuple[str, int], bytes],
) -> Operation | None:
    """The call as its client saw it; None: it saw nothing, and nothing came of it.

    decision, before: of a put or removal what became of it, even where its client has no answer: else
        what others saw of it would have no origin; and what was visible until then.
    moments: what was visible during the call; contents: the bytes of each version.
    """
    if call.kind == ASK:
        return None
    if call.kind in (GET, STREAM):
        reads = _versions_read(call, moments, contents)
        return Operation("get", call.client, call.began, call.ended, "ok", reads) if reads else None
    kind: Literal["put", "remove"] = "put" if call.kind == PUT else "remove"
    if call.outcome == CONFLICT:
        return Operation(kind, call.client, call.began, call.ended, "failed", unlike=call.conditions)
    if decision is None:
        return None
    writes = {record.name: decision.version for record in decision.puts}
    reads = {name: before.get(name, 0) for name in call.pages.keys() - writes.keys()} | call.conditions
    writes |= dict.fromkeys(decision.removes, 0)
    if call.outcome == DONE:
        return Operation(kind, call.client, call.began, call.ended, "ok", reads, writes)
    return Operation(kind, call.client, call.began, None, "unknown", reads, writes)


def _versions_read(
    call: Call, moments: list[dict[str, int]], contents: Mapping[tuple[str, int], bytes]
) -> dict[str, int]:
    """Where bytes tell which version they are: several puts may have had the same."""
    if call.outcome == MISSING and len(call.names) == 1:
        return {call.names[0]: 0}
    if call.outcome != DONE:
        return {}
    reads = dict(call.versions)
    for name in call.got.keys() - reads.keys():
        fitting = {
            version
            for moment in moments
            if (version := moment.get(name, 0)) and contents.get((name, version)) == call.got[name]
        }
        if len(fitting) == 1:
            reads[name] = fitting.pop()
    return reads
