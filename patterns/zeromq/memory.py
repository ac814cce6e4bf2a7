"""What the C library's allocator does with the memory of frames that were freed.

What lives here: one setting of the process, for programs that move large frames.
What must not: anything that allocates. A library does not call it, a program does,
once, before its threads: it holds for all that the process allocates.

glibc gives each freed block of megabytes back to the kernel, which maps and clears
it anew for the next frame: for a stream of 1 MiB chunks that costs more than the
copying. Told to keep it, each heap, of which there is about one a thread, keeps up
to KEPT_BYTES that it does not use.
"""

import ctypes
from typing import Final

#: Blocks below this come out of the heap, which keeps them; mallopt's own most is 32 MiB.
IN_HEAP_BYTES: Final = 4 << 20
#: The heap's free end is given back beyond this: some windows of credit.
KEPT_BYTES: Final = 64 << 20

# From malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> bool:
    """Whether it was done: False where the C library is not glibc, and then nothing is different."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, IN_HEAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
