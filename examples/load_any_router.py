"""Load a ZeroMQ service that is not dws's, with dws's load generator:  python load_any_router.py [ENDPOINT]

The service here squares numbers, as any REP socket might. Yours: change what Square asks and checks, and give
its endpoint. Several requests are under way at once on one DEALER a thread; a wrong answer is a failed one.
"""

import sys
import threading

import zmq

from loadgen.plan import Plan
from loadgen.router_scenario import NUMBER_BYTES, RouterScenario
from loadgen.runner import run_scenario
from loadgen.scenarios import Done
from loadgen.text import to_text


class Square(RouterScenario):
    """Makes a request, checks a reply. What comes before the empty frame, a REP socket sends back."""

    def request(self, number, kind):
        return [number.to_bytes(NUMBER_BYTES, "big"), b"", str(number).encode()]

    def check(self, number, reply):
        if int(reply[-1]) != number * number:
            raise ValueError(f"the square of {number} is not {reply[-1]!r}")
        return Done(pages=1, bytes=len(reply[-1]))


def serve(service, done):
    """A service to begin with."""
    while not done.is_set():
        if service.poll(100):
            service.send(b"%d" % int(service.recv()) ** 2)


def main():
    with zmq.Context() as context, context.socket(zmq.REP) as service:
        endpoint = f"tcp://127.0.0.1:{service.bind_to_random_port('tcp://127.0.0.1')}"
        done = threading.Event()
        served = threading.Thread(target=serve, args=(service, done))
        served.start()
        plan = Plan(count=None, duration_s=2.0, rate=1000.0, clients=1, threads=2, window=50, files=1)
        try:
            report = run_scenario(plan, f"{__file__}:Square", sys.argv[1] if len(sys.argv) > 1 else endpoint)
        finally:
            done.set()
            served.join()
    print(to_text(report))


if __name__ == "__main__":
    main()
