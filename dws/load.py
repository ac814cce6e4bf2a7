"""How loaded each server is, for readers and for uploads.

What lives here: the figures that beats and probes bring, and the two loads made
of them. What must not: who is chosen (policy.py), who is alive (membership.py).

  download load = rtt + (waiting + assigned but not yet served)
                        × service time / workers                       [seconds]
  upload load   = stored / mean + visits / mean + rtt / mean           [no unit]

What is assigned keeps readers from herding to whoever beat last. It is taken to be
served in the time that it takes: what is kept of a server is when its work ends.
"""

from math import inf

from dws.config import Config
from dws.messages import Beat

#: More than any server stores, has free, or has counted: 2⁶⁰.
_FIGURE_MAX = 1 << 60
#: Figures of a beat that never fall within one incarnation, and others that are bounded.
_RISING = ("number", "served", "failed", "bytes_sent", "damaged")
_BOUNDED = ("waiting", "bytes_stored", "bytes_free", "pages", "visits", "visits_last")
#: Weight of a new response time in its moving average.
_RTT_NEW = 0.3
#: What a server is taken to need for a page before it has said so.
_SERVICE_S = 50e-6
_RTT_S = 500e-6
#: A service time this many times the mean, or its reciprocal, is a slower or faster machine.
_SERVICE_FAR = 3.0
#: Servers nearer than this are equally near: what differs below it is the moment's noise, and would
#: outweigh a hundred pages that wait, or the bytes stored.
_RTT_NEAR_S = 10e-3


class ServerLoad:
    __slots__ = ("beat", "measured", "per_page_s", "reserved_before", "reserved_bytes", "rtt_s", "waiting")

    def __init__(self) -> None:
        self.rtt_s = _RTT_S
        self.measured = False  # whether a probe was answered since the server could last not be chosen
        self.per_page_s = _SERVICE_S
        self.waiting = 0
        self.reserved_bytes = 0  # placed here since the last beat
        self.reserved_before = 0  # placed here before it, and not in its bytes_stored
        self.beat: Beat | None = None


class Loads:
    """Loads of all servers, by number.

    `download` is the list that lookups index and policies compare: the moment at
    which a server's work ends, and beyond that far_s, its rtt beyond 10 ms; inf for a
    server that must not be chosen. So the least of it is the least download load, but
    that servers near enough are equally near, and of those that are idle it is the
    one that has been idle longest.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.download: list[float] = []
        self.far_s: list[float] = []
        self.per_page_s: list[float] = []
        self.servers: dict[int, ServerLoad] = {}
        self._service_s: dict[int, float] = {}
        self._service_sum_s = 0.0

    def add(self, number: int) -> None:
        if number in self.servers:
            return
        while len(self.download) <= number:
            self.download.append(inf)
            self.far_s.append(0.0)
            self.per_page_s.append(_SERVICE_S)
        self.servers[number] = ServerLoad()

    def open(self, number: int, may_be_chosen: bool, now: float) -> None:
        """Whether lookups may choose the server at all."""
        if not may_be_chosen:
            self.download[number] = inf
            self.servers[number].measured = False
        elif self.download[number] == inf:
            self._restart_clock(number, now)

    def assign(self, number: int, pages: int, now: float) -> None:
        """A lookup was sent there. The data plane does the same in place (Lookup.locate)."""
        idle = now + self.far_s[number]
        self.download[number] = max(self.download[number], idle) + pages * self.per_page_s[number]

    def settle(self, now: float) -> None:
        """Called every tenth of a second: a server far away is not preferred for having been idle longer."""
        for number, far_s in enumerate(self.far_s):
            if far_s:
                self.download[number] = max(self.download[number], now + far_s)

    def download_load_s(self, number: int, now: float) -> float:
        """The formula; inf for a server that must not be chosen."""
        return self.servers[number].rtt_s + self._left_s(number, now)

    def _left_s(self, number: int, now: float) -> float:
        return max(0.0, self.download[number] - now - self.far_s[number])

    def fault_of(self, number: int, beat: Beat) -> str:
        """Why a beat's figures cannot be true; empty if they may be. Such a beat is a sign of life alone."""
        last = self.servers[number].beat
        for name in (*_RISING, *_BOUNDED):
            if getattr(beat, name) > _FIGURE_MAX:
                return f"{name} of {getattr(beat, name):,}"
        for name in _RISING if last else ():
            if getattr(beat, name) < getattr(last, name):
                return f"{name} fell from {getattr(last, name):,} to {getattr(beat, name):,}"
        return ""

    def beat(self, number: int, beat: Beat, now: float) -> None:
        """New figures. What was assigned waits there by now, or was served."""
        load = self.servers[number]
        grown = max(0, beat.bytes_stored - load.beat.bytes_stored) if load.beat else 0
        # What was placed before the beat before last is not waited for.
        placed = load.reserved_bytes + load.reserved_before
        load.reserved_before = min(load.reserved_bytes, max(0, placed - grown))
        load.reserved_bytes = 0
        load.waiting = beat.waiting
        load.beat = beat
        load.per_page_s = self._service(number, (beat.service_s or _SERVICE_S) / beat.workers)
        self.per_page_s[number] = load.per_page_s
        ends = self.download[number]
        if ends != inf:
            self._restart_clock(number, now)
            if not load.waiting:
                self.download[number] = min(ends, self.download[number])

    def _restart_clock(self, number: int, now: float) -> None:
        load = self.servers[number]
        self.download[number] = now + self.far_s[number] + load.waiting * load.per_page_s

    def _service(self, number: int, own_s: float) -> float:
        """A server's service time a page: the cluster's mean, unless its own is far from that.

        Readers are shared out as one over the service time. Among equal machines
        differences of it are noise, and feed themselves: a server that is asked for
        more pages at a time looks faster, and is asked for still more.
        """
        self._service_sum_s += own_s - self._service_s.get(number, 0.0)
        self._service_s[number] = own_s
        mean_s = self._service_sum_s / len(self._service_s)
        return mean_s if mean_s / _SERVICE_FAR < own_s < mean_s * _SERVICE_FAR else own_s

    def probed(self, number: int, rtt_s: float) -> None:
        """A probe was answered. The first answer of a server that comes, or comes back, counts alone: what
        its last probes told before it went would keep readers away from it for a dozen more."""
        load = self.servers[number]
        self._near(load, number, _RTT_NEW if load.measured else 1.0, rtt_s)
        load.measured = True

    def not_answered(self, number: int, waited_s: float) -> None:
        """A probe was not, in that time."""
        self._near(self.servers[number], number, _RTT_NEW, waited_s)

    def _near(self, load: ServerLoad, number: int, weight: float, rtt_s: float) -> None:
        load.rtt_s += weight * (rtt_s - load.rtt_s)
        far_s = max(0.0, load.rtt_s - _RTT_NEAR_S)
        self.download[number] += far_s - self.far_s[number]
        self.far_s[number] = far_s

    def restarted(self, number: int, now: float) -> None:
        """The server counts from zero again."""
        load = self.servers[number]
        load.beat = None
        load.waiting = 0
        if self.download[number] != inf:
            self._restart_clock(number, now)

    def reserve(self, number: int, size_bytes: int) -> None:
        """An upload was placed there and is in no beat yet."""
        self.servers[number].reserved_bytes += size_bytes

    def pages_left(self, number: int, now: float) -> tuple[float, float]:
        """Pages taken to be unserved: (of those that waited at the last beat, of those assigned since)."""
        reported = float(self.servers[number].waiting)
        left = self._left_s(number, now) / self.per_page_s[number]
        if left == inf:
            return reported, 0.0
        waiting = min(left, reported)
        # In tenths: more would be the noise of moments subtracted from each other.
        return round(waiting, 1), round(left - waiting, 1)

    # -- uploads -----------------------------------------------------------------------

    def bytes_free(self, number: int) -> int:
        """What an upload may still take, after the reserve and what is placed already."""
        load = self.servers[number]
        if load.beat is None:
            return 0
        placed = load.reserved_bytes + load.reserved_before
        reserve = int(self._config.free_reserve * (load.beat.bytes_free + load.beat.bytes_stored))
        return load.beat.bytes_free - placed - reserve

    def upload(self, numbers: list[int]) -> dict[int, float]:
        """The upload load of each of these servers, relative to their means."""
        config = self._config
        terms = (
            (config.weight_stored, {n: self._stored(n) for n in numbers}),
            (config.weight_visits, {n: self._visits(n) for n in numbers}),
            (config.weight_rtt, {n: max(_RTT_NEAR_S, self.servers[n].rtt_s) for n in numbers}),
        )
        loads = dict.fromkeys(numbers, 0.0)
        for weight, values in terms:
            mean = sum(values.values()) / len(values) if values else 0.0
            if mean > 0:
                for number, value in values.items():
                    loads[number] += weight * value / mean
        return loads

    def _stored(self, number: int) -> float:
        load = self.servers[number]
        stored = load.beat.bytes_stored if load.beat else 0
        return float(stored + load.reserved_bytes + load.reserved_before)

    def _visits(self, number: int) -> float:
        beat = self.servers[number].beat
        if beat is None:
            return 0.0
        return beat.visits + beat.visits_last * min(1.0, beat.period_left_s / self._config.period_s)
