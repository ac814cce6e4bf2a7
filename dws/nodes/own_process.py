"""What this process uses of the machine, as counts beside those of its sockets.

What lives here: readings of the operating system, taken when somebody asks. What
must not: their names in Prometheus (http/metrics.py knows the keys).
"""

import resource
from collections.abc import Callable, Iterator, Mapping

import psutil


class OwnProcess(Mapping[str, int]):
    """Read anew each time; for `counted_elsewhere` under the name "process"."""

    def __init__(self) -> None:
        process = psutil.Process()

        def cpu_ms() -> int:
            times = process.cpu_times()
            return int(1000 * (times.user + times.system))

        self._read: dict[str, Callable[[], int]] = {
            "cpu ms": cpu_ms,
            "resident bytes": lambda: int(process.memory_info().rss),
            "open files": process.num_fds,
            "open files at most": lambda: int(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        }

    def __getitem__(self, key: str) -> int:
        return self._read[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)
