"""Seeds played: nothing that was promised is broken, all comes to rest, and each way to fail has its name.

DWS_SIM_SEEDS plays more of them, DWS_SIM_FIRST begins elsewhere. The slow test begins anywhere, and prints
where.
"""

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from dws.errors import ConfigError
from dws.sim.fuzz import BROKEN, CRASH, EXIT_CODES, OK, RESTLESS, play, run, settle
from dws.sim.observer import BrokenInvariant, Call, Observer
from dws.sim.options import FAULTS, LOSE_DISK, OLD_CATALOG, ROT, Options, drawn
from dws.sim.world import World

SEEDS = int(os.environ.get("DWS_SIM_SEEDS", "120"))
FIRST = int(os.environ.get("DWS_SIM_FIRST", "0"))
GROUP = 15
CALM = Options(seconds=3.0, think_s=0.1, faults=())


def played(seed: int, options: Options | None = None, **more: Any) -> Any:
    found = run(seed, options or drawn(seed), **more)
    log = "\n".join(found.log[-20:])
    assert found.kind == OK, f"seed {seed}: {found.kind}: {found.text}\n{log}\ndws sim replay {seed} --trace"
    return found


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, GROUP))
def test_nothing_promised_is_broken_and_all_comes_to_rest(first: int) -> None:
    for seed in range(first, min(first + GROUP, FIRST + SEEDS)):
        played(seed)


@pytest.mark.slow
def test_a_thousand_seeds_from_anywhere_on_two_processes(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The time-out of every test, two minutes, is what they may take."""
    start = seed % 10_000_000
    with capsys.disabled():
        print(f"\n1,000 seeds: dws sim fuzz --seeds 1000 --start {start} --jobs 2")
    words = [
        sys.executable,
        "-m",
        "dws",
        "sim",
        "fuzz",
        "--seeds",
        "1000",
        "--start",
        str(start),
        "--jobs",
        "2",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"seeds {start} to ") and "\n1,000 ok; " in done.stdout


class Tally(Observer):
    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.outcomes: set[tuple[str, str]] = set()

    def attach(self, world: World) -> None:
        self.world = world

    def returned(self, call: Call) -> None:
        self.outcomes.add((call.kind, call.outcome))

    def check_end(self) -> None:
        for name, count in self.world.faults.counts.items():
            self.faults[name] = self.faults.get(name, 0) + count


def test_every_fault_and_every_kind_of_outcome_turns_up() -> None:
    tally = Tally()
    for seed in range(60):
        played(seed, drawn(seed), observer=tally)
    for seed in range(60, 90):
        if set(FAULTS) <= set(tally.faults):
            break
        missing = next(fault for fault in (ROT, LOSE_DISK, OLD_CATALOG) if fault not in tally.faults)
        played(seed, drawn(seed, faults=(missing, "crash"), fault_s=0.5, seconds=16.0), observer=tally)
    assert set(tally.faults) == set(FAULTS)
    assert {(kind, "done") for kind in ("put", "remove", "get", "stream", "ask")} <= tally.outcomes
    assert {("put", "conflict"), ("put", "failed"), ("get", "missing"), ("put", "crashed")} <= tally.outcomes


# -- options ---------------------------------------------------------------------------


def test_what_a_seed_draws_can_be_and_what_is_said_stands() -> None:
    for seed in range(300):
        assert drawn(seed) == drawn(seed)
        assert drawn(seed, copies=5).servers >= 5
        assert drawn(seed, servers=1).copies == 1
        assert drawn(seed, faults=()).faults == ()
    assert len({drawn(seed).text() for seed in range(300)}) > 250
    text = drawn(7, servers=4).text()
    assert re.search(r"\bservers=4\b", text) and "faults=" in text and "hwm=" in text


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"servers": 3, "copies": 4}, "copies"),
        ({"servers": 0}, "servers"),
        ({"servers": 100_000}, "servers"),
        ({"copies": 17}, "copies"),
        ({"policy": "best"}, "policy"),
        ({"faults": ("fire",)}, "faults"),
        ({"copies": 1, "faults": ("lose-disk",)}, "faults"),
        ({"copies": 1, "faults": ("rot",)}, "faults"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"calm_s": 0.0}, "calm"),
        ({"think_s": 0.0}, "think"),
        ({"fault_s": 0.0}, "fault-every"),
        ({"delay_s": 0.0}, "delay"),
        ({"late_s": float("inf")}, "late"),
        ({"fsync_s": 0.0}, "fsync"),
        ({"hwm": 0}, "hwm"),
        ({"log_max": 0}, "log"),
        ({"pages": 1}, "pages"),
        ({"clients": 0}, "clients"),
        ({"large": 2.0}, "large"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_option(said: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=f"^[a-z, ]*{names}"):
        drawn(1, **said)


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such option: speed"):
        drawn(1, speed=3)


# -- verdicts --------------------------------------------------------------------------


def test_a_calm_run_is_fine() -> None:
    found = played(1, CALM)
    assert found.calls > 20 and found.faults == 0 and found.at_s < 10


def test_a_broken_invariant_is_told_with_its_rule_time_and_event() -> None:
    class Strict(Observer):
        def returned(self, call: Call) -> None:
            raise BrokenInvariant("no calls", f"{call.kind} returned")

    found = run(1, CALM, observer=Strict())
    assert (found.kind, found.rule) == (BROKEN, "no calls") and found.text.startswith("no calls: ")
    assert 1.0 < found.at_s < 3.0 and found.event > 0 and found.log


def test_a_machines_own_check_is_an_invariant_and_an_exception_a_crash() -> None:
    def spoil(what: str, error: Exception) -> Any:
        def prepare(world: World) -> None:
            def later() -> None:
                def fail(*_: Any) -> None:
                    raise error

                setattr(world.servers[0].machine, what, fail)

            world.at(1.5, later)

        return prepare

    broken = run(1, CALM, prepare=spoil("check", AssertionError("two of them")))
    assert (broken.kind, broken.rule) == (BROKEN, "machine") and "two of them" in broken.text
    crashed = run(1, CALM, prepare=spoil("handle", KeyError("web-9")))
    assert crashed.kind == CRASH and "KeyError: 'web-9' (test_fuzz.py:" in crashed.text


def test_a_cluster_that_does_not_come_to_rest_is_told_apart() -> None:
    def prepare(world: World) -> None:
        world.at(2.0, world.network.cut, "web-1", "balancer")
        world.network.heal_all = lambda: None  # type: ignore[method-assign]

    found = run(1, Options(seconds=2.0, calm_s=5.0, faults=()), prepare=prepare)
    assert found.kind == RESTLESS and found.text.startswith("5 s after the faults ended ")
    assert "web-1 is not live" in found.text


def test_no_rest_before_the_requests_of_calls_that_have_ended_arrived() -> None:
    """In this run a client gave up a removal, whose request was so late that it came during the last read."""
    found = run(17_001_247, drawn(17_001_247))
    assert found.kind == OK, found.text
    assert any("/page-5 removed" in line for line in found.log[:-1]) and "at rest" in found.log[-1]


def test_each_verdict_has_an_exit_code_of_its_own() -> None:
    assert EXIT_CODES == {OK: 0, BROKEN: 10, RESTLESS: 11, CRASH: 12}


# -- faults, one at a time -------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_survived(fault: str) -> None:
    options = [drawn(seed, faults=(fault,), fault_s=0.5, seconds=8.0, servers=3) for seed in range(3)]
    happened = sum(played(seed, each).faults for seed, each in enumerate(options))
    assert happened or fault == OLD_CATALOG


def test_an_old_catalog_leads_nobody() -> None:
    """It turns up, every server refuses it, and the right one is followed again."""
    tally = Tally()
    for seed in range(4):
        played(seed, drawn(seed, faults=(OLD_CATALOG,), fault_s=2.0, seconds=16.0), observer=tally)
    assert tally.faults.get(OLD_CATALOG, 0) >= 2


def test_a_full_disk_has_room_again_whichever_copy_of_the_catalog_lay_on_it_meanwhile() -> None:
    """Or the balancer on the right one would end at every commit for ever."""
    world = World(1, Options(faults=(OLD_CATALOG,), fault_s=1e9, think_s=0.1))
    world.start()
    world.run(1.0)
    world.workload.begin()
    world.faults.begin()
    world.run(5.0)
    right = world.catalog
    assert world.faults._catalog_full() and world.faults._old_catalog()
    assert world.catalog is not right and world.catalog.full
    settle(world)
    assert world.catalog is right and not right.full


def test_a_catalog_that_is_lost_is_rebuilt_from_the_servers() -> None:
    world = World(3, CALM, Observer())
    play(world)
    before = dict(world.truth)
    assert before
    world.rebuild()
    world.kill(world.servers[0], 0.5)
    assert world.run(60.0, until=lambda: not world.balancer.rebuilds)
    settle(world)
    assert world.catalog.rebuilt and world.truth == before
    assert world.catalog.epoch > 1 << 20
