"""Pages with fewer copies than wanted: which there are, and in which order they are to be copied.

What lives here: which copies count, what is missing, and what is most urgent.
What must not: from where to where anything is copied (repair.py).

What is missing is never noted down: it is read off the catalog's groups of pages
with the same holders, again and again, so that nothing is forgotten however
servers come and go. A copy counts on a live server that is not being drained and
has not been ailing for long. Pages with the fewest live copies come first, the
most visited of them before the rest; which those are is known to those who serve
them, so they are asked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from dws.catalog import Catalog
from dws.config import Config
from dws.effects import Ask, Effects
from dws.groups import GroupKey
from dws.membership import JOINING, Members, Server
from dws.messages import NodeStats

#: How often the groups are looked through, at the most.
_REVIEW_S: Final = 1.0
#: Most visited pages that each server is asked for, and of how many servers they are remembered.
_HOT_PAGES: Final = 1000
_HOT_SERVERS: Final = 10
_HOT_TIMEOUT_S: Final = 2.0


class Queue(Struct):
    """Pages of one group, the next one last. None: all of the group, listed when they are wanted."""

    key: GroupKey
    names: list[str] | None = None


class Shortage:
    def __init__(self, catalog: Catalog, members: Members, config: Config, now: float) -> None:
        self._catalog = catalog
        self._members = members
        self._config = config
        self.counting: frozenset[int] = frozenset()
        """Servers whose copies count."""
        self.queues: list[Queue] = []
        """What is missing, the most urgent last. Pages in it may have been copied since."""
        self._review_at = now
        self._hot: list[str] = []
        self._hot_at = now
        self._waiting_since: float | None = None

    def wanted(self, copies: int) -> int:
        return copies or self._config.copies

    def found(self, holders: Iterable[int]) -> int:
        """Copies that count."""
        return sum(number in self.counting for number in holders)

    def live(self, holders: Iterable[int]) -> list[int]:
        return [number for number in holders if self._members.by_number[number].live]

    def missing(self) -> Iterator[GroupKey]:
        """Groups with too few copies and a live holder."""
        for key in self._catalog.groups:
            copies, holders = key
            if self.found(holders) < self.wanted(copies) and self.live(holders):
                yield key

    def on_server(self, number: int) -> tuple[int, int]:
        """(pages, bytes) held there that would have too few copies without it."""
        pages = size_bytes = 0
        for (copies, holders), group in self._catalog.groups.items():
            others = [each for each in holders if each != number]
            if number in holders and self.found(others) < self.wanted(copies):
                pages += group.pages
                size_bytes += group.size_bytes
        return pages, size_bytes

    def settling(self, now: float) -> str:
        """The server that may yet turn out to have what seems to be missing; empty if there is none."""
        joining = [server for server in self._members.by_number.values() if server.state == JOINING]
        if not joining:
            self._waiting_since = None
            return ""
        if self._waiting_since is None:
            self._waiting_since = now
        return joining[0].name if now - self._waiting_since < self._config.dead_s else ""

    def count(self, now: float) -> bool:
        """Find out whose copies count now. True if that has changed."""
        before = self.counting
        servers = self._members.by_number.values()
        self.counting = frozenset(server.number for server in servers if self._counts(server, now))
        if self.counting != before:
            self.look_again(now)
        return self.counting != before

    def _counts(self, server: Server, now: float) -> bool:
        sick = bool(server.ailing) and now - server.ailing_since >= self._config.dead_s
        return server.live and not server.draining and not sick

    def look_again(self, now: float) -> None:
        self._review_at = now

    def review(self, now: float) -> Effects:
        """Bring `queues` up to date, if it is time to; and ask for what is visited most."""
        if now < self._review_at:
            return []
        self._review_at = now + _REVIEW_S
        missing = {key: len(self.live(key[1])) for key in self.missing()}
        hot = self._hot_of(missing)
        self.queues = []
        for live in sorted(set(missing.values()), reverse=True):
            level = [key for key, count in missing.items() if count == live]
            self.queues += [Queue(key) for key in level]
            self.queues += [Queue(key, hot[key]) for key in level if key in hot]
        return self._ask_for_hot(now) if missing else []

    def _hot_of(self, missing: dict[GroupKey, int]) -> dict[GroupKey, list[str]]:
        """The most visited of what is missing, by group."""
        hot: dict[GroupKey, list[str]] = {}
        for name in self._hot:
            key = self._catalog.group_of(name)
            if key is not None and key in missing:
                hot.setdefault(key, []).append(name)
        return hot

    def _ask_for_hot(self, now: float) -> Effects:
        if now < self._hot_at:
            return []
        self._hot_at = now + self._config.period_s
        self._hot = []
        numbers = [server.number for server in self._members.by_number.values() if server.live]
        question = NodeStats(_HOT_PAGES)
        return [Ask(number, question, ("hot", number, now), _HOT_TIMEOUT_S) for number in numbers]

    def heard_hot(self, pages: Iterable[tuple[str, int, int]], now: float) -> None:
        """The most visited pages of one server: (name, visits, bytes)."""
        visits: Counter[str] = Counter()
        for name, count, _ in pages:
            visits[name] += count
        # The most visited last, as in a queue.
        names = [name for name, _ in reversed(visits.most_common(_HOT_PAGES))]
        self._hot = list(dict.fromkeys([*self._hot, *names]))[-_HOT_SERVERS * _HOT_PAGES :]
        if self.queues:
            self.look_again(now)

    def take_in(self, queue: Queue) -> list[str]:
        """The names of a queue, to be taken from the end."""
        if queue.names is None:
            queue.names = list(self._catalog.groups.names(queue.key))
        return queue.names
