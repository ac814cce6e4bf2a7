"""How loaded each server is, for readers and for uploads.

What lives here: the figures that beats and probes bring, and the two loads made
of them. What must not: who is chosen (policy.py), who is alive (membership.py).

  download load = rtt + (waiting + assigned but not yet reported as served)
                        × service time / workers                       [seconds]
  upload load   = stored / mean + visits / mean + rtt / mean           [no unit]

The second term of the first keeps readers from herding to whoever beat last.
"""

from math import inf

from dws.config import Config
from dws.messages import Beat

#: Weight of a new response time in its moving average.
_RTT_NEW = 0.3
#: What a server is taken to need for a page before it has said so.
_SERVICE_S = 50e-6
_RTT_S = 500e-6
#: A service time this many times the mean, or its reciprocal, is a slower or faster machine.
_SERVICE_FAR = 3.0
#: For placing uploads, servers nearer than this are equally near: what differs below it is the
#: moment's noise, and would outweigh the bytes stored.
_RTT_NEAR_S = 10e-3


class ServerLoad:
    __slots__ = (
        "assigned_before", "beat", "per_page_s", "reserved_before", "reserved_bytes", "rtt_s", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.rtt_s = _RTT_S
        self.per_page_s = _SERVICE_S
        self.waiting = 0
        self.assigned_before = 0.0  # pages assigned before the last beat, not shown as served by it
        self.reserved_bytes = 0  # placed here since the last beat
        self.reserved_before = 0  # placed here before it, and not in its bytes_stored
        self.beat: Beat | None = None


class Loads:
    """Loads of all servers, by number.

    `download` is the list that lookups index: the load in seconds, inf for a
    server that must not be chosen.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.download: list[float] = []
        self.per_page_s: list[float] = []
        self.servers: dict[int, ServerLoad] = {}
        self._open: set[int] = set()
        self._service_s: dict[int, float] = {}
        self._service_sum_s = 0.0

    def add(self, number: int) -> None:
        if number in self.servers:
            return
        while len(self.download) <= number:
            self.download.append(inf)
            self.per_page_s.append(_SERVICE_S)
        self.servers[number] = ServerLoad()

    def open(self, number: int, may_be_chosen: bool) -> None:
        """Whether lookups may choose the server at all."""
        (self._open.add if may_be_chosen else self._open.discard)(number)
        self._refresh(number)

    def assign(self, number: int, pages: int = 1) -> None:
        """A lookup was sent there. The data plane does the same in place (Balancer.locate)."""
        self.download[number] += pages * self.per_page_s[number]

    def beat(self, number: int, beat: Beat) -> None:
        """New figures. An assignment counts until the served count passes it or two beats went by."""
        load = self.servers[number]
        assigned = self._assigned(number)
        served = beat.served - load.beat.served if load.beat else 0
        since_last = max(0.0, assigned - load.assigned_before)
        load.assigned_before = max(0.0, min(assigned - max(0, served), since_last))
        grown = max(0, beat.bytes_stored - load.beat.bytes_stored) if load.beat else 0
        # As with assignments: what was placed before the beat before last is not waited for.
        placed = load.reserved_bytes + load.reserved_before
        load.reserved_before = min(load.reserved_bytes, max(0, placed - grown))
        load.reserved_bytes = 0
        load.waiting = beat.waiting
        load.beat = beat
        load.per_page_s = self._service(number, (beat.service_s or _SERVICE_S) / beat.workers)
        self.per_page_s[number] = load.per_page_s
        self._refresh(number)

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
        load = self.servers[number]
        change_s = _RTT_NEW * (rtt_s - load.rtt_s)
        load.rtt_s += change_s
        self.download[number] += change_s

    def restarted(self, number: int) -> None:
        """The server counts from zero again."""
        load = self.servers[number]
        load.beat = None
        load.assigned_before = 0.0
        self._refresh(number)

    def reserve(self, number: int, size_bytes: int) -> None:
        """An upload was placed there and is in no beat yet."""
        self.servers[number].reserved_bytes += size_bytes

    def assigned_pages(self, number: int) -> float:
        """Pages sent there that no beat has shown as served."""
        return self._assigned(number) if number in self._open else 0.0

    def _assigned(self, number: int) -> float:
        load = self.servers[number]
        if self.download[number] == inf:
            return load.assigned_before
        base = load.rtt_s + load.waiting * load.per_page_s
        return max(0.0, (self.download[number] - base) / load.per_page_s)

    def _refresh(self, number: int) -> None:
        load = self.servers[number]
        if number not in self._open:
            self.download[number] = inf
            return
        pages = load.waiting + load.assigned_before
        self.download[number] = load.rtt_s + pages * load.per_page_s

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
