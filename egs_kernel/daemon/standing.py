"""Standing artifacts: the folder of artifacts, kept in step with the grants in the gate.

Each file is a candidate. It is examined when it appears, when it or what it names is touched, when its
window opens or closes, and when configuration, trust, posture or clock change. One examination runs at a
time; whatever happens while it waits for a disk makes it start over, so nothing is installed on grounds that
no longer hold. A candidate that does not stand is listed with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from egs_kernel.artifact.envelope import MAX_ARTIFACT
from egs_kernel.audit.entries import ArtifactChange
from egs_kernel.daemon.candidate import Candidate
from egs_kernel.daemon.host import cgroup_number, now
from egs_kernel.daemon.permits import permit
from egs_kernel.daemon.programs import digests_of
from egs_kernel.daemon.verdicts import Trial
from egs_kernel.daemon.watch import FOLDER
from egs_kernel.errors import EgsError, Refused, UsageError
from egs_kernel.model import Intent, Reason
from egs_kernel.ownership import read_private_file, require_private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from egs_kernel import verify
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.daemon.programs import Surveyor
    from egs_kernel.daemon.protocol import ArtifactStatus
    from egs_kernel.daemon.watch import Watcher
    from egs_kernel.gate.pins import Gate


class Standing:
    """The candidates and their grants. Everything here belongs to the event loop's thread.

    Args:
        folder: `Paths.artifacts`.
        gate: where grants go.
        host: what the verifier is told.
        journal: where it is recorded.
        surveyor: measures programs.
        watcher: tells of changes.
        drain: takes in what the gate has to say, so that uses are counted.
    """

    def __init__(  # noqa: PLR0913 - the composition root wires it, once
        self,
        folder: Path,
        *,
        gate: Gate,
        host: Host,
        journal: Journal,
        surveyor: Surveyor,
        watcher: Watcher,
        drain: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._gate = gate
        self._host = host
        self._journal = journal
        self._surveyor = surveyor
        self._watcher = watcher
        self._drain = drain
        self._candidates: dict[str, Candidate] = {}
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self.examined: Callable[[verify.Artifact], None] = lambda _artifact: None
        self.left: Callable[[verify.Artifact], None] = lambda _artifact: None

    # -- the folder ------------------------------------------------------------------------------

    def open(self) -> None:
        """Watch the folder, made when it is missing, and read every file of it; measure nothing yet.

        Raises:
            UnsafePath: others could change the folder.
        """
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        require_private_folder(self._folder)
        self._watcher.add(self._folder, FOLDER, self.changed)
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):  # removed this instant
                self._read(name)
                self._candidates[name].origin = "in the folder when the daemon started"
        self.examine_all()

    def reconcile(self) -> int:
        """After a restart: adopt the grants of our artifacts, withdraw all others; how many were withdrawn."""
        owners = {c.artifact.id: c for c in self._candidates.values() if c.artifact is not None}
        withdrawn = 0
        for grant in self._gate.standing():
            owner = owners.get(grant.artifact_id)
            if owner is None or owner.grant_id is not None or self._is_revoked(owner):
                self._gate.withdraw(grant.grant_id)
                withdrawn += 1
            else:
                owner.grant_id = grant.grant_id
        return withdrawn

    def changed(self, name: str) -> None:
        """Something happened to the file `name` of the folder; "": to the folder itself."""
        if not name:
            self.rescan()
        elif not name.startswith("."):
            self._touch(name)

    def rescan(self) -> None:
        """Look at the whole folder, and at everything that the artifacts name, again."""
        self._look_for_new()
        self.examine_all()

    def examine_all(self) -> None:
        """Examine every candidate again."""
        for name in self._candidates:
            self._touch(name)

    def retry(self) -> None:
        """Examine what may have come by a way that nobody watches: new files, and programs of refused ones."""
        self._look_for_new()
        for candidate in self._candidates.values():
            if candidate.state == "refused":
                self._touch(candidate.file)

    def _look_for_new(self) -> None:
        self._watcher.add(
            self._folder, FOLDER, self.changed
        )  # again: another folder may have taken its place
        with contextlib.suppress(OSError):  # the folder is gone: so is every file, as the examinations find
            for name in set(self._names()) - self._candidates.keys():
                self._touch(name)

    def examine(self, artifact_id: str) -> None:
        """Examine the candidates with this artifact again."""
        for candidate in self._with_id(artifact_id):
            self._touch(candidate.file)

    def _touch(self, name: str) -> None:
        candidate = self._candidates.get(name)
        if candidate is not None:
            candidate.generation += 1
        self._dirty[name] = None
        self._idle.clear()
        self._wake.set()

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    # -- what others ask -------------------------------------------------------------------------

    def artifacts(self, digest: str) -> list[verify.Artifact]:
        """The authenticated artifacts for a program with this digest, the last to expire first."""
        found = {
            candidate.artifact.id: candidate.artifact
            for candidate in self._candidates.values()
            if candidate.artifact is not None and candidate.artifact.statement.program.digest.sha256 == digest
        }
        return sorted(
            found.values(), key=lambda artifact: artifact.statement.predicate.not_after, reverse=True
        )

    def all(self) -> Iterator[verify.Artifact]:
        """Every artifact that authenticates."""
        return (c.artifact for c in self._candidates.values() if c.artifact is not None)

    def find(self, artifact_id: str) -> verify.Artifact | None:
        """The artifact with this id, if it is in the folder."""
        return next((candidate.artifact for candidate in self._with_id(artifact_id)), None)

    def list(self) -> tuple[ArtifactStatus, ...]:
        """Every file with its state."""
        uses = self._journal.uses()
        return tuple(candidate.status(uses) for _, candidate in sorted(self._candidates.items()))

    def count(self, state: str) -> int:
        """How many candidates are in this state."""
        return sum(candidate.state == state for candidate in self._candidates.values())

    def file_of(self, beginning: str) -> Path:
        """The file of the artifact whose id begins so.

        Raises:
            UsageError: there is none, or several do.
        """
        found = {
            candidate.artifact.id: candidate.file
            for candidate in self._candidates.values()
            if candidate.artifact is not None and candidate.artifact.id.startswith(beginning)
        }
        if not beginning or len(found) != 1:
            problem = "several artifacts begin with" if found else "no artifact in the folder has the id"
            raise UsageError(Reason.NOT_FOUND, f"{problem} {beginning!r}", "Run: egs artifacts list")
        return self._folder / next(iter(found.values()))

    def withdraw(self, artifact_id: str) -> None:
        """Withdraw an artifact's grant now, and examine it again."""
        for candidate in self._with_id(artifact_id):
            self._withdraw(candidate)
            self._touch(candidate.file)

    def withdraw_revoked(self) -> None:
        """Withdraw the grants of all that is revoked now, and examine that again."""
        for candidate in self._candidates.values():
            if candidate.trial.reason is not Reason.REVOKED and self._is_revoked(candidate):
                self._withdraw(candidate)
                self._touch(candidate.file)  # also what is being examined: it is not installed after that

    def _is_revoked(self, candidate: Candidate) -> bool:
        return candidate.artifact is not None and self._host.is_revoked(candidate.artifact)

    def withdraw_all(self) -> None:
        """Withdraw every grant now, and examine everything again."""
        for candidate in self._candidates.values():
            self._withdraw(candidate)
        self.examine_all()

    def next_boundary(self, moment: datetime) -> datetime | None:
        """When the next window opens or closes after `moment`."""
        edges = [
            edge
            for candidate in self._candidates.values()
            if candidate.artifact is not None
            for edge in candidate.artifact.statement.predicate.window
            if edge > moment
        ]
        return min(edges, default=None)

    async def settled(self) -> None:
        """Return when no examination is due."""
        await self._idle.wait()

    def _with_id(self, artifact_id: str) -> Iterator[Candidate]:
        for candidate in tuple(self._candidates.values()):
            if candidate.artifact is not None and candidate.artifact.id == artifact_id:
                yield candidate

    # -- examinations ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Examine what is due, for ever."""
        while True:
            if not self._dirty:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            name = next(iter(self._dirty))
            del self._dirty[name]
            await self._examine(name)

    async def _examine(self, name: str) -> None:
        try:
            self._read(name)
        except FileNotFoundError:
            await self._remove(name)
            return
        candidate = self._candidates[name]
        generation = candidate.generation
        await self._try(candidate)
        if candidate.trial.error is not None:
            self._withdraw(candidate)
        if candidate.generation != generation:
            return  # it is due again already
        news = candidate.news(str(self._folder / name), self._host)
        if news:
            await self._journal.append(*news)
        if candidate.trial.error is None and candidate.generation == generation:
            self._install(candidate)
        if news and candidate.artifact is not None:
            self.examined(candidate.artifact)

    def _read(self, name: str) -> None:
        """Take in the file's content. A file that is unsafe or no artifact is a refused candidate."""
        trial = Trial()
        content = b""
        try:
            content = read_private_file(self._folder / name, MAX_ARTIFACT)
            trial.authenticate(content, self._host.settings.trust, now())
        except FileNotFoundError:
            raise
        except EgsError as error:
            trial.error = error
        except OSError as error:
            trial.error = Refused(Reason.PATH_UNSAFE, f"{name} cannot be read: {error.strerror}")
        candidate = self._candidates.setdefault(name, Candidate(name, content, trial))
        if candidate.trial.artifact_id != trial.artifact_id:
            self._withdraw(candidate)
            if candidate.artifact is not None:
                self.left(candidate.artifact)
            candidate.unwatch(self._watcher)
        candidate.content, candidate.trial = content, trial

    async def _remove(self, name: str) -> None:
        candidate = self._candidates.pop(name, None)
        if candidate is None:
            return
        self._withdraw(candidate)
        candidate.unwatch(self._watcher)
        if candidate.artifact is not None:
            self.left(candidate.artifact)
            source = str(self._folder / name)
            await self._journal.append(
                ArtifactChange(action="removed", artifact_id=candidate.artifact.id, source=source)
            )
            self.examine(candidate.artifact.id)  # a second file with it may stand now

    async def _try(self, candidate: Candidate) -> None:
        """Measure what the artifact names, and ask the verifier for a standing permission."""
        trial = candidate.trial
        artifact = trial.artifact
        if artifact is None:
            return
        try:
            candidate.watch(self._watcher, partial(self._touch, candidate.file))
            self._require_first(candidate, artifact)
            program = await self._surveyor.program_at(artifact.statement.program.name)
            measured = await self._surveyor.subjects_of(artifact.statement)
            trial.children = await self._surveyor.children_of(artifact.statement)
        except EgsError as error:
            trial.error = error
            return
        if artifact.statement.predicate.uses is not None:
            self._drain()  # what was executed is counted before what is left is computed
        candidate.program = program.measurement
        trial.named = tuple(measured.values())
        intent = Intent(
            program=program.path,
            digest=program.measurement.digest,
            program_kind=program.kind,
            measured=digests_of(measured),
        )
        facts = self._host.facts(artifact, uses=self._journal.uses())
        trial.authorize(intent, facts, now(), partial(permit, self._host))

    def _require_first(self, candidate: Candidate, artifact: verify.Artifact) -> None:
        first = min(other.file for other in self._with_id(artifact.id))
        if candidate.file != first:
            raise UsageError(Reason.USAGE, f"{first} holds the same artifact", f"Remove {candidate.file}.")

    def _install(self, candidate: Candidate) -> None:
        """Put the grant into the gate. The old one goes after the new one is there."""
        authorization, program = candidate.trial.authorization, candidate.program
        if authorization is None or program is None:
            return
        try:
            grant = authorization.grant(
                program,
                candidate.trial.named,
                candidate.trial.children,
                boot_offset=self._host.clock_offset,
                cgroup_id=cgroup_number(authorization.cgroup),
                seccomp_filters=None,
            )
            grant_id = self._gate.install(grant)
        except EgsError as error:
            candidate.trial.error = error
            self._withdraw(candidate)
            return
        if candidate.grant_id not in (None, grant_id):
            self._withdraw(candidate)
        candidate.grant_id = grant_id

    def _withdraw(self, candidate: Candidate) -> None:
        if candidate.grant_id is not None:
            self._gate.withdraw(candidate.grant_id)
            candidate.grant_id = None
