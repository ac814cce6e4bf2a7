"""What-if studies: the queues against queueing theory, demand, placement, repair, and bad input."""

from array import array
from itertools import pairwise
from math import exp, factorial
from random import Random
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from dws.cli.program import program
from dws.config import Config
from dws.errors import ConfigError
from dws.load import Loads
from dws.sim import layout
from dws.sim.demand import Demand, drawn, most_wanted_share, recorded
from dws.sim.farm import Farm
from dws.sim.layout import Placed
from dws.sim.whatif import Findings, Outcome, Study, run


def silent(what: str, share: float) -> None:
    assert 0 <= share <= 1


def studied(**options: Any) -> Findings:
    return run(Study(**options), silent)


def outcome_of(findings: Findings, policy: str) -> Outcome:
    return next(each for each in findings.outcomes if each.policy == policy)


# -- against the formulas ------------------------------------------------------------------


def erlang_c(workers: int, erlangs: float) -> float:
    """The probability that a request of M/M/c waits at all."""
    last = erlangs**workers / factorial(workers) / (1 - erlangs / workers)
    return last / (sum(erlangs**k / factorial(k) for k in range(workers)) + last)


@pytest.mark.parametrize(("load", "workers"), [(0.5, 1), (0.8, 1), (0.7, 4)])
def test_a_random_policy_waits_as_m_m_c_says(load: float, workers: int) -> None:
    """One page on every server: a random policy makes of one Poisson process as many as there are servers."""
    findings = studied(
        servers=4, copies=4, pages=1, workers=workers, policies=("random",),
        rate=load * 4 * workers * 1000, requests=200_000,
    )  # fmt: skip
    found = findings.outcomes[0]
    waits_at_all = erlang_c(workers, load * workers)
    leaves_per_s = workers * 1000 * (1 - load)
    assert found.wait_mean_s == pytest.approx(waits_at_all / leaves_per_s, rel=0.06)
    # P(wait > t) = P(waits at all) × exp(-t × leaves_per_s); where that is 1 %, and 0.1 %:
    assert waits_at_all * exp(-found.wait_p99_s * leaves_per_s) == pytest.approx(0.01, rel=0.25)
    assert waits_at_all * exp(-found.wait_p999_s * leaves_per_s) == pytest.approx(0.001, rel=0.6)


def test_constant_service_waits_half_as_long_as_m_d_1_says() -> None:
    findings = studied(
        servers=4, copies=4, pages=1, service="constant", policies=("random",),
        rate=0.8 * 4000, requests=200_000,
    )  # fmt: skip
    # Pollaczek and Khinchine: load / (2 × service rate × (1 - load))
    assert findings.outcomes[0].wait_mean_s == pytest.approx(0.8 / (2 * 1000 * 0.2), rel=0.06)


def test_round_robin_over_all_servers_waits_less_than_random_as_it_must() -> None:
    findings = studied(servers=4, copies=4, pages=1, rate=0.8 * 4000, requests=50_000)
    assert outcome_of(findings, "round-robin").wait_mean_s < outcome_of(findings, "random").wait_mean_s
    assert outcome_of(findings, "round-robin").max_over_mean < 1.03


def test_least_load_waits_less_than_random_and_gives_bursts_to_nobody() -> None:
    """At 70 % of capacity, where a load that does not fade between beats waits five times as long."""
    findings = studied(servers=20, copies=2, pages=20_000, rate=0.7 * 20_000, requests=100_000)
    least, drawn_ = outcome_of(findings, "least-load"), outcome_of(findings, "random")
    assert least.wait_mean_s < 0.75 * drawn_.wait_mean_s
    assert least.wait_p99_s < drawn_.wait_p99_s
    assert least.max_over_mean < 1.1


# -- the farm --------------------------------------------------------------------------------


def test_a_balancer_hears_of_a_server_in_its_beats_alone() -> None:
    loads = Loads(Config())
    farm = Farm(1, loads, Config(), [0.5])
    before = loads.download[0]
    for number in range(10):
        farm.serve(0, number * 1e-3, 10e-3)
    farm.clock.run(0.124)
    assert loads.download[0] == before
    farm.clock.run(0.125)
    assert loads.servers[0].beat is not None
    assert loads.servers[0].beat.served == 10
    assert loads.servers[0].per_page_s == pytest.approx(10e-3)


@pytest.mark.parametrize("workers", [1, 3])
def test_beats_count_every_request_once_whatever_is_under_way(workers: int) -> None:
    rng = Random(workers)
    loads = Loads(Config())
    farm = Farm(workers, loads, Config(), [0.9])
    ends, now = [], 0.0
    for _ in range(2_000):
        now += rng.expovariate(900 * workers)
        took_s = rng.expovariate(1000)
        ends.append(now + farm.serve(0, now, took_s) + took_s)
    for count in range(20):
        farm.clock.run(0.9 * 0.25 + count * 0.25)
        beat = loads.servers[0].beat
        assert beat is not None
        assert beat.served == sum(end <= farm.clock.now for end in ends)
        assert beat.waiting == sum(end > farm.clock.now for end in ends)


def test_idle_time_of_far_servers_is_forgotten_as_the_balancer_does() -> None:
    loads = Loads(Config())
    farm = Farm(1, loads, Config(), [0.0])
    loads.probed(0, 0.5)
    farm.clock.run(10.04)
    assert loads.far_s[0] > 0
    assert loads.download[0] - loads.far_s[0] == pytest.approx(10.0)


def test_a_probe_waits_in_the_queue() -> None:
    loads = Loads(Config())
    farm = Farm(1, loads, Config(), [0.5])
    farm.serve(0, 0.0, 5.0)
    farm.clock.run(1.0)
    assert loads.servers[0].rtt_s > 1.0


# -- demand ----------------------------------------------------------------------------------


def test_drawn_requests_come_at_their_rate_and_as_zipf_wants_them() -> None:
    demand = drawn(1000.0, 100_000, 50, "zipf:1.1", Random(3), silent)
    assert all(before <= after for before, after in pairwise(demand.times))
    assert demand.rate == pytest.approx(1000, rel=0.02)
    counts = sorted((list(demand.pages).count(page) for page in range(50)), reverse=True)
    assert counts[0] / 100_000 == pytest.approx(most_wanted_share("zipf:1.1", 50), rel=0.03)
    assert counts[1] / counts[0] == pytest.approx(2**-1.1, rel=0.05)


TRACE = b"""{"trace":1,"made_by":"x","plan":null}
{"at_s":0.5,"kind":"download","names":["/b","/a"]}
{"at_s":0.25,"kind":"upload","names":["/c"],"sizes":[10]}
{"at_s":0.75,"kind":"download","names":["/b"],"client":1,"thread":2}
"""


def test_a_recording_is_its_downloads_page_by_page() -> None:
    demand = recorded(TRACE.splitlines(), "t")
    assert demand.times == array("d", [0.0, 0.0, 0.25])
    assert list(demand.pages) == [1, 0, 1]
    assert demand.page_count == 2


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b"", "empty"),
        (b"nonsense", "is no trace"),
        (b"\xff\xfe", "is no trace"),
        (b'{"trace":7}', "version 7"),
        (TRACE + b'{"at_s":1}', "line 5"),
        (TRACE + b'{"at_s":-1,"kind":"download","names":["/a"]}', "line 5: at_s -1"),
        (TRACE + b'{"at_s":1,"kind":"download","names":[]}', "line 5: a request for nothing"),
        (TRACE + b'{"at_s":1,"kind":"download","names":[1]}', "line 5"),
        (b'{"trace":1}\n{"at_s":1,"kind":"download","names":["/a"]}', "two different moments"),
    ],
)
def test_what_is_no_recording_is_refused_with_its_line(lines: bytes, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        recorded(lines.splitlines(), "the-file")
    assert "the-file" in str(error.value)


# -- places and repair ----------------------------------------------------------------------------


def test_places_are_even_and_copies_apart() -> None:
    placed = layout.place(10, 100_000, 100, 1000, Config(copies=3), Random(1), silent)
    assert sum(each.pages for each in placed) == 100_000
    assert all(len(set(each.holders)) == 3 for each in placed)
    held = [sum(each.pages for each in placed if number in each.holders) for number in range(10)]
    assert max(held) / min(held) < 1.2


def mended(placed: list[Placed], lost: set[int], servers: int = 4, **changes: Any) -> layout.Mended:
    loads = Loads(Config())
    for number in range(servers):
        loads.add(number)
        loads.open(number, True, 0.0)
    given: dict[str, Any] = {"busy": [0.0] * servers, "page_bytes": 1000, "copy_rate_bytes": 1e6}
    given |= changes
    return layout.mend(
        placed, lost, loads, given["busy"], 1000, given["copy_rate_bytes"], Config(), Random(1)
    )


def test_repair_takes_detection_and_the_bytes_of_the_longest_lane() -> None:
    found = mended([Placed(1000, (0, 1))], {0})
    assert (found.pages_short, found.pages_gone, found.bytes_copied) == (1000, 0, 1_000_000)
    assert found.seconds == pytest.approx(Config().down_dead_s + 1.0)


def test_repair_of_busy_servers_takes_longer_and_what_is_gone_is_told() -> None:
    busy = mended([Placed(1000, (0, 1))], {0}, busy=[0.0, 0.5, 0.5, 0.5])
    assert busy.seconds == pytest.approx(Config().down_dead_s + 2.0)
    gone = mended([Placed(1000, (0, 1)), Placed(10, (1, 2))], {0, 1})
    assert (gone.pages_gone, gone.pages_short, gone.bytes_copied) == (1000, 10, 10_000)


def test_repair_keeps_to_the_rate_that_all_servers_share() -> None:
    size_bytes = 1000 * 1_000_000
    found = mended([Placed(1000, (0, 1))] * 1000, {0}, servers=50, busy=[0.0] * 50, copy_rate_bytes=1e12)
    assert found.bytes_copied == size_bytes
    whole_s = size_bytes / Config().repair_bytes_s
    assert found.seconds - found.detected_s == pytest.approx(whole_s, rel=0.01)


def test_two_servers_cannot_be_mended_to_three_copies() -> None:
    assert mended([Placed(10, (0, 1))], {0}, servers=2).bytes_copied == 0


# -- a study -----------------------------------------------------------------------------------


def test_a_study_is_the_same_each_time_and_another_with_another_seed() -> None:
    options = {"servers": 5, "pages": 500, "requests": 5_000, "batch": 50}
    first, again, other = studied(**options), studied(**options), studied(**options, seed=2)
    assert msgspec.json.encode(first) == msgspec.json.encode(again)
    assert msgspec.json.encode(first.outcomes) != msgspec.json.encode(other.outcomes)


def test_a_recorded_demand_says_rate_and_pages_itself() -> None:
    demand = Demand(array("d", [0.0, 0.5, 1.0, 1.5]), array("L", [0, 1, 2, 0]), 3)
    findings = run(Study(servers=3, pages=77), silent, demand)
    assert (findings.study.pages, findings.requests) == (3, 4)
    assert findings.most_wanted == 0.5


def test_a_recording_over_capacity_is_refused() -> None:
    demand = Demand(array("d", [0.0, 1e-6, 2e-6]), array("L", [0, 0, 0]), 1)
    with pytest.raises(ConfigError, match="recording's rate of 1,500,000 is over capacity"):
        run(Study(servers=3), silent, demand)


def test_a_page_that_its_holders_cannot_serve_is_told() -> None:
    findings = studied(servers=10, pages=100, copies=2, skew="zipf:2", rate=6000, requests=20_000)
    assert findings.holders_needed == 4
    assert findings.outcomes[0].overloaded


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"servers": 0}, "--servers 0"),
        ({"servers": 1001}, "--servers 1001"),
        ({"servers": 3, "copies": 4}, "--copies 4 .* --servers says 3"),
        ({"policies": ("least-load", "best")}, "--policy 'best'"),
        ({"policies": ()}, "--policy none"),
        ({"rate": 6000.0}, "over capacity: 5 servers"),
        ({"rate": 0.0}, "--rate 0"),
        ({"rate": float("nan")}, "--rate nan"),
        ({"skew": "zipf"}, "skew 'zipf'"),
        ({"skew": "zipf:11"}, "skew 'zipf:11'"),
        ({"pages": 0}, "--pages 0"),
        ({"requests": 0}, "--requests 0"),
        ({"workers": 0}, "--workers 0"),
        ({"service_s": 0.0}, "--service-time 0"),
        ({"service": "fast"}, "--service 'fast'"),
        ({"page_bytes": 0}, "--page-size 0"),
        ({"batch": 1001}, "--batch 1001"),
        ({"copy_rate_bytes": 1.0}, "--copy-rate 1"),
    ],
)
def test_what_cannot_be_studied_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Study(**options)


# -- the command ---------------------------------------------------------------------------------


def whatif(*arguments: str) -> Any:
    return CliRunner().invoke(program, ["sim", "whatif", *arguments])


SMALL = ("--servers", "4", "--pages", "200", "--requests", "2000", "--batch", "20")


def test_the_command_prints_a_line_for_each_policy() -> None:
    done = whatif(*SMALL, "--policy", "random,least-load")
    assert done.exit_code == 0, done.output
    rows = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert rows[-4:] == ["policy", "random", "least-load", "lost"]
    assert "lost      1 server in the end" in done.stdout


def test_the_command_prints_json() -> None:
    done = whatif(*SMALL, "--json", "--service-time", "500us")
    told = msgspec.json.decode(done.stdout, type=Findings)
    assert told.study.service_s == pytest.approx(500e-6)
    assert len(told.outcomes) == 4


def test_the_command_takes_a_recording(tmp_path: Any) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(TRACE)
    done = whatif("--servers", "2", "--trace", str(path), "--json")
    assert msgspec.json.decode(done.stdout, type=Findings).requests == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--frobnicate",), "No such option"),
        (("--service-time", "soon"), "'soon' is no time"),
        (("--page-size", "big"), "'big' is not a size"),
        (("--trace", "/nowhere/at/all"), "does not exist"),
        (("--servers", "2", "--copies", "3"), "--copies 3"),
        (("--trace", __file__), "is no trace"),
        (("--trace", __file__, "--rate", "5", "--skew", "uniform"), "--rate, --skew and --trace"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments: tuple[str, ...], says: str) -> None:
    done = whatif(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
