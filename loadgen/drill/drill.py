"""A whole drill: a cluster of its own, load, rounds of a fault, and the verdict.

What lives here: the order of these, and what ends a drill. What must not: what a fault is (faults.py).
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from dws.config import Config
from dws.errors import DwsError
from dws.limits import MIB
from loadgen.drill.cluster import DrillCluster, settings_text
from loadgen.drill.faults import FAULTS, Fault
from loadgen.drill.readback import PROBLEMS_KEPT, read_back
from loadgen.drill.report import DrillReport, round_text
from loadgen.drill.stage import WITHIN_S, Stage
from loadgen.drill.watch import NotObserved, Watch
from loadgen.drill.workload import Shape, Workload

_PLAIN_COPY_BYTES: Final = 64 * MIB
_PLAIN_STEP_BYTES: Final = 2 * MIB


class DrillOptions(Struct, frozen=True, kw_only=True):
    """seconds: how long a fault lasts that has no end by itself. keep: where the nodes' directories go if the
    drill fails; None: nowhere, but for their logs."""

    fault: str
    rounds: int = 1
    seed: int = 1
    seconds: float = 60.0
    webservers: int = 4
    shape: Shape = Shape()
    config: Config = Config()
    log_level: str = "info"
    keep: Path | None = None


def run(options: DrillOptions, command: list[str], say: Callable[[str], None]) -> DrillReport:
    """Raises DwsError if the drill could not begin; else whatever happens is in the report."""
    fault = FAULTS[options.fault](options.seconds)
    shape = fault.shape(options.shape)
    report = DrillReport(
        options.fault, options.seed, command, options.webservers, shape.pages, shape.page_bytes,
        shape.threads, settings_text(options.config), len(os.sched_getaffinity(0)),
    )  # fmt: skip
    directory = Path(tempfile.mkdtemp(prefix="dws-drill-"))
    try:
        cluster = DrillCluster(
            directory, options.webservers, options.config, proxies=fault.proxies, log_level=options.log_level
        )
        fault.prepare(cluster)
        say(f"{options.fault}: {fault.title}; seed {options.seed}")
        with cluster:
            _play(options, fault, cluster, Workload(cluster.endpoint, shape, options.seed), report, say)
        if report.all_problems:
            _keep(directory, options.keep, say)
    except Exception:
        _keep(directory, options.keep, say)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return report


def _play(
    options: DrillOptions,
    fault: Fault,
    cluster: DrillCluster,
    workload: Workload,
    report: DrillReport,
    say: Callable[[str], None],
) -> None:
    watch = Watch(cluster.endpoint, workload.now, cluster.ended)
    stage = Stage(cluster, workload, watch, random.Random(options.seed), say)
    try:
        stage.await_alive(workload.now())
        shape = workload.shape
        say(
            f"storing {shape.pages:,} pages of {shape.page_bytes:,} bytes, each {options.config.copies} times"
        )
        workload.preload()
        fault.preload(workload, cluster.endpoint)
        report.plain_copy_bytes_s = plain_copy_bytes_s(cluster.directory)
        began = workload.now()
        workload.start()
        try:
            _rounds(options, fault, stage, report)
        finally:
            workload.stop()
        report.requests = workload.requests
        report.requests_s = report.requests / (workload.now() - began)
        say("the load has ended; reading every page back from every holder")
        _settle(stage, report)
        read_back(cluster.endpoint, workload, report, options.config.copies)
        report.problems += [ended] if (ended := cluster.ended()) else []
    except KeyboardInterrupt:
        report.interrupted = True
        report.problems += [each for each in workload.wrong[:PROBLEMS_KEPT] if each not in report.problems]
    finally:
        watch.close()


def _rounds(options: DrillOptions, fault: Fault, stage: Stage, report: DrillReport) -> None:
    for number in range(1, options.rounds + 1):
        try:
            if fault.settled and number > 1:
                stage.await_settled()
            stage.begin(number)
            fault.play(stage)
            stage.await_requests("after the fault")
        except DwsError as error:
            if not stage.round.problems:
                stage.round.problems.append(str(error))
            report.rounds.append(stage.end())
            stage.say(round_text(report.rounds[-1]))
            return
        report.rounds.append(stage.end())
        stage.say(round_text(report.rounds[-1]))
        if stage.workload.wrong or stage.workload.failure:
            return


def _settle(stage: Stage, report: DrillReport) -> None:
    """Nothing is to be copied or dropped any more."""
    try:
        # Where pages are lost already there is no rest to wait for.
        within_s = WITHIN_S if report.passed else 0.0
        stage.await_settled(within_s)
        stage.watch.until(lambda told: not told.garbage, "all garbage dropped", within_s)
    except NotObserved as error:
        report.problems.append(str(error))


def plain_copy_bytes_s(directory: Path) -> float:
    """How fast this disk takes bytes that are copied and fsynced, as much at a time as a repair does."""
    source, target = directory / "plain.from", directory / "plain.to"
    with source.open("wb") as file:
        for _ in range(_PLAIN_COPY_BYTES // _PLAIN_STEP_BYTES):
            file.write(os.urandom(_PLAIN_STEP_BYTES))
    began = time.monotonic()
    with source.open("rb") as file, target.open("wb", buffering=0) as copy:
        while part := file.read(_PLAIN_STEP_BYTES):
            copy.write(part)
            os.fsync(copy.fileno())
    took_s = time.monotonic() - began
    source.unlink()
    target.unlink()
    return _PLAIN_COPY_BYTES / took_s


def _keep(directory: Path, keep: Path | None, say: Callable[[str], None]) -> None:
    """What a failed drill leaves behind."""
    logs = directory / "logs"
    if keep is not None:
        shutil.copytree(directory, keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*-lock", "LOCK"))
        say(f"the nodes' directories are kept in {keep}")
    elif logs.is_dir():
        kept = tempfile.mkdtemp(prefix="dws-drill-logs-")
        shutil.copytree(logs, kept, dirs_exist_ok=True)
        say(f"the nodes' logs are kept in {kept}")
