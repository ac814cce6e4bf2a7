"""Rings of places, compared at every step with lists of names."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dws.groups import GroupKey, Groups

KEYS = st.sampled_from([(0, ()), (0, (1,)), (0, (1, 2)), (3, (1, 2))])
NAMES = st.sampled_from(["/a", "/b", "/c", "/d", "/e", "/f"])


class GroupsBesideLists(RuleBasedStateMachine):
    """The model: each group's pages in a list, and each page's place and size."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = Groups()
        self.lists: dict[GroupKey, list[str]] = {}
        self.places: dict[str, int] = {}
        self.sizes: dict[str, int] = {}

    def key_of(self, name: str) -> GroupKey | None:
        return next((key for key, names in self.lists.items() if name in names), None)

    def take(self, key: GroupKey, names: list[str]) -> None:
        left = [name for name in self.lists.pop(key) if name not in names]
        if left:
            self.lists[key] = left

    @rule(name=NAMES, size=st.integers(0, 1 << 40), key=KEYS)
    def add(self, name: str, size: int, key: GroupKey) -> None:
        if name in self.places:
            return
        self.places[name] = self.groups.add(name, size, self.groups.of(*key))
        self.sizes[name] = size
        self.lists.setdefault(key, []).append(name)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        key = self.key_of(name)
        if key is not None:
            kept = self.groups.remove(self.places.pop(name), self.sizes.pop(name), self.groups[key])
            assert kept == name
            self.take(key, [name])

    @rule(old=KEYS, new=KEYS, wanted=st.permutations(["/a", "/b", "/c", "/d"]), most=st.integers(1, 4))
    def move(self, old: GroupKey, new: GroupKey, wanted: list[str], most: int) -> None:
        names = [name for name in wanted if name in self.lists.get(old, [])][:most]
        if not names or old == new:
            return
        size_bytes = sum(self.sizes[name] for name in names)
        places = [self.places[name] for name in names]
        self.groups.move(places, size_bytes, self.groups[old], self.groups.of(*new))
        self.take(old, names)
        self.lists.setdefault(new, []).extend(names)

    @invariant()
    def all_pages_are_where_they_should_be_in_the_order_in_which_they_came(self) -> None:
        self.groups.check()
        assert {key: list(self.groups.names(key)) for key in self.groups} == self.lists
        for key, names in self.lists.items():
            group = self.groups[key]
            assert (group.copies, group.holders) == key
            assert group.pages == len(names)
            assert group.size_bytes == sum(self.sizes[name] for name in names)
            assert self.groups.numbered[group.number] is group

    @invariant()
    def nothing_is_kept_of_what_is_gone(self) -> None:
        assert len(self.groups._names) <= 6 + 4, "no more places than pages and groups there were at once"
        assert sorted(filter(None, self.groups._names)) == sorted(self.places)


TestGroupsBesideLists: Any = GroupsBesideLists.TestCase
TestGroupsBesideLists.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_group_that_is_not_there_has_no_pages() -> None:
    assert list(Groups().names((0, (1,)))) == []
