"""What the authority sees of the files that an asker of its own host names: policies speak of paths, and a path is a claim."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Final

from egs_kernel.artifact.interpreters import program_kind
from egs_kernel.errors import Refused
from egs_kernel.measure import digest_of
from egs_kernel.model import ProgramKind, Reason

if TYPE_CHECKING:
    from egs_kernel.authority.intent import IntentDocument, NamedFile

MAX_FILE: Final = 512 * 1024 * 1024
"""Larger files are not hashed for whoever asks."""
_REMEMBERED: Final = 1024


class _UnknownError(Exception):
    """The file was not hashed yet, or was touched since."""


class Measurer:
    """Hashes files, and remembers what it found while a file is untouched. For several threads.

    What is remembered only saves time: the artifact binds the digest, and the node measures again before anything runs.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[tuple[int, ...], str, ProgramKind]] = OrderedDict()

    def check(self, document: IntentDocument) -> ProgramKind:
        """The kind of the program, if every file that can be read here is what the intent says that it is.

        The program must be readable. A script may lie where only its user may read: the node, which may, compares its path
        and digest with the artifact before it runs.

        Raises:
            Refused: DIGEST_MISMATCH, NOT_FOUND, NOT_PERMITTED, MEASUREMENT_RACED.
        """
        return self._check_all(document, hashing=True)

    def recall(self, document: IntentDocument) -> ProgramKind | None:
        """As `check`, when all of it is known already and untouched since; None: something has to be hashed.

        Raises:
            Refused: as `check`.
        """
        try:
            return self._check_all(document, hashing=False)
        except _UnknownError:
            return None

    def _check_all(self, document: IntentDocument, *, hashing: bool) -> ProgramKind:
        kind = self._check(document.program, must_read=True, hashing=hashing)
        for named in (*document.scripts, *document.libraries, *document.children):
            self._check(named, must_read=False, hashing=hashing)
        assert kind is not None  # noqa: S101 - for the type checker: must_read raises
        return kind

    def _check(self, named: NamedFile, *, must_read: bool, hashing: bool) -> ProgramKind | None:
        try:
            digest, kind = self._measure(named.path, hashing=hashing)
        except PermissionError as error:
            if not must_read:
                return None
            raise Refused(
                Reason.NOT_PERMITTED,
                f"the authority cannot read {named.path}: it cannot tell that this is the program there",
                "Let others read the program, or ask for one that the authority can read.",
            ) from error
        except OSError as error:
            raise Refused(
                Reason.NOT_FOUND,
                f"the authority cannot read {named.path}: {error.strerror}",
                "Check the path.",
            ) from error
        if digest != named.sha256:
            raise Refused(
                Reason.DIGEST_MISMATCH,
                f"{named.path} has SHA-256 {digest}, asked for is {named.sha256}",
                "Ask again: it changed meanwhile, or it is not the file at that path.",
            )
        return kind

    def _measure(self, path: str, *, hashing: bool) -> tuple[str, ProgramKind]:
        known = self._known.get(path)
        if known is None and not hashing:
            raise _UnknownError  # it may lie where opening takes long
        _require_regular(path, os.lstat(path))  # before it is opened: a device could do something
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") != path:  # noqa: PTH115 - at every request: Path costs more
                raise _malformed(f"{path} goes through a symbolic link", "Name the file itself: realpath.")
            status = os.fstat(descriptor)
            _require_regular(path, status)
            version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            if known is None or known[0] != version:
                if not hashing:
                    raise _UnknownError
                kind = program_kind(path, partial(os.pread, descriptor))
                known = self._known[path] = (version, digest_of(descriptor, path), kind)
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            return known[1:]
        finally:
            os.close(descriptor)


def _require_regular(path: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _malformed(f"{path} is a symbolic link", "Name the file itself: realpath.")
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
        raise _malformed(f"{path} is no regular file of at most {MAX_FILE} bytes", "Name a program.")


def _malformed(message: str, next_step: str) -> Refused:
    return Refused(Reason.REQUEST_MALFORMED, message, next_step)


def claimed_kind(document: IntentDocument) -> ProgramKind:
    """The kind of a program that is on another host, by its name: the node finds out what it is."""
    return program_kind(document.program.path, _nothing)


def _nothing(_length: int, _offset: int) -> bytes:
    return b""
