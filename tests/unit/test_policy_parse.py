"""Cedar texts that are wrong: what, and where."""

from __future__ import annotations

import pytest
from cedarpy import PolicySet, Schema

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.policy.parse import parse_policies, require_valid
from egs_kernel.policy.places import UNFINISHED
from egs_kernel.policy.vocabulary import SCHEMA

GOOD = '@id("one") permit(principal, action, resource);\n'


def complaint(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        require_valid(parse_policies({"a.cedar": text}), Schema.from_str(SCHEMA))
    assert caught.value.reason is Reason.POLICY_INVALID
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("permit(principal, action, resource)\nwhen { context.x = };", "2:20: unexpected token"),
        (GOOD + "permit(principal,\n  action resource);", "3:10: unexpected token"),
        (
            GOOD + '@id("b") permit(principal, action, resource)\n  wen { true };',
            "3:3: invalid policy condition: wen",
        ),
        (
            GOOD + "permit(principal, action, resource) when { foo(1) };",
            "2:44: `foo` is not a valid function",
        ),
        (GOOD + '// ü "comment;\npermit(principal, action, resource) when { $ };', "3:44: invalid token"),
        ('permit(principal, action, resource) when { "ab;\n', "1:44: invalid token"),
        ("permit(principal, action, resource", "1:35: unexpected end of input"),
        ("permit(principal, action);", "1:1: this policy is missing the `resource` variable"),
        ("permt(principal, action, resource);", "1:1: invalid policy effect: permt"),
        ("permit(principal, action, resource);", "1:1: each policy needs an id"),
        ('@id("A b") permit(principal, action, resource);', "1:1: each policy needs an id"),
        ('@id("a") @note("x") permit(principal, action, resource);', "1:1: there is no annotation @note"),
        ('@id("t") permit(principal == ?principal, action, resource);', "1:1: it is a template"),
        (GOOD + "\n" + GOOD, "3:1: the id one is that of a.cedar:1:1, too"),
        (
            GOOD + '\n  @id("x") permit(principal, action, resource) when { principal.nme == "x" };',
            "3:65: x: attribute `nme`",
        ),
        (
            '@id("x") permit(principal == Usr::"x", action, resource);',
            "1:30: x: unrecognized entity type `Usr`",
        ),
        ('@id("x") permit(principal, action == Action::"run2", resource);', "1:38: x: unrecognized action"),
        (
            '@id("x") permit(principal, action, resource) when { context.uses > 1 };',
            "1:61: x: unable to guarantee safety",
        ),
    ],
)
def test_errors_name_line_and_column(text: str, place: str) -> None:
    assert complaint(text).startswith(f"a.cedar:{place}")


def test_how_cedar_says_that_a_text_could_go_on() -> None:
    with pytest.raises(ValueError, match=f"^{UNFINISHED}$"):
        PolicySet.from_str("permit(")


def test_a_policy_knows_its_text_and_place() -> None:
    text = (
        '// first;\n@id("a") @advice("x; y") // "\npermit(principal, action, resource) when { "};" == "" };\n'
        + GOOD
    )
    found = parse_policies({"a.cedar": text})
    assert [(policy.id, policy.place.line, policy.advice) for policy in found.values()] == [
        ("a", 2, "x; y"),
        ("one", 4, ""),
    ]
    assert found["one"].text == GOOD.strip()
