"""Self-doubt: what set the pace of a run, the cluster or something else, and whether it measured a capacity.

What lives here: the bounds beyond which a run says more about its generator than about the cluster, and the
words for it. What must not: the figures themselves (analysis).
"""

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from loadgen import histogram
from loadgen.histogram import RATIO, SHORTEST_S
from loadgen.measured import ClientResult

if TYPE_CHECKING:
    from loadgen.report import Report

#: Of a core, for one client process. Python runs one thread at a time: at 1 there is nothing left.
BUSY_SHARE: Final = 0.9
#: A send is late from this on, in seconds; and so much of all sends may be.
LATE_S: Final = 0.005
LATE_SHARE: Final = 0.01
#: Of the cores of a machine that carries the generator and the cluster, both together.
FULL_SHARE: Final = 0.9
#: Of all threads, on average waiting for an answer.
WAITING_SHARE: Final = 0.9

#: In seconds: of less, start and end are too great a part.
SHORT_S: Final = 1.0
#: Of a core: a client process that used less was late for another reason than its own work.
IDLE_SHARE: Final = 0.5

By = Literal["cluster", "generator", "threads", "machine", "rate", "short", "nodes", "nothing"]


class Limit(Struct):
    """What the run was limited `by`; `because`, in words. A capacity is what the cluster limited."""

    by: By
    because: list[str]

    @property
    def is_capacity(self) -> bool:
        return self.by == "cluster"


def limit_of(report: "Report", nodes_cpu_share: float) -> Limit:
    """`nodes_cpu_share`: of all nodes that ran on the generator's own machine, in cores."""
    if not any(tally.requests for client in report.clients for tally in client.tallies.values()):
        return Limit("nothing", ["No request succeeded."])
    doubts = [*_busy_processes(report), *_full_machine(report, nodes_cpu_share), *_late_sends(report)]
    doubts += [(one.by, text) for one in report.doubts for text in one.because]
    doubts += [*_short(report), *_deaths(report)]
    if doubts:
        return Limit(doubts[0][0], [text for _, text in doubts])
    if report.plan.rate is not None:
        text = f"The rate was given: this is how the cluster does at {report.plan.rate:g} requests a second."
        return Limit("rate", [text])
    busiest = max(map(cpu_share, report.clients))
    unseen = [] if report.nodes else ["What its nodes used was not looked at."]
    threads = report.plan.threads * len(report.clients)
    return Limit(
        "cluster",
        [f"The generator had room to spare: its busiest process used {busiest:.0%} of a core.",
         f"Closed load: this is what the cluster does for {threads:,} threads, each waiting for its answer.",
         *unseen],
    )  # fmt: skip


def cpu_share(client: ClientResult) -> float:
    return client.cpu_s / client.elapsed_s if client.elapsed_s > 0 else 0.0


def _busy_processes(report: "Report") -> list[tuple[By, str]]:
    shares = [cpu_share(client) for client in report.clients]
    busy = [share for share in shares if share > BUSY_SHARE]
    if not busy:
        return []
    said = f"{len(busy)} of {len(shares)} client processes used {max(busy):.2f} of a core"
    return [("generator", f"{said}, and Python gives one no more: use more (--clients), on more cores.")]


def _late_sends(report: "Report") -> list[tuple[By, str]]:
    plain = [client.late for client in report.clients if client.late]
    sent, late = sum(one.count for one in plain), sum(map(_late, plain))
    if not late > LATE_SHARE * sent:
        return []
    said = f"{late / sent:.1%} of requests were sent over {LATE_S * 1000:.0f} ms after their intended start"
    if _waiting_threads(report) > WAITING_SHARE:
        why = "either the rate is more than the cluster does, or more threads (--threads) would make it"
        return [("threads", f"{said}, since nearly all threads were waiting for answers: {why}.")]
    if max(map(cpu_share, report.clients)) < IDLE_SHARE:
        why = "at times all its threads (--threads) were waiting, or the machine had no time for it"
        return [("threads", f"{said}, though the generator had little to do: {why}.")]
    return [("generator", f"{said}: the generator did not keep the rate.")]


def _short(report: "Report") -> list[tuple[By, str]]:
    elapsed_s = max(client.elapsed_s for client in report.clients)
    return [("short", f"Only {elapsed_s:.2f} s were measured.")] if elapsed_s < SHORT_S else []


def _deaths(report: "Report") -> list[tuple[By, str]]:
    died = [node.name for node in report.nodes if node.died_at_s is not None]
    return [("nodes", f"Part of the time {', '.join(died)} did not run.")] if died else []


def _late(plain: histogram.Plain) -> int:
    return sum(count for index, count in plain.buckets if SHORTEST_S * RATIO**index >= LATE_S)


def _waiting_threads(report: "Report") -> float:
    """Of all threads, how many were on average waiting for an answer, by Little's law; 0 to 1."""
    waited_s = sum(tally.latency.total_s for client in report.clients for tally in client.tallies.values())
    waited_s -= sum(client.late.total_s for client in report.clients if client.late)
    had_s = sum(client.elapsed_s for client in report.clients) * report.plan.threads
    return waited_s / had_s if had_s > 0 else 0.0


def _full_machine(report: "Report", nodes_cpu_share: float) -> list[tuple[By, str]]:
    cores = report.machine.cores if report.machine else 0
    mine = sum(map(cpu_share, report.clients))
    if cores and nodes_cpu_share and mine + nodes_cpu_share >= FULL_SHARE * cores:
        used = f"the generator used {mine:.2f} of them, the cluster {nodes_cpu_share:.2f}"
        return [("machine", f"Generator and cluster shared {_cores(cores)}, and all were busy: {used}.")]
    if cores and report.machine_cpu_share >= FULL_SHARE:
        rest = "the cluster or something else the rest"
        if nodes_cpu_share:
            rest = f"the cluster {nodes_cpu_share:.2f}, something else the rest"
        said = f"The machine was busy to {report.machine_cpu_share:.0%}: of its {_cores(cores)}"
        return [("machine", f"{said} the generator used {mine:.2f}, {rest}.")]
    return []


def _cores(cores: int) -> str:
    return f"{cores} core{'s' if cores != 1 else ''}"
