"""Requests that need no task, in both ways; and that this version of Granian has what they rest on."""

import os
import subprocess
import sys
import urllib.request

import pytest

APP = """
import sys, threading
from dws.http.server import run_http

def say(proto, text):
    proto.response_str(200, [("content-type", "text/plain")], f"{text} {threading.current_thread().name}")

class App:
    def __rsgi_init__(self, loop): self.loop = loop
    def __rsgi_del__(self, loop): pass
    async def __rsgi__(self, scope, proto): say(proto, "task")

    def METHOD(self, scope, proto):
        if scope.path == "/fault":
            raise ValueError
        if scope.path == "/now":
            say(proto, "short")
        elif scope.path == "/later":
            self.loop.call_soon_threadsafe(self.loop.call_later, 0.05, say, proto, "later")
        return scope.path in ("/now", "/later")

run_http(App(), "127.0.0.1", 0, lambda port: print(port, flush=True))
"""


@pytest.mark.parametrize("method", ["answer_at_once", "begin"])
def test_a_request_takes_the_shortcut_or_else_becomes_a_task(method: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", APP.replace("METHOD", method)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())

            def get(path: str) -> str:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                    return str(answer.read().decode())

            for _ in range(3):
                what, _, thread = get("/now").partition(" ")
                assert what == "short"
                assert (thread == "MainThread") is (method == "begin")
                assert get("/later") == "later MainThread"
                assert get("/else") == get("/fault") == "task MainThread"
        finally:
            process.terminate()
        assert process.wait(20) == 0
