"""The gate's table of environment variables that make programs load code. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from egs_kernel.artifact.variables import CODE_VARIABLES
from egs_kernel.gate import abi

_COMPARED: Final = 8
"""Bytes of `NAME=` that the gate compares; of a longer name the rest may be anything."""


def variables_table(names: Iterable[str] = CODE_VARIABLES) -> abi.Variables:
    """Names (a `*` at the end stands for any rest) as the gate compares them.

    Raises:
        ValueError: more names than a bucket holds begin alike, or a name is shorter than what buckets go by.
    """
    buckets: dict[int, set[bytes]] = {number: set() for number in range(abi.VARIABLE_BUCKETS)}
    for name in names:
        pattern = (name[:-1] if name.endswith("*") else f"{name}=").encode()[:_COMPARED]
        buckets[bucket(pattern)].add(pattern)
    table = abi.Variables()
    for entry in table.variables:
        entry.value = 1
    for number, patterns in buckets.items():
        if len(patterns) > abi.VARIABLES_PER_BUCKET:
            raise ValueError(f"too many names for one bucket: {sorted(patterns)}")
        for index, pattern in enumerate(sorted(patterns)):
            entry = table.variables[number * abi.VARIABLES_PER_BUCKET + index]
            entry.mask = int.from_bytes(b"\xff" * len(pattern), "little")
            entry.value = int.from_bytes(pattern, "little")
    return table


def bucket(string: bytes) -> int:
    """EGS_VARIABLE_BUCKET of bpf/egs_abi.h."""
    first, second, third, *_ = string
    return (first * 7 + second * 3 + third) & (abi.VARIABLE_BUCKETS - 1)
