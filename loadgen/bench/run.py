"""A run of the bench: what every stage is given, and what they add to.

What lives here: sizes, the directory, the result under way, and looking who else uses the machine while
something is measured. What must not: the stages (stages, growth), what it comes to (figures).
"""

import os
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
from msgspec import Struct

from dws.limits import GIB, KIB, MIB
from loadgen.bench.driving import DriverFailed, Measured, drive
from loadgen.bench.figures import BUSY_SHARE, Machine, Result, Series
from loadgen.bench.jobs import Job
from loadgen.bench.quiet import Looks
from loadgen.bench.text import figure_text

_QUIET_S: Final = 1.0
_NOISE_MIB: Final = 64
#: Who is named when the machine is busy.
_TOLD: Final = 3

Say = Callable[[str], None]


class Sizes(Struct, frozen=True, kw_only=True):
    """How much of everything."""

    pages: int = 10_000
    page_bytes: int = 4 * KIB
    large_bytes: int = GIB
    http_large_bytes: int = 256 * MIB
    weed_files: int = 1_500
    """A second, in the first round; then what it did in the round before."""
    grow_few: int = 1_000
    grow_many: int = 1_000_000
    overwritten: int = 20_000


SMALL: Final = Sizes(
    pages=1_000,
    large_bytes=32 * MIB,
    http_large_bytes=16 * MIB,
    weed_files=500,
    grow_many=20_000,
    overwritten=1_000,
)


class Run:
    def __init__(self, result: Result, keys: Sequence[str], directory: Path, sizes: Sizes, say: Say) -> None:
        self.result = result
        self.keys = set(keys)
        self.directory = directory
        self.sizes = sizes
        self.say = say
        self.seconds = result.seconds
        self.warm_s = min(0.5, result.seconds / 4)
        self.round = 0
        self._series = {one.key: one for one in result.series}
        self._looks = Looks()
        self._others_s = self._measured_s = 0.0
        self._busiest: dict[str, float] = {}

    def wants(self, *keys: str) -> bool:
        return not self.keys.isdisjoint(keys)

    # -- measuring -----------------------------------------------------------------------------

    def drive(self, key: str, jobs: Sequence[Job], nodes: Sequence[tuple[str, int]] = ()) -> Measured:
        """Measure one key, unless it is not wanted, and note its rate and CPU."""
        if key not in self.keys:
            return Measured(0.0, 0)
        with self.watched():
            try:
                measured = drive(jobs, nodes)
            except DriverFailed as error:
                measured = Measured(0.0, 0, bad=1, problem=str(error))
        self.note(key, measured.rate, measured)
        return measured

    def note(self, key: str, value: float, measured: Measured | None = None) -> None:
        """One round's figure of a key."""
        series = self._series[key]
        series.rates.append(value)
        self.say(f"  {key:<16} {figure_text(value, series.unit)}")
        if measured is not None:
            series.bad += measured.bad
            series.problem = series.problem or measured.problem
            for name, used_s in measured.cpu.items():
                series.cpu.setdefault(name, []).append(used_s)

    def lacks(self, keys: Sequence[str], why: str) -> None:
        """These cannot be measured here. Named once in the result."""
        found: list[Series] = [self._series[key] for key in keys if key in self._series]
        if found and why not in self.result.missing:
            self.result.missing.append(why)
            self.say(f"  missing: {why}")
        for one in found:
            one.problem = one.problem or f"missing: {why}"

    # -- who else is here --------------------------------------------------------------------

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What others use meanwhile counts against this round."""
        began_s = time.monotonic()
        self._looks.begin()
        try:
            yield
        finally:
            elapsed_s, found = time.monotonic() - began_s, self._looks.end()
            self._measured_s += elapsed_s
            self._others_s += found.share * elapsed_s
            for name, cores in found.busiest:
                self._busiest[name] = self._busiest.get(name, 0.0) + cores * elapsed_s

    def begin_round(self, number: int) -> None:
        """Look for a moment at the machine at rest."""
        self.round = number
        self._looks.begin()
        time.sleep(_QUIET_S)
        found = self._looks.end()
        self.result.machine.foreign.append(found.share)
        self._remember(dict(found.busiest), found.share)
        self._others_s = self._measured_s = 0.0
        self._busiest.clear()

    def end_round(self) -> None:
        share = self._others_s / self._measured_s if self._measured_s else 0.0
        self.result.machine.foreign_during.append(share)
        self._remember(self._busiest, share)
        self.result.rounds = self.round

    def _remember(self, busiest: dict[str, float], share: float) -> None:
        machine = self.result.machine
        if share > BUSY_SHARE:
            self.say(f"  (others have {share:.0%} of the machine)")
            names = sorted(busiest, key=lambda name: -busiest[name])[:_TOLD]
            machine.busiest = list(dict.fromkeys([*machine.busiest, *names]))[:_TOLD]


def make_machine(directory: Path) -> Machine:
    return Machine(
        cores=os.cpu_count() or 1,
        processor=_processor(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        load_before=os.getloadavg()[0],
        storage=_storage(directory),
    )


def write_noise(path: Path, size_bytes: int) -> None:
    """A file that nothing compresses."""
    drawn = random.Random(1)
    blocks = [drawn.randbytes(MIB) for _ in range(min(_NOISE_MIB, size_bytes // MIB))]
    with path.open("wb") as file:
        for number in range(size_bytes // MIB):
            file.write(blocks[number % len(blocks)])


def _storage(directory: Path) -> str:
    """The kind of file system: on tmpfs an fsync costs nothing, and who reads the figures must know."""
    place = directory.resolve()
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next(
        (mounts[each] for each in (place, *place.parents) if each in mounts), "an unknown file system"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
