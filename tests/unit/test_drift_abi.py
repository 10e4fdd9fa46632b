"""The drift programs' header and its Python mirror: every number, size and offset, as the host's compiler has them."""

from __future__ import annotations

import ctypes
import re
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final

import pytest

from egs_kernel.gate import drift, drift_abi
from egs_kernel.gate.drift_calls import COMPAT, NATIVE, calls_by_number

BPF: Final = Path(__file__).parents[2] / "bpf"
HEADER: Final = (BPF / "egs_drift.h").read_text()
SOURCE: Final = (BPF / "drift.bpf.c").read_text()
TYPES: Final = (
    "typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned __u32; typedef int __s32; "
    "typedef unsigned long long __u64; typedef long long __s64;"
)
STRUCTS: Final[dict[str, type[ctypes.Structure]]] = {
    "egs_drift_config": drift_abi.Config,
    "egs_drift_call": drift_abi.Call,
    "egs_drift_object_key": drift_abi.ObjectKey,
    "egs_drift_object": drift_abi.Object,
    "egs_drift_rate_key": drift_abi.RateKey,
    "egs_drift_rate": drift_abi.Rate,
    "egs_drift_event": drift_abi.Event,
}
ENUMS: Final[dict[str, tuple[str, type[IntEnum | IntFlag]]]] = {
    "egs_drift_kind": ("EGS_DRIFT_", drift_abi.Kind),
    "egs_drift_exec": ("EGS_DRIFT_EXEC_", drift_abi.ExecFlag),
    "egs_drift_action": ("EGS_CALL_", drift_abi.Action),
    "egs_drift_demand": ("EGS_DEMAND_", drift_abi.Demand),
    "egs_drift_failure": ("EGS_DRIFT_FAIL_", drift_abi.Failure),
    "egs_drift_object_kind": ("EGS_DRIFT_", drift_abi.ObjectKind),
}
COUNTS: Final = {"EGS_DRIFT_KINDS", "EGS_DRIFT_FAILURES"}
NUMBERS: Final = {
    "EGS_DRIFT_ABI_VERSION": drift_abi.ABI_VERSION,
    "EGS_DRIFT_PAGES": drift_abi.PAGES,
    "EGS_DRIFT_NAME": drift_abi.NAME,
    "EGS_DRIFT_OBJECTS": drift_abi.OBJECTS,
    "EGS_DRIFT_OBJECT_NAME": drift_abi.OBJECT_NAME,
    "EGS_DRIFT_WRITERS": drift_abi.WRITERS,
    "EGS_DRIFT_CALLS": drift_abi.CALLS,
    "EGS_DRIFT_RATES": drift_abi.RATES,
    "EGS_DRIFT_RATE": drift_abi.RATE,
    "EGS_DRIFT_RATE_ORDINARY": drift_abi.RATE_ORDINARY,
    "EGS_DRIFT_KINDS": drift_abi.KINDS,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Ask the compiler: name of a thing → its number."""
    questions = [*NUMBERS]
    for name, mirror in STRUCTS.items():
        questions.append(f"sizeof(struct {name})")
        questions += [f"__builtin_offsetof(struct {name}, {field[0]})" for field in mirror._fields_]
    for prefix, kind in ENUMS.values():
        questions += [f"{prefix}{member.name}" for member in kind]
    lines = "".join(
        f'printf("%s %lld\\n", "{ask.replace(" ", "_")}", (long long)({ask}));' for ask in questions
    )
    source = tmp_path_factory.mktemp("abi") / "abi.c"
    source.write_text(
        f'{TYPES}\n#include <stdio.h>\n#include "egs_abi.h"\n#include "egs_drift.h"\nint main(void) {{ {lines} }}\n'
    )
    binary = source.with_suffix("")
    subprocess.run(["gcc", "-Wall", "-Werror", "-Wpadded", f"-I{BPF}", "-o", binary, source], check=True)
    answer = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in answer.splitlines())}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(compiled: dict[str, int], name: str) -> None:
    assert compiled[name] == NUMBERS[name]


@pytest.mark.parametrize("struct", STRUCTS)
def test_structs(compiled: dict[str, int], struct: str) -> None:
    mirror = STRUCTS[struct]
    offsets = {field[0]: getattr(mirror, field[0]).offset for field in mirror._fields_}
    assert {name: compiled[f"__builtin_offsetof(struct_{struct},_{name})"] for name in offsets} == offsets
    assert compiled[f"sizeof(struct_{struct})"] == ctypes.sizeof(mirror)
    body = re.search(rf"struct {struct} {{(.*?)}};", HEADER, re.DOTALL)
    assert body is not None
    declared = re.findall(r"(\w+)(?:\[[^\]]*\])?;", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))
    assert declared == [field[0] for field in mirror._fields_]


@pytest.mark.parametrize("name", ENUMS)
def test_enums(compiled: dict[str, int], name: str) -> None:
    prefix, kind = ENUMS[name]
    assert {member.name: compiled[f"{prefix}{member.name}"] for member in kind} == {
        member.name: member.value for member in kind
    }
    body = re.search(rf"enum {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert body is not None
    assert set(re.findall(r"(EGS_\w+) = ", body[1])) - COUNTS == {f"{prefix}{member.name}" for member in kind}


def test_the_header_lists_every_struct_and_enum() -> None:
    assert set(re.findall(r"^struct (\w+) {", HEADER, re.MULTILINE)) == set(STRUCTS)
    assert set(re.findall(r"^enum (\w+) {", HEADER, re.MULTILINE)) == set(ENUMS)


def test_every_map_and_program_is_pinned() -> None:
    declared = set(re.findall(r"^BPF_\w+\(.*?\b(drift_\w+)\b", SOURCE, re.MULTILINE))
    assert declared == set(drift.MAPS)
    programs = re.findall(r"^int (\w+)\(struct bpf_raw_tracepoint_args", SOURCE, re.MULTILINE)
    assert set(programs) == {*drift.TRACEPOINTS, *drift.MODULE_TRACEPOINTS}


def test_the_kinds_and_failures_fit_their_counters(compiled: dict[str, int]) -> None:
    assert max(drift_abi.Kind) < compiled["EGS_DRIFT_KINDS"]
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
