"""What goes into the comment of a schema."""

from __future__ import annotations

from agenthive_operator.backends.identity import constant


def test_a_users_comment_is_kept_as_it_is() -> None:
    assert constant("it's C:\\temp\nagenthive") == "E'it''s C:\\\\temp\nagenthive'"
