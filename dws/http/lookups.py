"""The gateway's questions to the balancer, gathered.

What lives here: one Locate for all names that wait, the table of the servers'
HTTP endpoints that its answers keep up to date, and a Status that is asked for at
most once a second. What must not: HTTP. There is no cache of locations: each
lookup is the balancer's own choice, counted there as an assignment.
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Final

from dws.errors import DwsError, Unavailable, Unreachable
from dws.http.calls import LoopCalls
from dws.limits import LOCATE_MAX_NAMES
from dws.membership import ALIVE
from dws.messages import ClusterStatus, Locate, Located, Status
from dws.policy import choose_targets

#: Locates on the way at once. What comes meanwhile waits and goes together: the busier, the larger.
_ON_THE_WAY: Final = 2
BALANCER_WITHIN_S: Final = 2.0
_STATUS_AGE_S: Final = 1.0


#: Called with those who asked, in order, and the answer of their Locate, or the error instead.
Answered = Callable[[list[Any], "Located | DwsError"], None]


class _Batch:
    """Names of one Locate, and who waits for each."""

    __slots__ = ("askers", "names")

    def __init__(self) -> None:
        self.names: list[str] = []
        self.askers: list[Any] = []


class Lookups:
    """balancer: its clients' endpoint. Belongs to the loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, calls: LoopCalls, balancer: str, answered: Answered
    ) -> None:
        self.http: dict[int, str] = {}
        """Server number → its HTTP endpoint, for those that have one."""
        self._loop = loop
        self._calls = calls
        self._balancer = balancer
        self._answered = answered
        self._table = 0
        self._batch: _Batch | None = None
        self._full: list[_Batch] = []
        self._on_the_way = 0
        self._scheduled = False
        self._rng = Random()
        self._status: ClusterStatus | None = None
        self._status_at = -_STATUS_AGE_S
        self._asked_status: asyncio.Future[Any] | None = None

    def locate(self, name: str, asker: Any) -> None:
        """Look the name up together with all others that wait; `answered` is told the asker, later."""
        batch = self._batch
        if batch is None:
            batch = self._batch = _Batch()
            if not self._scheduled and self._on_the_way < _ON_THE_WAY:
                self._scheduled = True
                self._loop.call_soon(self._flush)
        batch.names.append(name)
        batch.askers.append(asker)
        if len(batch.names) == LOCATE_MAX_NAMES:
            self._full.append(batch)
            self._batch = None

    async def locate_avoiding(self, names: list[str], avoid: list[int]) -> Located:
        """A Locate of its own: for complaints, and for names that must be answered together."""
        located = await self._calls.ask(self._balancer, Locate(names, self._table, avoid), BALANCER_WITHIN_S)
        self._check(located, len(names))
        checked: Located = located
        return checked

    async def ask(self, message: Any) -> Any:
        """Anything else that the balancer answers."""
        return await self._calls.ask(self._balancer, message, BALANCER_WITHIN_S)

    async def status(self) -> ClusterStatus:
        """At most a second old; those who wait for it wait for the same answer."""
        if self._status is not None and self._loop.time() - self._status_at < _STATUS_AGE_S:
            return self._status
        if self._asked_status is None:
            self._asked_status = self._calls.ask(self._balancer, Status(), BALANCER_WITHIN_S)
            self._asked_status.add_done_callback(self._keep_status)
        # Shielded: one of those who wait may be cancelled, and the others still want the answer.
        status: ClusterStatus = await asyncio.shield(self._asked_status)
        return status

    async def upload_endpoint(self) -> str:
        """The HTTP endpoint of an alive server with least upload load; Unavailable if there is none."""
        servers = (await self.status()).servers
        able = {
            server.number: server.http_endpoint
            for server in servers
            if server.state == ALIVE and server.http_endpoint and server.upload_load >= 0
        }
        loads = {server.number: server.upload_load for server in servers if server.number in able}
        if not loads:
            raise Unavailable("no live web server takes uploads by HTTP now")
        return able[choose_targets(loads, 1, self._rng)[0]]

    # -- sending, and what comes back ---------------------------------------------------------------

    def _flush(self) -> None:
        self._scheduled = False
        while self._on_the_way < _ON_THE_WAY:
            if self._full:
                batch = self._full.pop(0)
            elif self._batch is not None:
                batch, self._batch = self._batch, None
            else:
                return
            self._send(batch)

    def _send(self, batch: _Batch) -> None:
        self._on_the_way += 1

        def answered(answer: Any) -> None:
            self._on_the_way -= 1
            # Whoever waits behind this one is sent first: the balancer works while these are answered.
            if self._batch is not None or self._full:
                self._flush()
            try:
                if isinstance(answer, DwsError):
                    raise answer
                self._check(answer, len(batch.names))
            except DwsError as error:
                self._answered(batch.askers, error)
            else:
                self._answered(batch.askers, answer)

        try:
            self._calls.call(self._balancer, Locate(batch.names, self._table), BALANCER_WITHIN_S, answered)
        except DwsError as error:
            # Told later, as any answer is: who looks up has not begun to wait yet.
            self._loop.call_soon(answered, error)

    def _check(self, located: Any, wanted: int) -> None:
        """Take in what the answer says of the servers; raise if it is no answer to this question."""
        if not isinstance(located, Located) or len(located.pages) != wanted:
            raise Unreachable("the balancer answered a lookup with something else")
        if located.servers is not None:
            self._table = located.table
            self.http = {server.number: server.http for server in located.servers if server.http}

    def _keep_status(self, asked: "asyncio.Future[Any]") -> None:
        self._asked_status = None
        if not asked.cancelled() and asked.exception() is None and isinstance(asked.result(), ClusterStatus):
            self._status, self._status_at = asked.result(), self._loop.time()
