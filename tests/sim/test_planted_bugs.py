"""Bugs that are planted in the production code are found by the invariants that they break.

One that survives fails the test; so does one whose line is no longer in the code: it would plant nothing.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dws.sim.fuzz import OK, run
from dws.sim.options import drawn
from dws.sim.oracle import Oracle
from dws.sim.rules import RULES
from tests.sim.planted import CRASH, PLANTED, RESTLESS, ROOT, Planted, broken
from tests.sim.scenarios import SCENARIOS

#: What finds a bug without being a rule of the oracle's: ends of a run, checks of the machines, rules of a
#: cluster at rest.
ENDS = {RESTLESS, CRASH, "machine", "garbage", "catalog"}
HUNT_S = 60
#: Two hunts at a time, each in an interpreter of its own; some tens of seconds a group.
GROUP = 6
NAMES = [planted.name for planted in PLANTED]


def hunt(planted: Planted) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/sim/planted.py"), planted.name],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=HUNT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(PLANTED), GROUP))
def test_planted_bugs_are_found(first: int) -> None:
    group = PLANTED[first : first + GROUP]
    with ThreadPoolExecutor(2) as pool:
        hunts = list(pool.map(hunt, group))
    wrong = []
    for planted, found in zip(group, hunts, strict=True):
        print(f"{planted.name}: {found['found']}, seed {found['seed']}, the {found['tried']}. tried")
        if not found["found"]:
            wrong.append(f"{planted.name} survived {found['tried']} seeds; it breaks: {planted.breaks}")
        elif found["found"] not in planted.found_by:
            wrong.append(f"{planted.name}, seed {found['seed']}, was found by another rule: {found['text']}")
        elif not found["replays"]:
            wrong.append(f"{planted.name}: seed {found['seed']} ends in two ways")
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.parametrize("planted", PLANTED, ids=NAMES)
def test_its_line_is_still_there(planted: Planted) -> None:
    compile(broken(planted), planted.module, "exec")


def test_they_are_named_and_found_by_what_there_is() -> None:
    assert len(PLANTED) >= 20
    assert len(set(NAMES)) == len(NAMES)
    for planted in PLANTED:
        assert planted.found_by <= RULES.keys() | ENDS, planted.name
        assert planted.scenario in SCENARIOS
        drawn(planted.first, **{**SCENARIOS[planted.scenario].said, **planted.said})


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name])
def test_a_scenario_does_no_harm_to_the_code_as_it_is(name: str) -> None:
    scenario = SCENARIOS[name]
    for seed in range(2):
        verdict = run(seed, drawn(seed, **scenario.said), Oracle(), prepare=scenario.prepare)
        assert verdict.kind == OK, f"seed {seed}: {verdict.text}"
