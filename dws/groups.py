"""Pages by what they want and where they lie: which lie on the same servers.

What lives here: the groups, their sums, and their pages in the order in which they came. What
must not: what else is known of a page (entries.py), and when it moves (catalog.py).

Each page has a place, a number that it keeps for as long as its version is visible, and so has
each group. A group's pages are a ring of places that is linked both ways and closed by the
group's own, as in Knuth's circular lists: whichever page it is, to move it costs the same few
steps, and neither a dictionary for each group nor an object for each page. All rings are two
arrays. A place that is free is given anew before there are more.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

#: (copies wanted, 0 for as many as the cluster is set to; numbers of the holders, ascending)
GroupKey = tuple[int, tuple[int, ...]]


class Group(Struct):
    """Pages that want the same number of copies and lie on the same servers.

    number: its place in its ring; no other group has it.
    pages, size_bytes: how many, and of how many bytes together.
    """

    number: int
    copies: int
    holders: tuple[int, ...]
    pages: int = 0
    size_bytes: int = 0

    @property
    def key(self) -> GroupKey:
        return self.copies, self.holders


class Groups(Mapping[GroupKey, Group]):
    """All groups that have pages, by what their pages have in common."""

    def __init__(self) -> None:
        self.numbered: dict[int, Group] = {}
        """The same groups by their numbers, which is what pages have of them."""
        self._by_key: dict[GroupKey, Group] = {}
        # All by place; a group's name is empty.
        self._next = array("I")
        self._previous = array("I")
        self._names: list[str] = []
        self._free = array("I")

    def __getitem__(self, key: GroupKey) -> Group:
        return self._by_key[key]

    def __iter__(self) -> Iterator[GroupKey]:
        return iter(self._by_key)

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, copies: int, holders: tuple[int, ...]) -> Group:
        """The group of such pages. One that was not there is made; it ends with its last page."""
        group = self._by_key.get((copies, holders))
        if group is None:
            place = self._take_place("")
            self._next[place] = self._previous[place] = place
            group = self._by_key[copies, holders] = self.numbered[place] = Group(place, copies, holders)
        return group

    def add(self, name: str, size: int, group: Group) -> int:
        """A page that was in none. Returns its place."""
        place, ring = self._take_place(name), group.number
        last = self._previous[ring]
        self._next[last] = self._previous[ring] = place
        self._next[place], self._previous[place] = ring, last
        group.pages += 1
        group.size_bytes += size
        return place

    def remove(self, place: int, size: int, group: Group) -> str:
        """A page leaves its group, for none. Returns the object that was kept of its name."""
        before, after = self._previous[place], self._next[place]
        self._next[before], self._previous[after] = after, before
        name, self._names[place] = self._names[place], ""
        self._free.append(place)
        group.pages -= 1
        group.size_bytes -= size
        self._end_if_empty(group)
        return name

    def move(self, places: Sequence[int], size_bytes: int, old: Group, new: Group) -> None:
        """Pages of `old`, of so many bytes together, are those of `new`, another group, from now on."""
        assert places and old is not new
        after, before, ring = self._next, self._previous, new.number
        last = before[ring]
        for place in places:
            left, right = before[place], after[place]
            after[left] = right
            before[right] = left
            after[last] = place
            before[place] = last
            last = place
        after[last] = ring
        before[ring] = last
        new.pages += len(places)
        new.size_bytes += size_bytes
        old.pages -= len(places)
        old.size_bytes -= size_bytes
        self._end_if_empty(old)

    def names(self, key: GroupKey) -> Iterator[str]:
        """A group's pages, those first that have been in it longest. Nothing may move meanwhile."""
        group = self._by_key.get(key)
        if group is None:
            return
        place = group.number
        for _ in range(group.pages):
            place = self._next[place]
            yield self._names[place]
        assert self._next[place] == group.number, "pages moved while they were told"

    def _end_if_empty(self, group: Group) -> None:
        if group.pages == 0:
            del self._by_key[group.key], self.numbered[group.number]
            self._free.append(group.number)

    def _take_place(self, name: str) -> int:
        if self._free:
            place = self._free.pop()
            self._names[place] = name
            return place
        self._names.append(name)
        self._next.append(0)
        self._previous.append(0)
        return len(self._names) - 1

    def check(self) -> None:
        """Every place is free or in one ring, and every ring reads the same both ways. Costs a walk."""
        places = list(self._free)
        for key, group in self._by_key.items():
            assert group.pages > 0 and key == group.key and self.numbered[group.number] is group
            places.append(group.number)
            place = group.number
            for _ in range(group.pages):
                assert self._previous[self._next[place]] == place
                place = self._next[place]
                places.append(place)
            assert self._next[place] == group.number and self._previous[group.number] == place
        assert len(self.numbered) == len(self._by_key)
        assert sorted(places) == list(range(len(self._names)))
        assert len(self._names) == len(self._next) == len(self._previous)
