"""What servers say that cannot be true: passed over, counted, and logged once for each life of a server.

What lives here: figures, records and reports that contradict what the balancer
itself knows. What must not: what is done with those that may be true. Nothing is
dropped, and no state changes, for what is refused here.
"""

from collections import Counter
from typing import Final

from dws.catalog import Catalog
from dws.effects import Effects, Log
from dws.load import Loads
from dws.membership import Server
from dws.messages import Beat, Record
from dws.names import format_version
from dws.placement import Placement

FIGURES: Final = "figures that cannot be"
NEVER_GIVEN: Final = "versions that were never given"
OTHER_BYTES: Final = "other bytes for a visible version"
OUT_OF_PLACE: Final = "records in the wrong bucket"
NO_ORDER: Final = "failures of copies that nobody ordered"


class Plausibility:
    def __init__(self, catalog: Catalog, placement: Placement, loads: Loads, counters: Counter[str]) -> None:
        self._catalog = catalog
        self._placement = placement
        self._loads = loads
        self._counters = counters
        self._told: dict[tuple[int, str], int] = {}  # server, what → the incarnation that it was logged of

    def beat(self, server: Server, beat: Beat) -> Effects | None:
        """None: its figures may be true. Such a beat that is not is a sign of life all the same."""
        fault = self._loads.fault_of(server.number, beat)
        return self.refuse(server, FIGURES, fault) if fault else None

    def records(self, server: Server, records: list[Record]) -> Effects:
        """They are taken for what lies on that disk, as always; but somebody should know."""
        effects: Effects = []
        newest = self._placement.newest_version
        for record in records:
            visible = self._catalog.visible(record.name)
            if record.version > newest:
                text = f"{record.name} version {format_version(record.version)}"
                effects += self.refuse(server, NEVER_GIVEN, text)
            elif visible is not None and visible[0] == record.version and visible[1] != record.digest:
                effects += self.refuse(server, OTHER_BYTES, record.name)
        return effects

    def refuse(self, server: Server, what: str, text: str) -> Effects:
        """Count it; the log's line, the first time."""
        self._counters[f"impossible: {what}"] += 1
        if self._told.get((server.number, what)) == server.incarnation:
            return []
        self._told[server.number, what] = server.incarnation
        return [Log("warning", f"{server.name} tells of {what}: {text}")]
