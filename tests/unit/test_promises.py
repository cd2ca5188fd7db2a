import pytest

from resource_monitor.promises import Promises


def promised(size: int, *, of: int) -> Promises:
    promises = Promises()
    promises.left(of)
    promises.make(size)
    return promises


def test_without_promises_all_is_left() -> None:
    promises = Promises()
    assert promises.left(100) == 100
    assert promises.left(30) == 30
    assert promises.left(80) == 80


def test_what_is_promised_is_not_left() -> None:
    assert promised(30, of=100).left(100) == 70


def test_promises_add_up() -> None:
    promises = promised(30, of=100)
    promises.make(20)
    assert promises.total == 50
    assert promises.left(100) == 50


def test_more_than_there_is_may_be_promised() -> None:
    assert promised(130, of=100).left(100) == -30


def test_memory_that_shows_is_not_counted_twice() -> None:
    promises = promised(30, of=100)
    assert promises.left(90) == 70
    assert promises.left(70) == 70
    assert promises.left(60) == 60


def test_memory_that_comes_back_while_promises_stand_is_left_to_others() -> None:
    promises = promised(30, of=100)
    assert promises.left(150) == 120
    assert promises.left(120) == 120
    assert promises.left(110) == 110


def test_a_promise_that_ended_counts_no_more() -> None:
    promises = promised(30, of=100)
    promises.make(20)
    promises.end(30)
    assert promises.left(100) == 80
    promises.end(20)
    assert promises.left(100) == 100


def test_what_a_promise_leaves_when_it_ends_is_what_the_next_is_made_against() -> None:
    promises = promised(30, of=100)
    promises.end(30)
    promises.make(20)
    assert promises.left(80) == 80
    assert promises.left(100) == 80


def test_what_was_left_before_the_last_promise_ended_is_no_measure_for_the_next() -> None:
    promises = promised(30, of=100)
    promises.end(30)
    promises.left(60)
    promises.make(20)
    assert promises.left(60) == 40


def test_a_new_promise_is_made_against_what_was_left_then_however_long_others_have_been_there() -> None:
    promises = promised(10, of=100)
    assert promises.left(60) == 60  # others took what the first was made against
    promises.make(20)
    assert promises.left(60) == 40
    promises.end(10)
    assert promises.left(40) == 40


def test_what_was_taken_shows_and_says_nothing_of_the_rest() -> None:
    promises = promised(50, of=100)
    promises.take(30)
    assert promises.total == 20
    assert promises.left(70) == 50
    assert promises.left(50) == 50


def test_what_was_taken_is_given_back_when_nobody_holds_it_any_more() -> None:
    promises = promised(50, of=100)
    promises.take(30)
    promises.left(70)
    promises.give_back(30)
    assert promises.left(90) == 80
    assert promises.left(100) == 80


def test_no_more_is_taken_than_was_promised() -> None:
    with pytest.raises(AssertionError):
        promised(30, of=100).take(31)


def test_no_more_is_taken_back_than_was_promised() -> None:
    promises = promised(30, of=100)
    with pytest.raises(AssertionError):
        promises.end(31)
    with pytest.raises(AssertionError):
        promises.end(-1)


def test_a_child_process_has_promised_nothing() -> None:
    promises = promised(30, of=100)
    promises.forget()
    assert promises.total == 0
    assert promises.left(60) == 60


def test_a_promise_that_ends_leaves_its_room_to_one_that_is_made_at_once() -> None:
    promises = promised(100, of=224)
    assert promises.left(124) == 124  # it shows
    promises.make(16)
    promises.end(16)
    promises.make(16)
    assert promises.left(124) == 108


def test_what_did_not_show_yet_is_told_without_a_reading() -> None:
    promises = promised(30, of=100)
    assert promises.unshown() == 30
    promises.left(90)
    assert promises.unshown() == 20
    promises.make(5)
    assert promises.unshown() == 25
    promises.end(5)
    promises.left(60)
    assert promises.unshown() == 0
    assert promised(130, of=100).unshown() == 130
