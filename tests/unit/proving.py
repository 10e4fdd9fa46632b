"""What the tests of proofs share: the story of tests/chains.py as a signed log, with artifacts that verify, and its bundles."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from egs_kernel.artifact import canonical
from egs_kernel.audit.bundle import build_bundle, cited_posture
from egs_kernel.audit.checkpoint import with_signatures
from egs_kernel.audit.index import Index
from egs_kernel.audit.lineage import Lineage
from egs_kernel.audit.lines import encode
from egs_kernel.audit.notes import KeyType
from tests import chains
from tests.unit import issuing, trees

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egs_kernel.audit.bundle import Bundle
    from egs_kernel.audit.merkle import Nodes

TIME = "2026-11-23T14:30:00.000000Z"
WITNESS = trees.signer("witness.example", 7, KeyType.COSIGNATURE)


def artifact(purpose: str) -> tuple[str, str]:
    """An artifact for the story's program: its id, and its text."""
    value = issuing.statement({"intent": {"purpose": purpose}})
    return hashlib.sha256(canonical.encode(value)).hexdigest(), issuing.signed(value).decode()


ARTIFACTS = {chains.LAUNCHED: artifact("launched"), chains.STANDING: artifact("standing")}


def lines() -> list[bytes]:
    """The story's entries, with ids, keys and digests that verify."""
    found = [encode(entry, seq=seq, time=TIME).decode() for seq, entry in enumerate(chains.story())]
    posture = json.loads(found[0])["digest"]
    known = {
        chains.POSTURE: posture,
        chains.DIGEST: issuing.PROGRAM_DIGEST,
        chains.SIGNER: issuing.trusted(issuing.ISSUER).keyid,
    }
    return [_resolved(line, known).encode() for line in found]


def _resolved(line: str, known: dict[str, str]) -> str:
    for old, (artifact_id, text) in ARTIFACTS.items():
        if old in line:
            line = line.replace('"envelope":"{}"', f'"envelope":{json.dumps(text)}').replace(old, artifact_id)
    for old, new in known.items():
        line = line.replace(old, new)
    return line


class StoryLog:
    """The log as it is read: `SignedLog`, and `Log` of the index."""

    def __init__(self) -> None:
        self.tree = trees.Tree(entries=lines())
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
