"""Every pattern: what it guarantees, where it is, what it descends from.

`python -m patterns list` and the table of patterns/README.md are made from this.
"""

from typing import Final, NamedTuple


class Pattern(NamedTuple):
    name: str
    guarantee: str
    machine: str
    """Modules of the state machine."""
    sockets: str
    """Kinds of sockets that its messages travel over."""
    tests: str
    """Files of its tests: the machine's, then those over sockets."""
    ancestor: str
    """The pattern of the zguide that it descends from."""
    better: str
    """What it does better than that."""
    more: str = ""
    """A page of docs/ of its own."""


_SOCKET_TESTS: Final = "tests/patterns/test_zeromq.py"

PATTERNS: Final = (
    Pattern(
        "request_reply",
        "each request gets exactly one reply, or expires once",
        "patterns/request_reply.py",
        "DEALER–ROUTER",
        "tests/patterns/test_request_reply.py tests/patterns/test_zeromq_calls.py",
        "Lazy Pirate; asynchronous client/server",
        "ids and deadlines instead of REQ's lock-step: a lost reply costs one deadline",
    ),
    Pattern(
        "heartbeat",
        "each change between alive, suspect and dead is told once; a watcher that slept accuses nobody",
        "patterns/heartbeat.py",
        "PUB–SUB",
        f"tests/patterns/test_heartbeat.py {_SOCKET_TESTS}",
        "Paranoid Pirate",
        "sequence numbers instead of PUB's silent drops; incarnations tell a restart from a hiccup",
    ),
    Pattern(
        "jobs",
        "a job is issued again until reported; a frame that is late or repeated takes no effect",
        "patterns/jobs.py",
        "PUSH–PULL",
        f"tests/patterns/test_jobs.py {_SOCKET_TESTS}",
        "Parallel Pipeline (ventilator, worker, sink)",
        "issued again instead of lost with the worker whose queue PUSH had filled",
    ),
    Pattern(
        "transfer",
        "chunks are handed on in order, each once, with bounded bytes on the way, and from any offset",
        "patterns/transfer.py",
        "DEALER–ROUTER",
        f"tests/patterns/test_transfer.py {_SOCKET_TESTS}",
        "Transferring Files, model three",
        "a credit of bytes instead of a count of messages; a chunk that failed comes from another source",
    ),
    Pattern(
        "snapshot",
        "a replica applies each update once and in order, and notices when it is wrong for whatever reason",
        "patterns/snapshot.py",
        "DEALER–ROUTER",
        "tests/patterns/test_snapshot.py tests/patterns/test_zeromq_replicas.py",
        "Clone",
        "parts that differ instead of the whole snapshot; acknowledged updates, so none is lost silently",
    ),
    Pattern(
        "fair",
        "a class with work gets its weight's share, whatever the others queue; each queue is bounded",
        "patterns/fair.py",
        "any",
        "tests/patterns/test_fair.py tests/patterns/test_writer.py tests/patterns/test_zeromq_replicas.py",
        "Load Balancing Broker",
        "shares by class and cost instead of one queue for all, and a refusal instead of a queue that grows",
    ),
    Pattern(
        "rendezvous",
        "everybody finds the same owners of a key; a group that comes or goes moves only its own keys",
        "patterns/rendezvous.py",
        "any",
        "tests/patterns/test_rendezvous.py tests/patterns/test_zeromq_replicas.py",
        "none (its Majordomo keeps a table of services)",
        "owners are computed by all instead of asked for at one broker",
    ),
    Pattern(
        "mutex",
        "the resource never accepts two holders: each grant carries a number that rises",
        "patterns/mutex/coordinator.py patterns/mutex/ricart_agrawala.py patterns/mutex/token_ring.py "
        "patterns/mutex/resource.py",
        "PUSH–PULL",
        "tests/patterns/mutex/test_coordinator.py tests/patterns/mutex/test_ricart_agrawala.py "
        "tests/patterns/mutex/test_token_ring.py tests/patterns/mutex/test_group.py "
        "tests/patterns/mutex/test_zeromq_mutex.py",
        "none (it locks nothing); the algorithms are Lamport's, Ricart and Agrawala's, and Le Lann's",
        "fencing numbers instead of trust in a lock: a holder that was paused does no harm when it wakes",
        "mutex.md",
    ),
)

NAMES: Final = tuple(pattern.name for pattern in PATTERNS)


def listing() -> str:
    """What `python -m patterns list` prints."""
    width = max(map(len, NAMES))
    lines = []
    for pattern in PATTERNS:
        lines.append(f"{pattern.name:<{width}}  {pattern.guarantee}")
        lines.append(f"{'':<{width}}  {', '.join(pattern.machine.split())}, over {pattern.sockets} sockets")
    lines += ["", "python -m patterns demo NAME [--fault] runs one of them over real sockets."]
    return "\n".join(lines)
