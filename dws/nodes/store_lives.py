"""Lives of a web server on one store directory: how the last one ended, and what that says of its store.

What lives here: the marker of a life under way, deaths by a fault signal, and what
they mean: serve, look first (store_walk.py), or set the store aside and begin an
empty one. What must not: what is looked at, and what a store is.

    life.json         while a server lives; left behind by one that was killed
    faults.log        what the interpreter could still write when it died of a fault signal
    aside/<number>/   stores that were set aside, and why; never deleted by a program

A kill is no fault: whoever is killed by others, however often, has its store looked
through and goes on. A process that died of SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGABRT
was ended by itself, and reading a damaged store is the likeliest reason: after
two such deaths in a row, the second within a minute of its start, or one in the
child that looks, the store is set aside. The minute is one of the life's own: when
it has lasted so long it forgets the death before it, so that no jump of the wall
clock brings two deaths together. What was on it is copied again from the other servers; it is said to nobody
that it is to be deleted anywhere.
"""

import faulthandler
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from dws.errors import Refused
from dws.nodes.store_directory import (
    CATALOG_NAME,
    STORE_NAME,
    DirectoryLock,
    make_directory,
    refuse_foreign,
    sync_directory,
    sync_file,
)
from dws.nodes.store_walk import Walked

_log = logging.getLogger("dws.store")

#: A life that dies of a fault signal within this time, after one that did too: the store's fault.
FAULTS_WITHIN_S: Final = 60.0
#: Stores set aside in one directory; then somebody has to look.
ASIDE_MAX: Final = 16
_LIFE: Final = "life.json"
_FAULTS: Final = "faults.log"
_ASIDE: Final = "aside"
_REASON: Final = "reason.json"
_UNFINISHED: Final = ".part"
#: What makes up a store, in the order in which it is moved: the records last, since page files without
#: them would be deleted at the next opening.
_STORE: Final = ("staging", "pages", "quarantine", f"{STORE_NAME}-lock", STORE_NAME)
#: Characters of the interpreter's last words that go into the log.
_SHOWN: Final = 2000

#: Looks through a store after an unclean stop.
Walk = Callable[[Path], Walked]


class StoreLife:
    """A life of a server on its directory, from before the store is opened until after it is closed.

    1. Make one: takes the directory's lock, looks at how the last life ended, may set the store aside.
    2. `note_faults()`, and open the store with `lock`; `lost` are pages that were found damaged.
    3. `tick(now)` now and then, `now` of the monotonic clock.
    4. After a clean stop `end()`, else `let_go()`.
    """

    def __init__(self, path: Path, walk: Walk) -> None:
        """Raises Refused (in use, or too many stores set aside), OSError, SyncFailed."""
        self.path = path
        self.set_aside = ""
        """Why the store was set aside at this start; empty if it was not."""
        self.lost: list[tuple[str, int]] = []
        self._faults_file: IO[bytes] | None = None
        self._fault_before: float | None = None
        self._began = 0.0
        make_directory(path)
        self.lock = DirectoryLock(path)
        try:
            refuse_foreign(path, CATALOG_NAME, "balancer")
            self._begin(walk)
        except BaseException:
            self.lock.close()
            raise

    def _begin(self, walk: Walk) -> None:
        self._finish_setting_aside()
        last = self._last_life()
        died_at = self._died_of_a_fault() if last is not None else None
        before = _fault_before(last or {})
        if not (self.path / STORE_NAME).exists():
            if any((self.path / "pages").glob("*/*")):
                self._set_aside("there are files of pages, and no record of them")
        elif last is not None:
            # A start that was killed after it had noted a death leaves that death's log: it is the same one.
            again = died_at is not None and before is not None and died_at != before
            self._judge("was killed, or failed" if died_at is None else "died of a fault signal", again, walk)
        self._fault_before = None if self.set_aside else died_at
        self._began = time.monotonic()
        _write_whole(self.path / _LIFE, self._marker())
        (self.path / _FAULTS).unlink(missing_ok=True)

    def _marker(self) -> str:
        told = {"pid": os.getpid(), "began": time.time(), "fault_before": self._fault_before}
        return json.dumps(told) + "\n"

    def tick(self, now: float) -> None:
        """A life that has lasted is not to be blamed for how the one before it ended."""
        if self._fault_before is None or now - self._began < FAULTS_WITHIN_S:
            return
        self._fault_before = None
        # Not synced, in the loop that serves: one that was cut off says as little of that death.
        partial = self.path / f"{_LIFE}.new"
        try:
            partial.write_text(self._marker(), "utf-8")
            os.replace(partial, self.path / _LIFE)
        except OSError as error:
            # A full disk, perhaps. It can serve; the next life may take the death before for a recent one.
            _log.warning("cannot note in %s that this life has lasted: %s", self.path / _LIFE, error)

    def note_faults(self) -> None:
        """From now until the end, should this process die of a fault signal, it leaves word of it."""
        # Kept open: a process that is dying opens nothing.
        self._faults_file = open(self.path / _FAULTS, "wb")  # noqa: SIM115
        faulthandler.enable(self._faults_file)

    def _judge(self, how: str, again: bool, walk: Walk) -> None:
        """After an unclean stop: is the store fit to be served?"""
        if again:
            within = f"the second time within {FAULTS_WITHIN_S:.0f} s of its start"
            self._set_aside(f"the server died of a fault signal twice, {within}")
            return
        began = time.monotonic()
        walked = walk(self.path)
        took_s = time.monotonic() - began
        if walked.fault:
            self._set_aside(f"after the server {how}: {walked.fault}")
            return
        self.lost = walked.damaged
        _log.warning("the last life here %s; %s, in %.2f s", how, walked.text, took_s)

    def end(self) -> None:
        """The store was closed, and is as it should be."""
        (self.path / _LIFE).unlink()
        sync_directory(self.path)
        self.let_go()

    def let_go(self) -> None:
        """This process is done with the directory. Without `end`, the next life looks first."""
        if self._faults_file is not None:
            faulthandler.disable()
            self._faults_file.close()
            self._faults_file = None
        self.lock.close()

    # -- how the last life ended -----------------------------------------------------------

    def _last_life(self) -> dict[str, Any] | None:
        """What it left behind; None if it ended well, or there was none."""
        try:
            text = (self.path / _LIFE).read_text("utf-8")
        except FileNotFoundError:
            return None
        try:
            told = json.loads(text)
        except ValueError:
            return {}  # cut off: somebody was killed while writing it
        return told if isinstance(told, dict) else {}

    def _died_of_a_fault(self) -> float | None:
        """The mark of such a death of the last life, if it was one: two marks differ, and say no more."""
        try:
            log = (self.path / _FAULTS).stat()
        except FileNotFoundError:
            return None
        if not log.st_size:
            return None
        text = (self.path / _FAULTS).read_text("utf-8", "replace")[:_SHOWN]
        _log.error("the last life here died of a fault signal:\n%s", text.rstrip())
        return log.st_mtime

    # -- setting aside ------------------------------------------------------------------------

    def _set_aside(self, reason: str) -> None:
        directory = self.path / _ASIDE
        make_directory(directory)
        names = [each.name.removesuffix(_UNFINISHED) for each in directory.iterdir()]
        numbers = [int(each) for each in names if each.isdecimal()]
        if len(numbers) >= ASIDE_MAX:
            raise Refused(
                f"{self.path}: {reason}; and {ASIDE_MAX} stores were set aside before, in {directory}. Find "
                "out why (memory, disk, program), then move them away and start again"
            )
        target = directory / f"{max(numbers, default=0) + 1}{_UNFINISHED}"
        make_directory(target)
        told = {"reason": reason, "set_aside": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        _write_whole(target / _REASON, json.dumps(told, indent=2) + "\n")
        self._move_into(target)
        self.set_aside = reason
        _log.error(
            "%s: the store is set aside in %s and this server starts empty: %s. Its pages are copied again "
            "from the other servers; delete it when `dws status` shows nothing missing",
            self.path, target.with_suffix(""), reason,
        )  # fmt: skip

    def _finish_setting_aside(self) -> None:
        """Go on where a start was killed that set a store aside."""
        for target in (self.path / _ASIDE).glob(f"*{_UNFINISHED}"):
            if (target / _REASON).exists():
                self._move_into(target)
            else:
                # Killed before anything was moved: it is decided anew.
                shutil.rmtree(target)

    def _move_into(self, target: Path) -> None:
        for name in _STORE:
            if (self.path / name).exists():
                os.replace(self.path / name, target / name)
        sync_directory(target)
        sync_directory(self.path)
        os.replace(target, target.with_suffix(""))
        sync_directory(target.parent)


def _fault_before(last: dict[str, Any]) -> float | None:
    """The mark of the death by a fault that the last life followed, if it did and had not outlived it."""
    mark = last.get("fault_before")
    return float(mark) if isinstance(mark, int | float) else None


def _write_whole(path: Path, text: str) -> None:
    """Durable: readers see the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".new")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        sync_file(file.fileno(), partial)
    os.replace(partial, path)
    sync_directory(path.parent)
