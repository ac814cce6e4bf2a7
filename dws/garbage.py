"""When records that the catalog does not name are deleted.

What lives here: the wait of a minute, what is spared, and the drops on the way.
What must not: what is visible (catalog.py), how a job travels (orders.py).

A stray is spared while its batch is open; while it is younger than garbage_s;
on a catalog made by --rebuild, if it is older than the rebuild and the catalog
names no higher version of its page: it may be the only trace of a page whose
holder was absent; and if it claims an epoch that is still to come.
"""

from collections.abc import Callable
from itertools import islice

from dws.catalog import Catalog
from dws.config import Config
from dws.limits import BATCH_MAX_PAGES, REBUILD_EPOCH_STEP
from dws.messages import Dropped
from dws.names import epoch_of
from dws.orders import Orders
from dws.store import CatalogHead

#: Strays looked at for one server in one sweep: a bound on the time that a sweep takes.
_SWEEP_MAX = 20_000


class Garbage:
    """is_open: whether a version belongs to a batch that may still be decided."""

    def __init__(
        self,
        catalog: Catalog,
        orders: Orders,
        head: CatalogHead,
        config: Config,
        is_open: Callable[[int], bool],
    ) -> None:
        self._catalog = catalog
        self._orders = orders
        self._head = head
        self._config = config
        self._is_open = is_open
        self._serial = 0
        self._dropping: dict[int, dict[int, list[tuple[str, int]]]] = {}  # server → serial → (name, version)
        self._reached: dict[int, tuple[int, int]] = {}  # server → strays that this round passed, and spared
        self.spared: dict[int, int] = {}
        """Server → strays from before a rebuild, or of no epoch that was, that are kept and reported."""

    def sweep(self, number: int, decision: int, now: float) -> None:
        """Order drops of what is due on one server, a synced one."""
        if self._dropping.get(number) or not self._orders.has_room(number):
            return
        due: list[tuple[str, int]] = []
        begin, spared = self._reached.get(number, (0, 0))
        strays = islice(self._catalog.pictures[number].strays.items(), begin, begin + _SWEEP_MAX)
        looked_at = 0
        for copy, since in strays:
            if since + self._config.garbage_s > now or len(due) == BATCH_MAX_PAGES:
                break
            looked_at += 1
            name, version = copy
            if epoch_of(version) > self._head.epoch or self._from_before_rebuild(name, version):
                spared += 1
            elif not self._is_open(version) and not self._is_visible(name, version):
                due.append(copy)
        if looked_at == _SWEEP_MAX:
            # Those that stay must not hide what lies behind them from every sweep.
            self._reached[number] = (begin + looked_at - len(due), spared)
        else:
            self._reached.pop(number, None)
            self.spared[number] = spared
        if due:
            self._serial += 1
            self._dropping.setdefault(number, {})[self._serial] = due
            records = [Dropped(*copy) for copy in due]
            self._orders.drop(number, ("drop", self._serial), records, decision)

    def reported(self, number: int) -> None:
        """The server's picture changed: drops that it shows as done are done."""
        drops = self._dropping.get(number, {})
        # What is neither visible nor of an open batch is a stray, or not held; it will never be a copy.
        strays = self._catalog.pictures[number].strays.keys()
        for serial, copies in list(drops.items()):
            if strays.isdisjoint(copies):
                del drops[serial]
                self._orders.done(number, ("drop", serial))

    def _is_visible(self, name: str, version: int) -> bool:
        """A copy of the visible version that differs from it counts for nothing; but which one is damaged
        is not for this part to say."""
        visible = self._catalog.visible(name)
        return visible is not None and visible[0] == version

    def _from_before_rebuild(self, name: str, version: int) -> bool:
        if not self._head.rebuilt:
            return False
        visible = self._catalog.visible(name)
        superseded = visible is not None and visible[0] > version
        # A rebuild raises the epoch by REBUILD_EPOCH_STEP, so it shows in the upper bits.
        older = epoch_of(version) // REBUILD_EPOCH_STEP < self._head.epoch // REBUILD_EPOCH_STEP
        return older and not superseded

    def count(self) -> int:
        return sum(len(picture.strays) for picture in self._catalog.pictures.values())
