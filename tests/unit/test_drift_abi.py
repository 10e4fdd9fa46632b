"""The drift programs and what user space knows of them: maps, counters, the numbers of system calls."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

from egs_kernel.gate import drift, drift_abi
from egs_kernel.gate.drift_calls import COMPAT, NATIVE, calls_by_number

BPF: Final = Path(__file__).parents[2] / "bpf"
SOURCE: Final = (BPF / "drift.bpf.c").read_text()


def test_every_map_and_program_is_pinned() -> None:
    declared = set(re.findall(r"^BPF_\w+\(.*?\b(drift_\w+)\b", SOURCE, re.MULTILINE))
    assert declared == set(drift.MAPS)
    programs = re.findall(r"^int (\w+)\(struct bpf_raw_tracepoint_args", SOURCE, re.MULTILINE)
    assert set(programs) == {*drift.TRACEPOINTS, *drift.MODULE_TRACEPOINTS}


def test_the_kinds_and_failures_fit_their_counters() -> None:
    assert max(drift_abi.Kind) < drift_abi.KINDS
    assert max(drift_abi.Failure) < 8


def test_every_action_has_a_call_and_every_call_fits() -> None:
    assert set(NATIVE.values()) | set(COMPAT.values()) == set(drift_abi.Action)
    assert max(*NATIVE, *COMPAT) < drift_abi.CALLS
    assert set(COMPAT.values()) >= set(NATIVE.values()), (
        "what is seen of 64-bit programs is seen of 32-bit ones"
    )


def test_a_number_that_means_two_things_demands_nothing_of_either() -> None:
    calls = calls_by_number()
    demanding = {number for number, call in calls.items() if call.demand}
    assert demanding == {9, 10, 329, 257, 125, 192, 380, 295}
    assert not any(calls[number].native and calls[number].compat for number in demanding)


def test_the_numbers_are_the_kernels(tmp_path: Path) -> None:
    """As the system's own headers have them, for both kinds of programs."""
    names = {
        "": {2: "open", 257: "openat", 437: "openat2", 101: "ptrace", 311: "process_vm_writev", 308: "setns"}
        | {272: "unshare", 155: "pivot_root", 161: "chroot", 9: "mmap", 10: "mprotect", 329: "pkey_mprotect"}
        | {135: "personality", 30: "shmat", 85: "creat", 304: "open_by_handle_at", 157: "prctl", 321: "bpf"}
        | {105: "setuid", 106: "setgid", 113: "setreuid", 114: "setregid", 116: "setgroups", 126: "capset"}
        | {117: "setresuid", 119: "setresgid", 122: "setfsuid", 123: "setfsgid"},
        "32": {5: "open", 295: "openat", 437: "openat2", 26: "ptrace", 348: "process_vm_writev", 346: "setns"}
        | {310: "unshare", 217: "pivot_root", 61: "chroot", 90: "mmap", 192: "mmap2", 125: "mprotect"}
        | {380: "pkey_mprotect", 136: "personality", 117: "ipc", 397: "shmat", 8: "creat", 172: "prctl"}
        | {342: "open_by_handle_at", 357: "bpf", 185: "capset", 23: "setuid", 213: "setuid32", 46: "setgid"}
        | {
            70: "setreuid",
            71: "setregid",
            81: "setgroups",
            138: "setfsuid",
            139: "setfsgid",
            164: "setresuid",
        }
        | {170: "setresgid", 203: "setreuid32", 204: "setregid32", 206: "setgroups32", 208: "setresuid32"}
        | {210: "setresgid32", 214: "setgid32", 215: "setfsuid32", 216: "setfsgid32"},
    }
    x32 = {521, 540}
    assert set(names[""]) == set(NATIVE) - x32
    assert set(names["32"]) == set(COMPAT)
    for kind, calls in names.items():
        header = f"<asm/unistd_{kind or '64'}.h>"
        checks = "".join(
            f'_Static_assert(__NR_{name} == {number}, "{name}");' for number, name in calls.items()
        )
        source = tmp_path / f"calls{kind}.c"
        source.write_text(f"#include {header}\n{checks}\n")
        subprocess.run(["gcc", "-fsyntax-only", str(source)], check=True)
