"""README.md and docs/ say nothing of the code that is not so: names, figures, links, commands.

- Every file that they name in backticks is there, and every `file.py::Name` or `file.py::Class.member` in it.
- In a row of a table that begins with such a name and a figure, the figure is the name's value.
- Every relative link leads to a file, and to a heading if it names one.
- Commands in README's code blocks parse; its table of exit codes, its make targets and its Python example
  are those of the programs. Nothing is run.
"""

import ast
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import click
import msgspec
import pytest
from blake3 import blake3

import dws
import run_cluster
from dws.cli import exits
from dws.cli.program import program
from loadgen.cli import cli as loadgen

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").glob("*.md"))]

REFERENCE = re.compile(r"`([\w./-]+\.py)::([\w.]+)`")
TOPS = "patterns|dws|loadgen|tests|docs|deploy|examples"
FILE = re.compile(rf"`((?:{TOPS})/[\w./*-]+|[\w-]+\.(?:py|md|toml))`")
#: What users make, and so is not in the tree.
MADE = ("dws.toml", "dws/dws.toml")
#: Stands for any tag in a file's name.
ANY_TAG = "TAG"
ROW = re.compile(r"^\| `([\w./]+\.py)::([\w.]+)` \| ([\d.,]+)(?: (\w+))? \|", re.M)
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PROGRAMS: dict[str, click.Command] = {
    "dws": program,
    "run_cluster.py": run_cluster.run,
    "loadgen": loadgen,
    "dws-loadgen": loadgen,
}


def prose(doc: Path) -> str:
    """The text without its fenced code blocks."""
    return re.sub(r"^```.*?^```$", "", doc.read_text("utf-8"), flags=re.M | re.S)


def found(pattern: re.Pattern[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(document, groups) of every match in all documents."""
    return [(doc.name, match.groups()) for doc in DOCS for match in pattern.finditer(prose(doc))]


def code_lines(doc: Path) -> Iterator[str]:
    """Lines of indented and fenced code blocks."""
    fenced = False
    for line in doc.read_text("utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip().removeprefix("$ ")


# Names and figures


@cache
def names_in(path: Path) -> frozenset[str]:
    """`Name` and `Class.member` of everything that a module defines."""
    names: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    names.add(prefix + name)
                case ast.ClassDef(name=name, body=inner):
                    names.add(prefix + name)
                    collect(inner, f"{prefix}{name}.")
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(prefix + name)
                case ast.Assign(targets=targets):
                    names.update(prefix + each.id for each in targets if isinstance(each, ast.Name))

    collect(ast.parse(path.read_text("utf-8")).body, "")
    return frozenset(names)


def test_names_are_defined_where_they_are_said_to_be() -> None:
    references = found(REFERENCE)
    assert len(references) > 50
    wrong = [
        f"{doc}: {path}::{name}"
        for doc, (path, name) in references
        if not (ROOT / path).is_file() or name not in names_in(ROOT / path)
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_files_are_there() -> None:
    files = found(FILE)
    assert len(files) > 50
    wrong = [
        f"{doc}: {file}"
        for doc, (file,) in files
        if file not in MADE and not any(ROOT.glob(file.replace(ANY_TAG, "*")))
    ]
    assert not wrong, "\n".join(["", *wrong])


def test_figures_in_tables_are_those_of_the_code() -> None:
    rows = found(ROW)
    assert len(rows) > 20
    wrong = [
        f"{doc}: {path}::{name} is {value_of(path, name):g}, not {number} {unit or ''}"
        for doc, (path, name, number, unit) in rows
        if value_of(path, name) != float(number.replace(",", "")) * UNITS.get(unit, 1)
    ]
    assert not wrong, "\n".join(["", *wrong])


def value_of(path: str, name: str) -> float:
    """A constant of a module, or the default of a structure's field."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    owner, dot, field = name.partition(".")
    if not dot:
        return float(getattr(module, name))
    fields = msgspec.structs.fields(getattr(module, owner))
    return float(next(each.default for each in fields if each.name == field))


def test_the_table_of_metrics_is_the_gateways() -> None:
    source = (ROOT / "dws" / "http" / "metrics.py").read_text("utf-8")
    rows = re.findall(r"^\| (`dws_.+?) \|", (ROOT / "docs" / "http.md").read_text("utf-8"), re.M)
    told = {re.sub(r"_(total|info)$", "", name) for row in rows for name in re.findall(r"dws_\w+", row)}
    assert told == set(re.findall(r'"(dws_\w+)"', source))


# Links


def test_links_lead_somewhere() -> None:
    wrong = []
    for doc in DOCS:
        for (target,) in (match.groups() for match in LINK.finditer(prose(doc))):
            path, _, heading = target.partition("#")
            file = doc.parent / path if path else doc
            if "://" not in target and not (file.exists() and (not heading or heading in anchors(file))):
                wrong.append(f"{doc.name}: {target}")
    assert not wrong, "\n".join(["", *wrong])


def anchors(doc: Path) -> set[str]:
    """Those of a document's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", prose(doc), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# Commands and the example


def commands() -> list[str]:
    starts = ("dws ", "dws-loadgen ", "python -m loadgen ", "python run_cluster.py")
    return [line for line in code_lines(README) if line.startswith(starts)]


def parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command's flags and arguments, those of its subcommands too, without calling anything."""
    words = shlex.split(re.split(r"[|<>]", line)[0], comments=True)
    words = [word for word in words if word not in ("python", "-m")]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: None)
    command = PROGRAMS[words[0]]
    with command.make_context(words[0], words[1:]) as context:
        command.invoke(context)


@pytest.mark.parametrize("line", commands())
def test_a_command_in_the_readme_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(line, monkeypatch)


def test_the_readme_shows_every_command() -> None:
    shown = {line.split()[1] for line in commands() if line.startswith("dws ")}
    assert set(program.list_commands(click.Context(program))) <= shown


@pytest.mark.parametrize("line", ["dws put --no x", "dws get", "dws nothing", "dws serve balancer --dta x"])
def test_a_wrong_command_does_not_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.UsageError):
        parse(line, monkeypatch)


def test_the_table_of_exit_codes_is_the_programs() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README.read_text("utf-8"), re.M)
    assert {int(code): meaning for code, meaning in rows} == exits.MEANINGS


def test_the_readmes_figures_of_the_example_site_are_its_own() -> None:
    text = README.read_text("utf-8")
    site = ROOT / "examples" / "site"
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    index = (site / "index.html").read_bytes()
    docs = [path.stat().st_size for path in (site / "docs").rglob("*") if path.is_file()]
    for figure in (
        f"uploaded examples/site: {len(files)} pages, {size:,} bytes",
        f"stored {len(files)} pages, {size / 1024:.1f} KiB",
        f"  size      {len(index):,} bytes\n  digest    {blake3(index).hexdigest()}\n",
        f"pages     {2 * len(files)} pages, {2 * size / 1024:.1f} KiB: {2 * len(files)} pages with 2 copies",
        f"{len(docs)} pages, {sum(docs)} bytes",
    ):
        assert figure in text, f"README does not say {figure!r}"


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(code_lines(README)), re.M))
    assert named and named <= targets


def test_the_python_example_uses_what_there_is() -> None:
    [source] = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    owners: dict[str, Callable[[str], object]] = {
        "dws": lambda name: getattr(dws, name),
        "client": lambda name: getattr(dws.Client, name),
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners:
            owners[node.value.id](node.attr)
