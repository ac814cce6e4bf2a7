"""Who else uses this machine's processors while something is measured.

What lives here: looking at all processes, and whose they are. What must not: what follows from it (figures).

Ours are this process and its descendants. Kernel threads are nobody's: most of what they do is writing what
we wrote. Time that the hypervisor gave to other guests counts as other processes'.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import psutil
from msgspec import Struct

_KERNEL: Final = 2
_TOLD: Final = 3


class _Seen(Struct):
    parent: int
    name: str
    cpu_s: float


class Others(Struct):
    """CPU that others had: as a share of the machine, and who had most of it, in cores."""

    share: float
    busiest: list[tuple[str, float]] = []


class Looks:
    """Looks at a machine again and again. `ended`: what others had since `begun`."""

    def __init__(self) -> None:
        self._own = os.getpid()
        self._cores = os.cpu_count() or 1
        self._before: dict[int, _Seen] = {}
        self._stolen_s = self._began_s = 0.0

    def begin(self) -> None:
        # A look takes its time: from the beginning of one to that of the next is as long as what they see.
        self._began_s, self._stolen_s, self._before = time.monotonic(), _stolen(), _processes()

    def end(self) -> Others:
        elapsed_s = max(time.monotonic() - self._began_s, 1e-3)
        found = others(self._before, _processes(), self._own)
        found["other guests of this host"] = max(0.0, _stolen() - self._stolen_s)
        most = sorted(found.items(), key=lambda one: -one[1])[:_TOLD]
        busiest = [(name, used_s / elapsed_s) for name, used_s in most if used_s > 0]
        # Both looks are of a moment that lasts: what comes to more than the whole is the whole.
        return Others(min(1.0, sum(found.values()) / elapsed_s / self._cores), busiest)


def others(before: dict[int, _Seen], after: dict[int, _Seen], own: int) -> dict[str, float]:
    """CPU seconds by name, of processes that are neither ours nor the kernel's."""
    every = {**before, **after}
    ours = descendants(every, own) | descendants(every, _KERNEL)
    used: defaultdict[int, float] = defaultdict(float)
    for pid in every.keys() - ours:
        # What an ended one had before counts against whoever waited for it, and so got all its time.
        used[_living(pid, every, after)] += _cpu_s(after, pid) - _cpu_s(before, pid)
    return {
        f"{after[pid].name} ({pid})": used_s for pid, used_s in used.items() if used_s > 0 and pid in after
    }


def _cpu_s(seen: dict[int, _Seen], pid: int) -> float:
    return seen[pid].cpu_s if pid in seen else 0.0


def _living(pid: int, every: dict[int, _Seen], after: dict[int, _Seen]) -> int:
    """This process, or its nearest ancestor that has not ended; 0: there is none."""
    while pid not in after and pid in every:
        pid = every[pid].parent
    return pid


def descendants(seen: dict[int, _Seen], root: int) -> set[int]:
    """`root` and all below it."""
    children: dict[int, list[int]] = {}
    for pid, one in seen.items():
        children.setdefault(one.parent, []).append(pid)
    found, waiting = set(), [root]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def _processes() -> dict[int, _Seen]:
    """With what their ended children had, so that no process is too short to be seen."""
    found = {}
    for process in psutil.process_iter(["ppid", "name", "cpu_times"]):
        info = process.info
        if info["cpu_times"] is not None:
            found[process.pid] = _Seen(info["ppid"] or 0, info["name"] or "?", sum(info["cpu_times"][:4]))
    return found


def _stolen() -> float:
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def cpu_of_ended() -> float:
    """CPU seconds of all processes that this one has started and waited for."""
    times = os.times()
    return times.children_user + times.children_system


def cpu_of(pids: Iterable[tuple[str, int]]) -> dict[str, float]:
    """CPU seconds of these processes and of what they have started since, by name, which several may have."""
    found: dict[str, float] = {}
    ended = set()
    for name, pid in pids:
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            found[name] = found.get(name, 0.0) + sum(sum(one.cpu_times()[:2]) for one in family)
        except psutil.Error:
            ended.add(name)  # its figure is missing then, not wrong
    return {name: used_s for name, used_s in found.items() if name not in ended}
