"""Decisions as the receipts of the public project @11ai/execution-governance, so that its `eg-verify` accepts them. Pure.

A receipt is one line of JSON: who asked for what, allow or deny, why, by which policy. Each is signed (Ed25519 over the
SHA3-512 of its RFC 8785 form) and names the SHA3-512 of the one before it; docs/RECEIPTS.md of that project is the format.
One receipt is written for each exec that the gate allowed or refused, and for each decision about which there is no such
exec: a launch that was refused, what was held. The same record and key always give the same receipts.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final

from egs_kernel.artifact.canonical import encode
from egs_kernel.audit.entries import Decision, Exec, Recorded, Request
from egs_kernel.audit.lines import microseconds
from egs_kernel.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.model import ExecEvent

GENESIS: Final = "genesis"
TOOL: Final = "process.exec"
_KID: Final = 16


class Receipts:
    """A chain of receipts.

    Args:
        public: the 32 bytes of the Ed25519 key that signs.
        sign: signs a message with it.
    """

    def __init__(self, public: bytes, sign: Callable[[bytes], bytes]) -> None:
        self._kid = hashlib.sha3_512(public).hexdigest()[:_KID]
        self._sign = sign
        self._previous = GENESIS

    def add(self, draft: dict[str, Any]) -> bytes:
        """The next receipt's line, without its newline."""
        unsigned = draft | {"prevReceiptHash": self._previous, "kid": self._kid}
        signature = self._sign(hashlib.sha3_512(encode(unsigned)).digest())
        line = encode(unsigned | {"sig": base64.urlsafe_b64encode(signature).rstrip(b"=").decode()})
        self._previous = hashlib.sha3_512(line).hexdigest()
        return line


def needs_receipt(recorded: Recorded) -> bool:
    """Whether an entry is the last word about an execution."""
    entry = recorded.entry
    if isinstance(entry, Exec):
        return entry.event.verdict is not Verdict.HOLD
    if isinstance(entry, Decision) and entry.request is not None:
        return entry.verdict is not Verdict.ALLOW or entry.request.isdecimal()  # a number: what was held
    return False


def draft(
    recorded: Recorded, *, session: str, policy: str, parent: Recorded | None, request: Recorded | None
) -> dict[str, Any]:
    """A receipt's content, before it is chained and signed.

    Args:
        recorded: an entry that needs one.
        session: what the execution was part of: the boot.
        policy: the digest of the policy set that was active.
        parent: the exec of the execution that asked for this one.
        request: the request that a decision is about.
    """
    entry = recorded.entry
    if isinstance(entry, Exec):
        scope, verdict, reason = entry.event.scope, entry.event.verdict, _reason(entry.event)
        arguments = _arguments(entry.event.filename, entry.event.argv, entry.event.uid)
    elif isinstance(entry, Decision):
        scope, verdict, reason = entry.scope, entry.verdict, entry.reason.code
        intent = (
            request.entry.intent
            if request is not None and isinstance(request.entry, Request)
            else entry.intent
        )
        arguments = _arguments(intent.program, intent.argv or (), intent.uid) if intent is not None else {}
        policy = entry.policy_digest
    else:
        raise TypeError(f"entry {recorded.seq} needs no receipt")
    return {
        "receiptId": receipt_id(recorded),
        "ts": f"{recorded.time[:23]}Z",
        "sessionId": session,
        "agentId": scope,
        "tool": TOOL,
        "argsHash": hashlib.sha3_512(encode(arguments)).hexdigest(),
        "decision": "allow" if verdict is Verdict.ALLOW else "deny",
        "reason": reason,
        "policyVersion": policy,
    } | ({"parentReceiptId": receipt_id(parent)} if parent is not None else {})


def receipt_id(recorded: Recorded) -> str:
    """A UUID of version 7: the entry's time, and of its hash what fits."""
    value = (microseconds(recorded.time) // 1000) << 80 | int(recorded.hash[:20], 16)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _reason(event: ExecEvent) -> str:
    return event.reason.code if event.enforced else f"{event.reason.code} (observed only: not enforced)"


def _arguments(program: str, argv: tuple[str, ...], uid: int | None) -> dict[str, Any]:
    """What is hashed: arguments that are no UTF-8 are written with replacement characters."""
    words = [word.encode(errors="replace").decode() for word in argv]
    return {"program": program.encode(errors="replace").decode(), "argv": words, "uid": uid}
