"""What a host lacks is named, with its cure; and nothing is enforced on a guess."""

from __future__ import annotations

import msgspec
import pytest

from egs_kernel.gate.tiers import _REQUIRED, Finding, diagnose
from egs_kernel.model import Tier

WHOLE = tuple(Finding(name=name, present=True) for name in sorted(_REQUIRED))


def test_a_whole_host_offers_the_tracepoint_tier() -> None:
    assert diagnose("6.1", WHOLE).tier is Tier.TRACEPOINT


@pytest.mark.parametrize("name", sorted(_REQUIRED))
def test_each_requirement_that_is_missing_is_named(name: str) -> None:
    findings = tuple(
        msgspec.structs.replace(found, present=False, cure="cure") if found.name == name else found
        for found in WHOLE
    )
    diagnosis = diagnose("6.1", findings)
    assert diagnosis.tier is None
    assert name in diagnosis.why
    assert [(found.name, found.cure) for found in diagnosis.missing] == [(name, "cure")]


@pytest.mark.parametrize("name", sorted(_REQUIRED))
def test_what_was_not_tried_counts_as_missing(name: str) -> None:
    diagnosis = diagnose("6.1", tuple(found for found in WHOLE if found.name != name))
    assert diagnosis.tier is None
    assert name in diagnosis.why


def test_bpf_lsm_is_reported_either_way() -> None:
    blocked = Finding(name="BPF LSM", present=False, detail="not active")
    assert "not active" in diagnose("6.1", (*WHOLE, blocked)).why
    able = diagnose("6.1", (*WHOLE, Finding(name="BPF LSM", present=True)))
    assert (able.tier, "fails in its caller" in able.why) == (Tier.LSM, True)
