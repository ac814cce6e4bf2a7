"""What can happen to a balancer (and to the rebuild that runs in its place).

What lives here: events as plain values. What must not: handling them.
"""

from typing import Any

from msgspec import Struct

from dws.messages import Beat


class ClientAsked(Struct):
    token: int
    message: Any


class ServerAsked(Struct):
    token: int
    message: Any


class Beaten(Struct):
    peer: bytes
    incarnation: int
    sequence: int
    beat: Beat


class Answered(Struct):
    """An Ask's answer came; `tag` is the Ask's."""

    tag: tuple[Any, ...]
    message: Any


class Unanswered(Struct):
    tag: tuple[Any, ...]


class Persisted(Struct):
    number: int


class LinkUp(Struct):
    server: int


class LinkDown(Struct):
    server: int


class Tick(Struct):
    pass


Event = ClientAsked | ServerAsked | Beaten | Answered | Unanswered | Persisted | LinkUp | LinkDown | Tick
