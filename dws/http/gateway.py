"""The HTTP front: answers a page's URL with a redirect to the best server's HTTP endpoint.

What lives here: the gateway's routes, and what each outcome of a lookup becomes in
HTTP. What must not: how lookups are gathered (lookups.py), figures and dashboard
(figures.py), page bytes. A gateway keeps nothing, so any number of them may run.

Redirects are 302 and 307 and are never stored: a permanent or cached one would
send clients to a server that has died since, or is no longer the best, without
anybody being asked. Where they lead comes from the cluster's own table of servers,
never from a header of the request.
"""

import asyncio
import logging
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec
from msgspec import Struct

from dws.errors import DwsError, Unreachable
from dws.http import pages
from dws.http.calls import LoopCalls
from dws.http.figures import Figures
from dws.http.lookups import BALANCER_WITHIN_S, Lookups
from dws.http.pages import ANY_ORIGIN, JSON_HEADERS, NO_STORE, PAGE_HEADERS, TEXT_HEADERS
from dws.http.serving import url_path
from dws.limits import NAME_MAX_BYTES
from dws.messages import Because, Located, Ping, Why, to_plain
from dws.names import RESERVED_PREFIX, format_version, name_fault

_log = logging.getLogger(__name__)

ROLE: Final = "gateway"
INDEX: Final = "index.html"
#: Names checked and percent-encoded that are remembered: at most 16 MiB of the longest.
_NAMES_REMEMBERED: Final = 8192
#: Servers that a client may have been sent back by; the cluster is out of step if there are more.
NOT_MAX: Final = 3
_RETRY_AFTER: Final = ("retry-after", "1")
_ALLOW: Final = ("allow", "GET, HEAD, PUT, DELETE, OPTIONS")
#: To other origins pages are open, and that is all: a site somewhere must not, by a visitor's browser,
#: write to a cluster that only the visitor can reach.
_PREFLIGHT: Final = [
    _ALLOW,
    ANY_ORIGIN,
    ("access-control-allow-methods", "GET, HEAD"),
    ("access-control-allow-headers", "*"),
    ("access-control-max-age", "86400"),
]
_WHY: Final = "/_dws/why/"
#: While the balancer is away every request fails for the same reason.
_WARN_EVERY_S: Final = 1.0

_json = msgspec.json.Encoder()


@lru_cache(maxsize=_NAMES_REMEMBERED)
def quoted(name: str) -> str:
    """The name as the path of a URL; empty if it is no legal name. Not to be asked for one of more than
    NAME_MAX_BYTES characters: what is remembered would have no bound."""
    return "" if _fault(name) else url_path(name)


class Gateway:
    """An RSGI application. balancer: its clients' endpoint. name: what the gateway is called in reports."""

    def __init__(self, name: str, balancer: str) -> None:
        self.url = ""
        """Where it is to be found, once that is known."""
        self._name = name
        self._balancer = balancer
        self._warned_at = -_WARN_EVERY_S
        self._health = _json.encode({"status": "healthy", "server": name})

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls = LoopCalls(loop)
        self._lookups = Lookups(loop, self._calls, self._balancer, self._located)
        self._figures = Figures(self._calls, self._balancer, self._name)
        self._observe = self._figures.redirects.observe
        self._tell_whether_there_is_a_balancer()

    def _tell_whether_there_is_a_balancer(self) -> None:
        """Once, at the start: later each request that fails for it is warned of."""

        def answered(answer: Any) -> None:
            if isinstance(answer, DwsError):
                _log.warning("%s; requests are answered 503 until it does", answer)

        try:
            self._calls.call(self._balancer, Ping(), BALANCER_WITHIN_S, answered)
        except DwsError as error:
            answered(error)

    def ending(self) -> None:
        """The process is about to stop: dashboards' streams would keep it."""
        self._figures.close()

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._figures.close()
        self._calls.close()

    def begin(self, scope: Any, proto: Any) -> bool:
        """The way of almost every request, without a task: see shortcut.py."""
        began = monotonic()
        # Granian has percent-decoded the path, once.
        path: str = scope.path
        method = scope.method
        if (
            (method == "GET" or method == "HEAD")  # noqa: PLR1714, faster than a tuple
            and len(path) <= NAME_MAX_BYTES
            and (path_quoted := quoted(path))
            and not scope.query_string
            and path != "/health"
        ):
            self._lookups.locate(path, (path_quoted, scope, proto, began))
            return True
        return False

    def _located(self, askers: list[Any], answer: Located | DwsError) -> None:
        """What `begin` has begun is told here."""
        if isinstance(answer, DwsError):
            for _, _, proto, _ in askers:
                self._not_now(proto, answer)
            return
        now = monotonic()
        for (path_quoted, scope, proto, began), found in zip(askers, answer.pages, strict=True):
            redirect = None if found is None else self._redirect(path_quoted, found[0], found[4], "")
            if redirect is not None:
                proto.response_empty(302, redirect)
                self._observe(now - began)
            else:
                task = self._loop.create_task(self.__rsgi__(scope, proto))
                # The loop itself holds its tasks weakly.
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        method, path = scope.method, scope.path
        try:
            await self._any(method, path, scope, proto, monotonic())
        except DwsError as error:
            self._not_now(proto, error)
        except Exception:
            _log.exception("%s %s", method, ascii(path[:200]))
            proto.response_str(500, TEXT_HEADERS, "this is a fault of the gateway; its log says more\n")

    def _redirect(
        self, path_quoted: str, version: int, holders: list[int], extra: str
    ) -> pages.Headers | None:
        """Headers that lead to the first of the holders that has an HTTP endpoint; None if none has."""
        http = self._lookups.http
        urls = [http[number] for number in holders if number in http]
        if not urls:
            return None
        target = f"{path_quoted}?v={format_version(version)}"
        headers = [("location", f"{urls[0]}{target}{extra}"), NO_STORE, ANY_ORIGIN]
        if len(urls) > 1:
            headers.append(("link", f"<{urls[1]}{target}>; rel=duplicate"))
        return headers

    # -- everything else ---------------------------------------------------------------------------

    async def _any(self, method: str, path: str, scope: Any, proto: Any, began: float) -> None:
        if method == "OPTIONS":
            proto.response_empty(204, _PREFLIGHT)
        elif path == "/health" or path.startswith(RESERVED_PREFIX) or path == RESERVED_PREFIX[:-1]:
            await self._reserved(method, path, scope, proto)
        elif method in ("GET", "HEAD"):
            await self._page(path, scope.query_string, proto, began)
        elif method in ("PUT", "DELETE"):
            await self._upload(path, proto)
        else:
            proto.response_str(405, [*TEXT_HEADERS, _ALLOW], f"{method[:20]} is not known here\n")

    async def _page(self, path: str, query: str, proto: Any, began: float) -> None:
        """A page that is not simply there: a directory, one that a server sent back, one there is not."""
        is_directory = path.endswith("/")
        name = path + INDEX if is_directory else path
        fault = _fault(name)
        if fault:
            proto.response_str(_status_of(name), PAGE_HEADERS, pages.bad_name(fault))
            return
        avoid = _sent_back_by(query)
        if avoid is None:
            proto.response_str(400, TEXT_HEADERS, "not= is a list of server numbers, such as not=1,2\n")
            return
        if len(avoid) > NOT_MAX:
            self._unavailable(proto, f"{len(avoid)} servers were asked for it, and none had it.")
            return
        # The index of a directory that was asked for without its slash, if there is no such page.
        index = "" if is_directory or _fault(f"{path}/{INDEX}") else f"{path}/{INDEX}"
        located = await self._lookups.locate_avoiding([name, index] if index else [name], avoid)
        found = located.pages[0]
        if found is not None:
            # A balancer names a holder that is complained of if there is no other.
            holders = [number for number in found[4] if number not in avoid]
            sent_back = f"&not={','.join(map(str, avoid))}" if avoid else ""
            redirect = self._redirect(quoted(name), found[0], holders, sent_back)
            if redirect is None:
                self._unavailable(proto, _why_unavailable(located, bool(avoid)))
                return
            proto.response_empty(302, redirect)
            self._observe(monotonic() - began)
        elif index and located.pages[1] is not None:
            proto.response_empty(302, [("location", quoted(path) + "/"), NO_STORE, ANY_ORIGIN])
        elif path == "/":
            await self._no_front_page(proto)
        else:
            proto.response_str(404, PAGE_HEADERS, pages.not_found(path))

    async def _no_front_page(self, proto: Any) -> None:
        count = (await self._lookups.status()).pages
        if count:
            proto.response_str(404, PAGE_HEADERS, pages.no_index(count))
        else:
            proto.response_str(200, PAGE_HEADERS, pages.empty(self.url))

    async def _upload(self, path: str, proto: Any) -> None:
        """To a server, before the body is read: it is asked for, or sent, there."""
        fault = _fault(path)
        if fault:
            proto.response_str(_status_of(path), TEXT_HEADERS, f"a page's name {fault}\n")
            return
        endpoint = await self._lookups.upload_endpoint()
        proto.response_empty(307, [("location", endpoint + quoted(path)), NO_STORE, ANY_ORIGIN])

    async def _reserved(self, method: str, path: str, scope: Any, proto: Any) -> None:
        if await self._figures.handle(path, scope, proto):
            return
        if method not in ("GET", "HEAD"):
            allow = ("allow", "GET, HEAD, OPTIONS")
            proto.response_str(405, [*TEXT_HEADERS, allow], f"{path[:200]} can be read only\n")
        elif path == "/health":
            proto.response_bytes(200, JSON_HEADERS, self._health)
        elif path == "/_dws/livez":
            proto.response_str(200, TEXT_HEADERS, "ok\n")
        elif path == "/_dws/readyz":
            await self._lookups.ask(Ping())
            proto.response_str(200, TEXT_HEADERS, "ok\n")
        elif path.startswith(_WHY):
            await self._why(path[len(_WHY) - 1 :], proto)
        else:
            proto.response_str(404, PAGE_HEADERS, pages.not_found(path))

    async def _why(self, name: str, proto: Any) -> None:
        """How a lookup of this page would be decided now, as `dws why --json` says it."""
        if name.endswith("/"):
            name += INDEX
        fault = _fault(name)
        if fault:
            body = {"name": name[:NAME_MAX_BYTES], "error": f"a page's name {fault}"}
            proto.response_bytes(_status_of(name), JSON_HEADERS, _json.encode(body))
            return
        told = await self._lookups.ask(Why(name))
        if not isinstance(told, Because) or not told.version:
            body = {"name": name, "error": "there is no such page"}
            proto.response_bytes(404, JSON_HEADERS, _json.encode(body))
            return
        body = to_plain(told) | {"name": name, "version": format_version(told.version)}
        proto.response_bytes(200, JSON_HEADERS, _json.encode(body))

    # -- not now --------------------------------------------------------------------------------------

    def _not_now(self, proto: Any, error: DwsError) -> None:
        now = monotonic()
        if now - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = now
            _log.warning("answered 503: %s", error)
        if isinstance(error, Unreachable):
            self._unavailable(proto, "The cluster's balancer gives no answer: it may be starting.")
        else:
            self._unavailable(proto, f"{str(error)[:1].upper()}{str(error)[1:]}.")

    def _unavailable(self, proto: Any, why: str) -> None:
        self._figures.redirects.failed()
        proto.response_str(503, [*PAGE_HEADERS, _RETRY_AFTER], pages.not_now(why))


def _fault(name: str) -> str | None:
    if "\N{REPLACEMENT CHARACTER}" in name:
        # What Granian makes of percent-encoded bytes that are no UTF-8.
        return "is not valid UTF-8"
    return name_fault(name)


def _status_of(name: str) -> int:
    """For a name with a fault: 414 if it is its length."""
    return 414 if len(name.encode()) > NAME_MAX_BYTES else 400


def _sent_back_by(query: str) -> list[int] | None:
    """The servers that `not=1,2` in a query names; None if that cannot be read. Other fields mean nothing."""
    for field in query.split("&"):
        key, _, value = field.partition("=")
        if key == "not" and value:
            numbers = value.replace("%2C", ",").replace("%2c", ",").split(",")
            if len(value) > 200 or not all(each.isascii() and each.isdigit() for each in numbers):
                return None
            found = list(dict.fromkeys(map(int, numbers)))
            return found if max(found) <= 65_535 else None
    return []


def _why_unavailable(located: Located, sent_back: bool) -> str:
    """Why a page that there is has no holder with an HTTP endpoint."""
    for later in located.later:
        if later.index == 0:
            if later.retry_s:
                return "The servers that may hold this page are not in sync yet."
            return f"No live server holds this page; it was last on {later.last or 'a server that is gone'}."
    if sent_back:
        return "No other server holds this page now."
    return "No server that holds this page can be reached by browsers now."


class GatewaySettings(Struct, frozen=True, kw_only=True):
    """host: what it binds and, unless `advertise` says otherwise, announces. data: where node.json goes."""

    name: str
    balancer: str
    bind: str
    advertise: str
    port: int
    data: Path | None = None


def serve(settings: GatewaySettings) -> int:
    """Run a gateway until SIGINT or SIGTERM."""
    from dws.http.server import run_http
    from dws.nodes.endpoints import advertised, announce, withdraw

    host = advertised(settings.bind, settings.advertise)
    gateway = Gateway(settings.name, settings.balancer)

    def listening(port: int) -> None:
        gateway.url = url = f"http://{host}:{port}"
        _log.info("%s serves %s at %s/", settings.name, settings.balancer, url)
        if settings.data is not None:
            announce(settings.data, ROLE, settings.name, url)

    try:
        run_http(gateway, settings.bind, settings.port, listening)
    finally:
        if settings.data is not None:
            withdraw(settings.data)
    return 0
