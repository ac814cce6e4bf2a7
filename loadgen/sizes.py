"""Sizes as people write them: `4096`, `4KiB`, `1.5 MiB`, `10MB`."""

import re
from typing import Final

from dws.limits import GIB, KIB, MIB
from loadgen.plan import PlanError

_UNITS: Final = {"": 1, "B": 1, "K": KIB, "KB": 1000, "KIB": KIB, "M": MIB, "MB": 10**6, "MIB": MIB,
          "G": GIB, "GB": 10**9, "GIB": GIB}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes: `4096`, `4KiB`, `4k`, `1.5 MiB`, `10MB`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match and _UNITS.get(match[2].upper())
    if not (match and unit):
        raise PlanError(f"size {text!r} is not of the form 4096, 4KiB or 1MiB")
    return int(float(match[1]) * unit)
