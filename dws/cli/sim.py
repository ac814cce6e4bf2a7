"""dws sim: the production machines and policies in virtual time.

What lives here: the group and its list of commands. What must not: any command's
work: a module each beside this one.
"""

from importlib import import_module
from typing import Final

import click

# Command → module below dws.cli and the command's name in it. The order is that of --help.
_COMMANDS: Final = {
    "fuzz": ("fuzz", "fuzz"),
    "replay": ("replay", "replay"),
    "scale": ("scale", "scale"),
    "whatif": ("whatif", "whatif"),
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"dws.cli.{module}"), name)
        return command


@click.group(
    cls=_Group,
    epilog="""\b
Examples:
  dws sim fuzz --seeds 1000 --jobs 2
  dws sim replay records/web-2-7.rec
  dws sim whatif --servers 500 --pages 1000000 --rate 10000 --skew zipf:1.1
""",
)
def sim() -> None:
    """Run the cluster's own code in virtual time: what would happen, and what did."""
