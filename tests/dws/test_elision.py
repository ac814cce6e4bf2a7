"""What is left out of a long row, against a slow and obvious model: the whole row, looked at from above."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from dws.elision import Elided, Elision


class Row(Struct):
    at_s: float
    is_routine: bool
    data_bytes: int = 1


def shown(rows: list[Row], **bounds: int) -> list[Row | Elided]:
    elision: Elision[Row] = Elision(**bounds)
    out = [step for row in rows for step in elision.take(row)]
    return out + elision.rest()


def rows(pattern: str) -> list[Row]:
    """`.` is routine, `!` is not."""
    return [Row(float(at), mark == ".") for at, mark in enumerate(pattern)]


def drawn(steps: list[Row | Elided]) -> str:
    return "".join(
        f"<{step.steps}>" if isinstance(step, Elided) else "." if step.is_routine else "!" for step in steps
    )


TABLE = [
    ("", ""),
    (".....", "....."),
    ("......", "...<1>.."),
    ("..........", "...<5>.."),
    ("!!!!!!!!!!", "!!!!!!!!!!"),
    ("..........!..........", "...<5>..!...<5>.."),
    ("!.....!", "!.....!"),
    ("!......!", "!...<1>..!"),
]


@pytest.mark.parametrize(("pattern", "wanted"), TABLE)
def test_the_first_and_the_last_of_those_alike_are_shown(pattern: str, wanted: str) -> None:
    assert drawn(shown(rows(pattern), head=3, tail=2)) == wanted


def test_no_row_is_endless() -> None:
    out = shown(rows("!" * 1000), head=3, tail=2, shown_max=20)
    assert drawn(out) == "!" * 20 + "<978>" + "!!"


def test_what_is_left_out_is_summed_up() -> None:
    [elided] = [step for step in shown(rows("." * 10), head=3, tail=2) if isinstance(step, Elided)]
    assert (elided.steps, elided.data_bytes, elided.at_s) == (5, 5, 7.0)


@given(st.text("..!", max_size=200), st.integers(0, 5), st.integers(0, 5), st.integers(1, 60))
def test_every_step_is_shown_or_counted_and_what_matters_is_shown(
    pattern: str, head: int, tail: int, shown_max: int
) -> None:
    all_rows = rows(pattern)
    out = shown(all_rows, head=head, tail=tail, shown_max=shown_max)
    at = 0
    for step in out:
        if isinstance(step, Elided):
            assert step.steps > 0 and step.at_s == at + step.steps - 1
            at += step.steps
        else:
            assert step.at_s == at
            at += 1
    assert at == len(all_rows)
    kept = {step.at_s for step in out if isinstance(step, Row)}
    assert len(kept) <= shown_max + 2 * tail + 2
    if len(pattern) < shown_max:
        assert kept == {row.at_s for row in all_rows if is_kept(pattern, int(row.at_s), head, tail)}


def is_kept(pattern: str, at: int, head: int, tail: int) -> bool:
    """The model: it matters, or is among the first after, or the last before, what does, or an end."""
    since = len(pattern[:at]) - 1 - pattern[:at].rfind("!")
    until = pattern[at:].find("!") if "!" in pattern[at:] else len(pattern) - at
    return pattern[at] == "!" or since < head or until <= tail
