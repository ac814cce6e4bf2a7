"""dws: a replicated web-page cluster made of ZeroMQ message patterns.

    import dws
    with dws.connect("tcp://127.0.0.1:5600") as client:
        client.put({"/hello.html": b"<h1>Hello</h1>"})
        print(client.get("/hello.html"))

Exports are lazy, so that importing a pure machine loads no sockets.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dws.nodes.client import Client as Client
    from dws.nodes.client import connect as connect

__version__ = "0.1.0"

_EXPORTS = {"Client": "dws.nodes.client", "connect": "dws.nodes.client"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    errors = import_module("dws.errors")
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.DwsError):
        return kind
    raise AttributeError(f"module 'dws' has no attribute {name!r}")
