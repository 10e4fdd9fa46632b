"""Where the passphrase of a key file and the PIN of a token come from: a file, a systemd credential, the terminal.

Never from the command line or the environment, which other processes can read.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.errors import UsageError
from egs_kernel.model import Reason
from egs_kernel.ownership import read_secret_file

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT: Final = 1024
_TERMINAL: Final = "/dev/tty"


@dataclass(frozen=True)
class Passphrases:
    """Where to look, in this order.

    Attributes:
        file: holds it in its first line; nobody but its owner may read it.
        credentials: the folder of a systemd service's credentials; `key.passphrase` or `key.pin` in it.
        ask: asks a person; None: nobody is there.
    """

    file: Path | None = None
    credentials: Path | None = None
    ask: Callable[[str], str] | None = None

    @classmethod
    def of_process(cls, file: Path | None = None) -> Passphrases:
        """Of this process: the file that was named, its credentials, its terminal."""
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        return cls(file, Path(credentials) if credentials else None, getpass if _has_terminal() else None)

    def get(self, what: str, where: str) -> str:
        """The passphrase or PIN of a key.

        Args:
            what: `passphrase` or `pin`.
            where: the key, for the question and for messages.

        Raises:
            UsageError: there is none, or its file is not what it must be.
        """
        if self.file is not None:
            return self._read(self.file, read_secret_file)
        credential = None if self.credentials is None else self.credentials / f"key.{what}"
        if credential is not None and credential.exists():
            # systemd shows it to this service alone, in a folder that is not ours to judge.
            return self._read(credential, _read_credential)
        if self.ask is None:
            raise UsageError(
                Reason.KEY_SECRET_WRONG,
                f"{where} takes a {what}, and nobody is there to ask",
                f"Name a file with --passphrase-file FILE, give the service the credential key.{what}, or use a terminal.",
            )
        secret = self.ask(f"{what} of {where}: ")
        return _line(secret, "what was typed")

    def _read(self, path: Path, read: Callable[[Path, int], bytes]) -> str:
        try:
            content = read(path, _LIMIT).decode()
        except OSError as error:
            raise UsageError(
                Reason.NOT_FOUND, f"cannot read {path}: {error.strerror}", "Name a file that you can read."
            ) from error
        except UnicodeDecodeError as error:
            raise UsageError(Reason.USAGE, f"{path} is no text", "Write it as one line of UTF-8.") from error
        return _line(content, str(path))


def _line(content: str, where: str) -> str:
    secret = content.removesuffix("\n").removesuffix("\r")
    if not secret or not secret.isprintable():
        raise UsageError(
            Reason.USAGE, f"{where} is not one line of text", "Write one line, and nothing else."
        )
    return secret


def _read_credential(path: Path, limit: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UsageError(
                Reason.PATH_UNSAFE, f"{path} is not a regular file", "Check the unit's credentials."
            )
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UsageError(Reason.PATH_UNSAFE, f"{path} is larger than {limit} bytes", "Shorten it.")
    return content


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
