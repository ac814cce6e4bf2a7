"""Recordings and their replay: whole simulated clusters under faults, and recordings that are not right."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from msgspec import Raw

import dws.sim.balancer_node
import dws.sim.server_node
from dws.balancer import Balancer
from dws.cli.program import program
from dws.config import Config
from dws.errors import ConfigError
from dws.messages import Locate
from dws.sim import fuzz, options
from dws.sim.disks import CatalogDisk, PageDisk
from dws.sim.incident import Player, Verdict
from dws.sim.recorder import Recorder
from dws.sim.recording import (
    NOTHING,
    PREFIX,
    VERSION,
    BalancerStart,
    Chain,
    Ended,
    Happened,
    WebServerStart,
    decode_frame,
    encode,
)
from dws.webserver import WebServer

STOPPED = "stopped by the test"


class MemorySink:
    """A recording in memory, of at most so many bytes."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.data = bytearray()
        self.reason = ""
        self._room = room

    def write(self, frame: bytes) -> bool:
        if len(self.data) + len(frame) > self._room:
            return False
        self.data += frame
        return True

    def flush(self) -> None:
        pass

    def finish(self, frame: bytes, reason: str) -> None:
        self.data += frame
        self.reason = reason


class _Bare:
    """A machine's own methods, without the recorder in front of them."""

    def __init__(self, machine: Any) -> None:
        self.handle = machine.handle
        self.locate = getattr(machine, "locate", None)


class Recorded:
    """Makes the simulator's nodes record themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sinks: list[MemorySink] = []
        self.recorders: list[Recorder] = []
        monkeypatch.setattr(dws.sim.balancer_node, "Balancer", self._balancer())
        monkeypatch.setattr(dws.sim.server_node, "WebServer", self._webserver())

    def recorder(self, start: Any) -> Recorder:
        self.sinks.append(MemorySink())
        self.recorders.append(Recorder(self.sinks[-1], start))
        return self.recorders[-1]

    def _balancer(self) -> type[Balancer]:
        recorded = self

        class RecordedBalancer(Balancer):
            def __init__(
                self,
                head: Any,
                records: Any,
                outcome_of: Any,
                knows_start: Any,
                config: Any,
                rng: Random,
                now: float,
            ) -> None:
                seed = rng.randbytes(16)
                recorder = recorded.recorder(
                    BalancerStart(VERSION, "test", "code", 0.0, now, seed, config, head)
                )
                super().__init__(
                    head, recorder.records(records), recorder.noting("outcome", outcome_of),
                    recorder.noting("knows_start", knows_start), config, Random(seed), now,
                )  # fmt: skip
                recorded.drive(self, recorder)

        return RecordedBalancer

    def _webserver(self) -> type[WebServer]:
        recorded = self

        class RecordedWebServer(WebServer):
            def __init__(self, name: str, store: Any, endpoints: Any, config: Config, now: float) -> None:
                start = WebServerStart(VERSION, "test", "code", 0.0, now, name, endpoints, config)
                recorder = recorded.recorder(start)
                super().__init__(name, recorder.reading(store), endpoints, config, now)
                recorded.drive(self, recorder)

        return RecordedWebServer

    def drive(self, machine: Any, recorder: Recorder) -> None:
        """Put the recorder in front of the machine, where the simulator's shell has none."""
        recorder.begin(machine)
        bare: Any = _Bare(machine)
        recorder._machine = bare
        machine.handle = recorder.handle
        if bare.locate is not None:
            machine.locate = recorder.locate

    def end(self) -> None:
        for recorder in self.recorders:
            recorder.end(STOPPED)


def replayed(data: bytes) -> Verdict:
    player = Player(BytesIO(data).read)
    for _ in player:
        pass
    return player.verdict


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


def play(recorded: Recorded, seed: int, **said: Any) -> list[bytes]:
    found = fuzz.run(seed, options.drawn(seed, **said))
    recorded.end()
    assert found.kind == fuzz.OK, f"seed {seed}: {found.text}"
    return [bytes(sink.data) for sink in recorded.sinks]


@pytest.mark.parametrize("number", range(6))
def test_every_node_of_a_cluster_under_faults_replays_to_the_last_effect(
    recorded: Recorded, seed: int, number: int
) -> None:
    recordings = play(recorded, seed % 1_000_000 + number, seconds=8.0)
    verdicts = [replayed(data) for data in recordings]
    assert [verdict.fault for verdict in verdicts] == [""] * len(verdicts)
    assert {verdict.end for verdict in verdicts} == {STOPPED}
    assert sum(verdict.events for verdict in verdicts) > 300
    assert sum(verdict.effects for verdict in verdicts) > 100


@pytest.fixture
def recording(recorded: Recorded) -> bytes:
    """The longest one of a small cluster's."""
    return max(play(recorded, 11, seconds=5.0, faults=()), key=len)


def frames_of(data: bytes) -> list[bytes]:
    bodies, place = [], 0
    while place < len(data):
        length, _ = PREFIX.unpack_from(data, place)
        bodies.append(data[place + PREFIX.size : place + PREFIX.size + length])
        place += PREFIX.size + length
    return bodies


def joined(bodies: list[bytes]) -> bytes:
    """Frames with the checksums that belong to them, as somebody who knows the format would write them."""
    chain = Chain()
    return b"".join(PREFIX.pack(len(body), chain.next(body)) + body for body in bodies)


def event_number(bodies: list[bytes], wanted: Callable[[Happened], bool]) -> tuple[int, int]:
    """(place, number) of the first such event."""
    number = 0
    for place, body in enumerate(bodies):
        frame = decode_frame(body)
        if isinstance(frame, Happened) and frame.kind:
            number += 1
            if wanted(frame):
                return place, number
    raise AssertionError("no such event")


def test_a_byte_that_was_changed_is_found_at_its_event(recording: bytes) -> None:
    bodies = frames_of(recording)
    place, number = event_number(bodies, lambda frame: frame.effects > 0)
    begin = recording.index(bodies[place])
    changed = bytearray(recording)
    changed[begin + len(bodies[place]) // 2] ^= 1
    verdict = replayed(bytes(changed))
    assert (verdict.number, verdict.events) == (number, number - 1)
    assert "checksum" in verdict.fault


def test_an_event_that_was_left_out_is_found(recording: bytes) -> None:
    bodies = frames_of(recording)
    place, number = event_number(bodies, lambda frame: frame.effects > 0)
    cut = recording.index(bodies[place]) - PREFIX.size
    verdict = replayed(recording[:cut] + recording[cut + PREFIX.size + len(bodies[place]) :])
    assert (verdict.number, bool(verdict.fault)) == (number, True)


def changed_event(
    recording: bytes, wanted: Callable[[Happened], bool], **changes: Any
) -> tuple[Verdict, int]:
    """The verdict on a recording in which one event was changed with all checksums right; its number."""
    bodies = frames_of(recording)
    place, number = event_number(bodies, wanted)
    bodies[place] = encode(msgspec.structs.replace(decode_frame(bodies[place]), **changes))
    return replayed(joined(bodies)), number


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"digest": b"12345678"}, "now to others"),
        ({"effects": 99}, "led to 99 effects then"),
        ({"kind": "Nonsense"}, "no such event"),
        ({"raised": "ValueError: x"}, "it does not fail"),
        ({"reads": [("usage", NOTHING)] * 9}, "of its store"),
        ({"changed": Raw(encode("text"))}, "cannot be read"),
    ],
)
def test_a_change_with_its_checksums_made_right_is_found_by_what_it_leads_to(
    recording: bytes, changes: dict[str, Any], says: str
) -> None:
    verdict, number = changed_event(recording, lambda frame: frame.effects > 0, **changes)
    assert verdict.number == number
    assert says in verdict.fault


def test_a_read_that_the_machine_does_not_make_is_found(recording: bytes) -> None:
    bodies = frames_of(recording)
    place, number = event_number(bodies, lambda frame: True)
    frame = decode_frame(bodies[place])
    assert isinstance(frame, Happened)
    reads = [*frame.reads, ("usage", Raw(encode((0, 0, 0))))]
    bodies[place] = encode(msgspec.structs.replace(frame, reads=reads))
    verdict = replayed(joined(bodies))
    assert (verdict.number, verdict.fault) == (
        number,
        "it does not read usage of its store, which it did then",
    )


def test_another_time_leads_to_other_effects_then_or_later(recording: bytes) -> None:
    verdict, number = changed_event(
        recording, lambda frame: frame.kind == "Tick" and frame.effects > 0, now=1e9
    )
    assert verdict.fault
    assert verdict.number >= number


def test_a_recording_that_is_cut_off_is_played_up_to_there(recording: bytes) -> None:
    verdict = replayed(recording[:-60])
    assert not verdict.fault
    assert verdict.end.startswith("cut off")


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, joined([b"\xc1"]), joined([encode(Ended("at once"))]), bytes(200)]
)
def test_what_is_no_recording_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="no recording"):
        replayed(data)


def test_whatever_is_in_a_recording_the_replay_says_what_is_wrong(recording: bytes, seed: int) -> None:
    rng = Random(seed)
    bodies = frames_of(recording)[:60]
    found = 0
    for _ in range(150):
        changed = list(bodies)
        place = rng.randrange(len(bodies))
        body = bytearray(bodies[place])
        for _ in range(rng.choice([1, 1, 3])):
            body[rng.randrange(len(body))] = rng.randrange(256)
        changed[place] = bytes(body)
        try:
            found += bool(replayed(joined(changed)).fault)
        except ConfigError:
            found += 1
    # Of a change in a figure that leads to nothing there is nothing to find.
    assert found > 75


def test_a_recording_of_another_version_is_refused(recording: bytes) -> None:
    bodies = frames_of(recording)
    bodies[0] = encode(msgspec.structs.replace(decode_frame(bodies[0]), version=9))
    with pytest.raises(ConfigError, match="version 9"):
        replayed(joined(bodies))


def test_a_recording_that_ends_before_the_machine_was_made_says_so(recording: bytes) -> None:
    assert "before the machine was made" in replayed(joined(frames_of(recording)[:1])).fault


# -- the recorder ---------------------------------------------------------------------------------


def balancer_of(recorder_sink: MemorySink) -> tuple[Balancer, Recorder]:
    store = CatalogDisk(Random(1))
    head = store.open()
    recorder = Recorder(
        recorder_sink, BalancerStart(VERSION, "test", "code", 0.0, 5.0, b"seed", Config(), head)
    )
    machine = Balancer(
        head, recorder.records(store.load()), recorder.noting("outcome", store.outcome),
        recorder.noting("knows_start", store.knows_start), Config(), Random(b"seed"), 5.0,
    )  # fmt: skip
    recorder.begin(machine)
    return machine, recorder


def test_a_full_sink_ends_the_recording_and_not_the_node() -> None:
    from dws.events import Tick

    sink = MemorySink(room=2_000)
    machine, recorder = balancer_of(sink)
    for count in range(200):
        recorder.handle(Tick(), 5.0 + count * 0.1)
    verdict = replayed(bytes(sink.data))
    assert verdict.end == sink.reason == "the recording is as long as it may be"
    assert not verdict.fault
    assert 5 < verdict.events < 100
    assert machine.wake_at() == pytest.approx(5.0 + 199 * 0.1 + 0.1)


def test_a_machine_that_fails_fails_in_the_replay_too() -> None:
    from dws.events import Persisted, Tick

    sink = MemorySink()
    _, recorder = balancer_of(sink)
    recorder.handle(Tick(), 5.1)
    with pytest.raises(IndexError):
        recorder.handle(Persisted(4), 5.2)  # nothing was being written
    verdict = replayed(bytes(sink.data))
    assert not verdict.fault
    assert verdict.crash.startswith("IndexError")
    assert (verdict.number, verdict.events) == (2, 2)


def test_an_answer_to_nothing_ends_the_recording() -> None:
    from dws.events import Unanswered

    sink = MemorySink()
    machine, recorder = balancer_of(sink)
    with pytest.raises(KeyError):
        recorder.handle(Unanswered(("probe", 1, 5.0)), 5.1)
    assert "nothing that the machine had asked" in sink.reason
    assert not replayed(bytes(sink.data)).fault
    assert machine.counters["probes unanswered"] == 1


def test_a_complaint_is_recorded_and_no_other_lookup() -> None:
    sink = MemorySink()
    _, recorder = balancer_of(sink)
    before = len(sink.data)
    recorder.locate(Locate(["/a"]), 5.1)
    assert len(sink.data) == before
    recorder.locate(Locate(["/a"], avoid=[1]), 5.1)
    assert len(sink.data) > before
    recorder.end(STOPPED)
    assert replayed(bytes(sink.data)).events == 1


def test_what_a_server_reads_of_its_store_comes_from_the_recording() -> None:
    from dws.following import Endpoints
    from dws.webserver import Figures, Tick

    disk = PageDisk(Random(1))
    sink = MemorySink()
    endpoints = Endpoints("tcp://a:1", "tcp://a:2")
    recorder = Recorder(sink, WebServerStart(VERSION, "test", "code", 0.0, 0.0, "web-1", endpoints, Config()))
    machine = WebServer("web-1", recorder.reading(disk), endpoints, Config(), 0.0)
    recorder.begin(machine)
    machine.book.visit("/a", 100)  # as the data plane does
    machine.book.round(1, 1, 0.001)
    recorder.handle(Tick(Figures(0.5)), 0.3)
    recorder.end(STOPPED)
    player = Player(BytesIO(bytes(sink.data)).read)
    assert len(list(player)) == 1
    assert not player.verdict.fault
    assert isinstance(player.machine, WebServer)
    assert player.machine.book.served == 1
    assert player.machine.book.tallies() == machine.book.tallies()


# -- the command ----------------------------------------------------------------------------------


def replay(*arguments: str) -> Any:
    return CliRunner().invoke(program, ["sim", "replay", *arguments])


def test_the_command_says_that_all_is_as_recorded_and_shows_events(recording: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(recording)
    done = replay(str(path), "--events", "2-3")
    assert done.exit_code == 0, done.output
    assert "event 2 at" in done.stdout
    assert "event 3 at" in done.stdout
    assert "event 4 at" not in done.stdout
    assert "as recorded: " in done.stdout
    assert done.stdout.rstrip().endswith(STOPPED)


def test_the_command_names_the_event_that_differs(recording: bytes, tmp_path: Path) -> None:
    bodies = frames_of(recording)
    place, number = event_number(bodies, lambda frame: frame.effects > 0)
    frame = decode_frame(bodies[place])
    bodies[place] = encode(msgspec.structs.replace(frame, digest=bytes(8)))
    path = tmp_path / "a.rec"
    path.write_bytes(joined(bodies))
    done = replay(str(path))
    assert done.exit_code == 13
    assert f"event {number}: a " in done.stderr
    assert f"event {number} at" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "neither a seed nor a file"),
        ((__file__,), "no recording of a node"),
        ((__file__, "--servers", "3"), "options of a seed: servers"),
        ((__file__, "--trace"), "options of a seed: trace"),
        ((__file__, "--events", "b"), "--events 'b'"),
        ((__file__, "--events", "5-4"), "--events '5-4'"),
        (("5", "--events", "4"), "--events is for recordings"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments: tuple[str, ...], says: str) -> None:
    done = replay(*arguments)
    assert done.exit_code == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
