"""File systems on which "untouched" can be told from outside the file.

The gate knows a measured file by its change time. That is proof only where every write changes it:

- tmpfs and its kin do not stamp a store through a shared mapping at all;
- FUSE and network file systems answer what their server says, and may give other bytes at each read;
- an overlay is as good as the layers below it, which this process often cannot see.

So programs are authorized only on file systems of the list below, unless the configuration adds another one
(`trusted_filesystems`, docs/configuration.md) and thereby takes the risk.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from egs_kernel.errors import Refused
from egs_kernel.model import Reason

_MAGIC: Final = {
    "ext4": 0xEF53,  # ext2 and ext3 as well
    "xfs": 0x58465342,
    "btrfs": 0x9123683E,
    "f2fs": 0xF2F52010,
    "squashfs": 0x73717368,
    "erofs": 0xE0F5E1E2,
    "iso9660": 0x9660,
    "tmpfs": 0x01021994,
    "overlay": 0x794C7630,
    "zfs": 0x2FC12FC1,
    "9p": 0x01021997,
    "nfs": 0x6969,
    "virtiofs": 0x6A656A63,
}
TRUSTED: Final = frozenset({"ext4", "xfs", "btrfs", "f2fs", "squashfs", "erofs", "iso9660"})
"""Every write stamps the file (file_update_time in page_mkwrite), or there are no writes."""
KNOWN: Final = frozenset(_MAGIC)
"""What `trusted_filesystems` may add."""

_WORDS: Final = 32
"""More than struct statfs has on any architecture."""

_libc = ctypes.CDLL(None, use_errno=True)


def filesystem_of(descriptor: int) -> str:
    """The name of the file system of an open file; its magic number in hex when it is not known here.

    Raises:
        OSError: the kernel does not say.
    """
    buffer = (ctypes.c_long * _WORDS)()
    if _libc.fstatfs(descriptor, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    magic = buffer[0] & 0xFFFFFFFF
    return next((name for name, number in _MAGIC.items() if number == magic), f"{magic:#x}")


def require_tracked(descriptor: int, path: str, also: frozenset[str] = frozenset()) -> None:
    """Refuse a file whose changes could go unseen.

    Args:
        descriptor: the file.
        path: how messages call it.
        also: file systems that the configuration trusts in addition.

    Raises:
        Refused: FILESYSTEM_UNTRUSTED.
        OSError: the kernel does not say what file system it is.
    """
    name = filesystem_of(descriptor)
    if name not in TRUSTED | also:
        raise Refused(
            Reason.FILESYSTEM_UNTRUSTED,
            f"{path} is on {name}, where a file can change without a trace",
            f"Install the program on a disk file system ({', '.join(sorted(TRUSTED))}); "
            "docs/configuration.md, trusted_filesystems, has the exception and its price.",
        )
