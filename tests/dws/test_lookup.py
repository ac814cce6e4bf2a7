"""A lookup of many names answers each as the catalog's entry says, whichever of them there are."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dws.messages import Locate, decode_balancer_reply, encode
from tests.dws.desk import Desk

STORED = ["/a", "/b", "/c/d"]
NAMES = st.lists(st.sampled_from([*STORED, "/missing", "/c"]), max_size=6)


@pytest.fixture(scope="module")
def desk() -> Desk:
    desk = Desk("web-1", "web-2", "web-3")
    for number, name in enumerate(STORED, 1):
        desk.put(number, name, on=("web-1", "web-2"))
    return desk


def one_by_one(desk: Desk, name: str) -> tuple[Any, ...] | None:
    entry = desk.balancer.catalog.pages.get(name)
    if entry is None:
        return None
    return entry.version, entry.size, entry.digest, entry.list_digest, set(entry.holders)


@given(names=NAMES)
def test_each_name_has_its_answer(desk: Desk, names: list[str]) -> None:
    located = decode_balancer_reply(encode(desk.balancer.locate(Locate(names), desk.now)))
    answers = [page if page is None else (*page[:4], set(page[4])) for page in located.pages]
    assert answers == [one_by_one(desk, name) for name in names]
