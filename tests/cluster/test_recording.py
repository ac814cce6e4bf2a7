"""Real nodes that record, and their recordings played back: every effect, in another process."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

import dws
from dws.config import Config
from dws.errors import NotFound
from dws.nodes.cluster_options import ClusterOptions
from dws.nodes.supervisor import Supervisor
from dws.sim.incident import Player, Verdict

ROOT = Path(__file__).resolve().parents[2]
#: Reports of state come sooner, and a server is dead soon enough for copies to be made elsewhere.
CONFIG = Config(policy="two-choices", down_dead_s=1.0, dead_s=4.0, garbage_s=1.0, period_s=2.0, probe_s=0.5)


def replayed(path: Path) -> Verdict:
    with path.open("rb") as file:
        player = Player(file.read)
        for _ in player:
            pass
    return player.verdict


def work(cluster: Supervisor, rng: random.Random) -> None:
    """Puts small and large, reads, questions, a kill in the middle, an rm."""
    large = rng.randbytes(3 << 20)
    with dws.connect(cluster.endpoint) as client:
        client.put({f"/page-{number}": rng.randbytes(2_000) for number in range(40)})
        client.put({"/large": large})
        assert client.get("/large") == large
        client.get_many([f"/page-{number}" for number in range(40)])
        client.status()
        client.why("/large")
        cluster.kill("web-2")
        # While one of three is down, two copies can still be made.
        client.put({"/meanwhile": rng.randbytes(300_000)})
        cluster.wait_until_alive(60.0)
        for number in range(40):
            client.get(f"/page-{number}")
        client.put({"/page-0": b"again"})
        client.remove(["/large"])
        with pytest.raises(NotFound):
            client.get("/large")
        client.status()


@pytest.mark.slow
def test_all_that_happened_to_real_nodes_happens_again(tmp_path: Path, seed: int) -> None:
    records = tmp_path / "records"
    options = ClusterOptions(
        data=tmp_path / "data", webservers=3, port=0, config=CONFIG, record=records,
        restart_first_s=0.5, start_timeout_s=60,
    )  # fmt: skip
    with Supervisor(options) as cluster:
        work(cluster, random.Random(seed))
    made = sorted(path.name for path in records.iterdir())
    assert made == ["balancer-1.rec", "web-1-1.rec", "web-2-1.rec", "web-2-2.rec", "web-3-1.rec"]
    verdicts = {path.name: replayed(path) for path in records.iterdir()}
    assert {name: verdict.fault for name, verdict in verdicts.items()} == dict.fromkeys(made, "")
    killed = verdicts.pop("web-2-1.rec")
    assert killed.end.startswith("cut off")
    assert {verdict.end for verdict in verdicts.values()} == {"the node was stopped"}
    assert verdicts["balancer-1.rec"].effects > 60
    # A process with other hashes, so that nothing rests on the order of a set.
    words = [sys.executable, "-m", "dws", "sim", "replay", str(records / "balancer-1.rec")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "as recorded: " in done.stdout
    _tamper(records / "balancer-1.rec")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 13
    assert "dws: error: event " in done.stderr


def _tamper(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
