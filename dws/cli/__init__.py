"""The command line, `dws`.

What lives here: the parsing of flags and settings, the printing of what the
client returns, and the table of exit codes (exits.py). What must not: anything
that another program would want too; that belongs to the client or the nodes.

Data go to stdout; logs, progress and errors to stderr. Each module loads what
it needs when a command runs, so that `dws --version` loads no sockets.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `dws` with these arguments, or the process's own; ends with one of the codes of exits.py."""
    try:
        from dws.cli.program import program
    except KeyboardInterrupt:
        print("dws: interrupted", file=sys.stderr)
        sys.exit(130)

    program.main(args=None if argv is None else list(argv))
