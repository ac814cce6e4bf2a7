"""Decisions on their way to the disk: numbers, order, and what the catalog will name."""

import pytest

from dws.decisions import Decisions
from dws.effects import Persist
from dws.store import CatalogHead, Decision
from tests.dws.desk import record


def decision(*puts: str, removes: tuple[str, ...] = (), version: int = 1) -> Decision:
    return Decision(0, b"b" * 16, version, [record(name, version) for name in puts], list(removes), 0.0)


@pytest.fixture
def decisions() -> Decisions:
    return Decisions(CatalogHead(b"c" * 16, 1, 1, 41, [], False))


def test_decisions_are_numbered_on_from_the_catalogs_last_and_take_effect_in_order(
    decisions: Decisions,
) -> None:
    done: list[int] = []
    for name in ("/a", "/b"):
        number, (effect,) = decisions.hand(decision(name), lambda number, now: done.append(number) or [])  # type: ignore[func-returns-value]
        assert isinstance(effect, Persist) and effect.decision.number == number
    assert decisions.durable == 41 and not done
    decisions.persisted(42, 1.0)
    assert (decisions.durable, done) == (42, [42])
    decisions.persisted(43, 1.0)
    assert (decisions.durable, done) == (43, [42, 43])


def test_what_is_handed_over_is_seen_until_it_is_durable_and_the_last_one_wins(decisions: Decisions) -> None:
    decisions.hand(decision("/a", version=5), lambda number, now: [])
    decisions.hand(decision(removes=("/a",)), lambda number, now: [])
    assert decisions.unwritten("/a") == (43, 0)
    decisions.persisted(42, 1.0)
    decisions.check()
    assert decisions.unwritten("/a") == (43, 0)
    decisions.persisted(43, 1.0)
    assert decisions.unwritten("/a") is None
    decisions.check()


def test_an_answer_of_the_writer_out_of_order_is_our_own_bug(decisions: Decisions) -> None:
    decisions.hand(decision("/a"), lambda number, now: [])
    decisions.hand(decision("/b"), lambda number, now: [])
    with pytest.raises(AssertionError, match="43"):
        decisions.persisted(43, 1.0)
