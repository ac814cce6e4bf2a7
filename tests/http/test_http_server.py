"""The embedded HTTP server: its port, its end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dws.errors import ConfigError, Refused
from dws.http.server import listen

APP = """
import sys
from dws.http.server import run_http

class App:
    def __rsgi_init__(self, loop): pass
    def __rsgi_del__(self, loop): print("del", flush=True)
    async def __rsgi__(self, scope, proto):
        proto.response_str(200, [("content-type", "text/plain")], scope.path)

run_http(App(), "127.0.0.1", 0, lambda port: print("port", port, flush=True))
print("ended", flush=True)
"""


def test_a_port_that_is_taken_is_an_error() -> None:
    with listen("127.0.0.1", 0) as listener, pytest.raises(Refused, match="is taken"):
        listen("127.0.0.1", listener.getsockname()[1])


def test_free_ports_lie_below_those_of_outgoing_connections() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert 20_000 <= listener.getsockname()[1] < 32_000


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 8080)


@pytest.fixture
def app() -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", APP]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_and_ends_at_a_signal_though_a_client_is_connected(
    app: "subprocess.Popen[str]", number: signal.Signals
) -> None:
    assert app.stdout is not None
    port = int(app.stdout.readline().removeprefix("port"))
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"GET /a%20b HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
        app.send_signal(number)
        rest, _ = app.communicate(timeout=30)
    assert rest.split()[-2:] == ["del", "ended"]
    assert app.returncode == 0
