"""What the docs show is what runs: diagrams are made from tables and machines, lists name what is there."""

import importlib
from pathlib import Path

import pytest

from patterns.__main__ import main
from patterns.demos import documents
from patterns.demos.drawing import Sequence, describe, states
from patterns.demos.index import NAMES, PATTERNS
from patterns.demos.stories import STORIES
from patterns.heartbeat import Beater
from patterns.jobs import TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "write it again: python -m patterns diagrams --write"


def test_the_document_is_what_the_code_draws() -> None:
    assert documents.DOCUMENT.read_text("utf-8") == documents.document(), AGAIN


def test_the_readmes_table_is_the_index() -> None:
    assert documents.README.read_text("utf-8") == documents.readme(), AGAIN
    assert documents.table() in documents.README.read_text("utf-8")


@pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)
def test_everything_that_the_index_names_is_there(pattern: object) -> None:
    assert isinstance(pattern, tuple)
    name, _, machine, _, tests, *_, more = pattern
    paths = [
        *machine.split(),
        *tests.split(),
        f"patterns/demos/{name}.py",
        *([f"docs/{more}"] if more else []),
    ]
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_machine_is_in_the_index() -> None:
    named = {path for pattern in PATTERNS for path in pattern.machine.split()}
    machines = {f"patterns/{path.name}" for path in (ROOT / "patterns").glob("*.py")}
    assert machines - named == {"patterns/__init__.py", "patterns/__main__.py", "patterns/errors.py"}


@pytest.mark.parametrize("name", NAMES)
def test_every_pattern_has_a_demo_and_its_story_can_be_told_again(name: str) -> None:
    assert callable(importlib.import_module(f"patterns.demos.{name}").run)
    assert STORIES[name]().mermaid() == STORIES[name]().mermaid()


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_run(name: str) -> None:
    assert callable(importlib.import_module(f"patterns.bench.{name}").run)


def test_a_state_diagram_has_an_arrow_for_every_line_of_its_table() -> None:
    drawn = states(TRANSITIONS)
    for (state, event), after in TRANSITIONS.items():
        arrow = f"    {state} --> {after or '[*]'}: "
        assert any(line.startswith(arrow) and event in line for line in drawn.splitlines()), (state, event)
    assert drawn.splitlines()[:2] == ["stateDiagram-v2", "    [*] --> waiting"]


def test_a_table_that_changes_changes_its_diagram() -> None:
    changed = dict(TRANSITIONS) | {("issued", "set aside"): "laid by"}
    assert 'state "laid by" as laid_by' in states(changed)
    assert "issued --> laid_by: set aside" in states(changed)
    assert "laid_by --> [*]" in states(changed)


def test_a_sequence_describes_frames_from_their_bytes() -> None:
    drawn = Sequence("peer", "watcher")
    beater = Beater(b"R" * 16, b"P" * 16, incarnation=3)
    drawn.sent("peer", "watcher", beater.beat(b""))
    drawn.lost("peer", "watcher", beater.beat(b""), "on the way")
    assert drawn.mermaid().splitlines()[3:] == [
        "    peer->>watcher: beat 1 of life 3",
        "    peer-xwatcher: beat 2 of life 3, on the way (lost)",
    ]
    with pytest.raises(ValueError, match="no pattern"):
        describe(b"\x00junk")


# The command


def test_list_names_every_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:1].isalpha()][: len(NAMES)] == list(NAMES)


def test_diagrams_prints_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagrams"]) == 0
    assert capsys.readouterr().out == documents.document()


def test_diagrams_writes_only_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "patterns.md"
    readme.write_text(f"before\n{documents.TABLE_BEGINS}old\n{documents.TABLE_ENDS}after\n", "utf-8")
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "README", readme)
    monkeypatch.setattr(documents, "DOCUMENT", page)
    assert main(["diagrams", "--write"]) == 0
    assert capsys.readouterr().out == "wrote patterns.md\nwrote README.md\n"
    assert page.read_text("utf-8") == documents.document()
    text = readme.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and documents.table() in text
    assert main(["diagrams", "--write"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [[], ["demo"], ["demo", "nothing"], ["bench", "nothing"], ["nothing"]])
def test_what_is_not_there_is_a_usage_error_that_names_what_is(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert "usage: python -m patterns" in said
    if arguments[1:]:
        assert "request_reply" in said
