"""Pages over HTTP: GET and PUT at a gateway, following where it leads, on connections that are kept.

What lives here: a Scenario of pages for anything that speaks HTTP, and asking a gateway who its servers are.
What must not: threads, figures. One URL is one page; a request of several asks for them in turn.

Where an answer's ETag is a BLAKE3 digest, as a dws cluster's are, the page is checked against it. A
connection that the other side has closed while it was idle is opened again once, as browsers do; nothing
else is tried twice.
"""

import json
from collections import Counter
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, RemoteDisconnected
from pathlib import Path
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from blake3 import blake3

from dws.errors import IntegrityError
from loadgen.plan import Kind, PlanError
from loadgen.scenarios import Done, PageRequest, PageRequests, Scenario, Turns
from loadgen.talk import Work

_REDIRECTS_MAX: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_DIGEST_CHARS: Final = 64
_PATH_SAFE: Final = "/:@!$&'()*+,;="
#: Servers that a thread keeps a connection to.
_CONNECTIONS_MAX: Final = 1024


class HttpError(Exception):
    """An answer that is no success. `kind` says which."""

    def __init__(self, status: int, path: str, text: str = "") -> None:
        super().__init__(f"{path}: {text or 'the answer was ' + str(status)}")
        self.kind = f"HTTP {status}"


def check_url(url: str) -> str:
    """The URL without a slash at its end; PlanError if it is none."""
    parts = urlsplit(url)
    try:
        fault = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        fault = True
    if fault or parts.query or parts.fragment:
        raise PlanError(f"{url!r} is no URL of the form http://HOST:PORT")
    return url.rstrip("/")


def servers_behind(url: str, timeout_s: float) -> dict[str, str]:
    """HOST:PORT → name of the web servers behind a dws gateway; empty if it is something else.

    OSError or HTTPException if there is no answer.
    """
    links = Links(timeout_s)
    try:
        status, _, body = links.ask("GET", f"{url}/_dws/status")
        servers = json.loads(body)["cluster"]["servers"] if status == 200 else []
        return {urlsplit(one["http_endpoint"]).netloc: str(one["name"]) for one in servers}
    except (ValueError, KeyError, TypeError):
        return {}
    finally:
        links.close()


class Links:
    """Connections that are kept, one for each server."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._links: dict[tuple[str, str], HTTPConnection] = {}

    def ask(self, method: str, url: str, body: bytes | None = None) -> tuple[int, HTTPResponse, bytes]:
        """One request, one answer, read to its end."""
        scheme, _, netloc, *rest = url.split("/", 3)
        path = "/" + "".join(rest)
        key = (scheme, netloc)
        link = self._links.get(key)
        if link is not None and link.sock is not None:
            try:
                return self._exchange(key, link, method, path, body)
            except (RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                pass  # closed while it was idle, which no one is told of before
        return self._exchange(key, self._new(key), method, path, body)

    def _exchange(
        self, key: tuple[str, str], link: HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, HTTPResponse, bytes]:
        try:
            link.request(method, path, body)
            answer = link.getresponse()
            data = answer.read()
        except BaseException:
            link.close()
            self._links.pop(key, None)
            raise
        return answer.status, answer, data

    def _new(self, key: tuple[str, str]) -> HTTPConnection:
        if len(self._links) >= _CONNECTIONS_MAX:
            self.close()
        scheme, netloc = key
        kind = HTTPSConnection if scheme == "https:" else HTTPConnection
        made = self._links[key] = kind(netloc, timeout=self._timeout_s)
        return made

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()


class HttpScenario(Scenario):
    """GETs and PUTs below a URL."""

    def __init__(self, work: Work, thread: int, names: Mapping[str, str], turns: Turns | None = None) -> None:
        self._base = work.http
        self._links = Links(work.timeout_s)
        self._names = names
        self._served: Counter[str] = Counter()
        self._requests = PageRequests(work, thread, turns)

    @property
    def served(self) -> Mapping[str, int]:
        return self._served

    def make(self, kind: Kind) -> PageRequest:
        return self._requests.make(kind)

    def restart(self) -> None:
        self._requests.restart()

    def perform(self, request: PageRequest) -> Done:
        size = 0
        if isinstance(request, list):
            for name in request:
                size += len(self._page("GET", name))
            return Done(len(request), size)
        for name, source in request.items():
            data = source.read_bytes() if isinstance(source, Path) else source
            self._page("PUT", name, data)
            size += len(data)
        return Done(len(request), size)

    def _page(self, method: str, name: str, body: bytes | None = None) -> bytes:
        url = self._base + quote(name, safe=_PATH_SAFE)
        for _ in range(_REDIRECTS_MAX):
            status, answer, data = self._links.ask(method, url, body)
            if status not in _REDIRECTS:
                break
            url = urljoin(url, answer.headers.get("location", ""))
        else:
            raise HttpError(status, name, f"more than {_REDIRECTS_MAX} redirects, the last to {url}")
        if not 200 <= status < 300:
            raise HttpError(status, name)
        if method == "GET":
            _check(name, data, answer.headers.get("etag", ""))
            netloc = url.split("/", 3)[2]
            self._served[self._names.get(netloc, netloc)] += 1
        return data

    def close(self) -> None:
        self._links.close()


def open_http(turns: Turns | None, work: Work, thread: int) -> Scenario:
    """One thread's scenario; OSError or HTTPException if nobody answers at the URL."""
    return HttpScenario(work, thread, servers_behind(work.http, work.timeout_s), turns)


def _check(name: str, data: bytes, etag: str) -> None:
    digest = etag.strip('"')
    if len(digest) == _DIGEST_CHARS and blake3(data).hexdigest() != digest:
        raise IntegrityError(f"{name} is not what its ETag says")
