"""Request/reply: a client and a server process. Answers come out of order; a lost one costs one deadline.

With a fault the server is killed with a request in hand, and a late reply arrives
after its deadline.
"""

import time
from collections.abc import Callable
from functools import partial

import zmq

from patterns.demos.asking import Asker
from patterns.demos.processes import QUANTUM, Child, Parent, play, run_for, run_until
from patterns.request_reply import Replier, request_id_of
from patterns.zeromq.reactor import Reactor
from patterns.zeromq.service import Service


def server(child: Child, endpoint: str) -> None:
    """Answers at once, or, if a request begins with a number, after that many seconds."""
    owed: list[tuple[float, int, str]] = []

    def answer(peer: bytes, frame: bytes, body: memoryview, _data: "zmq.Frame | None") -> None:
        what = bytes(body).decode()
        delay_s, _, _ = what.partition(" s ")
        if not delay_s.replace(".", "").isdigit():
            child.say(f"answers request {request_id_of(frame)}, {what!r}, at once")
            service.reply(peer, frame, b"done")
            return
        child.say(f"owes request {request_id_of(frame)}, {what!r}, an answer")
        owed.append((time.monotonic() + float(delay_s), replier.defer(peer, frame), what))

    def on_round(now: float) -> None:
        for entry in [entry for entry in owed if entry[0] <= now]:
            owed.remove(entry)
            child.say(f"answers {entry[2]!r}")
            service.send(*replier.resolve(entry[1], b"done"))

    replier: Replier[bytes] = Replier()
    service = Service(child.bound(zmq.ROUTER, endpoint), replier, answer, lambda *_refused: None)
    loop = child.reactor(lambda: min((at for at, _, _ in owed), default=None), on_round)
    loop.add(service.socket, service.drain, QUANTUM)
    loop.run()


class Client:
    """Asks, and says what came of each request."""

    def __init__(self, parent: Parent) -> None:
        self.ended: list[tuple[str, str]] = []
        self.endpoint = parent.endpoint("server")
        self.asker = Asker(parent.context, partial(self._end, "replied"), partial(self._end, "expired"))
        self._parent = parent
        self._loop = Reactor(self.asker.requester.wake_at, self.asker.expire, longest_wait_s=0.1)
        self.asker.join(self._loop)

    def ask(self, what: str, within_s: float) -> None:
        request_id = self.asker.ask(self.endpoint, what.encode(), what, within_s)
        self._parent.say(f"asks {what!r}, request {request_id}, and waits {within_s:g} s at the most")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        run_until(self._loop, condition, what)

    def let_time_pass(self, seconds: float) -> None:
        run_for(self._loop, seconds)

    def _end(self, how: str, what: str, *_reply: bytes) -> None:
        self.ended.append((what, how))
        self._parent.say(f"{what!r}: {how}")


def run(fault: bool) -> None:
    with Parent(__name__, "client") as parent:
        client = Client(parent)
        parent.start("server", "server", client.endpoint)
        for what in ("0.3 s of work", "a small thing", "another small thing"):
            client.ask(what, within_s=10)
        client.wait(lambda: len(client.ended) == 3, "three replies")
        parent.say(f"three were on the way at once; answered: {', '.join(what for what, _ in client.ended)}")
        if fault:
            _lose_a_reply(parent, client)
            _get_a_late_reply(parent, client)
        client.asker.close()


def _lose_a_reply(parent: Parent, client: Client) -> None:
    client.ask("5 s of work", within_s=1)
    client.let_time_pass(0.2)
    parent.kill("server")
    client.wait(lambda: ("5 s of work", "expired") in client.ended, "an expiry")
    parent.start("server", "server", client.endpoint)
    parent.say("asks again: a request must be safe to repeat, since nobody knows whether it was executed")
    client.ask("0.1 s of work, again", within_s=10)
    client.wait(lambda: ("0.1 s of work, again", "replied") in client.ended, "a reply to the second try")


def _get_a_late_reply(parent: Parent, client: Client) -> None:
    client.ask("0.5 s of work", within_s=0.2)
    counters = client.asker.requester.counters
    client.wait(lambda: counters["unawaited"], "a late reply")
    parent.say("its reply came after its deadline: a counted drop, mistaken for no other request's")


if __name__ == "__main__":
    play({"server": server})
