"""A process that was prepared: it frees large frames without page faults, and is woken without haste."""

import platform
import shutil
import subprocess
import sys

import pytest

FAULTS = """
import resource
from patterns.zeromq.process import keep_freed_memory
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


# These tests may themselves have been started under SCHED_BATCH, from which anybody may go back.
POLICIES = """
import os, threading
if os.sched_getscheduler(0) == os.SCHED_BATCH:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
from patterns.zeromq.process import be_scheduled_in_batches
def told():
    return {os.SCHED_OTHER: "other", os.SCHED_BATCH: "batch", os.SCHED_IDLE: "idle"}[os.sched_getscheduler(0)]
before, done = told(), be_scheduled_in_batches()
thread = threading.Thread(target=lambda: print(before, done, told()))
thread.start()
thread.join()
"""


def policies(*words: str) -> list[str]:
    """The scheduling of a process, and of a thread that it makes afterwards, by name."""
    done = subprocess.run(
        [*words, sys.executable, "-c", POLICIES], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def test_threads_made_afterwards_do_not_take_the_processor_from_who_wakes_them() -> None:
    assert policies() == ["other", "True", "batch"]


@pytest.mark.skipif(shutil.which("chrt") is None, reason="needs util-linux")
def test_a_policy_that_somebody_chose_stays() -> None:
    assert policies("chrt", "-i", "0") == ["idle", "False", "idle"]
