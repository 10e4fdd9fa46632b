"""The C header and its Python mirror: every number, size and offset, as the host's compiler has them."""

from __future__ import annotations

import ctypes
import re
import subprocess
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Final

import pytest

from egs_kernel import config
from egs_kernel.gate import abi, parts
from egs_kernel.gate.parts import GUARDS
from egs_kernel.gate.source import gate_source
from egs_kernel.model import ARGV_MAX, LAST_GATE_REASON, Attempt, GrantKind, Reason, Verdict

BPF: Final = Path(__file__).parents[2] / "bpf"
HEADER: Final = (BPF / "egs_abi.h").read_text()
GATE: Final = gate_source(BPF)
TYPES: Final = (
    "typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned __u32; typedef int __s32; "
)
TYPES_64: Final = "typedef unsigned long long __u64; typedef long long __s64;"

STRUCTS: Final[dict[str, type[ctypes.Structure]]] = {
    "egs_config": abi.Config,
    "egs_scope": abi.Scope,
    "egs_cgroup_path": abi.CgroupPath,
    "egs_file_key": abi.FileKey,
    "egs_entry_key": abi.EntryKey,
    "egs_task": abi.Task,
    "egs_ended_task": abi.EndedTask,
    "egs_file_id": abi.FileId,
    "egs_standing_key": abi.StandingKey,
    "egs_subject_key": abi.SubjectKey,
    "egs_subject": abi.Subject,
    "egs_grant": abi.Grant,
    "egs_argv": abi.Argv,
    "egs_variable": abi.Variable,
    "egs_variables": abi.Variables,
    "egs_reading": abi.Reading,
    "egs_exec_event": abi.ExecEvent,
    "egs_seal": abi.Seal,
    "egs_daemon": abi.Daemon,
    "egs_applicant": abi.Applicant,
    "egs_object_key": abi.ObjectKey,
    "egs_harmless_key": abi.HarmlessKey,
    "egs_attempt_rate": abi.AttemptRate,
    "egs_code_event": abi.CodeEvent,
    "egs_attempt_event": abi.AttemptEvent,
    "egs_exit_event": abi.ExitEvent,
}
ENUMS: Final[dict[str, tuple[str, type[IntEnum | IntFlag]]]] = {
    "egs_verdict": ("EGS_", Verdict),
    "egs_reason": ("EGS_", Reason),
    "egs_grant_kind": ("EGS_GRANT_", GrantKind),
    "egs_tier": ("EGS_TIER_", abi.Tier),
    "egs_mode": ("EGS_MODE_", abi.Mode),
    "egs_missing": ("EGS_MISSING_", abi.Missing),
    "egs_task_flag": ("EGS_TASK_", abi.TaskFlag),
    "egs_scope_kind": ("EGS_SCOPE_", abi.ScopeKind),
    "egs_grant_flag": ("EGS_", abi.GrantFlag),
    "egs_restrain": ("EGS_RESTRAIN_", abi.Restrain),
    "egs_event_type": ("EGS_EVENT_", abi.EventType),
    "egs_failure": ("EGS_FAIL_", abi.Failure),
    "egs_attempt": ("EGS_ATTEMPT_", Attempt),
    "egs_protection": ("EGS_PROTECT_", abi.Protection),
    "egs_object_kind": ("EGS_OBJECT_", abi.ObjectKind),
    "egs_applicant_stage": ("EGS_APPLICANT_", abi.ApplicantStage),
}
NUMBERS: Final = {
    "EGS_ABI_VERSION": abi.ABI_VERSION,
    "EGS_MAX_SCOPES": abi.MAX_SCOPES,
    "EGS_SCOPE_SELF_TEST_OBSERVE": abi.SCOPE_SELF_TEST_OBSERVE,
    "EGS_SCOPE_SELF_TEST_ENFORCE": abi.SCOPE_SELF_TEST_ENFORCE,
    "EGS_SCOPE_SLOTS": abi.SCOPE_SLOTS,
    "EGS_SCOPE_NAME": abi.SCOPE_NAME,
    "EGS_TASKS": abi.TASKS,
    "EGS_TASKS_SOFT": abi.TASKS_SOFT,
    "EGS_HELD_MAX": abi.HELD_MAX,
    "EGS_GRANTS_PER_FILE": abi.GRANTS_PER_FILE,
    "EGS_CHILDREN_OF": abi.CHILDREN_OF,
    "EGS_SUBJECTS": abi.SUBJECTS,
    "EGS_LIBRARY_FOLDERS": abi.LIBRARY_FOLDERS,
    "EGS_CODE_EVENTS": abi.CODE_EVENTS,
    "EGS_PROTECTED_FILES": abi.PROTECTED_FILES,
    "EGS_OWN_OBJECTS": abi.OWN_OBJECTS,
    "EGS_APPLICANTS": abi.APPLICANTS,
    "EGS_ATTEMPTS": abi.ATTEMPTS,
    "EGS_HARMLESS_NAME": abi.HARMLESS_NAME,
    "EGS_ARGV_MAX": ARGV_MAX,
    "EGS_ARGV_SMALL": abi.ARGV_SMALL,
    "EGS_FILENAME_MAX": abi.FILENAME_MAX,
    "EGS_COMM": abi.COMM,
    "EGS_CGROUP_PATH": abi.CGROUP_PATH,
    "EGS_ENTRY_NAME": abi.ENTRY_NAME,
    "EGS_GATE_REASONS": abi.GATE_REASONS,
    "EGS_ENV_STRINGS": abi.ENV_STRINGS,
    "EGS_VARIABLE_BUCKETS": abi.VARIABLE_BUCKETS,
    "EGS_VARIABLES_PER_BUCKET": abi.VARIABLES_PER_BUCKET,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Ask the compiler: name of a thing → its number."""
    questions = [*NUMBERS]
    for name in STRUCTS:
        questions.append(f"sizeof(struct {name})")
        questions += [f"__builtin_offsetof(struct {name}, {member})" for member, _ in fields(name)]
    for name, (prefix, kind) in ENUMS.items():
        questions += [f"{prefix}{member.name}" for member in members(name, kind)]
    lines = "".join(
        f'printf("%s %lld\\n", "{ask.replace(" ", "_")}", (long long)({ask}));' for ask in questions
    )
    source = tmp_path_factory.mktemp("abi") / "abi.c"
    source.write_text(
        f'{TYPES}{TYPES_64}\n#include <stdio.h>\n#include "egs_abi.h"\nint main(void) {{ {lines} return 0; }}\n'
    )
    binary = source.with_suffix("")
    subprocess.run(["gcc", "-Wall", "-Werror", "-Wpadded", f"-I{BPF}", "-o", binary, source], check=True)
    answer = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in answer.splitlines())}


def fields(struct: str) -> list[tuple[str, object]]:
    return [(field[0], field[1]) for field in STRUCTS[struct]._fields_]


def members(name: str, kind: type[IntEnum | IntFlag]) -> list[IntEnum | IntFlag]:
    everything: list[IntEnum | IntFlag] = list(kind)
    return [member for member in everything if name != "egs_reason" or member.value <= LAST_GATE_REASON]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(compiled: dict[str, int], name: str) -> None:
    assert compiled[name] == NUMBERS[name]


@pytest.mark.parametrize("struct", STRUCTS)
def test_structs(compiled: dict[str, int], struct: str) -> None:
    mirror = STRUCTS[struct]
    offsets = {name: getattr(mirror, name).offset for name, _ in fields(struct)}
    seen = {name: compiled[f"__builtin_offsetof(struct_{struct},_{name})"] for name in offsets}
    assert seen == offsets
    size = compiled[f"sizeof(struct_{struct})"]
    room = abi.ARGV_SMALL if struct == "egs_exec_event" else 0  # the mirror is the head: arguments follow
    assert size == ctypes.sizeof(mirror) + room


@pytest.mark.parametrize("name", STRUCTS)
def test_the_mirror_has_every_field_of_the_struct(name: str) -> None:
    body = re.search(rf"struct {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert body is not None
    declared = re.findall(r"(\w+)(?:\[[^\]]*\])?;", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL))
    mirrored = [member for member, _ in fields(name)]
    assert mirrored == [member for member in declared if (name, member) != ("egs_exec_event", "argv")]


@pytest.mark.parametrize("name", ENUMS)
def test_enums(compiled: dict[str, int], name: str) -> None:
    prefix, kind = ENUMS[name]
    assert {member.name: compiled[f"{prefix}{member.name}"] for member in members(name, kind)} == {
        member.name: member.value for member in members(name, kind)
    }
    body = re.search(rf"enum {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert body is not None
    declared = re.findall(r"(EGS_\w+) = ", body[1])
    ours = {f"{prefix}{member.name}" for member in members(name, kind)}
    assert set(declared) - {"EGS_GATE_REASONS", "EGS_FAILURES"} == ours


def test_the_header_lists_every_struct_and_enum() -> None:
    assert set(re.findall(r"^struct (\w+) {", HEADER, re.MULTILINE)) == set(STRUCTS)
    assert set(re.findall(r"^enum (\w+) {", HEADER, re.MULTILINE)) == set(ENUMS)


def test_the_daemon_opens_every_map_and_program_of_the_gate() -> None:
    maps = re.findall(r"^BPF_\w+\((?:\"\w+\", )?(?:[\w ]+, )*?(\w+), ", GATE, re.MULTILINE)
    declared = {
        name
        for line in re.findall(r"^BPF_\w+\(.*\);", GATE, re.MULTILINE)
        for name in (*parts.MAPS, *parts.LSM_MAPS)
        if name in line
    }
    assert declared == {*parts.MAPS, *parts.LSM_MAPS}
    assert len(maps) == len(declared)
    programs = re.findall(r"^int (\w+)\(struct bpf_raw_tracepoint_args", GATE, re.MULTILINE)
    assert set(programs) == {
        *parts.TRACEPOINTS,
        *parts.SKIP_GUARDS,
        *parts.LSM_TRACEPOINTS,
        *GUARDS,
        *parts.CALLED,
        *parts.LSM_CALLED,
    }
    hooks = re.findall(r"^int (\w+)\(u64 \*ctx\)", GATE, re.MULTILINE)
    assert set(hooks) == set(parts.HOOKS) - set(parts.SHARED)


def test_limits_that_are_said_twice_agree() -> None:
    assert (config.MAX_SCOPES, ARGV_MAX) == (abi.MAX_SCOPES, abi.ARGV_MAX)
