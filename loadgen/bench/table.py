"""What is measured and what is wanted of it: the keys, their titles, the goals.

What lives here: the list. What must not: measuring (stages, growth), judging (figures).
"""

from typing import Final

from loadgen.bench.figures import Goal, Series

#: key → (title, unit), in the order in which a round measures.
BARE: Final = {
    "echo": ("bare ROUTER echo, 32 outstanding", "requests/s"),
    "echo-idle": ("bare ROUTER echo, one at a time: p50", "µs"),
    "chunks": ("bare chunk stream, 1 MiB not copied", "bytes/s"),
    "lmdb": ("LMDB: 4 KiB puts, 100 a commit, fsynced", "pages/s"),
    "append": ("append + fdatasync: 4 KiB, 100 each", "pages/s"),
    "append-large": ("append + fdatasync of twice 1 GiB", "bytes/s"),
}
CLUSTER: Final = {
    "lookup-idle": ("lookup, one at a time: p50", "µs"),
    "lookup-1": ("lookups, one name a request, 32 outstanding", "names/s"),
    "lookup-10": ("lookups, ten names a request, 32 outstanding", "names/s"),
    "read-1": ("4 KiB reads, one page a request, 16 outstanding", "pages/s"),
    "read-1-many": ("4 KiB reads, one page a request, 128 outstanding", "pages/s"),
    "read-10": ("4 KiB reads, ten pages a request, 16 outstanding", "pages/s"),
    "read-10-many": ("4 KiB reads, ten pages a request, 128 outstanding", "pages/s"),
    "read-40": ("4 KiB reads, forty pages a request, 16 outstanding", "pages/s"),
    "read-40-many": ("4 KiB reads, forty pages a request, 128 outstanding", "pages/s"),
    "put-100": ("4 KiB writes, batches of 100, two fsynced copies", "pages/s"),
    "put-1": ("4 KiB writes one at a time, 16 clients, two fsynced", "pages/s"),
    "open-p50": ("open load at half of capacity: p50", "µs"),
    "open-p99": ("open load at half of capacity: p99", "µs"),
    "up": ("one 1 GiB page up, two fsynced copies", "bytes/s"),
    "down": ("one 1 GiB page down, digests checked", "bytes/s"),
}
WEED: Final = {
    "weed-lookup": ("SeaweedFS master /dir/lookup, wrk -t1 -c32", "names/s"),
    "weed-write": ("weed benchmark -c 16 -replication 001: writes", "pages/s"),
    "weed-read": ("weed benchmark -c 16: reads", "pages/s"),
    "weed-read-many": ("weed benchmark -c 128: reads", "pages/s"),
}
HTTP_DWS: Final = {
    "http-gateway": ("dws gateway: redirect with lookup, wrk -t1 -c32", "requests/s"),
    "http-endpoint": ("dws endpoint: 4 KiB page", "requests/s"),
    "http-endpoint-large": ("dws endpoint: 256 MiB page, -c4", "bytes/s"),
}
HTTP_WEED: Final = {"http-weed": ("SeaweedFS volume server: 4 KiB file", "requests/s")}
HTTP_NGINX: Final = {
    "http-nginx": ("nginx, one worker: 4 KiB file", "requests/s"),
    "http-nginx-large": ("nginx, one worker: 256 MiB file, -c4", "bytes/s"),
}
GROWTH: Final = {
    "grow-lookup-few": ("lookup at 1,000 pages: the balancer's CPU a name", "µs"),
    "grow-lookup-many": ("lookup at 1,000,000 pages: the balancer's CPU a name", "µs"),
    "grow-memory": ("balancer's own memory a page, at 1,000,000", "bytes"),
    "grow-sync": ("page copies synchronised after a start", "copies/s"),
    "grow-put-fresh": ("puts into an empty cluster", "pages/s"),
    "grow-put-old": ("puts after overwriting everything ten times", "pages/s"),
    "grow-space-5": ("bytes on disk after overwriting five times", "MB"),
    "grow-space-10": ("bytes on disk after overwriting ten times", "MB"),
    "grow-cpu-one-2": ("CPU a page read, one a request, 8 outstanding a server, 2 servers", "µs"),
    "grow-cpu-one-8": ("CPU a page read, one a request, 8 outstanding a server, 8 servers", "µs"),
    "grow-cpu-2": ("CPU a page read, ten a request, 16 outstanding, 2 servers", "µs"),
    "grow-cpu-8": ("CPU a page read, ten a request, 16 outstanding, 8 servers", "µs"),
}
ROUNDS: Final = {**BARE, **CLUSTER, **WEED, **HTTP_DWS, **HTTP_WEED, **HTTP_NGINX}
ALL: Final = {**ROUNDS, **GROWTH}

GOALS: Final = (
    Goal("lookup-1", "weed-lookup", 1.5, "lookups, one name a request, against SeaweedFS's"),
    Goal("lookup-10", "weed-lookup", 10, "lookups, ten names a request, names against SeaweedFS's"),
    Goal("read-1", "weed-read", 1.5, "4 KiB reads, one page a request, against weed benchmark"),
    Goal("read-10", "weed-read", 5, "4 KiB reads, ten pages a request, against weed benchmark"),
    Goal("read-40", "weed-read", 8, "4 KiB reads, forty pages a request, against weed benchmark"),
    Goal("read-1-many", "weed-read-many", 1.5, "one page a request, 128 outstanding on both sides"),
    Goal("read-10-many", "weed-read-many", 5, "ten pages a request, 128 outstanding"),
    Goal("read-40-many", "weed-read-many", 8, "forty pages a request, 128 outstanding"),
    Goal("put-100", "weed-write", 6, "4 KiB writes, batches of 100, fsynced, against weed, not fsynced"),
    Goal("put-1", "weed-write", 1, "4 KiB writes one at a time, fsynced, against weed, not fsynced"),
    Goal("down", "chunks", 0.6, "1 GiB down against the bare chunk stream"),
    Goal("up", "append-large", 0.6, "1 GiB up against append + fdatasync of 2 GiB"),
    Goal("lookup-idle", "echo-idle", 1.5, "p50 of a lone lookup against the bare echo's", at_most=True),
    Goal("open-p99", "open-p50", 10, "p99 against p50, open load, half of capacity", at_most=True, aim=True),
    Goal("lookup-1", "echo", None, "lookups, one name a request, against the bare echo"),
    Goal("read-1", "echo", None, "4 KiB reads, one page a request, against the bare echo"),
    Goal("put-100", "lmdb", None, "4 KiB writes, batches of 100, against LMDB's commits, one copy"),
    Goal("http-gateway", "weed-lookup", 1.0, "HTTP redirects against SeaweedFS's lookups"),
    Goal("http-endpoint", "http-weed", 1.8, "4 KiB by HTTP against SeaweedFS"),
    Goal("http-endpoint", "http-nginx", 0.8, "4 KiB by HTTP against nginx"),
    Goal("http-endpoint-large", "http-nginx-large", 0.5, "256 MiB by HTTP against nginx, bytes a second"),
    Goal("grow-lookup-many", "grow-lookup-few", 1.5, "a lookup's cost at 1,000,000 pages", at_most=True),
    Goal("grow-memory", "", 400, "balancer's own memory, bytes a page", at_most=True),
    Goal("grow-sync", "", 200_000, "page copies synchronised a second"),
    Goal("grow-put-old", "grow-put-fresh", 0.8, "puts after overwriting ten times against fresh ones"),
    Goal("grow-space-10", "grow-space-5", 1.2, "space, overwritten ten times against five", at_most=True),
    Goal("grow-cpu-one-8", "grow-cpu-one-2", 1.2, "CPU a page read, 8 servers against 2", at_most=True),
    Goal("grow-cpu-8", "grow-cpu-2", 1.2, "the same, ten a request, no more load", at_most=True),
)  # fmt: skip

#: For --only: what to say for several keys at once.
GROUPS: Final = {
    "bare": tuple(BARE),
    "cluster": tuple(CLUSTER),
    "weed": tuple(WEED),
    "http": (*HTTP_DWS, *HTTP_WEED, *HTTP_NGINX),
    "lookups": ("echo", "echo-idle", "lookup-idle", "lookup-1", "lookup-10", "weed-lookup"),
    "reads": (
        "echo",
        "read-1",
        "read-10",
        "read-40",
        "weed-read",
        "read-1-many",
        "read-10-many",
        "read-40-many",
        "weed-read-many",
    ),
    "writes": ("lmdb", "append", "put-100", "put-1", "weed-write"),
    "large": ("chunks", "append-large", "up", "down"),
    "open": ("open-p50", "open-p99"),
    "growth": tuple(GROWTH),
}


def chosen(only: tuple[str, ...], *, growth: bool) -> list[str]:
    """The keys that these words stand for; KeyError with those that stand for none."""
    if not only:
        return [*ROUNDS, *(GROWTH if growth else ())]
    unknown = [word for word in only if word not in ALL and word not in GROUPS]
    if unknown:
        raise KeyError(", ".join(unknown))
    wanted = {key for word in only for key in GROUPS.get(word, (word,))}
    wanted |= set(GROWTH) if growth else set()
    return [key for key in ALL if key in wanted]


def goals_of(keys: list[str]) -> list[Goal]:
    """Those whose sides are both measured."""
    return [goal for goal in GOALS if goal.subject in keys and (not goal.peer or goal.peer in keys)]


def series_of(key: str) -> Series:
    return Series(key, *ALL[key])
