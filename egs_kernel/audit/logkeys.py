"""The keys that sign the log's checkpoints: made on the host at its first start, theirs alone, and replaced one by one.

`keys.json` lists the public keys, each with the size of the log at which it took over; `KEYID.key` is a private key,
for root. While a key takes over, the one before it signs as well, so that verifiers have time to learn the new one.
"""

from __future__ import annotations

import contextlib
import re
import threading
from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from egs_kernel.audit.keyfiles import read_private, write_private
from egs_kernel.audit.notes import Signer, VerifierKey, is_name
from egs_kernel.durable import replace_file, sync_folder
from egs_kernel.errors import EgsError, UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_private_file, require_private_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS: Final = "keys.json"
_LIMIT: Final = 1024 * 1024
_PRIVATE_NAME = re.compile(r"[0-9a-f]{8}\.key")


class LogKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key of the log.

    `key` is its vkey. It signs every checkpoint from the size `since` on; `until` (Unix seconds) is set when another key
    has taken over, and this one signs until then.
    """

    key: str
    since: int
    until: int | None = None

    @property
    def verifier(self) -> VerifierKey:
        """The key itself.

        Raises:
            NoteError: NOTE_MALFORMED: it is no vkey.
        """
        return VerifierKey.parse(self.key)


class KeyList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `keys.json` holds: whose keys, the oldest first; the last one is the log's key now."""

    v: int
    origin: str
    keys: tuple[LogKey, ...]

    @property
    def current(self) -> VerifierKey:
        """The key that verifiers should know."""
        return self.keys[-1].verifier

    @property
    def verifiers(self) -> tuple[VerifierKey, ...]:
        """Every key that the log ever had."""
        return tuple(key.verifier for key in self.keys)


def read_keys(folder: Path) -> KeyList:
    """The public keys of the log whose keys are in `folder`.

    Raises:
        EgsError: NOT_FOUND: there is no list, or it may not be read; PATH_UNSAFE; CONFIG_INVALID: it is damaged.
    """
    path = folder / KEYS
    try:
        path.stat()  # missing folders are no unsafe ones
        content = read_private_file(path, _LIMIT)
    except OSError as error:
        raise EgsError(
            Reason.NOT_FOUND,
            f"cannot read {path}: {error.strerror}",
            "The daemon makes the log's key at its first start. Reading takes root, or the group of the record.",
        ) from error
    try:
        found = msgspec.json.decode(content, type=KeyList)
        names = {verifier.name for verifier in found.verifiers}
    except (msgspec.DecodeError, UnicodeDecodeError, EgsError) as error:
        raise _damaged(path, str(error)) from error
    if found.v != 1 or names != {found.origin}:
        raise _damaged(path, "it is of another version, or has no keys of its origin")
    return found


class LogKeys:
    """The keys of one log, private ones included. Use `LogKeys.open`; one process has them, the daemon."""

    def __init__(self, folder: Path, listed: KeyList, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._listed = listed
        self._signing: tuple[tuple[Signer, int | None], ...] = ()
        self._lock = threading.Lock()  # which private keys there are
        self._adopt(listed)

    @classmethod
    def open(cls, folder: Path, origin: str, clock: Callable[[], float]) -> LogKeys:
        """The keys in `folder`, with a first one when there is none.

        Args:
            folder: `Paths.log_keys`.
            origin: the log's origin; its keys are named after it.
            clock: Unix seconds.

        Raises:
            EgsError: CONFIG_INVALID (the keys are another log's, or damaged), PATH_UNSAFE, NOT_FOUND (a private key is
                gone), RECORD_UNAVAILABLE (none can be made).
        """
        if not is_name(origin):
            raise UsageError(
                Reason.CONFIG_INVALID,
                f"record.origin: {origin!r} has spaces or a plus, or is empty",
                "Use a name such as egs-kernel/HOST/record.",
            )
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            require_private_folder(folder)
            if not (folder / KEYS).exists():
                key = _create_private(folder, origin)
                _write(folder, KeyList(1, origin, (LogKey(str(key), 0),)))
        except OSError as error:
            raise _unwritable(folder, error) from error
        listed = read_keys(folder)
        if listed.origin != origin:
            raise UsageError(
                Reason.CONFIG_INVALID,
                f"the keys in {folder} are those of the log {listed.origin}, not of {origin}",
                "Configure that origin ([record] origin), or move that folder and the record away to begin a new log.",
            )
        return cls(folder, listed, clock)

    @property
    def listed(self) -> KeyList:
        """The public keys."""
        return self._listed

    def signers(self) -> tuple[Signer, ...]:
        """Who signs a checkpoint now: the current key first, and the one before it while it is being replaced.

        A key whose time is over is destroyed by then.
        """
        if len(self._signing) > 1:
            now = self._clock()
            if any(until is not None and until <= now for _signer, until in self._signing):
                self._retire(now)
        return tuple(signer for signer, _until in self._signing)

    def _retire(self, now: float) -> None:
        with self._lock:
            self._signing = tuple(item for item in self._signing if item[1] is None or now < item[1])
            # What cannot be removed signs nothing all the same; the next start tries again, and says why it cannot.
            with contextlib.suppress(EgsError):
                self._forget()

    def rotate(self, size: int, overlap: int) -> VerifierKey:
        """Let a new key take over; durable when this returns.

        Args:
            size: the log's size: what is signed from now on has at least that many entries.
            overlap: seconds for which the current key signs as well.

        Returns:
            The new key.

        Raises:
            EgsError: RECORD_UNAVAILABLE: it cannot be made; the current one stays.
        """
        with self._lock:
            return self._rotate(size, int(self._clock()) + overlap)

    def _rotate(self, size: int, until: int) -> VerifierKey:
        before = tuple(
            msgspec.structs.replace(key, until=until) if key.until is None else key
            for key in self._listed.keys
        )
        try:
            key = _create_private(self._folder, self._listed.origin)
            listed = KeyList(1, self._listed.origin, (*before, LogKey(str(key), size)))
            _write(self._folder, listed)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._adopt(listed)
        return key

    def _adopt(self, listed: KeyList) -> None:
        now = self._clock()
        signing = tuple(
            (_load_private(self._folder, key.verifier), key.until)
            for key in reversed(listed.keys)
            if key.until is None or now < key.until
        )
        self._listed, self._signing = listed, signing  # whole: `signers` may be asked by another thread
        self._forget()

    def _forget(self) -> None:
        """Remove private keys that sign nothing any more: what is gone cannot be stolen."""
        wanted = {_file_name(signer.key) for signer, _until in self._signing}
        try:
            for path in list(self._folder.iterdir()):
                if _PRIVATE_NAME.fullmatch(path.name) and path.name not in wanted:
                    path.unlink()
            sync_folder(self._folder)
        except OSError as error:
            raise _unwritable(self._folder, error) from error


def _file_name(key: VerifierKey) -> str:
    return f"{key.key_id.hex()}.key"


def _create_private(folder: Path, origin: str) -> VerifierKey:
    private = Ed25519PrivateKey.generate()
    key = Signer(origin, private).key
    write_private(folder / _file_name(key), private)
    return key


def _load_private(folder: Path, key: VerifierKey) -> Signer:
    path = folder / _file_name(key)
    signer = Signer(key.name, read_private(path))
    if signer.key != key:
        raise _damaged(path, "it is another key than the one that bears its name")
    return signer


def _write(folder: Path, listed: KeyList) -> None:
    content = msgspec.json.format(msgspec.json.encode(listed), indent=2) + b"\n"
    replace_file(folder / KEYS, content, 0o640)


def _damaged(path: Path, problem: str) -> UsageError:
    return UsageError(
        Reason.CONFIG_INVALID,
        f"{path} is damaged: {problem}",
        f"Restore {path.parent} as it was. If it is lost, move it and the record away: a new log begins.",
    )


def _unwritable(folder: Path, error: OSError) -> EgsError:
    return EgsError(
        Reason.RECORD_UNAVAILABLE,
        f"cannot write into {folder}: {error.strerror or error}",
        f"Free space or repair the disk (df {folder}; dmesg).",
    )
