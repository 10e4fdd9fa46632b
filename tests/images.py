"""ELF images of a few hundred bytes, made by hand: each writes WORD to descriptor 1 and ends. x86-64."""

from __future__ import annotations

import struct
from enum import IntFlag
from pathlib import Path
from typing import Final

WORD: Final = b"ran\n"
_BASE: Final = 0x400000
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_IDENTITY: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551
_PAGE: Final = 4096
_STACK_TOP: Final = 0x7FFFFFFFF000
"""Of a process without address space randomization."""

_CODE: Final = bytes.fromhex(
    "31c0 ffc0 89c7"  # eax = 1 (write), edi = 1
    "488d35 efffffff"  # rsi = 17 bytes before the next instruction: the word
    "31d2 b204 0f05"  # edx = 4; syscall
    "31ff 31c0 b03c 0f05"  # edi = 0, eax = 60 (exit); syscall
)
"""Position independent, and without a NUL, so that it can be an argument. WORD lies right before it."""

PROGRAM: Final = WORD + _CODE


class Access(IntFlag):
    """p_flags."""

    X = 1
    W = 2
    R = 4


def plain_image(path: Path) -> Path:
    """Code in a segment that is read and executed: nothing of it is in memory when execve() ends."""
    return _write(path, Access.R | Access.X, 0)


def filled_image(path: Path) -> Path:
    """Code on a page of a writable segment whose end the kernel fills with zeros during execve(): it is there already."""
    return _write(path, Access.R | Access.W | Access.X, _PAGE // 2)


def stack_image(path: Path, argument: bytes) -> Path:
    """An image that begins in its last argument, on a stack that can be executed; takes ADDR_NO_RANDOMIZE."""
    name = str(path).encode()
    start = _STACK_TOP - 8 - (len(name) + 1) - (len(argument) + 1)
    return _write(path, Access.R | Access.X, 0, entry=start + len(WORD))


def _write(path: Path, access: Access, zeros: int, entry: int | None = None) -> Path:
    segments = 2
    head = _HEADER.size + segments * _SEGMENT.size
    size = head + len(PROGRAM)
    start = _BASE + head + len(WORD) if entry is None else entry
    header = _HEADER.pack(
        *(_IDENTITY, 2, 62, 1, start, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, segments, 0, 0, 0)
    )
    stack = Access.R | Access.W | (Access.X if entry is not None else Access(0))
    load = _SEGMENT.pack(_PT_LOAD, access, 0, _BASE, _BASE, size, size + zeros, _PAGE)
    path.write_bytes(header + load + _SEGMENT.pack(_PT_GNU_STACK, stack, 0, 0, 0, 0, 0, 16) + PROGRAM)
    path.chmod(0o755)
    return path
