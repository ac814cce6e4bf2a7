"""What the system does for a process that moves many messages, or large ones.

What lives here: settings of the whole process: its scheduling, and what becomes of
the memory of frames that were freed. What must not: anything that schedules or
allocates. A library does not call this, a program does, once, before its threads.

Scheduling: each message wakes somebody, here its socket's I/O thread, there another
process, and the scheduler lets who is woken take the processor from who woke it: on
full processors a switch for nearly every message, with cold caches on both sides.
Under SCHED_BATCH who is woken waits until the processor is free or a time slice, a
few milliseconds, is over; work piles up meanwhile and is done in one go. On a processor
that has nothing else to do nothing changes.

Memory: glibc gives each freed block of megabytes back to the kernel, which maps and
clears it anew for the next frame: for a stream of 1 MiB chunks that costs more than
the copying. Told to keep it, each heap, of which there is about one a thread, keeps up
to KEPT_BYTES that it does not use.
"""

import ctypes
import os
from typing import Final

#: Blocks below this come out of the heap, which keeps them; mallopt's own most is 32 MiB.
IN_HEAP_BYTES: Final = 4 << 20
#: The heap's free end is given back beyond this: some windows of credit.
KEPT_BYTES: Final = 64 << 20

# From malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def prepare_process() -> None:
    """All of this module's settings, as far as the system has them."""
    be_scheduled_in_batches()
    keep_freed_memory()


def be_scheduled_in_batches() -> bool:
    """Whether it was done: False where another policy than the usual one was chosen for this process (by
    chrt, say), and where it is forbidden."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except PermissionError:
        return False
    return True


def keep_freed_memory() -> bool:
    """Whether it was done: False where the C library is not glibc, and then nothing is different."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, IN_HEAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
