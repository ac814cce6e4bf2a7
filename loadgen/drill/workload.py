"""Mixed load on a cluster, as clients make it, and the history of what they saw.

What lives here: the pages of a drill, the threads that read and write them, and what came of each request.
What must not: faults, and any judging of the history (readback.py).

Three kinds of pages: *steady* ones, stored before the load and only read; *changing* ones, in families of a
few names that puts, conditional puts and removals overwrite all the time, and whose history is recorded;
and a large one, which one thread downloads again and again.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

import dws
from dws.errors import Conflict, DwsError, NotFound, OutcomeUnknown
from dws.limits import MIB
from dws.messages import ABSENT
from dws.operations import FAILED, OK, UNKNOWN, Operation
from loadgen.drill.bodies import WrongBytesError, body, number_of

READ: Final = "read"
WRITE: Final = "write"
LARGE: Final = "large download"

LARGE_NAME: Final = "/drill/large"
_FAMILY: Final = 3
#: A batch lies on one pair of servers: small ones spread over all.
_PRELOAD_PAGES: Final = 40
_PRELOAD_BATCH_BYTES: Final = 8 * MIB
_SIZES: Final = (40, 700, 4_000, 30_000, 300_000)
#: Between two downloads of the large page.
_REST_S: Final = 0.2
#: Operations that a history has at the most; after them the load reads steady pages alone.
HISTORY_MAX: Final = 500_000
_ERRORS_KEPT: Final = 20
#: What threads rest after a failure, so that a cluster that refuses at once is not flooded.
_AFTER_FAILURE_S: Final = 0.05


class Shape(Struct, frozen=True, kw_only=True):
    """What load there is.

    removes: whether pages are removed and put on conditions too. shared: whether several threads write the
    same pages. Without either the outcome of a rebuild is certain.
    timeout_s: how long a request may take without being answered.
    """

    pages: int = 400
    page_bytes: int = 16 << 10
    large_bytes: int = 24 * MIB
    threads: int = 4
    families: int = 8
    removes: bool = True
    shared: bool = True
    timeout_s: float = 30.0


class Tally(Struct):
    """Requests that ended since a moment, by kind."""

    requests: int = 0
    failed: Counter[str] = msgspec.field(default_factory=Counter)
    slowest_s: dict[str, float] = {}
    errors: list[str] = []
    """The first of them."""

    def add(self, kind: str, took_s: float, error: str) -> None:
        self.requests += 1
        self.slowest_s[kind] = max(took_s, self.slowest_s.get(kind, 0.0))
        if error:
            self.failed[kind] += 1
            if len(self.errors) < _ERRORS_KEPT:
                self.errors.append(f"{kind} after {took_s:.2f} s: {error}")


class Workload:
    """One cluster's. `start` and `stop` may come once; `preload` before them."""

    def __init__(self, endpoint: str, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.requests = self.answered = 0
        """So far; with an answer that was to be expected."""
        self.tally = Tally()
        """Since the last `mark`."""
        self.history: list[Operation] = []
        self.initial: dict[str, int] = {}
        """Steady and large pages, with the number of the put that stored them."""
        self.wrong: list[str] = []
        """Wrong bytes and lost pages that readers met."""
        self.failure: BaseException | None = None
        self.families = [
            [f"/drill/{family}/{member}" for member in range(_FAMILY)] for family in range(shape.families)
        ]
        self._endpoint = endpoint
        self._rng = random.Random(seed)
        self._began = time.monotonic()
        self._guard = threading.Lock()
        self._number = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    # -- before the load -----------------------------------------------------------------

    def preload(self) -> None:
        """Store the steady pages and the large one."""
        names = [f"/drill/steady/{each:06d}" for each in range(self.shape.pages)]
        each = max(1, min(_PRELOAD_PAGES, _PRELOAD_BATCH_BYTES // self.shape.page_bytes))
        with dws.connect(self._endpoint, timeout_s=self.shape.timeout_s) as client:
            for first in range(0, len(names), each):
                number, batch = self._next_number(), names[first : first + each]
                client.put({name: body(name, number, self.shape.page_bytes) for name in batch})
                self.initial |= dict.fromkeys(batch, number)
            number = self._next_number()
            client.put({LARGE_NAME: body(LARGE_NAME, number, self.shape.large_bytes)})
            self.initial[LARGE_NAME] = number

    # -- the load -------------------------------------------------------------------------

    def start(self) -> None:
        jobs: list[Callable[[dws.Client, random.Random, int], None]] = [
            *([self._request] * self.shape.threads),
            self._download,
        ]
        for number, job in enumerate(jobs):
            seed = self._rng.getrandbits(64)
            thread = threading.Thread(target=self._run, args=(job, seed, number), name=f"drill-{number}")
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ends the threads, each after the request that it is at. Raises what none of them expected."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        if self.failure is not None:
            raise self.failure

    def now(self) -> float:
        """Seconds since the workload was made: the clock of `history`."""
        return time.monotonic() - self._began

    def _run(self, job: Callable[[dws.Client, random.Random, int], None], seed: int, number: int) -> None:
        rng = random.Random(seed)
        try:
            with dws.connect(self._endpoint, timeout_s=self.shape.timeout_s) as client:
                while not self._stop.is_set():
                    job(client, rng, number)
        except BaseException as failure:  # raised by `stop`, in the thread that waits for it
            self.failure = failure

    def _request(self, client: dws.Client, rng: random.Random, thread: int) -> None:
        is_full = len(self.history) >= HISTORY_MAX
        if (rng.random() < 0.6 or is_full) and self.shape.pages:
            self._read_steady(client, rng)
            return
        if is_full:
            self._stop.wait(_REST_S)
            return
        families = self.families if self.shape.shared else self.families[thread :: self.shape.threads]
        index = rng.randrange(len(families))
        family = families[index]
        # Names that are removed have gets of their own: of several, "not found" tells of one alone.
        if not self.shape.removes or index % 2:
            rng.choice((self.get, self._put))(client, family, rng, f"c{thread}")
            return
        one = [rng.choice(family)]
        rng.choice((self.get, self._put, self._put_if_absent, self._remove))(client, one, rng, f"c{thread}")

    def _read_steady(self, client: dws.Client, rng: random.Random) -> None:
        names = list(
            {f"/drill/steady/{rng.randrange(self.shape.pages):06d}" for _ in range(rng.randint(1, 8))}
        )

        def read() -> None:
            self._compare(client.get_many(names))

        self._timed(READ, read)

    def _download(self, client: dws.Client, rng: random.Random, thread: int) -> None:
        def download() -> None:
            with client.open(LARGE_NAME) as stream:
                self._compare({LARGE_NAME: stream.read()})

        self._timed(LARGE, download)
        self._stop.wait(_REST_S)

    def _compare(self, found: dict[str, bytes]) -> None:
        for name, data in found.items():
            number = self._seen(name, data)
            if number is not None and number != self.initial[name]:
                self.wrong.append(f"{name}: has the bytes of put {number}, not {self.initial[name]}")

    def _seen(self, name: str, data: bytes) -> int | None:
        try:
            return number_of(name, data)
        except WrongBytesError as error:
            self.wrong.append(str(error))
            return None

    # -- requests that are recorded --------------------------------------------------------------

    def get(self, client: dws.Client, names: list[str], rng: random.Random, who: str) -> None:
        """Look at all of these names at one moment."""
        began = self.now()
        found: dict[str, bytes] = {}

        def read() -> None:
            nonlocal found
            found = client.get_many(names)

        error = self._timed(READ, read, NotFound)
        if error is not None and not isinstance(error, NotFound):
            return
        # One of several that is not there says nothing of the others.
        if error is not None and len(names) > 1:
            return
        reads = {name: self._seen(name, found[name]) for name in names} if found else {names[0]: 0}
        known = {name: number for name, number in reads.items() if number is not None}
        self._record(Operation("get", who, began, self.now(), OK, known))

    def _put(self, client: dws.Client, names: list[str], rng: random.Random, who: str) -> None:
        some = rng.sample(names, rng.randint(1, len(names)))
        self._write("put", client, some, rng, who, absent=False)

    def _put_if_absent(self, client: dws.Client, names: list[str], rng: random.Random, who: str) -> None:
        self._write("put", client, names, rng, who, absent=True)

    def _remove(self, client: dws.Client, names: list[str], rng: random.Random, who: str) -> None:
        self._write("remove", client, names, rng, who, absent=False)

    def _write(
        self, kind: str, client: dws.Client, names: list[str], rng: random.Random, who: str, *, absent: bool
    ) -> None:
        number = self._next_number() if kind == "put" else 0
        pages = {name: body(name, number, rng.choice(_SIZES)) for name in names} if number else {}
        conditions = dict.fromkeys(names, ABSENT) if absent else {}
        began = self.now()

        def write() -> None:
            if kind == "put":
                client.put(pages, conditions=conditions, timeout_s=self.shape.timeout_s)
            else:
                client.remove(names, timeout_s=self.shape.timeout_s)

        error = self._timed(WRITE, write, Conflict)
        writes = dict.fromkeys(names, number)
        ended = self.now()
        if error is None:
            operation = Operation(kind, who, began, ended, OK, dict(conditions), writes)  # type: ignore[arg-type]
        elif isinstance(error, Conflict):
            operation = Operation(kind, who, began, ended, FAILED, {}, writes, conditions)  # type: ignore[arg-type]
        elif isinstance(error, OutcomeUnknown) or not self.shape.shared:
            # After a rebuild what failed may stand in place of what was visible.
            operation = Operation(kind, who, began, None, UNKNOWN, {}, writes)  # type: ignore[arg-type]
        else:
            operation = Operation(kind, who, began, ended, FAILED, {}, writes)  # type: ignore[arg-type]
        self._record(operation)

    def _record(self, operation: Operation) -> None:
        with self._guard:
            self.history.append(operation)

    def _timed(
        self, kind: str, call: Callable[[], None], expected: type[DwsError] | None = None
    ) -> DwsError | None:
        began = self.now()
        error: DwsError | None = None
        try:
            call()
        except DwsError as failed:
            error = failed
        text = "" if error is None or (expected and isinstance(error, expected)) else repr(error)
        with self._guard:
            self.requests += 1
            self.answered += not text
            self.tally.add(kind, self.now() - began, text)
        if text:
            self._stop.wait(_AFTER_FAILURE_S)
        return error

    def _next_number(self) -> int:
        with self._guard:
            self._number += 1
            return self._number

    # -- what came of it ---------------------------------------------------------------------------

    def mark(self) -> Tally:
        """The tally since the last mark; from now on there is a new one."""
        with self._guard:
            ended, self.tally = self.tally, Tally()
        return ended
