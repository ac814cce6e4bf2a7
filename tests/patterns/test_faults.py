"""The peer's faults and our own, in all machines alike.

Whatever a peer does wrong raises RemoteError, the caller's faults LocalError; both
tell the recent events; and the machine is as usable afterwards as it was before.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from patterns.errors import LocalError, PatternError, RemoteError
from patterns.fair import FairQueue
from patterns.heartbeat import ALIVE, Watcher
from patterns.jobs import Dispatcher, Gate
from patterns.rendezvous import Rendezvous
from patterns.request_reply import Replier, Requester
from patterns.snapshot import APPLY, LIVE, Follower
from patterns.transfer import Transfer

REALM, PEER = b"R" * 16, b"P" * 16


class Fault(NamedTuple):
    made: Callable[[], Any]
    """A machine to which something has happened already."""
    fault: Callable[[Any], object]
    error: type[PatternError]
    told: str
    """In the history."""
    usable: Callable[[Any], bool]
    """Whether it still does what it is for."""


def requester() -> Requester[str]:
    made: Requester[str] = Requester(first_id=1, pending_max=2)
    made.request(b"", "first", deadline=1.0)
    made.expire(1.0)
    made.request(b"", "second", deadline=2.0)
    return made


def replier() -> Replier[str]:
    made: Replier[str] = Replier(REALM, owed_max=1)
    made.defer("peer", Requester[str](7).request(b"", "", 0.0)[1])
    return made


def watcher() -> Watcher:
    made = Watcher(suspect_s=1, down_dead_s=3, dead_s=5)
    made.join(PEER, 2, 0.0)
    made.down(PEER, 0.1)
    return made


def dispatcher() -> Dispatcher[str]:
    made: Dispatcher[str] = Dispatcher(REALM, 1, window=1, backlog_max=1, reissue_s=5)
    made.worker(1)
    made.add("job", b"")
    made.poll(0.0)
    return made


def gate() -> Gate:
    made = Gate(REALM, 1)
    made.welcome(REALM, 1)
    return made


def opened(letting: Gate) -> bool:
    sending: Dispatcher[str] = Dispatcher(REALM, 1, window=1, backlog_max=1, reissue_s=5)
    sending.worker(1)
    sending.add("job", b"body")
    return letting.accept(sending.poll(0.0)[0]) == b"body"


def transfer() -> Transfer:
    made = Transfer(25, 10, 20)
    made.ask()
    return made


def comparing() -> Follower:
    made = Follower(behind_s=1)
    made.begin()
    return made


def goes_live(follower: Follower) -> bool:
    follower.compare(3, [])
    return follower.state == LIVE and follower.update(4) == APPLY


def queue() -> FairQueue[int]:
    made: FairQueue[int] = FairQueue({"a": (1, 2)})
    made.offer("a", 1)
    return made


def second_reply_is_awaited(machine: Requester[str]) -> bool:
    return machine.expire(2.0) == [(2, "second")]


def over_pending(machine: Requester[str]) -> None:
    for _ in range(2):
        machine.request(b"", "more", deadline=9.0)


FAULTS = {
    "a reply that is none": Fault(
        requester, lambda m: m.receive(b"junk"), RemoteError, "expired 1", second_reply_is_awaited
    ),
    "a request over the bound": Fault(
        requester, over_pending, LocalError, "expired 1", second_reply_is_awaited
    ),
    "a request that is none": Fault(
        replier,
        lambda m: m.receive(b"junk"),
        RemoteError,
        "deferred 1",
        lambda m: m.resolve(1, b"")[0] == "peer",
    ),
    "a peer that is owed too much": Fault(
        replier,
        lambda m: m.defer("peer", bytes(28)),
        RemoteError,
        "deferred 1",
        lambda m: m.resolve(1, b"")[0] == "peer",
    ),
    "an answer that nobody is owed": Fault(
        replier,
        lambda m: m.resolve(9, b""),
        LocalError,
        "deferred 1",
        lambda m: m.resolve(1, b"")[0] == "peer",
    ),
    "a former life": Fault(
        watcher,
        lambda m: m.join(PEER, 1, 0.2),
        RemoteError,
        "alive --down--> suspect",
        lambda m: m.beat(PEER, 2, 1, 0.3) == [(PEER, ALIVE)],
    ),
    "a job over the bound": Fault(
        dispatcher,
        lambda m: m.add("more", b""),
        LocalError,
        "'job' waiting --issue--> issued",
        lambda m: m.done("job"),
    ),
    "a job that is none": Fault(gate, lambda m: m.accept(b"junk"), RemoteError, "epoch 1", opened),
    "a chunk that nobody asked for": Fault(
        transfer,
        lambda m: m.arrive(20),
        RemoteError,
        "0 wanted --ask--> on the way",
        lambda m: m.arrive(0) == [0],
    ),
    "a chunk at no edge": Fault(
        transfer,
        lambda m: m.arrive(-3),
        RemoteError,
        "10 wanted --ask--> on the way",
        lambda m: m.arrive(0) == [0],
    ),
    "an offset to resume at that is none": Fault(
        transfer,
        lambda m: m.resume(7),
        RemoteError,
        "0 wanted --ask--> on the way",
        lambda m: m.arrive(0) == [0],
    ),
    "a size that was another": Fault(
        transfer,
        lambda m: m.ends_at(99),
        LocalError,
        "0 wanted --ask--> on the way",
        lambda m: m.arrive(0) == [0],
    ),
    "summaries of no number": Fault(
        comparing, lambda m: m.compare(-1, [2]), RemoteError, "empty --begin--> comparing", goes_live
    ),
    "a part that was not loaded": Fault(
        comparing, lambda m: m.loaded(), LocalError, "empty --begin--> comparing", goes_live
    ),
    "an item of no class": Fault(
        queue,
        lambda m: m.offer("b", 1),
        LocalError,
        "a idle --offer--> backlogged",
        lambda m: m.take(1) == [1],
    ),
    "a group that is none": Fault(
        lambda: Rendezvous({"a": 1}),
        lambda m: m.remove("b"),
        LocalError,
        "a weighs 1",
        lambda m: m.owner(b"") == "a",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_apart_carries_the_recent_events_and_leaves_the_machine_usable(name: str) -> None:
    case = FAULTS[name]
    machine = case.made()
    with pytest.raises(PatternError) as raised:
        case.fault(machine)
    assert type(raised.value) is case.error
    assert any(case.told in event for event in raised.value.history), raised.value.history
    assert case.told in str(raised.value)
    machine.check() if hasattr(machine, "check") else None
    assert case.usable(machine)


def test_a_history_is_bounded_and_ends_with_what_happened_last() -> None:
    many: Requester[str] = Requester(first_id=1)
    for _ in range(1000):
        many.request(b"", "", deadline=1.0)
    many.expire(1.0)
    with pytest.raises(RemoteError) as raised:
        many.receive(b"")
    assert len(raised.value.history) == 32
    assert raised.value.history[-1] == "expired 1000"
