"""Waiting for what a test wants to see: for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], what: str, within_s: float = 30.0) -> Any:
    """The condition's first true value; fails, saying what was waited for, when the time is over."""
    give_up = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < give_up, f"waited {within_s:g} s in vain: {what}"
        time.sleep(0.01)
    return value
