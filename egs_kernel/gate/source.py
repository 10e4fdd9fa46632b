"""The gate's C as one text: bcc rewrites map calls in the main text alone, not in what that includes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PARTS: Final = (
    "gate.bpf.c",
    "scopes.bpf.c",
    "decide.bpf.c",
    "pending.bpf.c",
    "hold.bpf.c",
    "exec.bpf.c",
    "lsm.bpf.c",
    "protect.bpf.c",
    "keep.bpf.c",
    "objects.bpf.c",
    "become.bpf.c",
    "follow.bpf.c",
    "called.bpf.c",
)
"""In the order in which they build on each other."""


def source_folder() -> Path:
    """Where the gate's C lies: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_bpf"
    return installed if installed.is_dir() else package.parent / "bpf"


def gate_source(folder: Path) -> str:
    """The parts joined; messages of the compiler name the part and its line."""
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text()}' for name in PARTS)
