"""`dws trace` with a client that only pretends: rows, JSON lines, what is left out, how failures end.

`Pretender` tells the observer what a script says, as the client's shell would; real clusters are in
tests/cluster/test_trace.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from dws import errors
from dws.cli import exits, trace_text
from dws.cli.program import program
from dws.cli.session import Session
from dws.limits import MIB
from dws.messages import (
    Abort,
    Await,
    Commit,
    CommitPage,
    Committed,
    DigestList,
    Digests,
    Doubt,
    Error,
    Fetch,
    Fetched,
    Later,
    Locate,
    Located,
    Outcome,
    Ping,
    Pong,
    PutPage,
    Read,
    ReadData,
    Reserve,
    Reserved,
    ServerRef,
    Stage,
    Staged,
    StagePart,
    encode,
)
from dws.names import make_version

BALANCER_AT = "tcp://127.0.0.1:5600"
SERVERS = [ServerRef(number, f"web-{number}", f"tcp://web-{number}:1", number) for number in (1, 2)]
VERSION = make_version(3, 7)
Script = Callable[[Any], Any]


class Teller:
    """Tells an observer of requests and what became of them; each takes a millisecond."""

    def __init__(self, observer: Any, began: float) -> None:
        self.observer = observer
        self.now = began
        self.next_id = 90

    def ask(self, endpoint: str, message: Any, data_bytes: int = 0) -> int:
        self.next_id += 1
        self.now += 0.001
        body = encode(message)
        self.observer.sent(self.now, self.next_id, endpoint, body, data_bytes, 1.0, is_on_the_way=True)
        return self.next_id

    def answer(self, request_id: int, message: Any, data_bytes: int = 0) -> None:
        self.now += 0.001
        self.observer.received(self.now, request_id, memoryview(encode(message)), data_bytes)

    def silence(self, request_id: int) -> None:
        self.now += 1.0
        self.observer.expired(self.now, request_id)

    def late(self, request_id: int, endpoint: str, message: Any) -> None:
        self.observer.late(self.now, request_id, endpoint, memoryview(encode(message)))


class Pretender:
    """The client. script: what happens when a page is read or stored."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.observer: Any = None

    def connect(self, _balancer: str, observer: Any, **_: Any) -> Self:
        self.observer = observer
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def download(self, _name: str, _target: Path) -> Any:
        return self.script(Teller(self.observer, self.observer.trace.began))

    def get_many(self, _names: Any) -> Any:
        return self.script(Teller(self.observer, self.observer.trace.began))

    def put(self, _pages: Any, **_: Any) -> Any:
        return self.script(Teller(self.observer, self.observer.trace.began))


def run(script: Script, *arguments: str) -> Result:
    client: Any = Pretender(script)
    command = ["trace", *arguments, "-b", BALANCER_AT]
    return CliRunner().invoke(program, command, obj=Session(client.connect))


class Got:
    """What a download returns."""

    def __init__(self, size: int) -> None:
        self.size = size


def locate(teller: Teller, size: int = 5000) -> None:
    asked = teller.ask(BALANCER_AT, Locate(["/a"]))
    page = (VERSION, size, bytes(32), bytes(32), [2, 1])
    teller.answer(asked, Located(3, 9, SERVERS, [page]))


def small(teller: Teller) -> Got:
    locate(teller)
    teller.answer(teller.ask("tcp://web-2:1", Read("/a", VERSION, 0, 5000)), ReadData(0, 5000), 5000)
    return Got(5000)


def large(teller: Teller, chunks: int = 100) -> Got:
    """One chunk after the other; web-2 is silent at the fiftieth."""
    locate(teller, chunks * MIB)
    for chunk in range(chunks):
        asked = teller.ask("tcp://web-2:1", Read("/a", VERSION, chunk * MIB, MIB))
        if chunk == 50:
            teller.silence(asked)
            again = teller.ask("tcp://web-1:1", Read("/a", VERSION, chunk * MIB, MIB))
            teller.late(asked, "tcp://web-2:1", ReadData(chunk * MIB, MIB))
            asked = again
        teller.answer(asked, ReadData(chunk * MIB, MIB), MIB)
    return Got(chunks * MIB)


def squeezed(lines: list[str]) -> list[str]:
    return [" ".join(line.split()) for line in lines]


# -- rows ------------------------------------------------------------------------------------


def test_every_message_has_a_row_with_time_sockets_pattern_and_figures() -> None:
    result = run(small, "get", "/a")
    assert result.exit_code == exits.OK
    lines = result.stdout.splitlines()
    assert lines[0] == f"get /a, by the balancer at {BALANCER_AT}"
    assert squeezed(lines[4:6]) == [
        "1.00 DEALER → ROUTER balancer #1 locate 42 B request where is /a?",
        "2.00 DEALER ← ROUTER balancer #1 located 174 B reply: 1.00 ms"
        " version 3.7, 4.9 KiB, on web-2, web-1; 2 servers in all",
    ]
    assert squeezed(lines[7:9]) == [
        "3.00 DEALER → ROUTER web-2 #2 read 50 B 4.9 KiB on the way 4.9 KiB from 0 B",
        "4.00 DEALER ← ROUTER web-2 #2 data 38 B + 4.9 KiB 0 B on the way 4.9 KiB from 0 B, after 1.00 ms",
    ]
    assert "a DEALER of its own for the balancer's ROUTER for clients" in lines[3]
    assert "a DEALER of its own for web-2's ROUTER, tcp://web-2:1" in lines[6]
    for told in ("2 requests", "2 round trips", "trouble    none", "patterns/request_reply.py"):
        assert told in result.stdout
    assert "4.9 KiB, digests right" in result.stdout


def test_a_long_transfer_is_cut_in_the_middle_but_not_where_it_breaks() -> None:
    short = run(large, "get", "/a").stdout.splitlines()
    whole = run(large, "get", "/a", "--all").stdout.splitlines()
    assert len(short) < 80 and len(whole) > 200
    assert sum(" more of these, " in line for line in short) == 2
    for mark in ("✗", "! now of web-1: web-2 did not answer in 1 s", "late: dropped"):
        assert sum(mark in line for line in short) == sum(mark in line for line in whole) == 1
    assert "1 without a reply in time, 1 asked of another server then, 1 replied too late" in "".join(short)
    # The sums do not depend on what is shown, nor the beginning and the end on what is left out.
    assert short[:10] == whole[:10] and short[-15:] == whole[-15:]


def test_json_is_a_line_for_each_message_and_one_for_the_end() -> None:
    rows = [json.loads(line) for line in run(small, "get", "/a", "--json").stdout.splitlines()]
    assert [row["event"] for row in rows] == ["sent", "reply", "sent", "reply", "end"]
    assert (rows[2]["from"], rows[2]["to"], rows[2]["message"]) == ("DEALER client", "ROUTER web-2", "read")
    assert (rows[3]["from"], rows[3]["to"]) == ("ROUTER web-2", "DEALER client")
    assert rows[2]["content"] == {"name": "/a", "version": VERSION, "offset": 0, "length": 5000}
    assert rows[2]["patterns"] == ["request_reply", "transfer"]
    assert (rows[3]["data_bytes"], round(rows[3]["took_s"], 6)) == (5000, 0.001)
    assert (rows[4]["requests"], rows[4]["in_a_row"], rows[4]["error"]) == (2, 2, "")
    assert [leg["peer"] for leg in rows[4]["legs"]] == ["balancer", "web-2"]
    cut = [json.loads(line) for line in run(large, "get", "/a", "--json").stdout.splitlines()]
    assert [row["steps"] for row in cut if row["event"] == "elided"]
    whole = [json.loads(line) for line in run(large, "get", "/a", "--json", "--all").stdout.splitlines()]
    assert len(whole) == 2 + 203 + 1


def test_many_pages_are_one_lookup() -> None:
    def script(teller: Teller) -> Any:
        asked = teller.ask(BALANCER_AT, Locate(["/a", "/b"]))
        page = (VERSION, 100, bytes(32), b"", [2])
        teller.answer(asked, Located(3, 9, SERVERS, [page, page]))
        asked = teller.ask("tcp://web-2:1", Fetch([("/a", VERSION), ("/b", VERSION)]))
        teller.answer(asked, Fetched([100, 100]), 200)
        return {"/a": bytes(100), "/b": bytes(100)}

    out = run(script, "get", "/a", "/b", "/a").stdout
    assert "get /a and 1 more" in out and "2 pages, 200 B, digests right" in out
    assert "patterns/transfer.py" not in out


# -- failures --------------------------------------------------------------------------------------


def failing(error: BaseException) -> Script:
    def script(teller: Teller) -> Any:
        teller.silence(teller.ask(BALANCER_AT, Locate(["/a"])))
        teller.ask(BALANCER_AT, Locate(["/a"]))
        raise error

    return script


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("no such page: /a"), exits.NOT_FOUND),
        (errors.Unreachable("no answer"), exits.UNREACHABLE),
        (KeyboardInterrupt(), exits.INTERRUPTED),
        (OSError(28, "No space left on device"), exits.FAILED),
        (AssertionError("a bug"), exits.FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_seen_is_told_however_it_ends(error: BaseException, code: int) -> None:
    result = run(failing(error), "get", "/a")
    assert result.exit_code == code
    assert "failed     after " in result.stdout and type(error).__name__ in result.stdout
    assert "! again: the balancer did not answer in 1 s" in result.stdout
    assert "1 not answered when it ended (#2 locate)" in result.stdout
    last = json.loads(run(failing(error), "get", "/a", "--json").stdout.splitlines()[-1])
    assert last["event"] == "end" and last["error"].startswith(type(error).__name__)
    assert last["unanswered"] == [2]


def test_who_reads_no_more_is_told_no_more() -> None:
    result = run(failing(BrokenPipeError()), "get", "/a")
    assert result.exit_code == exits.FAILED
    assert "failed" not in result.stdout


@pytest.mark.parametrize(
    "arguments", [("get",), ("get", "no-slash"), ("get", "/a", "--nothing"), ("put",), ("rm", "/a")], ids=str
)
def test_wrong_usage_sends_nothing(arguments: tuple[str, ...]) -> None:
    result = run(failing(AssertionError("it was run")), *arguments)
    assert result.exit_code == exits.USAGE
    assert not result.stdout


def test_put_takes_one_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    result = run(failing(AssertionError("it was run")), "put", str(tmp_path))
    assert result.exit_code == exits.USAGE and "one file at a time" in result.stderr
    assert run(failing(AssertionError()), "put", str(tmp_path / "c")).exit_code == exits.FAILED


def test_a_name_that_moves_cursors_is_escaped() -> None:
    out = run(small, "get", "/\u202ea").stdout
    assert "\u202e" not in out and "\\u202e" in out


# -- what a message says ------------------------------------------------------------------------------

NAMES = {1: "web-1", 2: "web-2"}
PAGE = (VERSION, 5000, bytes(32), b"", [2, 9])
SAYS = [
    (Locate(["/a", "/b", "/c", "/d"]), "where is /a, /b, /c and 1 more?"),
    (Locate(["/a"], 0, [2]), "where is /a?, not of web-2 if it can be"),
    (Located(3, 9, None, [None]), "there is no such page"),
    (Located(3, 9, None, [PAGE]), "version 3.7, 4.9 KiB, on web-2, server 9"),
    (Located(3, 9, None, [PAGE, None, PAGE]), "2 pages, 9.8 KiB, 1 not there"),
    (Located(3, 9, None, [(*PAGE[:4], [])], [Later(0, 0.5, "")]),
     "version 3.7, 4.9 KiB, on no live server; try again in 0.5 s"),
    (Located(3, 9, None, [(*PAGE[:4], [])], [Later(0, 0.0, "web-8")]),
     "version 3.7, 4.9 KiB, on no live server, last on web-8"),
    (Fetch([("/a", VERSION)]), "/a 3.7"),
    (Fetched([5, 6, -1, -2]), "2 pages, 11 B, 1 not held, 1 did not fit"),
    (Read("/a", VERSION, 3 * MIB, MIB), "1.0 MiB from 3 MiB"),
    (ReadData(7, 5), "5 B from 7 B"),
    (Digests("/a", VERSION), "digests of the chunks of /a 3.7"),
    (DigestList(1200), "1,200 digests"),
    (Doubt([("/a", VERSION)]), "what you sent of /a 3.7 is wrong: look yourself"),
    (Ping(), "which epoch is it?"),
    (Pong("balancer", 0, 4), "epoch 4"),
    (Reserve(bytes(16), 3, [PutPage("/a", 5000, b"")], 2, 9.0, [1]),
     "place for /a, 4.9 KiB, 2 copies, not on web-1"),
    (Reserved(3, VERSION, SERVERS[1], [], 9.0, 2), "version 3.7, primary web-2, 2 copies"),
    (Reserved(3, VERSION, SERVERS[1], [], 9.0, 2, [SERVERS[0]]),
     "version 3.7, primary web-2, backup web-1, 2 copies"),
    (Reserved(3, VERSION, None, [0], 9.0, 2), "version 3.7, nothing to send, 2 copies, 1 stored already"),
    (Stage(bytes(16), VERSION, 1, [StagePart(0, MIB, MIB)]), "1.0 MiB at 1 MiB"),
    (Stage(bytes(16), VERSION, 1, [StagePart(0, 0, 5), StagePart(1, 0, 5)]), "10 B, 2 pages"),
    (Staged(0, 2 * MIB), "has 2 MiB"),
    (Commit(bytes(16), VERSION, 1, [CommitPage(0, "/a", 5, bytes(32), "", 0.0)]), "make 1 page durable"),
    (Commit(bytes(16), VERSION, 1, [CommitPage(0, "/a", 5, bytes(32), "", 0.0)], True),
     "make 1 page durable, bytes and all"),
    (Committed(8), "fsynced, as its change 8"),
    (Await(bytes(16), 1, 1.0), "tell me of copy 2 or of the decision, or in 1 s"),
    (Await(bytes(16), 1 << 16, 1.0), "tell me when it is decided, or in 1 s"),
    (Outcome("open", VERSION, 1, 2, True), "open, 1 of 2 copies, the primary is lost"),
    (Outcome("visible", VERSION, 0, 0), "visible"),
    (Outcome("conflict", VERSION, 2, 2, text="too late"), "conflict, 2 of 2 copies: too late"),
    (Error("try-again", "x" * 150, 0.2), f"try-again: {'x' * 99}…; again in 0.2 s"),
    (Abort(bytes(16)), ""),
]  # fmt: skip


@pytest.mark.parametrize(("message", "text"), SAYS, ids=lambda value: type(value).__name__)
def test_a_message_says_its_main_figures(message: Any, text: str) -> None:
    assert trace_text.says(message, NAMES) == text
