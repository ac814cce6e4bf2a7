"""The page around a report: one HTML file that needs nothing else, neither network nor scripts.

What lives here: the skeleton, the style sheet, and the small parts that pages are made of. What must not:
what they say. Everything that is given as text is escaped; `body` is HTML.
"""

import shlex
from collections.abc import Sequence
from typing import Final

from loadgen.html_charts import text
from loadgen.text import SIGNS

_STYLE: Final = """
:root { color-scheme: light dark; --ground: #fbfaf7; --raised: #fff; --ink: #1d2329; --muted: #56606b;
  --line: #d9d6cc; --accent: #0b6b64; --good: #1a7f37; --bad: #b3261e; --warn: #8a5a00; --track: #ece9e0;
  --s1: #0b6b64; --s2: #b35c00; --s3: #5b4fc4; --s4: #a8326b; --s5: #2c6fb5; --s6: #66752a; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --raised: #1b2126; --ink: #e6e9ea;
  --muted: #a3adb5; --line: #343c43; --accent: #5fc9bd; --good: #6cc983; --bad: #ff8a80; --warn: #f0b35a;
  --track: #2a3238; --s1: #5fc9bd; --s2: #f0a35a; --s3: #a59bff; --s4: #f08cba; --s5: #7db8f0; --s6: #bccb73; } }
@media print { :root { color-scheme: light; --ground: #fff; --raised: #fff; --ink: #000; --muted: #444;
  --line: #bbb; --accent: #0b6b64; --good: #1a7f37; --bad: #b3261e; --warn: #8a5a00; --track: #e6e6e6;
  --s1: #0b6b64; --s2: #b35c00; --s3: #5b4fc4; --s4: #a8326b; --s5: #2c6fb5; --s6: #66752a; } }
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 2vw, 2.2rem); line-height: 1.2; margin: .2rem 0 .5rem; text-wrap: balance; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0 0 .2rem; }
p { margin: 0 0 .8rem; text-wrap: pretty; } .sub, figcaption, .crumb { color: var(--muted); }
.crumb { margin: 0; font-size: .9rem; } figcaption { font-size: .9rem; margin: 0 0 .6rem; }
section, figure { margin: 0 0 1.1rem; padding: 1rem 1.1rem 1.1rem; background: var(--raised);
  border: 1px solid var(--line); border-radius: .5rem; }
.verdict { list-style: none; margin: 1rem 0 1.1rem; padding: .7rem 1.1rem; background: var(--raised);
  border: 1px solid var(--line); border-left: .35rem solid var(--good); border-radius: .5rem; }
.verdict.bad { border-left-color: var(--bad); } .verdict.warn { border-left-color: var(--warn); }
.verdict li { padding-left: 1.5rem; text-indent: -1.5rem; margin: .15rem 0; }
.verdict b { display: inline-block; width: 1.5rem; text-indent: 0; } li.ok b { color: var(--good); } li.bad b { color: var(--bad); }
li.warn b { color: var(--warn); font-weight: 700; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .6rem; margin: 0 0 1.1rem; padding: 0; }
.tiles div { background: var(--raised); border: 1px solid var(--line); border-radius: .5rem; padding: .55rem .8rem; }
.tiles dt { color: var(--muted); font-size: .85rem; } .tiles dd { margin: 0; font-size: 1.35rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; } .tiles small { font-size: .8rem; color: var(--muted); white-space: nowrap; }
.tiles .bad dd { color: var(--bad); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1.1rem; }
svg { display: block; width: 100%; height: auto; } svg.narrow { display: none; }
.pair svg.wide { display: none; } .pair svg.narrow { display: block; }
@media (max-width: 40rem) { main { padding: 1rem .8rem 2rem; } section, figure { padding: .8rem .7rem; }
  svg.wide { display: none; } svg.narrow { display: block; } }
svg text { font-size: 12px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.tick { text-anchor: end; } .tick.middle { text-anchor: middle; } .tick.end { text-anchor: end; } .tick.start { text-anchor: start; }
.out { fill: var(--bad); opacity: .12; } .death { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 3 3; }
.grid { stroke: var(--line); stroke-width: 1; } .mark { stroke: var(--muted); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .area { opacity: .16; }
.hit { fill: transparent; } .hit:hover { fill: var(--ink); opacity: .09; } .track { fill: var(--track); }
.s1 { fill: var(--s1); stroke: var(--s1); background: var(--s1); } .s2 { fill: var(--s2); stroke: var(--s2); background: var(--s2); }
.s3 { fill: var(--s3); stroke: var(--s3); background: var(--s3); } .s4 { fill: var(--s4); stroke: var(--s4); background: var(--s4); }
.s5 { fill: var(--s5); stroke: var(--s5); background: var(--s5); } .s6 { fill: var(--s6); stroke: var(--s6); background: var(--s6); }
.fail { fill: var(--bad); stroke: var(--bad); background: var(--bad); }
.line.s1, .line.s2, .line.s3, .line.s4, .line.s5, .line.s6, .line.fail { fill: none; background: none; }
.line.s2 { stroke-dasharray: 7 3; } .line.s3 { stroke-dasharray: 2 3; } .line.s4 { stroke-dasharray: 9 3 2 3; }
.line.s5 { stroke-dasharray: 4 2; } .line.s6 { stroke-dasharray: 12 4; }
.area, .bar rect { stroke: none; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: .4rem 0 0; padding: 0; font-size: .88rem; }
.legend svg { display: inline-block; width: 1.9rem; height: .6rem; margin-right: .4rem; }
.bars { display: grid; grid-template-columns: fit-content(14rem) minmax(4rem, 1fr) auto; gap: .5rem .8rem; align-items: center; }
.bars .bar { height: .85rem; }
.bars .said { text-align: right; font-variant-numeric: tabular-nums; font-size: .92rem; }
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--raised) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: right; padding: .28rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; } .scroll:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--raised); } .l { text-align: left; } td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 18rem; }
td.better { color: var(--good); } td.worse { color: var(--bad); }
pre { margin: .3rem 0 0; padding: .7rem .9rem; background: var(--track); border-radius: .4rem; font-size: .88rem; white-space: pre-wrap; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; font-size: .92rem; }
.facts dt { color: var(--muted); } .facts dd { margin: 0; }
.quote { margin: .3rem 0 .6rem; padding-left: .8rem; border-left: 3px solid var(--bad); font-size: .92rem; }
@media print { @page { margin: 14mm; } body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  section, figure, .tiles div, .verdict { break-inside: avoid; } .scroll { overflow: visible; background: none; }
  table { font-size: 8pt; } th, td { padding: .15rem .3rem; } th { white-space: normal; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } svg.wide { display: block; } svg.narrow { display: none; } }
"""  # noqa: E501

#: Cells that say this have its colour.
_JUDGED: Final = ("better", "worse")
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, body: str) -> str:
    """A whole file. Nothing is loaded and nothing is run: the policy forbids both."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def head(crumb: str, title: str, sub: str) -> str:
    return f'<p class="crumb">{text(crumb)}</p>\n<h1>{text(title)}</h1>\n<p class="sub">{text(sub)}</p>\n'


def verdict_list(marks: Sequence[tuple[str, str]]) -> str:
    """(ok, bad, warn or note; a sentence), as a list with signs."""
    found = {kind for kind, _ in marks}
    whole = "bad" if "bad" in found else "warn" if "warn" in found else "ok"
    lines = "".join(f'<li class="{kind}"><b>{SIGNS[kind]}</b>{text(said)}</li>' for kind, said in marks)
    return f'<ul class="verdict {whole}">{lines}</ul>\n'


def tiles(rows: Sequence[tuple[str, str, str, bool]]) -> str:
    """(what, figure, unit, whether it is bad)."""
    cells = "".join(
        f"<div{' class=bad' if bad else ''}><dt>{text(what)}</dt>"
        f"<dd>{text(figure)} <small>{text(unit)}</small></dd></div>"
        for what, figure, unit, bad in rows
    )
    return f'<dl class="tiles">{cells}</dl>\n'


def figure(title: str, caption: str, body: str) -> str:
    said = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure><h2>{text(title)}</h2>{said}{body}</figure>\n"


def section(title: str, body: str, caption: str = "") -> str:
    said = f'<p class="sub">{text(caption)}</p>' if caption else ""
    return f"<section><h2>{text(title)}</h2>{said}{body}</section>\n"


def pair(*figures: str) -> str:
    """Side by side where there is room."""
    return f'<div class="pair">{"".join(figures)}</div>\n'


def html_table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), wrap: Sequence[int] = ()) -> str:
    """The first row is the heading. Columns `wrap` may break their lines; better and worse have colours."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{_class(tag, column, cell, left, wrap)}>{text(cell)}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[1:])
    heading = f"<thead><tr>{cells('th', rows[0])}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{heading}<tbody>{body}</tbody></table></div>'


def _class(tag: str, column: int, cell: str, left: Sequence[int], wrap: Sequence[int]) -> str:
    found = ["l"] if column in left else []
    if tag == "td" and column in wrap:
        found.append("wrap")
    if tag == "td" and cell in _JUDGED:
        found.append(cell)
    return f' class="{" ".join(found)}"' if found else ""


def facts(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<dt>{text(name)}</dt><dd>{text(said)}</dd>" for name, said in rows)
    return f'<dl class="facts">{cells}</dl>'


def repeat(rows: Sequence[tuple[str, str]], command: Sequence[str]) -> str:
    """What it was made by and on, and what to type to make it again."""
    typed = f"<pre>{text(shlex.join(command))}</pre>" if command else ""
    return section("To repeat it", facts(rows) + typed)
