"""What the tests of proofs share: the story of tests/chains.py as a signed log, with artifacts that verify, and its bundles."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import msgspec

from egs_kernel.artifact import canonical
from egs_kernel.audit.bundle import build_bundle, cited_posture
from egs_kernel.audit.checkpoint import with_signatures
from egs_kernel.audit.entries import ArtifactChange
from egs_kernel.audit.index import Index
from egs_kernel.audit.lineage import Lineage
from egs_kernel.audit.lines import encode
from egs_kernel.audit.notes import KeyType
from egs_kernel.audit.parts import parts_of
from tests import chains
from tests.unit import issuing, trees

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.bundle import Bundle
    from egs_kernel.audit.entries import Entry
    from egs_kernel.audit.merkle import Nodes

TIME = "2026-11-23T14:30:00.000000Z"
WITNESS = trees.signer("witness.example", 7, KeyType.COSIGNATURE)


def artifact(purpose: str, children: int = 0) -> tuple[str, str]:
    """An artifact for the story's program: its id, and its text; long, when it names children."""
    value = issuing.statement({"intent": {"purpose": purpose}})
    value["subject"] += [
        {
            "name": f"/{number}{'x' * 3000}",
            "digest": {"sha256": issuing.SCRIPT_DIGEST},
            "annotations": {"role": "child"},
        }
        for number in range(children)
    ]
    return hashlib.sha256(canonical.encode(value)).hexdigest(), issuing.signed(value).decode()


Artifacts = dict[str, tuple[str, str]]
"""Of each id in the story the id and the text of a real one."""
ARTIFACTS: Artifacts = {chains.LAUNCHED: artifact("launched"), chains.STANDING: artifact("standing")}


def lines(artifacts: Artifacts = ARTIFACTS) -> list[bytes]:
    """The story's entries, with ids, keys and digests that verify."""
    entries = [part for entry in chains.story() for part in _with_text(entry, artifacts)]
    found = [encode(entry, seq=seq, time=TIME).decode() for seq, entry in enumerate(entries)]
    known = {
        chains.POSTURE: json.loads(found[0])["digest"],
        chains.DIGEST: issuing.PROGRAM_DIGEST,
        chains.SIGNER: issuing.trusted(issuing.ISSUER).keyid,
        **{old: artifact_id for old, (artifact_id, _) in artifacts.items()},
    }
    for old, new in known.items():
        found = [line.replace(old, new) for line in found]
    return [line.encode() for line in found]


def _with_text(entry: Entry, artifacts: Artifacts) -> tuple[Entry, ...]:
    """An entry that brings an artifact, with its text: in parts, where that is too long."""
    if isinstance(entry, ArtifactChange) and entry.envelope is not None:
        return parts_of(msgspec.structs.replace(entry, envelope=artifacts[entry.artifact_id][1]))
    return (entry,)


class StoryLog:
    """The log as it is read: `SignedLog`, and `Log` of the index."""

    def __init__(self, artifacts: Artifacts = ARTIFACTS) -> None:
        self.tree = trees.Tree(entries=lines(artifacts))
        note = self.tree.signed()
        self.checkpoint = with_signatures(note, [WITNESS.cosign(self.tree.checkpoint().text, 1_800_000_000)])

    @property
    def size(self) -> int:
        return len(self.tree.entries)

    @property
    def nodes(self) -> Nodes:
        return self.tree.node

    def lines(self, since: int) -> Iterator[bytes]:
        return iter(self.tree.entries[since:])

    def line(self, seq: int) -> bytes:
        return self.tree.entries[seq]


def bundle(wanted: str, log: StoryLog | None = None) -> Bundle:
    """The bundle of one link of the story."""
    log = log or StoryLog()
    with Index.open(None, log) as index:
        link = Lineage(index).of(wanted)[0]
        posture = cited_posture(
            link.posture_digest, index.find(type="posture", below=link.subject.seq, last=True)
        )
        return build_bundle(link, posture, log, log.tree.key.key)
