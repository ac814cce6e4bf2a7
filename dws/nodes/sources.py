"""Where the bytes of a put come from: memory, a file, a stream.

What lives here: the implementations of upload.Source. A file is read where it
is asked; a stream only once, from its beginning to its end.
"""

import os
from pathlib import Path
from typing import Protocol

from msgspec import Struct


class Readable(Protocol):
    def read(self, length: int, /) -> bytes: ...


class SizedStream(Struct):
    """A stream whose size is known before it is read: room can be asked for. size -1: it is not."""

    stream: Readable
    size: int


class BytesSource:
    rereadable = True

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        if offset == 0 and length >= len(self._data):
            return self._data
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


class FileSource:
    rereadable = True

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        os.close(self._fd)


class StreamSource:
    """The stream itself belongs to the caller, who closes it."""

    rereadable = False

    def __init__(self, stream: Readable) -> None:
        self._stream = stream

    def read(self, offset: int, length: int) -> bytes:
        # A pipe may return less than was asked for before its end.
        parts = []
        while length > 0:
            part = self._stream.read(length)
            if not part:
                break
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        pass
