"""What servers say that cannot be true: refused, counted, logged once; no page is lost or dropped for it."""

import pytest

from dws.events import Answered
from dws.limits import BATCH_MAX_PAGES
from dws.messages import Change, CopyFailed, Drop, Error, Locate, ManifestPage, Status, Stored
from dws.names import bucket_of, make_version
from tests.dws.desk import HASTY, Desk, batch_id, page, record

MINUTE = HASTY.garbage_s


@pytest.fixture
def desk() -> Desk:
    desk = Desk("web-1", "web-2", "web-3")
    desk.put(1, "/a", on=("web-1", "web-2"))
    desk.take_jobs()
    return desk


def counted(desk: Desk, what: str) -> int:
    return int(desk.get(Status()).counters.get(what, 0))


def assert_unharmed(desk: Desk) -> None:
    """/a is where it was, and no drop of it was ordered."""
    desk.wait(2 * MINUTE)
    assert len(desk.get(Locate(["/a"])).pages[0][4]) == 2
    assert not any(each.name == "/a" for job in desk.take_jobs(Drop) for each in job.message.records)
    desk.balancer.catalog.check()


def test_a_stored_for_a_batch_never_reserved(desk: Desk) -> None:
    never = record("/never", make_version(desk.epoch, 1 << 20))
    desk.store_on(desk.figures["web-3"], never)
    assert counted(desk, "impossible: versions that were never given") == 1
    assert len([line for line in desk.log if "never given" in line and "/never" in line]) == 1
    assert desk.version("/never") == 0
    assert_unharmed(desk)


def test_versions_of_an_epoch_to_come_are_kept_and_reported(desk: Desk) -> None:
    """Of two truths one is wrong, and it is not for this balancer to say which."""
    later = record("/a", make_version(desk.epoch + 5, 1), b"later")
    desk.store_on(desk.figures["web-3"], later)
    assert counted(desk, "impossible: versions that were never given") == 1
    assert_unharmed(desk)
    assert ("/a", later.version) in desk.figures["web-3"].held
    notes = {server.name: server.note for server in desk.get(Status()).servers}
    assert "keeps 1 records" in notes["web-3"]


def test_other_bytes_under_a_visible_version_are_no_copy(desk: Desk) -> None:
    wrong = record("/a", desk.version("/a"), b"other bytes")
    desk.store_on(desk.figures["web-3"], wrong)
    assert counted(desk, "impossible: other bytes for a visible version") == 1
    assert_unharmed(desk)


def test_a_manifest_full_of_nonsense(desk: Desk) -> None:
    figure = desk.figures["web-3"]
    figure.held[("/x", 7)] = record("/x", 7)  # so that there is something to be asked for
    figure.number += 1
    bucket = bucket_of(7)
    others = [record(f"/{number}", number) for number in range(1, 300)]
    nonsense = [each for each in others if bucket_of(each.version) != bucket]
    whole = desk.answer_of
    desk.answer_of = lambda each, question: (  # type: ignore[method-assign]
        ManifestPage(bucket, nonsense, b"")
        if getattr(question, "bucket", -1) == bucket
        else whole(each, question)
    )
    desk.rejoin(figure)
    assert counted(desk, "impossible: records in the wrong bucket") >= 1
    picture = desk.balancer.catalog.pictures[figure.no]
    assert not any(name == each.name for each in nonsense for name, _ in picture.strays)
    assert_unharmed(desk)


def test_an_answer_that_is_none_is_asked_for_again(desk: Desk) -> None:
    figure = desk.figures["web-3"]
    figure.restart()
    desk.hello(figure)
    (ask,) = [each for each in desk.asks if each.server == figure.no and each.tag[0] == "sums"]
    desk.asks.remove(ask)
    desk.happen(Answered(ask.tag, Error("bad-request", "what?")))
    desk.wait(1.0)
    assert next(server for server in desk.get(Status()).servers if server.name == "web-3").state == "alive"


def test_a_report_of_a_stranger_is_refused(desk: Desk) -> None:
    answer = desk.report(Stored(123, [Change(1, [record("/b", 1)], [])]))
    assert answer.code == "refused" and counted(desk, "reports of strangers") == 1
    assert_unharmed(desk)


def test_a_failure_of_a_copy_that_nobody_ordered(desk: Desk) -> None:
    figure = desk.figures["web-3"]
    for job in (0, 99):
        desk.report(CopyFailed(figure.incarnation, batch_id(9), 9, "cannot", 1, job, "integrity"))
    assert counted(desk, "impossible: failures of copies that nobody ordered") == 2
    assert not desk.asks, "nor is anybody told to verify"
    assert_unharmed(desk)


def test_a_server_that_announces_anothers_id(desk: Desk) -> None:
    victim = desk.figures["web-1"]
    older = desk.report(victim.hello(incarnation=victim.incarnation - 1, name="impostor"))
    assert older.code == "stale" and counted(desk, "hello refused: stale") == 1
    newer = desk.report(victim.hello(incarnation=victim.incarnation + 1, pages_endpoint="tcp://elsewhere:1"))
    assert not isinstance(newer, Error), "it may be a restart"
    for _ in range(30):
        desk.now += 0.1
        desk.beat(victim)  # the first one lives
    state = next(server for server in desk.get(Status()).servers if server.number == victim.no).state
    assert state == "contested" and any("contested" in line for line in desk.log)
    for number in range(10, 20):
        reserved = desk.reserve(number, page(f"/{number}"))
        assert getattr(reserved, "primary", None) is None or reserved.primary.number != victim.no
    assert desk.get(Status()).page_copies[0] == 0


def test_the_names_of_open_batches_are_bounded_in_bytes() -> None:
    from msgspec.structs import replace

    desk = Desk("web-1", "web-2", config=replace(HASTY, open_batches_bytes=2 << 20))
    answers = []
    for number in range(1, 6):
        pages = [page(f"/{number}/{index}{'x' * 900}") for index in range(BATCH_MAX_PAGES)]
        answers.append(desk.reserve(number, *pages, deadline_s=5.0))
    refused = [each for each in answers if isinstance(each, Error)]
    assert refused and {each.code for each in refused} == {"try-again"}
    assert "2,0" in refused[0].text or "bytes, over the bound" in refused[0].text
    desk.wait(6.0)
    assert not isinstance(desk.reserve(50, page("/a")), Error), "when they have ended there is room"
