"""What can go wrong, as types, and the codes by which errors cross the wire.

What lives here: the exceptions that users of the client see, and the one table
that maps a wire code to its exception. What must not: errors of the patterns
themselves (patterns/errors.py), which know nothing of pages.

A *remote* fault (a peer's malformed message, a late reply) never leaves a node
as an exception: it becomes an Error reply or a counted drop. What is raised
here is raised to the caller of the client, the CLI, or a node's operator.
"""

from typing import Final


class DwsError(Exception):
    """The base of all that dws raises on purpose."""

    code = "failed"


class BadName(DwsError):
    """A page name breaks a rule of names; the text says which."""

    code = "bad-name"


class BadRequest(DwsError):
    """The peer could not read the request or did not expect it."""

    code = "bad-request"


class OverBound(DwsError):
    """Something is larger than a bound of the protocol; the text names the bound."""

    code = "over-bound"


class NotFound(DwsError):
    """The catalog does not name the page: there is none."""

    code = "not-found"


class Unavailable(DwsError):
    """The page exists, but no live server holds it; the text says who held it last."""

    code = "unavailable"


class TryAgain(DwsError):
    """Not now, for a known reason that passes; the client retries by itself until its deadline."""

    code = "try-again"


class TooFewServers(DwsError):
    """Fewer eligible servers than copies asked for: nothing was stored."""

    code = "too-few-servers"


class Full(DwsError):
    """No server has room for the upload; what was there stays readable."""

    code = "full"


class Conflict(DwsError):
    """A condition of the batch does not hold; nothing of it is visible."""

    code = "conflict"


class NeverStored(DwsError):
    """The batch was not decided in time and now never will be."""

    code = "never"


class IntegrityError(DwsError):
    """Bytes do not match their digest, on every copy that could be reached."""

    code = "integrity"


class Stale(DwsError):
    """The request names an epoch or incarnation that has passed."""

    code = "stale"


class NotHeld(DwsError):
    """This server does not hold that version of that page."""

    code = "not-held"


class WrongCluster(DwsError):
    """The peer belongs to another cluster."""

    code = "wrong-cluster"


class WrongVersion(DwsError):
    """The peer speaks another version of the protocol."""

    code = "wrong-version"


class BehindCatalog(DwsError):
    """A balancer's catalog is older than what the cluster has already seen."""

    code = "behind"


class Refused(DwsError):
    """The peer understood and will not do it; the text says why."""

    code = "refused"


class Unreachable(DwsError):
    """No answer from the endpoint named in the text, for as long as the text says."""

    code = "unreachable"


class TimedOut(DwsError):
    """The deadline passed while peers were reachable."""

    code = "timed-out"


class OutcomeUnknown(DwsError):
    """The balancer could not be asked, until the deadline, whether a put or rm took effect."""

    code = "outcome-unknown"


class WrongThread(DwsError):
    """A client was used by a thread other than the one that opened it."""

    code = "wrong-thread"


class ConfigError(DwsError):
    """A setting, or a relation between settings, is not possible; the text says which."""

    code = "config"


BY_CODE: Final[dict[str, type[DwsError]]] = {
    kind.code: kind
    for kind in (
        BadName, BadRequest, OverBound, NotFound, Unavailable, TryAgain, TooFewServers, Full, Conflict,
        NeverStored, IntegrityError, Stale, NotHeld, WrongCluster, WrongVersion, BehindCatalog, Refused,
        Unreachable, TimedOut, OutcomeUnknown,
    )
}  # fmt: skip


def from_code(code: str, text: str) -> DwsError:
    """The exception for an Error reply; an unknown code becomes a plain DwsError that shows it."""
    kind = BY_CODE.get(code)
    return kind(text) if kind else DwsError(f"{code}: {text}")
