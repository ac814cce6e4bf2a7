"""What a web server's shell tells of its disk: ages of good reads and writes, and what the disk owes."""

from dws.nodes.webserver import _Owed


def test_an_idle_disk_owes_nothing_and_says_how_old_its_last_good_work_is() -> None:
    owed = _Owed()
    assert (owed.age(5.0), owed.wait(5.0)) == (-1.0, 0.0)
    owed.owe(5.0)
    owed.paid(6.0, good=True)
    assert (owed.age(9.0), owed.wait(9.0)) == (3.0, 0.0)


def test_waiting_counts_from_the_last_thing_that_was_done() -> None:
    owed = _Owed()
    owed.owe(5.0)
    owed.owe(7.0)
    assert owed.wait(8.0) == 3.0
    owed.paid(9.0, good=False)
    assert (owed.age(10.0), owed.wait(10.0)) == (-1.0, 1.0)
    owed.paid(11.0, good=True)
    assert owed.wait(20.0) == 0.0


def test_a_disk_that_answers_with_errors_owes_a_good_answer() -> None:
    owed = _Owed()
    for now in (5.0, 10.0):
        owed.owe(now)
        owed.paid(now, good=False)
        owed.failing(now, True)
    assert owed.wait(12.0) == 7.0
    owed.failing(15.0, False)
    assert owed.wait(16.0) == 0.0
