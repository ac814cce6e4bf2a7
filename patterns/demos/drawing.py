"""Diagrams as mermaid text, which forges render: states from a machine's own table, sequences from a run.

What lives here: the two notations, and how a frame is described from its bytes.
What must not: any pattern's rules; those are in the tables and in the machines.
"""

from collections.abc import Mapping
from typing import Final

from patterns import heartbeat, jobs, request_reply

_KINDS: Final = {request_reply.REQUEST: "request", request_reply.REPLY: "reply"}


def states(table: Mapping[tuple[str, str], str | None]) -> str:
    """A state diagram of (state, event) → state; None is gone. It begins at the first state."""
    names = list(dict.fromkeys([*(state for state, _ in table), *filter(None, table.values())]))
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{name}" as {_identifier(name)}' for name in names if name != _identifier(name)]
    lines.append(f"    [*] --> {_identifier(names[0])}")
    edges: dict[tuple[str, str], list[str]] = {}
    for (state, event), after in table.items():
        target = "[*]" if after is None else _identifier(after)
        edges.setdefault((_identifier(state), target), []).append(event)
    lines += [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in edges.items()]
    sources = {state for state, _ in table}
    lines += [f"    {_identifier(name)} --> [*]" for name in names if name not in sources]
    return "\n".join(lines)


def _identifier(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")


class Sequence:
    """What happened between participants, written down while it happened."""

    def __init__(self, *participants: str) -> None:
        self._lines = ["sequenceDiagram", *(f"    participant {name}" for name in participants)]

    def sent(self, source: str, target: str, message: bytes | str, more: str = "") -> None:
        """A message that arrives. A frame is described from its bytes."""
        self._lines.append(f"    {source}->>{target}: {_text(message, more)}")

    def lost(self, source: str, target: str, message: bytes | str, more: str = "") -> None:
        self._lines.append(f"    {source}-x{target}: {_text(message, more)} (lost)")

    def note(self, who: str, text: str) -> None:
        self._lines.append(f"    Note over {who}: {text}")

    def mermaid(self) -> str:
        return "\n".join(self._lines)


def _text(message: bytes | str, more: str) -> str:
    words = message if isinstance(message, str) else describe(message)
    return f"{words}, {more}" if more else words


def describe(frame: bytes) -> str:
    """What a frame of one of the patterns says, read from its bytes."""
    match frame[0]:
        case request_reply.SIGNATURE:
            _, _, kind, _, request_id, _ = request_reply.HEADER.unpack_from(frame)
            body = frame[request_reply.HEADER_BYTES :].decode()
            return f"{_KINDS[kind]} {request_id} {body!r}"
        case heartbeat.SIGNATURE:
            _, _, incarnation, sequence, _ = heartbeat.parse(frame)
            return f"beat {sequence} of life {incarnation}"
        case jobs.SIGNATURE:
            *_, epoch, incarnation, number = jobs.HEADER.unpack_from(frame)
            body = frame[jobs.HEADER_BYTES :].decode()
            return f"job {body!r} as number {number}, for epoch {epoch}, life {incarnation}"
    raise ValueError(f"a frame of no pattern: {frame[:4].hex()}")
