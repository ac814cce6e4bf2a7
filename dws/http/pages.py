"""Pages of HTTP's own: not found, not now, and what an empty cluster says.

What lives here: their HTML, whole and small, with nothing loaded from elsewhere,
and the headers they go with. What must not: routes, and pages of the cluster.
"""

import html
from typing import Final

Headers = list[tuple[str, str]]

ANY_ORIGIN: Final = ("access-control-allow-origin", "*")
NO_STORE: Final = ("cache-control", "no-store")
TEXT: Final = ("content-type", "text/plain; charset=utf-8")
JSON: Final = ("content-type", "application/json")
_HTML: Final = ("content-type", "text/html; charset=utf-8")
_NOSNIFF: Final = ("x-content-type-options", "nosniff")
_POLICY: Final = ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'")

#: For pages of this module. No cache keeps them: each tells of this moment.
PAGE_HEADERS: Final[Headers] = [_HTML, NO_STORE, ANY_ORIGIN, _NOSNIFF, _POLICY]
TEXT_HEADERS: Final[Headers] = [TEXT, NO_STORE, ANY_ORIGIN, _NOSNIFF]
JSON_HEADERS: Final[Headers] = [JSON, NO_STORE, ANY_ORIGIN, _NOSNIFF]

_SHOWN_MAX: Final = 200

_STYLE: Final = """\
:root{color-scheme:light dark}
body{font:1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:12vh auto;padding:0 1.25rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 1rem}
p{margin:.8rem 0}
code,pre{font-family:ui-monospace,monospace;font-size:.9em;background:rgba(127,127,127,.15);border-radius:.3rem}
code{padding:.1em .3em;overflow-wrap:anywhere}
pre{padding:.8rem 1rem;overflow-x:auto}
pre code{padding:0;background:none}
footer{margin-top:2.5rem;font-size:.85rem;opacity:.75}
"""


def page(title: str, body: str, footer: str = "") -> str:
    """A whole page. `title` is text; `body` and `footer` are HTML."""
    title = html.escape(title)
    foot = f"<footer>{footer}</footer>\n" if footer else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n{foot}"
        "</body>\n</html>\n"
    )


def code(text: str) -> str:
    """As HTML; long ones cut, and what would not be seen or would turn the text round is escaped."""
    shown = text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"
    visible = "".join(each if each.isprintable() else repr(each)[1:-1] for each in shown)
    return f"<code>{html.escape(visible)}</code>"


def not_found(name: str, dashboard: str = "/_dws/") -> str:
    body = (
        f"<p>There is no page {code(name)} on this cluster.</p>\n"
        "<p>Names are exact: case, spaces and the ending count. A directory shows its "
        f"{code('index.html')}, if it has one.</p>"
    )
    return page("Not found", body, _dashboard(dashboard))


def bad_name(fault: str) -> str:
    return page("No page has such a name", f"<p>A page's name {html.escape(fault)}.</p>")


def not_now(why: str, dashboard: str = "/_dws/") -> str:
    """For 503: it says to try again, as the header Retry-After does."""
    body = f"<p>{html.escape(why)}</p>\n<p>This passes: try again in a moment.</p>"
    return page("Not available now", body, _dashboard(dashboard))


def empty(gateway: str = "") -> str:
    """What the root of a cluster without pages says. `gateway`: the URL by which it can be reached."""
    put = f"curl -L -T index.html {gateway or 'http://THIS-HOST'}/index.html"
    body = (
        "<p>The cluster runs, and holds no page yet. Give it some:</p>\n"
        "<pre><code>dws put examples/site --to /</code></pre>\n"
        "<p>uploads a directory, or, without anything installed,</p>\n"
        f"<pre><code>{html.escape(put)}</code></pre>\n"
        f"<p>one page. Then load this page again: it shows {code('/index.html')}.</p>"
    )
    return page("Nothing here yet", body, _dashboard("/_dws/"))


def no_index(pages: int) -> str:
    """What the root says when there are pages but no /index.html."""
    count = "1 page" if pages == 1 else f"{pages:,} pages"
    body = (
        f"<p>This cluster holds {count}, but no {code('/index.html')} to show here.</p>\n"
        "<p>Ask for a page by its name, or list them:</p>\n<pre><code>dws ls</code></pre>"
    )
    return page("No front page", body, _dashboard("/_dws/"))


def _dashboard(url: str) -> str:
    return f'<a href="{html.escape(url)}">The cluster at work</a>' if url else ""
