"""What grows with the cluster: pages, overwrites, servers.

What lives here: filling clusters and measuring before and after. What must not: what is wanted (table).
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

import dws
from dws.config import Config
from dws.errors import DwsError
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import Supervisor
from loadgen.bench.driving import DriverFailed, Measured, drive
from loadgen.bench.jobs import Lookups, Puts
from loadgen.bench.run import Run
from loadgen.bench.stages import WEBSERVERS, cluster, in_a_place, nodes_of, reads, store

_TINY_BYTES: Final = 16
_FILL_PAGES: Final = 1000
_FILL_WINDOW: Final = 4
_OVERWRITES: Final = 10
_READ_WINDOW: Final = 16
_READ_WINDOW_A_SERVER: Final = 8
_READ_CLIENTS: Final = 2
_SOON_S: Final = 2.0
_SYNCED_WITHIN_S: Final = 120.0
_POLL_S: Final = 0.02
_UP: Final = ("alive", "draining")


def measure_growth(run: Run) -> None:
    """Each part on clusters of its own."""
    for keys, part in (
        (("grow-lookup-few", "grow-lookup-many", "grow-memory", "grow-sync"), _many_pages),
        (("grow-put-fresh", "grow-put-old", "grow-space-5", "grow-space-10"), _overwriting),
        (("grow-cpu-one-2", "grow-cpu-one-8", "grow-cpu-2", "grow-cpu-8"), _more_servers),
    ):
        wanted = [key for key in keys if run.wants(key)]
        if not wanted:
            continue
        with in_a_place(run) as place:
            try:
                part(run, place)
            except (DwsError, DriverFailed) as error:
                run.lacks(wanted, str(error))


def _note(run: Run, key: str, value: float, measured: Measured | None = None) -> None:
    if run.wants(key):
        run.note(key, value, measured)


# -- pages ------------------------------------------------------------------------------------


def _many_pages(run: Run, place: Path) -> None:
    few, many = run.sizes.grow_few, run.sizes.grow_many
    run.say(f"growth: {few:,} pages, then {many:,}")
    options = ClusterOptions(data=place / "dws", webservers=WEBSERVERS, port=0, restart_first_s=0.1)
    running = Supervisor(options)
    try:
        running.start()
        _fill(run, running, "/few", few)
        before = _own_memory(running.node("balancer").pid)
        _note(run, "grow-lookup-few", _lookup_cost(run, running, place, [("/few", few)]))
        _fill(run, running, "/many", many - few)
        after = _own_memory(running.node("balancer").pid)
        _note(run, "grow-memory", (after - before) / (many - few))
        names = [("/few", few), ("/many", many - few)]
        _note(run, "grow-lookup-many", _lookup_cost(run, running, place, names))
        if run.wants("grow-sync"):
            copies = 2 * many
            run.note("grow-sync", copies / _restart_balancer(run, running))
    finally:
        running.stop()


def _own_memory(pid: int) -> int:
    """Bytes that a process has for itself. Files that it has mapped are the kernel's cache, which gives them
    back when memory is short: of a balancer that is its catalog's file, as far as it was read or written."""
    memory = psutil.Process(pid).memory_info()
    return int(memory.rss - memory.shared)


def _fill(run: Run, running: Supervisor, prefix: str, pages: int) -> Measured:
    """Tiny pages: it is their number that counts."""
    job = Puts(running.endpoint, prefix, _FILL_PAGES, _FILL_WINDOW, _TINY_BYTES, 0.0, 0.0, count=pages)
    measured = drive([job])
    if measured.bad:
        raise DwsError(f"{prefix} could not be filled: {measured.problem}")
    run.say(f"  {pages:,} pages stored, {measured.rate:,.0f} a second")
    return measured


def _lookup_cost(run: Run, running: Supervisor, place: Path, stored: Iterable[tuple[str, int]]) -> float:
    """The balancer's CPU for a name, in µs."""
    names = place / "names"
    names.write_text("\n".join(f"{prefix}/{n}" for prefix, count in stored for n in range(count)), "utf-8")
    with run.watched():
        job = Lookups(running.endpoint, str(names), 10, 32, run.seconds, run.warm_s, 1)
        measured = drive([job], [("balancer", running.node("balancer").pid)])
    return measured.cpu["balancer"]


def _restart_balancer(run: Run, running: Supervisor) -> float:
    """Seconds from its first answer until it knows every copy on every server again."""
    before = running.node("balancer").pid
    running.kill("balancer")
    until_s = time.monotonic() + _SYNCED_WITHIN_S
    began_s = 0.0
    with run.watched():
        while time.monotonic() < until_s:
            time.sleep(_POLL_S)
            if running.node("balancer").pid in (0, before):
                continue
            with dws.connect(running.endpoint, timeout_s=_SOON_S) as client:
                try:
                    servers = client.status().servers
                except DwsError:
                    continue
            began_s = began_s or time.monotonic()
            if len([one for one in servers if one.state in _UP]) == WEBSERVERS:
                return time.monotonic() - began_s
    raise DwsError(f"the servers were not in sync {_SYNCED_WITHIN_S:g} s after a restart of the balancer")


# -- overwriting -------------------------------------------------------------------------------


def _overwriting(run: Run, place: Path) -> None:
    pages = run.sizes.overwritten
    run.say(f"growth: {pages:,} pages, overwritten {_OVERWRITES} times")
    # Garbage goes while the passes last, as it does in a cluster that lives for longer than these do.
    with cluster(place, WEBSERVERS, Config(garbage_s=_SOON_S)) as running:
        for number in range(_OVERWRITES + 2):
            job = Puts(running.endpoint, "/over", 100, 16, run.sizes.page_bytes, 0.0, 0.0,
                       names_max=pages, count=pages)  # fmt: skip
            with run.watched():
                measured = drive([job])
            if number == 0:
                _note(run, "grow-put-fresh", measured.rate, measured)
            elif number in (5, _OVERWRITES):
                _note(run, f"grow-space-{number}", _on_disk(place / "dws") / 1e6)
            elif number > _OVERWRITES:
                _note(run, "grow-put-old", measured.rate, measured)


def _on_disk(directory: Path) -> int:
    """Bytes that are taken of the disk: LMDB's files are far larger and mostly holes."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


# -- servers ----------------------------------------------------------------------------------


def _more_servers(run: Run, place: Path) -> None:
    for count in (2, 8):
        if not run.wants(f"grow-cpu-one-{count}", f"grow-cpu-{count}"):
            continue
        run.say(f"growth: {count} web servers")
        with cluster(place / str(count), count) as running:
            names = place / "names"
            store(running.endpoint, run.sizes.pages, run.sizes.page_bytes, names)
            _read(run, running, names, f"grow-cpu-one-{count}", 1, _READ_WINDOW_A_SERVER * count)
            _read(run, running, names, f"grow-cpu-{count}", 10, _READ_WINDOW)


def _read(run: Run, running: Supervisor, names: Path, key: str, pages: int, window: int) -> None:
    """The nodes' CPU for a page, in µs."""
    if not run.wants(key):
        return
    with run.watched():
        measured = drive(reads(run, running.endpoint, names, pages, window, _READ_CLIENTS), nodes_of(running))
    used = sum(value for name, value in measured.cpu.items() if not name.startswith("client"))
    run.note(key, used, measured)
