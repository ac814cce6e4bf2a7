"""Several requests under way on one DEALER: against a ROUTER that answers, errs, delays or stays silent."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from loadgen.measured import ClientResult
from loadgen.plan import Kind, Plan
from loadgen.router_scenario import NUMBER_BYTES, EchoScenario, RouterScenario
from loadgen.scenarios import Done
from loadgen.talk import Work
from loadgen.worker import Team

Socket = zmq.Socket[bytes]
#: What a service does with a request: frames (identity first) → replies.
Answer = Callable[[list[bytes]], list[list[bytes]]]


class Service:
    """A ROUTER in a thread of its own."""

    def __init__(self, router: Socket, answer: Answer) -> None:
        self.endpoint = router.get(zmq.LAST_ENDPOINT).decode().rstrip("\0")
        self.received = 0
        self._router, self._answer = router, answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        router.setsockopt(zmq.RCVTIMEO, 10)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                frames = self._router.recv_multipart()
            except zmq.Again:
                continue
            self.received += 1
            for reply in self._answer(frames):
                self._router.send_multipart(reply)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


Serve = Callable[[Answer], Service]


@pytest.fixture
def serve(sockets: Callable[..., Socket]) -> Iterator[Serve]:
    services: list[Service] = []

    def start(answer: Answer) -> Service:
        services.append(Service(sockets(zmq.ROUTER, bind="tcp://127.0.0.1:*"), answer))
        return services[-1]

    yield start
    for service in services:
        service.stop()


def echo(frames: list[bytes]) -> list[list[bytes]]:
    return [frames]


def loaded(
    plan: Plan,
    service: Service,
    context: "zmq.Context[Socket]",
    scenario: type[RouterScenario] = EchoScenario,
    timeout_s: float = 5.0,
) -> ClientResult:
    work = Work(plan, 0, service.endpoint, timeout_s, [], [], "")
    team = Team(work, lambda work, thread: scenario(work, thread, context))
    assert team.prepare() is None
    team.go(time.monotonic() + plan.warmup_s)
    team.join()
    assert team.fault() is None
    return team.result()


def echo_plan(**fields: object) -> Plan:
    return Plan(**{"clients": 1, "threads": 1, "files": 1, "size_bytes": 64, **fields})  # type: ignore[arg-type]


def kinds_of(result: ClientResult) -> dict[str, int]:
    return {one.kind: one.count for tally in result.tallies.values() for one in tally.failures}


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 1001, "threads": 3, "window": 7},
        {"count": 20, "window": 1},
        {"count": 5, "window": 100},
        {"count": 500, "window": 50, "rate": 5000.0},
        {"count": 300, "window": 3, "rate": 3000.0, "threads": 2},
        {"count": 400, "window": 10, "request": "mixed"},
    ],
)
def test_every_request_is_made_and_counted_once(
    serve: Serve, context: "zmq.Context[Socket]", fields: dict[str, object]
) -> None:
    service = serve(echo)
    plan = echo_plan(**fields)
    result = loaded(plan, service, context)
    requests = sum(tally.requests for tally in result.tallies.values())
    assert (requests, kinds_of(result)) == (plan.count, {})
    assert service.received == plan.count
    assert sum(tally.bytes for tally in result.tallies.values()) == 64 * requests
    assert sum(one.requests for one in result.intervals) == requests
    assert (result.late.count if result.late else None) == (plan.count if plan.is_open else None)


@pytest.mark.parametrize("rate", [None, 20_000.0])
def test_as_many_are_under_way_as_the_window_and_no_more(
    serve: Serve, context: "zmq.Context[Socket]", rate: float | None
) -> None:
    held: list[list[bytes]] = []
    most: list[int] = []

    class Counting(EchoScenario):
        under_way = 0

        def request(self, number: int, kind: Kind) -> list[bytes]:
            self.under_way += 1
            most.append(self.under_way)
            return super().request(number, kind)

        def check(self, number: int, reply: list[bytes]) -> Done:
            self.under_way -= 1
            return super().check(number, reply)

    def in_sevens(frames: list[bytes]) -> list[list[bytes]]:
        held.append(frames)
        if len(held) < 7:
            return []
        replies = held[::-1]  # and in another order
        held.clear()
        return replies

    result = loaded(echo_plan(count=70, window=7, rate=rate), serve(in_sevens), context, Counting)
    assert result.tallies["download"].requests == 70
    assert max(most) == 7


@pytest.mark.parametrize("rate", [None, 2000.0])
def test_what_is_never_answered_times_out_and_does_not_end_the_run(
    serve: Serve, context: "zmq.Context[Socket]", rate: float | None
) -> None:
    def every_third(frames: list[bytes]) -> list[list[bytes]]:
        number = int.from_bytes(frames[1][:NUMBER_BYTES], "big")
        return [] if number % 3 == 0 else [frames]

    plan = echo_plan(count=30, window=40, rate=rate)
    result = loaded(plan, serve(every_third), context, timeout_s=0.3)
    assert (result.tallies["download"].requests, kinds_of(result)) == (20, {"TimedOut": 10})
    assert result.elapsed_s < 3


def test_a_reply_after_its_time_out_counts_nowhere(serve: Serve, context: "zmq.Context[Socket]") -> None:
    held: list[list[bytes]] = []

    def later(frames: list[bytes]) -> list[list[bytes]]:
        """The first request is answered with the second, which is made when the first has timed out."""
        held.append(frames)
        return [] if len(held) == 1 else [*held[:1], frames] if len(held) == 2 else [frames]

    result = loaded(echo_plan(count=3, window=1), serve(later), context, timeout_s=0.2)
    assert (result.tallies["download"].requests, kinds_of(result)) == (2, {"TimedOut": 1})


def test_a_wrong_reply_is_a_failed_request_with_what_it_said(
    serve: Serve, context: "zmq.Context[Socket]"
) -> None:
    def cut(frames: list[bytes]) -> list[list[bytes]]:
        return [[frames[0], frames[1][:20]]]

    result = loaded(echo_plan(count=9, window=4), serve(cut), context)
    (failure,) = result.tallies["download"].failures
    assert (failure.kind, failure.count) == ("ValueError", 9)
    assert failure.first == "20 bytes came back, and not those that were sent"


def test_a_reply_to_nothing_is_passed_over(serve: Serve, context: "zmq.Context[Socket]") -> None:
    def noisy(frames: list[bytes]) -> list[list[bytes]]:
        cut = frames[1][NUMBER_BYTES - 1 : NUMBER_BYTES]
        return [[frames[0], cut], [frames[0], b""], [frames[0], b"\xff" * 64], frames]

    result = loaded(echo_plan(count=50, window=5), serve(noisy), context)
    assert (result.tallies["download"].requests, kinds_of(result)) == (50, {})


class InFrames(RouterScenario):
    """As clients of a REP socket ask: what comes before the empty frame comes back."""

    def request(self, number: int, kind: Kind) -> list[bytes]:
        return [number.to_bytes(NUMBER_BYTES, "big"), b"", b"question", kind.encode()]

    def check(self, number: int, reply: list[bytes]) -> Done:
        if reply[1:] != [b"", b"answer"]:
            raise ValueError(f"{reply}")
        return Done(2, 6)


def test_requests_and_replies_of_several_frames(serve: Serve, context: "zmq.Context[Socket]") -> None:
    def reply(frames: list[bytes]) -> list[list[bytes]]:
        assert frames[2:] in ([b"", b"question", b"download"], [b"", b"question", b"upload"])
        return [[*frames[:3], b"answer"]]

    result = loaded(echo_plan(count=100, window=8, request="mixed"), serve(reply), context, InFrames)
    assert set(result.tallies) == {"download", "upload"}
    assert sum(tally.pages for tally in result.tallies.values()) == 200


@pytest.mark.parametrize("rate", [None, 2000.0])
def test_the_warm_up_is_made_and_counts_nowhere(
    serve: Serve, context: "zmq.Context[Socket]", rate: float | None
) -> None:
    service = serve(echo)
    result = loaded(echo_plan(count=50, window=5, warmup_s=0.2, rate=rate), service, context)
    assert result.tallies["download"].requests == sum(one.requests for one in result.intervals) == 50
    assert service.received > 70


def test_a_service_that_nobody_reaches_fails_what_was_asked(context: "zmq.Context[Socket]") -> None:
    class Nowhere(EchoScenario):
        def __init__(self, work: Work, thread: int, context: "zmq.Context[Socket]") -> None:
            super().__init__(work, thread, context)
            self.socket.setsockopt(zmq.IMMEDIATE, 1)

    work = Work(echo_plan(count=4, window=2), 0, "tcp://127.0.0.1:9", 0.2, [], [], "")
    team = Team(work, lambda work, thread: Nowhere(work, thread, context))
    assert team.prepare() is None
    team.go(time.monotonic())
    team.join()
    assert set(kinds_of(team.result())) <= {"TimedOut", "NotSent"}
    assert sum(kinds_of(team.result()).values()) == 4


def test_stop_ends_it_at_once(serve: Serve, context: "zmq.Context[Socket]") -> None:
    service = serve(echo)
    work = Work(echo_plan(count=10**9, window=5), 0, service.endpoint, 5.0, [], [], "")
    team = Team(work, lambda work, thread: EchoScenario(work, thread, context))
    assert team.prepare() is None
    team.go(time.monotonic())
    deadline = time.monotonic() + 10
    while team.progress().requests < 100 and time.monotonic() < deadline:
        time.sleep(0.001)
    team.stop()
    team.join()
    tally = team.result().tallies["download"]
    assert (tally.requests >= 100, tally.failures) == (True, [])
