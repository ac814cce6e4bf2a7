"""One thread of load with several requests under way on one DEALER: for ROUTER services of any kind.

What lives here: the loop that sends what is due, takes what comes, and gives up what never came. What must
not: what a request is (the scenario), what is counted of it (counting).

Closed load keeps `window` requests under way. Open load sends each at its moment, as long as fewer are.
"""

import select
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import get_args

import zmq

from loadgen.counting import Counts, Measured
from loadgen.plan import WARM, Kind, kinds
from loadgen.router_scenario import RouterScenario
from loadgen.scenarios import NotSent
from loadgen.shared import NAP_S, Shared
from loadgen.talk import Work


class TimedOut(Exception):
    """No reply came in time."""


class Pipeline:
    """Drives one thread's scenario. Requests of the warm-up are sent and taken, and count nowhere."""

    def __init__(
        self, work: Work, thread: int, shared: Shared, counts: Counts, scenario: RouterScenario
    ) -> None:
        self._thread = thread
        self._timeout_s = work.timeout_s
        self._shared = shared
        self._counts = counts
        self._scenario = scenario
        self._socket = scenario.socket
        #: Number → when it was begun, what it is, and where it counts. At most `window`.
        self._sent: dict[int, tuple[float, Kind, Measured | None]] = {}
        self._number = 0
        self._kinds_counted = kinds(work.plan, work.client, thread)
        self._kinds: Iterator[Kind] = kinds(work.plan, work.client, thread, WARM)
        self._measured: Mapping[Kind, Measured | None] = dict.fromkeys(get_args(Kind))

    def closed(self) -> None:
        shared = self._shared
        self._socket.setsockopt(zmq.RCVTIMEO, round(NAP_S * 1000))
        self._socket.setsockopt(zmq.SNDTIMEO, round(self._timeout_s * 1000))
        self._keep_full(repeat(None), shared.start_s)
        self._begin_counting()
        self._keep_full(shared.turns(self._thread), shared.ends_s())
        while self._sent:
            self._receive(0)

    def open(self) -> None:
        clock, shared, sent = time.monotonic, self._shared, self._sent
        window, start_s, ends_s = self._scenario.window, shared.start_s, shared.ends_s()
        is_warm = True
        for due_s in shared.arrivals():
            moment_s = start_s + due_s
            while not shared.stopped and ((now_s := clock()) < moment_s or len(sent) >= window):
                if not self._receive(zmq.NOBLOCK):
                    self._wait(moment_s if len(sent) < window else now_s + NAP_S)
            if shared.stopped or moment_s >= ends_s:
                break
            if is_warm and due_s >= 0:
                is_warm = False
                self._begin_counting()
            self._send_late(moment_s, clock(), is_warm=is_warm)
        while sent:
            if not self._receive(zmq.NOBLOCK):
                self._wait(clock() + NAP_S)

    def _keep_full(self, turns: Iterable[object], until_s: float) -> None:
        """As many requests under way as may be, one a turn, until that moment."""
        clock, shared, sent, window = time.monotonic, self._shared, self._sent, self._scenario.window
        for _ in turns:
            while len(sent) >= window:
                self._receive(0)
            now_s = clock()
            if now_s >= until_s or shared.stopped:
                return
            self._send(now_s, 0)

    def _begin_counting(self) -> None:
        self._counts.begin()
        self._scenario.restart()
        self._kinds, self._measured = self._kinds_counted, self._counts.measured

    # -- sending ----------------------------------------------------------------------------

    def _send(self, moment_s: float, flags: int) -> None:
        """One request, its time counted from `moment_s`."""
        number = self._number
        self._number = number + 1
        kind = next(self._kinds)
        frames = self._scenario.request(number, kind)
        self._sent[number] = (moment_s, kind, self._measured[kind])
        try:
            if len(frames) == 1:
                self._socket.send(frames[0], flags)
            else:
                self._socket.send_multipart(frames, flags)
        except zmq.Again:
            fault = NotSent("the socket's queue was full: nobody takes what is sent")
            self._has_failed(self._sent.pop(number), fault)

    def _send_late(self, moment_s: float, now_s: float, *, is_warm: bool) -> None:
        """Open load: unless it is too late."""
        late_s, timeout_s = now_s - moment_s, self._timeout_s
        if late_s > timeout_s:
            kind = next(self._kinds)
            fault = NotSent(f"the window was full for {timeout_s:g} s after its intended start")
            self._has_failed((moment_s, kind, self._measured[kind]), fault)
            return
        if not is_warm:
            self._counts.late.record(late_s)
        self._send(moment_s, zmq.NOBLOCK)

    # -- receiving ---------------------------------------------------------------------------

    def _receive(self, flags: int) -> bool:
        """Take a reply; False if there was none."""
        receive = self._socket.recv
        try:
            # A frame that is not copied says at once whether there are more; to ask the socket takes longer.
            frame = receive(flags, False)
        except zmq.Again:
            self._expire(time.monotonic())
            return False
        ended_s = time.monotonic()
        reply = [frame.bytes]
        while frame.more:
            frame = receive(0, False)
            reply.append(frame.bytes)
        number = self._scenario.number(reply)
        request = self._sent.pop(number, None)
        if request is None:
            return True  # it comes after its time-out
        try:
            done = self._scenario.check(number, reply)
        except Exception as error:
            self._has_failed(request, error)
            return True
        begun_s, _, measured = request
        if measured is not None:
            # As Counts.succeeded, without the call: this is what every request costs.
            if ended_s >= self._counts.turn_s:
                self._counts.turn(ended_s)
                self._expire(ended_s)
            measured.succeeded(ended_s - begun_s, done)
        return True

    def _wait(self, until_s: float) -> None:
        """Until something may be read, or that moment. To the microsecond, which a poll's are not."""
        left_s = min(until_s - time.monotonic(), NAP_S)
        events = self._socket.getsockopt(zmq.EVENTS)
        assert isinstance(events, int)
        if left_s > 0 and not events & zmq.POLLIN:
            select.select([self._socket], [], [], left_s)

    def _expire(self, now_s: float) -> None:
        """Give up requests that have waited for too long; the first in the table are the oldest."""
        timeout_s = self._timeout_s
        while self._sent:
            number = next(iter(self._sent))
            if now_s - self._sent[number][0] <= timeout_s:
                return
            self._has_failed(self._sent.pop(number), TimedOut(f"no reply within {timeout_s:g} s"))

    def _has_failed(self, request: "tuple[float, Kind, Measured | None]", error: Exception) -> None:
        begun_s, kind, measured = request
        if measured is not None:
            self._counts.has_failed(kind, begun_s, time.monotonic(), error)
