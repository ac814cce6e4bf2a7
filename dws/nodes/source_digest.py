"""Which code this is: a digest over the sources of the machines.

What lives here: that digest. What must not: versions, which say what code was
released, and change less often than it.
"""

from functools import cache
from pathlib import Path

from blake3 import blake3

import dws
import patterns

_DIGEST_BYTES = 8


@cache
def source_digest() -> str:
    """Of all modules that lie directly in dws/ and patterns/: what decides how a machine acts."""
    digest = blake3()
    for package in (dws, patterns):
        for path in sorted(Path(next(iter(package.__path__))).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest(length=_DIGEST_BYTES)
