"""The command line against a client that is a dict: exit codes, settings, names from paths, output.

`FakeClient` does what the CLI asks of a client and no more; the real one is used in tests/cluster.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import pytest
from blake3 import blake3
from click.testing import CliRunner, Result

from dws import errors
from dws.cli import downloads, exits, output
from dws.cli.program import COMMANDS, program
from dws.cli.session import Session
from dws.cli.settings import SETTINGS, Settings, parse_bytes
from dws.config import Config
from dws.messages import (
    ABSENT,
    Because,
    Choice,
    ClusterStatus,
    Holder,
    Maintained,
    PageStat,
    Record,
    RepairStatus,
    ServerStatus,
)
from dws.names import format_version, make_version
from dws.nodes.client import Progress
from dws.nodes.trees import scan

ROOT = Path(__file__).resolve().parents[2]


# A client that is a dict


@dataclass
class Put:
    version: int
    pages: int
    bytes: int
    skipped: list[str]
    copies: int


@dataclass
class Uploaded:
    pages: int
    bytes: int
    skipped: int
    batches: int
    copies: int


@dataclass
class Removed:
    removed: int


class FakeClient:
    """The puts it got are in `puts`; `fails_after` is how many pages an upload stores before it raises."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[Record, bytes]] = {}
        self.puts: list[dict[str, Any]] = []
        self.fails_after: int | None = None
        self.raises: Exception | None = None
        self.connected: list[tuple[str, dict[str, Any]]] = []

    def connect(self, balancer: str, **options: Any) -> "FakeClient":
        self.connected.append((balancer, options))
        return self

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, name: str, data: bytes = b"x") -> None:
        version = make_version(3, len(self.pages) + 1)
        record = Record(name, version, bytes(16), len(data), blake3(data).digest(), b"", "text/plain", 0.0, 1)
        self.pages[name] = (record, data)

    def put(self, pages: Mapping[str, Any], **options: Any) -> Put:
        self.puts.append({"pages": dict(pages)} | options)
        size = 0
        for name, source in pages.items():
            data = source.read_bytes() if isinstance(source, Path) else source.read()
            self.add(name, data)
            size += len(data)
        return Put(make_version(3, len(self.puts)), len(pages), size, [], options.get("copies", 2))

    def upload_files(
        self, files: Sequence[tuple[str, Path, int]], *, on_progress: Any, **options: Any
    ) -> Uploaded:
        told = Progress(0, len(files), 0, None, 0, 2, "")
        for name, path, size in files:
            if told.pages_done == self.fails_after:
                raise errors.Conflict(f"{name}: is another version")
            assert self.put({name: path}, **options).bytes == size
            told.pages_done += 1
            on_progress(told)
        return Uploaded(len(files), sum(size for _, _, size in files), 0, 1, options.get("copies", 2))

    def _page(self, name: str) -> tuple[Record, bytes]:
        if self.raises:
            raise self.raises
        if name not in self.pages:
            raise errors.NotFound(f"{name}: there is no such page")
        return self.pages[name]

    def get_many(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: self._page(name)[1] for name in names}

    def download(self, name: str, target: Any, on_progress: Any = None) -> Record:
        record, data = self._page(name)
        target.write(data)
        return record

    def list(self, prefix: str = "/") -> Iterator[Record]:
        return (record for name, (record, _) in sorted(self.pages.items()) if name.startswith(prefix))

    def stat(self, names: Sequence[str]) -> Any:
        holders = [Holder("web-1", "alive"), Holder("web-2", "alive"), Holder("web-3", "dead")]
        return [PageStat(self.pages[name][0], holders) if name in self.pages else None for name in names]

    def remove(self, names: Sequence[str], **_: Any) -> Removed:
        return Removed(sum(self.pages.pop(name, None) is not None for name in names))

    def status(self) -> ClusterStatus:
        if self.raises:
            raise self.raises
        server = ServerStatus(
            1, "web-1", "alive", "tcp://127.0.0.1:6000", 7, 10, 2048, 1 << 40, 5, 6, 7, 8, 9,
            0.0004, 0.001, 0.0014, 2.5, 0.25, 100, 0.1, "",
        )  # fmt: skip
        return ClusterStatus(
            bytes(16), 3, 12, "least-load", 2, 10, 4096, [0, 0, 10, 0], 0, 0, 5.0, 99, [server], {}
        )

    def drain(self, server: str, number: int = 0) -> Maintained:
        return self._maintained(server, number, True)

    def resume(self, server: str, number: int = 0) -> Maintained:
        return self._maintained(server, number, False)

    def forget(self, server: str, number: int = 0, *, force: bool = False) -> Maintained:
        self.forced = force
        return self._maintained(server, number, False)

    def _maintained(self, server: str, number: int, draining: bool) -> Maintained:
        if self.raises:
            raise self.raises
        return Maintained(number or 1, server, "draining" if draining else "alive", draining, 3, 300)

    def why(self, name: str) -> Because:
        version = self._page(name)[0].version
        choice = Choice("web-1", "alive", True, 0.001, None, 0.001, 0, 2, 0.0004, 1, "suspect")
        return Because("least-load", version, "web-1", [choice])


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


Run = Callable[..., Result]


@pytest.fixture
def run(client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `dws` in an empty directory with no settings but those the test makes."""
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    for variable in ("DWS_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(program, arguments, obj=Session(client.connect), input=stdin)

    return invoke


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}")


# Exit codes


CODES = [
    (errors.NotFound, 3),
    (errors.Unreachable, 4),
    (errors.TimedOut, 4),
    (errors.OutcomeUnknown, 4),
    (errors.TryAgain, 4),
    (errors.Unavailable, 4),
    (errors.Conflict, 5),
    (errors.IntegrityError, 5),
    (errors.BadName, 2),
    (errors.ConfigError, 2),
    (errors.TooFewServers, 1),
    (errors.Full, 1),
    (errors.OverBound, 1),
    (errors.NeverStored, 1),
    (errors.WrongCluster, 1),
    (errors.DwsError, 1),
]


@pytest.mark.parametrize(("kind", "code"), CODES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_error_has_its_exit_code_and_one_line(
    run: Run, client: FakeClient, kind: type[errors.DwsError], code: int
) -> None:
    client.raises = kind("it went wrong at tcp://127.0.0.1:5600")
    result = run("status")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("dws: error: it went wrong at tcp://127.0.0.1:5600")
    assert result.stderr.count("\n") == 1


def test_every_error_that_crosses_the_wire_is_in_the_table_or_is_a_failure() -> None:
    assert {exits.code_of(kind("")) for kind in errors.BY_CODE.values()} <= set(exits.MEANINGS)
    assert exits.code_of(ValueError()) == exits.FAILED


def test_ctrl_c_is_130(run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "status", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    result = run("status")
    assert (result.exit_code, result.stderr.strip()) == (130, "dws: interrupted")


@pytest.mark.parametrize("entry", ["dws/__main__.py", "run_cluster.py"])
def test_ctrl_c_is_130_while_modules_are_loaded(entry: str) -> None:
    code = (
        "import runpy, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        f"runpy.run_path({entry!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith(": interrupted\n") and done.stderr.count("\n") == 1


def test_a_bug_says_so(run: Run, client: FakeClient) -> None:
    client.raises = ZeroDivisionError("oops")
    result = run("status")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "bug" in result.stderr.splitlines()[-1]


USAGE_ERRORS = [
    (["frobnicate"], "frobnicate"),
    (["put"], "PATH"),
    (["put", "x", "--if-absent", "--if-version", "1.1"], "exclude"),
    (["put", "x", "--if-version", "seventeen"], "EPOCH.COUNTER"),
    (["put", "-"], "--to"),
    (["put", "-", "x", "--to", "/a"], "alone"),
    (["put", "x", "--to", "docs"], "must start with '/'"),
    (["put", "x", "--copies", "99"], "copies"),
    (["put", "x", "--copies", "two"], "two"),
    (["get"], "NAME"),
    (["get", "index.html"], "must start with '/'"),
    (["get", "/a/../b"], "'..'"),
    (["get", "-r", "/", "-o", "-"], "tree"),
    (["get", "-r", "/", "-o", "x"], "-o x is a file, and a tree goes into a directory"),
    (["get", "/a", "/b", "-o", "x"], "-o x is a file, and 2 pages go into a directory"),
    (["ls", "docs"], "must start with '/'"),
    (["rm", "-r", "/"], "--yes"),
    (["rm", "/_dws/x"], "reserved"),
    (["why", "x"], "must start with '/'"),
    (["status", "-b", "localhost"], "tcp://127.0.0.1:5600"),
    (["-b", "http://localhost:1", "status"], "is not an endpoint"),
    (["-b", "tcp://127.0.0.1:99999", "status"], "--balancer: 'tcp://127.0.0.1:99999' has no possible port"),
    (["-b", "tcp://127.0.0.1:0", "status"], "wanted 1 to 65535"),
    (["status", "--timeout", "soon"], "soon"),
    (["status", "--timeout", "-1"], "-1"),
    (["completion", "tcsh"], "tcsh"),
    (["serve", "balancer"], "--data"),
    (["serve", "webserver", "--data", "x"], "--name"),
    (["serve", "balancer", "--data", "x", "--set", "copiess=3"], "did you mean copies?"),
    (["serve", "balancer", "--data", "x", "--set", "copies"], "KEY=VALUE"),
    (["serve", "balancer", "--data", "x", "--set", "beat_s=5"], "suspect_s >= 2 * beat_s"),
    (["serve", "balancer", "--data", "x", "--policy", "best"], "least-load"),
    (["serve", "balancer", "--data", "x", "--port", "70000"], "70000"),
    (["serve", "balancer", "--data", "x", "--quota", "10 parsecs"], "10 parsecs"),
    (["serve", "webserver", "--name", "w", "--data", "x", "--bind", "0.0.0.0"], "--advertise"),
    (["serve", "webserver", "--name", "w", "--data", "x", "--advertise", "0.0.0.0"], "announce"),
    (["serve", "balancer", "--data", "x", "--advertise", "0.0.0.0"], "--advertise"),
    (["serve", "webserver", "--name", "w", "--data", "y", "-b", "tcp://h:99999"], "wanted 1 to 65535"),
    (["serve", "webserver", "--name", "w", "--data", "y", "--port", "abc"], "'abc' is not a port"),
    (["serve", "http", "--name", "w", "--server", "tcp://h:1", "--data", "y", "--port", "abc"], "not a port"),
    (["serve", "gateway", "-b", "tcp://h:99999"], "wanted 1 to 65535"),
    (["serve", "gateway", "--port", "abc"], "'abc' is not a port"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), USAGE_ERRORS, ids=[" ".join(arguments) for arguments, _ in USAGE_ERRORS]
)
def test_wrong_usage_is_2_and_sends_nothing(
    run: Run, client: FakeClient, arguments: list[str], says: str
) -> None:
    Path("x").write_text("x")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""
    assert not client.puts


def test_no_command_shows_the_help(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize("group", ["node", "serve", "sim", "trace"])
def test_a_group_without_a_command_shows_its_help_and_no_more(run: Run, group: str) -> None:
    result = run(group)
    assert result.exit_code == 2
    assert result.stderr == run(group, "--help").stdout


def test_a_closed_pipe_is_no_traceback() -> None:
    """The reader has gone before the help is written."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "dws", "--help"],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_program_starts_without_sockets() -> None:
    code = (
        "import sys\n"
        "try: from dws.cli import main; main(['--version'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'zmq', 'lmdb', 'rich', 'psutil'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dws, version ")


def commands() -> list[list[str]]:
    return [*([name] for name in COMMANDS if name != "serve"), ["serve", "balancer"], ["serve", "webserver"]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_help_has_examples(run: Run, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    dws {command[0]}" in result.stdout or "date | dws" in result.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_DWS_COMPLETE" in result.stdout


# Settings


def settings(tmp_path: Path, file: str = "", **environ: str) -> Settings:
    (tmp_path / "dws.toml").write_text(file)
    return Settings.load({"HOME": "/nonexistent"} | environ, tmp_path)


def test_flag_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = 'balancer = "tcp://file:1"\n[config]\ncopies = 3\n'
    assert Settings({}, {}).get("balancer") == "tcp://127.0.0.1:5600"
    assert settings(tmp_path, file).get("balancer") == "tcp://file:1"
    both = settings(tmp_path, file, DWS_BALANCER="tcp://environment:1", DWS_COPIES="4")
    assert both.get("balancer") == "tcp://environment:1"
    assert both.get("balancer", "tcp://flag:1") == "tcp://flag:1"
    assert both.config({}).copies == 4
    assert both.config({"copies": "5"}).copies == 5
    assert both.config({"copies": "5"}, ("copies=6",)).copies == 6
    assert settings(tmp_path, file).config({}).copies == 3


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    assert settings(tmp_path, 'balancer = "tcp://file:1"', DWS_BALANCER="").get("balancer") == "tcp://file:1"


def test_every_field_of_the_config_can_be_set_in_every_place(tmp_path: Path) -> None:
    defaults = Config()
    for key, setting in SETTINGS.items():
        if not key.startswith("config."):
            continue
        field = key.removeprefix("config.")
        value = getattr(defaults, field)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        toml = json.dumps(list(value) if isinstance(value, tuple) else value)
        assert getattr(settings(tmp_path, f"[config]\n{field} = {toml}\n").config({}), field) == value
        assert getattr(settings(tmp_path, **{setting.variable: text}).config({}), field) == value
        assert getattr(settings(tmp_path).config({}, (f"{field}={text}",)), field) == value


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("copies = 2", "unknown key copies; did you mean config.copies?"),
        ('balanser = "tcp://x:1"', "did you mean balancer?"),
        ('one = 1\n[config]\ntwo = 2\n[serve]\nbind = "x"', "unknown keys one, config.two"),
        ("[config]\ncopies = 'many'", "config.copies in "),
        ("[config]\ncopies = 40", "1 <= copies <= 16"),
        ("balancer = 5600", "balancer in "),
        ("balancer = 'tcp://h:99999'", "wanted 1 to 65535"),
        ("[config]\nbeat_s = true", "config.beat_s"),
        ("[config.copies]\nx = 1", "config.copies"),
        ("balancer = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(run: Run, file: str, says: str) -> None:
    Path("dws.toml").write_text(file)
    result = run("serve", "balancer", "--data", "d", "-h")
    assert result.exit_code == 0, "help works with a broken file"
    with pytest.raises(errors.ConfigError) as raised:
        loaded = Settings.load()
        loaded.get("balancer")
        loaded.config({})
    assert says in str(raised.value)


def test_a_wrong_value_is_an_error_though_the_environment_goes_before_it(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="balancer in "):
        settings(tmp_path, "balancer = 5", DWS_BALANCER="tcp://h:1")


def test_which_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here, named = tmp_path / "home", tmp_path / "here", tmp_path / "named.toml"
    tree(home, ".config/dws/dws.toml")
    here.mkdir()
    (home / ".config/dws/dws.toml").write_text('balancer = "tcp://home:1"')
    environ = {"HOME": str(home)}
    assert Settings.load(environ, here).get("balancer") == "tcp://home:1"
    (here / "dws.toml").write_text('balancer = "tcp://here:1"')
    assert Settings.load(environ, here).get("balancer") == "tcp://here:1"
    named.write_text('balancer = "tcp://named:1"')
    assert Settings.load(environ | {"DWS_CONFIG": str(named)}, here).get("balancer") == "tcp://named:1"
    assert Settings.load(environ | {"DWS_CONFIG": ""}, here).get("balancer") == "tcp://127.0.0.1:5600"
    with pytest.raises(errors.ConfigError, match=r"cannot read .*gone"):
        Settings.load({"DWS_CONFIG": str(tmp_path / "gone")}, here)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("123", 123), ("1k", 1024), ("2KiB", 2048), ("1.5 MiB", 3 << 19), ("10GiB", 10 << 30),
     ("10GB", 10**10), ("1t", 1 << 40), ("7B", 7)],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 GiB more", "1e3", "0x10", "1XB"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_the_balancer_and_timeout_reach_the_client(
    run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("status")
    run("-b", "tcp://group:1", "status", "--timeout", "3")
    run("-b", "tcp://group:1", "status", "-b", "tcp://command:1")
    monkeypatch.setenv("DWS_BALANCER", "tcp://environment:1")
    run("status")
    assert client.connected == [
        ("tcp://127.0.0.1:5600", {}),
        ("tcp://group:1", {"timeout_s": 3.0}),
        ("tcp://command:1", {}),
        ("tcp://environment:1", {}),
    ]


# put


def test_names_from_paths(tmp_path: Path) -> None:
    tree(tmp_path, "site/index.html", "site/.hidden", "site/img/logo.svg", "note.txt", "a/b")
    (tmp_path / "site/empty").mkdir()

    def names(to: str, *paths: str) -> list[str]:
        return [page.name for page in scan([str(tmp_path / path) for path in paths], to)]

    assert names("/", "site") == ["/.hidden", "/img/logo.svg", "/index.html"]
    assert names("/", "site/") == names("/", "site")
    assert names("/docs", "site") == ["/docs/.hidden", "/docs/img/logo.svg", "/docs/index.html"]
    assert names("/docs/", "site") == names("/docs", "site")
    assert names("/", "note.txt") == ["/note.txt"]
    assert names("/x/y", "note.txt", "a") == ["/x/y/b", "/x/y/note.txt"]
    assert names("/", "site/empty") == []


def test_what_cannot_be_stored_is_listed_whole_and_nothing_is_sent(run: Run, client: FakeClient) -> None:
    tree(Path(), "site/good", "site/deep/good")
    Path("site/link").symlink_to("good")
    Path("site/deep/directory").symlink_to("..")
    os.mkfifo("site/pipe")
    Path(os.fsdecode(b"site/latin-\xe9")).write_text("x")
    Path("site/line\nbreak").write_text("x")
    result = run("put", "site", "--to", "/x")
    assert result.exit_code == 2
    assert not client.puts
    listed = result.stderr.splitlines()[1:]
    assert [line.strip().partition(": ")[0] for line in listed] == [
        "site/deep/directory", "site/latin-\\xe9", "site/line\\nbreak", "site/link", "site/pipe",
    ]  # fmt: skip
    assert "symbolic link" in listed[0]
    assert "UTF-8" in listed[1]
    assert "control character" in listed[2]


def test_two_files_for_one_page_are_refused(run: Run, client: FakeClient) -> None:
    tree(Path(), "a/x", "b/x")
    result = run("put", "a", "b")
    assert result.exit_code == 2
    assert "b/x: would be /x, as a/x would" in result.stderr
    assert not client.puts


def test_a_link_is_refused_and_its_target_is_not(run: Run, client: FakeClient) -> None:
    tree(Path(), "v1/page")
    Path("current").symlink_to("v1")
    assert run("put", "current").exit_code == 2
    assert run("put", "current/").exit_code == 0
    assert list(client.pages) == ["/page"]


def test_a_file_that_is_not_there(run: Run) -> None:
    result = run("put", "nowhere")
    assert result.exit_code == 1
    assert result.stderr == "dws: error: nowhere: No such file or directory\n"


def test_what_put_asks_of_the_client(run: Run, client: FakeClient) -> None:
    tree(Path(), "site/a", "site/b")
    os.utime("site/a", (1000, 1000))
    assert run("put", "site/a", "--if-absent", "--copies", "3", "--timeout", "7").exit_code == 0
    assert run("put", "site", "--if-absent", "--copies", "3", "--timeout", "7").exit_code == 0
    one, many, _ = ({key: value for key, value in put.items() if key != "pages"} for put in client.puts)
    assert one.pop("on_progress")
    assert one == {"conditions": {"/a": ABSENT}, "modified": {"/a": 1000.0}, "copies": 3, "timeout_s": 7.0}
    assert many == {"if_absent": True, "copies": 3, "timeout_s": 7.0}


def test_put_if_version_is_for_one_page(run: Run, client: FakeClient) -> None:
    tree(Path(), "site/a", "site/b")
    assert run("put", "site", "--if-version", "3.17").exit_code == 2
    assert run("put", "site/a", "--if-version", "3.17").exit_code == 0
    assert client.puts[0]["conditions"] == {"/a": make_version(3, 17)}


def test_put_from_standard_input(run: Run, client: FakeClient) -> None:
    assert run("put", "-", "--to", "/dir/", stdin=b"x").exit_code == 2
    result = run("put", "-", "--to", "/now.html", stdin=b"\xff bytes")
    assert result.exit_code == 0, result.output
    assert client.pages["/now.html"][1] == b"\xff bytes"


def test_put_says_what_it_stored(run: Run) -> None:
    tree(Path(), "site/a", "site/b")
    assert run("put", "site").stdout == "stored 2 pages, 28 B, copies 2/2\n"
    assert run("put", "site/a").stdout == "stored 1 page, 14 B, copies 2/2, version 3.3\n"
    assert json.loads(run("put", "site", "--json").stdout) == {
        "pages": 2, "bytes": 28, "skipped": 0, "copies": 2,
    }  # fmt: skip


def test_a_put_that_fails_halfway_says_where(run: Run, client: FakeClient) -> None:
    tree(Path(), *(f"site/{number}" for number in range(9)))
    client.fails_after = 5
    result = run("put", "site", "--json")
    assert result.exit_code == 5
    assert result.stdout == ""
    assert "at least 5 of 9 pages were stored" in result.stderr


def test_dry_run_sends_nothing(run: Run, client: FakeClient) -> None:
    tree(Path(), "site/a", "site/b/c")
    result = run("put", "site", "--to", "/x", "--dry-run")
    assert result.stdout == "site/a → /x/a\nsite/b/c → /x/b/c\n"
    planned = json.loads(run("put", "site", "--to", "/x", "--dry-run", "--json").stdout)
    assert [page["name"] for page in planned] == ["/x/a", "/x/b/c"]
    assert not client.connected


# get


def test_get_writes_where_it_is_told(run: Run, client: FakeClient) -> None:
    client.add("/docs/a.html", b"A")
    client.add("/b.html", b"B")
    assert run("get", "/docs/a.html").exit_code == 0
    assert Path("a.html").read_bytes() == b"A"
    assert run("get", "/docs/a.html", "-o", "new.html").exit_code == 0
    assert Path("new.html").read_bytes() == b"A"
    assert run("get", "/docs/a.html", "/b.html", "-o", "both").exit_code == 0
    assert Path("both/b.html").read_bytes() == b"B"
    assert run("get", "/b.html", "-o", "both/").exit_code == 0
    assert run("get", "/docs/a.html", "/b.html", "-o", "-").stdout_bytes == b"AB"
    assert not list(Path().rglob("*.part"))


def test_get_of_a_missing_page_is_3_and_leaves_no_file(run: Run, client: FakeClient) -> None:
    client.add("/there", b"T")
    Path("gone").write_text("old")
    result = run("get", "/gone", "/there")
    assert result.exit_code == 3
    assert "/gone: there is no such page" in result.stderr
    assert Path("there").read_bytes() == b"T"
    assert Path("gone").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["gone", "there"]
    assert run("get", "/gone", "-o", "-").exit_code == 3
    assert run("get", "-r", "/nothing").exit_code == 3


def test_get_recursive_writes_the_tree_below_the_prefix(run: Run, client: FakeClient) -> None:
    for name in ("/docs/a", "/docs/b/c", "/docs-old/x", "/docs", "/big"):
        client.add(name, name.encode())
    client.add("/docs/big", bytes(400_000))
    assert run("get", "-r", "/docs", "-o", "out").exit_code == 0
    assert written("out") == ["a", "b/c", "big", "docs"]
    assert run("get", "-r", "/docs/", "-o", "below").exit_code == 0
    assert written("below") == ["a", "b/c", "big"]
    assert Path("below/b/c").read_text() == "/docs/b/c"


def written(directory: str) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix() for path in Path(directory).rglob("*") if path.is_file()
    )


def test_put_then_get_recursive_gives_the_same_tree(run: Run) -> None:
    tree(Path(), "site/index.html", "site/deep/er/x", "site/.hidden", "site/sp ace", "site/ünï")
    assert run("put", "site", "--to", "/copy").exit_code == 0
    assert run("get", "-r", "/copy", "-o", "back").exit_code == 0
    assert written("back") == written("site")
    assert all(
        (Path("back") / name).read_bytes() == (Path("site") / name).read_bytes() for name in written("site")
    )


def test_pages_that_fit_no_directory_are_listed(run: Run, client: FakeClient) -> None:
    for name in ("/a", "/a/b", "/c", "/x/c"):
        client.add(name)
    result = run("get", "-r", "/", "-o", "out")
    assert result.exit_code == 1
    assert "/a would be a file, and /a/b a file below it" in result.stderr
    assert "/x/c and /c would both be c" in run("get", "/c", "/x/c").stderr
    result = run("get", "-r", "/c", "/x", "-o", "out")
    assert "would both be c" in result.stderr
    assert not Path("out").exists()


def test_get_never_leaves_the_directory(run: Run, client: FakeClient, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Path("out").mkdir()
    Path("out/link").symlink_to(outside)
    client.add("/link/file")
    result = run("get", "-r", "/", "-o", "out")
    assert result.exit_code == 1
    assert "symbolic link" in result.stderr
    assert not list(outside.iterdir())
    client.pages.clear()
    client.add("/../../outside/file")
    result = run("get", "-r", "/", "-o", "out")
    assert result.exit_code == 2
    assert not list(outside.iterdir())


def test_a_failed_download_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "page"
    target.write_text("old")
    with pytest.raises(errors.IntegrityError), downloads.whole_file(target) as file:
        file.write(b"new")
        raise errors.IntegrityError("digest")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_bytes_that_are_no_text_warn_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.BytesIO()
    sink = downloads.TerminalWarner(terminal)
    sink.write(b"text")
    sink.write(b"\0binary")
    assert capsys.readouterr().err == ""
    downloads.TerminalWarner(terminal).write(b"\x7fELF\0")
    assert "no text" in capsys.readouterr().err
    assert terminal.getvalue() == b"text\0binary\x7fELF\0"


# ls, stat, rm, why, status


def test_ls(run: Run, client: FakeClient) -> None:
    for name in ("/docs", "/docs/a", "/docs-old"):
        client.add(name)
    assert run("ls").stdout == "/docs\n/docs-old\n/docs/a\n"
    assert run("ls", "/docs").stdout == "/docs\n/docs/a\n"
    assert run("ls", "/docs/").stdout == "/docs/a\n"
    assert "text/plain" in run("ls", "-l").stdout
    assert [page["name"] for page in json.loads(run("ls", "/docs", "--json").stdout)] == ["/docs", "/docs/a"]
    assert json.loads(run("ls", "/none", "--json").stdout) == []


def test_names_move_no_cursor(run: Run, client: FakeClient) -> None:
    client.add("/right\u202eleft")
    assert run("ls").stdout == "/right\\u202eleft\n"
    assert json.loads(run("ls", "--json").stdout)[0]["name"] == "/right\u202eleft"


def test_stat(run: Run, client: FakeClient) -> None:
    client.add("/a", b"hello")
    result = run("stat", "/a", "/gone", "--json")
    assert result.exit_code == 3
    assert "/gone" in result.stderr
    [page] = json.loads(result.stdout)
    assert page["name"] == "/a"
    assert page["copies"] == 2
    assert [holder["name"] for holder in page["holders"]] == ["web-1", "web-2", "web-3"]
    assert page["digest"] == blake3(b"hello").hexdigest()
    assert page["version"] == format_version(client.pages["/a"][0].version)
    assert "copies    2: web-1 (alive), web-2 (alive), web-3 (dead)" in run("stat", "/a").stdout
    assert len(json.loads(run("stat", "-r", "/", "--json").stdout)) == 1


def test_rm(run: Run, client: FakeClient) -> None:
    for name in ("/a", "/b", "/docs/c", "/docs-old"):
        client.add(name)
    assert run("rm", "/a").exit_code == 0
    result = run("rm", "/b", "/gone", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"removed": 1, "missing": ["/gone"]}
    assert run("rm", "-r", "--yes", "/docs").exit_code == 0
    assert list(client.pages) == ["/docs-old"]
    assert run("rm", "-r", "--yes", "/docs").exit_code == 3


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_rm_asks_on_a_terminal(
    run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    client.add("/docs/c")
    monkeypatch.setattr("dws.cli.pages.has_terminal", lambda: True)
    result = run("rm", "-r", "/docs", stdin=answer.encode())
    assert "remove 1 page within /docs?" in result.stderr
    assert len(client.pages) == left
    assert result.exit_code == {"y\n": 0, "n\n": 1, "": 130}[answer]


def test_why(run: Run, client: FakeClient) -> None:
    client.add("/a")
    shown = run("why", "/a").stdout
    assert "web-1 would serve it (policy least-load)" in shown
    assert "chosen, suspect" in shown
    told = json.loads(run("why", "/a", "--json").stdout)
    assert told["chosen"] == "web-1"
    assert told["choices"][0]["upload_load"] is None
    assert run("why", "/gone").exit_code == 3


def test_status(run: Run) -> None:
    shown = run("status").stdout
    assert "10 pages, 4.0 KiB: 10 pages with 2 copies" in shown
    assert "web-1   alive" in shown
    told = json.loads(run("status", "--json").stdout)
    assert told["servers"][0]["state"] == "alive"
    assert told["page_copies"] == [0, 0, 10, 0]


def test_status_tells_of_repair() -> None:
    from dws.cli.cluster import status_text

    told = FakeClient().status()
    assert "repair" not in status_text(told)
    told.repair = RepairStatus(5, 4096, 2, 10, 999, 2.0, 2048.0, 2.0, 3, 0, 1)
    shown = status_text(told)
    for part in ("5 pages, 4.0 KiB to copy", "2 on the way", "2.0 KiB/s", "2 s left", "3 pages with a copy"):
        assert part in shown
    told.repair = RepairStatus(missing=5, text="no server has room")
    assert "waits: no server has room" in status_text(told)
    told.servers[0].draining, told.servers[0].to_move = True, 7
    assert "drained: 7 pages, 0 B left to move" in status_text(told)
    told.servers[0].to_move = 0
    assert "safe to stop" in status_text(told)
    told.servers[0].state = "joining"
    assert "safe to stop" not in status_text(told) and "not known yet" in status_text(told)


# node


def drained(
    to_move: int, state: str = "draining", draining: bool = True, incarnation: int = 7
) -> ClusterStatus:
    told = FakeClient().status()
    server = told.servers[0]
    server.state, server.draining, server.to_move = state, draining, to_move
    server.incarnation = incarnation
    return told


@pytest.fixture
def statuses(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `status` says, one after the other; an exception is raised."""
    told: list[Any] = []

    def status() -> ClusterStatus:
        next_one = told.pop(0)
        if isinstance(next_one, BaseException):
            raise next_one
        return cast(ClusterStatus, next_one)

    monkeypatch.setattr(client, "status", status)
    monkeypatch.setattr("dws.cli.maintenance._EVERY_S", 0.0)
    return told


def test_node_drain_waits_until_it_is_safe_to_stop(run: Run, statuses: list[Any]) -> None:
    statuses += [drained(9), errors.Unreachable("no answer from x"), drained(4), drained(0)]
    result = run("node", "drain", "web-1")
    assert result.exit_code == 0 and "web-1 is safe to stop" in result.stdout
    for part in ("9 pages", "still trying: no answer from x", "4 pages"):
        assert part in result.stderr
    assert not statuses


def test_node_drain_waits_until_it_is_known_what_the_server_holds(run: Run, statuses: list[Any]) -> None:
    """A balancer that has just started knows of no page on it, which is not the same as none."""
    statuses += [drained(9), drained(0, "joining"), drained(9), drained(0)]
    assert run("node", "drain", "web-1").exit_code == 0
    assert not statuses


def test_node_drain_as_json_is_a_line_each_time(run: Run, statuses: list[Any]) -> None:
    statuses += [drained(9), drained(0)]
    lines = [json.loads(line) for line in run("node", "drain", "web-1", "--json").stdout.splitlines()]
    assert [line["to_move"] for line in lines] == [9, 0] and "missing" in lines[0]["repair"]


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (drained(3, "dead"), "died, with 3 pages that were not moved"),
        (drained(0, "dead"), "all it held is on other servers"),
        (drained(0, "dead", incarnation=0), "what it holds was not known yet"),
        (drained(3, "alive", draining=False), "was taken back"),
    ],
)
def test_node_drain_fails_when_it_cannot_end(run: Run, statuses: list[Any], last: Any, text: str) -> None:
    statuses += [drained(5), last]
    result = run("node", "drain", "web-1")
    assert result.exit_code == 1 and text in result.stderr


def test_node_drain_interrupted_says_that_it_goes_on(run: Run, statuses: list[Any]) -> None:
    statuses += [drained(5), KeyboardInterrupt()]
    result = run("node", "drain", "web-1")
    assert result.exit_code == 130 and "`dws node resume web-1` takes it back" in result.stderr


def test_node_drain_need_not_wait(run: Run) -> None:
    assert "web-1 is being drained" in run("node", "drain", "web-1", "--no-wait").stdout
    told = json.loads(run("node", "drain", "web-1", "--no-wait", "--json").stdout)
    assert (told["name"], told["to_move"]) == ("web-1", 3)


def test_node_resume_and_forget(run: Run, client: FakeClient) -> None:
    assert "web-1 is alive, and not drained" in run("node", "resume", "web-1").stdout
    assert run("node", "forget", "web-1", "--force", "--number", "7").stdout == "web-1 is forgotten\n"
    assert client.forced
    client.raises = errors.TooFewServers("without web-1 there is 1")
    result = run("node", "drain", "web-1")
    assert result.exit_code == 1 and "without web-1 there is 1" in result.stderr


@pytest.mark.parametrize("wrong", [["--number", "0"], ["--number", "x"], ["--force"], ["more"]])
def test_node_drain_used_wrongly_sends_nothing(run: Run, client: FakeClient, wrong: list[str]) -> None:
    client.raises = AssertionError("something was sent")
    assert run("node", "drain", "web-1", *wrong).exit_code == 2


def test_the_watch_says_when_it_has_lost_touch(run: Run, client: FakeClient) -> None:
    from dws.cli.cluster import Watch

    now = [100.0]
    watch = Watch(Session(client.connect), clock=lambda: now[0])
    assert "LOST" not in watch.report(client)  # type: ignore[arg-type]
    client.raises = errors.Unreachable("no answer from tcp://127.0.0.1:5600")
    now[0] += 12
    lost = watch.report(client)  # type: ignore[arg-type]
    assert lost.startswith("LOST TOUCH with tcp://127.0.0.1:5600 for 12 s: no answer")
    assert "what it said last, no longer certain" in lost
    client.raises = None
    assert "LOST" not in watch.report(client)  # type: ignore[arg-type]


# Output


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (10 << 30, "10.0 GiB"), (3 << 50, "3,072.0 TiB")],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert output.bytes_text(count) == text


def test_usage_errors_of_a_context_name_the_help() -> None:
    error = click.UsageError("no such option: --x", click.Context(program, info_name="dws"))
    assert exits.line_of(error) == "no such option: --x; see `dws --help`"
