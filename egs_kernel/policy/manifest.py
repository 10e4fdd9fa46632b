"""What a policy set is made of and addressed by. Nothing here needs Cedar: the daemon reads it, too.

The signed form is a DSSE envelope around canonical JSON, the manifest; the digest is the SHA-256 of the manifest,
whoever signed it. Everything that decides is in it: the policies' texts, the schema and the catalog, so any Cedar
engine can check a decision by it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from egs_kernel.artifact.canonical import decode_canonical, encode
from egs_kernel.artifact.statement import Label, ScopeName
from egs_kernel.errors import Refused
from egs_kernel.model import Reason
from egs_kernel.policy.catalog import Catalog

TYPE: Final = "urn:egs-001:policy-set:v1"
PAYLOAD_TYPE: Final = "application/vnd.egs-001.policy-set+json"
SET_LIMIT: Final = 640 * 1024
"""Most bytes of a set's file."""
ANY_SCOPE: Final = "*"

SetScope = Annotated[
    str, Meta(min_length=1, max_length=32, pattern=r"^(?:\*(?![\s\S])|(?![\s\S]*[^a-z0-9._-])[a-z0-9])")
]
FileName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=128,
        pattern=r"^(?![\s\S]*[^A-Za-z0-9._-])[A-Za-z0-9][\s\S]*\.cedar(?![\s\S])",
    ),
]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is signed.

    Attributes:
        name: of the set.
        version: rises; a node takes no older one of the same name than it had.
        scopes: where executions need what this set permits; `*` is every scope of the host.
        policies: Cedar texts by the names of their files.
        schema: the one that they were checked against.
        catalog: agents, workloads, tools and labels.
        description: in words.
    """

    type: Literal["urn:egs-001:policy-set:v1"] = msgspec.field(name="_type")
    name: ScopeName
    version: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    scopes: Annotated[tuple[SetScope, ...], Meta(min_length=1, max_length=256)]
    policies: Annotated[dict[FileName, str], Meta(min_length=1, max_length=1000)]
    schema: str
    catalog: Catalog = Catalog()
    description: Label | None = None

    @property
    def payload(self) -> bytes:
        """The canonical bytes: what is signed."""
        return encode(msgspec.to_builtins(self))

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) that names the set."""
        return hashlib.sha256(self.payload).hexdigest()

    def governs(self, scope: str) -> bool:
        """Whether executions in this scope need what it permits."""
        return scope in self.scopes or ANY_SCOPE in self.scopes


def parse_manifest(payload: bytes) -> Manifest:
    """The manifest in the payload of an envelope.

    Raises:
        Refused: not canonical, of another type or version, malformed, or with unknown fields.
    """
    value = decode_canonical(payload)
    try:
        manifest = msgspec.convert(value, Manifest)
    except msgspec.ValidationError as error:
        raise Refused(
            Reason.POLICY_INVALID,
            f"this is no policy set of this version: {error}",
            "Use the file as egs policy sign wrote it, and the version of egs-kernel that it is for.",
        ) from error
    if manifest.payload != payload:
        raise Refused(
            Reason.POLICY_INVALID, "the policy set has fields that say nothing", "Leave out what is empty."
        )
    return manifest
