"""Traces and lists of names: what is recorded is what is read, in order; what is none is refused."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loadgen import traces
from loadgen.plan import Kind, Plan, PlanError, file_of, in_turn
from loadgen.scenarios import Done, PageRequest, PageRequests, Scenario, Turns
from loadgen.talk import Work
from loadgen.traces import (
    VERSION,
    Header,
    Recorder,
    check_recordable,
    downloads_of,
    merge,
    read_names,
    read_trace,
)
from loadgen.worker import Team

NAMES = [f"/p/{number}" for number in range(50)]


class Pages(Scenario):
    """Asks for pages as a real one does, and has them at once."""

    def __init__(self, work: Work, thread: int, turns: Turns | None) -> None:
        self._requests = PageRequests(work, thread, turns)
        self.asked: list[PageRequest] = []

    def make(self, kind: Kind) -> PageRequest:
        return self._requests.make(kind)

    def restart(self) -> None:
        self.asked.clear()
        self._requests.restart()

    def perform(self, request: PageRequest) -> Done:
        self.asked.append(request)
        return Done(len(request), 0)


def ran(work: Work) -> list[Pages]:
    made: list[Pages] = []
    turns = Turns(work) if work.rounds else None

    def scenario(work: Work, thread: int) -> Pages:
        made.append(Pages(work, thread, turns))
        return made[-1]

    team = Team(work, scenario)
    assert team.prepare() is None
    team.go(time.monotonic() + work.plan.warmup_s)
    team.join()
    assert team.fault() is None
    return made


def recorded(tmp_path: Path, plan: Plan) -> tuple[Path, list[Pages]]:
    parts, path = tmp_path / "parts", tmp_path / "trace"
    parts.mkdir()
    made: list[Pages] = []
    for client in range(plan.clients):
        made += ran(Work(plan, client, "", 1.0, NAMES, [], "/load", record=str(parts)))
    merge(parts, path, Header(VERSION, "test", plan=plan))
    return path, made


@pytest.mark.parametrize("rate", [None, 5000.0])
def test_what_is_recorded_is_what_was_asked_for(tmp_path: Path, rate: float | None) -> None:
    plan = Plan(request="mixed", count=60, clients=2, threads=3, files=4, rate=rate, warmup_s=0.05)
    path, made = recorded(tmp_path, plan)
    read = read_trace(str(path))
    assert len(read) == 120
    assert [one.at_s for one in read] == sorted(one.at_s for one in read)
    assert read[0].at_s >= 0
    wanted = Counter(json.dumps(list(request)) for one in made for request in one.asked)
    assert Counter(json.dumps(one.names) for one in read) == wanted
    assert {(one.client, one.thread) for one in read} <= {(c, t) for c in range(2) for t in range(3)}
    for one in read:
        assert one.sizes == ([plan.size_bytes] * 4 if one.kind == "upload" else [])
    header = json.loads(path.read_bytes().splitlines()[0])
    assert (header["trace"], header["complete"], header["plan"]["files"]) == (VERSION, True, 4)


def test_files_that_are_uploaded_are_recorded_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"12345")
    recorder = Recorder(str(tmp_path), Plan(clients=1, threads=1), 0, 0)
    recorder.note(0.5, "upload", {"/load/a.txt": tmp_path / "a.txt", "/load/b": b"12"})
    recorder.close()
    merge(tmp_path, tmp_path / "trace", Header(VERSION))
    (one,) = read_trace(str(tmp_path / "trace"))
    assert (one.at_s, one.names, one.sizes) == (0.5, ["/load/a.txt", "/load/b"], [5, 2])


def test_a_trace_that_is_cut_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "REQUESTS_MAX", 20)
    path, _ = recorded(tmp_path, Plan(count=11, clients=2, threads=1))
    assert json.loads(path.read_bytes().splitlines()[0])["complete"] is False
    assert len(read_trace(str(path))) == 20
    with path.open("ab") as file:
        file.write(b'{"at_s":9,"kind":"download","names":["/a"]}\n')
    with pytest.raises(PlanError, match="more than 20 requests"):
        read_trace(str(path))


def test_a_trace_is_asked_for_again_in_its_order(tmp_path: Path) -> None:
    path, _ = recorded(tmp_path, Plan(count=30, clients=1, threads=1, files=3, request="mixed"))
    downloads = [one.names for one in read_trace(str(path)) if one.kind == "download"]
    rounds = downloads_of(("trace", str(path)), 3)
    assert rounds == downloads
    plan = Plan(count=len(rounds), clients=1, threads=1, choice=f"trace:{path}", warmup_s=0.02)
    (made,) = ran(Work(plan, 0, "", 1.0, NAMES, [], "", rounds=rounds))
    assert made.asked == downloads


def test_clients_share_the_rounds_in_turn() -> None:
    rounds = [[f"/{number}"] for number in range(7)]
    nexts = [in_turn(rounds, Plan(clients=3), client) for client in range(3)]
    asked = [following()[0] for _ in range(14) for following in nexts]
    assert asked == [f"/{place % 7}" for place in range(42)]


@pytest.mark.parametrize("rate", [None, 5000.0])
def test_whichever_thread_is_free_takes_the_next_of_a_trace(rate: float | None) -> None:
    rounds = [[f"/{number}"] for number in range(60)]
    plan = Plan(count=60, clients=1, threads=3, rate=rate, choice="trace:x", warmup_s=0.02)
    made = ran(Work(plan, 0, "", 1.0, NAMES, [], "", rounds=rounds))
    assert sorted(str(request) for one in made for request in one.asked) == sorted(map(str, rounds))


def test_a_list_is_taken_in_turn_and_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("# in this order\n/c\n/a\n\n/b\n/a\n/d\n", encoding="utf-8")
    assert read_names(path) == ["/c", "/a", "/b", "/a", "/d"]
    assert downloads_of(("list", str(path)), 2) == [["/c", "/a"], ["/b", "/a"], ["/d", "/c"]]
    assert downloads_of(("list", str(path)), 4)[0] == ["/c", "/a", "/b"]  # a request names a page once
    with pytest.raises(PlanError, match=r"5 pages a request, but .* names 4"):
        downloads_of(("list", str(path)), 5)


@pytest.mark.parametrize(
    ("choice", "file"),
    [
        ("list:a b", ("list", "a b")),
        ("trace:/x:y", ("trace", "/x:y")),
        ("list:", None),
        ("uniform", None),
        ("zipf:1", None),
    ],
)
def test_a_choice_names_its_file(choice: str, file: Any) -> None:
    assert file_of(choice) == file


HEADER = b'{"trace":1}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is no trace"),
        (b"root:x:0:0\n", "is no trace"),
        (b'{"version":1}\n', "is no trace"),
        (b'{"trace":2}\n', "version 2; this program reads version 1"),
        (HEADER, "no downloads"),
        (HEADER + b"\n", "line 2"),
        (HEADER + b'{"at_s":0,"kind":"download","names":["/a"]}\n{"at_s":0}\n', "line 3"),
        (HEADER + b'{"at_s":0,"kind":"delete","names":["/a"]}\n', "line 2"),
        (HEADER + b'{"at_s":0,"kind":"download","names":[]}\n', "a request for nothing"),
        (HEADER + b'{"at_s":0,"kind":"upload","names":["/a"]}\n', "no downloads"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(text)
    with pytest.raises(PlanError, match=said) as refused:
        downloads_of(("trace", str(path)), 1)
    assert "\n" not in str(refused.value)


def test_fields_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b'{"trace":1,"x":2}\n{"at_s":0.5,"kind":"download","names":["/a"],"y":[]}\n')
    assert downloads_of(("trace", str(path)), 1) == [["/a"]]


@pytest.mark.parametrize("source", ["list", "trace"])
def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, source: str) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        downloads_of((source, str(tmp_path / "nowhere")), 1)


def test_too_many_threads_are_not_recorded() -> None:
    check_recordable(Plan(clients=2, threads=256))
    with pytest.raises(PlanError, match="768 threads"):
        check_recordable(Plan(clients=3, threads=256))
