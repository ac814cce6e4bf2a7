"""A recording of a node played back: what `dws sim replay FILE` prints.

What lives here: the report, and the events that --events shows. What must not:
playing (dws.sim.incident), and seeds (fuzz.py).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec import Struct

from dws.cli import exits, output
from dws.errors import ConfigError
from dws.nodes.source_digest import source_digest

if TYPE_CHECKING:
    from dws.sim.incident import Player, Step, Verdict
    from dws.sim.recording import BalancerStart, WebServerStart

CRASHED: Final = 12
DIFFERS: Final = 13
_EVERY: Final = 5_000
_TEXT_MAX: Final = 300
_BYTES_SHOWN: Final = 8


def replay_file(path: Path, events: tuple[int, int] | None) -> int:
    """Play a recording, show these events of it (numbers, both included), and tell how it went."""
    from dws.sim.incident import Player

    with path.open("rb") as file:
        try:
            player = Player(file.read)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        output.data(_start_text(player.start))
        if player.start.code != source_digest():
            output.warn("other code than this made it; where the two differ, so will what they do")
        for step in _watched(player):
            if events is not None and events[0] <= step.number <= events[1]:
                output.data(step_text(step, player))
    output.data(_verdict_text(player.verdict))
    if player.verdict.fault:
        if player.last is not None and player.last.number == player.verdict.number:
            output.data(f"what happens now:\n{step_text(player.last, player)}")
        output.say(f"dws: error: event {player.verdict.number}: {player.verdict.fault}")
        return DIFFERS
    return CRASHED if player.verdict.crash else exits.OK


def events_of(text: str) -> tuple[int, int]:
    """`120` or `120-130`; click.UsageError for anything else."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()) or int(first) > int(last or first):
        raise click.UsageError(f"--events {text!r}: wanted is a number, or two as in 120-130")
    return int(first), int(last or first)


def _watched(player: "Player") -> "Iterator[Step]":
    is_shown = sys.stderr.isatty()
    for step in player:
        if is_shown and step.number % _EVERY == 0:
            click.echo(f"\r{step.number:,} events\x1b[K", nl=False, err=True)
        yield step
    if is_shown:
        click.echo("\r\x1b[K", nl=False, err=True)


def _start_text(start: "BalancerStart | WebServerStart") -> str:
    name = getattr(start, "name", "balancer")
    what = (
        f"{output.printable(name)}, dws {start.software}, recorded from {output.time_text(start.started)} UTC"
    )
    head = getattr(start, "head", None)
    return f"{what}: cluster {head.cluster.hex()[:8]}, epoch {head.epoch}" if head is not None else what


def _verdict_text(verdict: "Verdict") -> str:
    played = f"{verdict.events:,} events over {output.duration_text(verdict.seconds)}"
    if verdict.fault:
        return f"differs   at event {verdict.number:,}, after {played} that were as recorded"
    same = f"as recorded: {played}, {verdict.effects:,} effects"
    if verdict.crash:
        return (
            f"failed    {same}; then and now the machine fails at the last: {output.printable(verdict.crash)}"
        )
    return f"{same}; the recording ends: {output.printable(verdict.end)}"


# -- events ------------------------------------------------------------------------------------


def step_text(step: "Step", player: "Player") -> str:
    lines = [f"event {step.number} at {step.now - player.start.now:.6f} s: {_text(step.event)}"]
    lines += [f"    {_text(effect)}" for effect in step.effects]
    if step.raised:
        lines.append(f"    failed: {output.printable(step.raised)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    """A value as source code would have it, long bytes and lists cut short."""
    text = _short(value)
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}…"


def _short(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        shown = bytes(value[:_BYTES_SHOWN]).hex()
        return shown if len(value) <= _BYTES_SHOWN else f"{shown}… ({len(value):,} bytes)"
    if isinstance(value, Struct):
        fields = (f"{name}={_short(getattr(value, name))}" for name in value.__struct_fields__)
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value))}]"
    return output.printable(repr(value))
