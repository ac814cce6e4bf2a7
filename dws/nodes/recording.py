"""Recordings of nodes as files: what --record asks for.

What lives here: where a recording goes, its bound, and the making of a machine
that is recorded. What must not: the format (dws/sim/recording.py).

--record names a file, which must not exist, or a directory, which gets a file for
each start of a node: `web-2-7.rec` is the seventh of web-2. A recording holds what
clients sent, the bytes of uploaded pages included, so only its owner may read it.

A recording goes to the operating system whenever the machine's clock ticks: of a
node that is killed the last tenth of a second may be missing. A disk that is full
ends the recording, not the node.
"""

import logging
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

import dws
from dws.balancer import Balancer
from dws.config import Config
from dws.errors import ConfigError
from dws.following import Endpoints
from dws.limits import GIB, MIB
from dws.nodes.catalog_store import LmdbCatalogStore
from dws.nodes.page_store import LmdbPageStore
from dws.nodes.source_digest import source_digest
from dws.sim.recorder import Recorder
from dws.sim.recording import VERSION, BalancerStart, WebServerStart
from dws.webserver import WebServer

_log = logging.getLogger("dws.recording")

BYTES_MAX: Final = GIB
BYTES_LEAST: Final = MIB
#: Files of one node in a directory; a node that starts again and again is not recorded for ever.
_FILES_MAX: Final = 64
_LAST_FRAME_BYTES: Final = 1024
_SUFFIX: Final = ".rec"


class RecordSettings(Struct, frozen=True):
    """path: a file to make, or a directory. max_bytes: where a recording ends."""

    path: Path
    max_bytes: int = BYTES_MAX


class RecordingFile:
    """A dws.sim.recorder.Sink. Raises ConfigError, OSError if the file cannot be made."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        if max_bytes < BYTES_LEAST:
            raise ConfigError(f"a recording of {max_bytes:,} bytes at most: {BYTES_LEAST:,} are the least")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ConfigError(f"{path} exists; name another file to record into, or a directory") from None
        self.path = path
        self._file = open(descriptor, "wb", buffering=256 << 10)  # noqa: SIM115
        self._left = max_bytes - _LAST_FRAME_BYTES
        self._is_broken = False

    def write(self, frame: bytes) -> bool:
        if len(frame) > self._left or self._is_broken:
            return False
        self._left -= len(frame)
        return self._do(lambda: self._file.write(frame))

    def flush(self) -> None:
        if not self._file.closed:
            self._do(self._file.flush)

    def finish(self, frame: bytes, reason: str) -> None:
        _log.info("%s ends: %s", self.path, reason)
        self._do(lambda: self._file.write(frame))
        self._do(self._file.close)

    def _do(self, act: Callable[[], object]) -> bool:
        """Whether it could be done: if not, what was written so far stays, and the node goes on."""
        if self._is_broken:
            return False
        try:
            act()
        except OSError as error:
            self._is_broken = True
            _log.error("%s: %s; the recording ends here", self.path, error.strerror or error)
            return False
        return True


def open_file(settings: RecordSettings, name: str, start: int) -> RecordingFile | None:
    """The file for this start of a node; None, and a line in the log, if the directory has enough of it."""
    path = settings.path
    if path.is_dir():
        name = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        own = [
            each for each in path.iterdir() if re.fullmatch(rf"{re.escape(name)}-\d+\{_SUFFIX}", each.name)
        ]
        if len(own) >= _FILES_MAX:
            _log.error(
                "%s has %d recordings of %s, the bound: this start is not recorded", path, len(own), name
            )
            return None
        path = path / f"{name}-{start}{_SUFFIX}"
    file = RecordingFile(path, settings.max_bytes)
    _log.info("recording to %s, %d bytes at most", path, settings.max_bytes)
    return file


def recorded_balancer(
    settings: RecordSettings, store: LmdbCatalogStore, config: Config, now: float
) -> tuple[Balancer, Recorder] | None:
    """The machine and what it is to be driven through; None if it cannot be recorded any more."""
    file = open_file(settings, "balancer", store.head.epoch)
    if file is None:
        return None
    seed = os.urandom(16)
    start = BalancerStart(
        VERSION, dws.__version__, source_digest(), time.time(), now, seed, config, store.head
    )
    recorder = Recorder(file, start)
    machine = Balancer(
        store.head, recorder.records(store.load()), recorder.noting("outcome", store.outcome),
        recorder.noting("knows_start", store.knows_start), config, random.Random(seed), now,
    )  # fmt: skip
    recorder.begin(machine)
    return machine, recorder


def recorded_webserver(
    settings: RecordSettings,
    name: str,
    store: LmdbPageStore,
    endpoints: Endpoints,
    config: Config,
    now: float,
) -> tuple[WebServer, Recorder] | None:
    """The same of a web server."""
    file = open_file(settings, name, store.identity.incarnation >> 32)
    if file is None:
        return None
    recorder = Recorder(
        file,
        WebServerStart(VERSION, dws.__version__, source_digest(), time.time(), now, name, endpoints, config),
    )
    machine = WebServer(name, recorder.reading(store), endpoints, config, now)
    recorder.begin(machine)
    return machine, recorder
