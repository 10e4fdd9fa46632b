"""A policy set comes: by somebody's request, or as the file that was put in the place of the active one.

Verified, taken in by an evaluator, written, recorded, and only then in force. What a crash leaves half done is done
again at the next start, which finds a file that the record does not name. What only a set needs is imported with one: the
memory of a daemon without policy is tested.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from egs_kernel.audit.entries import PolicyChange
from egs_kernel.daemon import protocol
from egs_kernel.daemon.host import now
from egs_kernel.durable import replace_file
from egs_kernel.errors import EgsError, Refused, UnsafePath
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file, require_private_folder
from egs_kernel.posture import EMPTY_POLICY
from egs_kernel.trust.store import ANY_SCOPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from egs_kernel.audit.entries import Peer
    from egs_kernel.checks.policy_sets import SignedSet
    from egs_kernel.daemon.evaluator import Evaluator
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.paths import Paths

_log = logging.getLogger(__name__)


class Activating:
    """Belongs to the event loop's thread.

    Args:
        paths: where the set's file is.
        host: whose policy it is.
        journal: where it is recorded.
        changed: what is to be done when another set is active.
    """

    def __init__(
        self, paths: Paths, *, host: Host, journal: Journal, changed: Callable[[], Awaitable[None]]
    ) -> None:
        self._file: Path = paths.policy_set
        self._host = host
        self._journal = journal
        self._turn = asyncio.Lock()
        self._changed = changed

    async def activate(self, content: bytes, peer: Peer) -> protocol.Done:
        """Have this set active.

        Raises:
            EgsError: why it is not. The one before stays.
        """
        async with self._turn:
            signed = await self._take("asked for", content, peer)
        manifest = signed.manifest
        said = f"is the active policy set: {manifest.name} version {manifest.version} for {', '.join(manifest.scopes)}"
        return protocol.Done(message=said, id=signed.digest)

    async def follow(self, cause: str, peer: Peer | None = None) -> None:
        """Look at the file. What is wrong with it is recorded; what is active stays, if it can be asked."""
        async with self._turn:
            policy = self._host.policy
            if policy.digest == EMPTY_POLICY and not self._file.exists():
                return
            try:
                content = await asyncio.to_thread(_read, self._file)
                if content is None:
                    raise Refused(Reason.NOT_FOUND, f"{self._file} is gone")
                if not await self._again(content):
                    await self._take(cause, content, peer, written=True)
            except EgsError as error:
                _log.error("the active policy set: %s", error)
                if not policy.answers:
                    policy.problem = error.message

    async def _again(self, content: bytes) -> bool:
        """Take in the file of the set that the record says is active. It was verified when it was activated."""
        policy, found = self._host.policy, _unverified(content)
        if found is None or found.digest != policy.digest:
            return False
        if policy.answers:
            if policy.signers.keys() != set(found.signers):
                return False  # others have signed it since
            policy.signers = self._signers(content)
            return True
        policy.put(found, self._signers(content), await _evaluator(found))
        return True

    def _signers(self, content: bytes) -> dict[str, bool]:
        """The ids of the keys that signed a set, and whether each is trusted here, and its signature good.

        Raises:
            Refused: a signature by a trusted key is not good.
        """
        from egs_kernel.artifact.envelope import parse_envelope  # noqa: PLC0415 - see the module
        from egs_kernel.checks.signers import check_signatures  # noqa: PLC0415 - as above
        from egs_kernel.policy.manifest import PAYLOAD_TYPE, SET_LIMIT  # noqa: PLC0415 - as above

        envelope, trust = parse_envelope(content, PAYLOAD_TYPE, SET_LIMIT), self._host.settings.trust
        if trust.keys.keys() & envelope.signatures.keys():
            check_signatures(envelope, trust)
        return {keyid: keyid in trust.keys for keyid in envelope.signatures}

    async def _take(
        self, cause: str, content: bytes, peer: Peer | None, *, written: bool = False
    ) -> SignedSet:
        """Verify, write, record, put in force."""
        from egs_kernel.checks.policy_sets import authenticate_set, check_newer  # noqa: PLC0415 - see the module

        signed: SignedSet | None = None
        policy = self._host.policy
        try:
            signed = authenticate_set(content, self._host.trust_for(ANY_SCOPE), now())
            self._require_known_scope(signed)
            self._require_unrevoked(signed, content)
            signers = self._signers(content)
            if signed.digest == policy.digest and policy.answers and signers == policy.signers:
                return signed
            check_newer(signed, policy.newest.get(signed.manifest.name))
            evaluator = await _evaluator(signed)
        except EgsError as error:
            await self._journal.append(_refusal(signed, cause, error, peer))
            raise
        try:
            if not written:
                await asyncio.to_thread(_write, self._file, content)
            await self._journal.append(_activation(signed, cause, content, peer))
        except BaseException:
            evaluator.close()
            raise
        policy.put(signed, signers, evaluator)
        self._host.settings = replace(self._host.settings, policy_digest=signed.digest)
        await self._changed()
        _log.info("policy set %s version %d is active", signed.manifest.name, signed.manifest.version)
        return signed

    def _require_known_scope(self, signed: SignedSet) -> None:
        """A set for other hosts' scopes alone, or for misspelt ones, would protect nothing here."""
        known = {scope.name for scope in self._host.settings.config.scopes} | {ANY_SCOPE}
        if not known & set(signed.manifest.scopes):
            raise Refused(
                Reason.SCOPE_UNKNOWN,
                f"it is for {', '.join(signed.manifest.scopes)}, and this host has none of these scopes",
                "Add the scope to egs.toml, or sign a set for one of: egs status",
            )

    def _require_unrevoked(self, signed: SignedSet, content: bytes) -> None:
        """Neither the set nor too many of its keys were taken back for any of its scopes."""
        from egs_kernel.checks.policy_sets import authenticate_set  # noqa: PLC0415 - see the module

        configured = {scope.name for scope in self._host.settings.config.scopes}
        named = configured if signed.manifest.governs(ANY_SCOPE) else set(signed.manifest.scopes)
        for scope in sorted(named | {ANY_SCOPE}):
            if since := self._host.known.of(scope).policy.get(signed.digest):
                raise Refused(
                    Reason.REVOKED, f"the policy set was revoked at {since}", "Activate another one."
                )
            authenticate_set(content, self._host.trust_for(scope), now())


async def _evaluator(signed: SignedSet) -> Evaluator:
    from egs_kernel.daemon.evaluator import Evaluator  # noqa: PLC0415 - see the module

    return await asyncio.to_thread(Evaluator, signed.manifest.payload)


def _read(path: Path) -> bytes | None:
    from egs_kernel.policy.manifest import SET_LIMIT  # noqa: PLC0415 - see the module

    try:
        return read_private_file(path, SET_LIMIT)
    except FileNotFoundError:
        return None
    except UnsafePath:
        if not path.parent.exists():
            return None
        raise
    except OSError as error:
        raise EgsError(Reason.PATH_UNSAFE, f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        require_private_folder(path.parent)
        replace_file(path, content, 0o644)
    except OSError as error:
        raise EgsError(
            Reason.PATH_UNSAFE, f"cannot write {path}: {error.strerror}", f"Check: df {path.parent}"
        ) from error


def _unverified(content: bytes) -> SignedSet | None:
    """What a file holds, to compare its digest; None when it is no set."""
    from egs_kernel.artifact.envelope import parse_envelope  # noqa: PLC0415 - see the module
    from egs_kernel.checks.policy_sets import SignedSet  # noqa: PLC0415 - see the module
    from egs_kernel.policy.manifest import PAYLOAD_TYPE, SET_LIMIT, parse_manifest  # noqa: PLC0415 - see the module

    try:
        envelope = parse_envelope(content, PAYLOAD_TYPE, SET_LIMIT)
        manifest = parse_manifest(envelope.payload)
    except EgsError:
        return None
    return SignedSet(manifest=manifest, digest=manifest.digest, signers=tuple(sorted(envelope.signatures)))


def _activation(signed: SignedSet, cause: str, content: bytes, peer: Peer | None) -> PolicyChange:
    return PolicyChange(
        action="activated",
        cause=cause,
        name=signed.manifest.name,
        version=signed.manifest.version,
        digest=signed.digest,
        scopes=signed.manifest.scopes,
        signers=signed.signers,
        peer=peer,
        envelope=content.decode(),
    )


def _refusal(signed: SignedSet | None, cause: str, error: EgsError, peer: Peer | None) -> PolicyChange:
    manifest = None if signed is None else signed.manifest
    return PolicyChange(
        action="refused",
        cause=cause,
        name="" if manifest is None else manifest.name,
        version=0 if manifest is None else manifest.version,
        digest="" if signed is None else signed.digest,
        reason=error.reason,
        detail=error.message,
        peer=peer,
    )
