"""A run told for people: every message as it arrives, in one line.

What lives here: how a message is shown. What must not: which messages there are
(dws/messages.py), and where lines go.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from dws.limits import COUNTER_BITS
from dws.names import epoch_of, format_version
from dws.sim.world import World
from patterns import heartbeat, jobs, request_reply
from patterns.sim.connections import Frames, Way

_HEADERS: Final = {
    request_reply.SIGNATURE: request_reply.HEADER_BYTES,
    heartbeat.SIGNATURE: heartbeat.HEADER_BYTES,
    jobs.SIGNATURE: jobs.HEADER_BYTES,
}
_decode: Final = msgspec.msgpack.Decoder().decode
_TEXT_MAX: Final = 150
_ITEMS_MAX: Final = 4
_SMALL_MAX: Final = 1 << COUNTER_BITS
#: A simulation has few starts of a balancer.
_EPOCH_MAX: Final = 1 << 10


def narrate(world: World, line: Callable[[str], None]) -> None:
    """From now on all that happens in this world is told."""
    world.narrate = line

    def tell(way: Way, frames: Frames) -> None:
        source, target = way.source.host.name, way.target.host.name
        world.note(source, "", f"→ {target}: {describe(frames)}")

    world.network.watch = tell


def describe(frames: Frames) -> str:
    """The message's tag and fields, cut short; and how many bytes lie beside it."""
    frame = frames[0]
    header_bytes = _HEADERS[frame[0]]
    body: Any = _decode(frame[header_bytes:])
    what = _request_id(frame) if frame[0] == request_reply.SIGNATURE else ""
    tag, fields = (body[0], body[1:]) if body and isinstance(body[0], str) else ("beat", body)
    text = f"{what}{tag} " + " ".join(_shown(field) for field in fields)
    beside = f" + {len(frames[1]):,} bytes" if len(frames) > 1 and len(frames[1]) else ""
    return text[:_TEXT_MAX] + ("…" if len(text) > _TEXT_MAX else "") + beside


def _request_id(frame: bytes) -> str:
    kind = "asks" if frame[2] == request_reply.REQUEST else "is answered"
    return f"[{int.from_bytes(frame[4:12], 'big') & 0xFFFF:04x}] {kind} "


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return value[:4].hex() + ("…" if len(value) > 4 else "")
    if isinstance(value, list):
        more = f" … {len(value)} in all" if len(value) > _ITEMS_MAX else ""
        return "(" + " ".join(_shown(each) for each in value[:_ITEMS_MAX]) + more + ")"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int) and value > _SMALL_MAX:
        epoch = epoch_of(value)
        # A version; or a nonce, a digest, an incarnation.
        return format_version(value) if 0 < epoch < _EPOCH_MAX else f"{value:x}"[:8]
    return str(value)
