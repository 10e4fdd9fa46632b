"""What the witnesses of this host's log say: their cosignatures are kept, and where they have seen another log, that is an alarm.

The daemon has no network. A process without privilege submits checkpoints (`egs witness submit`) and hands in what comes
back; nothing of that is believed that its signatures do not show.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from egs_kernel.audit.checkpoint import SignedCheckpoint, open_checkpoint, with_signatures
from egs_kernel.audit.entries import WitnessAlarm
from egs_kernel.audit.notes import MAX_NOTE, Note, VerifierKey
from egs_kernel.audit.published import Published
from egs_kernel.audit.witnesses import Divergence, OwnLog, compare
from egs_kernel.config import parse_duration
from egs_kernel.daemon import protocol
from egs_kernel.durable import replace_file
from egs_kernel.errors import EgsError, NoteError, Refused
from egs_kernel.metrics import WitnessState
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from egs_kernel.audit.logkeys import LogKeys
    from egs_kernel.daemon.host import Host
    from egs_kernel.daemon.journal import Journal
    from egs_kernel.paths import Paths

LATE: Final = 5
"""Intervals without a cosignature that make a problem."""
_SHORTEST_WAIT: Final = 300.0
_WORDS: Final = 300
"""Characters of what a witness is said to have answered."""

_log = logging.getLogger(__name__)


@dataclass
class _Known:
    """What is known of one witness. `alarms`: what the record says about it already."""

    cosigned: float = 0.0
    size: int = 0
    problem: str = ""
    divergence: Divergence | None = None
    recorded: tuple[Divergence, int] | None = None


class Witnesses:
    """The witnesses that egs.toml names.

    Args:
        paths: where the record and the cosigned checkpoint are.
        host: the configuration in force.
        journal: the record.
        keys: the log's keys.
        clock: Unix seconds.
    """

    def __init__(
        self, paths: Paths, *, host: Host, journal: Journal, keys: LogKeys, clock: Callable[[], float]
    ) -> None:
        self._paths = paths
        self._host = host
        self._journal = journal
        self._keys = keys
        self._clock = clock
        self._started = clock()
        self._known: dict[VerifierKey, _Known] = {}
        self._one = asyncio.Lock()
        self._recall()

    def states(self) -> tuple[WitnessState, ...]:
        """Each configured witness."""
        return tuple(
            WitnessState(
                name=key.name,
                cosigned=known.cosigned,
                size=known.size,
                problem=self._problem(known),
                diverged=known.divergence is not None,
            )
            for key, known in ((key, self._known.get(key, _Known())) for key in self._configured())
        )

    def problems(self) -> tuple[str, ...]:
        """What an operator has to know, in words."""
        return tuple(f"witness {state.name}: {state.problem}" for state in self.states() if state.problem)

    async def take(self, request: protocol.WitnessRequest) -> protocol.Done:
        """Take what a witness answered.

        Raises:
            EgsError: it is no such answer, or cannot be kept or recorded.
        """
        key = next((key for key in self._configured() if str(key) == request.witness), None)
        if key is None:
            raise Refused(Reason.NOT_FOUND, f"no witness {request.witness} is configured", "Run: egs reload")
        async with self._one:
            return await self._take(key, request)

    async def _take(self, key: VerifierKey, request: protocol.WitnessRequest) -> protocol.Done:
        known = self._known.setdefault(key, _Known())
        if request.checkpoint is None:
            if request.refused:
                await self._alarm(key, known, Divergence.REFUSED, None, request)
            else:
                known.problem = request.problem[:_WORDS]
            return protocol.Done(message="noted")
        try:
            signed, divergence = await asyncio.to_thread(self._compare, request.checkpoint, key)
        except OSError as error:
            raise EgsError(
                Reason.RECORD_UNAVAILABLE,
                f"what the witness answered cannot be compared or kept: {error}",
                "Check the disk (dmesg, df), and run: egs audit verify",
            ) from error
        size = signed.checkpoint.size
        if divergence is not None:
            await self._alarm(key, known, divergence, signed, request)
            return protocol.Done(message=f"the witness has seen another record: {divergence.value}")
        if request.refused:  # yet what it cosigned is ours: it refuses the checkpoint for another reason
            known.problem = request.problem[:_WORDS]
            return protocol.Done(message="noted")
        known.cosigned = max(item.timestamp or 0 for item in signed.cosignatures)
        known.size, known.problem, known.divergence, known.recorded = size, "", None, None
        return protocol.Done(message=f"cosigned at {size} entries")

    async def _alarm(
        self,
        key: VerifierKey,
        known: _Known,
        divergence: Divergence,
        seen: SignedCheckpoint | None,
        request: protocol.WitnessRequest,
    ) -> None:
        size = 0 if seen is None else seen.checkpoint.size
        words = {
            Divergence.ROLLED_BACK: f"it has cosigned {size} entries, more than there are: THE RECORD WAS ROLLED BACK",
            Divergence.FORKED: f"it has cosigned other entries, {size} of them: THE RECORD WAS FORKED",
            Divergence.REFUSED: f"it refuses to cosign: {request.problem[:_WORDS]}",
        }
        known.problem, known.divergence = words[divergence], divergence
        if known.recorded == (divergence, size):
            return
        _log.error("witness %s: %s", key.name, known.problem)
        entry = WitnessAlarm(
            problem=divergence.value,
            witness=str(key),
            cosigned=size or None,
            entries=self._journal.size,
            detail=request.problem[:_WORDS],
            checkpoint=None if seen is None else _proven(seen).decode(),
        )
        await self._journal.append(entry)
        known.recorded = divergence, size

    def _compare(self, content: bytes, key: VerifierKey) -> tuple[SignedCheckpoint, Divergence | None]:
        """Compare, and keep what is good. Reads and writes a disk: for a thread."""
        files = Published(self._paths.record)
        listed = self._keys.listed
        log = OwnLog(listed.origin, listed.verifiers, self._journal.size, files.checkpoint(), files.tile)
        signed, divergence = compare(content, log, key)
        if divergence is None:
            self._keep(signed)
        return signed, divergence

    def _keep(self, signed: SignedCheckpoint) -> None:
        """Put the cosigned checkpoint where others find it; cosignatures of one checkpoint are added up."""
        content = _proven(signed)
        kept = self._kept()
        if kept is not None and kept.note.text == signed.note.text:
            content = with_signatures(_proven(kept), Note.parse(content).signatures)
        elif kept is not None and kept.checkpoint.size > signed.checkpoint.size:
            return
        replace_file(self._paths.cosigned, content, 0o640)

    def _kept(self) -> SignedCheckpoint | None:
        """The cosigned checkpoint of before, as far as its signatures are good; None when there is none."""
        listed = self._keys.listed
        try:
            content = read_private_file(self._paths.cosigned, MAX_NOTE)
            return open_checkpoint(content, listed.origin, listed.verifiers, self._configured())
        except FileNotFoundError:
            return None
        except NoteError as error:
            _log.warning("%s is replaced: %s", self._paths.cosigned, error)
            return None

    def _recall(self) -> None:
        try:
            kept = self._kept()
        except (EgsError, OSError) as error:
            _log.warning("%s: %s", self._paths.cosigned, error)
            return
        if kept is not None:
            for item in kept.cosignatures:
                self._known[item.key] = _Known(float(item.timestamp or 0), kept.checkpoint.size)

    def _configured(self) -> tuple[VerifierKey, ...]:
        return tuple(witness.key for witness in self._host.settings.witnesses)

    def _problem(self, known: _Known) -> str:
        interval = parse_duration(
            self._host.settings.config.record.witness_interval, "record.witness_interval"
        )
        silent = self._clock() - max(known.cosigned, self._started)
        if known.problem:
            return known.problem
        if silent > max(LATE * interval, _SHORTEST_WAIT):
            return f"has cosigned nothing for {silent:.0f} s: does egs-submit run?"
        return ""


def _proven(signed: SignedCheckpoint) -> bytes:
    """A checkpoint with the signatures that are good, and no others: what somebody else added is not kept."""
    lines = tuple(item.signature for item in (*signed.signatures, *signed.cosignatures))
    return Note(signed.note.text, lines).encode()
