"""docs/patterns.md and the table of patterns/README.md, made from the code that runs.

Contracts are the modules' docstrings, state diagrams their tables of transitions,
sequence diagrams runs of their machines. A test compares the files with what is
made here; `python -m patterns diagrams --write` writes them.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from patterns.demos.drawing import states
from patterns.demos.index import PATTERNS, Pattern
from patterns.demos.stories import STORIES

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = ROOT / "docs" / "patterns.md"
README: Final = ROOT / "patterns" / "README.md"
TABLE_BEGINS: Final = "<!-- made by `python -m patterns diagrams --write`, from patterns/demos/index.py -->\n"
TABLE_ENDS: Final = "<!-- end of what is made -->\n"

_OPENING: Final = """\
# The patterns, drawn

This page is made by `python -m patterns diagrams --write`, and a test keeps it so: the contracts are the
modules' docstrings, the state diagrams their tables of transitions, and each sequence diagram is a run of the
machines in made-up time (`patterns/demos/stories.py`). What each descends from is told in
[patterns/README.md](../patterns/README.md), what they cost in [patterns-figures.md](patterns-figures.md).
"""


def document() -> str:
    """The whole text of docs/patterns.md."""
    return "\n".join([_OPENING, *(part for pattern in PATTERNS for part in _section(pattern))])


def readme() -> str:
    """patterns/README.md with its table made anew."""
    before, _, rest = README.read_text("utf-8").partition(TABLE_BEGINS)
    after = rest.partition(TABLE_ENDS)[2]
    return f"{before}{TABLE_BEGINS}{table()}{TABLE_ENDS}{after}"


def table() -> str:
    rows = [
        "| pattern | guarantee | machine | sockets | tests | demo |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in PATTERNS:
        demo = f"`python -m patterns demo {each.name}`"
        rows.append(
            f"| {each.name} | {each.guarantee} | {_files(each.machine)} | {each.sockets} | "
            f"{_files(each.tests)} | {demo} |"
        )
    rows += ["", "| pattern | descends from | what it does better |", "| --- | --- | --- |"]
    rows += [f"| {each.name} | {each.ancestor} | {each.better} |" for each in PATTERNS]
    return "\n".join([*rows, ""])


def main(write: bool) -> int:
    """Print the document, or write what has changed."""
    if not write:
        print(document(), end="")
        return 0
    for path, text in ((DOCUMENT, document()), (README, readme())):
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


def _section(pattern: Pattern) -> Iterator[str]:
    yield f"## {pattern.name}\n"
    yield f"Guarantee: {pattern.guarantee}. Demo: `python -m patterns demo {pattern.name} --fault`.\n"
    if pattern.more:
        yield f"More of it in [{pattern.more}]({pattern.more}).\n"
    for path in pattern.machine.split():
        yield f"### `{path}`\n"
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        yield f"```text\n{(module.__doc__ or '').strip()}\n```\n"
        for name, drawn in _state_diagrams(module):
            yield f"`{name}`:\n\n```mermaid\n{drawn}\n```\n"
    story = STORIES[pattern.name]
    yield f"{(story.__doc__ or '').strip()}\n\n```mermaid\n{story().mermaid()}\n```\n"


def _state_diagrams(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Of every table of transitions in the module, in the order in which they stand there."""
    for name, value in vars(module).items():
        if name.endswith("TRANSITIONS") and isinstance(value, dict):
            yield name, states(value)


def _files(paths: str) -> str:
    """Links from patterns/README.md."""
    return "<br>".join(f"[{path}](../{path})" for path in paths.split())
