"""A process that must not outlive the one that started it.

What lives here: both ends of a pipe. The starter holds the write end and passes
the read end on; when the starter ends, however it ends, the kernel closes the
write end and kills the process that tied itself to the other. That needs no
thread, and works on a process that hangs or is stopped. A node killed so loses
nothing acknowledged: that lies fsynced on disk.

Not PR_SET_PDEATHSIG: it fires when the *thread* that started the process ends,
and needs code between fork and exec.
"""

import fcntl
import os
import select
import signal


def tie(fd: int) -> None:
    """Die by SIGKILL when the other end of this pipe is closed. Linux only."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    # If it was closed before this process got here, there is no event to come.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if poll.poll(0):
        os.kill(os.getpid(), signal.SIGKILL)
