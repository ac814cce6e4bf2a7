"""Two kinds of protocol error, kept apart in every pattern.

RemoteError: the peer broke the protocol. The machine that raises it is left as
it was and stays usable; a shell counts it and goes on.
LocalError: the caller broke the machine's contract. That is a bug in this
program, so nothing should catch it.

Both carry the machine's recent history of events, oldest first.
"""

from collections.abc import Iterable


class PatternError(Exception):
    def __init__(self, text: str, history: Iterable[str] = ()) -> None:
        self.text = text
        self.history = tuple(history)
        lines = "".join(f"\n  {event}" for event in self.history)
        super().__init__(f"{text}\nrecent events, oldest first:{lines}" if lines else text)


class RemoteError(PatternError):
    """The peer's fault."""


class LocalError(PatternError):
    """Our own fault."""
