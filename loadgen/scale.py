"""`dws-loadgen scale`: clusters of more and more web servers on this machine, each under the same load.

What lives here: starting each cluster, storing the same pages, running the same plan. What must not: how a
cluster is run (dws.nodes.supervisor), what is concluded (scaling).
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import dws
from dws.config import Config
from dws.limits import BATCH_MAX_BYTES, BATCH_MAX_PAGES
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import Supervisor
from loadgen import runner
from loadgen.plan import Plan, PlanError, file_of, filling, in_order_of_popularity, made_up
from loadgen.report import Report
from loadgen.scaling import Scaling, Step, compared, step_of

WEBSERVERS_MAX: Final = 64
#: Of a cluster that has so many servers.
COPIES: Final = 2
_BATCH_PAGES: Final = 50

Say = Callable[[str], None]


def parse_webservers(text: str) -> list[int]:
    """`1,2,4,8`: rising numbers of web servers."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise PlanError(f"web servers {text!r} are not of the form 1,2,4,8") from None
    if found != sorted(set(found)) or not 1 <= found[0] <= found[-1] <= WEBSERVERS_MAX:
        raise PlanError(f"web servers {text!r}: wanted rising numbers from 1 to {WEBSERVERS_MAX}")
    return found


def scale(webservers: Sequence[int], plan: Plan, pages: int, page_bytes: int, say: Say) -> Scaling:
    """Run the plan on a cluster of each size. Ctrl-C ends it with those that were measured."""
    check_pages(plan, pages, page_bytes)
    steps: list[Step] = []
    started = datetime.now(UTC).isoformat(timespec="seconds")
    interrupted = False
    for count in webservers:
        copies = min(COPIES, count)
        say(f"{count} web server{'s' if count > 1 else ''}, {copies} cop{'ies' if copies > 1 else 'y'} …")
        try:
            report = _one(count, copies, plan, pages, page_bytes)
        except KeyboardInterrupt:
            interrupted = True
            break
        interrupted = report.interrupted
        if interrupted:
            break
        steps = compared([*steps, step_of(count, copies, report)])
        say(f"  {steps[-1].pages_per_s:,.0f} pages a second, {steps[-1].speed_up:.2f} times the first")
    made_by = f"dws-loadgen {dws.__version__}"
    return Scaling(started, made_by, plan, pages, page_bytes, cores(), steps, interrupted=interrupted)


def check_pages(plan: Plan, pages: int, page_bytes: int) -> None:
    """PlanError where the plan cannot be made with so many pages of this size."""
    if file_of(plan.choice):
        raise PlanError(f"choice {plan.choice!r}: the pages are made up, so only uniform and zipf:S can be")
    if pages < plan.files:
        raise PlanError(f"{plan.files} pages a request, but there would be {pages:,} to choose from")
    if not 0 <= page_bytes <= BATCH_MAX_BYTES // _BATCH_PAGES:
        raise PlanError(f"pages of {page_bytes:,} bytes: at most {BATCH_MAX_BYTES // _BATCH_PAGES:,}")


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one(webservers: int, copies: int, plan: Plan, pages: int, page_bytes: int) -> Report:
    directory = Path(tempfile.mkdtemp(prefix="dws-scale-"))
    try:
        options = ClusterOptions(
            data=directory / "cluster", webservers=webservers, port=0, config=Config(copies=copies)
        )
        with Supervisor(options) as cluster:
            names = _store(cluster.endpoint, plan, pages, page_bytes)
            servers = [node.name for node in cluster.nodes if node.name.startswith("web-")]
            return runner.run(plan, runner.Site(servers, names), cluster.endpoint)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _store(endpoint: str, plan: Plan, pages: int, page_bytes: int) -> list[str]:
    """Made-up pages, the same for each cluster; the most popular first."""
    base = filling(Plan(seed=plan.seed, size_bytes=page_bytes))
    names = [f"/page/{number}" for number in range(pages)]
    step = min(_BATCH_PAGES, BATCH_MAX_PAGES)
    with dws.connect(endpoint) as client:
        for first in range(0, pages, step):
            batch = range(first, min(first + step, pages))
            client.put({names[number]: made_up(number, page_bytes, base) for number in batch})
    return in_order_of_popularity(names, plan.seed)
