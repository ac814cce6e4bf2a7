"""The structure rules, kept by reading every module's syntax tree.

- **Pure**: every module of `patterns/` and `dws/`, except below the packages in `SHELLS` and `__main__`,
  imports nothing that reads a clock, the disk, the network or hidden randomness, and nothing of a shell.
  Imports inside functions count; imports under `if TYPE_CHECKING:` do not. `__init__` may import importlib,
  to export lazily.
- **Layers**: `patterns` imports nothing of `dws` or `loadgen`, and of libraries only zmq; `dws` nothing of
  `loadgen`. Here imports for types count.
- **Size**: a pure module has at most 400 lines; the list of all wire messages is one list, however long.
- **Names**: no module is called util or helpers; every directory of modules has an `__init__`.
- **Pickle**: nowhere, in no guise.

`problems` judges one module from its path and source, so that the rules are tested on bad sources below.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("patterns", "dws", "loadgen")
PURE_PACKAGES = ("patterns", "dws")
SHELLS = ("patterns.zeromq", "patterns.demos", "patterns.bench", "dws.nodes", "dws.http", "dws.cli")

# By what it would let in. A dotted entry forbids that submodule alone.
IMPURE = frozenset(
    """
    zmq lmdb sqlite3 psutil click rich granian werkzeug prometheus_client
    socket socketserver ssl select selectors http.client http.server urllib.request asyncio trio anyio
    threading _thread multiprocessing concurrent subprocess signal sched queue
    os posix pathlib shutil tempfile glob fileinput mmap fcntl resource pty termios pwd
    time secrets getpass platform ctypes cffi logging atexit runpy
    """.split()  # noqa: SIM905
)
LAZY = "importlib"  # for __init__ alone
# Of these modules some names are pure and others are not.
ONLY = {"random": frozenset({"Random"})}
NEVER = {
    "uuid": frozenset({"uuid1", "uuid4", "getnode"}),
    "datetime": frozenset({"now", "utcnow", "today"}),
    "io": frozenset({"open", "open_code", "FileIO"}),
    "sys": frozenset({"stdin", "stdout", "stderr", "exit"}),
}
IMPURE_CALLS = frozenset({"open", "print", "input", "breakpoint", "__import__", "exec", "eval"})

PICKLES = frozenset({"pickle", "_pickle", "cPickle", "shelve", "dill", "cloudpickle", "joblib", "marshal"})
PICKLING_METHODS = frozenset({"send_pyobj", "recv_pyobj"})

LIBRARIES_OF_PATTERNS = frozenset({"zmq"})
VAGUE_NAMES = frozenset({"util", "utils", "helper", "helpers"})
MAX_LINES = 400
LISTS = {"dws/messages.py"}


def within(name: str, packages: frozenset[str] | tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the packages or lies below one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


class Module:
    """One module's imports and uses, split into those that run and those for types only."""

    def __init__(self, path: str, source: str) -> None:
        parts = path.removesuffix(".py").split("/")
        self.is_init = parts[-1] == "__init__"
        self.path = path
        self.name = ".".join(parts[:-1] if self.is_init else parts)
        self.package = ".".join(parts[:-1])
        self.source = source
        self.tree = ast.parse(source, path)
        self.running = list(self._walk(self.tree))

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_pure(self) -> bool:
        shell = within(self.name, SHELLS) or self.name.endswith(".__main__")
        return self.top in PURE_PACKAGES and not shell

    def _walk(self, node: ast.AST) -> Iterator[ast.AST]:
        """Every node but those below `if TYPE_CHECKING:`."""
        yield node
        if isinstance(node, ast.If) and is_type_checking(node.test):
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
        for child in children:
            yield from self._walk(child)

    def imports(self, nodes: list[ast.AST]) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """(line, module, names taken from it) of each import; relative ones resolved."""
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name, ()
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = self.package.split(".")
                    parents = parents[: len(parents) - node.level + 1]
                    base = ".".join([*parents, *([base] if base else [])])
                yield node.lineno, base, tuple(alias.name for alias in node.names)

    def imported(self, nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of whatever an import may load: `from a import b` gives a and a.b."""
        for line, module, names in self.imports(nodes):
            yield line, module
            for name in names:
                yield line, f"{module}.{name}"

    def bound(self) -> dict[str, str]:
        """Local name → dotted name that an import bound it to, anywhere in the module."""
        names: dict[str, str] = {}
        for node in self.running:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname:
                        names[alias.asname] = alias.name
                    else:
                        top = alias.name.partition(".")[0]
                        names[top] = top
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return names


def purity_problems(module: Module) -> Iterator[tuple[int, str]]:
    if not module.is_pure:
        return
    for line, name in module.imported(module.running):
        if within(name, IMPURE):
            yield line, f"pure module imports {name}"
        elif within(name, SHELLS):
            yield line, f"pure module imports {name}, which is a shell"
        elif within(name, (LAZY,)) and not module.is_init:
            yield line, f"only __init__ may import {name}"
    for line, base, names in module.imports(module.running):
        for name in names:
            if (base in ONLY and name not in ONLY[base]) or name in NEVER.get(base, ()):
                yield line, f"pure module imports {base}.{name}"
    bound = module.bound()
    for node in module.running:
        if isinstance(node, ast.Attribute):
            base = dotted(node.value, bound).partition(".")[0]
            whole = dotted(node.value, bound)
            if (whole in ONLY and node.attr not in ONLY[whole]) or node.attr in NEVER.get(base, ()):
                yield node.lineno, f"pure module uses {whole}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield node.lineno, f"pure module calls {node.func.id}()"


def dotted(node: ast.expr, bound: dict[str, str]) -> str:
    """The dotted name that an expression stands for through imports, or ""."""
    if isinstance(node, ast.Name):
        return bound.get(node.id, "")
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, bound)
        return f"{base}.{node.attr}" if base else ""
    return ""


def layer_problems(module: Module) -> Iterator[tuple[int, str]]:
    for line, name, _ in module.imports(list(ast.walk(module.tree))):
        top = name.partition(".")[0]
        if module.top == "patterns" and top in ("dws", "loadgen"):
            yield line, f"patterns imports {name}"
        elif module.top == "patterns" and not (
            top == "patterns" or top in LIBRARIES_OF_PATTERNS or top in sys.stdlib_module_names
        ):
            yield line, f"patterns imports the library {top}"
        elif module.top == "dws" and top == "loadgen":
            yield line, f"dws imports {name}"


def size_problems(module: Module) -> Iterator[tuple[int, str]]:
    lines = len(module.source.splitlines())
    is_measured = module.is_pure and module.path not in LISTS
    if is_measured and lines > MAX_LINES:
        yield lines, f"{lines} lines, over {MAX_LINES}"


def name_problems(module: Module) -> Iterator[tuple[int, str]]:
    for part in module.name.split("."):
        if part in VAGUE_NAMES:
            yield 1, f"a module named {part} says nothing of what is in it"


def pickle_problems(module: Module) -> Iterator[tuple[int, str]]:
    nodes = list(ast.walk(module.tree))
    for line, name, _ in module.imports(nodes):
        if name.partition(".")[0] in PICKLES:
            yield line, f"imports {name}"
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in PICKLING_METHODS:
            yield node.lineno, f"{node.attr} pickles"


RULES = {
    "purity": purity_problems,
    "layers": layer_problems,
    "size": size_problems,
    "names": name_problems,
    "pickle": pickle_problems,
}


def problems(rule: str, path: str, source: str) -> list[str]:
    """What a rule finds in a module, as `path:line: problem`; `path` is relative to the root."""
    found = RULES[rule](Module(path, source))
    return [f"{path}:{line}: {what}" for line, what in sorted(set(found))]


def modules(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def parsed(*tops: str) -> list[Module]:
    return [Module(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in modules(*tops)]


# The tree as it is


@pytest.mark.parametrize("rule", RULES)
def test_the_packages_keep_the_rule(rule: str) -> None:
    found = [
        problem
        for path in modules(*PACKAGES)
        for problem in problems(rule, path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(["", *found])


def test_nothing_pickles_outside_the_packages_either() -> None:
    paths = [*modules("tests", "examples"), *sorted(ROOT.glob("*.py"))]
    found = [
        problem
        for path in paths
        for problem in problems("pickle", path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(["", *found])


def test_every_directory_of_modules_is_a_package() -> None:
    directories = {path.parent for path in modules(*PACKAGES)}
    missing = sorted(str(d.relative_to(ROOT)) for d in directories if not (d / "__init__.py").exists())
    assert not missing, f"no __init__.py in {', '.join(missing)}: the distribution would lack it"


def test_the_tests_are_no_packages() -> None:
    """With an `__init__`, tests/patterns would be imported in place of the package `patterns`."""
    assert [str(path.relative_to(ROOT)) for path in modules("tests") if path.name == "__init__.py"] == []


def loaded_by(statements: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has loaded after the statements."""
    code = f"import sys\n{statements}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_patterns_loads_neither_the_system_nor_its_libraries() -> None:
    wanted = [m.name for m in parsed("patterns") if not m.name.endswith(".__main__")]
    loaded = loaded_by(f"import patterns, {', '.join(wanted)}")
    assert not loaded & {"dws", "loadgen", "msgspec", "lmdb", "blake3", "psutil", "click", "rich"}


def test_pure_modules_load_no_library_that_does_io() -> None:
    wanted = [m.name for m in parsed("patterns", "dws") if m.is_pure]
    loaded = loaded_by(f"import {', '.join(wanted)}")
    assert not loaded & {"zmq", "lmdb", "psutil", "click", "rich", "loadgen"}


# The checker itself

FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "

BAD = [
    ("purity", "dws/a.py", "import zmq"),
    ("purity", "dws/a.py", "import os.path"),
    ("purity", "dws/a.py", "from os import path"),
    ("purity", "dws/a.py", "import msgspec, time"),
    ("purity", "dws/a.py", "import time as clock"),
    ("purity", "dws/a.py", "from concurrent.futures import Future"),
    ("purity", "dws/a.py", "def f():\n    import socket"),
    ("purity", "dws/a.py", "class A:\n    def f(self):\n        from pathlib import Path"),
    ("purity", "dws/a.py", "if True:\n    import lmdb"),
    ("purity", "dws/a.py", FOR_TYPES + "pass\nelse:\n    import os"),
    ("purity", "dws/a.py", "from dws.nodes import stores"),
    ("purity", "dws/a.py", "from dws import nodes"),
    ("purity", "dws/a.py", "from . import nodes"),
    ("purity", "dws/a.py", "from .cli import main"),
    ("purity", "dws/sim/a.py", "from ..nodes import stores"),
    ("purity", "dws/sim/a.py", "import threading"),
    ("purity", "patterns/sim/a.py", "from patterns.zeromq import reactor"),
    ("purity", "patterns/a.py", "import patterns.zeromq.reactor"),
    ("purity", "patterns/mutex/a.py", "import asyncio"),
    ("purity", "patterns/a.py", "import importlib"),
    ("purity", "patterns/__init__.py", "import time"),
    ("purity", "dws/__init__.py", "from dws.nodes.client import connect"),
    ("purity", "dws/__init__.py", "def __getattr__(name):\n    from dws.nodes import client"),
    ("purity", "dws/a.py", "from random import choice"),
    ("purity", "dws/a.py", "from random import Random, SystemRandom"),
    ("purity", "dws/a.py", "import random\nx = random.random()"),
    ("purity", "dws/a.py", "import random as r\nx = r.choice([1])"),
    ("purity", "dws/a.py", "import uuid\nx = uuid.uuid4()"),
    ("purity", "dws/a.py", "from uuid import UUID, uuid4"),
    ("purity", "dws/a.py", "import datetime\nx = datetime.datetime.now()"),
    ("purity", "dws/a.py", "from datetime import datetime\nx = datetime.now()"),
    ("purity", "dws/a.py", "import secrets"),
    ("purity", "dws/a.py", "def f(name):\n    return open(name)"),
    ("purity", "dws/a.py", "print('hello')"),
    ("layers", "patterns/a.py", "import dws"),
    ("layers", "patterns/zeromq/a.py", "from dws.messages import Locate"),
    ("layers", "patterns/demos/a.py", "def f():\n    import loadgen.plan"),
    ("layers", "patterns/a.py", FOR_TYPES + "import dws"),
    ("layers", "patterns/a.py", "import msgspec"),
    ("layers", "patterns/zeromq/a.py", "from rich.table import Table"),
    ("layers", "dws/a.py", "import loadgen"),
    ("layers", "dws/cli/a.py", "from loadgen import runner"),
    ("size", "dws/a.py", "x = 1\n" * 401),
    ("size", "patterns/a.py", "x = 1\n" * 401),
    ("size", "patterns/sim/a.py", "x = 1\n" * 401),
    ("names", "dws/util.py", ""),
    ("names", "patterns/zeromq/helpers.py", ""),
    ("names", "loadgen/utils/__init__.py", ""),
    ("pickle", "loadgen/a.py", "import pickle"),
    ("pickle", "dws/nodes/a.py", "def f():\n    from pickle import loads"),
    ("pickle", "tests/a.py", "import shelve"),
    ("pickle", "patterns/zeromq/a.py", "def f(socket):\n    return socket.recv_pyobj()"),
]

GOOD = [
    ("purity", "dws/nodes/a.py", "import os, time, zmq, lmdb, threading\nprint(time.time())"),
    ("purity", "dws/http/a.py", "import asyncio"),
    ("purity", "dws/cli/a.py", "import click"),
    ("purity", "dws/__main__.py", "from dws.cli import main\nmain()"),
    ("purity", "patterns/zeromq/__init__.py", "import zmq"),
    ("purity", "patterns/demos/a.py", "import time"),
    ("purity", "loadgen/a.py", "import threading"),
    ("purity", "dws/a.py", "import msgspec\nfrom blake3 import blake3\nfrom dws.errors import DwsError"),
    ("purity", "dws/a.py", "from random import Random"),
    ("purity", "dws/a.py", "import random\ndef f(seed):\n    return random.Random(seed)"),
    ("purity", "dws/a.py", "def f(random):\n    return random.choice([1])"),
    ("purity", "dws/a.py", "import uuid\nx = uuid.UUID(int=1)"),
    ("purity", "dws/a.py", "def f(self):\n    return self.open(self.now)"),
    ("purity", "dws/a.py", FOR_TYPES + "import zmq"),
    ("purity", "dws/a.py", "import typing\nif typing.TYPE_CHECKING:\n    from dws.nodes import stores"),
    ("purity", "dws/__init__.py", "import importlib\n" + FOR_TYPES + "import zmq"),
    ("layers", "patterns/zeromq/a.py", "import zmq, threading\nfrom patterns import jobs\nfrom . import b"),
    ("layers", "dws/a.py", "import msgspec\nfrom patterns.heartbeat import Monitor"),
    ("layers", "loadgen/a.py", "import dws, rich"),
    ("size", "dws/a.py", "x = 1\n" * 400),
    ("size", "dws/nodes/a.py", "x = 1\n" * 401),
    ("names", "dws/utility_of_pages.py", ""),
    ("pickle", "dws/a.py", "from patterns import pickled"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_a_breach_is_reported(rule: str, path: str, source: str) -> None:
    found = problems(rule, path, source)
    assert found
    assert all(problem.startswith(f"{path}:") for problem in found)


@pytest.mark.parametrize(("rule", "path", "source"), GOOD)
def test_what_is_allowed_is_not_reported(rule: str, path: str, source: str) -> None:
    assert problems(rule, path, source) == []


def test_a_report_names_the_line_and_the_import() -> None:
    assert problems("purity", "dws/a.py", "x = 1\n\nfrom os import path") == [
        "dws/a.py:3: pure module imports os",
        "dws/a.py:3: pure module imports os.path",
    ]
