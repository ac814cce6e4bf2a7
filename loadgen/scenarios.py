"""What a request is: make one, perform it, check what came.

What lives here: the shape of a Scenario, and those of pages. What must not: when
requests are made and what is counted of them (threads).

To load something other than pages, write another Scenario; the rest stays.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zmq
from msgspec import Struct

import dws
from loadgen.plan import WARM, Kind, chooser, filling, in_turn, made_up, share_of, upload_name
from loadgen.talk import Work


class Done(Struct, gc=False):
    """What one request that succeeded has moved."""

    pages: int
    bytes: int
    skipped: int = 0


class NotSent(Exception):
    """Open load: nothing was free to send a request within its time-out."""


class Scenario:
    """Requests of one thread. An exception is a failed request; its type is the kind of failure."""

    @property
    def served(self) -> Mapping[str, int]:
        """Pages that each server delivered so far, where that is known."""
        return {}

    def make(self, kind: Kind) -> Any:
        """The next request, ready to be sent. Not timed."""
        raise NotImplementedError

    def perform(self, request: Any) -> Done:
        """Send it, wait for the answer, check it. Timed."""
        raise NotImplementedError

    def restart(self) -> None:
        """The warm-up, if there was one, is over: from here on requests are those of the plan's seed."""

    def close(self) -> None:
        """At the end, in the thread that made it."""


PageRequest = list[str] | dict[str, Any]
"""Names to download; or name → bytes or path to upload."""


class Turns:
    """What the threads of one client process share if they take downloads in turn, and not by choice."""

    def __init__(self, work: Work) -> None:
        self.warm, self.counted = (in_turn(work.rounds, work.plan, work.client) for _ in range(2))


class PageRequests:
    """What one thread asks for of pages, whichever way. turns: instead of choices of its own."""

    def __init__(self, work: Work, thread: int, turns: Turns | None = None) -> None:
        self._work = work
        self._thread = thread
        self._turns = turns
        self._uploads = 0
        plan = work.plan
        part, parts = work.client * plan.threads + thread, plan.clients * plan.threads
        self._files = share_of(work.files, part, parts)
        self._filling = b"" if work.files or plan.request == "download" else filling(plan)
        if turns:
            self._choose = turns.warm
        elif plan.request != "upload":
            self._choose = chooser(work.names, plan, work.client, thread, WARM)

    def make(self, kind: Kind) -> PageRequest:
        return self._choose() if kind == "download" else self._upload()

    def restart(self) -> None:
        """The warm-up is over."""
        if self._turns:
            self._choose = self._turns.counted
        elif self._work.plan.request != "upload":
            self._choose = chooser(self._work.names, self._work.plan, self._work.client, self._thread)

    def _upload(self) -> dict[str, Any]:
        request, self._uploads = self._uploads, self._uploads + 1
        return {
            upload_name(self._work.prefix, self._work.client, self._thread, request, leaf): source
            for leaf, source in self._sources(request)
        }

    def _sources(self, request: int) -> Iterator[tuple[str, Any]]:
        """(name below the request's own, bytes or path) of one upload's pages."""
        plan = self._work.plan
        first = request * plan.files
        if self._files:
            for number in range(first, first + min(plan.files, len(self._files))):
                leaf, path = self._files[number % len(self._files)]
                yield leaf, Path(path)
            return
        # Different for each page of a run, lest anything save work on pages that are alike.
        base = (self._work.client << 8 | self._thread) << 40
        for number in range(first, first + plan.files):
            yield str(number - first), made_up(base + number, plan.size_bytes, self._filling)


class PageScenario(Scenario):
    """Downloads and uploads of pages. The client checks every digest; a wrong one is an IntegrityError."""

    def __init__(self, client: "dws.Client", work: Work, thread: int, turns: Turns | None = None) -> None:
        self._client = client
        self._timeout_s = work.timeout_s
        self._requests = PageRequests(work, thread, turns)

    @property
    def served(self) -> Mapping[str, int]:
        served: Mapping[str, int] = self._client.served
        return served

    def make(self, kind: Kind) -> PageRequest:
        return self._requests.make(kind)

    def restart(self) -> None:
        self._requests.restart()

    def perform(self, request: PageRequest) -> Done:
        if isinstance(request, list):
            pages = self._client.get_many(request)
            return Done(len(pages), sum(map(len, pages.values())))
        stored = self._client.put(request, timeout_s=self._timeout_s)
        return Done(stored.pages, stored.bytes, len(stored.skipped))

    def close(self) -> None:
        self._client.close()


def open_pages(
    context: "zmq.Context[zmq.Socket[bytes]]", turns: Turns | None, work: Work, thread: int
) -> Scenario:
    """Connect one thread's client, with one question to the balancer, so that no request waits for that."""
    client = dws.connect(work.endpoint, timeout_s=work.timeout_s, context=context)
    try:
        client.status()
        return PageScenario(client, work, thread, turns)
    except BaseException:
        client.close()
        raise
