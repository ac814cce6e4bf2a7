"""Which servers store a batch, and who must still copy it.

What lives here: the choice of primary and backups, the live holders of an open
batch, and copy orders. What must not: conditions, decisions, answers to clients
(placement.py).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from random import Random
from typing import Final

from dws.batch import Batch
from dws.catalog import Catalog
from dws.errors import Full, TooFewServers, TryAgain
from dws.load import Loads
from dws.membership import ALIVE, Members
from dws.messages import Dropped, Error, PutPage, Record, ServerRef
from dws.orders import Orders
from dws.policy import draw_targets

_RETRY_S: Final = 0.1
#: How long a backup that could not copy a batch is not asked again: its trouble may pass.
_FAILED_REST_S: Final = 1.0
#: How long after its Reserve a client is expected to bring a small batch to all its targets; then those that
#: lack it copy it. Longer than that takes on a slow disk, or it would be stored twice.
_DIRECT_S: Final = 1.0


class Replication:
    """default_copies: of pages whose put asked for no number."""

    def __init__(
        self,
        catalog: Catalog,
        members: Members,
        loads: Loads,
        orders: Orders,
        default_copies: int,
        rng: Random,
    ) -> None:
        self._default_copies = default_copies
        self._catalog = catalog
        self._members = members
        self._loads = loads
        self._orders = orders
        self._rng = rng

    def holders(self, batch: Batch) -> list[int]:
        """Live servers that hold the whole batch, as far as the picture shows now."""
        wanted = len(batch.pages)
        return [
            number
            for number, names in batch.found.items()
            if len(names) == wanted
            and self._members.by_number[number].live
            and self._catalog.holds(number, next(iter(names)), batch.version)
        ]

    def found(self, batch: Batch, number: int, record: Record) -> bool:
        """A server reported this record of the batch. False if its bytes are not those of the others."""
        first = batch.records.setdefault(record.name, record)
        asked = batch.pages[record.name]
        if not _is_copy(first, record) or (asked.digest and asked.digest != record.digest):
            return False
        batch.found.setdefault(number, set()).add(record.name)
        return True

    def lost(self, batches: dict[int, Batch], number: int, records: list[Dropped]) -> None:
        """A server reported that it holds these no longer. batches: the open ones, by version."""
        for record in records:
            batch = batches.get(record.version)
            if batch is not None:
                batch.found.get(number, set()).discard(record.name)

    def has_already(self, page: PutPage, copies: int) -> bool:
        """Whether the visible version has these bytes and this type, on enough live servers, and is to stay
        on as many."""
        visible = self._catalog.visible(page.name)
        if visible is None or not page.digest or page.digest != visible[1]:
            return False
        entry = self._catalog.pages[page.name]
        if page.content_type != entry.content_type or (entry.copies or self._default_copies) < copies:
            return False
        return sum(self._members.by_number[number].live for number in entry.holders) >= copies

    def bring(self, batch: Batch, now: float) -> list[ServerRef]:
        """The backups that the client is to bring it to beside the primary; none if it is not small."""
        if not batch.may_be_direct:
            return []
        batch.direct_until = now + _DIRECT_S
        return [self._members.by_number[number].ref() for number in batch.targets[1:]]

    def order_copies(self, batch: Batch, holders: list[int], decision: int, now: float) -> None:
        """Have the copies made that are missing; orders to or from servers that died are replaced, and where
        one is suspect another is asked as well: what comes first counts."""
        sources = [number for number in holders if self._members.by_number[number].sure] or holders
        for number, source_number in list(batch.ordered.items()):
            if number in holders or not self.is_candidate(number) or source_number not in sources:
                self.cancel(batch, number)
        resting = {number for number, until in batch.failed.items() if now < until}
        taken = {*holders, *batch.ordered, *resting}
        direct = self._direct(batch, taken, now)
        slow = sum(not self._members.by_number[number].sure for number in batch.ordered)
        missing = batch.copies - len(holders) - len(batch.ordered) + slow - len(direct)
        if not holders or missing <= 0:
            return
        source = self._members.by_number[sources[0]]
        taken.update(direct)
        preferred = [number for number in batch.targets if self.is_candidate(number)]
        unasked = [number for number in preferred if number not in taken]
        backups = [number for number in unasked if self._members.by_number[number].sure][:missing]
        if len(backups) < missing:
            spare = self.by_upload_load(self.candidates(batch.size_bytes))
            more = (number for number in spare if number not in taken and number not in preferred)
            backups += islice(more, missing - len(backups))
        if len(backups) < missing - slow:
            suspects = (number for number in unasked if number not in backups)
            backups += islice(suspects, missing - slow - len(backups))
        for number in backups:
            batch.ordered[number] = source.number
            records = list(batch.records.values())
            self._orders.copy(number, batch.version, source.ref(), records, decision)

    def copy_failed(self, batch: Batch, number: int, source: int, now: float) -> bool:
        """A backup could not copy it from this source (0: it did not say): for a while others are asked.
        False if that was not ordered, or is not any more."""
        if number not in batch.ordered or source not in (0, batch.ordered[number]):
            return False
        self.cancel(batch, number)
        batch.failed[number] = now + _FAILED_REST_S
        return True

    def undecided_on(
        self, number: int, batches: Iterable[Batch], counting: Callable[[Iterable[int]], int]
    ) -> tuple[int, int]:
        """(pages, bytes) of batches that would have too few copies without this server, or are staged there.

        batches: those that are not visible yet; counting: how many of some holders' copies count."""
        pages = size_bytes = 0
        for batch in batches:
            holders = self.holders(batch)
            others = [each for each in holders if each != number]
            needed = number in holders and counting(others) < batch.copies
            staged = not holders and batch.targets[:1] == [number]
            if needed or staged:
                pages += len(batch.pages)
                size_bytes += batch.size_bytes
        return pages, size_bytes

    def cancel(self, batch: Batch, number: int) -> None:
        del batch.ordered[number]
        self._orders.done(number, ("copy", batch.version))

    def is_lost(self, batch: Batch) -> bool:
        """Nobody holds it and its primary will not: the client must stage it again elsewhere."""
        return bool(batch.pages) and not self.holders(batch) and not self.is_candidate(batch.targets[0])

    def _direct(self, batch: Batch, taken: set[int], now: float) -> list[int]:
        """To whom the client is bringing it yet. One that is suspect is not waited for."""
        if now >= batch.direct_until:
            return []
        targets = (number for number in batch.targets if number not in taken and self.is_candidate(number))
        return [number for number in targets if self._members.by_number[number].sure]

    def is_candidate(self, number: int) -> bool:
        server = self._members.by_number[number]
        return server.live and not server.contested

    def targets(self, size_bytes: int, copies: int, avoid: set[int]) -> list[int] | Error:
        """Primary and backups for an upload, or why there are none. Who is to be avoided comes last, and is
        no primary."""
        chosen: list[int] = []
        avoided: list[int] = []
        for number in self.by_upload_load(self.candidates(size_bytes)):
            (avoided if number in avoid else chosen).append(number)
            if len(chosen) == copies:
                break
        targets = (chosen + avoided)[:copies]
        if len(targets) < copies or not chosen:
            return self._no_targets(copies, size_bytes)
        for number in targets:
            self._loads.reserve(number, size_bytes)
        return targets

    def place_again(self, batch: Batch, avoid: set[int]) -> Error | None:
        """New targets if the primary, which does not have it yet, is of no use; or why there are none. Who
        has it is the primary then: it answers for what it has at once."""
        primary, holders = batch.targets[0], self.holders(batch)
        if primary in holders or (primary not in avoid and self.is_candidate(primary)):
            return None
        targets = self.targets(batch.size_bytes, batch.copies, avoid)
        if not isinstance(targets, Error):
            batch.targets = list(dict.fromkeys((*holders, *targets)))[: batch.copies]
        elif holders:
            batch.targets = holders
        else:
            return targets
        return None

    def candidates(self, size_bytes: int) -> list[int]:
        """Servers that may take this much."""
        return [
            server.number
            for server in self._members.by_number.values()
            if server.state == ALIVE
            and self._orders.has_room(server.number)
            and self._loads.bytes_free(server.number) >= size_bytes
        ]

    def by_upload_load(self, numbers: list[int]) -> Iterator[int]:
        """The same servers as an upload should take them; each is drawn when it is asked for."""
        return draw_targets(self._loads.upload(numbers), self._rng)

    def _no_targets(self, copies: int, size_bytes: int) -> Error:
        servers = self._members.by_number.values()
        alive = [server for server in servers if server.state == ALIVE]
        if len(alive) >= copies:
            if any(self._loads.servers[server.number].beat is None for server in alive):
                text = "servers that have just joined have yet to tell their room"
                return Error(TryAgain.code, text, _RETRY_S)
            room = sorted((self._loads.bytes_free(server.number) for server in alive), reverse=True)
            if room[copies - 1] < size_bytes:
                text = f"{size_bytes:,} bytes wanted on {copies} servers, room for "
                return Error(Full.code, f"{text}{max(0, room[copies - 1]):,}: remove pages, or add a server")
            return Error(TryAgain.code, "the servers that have room are the ones to avoid", _RETRY_S)
        if sum(server.heard == ALIVE or server.live for server in servers) >= copies:
            text = f"{len(alive)} of the {copies} servers that {copies} copies need are in sync"
            return Error(TryAgain.code, text, _RETRY_S)
        text = f"{copies} copies need {copies} live servers, there are {len(alive)}. "
        return Error(TooFewServers.code, text + "Start more web servers, or ask for fewer copies")


def _is_copy(first: Record, record: Record) -> bool:
    """Of one page of one batch: whoever serves it must say the same of it."""
    told = (record.size, record.digest, record.content_type, record.modified)
    return told == (first.size, first.digest, first.content_type, first.modified)
