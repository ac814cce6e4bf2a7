"""What measuring costs: the generator against a bare ROUTER echo, beside a bare DEALER loop, in one run.

    python -m loadgen.echo

What lives here: the echo, the bare loop, and running them in turn. What must not: the generator itself. Echo,
loop and generator are processes of their own; the loop and the generator send the same frames with the same
number of requests under way. The rounds are interleaved, so that a machine that slows down slows both.
"""

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final

import click
import zmq

from loadgen.clients import RunError, environment
from loadgen.plan import Plan, PlanError
from loadgen.report import Report, summarise
from loadgen.runner import run_scenario

#: Of the bare loop's rate, at least.
GOAL: Final = 0.7
_SCENARIO: Final = "loadgen.router_scenario:EchoScenario"
_NAP_MS: Final = 100


def echo() -> int:
    """Send everything back, until standard input ends. Says first where."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, _NAP_MS)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        print(f"tcp://127.0.0.1:{port}", flush=True)
        while True:
            try:
                while True:
                    router.send_multipart(router.recv_multipart())
            except zmq.Again:
                if select.select([sys.stdin], [], [], 0)[0]:
                    return 0


def bare(endpoint: str, window: int, size_bytes: int, seconds: float) -> int:
    """A DEALER loop that does nothing but send and receive. Says its rate a second."""
    frame = bytes(size_bytes)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, 10_000)
        dealer.connect(endpoint)
        send, receive, clock = dealer.send, dealer.recv, time.monotonic
        for _ in range(window):
            send(frame)
        receive()  # connected
        send(frame)
        count, began = 0, clock()
        until = began + seconds
        while (now := clock()) < until:
            receive()
            send(frame)
            count += 1
        for _ in range(window):
            receive()
    print(count / (now - began), flush=True)
    return 0


@contextmanager
def echoing() -> Iterator[str]:
    """An echo's endpoint, while it runs."""
    command = [sys.executable, "-m", "loadgen.echo", "serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().decode().strip()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def bare_rate(endpoint: str, window: int, size_bytes: int, seconds: float) -> float:
    """The bare loop's, in a process of its own."""
    arguments = ["bare", endpoint, str(window), str(size_bytes), str(seconds)]
    command = [sys.executable, "-m", "loadgen.echo", *arguments]
    return float(subprocess.run(command, stdout=subprocess.PIPE, env=environment(), check=True).stdout)


def generated(endpoint: str, window: int, size_bytes: int, seconds: float) -> Report:
    """The generator's report: one client, one thread."""
    plan = Plan(
        count=None, duration_s=seconds, clients=1, threads=1, files=1, window=window, size_bytes=size_bytes
    )  # fmt: skip
    return run_scenario(plan, _SCENARIO, endpoint)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    default=2.0,
    show_default=True,
    help="How long each measurement takes.",
)
@click.option(
    "--window",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Requests under way at once.",
)
@click.option(
    "--bytes",
    "size_bytes",
    type=click.IntRange(8, 1 << 20),
    default=64,
    show_default=True,
    help="Of a request, one frame.",
)
def cli(rounds: int, seconds: float, window: int, size_bytes: int) -> int:
    """Measure how much of a bare DEALER loop's rate the generator reaches; 0 if it is 70 % or more."""
    rates: list[tuple[float, float]] = []
    with echoing() as endpoint:
        for number in range(rounds):
            loop = bare_rate(endpoint, window, size_bytes, seconds)
            report = generated(endpoint, window, size_bytes, seconds)
            together = summarise(report).together
            if together.failed:
                raise RunError(f"{together.failed:,} requests failed")
            rates.append((loop, together.requests_per_s))
            click.echo(f"round {number + 1}: {_line(loop, together.requests_per_s)}")
    loop, generator = (median(column) for column in zip(*rates, strict=True))
    click.echo(f"median: {_line(loop, generator)}")
    reached = generator >= GOAL * loop
    click.echo(f"{'reached' if reached else 'not reached'}: {GOAL:.0%} or more of the bare loop's rate")
    return 0 if reached else 1


def _line(loop: float, generator: float) -> str:
    return f"bare loop {loop:,.0f}/s, generator {generator:,.0f}/s, {generator / loop:.0%}"


def main() -> int:
    if sys.argv[1:2] == ["serve"]:
        return echo()
    if sys.argv[1:2] == ["bare"]:
        endpoint, window, size_bytes, seconds = sys.argv[2:]
        return bare(endpoint, int(window), int(size_bytes), float(seconds))
    try:
        return int(cli.main(prog_name="python -m loadgen.echo", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (PlanError, RunError, subprocess.CalledProcessError) as error:
        click.echo(f"loadgen.echo: error: {error}", err=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
