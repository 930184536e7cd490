"""When a watch counts as silent."""

from __future__ import annotations

from agenthive_operator.reconcile.hearing import Hearing

PODS = ("Pod", None)


def test_the_first_list_is_no_evidence() -> None:
    hearing = Hearing()
    hearing.listed(PODS, news=True)
    hearing.listed(PODS, news=True)
    assert hearing.silent == frozenset(), "one list may come between a change and the word of it"


def test_lists_in_a_row_that_find_what_no_watch_told_are_evidence() -> None:
    hearing = Hearing()
    for _ in range(3):
        hearing.listed(PODS, news=True)
    hearing.listed(("Secret", "a"), news=True)
    assert hearing.silent == {PODS}


def test_a_quiet_cluster_is_no_silent_watch() -> None:
    hearing = Hearing()
    hearing.listed(PODS, news=True)
    for _ in range(5):
        hearing.listed(PODS, news=False)
    assert hearing.silent == frozenset()


def test_one_word_of_the_watch_clears_it() -> None:
    hearing = Hearing()
    for _ in range(3):
        hearing.listed(PODS, news=True)
    hearing.told(PODS)
    assert hearing.silent == frozenset()
    hearing.listed(PODS, news=True)
    assert hearing.silent == frozenset(), "it told something since the list before"
