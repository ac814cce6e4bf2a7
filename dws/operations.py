"""Operations as clients saw them, and their recorded form: a line of JSON each.

What lives here: what dws/history.py judges. What must not: the judging, files,
clocks, and anything of a cluster's inside: the simulator, a drill with real
processes and a test by hand record alike.
"""

from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec
from msgspec import Struct

from dws.errors import DwsError

OK: Final = "ok"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"


class BadHistory(DwsError):
    """A recorded history that cannot be read or cannot be; the text says which line and why."""

    code = "bad-history"


class Operation(Struct, array_like=True, frozen=True):
    """One operation of one client. Times in seconds, of one clock that all clients of a history share.

    outcome: "ok"; "failed": the client was told that it took no effect; "unknown": it may have, then
        or later (returned_s is None).
    reads: name → version that was visible at the operation's moment: what a get brought, the conditions
        that a put was accepted on, pages that a put left alone since they had its bytes.
    writes: name → version that it made visible; 0: removed.
    unlike: conditions of an operation that was refused for them: at its moment one of these names had
        another version than this.
    """

    kind: Literal["get", "put", "remove"]
    client: str
    invoked_s: float
    returned_s: float | None
    outcome: Literal["ok", "failed", "unknown"]
    reads: dict[str, int] = {}
    writes: dict[str, int] = {}
    unlike: dict[str, int] = {}

    def __str__(self) -> str:
        until = "…" if self.returned_s is None else f"{self.returned_s:.4f}"
        parts = [f"{self.client} {self.kind} [{self.invoked_s:.4f}, {until}] {self.outcome}"]
        for what, pages in (("saw", self.reads), ("wrote", self.writes), ("not", self.unlike)):
            if pages:
                parts.append(what + " " + ", ".join(f"{name}={pages[name]}" for name in sorted(pages)))
        return "; ".join(parts)


# -- the recorded form ---------------------------------------------------------------------

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Operation)


def encode(operation: Operation) -> bytes:
    """One line, with its end."""
    return _encoder.encode(operation) + b"\n"


def decode_lines(lines: Iterable[bytes]) -> Iterator[Operation]:
    """Raises BadHistory that names the line. Empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                operation = _decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise BadHistory(f"line {number}: {error}") from error
            examine(operation, f"line {number}")
            yield operation


def examine(operation: Operation, where: str) -> None:
    """Raises BadHistory if there can be no such operation."""
    if operation.outcome != UNKNOWN and operation.returned_s is None:
        raise BadHistory(f"{where}: an operation with an outcome returned at some time: {operation}")
    versions = (*operation.reads.values(), *operation.writes.values(), *operation.unlike.values())
    if min(versions, default=0) < 0:
        raise BadHistory(f"{where}: a version is a number from 0 up: {operation}")
    if operation.returned_s is not None and operation.returned_s < operation.invoked_s:
        raise BadHistory(f"{where}: it returned before it was invoked: {operation}")
