"""Each server's manifest against the catalog's picture of it.

What lives here: one follower a server (patterns/snapshot.py), what to ask it
for next, and how its answers change the picture. What must not: what follows
from a changed picture.

Sums are compared first; only buckets that differ are read, page by page, the
first pages of some of them ahead, since a round trip takes longer than a page. A
record that the picture shows in such a bucket and the manifest does not is
released at the end of the bucket, so that a damaged answer in the middle
releases nothing.
"""

from msgspec import Struct

from dws.catalog import Catalog
from dws.config import Config
from dws.effects import Ask, Effects
from dws.limits import MANIFEST_MAX_RECORDS
from dws.membership import Server
from dws.messages import Applied, Change, Manifest, ManifestPage, Record, Sums, SumsAre
from dws.names import bucket_of, sums_digest
from patterns.snapshot import APPLY, COMPARING, EMPTY, GAP, LIVE, LOADING, Follower

#: How long a manifest page may take before it is asked for again.
_ANSWER_S = 5.0
_RETRY_S = 0.2
#: Buckets whose first page is asked for before the ones in front of them are taken in.
_AHEAD = 4


class _Session(Struct):
    follower: Follower
    incarnation: int = 0
    asked: int = 0  # rises with each comparison: an answer to an earlier one is late
    to_ask: list[int] = []  # buckets that differ and were not asked for yet, the next one last
    ahead: dict[int, ManifestPage] = {}  # first pages of buckets whose turn has not come
    cursor: bytes = b""
    mine: dict[int, set[tuple[str, int]]] = {}
    retry_at: float | None = None
    digest: tuple[int, int] = (-1, 0)  # (change number, digest of our sums at it)


class Sync:
    def __init__(self, catalog: Catalog, config: Config) -> None:
        self._catalog = catalog
        self._config = config
        self._sessions: dict[int, _Session] = {}
        self.misplaced = ""
        """The last record that a manifest had in the wrong bucket, for whoever wants to say so."""

    def add_server(self, number: int) -> None:
        self._sessions.setdefault(number, _Session(Follower(self._config.behind_s)))

    def is_live(self, number: int) -> bool:
        return self._sessions[number].follower.state == LIVE

    def has_begun(self, number: int) -> bool:
        """Whether the server is compared, or has been: what is asked of it is answered, or asked again."""
        return self._sessions[number].follower.state != EMPTY

    def applied(self, number: int) -> int:
        """The last change of the server that its picture shows; -1: it shows none for certain."""
        follower = self._sessions[number].follower
        return follower.applied if follower.state == LIVE else -1

    def begin(self, server: Server) -> Effects:
        """Compare from the start: at a hello, at a return from the dead, at a disagreement."""
        session = self._sessions[server.number]
        session.incarnation = server.incarnation
        session.follower.begin()
        session.retry_at = None
        session.mine = {}
        session.digest = (-1, 0)
        session.to_ask = []
        session.ahead = {}
        session.asked += 1
        return [self._ask(server.number, session, Sums(session.incarnation))]

    def stop(self, number: int) -> None:
        """The server is dead: what it says of itself counts no more."""
        session = self._sessions[number]
        session.follower.reset()
        session.asked += 1
        session.retry_at = None

    # -- answers -------------------------------------------------------------------------

    def sums(self, number: int, asked: int, answer: SumsAre) -> Effects:
        session = self._sessions[number]
        if asked != session.asked or session.follower.state != COMPARING:
            return []
        ours = self._catalog.pictures[number].sums
        differing = [bucket for bucket in range(len(ours)) if ours[bucket] != answer.sums[bucket]]
        session.mine = self._catalog.held_in(number, set(differing))
        session.follower.compare(answer.number, differing)
        session.cursor = b""
        session.to_ask = differing[::-1]
        return [effect for _ in range(_AHEAD) for effect in self._ask_ahead(number, session)]

    def page(self, number: int, asked: int, answer: ManifestPage, now: float) -> Effects:
        """Take in a page of a bucket; nonsense in it is passed over and asked for again later."""
        session = self._sessions[number]
        if asked != session.asked or session.follower.state != LOADING:
            return []
        if answer.bucket != session.follower.part:
            if answer.bucket in session.mine and answer.bucket not in (*session.to_ask, *session.ahead):
                session.ahead[answer.bucket] = answer
            else:
                # Nobody asked for that, or not twice: the bucket that was asked for would never come.
                self.unanswered(number, asked, now)
            return []
        effects: Effects = []
        page: ManifestPage | None = answer
        while page is not None:
            if page.after and page.after <= session.cursor:
                # A cursor that does not rise would be followed for ever.
                self.unanswered(number, asked, now)
                return effects
            effects += self._take_in(number, session, page, now)
            page = session.ahead.pop(session.follower.part, None) if not page.after else None
        return effects

    def _take_in(self, number: int, session: _Session, page: ManifestPage, now: float) -> Effects:
        """A page of the bucket whose turn it is; returns what to ask next."""
        records = page.records
        if not {page.bucket}.issuperset(bucket_of(record.version) for record in records):
            records = self._in_place(page)
        self._catalog.hold_all(number, records, now)
        if mine := session.mine[page.bucket]:
            mine.difference_update((record.name, record.version) for record in records)
        session.cursor = page.after
        if page.after:
            question = Manifest(session.incarnation, page.bucket, page.after, MANIFEST_MAX_RECORDS)
            return [self._ask(number, session, question)]
        self._catalog.release_all(number, session.mine.pop(page.bucket))
        session.follower.loaded()
        return self._ask_ahead(number, session)

    def _in_place(self, page: ManifestPage) -> list[Record]:
        """Of a page, the records that belong in its bucket."""
        records = []
        for record in page.records:
            if bucket_of(record.version) == page.bucket:
                records.append(record)
            else:
                self.misplaced = f"{record.name} in bucket {page.bucket}"
        return records

    def unanswered(self, number: int, asked: int, now: float) -> None:
        session = self._sessions[number]
        if asked == session.asked and session.follower.state in (COMPARING, LOADING):
            session.retry_at = now + _RETRY_S

    def retry(self, server: Server, now: float) -> Effects:
        session = self._sessions[server.number]
        if session.retry_at is None or now < session.retry_at:
            return []
        return self.begin(server)

    def _ask_ahead(self, number: int, session: _Session) -> Effects:
        """The first page of the next bucket that was not asked for."""
        if not session.to_ask:
            return []
        question = Manifest(session.incarnation, session.to_ask.pop(), b"", MANIFEST_MAX_RECORDS)
        return [self._ask(number, session, question)]

    def _ask(self, number: int, session: _Session, question: Sums | Manifest) -> Ask:
        kind = "sums" if isinstance(question, Sums) else "manifest"
        return Ask(number, question, (kind, number, session.asked), _ANSWER_S)

    # -- updates ---------------------------------------------------------------------------

    def stored(
        self, number: int, incarnation: int, changes: list[Change], now: float
    ) -> tuple[Applied, list[Change]]:
        """Apply a server's changes in order: the reply to it, and the changes that were new."""
        session = self._sessions[number]
        follower = session.follower
        fresh: list[Change] = []
        if incarnation != session.incarnation or follower.state != LIVE:
            return Applied(-1), fresh
        for change in changes:
            verdict = follower.update(change.number)
            if verdict == GAP:
                break
            if verdict == APPLY:
                self._catalog.release_all(number, [(each.name, each.version) for each in change.dropped])
                self._catalog.hold_all(number, change.added, now)
                fresh.append(change)
        return Applied(follower.applied), fresh

    def beat(self, server: Server, number: int, digest: int, now: float) -> Effects:
        """A heartbeat's word on the manifest; asks anew if it proves the picture wrong."""
        session = self._sessions[server.number]
        if session.follower.state != LIVE:
            return []  # a picture half loaded has no sums to compare, or to remember
        agrees = True
        if number == session.follower.applied:
            if session.digest[0] != number:
                session.digest = (number, sums_digest(self._catalog.pictures[server.number].sums))
            agrees = session.digest[1] == digest
        if session.follower.seen(number, agrees, now):
            return self.begin(server)
        return []

    def check(self) -> None:
        for session in self._sessions.values():
            session.follower.check()
