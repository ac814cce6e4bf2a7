"""completion: the script that makes a shell complete `dws`."""

import click
from click.shell_completion import get_completion_class


@click.command(
    epilog="""\b
Examples:
  dws completion bash >> ~/.bashrc
  dws completion zsh > "${fpath[1]}/_dws"
  dws completion fish > ~/.config/fish/completions/dws.fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "dws", "_DWS_COMPLETE").source())
