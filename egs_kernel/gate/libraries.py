"""Trusted library roots: below these folders, files of root's may be code of any governed program (tier `lsm`)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from egs_kernel.gate import abi
from egs_kernel.gate.pins import Gate
from egs_kernel.ownership import require_private_folder


def apply_library_roots(gate: Gate, roots: Iterable[str]) -> None:
    """Make the gate trust what is below these folders, and below no others. Those that do not exist do not count.

    Raises:
        UnsafePath: others than root can change one of them.
    """
    wanted = {_key(gate, Path(root)) for root in roots if Path(root).is_dir()}
    present = {(key.inode, key.device) for key, _ in gate.library_folders.items()}
    for inode, device in wanted - present:
        gate.library_folders.put(abi.FileKey(inode=inode, device=device), ctypes.c_uint32(1))
    for inode, device in present - wanted:
        gate.library_folders.delete(abi.FileKey(inode=inode, device=device))


def _key(gate: Gate, folder: Path) -> tuple[int, int]:
    require_private_folder(folder.resolve())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        identity = gate.identify(descriptor)
    finally:
        os.close(descriptor)
    return identity.inode, identity.device
