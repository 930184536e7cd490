"""The order in which workers take test files."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.order import SECONDS, known, longest_first, measured

REPORT = """
<testsuites><testsuite>
  <testcase classname="tests.unit.test_a" name="test_one" time="0.5" />
  <testcase classname="tests.e2e.test_b" name="test_two[x]" time="3.0" />
  <testcase classname="tests.e2e.test_b" name="test_three" time="4.0" />
</testsuite></testsuites>
"""


def test_the_longest_begin_and_what_is_not_known_keeps_its_order() -> None:
    seconds = known("# a remark\n3 short.py\n90 long.py\n50 gone.py\n")
    assert longest_first(["b.py", "short.py", "a.py", "long.py", "b.py"], seconds) == [
        "long.py", "short.py", "b.py", "a.py",
    ]  # fmt: skip


def test_times_are_those_of_a_report() -> None:
    assert measured(ElementTree.fromstring(REPORT)) == {"tests/unit/test_a.py": 0.5, "tests/e2e/test_b.py": 7.0}


def test_the_times_that_are_kept_can_be_read() -> None:
    assert known(SECONDS.read_text(encoding="utf-8"))
