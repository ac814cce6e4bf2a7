"""What a page's name says of its content.

What lives here: the guess that puts make where nobody says better. Python's own
table, and what it lacks in some versions: what a name means must not depend on the
machine's files.
"""

import mimetypes
from typing import Final

_TYPES: Final = mimetypes.MimeTypes()
for _suffix, _kind in {
    ".js": "text/javascript", ".mjs": "text/javascript", ".md": "text/markdown", ".otf": "font/otf",
    ".ttf": "font/ttf", ".woff": "font/woff", ".woff2": "font/woff2", ".avif": "image/avif",
    ".webp": "image/webp",
}.items():  # fmt: skip
    _TYPES.add_type(_kind, _suffix)
_COMPRESSED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
UNKNOWN_TYPE: Final = "application/octet-stream"


def content_type(name: str) -> str:
    """The media type by the name's suffix; a compressed file is what it is, not what is in it."""
    kind, encoding = _TYPES.guess_type(name)
    if encoding is not None:
        return _COMPRESSED.get(encoding, UNKNOWN_TYPE)
    return kind or UNKNOWN_TYPE
