"""Totals, and rates of the last seconds."""

import pytest

from dws.meter import Meter


def test_rates_are_those_of_the_last_seconds_and_totals_of_all() -> None:
    meter = Meter()
    assert meter.rates(0.0) == (0.0, 0.0)
    for tenth in range(100):  # 10 pages of 100 bytes a second, for 10 s
        meter.add(1, 100, tenth / 10)
    pages_s, bytes_s = meter.rates(10.0)
    assert pages_s == pytest.approx(10, rel=0.2) and bytes_s == pytest.approx(1000, rel=0.2)
    assert meter.rates(30.0) == (0.0, 0.0), "lately nothing was done"
    assert (meter.pages, meter.size_bytes) == (100, 10_000)


def test_less_than_a_second_is_too_short_to_say() -> None:
    meter = Meter()
    meter.add(50, 5000, 7.0)
    assert meter.rates(7.01) == (50.0, 5000.0)
