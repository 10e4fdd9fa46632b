"""Sealed mode: who may seal (root), who may lift that (a maintenance artifact), and what is recorded of it.

The gate itself seals again when a maintenance is over, to the nanosecond and without the daemon. The daemon does it a
moment earlier, so that what the maintenance has changed is what is kept from then on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.statement import format_time
from egs_kernel.audit.entries import Peer, Revocation, SealChange
from egs_kernel.daemon.host import now
from egs_kernel.daemon.kept import collect, require_own_view
from egs_kernel.daemon.revocations import write_revocation
from egs_kernel.errors import EgsError, HostLacks, Refused
from egs_kernel.gate.seal import boot_now
from egs_kernel.maintenance import SCOPE, authenticate_maintenance, permit, require_liftable
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from datetime import datetime

    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.gate.pins import Gate
    from egs_kernel.gate.seal import Seal
    from egs_kernel.paths import Paths

SEAL_EARLY_SECONDS: Final = 2.0
"""How long before the end of a maintenance the daemon seals."""
ALARM_SECONDS: Final = 60
"""A sealed daemon that hangs so long is ended by the kernel: nobody else could."""

_log = logging.getLogger(__name__)


class Sealing:
    """Seals the gate, and lifts the seal."""

    def __init__(self, paths: Paths, *, gate: Gate, host: Host, journal: Journal) -> None:
        self._paths = paths
        self._gate = gate
        self._host = host
        self._journal = journal
        self._lock = asyncio.Lock()
        self._lifted = asyncio.Event()

    @property
    def word(self) -> str:
        """sealed, lifted or unsealed."""
        seal = self._gate.seal
        return "unsealed" if seal is None else seal.state().word(boot_now())

    @property
    def lifted_until(self) -> str:
        """Until when the seal is lifted; empty when it is not."""
        seal = self._gate.seal
        state = None if seal is None else seal.state()
        if state is None or state.word(boot_now()) != "lifted":
            return ""
        return format_time(self._host.real_time(state.lifted_until))

    async def start(self) -> None:
        """When the daemon is ready: seal as configured, or take the place of the daemon that was sealed with.

        Raises:
            EgsError: it is to be sealed and cannot be.
        """
        if self.word == "lifted":
            await (
                self._register()
            )  # a new version, perhaps: from the end of the maintenance on it is what is kept
            self._lifted.set()
        elif self.word == "unsealed" and self._host.settings.config.sealed:
            await self.seal("configured")

    async def run(self) -> None:
        """Keep the kernel's alarm away, and seal at the end of each maintenance; for ever."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        while True:
            await asyncio.sleep(self._pause())
            if self.word == "lifted" and self._remaining() <= SEAL_EARLY_SECONDS:
                await self.seal("the maintenance is over")
            signal.alarm(ALARM_SECONDS if self.word == "sealed" else 0)

    async def seal(self, cause: str, peer: Peer | None = None) -> None:
        """Seal the gate; recorded before it is done.

        Raises:
            HostLacks: this gate cannot be sealed.
            EgsError: nobody could lift it, or what is to be kept cannot be found out.
        """
        async with self._lock:
            if self.word == "sealed":
                return
            self._require_seal()
            require_liftable(self._host.trust_for(SCOPE), now())
            seal = await self._register()
            await self._journal.append(SealChange(action="sealed", cause=cause, peer=peer))
            seal.close(_host_namespace())
            _log.warning("the gate is sealed: %s", cause)

    async def unseal(self, content: bytes, peer: Peer) -> tuple[str, datetime]:
        """Lift the seal as a maintenance artifact says: its id, and until when. Used up before it is done.

        Raises:
            Refused: it does not permit that.
        """
        async with self._lock:
            seal = self._require_seal()
            moment = now()
            maintenance = authenticate_maintenance(content, self._host.trust_for(SCOPE), moment)
            until = permit(
                maintenance,
                host_id=self._host.settings.host_id,
                spent=frozenset(self._host.known.of(SCOPE).artifact),
                now=moment,
            )
            if self.word != "sealed":
                raise Refused(Reason.USAGE, "the gate is not sealed", "Keep the artifact for when it is.")
            predicate = maintenance.statement.predicate
            lifted = SealChange(
                action="lifted",
                until=predicate.not_after,
                artifact_id=maintenance.id,
                purpose=predicate.purpose,
                operator=predicate.operator,
                signers=maintenance.signers,
                peer=peer,
                envelope=content.decode(),
            )
            since = format_time(moment)
            spent = Revocation(
                kind="artifact", thing=maintenance.id, since=since, why="a maintenance is for once", peer=peer
            )
            self._host.known.revoke("artifact", maintenance.id, since)
            await self._journal.append(lifted, spent)
            await asyncio.to_thread(
                write_revocation, self._paths.revocations, "artifact", maintenance.id, since
            )
            seal.lift(self._host.boot_time(until))
            self._lifted.set()
            _log.warning("the seal is lifted until %s: %s", predicate.not_after, predicate.purpose)
            return maintenance.id, until

    async def _register(self) -> Seal:
        seal = self._require_seal()
        try:
            kept = await asyncio.to_thread(collect, self._paths, self._gate)
        except OSError as error:
            raise EgsError(
                Reason.PATH_UNSAFE, f"what is to be kept cannot be inspected: {error}", "Correct that first."
            ) from error
        seal.register(kept)
        return seal

    def _require_seal(self) -> Seal:
        if self._gate.seal is None:
            from egs_kernel.gate.tiers import lsm_finding  # noqa: PLC0415 - a megabyte, for this answer alone

            finding = lsm_finding()
            raise HostLacks(
                Reason.KERNEL_UNSUPPORTED,
                "only a gate on the tier lsm can be sealed, this one is on the tier tracepoint"
                + (f": {finding.detail}" if finding.detail else ""),
                finding.cure or 'Set tier = "lsm" in egs.toml, then: egs gate unload && egs gate load',
            )
        return self._gate.seal

    def _remaining(self) -> float:
        seal = self._gate.seal
        return 0.0 if seal is None else (seal.state().lifted_until - boot_now()) / 1e9

    def _pause(self) -> float:
        if self.word != "lifted":
            return 1.0
        return min(1.0, max(0.05, self._remaining() - SEAL_EARLY_SECONDS))


def become_daemon(paths: Paths, seal: Seal | None) -> None:
    """A daemon that starts: when the gate is sealed, it has just become its daemon, by having opened it.

    Raises:
        EgsError: PATH_UNSAFE; its paths are not those that are kept.
    """
    if seal is not None and seal.state().in_force(boot_now()):
        require_own_view(paths, seal)


def _host_namespace() -> int:
    return os.stat("/proc/1/ns/mnt").st_ino  # noqa: PTH116 - a link whose target is no path
