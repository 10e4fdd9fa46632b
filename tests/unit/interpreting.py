"""Seccomp programs, run by an interpreter: what they answer to a system call."""

from __future__ import annotations

import errno
import platform
import sys
from typing import Final

import pytest

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
EPERM: Final = 0x00050000 | errno.EPERM
ENOSYS: Final = 0x00050000 | errno.ENOSYS

LOG: Final = 0x7FFC0000

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}[platform.machine()]
I386, X32_BIT = 0x40000003, 0x40000000


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = AUDIT_ARCH) -> int:
    """Interpret classic BPF over seccomp_data, as the kernel does: the instructions that libseccomp emits."""
    data = b"".join(
        (
            (number & 0xFFFFFFFF).to_bytes(4, sys.byteorder),
            arch.to_bytes(4, sys.byteorder),
            bytes(8),
            *(argument.to_bytes(8, sys.byteorder) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]),
        )
    )
    accumulator, position = 0, 0
    while True:
        instruction = program[position * 8 : position * 8 + 8]
        code = int.from_bytes(instruction[:2], sys.byteorder)
        if_true, if_false = instruction[2], instruction[3]
        constant = int.from_bytes(instruction[4:], sys.byteorder)
        position += 1
        match code:
            case 0x20:  # ld [k]
                accumulator = int.from_bytes(data[constant : constant + 4], sys.byteorder)
            case 0x54:  # and k
                accumulator &= constant
            case 0x05:  # ja k
                position += constant
            case 0x15:  # jeq
                position += if_true if accumulator == constant else if_false
            case 0x25:  # jgt
                position += if_true if accumulator > constant else if_false
            case 0x35:  # jge
                position += if_true if accumulator >= constant else if_false
            case 0x06:  # ret k
                return constant
            case _:
                pytest.fail(f"instruction {code:#x} is not known to this test")


def number_of(name: str) -> int:
    import pyseccomp  # noqa: PLC0415 - importing it needs libseccomp, which only these tests do

    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


def verdict(program: bytes, name: str, *arguments: int) -> int:
    number = number_of(name)
    assert number >= 0, f"{name} does not exist here"
    return run(program, number, arguments)
