"""Bugs planted in the real processes are caught by a drill.

Each bug is a change of one module's text, made while the module is imported, in the drill's own process and
in every node that it starts: a `sitecustomize` on PYTHONPATH does that. The tree itself is not touched. Where
the text is not found any more the import fails, and with it the test.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

PLANTER = """
import importlib.machinery
import importlib.util
import sys

MODULE, OLD, NEW = {bug!r}


class Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, name):
        source = self.get_data(self.path).decode()
        if source.count(OLD) != 1:
            raise ImportError(f"the text to be changed is {{source.count(OLD)}} times in {{self.path}}")
        return compile(source.replace(OLD, NEW), self.path, "exec")


class Planter:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != MODULE:
            return None
        origin = importlib.machinery.PathFinder.find_spec(name, path).origin
        return importlib.util.spec_from_file_location(name, origin, loader=Loader(name, origin))


sys.meta_path.insert(0, Planter)
"""


class Bug(NamedTuple):
    """fault: the drill's flags; told: any of these is in what the drill finds."""

    module: str
    old: str
    new: str
    fault: list[str]
    told: tuple[str, ...]


BUGS = {
    "acknowledge before fsync": Bug(
        "dws.nodes.balancer",
        "        store.commit(decisions, head.epoch)\n",
        "        import threading\n"
        "        threading.Thread(target=store.commit, args=(decisions, head.epoch)).start()\n",
        ["--fault", "balancer"],
        # Lost decisions are told by the servers, too: they were told of them, and refuse the old catalog.
        ("linearizable", "all web servers in sync"),
    ),
    "drop before verified": Bug(
        "dws.surplus",
        "            effects += self._begin(key, server)\n",
        "            effects += self._begin(key, server)\n"
        "            check = self._checks[self._serial]\n"
        "            check.good = {number: set(check.records) for number in check.asked}\n"
        "            self._drop(check, now)\n",
        ["--fault", "corrupt", "--set", "scrub_every_s=86400"],
        ("/drill/rot/",),
    ),
    "revive a deleted page": Bug(
        "dws.sync",
        "        self._catalog.hold_all(number, records, now)\n",
        "        self._catalog.hold_all(number, records, now)\n"
        "        for record in records:\n"
        "            if record.name not in self._catalog.pages:\n"
        "                self._catalog.show(record, [number], now)\n",
        # Only what a balancer does not know of a server comes to it as a manifest: all, after its start.
        ["--fault", "balancer", "--rounds", "2"],
        ("linearizable",),
    ),
}

#: The drills' own: a fault that does not happen. A drill that does not hurt proves nothing.
HARMLESS = {
    "nobody stands still": Bug(
        "loadgen.drill.cluster",
        "        self.nodes[name].signal(signal.SIGSTOP)\n",
        "",
        ["--fault", "hang"],
        ("in spite of the signal",),
    ),
    "nothing is cut": Bug(
        "loadgen.drill.proxy",
        '        self._set("cut", True, ways)\n',
        "        pass\n",
        ["--fault", "partition"],
        ("is not chosen any more",),
    ),
    "no byte changes": Bug(
        "loadgen.drill.disks",
        "        view[at] ^= 0xFF\n",
        "",
        ["--fault", "corrupt"],
        ("damage found on",),
    ),
}


def drill(directory: Path, bug: Bug | None, *flags: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a drill with a bug in all of its processes."""
    environment = dict(os.environ)
    if bug is not None:
        directory.mkdir()
        planter = PLANTER.format(bug=(bug.module, bug.old, bug.new))
        (directory / "sitecustomize.py").write_text(planter, "utf-8")
        environment["PYTHONPATH"] = os.pathsep.join([str(directory), str(ROOT)])
    command = [sys.executable, "-m", "loadgen", "drill", "--json", "-", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert done.stdout, f"no report; exit code {done.returncode}"
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [*BUGS, *HARMLESS])
def test_a_planted_bug_is_caught(name: str, tmp_path: Path, seed: int) -> None:
    bug = {**BUGS, **HARMLESS}[name]
    code, report = drill(tmp_path / "planted", bug, *bug.fault, "--seed", str(seed), "--set", "dead_s=5")
    found = [
        *report["problems"],
        *report["read_back"]["problems"],
        *(problem for each in report["rounds"] for problem in each["problems"]),
    ]
    assert code == 1
    assert any(told in problem for told in bug.told for problem in found), found


def test_a_planter_that_finds_nothing_to_change_says_so(tmp_path: Path) -> None:
    """Else a bug that is planted nowhere would count as one that was not caught."""
    (tmp_path / "sitecustomize.py").write_text(PLANTER.format(bug=("dws.surplus", "not there", "x")), "utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", "import dws.surplus"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "the text to be changed is 0 times" in done.stderr
