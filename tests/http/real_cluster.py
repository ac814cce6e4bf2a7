"""run_cluster.py as a user starts it: a gateway, web servers with their HTTP endpoints, and the example site.

What lives here: start, stop and what the cluster says of itself. What must not: clients, and what is expected
of an answer.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dws
from dws.messages import ClusterStatus
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "examples" / "site"
WITHIN_S = 60.0


def eventually(what: Callable[[], Any], why: str, within_s: float = WITHIN_S) -> Any:
    return until(what, why, within_s)


class RealCluster:
    """On free ports, with `site` uploaded, until it is left. `gateway` is its URL, no slash at its end."""

    def __init__(self, data: Path, *flags: str, webservers: int = 3, site: Path | None = SITE) -> None:
        self.data = data
        self._out = data.parent / f"{data.name}.out"
        command = [sys.executable, "run_cluster.py", "--data", str(data), "--port", "0", "--http-port", "0"]
        command += ["--webservers", str(webservers), *flags]
        self._command = command + (["--site", str(site)] if site else [])

    def __enter__(self) -> Self:
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=out, stderr=out,
                env=os.environ | {"DWS_CONFIG": ""}, start_new_session=True,
            )  # fmt: skip
        try:
            eventually(lambda: "up: " in self.output or self.process.poll() is not None, "the cluster is up")
            assert self.process.poll() is None, self.output
            self.gateway = self.node("gateway")["endpoint"].rstrip("/")
            assert self.gateway.startswith("http://"), self.gateway
            self.wait_endpoints()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(WITHIN_S) == 0, self.output
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def output(self) -> str:
        return self._out.read_text("utf-8")

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return list(self._described()["nodes"])

    def node(self, name: str) -> dict[str, Any]:
        return next(node for node in self.nodes if node["name"] == name)

    @property
    def endpoint(self) -> str:
        """The balancer's, for clients."""
        return str(self._described()["balancers"][0])

    def _described(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads((self.data / "cluster.json").read_text("utf-8"))
        return described

    def client(self) -> dws.Client:
        return dws.connect(self.endpoint, timeout_s=WITHIN_S)

    def status(self) -> ClusterStatus:
        with self.client() as client:
            return client.status()

    def http_endpoints(self) -> dict[str, str]:
        """Web server → its URL, of those that are alive and have one."""
        return {
            server.name: server.http_endpoint
            for server in self.status().servers
            if server.state == "alive" and server.http_endpoint
        }

    def wait_endpoints(self) -> None:
        """Until every web server has told where its HTTP endpoint is."""
        wanted = {node["name"] for node in self.nodes if node["role"] == "webserver"}
        eventually(lambda: wanted <= set(self.http_endpoints()), "an HTTP endpoint of each web server")

    def holders(self, name: str) -> list[str]:
        with self.client() as client:
            [stat] = client.stat([name])
            return [holder.name for holder in stat.holders] if stat else []
