"""What keep_freed_memory() is for: who frees large frames gets the next ones without page faults."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from patterns.zeromq.memory import keep_freed_memory
{call}
def faults_of_a_window():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    window = [bytearray(1 << 20) for _ in range(8)]
    del window
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):
    faults_of_a_window()
print(max(faults_of_a_window() for _ in range(20)))
"""


def faults(call: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(call=call)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_frames_are_used_again() -> None:
    assert faults("assert keep_freed_memory()") < 100 < faults("")
