"""Thresholds on a report, `p99>50ms` or `failed>1%`: parsed, and checked.

What lives here: the words for figures, the units, and what a crossed one says. What must not: exit codes.
A threshold says what must not be. It is crossed by a figure that the run did not measure, too: silence
proves nothing.
"""

import operator
import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from loadgen import histogram
from loadgen.analysis import Summary, response_times
from loadgen.histogram import Histogram
from loadgen.report import Check, Report, summarise

_TIMES: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_SIZES: Final = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_FORM: Final = re.compile(r"\s*([a-zA-Z][\w./-]*?)\s*(>=|<=|>|<)\s*(\d+(?:\.\d+)?)\s*([a-zA-Zµ%]*)\s*")
_PERCENTILE: Final = re.compile(r"p(\d{1,2}(?:\.\d{1,4})?|100)")

#: Figures by name: their unit, and what it says on `--help` and in a fault.
_UNITS: Final = {
    "mean": "time", "max": "time", "turnaround": "time", "downtime": "time",
    "requests/s": "number", "pages/s": "number", "bytes/s": "size",
    "requests": "number", "failed": "count", "availability": "share",
    "spread": "number", "jain": "number", "cpu": "number", "speedup": "number", "died": "number",
}  # fmt: skip
#: Of which response times there are percentiles of their own.
_KINDS: Final = ("download", "upload", "late")
FIGURES: Final = ("p50 … p99.99", *_UNITS)
_SAMPLES: Final = {"time": "50ms", "number": "2.5", "size": "10MB", "count": "0 or 1%", "share": "99.9%"}


class ThresholdError(ValueError):
    """A threshold that is none; the text, one line, says why."""


class Threshold(Struct, frozen=True):
    """`figure` must not be `sign` than `bound`. `of`: one kind of request, "late" for sends, or all."""

    text: str
    figure: str
    sign: str
    bound: float
    unit: str
    of: str | None = None


def parse(text: str) -> Threshold:
    """`p99>50ms`, `upload.p99.9>=1s`, `late.p99>5ms`, `failed>0`, `failed>1%`, `pages/s<1000`."""
    match = _FORM.fullmatch(text)
    if not match:
        raise ThresholdError(f"threshold {text!r} is not of the form 'p99>50ms' or 'failed>1%'")
    of, figure = _split(match[1])
    unit = "time" if _percent(figure) is not None else _UNITS.get(figure)
    if unit is None or (of is not None and (unit != "time" or of not in _KINDS)):
        raise ThresholdError(
            f"threshold {text!r}: there is no figure {match[1]!r}, but there are {', '.join(FIGURES)}; "
            "those that are response times also as upload.p99 or late.p99"
        )
    share = unit == "share" or (unit == "count" and match[4] == "%")
    scale = _scale("share" if share else unit, match[4])
    if scale is None:
        raise ThresholdError(f"threshold {text!r}: {figure} is compared with something like {_SAMPLES[unit]}")
    return Threshold(
        text.strip(), figure, match[2], float(match[3]) * scale, "share" if share else unit, of
    )  # fmt: skip


def check(threshold: Threshold, report: Report) -> Check:
    """What came of it. `said` is the figure as it was."""
    summary = report.summary or summarise(report)
    found = _figure(threshold, report, summary)
    if found is None:
        return Check(threshold.text, False, "not measured")
    crossed = _OPERATORS[threshold.sign](found, threshold.bound)
    return Check(threshold.text, not crossed, f"{threshold.figure} is {_said(found, threshold.unit)}")


def _split(name: str) -> tuple[str | None, str]:
    """(kind of request, figure). A percentile may have a point of its own."""
    of, point, figure = name.partition(".")
    if not point or _percent(name) is not None:
        return None, name
    return of, figure


def _percent(figure: str) -> float | None:
    match = _PERCENTILE.fullmatch(figure)
    return float(match[1]) if match else None


def _scale(unit: str, suffix: str) -> float | None:
    """What one of `suffix` is in the unit's own; None if it is none of its."""
    if unit == "share":
        return 0.01 if suffix == "%" else None
    if unit == "time":
        return _TIMES.get(suffix)
    if unit == "size":
        return _SIZES.get(suffix)
    return 1.0 if not suffix else None


def _figure(threshold: Threshold, report: Report, summary: Summary) -> float | None:
    percent = _percent(threshold.figure)
    together, availability = summary.together, summary.availability
    if percent is not None or threshold.figure in ("mean", "max"):
        return _time(threshold, percent, report)
    total = together.requests + together.failed
    if not total:
        return None
    match threshold.figure:
        case "failed":
            return together.failed / total if threshold.unit == "share" else float(together.failed)
        case "requests":
            return float(together.requests)
        case "requests/s" | "pages/s" | "bytes/s":
            return float(getattr(together, threshold.figure.replace("/", "_per_")))
        case "availability":
            return availability.share if availability else None
        case "downtime":
            return availability.without_service_s if availability else None
        case "turnaround":
            return summary.turnaround_s or None
        case "spread":
            return summary.spread
        case "jain":
            return summary.fairness
        case "speedup":
            return summary.speed_up
        case "died":
            return float(sum(node.died_at_s is not None for node in summary.nodes))
        case _:
            return together.cpu_share


def _time(threshold: Threshold, percent: float | None, report: Report) -> float | None:
    times = _times(threshold.of, report)
    if not times.count:
        return None
    if percent is not None:
        return times.percentile(percent)
    return times.mean_s() if threshold.figure == "mean" else times.most_s


def _times(of: str | None, report: Report) -> Histogram:
    if of == "late":
        return histogram.merged(histogram.from_plain(one.late) for one in report.clients if one.late)
    return response_times(report.clients, of)


def _said(figure: float, unit: str) -> str:
    if unit == "time":
        return f"{figure:,.2f} s" if figure >= 1 else f"{figure * 1000:,.2f} ms"
    if unit == "share":
        return f"{figure:.3%}"
    if unit == "size":
        return f"{figure / 1e6:,.2f} MB"
    return f"{figure:,.0f}" if figure == int(figure) or figure >= 10_000 else f"{figure:,.3f}"
