"""The frame of mutual exclusion's messages: what is packed is parsed, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.errors import LocalError, RemoteError
from patterns.mutex.interface import (
    FENCE_MAX,
    HEADER_BYTES,
    MEMBER_MAX,
    MEMBERS_MAX,
    NUMBER_MAX,
    TIME_MAX_MS,
    Message,
    pack,
    parse,
)

REALM = b"R" * 16
MEMBERS = st.integers(0, MEMBER_MAX)
MESSAGES = st.builds(
    Message,
    st.integers(0, 255),
    MEMBERS,
    st.integers(0, NUMBER_MAX),
    st.integers(0, FENCE_MAX),
    st.integers(0, TIME_MAX_MS).map(lambda time_ms: time_ms / 1000),
    st.lists(MEMBERS, max_size=20).map(tuple),
)


@given(message=MESSAGES)
def test_what_is_packed_is_parsed(message: Message) -> None:
    parsed = parse(REALM, pack(REALM, message))
    assert parsed._replace(time_s=message.time_s) == message
    assert abs(parsed.time_s - message.time_s) <= 0.001


def test_the_frame_is_as_the_module_says() -> None:
    frame = pack(REALM, Message(2, 7, 5, 9, 1.5, (1, 256)))
    assert frame.hex(" ") == (
        "da 01 02 00 " + "52 " * 16 + "00 00 00 07 00 00 00 00 00 00 00 05 "
        "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 09 00 00 05 dc 00 01 01 00"
    )
    assert len(frame) == HEADER_BYTES + 4


@given(frame=st.binary(max_size=HEADER_BYTES + 8))
def test_whatever_comes_is_a_message_or_a_remote_error(frame: bytes) -> None:
    try:
        message = parse(REALM, frame)
    except RemoteError:
        return
    assert pack(REALM, message)[4:] == frame[4:]


GOOD = pack(REALM, Message(1, 2))
BAD = {
    "empty": b"",
    "short": GOOD[:-1],
    "half a member": GOOD + b"m",
    "too many members": GOOD + bytes(2 * MEMBERS_MAX + 2),
    "another signature": b"\xd7" + GOOD[1:],
    "another version": GOOD[:1] + b"\x02" + GOOD[2:],
    "another lock": GOOD[:4] + b"S" * 16 + GOOD[20:],
    "a sender over the bound": GOOD[:20] + b"\x00\x01\x00\x00" + GOOD[24:],
}


@pytest.mark.parametrize("frame", BAD.values(), ids=BAD)
def test_a_bad_frame_is_the_peers_fault(frame: bytes) -> None:
    with pytest.raises(RemoteError):
        parse(REALM, frame)


TOO_LARGE = [
    Message(256, 0),
    Message(1, -1),
    Message(1, 0, NUMBER_MAX + 1),
    Message(1, 0, 0, FENCE_MAX + 1),
    Message(1, 0, members=(MEMBER_MAX + 1,)),
]


@pytest.mark.parametrize("message", TOO_LARGE)
def test_a_field_that_does_not_fit_is_our_own_fault(message: Message) -> None:
    with pytest.raises(LocalError):
        pack(REALM, message)


def test_a_long_time_is_the_longest_that_there_is() -> None:
    assert parse(REALM, pack(REALM, Message(1, 0, time_s=1e9))).time_s == TIME_MAX_MS / 1000
