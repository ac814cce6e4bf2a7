"""A driver process: `python -m loadgen.bench.driver`, one job in, what came of it out.

What lives here: the pipe, and which function does which job. What must not: what they do.

Lines on standard input: the job as JSON, then `go`. On standard output: `ready`, then a Done as JSON. If
standard input ends first, nobody waits for it any more and it ends.
"""

import gc
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from loadgen.bench import clients, jobs, limits
from patterns.zeromq.process import prepare_process

_DOERS: Final[dict[type[Any], Callable[[Any, Callable[[], None]], jobs.Done]]] = {
    jobs.Echoes: limits.echoes,
    jobs.Chunks: limits.chunks,
    jobs.Commits: limits.commits,
    jobs.Appends: limits.appends,
    jobs.Lookups: clients.lookups,
    jobs.Reads: clients.reads,
    jobs.Puts: clients.puts,
    jobs.Down: clients.down,
    jobs.Up: clients.up,
}
_SERVERS: Final = {"echo": limits.serve_echo, "chunks": limits.serve_chunks}


class _NotWanted(Exception):
    """Standard input ended before `go`."""


def main() -> int:
    prepare_process()
    if len(sys.argv) > 1:
        return _SERVERS[sys.argv[1]]()
    job: jobs.Job = msgspec.json.decode(sys.stdin.buffer.readline(), type=jobs.Job)
    cpu_s = 0.0

    def go() -> None:
        nonlocal cpu_s
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        if sys.stdin.readline().strip() != "go":
            raise _NotWanted
        cpu_s = time.process_time()

    try:
        done = _DOERS[type(job)](job, go)
    except _NotWanted:
        return 1
    done.cpu_s = time.process_time() - cpu_s
    print(msgspec.json.encode(done).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
