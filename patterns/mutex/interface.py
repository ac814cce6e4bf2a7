"""What the three algorithms of mutual exclusion share: one interface, one message, one frame.

What lives here: the effects a machine returns, the message it takes and sends, its
frame, and the calls that every machine understands. What must not: any algorithm.

The interface, events in and effects out, `now` in seconds of any steady clock:
  request(now)           ask for entry; a `Granted` follows at once or later
  release(now)           end the request: leave, give up waiting, or let a lost grant go.
                         Each request is ended by exactly one release
  refused(highest, now)  the resource has seen a higher fencing number than our grant's
  receive(message, now)  a message came; RemoteError if it breaks the protocol
  poll(now)              time passed; call it only after every waiting message was handed in
  wake_at()              when `poll` next has something to do, or None

What no algorithm can promise: that a member stops when its grant ends, since it may
be paused and not know. So each grant carries a fencing number that rises from grant to
grant, and the resource refuses a lower one than it has seen.

Frame, big endian:
  0  u8   signature 0xDA      4   16 B realm: which lock        32  u128 fence
  1  u8   version 1           20  u32  sender                   48  u32  time, ms
  2  u8   kind                24  u64  number                   52  u16 each: members
  3  u8   0

Members are numbers from 0 to 65,535 and trust each other: nothing is signed.
"""

import struct
from typing import Final, NamedTuple, Protocol

from patterns.errors import LocalError, RemoteError

SIGNATURE: Final = 0xDA
VERSION: Final = 1
HEADER: Final = struct.Struct(">BBBB16sIQ16sI")
HEADER_BYTES: Final = HEADER.size
MEMBER_MAX: Final = 0xFFFF
#: A ring of more members does not fit a message.
MEMBERS_MAX: Final = 1024
NUMBER_MAX: Final = (1 << 64) - 1
FENCE_MAX: Final = (1 << 128) - 1
TIME_MAX_MS: Final = 0xFFFF_FFFF

IDLE, WAITING, HELD, LOST = "idle", "waiting", "held", "lost"


class Message(NamedTuple):
    """kind: of one algorithm, named in its module. What the other fields say, it tells there."""

    kind: int
    sender: int
    number: int = 0
    fence: int = 0
    time_s: float = 0.0
    members: tuple[int, ...] = ()


class Send(NamedTuple):
    """Send this message to that member; it may get lost."""

    to: int
    message: Message


class Granted(NamedTuple):
    """Enter: show the resource this number with each use. `until`: when the grant ends, None: at release."""

    fence: int
    until: float | None


class Lost(NamedTuple):
    """The grant ended by itself: stop at once, then release."""

    fence: int
    reason: str


Effect = Send | Granted | Lost


class Machine(Protocol):
    """What takes messages and time: a member, or the coordinator, who asks for nothing himself."""

    def receive(self, message: Message, now: float) -> list[Effect]: ...
    def poll(self, now: float) -> list[Effect]: ...
    def wake_at(self) -> float | None: ...
    def check(self) -> None: ...


class Mutex(Machine, Protocol):
    """One member of a group that shares a resource; `state` is one of the four above or its own."""

    state: str

    def request(self, now: float) -> list[Effect]: ...
    def release(self, now: float) -> list[Effect]: ...
    def refused(self, highest: int, now: float) -> list[Effect]: ...


def pack(realm: bytes, message: Message) -> bytes:
    """The message's frame; LocalError if a field does not fit in it."""
    kind, sender, number, fence, time_s, members = message
    try:
        header = HEADER.pack(
            SIGNATURE, VERSION, kind, 0, realm, sender, number,
            fence.to_bytes(16, "big"), min(int(time_s * 1000), TIME_MAX_MS),
        )  # fmt: skip
        return header + struct.pack(f">{len(members)}H", *members)
    except (struct.error, OverflowError) as error:
        raise LocalError(f"{message} does not fit its frame: {error}") from error


def parse(realm: bytes, frame: bytes) -> Message:
    """The message in a frame; RemoteError if it is none, or is for another lock."""
    members_bytes = len(frame) - HEADER_BYTES
    if members_bytes < 0 or members_bytes % 2 or members_bytes > 2 * MEMBERS_MAX:
        raise RemoteError(f"a frame of {len(frame)} bytes is no message")
    signature, version, kind, _, its_realm, sender, number, fence, time_ms = HEADER.unpack_from(frame)
    if (signature, version) != (SIGNATURE, VERSION):
        raise RemoteError(f"no message of mutual exclusion: {frame[:4].hex()}")
    if its_realm != realm:
        raise RemoteError(f"a message for another lock: {its_realm.hex()}")
    if sender > MEMBER_MAX:
        raise RemoteError(f"a sender numbered {sender}")
    members = struct.unpack_from(f">{members_bytes // 2}H", frame, HEADER_BYTES)
    return Message(kind, sender, number, int.from_bytes(fence, "big"), time_ms / 1000, members)
