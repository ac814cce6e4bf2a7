"""Exit codes, and how an exception becomes one.

What lives here: the table of codes, the line `dws: error: …` for each kind of
exception, and `guarded`, which runs a program under both. What must not: the
commands. run_cluster.py ends by the same table.
"""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Final

import click

from dws import errors

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNREACHABLE: Final = 4
CONFLICT: Final = 5
INTERRUPTED: Final = 130

MEANINGS: Final = {
    OK: "done",
    FAILED: "failed, or the reader of a pipe went away",
    USAGE: "wrong usage, settings or names; nothing was sent",
    NOT_FOUND: "there is no such page",
    UNREACHABLE: "unreachable, timed out, or not known whether it took effect",
    CONFLICT: "a condition does not hold, or bytes do not match their digest",
    INTERRUPTED: "interrupted",
}

_CODES: Final[dict[type[BaseException], int]] = {
    click.UsageError: USAGE,
    errors.BadName: USAGE,
    errors.ConfigError: USAGE,
    errors.BadRequest: USAGE,
    errors.NotFound: NOT_FOUND,
    errors.Unreachable: UNREACHABLE,
    errors.TimedOut: UNREACHABLE,
    errors.OutcomeUnknown: UNREACHABLE,
    errors.TryAgain: UNREACHABLE,
    errors.Unavailable: UNREACHABLE,
    errors.Conflict: CONFLICT,
    errors.IntegrityError: CONFLICT,
    KeyboardInterrupt: INTERRUPTED,
    click.Abort: INTERRUPTED,
}

_HINTS: Final[dict[type[BaseException], str]] = {
    errors.NotFound: "`dws ls` lists the pages there are",
    errors.Unreachable: "-b or DWS_BALANCER names another",
    errors.OutcomeUnknown: "the same command again is safe",
    errors.TooFewServers: "`dws status` shows which servers live",
    errors.Unavailable: "`dws status` shows which servers live",
}


def code_of(error: BaseException) -> int:
    """The exit code for an exception: that of its nearest base in the table, else 1."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return FAILED


def line_of(error: BaseException) -> str:
    """What failed, where, and what to do next; without the program's name."""
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        see = f"; see `{context.command_path} --help`" if context else ""
        return error.format_message().rstrip(".") + see
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fspath(error.filename)!s}: " if error.filename is not None else ""
        return where + error.strerror
    hint = next((_HINTS[kind] for kind in type(error).__mro__ if kind in _HINTS), "")
    text = str(error) or type(error).__name__
    return f"{text}{' ' if text.endswith('?') else '; '}{hint}" if hint else text


def guarded(run: Callable[[], int | None], program: str = "dws") -> int:
    """Run, and turn whatever it raises into one line on stderr and an exit code."""
    try:
        code = run()
        # What is still buffered may find the pipe closed: better here than at the interpreter's end.
        sys.stdout.flush()
        return code or OK
    except BrokenPipeError:
        # The reader has what it wanted. The interpreter flushes stdout once more at its end: into nothing.
        _silence_stdout()
        return FAILED
    except (KeyboardInterrupt, click.Abort) as error:
        print(f"{program}: interrupted", file=sys.stderr)
        return code_of(error)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return USAGE
    except (errors.DwsError, click.ClickException, OSError) as error:
        print(f"{program}: error: {line_of(error)}", file=sys.stderr)
        return code_of(error)
    except Exception as error:
        traceback.print_exc()
        print(f"{program}: error: {error!r} was not expected; this is a bug of {program}", file=sys.stderr)
        return FAILED


def _silence_stdout() -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass  # stdout is no file, or closed: nothing will be flushed into it
