"""What ties a web server to its balancer: hello, welcome, and the report of changes.

What lives here: whom the server follows, when it must refuse, and what the
balancer has been told. What must not: jobs and uploads, which only ask for the
epoch.

An epoch begins here only when the store has the new start on disk, so that no
batch or job of it can meet a store that would still fence it off.
"""

from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from dws.effects import Effects, Log, Report, Write
from dws.errors import TryAgain, WrongCluster
from dws.messages import Applied, Error, Hello, Stored, Welcome
from dws.store import OpResult, PageStore, Remember
from patterns.snapshot import Feed

REPORT_TIMEOUT_S: Final = 2.0
_HELLO_RETRY_S: Final = 0.5
#: A hello is repeated now and then: it costs nothing and mends what a lost message broke.
_HELLO_AGAIN_S: Final = 5.0
#: And sooner after a change: its answer tells the decisions that followed, and whoever was told of them
#: refuses a copy of the catalog that lacks them.
_HELLO_CHANGED_S: Final = 1.0
_REFUSED_AGAIN_S: Final = 1.0
_REPORT_PAUSE_S: Final = 0.05
_CHANGES_MAX: Final = 64
_SILENT: Final = "silent"
_RECORDS_MAX: Final = 2_000


class Endpoints(Struct, frozen=True):
    """As announced: what others can connect to."""

    pages: str
    jobs: str
    http: str = ""


class Following:
    def __init__(self, name: str, store: PageStore, endpoints: Endpoints, now: float) -> None:
        self.number = -1
        """Of this server, as the balancer that it follows knows it; -1: not yet known."""
        self.epoch = 0
        """Of the balancer that this server follows; 0: none yet."""
        self.hello_at = now
        self._name = name
        self._store = store
        self._endpoints = endpoints
        self._feed = Feed(_REPORT_PAUSE_S)
        self._refusal = ""
        self._remembering = 0  # epoch whose start is being written
        self._is_led = False
        """Whether the balancer knows that this server follows it."""

    def wake_at(self) -> float:
        feed_at = self._feed.wake_at()
        return self.hello_at if feed_at is None else min(self.hello_at, feed_at)

    def hello(self, now: float) -> Effects:
        self.hello_at = now + (_HELLO_AGAIN_S if self._is_led else _HELLO_RETRY_S)
        identity = self._store.identity
        pages, bytes_stored, bytes_free = self._store.usage()
        hello = Hello(
            identity.server, self._name, identity.incarnation, self._endpoints.pages, self._endpoints.jobs,
            self._endpoints.http, identity.cluster, identity.start_epoch, identity.start_nonce,
            identity.decision, self._store.number, pages, bytes_stored, bytes_free,
        )  # fmt: skip
        return [Report(hello, ("hello", self.epoch, identity.start_nonce), REPORT_TIMEOUT_S)]

    def http_up(self, endpoint: str, now: float) -> Effects:
        """The HTTP endpoint can be reached there; or, if empty, no longer."""
        self._endpoints = replace(self._endpoints, http=endpoint)
        return self.hello(now)

    def answered(self, tag: tuple[Any, ...], message: Any, now: float) -> Effects:
        what, *details = tag
        if details[:1] != [self.epoch]:
            return []  # late: of a balancer that was followed before
        if what == "hello":
            return self._welcomed(message, details[1], now)
        if what == "stored" and isinstance(message, Applied):
            self._feed.answered(message.number, now)
            self.hello_at = min(self.hello_at, now + _HELLO_CHANGED_S)
        elif what == "stored":
            # "say hello first": the balancer is another one than we think
            self._feed.unanswered(now)
            self.hello_at = min(self.hello_at, now + _REPORT_PAUSE_S)
        return []

    def unanswered(self, tag: tuple[Any, ...], now: float) -> Effects:
        what, *details = tag
        if details[:1] != [self.epoch]:
            return []
        if what == "stored":
            self._feed.unanswered(now)
        if what == "hello" and not self.epoch and self._refusal != _SILENT:
            self._refusal = _SILENT
            return [Log("warning", "the balancer does not answer; trying on")]
        return []

    def _welcomed(self, message: Any, named: int, now: float) -> Effects:
        """named: nonce of the start that the hello named."""
        refusal = _refusal_in(message) if isinstance(message, Error) else self._refuse(message)
        if refusal:
            self.hello_at = now + _REFUSED_AGAIN_S
            known, self._refusal = self._refusal, refusal
            passes = isinstance(message, Error) and message.code == TryAgain.code
            level, what = ("info", "waiting") if passes else ("error", "not joining")
            return [Log(level, f"{what}: {refusal}")] if refusal != known else []
        self._refusal = ""
        self._is_led = named == message.nonce
        self.number = message.number
        told_before = message.epoch == self.epoch and message.decision <= self._store.identity.decision
        if told_before or message.epoch == self._remembering:
            return []
        self._remembering = message.epoch
        op = Remember(message.cluster, message.epoch, message.nonce, message.decision)
        return [Write("upload", op, ("remembered", message), 0)]

    def _refuse(self, welcome: Any) -> str:
        """Why this balancer must not be followed; empty if it may."""
        if not isinstance(welcome, Welcome):
            return f"unexpected answer {type(welcome).__name__}"
        identity = self._store.identity
        if identity.cluster and welcome.cluster != identity.cluster:
            return f"the balancer is of cluster {welcome.cluster.hex()}, we are of {identity.cluster.hex()}"
        if (welcome.epoch, welcome.nonce) == (identity.start_epoch, identity.start_nonce):
            # A job that overtook this welcome may have told a higher decision.
            return ""
        if welcome.epoch <= identity.start_epoch or welcome.decision < identity.decision:
            return (
                f"the balancer's catalog is behind, at epoch {welcome.epoch}, decision {welcome.decision}; "
                f"this server was told epoch {identity.start_epoch}, decision {identity.decision}"
            )
        return ""

    def remembered(self, welcome: Welcome, result: OpResult) -> bool:
        """What a welcome told is on disk, if it could be written: whether a new epoch begins with it."""
        self._remembering = 0
        return not result.code and welcome.epoch != self.epoch

    def begin(self, welcome: Welcome, now: float) -> Effects:
        """The new start is on disk: from now on only its batches and jobs are taken. The balancer counts on
        this server when it has heard so, from a hello that names that start."""
        self.epoch = welcome.epoch
        # The balancer compares manifests after a hello; changes from here on are pushed.
        self._feed.number = self._store.number
        self._feed.follow(self._store.number)
        log = Log("info", f"{self._name} follows epoch {welcome.epoch} as server {welcome.number}")
        return [log] if self._is_led else [log, *self.hello(now)]

    def changed(self) -> None:
        """The store may have a new change."""
        self._feed.number = self._store.number

    def push_changes(self, now: float) -> Effects:
        """Tell the balancer what it has not been told, one report at a time."""
        since = self._feed.poll(now)
        if since is None:
            return []
        # Where the log no longer reaches back, beats show the balancer that it must compare manifests;
        # its answers to empty reports tell when it has.
        changes = self._store.changes(since, _CHANGES_MAX) or []
        records = 0
        for count, change in enumerate(changes):
            records += len(change.added) + len(change.dropped)
            if records > _RECORDS_MAX and count:
                changes = changes[:count]
                break
        stored = Stored(self._store.identity.incarnation, changes)
        return [Report(stored, ("stored", self.epoch), REPORT_TIMEOUT_S)]


def _refusal_in(error: Error) -> str:
    if error.code != WrongCluster.code:
        return error.text
    return f"{error.text}; nothing is dropped. Start the balancer on its right catalog, or with --rebuild"
