"""The group `dws`: its commands, found when they are called, and its way to end.

What lives here: the list of commands, global options, and the conversion of
every exception into an exit code. What must not: any command's work.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NoReturn

import click

import dws
from dws.cli import exits
from dws.cli.session import Session, balancer_option

# Command → module below dws.cli and the command's name in it. The order is that of --help.
COMMANDS: Final = {
    "put": ("uploads", "put"),
    "get": ("downloads", "get"),
    "ls": ("pages", "ls"),
    "stat": ("pages", "stat"),
    "rm": ("pages", "rm"),
    "why": ("cluster", "why"),
    "trace": ("trace", "trace"),
    "status": ("cluster", "status"),
    "node": ("maintenance", "node"),
    "doctor": ("doctor", "doctor"),
    "serve": ("serve", "serve"),
    "sim": ("sim", "sim"),
    "completion": ("completion", "completion"),
}

_EXIT_CODES = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exits.MEANINGS.items())


class Program(click.Group):
    """Loads a command's module when the command is wanted; ends with the codes of exits.py."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"dws.cli.{module}"), name)
        return command

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """`extra` goes to click: the tests pass `obj`, a Session with a client of their own."""
        extra |= {"prog_name": "dws", "complete_var": "_DWS_COMPLETE", "standalone_mode": False}
        for stream in (sys.stdout, sys.stderr):
            # A name may hold what the terminal's encoding does not have.
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="backslashreplace")

        def run() -> int | None:
            result = click.Group.main(self, args, **extra)
            return result if isinstance(result, int) else None

        sys.exit(exits.guarded(run))


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"""\b
Examples:
  dws put site/ --to /            store a directory's files, each on two servers
  dws get /index.html -o -        print a page
  dws -b tcp://192.0.2.10:5600 status --watch

\b
Exit codes:
{_EXIT_CODES}

\b
Settings: flag, else environment variable, else dws.toml (in this directory, or
~/.config/dws/dws.toml; DWS_CONFIG names another), else default.""",
)
@click.version_option(dws.__version__, prog_name="dws")
@balancer_option
@click.pass_context
def program(ctx: click.Context) -> int | None:
    """Store pages on several web servers, and read them from the least loaded one."""
    ctx.ensure_object(Session)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(exits.USAGE)
    return None
