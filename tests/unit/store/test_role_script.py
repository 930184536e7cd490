"""Names of database roles, their SQL as text, SCRAM verifiers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenthive.settings import HiveScope
from agenthive.store.errors import InvalidValue
from agenthive.store.naming import MAX_IDENTIFIER, application_name, schema_name
from agenthive.store.role_script import (
    TABLES,
    agent_role,
    agent_sql,
    grants_sql,
    literal,
    password_variable,
    role_comment,
    role_names,
    roles_sql,
    scram_verifier,
)

LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
SCHEMA = "ah_local_default_demo"


def test_names() -> None:
    names = role_names(SCHEMA)
    assert (names.owner, names.agents, names.readonly) == (f"{SCHEMA}_owner", f"{SCHEMA}_agents", f"{SCHEMA}_readonly")
    assert agent_role(SCHEMA, "code-atlas") == f"{SCHEMA}_agent_code__atlas"
    assert agent_role(SCHEMA, "code-atlas", 2) == f"{SCHEMA}_agent_code__atlas_2"
    assert len(role_names("a" * MAX_IDENTIFIER).owner) == MAX_IDENTIFIER


@given(st.lists(st.tuples(LABEL, LABEL, LABEL, LABEL, st.integers(0, 2)), min_size=2, max_size=2, unique=True))
def test_no_two_logins_or_groups_share_a_name(pair: list[tuple[str, str, str, str, int]]) -> None:
    names = set()
    hives = {entry[:3] for entry in pair}
    for instance, namespace, hive, agent, generation in pair:
        schema = schema_name(HiveScope(instance=instance, namespace=namespace, hive=hive))
        names.add(agent_role(schema, agent, generation))
    for instance, namespace, hive in hives:
        groups = role_names(schema_name(HiveScope(instance=instance, namespace=namespace, hive=hive)))
        names |= {groups.owner, groups.agents, groups.readonly}
    assert len(names) == 2 + 3 * len(hives)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name) for name in names)


@pytest.mark.parametrize(
    ("agent", "generation"), [("", 0), ("Not", 0), ("a_b", 0), ("a'b", 0), ("a\n", 0), ("a" * 64, 0), ("a", -1)]
)
def test_what_can_have_no_login(agent: str, generation: int) -> None:
    with pytest.raises(InvalidValue, match="no database role for agent"):
        agent_role(SCHEMA, agent, generation)


def test_a_verifier_is_what_rfc_7677_says() -> None:
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    verifier = scram_verifier("pencil", salt=salt)
    mechanism, rest = verifier.split("$", 1)
    (iterations, sent_salt), (stored, server) = (part.split(":") for part in rest.split("$"))
    assert (mechanism, iterations, base64.b64decode(sent_salt)) == ("SCRAM-SHA-256", "4096", salt)
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    exchange = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s={sent_salt},i=4096,c=biws,r={nonce}".encode()
    signature = hmac.digest(base64.b64decode(server), exchange, "sha256")
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    mask = hmac.digest(base64.b64decode(stored), exchange, "sha256")
    client_key = bytes(a ^ b for a, b in zip(proof, mask, strict=True))
    assert base64.b64encode(hashlib.sha256(client_key).digest()).decode() == stored
    assert scram_verifier("pencil") != scram_verifier("pencil"), "salted"


@pytest.mark.parametrize("password", ["", "pässword", "new\nline", "nul\0"])
def test_passwords_that_are_refused_are_not_repeated(password: str) -> None:
    with pytest.raises(InvalidValue, match="must be printable ASCII") as caught:
        scram_verifier(password)
    assert not password or password not in str(caught.value)


def test_literals() -> None:
    assert literal("it's") == "'it''s'"
    for bad in ("back\\slash", "nul\0"):
        with pytest.raises(ValueError, match="SQL literal"):
            literal(bad)


def test_rows_belong_to_agents_by_one_look_up_and_partitions_are_never_granted() -> None:
    text = grants_sql(SCHEMA)
    for access in TABLES:
        assert f'GRANT {access.agents} ON "{SCHEMA}".{access.table} TO "{SCHEMA}_agents";' in text
        assert ("CREATE POLICY" in text.split(f".{access.table} FROM PUBLIC")[1].split("END IF")[0]) == bool(
            access.column
        )
    assert "UPDATE" not in next(access.agents for access in TABLES if access.table == "audit_log")
    assert text.count("(SELECT r.agent FROM ") == 2 * sum(access.column is not None for access in TABLES)


def test_the_script_names_its_variables_and_holds_no_password() -> None:
    text = roles_sql(SCHEMA, ["other", "code-atlas", "other"])
    assert "-- psql -v password_code__atlas=… -v password_other=…" in text
    assert text.count("PASSWORD :'") == 2
    assert f"PASSWORD :'{password_variable('code-atlas')}'" in text
    assert text.index("BEGIN;") < text.index("CREATE ROLE") < text.index("COMMIT;")
    assert "No agent was named" in roles_sql(SCHEMA)
    with pytest.raises(InvalidValue):
        roles_sql(SCHEMA, ["x'; DROP TABLE y; --"])


def test_a_login_has_its_limit_and_says_whose_it_is() -> None:
    assert "CONNECTION LIMIT -1 PASSWORD 'x'" in agent_sql(SCHEMA, "a", "'x'")
    assert "CONNECTION LIMIT 5 PASSWORD 'x'" in agent_sql(SCHEMA, "a", "'x'", connection_limit=5)
    assert literal(role_comment(SCHEMA, "a")) in agent_sql(SCHEMA, "a", "'x'")


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("demo", "librarian", "librarian-5d9f8c7b6-x2x4z"), "demo/librarian/librarian-5d9f8c7b6-x2x4z"),
        (("h" * 40, "a" * 40, "a" * 40 + "-5d9f8c7b6f-x2x4z"), f"{'h' * 16}/{'a' * 28}/-5d9f8c7b6f-x2x4z"),
    ],
)
def test_a_process_is_recognised_in_pg_stat_activity(parts: tuple[str, str, str], name: str) -> None:
    assert application_name(*parts) == name
    assert len(name) <= MAX_IDENTIFIER
