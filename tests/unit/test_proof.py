"""Proof bundles: each kind of story proves, and no edit of any does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egs_kernel.artifact import canonical
from egs_kernel.audit.bundle import Bundle, Item
from egs_kernel.audit.notes import KeyType
from egs_kernel.audit.proven import Step, verify_bundle
from egs_kernel.audit.tlog_proof import TlogProof
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from tests import chains
from tests.unit import issuing, proving, trees

if TYPE_CHECKING:
    from egs_kernel.audit.proven import Proven

LOG = proving.StoryLog()
KEY = LOG.tree.key.key
STORIES = {
    "launch": ("5000000000", True),
    "standing": ("5000000001", True),
    "killed": ("entry:13", False),
    "denied": ("entry:19", False),
    "held": ("5000000003", True),
}
BUNDLES = {name: proving.bundle(wanted, LOG).encode() for name, (wanted, _ran) in STORIES.items()}


def verify(content: bytes, **changes: Any) -> Proven:
    given: dict[str, Any] = {
        "trust": issuing.store(),
        "log_keys": [KEY],
        "witnesses": [proving.WITNESS.key],
        **changes,
    }
    return verify_bundle(content, **given)


@pytest.mark.parametrize("name", STORIES)
def test_every_kind_of_story_is_proven(name: str) -> None:
    steps: list[Step] = []
    proven = verify(BUNDLES[name], reached=steps.append)
    assert steps == list(Step)
    assert proven.chain.ran is STORIES[name][1]
    assert {witness.name for witness in proven.checkpoint.witnesses} == {"witness.example"}
    assert proven.checkpoint.checkpoint.size == LOG.size
    if name in {"launch", "standing", "held", "denied"}:
        assert proven.artifact is not None


def test_what_is_proven_of_a_denial() -> None:
    killed = verify(BUNDLES["killed"])
    assert killed.chain.event is not None
    assert killed.chain.event.reason is Reason.NO_GRANT
    assert killed.skipped >= {Step.ARTIFACT, Step.PROGRAM, Step.POSTURE}
    denied = verify(BUNDLES["denied"])
    assert denied.chain.decision is not None
    assert (denied.chain.decision.reason, denied.chain.event) == (Reason.EXPIRED, None)


def refused(content: bytes, **changes: Any) -> EgsError:
    with pytest.raises(EgsError) as caught:
        verify(content, **changes)
    return caught.value


def test_who_is_not_trusted() -> None:
    other = trees.signer(KEY.name, 9).key
    assert refused(BUNDLES["launch"], log_keys=[other]).reason is Reason.KEY_UNTRUSTED
    stranger = issuing.store(issuing.trusted(issuing.STRANGER))
    assert refused(BUNDLES["launch"], trust=stranger).reason is Reason.KEY_UNTRUSTED
    witness = trees.signer("other.example", 8, KeyType.COSIGNATURE).key
    assert "other.example" in refused(BUNDLES["launch"], witnesses=[witness]).message
    assert refused(BUNDLES["launch"], trust=issuing.store(agents=2)).reason is Reason.THRESHOLD_NOT_MET
    assert verify(BUNDLES["launch"], witnesses=[]).skipped >= {Step.COSIGNATURES}


def edited(name: str, **changes: Any) -> bytes:
    return msgspec.structs.replace(Bundle.parse(BUNDLES[name]), **changes).encode()


def test_entries_that_are_left_out_or_of_another_story() -> None:
    """With honest proofs: the log's operator, or who exports, cannot leave out what matters."""
    whole = Bundle.parse(BUNDLES["launch"])
    for number, item in enumerate(whole.records):
        rest = (*whole.records[:number], *whole.records[number + 1 :])
        assert refused(edited("launch", records=rest)).reason is Reason.EVIDENCE_MISMATCH, item.entry
    standing = Bundle.parse(BUNDLES["standing"])
    for item in standing.records:
        if item in whole.records:
            continue
        mixed = tuple(sorted((*whole.records, item), key=lambda one: one.seq))
        assert refused(edited("launch", records=mixed)).reason is Reason.EVIDENCE_MISMATCH, item.entry
    assert refused(edited("launch", records=whole.records[::-1])).reason is Reason.EVIDENCE_MISMATCH
    assert refused(edited("launch", subject=3)).reason is Reason.EVIDENCE_MISMATCH


def test_an_artifact_that_is_too_long_for_one_entry() -> None:
    """Its text stands in entries before the one that names it; none of them can be left out."""
    long = proving.artifact("launched", children=13)
    log = proving.StoryLog(proving.ARTIFACTS | {chains.LAUNCHED: long})
    content = proving.bundle(long[0], log)
    assert sum('"type":"part"' in item.entry for item in content.records) > 1
    proven = verify(content.encode(), log_keys=[log.tree.key.key])
    assert proven.artifact is not None
    for item in content.records:
        if '"type":"part"' in item.entry:
            rest = tuple(one for one in content.records if one is not item)
            less = msgspec.structs.replace(content, records=rest)
            assert refused(less.encode(), log_keys=[log.tree.key.key]).reason is Reason.EVIDENCE_MISMATCH


def test_o20_the_end_can_be_left_out() -> None:
    whole = Bundle.parse(BUNDLES["standing"])
    kept = tuple(item for item in whole.records if '"outcome"' not in item.entry)
    assert len(kept) == len(whole.records) - 1
    proven = verify(edited("standing", records=kept))
    assert proven.chain.outcome is None
    assert Step.OUTCOME in proven.skipped


@pytest.mark.parametrize("name", STORIES)
def test_each_field_of_the_bundle_counts(name: str) -> None:
    other = Bundle.parse(BUNDLES["standing" if name != "standing" else "launch"])
    for field in ("subject", "records", "artifact", "signers"):
        changed = edited(name, **{field: getattr(other, field)})
        if changed != BUNDLES[name]:
            assert refused(changed).reason is Reason.EVIDENCE_MISMATCH, field
    assert refused(edited(name, v=2)).reason is Reason.BUNDLE_MALFORMED
    assert refused(edited(name, log_key=str(trees.signer("x", 3).key))).reason is Reason.KEY_UNTRUSTED
    half = LOG.tree.signed(LOG.size - 1).decode()
    assert refused(edited(name, checkpoint=half), witnesses=[]).reason is Reason.EVIDENCE_MISMATCH


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b"{" * 100_000, b'{"v":1}', b"1e999"]
)
def test_what_is_no_bundle(content: bytes) -> None:
    assert refused(content).reason is Reason.BUNDLE_MALFORMED


@pytest.mark.parametrize("depth", [500, 30_000])
def test_a_log_that_holds_nonsense_is_refused_in_words(depth: int) -> None:
    """Whoever runs a log signs what they like: entries that are none, nested beyond what can be read."""
    log = proving.StoryLog()
    nested = b"[" * depth + b"]" * depth
    log.tree.entries[6] = b'{"event":%s,"seq":6,"time":"%s","type":"exec","v":2}' % (
        nested,
        proving.TIME.encode(),
    )
    checkpoint = log.tree.signed()
    proof = TlogProof.of(6, log.size, log.nodes, checkpoint).encode().decode()
    item = Item(6, log.tree.entries[6].decode(), proof)
    whole = Bundle.parse(BUNDLES["launch"])
    content = msgspec.structs.replace(whole, subject=6, records=(item,), checkpoint=checkpoint.decode())
    assert refused(content.encode(), witnesses=[]).reason is Reason.RECORD_CORRUPT


@settings(max_examples=150)
@given(data=st.data())
def test_no_edit_of_any_byte_is_proven(data: st.DataObject) -> None:
    content = bytearray(BUNDLES[data.draw(st.sampled_from(sorted(BUNDLES)))])
    original = bytes(content)
    start = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "drop", "insert", "swap", "truncate"])):
        case "flip":
            content[start] ^= data.draw(st.integers(1, 255))
        case "drop":
            del content[start : start + data.draw(st.integers(1, 40))]
        case "insert":
            content[start:start] = data.draw(st.binary(min_size=1, max_size=9))
        case "swap":
            other = data.draw(st.integers(0, len(content) - 1))
            content[start], content[other] = content[other], content[start]
        case "truncate":
            del content[start:]
    if bytes(content).removesuffix(b"\n") != original.removesuffix(b"\n"):
        assert refused(bytes(content)).message


@settings(max_examples=80)
@given(data=st.data())
def test_no_edit_of_an_entry_is_proven_however_canonical(data: st.DataObject) -> None:
    """Edits of values inside, written as our own code would write them."""
    whole = Bundle.parse(BUNDLES[data.draw(st.sampled_from(sorted(BUNDLES)))])
    number = data.draw(st.integers(0, len(whole.records) - 1))
    item = whole.records[number]
    value = msgspec.json.decode(item.entry)
    field = data.draw(st.sampled_from(sorted(value)))
    value[field] = data.draw(st.one_of(st.none(), st.integers(0, 99), st.text(max_size=5), st.booleans()))
    entry = canonical.encode(value).decode()
    if entry != item.entry:
        records = (
            *whole.records[:number],
            msgspec.structs.replace(item, entry=entry),
            *whole.records[number + 1 :],
        )
        assert (
            f"entry {item.seq}" in refused(msgspec.structs.replace(whole, records=records).encode()).message
        )
