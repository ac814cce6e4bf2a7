"""A catalog made anew, event by event: whom the rebuild reads, for whom it waits, for whom not for ever."""

from typing import Any

import pytest
from blake3 import blake3

from dws.config import Config
from dws.effects import Answer, Ask, Connect, Log, Rebuilt
from dws.errors import Stale
from dws.events import Answered, ServerAsked, Tick, Unanswered
from dws.limits import MANIFEST_BUCKETS, RECORD_FORMAT
from dws.messages import Error, Hello, Manifest, ManifestPage, Record
from dws.names import bucket_of, make_version
from dws.rebuild import PROGRESS_S, Rebuild
from dws.store import KnownServer

CONFIG = Config(rebuild_quiet_s=2.0, rebuild_absent_s=12.0)
CLUSTER = b"c" * 16


def record(name: str, counter: int) -> Record:
    digest = blake3(name.encode()).digest()
    version = make_version(7, counter)
    return Record(name, version, b"b" * 16, 1, digest, b"", "", 0.0, RECORD_FORMAT)


class Site:
    """A rebuild, and servers that are names with records; those in `silent` answer nothing."""

    def __init__(self, *expected: KnownServer) -> None:
        self.now = 50.0
        self.rebuild = Rebuild(7, list(expected), CONFIG, b"n" * 16, self.now)
        self.held: dict[str, list[Record]] = {}
        self.names: dict[int, str] = {}
        self.silent: set[str] = set()
        self.stops_after: dict[str, int] = {}
        """Buckets that a server answers for before it falls silent."""
        self.log: list[str] = []
        self.asked: list[tuple[str, float]] = []
        self.result: Rebuilt | None = None
        self._owed: list[tuple[float, Ask]] = []
        self._coming: list[str] = []

    def hello(self, name: str, *records: Record, incarnation: int = 1) -> None:
        self.held[name] = list(records)
        endpoint = f"tcp://{name}:1"
        hello = Hello(
            name.encode().ljust(16, b"."), name, incarnation, endpoint, endpoint, "", CLUSTER, 7, 1, 3, 1,
            len(records), 0, 0,
        )  # fmt: skip
        self._coming.append(name)
        self.happen(ServerAsked(1, hello))

    def happen(self, event: Any) -> None:
        todo = list(self.rebuild.handle(event, self.now))
        while todo:
            effect = todo.pop(0)
            match effect:
                case Log(level, text):
                    self.log.append(f"{level}: {text}")
                case Connect(number):
                    self.names[number] = self._coming[-1]
                case Rebuilt():
                    assert self.result is None, "rebuilt twice"
                    self.result = effect
                case Ask(number):
                    todo += self.answer(self.names[number], effect)
                case _:
                    assert isinstance(effect, Answer)

    def answer(self, name: str, ask: Ask) -> Any:
        self.asked.append((name, self.now))
        question = ask.message
        assert isinstance(question, Manifest)
        if name in self.silent or question.bucket >= self.stops_after.get(name, MANIFEST_BUCKETS):
            self._owed.append((self.now + ask.timeout_s, ask))
            return []
        return self.rebuild.handle(Answered(ask.tag, self.page(name, question)), self.now)

    def page(self, name: str, question: Manifest) -> Any:
        """One record a page, cursors counting from 1."""
        held = [each for each in self.held[name] if bucket_of(each.version) == question.bucket]
        index = question.after[0] if question.after else 0
        more = index + 1 < len(held)
        return ManifestPage(question.bucket, held[index : index + 1], bytes([index + 1]) if more else b"")

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and self.result is None:
            self.now += 0.1
            self.happen(Tick())
            for owed in [each for each in self._owed if each[0] <= self.now]:
                self._owed.remove(owed)
                self.happen(Unanswered(owed[1].tag))

    def told(self, *words: str) -> list[str]:
        return [line for line in self.log if all(word in line for word in words)]

    def versions(self) -> dict[str, int]:
        assert self.result is not None
        return {each.name: each.version for each in self.result.records}


def test_the_highest_version_of_each_name_is_visible() -> None:
    site = Site()
    site.hello("web-1", record("/a", 1), record("/b", 2))
    site.hello("web-2", record("/a", 3))
    site.wait(CONFIG.rebuild_quiet_s + 0.5)
    assert site.versions() == {"/a": make_version(7, 3), "/b": make_version(7, 2)}


def test_a_server_that_falls_silent_is_waited_for_by_name_then_left_out() -> None:
    site = Site()
    site.stops_after["web-2"] = 100
    site.hello("web-1", record("/a", 1))
    site.hello("web-2", record("/a", 9), record("/only", 9))
    site.wait(PROGRESS_S + 0.5)
    assert site.result is None
    assert len(site.told("info", "waits for web-2", "start it again", "Ctrl-C")) == 1
    site.wait(CONFIG.rebuild_absent_s)
    assert site.versions() == {"/a": make_version(7, 1)}, "half a manifest may show half a batch"
    assert site.told("warning", "web-2", "12 s", "left out")
    assert site.told("warning", "not read", "web-2", "kept and reported")
    known = {each.name for each in site.result.servers} if site.result else set()
    assert known == {"web-1", "web-2"}, "known, so that its pages are awaited"


def test_a_server_that_comes_back_in_time_is_read_from_the_start() -> None:
    site = Site()
    site.stops_after["web-2"] = 100
    site.hello("web-1", record("/a", 1))
    site.hello("web-2", record("/a", 9), record("/gone", 9))
    site.wait(6.0)
    site.stops_after.clear()
    site.hello("web-2", record("/a", 9), incarnation=2)
    site.wait(CONFIG.rebuild_quiet_s + 0.5)
    assert site.versions() == {"/a": make_version(7, 9)}, "what its life before held may be gone"
    assert not site.told("warning", "left out")


def test_one_that_was_left_out_and_answers_again_before_the_end_is_read() -> None:
    site = Site()
    site.silent |= {"web-1", "web-2"}
    site.hello("web-1", record("/a", 1))
    site.hello("web-2", record("/a", 9))
    site.wait(3 * CONFIG.rebuild_absent_s)
    assert site.result is None, "never a catalog made of nothing"
    assert site.told("info", "no server could be read") and len(site.told("warning", "left out")) == 2
    site.silent.clear()
    site.wait(CONFIG.rebuild_quiet_s + 6.0)
    assert site.versions() == {"/a": make_version(7, 9)}


def test_without_any_server_it_waits_and_names_those_that_it_expects() -> None:
    site = Site(KnownServer(4, b"4" * 16, "web-4"))
    site.wait(4 * PROGRESS_S + 0.5)
    assert site.result is None
    assert len(site.told("info", "web-4", "Ctrl-C")) == 4


@pytest.mark.parametrize("cursors", [[b"\x05", b"\x05"], [b"\x05", b"\x03"]], ids=["stands", "falls"])
def test_a_cursor_that_does_not_rise_is_the_servers_fault(cursors: list[bytes]) -> None:
    site = Site()
    site.hello("web-1", record("/a", 1))
    pages = iter(cursors)
    site.page = lambda name, question: ManifestPage(  # type: ignore[method-assign]
        question.bucket, [record("/wrong", 9)], next(pages)
    )
    site.hello("web-2", record("/a", 9))
    assert len(site.told("error", "left out: web-2", "cursor")) == 1
    site.hello("web-2", record("/a", 9))
    assert len(site.told("error")) == 1, "the same life is not read again"
    site.wait(CONFIG.rebuild_quiet_s + 0.5)
    assert site.versions() == {"/a": make_version(7, 1)}
    assert site.told("warning", "not read", "web-2")


def test_what_is_no_manifest_is_asked_for_again_at_a_pace_and_not_for_ever() -> None:
    site = Site()
    site.hello("web-1")
    site.page = lambda name, question: Error(Stale.code, "another one")  # type: ignore[method-assign]
    site.hello("web-2", record("/a", 9))
    site.wait(4.0)
    assert 4 <= sum(name == "web-2" for name, _ in site.asked) <= 12
    site.wait(CONFIG.rebuild_absent_s)
    assert site.versions() == {} and site.told("warning", "web-2", "left out")
