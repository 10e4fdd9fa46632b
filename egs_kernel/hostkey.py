"""The host's own key: with the machine id it is what makes this host this one.

Ed25519, made at the first start of the daemon, one for each host id: a disk that is copied to another machine has another
id there, and so another key. An artifact that names the key's id (`identity.hosts`) is for no host without it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from egs_kernel.audit.keyfiles import read_private, write_private
from egs_kernel.errors import EgsError
from egs_kernel.model import Reason
from egs_kernel.sslib import CryptoSigner, SSlibKey

if TYPE_CHECKING:
    from pathlib import Path

    from egs_kernel.sslib import Signer


def open_host_key(folder: Path, host_id: str) -> str:
    """The id of this host's key, which is made when there is none.

    Args:
        folder: of host keys; made, for its owner alone, when it is missing.
        host_id: whose key.

    Raises:
        EgsError: it cannot be read or made, or others could have read it.
    """
    path = _path(folder, host_id)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_private(path, Ed25519PrivateKey.generate())
    except FileExistsError:
        pass  # made by another daemon that starts: one of the two will run, with this key
    except OSError as error:
        raise EgsError(
            Reason.PATH_UNSAFE,
            f"cannot make the host's key {path}: {error.strerror}",
            f"Make {folder} a folder of root's, mode 0700.",
        ) from error
    return _id_of(read_private(path))


def read_host_key(folder: Path, host_id: str) -> str | None:
    """The id of this host's key; None: it has none yet.

    Raises:
        EgsError: it cannot be read, or others could have read it.
    """
    path = _path(folder, host_id)
    return _id_of(read_private(path)) if path.exists() else None


def host_signer(folder: Path, host_id: str) -> Signer:
    """What signs with this host's key.

    Raises:
        EgsError: there is none, it cannot be read, or others could have read it.
    """
    return CryptoSigner(read_private(_path(folder, host_id)))


def _path(folder: Path, host_id: str) -> Path:
    return folder / f"{hashlib.sha256(host_id.encode()).hexdigest()}.key"


def _id_of(private: Ed25519PrivateKey) -> str:
    return str(SSlibKey.from_crypto(private.public_key()).keyid)
