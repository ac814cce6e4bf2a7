"""--record: where recordings go, where they end, and what is refused."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from dws.errors import ConfigError
from dws.nodes import recording
from dws.nodes.cluster_options import ClusterOptions, check
from dws.nodes.recording import BYTES_LEAST, RecordingFile, RecordSettings, open_file

ROOT = Path(__file__).resolve().parents[2]


def test_a_recording_is_for_its_owner_alone_and_ends_at_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    file = RecordingFile(path, BYTES_LEAST)
    frame = bytes(100_000)
    written = 0
    while file.write(frame):
        written += 1
    assert written == (BYTES_LEAST - 1024) // 100_000
    file.finish(b"the end", "a test")
    file.flush()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == written * 100_000 + 7 <= BYTES_LEAST


def test_what_is_there_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    path.write_bytes(b"an incident")
    with pytest.raises(ConfigError, match="exists"):
        RecordingFile(path, BYTES_LEAST)
    assert path.read_bytes() == b"an incident"


def test_a_full_disk_ends_the_recording_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = RecordingFile(tmp_path / "a.rec", BYTES_LEAST)
    file._file.close()
    file._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    assert not file.write(b"frame")
    assert not file.write(b"frame")
    file.flush()
    file.finish(b"end", "a test")
    file._file.close()
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        f"{tmp_path / 'a.rec'}: No space left on device; the recording ends here"
    ]


def test_a_directory_gets_a_file_for_each_start_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recording, "_FILES_MAX", 2)
    settings = RecordSettings(tmp_path, BYTES_LEAST)
    made = [open_file(settings, name, start) for name, start in (("web-1", 1), ("web/1", 1), ("web-1", 2))]
    names = []
    for file in made:
        assert file is not None
        names.append(file.path.name)
        file.finish(b"", "a test")
    assert names == ["web-1-1.rec", "web_1-1.rec", "web-1-2.rec"]
    assert open_file(settings, "web-1", 3) is None
    assert "this start is not recorded" in caplog.text


BALANCER = ("balancer",)
WEBSERVER = ("webserver", "--name", "web-1")


@pytest.mark.parametrize(
    ("role", "flags", "says", "code"),
    [
        (BALANCER, ("--record-max", "10MiB"), "--record-max without --record", 2),
        (BALANCER, ("--record", "{tmp}/a", "--record-max", "much"), "'much' is not a size", 2),
        (BALANCER, ("--record", "{tmp}/a", "--record-max", "10KiB"), "1,048,576 are the least", 2),
        (BALANCER, ("--record", "{tmp}/there"), "exists; name another file", 2),
        (WEBSERVER, ("--record", "{tmp}/there"), "exists; name another file", 2),
        (WEBSERVER, ("--record", "{tmp}/no/such"), "{tmp}/no/such: No such file or directory", 1),
    ],
)
def test_a_node_that_cannot_record_does_not_start(
    tmp_path: Path, role: tuple[str, ...], flags: tuple[str, ...], says: str, code: int
) -> None:
    (tmp_path / "there").write_bytes(b"")
    words = [sys.executable, "-m", "dws", "serve", *role, "--data", str(tmp_path / "data"), "--port", "0"]
    words += [flag.format(tmp=tmp_path) for flag in flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dws: error: ")
    assert says.format(tmp=tmp_path) in last


def test_a_cluster_records_into_a_directory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="not a directory to record into"):
        check(ClusterOptions(data=tmp_path / "data", record=tmp_path / "file"))
