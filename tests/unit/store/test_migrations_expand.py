"""What a migration may do to tables that pods of the release before still use."""

from __future__ import annotations

import re

import pytest

from agenthive.store.migrate import Migration, migrations

#: Pattern → what is wrong with it. Matched against one statement, upper case, its whitespace folded.
FORBIDDEN = {
    r"^DROP ": "drops what older pods use",
    r"^TRUNCATE ": "empties what older pods use",
    r"^ALTER .* RENAME ": "renames what older pods use",
    r"^ALTER .*\bDROP (?!DEFAULT|NOT NULL|CONSTRAINT)": "drops what older pods use",
    r"^ALTER .*\bALTER (COLUMN )?\S+ (SET DATA )?TYPE ": "changes a type that older pods write, and rewrites the table",
    r"^ALTER .*\bSET NOT NULL\b": "refuses what older pods write",
    r"^ALTER .*\bADD (CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b": "may refuse what older pods write",
    r"^ALTER .*\bADD (?!CONSTRAINT)(?=[^,]*\bNOT NULL\b)(?![^,]*\bDEFAULT\b)": "older pods do not fill the new column",
}


def offences(sql: str) -> list[str]:
    """What in a migration breaks pods of the release before; tables it makes itself are its own affair. Pure."""
    text = re.sub(r"--[^\n]*", "", sql)
    statements = [" ".join(part.split()).upper() for part in text.split(";")]
    created = {
        match[1]
        for statement in statements
        if (match := re.match(r"CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?(\S+)", statement))
    }
    found = []
    for statement in statements:
        table = re.match(r"(?:ALTER|DROP) TABLE (?:IF EXISTS )?(?:ONLY )?(\S+)", statement)
        if table and table[1] in created:
            continue
        found += [f"{why}: {statement[:60]}" for pattern, why in FORBIDDEN.items() if re.search(pattern, statement)]
    return found


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("ALTER TABLE agent_state ADD COLUMN note text", None),
        ("ALTER TABLE agent_state ADD COLUMN note text NOT NULL DEFAULT ''", None),
        ("ALTER TABLE agent_state ALTER COLUMN value DROP NOT NULL", None),
        ("CREATE TABLE new (a int NOT NULL); ALTER TABLE new ALTER a TYPE bigint", None),
        ("-- DROP TABLE agent_state;\nCREATE TABLE new (a int NOT NULL)", None),
        ("DROP TABLE agent_state", "drops"),
        ("drop index idx_message_log_agent", "drops"),
        ("ALTER TABLE agent_state\n    DROP COLUMN value", "drops"),
        ("ALTER TABLE agent_state RENAME COLUMN value TO content", "renames"),
        ("ALTER TABLE agent_state RENAME TO documents", "renames"),
        ("ALTER INDEX a RENAME TO b", "renames"),
        ("ALTER TABLE agent_metrics ALTER COLUMN value TYPE numeric", "changes a type"),
        ("ALTER TABLE agent_metrics ALTER value SET DATA TYPE numeric", "changes a type"),
        ("ALTER TABLE agent_state ALTER COLUMN expires_at SET NOT NULL", "refuses"),
        ("ALTER TABLE agent_state ADD CONSTRAINT c CHECK (version > 0)", "refuse"),
        ("ALTER TABLE agent_state ADD COLUMN a text DEFAULT '', ADD COLUMN note text NOT NULL", "do not fill"),
        ("ALTER TABLE agent_state ADD note text NOT NULL", "do not fill"),
        ("TRUNCATE agent_state", "empties"),
    ],
)
def test_the_rule_itself(sql: str, said: str | None) -> None:
    found = offences(sql)
    assert (not found) if said is None else any(said in offence for offence in found)


@pytest.mark.parametrize("migration", migrations()[1:], ids=lambda migration: migration.name)
def test_no_migration_breaks_the_pods_that_still_run(migration: Migration) -> None:
    assert offences(migration.sql) == []
