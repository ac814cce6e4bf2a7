"""Whether servers that beat are well: probes, and what their disks owe.

What lives here: when each server is probed, and the evidence that makes one
suspect although it beats. What must not: silence and broken connections, which
are the watcher's (membership.py), and what follows from a suspicion.

Only the balancer's own evidence changes a state: a complaint of a client brings
the next probe forward, no more. Probes that fell into a sleep of the balancer's
own count for nothing.
"""

from typing import Final

from msgspec import Struct

from dws.config import Config
from dws.effects import Ask, Effects
from dws.membership import Server
from dws.messages import Beat, Ping, Pong

PROBE_TIMEOUT_S: Final = 1.0
#: Probes without an answer, in a row, that make a server suspect: one may be lost with a connection.
_FAILED_MAX: Final = 2
#: A longer time between two ticks was the balancer's own sleep.
_ASLEEP_S: Final = 0.5


class _Evidence(Struct):
    probe_at: float
    since: float
    asked: bool = False  # a probe is on its way: one at a time
    failed: int = 0  # probes in a row
    disk: str = ""  # what it owes, as the last beat told


class Health:
    def __init__(self, config: Config, now: float) -> None:
        self._config = config
        self._watched: dict[int, _Evidence] = {}
        self._ticked = now
        self._excused_until = now

    def __contains__(self, number: int) -> bool:
        return number in self._watched

    def watch(self, number: int, now: float) -> None:
        """The server can be reached, as far as is known: probe it, now for the first time."""
        self._watched[number] = _Evidence(now, now)

    def unwatch(self, number: int) -> None:
        self._watched.pop(number, None)

    def complaint(self, number: int, now: float) -> bool:
        """A client could not use it. False if it is not watched."""
        evidence = self._watched.get(number)
        if evidence is not None:
            evidence.probe_at = min(evidence.probe_at, now)
        return evidence is not None

    def probes(self, now: float) -> Effects:
        """Probes that are due, a tick."""
        if now - self._ticked > _ASLEEP_S:
            self._excused_until = now + PROBE_TIMEOUT_S
        self._ticked = now
        watched = self._watched.items()
        due = [number for number, evidence in watched if evidence.probe_at <= now and not evidence.asked]
        period = self._config.period_s
        for number in due:
            # At the next of the period's fractions, or after probe_s if that is sooner.
            age = now % period
            waits = [part * period - age for part in self._config.probe_fractions if part * period > age]
            self._watched[number].probe_at = now + min([self._config.probe_s, *waits])
            self._watched[number].asked = True
        return [Ask(number, Ping(), ("probe", number, now), PROBE_TIMEOUT_S) for number in due]

    def answered(self, server: Server, now: float) -> bool:
        """A probe was answered. True if the server's state may have changed."""
        evidence = self._watched.get(server.number)
        if evidence is None:
            return False
        evidence.asked = False
        evidence.failed = 0
        return self._judge(server, evidence, now)

    def counts(self, number: int, asked_at: float) -> bool:
        """Whether a probe says something of the server as it is: not one of before it came back."""
        evidence = self._watched.get(number)
        return evidence is not None and asked_at >= evidence.since

    def unanswered(self, server: Server, asked_at: float, now: float) -> bool:
        """A probe was not answered in time. True as above."""
        if not self.counts(server.number, asked_at):
            return False
        evidence = self._watched[server.number]
        evidence.asked = False
        if now < self._excused_until:
            return False
        evidence.failed += 1
        # Once more at once: two in a row tell.
        evidence.probe_at = min(evidence.probe_at, now)
        return self._judge(server, evidence, now)

    def beat(self, server: Server, beat: Beat, now: float) -> bool:
        """What a beat says of the server's disk. True as above."""
        evidence = self._watched.get(server.number)
        if evidence is None:
            return False
        evidence.disk = ""
        for what, wait_s in (("writes", beat.write_wait_s), ("reads", beat.read_wait_s)):
            if wait_s >= self._config.sick_s:
                evidence.disk = f"its disk has owed an answer to {what} for {wait_s:.1f} s"
        return self._judge(server, evidence, now)

    def _judge(self, server: Server, evidence: _Evidence, now: float) -> bool:
        ailing = evidence.disk
        if evidence.failed >= _FAILED_MAX:
            ailing = f"{evidence.failed} probes in a row were not answered"
        changed = bool(ailing) != bool(server.ailing)
        if changed:
            server.ailing_since = now
        server.ailing = ailing
        return changed


def is_from(server: Server, pong: Pong) -> bool:
    """Whether that life of that server answered. One of an older version says its name alone."""
    if not pong.incarnation:
        return pong.name == server.name
    return pong.incarnation == server.incarnation
