"""A server's own figures: visits and bytes by page and period, and how long a page takes it."""

import pytest

from dws import loadbook
from dws.loadbook import LoadBook
from dws.messages import Visits

PERIOD = 30.0


@pytest.fixture
def book() -> LoadBook:
    return LoadBook(PERIOD, 100.0)


def test_visits_and_bytes_are_counted_by_page_and_in_all(book: LoadBook) -> None:
    for size in (10, 20):
        book.visit("/a", size)
    book.visit("/b", 5)
    assert (book.served, book.visits, book.bytes_sent) == (3, 3, 35)
    assert book.hot(10) == [("/a", 2, 30), ("/b", 1, 5)]
    assert book.hot(1) == [("/a", 2, 30)]


def test_a_new_period_begins_on_the_grid_however_late_the_loop_comes_by(book: LoadBook) -> None:
    book.visit("/a", 1)
    assert not book.turn(129.9)
    assert book.left_s(129.9) == pytest.approx(0.1)
    assert book.turn(130.5)
    assert (book.visits, book.visits_last, book.served) == (0, 1, 1)
    assert book.hot(5) == [] and book.hot(5, last=True) == [("/a", 1, 1)]
    assert book.left_s(130.5) == pytest.approx(29.5)
    assert book.turn(205.0) and book.period_began == pytest.approx(190.0)
    assert book.left_s(300.0) == 0.0


def test_pages_are_counted_up_to_a_bound_and_further_ones_in_all(
    book: LoadBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loadbook, "_PAGES_MAX", 3)
    for number in range(10):
        book.visit(f"/{number}", 1)
    book.visit("/0", 1)
    assert book.visits == 11 and book.hot(10) == [("/0", 2, 2), ("/1", 1, 1), ("/2", 1, 1)]


def test_the_service_time_is_a_mean_over_pages_not_over_rounds(book: LoadBook) -> None:
    book.round(3, 99, 99 * 1e-3)
    book.round(1, 1, 0.1)  # the processor was lost in a round of one page
    waiting, service_s = book.sample()
    assert waiting == 1
    assert service_s == pytest.approx((99e-3 + 0.1) / 100)


def test_what_waited_is_told_once_and_the_service_time_ages(book: LoadBook) -> None:
    book.round(7, 10, 0.1)
    assert book.waiting == 7
    assert book.sample() == (7, pytest.approx(0.01))
    assert book.sample() == (0, pytest.approx(0.01)), "no round since: nothing waits, and no news of the time"
    for _ in range(40):
        book.round(1, 10, 0.02)
        _, service_s = book.sample()
    assert service_s == pytest.approx(0.002, rel=0.05), "old rounds have lost their weight"


def test_before_the_first_page_there_is_no_service_time(book: LoadBook) -> None:
    book.round(0, 0, 0.5)
    assert book.sample() == (0, 0.0)


def test_what_the_http_endpoint_served_is_no_work_of_this_process(book: LoadBook) -> None:
    book.visit("/a", 10)
    report = Visits(b"e" * 16, 1, 5, 0, 50, [("/a", 5, 50)], [5])
    book.report(report)
    book.report(report)
    assert (book.served, book.served_here, book.visits) == (6, 1, 6)
    assert book.hot(1) == [("/a", 6, 60)]
    assert book.response[0] == 5
