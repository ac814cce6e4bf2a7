"""The one place where an HTTP server gets its options.

What lives here: the listening socket, Granian's embedded server around it, its
bounds, and a clean end at a signal. What must not: routes. One process, one
event loop, whose thread runs the application; Granian's own threads only parse
and write.
"""

import asyncio
import errno
import logging
import os
import random
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from dws.errors import ConfigError, Refused
from dws.http import shortcut

#: Connections that wait to be accepted, and requests that are worked on at once.
_BACKLOG: Final = 1024
_REQUESTS_MAX: Final = 4096
#: A client that has not sent its whole head by then is let go.
_HEAD_TIMEOUT_MS: Final = 10_000
_HEAD_MAX_BYTES: Final = 64 * 1024
_TRIES: Final = 50
#: What Granian's threads get to let go of the last answers.
_DROP_S: Final = 0.1


def run_http(app: Any, host: str, port: int, on_listening: Callable[[int], None]) -> None:
    """Serve an RSGI application until SIGINT or SIGTERM. port 0: a free one, told to `on_listening`.

    Raises Refused if the port is taken, ConfigError if the address is none of this machine's, and
    whatever `app.__rsgi_init__` raises.
    """
    try:
        from granian.server.embed import Server  # noqa: F401
    except ImportError:
        raise ConfigError('HTTP needs the extra "http": pip install "dws-cluster[http]"') from None
    with listen(host, port) as listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, listener, on_listening))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: some 5 % less work for a redirect, measured in turns."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Not shared (SO_REUSEPORT): a port that is taken is an error."""
    if port:
        return _listen(host, port)
    for _ in range(_TRIES):
        try:
            # Below what Linux gives to outgoing connections: one of those could take the port of a
            # process that is being started again.
            return _listen(host, random.randrange(20_000, 32_000))
        except Refused:
            pass
    raise Refused(f"found no free port on {host} in {_TRIES} tries: give one")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} on {host} is taken: stop what listens there, or choose another"
            raise Refused(text) from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from None
    return listener


async def _serve(app: Any, listener: socket.socket, on_listening: Callable[[int], None]) -> None:
    from granian._granian import SocketHolder
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    # Its constructor's arguments are missing from Granian's type stubs.
    holder: Any = SocketHolder

    class OnListener(Server):
        """Granian on a socket of ours: its own is shared, so a taken port would go unnoticed."""

        def _init_shared_socket(self) -> None:
            # It closes the descriptor that it is given.
            self._ssp, self._shd = None, holder(os.dup(listener.fileno()), False, _BACKLOG)

    host, port = listener.getsockname()[:2]
    for name in ("_granian", "granian.access"):
        logging.getLogger(name).setLevel(logging.ERROR)
    server = OnListener(
        app,
        address=host,
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=_BACKLOG,
        backpressure=_REQUESTS_MAX,
        http1_settings=HTTP1Settings(header_read_timeout=_HEAD_TIMEOUT_MS, max_buffer_size=_HEAD_MAX_BYTES),
        log_enabled=False,
    )
    loop = asyncio.get_running_loop()

    def stop() -> None:
        # Granian waits for every answer to end; an application with endless ones ends them in `ending`.
        getattr(app, "ending", lambda: None)()
        loop.call_soon(server.stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    shortcut.install(app)
    on_listening(port)
    await server.serve()
    # Granian's threads still drop what belonged to the last answers; they abort, with a loud trace, if
    # the interpreter ends under them.
    await asyncio.sleep(_DROP_S)
