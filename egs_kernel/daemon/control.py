"""What is asked of the daemon besides launches: who may ask it, and what is done.

Anyone may ask for a launch, for a short status and for their own processes. Everything that names other
people's programs or changes something is root's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from egs_kernel import verify
from egs_kernel.artifact.hosts import sign_host_statement
from egs_kernel.artifact.statement import format_time
from egs_kernel.audit.entries import LogKeyChange, Peer
from egs_kernel.daemon import protocol
from egs_kernel.daemon.host import now
from egs_kernel.durable import sync_folder
from egs_kernel.errors import EgsError, Refused
from egs_kernel.hostkey import host_signer
from egs_kernel.model import Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from egs_kernel.audit.logkeys import LogKeys
    from egs_kernel.daemon.activating import Activating
    from egs_kernel.daemon.drift import Drift
    from egs_kernel.daemon.holds import Holds
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.launches import Launches
    from egs_kernel.daemon.reports import Reports
    from egs_kernel.daemon.revoking import Revoking
    from egs_kernel.daemon.sealing import Sealing
    from egs_kernel.daemon.server import Connection
    from egs_kernel.daemon.standing import Standing
    from egs_kernel.daemon.witnesses import Witnesses
    from egs_kernel.paths import Paths

_SETTLE_SECONDS: Final = 100.0
_LONGEST_OVERLAP: Final = 10 * 366 * 86400
_FOR_EVERYONE: Final = (
    protocol.LaunchRequest
    | protocol.StatusRequest
    | protocol.ProcessesRequest
    | protocol.HostStatementRequest
)


class Control:
    """Serves one connection after the other; see `serve`."""

    def __init__(  # noqa: PLR0913 - the composition root wires it, once
        self,
        paths: Paths,
        *,
        host: Host,
        journal: Journal,
        standing: Standing,
        launches: Launches,
        holds: Holds,
        reports: Reports,
        sealing: Sealing,
        keys: LogKeys,
        witnesses: Witnesses,
        drift: Drift,
        lend: Callable[[protocol.LentRequest, Connection], protocol.Answer],
        revoking: Revoking,
        activating: Activating,
        reload: Callable[[str, Peer], Awaitable[None]],
    ) -> None:
        self._paths = paths
        self._host = host
        self._journal = journal
        self._standing = standing
        self._launches = launches
        self._holds = holds
        self._reports = reports
        self._sealing = sealing
        self._keys = keys
        self._witnesses = witnesses
        self._drift = drift
        self._lend = lend
        self._revoking = revoking
        self._activating = activating
        self._reload = reload

    async def serve(self, connection: Connection) -> None:
        """Read one request, do it, answer.

        Raises:
            EgsError: it was refused or failed; the server answers that.
        """
        request = await connection.receive()
        if not connection.peer.is_root and not self._may_ask(connection, request):
            raise Refused(Reason.NOT_PERMITTED, "only root may ask this", "Run it as root (sudo).")
        if isinstance(request, protocol.LaunchRequest):
            await self._launches.serve(connection, request)
        else:
            await connection.send(await self._answer(connection, request))

    def _may_ask(self, connection: Connection, request: protocol.Request) -> bool:
        """Whether somebody who is not root may ask this. What a witness said is shown by signatures; it costs some reading."""
        if isinstance(request, protocol.WitnessRequest):
            return self._paths.record.stat().st_gid in connection.peer.groups
        return isinstance(request, _FOR_EVERYONE)

    async def _answer(self, connection: Connection, request: protocol.Request) -> protocol.Answer:  # noqa: PLR0911 - one a request
        peer = connection.peer
        match request:
            case protocol.StatusRequest():
                return self._reports.status(detailed=peer.is_root)
            case protocol.ProcessesRequest():
                return self._reports.processes(None if peer.is_root else peer.uid)
            case protocol.ArtifactsRequest():
                return protocol.ArtifactsAnswer(artifacts=self._standing.list())
            case protocol.HoldsRequest(after=after):
                return self._holds.page(after)
            case protocol.DriftRequest():
                return await self._drift.take(request)
            case (
                protocol.GovernedRequest()
                | protocol.IdentifyRequest()
                | protocol.RestrainRequest()
                | protocol.GuardRequest()
            ):
                return self._lend(request, connection)
            case protocol.RevocationsRequest():
                return self._reports.revocations()
            case protocol.PolicyRequest():
                return self._policy()
            case protocol.HostStatementRequest(intent_digest=digest):
                return self._host_statement(digest, peer.uid)
        return await self._change(request, Peer(peer.task.pid, peer.uid, peer.gid))

    async def _change(self, request: protocol.Request, peer: Peer) -> protocol.Done:  # noqa: C901, PLR0911, PLR0912 - one a request
        match request:
            case protocol.AddArtifactRequest(artifact=content):
                return await self._add(content)
            case protocol.RemoveArtifactRequest(id=beginning):
                return await self._remove(beginning)
            case protocol.RevokeRequest(id=thing, kind=kind, why=why):
                return await self._revoking.revoke(kind, thing, why, peer)
            case protocol.AddRevocationsRequest(content=content):
                return await self._revoking.add(content, peer)
            case protocol.ActivatePolicyRequest(content=content):
                return await self._activating.activate(content, peer)
            case protocol.ApproveHoldRequest(id=hold_id, artifact=content):
                return await self._holds.approve(hold_id, content, peer)
            case protocol.DenyHoldRequest(id=hold_id, why=why):
                return await self._holds.deny(hold_id, why, peer)
            case protocol.SealRequest():
                await self._sealing.seal("asked for", peer)
                return protocol.Done(message="the gate is sealed")
            case protocol.UnsealRequest(artifact=content):
                artifact_id, until = await self._sealing.unseal(content, peer)
                return protocol.Done(message=f"lifts the seal until {format_time(until)}", id=artifact_id)
            case protocol.ReloadRequest():
                await self._reload("asked for", peer)
                return protocol.Done(message="configuration, trust, policy and artifacts were read again")
            case protocol.RotateLogKeyRequest(overlap=overlap):
                return await self._rotate_log_key(overlap, peer)
            case protocol.WitnessRequest():
                return await self._witnesses.take(request)
            case _:
                raise protocol.protocol_error("this message answers nothing that was said")

    def _host_statement(self, digest: str, uid: int) -> protocol.HostStatementAnswer:
        """That this user asks here: the user whom the kernel names, and nobody else's word for it."""
        host = self._host.settings.host_id
        signer = host_signer(self._paths.host_keys, host)
        statement = sign_host_statement(signer, host_id=host, uid=uid, intent_digest=digest, now=now())
        return protocol.HostStatementAnswer(statement=statement)

    def _policy(self) -> protocol.PolicyAnswer:
        policy = self._host.policy
        return protocol.PolicyAnswer(
            digest=policy.digest,
            name=policy.name,
            version=policy.version,
            scopes=tuple(sorted(policy.scopes)),
            problem=policy.problem or next(iter(self._host.policy_revocations().values()), ""),
            pid=policy.pid,
        )

    async def _add(self, content: bytes) -> protocol.Done:
        """Take an artifact into the folder. One that authenticates but does not stand is kept, and refused."""
        artifact = verify.authenticate(content, self._host.settings.trust, now())
        name = f"{artifact.id}.json"
        await asyncio.to_thread(self._write, name, content)
        self._standing.changed(name)
        await self._settled()
        found = next((status for status in self._standing.list() if status.id == artifact.id), None)
        if found is None:
            raise Refused(Reason.NOT_FOUND, "the artifact was removed again", "Look who changes the folder.")
        if found.state in ("refused", "revoked"):
            raise Refused(
                Reason[found.reason.upper()],
                f"the artifact {artifact.id} was added, but does not stand: {found.message}",
                "Correct that, or run: egs artifacts remove " + artifact.id[:16],
            )
        words = {"standing": "stands", "launch": "was added; it takes egs run"}
        return protocol.Done(message=words.get(found.state, "was added"), id=artifact.id)

    def _write(self, name: str, content: bytes) -> None:
        """Whole or not at all; names that begin with a dot are not looked at."""
        folder = self._paths.artifacts
        temporary = folder / f".{name}.new"
        try:
            with temporary.open("wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(folder / name)
            sync_folder(folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise EgsError(
                Reason.PATH_UNSAFE, f"cannot write into {folder}: {error.strerror}", f"Check: df {folder}"
            ) from error

    async def _remove(self, beginning: str) -> protocol.Done:
        path = self._standing.file_of(beginning)
        artifact_id = next(status.id for status in self._standing.list() if status.file == path.name)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        sync_folder(path.parent)
        self._standing.withdraw(artifact_id)
        await self._settled()
        return protocol.Done(message="was removed", id=artifact_id)

    async def _rotate_log_key(self, overlap: int, peer: Peer) -> protocol.Done:
        if not 0 <= overlap <= _LONGEST_OVERLAP:
            raise Refused(Reason.USAGE, "an overlap is at most ten years", "Use --overlap 30d.")
        before = self._keys.listed.current
        key = await asyncio.to_thread(self._keys.rotate, self._journal.size, overlap)
        until = format_time(now() + timedelta(seconds=overlap))
        await self._journal.append(LogKeyChange(key=str(key), previous=str(before), until=until, peer=peer))
        words = f"signs as well until {until}" if overlap else "signs no more"
        said = f"the one before it {words}; tell those who verify, and the witnesses"
        return protocol.Done(message=said, id=str(key))

    async def _settled(self) -> None:
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._standing.settled()
        except TimeoutError as error:
            raise EgsError(
                Reason.MEASUREMENT_RACED, "it is not examined yet", "Look later: egs artifacts list"
            ) from error
