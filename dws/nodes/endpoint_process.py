"""The process of a web server's HTTP endpoint: what runs in it, and how the web server keeps it running.

What lives here: `serve_endpoint`, the process's own main, and `EndpointProcess`,
the web server's hold on it. What must not: what is answered (dws/http).

The web server starts it, tied to itself by a lifeline, with its own stderr for a
log; starts it again when it ends, after a pause; stops it first when it stops. The
endpoint says where it is by a node.json in a directory of its own.
"""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from dws.nodes.endpoints import advertised, announce, withdraw
from dws.nodes.processes import Backoff, node_environment

_log = logging.getLogger("dws.http.endpoint")

_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MOST_S: Final = 30.0
_STOP_S: Final = 3.0
#: Where, in the web server's data directory, the endpoint's node.json is.
_HTTP_DIRECTORY: Final = "http"


class HttpSettings(Struct, frozen=True):
    """port: -1 for no endpoint, 0 for a free port. gateway: where it sends what it does not hold; may be
    empty."""

    port: int = -1
    gateway: str = ""


class EndpointProcessSettings(Struct, frozen=True):
    name: str
    data: Path
    server: str
    balancer: str
    gateway: str = ""
    bind: str = "127.0.0.1"
    advertise: str = ""
    port: int = 0


def serve_endpoint(settings: EndpointProcessSettings) -> int:
    """Run until SIGINT or SIGTERM. Raises DwsError if it cannot start."""
    from dws.http.endpoint import Endpoint, EndpointSettings
    from dws.http.server import run_http
    from dws.nodes.page_reader import SharedPageReader

    host = advertised(settings.bind, settings.advertise)
    directory = settings.data / _HTTP_DIRECTORY
    reader = SharedPageReader(settings.data)

    def on_listening(port: int) -> None:
        url = f"http://{host}:{port}"
        _log.info("%s serves HTTP at %s", settings.name, url)
        announce(directory, "http", settings.name, url)

    try:
        app = Endpoint(
            EndpointSettings(settings.name, settings.server, settings.balancer, settings.gateway.rstrip("/")),
            reader,
        )
        run_http(app, settings.bind, settings.port, on_listening)
    finally:
        withdraw(directory)
        reader.close()
    return 0


def is_installed() -> bool:
    """Whether the extra `http` is."""
    return all(importlib.util.find_spec(name) is not None for name in ("granian", "werkzeug"))


class EndpointProcess:
    """One endpoint process and the next one after it. `on_change` hears its URL, or "" when it is gone."""

    def __init__(
        self, settings: EndpointProcessSettings, on_change: Callable[[str], None], on_end: Callable[[], None]
    ) -> None:
        """on_end: called when one has ended, however it did."""
        self._settings = settings
        self._on_change = on_change
        self._on_end = on_end
        self._port = settings.port
        self._url = ""
        self._backoff = Backoff(_BACKOFF_FIRST_S, _BACKOFF_MOST_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._started_at = 0.0
        self._start_at: float | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        settings = self._settings
        read, self._lifeline = os.pipe()
        flags = [
            "--name", settings.name, "--data", str(settings.data), "--server", settings.server,
            "--balancer", settings.balancer, "--gateway", settings.gateway, "--bind", settings.bind,
            "--advertise", settings.advertise, "--port", str(self._port), "--lifeline", str(read),
            "--log-level", logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower(),
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dws", "serve", "http", *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[read],
                # Ctrl-C on a terminal reaches the web server, which stops it in turn.
                start_new_session=True,
                env=node_environment(),
            )
        except OSError as error:
            _log.error("the HTTP endpoint cannot be started: %s", error)
            self._close_lifeline()
            self._start_at = time.monotonic() + self._backoff.after(0.0)
        else:
            self._start_at = None
        finally:
            os.close(read)
        self._started_at = time.monotonic()

    def watch(self, now: float) -> None:
        """To be called a few times a second: hears that it is up, starts it again when it is gone."""
        process = self._process
        if process is None:
            if self._start_at is not None and now >= self._start_at:
                self.start()
            return
        code = process.poll()
        if code is None:
            if not self._url and (url := self._announced(process.pid)):
                self._url = url
                # The next one takes the same port, so that redirects on their way find it.
                self._port = int(url.rpartition(":")[2])
                self._on_change(url)
            return
        self._process = None
        self._close_lifeline()
        if not self._url:
            self._port = self._settings.port
        self._url = ""
        pause_s = self._backoff.after(now - self._started_at)
        self._start_at = now + pause_s
        _log.error("the HTTP endpoint ended with %d; starting it again in %g s", code, pause_s)
        self._on_end()
        self._on_change("")

    def stop(self) -> None:
        """End it, whatever it does."""
        process, self._process, self._start_at = self._process, None, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._close_lifeline()

    def _announced(self, pid: int) -> str:
        try:
            path = self._settings.data / _HTTP_DIRECTORY / "node.json"
            told: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return ""
        # One left by a process that was killed says another pid.
        return str(told["endpoint"]) if told.get("pid") == pid else ""

    def _close_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
