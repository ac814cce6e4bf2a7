"""Charts as inline SVG: lines over time, a spectrum of percentiles, bars.

What lives here: scales, ticks and marks. What must not: reports, pages of HTML, colours: a mark has a class,
`s1` to `s6`, `fail`, and the page's style sheet says what that looks like, by day, by night and on paper.
Text is escaped here, once.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import Final

from msgspec import Struct

#: A chart is drawn for either width, and the style sheet shows the one that fits: letters keep their size.
WIDTHS: Final = {"wide": 720, "narrow": 350}
_HEIGHT: Final = 230
_LEFT: Final = 58
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 36
_BANDS_MAX: Final = 300
COLOURS: Final = 6

Format = Callable[[float], str]
Point = tuple[float, float | None]


class Line(Struct):
    """A row of points, x rising; where y is None, the line has a gap."""

    name: str
    points: list[Point]
    style: str = "s1"
    filled: bool = False


class Bar(Struct):
    name: str
    value: float
    said: str
    style: str = "s1"


class Band(Struct):
    """From one x to another, told when pointed at: `hit`, not seen until then, or `out`, an outage.
    `death`: a line at `begin`, with its name."""

    begin: float
    end: float
    said: str
    style: str = "hit"
    name: str = ""


class Axis(Struct):
    """What one axis shows, from `low` to `high`; ticks: (value, what stands there)."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what is outside is put at the end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = log10(low), log10(high), log10(max(value, low))
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0


# -- axes -------------------------------------------------------------------------------------


def linear(values: Iterable[float], form: Format, ticks: int = 4, low: float = 0.0) -> Axis:
    """From `low` to a round number at or above all values."""
    most = max((value for value in values if isfinite(value)), default=low)
    span = most - low if most - low > 1e-9 else 1.0
    raw = span / ticks
    unit = 10 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    count = max(1, ceil(span / step - 1e-9))
    places = [low + step * number for number in range(count + 1)]
    return Axis(low, places[-1], [(place, form(place)) for place in places])


def logarithmic(values: Iterable[float], form: Format) -> Axis:
    """From 1, 2 or 5 times a power of ten to another, around all values above 0; at least a decade."""
    positive = [value for value in values if value > 0 and isfinite(value)] or [1.0]
    least, most = min(positive), max(positive)
    powers = range(floor(log10(least)) - 1, ceil(log10(most)) + 2)
    places = [10.0**power * step for power in powers for step in (1, 2, 5)]
    low = max(place for place in places if place <= least * 1.001)
    high = min(place for place in places if place >= max(most * 0.999, low * 9.99))
    shown = [place for place in places if low * 0.999 <= place <= high * 1.001]
    if high / low > 1001:
        shown = [place for place in shown if abs(log10(place) - round(log10(place))) < 1e-6]
    return Axis(low, high, [(place, form(place)) for place in shown], log=True)


def nines(most: float) -> Axis:
    """Percentiles, each decade closer to 100 %: x is 1/(1 − p)."""
    marks = [
        (1.0, "0"),
        (2.0, "50"),
        (10.0, "90"),
        (100.0, "99"),
        (1e3, "99.9"),
        (1e4, "99.99"),
        (1e5, "99.999"),
    ]
    high = max(10.0, most)
    return Axis(1.0, high, [(place, f"p{text}") for place, text in marks if place <= high], log=True)


# -- charts -----------------------------------------------------------------------------------


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, bands: Sequence[Band] = ()) -> str:
    """Lines over a common axis, and bands of it."""
    return "".join(
        f'<svg class="{name}" viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{_lines(width, lines, x, y, bands)}</svg>"
        for name, width in WIDTHS.items()
    )


def _lines(width: int, lines: Sequence[Line], x: Axis, y: Axis, bands: Sequence[Band]) -> str:
    plot = _Plot(width, x, y)
    parts = [plot.grid()]
    parts += [plot.area(line) for line in lines if line.filled]
    parts += [plot.line(line) for line in lines]
    parts += [plot.band(band) for band in bands[:_BANDS_MAX]]
    return "".join(parts)


class _Plot:
    """The rectangle between the axes."""

    def __init__(self, width: int, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y
        self._left, self._right = _LEFT, width - _RIGHT
        self._top, self._bottom = _TOP, _HEIGHT - _BOTTOM

    def _at(self, x: float, y: float) -> str:
        return f"{self._across(x):.1f},{self._down(y):.1f}"

    def _across(self, x: float) -> float:
        return self._left + self._x.place(x) * (self._right - self._left)

    def _down(self, y: float) -> float:
        return self._bottom - self._y.place(y) * (self._bottom - self._top)

    def grid(self) -> str:
        parts = []
        for value, said in self._y.ticks:
            at = self._down(value)
            parts.append(
                f'<line class="grid" x1="{self._left}" x2="{self._right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
            parts.append(f'<text class="tick" x="{self._left - 6}" y="{at + 4:.1f}">{text(said)}</text>')
        taken = float("-inf")
        for value, said in self._x.ticks:
            at = self._across(value)
            half = 3.6 * len(said)
            if at - half < taken:
                continue
            taken = at + half + 6
            anchor = "end" if at + half > self._right + _RIGHT else "middle"
            low = self._bottom
            parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{low}" y2="{low + 4}"/>')
            parts.append(
                f'<text class="tick {anchor}" x="{at:.1f}" y="{self._bottom + 18}">{text(said)}</text>'
            )
        return "".join(parts)

    def line(self, line: Line) -> str:
        paths, alone = [], []
        for run in _runs(line.points):
            if len(run) == 1:
                alone.append(f'<circle class="{line.style}" cx="{self._across(run[0][0]):.1f}" '
                             f'cy="{self._down(run[0][1]):.1f}" r="2"/>')  # fmt: skip
            else:
                paths.append("M" + "L".join(self._at(*point) for point in run))
        drawn = f'<path class="line {line.style}" d="{"".join(paths)}"/>' if paths else ""
        return drawn + "".join(alone)

    def area(self, line: Line) -> str:
        floor_at = f"{self._bottom:.1f}"
        shapes = [
            f"M{self._across(run[0][0]):.1f},{floor_at}L"
            + "L".join(self._at(*point) for point in run)
            + f"L{self._across(run[-1][0]):.1f},{floor_at}Z"
            for run in _runs(line.points)
            if len(run) > 1
        ]
        return f'<path class="area {line.style}" d="{"".join(shapes)}"/>' if shapes else ""

    def band(self, band: Band) -> str:
        left, right, top, low = self._across(band.begin), self._across(band.end), self._top, self._bottom
        said = f"<title>{text(band.said)}</title>"
        if band.style == "death":
            at = f'x1="{left:.1f}" x2="{left:.1f}" y1="{top}" y2="{low}"'
            side, away = ("end", -5) if left > (self._left + self._right) / 2 else ("start", 5)
            where = f'class="tick {side}" x="{left + away:.1f}" y="{top + 10}"'
            return f'<line class="death" {at}>{said}</line><text {where}>{text(band.name)}</text>'
        at = f'x="{left:.1f}" y="{top}" width="{max(0.5, right - left):.1f}" height="{low - top}"'
        return f'<rect class="{band.style}" {at}>{said}</rect>'


def _runs(points: Iterable[Point]) -> list[list[tuple[float, float]]]:
    """The stretches without gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def bars(title: str, rows: Sequence[Bar], most: float | None = None) -> str:
    """Horizontal bars with their names and values, as HTML that wraps where it must; `most`: a full one."""
    full = most or max((row.value for row in rows), default=0.0) or 1.0
    cells = "".join(
        f"<span>{text(row.name)}</span>"
        f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="10"/>'
        f'<rect class="{row.style}" width="{100 * min(1, max(0, row.value / full)):.2f}" height="10"/></svg>'
        f'<span class="said">{text(row.said)}</span>'
        for row in rows
    )
    return f'<div class="bars" role="group" aria-label="{text(title)}">{cells}</div>'


def legend(lines: Sequence[Line]) -> str:
    keys = "".join(
        '<li><svg viewBox="0 0 30 10" aria-hidden="true">'
        f'<path class="line {line.style}" d="M0,5L30,5"/></svg>{text(line.name)}</li>'
        for line in lines
    )
    return f'<ul class="legend">{keys}</ul>'


def style(number: int) -> str:
    return f"s{number % COLOURS + 1}"


def text(said: str) -> str:
    """Escaped, for content and for attributes in quotes; control characters become visible."""
    return escape("".join(char if char.isprintable() else "�" for char in said), quote=True)
