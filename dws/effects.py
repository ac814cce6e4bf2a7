"""What the machines of a node ask their shell to do.

What lives here: effects as plain values. What must not: doing them. A machine
appends effects in the order in which they must happen; the shell carries each
out and reports back by an event, never by a return value.
"""

from msgspec import Struct

from dws.messages import Beat, Record
from dws.store import Decision, KnownServer, PageStoreOp, Part


class Effect(Struct, gc=False):
    pass


class Answer(Effect):
    """Send the one reply that this token is owed."""

    token: int
    message: object


class Push(Effect):
    """Put a job frame on the server's PUSH socket."""

    server: int
    frame: bytes


class Ask(Effect):
    """Send a request to the server's ROUTER; the answer or its absence comes back with `tag`."""

    server: int
    message: object
    tag: tuple[object, ...]
    timeout_s: float


class Connect(Effect):
    """Open a PUSH to the server's jobs endpoint, watched, and a DEALER to its pages endpoint."""

    server: int
    pages_endpoint: str
    jobs_endpoint: str


class Disconnect(Effect):
    """Close both; what is queued on them is lost, and sent again by its owner."""

    server: int


class Persist(Effect):
    """Hand a decision to the writer; `Persisted` comes back, in order, once it is durable."""

    decision: Decision


class Log(Effect):
    """One line for the operator: level is 'info', 'warning' or 'error'."""

    level: str
    text: str


class Rebuilt(Effect):
    """A rebuild has gathered everything: write this catalog, then start on it.

    epoch: of its first start; decision, starts: at least what any server was told.
    """

    cluster: bytes
    epoch: int
    decision: int
    starts: list[tuple[int, int]]
    servers: list[KnownServer]
    records: list[Record]


Effects = list[Effect]


# -- of a web server ---------------------------------------------------------------------


class AnswerData(Effect):
    """Send the one reply that this token is owed, with a data frame."""

    token: int
    message: object
    data: bytes


class Report(Effect):
    """Send a request to the balancer; the answer or its absence comes back with `tag`."""

    message: object
    tag: tuple[object, ...]
    timeout_s: float


class AskPeer(Effect):
    """Send a request to another server's ROUTER; the answer or its absence comes back with `tag`."""

    endpoint: str
    message: object
    tag: tuple[object, ...]
    timeout_s: float


class Write(Effect):
    """Hand an operation to the writer thread; `Written` comes back with `tag`, in order within a class."""

    kind: str  # "upload", "copy" or "drop": classes share the thread fairly
    op: PageStoreOp
    tag: tuple[object, ...]
    cost_bytes: int


class Inspect(Effect):
    """Hand parts of pages to the checker thread, to be read back; `Inspected` comes back with `tag`.

    No parts: a little is read from the disk, whatever lies there. One at a time of each kind."""

    kind: str  # "asked" or "scrub"
    parts: list[Part]
    tag: tuple[object, ...]


class Publish(Effect):
    beat: Beat
