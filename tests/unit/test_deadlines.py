"""The one heap of deadlines."""

from __future__ import annotations

import random

from agenthive.deadlines import SLACK, Deadlines


class Item:
    def __init__(self, name: int) -> None:
        self.name = name
        self.done = False


def test_due_items_come_earliest_first_and_once() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    items = [Item(number) for number in range(5)]
    for when, item in zip((3.0, 1.0, 2.0, 1.0, 9.0), items, strict=True):
        deadlines.push(when, item)
    assert deadlines.next() == 1.0
    assert [item.name for item in deadlines.due(2.0)] == [1, 3, 2]
    assert deadlines.due(2.0) == []
    assert deadlines.next() == 3.0


def test_push_says_when_the_timer_has_to_move() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    assert deadlines.push(5.0, Item(0)) is True
    assert deadlines.push(6.0, Item(1)) is False
    assert deadlines.push(5.0, Item(2)) is False
    assert deadlines.push(4.0, Item(3)) is True


def test_what_is_done_is_neither_due_nor_next() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    early, late = Item(0), Item(1)
    deadlines.push(1.0, early)
    deadlines.push(2.0, late)
    early.done = True
    assert deadlines.next() == 2.0
    late.done = True
    assert deadlines.due(3.0) == []
    assert deadlines.next() is None


def test_the_heap_holds_at_most_twice_what_lives() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    chance = random.Random(7)
    live: list[Item] = []
    for number in range(20_000):
        item = Item(number)
        deadlines.push(1000 + chance.random(), item)
        live.append(item)
        if len(live) > 100:
            live.pop(chance.randrange(len(live))).done = True
        assert len(deadlines) <= max(SLACK, 2 * 101) + 1
    assert {item.name for item in deadlines.due(2000)} == {item.name for item in live}
