"""What a command knows of its surroundings: settings, common flags, and how to reach the cluster.

What lives here: `Session`, which click hands from the group to the command, and
the options that several commands share. Settings are read when first asked for,
so a broken dws.toml does not stop `dws --help`.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dws.cli import output
from dws.cli.settings import Settings

if TYPE_CHECKING:
    from dws.nodes.client import Client

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Session:
    """One run of `dws`. `connect` makes a client; tests put a fake in its place."""

    def __init__(self, connect: "Callable[..., Client] | None" = None) -> None:
        self._connect = connect
        self.flags: dict[str, Any] = {}

    @cached_property
    def settings(self) -> Settings:
        return Settings.load()

    @property
    def json(self) -> bool:
        return bool(self.flags.get("json"))

    @property
    def balancer(self) -> str:
        endpoint: str = self.settings.get("balancer", self.flags.get("balancer"))
        return endpoint

    @property
    def timeout_s(self) -> float | None:
        """How long a call may take, if the user said so; else each call has its own default."""
        seconds: float | None = self.settings.get("timeout_s", self.flags.get("timeout_s"))
        return seconds

    def patience(self) -> dict[str, Any]:
        """`timeout_s` as keyword arguments of a client's call."""
        return {} if self.timeout_s is None else {"timeout_s": self.timeout_s}

    def client(self, **options: Any) -> "Client":
        """A client of the balancer; use it in a with statement."""
        options = self.patience() | options
        if self._connect is not None:
            return self._connect(self.balancer, **options)
        from dws.nodes.client import connect
        from patterns.zeromq.process import keep_freed_memory

        keep_freed_memory()
        return connect(self.balancer, **({"on_silence": self._tell_silence} | options))

    def _tell_silence(self, limit_s: float) -> None:
        output.say(
            f"dws: no answer from {self.balancer} yet; trying for {limit_s:.0f} s; is the cluster running?"
            " -b or DWS_BALANCER names another"
        )


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Flags of the group and of the command are the same flags; the later one wins."""
    if value is not None and param.name:
        ctx.ensure_object(Session).flags[param.name] = value


def balancer_option(command: _Command) -> _Command:
    return click.option(
        "-b", "--balancer", metavar="ENDPOINT", expose_value=False, callback=_remember,
        help="Where the balancer is.  [env DWS_BALANCER; default tcp://127.0.0.1:5600]",
    )(command)  # fmt: skip


def json_option(command: _Command) -> _Command:
    return click.option(
        "--json", is_flag=True, default=None, expose_value=False, callback=_remember,
        help="Print data as JSON.",
    )(command)  # fmt: skip


def client_options(command: _Command) -> _Command:
    """-b and --timeout: for every command that talks to the cluster."""
    timeout = click.option(
        "--timeout", "timeout_s", metavar="SECONDS", expose_value=False, callback=_remember,
        help="How long to try.  [env DWS_TIMEOUT_S; default 10; a put 60, an rm 30]",
    )  # fmt: skip
    return balancer_option(timeout(command))


pass_session = click.make_pass_decorator(Session)
