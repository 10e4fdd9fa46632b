"""What somebody revokes, and the signed lists that tell of it: known first, then out of the gate, then recorded.

One push: when `revoke` or `add` returns, no grant of what is revoked is in the gate, no launch is armed by it, what ran by
it was responded to, and all that is durable.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from egs_kernel.artifact.statement import format_time
from egs_kernel.audit.entries import Revocation, RevocationListChange
from egs_kernel.checks.revocation import authenticate_list, check_number
from egs_kernel.daemon import protocol
from egs_kernel.daemon.host import now
from egs_kernel.daemon.revocations import require_thing, write_list, write_revocation
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.trust.store import ANY_SCOPE

if TYPE_CHECKING:
    from egs_kernel.audit.entries import Peer
    from egs_kernel.checks.revocation import SignedList
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.launches import Launches
    from egs_kernel.daemon.running import Running
    from egs_kernel.daemon.standing import Standing
    from egs_kernel.paths import Paths

_log = logging.getLogger(__name__)


class Revoking:
    """Belongs to the event loop's thread."""

    def __init__(  # noqa: PLR0913 - the composition root wires it, once
        self,
        paths: Paths,
        *,
        host: Host,
        journal: Journal,
        standing: Standing,
        launches: Launches,
        running: Running,
    ) -> None:
        self._folder = paths.revocations
        self._host = host
        self._journal = journal
        self._standing = standing
        self._launches = launches
        self._running = running
        self._lists = asyncio.Lock()

    async def revoke(self, kind: protocol.RevokedKind, thing: str, why: str, peer: Peer) -> protocol.Done:
        """From here on nothing is decided by it, and nothing runs by it that its artifact wants ended.

        Raises:
            UsageError: no such thing can be.
            EgsError: RECORD_UNAVAILABLE; it is revoked and recorded, but its file cannot be written.
        """
        require_thing(kind, thing)
        since = format_time(now())
        self._host.known.revoke(kind, thing, since)
        entry = Revocation(kind=kind, thing=thing, since=since, why=why, peer=peer)
        durable = self._journal.submit([entry], essential=True)
        reached = await self._push()
        await asyncio.shield(durable)
        try:
            await asyncio.to_thread(write_revocation, self._folder, kind, thing, since)
        except OSError as error:
            raise _unwritable(f"{self._folder} cannot be written: {error.strerror}") from error
        reached += await self._running.respond()  # an exec that was in the gate while its grant left it
        await self._journal.flush()
        return protocol.Done(message=f"is revoked{_words(reached)}", id=thing)

    async def add(self, content: bytes, peer: Peer) -> protocol.Done:
        """Take in a signed list; one that is refused changes nothing, and is recorded.

        Raises:
            Refused: why it is.
            EgsError: RECORD_UNAVAILABLE; it cannot be kept.
        """
        async with self._lists:
            found: SignedList | None = None
            try:
                found = authenticate_list(content, self._host.trust_for(ANY_SCOPE), now())
                authenticate_list(content, self._host.trust_for(found.content.scope), now())
                if not check_number(found, self._host.known.numbers.get(found.content.scope)):
                    return await self._again(found, content)
                await asyncio.to_thread(write_list, self._folder, found.content.scope, content)
            except EgsError as error:
                await self._journal.append(_refusal(found, error, peer))
                raise
            except OSError as error:
                raise _unwritable(f"{self._folder} cannot be written: {error.strerror}") from error
            self._host.known.put(found)
            durable = self._journal.submit([_addition(found, content, peer)], essential=True)
            reached = await self._push()
            self._standing.examine_all()  # what waited for a list may stand
            await asyncio.shield(durable)
            reached += await self._running.respond()
            await self._journal.flush()
        listed = found.content
        said = (
            f"number {listed.number} of scope {listed.scope} revokes {listed.count} things{_words(reached)}"
        )
        return protocol.Done(message=f"is the list in force: {said}", id=found.digest)

    async def _again(self, found: SignedList, content: bytes) -> protocol.Done:
        """The list that is in force already. Its file may have been lost."""
        if found.content.scope not in self._host.known.lists:
            await asyncio.to_thread(write_list, self._folder, found.content.scope, content)
            self._host.known.put(found)
            await self._push()
            self._standing.examine_all()
        return protocol.Done(message="is the list in force already", id=found.digest)

    async def _push(self) -> int:
        """Out of the gate, and what runs by it is responded to; how many processes that were."""
        self._standing.withdraw_revoked()
        await self._launches.take_back("what authorizes it was revoked", self._host.is_revoked)
        return await self._running.respond()


def _words(reached: int) -> str:
    return f"; {reached} processes ran by it" if reached else ""


def _addition(found: SignedList, content: bytes, peer: Peer) -> RevocationListChange:
    listed = found.content
    return RevocationListChange(
        action="added",
        scope=listed.scope,
        number=listed.number,
        digest=found.digest,
        issued_at=listed.issued_at,
        next_update=listed.next_update,
        revokes=listed.count,
        signers=found.signers,
        peer=peer,
        envelope=content.decode(),
    )


def _refusal(found: SignedList | None, error: EgsError, peer: Peer) -> RevocationListChange:
    scope, number, digest = (
        ("", 0, "") if found is None else (found.content.scope, found.content.number, found.digest)
    )
    _log.warning("a revocation list was refused: %s", error)
    return RevocationListChange(
        action="refused",
        scope=scope,
        number=number,
        digest=digest,
        reason=error.reason,
        detail=error.message,
        peer=peer,
    )


def _unwritable(problem: str) -> EgsError:
    return EgsError(
        Reason.RECORD_UNAVAILABLE,
        problem,
        "What was revoked stays so as long as the record is kept; repair the disk and say it again.",
    )
