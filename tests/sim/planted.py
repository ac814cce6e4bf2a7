"""Bugs to plant: each one line of the production code, replaced by a wrong one, and who must find it.

A planted bug is loaded by an import hook in a fresh interpreter, and looked for in the simulator, from its
first seed on, until an invariant breaks (`PYTHONPATH=. python tests/sim/planted.py NAME`). Some lie where
chance is slow: they have a scenario (scenarios.py) that makes what they forget to guard against happen all
the time, and does no harm to the code as it is.
"""

import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Sequence
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from msgspec import Struct

ROOT = Path(__file__).parents[2]
#: What a run can end with besides a broken invariant.
RESTLESS, CRASH = "no convergence", "crash of a machine"


class Planted(Struct, kw_only=True):
    """name, breaks: the rule of the protocol in words; module: its path; found_by: the invariants (or ends of
    a run) of which one must find it; said: options that are not left to the seed; first: where the search
    begins; seeds: how far it goes."""

    name: str
    breaks: str
    module: str
    old: str
    new: str
    found_by: set[str]
    said: dict[str, Any] = {}
    scenario: str = ""
    first: int = 0
    seeds: int = 30


PLANTED = [
    Planted(
        name="acknowledge-before-fsync",
        breaks="what is told to be visible is durable",
        module="dws/placement.py",
        old="state = OPEN if batch.state in (DECIDING, DOOMED) else batch.state",
        new="state = {DECIDING: VISIBLE, DOOMED: OPEN}.get(batch.state, batch.state)",
        found_by={"acknowledged"},
    ),
    Planted(
        name="told-never-while-it-is-written",
        breaks="a deadline that falls into the write waits for its result",
        module="dws/placement.py",
        old="state = OPEN if batch.state in (DECIDING, DOOMED) else batch.state",
        new="state = {DECIDING: NEVER, DOOMED: OPEN}.get(batch.state, batch.state)",
        found_by={"told-failed", "decided-once"},
        said={"fsync_s": 0.5},
    ),
    Planted(
        name="stored-is-taken-for-visible",
        breaks="a put returns when its batch is decided, not when it is stored",
        module="dws/decided.py",
        old='            case "visible":',
        new='            case "visible" | "open":',
        found_by={"acknowledged"},
    ),
    Planted(
        name="decide-with-one-copy",
        breaks="a batch is decided when as many servers have stored it as it asked for",
        module="dws/placement.py",
        old="        if len(holders) < batch.copies and batch.pages:",
        new="        if len(holders) < 1 and batch.pages:",
        found_by={"copies"},
    ),
    Planted(
        name="conditions-only-at-reserve",
        breaks="conditions are checked when the batch is decided",
        module="dws/placement.py",
        old="        failing = self._failing(batch.conditions, visible_only=False)",
        new="        failing: list[str] = []",
        found_by={"condition", "skipped"},
    ),
    Planted(
        name="conditions-overlook-what-is-being-written",
        breaks="conditions see the decisions already handed to the writer",
        module="dws/placement.py",
        old="        failing = self._failing(batch.conditions, visible_only=False)",
        new="        failing = self._failing(batch.conditions, visible_only=True)",
        found_by={"condition", "skipped"},
        said={"fsync_s": 0.5, "think_s": 0.1},
    ),
    Planted(
        name="conflict-before-its-cause-is-durable",
        breaks="a conflict that rests on a handed decision is told only after its fsync",
        module="dws/placement.py",
        old="            if unwritten:",
        new="            if not failing:",
        found_by={"conflict"},
        said={"fsync_s": 0.5, "think_s": 0.1},
    ),
    Planted(
        name="a-skip-is-no-condition",
        breaks="that a skipped page stays as it is is a condition of the batch",
        module="dws/placement.py",
        old="            conditions[name] = self._catalog.pages[name].version",
        new="            assert name in self._catalog.pages",
        found_by={"skipped"},
    ),
    Planted(
        name="versions-begin-anew",
        breaks="a version is never used again, whatever happens to the balancer",
        module="dws/placement.py",
        old="restart the balancer\")\n        return make_version(self._head.epoch, self._counter)",
        new="restart the balancer\")\n        return make_version(1, self._counter)",
        found_by={"version-reused", "earlier-epoch"},
        said={"faults": ("crash",), "fault_s": 1.0},
    ),
    Planted(
        name="a-visible-batch-is-forgotten",
        breaks="the catalog remembers decided batch ids beyond a restart",
        module="dws/placement.py",
        old="        remembered = self._outcome_of(batch_id)",
        new="        remembered = None",
        found_by={"told-failed", "decided-once"},
        said={"faults": ("crash", "break"), "fault_s": 0.4, "seconds": 16.0},
    ),
    Planted(
        name="a-removal-is-not-looked-up",
        breaks="a request that is sent twice is decided once",
        module="dws/placement.py",
        old="        refusal: Outcome | Error | None = self._ended(request.batch)",
        new="        refusal: Outcome | Error | None = None",
        found_by={"decided-once", "told-failed", "version-reused"},
        scenario="again",
    ),
    Planted(
        name="never-is-not-remembered",
        breaks="an id once told never stays refused",
        module="dws/placement.py",
        old="        self._remember(batch_id, outcome)\n        return outcome",
        new="        return outcome",
        found_by={"told-failed"},
        scenario="never",
    ),
    Planted(
        name="an-earlier-epoch-is-decided",
        breaks="a removal of an earlier epoch is refused",
        module="dws/placement.py",
        old="        if refusal is None and request.epoch != self._head.epoch:",
        new="        if refusal is None and request.epoch > self._head.epoch:",
        found_by={"told-failed"},
        scenario="never",
        said={"faults": ("crash",), "fault_s": 0.4},
    ),
    Planted(
        name="half-a-batch-is-shown",
        breaks="a batch becomes visible whole",
        module="dws/placement.py",
        old="        for record in batch.records.values():\n            # Whoever",
        new="        for record in list(batch.records.values())[:1]:\n            # Whoever",
        found_by={"located", "batch-whole"},
    ),
    Planted(
        name="a-removed-page-stays",
        breaks="with its decision a removed page is gone",
        module="dws/placement.py",
        old="            if not self._catalog.hide(name, now):",
        new="            if name not in self._catalog.pages:",
        found_by={"revived"},
    ),
    Planted(
        name="a-page-without-holders-is-not-found",
        breaks="not found is the catalog's word alone",
        module="dws/lookup.py",
        old="            if packed is None:",
        new="            if packed is None or not groups[unpack_head(packed)[-1]].holders:",
        found_by={"linearizable"},
        said={"faults": ("crash",), "fault_s": 0.4, "delay_s": 0.01, "late_s": 0.3, "think_s": 0.1},
    ),
    Planted(
        name="a-deadline-is-forgotten",
        breaks="a batch that is not decided by its deadline ends",
        module="dws/placement.py",
        old="            if batch.state == OPEN and now >= batch.deadline:",
        new="            if batch.state == OPEN and now < 0:",
        found_by={RESTLESS, "deadline"},
        scenario="abandon",
    ),
    Planted(
        name="a-lost-job-is-not-issued-again",
        breaks="a job is issued again until its effect is reported",
        module="patterns/jobs.py",
        old="        self._take_back_overdue(now)",
        new="        assert now >= 0",
        found_by={RESTLESS},
        scenario="lossy",
    ),
    Planted(
        name="a-backup-copies-from-itself",
        breaks="the copies of a page are on different servers",
        module="dws/replication.py",
        old="        taken = {*holders, *batch.ordered, *resting}",
        new="        taken = {*batch.ordered, *resting}",
        found_by={"twice"},
    ),
    Planted(
        name="an-open-batch-is-garbage",
        breaks="nothing of an open batch is dropped",
        module="dws/garbage.py",
        old="            elif not self._is_open(version) and not self._is_visible(name, version):",
        new="            elif not self._is_visible(name, version):",
        found_by={"drop-open"},
        said={"faults": ("pause", "slow"), "fault_s": 0.4, "fsync_s": 0.5},
    ),
    Planted(
        name="what-is-superseded-stays",
        breaks="a record that the catalog does not name is dropped",
        module="dws/garbage.py",
        old="        return visible is not None and visible[0] == version",
        new="        return visible is not None and visible[0] != version",
        found_by={RESTLESS},
    ),
    Planted(
        name="a-copy-under-drop-counts",
        breaks="from the moment its drop is ordered a copy counts no more",
        module="dws/surplus.py",
        old="            self._catalog.disown(check.server, name, version, now)",
        new="            assert now >= 0",
        found_by={"machine", "presence"},
        scenario="surplus",
    ),
    Planted(
        name="a-new-life-is-taken-to-have-dropped-nothing",
        breaks="what was under drop when its server ended counts again when the manifest shows it, no sooner",
        module="dws/surplus.py",
        old="                    self._catalog.release(number, name, version)",
        new="                    page = self._catalog.pages.get(name)\n"
        "                    if self._catalog.release(number, name, version) and page is not None:\n"
        "                        self._catalog.hold(number, page.record(name), 0.0)",
        found_by={"presence"},
        scenario="halfway",
    ),
    Planted(
        name="surplus-is-dropped-unverified",
        breaks="a surplus copy is dropped after those that stay were read again",
        module="dws/surplus.py",
        old="        check.good[number] = {names[index] for index in answer.good if index < len(names)}",
        new="        check.good[number] = set(names)",
        found_by={"last-copy"},
        scenario="surplus",
    ),
    Planted(
        name="a-stale-job-is-accepted",
        breaks="jobs pass in the order of their numbers, each once",
        module="patterns/jobs.py",
        old="        if number <= self._passed:",
        new="        if number < 1:",
        found_by={"stale-job"},
        scenario="late",
    ),
    Planted(
        name="a-job-of-another-life-is-accepted",
        breaks="a job names the incarnation that it is for",
        module="patterns/jobs.py",
        old=" or epoch != self._epoch or incarnation != self._incarnation:",
        new=" or epoch != self._epoch:",
        found_by={"stale-job"},
        scenario="late",
        said={"faults": ("crash",), "fault_s": 0.4},
    ),
    Planted(
        name="a-job-of-another-epoch-is-accepted",
        breaks="a job names the epoch of its balancer",
        module="patterns/jobs.py",
        old=" or epoch != self._epoch or incarnation != self._incarnation:",
        new=" or incarnation != self._incarnation:",
        found_by={"stale-job"},
        scenario="late",
        said={"faults": ("crash",), "fault_s": 0.4},
    ),
    Planted(
        name="an-older-incarnation-is-welcome",
        breaks="a hello of an earlier incarnation is refused",
        module="dws/membership.py",
        old="        if known is not None and hello.incarnation < known.incarnation:",
        new="        if known is not None and hello.incarnation < 0:",
        found_by={"incarnation", CRASH},
        scenario="late",
        said={"faults": ("crash",), "fault_s": 0.4},
    ),
    Planted(
        name="an-old-change-is-applied",
        breaks="a change that has been applied is not applied again",
        module="patterns/snapshot.py",
        old="        if number <= self.applied:",
        new="        if number < 0:",
        found_by={"picture"},
        scenario="late",
    ),
    Planted(
        name="a-change-is-passed-over",
        breaks="behind a gap no change is applied",
        module="patterns/snapshot.py",
        old="        if number > self.applied + 1:",
        new="        if number > self.applied + 1000:",
        found_by={"picture"},
        scenario="late",
        said={"log_max": 1000},
    ),
    Planted(
        name="an-old-catalog-is-accepted",
        breaks="a balancer whose catalog is behind what a server was told refuses it",
        module="dws/membership.py",
        old="        if hello.decision > decision:",
        new="        if hello.decision < 0:",
        found_by={"wrong-catalog"},
        said={"faults": ("old-catalog",), "fault_s": 1.0, "seconds": 16.0},
    ),
    Planted(
        name="a-late-hello-is-followed",
        breaks="a balancer counts on a server from the hello that names its start",
        module="dws/balancer.py",
        old="        if not self.members.follows(hello):",
        new="        if hello.decision < 0:",
        found_by={"wrong-catalog"},
        scenario="bygone",
    ),
    Planted(
        name="an-old-catalog-decides",
        breaks="nothing is removed before a server that the catalog knows has joined",
        module="dws/membership.py",
        old="        if not self._vouching:",
        new="        if self._vouching is not None:",
        found_by={"wrong-catalog"},
        scenario="hasty",
    ),
    Planted(
        name="a-copy-is-not-checked",
        breaks="who copies a page checks its digest",
        module="dws/copying.py",
        old="            if blake3(page).digest() != record.digest:",
        new="            if blake3(page).digest() == b'':",
        found_by={"bytes"},
        said={"servers": 4, "faults": ("rot", "crash"), "fault_s": 0.4, "seconds": 16.0, "large": 0.0},
    ),
    Planted(
        name="a-reader-checks-no-digest",
        breaks="a reader checks what it gets against the digest that the balancer named",
        module="dws/download.py",
        old="                if blake3(body).digest() == page.digest:",
        new="                if len(body) == page.size:",
        found_by={"bytes", "linearizable"},
        said={"faults": ("rot",), "fault_s": 0.4, "seconds": 16.0},
    ),
    Planted(
        name="a-transfer-knows-no-credit",
        breaks="bytes on the way stay under a credit",
        module="patterns/transfer.py",
        old="        return self._next < self.size and end <= self.position + self._credit_bytes",
        new="        return self._next < self.size and end <= self.size",
        found_by={"credit"},
        scenario="large",
    ),
    Planted(
        name="an-answer-names-no-request",
        breaks="a reply carries the id of its request",
        module="patterns/request_reply.py",
        old="        return peer, _REPLY_PREFIX + request_id + self.realm + body",
        new="        return peer, _REPLY_PREFIX + bytes(8) + self.realm + body",
        found_by={"one-reply"},
    ),
    Planted(
        name="an-answer-is-given-twice",
        breaks="a request gets one reply",
        module="dws/placement.py",
        old="        batch.waiters.append((token, request.seen, now + request.patience_s))",
        new="        batch.waiters += [(token, request.seen, now + request.patience_s)] * 2",
        found_by={CRASH},
    ),
]  # fmt: skip


# -- planting ------------------------------------------------------------------------------


def broken(planted: Planted) -> str:
    """The module's source with the bug in it; ValueError if its line is not there, once."""
    source = (ROOT / planted.module).read_text("utf-8")
    if source.count(planted.old) != 1:
        found = source.count(planted.old)
        raise ValueError(f"{planted.name}: {planted.module} has {found} times, not once: {planted.old}")
    return source.replace(planted.old, planted.new)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a source in place of the file's own, and heeds no cached code."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, planted: Planted) -> None:
        self._name = planted.module.removesuffix(".py").replace("/", ".")
        self._loader = _Loader(self._name, str(ROOT / planted.module), broken(planted))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return spec_from_loader(fullname, self._loader) if fullname == self._name else None


def plant(planted: Planted) -> None:
    name = planted.module.removesuffix(".py").replace("/", ".")
    assert name not in sys.modules, f"{name} is loaded already"
    sys.meta_path.insert(0, _Finder(planted))


def hunt(planted: Planted) -> dict[str, Any]:
    """Look for it, from its first seed on: what ended the first run that did not end well, played twice."""
    from scenarios import SCENARIOS

    from dws.sim.fuzz import OK, run
    from dws.sim.options import drawn
    from dws.sim.oracle import Oracle

    scenario = SCENARIOS[planted.scenario]
    for seed in range(planted.first, planted.first + planted.seeds):
        options = drawn(seed, **{**scenario.said, **planted.said})
        verdicts = []
        for _ in range(2):
            verdicts.append(run(seed, options, Oracle(), prepare=scenario.prepare))
            if verdicts[0].kind == OK:
                break
        else:
            one, again = verdicts
            same = (one.event, one.digest, one.text) == (again.event, again.digest, again.text)
            return {
                "seed": seed, "tried": seed - planted.first + 1, "found": one.rule or one.kind,
                "text": one.text, "event": one.event, "replays": same,
            }  # fmt: skip
    return {"found": "", "tried": planted.seeds, "text": "", "seed": -1, "event": 0, "replays": True}


def main(name: str) -> None:
    planted = next(each for each in PLANTED if each.name == name)
    plant(planted)
    print(json.dumps(hunt(planted)))


if __name__ == "__main__":
    main(sys.argv[1])
