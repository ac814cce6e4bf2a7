"""What a client of no cluster refuses by itself: arguments of a wrong type, named, with nothing sent."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dws

WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda client: client.get(5), "name: expected a page name .str., not int"),
    (lambda client: client.get(b"/a"), "name: .* not bytes"),
    (lambda client: client.get_many("/a"), "names: expected several page names.* not str"),
    (lambda client: client.get_many(["/a", None]), "name: .* not NoneType"),
    (lambda client: client.get_many(5), "names: .* not int"),
    (lambda client: client.open(5), "name: .* not int"),
    (lambda client: client.download("/a", "file"), "target: expected a pathlib.Path .* not str"),
    (lambda client: client.download(5, Path("file")), "name: .* not int"),
    (lambda client: client.put({"/a": "text"}), "pages.'/a'.: expected bytes, .* not str"),
    (lambda client: client.put({"/a": io.StringIO("text")}), "binary stream, not StringIO"),
    (lambda client: client.put({5: b""}), "name: .* not int"),
    (lambda client: client.put(["/a"]), "pages: expected a mapping .* not list"),
    (lambda client: client.upload("site"), "directory: expected a pathlib.Path, not str"),
    (lambda client: client.remove("/a"), "names: .* not str"),
    (lambda client: client.stat("/a"), "names: .* not str"),
    (lambda client: client.why(5), "name: .* not int"),
]


@pytest.mark.parametrize(("call", "says"), WRONG, ids=[says for _, says in WRONG])
def test_an_argument_of_a_wrong_type_is_a_type_error(call: Callable[[Any], Any], says: str) -> None:
    # Nobody listens there: what was sent would end in Unreachable.
    with dws.connect("tcp://127.0.0.1:9", timeout_s=0.05) as client, pytest.raises(TypeError, match=says):
        call(client)


def test_silence_is_told_once_and_with_the_time_that_is_left_to_try() -> None:
    told: list[float] = []
    with (
        dws.connect("tcp://127.0.0.1:9", timeout_s=2.6, on_silence=told.append) as client,
        pytest.raises(dws.Unreachable),
    ):
        client.ping()
    assert [round(limit_s, 1) for limit_s in told] == [2.6]
