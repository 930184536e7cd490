"""The Redis users of a hive's agents as text: what a server is told of one, and the file of them all. Pure.

A managed Redis reads the file when it starts, so that agents come in at once, also while no operator runs. It lies in
a Secret of its own beside the server's (users change often, and who uses the server's password is not to be rolled for
that), holds digests of passwords alone, and its lines have the form of those in an ACL file. Why this way:

- The server's configuration includes it, rather than naming it as ``aclfile``. With an ``aclfile`` Redis and Valkey
  ignore ``requirepass``, and without a line for ``default`` in it they let everybody in with all rights; what is
  included adds users and takes nothing away. Included by a pattern, the file may also be missing.
- A file on the data volume, kept by ACL SAVE, would need a shell in the image to make the first one, and would bring
  back whoever was let in when a volume's snapshot was taken. Here it is as long as the hive, and the operator's word.
- A server does not start with a rule that it does not know. So only what it has taken by ACL SETUSER gets in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agenthive.bus.access import user_name, user_prefix, user_rules
from agenthive.settings import HiveScope

LIMIT_BYTES: Final = 1_000_000
"""Kubernetes keeps at most 1 MiB in a Secret. A line has 2.3 kB and more, by the length of names: some 400 agents."""
_LINE: Final = re.compile(r"user (?P<name>\S+) on(?: #[0-9a-f]{64})+ [^\r\n\"']+")


@dataclass(frozen=True, slots=True)
class UserFile:
    """The users of a hive's agents.

    Attributes:
        text: A line for each, by name; empty for none.
        left_out: Agents for which there is no room: the last by the alphabet. They get their users from the operator.
    """

    text: str = ""
    left_out: int = 0


def user_setting(scope: HiveScope, agent: str, passwords: Sequence[str]) -> list[str]:
    """What a fresh user is told to be, behind its name. Of passwords the server gets digests, in a fixed order."""
    digests = sorted(f"#{hashlib.sha256(password.encode()).hexdigest()}" for password in passwords)
    return ["on", *digests, *user_rules(scope, agent)]


def user_file(
    scope: HiveScope, held: str, standing: Mapping[str, Sequence[str] | None], limit: int = LIMIT_BYTES
) -> UserFile:
    """The file for the users that a server has.

    Args:
        scope: The hive's.
        held: What the file holds.
        standing: The agents that have a user, with the passwords the server has taken for it; None where they are not
            known since the operator's start: then the line that the file holds is left.
        limit: Most bytes.
    """
    known = lines_in(scope, held)
    lines, size, left_out = [], 0, 0
    for agent, passwords in sorted(standing.items()):
        line = _line(scope, agent, passwords) if passwords is not None else known.get(agent, "")
        size += len(line.encode())
        if size > limit:
            left_out += 1
        else:
            lines.append(line)
    return UserFile("".join(lines), left_out)


def lines_in(scope: HiveScope, text: str) -> dict[str, str]:
    """The lines of a file that are those of users of the hive's agents, by agent."""
    prefix, found = user_prefix(scope), {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None and match["name"].startswith(prefix):
            found[match["name"].removeprefix(prefix)] = f"{line}\n"
    return found


def _line(scope: HiveScope, agent: str, passwords: Sequence[str]) -> str:
    """Names, rules and digests hold neither blanks nor quotes: ``check_agent`` sees to that."""
    return " ".join(["user", user_name(scope, agent), *user_setting(scope, agent, passwords)]) + "\n"
