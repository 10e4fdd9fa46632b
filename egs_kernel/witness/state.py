"""What a witness must never forget: its key, and the last checkpoint that it cosigned of each log."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from egs_kernel.audit.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from egs_kernel.audit.keyfiles import read_private, write_private
from egs_kernel.audit.notes import MAX_NOTE, KeyType, Note, Signature, Signer
from egs_kernel.durable import replace_file
from egs_kernel.errors import EgsError, NoteError, UsageError
from egs_kernel.locks import locked
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file, require_private_folder
from egs_kernel.witness.judge import judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from egs_kernel.audit.notes import VerifierKey
    from egs_kernel.witness.submission import Submission

PRIVATE_KEY: Final = "witness.key"
_LOCK: Final = "lock"


class State:
    """A witness's memory. Use `opened`; several threads may ask, one process has it."""

    def __init__(
        self,
        folder: Path,
        signer: Signer,
        logs: Mapping[str, tuple[VerifierKey, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._signer = signer
        self._logs = logs
        self._clock = clock
        self._lock = threading.Lock()
        self._latest = {origin: found for origin in logs if (found := self._load(origin)) is not None}

    @property
    def key(self) -> VerifierKey:
        """The key that verifies its cosignatures."""
        return self._signer.key

    def add(self, submission: Submission) -> Signature:
        """Cosign, once what is cosigned is durable.

        Raises:
            NotCosigned: it may not.
            EgsError: RECORD_UNAVAILABLE: what would be cosigned cannot be kept.
        """
        with self._lock:  # the comparison with the latest and its replacement are one step
            signed = judge(submission, self._logs, self._latest.get)
            checkpoint = signed.checkpoint
            cosignature = self._signer.cosign(checkpoint.text, int(self._clock()))
            self._keep(signed, cosignature)
            self._latest[checkpoint.origin] = checkpoint
            return cosignature

    def published(self, name: str) -> bytes | None:
        """The latest cosigned checkpoint of the log whose origin has this SHA-256 (hex); None when there is none."""
        for origin in self._logs:
            if origin_hash(origin) == name:
                return self._read(origin)
        return None

    def _keep(self, signed: SignedCheckpoint, cosignature: Signature) -> None:
        lines = (*(item.signature for item in signed.signatures), cosignature)
        path = self._path(signed.checkpoint.origin)
        try:
            replace_file(path, Note(signed.note.text, lines).encode(), 0o600)
        except OSError as error:
            raise _unavailable(path, error) from error

    def _load(self, origin: str) -> Checkpoint | None:
        content = self._read(origin)
        if content is None:
            return None
        try:
            return open_checkpoint(content, origin, [self.key]).checkpoint
        except NoteError as error:
            raise UsageError(
                Reason.CONFIG_INVALID,
                f"{self._path(origin)} is not what this witness cosigned: {error.message}",
                "Restore it. A witness that forgot what it cosigned needs a new name and a new key.",
            ) from error

    def _read(self, origin: str) -> bytes | None:
        path = self._path(origin)
        try:
            return read_private_file(path, MAX_NOTE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(path, error) from error

    def _path(self, origin: str) -> Path:
        return self._folder / f"{origin_hash(origin)}.checkpoint"


def origin_hash(origin: str) -> str:
    """How a log is named in addresses: the SHA-256 of its origin, in hex."""
    return hashlib.sha256(origin.encode()).hexdigest()


@contextmanager
def opened(
    folder: Path, name: str, logs: Mapping[str, tuple[VerifierKey, ...]], clock: Callable[[], float]
) -> Iterator[State]:
    """The witness's state in a folder, while nobody else has it; with a key, when it has none yet.

    Args:
        folder: its folder; it must be there.
        name: what the witness's key is called.
        logs: the keys of each log that it cosigns, by origin.
        clock: Unix seconds.

    Raises:
        EgsError: PATH_UNSAFE, CONFIG_INVALID (what it has cosigned is damaged), DAEMON_RUNNING (there is one already),
            RECORD_UNAVAILABLE, NOTE_MALFORMED (no key can have that name).
    """
    signer = open_key(folder, name)
    taken = EgsError(
        Reason.DAEMON_RUNNING, f"another witness runs on {folder}", "One witness has one folder."
    )
    with locked(folder / _LOCK, taken):
        yield State(folder, signer, logs, clock)


def open_key(folder: Path, name: str) -> Signer:
    """The witness's key, made now when there is none and nothing was ever cosigned.

    Raises:
        EgsError: PATH_UNSAFE, NOT_FOUND (it is gone), CONFIG_INVALID, NOTE_MALFORMED, RECORD_UNAVAILABLE.
    """
    path = folder / PRIVATE_KEY
    require_private_folder(folder)
    try:
        if not os.path.lexists(path) and not any(folder.glob("*.checkpoint")):
            private = Ed25519PrivateKey.generate()
            signer = Signer(name, private, KeyType.COSIGNATURE)
            write_private(path, private)
            return signer
    except OSError as error:
        raise _unavailable(path, error) from error
    return Signer(name, read_private(path), KeyType.COSIGNATURE)


def _unavailable(path: Path, error: OSError) -> EgsError:
    return EgsError(
        Reason.RECORD_UNAVAILABLE,
        f"{path}: {error.strerror or error}",
        f"Free space or repair the disk (df {path.parent}; dmesg); nothing is cosigned until then.",
    )
