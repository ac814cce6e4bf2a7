"""The client processes of a run, and the runner's side of the pipes to them.

What lives here: starting them, hearing them, ending them. What must not: what they do (worker), what the
runner makes of it. Clients are executed, never forked, and none outlives the runner: a worker whose standard
input ends, stops.
"""

import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

import msgspec

from dws.errors import TimedOut, Unreachable
from loadgen.measured import ClientResult
from loadgen.talk import Fault, Finished, Lines, Progress, Ready, Said

STOP_WITHIN_S: Final = 2.0

UNREACHABLE: Final = frozenset({Unreachable.__name__, TimedOut.__name__})

OnProgress = Callable[[float, Progress], None]


class RunError(Exception):
    """The load could not be made; the text, one line, says why. `unreachable`: nobody answered."""

    def __init__(self, text: str, *, unreachable: bool = False) -> None:
        super().__init__(text)
        self.unreachable = unreachable


class Process:
    """One client process and the pipes to it."""

    def __init__(self, number: int, errors: IO[bytes]) -> None:
        self.number = number
        self._errors = errors
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "loadgen", "worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
            process_group=0,  # Ctrl-C reaches the runner alone, which tells its workers
        )
        assert self.popen.stdin and self.popen.stdout
        self._commands = self.popen.stdin
        self.output = self.popen.stdout
        self._lines = Lines(self.output.fileno())

    def tell(self, line: bytes) -> None:
        """A process that has ended is not told anything; its end shows when it is listened to."""
        try:
            self._commands.write(line + b"\n")
            self._commands.flush()
        except BrokenPipeError:
            pass

    def hear(self) -> Iterator[Said]:
        """What it has said; RunError if it says that it cannot, or ended without a word."""
        self._lines.feed()
        while (line := self._lines.buffered()) is not None:
            said = msgspec.json.decode(line, type=Said)
            if isinstance(said, Fault):
                text = f"client {self.number + 1}: {said.kind}: {said.text}"
                raise RunError(text, unreachable=said.kind in UNREACHABLE)
            yield said
        if self._lines.ended:
            raise RunError(f"client {self.number + 1} ended early: {self._last_words()}")

    def end(self) -> None:
        """Make sure that it has ended, and close the pipes."""
        try:
            self._commands.close()
        except BrokenPipeError:
            pass
        try:
            self.popen.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.output.close()

    def _last_words(self) -> str:
        status = self.popen.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"status {status}: {said}"


def environment() -> dict[str, str]:
    """This process's, with this very package importable, from wherever it was started."""
    here = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, path] if path else [here])}


class Conversation:
    """The runner's side of the pipes: all are ready, all start, all finish."""

    def __init__(self, processes: Sequence[Process], stack: ExitStack) -> None:
        self._processes = processes
        self._selector = stack.enter_context(selectors.DefaultSelector())
        for process in processes:
            self._selector.register(process.output, selectors.EVENT_READ, process)

    def until_ready(self, within_s: float) -> None:
        waiting = {process.number for process in self._processes}
        deadline = time.monotonic() + within_s
        while waiting:
            if time.monotonic() > deadline:
                raise RunError(f"client {min(waiting) + 1} was not ready to start after {within_s:.0f} s")
            waiting -= {process.number for process, said in self._heard() if isinstance(said, Ready)}

    def until_finished(
        self, start_s: float, stopping: threading.Event, on_progress: OnProgress | None
    ) -> list[ClientResult]:
        self._tell(f"go {start_s!r}".encode())
        results: dict[int, ClientResult] = {}
        latest: dict[int, Progress] = {}
        told = False
        while len(results) < len(self._processes):
            if stopping.is_set() and not told:
                self._tell(b"stop")
                told = True
            for process, said in self._heard():
                if isinstance(said, Finished):
                    results[process.number] = said.result
                    self._selector.unregister(process.output)
                elif isinstance(said, Progress):
                    latest[process.number] = said
                    if on_progress:
                        on_progress(time.monotonic() - start_s, _together(latest))
        return [results[number] for number in sorted(results)]

    def _tell(self, line: bytes) -> None:
        for process in self._processes:
            process.tell(line)

    def _heard(self) -> Iterator[tuple[Process, Said]]:
        for key, _ in self._selector.select(timeout=0.1):
            for said in key.data.hear():
                yield key.data, said
                if isinstance(said, Finished):
                    break  # its last word: what follows is the end of the pipe


def _together(latest: dict[int, Progress]) -> Progress:
    return Progress(
        sum(one.requests for one in latest.values()),
        sum(one.pages for one in latest.values()),
        sum(one.failed for one in latest.values()),
    )
