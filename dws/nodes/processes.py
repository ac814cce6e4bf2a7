"""One node as a process: started, watched, stopped; its log and its delays.

What lives here: `NodeProcess`, which runs one node at a time under one name, and
`Backoff`, which says when to start it again. What must not: which nodes there
are, and in what order (supervisor.py).

A node is exec'ed in a session of its own, so that Ctrl-C on the terminal reaches
the supervisor alone, and tied to it by a lifeline. Its stderr and stdout go to
its log, appended, so that it can be cut while the node writes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import dws

# A log is cut when it is this large, and so many older ones are kept.
LOG_MAX_BYTES: Final = 16 << 20
LOGS_KEPT: Final = 3
TAIL_LINES: Final = 15
_TAIL_BYTES: Final = 16 << 10


class Backoff:
    """How long to wait before the next start: doubling, and short again after it has been up a while."""

    def __init__(self, first_s: float = 3.0, most_s: float = 60.0) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def after(self, up_s: float) -> float:
        """The delay after a node ended that had been up for so long."""
        if up_s >= self._most_s:
            self._next_s = self._first_s
        delay = self._next_s
        self._next_s = min(2 * delay, self._most_s)
        return delay


class NodeProcess:
    """One name's process, and the next one after it. Not safe for use by several threads at once."""

    def __init__(
        self, name: str, role: str, arguments: Sequence[str], data: Path, log: Path, backoff: Backoff
    ) -> None:
        """`arguments` are those of `dws serve`; `data` is where the node writes its node.json."""
        self.name = name
        self.role = role
        self.arguments = list(arguments)
        self.data = data
        self.log = log
        self.endpoint = ""
        self.starts = 0
        self.restart_at: float | None = None
        self._backoff = backoff
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._started_at = 0.0
        self._log_from = 0

    # -- life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; its endpoint is known once `announced` is true."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        try:
            with self.log.open("ab") as log:
                self._log_from = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "dws", "serve", *self.arguments, "--lifeline", str(read)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[read],
                    start_new_session=True,
                    env=node_environment(),
                )
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        self._lifeline = write
        self._started_at = time.monotonic()
        self.restart_at = None
        self.endpoint = ""
        self.starts += 1

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def exit_code(self) -> int | None:
        """None while it runs, or before it ever did; below zero, the signal that ended it."""
        return self._process.poll() if self._process is not None else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def announced(self) -> bool:
        """Whether this very process has written where it is."""
        if not self.endpoint:
            try:
                told: dict[str, Any] = json.loads((self.data / "node.json").read_text("utf-8"))
            except (OSError, ValueError):
                return False
            # One left by a process that was killed says another pid.
            if told.get("pid") == self.pid:
                self.endpoint = str(told["endpoint"])
        return bool(self.endpoint)

    def ended(self) -> float:
        """Take note that it ended; the delay before the next start."""
        self._close_lifeline()
        delay = self._backoff.after(time.monotonic() - self._started_at)
        self._process = None
        self.endpoint = ""
        self.restart_at = time.monotonic() + delay
        return delay

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def reap(self) -> None:
        """Wait for the end of a process that was killed; `exit_code` then tells it."""
        if self._process is not None:
            self._process.wait()

    def terminate(self) -> None:
        """Ask it to stop; one that was stopped is woken to hear it."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def wait(self, until: float) -> bool:
        """Whether it has ended by then. One that has not is killed, which is whole too: disks are fsynced."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
            return True
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        finally:
            self._close_lifeline()
            self._process = None
            self.endpoint = ""

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    # -- its log ----------------------------------------------------------------------------

    def tail(self) -> list[str]:
        """The last lines of the log since the last start."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - _TAIL_BYTES, min(self._log_from, size)))
                return log.read().decode(errors="backslashreplace").splitlines()[-TAIL_LINES:]
        except OSError:
            return []

    def last_error(self) -> str:
        """The last error among the last lines, or nothing."""
        return next((line for line in reversed(self.tail()) if " ERROR " in line), "")

    def rotate_log(self) -> None:
        """Begin a new log, at the supervisor's start: NAME.log becomes NAME.log.1, and so on."""
        if self.log.exists() and self.log.stat().st_size:
            for number in range(LOGS_KEPT - 1, 0, -1):
                older = self.log.with_name(f"{self.log.name}.{number}")
                if older.exists():
                    older.replace(self.log.with_name(f"{self.log.name}.{number + 1}"))
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))

    def cut_log(self) -> None:
        """Keep a log that grows while its node runs within bounds: copied away, then emptied in place."""
        try:
            if self.log.stat().st_size > LOG_MAX_BYTES:
                shutil.copyfile(self.log, self.log.with_name(f"{self.log.name}.1"))
                os.truncate(self.log, 0)
        except OSError:
            pass  # no room for the copy, say: the node's work is more important than its log


def node_environment() -> dict[str, str]:
    """The node's environment. What it needs is in its arguments: no setting is taken from elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not _is_setting(key)}
    package = str(Path(dws.__file__).resolve().parent.parent)
    path = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"DWS_CONFIG": "", "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def _is_setting(variable: str) -> bool:
    return variable.startswith("DWS_") and not variable.startswith("DWS_TEST_")
