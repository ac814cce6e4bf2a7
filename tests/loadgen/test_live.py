"""The table that is shown while a run runs."""

import io

from rich.console import Console

from loadgen.live import LiveTable
from loadgen.plan import Plan
from loadgen.talk import Progress


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=terminal, width=100, height=20), written


def test_on_a_terminal_the_table_shows_rates_of_the_last_moments() -> None:
    screen, written = console(terminal=True)
    with LiveTable(Plan(count=None, duration_s=10.0), screen) as live:
        for half in range(-2, 9):
            live(half / 2, Progress(max(0, half) * 100, max(0, half) * 1000, 3))
        assert live.rates() == (200.0, 2000.0)
        assert live.done(4.0, Progress(0, 0, 0)) == 0.4
    assert "warming up: 1 s to the start" in written.getvalue()
    assert "2,000" in written.getvalue()


def test_elsewhere_nothing_is_written() -> None:
    screen, written = console(terminal=False)
    with LiveTable(Plan(), screen) as live:
        live(1.0, Progress(1, 1, 0))
        live(1.0, Progress(1, 1, 0))
    assert written.getvalue() == ""


def test_how_much_is_done_is_by_requests_or_by_time() -> None:
    live = LiveTable(Plan(count=50, duration_s=100.0, clients=2), console(terminal=False)[0])
    assert live.done(10.0, Progress(40, 0, 10)) == 0.5
    assert live.done(90.0, Progress(40, 0, 10)) == 0.9
    assert live.done(1e9, Progress(0, 0, 0)) == 1.0
    assert live.rates() == (0.0, 0.0)
    assert live.sparks() == ""
