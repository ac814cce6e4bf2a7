"""Rates, shares, percentiles and history of the dashboard, from answers made by hand."""

from typing import Any

import msgspec
import pytest

from dws.http.figures import EVENT_MAX_BYTES, _bounded
from dws.http.watch import BUCKETS, FIELDS, HISTORY, Watch, quantile, rise, rises
from dws.limits import RESPONSE_BOUNDS_S
from dws.messages import ClusterStatus, NodeStatsAre, RecentChoice, ServerStatus

NONE = [0] * BUCKETS


def server(number: int, served: int = 0, incarnation: int = 1, **fields: Any) -> ServerStatus:
    values: dict[str, Any] = dict.fromkeys(ServerStatus.__struct_fields__, 0)
    values |= {"number": number, "name": f"web-{number}", "state": "alive", "endpoint": f"tcp://x:{number}"}
    values |= {
        "note": "",
        "http_endpoint": f"http://x:{number}",
        "served": served,
        "incarnation": incarnation,
    }
    return ServerStatus(**values | fields)


def status(servers: list[ServerStatus], lookups: int = 0, epoch: int = 1, **fields: Any) -> ClusterStatus:
    values = ClusterStatus(
        b"c" * 16, epoch, 0, "least-load", 2, 10, 1000, [0, 1, 9, 0], 1, 2, 60.0, lookups, servers,
        {"orders open": 3}, [],
    )  # fmt: skip
    return msgspec.structs.replace(values, **fields)


def stats(number: int, response: list[int], hot: list[tuple[str, int, int]] | None = None) -> NodeStatsAre:
    return NodeStatsAre(f"web-{number}", 30.0, 1.0, {}, hot or [], [], response)


def bucket(index: int, count: int) -> list[int]:
    return [count if each == index else 0 for each in range(BUCKETS)]


@pytest.mark.parametrize(
    ("before", "now", "risen"),
    [(None, 500, 0), (10, 10, 0), (10, 25, 15), (25, 10, 10), (5, 0, 0)],
    ids=["first sight", "still", "rose", "began anew", "began anew and did nothing"],
)
def test_rise(before: int | None, now: int, risen: int) -> None:
    assert rise(before, now) == risen
    assert rises(None if before is None else [before], [now]) == [risen]


def test_a_histogram_that_fell_anywhere_began_anew() -> None:
    assert rises([5, 5], [7, 4]) == [7, 4]
    assert rises([5], [7, 4]) == [0, 0], "another version's buckets"


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        (NONE, 0.5, None),
        (bucket(0, 4), 0.5, RESPONSE_BOUNDS_S[0] / 2),
        (bucket(3, 10), 1.0, RESPONSE_BOUNDS_S[3]),
        (bucket(BUCKETS - 1, 3), 0.5, RESPONSE_BOUNDS_S[-1]),
        ([90, *[0] * (BUCKETS - 2), 10], 0.99, RESPONSE_BOUNDS_S[-1]),
        ([90, 10, *[0] * (BUCKETS - 2)], 0.95, (RESPONSE_BOUNDS_S[0] + RESPONSE_BOUNDS_S[1]) / 2),
    ],
)
def test_quantile(counts: list[int], share: float, seconds: float | None) -> None:
    assert quantile(counts, share) == (None if seconds is None else pytest.approx(seconds))


def test_rates_are_differences_over_time_and_the_first_answer_shows_none() -> None:
    watch = Watch("gateway")
    watch.take(status([server(1, 1000), server(2, 0)], 5000), [stats(1, bucket(3, 9))], NONE, 0, 10.0)
    assert not watch.points
    watch.take(
        status([server(1, 1030), server(2, 10)], 5100), [stats(1, bucket(3, 12))], bucket(2, 4), 2, 12.0
    )
    feed = watch.feed(12.5)
    point = dict(zip(FIELDS, feed["point"], strict=True))
    assert (point["t"], point["served"], point["lookups"], point["redirects"]) == (12.0, 20.0, 50.0, 2.0)
    assert point["failed"] == 1.0
    assert RESPONSE_BOUNDS_S[2] < point["p50"] <= RESPONSE_BOUNDS_S[3]
    assert [each["share"] for each in feed["servers"]] == [0.75, 0.25]
    assert [each["rate"] for each in feed["servers"]] == [15.0, 5.0]
    assert feed["age"] == 0.5 and feed["cluster"]["orders"] == 3


def test_a_server_or_a_balancer_that_began_anew_makes_no_negative_or_huge_rate() -> None:
    watch = Watch("gateway")
    watch.take(status([server(1, 9000)], 100_000), [], NONE, 0, 0.0)
    watch.take(status([server(1, 7, incarnation=2)], 20, epoch=2), [], NONE, 0, 1.0)
    assert watch.feed(1.0)["now"]["served"] == 0.0
    assert watch.feed(1.0)["now"]["lookups"] == 0.0
    watch.take(status([server(1, 9, incarnation=2)], 24, epoch=2), [], NONE, 0, 2.0)
    assert watch.feed(2.0)["now"]["served"] == 1.0
    assert watch.feed(2.0)["now"]["lookups"] == 2.0


def test_a_poll_that_failed_is_a_gap_and_says_why() -> None:
    watch = Watch("gateway")
    watch.take(status([server(1, 0)]), [], NONE, 0, 0.0)
    watch.lost("no answer", 1.0)
    feed = watch.feed(9.0)
    assert feed["error"] == "no answer" and feed["age"] == 9.0
    assert feed["point"] == [1.0, *[None] * (len(FIELDS) - 1)]
    watch.take(status([server(1, 5)]), [], NONE, 0, 2.0)
    assert watch.feed(2.0)["error"] == ""


def test_never_heard_of_the_cluster() -> None:
    watch = Watch("gateway")
    watch.lost("no answer", 1.0)
    assert watch.feed(2.0)["age"] is None


def test_history_is_bounded() -> None:
    watch = Watch("gateway")
    for second in range(HISTORY + 50):
        watch.take(status([server(1, second)]), [], NONE, 0, float(second))
    assert len(watch.points) == HISTORY
    assert watch.points[-1][0] == HISTORY + 49


def test_hot_pages_are_merged_over_servers_and_remembered_between_questions() -> None:
    watch = Watch("gateway")
    servers = [server(1), server(2)]
    answers = [stats(1, NONE, [("/a", 5, 50), ("/b", 9, 90)]), stats(2, NONE, [("/a", 7, 70)])]
    watch.take(status(servers), answers, NONE, 0, 0.0)
    watch.take(status(servers), [stats(1, NONE), stats(2, NONE)], NONE, 0, 1.0)
    assert watch.feed(1.0)["hot"] == [
        {"name": "/a", "visits": 12, "bytes": 120, "servers": 2},
        {"name": "/b", "visits": 9, "bytes": 90, "servers": 1},
    ]
    watch.take(status(servers[1:]), [], NONE, 0, 2.0)
    assert [each["name"] for each in watch.feed(2.0)["hot"]] == ["/a"], "of servers that are known only"


def test_the_event_is_bounded_whatever_names_there_are() -> None:
    ugly = "\U0001f4a5" * 1000
    servers = [server(n, name=ugly, note=ugly, http_endpoint="http://" + "x" * 300) for n in range(1000)]
    choices = [RecentChoice(0.1, "/" + ugly, 1, ugly, [(ugly, 1.0)] * 16, ugly)] * 20
    watch = Watch("gateway")
    hot = [("/" + ugly + str(n), 1, 1) for n in range(20)]
    for second in range(2):
        watch.take(status(servers, choices=choices), [stats(1, NONE, hot)], NONE, 0, float(second))
    event = _bounded(watch)
    assert len(event) <= EVENT_MAX_BYTES
    assert msgspec.json.decode(event)["servers_total"] == 1000


def test_of_too_many_servers_those_in_trouble_are_shown() -> None:
    servers = [server(n, state="dead" if n == 150 else "alive") for n in range(200)]
    watch = Watch("gateway")
    watch.take(status(servers), [], NONE, 0, 0.0)
    shown = watch.feed(0.0)["servers"]
    assert len(shown) == 100 and 150 in [int(each["name"][4:]) for each in shown]


def test_figures_that_are_no_numbers_never_reach_the_page() -> None:
    watch = Watch("gateway")
    odd = server(1, download_load_s=float("inf"), cpu_share=float("nan"), last_beat_age_s=float("inf"))
    watch.take(status([odd]), [], NONE, 0, 0.0)
    [shown] = watch.feed(0.0)["servers"]
    assert (shown["load"], shown["cpu"], shown["silent"]) == (None, 0, None)


def test_servers_are_in_the_order_in_which_people_count() -> None:
    watch = Watch("gateway")
    servers = [server(n, name=name) for n, name in enumerate(["web-10", "web-2", "9", "web-1", "web"])]
    watch.take(status(servers), [], NONE, 0, 0.0)
    assert [each["name"] for each in watch.feed(0.0)["servers"]] == ["9", "web", "web-1", "web-2", "web-10"]
