"""CEL rules, schemas and formats, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from agenthive_operator.local.apiserver import celrules, formats, structural
from agenthive_operator.local.apiserver.celrules import escaped
from agenthive_operator.local.apiserver.structural import compile_schema


def check(rule: str | dict[str, Any], value: Any, old: Any = None, **schema: Any) -> list[str]:
    """What a rule on ``spec`` says of a value."""
    entry = {"rule": rule, "message": "no"} if isinstance(rule, str) else rule
    spec = {"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-validations": [entry], **schema}
    compiled = compile_schema({"type": "object", "properties": {"spec": spec}}, root=True)
    before = None if old is None else {"metadata": {"name": "a"}, "spec": old}
    found = celrules.check({"metadata": {"name": "a"}, "spec": value}, compiled, before)
    return [str(problem) for problem in found]


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("quantity(self).isLessThan(quantity('2Gi'))", "1Gi"),
        ("quantity(self).isGreaterThan(quantity('500m'))", "1"),
        ("quantity(self).add(quantity('1')).compareTo(quantity('3')) == 0", "2"),
        ("quantity(self).sub(1).asInteger() == 1", "2"),
        ("quantity(self).sign() == -1 && quantity(self).isInteger()", "-2"),
        ("quantity(self).asApproximateFloat() == 0.5", "500m"),
        ("!isQuantity(self)", "1 GB"),
        ("self.isSorted()", [1, 2, 3]),
        ("self.indexOf(2) == 1 && self.lastIndexOf(2) == 2 && self.indexOf(9) == -1", [1, 2, 2]),
        ("self.indexOf('b') == 1 && self.lastIndexOf('b') == 3", "abab"),
        ("self.find('[0-9]+') == '12' && self.findAll('[0-9]').size() == 2", "a12"),
        ("'%s has %d%%'.format([self, 3]) == 'x has 3%'", "x"),
        ("self.sum() == 6 && self.max() == 3", [1, 2, 3]),
        ("self.split(',').size() == 2", "a,b"),
        ("self.all(k, k.startsWith('a'))", {"ab": 1}),
    ],
)
def test_functions_of_kubernetes(rule: str, value: Any) -> None:
    assert check(rule, value) == []


def test_a_failing_rule_says_its_message() -> None:
    assert check("self.a == 1", {"a": 2}) == ["spec: Invalid value: no"]
    assert check({"rule": "self == 'x'"}, "y") == ["spec: Invalid value: \"y\": failed rule: self == 'x'"]


@pytest.mark.parametrize(
    ("expression", "said"),
    [("'got ' + self.a", "got b"), ("self.none", "no"), ("'two\\nlines'", "no"), ("1 + 1", "no")],
)
def test_message_expressions(expression: str, said: str) -> None:
    rule = {"rule": "false", "message": "no", "messageExpression": expression}
    assert check(rule, {"a": "b"}) == [f"spec: Invalid value: {said}"]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("FieldValueRequired", "spec.a: Required value: no"), ("FieldValueForbidden", "spec.a: Forbidden: no"),
        ("FieldValueDuplicate", 'spec.a: Duplicate value: {"b":1}'),
    ],
)  # fmt: skip
def test_reason_and_field_path(reason: str, said: str) -> None:
    rule = {"rule": "false", "message": "no", "reason": reason, "fieldPath": ".a"}
    assert check(rule, {"b": 1}) == [said]


def test_transition_rules() -> None:
    rule = "self == oldSelf"
    assert check(rule, 2) == [], "nothing to compare with"
    assert check(rule, 2, 2) == []
    assert check(rule, 2, 1) == ["spec: Invalid value: 2: no"]


def test_optional_old_self() -> None:
    rule = {
        "rule": "oldSelf.hasValue() ? self == oldSelf.value() : self == 1",
        "message": "no",
        "optionalOldSelf": True,
    }
    assert check(rule, 1) == []
    assert check(rule, 2) == ["spec: Invalid value: 2: no"]
    assert check(rule, 2, 2) == []
    assert check(rule, 2, 1) == ["spec: Invalid value: 2: no"]


def test_what_did_not_change_is_not_judged_again() -> None:
    assert check("self == 1", 2, 2) == []
    assert check("self == 1", 3, 2) == ["spec: Invalid value: 3: no"]


def test_a_rule_that_cannot_be_evaluated_is_a_refusal() -> None:
    found = check("self.missing > 1", {"a": 1})
    assert len(found) == 1
    assert "rule could not be evaluated" in found[0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a", "a"), ("namespace", "__namespace__"), ("a-b", "a__dash__b"), ("a.b", "a__dot__b"),
     ("a__b", "a__underscores__b"),
     ("a/b", "a__slash__b")],
)  # fmt: skip
def test_names_in_rules(name: str, wanted: str) -> None:
    assert escaped(name) == wanted


def test_fields_with_awkward_names() -> None:
    properties = {
        "a-b": {"type": "integer"},
        "list": {"type": "array", "items": {"type": "object", "properties": {"in": {"type": "integer"}}}},
    }
    rule = "self.a__dash__b == 1 && self.list[0].__in__ == 2"
    assert check(rule, {"a-b": 1, "list": [{"in": 2}]}, type="object", properties=properties) == []


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"rule": ""}, "rule"), ({"rule": "self.("}, "rule"), ({"rule": "nosuch(self)"}, "rule"),
        ({"rule": "self.?a"}, "rule"), ({"rule": "true", "messageExpression": "("}, "messageExpression"),
        ({"rule": "true", "optionalOldSelf": True}, "optionalOldSelf"), ({"rule": "true ||\nfalse"}, "message"),
        ({"rule": "true", "message": " "}, "message"),
    ],
)  # fmt: skip
def test_rules_that_are_refused(rule: dict[str, Any], field: str) -> None:
    problem = celrules.problem_of(rule)
    assert problem is not None
    assert problem[0] == field


def test_good_rules() -> None:
    for rule in ("has(self.a)", "self.all(x, x in [1]) ? true : -self.b < 2", "self.map(x, x * 2).sum() % 2 != 0"):
        assert celrules.problem_of({"rule": rule}) is None


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date-time", "2024-01-01T00:00:00Z", "2024-01-01"), ("date", "2024-01-01", "x"), ("duration", "1h30m", "1x"),
        ("ipv4", "1.2.3.4", "1.2.3"), ("ipv6", "::1", "1"), ("cidr", "10.0.0.0/8", "10"), ("byte", "Yg==", "%"),
        ("uuid", "12345678-1234-1234-1234-123456789012", "1"), ("hostname", "a.b", "-a"), ("email", "a@b", "a"),
        ("uri", "http://x", "x"),
    ],
)  # fmt: skip
def test_formats(name: str, good: str, bad: str) -> None:
    assert formats.fits(name, good)
    assert not formats.fits(name, bad)
    assert formats.fits("no-such-format", bad)


def test_go_patterns_end_at_the_very_end() -> None:
    assert formats.go_pattern("^a$").search("a")
    assert not formats.go_pattern("^a$").search("a\n")
    assert formats.go_pattern(r"^[$]\$$").search("$$")
    with pytest.raises(ValueError, match="is not a regular expression"):
        formats.go_pattern("(")


def test_schema_combinations() -> None:
    schema = compile_schema(
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "number", "maximum": 5, "exclusiveMaximum": True}},
            "allOf": [{"required": ["a"]}], "anyOf": [{"required": ["b"]}, {"required": ["c"]}],
            "not": {"required": ["d"]}, "minProperties": 2,
        }
    )  # fmt: skip

    def said(value: Any) -> list[str]:
        return [problem.message for problem in structural.validate(value, schema, "x")]

    assert said({"a": 1, "b": 2.5}) == []
    assert any("Required value" in text for text in said({"b": 1, "c": 1}))
    assert any("(anyOf)" in text for text in said({"a": 1}))
    assert any("(not)" in text for text in said({"a": 1, "b": 1, "d": 1}))
    assert any("at least 2 properties" in text for text in said({"a": 1}))
    assert any("less than 5" in text for text in said({"a": 1, "b": 5}))
    assert any('must be of type object: "array"' in text for text in said([]))
    assert any('must be of type object: "null"' in text for text in said(None))


def test_integers_of_a_format() -> None:
    schema = compile_schema({"type": "integer", "format": "int32"})
    assert structural.validate(2**31 - 1, schema, "x") == []
    assert structural.validate(2**31, schema, "x")
    assert structural.validate(2.0, schema, "x") == []
